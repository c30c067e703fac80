"""What one track has shown of its person: a pool of its recent good crops."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

__all__ = ["Evidence"]

Vector = NDArray[np.float32]


class Evidence:
    """The most recent good crops of one track, pooled.

    Recent rather than best, so that a track which slips from one person to another shows it.

    Args:
        limit: crops pooled at most.
    """

    __slots__ = ("_pool", "count")

    def __init__(self, limit: int) -> None:
        self._pool: deque[tuple[Vector, float]] = deque(maxlen=limit)
        self.count = 0

    def add(self, vector: Vector, quality: float) -> None:
        """Take in one crop: a `(D,)` unit vector and its quality, above 0."""
        self._pool.append((vector, quality))
        self.count += 1

    @property
    def pooled(self) -> int:
        """Number of crops in the pool."""
        return len(self._pool)

    @property
    def quality(self) -> float:
        """Mean quality of the pool, 0..1; 0 when empty."""
        return float(np.mean([q for _, q in self._pool])) if self._pool else 0.0

    def centroid(self) -> Vector:
        """`(D,)` float32 unit vector: the quality-weighted mean of the pool.

        Raises:
            ValueError: the pool is empty.
        """
        if not self._pool:
            raise ValueError("a track without a good crop has no centroid")
        vectors = np.stack([v for v, _ in self._pool])
        weights = np.array([q for _, q in self._pool], np.float32)
        mean = weights @ vectors
        unit: Vector = (mean / max(float(np.linalg.norm(mean)), 1e-6)).astype(np.float32)
        return unit
