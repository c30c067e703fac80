"""Rank-k, mAP and mINP by TAO's protocol, in blocks instead of the whole distance matrix.

Protocol (TAO `utils/eval_reid.py`): rows of unit length, gallery sorted by ascending squared Euclidean
distance (for unit rows that is 2 - 2 cos, so descending cosine), gallery items of the query's person *and*
camera removed, queries without any match left skipped.

- CMC(k): share of queries whose first match has rank k or better.
- AP: mean over the matches of (number of matches so far / rank); mAP is its mean over the queries.
- INP: number of matches / rank of the last match; mINP is its mean (Ye et al. 2021, "Deep Learning for
  Person Re-identification: A Survey and Outlook", eq. 10).

Ties: a wrong item at the same distance as a match is ranked before it. So the figures do not depend on the
order of the gallery, and a network that returns one vector for all people gets a low score. Two distances
are the same if they are equal in float32; products are summed in float64 and then rounded, so that ties
depend neither on the block size nor on the BLAS.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge_agent.offline.evaluate.labels import EmbeddedCrops

_BLOCK_ELEMENTS = 1 << 23
"""Elements of one block: 64 MiB in float64, and about a quarter of a GiB with all temporaries."""


def similarity_blocks(
    rows: NDArray[np.float32], columns: NDArray[np.float32], *, height: int | None = None
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield the cosines of `(Q, D)` unit rows with `(G, D)` unit columns, in blocks of rows.

    A block is the first row's index and `(<=height, G)` float32 cosines, which the caller may overwrite;
    `height` does not change the numbers.
    """
    height = height or max(1, _BLOCK_ELEMENTS // max(1, len(columns)))
    wide = np.ascontiguousarray(columns.T, np.float64)
    for start in range(0, len(rows), height):
        block = rows[start : start + height].astype(np.float64) @ wide
        yield start, block.astype(np.float32)


@dataclass(frozen=True, slots=True)
class CosineScores:
    """Scores of queries `(Q, D)` against a gallery `(G, D)` of unit rows, larger is nearer: the cosines."""

    query: NDArray[np.float32]
    gallery: NDArray[np.float32]

    def blocks(self, height: int | None = None) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield the first row of each block and its `(<=height, G)` float32 scores, free to overwrite."""
        return similarity_blocks(self.query, self.gallery, height=height)

    def row(self, query: int) -> NDArray[np.float32]:
        """Return the `(G,)` float32 scores of one query."""
        _, block = next(similarity_blocks(self.query[query : query + 1], self.gallery))
        return np.asarray(block[0])


@dataclass(frozen=True, slots=True)
class Ranking:
    """`(V,)` results of the queries that have a match: indices, rank of the first match from 1, AP, INP.

    `skipped` is the number of queries without a match in another camera.
    """

    rows: NDArray[np.int64]
    first: NDArray[np.int64]
    average_precision: NDArray[np.float64]
    inverse_penalty: NDArray[np.float64]
    skipped: int

    def cmc(self, depth: int) -> NDArray[np.float64]:
        """Return the `(depth,)` share of evaluated queries matched at rank 1..depth."""
        counts = np.bincount(np.minimum(self.first, depth + 1), minlength=depth + 2)
        share: NDArray[np.float64] = np.cumsum(counts[1 : depth + 1]) / len(self.first)
        return share

    def rank(self, k: int) -> float:
        """Return the rank-k accuracy, 0..1."""
        return float(np.mean(self.first <= k))

    @property
    def mean_average_precision(self) -> float:
        """mAP, 0..1."""
        return float(np.mean(self.average_precision))

    @property
    def mean_inverse_penalty(self) -> float:
        """mINP, 0..1."""
        return float(np.mean(self.inverse_penalty))


@dataclass(slots=True)
class RankingTally:
    """Computes a Ranking from blocks of scores (larger is nearer; a column per gallery crop) in any order."""

    query: EmbeddedCrops
    gallery: EmbeddedCrops
    _by_person: NDArray[np.int64] = field(init=False)
    _sorted_pids: NDArray[np.int64] = field(init=False)
    _results: list[tuple[int, int, float, float]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self._by_person = np.argsort(self.gallery.pids, kind="stable").astype(np.int64)
        self._sorted_pids = self.gallery.pids[self._by_person]

    def add(self, start: int, block: NDArray[np.float32]) -> None:
        """Rank the queries `start, start + 1, ...`; overwrites parts of `block`."""
        for row, scores in enumerate(block, start):
            hits, same = self._matches(row)
            if not len(hits):
                continue
            matched = np.sort(scores[hits])[::-1]
            scores[same] = -np.inf
            scores.sort()
            # rank: wrong items that are as near or nearer, then the better matches, then the match itself
            wrong_ahead = len(scores) - np.searchsorted(scores, matched, side="left")
            order = np.arange(1, len(hits) + 1)
            ranks = wrong_ahead + order
            precision = float(np.mean(order / ranks))
            self._results.append((row, int(ranks[0]), precision, len(hits) / int(ranks[-1])))

    def _matches(self, row: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Gallery rows that match query `row`, and all gallery rows of its person."""
        pid = self.query.pids[row]
        low = np.searchsorted(self._sorted_pids, pid, side="left")
        high = np.searchsorted(self._sorted_pids, pid, side="right")
        same = self._by_person[low:high]
        return same[self.gallery.camids[same] != self.query.camids[row]], same

    def result(self) -> Ranking | None:
        """Return the figures so far; None while no query has a match."""
        if not self._results:
            return None
        rows, first, precision, penalty = zip(*sorted(self._results), strict=True)
        return Ranking(
            np.array(rows, np.int64),
            np.array(first, np.int64),
            np.array(precision, np.float64),
            np.array(penalty, np.float64),
            skipped=len(self.query) - len(rows),
        )


def rank(query: EmbeddedCrops, gallery: EmbeddedCrops, *, height: int | None = None) -> Ranking | None:
    """Rank by cosine; see the module's docstring. None when no query has a match."""
    tally = RankingTally(query, gallery)
    for start, block in similarity_blocks(query.vectors, gallery.vectors, height=height):
        tally.add(start, block)
    return tally.result()


def best_matches(
    scores: NDArray[np.float32], query: EmbeddedCrops, row: int, gallery: EmbeddedCrops, count: int
) -> list[tuple[int, bool]]:
    """Return the `count` nearest gallery rows of query `row`, each with whether it is the same person.

    Filtered and ordered as for the figures: without same person and camera, wrong before right in a tie.
    `scores` are `(G,)`, larger is nearer.
    """
    right = gallery.pids == query.pids[row]
    kept = np.flatnonzero(~(right & (gallery.camids == query.camids[row])))
    order = kept[np.lexsort((kept, right[kept], -scores[kept]))][:count]
    return [(int(index), bool(right[index])) for index in order]
