"""Appearance of tracks: running mean embeddings, and the typical similarities of a scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Similarity", "mixed"]

Vectors = NDArray[np.float32]

_MEMORY = 0.9
"""Share of the old value when a track's appearance is updated, as in BoT-SORT (arXiv:2206.14651, 3.3)."""


@dataclass(slots=True)
class Similarity:
    """Running means of cosine similarity: within tracks (genuine) and between people (impostor).

    Both are averages over at most `memory` recent samples, so that they follow a scene that changes.
    """

    memory: int = 2000
    needed: int = 10
    genuine: float = 0.0
    impostor: float = 0.0
    genuine_count: int = 0
    impostor_count: int = 0

    @property
    def settled(self) -> bool:
        """Whether both means rest on `memory` samples."""
        return min(self.genuine_count, self.impostor_count) >= self.memory

    @property
    def ready(self) -> bool:
        """Whether both means rest on enough samples and differ."""
        enough = min(self.genuine_count, self.impostor_count) >= self.needed
        return enough and self.genuine - self.impostor > 0.02

    def learn_genuine(self, cosines: Vectors) -> None:
        """Add similarities `(N,)` of tracks with themselves."""
        self.genuine_count = min(self.genuine_count + len(cosines), self.memory)
        self.genuine += float((cosines - self.genuine).sum()) / self.genuine_count

    def learn_impostor(self, cosines: Vectors) -> None:
        """Add similarities `(N,)` of pairs of people in one frame."""
        self.impostor_count = min(self.impostor_count + len(cosines), self.memory)
        self.impostor += float((cosines - self.impostor).sum()) / self.impostor_count

    def distance(self, cosine: Vectors) -> Vectors:
        """Scale cosines so that 0 is a typical genuine and 1 a typical impostor; NaN stays NaN."""
        return np.asarray((self.genuine - cosine) / (self.genuine - self.impostor), np.float32)


def mixed(before: Vectors, vectors: Vectors, known: Sequence[bool]) -> Vectors:
    """Update the appearance of N tracks by one embedding each.

    Args:
        before: `(N, D)` unit rows, the present appearance.
        vectors: `(N, D)` unit rows, the new embeddings.
        known: N, whether `before` holds an appearance; where not, the embedding becomes the appearance.
    """
    if not any(known):
        return vectors
    result: Vectors = _MEMORY * before
    result += (1 - _MEMORY) * vectors
    result /= np.maximum(np.sqrt(np.einsum("nd,nd->n", result, result)), 1e-6)[:, None]
    if not all(known):
        new = [row for row, there in enumerate(known) if not there]
        result[new] = vectors[new]
    return result
