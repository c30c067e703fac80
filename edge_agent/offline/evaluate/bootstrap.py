"""Percentile bootstrap over persons, for confidence intervals of FMR and FNMR.

Pairs that share a person are not independent: one person may cause hundreds of false matches. So persons are
resampled, not pairs, with one weight per person on both sides (idea: Bolle et al. 2004, "The error estimate
of ROC curves and the subset bootstrap").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge_agent.offline.evaluate.labels import EmbeddedCrops
from edge_agent.offline.evaluate.metrics import similarity_blocks
from edge_agent.offline.evaluate.pairs import bins_of, edge_of

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

__all__ = ["PersonBootstrap"]

REPLICATES = 1000


class PersonBootstrap:
    """Error rates at some thresholds under resampled persons.

    Only accepted impostor pairs are stored, as a sparse person x person matrix for each threshold. The number
    of pairs for weights w follows from the crops per person and camera: all pairs minus pairs of one camera
    minus pairs of one person.
    """

    def __init__(self, query: EmbeddedCrops, gallery: EmbeddedCrops, thresholds: Sequence[float]) -> None:
        people, codes = np.unique(np.concatenate([query.pids, gallery.pids]), return_inverse=True)
        self._people = len(people)
        self._query, self._gallery = codes[: len(query)], codes[len(query) :]
        cameras, camera_codes = np.unique(np.concatenate([query.camids, gallery.camids]), return_inverse=True)
        self._query_counts = self._crops(self._query, camera_codes[: len(query)], len(cameras))
        self._gallery_counts = self._crops(self._gallery, camera_codes[len(query) :], len(cameras))
        self._edges = [edge_of(threshold) for threshold in thresholds]
        self._accepted = [self._empty() for _ in thresholds]
        self._refused = np.zeros((len(thresholds), self._people))
        if thresholds:
            for start, block in similarity_blocks(query.vectors, gallery.vectors):
                self._count(query, gallery, start, block)

    def _empty(self) -> csr_matrix:
        from scipy.sparse import csr_matrix

        return csr_matrix((self._people, self._people))

    def _crops(self, people: NDArray[np.intp], cameras: NDArray[np.intp], width: int) -> csr_matrix:
        """Number of crops of each person in each camera."""
        from scipy.sparse import csr_matrix

        return csr_matrix((np.ones(len(people)), (people, cameras)), shape=(self._people, width))

    def _count(
        self, query: EmbeddedCrops, gallery: EmbeddedCrops, start: int, block: NDArray[np.float32]
    ) -> None:
        """Add the errors of one block of scores."""
        from scipy.sparse import csr_matrix

        bins = bins_of(block).ravel()
        # flat positions of acceptable and of genuine pairs: both are few, unlike all pairs
        near = np.flatnonzero(bins >= min(self._edges))
        genuine = np.flatnonzero(query.pids[start : start + len(block), None] == gallery.pids)
        left, right = np.divmod(near, len(gallery))
        left += start
        wanted = (query.pids[left] != gallery.pids[right]) & (query.camids[left] != gallery.camids[right])
        near, left, right = near[wanted], left[wanted], right[wanted]
        own, other = np.divmod(genuine, len(gallery))
        own += start
        crossing = query.camids[own] != gallery.camids[other]
        genuine, own = genuine[crossing], own[crossing]
        for index, edge in enumerate(self._edges):
            over = bins[near] >= edge
            pairs = (self._query[left[over]], self._gallery[right[over]])
            counts = csr_matrix((np.ones(len(pairs[0])), pairs), shape=(self._people, self._people))
            self._accepted[index] = self._accepted[index] + counts
            missed = self._query[own[bins[genuine] < edge]]
            self._refused[index] += np.bincount(missed, minlength=self._people)

    def rates(self, threshold: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return FMR and FNMR of each replicate that has a pair of the kind."""
        index = self._edges.index(edge_of(threshold))
        random = np.random.default_rng(0)
        fmr: list[NDArray[np.float64]] = []
        fnmr: list[NDArray[np.float64]] = []
        height = max(1, (1 << 22) // self._people)  # replicates at a time: 32 MiB of weights
        for start in range(0, REPLICATES, height):
            weights = random.multinomial(
                self._people, np.full(self._people, 1 / self._people), size=min(height, REPLICATES - start)
            ).astype(np.float64)
            impostors, genuine = self._pairs(weights)
            accepted = np.sum((weights @ self._accepted[index]) * weights, axis=1)
            refused = weights @ self._refused[index]
            fmr.append(accepted[impostors > 0] / impostors[impostors > 0])
            fnmr.append(refused[genuine > 0] / genuine[genuine > 0])
        return np.concatenate(fmr), np.concatenate(fnmr)

    def _pairs(self, weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Impostor and genuine cross-camera pairs under `(R, people)` weights.

        A person drawn w times would form w^2 impostor pairs with itself; these are pairs of one person and
        excluded. Genuine pairs count w times, as one person's contribution.
        """
        queries, galleries = self._query_counts, self._gallery_counts
        query_totals = np.asarray(queries.sum(axis=1)).ravel()
        gallery_totals = np.asarray(galleries.sum(axis=1)).ravel()
        own_camera = np.asarray(queries.multiply(galleries).sum(axis=1)).ravel()
        own = query_totals * gallery_totals - own_camera
        everything = (weights @ query_totals) * (weights @ gallery_totals)
        one_camera = np.sum((weights @ queries) * (weights @ galleries), axis=1)
        return everything - one_camera - weights**2 @ own, weights @ own
