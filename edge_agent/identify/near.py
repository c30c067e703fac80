"""Nearest identities, exact but mostly without a search of the whole gallery.

A search reads the whole gallery, the most expensive step of a decision. So each is remembered with its query:
the nearest identities, and a score that no other one reached. When the query has turned by some angle since,
no other identity can have come nearer by more than that angle (triangle inequality on the sphere).
Identities whose exemplars changed are compared again.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_agent.identify.changed import Changed, Changing

Vector = NDArray[np.float32]
Numbers = NDArray[np.int64]

NEAREST = 32
"""Identities remembered of a search. More of them outlast a greater turn, and cost more to compare."""
SLACK = 0.03
"""Look-alikes are remembered from this far below the floor, since thresholds of a site move a little."""
_ROUNDING = 1e-4
"""Upper bound of the rounding error of float32 cosines."""
_FIRST = np.zeros(1, np.intp)
_NOBODY: Numbers = np.zeros(0, np.int64)
_NO_SCORES: Vector = np.zeros(0, np.float32)


class Searchable(Changing, Protocol):
    """The search methods of `edge_agent.gallery.Gallery`, documented there."""

    def search(self, vectors: Vector, k: int) -> tuple[Numbers, Vector]: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Search:
    """Result of a search of the whole gallery at `mark`: the nearest identities, best first.

    `query` is `(D,)` float32 of length 1; `rest` is the upper bound of the scores of all other identities.
    """

    mark: int
    query: Vector
    numbers: tuple[int, ...]
    scores: tuple[float, ...]
    rest: float


@dataclass(frozen=True, slots=True)
class Near:
    """Identities near a vector: `(L,)` int64 numbers and `(L,)` float32 scores, best-exemplar cosines.

    `reach` is the upper bound of the scores of all other identities; `search` starts the next query.
    """

    numbers: Numbers
    scores: Vector
    reach: float
    search: Search


def best_pairs(owners: Numbers, products: Vector) -> tuple[Numbers, Vector]:
    """Return the best score of each identity's exemplars: `(L,)` identities and `(L, Q)` maxima.

    `owners` are the `(N,)` identities of the exemplars, those of one identity together; `products` are their
    `(N, Q)` cosines.
    """
    if not len(owners):
        return owners[:0], products[:0]
    starts = np.concatenate([_FIRST, np.flatnonzero(owners[1:] != owners[:-1]) + 1])
    return owners[starts], np.maximum.reduceat(products, starts, axis=0)


class Neighbours:
    """Finds near identities, from an earlier search where that is exact; remembers `nearest` of a search."""

    def __init__(self, gallery: Searchable, nearest: int = NEAREST) -> None:
        self._gallery = gallery
        self._nearest = nearest
        self.changed = Changed(gallery)
        self._updates: dict[int, tuple[Search, Search]] = {}
        """By the identity of an object: searches, and what `_followed` made of them since `follow`."""

    def near(
        self,
        queries: Sequence[Vector],
        floor: float,
        known: Sequence[Search | None],
        also: Sequence[int | None] | None = None,
    ) -> list[Near]:
        """Return for each query all identities that score at least `floor`, and some more.

        For each query, `(D,)` of length 1, `known` is an earlier search with a similar one, and `also` an
        identity that is returned whatever its score.
        """
        extra = also if also is not None else [None] * len(queries)
        found = [
            self._recall(query, floor, last, number)
            for query, last, number in zip(queries, self._followed(known), extra, strict=True)
        ]
        missing = [row for row, near in enumerate(found) if near is None]
        if missing:
            searched = self._search([queries[row] for row in missing], floor)
            for row, near in zip(missing, searched, strict=True):
                found[row] = self._with(near, extra[row])
        return [near for near in found if near is not None]

    def follow(self, known: Iterable[Search | None]) -> None:
        """Compare the changed identities with many searches at once, which costs less than one by one."""
        self._updates.clear()
        self._followed([one for one in known if one is not None])

    def _followed(self, known: Sequence[Search | None]) -> list[Search | None]:
        """Return searches with the changed identities compared again; None: search the gallery."""
        changed = self.changed
        changed.follow()
        found = [
            None if one is None else self._updates[id(one)][1] if id(one) in self._updates else one
            for one in known
        ]
        late = {
            id(one): (one, last)
            for one, last in zip(known, found, strict=True)
            if one is not None and last is not None and changed.since <= last.mark < changed.mark
        }
        if late:
            queries = np.array([last.query for _, last in late.values()])
            numbers, marks, scores = changed.best(queries, min(last.mark for _, last in late.values()))
            for row, (one, last) in enumerate(late.values()):
                fresh = slice(int(np.searchsorted(marks, last.mark, side="right")), None)
                self._updates[id(one)] = one, self._updated(last, numbers[fresh], scores[row, fresh])
        return [
            self._updates[id(one)][1]
            if id(one) in late
            else last
            if last is not None and last.mark >= changed.since
            else None
            for one, last in zip(known, found, strict=True)
        ]

    def nearest(self, query: Vector, count: int) -> Near:
        """Search the `count` nearest identities of a query `(D,)`."""
        mark, _ = self._gallery.changes_since(0)
        numbers, scores = self._gallery.search(query[None], count)
        return _near(mark, query, numbers[0], scores[0])

    def widest(self, query: Vector, known: Search) -> Near:
        """Return as many of the nearest identities of a query `(D,)` as an earlier search vouches for."""
        floor = max(-1.0, _turned(known.rest, float(query @ known.query))) + 2 * _ROUNDING
        return self.near([query], floor, [known])[0]

    def _recall(self, query: Vector, floor: float, last: Search | None, also: int | None) -> Near | None:
        if last is None:
            return None
        cosine = float(query @ last.query)
        if _turned(last.rest, cosine) >= floor - _ROUNDING:
            return None
        # Identities that were too far to have come to the floor are not compared either.
        count = bisect_left(last.scores, _ROUNDING - _needed(floor, cosine), key=lambda score: -score)
        listed = set(last.numbers[:count])
        if also is not None:
            listed.add(also)
        unseen = last.scores[count] if count < len(last.scores) else last.rest
        if not listed:
            return Near(_NOBODY, _NO_SCORES, _turned(unseen, cosine), last)
        owners, rows = self._gallery.vectors(listed)
        numbers, scores = best_pairs(owners, rows @ query[:, None])
        return Near(numbers, scores[:, 0], _turned(unseen, cosine), last)

    def _updated(self, last: Search, numbers: Numbers, scores: Vector) -> Search:
        """Return a search with `scores` of the changed `numbers`; of many identities the nearest stay."""
        marks, rest = self.changed.marks, last.rest
        listed = [
            (score, number)
            for number, score in zip(last.numbers, last.scores, strict=True)
            if marks.get(number, 0) <= last.mark
        ]
        near = np.flatnonzero(scores > rest)
        if len(near):
            listed += zip(scores[near].tolist(), numbers[near].tolist(), strict=True)
            listed.sort(key=_score, reverse=True)
        if len(listed) > 16 * self._nearest:
            rest, listed = listed[8 * self._nearest][0], listed[: 8 * self._nearest]
        return Search(
            self.changed.mark,
            last.query,
            tuple([number for _, number in listed]),
            tuple([score for score, _ in listed]),
            rest,
        )

    def _search(self, queries: Sequence[Vector], floor: float) -> list[Near]:
        mark, _ = self._gallery.changes_since(0)
        numbers, scores = self._gallery.search(np.stack(queries), self._nearest)
        found = []
        for row, query in enumerate(queries):
            near, count = _near(mark, query, numbers[row], scores[row]), self._nearest
            while near.reach >= floor - _ROUNDING:
                count *= 4
                near = self.nearest(query, count)
            found.append(near)
        return found

    def _with(self, near: Near, also: int | None) -> Near:
        if also is None or also in near.search.numbers:
            return near
        owners, rows = self._gallery.vectors([also])
        numbers, scores = best_pairs(owners, rows @ near.search.query[:, None])
        return Near(
            np.concatenate([near.numbers, numbers]),
            np.concatenate([near.scores, scores[:, 0]]),
            near.reach,
            near.search,
        )


_score = itemgetter(0)


def _near(mark: int, query: Vector, numbers: Numbers, scores: Vector) -> Near:
    """Make `Near` of a row of the gallery's answer, which is padded with -1 when it holds all identities."""
    there = numbers >= 0
    rest = float(scores[-1]) if there.all() and len(numbers) else -math.inf
    search = Search(mark, query, tuple(numbers[there].tolist()), tuple(scores[there].tolist()), rest)
    return Near(numbers[there], scores[there], rest, search)


