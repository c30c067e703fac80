"""Storage of the tracks of one camera, their appearance, and the typical similarities of a scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_agent.track.kalman import initial_states

Vectors = NDArray[np.float32]
Rows = TypeVar("Rows", bound=NDArray[Any])

LAST_SEEN, HITS, KNOWN = range(3)

_FIRST_ROWS = 16
"""Rows allocated at first; doubled when all are in use."""
_APPEARANCE_MEMORY = 0.9
"""Share of the old value when a track's appearance is updated, as in BoT-SORT (arXiv:2206.14651, 3.3)."""
_OLD, _NEW = np.array([[_APPEARANCE_MEMORY], [1 - _APPEARANCE_MEMORY]], np.float32)
_SAMPLES = 2000
"""Similarities are averages over at most this number of samples, so that they follow a scene that changes."""
_NEEDED_SAMPLES = 10
_LEAST_NORM = np.array(1e-6, np.float32)


@dataclass(slots=True)
class Similarity:
    """Running means of cosine similarity: within tracks (genuine) and between people (impostor)."""

    genuine: float = 0.0
    impostor: float = 0.0
    genuine_count: int = 0
    impostor_count: int = 0

    @property
    def settled(self) -> bool:
        """Whether both means rest on the largest number of samples."""
        return min(self.genuine_count, self.impostor_count) >= _SAMPLES

    @property
    def ready(self) -> bool:
        """Whether both means rest on enough samples and differ."""
        enough = min(self.genuine_count, self.impostor_count) >= _NEEDED_SAMPLES
        return enough and self.genuine - self.impostor > 0.02

    def learn_genuine(self, cosines: Vectors) -> None:
        """Add similarities `(N,)` of tracks with themselves."""
        self.genuine_count = min(self.genuine_count + len(cosines), _SAMPLES)
        self.genuine += float((cosines - self.genuine).sum()) / self.genuine_count

    def learn_impostor(self, cosines: Vectors) -> None:
        """Add similarities `(N,)` of pairs of people in one frame."""
        self.impostor_count = min(self.impostor_count + len(cosines), _SAMPLES)
        self.impostor += float((cosines - self.impostor).sum()) / self.impostor_count

    def distance(self, cosine: Vectors) -> Vectors:
        """Scale cosines so that 0 is a typical genuine and 1 a typical impostor; NaN stays NaN."""
        return np.asarray((self.genuine - cosine) / (self.genuine - self.impostor), np.float32)


class TrackTable:
    """The tracks of one camera, oldest first: an id, and a row of each array per track.

    `facts` has the rows `LAST_SEEN`, Unix seconds, `HITS`, the detections so far, and `KNOWN`, 1 for a track
    with an appearance.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        """Numbers of the tracks, unique within the camera."""
        self._states = np.zeros((5, _FIRST_ROWS, 4))
        self._facts = np.zeros((3, _FIRST_ROWS))
        self._appearance = np.zeros((_FIRST_ROWS, 0), np.float32)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def states(self) -> NDArray[np.float64]:
        """`(5, T, 4)` view, see `edge_agent.track.kalman`; all of the time of the last frame."""
        return self._states[:, : len(self.ids)]

    @property
    def facts(self) -> NDArray[np.float64]:
        """`(3, T)` view."""
        return self._facts[:, : len(self.ids)]

    def confirmed(self, hits: int) -> NDArray[np.bool_]:
        """`(T,)`: which tracks have at least so many detections; these are reported."""
        confirmed: NDArray[np.bool_] = self.facts[HITS] >= hits
        return confirmed

    def appearance(self, width: int) -> Vectors:
        """`(T, width)` view, unit rows where `KNOWN`."""
        if width > self._appearance.shape[1]:  # the first embedding; a failed engine gives a width of 0
            self._appearance = np.zeros((len(self._appearance), width), np.float32)
        return self._appearance[: len(self.ids), :width]

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all tracks but those at `rows`."""
        self._states[:, : len(rows)] = self._states[:, rows]
        self._facts[:, : len(rows)] = self._facts[:, rows]
        self._appearance[: len(rows)] = self._appearance[rows]
        self.ids = [self.ids[row] for row in rows]

    def add(self, first_id: int, time: float, boxes: NDArray[np.float32]) -> slice:
        """Start a track for each of `boxes` `(N, 4)` xyxy; return their rows."""
        rows = slice(len(self.ids), len(self.ids) + len(boxes))
        while rows.stop > self._states.shape[1]:
            self._states = _doubled(self._states, 1)
            self._facts = _doubled(self._facts, 1)
            self._appearance = _doubled(self._appearance, 0)
        self._states[:, rows] = initial_states(boxes)
        self._facts[:, rows] = [[time], [1.0], [0.0]]
        self.ids += range(first_id, first_id + len(boxes))
        return rows


def _doubled(array: Rows, axis: int) -> Rows:
    return np.concatenate([array, np.zeros_like(array)], axis=axis)  # type: ignore[return-value]


def mixed(before: Vectors, vectors: Vectors, known: NDArray[np.float64]) -> Vectors:
    """Update the appearance `before` of N tracks by one embedding each, both `(N, D)` unit rows.

    Where `known` is 0, `before` holds no appearance, and the embedding becomes the appearance.
    """
    result: Vectors = _OLD * before
    result += _NEW * vectors
    result /= np.maximum(np.sqrt(np.einsum("nd,nd->n", result, result)), _LEAST_NORM)[:, None]
    if np.count_nonzero(known) < len(known):
        new = known == 0
        result[new] = vectors[new]
    return result
