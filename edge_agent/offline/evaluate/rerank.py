"""k-reciprocal re-ranking (Zhong et al. 2017, "Re-ranking Person Re-identification with k-reciprocal
Encoding", CVPR), with sparse encodings instead of the paper's full matrices.

All N = queries + gallery crops are encoded together:

1. R(p, k): those of p's k nearest that have p among their own k nearest (eq. 2-3). A crop is its own
   nearest neighbour and not counted in k.
2. R*(p): R(p, k1), and R(c, k1/2) of each member c for which more than 2/3 of R(c, k1/2) lie in R(p, k1)
   (eq. 5 says "at least"; the reference code and TAO's use "more than").
3. Encoding V(p): exp(-d) for members of R*(p), else 0, scaled to sum 1 (eq. 7). d is the squared
   Euclidean distance divided by the largest one from p, as in published implementations.
4. Local query expansion: V(p) becomes the mean of V over p's k2 nearest, p itself included (eq. 11).
5. Jaccard distance from the overlap of two encodings (eq. 10), then
   (1 - lambda) * jaccard + lambda * d (eq. 12).

Memory: N x k1 neighbours and N encodings of a few hundred numbers each, instead of N x N; 40,000 crops need
half a GiB. Ties among neighbours go to the lower row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge_agent.offline.evaluate.metrics import CosineScores, similarity_blocks

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


@dataclass(frozen=True, slots=True)
class ReRanking:
    """Parameters; the defaults are the paper's and TAO's.

    Attributes:
        k1: neighbours of the reciprocal sets; a larger number mixes people who have few crops.
        k2: neighbours whose encodings are averaged; 1 disables the expansion.
        weight: lambda, the share of the original distance, 0..1.
    """

    k1: int = 20
    k2: int = 6
    weight: float = 0.3

    def __post_init__(self) -> None:
        if self.k1 < 1 or self.k2 < 1 or not 0 <= self.weight <= 1:
            raise ValueError(f"re-ranking needs k1 >= 1, k2 >= 1 and 0 <= lambda <= 1, got {self}")

    def __str__(self) -> str:
        return f"k-reciprocal k1={self.k1} k2={self.k2} lambda={self.weight:g}"


class ReRankedScores:
    """Negative re-ranked distances, in the form of `CosineScores`."""

    def __init__(self, query: NDArray[np.float32], gallery: NDArray[np.float32], settings: ReRanking) -> None:
        everything = np.concatenate([query, gallery])
        nearest, self._farthest = _neighbours(everything, settings.k1 + 1)
        self._encodings = _expand(
            _encode(everything, nearest, self._farthest, settings.k1), nearest, settings.k2
        )
        self._of_gallery = self._encodings[len(query) :].tocsc()
        self._cosines = CosineScores(query, gallery)
        self._weight = settings.weight

    def blocks(self, height: int | None = None) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """As `CosineScores.blocks`."""
        for start, block in self._cosines.blocks(height):
            for offset, cosines in enumerate(block):
                cosines[:] = self._blend(start + offset, cosines)
            yield start, block

    def row(self, query: int) -> NDArray[np.float32]:
        """As `CosineScores.row`."""
        return self._blend(query, self._cosines.row(query))

    def _blend(self, query: int, cosines: NDArray[np.float32]) -> NDArray[np.float32]:
        """`(G,)` scores of one query from its cosines (eq. 12, negated)."""
        jaccard = _jaccard(self._encodings, query, self._of_gallery)
        distance = (2.0 - 2.0 * cosines.astype(np.float64)) / self._farthest[query]
        return np.asarray((self._weight - 1) * jaccard - self._weight * distance, np.float32)


def _neighbours(vectors: NDArray[np.float32], count: int) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """The `count` nearest rows of each row, nearest first, and its largest squared distance (> 0)."""
    count = min(count, len(vectors))
    nearest = np.empty((len(vectors), count), np.int32)
    farthest = np.empty(len(vectors))
    for start, block in similarity_blocks(vectors, vectors):
        rows = slice(start, start + len(block))
        farthest[rows] = 2.0 - 2.0 * block.min(axis=1).astype(np.float64)
        nearest[rows] = [_top(row, count) for row in block]
    return nearest, np.maximum(farthest, 1e-12)


def _top(scores: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Columns of the `count` largest scores, descending, lower column first among equals."""
    last = np.partition(scores, len(scores) - count)[len(scores) - count]
    reach = np.flatnonzero(scores >= last)
    return reach[np.argsort(-scores[reach], kind="stable")][:count]


