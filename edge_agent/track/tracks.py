"""Storage of the tracks of one camera."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_agent.track.kalman import initial_states

__all__ = ["Track", "TrackTable"]

_FIRST_ROWS = 16
"""Rows allocated at first; doubled when all are in use."""


@dataclass(slots=True)
class Track:
    """One track; its Kalman state and its appearance are rows of the table's arrays.

    Attributes:
        id: number within the camera.
        last_seen: time of the last detection, Unix seconds.
        confirmed: whether the track is reported.
        hits: detections so far.
        has_appearance: whether an embedding of it was received.
    """

    id: int
    last_seen: float
    confirmed: bool
    hits: int = 1
    has_appearance: bool = False


class TrackTable:
    """The tracks of one camera, oldest first: a record and a row of each array per track.

    Attributes:
        records: T tracks.
    """

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
        self._appearance[rows] = vectors
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
