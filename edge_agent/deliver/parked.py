"""Events that the broker does not take: set aside in the outbox, and sent again later."""

from __future__ import annotations

import json

from edge_agent.deliver.storage import Storage

MAX_PARKED = 1000
"""Refused events that are kept; the oldest are deleted. A gap event named them when they were parked."""


class Parked:
    """The parked events of the open outbox."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def add(self, seq: int, reason: str) -> None:
        """Set aside an event that the broker refuses, and record its number for a gap event.

        A gap event is not kept: the numbers that it names are recorded again.
        """
        storage = self._storage
        with storage.locked():
            with storage.transaction() as execute:
                if seq in storage.state.gaps:
                    _take_back(storage, seq)
                else:
                    execute(
                        "INSERT OR REPLACE INTO parked"
                        " SELECT seq, topic, body, created, ? FROM event WHERE seq = ?",
                        (reason, seq),
                    )
                rows = execute(
                    "SELECT seq, length(body), created FROM event WHERE seq = ?", (seq,)
                ).fetchall()
                storage.drop(rows, "rejected")
                execute(
                    "DELETE FROM parked WHERE seq IN"
                    " (SELECT seq FROM parked ORDER BY seq DESC LIMIT -1 OFFSET ?)",
                    (MAX_PARKED,),
                )
                storage.state.parked = storage.value("SELECT count(*) FROM parked")
            storage.state.sending.pop(seq, None)
            storage.state.gaps.discard(seq)

    def requeue(self) -> int:
        """Move them back into the queue, with their numbers; return how many."""
        if not self._storage.state.parked:
            return 0  # without a write, which fails on a full disk
        with self._storage.changed() as execute:
            state = self._storage.state
            count, size = execute("SELECT count(*), coalesce(sum(length(body)), 0) FROM parked").fetchone()
            execute("INSERT INTO event SELECT seq, topic, body, created, 0 FROM parked")
            execute("DELETE FROM parked")
            state.rows += count
            state.bytes += size
            state.parked = state.cursor = 0
            return int(count)


def _take_back(storage: Storage, seq: int) -> None:
    """Record the numbers that a gap event names again."""
    body = storage.value("SELECT body FROM event WHERE seq = ?", seq)
    if body is not None:
        data = json.loads(body)["data"]
        for one in data["ranges"]:
            storage.note(one["first"], one["last"], data["reason"])