def _needed(floor: float, cosine: float) -> float:
    """Return the least earlier score that can reach `floor` now; the inverse of `_turned`."""
    angle = math.acos(max(-1.0, min(1.0, floor))) + math.acos(max(-1.0, min(1.0, cosine)))
    return math.cos(min(math.pi, angle))


def _turned(score: float, cosine: float) -> float:
    """Return the upper bound of a score after its query turned by an angle of this cosine."""
    if score == -math.inf:
        return score
    angle = math.acos(max(-1.0, min(1.0, score))) - math.acos(max(-1.0, min(1.0, cosine)))
    return math.cos(max(0.0, angle))


@dataclass(slots=True)
class _Compared:
    """Comparison of an identity's exemplars, `(M, D)` rows, with all others at `mark`.

    `others` holds all identities with an exemplar that scores at least `floor` with one of them.
    """

    mark: int
    rows: Vector
    floor: float
    others: set[int]


class Lookalikes:
    """Finds identities with similar exemplars; only changes are compared again."""

    def __init__(self, gallery: Searchable, neighbours: Neighbours) -> None:
        self._gallery = gallery
        self._neighbours = neighbours
        self._compared: dict[int, _Compared] = {}

    def forget(self, numbers: Iterable[int]) -> None:
        """Drop the comparisons of identities."""
        for number in numbers:
            self._compared.pop(number, None)

    def of(self, number: int, floor: float, hint: Search | None) -> set[int]:
        """Return all other identities with an exemplar that scores at least `floor` with one of this one's.

        `hint` is a search with a query like its newest exemplar.
        """
        _, rows = self._gallery.vectors([number])
        last, changed = self._compared.get(number), self._neighbours.changed
        changed.follow()
        if last is None or last.mark < changed.since or floor < last.floor:
            last, others = _Compared(0, rows[:0], floor - SLACK, set()), set()
        else:
            others = last.others
            if last.mark < changed.mark:
                others = self._updated(last, rows)
        new = list(_without(rows, last.rows))
        if new:
            for near in self._neighbours.near(new, last.floor, [hint] * len(new)):
                others.update(near.numbers[near.scores >= last.floor].tolist())
        others.discard(number)
        self._compared[number] = _Compared(changed.mark, rows, last.floor, others)
        return others

    def _updated(self, last: _Compared, rows: Vector) -> set[int]:
        """Return the others, with the changed identities compared again."""
        if not len(rows):
            return set()
        numbers, _, scores = self._neighbours.changed.best(rows, last.mark)
        near = numbers[scores.max(axis=0) >= last.floor]
        return last.others.difference(numbers.tolist()).union(near.tolist())


def _without(rows: Vector, known: Vector) -> Vector:
    """Return the rows that are not among `known`."""
    if not len(known) or not len(rows):
        return rows
    new: Vector = rows[~(rows[:, None] == known[None]).all(axis=2).any(axis=1)]
    return new
