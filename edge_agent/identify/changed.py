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

MOST_CHANGED = 1000
"""Identities kept; a quarter is dropped when there are more."""


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
        """`(S,)` identities in the order of their changes; -1 where a later entry replaces one."""
        self._marks: Numbers = np.zeros(0, np.int64)
        """`(S,)` marks by which each was known to have changed, rising."""
        self._place: dict[int, int] = {}
        self._starts = np.zeros(0, np.intp)
        self._void = np.zeros(0, np.float32)
        """`(S,)` 0, or -inf for an entry without exemplars that count."""
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
        first = np.ones(len(owners), np.bool_)
        first[1:] = owners[1:] != owners[:-1]
        starts = np.flatnonzero(first)
        here = owners[starts]
        gone = np.array(sorted(changed.difference(here.tolist())), np.int64)
        if len(gone):  # each has an empty row, since an entry has at least one
            starts = np.concatenate([starts, np.arange(len(rows), len(rows) + len(gone))])
            rows = np.concatenate([rows, np.zeros((len(gone), rows.shape[1]), np.float32)])
        replaced = [self._place[number] for number in changed if number in self._place]
        self._void[replaced] = -np.inf
        self._numbers[replaced] = -1
        begin, used = len(self._numbers), self._used
        self._reserve(used + len(rows), rows.shape[1])
        self._rows[used : used + len(rows)] = rows
        self._used += len(rows)
        self._starts = np.concatenate([self._starts, used + starts])
        self._numbers = np.concatenate([self._numbers, here, gone])
        self._marks = np.concatenate([self._marks, np.full(len(starts), self.mark)])
        self._void = np.concatenate(
            [self._void, np.zeros(len(here), np.float32), np.full(len(gone), -np.inf, np.float32)]
        )
        self._place.update(zip(self._numbers[begin:].tolist(), range(begin, len(self._numbers)), strict=True))

    def _reserve(self, rows: int, dimension: int) -> None:
        if rows <= len(self._rows):
            return
        longer = np.empty((2 * rows, dimension), np.float32)
        longer[: self._used] = self._rows[: self._used].reshape(-1, dimension)
        self._rows = longer

    def _compact(self) -> None:
        """Drop replaced entries, and the oldest where there are too many."""
        kept = np.flatnonzero(self._numbers >= 0)
        if len(kept) > self._most:
            surplus = len(kept) - self._most * 3 // 4
            self.since = int(self._marks[kept[surplus - 1]])  # entries are in the order of their marks
            kept = kept[self._marks[kept] > self.since]
        lengths = np.diff(self._starts, append=self._used)[kept]
        starts = np.cumsum(lengths) - lengths
        rows = np.repeat(self._starts[kept] - starts, lengths) + np.arange(int(lengths.sum()))
        self._used = len(rows)
        self._rows[: self._used] = self._rows[rows]
        self._rows[self._used :] = 0.0  # an erased embedding must not stay in memory
        self._starts, self._numbers, self._marks = starts, self._numbers[kept], self._marks[kept]
        self._void = self._void[kept]
        self._place = {number: place for place, number in enumerate(self._numbers.tolist())}

    def best(self, queries: Vector, mark: int) -> tuple[Numbers, Numbers, Vector]:
        """Compare queries `(Q, D)` with what changed after a mark, which is at least `since`.

        Returns `(C,)` identities, `(C,)` their marks, and `(Q, C)` scores, which are -inf where an identity
        has no exemplars now. Numbers of -1 are entries that a later one replaces.
        """
        first = int(np.searchsorted(self._marks, mark, side="right"))
        if first == len(self._marks):
            return self._numbers[:0], self._marks[:0], np.zeros((len(queries), 0), np.float32)
        begin = self._starts[first]
        products = queries @ self._rows[begin : self._used].T
        best: Vector = np.maximum.reduceat(products, self._starts[first:] - begin, axis=1)
        best += self._void[first:]
        return self._numbers[first:], self._marks[first:], best
