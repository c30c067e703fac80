"""What an operator corrects about identities: a part that is somebody else, and pairs that are two people."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

from edge_agent.core.names import checked_name
from edge_agent.gallery.rows import Identity
from edge_agent.gallery.sync import SyncedFile

_NOBODY: frozenset[int] = frozenset()
MOST_TOGETHER = 16
"""Pairs of one person with others who are alike and were seen at the same time."""


class Corrections:
    """Splits identities, and keeps the pairs that are never joined by a guess. Any thread may call it.

    A pair ends with one of its identities, or when an operator merges the two.
    """

    def __init__(self, file: SyncedFile) -> None:
        self._file = file
        self._apart: dict[int, set[int]] = {}
        self._mark: object = None

    def split(self, number: int, origin: str, name: str | None = None) -> Identity:
        """Make a new identity of what one origin contributed to another: exemplars, crops, noted pictures.

        The two are kept apart from then on. The new one counts as seen when the other was. An open track
        follows, see `identify.Identifier.split`.

        Raises:
            InputError: the identity has nothing of this origin, or nothing else; or the name is not usable.
        """
        label = None if name is None else checked_name(name)
        with self._file.changing() as rows:
            return rows.split(number, origin, label)

    def reject(self, one: int, other: int) -> None:
        """Note that two identities are two people; InputError: they are one, or one does not exist."""
        with self._file.changing() as rows:
            rows.apart.add(rows.identity(one).number, rows.identity(other).number, "rejected")

    def seen_together(self, number: int, others: Collection[int]) -> int:
        """Note that people who are alike were seen at the same time; return how many pairs are new.

        A person has at most `MOST_TOGETHER` such pairs.
        """
        with self._file.changing(durable=False) as rows:
            return sum(rows.apart.add_together(number, other, MOST_TOGETHER) for other in others)

    def separated(self, number: int) -> list[str]:
        """Return the origins of an identity that was split: what was recorded states the other part."""
        with self._file.reading() as rows:
            return sorted(set(self._file.origins(number))) if rows.apart.was_split(number) else []

    def apart(self, number: int) -> set[int] | frozenset[int]:
        """Return the identities that are certainly other people than this one; from memory."""
        with self._file.reading() as rows:
            mark = self._file.apart_mark, rows.apart.changes
            if mark != self._mark:
                self._mark, found = mark, defaultdict(set)
                for first, second in rows.apart.pairs():
                    found[first].add(second)
                    found[second].add(first)
                self._apart = dict(found)
            return self._apart.get(number, _NOBODY)
