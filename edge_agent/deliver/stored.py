"""What is in the outbox, for others than its sender."""

from __future__ import annotations

from edge_agent.deliver.open_tracks import OpenTrack, open_tracks
from edge_agent.deliver.storage import Storage


class Stored:
    """Reads the open outbox."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def between(self, seq: int, last: int, most: int) -> list[tuple[int, bytes]]:
        """Return the first `most` numbers above `seq`, up to `last`, and their messages without number."""
        query = "SELECT seq, body FROM event WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?"
        with self._storage.locked():
            return self._storage.connection.execute(query, (seq, last, most)).fetchall()

    def open_tracks(self) -> list[OpenTrack]:
        """Return the tracks that are open by the events so far, in the order of their first events."""
        with self._storage.locked():
            return open_tracks(self._storage.connection.execute)
