"""Evidence of a track: a pool of its recent good crops."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Evidence"]

Vector = NDArray[np.float32]


class Evidence:
    """Pool of the most recent good crops of one track.

    Recent rather than best, so that a track that slips from one person to another shows it.

    Args:
        limit: crops pooled at most.
    """

    __slots__ = ("_centroid", "_limit", "_vectors", "_weights", "count")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._vectors: Vector | None = None
        """`(limit, D)`, the oldest overwritten first."""
        self._weights = np.zeros(limit, np.float32)
        self._centroid: Vector | None = None
        self.count = 0

    def add(self, vector: Vector, quality: float) -> None:
        """Add one crop: a `(D,)` unit vector and its quality, above 0."""
        if self._vectors is None:
            self._vectors = np.zeros((self._limit, len(vector)), np.float32)
        place = self.count % self._limit
        self._vectors[place] = vector
        self._weights[place] = quality
        self._centroid = None
        self.count += 1

    @property
    def pooled(self) -> int:
        """Number of crops in the pool."""
        return min(self.count, self._limit)

    @property
    def quality(self) -> float:
        """Mean quality of the pool, 0..1; 0 when empty."""
        return float(self._weights.sum()) / self.pooled if self.count else 0.0

    def centroid(self) -> Vector:
        """Return the quality-weighted mean of the pool, a `(D,)` float32 unit vector.

        Raises:
            ValueError: the pool is empty.
        """
        if self._centroid is None:
            if self._vectors is None:
                raise ValueError("a track without a good crop has no centroid")
            mean = self._weights @ self._vectors
            self._centroid = mean / np.float32(max(float(mean @ mean) ** 0.5, 1e-6))
        return self._centroid

    def close(self) -> None:
        """Keep only the centroid: no further crop will come."""
        if self._vectors is not None:
            self.centroid()
            self._vectors = None
