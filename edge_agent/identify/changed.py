"""Exemplars of the identities that changed lately, in one block that is compared as a whole.

People who are in view change all the time: their identities get exemplars, and those of a camera are turned
when its offset moves. To compare them one by one would cost more than all else in a decision. Identities
that have not changed for long are dropped; searches from before their last change cannot be used any more.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
Numbers = NDArray[np.int64]

MOST_CHANGED = 4000
"""Identities kept; a quarter is dropped when there are more."""
_MOST_COPIED = 0.4
"""Share of the entries up to which copying their rows costs less than comparing all."""


class Changing(Protocol):
    """The methods of `edge_agent.gallery.Gallery` that tell what changed, documented there."""

    def vectors(self, numbers: Collection[int]) -> tuple[Numbers, Vector]: ...  # noqa: D102
    def changes_since(self, mark: int) -> tuple[int, set[int] | None]: ...  # noqa: D102


class Changed:
    """Follows the changes of a gallery.

    Attributes:
        mark: of the gallery at the latest `follow`.
        since: all identities that changed after this mark are in the block.
    """

    def __init__(self, gallery: Changing, most: int = MOST_CHANGED) -> None:
        self._gallery = gallery
        self._most = most
        self.mark = 0
        self._restart()

    def _restart(self) -> None:
        self.since = self.mark
        self._numbers: Numbers = np.zeros(0, np.int64)
        """`(S,)` identities; -1 where a later entry replaces one."""
        self._marks: Numbers = np.zeros(0, np.int64)
        """`(S,)` marks by which each was known to have changed; -1 where a later entry replaces one."""
        self._place: dict[int, int] = {}
        self._starts = np.zeros(0, np.intp)
        self._void = np.zeros(0, np.float32)
        """`(S,)` 0, or -inf for an identity without exemplars; each entry has at least one row."""
        self._rows: Vector = np.zeros((0, 0), np.float32)
        self._used = 0

    def follow(self) -> None:
        """Take over what changed since the last call."""
        mark, changed = self._gallery.changes_since(self.mark)
        self.mark = mark
        if changed is None or len(changed) > self._most // 4:
            self._restart()
        elif changed:
            self._add(changed)
            if len(self._numbers) > 2 * len(self._place) + 16 or len(self._place) > self._most:
                self._compact()

    def _add(self, changed: set[int]) -> None:
        owners, rows = self._gallery.vectors(changed)
        starts = np.flatnonzero(np.diff(owners, prepend=-1))
        here = owners[starts].tolist()
        gone = sorted(changed.difference(here))
        rows = np.concatenate([rows, np.zeros((len(gone), rows.shape[1]), np.float32)])
        lengths = np.diff(starts, append=len(owners))
        lengths = np.concatenate([lengths, np.ones(len(gone), np.intp)])
        void = np.zeros(len(lengths), np.float32)
        void[len(here) :] = -np.inf
        numbers = np.array([*here, *gone], np.int64)
        places = np.array([self._place.get(number, -1) for number in numbers.tolist()], np.intp)
        known = np.diff(self._starts, append=self._used)
        same = (places >= 0) & (np.append(known, 0)[places] == lengths)
        if same.any():  # the usual case: the rows of a camera were turned
            at = places[same]
            self._rows[_rows_of(self._starts[at], lengths[same])] = rows[np.repeat(same, lengths)]
            self._marks[at], self._void[at] = self.mark, void[same]
        if not same.all():
            new = ~same
            old = places[new & (places >= 0)]
            self._numbers[old] = self._marks[old] = -1
            self._append(numbers[new], rows[np.repeat(new, lengths)], lengths[new], void[new])

    def _append(self, numbers: Numbers, rows: Vector, lengths: NDArray[np.intp], void: Vector) -> None:
        used, begin = self._used + len(rows), len(self._numbers)
        if used > len(self._rows):
            longer = np.zeros((2 * used, rows.shape[1]), np.float32)
            longer[: self._used] = self._rows[: self._used].reshape(-1, rows.shape[1])
            self._rows = longer
        self._rows[self._used : used] = rows
        self._starts = np.concatenate([self._starts, self._used + np.cumsum(lengths) - lengths])
        self._used = used
        self._numbers = np.concatenate([self._numbers, numbers])
        self._marks = np.concatenate([self._marks, np.full(len(numbers), self.mark)])
        self._void = np.concatenate([self._void, void])
        self._place.update(zip(numbers.tolist(), range(begin, begin + len(numbers)), strict=True))

    def _compact(self) -> None:
        """Drop replaced entries, and the oldest where there are too many."""
        kept = np.flatnonzero(self._numbers >= 0)
        if len(kept) > self._most:
            self.since = int(np.sort(self._marks[kept])[len(kept) - self._most * 3 // 4])
            kept = kept[self._marks[kept] > self.since]
        lengths = np.diff(self._starts, append=self._used)[kept]
        starts = np.cumsum(lengths) - lengths
        rows = _rows_of(self._starts[kept], lengths)
        self._used = len(rows)
        self._rows[: self._used] = self._rows[rows]
        self._rows[self._used :] = 0.0  # an erased embedding must not stay in memory
        self._starts, self._numbers, self._marks = starts, self._numbers[kept], self._marks[kept]
        self._void = self._void[kept]
        self._place = {number: place for place, number in enumerate(self._numbers.tolist())}

    def best(self, queries: Vector, mark: int) -> tuple[Numbers, Numbers, Vector]:
        """Compare queries `(Q, D)` with what changed after a mark, which is at least `since`.

        Returns `(C,)` identities, `(C,)` their marks, and `(Q, C)` scores, which are -inf where an identity
        has no exemplars now.
        """
        fresh = np.flatnonzero(self._marks > mark)
        numbers, marks = self._numbers[fresh], self._marks[fresh]
        if not len(fresh):
            return numbers, marks, np.zeros((len(queries), 0), np.float32)
        if len(fresh) > _MOST_COPIED * len(self._numbers):
            best = np.maximum.reduceat(self._rows[: self._used] @ queries.T, self._starts)[fresh]
        else:
            lengths = np.diff(self._starts, append=self._used)[fresh]
            rows = self._rows[_rows_of(self._starts[fresh], lengths)]
            best = np.maximum.reduceat(rows @ queries.T, np.cumsum(lengths) - lengths)
        return numbers, marks, np.asarray(best.T + self._void[fresh], np.float32)


def _rows_of(starts: NDArray[np.intp], lengths: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the rows of entries, each of which begins at one of `starts`."""
    begins = np.cumsum(lengths) - lengths
    rows: NDArray[np.intp] = np.repeat(starts - begins, lengths) + np.arange(int(lengths.sum()))
    return rows
