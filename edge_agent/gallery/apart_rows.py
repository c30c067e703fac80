"""Pairs of identities that are certainly two people, in the gallery file: SQL statements."""

from __future__ import annotations

from edge_agent.core.errors import InputError
from edge_agent.gallery.store import Store


class ApartRows:
    """The pairs of an open file, the lower number first; methods that write belong inside a change."""

    def __init__(self, store: Store) -> None:
        self.changes = 0
        """By this process; the meta value `apart` counts those of all."""
        self._store = store

    def add(self, one: int, other: int, reason: str) -> None:
        """Note that two existing identities are two people."""
        if one == other:
            raise InputError(f"identity {one} cannot be kept apart from itself")
        self._store.run("INSERT OR REPLACE INTO apart VALUES (?, ?, ?)", (*sorted((one, other)), reason))
        self._note()

    def add_together(self, one: int, other: int, most: int) -> bool:
        """Note that two people were seen at the same time; False: known, gone, or one has `most` pairs."""
        count = "(SELECT count(*) FROM apart WHERE ? IN (first, second) AND reason = 'together') < ?"
        exists = "EXISTS (SELECT 1 FROM identity WHERE number = ?)"
        first, second = sorted((one, other))
        added = self._store.run(
            f"INSERT OR IGNORE INTO apart SELECT ?, ?, 'together' WHERE {count} AND {count}"
            f" AND {exists} AND {exists}",
            (first, second, first, most, second, most, first, second),
        ).rowcount
        if added:
            self._note()
        return bool(added)

    def merge(self, keep: int, absorb: int) -> None:
        """Move the pairs of an identity to another; their own pair ends."""
        found = self._store.rows(
            "SELECT first + second - ?, reason FROM apart WHERE ? IN (first, second)", (absorb, absorb)
        )
        if not found:
            return
        self._store.run("DELETE FROM apart WHERE ? IN (first, second)", (absorb,))
        self._store.run_many(
            "INSERT OR IGNORE INTO apart VALUES (?, ?, ?)",
            [(*sorted((other, keep)), reason) for other, reason in found if other != keep],
        )
        self._note()

    def pairs(self) -> list[tuple[int, int]]:
        """Return all pairs."""
        return [(first, second) for first, second in self._store.rows("SELECT first, second FROM apart")]

    def was_split(self, number: int) -> bool:
        """Return whether an identity is a part of another one, or lost a part."""
        query = "SELECT EXISTS (SELECT 1 FROM apart WHERE ? IN (first, second) AND reason = 'split')"
        return bool(self._store.value(query, (number,)))

    def _note(self) -> None:
        self.changes += 1
        self._store.put_meta("apart", 1 + int(self._store.meta("apart") or 0))