def _reciprocal(nearest: NDArray[np.int32], k: int) -> list[list[int]]:
    """R(p, k) of every row, nearest first; p itself is the first member."""
    near = nearest[:, : k + 1]
    sets: list[list[int]] = []
    for start in range(0, len(near), 4096):
        own = near[start : start + 4096]
        rows = np.arange(start, start + len(own), dtype=np.int32)
        mutual = (near[own] == rows[:, None, None]).any(axis=2)
        sets += [members[keep].tolist() for members, keep in zip(own, mutual, strict=True)]
    return sets


def _expanded_sets(nearest: NDArray[np.int32], k1: int) -> Iterator[list[int]]:
    """R*(p) of every row, ascending."""
    full = _reciprocal(nearest, k1)
    half = [frozenset(members) for members in _reciprocal(nearest, round(k1 / 2))]
    for members in full:
        base = frozenset(members)
        grown = set(base)
        for candidate in members:
            addition = half[candidate]
            if 3 * len(addition & base) > 2 * len(addition):
                grown |= addition
        yield sorted(grown)


def _encode(
    vectors: NDArray[np.float32], nearest: NDArray[np.int32], farthest: NDArray[np.float64], k1: int
) -> csr_matrix:
    """V of every row, `(N, N)` sparse, rows sum to 1."""
    from scipy.sparse import csr_matrix

    columns: list[NDArray[np.int32]] = []
    weights: list[NDArray[np.float64]] = []
    for row, members in enumerate(_expanded_sets(nearest, k1)):
        picked = np.array(members, np.int32)
        cosines = (vectors[picked].astype(np.float64) @ vectors[row].astype(np.float64)).astype(np.float32)
        weight = np.exp(-(2.0 - 2.0 * cosines.astype(np.float64)) / farthest[row])
        columns.append(picked)
        weights.append(weight / weight.sum())
    starts = np.concatenate([[0], np.cumsum([len(picked) for picked in columns])])
    shape = (len(vectors), len(vectors))
    return csr_matrix((np.concatenate(weights), np.concatenate(columns), starts), shape=shape)


def _expand(encodings: csr_matrix, nearest: NDArray[np.int32], k2: int) -> csr_matrix:
    """Mean of the encodings of each row's k2 nearest."""
    from scipy.sparse import csr_matrix

    if k2 == 1:
        return encodings
    near = nearest[:, :k2]
    rows, width = near.shape
    mean = csr_matrix(
        (np.full(rows * width, 1 / width), near.ravel(), np.arange(0, rows * width + 1, width)),
        shape=encodings.shape,
    )
    return csr_matrix(mean @ encodings)


def _jaccard(encodings: csr_matrix, row: int, columns: csr_matrix) -> NDArray[np.float64]:
    """1 - (sum of minima / sum of maxima) of one encoding with all rows of `columns` (CSC), `(G,)`.

    Both sum to 1, so the sum of maxima is 2 minus the sum of minima.
    """
    entry = slice(encodings.indptr[row], encodings.indptr[row + 1])
    present, weights = encodings.indices[entry], encodings.data[entry]
    starts, ends = columns.indptr[present], columns.indptr[present + 1]
    lengths = ends - starts
    # positions starts[0]..ends[0]-1, starts[1]..ends[1]-1, ... in one array
    offsets = np.repeat(starts - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)
    positions = offsets + np.arange(lengths.sum())
    minima = np.minimum(np.repeat(weights, lengths), columns.data[positions])
    overlap = np.bincount(columns.indices[positions], minima, minlength=columns.shape[0])
    return np.asarray(1.0 - overlap / (2.0 - overlap))
