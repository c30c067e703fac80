"""Exemplars of the identities that changed lately, in one block that is compared as a whole.

People who are in view change all the time: their identities get exemplars, and those of a camera are turned
when its offset moves. To compare them one by one would cost more than all else in a decision. The block is a
log: what changes again is appended again, so what changed after a mark is at its end, and adjacent in memory.
Identities that have not changed for long are dropped; searches from before their last change cannot be used
any more.
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
_FEW = 3
"""Queries that are compared one by one."""


class Changing(Protocol):
    """The methods of `edge_agent.gallery.Gallery` that tell what changed, documented there."""

    def vectors(self, numbers: Collection[int]) -> tuple[Numbers, Vector]: ...  # noqa: D102
    def changes_since(self, mark: int) -> tuple[int, set[int] | None]: ...  # noqa: D102


class Changed:
    """Follows the changes of a gallery.

    Attributes:
        mark: of the gallery at the latest `follow`.
        since: all identities that changed after this mark are in the block.
        marks: by which each identity in the block was known to have changed.
    """

    def __init__(self, gallery: Changing, most: int = MOST_CHANGED) -> None:
        self._gallery = gallery
        self._most = most
        self.mark = 0
        self._restart()

    def _restart(self) -> None:
        self.since = self.mark
        self.marks: dict[int, int] = {}
        self._place: dict[int, int] = {}
        """Entry of each identity."""
        self._numbers: Numbers = np.zeros(0, np.int64)
        """`(S,)` identities; -1 where a later entry replaces one."""
        self._at: Numbers = np.zeros(0, np.int64)
        """`(S,)` marks, rising."""
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
            self._append(changed)
            if len(self._numbers) > 2 * len(self._place) + 16 or len(self._place) > self._most:
                self._compact()

    def _append(self, changed: set[int]) -> None:
        owners, rows = self._gallery.vectors(changed)
        starts = np.flatnonzero(np.diff(owners, prepend=-1))
        numbers = owners[starts].tolist()
        void = np.zeros(len(changed), np.float32)
        if gone := sorted(changed.difference(numbers)):
            void[len(numbers) :] = -np.inf
            numbers += gone
            starts = np.append(starts, np.arange(len(rows), len(rows) + len(gone)))
            rows = np.concatenate([rows, np.zeros((len(gone), rows.shape[1]), np.float32)])
        used, begin = self._used + len(rows), len(self._numbers)
        if used > len(self._rows):
            longer = np.zeros((2 * used, rows.shape[1]), np.float32)
            longer[: self._used] = self._rows[: self._used].reshape(-1, rows.shape[1])
            self._rows = longer
        self._rows[self._used : used] = rows
        self._numbers[[self._place[number] for number in numbers if number in self._place]] = -1
        self._numbers = np.concatenate([self._numbers, np.array(numbers, np.int64)])
        self._at = np.concatenate([self._at, np.full(len(numbers), self.mark)])
        self._starts = np.concatenate([self._starts, self._used + starts])
        self._void = np.concatenate([self._void, void])
        self._used = used
        self._place.update(zip(numbers, range(begin, begin + len(numbers)), strict=True))
        self.marks.update(dict.fromkeys(numbers, self.mark))

    def _compact(self) -> None:
        """Drop replaced entries, and the oldest where there are too many."""
        kept = np.flatnonzero(self._numbers >= 0)
        if len(kept) > self._most:
            self.since = int(self._at[kept[len(kept) - self._most * 3 // 4]])
            kept = kept[self._at[kept] > self.since]
        lengths = np.diff(self._starts, append=self._used)[kept]
        starts = np.cumsum(lengths) - lengths
        rows = np.repeat(self._starts[kept] - starts, lengths) + np.arange(int(lengths.sum()))
        self._used = len(rows)
        self._rows[: self._used] = self._rows[rows]
        self._rows[self._used :] = 0.0  # an erased embedding must not stay in memory
        self._starts, self._numbers, self._at = starts, self._numbers[kept], self._at[kept]
        self._void = self._void[kept]
        numbers = self._numbers.tolist()
        self._place = {number: place for place, number in enumerate(numbers)}
        self.marks = dict(zip(numbers, self._at.tolist(), strict=True))

    def best(self, queries: Vector, mark: int) -> tuple[Numbers, Numbers, Vector]:
        """Compare queries `(Q, D)` with what changed after a mark, which is at least `since`.

        Returns `(C,)` identities, `(C,)` their marks, rising, and `(Q, C)` scores, which are -inf where an
        identity has no exemplars now.
        """
        first = int(np.searchsorted(self._at, mark, side="right"))
        kept = first + np.flatnonzero(self._numbers[first:] >= 0)
        if not len(kept):
            return self._numbers[kept], self._at[kept], np.zeros((len(queries), 0), np.float32)
        starts = self._starts[first:]
        rows = self._rows[starts[0] : self._used]
        # Few products of a matrix and a vector take less than one of two matrices.
        products = np.array([rows @ query for query in queries]) if len(queries) <= _FEW else queries @ rows.T
        best = np.maximum.reduceat(products, starts - starts[0], axis=1)
        return self._numbers[kept], self._at[kept], best[:, kept - first] + self._void[kept]
