"""Embeddings in memory: best-exemplar search over matrices, exact unless there is a shortlist.

Exemplars are stored by *slot*: matrix j holds the j-th exemplar of every identity that has more than j.
Identities are ordered by falling number of exemplars, so each matrix is dense, and the best exemplar of
every identity is an element-wise maximum over at most `max_exemplars` matrix products. There is no loop
over identities, no row is unused, and a change moves a few rows, whatever the size of the gallery::

              slot 0    slot 1    slot 2
    person 7  ███████   ███████   ███████
    person 2  ███████   ███████
    person 9  ███████

Each row has the number of its view, see `gallery.means`; the rows of one view are turned together when its
offset moves.

From `coarse.LEAST` rows on, they are also stored as 8-bit numbers, see `gallery.coarse`: their products
show which few identities can be among the best, and only these are compared in full.

The shortlist of a very large gallery contains a short code for every row, at the same slot and place, and is
updated with each change of a row. Identities that it finds are scored by their rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_agent.gallery.coarse import Copies
from edge_agent.gallery.means import Vectors, centred, restored

if TYPE_CHECKING:
    from edge_agent.gallery.shortlist import Codes

_FIRST_ROWS = 64
_BLOCK = 1 << 20
"""Scores computed at a time: 4 MB, whatever the size of the gallery."""
_GATHERED = 1024
"""Rows copied at a time: 1 MB at 256 numbers."""
_SHORTEST = 512
"""Rows that a search takes from the shortlist; `docs/gallery-growth.md` has the recall."""
_WIDENED = 8
"""Rows from the shortlist for each identity of the result, if that is more."""
_LONGEST = 4096
"""Rows from the shortlist beyond which comparing with all identities is as fast."""
_TOGETHER = 128
"""Queries times slots at a time: 8 MB of products."""
_SINGLY = 16
"""Identities whose exemplars are gathered one by one."""
_NOTHING = np.zeros(0, np.float32)
_ENCODED = 1024
"""Rows encoded at a time: about ten milliseconds."""
_RECODED = 4096
"""Turned rows beyond which all codes are made again, in the background."""
_Scalar = TypeVar("_Scalar", bound=np.generic)
Views = NDArray[np.int32]


class ExemplarIndex:
    """Embeddings grouped by identity, in matrices that double when they are full.

    Not safe for use by several threads at once: `SyncedFile` has the lock. After setting `shortlist`, call
    `encode` until it contains all rows.
    """

    def __init__(self, dimension: int) -> None:
        self._dimension = dimension
        self._slots: list[Vectors] = []
        self._views: list[Views] = []  # of the rows
        self._used: list[int] = []  # rows in use of each slot, never rising from one slot to the next
        self._numbers: NDArray[np.int64] = np.empty(_FIRST_ROWS, np.int64)
        self._place: dict[int, int] = {}
        self._scratch: Vectors = np.empty(0, np.float32)
        self._copies = Copies(dimension)
        self.shortlist: Codes | None = None

    def __len__(self) -> int:
        """Identities that have at least one exemplar."""
        return self._used[0] if self._used else 0

    @property
    def nbytes(self) -> int:
        """Bytes held by the matrices, used or not."""
        codes = self._copies.nbytes + (self.shortlist.nbytes if self.shortlist is not None else 0)
        return sum(one.nbytes for one in (*self._slots, *self._views)) + self._scratch.nbytes + codes

    def vectors(self, numbers: Collection[int]) -> tuple[NDArray[np.int64], Vectors]:
        """Return copies of exemplars, see `Gallery.vectors`."""
        if len(numbers) <= _SINGLY:  # most calls; arrays of places would cost more
            where = self._where(numbers)
            rows = [_NOTHING, *(self._slots[slot][place] for _, slot, place in where)]
            owners = np.array([number for number, _, _ in where], np.int64)
            return owners, np.concatenate(rows).reshape(-1, self._dimension)
        here, counts, parts = self._parts(numbers)
        gathered = np.empty((int(counts.sum()), self._dimension), np.float32)
        for slot, (targets, places) in enumerate(parts):
            gathered[targets] = self._slots[slot][places]
        return np.repeat(here, counts), gathered

    def rows(self, numbers: Collection[int]) -> tuple[NDArray[np.int64], Vectors, Views]:
        """Return copies of exemplars, as `vectors`, and the views `(N,)`."""
        owners, rows = self.vectors(numbers)
        return owners, rows, self.views(numbers)

    def views(self, numbers: Collection[int]) -> Views:
        """Return the views `(N,)` of the exemplars that `vectors` returns."""
        if len(numbers) <= _SINGLY:
            return np.array([self._views[slot][place] for _, slot, place in self._where(numbers)], np.int32)
        _, counts, parts = self._parts(numbers)
        views = np.empty(int(counts.sum()), np.int32)
        for slot, (targets, places) in enumerate(parts):
            views[targets] = self._views[slot][places]
        return views

    def _where(self, numbers: Iterable[int]) -> list[tuple[int, int, int]]:
        """Return identity, slot and place of the exemplars of some identities."""
        places = [(number, self._place[number]) for number in numbers if number in self._place]
        return [
            (number, slot, place) for number, place in places for slot in range(_count(place, self._used))
        ]

    def _parts(
        self, numbers: Collection[int]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], list[tuple[NDArray[np.int64], NDArray[np.int64]]]]:
        """Return where the exemplars of some identities are.

        `(I,)` those of the identities that have any, and their numbers of exemplars; by slot, the targets in
        a result that has the exemplars of each identity together, and the places in the slot.
        """
        here = [number for number in numbers if number in self._place]
        places = np.array([self._place[number] for number in here], np.int64)
        used = np.array(self._used[::-1], np.int64)
        counts = len(used) - np.searchsorted(used, places, side="right")
        targets, more, parts = np.cumsum(counts) - counts, counts, []
        for slot in range(int(counts.max(initial=0))):
            if (mine := more > slot).sum() < len(more):
                targets, places, more = targets[mine], places[mine], more[mine]
            parts.append((targets + slot, places))
        return np.array(here, np.int64), counts, parts

    def batches(self) -> Iterator[tuple[NDArray[np.int64], Vectors, Views]]:
        """Yield all exemplars as `rows` does, those of about a thousand identities at a time."""
        numbers = self._numbers[: len(self)].tolist()
        for first in range(0, len(numbers), _GATHERED):
            yield self.rows(numbers[first : first + _GATHERED])

    def turn(self, view: int, before: Vectors, after: Vectors) -> NDArray[np.int64]:
        """Replace the offset `before` `(D,)` of the rows of a view; return the identities that have any."""
        turned = [np.zeros(0, np.int64)]
        for slot, (rows, views) in enumerate(zip(self._slots, self._views, strict=True)):
            places = np.flatnonzero(views[: self._used[slot]] == view)
            for first in range(0, len(places), _GATHERED):
                some = places[first : first + _GATHERED]
                rows[some] = centred(restored(rows[some], before), after)
                self._copies.put(slot, some.tolist())
            turned.append(self._numbers[places])
            if len(places) > _RECODED:
                self.shortlist = None
            for place in places.tolist() if self.shortlist is not None else ():
                self._encode(slot, place)
        return np.unique(np.concatenate(turned))

    def load(
        self,
        numbers: NDArray[np.int64],
        counts: NDArray[np.int64],
        rows: Iterator[tuple[NDArray[np.int64], Vectors, Views]],
    ) -> None:
        """Replace the content, without a second copy of it in memory; drops the shortlist.

        `numbers` `(I,)` are rising identities with `counts` `(I,)` exemplars, at least 1. `rows` has batches
        of all exemplars, each identity's in order: `(N,)` identities, `(N, D)` vectors, views.
        """
        falling = np.argsort(-counts, kind="stable")
        places = np.empty(len(numbers), np.int64)
        places[falling] = np.arange(len(numbers))
        most = int(counts.max(initial=0))
        self.shortlist = None
        self._copies.drop()
        self._used = [int(np.count_nonzero(counts > slot)) for slot in range(most)]
        self._slots = [
            np.empty((max(_FIRST_ROWS, 2 * used), self._dimension), np.float32) for used in self._used
        ]
        self._views = [np.empty(len(slot), np.int32) for slot in self._slots]
        self._numbers = _extended(numbers[falling], len(numbers))
        self._place = dict(zip(numbers.tolist(), places.tolist(), strict=True))
        taken = np.zeros(len(numbers), np.int64)
        for owners, vectors, views in rows:
            of = np.searchsorted(numbers, owners)
            order = np.argsort(of, kind="stable")
            sorted_ = of[order]
            starts = np.flatnonzero(np.diff(sorted_, prepend=-1))
            lengths = np.diff(starts, append=len(sorted_))
            slots = np.empty(len(of), np.int64)
            slots[order] = taken[sorted_] + np.arange(len(of)) - np.repeat(starts, lengths)
            taken[sorted_[starts]] += lengths
            for slot in np.unique(slots).tolist():
                here = slots == slot
                self._slots[slot][places[of[here]]] = vectors[here]
                self._views[slot][places[of[here]]] = views[here]

    def put(self, number: int, vectors: Vectors, views: Views | None = None) -> None:
        """Set the exemplars `(M, D)` of an identity and their views, by default 0; M = 0 removes it."""
        of = np.zeros(len(vectors), np.int32) if views is None else views
        count = _count(self._place.get(number), self._used)
        for _ in range(count - len(vectors)):
            self._shrink(number)
        for slot in range(min(count, len(vectors))):
            place = self._place[number]
            self._slots[slot][place] = vectors[slot]
            self._views[slot][place] = of[slot]
            self._copies.put(slot, [place])
            self._encode(slot, place)
        for slot in range(count, len(vectors)):
            self._grow(number, slot, vectors[slot], int(of[slot]))

    def search(self, queries: Vectors, k: int) -> tuple[NDArray[np.int64], Vectors]:
        """Return the `k` best identities of each query `(Q, D)`, see `Gallery.search`."""
        found = np.full((len(queries), k), -1, np.int64)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        if not found.size:
            return found, scores
        count = max(_SHORTEST, _WIDENED * k)
        if self.listed and count <= min(_LONGEST, len(self)):
            self._search_listed(queries, count, found, scores)
        else:
            together = max(1, _TOGETHER // max(1, len(self._used)))
            for first in range(0, len(queries), together):
                some = slice(first, first + together)
                asked, result = queries[some], (found[some], scores[some])
                best = self._copies.best(asked, k, self._slots, self._used) if self._used else None
                if best is None:
                    self._search_all(asked, *result)
                else:
                    _sort_in(best[0], self._numbers[best[1]], best[2], *result)
        return found, scores

    @property
    def listed(self) -> bool:
        """Whether searches use the shortlist: there is one, and it contains every row."""
        codes = self.shortlist
        return codes is not None and all(codes.filled(s) == used for s, used in enumerate(self._used))

    def sample(self, most: int) -> Vectors:
        """Return at most `most` rows, evenly spaced: `(N, D)` float32; deterministic."""
        step = max(1, -(-sum(self._used) // most))
        return np.concatenate(
            [slot[:used:step] for slot, used in zip(self._slots, self._used, strict=True)]
            or [np.zeros((0, self._dimension), np.float32)]
        )

    def encode(self) -> bool:
        """Add a batch of rows to the shortlist; return False when it contains all, or there is none."""
        codes = self.shortlist
        for slot, used in enumerate(self._used):
            if codes is not None and (begin := codes.filled(slot)) < used:
                end = min(used, begin + _ENCODED)
                codes.put(slot, begin, self._slots[slot][begin:end])
                return True
        return False

    def _encode(self, slot: int, place: int) -> None:
        """Update the shortlist's code of a changed row, unless `encode` has not reached it yet."""
        if self.shortlist is not None and place <= self.shortlist.filled(slot):
            self.shortlist.put(slot, place, self._slots[slot][place : place + 1])

    def _search_all(self, queries: Vectors, found: NDArray[np.int64], scores: Vectors) -> None:
        """Compare block by block; of each block only scores above the `k` best so far are sorted."""
        k = found.shape[1]
        width = max(_FIRST_ROWS, 4 * k, _BLOCK // len(queries))
        best = np.empty((len(queries), min(width, len(self))), np.float32)
        for first in range(0, len(self), width):
            block = best[:, : len(self) - first]
            self._score(queries, first, block)
            floor = scores[:, -1:]
            if not first and block.shape[1] > k:
                floor = np.partition(block, -k, axis=1)[:, -k, None]
            rows, columns = np.nonzero(block >= floor)
            _sort_in(rows, self._numbers[first + columns], block[rows, columns], found, scores)

    def _search_listed(self, queries: Vectors, count: int, found: NDArray[np.int64], scores: Vectors) -> None:
        assert self.shortlist is not None  # `listed`
        places = self.shortlist.places(queries, count)
        rows, columns = np.nonzero(places >= 0)
        places = places[rows, columns]
        pairs = np.unique(rows * len(self) + places)  # several exemplars of one identity may be found
        rows, places = np.divmod(pairs, len(self))
        best = np.empty(len(pairs), np.float32)
        for first in range(0, len(pairs), _GATHERED):
            some = slice(first, first + _GATHERED)
            best[some] = self._score_pairs(queries, rows[some], places[some])
        _sort_in(rows, self._numbers[places], best, found, scores)

    def _score(self, queries: Vectors, first: int, best: Vectors) -> None:
        """Compute best-exemplar cosines of the identities from place `first` on, one for each column."""
        for slot, (matrix, used) in enumerate(zip(self._slots, self._used, strict=True)):
            columns = min(best.shape[1], used - first)
            if columns <= 0:
                break
            rows = matrix[first : first + columns]
            if slot == 0:
                _multiply(queries, rows, best)
            else:
                product = self._room_for(len(queries), columns)
                _multiply(queries, rows, product)
                np.maximum(best[:, :columns], product, out=best[:, :columns])

    def _score_pairs(self, queries: Vectors, rows: NDArray[np.int64], places: NDArray[np.int64]) -> Vectors:
        """Return `(N,)` best-exemplar cosines of query `rows[n]` and the identity at `places[n]`."""
        best = np.full(len(places), -np.inf, np.float32)
        for matrix, used in zip(self._slots, self._used, strict=True):
            here = np.flatnonzero(places < used)
            if not len(here):
                break
            products = np.einsum("nd,nd->n", matrix[places[here]], queries[rows[here]])
            best[here] = np.maximum(best[here], products)
        return best

    def _room_for(self, rows: int, columns: int) -> Vectors:
        """Return a reused `(rows, columns)` buffer: new pages each time would cost more than the maximum."""
        if self._scratch.size < rows * columns:
            self._scratch = np.empty(rows * columns, np.float32)
        return self._scratch[: rows * columns].reshape(rows, columns)

    def _grow(self, number: int, count: int, vector: Vectors, view: int) -> None:
        """Add one exemplar to an identity that has `count`, keeping the order by falling count."""
        if count == len(self._slots):
            self._slots.append(np.empty((_FIRST_ROWS, self._dimension), np.float32))
            self._views.append(np.empty(_FIRST_ROWS, np.int32))
            self._used.append(0)
        first = self._used[count]  # of all identities with exactly `count` exemplars
        if count == 0:
            self._numbers = _extended(self._numbers, first)
            self._numbers[first] = number
            self._place[number] = first
        self._swap(self._place[number], first, count)
        self._slots[count] = _extended(self._slots[count], first)
        self._slots[count][first] = vector
        self._views[count] = _extended(self._views[count], first)
        self._views[count][first] = view
        self._used[count] = first + 1
        self._copies.put(count, [first])
        self._encode(count, first)

    def _shrink(self, number: int) -> None:
        """Remove an identity's last exemplar, keeping the order by falling count."""
        count = _count(self._place.get(number), self._used)
        last = self._used[count - 1] - 1  # of all identities with exactly `count` exemplars
        self._swap(self._place[number], last, count)
        self._slots[count - 1][last] = 0.0  # an erased embedding must not stay in memory
        self._used[count - 1] = last
        self._copies.erase(count - 1, last)
        if self.shortlist is not None:
            self.shortlist.cut(count - 1, last)
        if count == 1:
            del self._place[number]

    def _swap(self, a: int, b: int, count: int) -> None:
        """Exchange the places of two identities that both have `count` exemplars."""
        if a == b:
            return
        for place, (slot, views) in enumerate(zip(self._slots[:count], self._views, strict=False)):
            row = slot[a].copy()
            slot[a], slot[b] = slot[b], row
            views[a], views[b] = views[b], views[a]
            self._copies.swap(place, a, b)
            self._encode(place, min(a, b))
            self._encode(place, max(a, b))
        self._numbers[a], self._numbers[b] = self._numbers[b], self._numbers[a]
        self._place[int(self._numbers[a])] = a
        self._place[int(self._numbers[b])] = b


def _count(place: int | None, used: Sequence[int]) -> int:
    """Return the number of exemplars of the identity at a place; 0 without one."""
    count = 0
    while place is not None and count < len(used) and place < used[count]:
        count += 1
    return count


def _multiply(queries: Vectors, rows: Vectors, products: Vectors) -> None:
    if len(queries) == 1:  # limited by memory bandwidth; OpenBLAS takes a fifth longer
        np.einsum("nd,d->n", rows, queries[0], out=products[0])
    else:
        np.matmul(queries, rows.T, out=products)


def _sort_in(
    rows: NDArray[np.int64],
    numbers: NDArray[np.int64],
    values: Vectors,
    found: NDArray[np.int64],
    scores: Vectors,
) -> None:
    """Merge candidates `(N,)` into the sorted results `(Q, k)` of their rows."""
    count, k = found.shape
    held = np.repeat(np.arange(count), k)
    rows = np.concatenate([held, rows])
    numbers = np.concatenate([found.ravel(), numbers])
    values = np.concatenate([scores.ravel(), values])
    order = np.lexsort((numbers, -values, rows))
    starts = np.searchsorted(rows[order], np.arange(count))
    kept = order[starts[:, None] + np.arange(k)]
    found[:], scores[:] = numbers[kept], values[kept]


def _extended(rows: NDArray[_Scalar], needed: int) -> NDArray[_Scalar]:
    """Return the array, or a copy of twice `needed` rows; unused pages of it take no memory."""
    if needed < len(rows):
        return rows
    longer = np.empty((max(_FIRST_ROWS, 2 * needed), *rows.shape[1:]), rows.dtype)
    longer[: len(rows)] = rows
    return longer
