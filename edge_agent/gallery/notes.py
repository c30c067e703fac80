"""What else a gallery file stores: facts about the site, and which pictures show whom."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from typing import Any

from edge_agent.core.structures import Pictures
from edge_agent.gallery.sync import SyncedFile


class Facts:
    """JSON values by key, e.g. the score statistics of the site.

    They belong to the embedding space: `Gallery.forget_all` removes them.
    """

    def __init__(self, file: SyncedFile) -> None:
        self._file = file

    def get(self, key: str) -> Any:  # noqa: ANN401 - any JSON value
        """Return the value; None when there is none."""
        with self._file.reading() as rows:
            text = rows.store.value("SELECT value FROM fact WHERE key = ?", (key,))
        return None if text is None else json.loads(text)

    def set(self, key: str, value: Any) -> None:  # noqa: ANN401 - any JSON value
        """Store a value; None removes it. A power cut may undo this. ValueError: not JSON, or not finite."""
        self.change(key, lambda _: value, durable=False)

    def change(self, key: str, change: Callable[[Any], Any], *, durable: bool = True) -> None:
        """Replace a value by `change(value)` in one transaction; None stands for no value."""
        with self._file.changing(durable=durable) as rows:
            value = change(self.get(key))
            if value is None:
                rows.store.run("DELETE FROM fact WHERE key = ?", (key,))
            else:
                text = json.dumps(value, allow_nan=False)
                rows.store.run("INSERT OR REPLACE INTO fact VALUES (?, ?)", (key, text))


class PictureNotes:
    """Which pictures in crop folders show which identity, so that they can be deleted with it."""

    def __init__(self, file: SyncedFile) -> None:
        self._file = file

    def note(self, number: int, camera: str, track: int, since: float) -> bool:
        """Note that the pictures of a track since a time show this identity, instead of one noted before.

        Returns False where nothing was noted: there is no such identity, or pictures noted for this track are
        still to be deleted.
        """
        with self._file.changing(durable=False) as rows:
            done = rows.store.run(
                "INSERT INTO pictures SELECT ?, ?, ?, number FROM identity WHERE number = ?"
                " ON CONFLICT DO UPDATE SET number = excluded.number WHERE pictures.number IS NOT NULL",
                (camera, track, since, number),
            )
            return done.rowcount > 0

    def orphaned(self) -> list[Pictures]:
        """Return the pictures of identities that were erased, until `removed` is called for them."""
        with self._file.reading() as rows:
            found = rows.store.rows(
                "SELECT camera, track, since, (SELECT min(later.since) FROM pictures AS later WHERE"
                " later.camera = pictures.camera AND later.track = pictures.track"
                " AND later.since > pictures.since) FROM pictures WHERE number IS NULL"
            )
        return [
            Pictures(camera, track, since, math.inf if until is None else until)
            for camera, track, since, until in found
        ]

    def removed(self, gone: Iterable[Pictures]) -> None:
        """Delete the notes of pictures that were deleted."""
        with self._file.changing() as rows:
            rows.store.run_many(
                "DELETE FROM pictures WHERE camera = ? AND track = ? AND since = ? AND number IS NULL",
                [(one.camera, one.track, one.since) for one in gone],
            )
