"""The gallery in memory: exact best-exemplar search over numpy matrices.

Exemplars are stored by *slot*: matrix j holds the j-th exemplar of every identity that has more than j.
Identities are ordered by falling number of exemplars, so each matrix is dense, and the best exemplar of
every identity is an element-wise maximum over at most `max_exemplars` matrix products. There is no loop
over identities, no row is wasted, and a change moves a handful of rows, whatever the gallery's size::

              slot 0    slot 1    slot 2
    person 7  ███████   ███████   ███████
    person 2  ███████   ███████
    person 9  ███████
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["ExemplarIndex"]

_FIRST_ROWS = 64
_Scalar = TypeVar("_Scalar", bound=np.generic)


class ExemplarIndex:
    """Embeddings grouped by identity, in matrices that double when they are full.

    Not safe for use by several threads at once: `Gallery` holds a lock around it.
    """

    def __init__(self, dimension: int) -> None:
        self._dimension = dimension
        self._slots: list[NDArray[np.float32]] = []
        self._used: list[int] = []  # rows in use of each slot, never rising from one slot to the next
        self._numbers: NDArray[np.int64] = np.empty(_FIRST_ROWS, np.int64)
        self._place: dict[int, int] = {}
        self._scratch: NDArray[np.float32] = np.empty(0, np.float32)

    def __len__(self) -> int:
        """Identities that have at least one exemplar."""
        return self._used[0] if self._used else 0

    @property
    def numbers(self) -> NDArray[np.int64]:
        """`(I,)` int64: the identity of each column of `scores`; a copy."""
        return np.array(self._numbers[: len(self)])

    @property
    def nbytes(self) -> int:
        """Bytes held by the matrices, used or not."""
        return sum(slot.nbytes for slot in self._slots) + self._scratch.nbytes

    def vectors(self, number: int) -> NDArray[np.float32]:
        """`(M, D)` float32 exemplars of one identity, M = 0 when it is not here; a copy."""
        place = self._place.get(number)
        rows = [slot[place] for slot in self._slots[: self._count(number)]]
        return np.array(rows, np.float32).reshape(-1, self._dimension)

    def load(self, owners: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """Replace everything: `owners` `(N,)` int64 names the identity of each row of `vectors` `(N, D)`."""
        order = np.argsort(owners, kind="stable")
        numbers, starts, counts = np.unique(owners[order], return_index=True, return_counts=True)
        falling = np.argsort(-counts, kind="stable")
        numbers, starts, counts = numbers[falling], starts[falling], counts[falling]
        self._slots, self._used = [], []
        for slot in range(int(counts[0]) if len(counts) else 0):
            used = int(np.count_nonzero(counts > slot))
            self._slots.append(_with_room(vectors[order[starts[:used] + slot]]))
            self._used.append(used)
        self._numbers = _with_room(numbers)
        self._place = {number: place for place, number in enumerate(numbers.tolist())}

    def put(self, number: int, vectors: NDArray[np.float32]) -> None:
        """Make `vectors` `(M, D)` the exemplars of an identity; M = 0 takes it out."""
        for _ in range(self._count(number) - len(vectors)):
            self._shrink(number)
        for slot in range(self._count(number)):
            self._slots[slot][self._place[number]] = vectors[slot]
        for slot in range(self._count(number), len(vectors)):
            self._grow(number, slot, vectors[slot])

    def scores(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """Best-exemplar cosine: `(Q, D)` unit rows -> `(Q, I)` float32, columns as in `numbers`."""
        best = np.empty((len(queries), len(self)), np.float32)
        for slot, (matrix, used) in enumerate(zip(self._slots, self._used, strict=True)):
            if slot == 0:
                np.matmul(queries, matrix[:used].T, out=best)
            elif used:
                product = np.matmul(queries, matrix[:used].T, out=self._room_for(len(queries), used))
                np.maximum(best[:, :used], product, out=best[:, :used])
        return best

    def _room_for(self, rows: int, columns: int) -> NDArray[np.float32]:
        """A reused `(rows, columns)` buffer: fresh pages each time would cost more than the maximum."""
        if self._scratch.size < rows * columns:
            self._scratch = np.empty(rows * columns, np.float32)
        return self._scratch[: rows * columns].reshape(rows, columns)

    def _count(self, number: int) -> int:
        place = self._place.get(number)
        return 0 if place is None else sum(used > place for used in self._used)

    def _grow(self, number: int, count: int, vector: NDArray[np.float32]) -> None:
        """Give an identity with `count` exemplars one more, keeping the order by falling count."""
        if count == len(self._slots):
            self._slots.append(np.empty((_FIRST_ROWS, self._dimension), np.float32))
            self._used.append(0)
        first = self._used[count]  # of all identities with exactly `count` exemplars
        if count == 0:
            self._numbers = _roomier(self._numbers, first)
            self._numbers[first] = number
            self._place[number] = first
        self._swap(self._place[number], first, count)
        self._slots[count] = _roomier(self._slots[count], first)
        self._slots[count][first] = vector
        self._used[count] = first + 1

    def _shrink(self, number: int) -> None:
        """Take away an identity's last exemplar, keeping the order by falling count."""
        count = self._count(number)
        last = self._used[count - 1] - 1  # of all identities with exactly `count` exemplars
        self._swap(self._place[number], last, count)
        self._slots[count - 1][last] = 0.0  # an erased embedding does not linger in memory
        self._used[count - 1] = last
        if count == 1:
            del self._place[number]

    def _swap(self, a: int, b: int, count: int) -> None:
        """Exchange the places of two identities that both have `count` exemplars."""
        if a == b:
            return
        for slot in self._slots[:count]:
            slot[[a, b]] = slot[[b, a]]
        self._numbers[[a, b]] = self._numbers[[b, a]]
        self._place[int(self._numbers[a])] = a
        self._place[int(self._numbers[b])] = b


def _with_room(rows: NDArray[_Scalar]) -> NDArray[_Scalar]:
    """A copy with free rows at the end, so that the next few additions move nothing."""
    roomy = np.empty((max(_FIRST_ROWS, 2 * len(rows)), *rows.shape[1:]), rows.dtype)
    roomy[: len(rows)] = rows
    return roomy


def _roomier(rows: NDArray[_Scalar], needed: int) -> NDArray[_Scalar]:
    """The same array, or one twice as long, such that row `needed` exists."""
    return rows if needed < len(rows) else _with_room(rows)
