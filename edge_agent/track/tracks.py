"""Storage of the tracks of one camera, their appearance, and the typical similarities of a scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_agent.track.kalman import initial_states

Vectors = NDArray[np.float32]

_FIRST_ROWS = 16
"""Rows allocated at first; doubled when all are in use."""
_APPEARANCE_MEMORY = 0.9
"""Share of the old value when a track's appearance is updated, as in BoT-SORT (arXiv:2206.14651, 3.3)."""
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


@dataclass(slots=True)
class Track:
    """One track; its Kalman state and its appearance are rows of the table's arrays.

    `id` is unique within the camera, `last_seen` Unix seconds, `hits` the detections so far; a confirmed
    track is reported.
    """

    id: int
    last_seen: float
    confirmed: bool
    hits: int = 1
    has_appearance: bool = False


class TrackTable:
    """The tracks of one camera, oldest first: a record and a row of each array per track."""

    def __init__(self) -> None:
        self.records: list[Track] = []
        self._states = np.zeros((5, _FIRST_ROWS, 4))
        self._appearance: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.records)

    @property
    def states(self) -> NDArray[np.float64]:
        """`(5, T, 4)` view, see `edge_agent.track.kalman`; all of the time of the last frame."""
        return self._states[:, : len(self.records)]

    @property
    def appearance(self) -> NDArray[np.float32] | None:
        """`(T, D)` view, unit rows where `has_appearance`; None before the first embedding."""
        return None if self._appearance is None else self._appearance[: len(self.records)]

    def mark_seen(self, rows: Sequence[int], time: float, confirm_hits: int) -> None:
        """Count a detection at `time` for the tracks at `rows`."""
        for row in rows:
            track = self.records[row]
            track.last_seen = time
            track.hits += 1
            if track.hits >= confirm_hits:
                track.confirmed = True

    def set_appearance(self, rows: Sequence[int], vectors: NDArray[np.float32]) -> None:
        """Replace the appearance of N tracks by `vectors` `(N, D)`."""
        if not rows:
            return
        if self._appearance is None:
            self._appearance = np.zeros((self._states.shape[1], vectors.shape[1]), np.float32)
        self._appearance[slice(len(rows)) if rows == list(range(len(rows))) else rows] = vectors
        for row in rows:
            self.records[row].has_appearance = True

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all tracks but those at `rows`."""
        self._states[:, : len(rows)] = self._states[:, rows]
        if self._appearance is not None:
            self._appearance[: len(rows)] = self._appearance[rows]
        self.records = [self.records[row] for row in rows]

    def add(self, first_id: int, time: float, boxes: NDArray[np.float32], *, confirmed: bool) -> list[int]:
        """Start a track for each of `boxes` `(N, 4)` xyxy; return their rows."""
        rows = range(len(self.records), len(self.records) + len(boxes))
        while rows.stop > self._states.shape[1]:
            self._double()
        self._states[:, rows.start : rows.stop] = initial_states(boxes)
        self.records += [Track(first_id + n, time, confirmed) for n in range(len(boxes))]
        return list(rows)

    def _double(self) -> None:
        self._states = np.concatenate([self._states, np.zeros_like(self._states)], axis=1)
        if self._appearance is not None:
            self._appearance = np.concatenate([self._appearance, np.zeros_like(self._appearance)])


def mixed(before: Vectors, vectors: Vectors, known: Sequence[bool]) -> Vectors:
    """Update the appearance `before` of N tracks by one embedding each, both `(N, D)` unit rows.

    Where `known` is false, `before` holds no appearance, and the embedding becomes the appearance.
    """
    if not any(known):
        return vectors
    result: Vectors = _APPEARANCE_MEMORY * before
    result += (1 - _APPEARANCE_MEMORY) * vectors
    result /= np.maximum(np.sqrt(np.einsum("nd,nd->n", result, result)), _LEAST_NORM)[:, None]
    if not all(known):
        new = [row for row, there in enumerate(known) if not there]
        result[new] = vectors[new]
    return result
