"""Score counts of genuine and impostor pairs.

A pair is one query crop and one gallery crop of different cameras; its score is the cosine. Scores are
counted in bins 2^-19 wide, so any number of pairs fits into 16 MiB, the block size does not change the
counts, and a threshold on a bin's edge has exact rates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge_agent.offline.evaluate.labels import EmbeddedCrops
from edge_agent.offline.evaluate.metrics import similarity_blocks

__all__ = ["BINS_PER_UNIT", "PairScores", "bins_of", "edge_of"]

BINS_PER_UNIT = 1 << 19
_BINS = 2 * BINS_PER_UNIT


def bins_of(scores: NDArray[np.floating]) -> NDArray[np.intp]:
    """Return the bin of each cosine; values outside -1..1, by rounding, go to the outermost bin."""
    bins = np.multiply(scores, np.float32(BINS_PER_UNIT), dtype=np.float32)
    bins += np.float32(BINS_PER_UNIT)
    np.clip(bins, 0, _BINS - 1, out=bins)
    whole: NDArray[np.intp] = bins.astype(np.intp)
    return whole


@dataclass(slots=True)
class PairScores:
    """Score counts of genuine and impostor pairs, in fine bins.

    Attributes:
        genuine: `(2^20,)` int64 counts of pairs of one person per bin of -1..1.
        impostor: counts of pairs of different persons.
    """

    genuine: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_BINS, np.int64))
    impostor: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_BINS, np.int64))

    @staticmethod
    def of(genuine: NDArray[np.floating], impostor: NDArray[np.floating]) -> PairScores:
        """Count scores (cosines of any shape)."""
        return PairScores(
            np.bincount(bins_of(genuine.ravel()), minlength=_BINS),
            np.bincount(bins_of(impostor.ravel()), minlength=_BINS),
        )

    @staticmethod
    def between(query: EmbeddedCrops, gallery: EmbeddedCrops, *, height: int | None = None) -> PairScores:
        """Count all cross-camera pairs, in blocks of `height` rows, which does not change the counts."""
        scores = PairScores()
        for start, block in similarity_blocks(query.vectors, gallery.vectors, height=height):
            scores.add(query, gallery, start, block)
        return scores

    def add(
        self, query: EmbeddedCrops, gallery: EmbeddedCrops, start: int, block: NDArray[np.float32]
    ) -> None:
        """Count the pairs of the queries `start, start + 1, ...`; `block` is not changed."""
        rows = slice(start, start + len(block))
        bins = bins_of(block)
        same_person = query.pids[rows, None] == gallery.pids
        same_camera = query.camids[rows, None] == gallery.camids
        self.genuine += np.bincount(bins[same_person & ~same_camera], minlength=_BINS)
        bins[same_person | same_camera] = _BINS  # an extra bin, dropped below
        self.impostor += np.bincount(bins.ravel(), minlength=_BINS + 1)[:_BINS]

    @property
    def genuine_pairs(self) -> int:
        """Number of pairs of one person."""
        return int(self.genuine.sum())

    @property
    def impostor_pairs(self) -> int:
        """Number of pairs of different persons."""
        return int(self.impostor.sum())

    def false_matches(self, threshold: float) -> int:
        """Return the impostor pairs with score >= threshold; exact for thresholds on a bin's edge."""
        return int(self.impostor[edge_of(threshold) :].sum())

    def false_non_matches(self, threshold: float) -> int:
        """Return the genuine pairs with score < threshold; exact for thresholds on a bin's edge."""
        return int(self.genuine[: edge_of(threshold)].sum())

    def histograms(self, bins: int = 100) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        """Return edges `(bins + 1,)` of the range in use, and counts `(bins,)` of genuine and impostor."""
        used = np.flatnonzero(self.genuine + self.impostor)
        if not len(used):
            return np.linspace(-1, 1, bins + 1), np.zeros(bins, np.int64), np.zeros(bins, np.int64)
        cuts = np.unique(np.linspace(used[0], used[-1] + 1, bins + 1).round().astype(int))
        edges = cuts / BINS_PER_UNIT - 1.0
        starts = cuts[:-1]
        genuine = np.add.reduceat(self.genuine[: cuts[-1]], starts)
        return edges, genuine, np.add.reduceat(self.impostor[: cuts[-1]], starts)

    def curve(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Return thresholds `(2^20 + 1,)`, ascending, with FMR and FNMR; both kinds of pair must exist."""
        fmr = 1.0 - np.concatenate([[0], np.cumsum(self.impostor)]) / self.impostor_pairs
        fnmr = np.concatenate([[0], np.cumsum(self.genuine)]) / self.genuine_pairs
        return np.arange(_BINS + 1) / BINS_PER_UNIT - 1.0, fmr, fnmr

    def det(self, points: int = 120) -> list[tuple[float, float]]:
        """Return `(FMR, FNMR)` at FMR spaced evenly on a log scale, from 1 down to one impostor pair."""
        if not (self.genuine_pairs and self.impostor_pairs):
            return []
        _, fmr, fnmr = self.curve()
        wanted = np.geomspace(1.0, 1.0 / self.impostor_pairs, points)
        # FMR falls along the array: find the first threshold whose FMR is at most the wanted one
        index = np.searchsorted(-fmr, -wanted - 0.5 / self.impostor_pairs, side="left")
        found = dict.fromkeys((float(fmr[i]), float(fnmr[i])) for i in index)
        return list(found)


def edge_of(threshold: float) -> int:
    """Return the index of the first bin that a threshold accepts."""
    return min(_BINS, max(0, math.ceil((threshold + 1.0) * BINS_PER_UNIT)))
