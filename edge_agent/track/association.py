"""Assignment of the detections of a frame to the tracks of its camera.

Two rounds as in ByteTrack (Zhang et al., "ByteTrack: Multi-Object Tracking by Associating Every Detection
Box", ECCV 2022): detections of high score first, then those of low score for the tracks that are left.
Appearance is a gate and a term of the cost: a detection that looks like another person is not assigned to a
track, whatever its overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, compress
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.structures import Detections, Embedded, ScoreLevels, iou_matrix
from edge_agent.track import kalman
from edge_agent.track.tracks import Similarity, TrackTable, mixed

if TYPE_CHECKING:
    from edge_agent.core.config import TrackerSettings

Array = TypeVar("Array", bound=NDArray[Any])

_LOW_ROUND_COST = 0.5
"""Limit of the second round, as in ByteTrack."""
_FAST_S = 0.1
"""Interval between frames up to which the overlap of a box with the expected one decides alone."""
_BORNE = 0.1
"""Error of an expected position that plain overlap bears, in heights."""
_ONE, _ZERO_32, _ONE_32 = np.array(1.0), np.array(0.0, np.float32), np.array(1.0, np.float32)
"""Arrays, since NumPy is faster with them than with numbers; `_ONE` makes costs float64."""

Pairs = tuple[list[int], list[int]]
"""Rows of the tracks and rows of the detections of one frame that belong together."""


def associate(cost: NDArray[np.float64], limit: float) -> Pairs:
    """Return rows and columns of the cheapest assignment in which no pair costs more than `limit`.

    `cost` is `(N, M)`, infinite where a pair is forbidden.
    """
    allowed = cost <= limit
    if allowed.size == 1:
        return ([0], [0]) if allowed.item() else ([], [])
    rows, columns = (indices.tolist() for indices in allowed.nonzero())
    if len(set(rows)) == len(rows) == len(set(columns)):
        return rows, columns  # no conflict
    from scipy.optimize import linear_sum_assignment  # the daemon loads it during the first frames

    # A large finite cost keeps the problem feasible; pairs above the limit are removed afterwards.
    best_rows, best_columns = linear_sum_assignment(np.where(allowed, cost, 1e6))
    near = allowed[best_rows, best_columns]
    return best_rows[near].tolist(), best_columns[near].tolist()


@dataclass(slots=True)
class CameraFrame:
    """The tracks of a camera and the detections of its next frame."""

    tracks: TrackTable
    dt: float
    """Seconds since the last frame."""
    ended: tuple[int, ...]
    """Tracks that ended before this frame."""
    live: list[bool]
    """For each track, whether it was seen in the last frame."""
    high: list[bool]
    """For each detection, whether it takes part in the first round."""
    levels: ScoreLevels
    detections: Detections
    embedded: Embedded


class JointUpdate:
    """Association and correction of the tracks of several cameras, in joined arrays.

    The result is the same as camera by camera; NumPy's overhead per call is paid once. `frames` are at least
    one, of different cameras.
    """

    def __init__(
        self, frames: Sequence[CameraFrame], settings: TrackerSettings, similarity: Similarity
    ) -> None:
        self._frames = frames
        self._settings = settings
        self._similarity = similarity
        counts = [len(frame.tracks) for frame in frames]
        self._track_rows = _spans(counts)
        self._found_rows = _spans([len(frame.detections) for frame in frames])
        self._states = _join([frame.tracks.states for frame in frames], axis=1)
        dt = [frame.dt for frame in frames]
        steps = dt[0] if len(dt) == 1 else np.repeat(dt, counts)[:, None]
        self._expected = kalman.predict(self._states, steps)
        self._reach = _reach(self._states, self._expected, steps) if max(dt) > _FAST_S else None
        self._boxes = _join([frame.detections.boxes for frame in frames])
        self._vectors = _join([frame.embedded.vectors for frame in frames])
        self._present = [there for frame in frames for there in frame.embedded.present.tolist()]
        width = self._vectors.shape[1]
        # A failed engine gives vectors of width 0.
        self._known = [track.has_appearance and width > 0 for of in frames for track in of.tracks.records]
        self._appearance = _join([_appearance(frame.tracks, width) for frame in frames])

    def match(self) -> list[Pairs]:
        """Return the pairs of each frame."""
        if not len(self._expected) or not len(self._boxes):
            return [([], []) for _ in self._frames]
        cost = self._cost()
        matched = [
            associate(cost[rows, columns], self._settings.max_cost)
            for rows, columns in zip(self._track_rows, self._found_rows, strict=True)
        ]
        return [
            pairs if all(frame.high) else self._second_round(frame, self._expected[rows], pairs)
            for frame, rows, pairs in zip(self._frames, self._track_rows, matched, strict=True)
        ]

    def _cost(self) -> NDArray[np.float64]:
        """Cost of the first round for every pair: 1 - IoU, blended with the appearance."""
        if self._reach is None:
            overlap = iou_matrix(self._expected, self._boxes)
        else:
            overlap = _wide_overlap(self._expected, self._boxes, self._reach)
        cost: NDArray[np.float64] = np.subtract(_ONE, overlap)
        if self._similarity.ready:
            self._blend(cost)
        high = [high for frame in self._frames for high in frame.high]
        if not all(high):
            cost[:, [not one for one in high]] = np.inf
        return cost

    def _blend(self, cost: NDArray[np.float64]) -> None:
        """Apply gate and term of the appearance, where track and detection have one."""
        settings = self._settings
        weight: float | NDArray[np.float32] = settings.appearance_weight
        if self._reach is not None:
            weight = _weights(settings.appearance_weight, self._expected, self._reach)
        distance = self._similarity.distance(self._appearance @ self._vectors.T)
        gates = [
            settings.live_gate if live else settings.lost_gate
            for frame in self._frames
            for live in frame.live
        ]
        beyond = distance > np.array(gates)[:, None]
        term = np.minimum(np.maximum(distance, _ZERO_32), _ONE_32)
        term *= weight
        overlapping = cost < _ONE  # the others are above every limit already
        if not (all(self._known) and all(self._present)):
            both = np.array(self._known)[:, None] & self._present
            overlapping &= both
            beyond &= both
        np.copyto(cost, (1 - weight) * cost + term, where=overlapping)
        np.copyto(cost, np.inf, where=beyond)

    @staticmethod
    def _second_round(frame: CameraFrame, expected: NDArray[np.float32], pairs: Pairs) -> Pairs:
        """Add pairs of low-scored boxes, often parts of a hidden person, with tracks of the last frame."""
        rows, found = pairs
        scores = frame.detections.scores
        low = np.flatnonzero((scores >= frame.levels.low) & (scores < frame.levels.high)).tolist()
        taken = set(rows)
        rest = [
            row
            for row, (live, track) in enumerate(zip(frame.live, frame.tracks.records, strict=True))
            if live and track.confirmed and row not in taken
        ]
        if not low or not rest:
            return pairs
        cost = 1.0 - iou_matrix(expected[rest], frame.detections.boxes[low])
        late, part = associate(cost.astype(np.float64), _LOW_ROUND_COST)
        return rows + [rest[row] for row in late], found + [low[column] for column in part]

    def correct(self, matched: Sequence[Pairs]) -> None:
        """Correct states and appearance of the tracks by the detections of their pairs."""
        rows = [
            row + at.start for (mine, _), at in zip(matched, self._track_rows, strict=True) for row in mine
        ]
        found = [
            row + at.start for (_, mine), at in zip(matched, self._found_rows, strict=True) for row in mine
        ]
        kalman.correct(self._states, rows, _take(self._boxes, found))
        known = [self._known[row] for row in rows]
        vectors = mixed(_take(self._appearance, rows), _take(self._vectors, found), known)
        present = [self._present[row] for row in found]
        begin = 0
        for frame, at, (mine, _) in zip(self._frames, self._track_rows, matched, strict=True):
            if len(self._frames) > 1:  # else the states were changed in place
                frame.tracks.states[:] = self._states[:, at]
            end = begin + len(mine)
            there, part = present[begin:end], vectors[begin:end]
            frame.tracks.set_appearance(list(compress(mine, there)), part if all(there) else part[there])
            begin = end


def _reach(
    states: NDArray[np.float64], expected: NDArray[np.float32], steps: float | NDArray[np.float64]
) -> NDArray[np.float32]:
    """`(T, 2)` pixels: how far in x and y a person may be from the expected box, beyond `_BORNE` heights.

    It is the standard deviation of the way since the last frame: of a new track, whose velocity is not known
    yet, a person's height in a second. Of a lost track it is not that of the whole time, since the place of
    somebody who was hidden long ago says little.
    """
    deviation = steps * np.sqrt(states[kalman.VELOCITY_VARIANCE, :, :2])
    height = expected[:, 3:] - expected[:, 1:2]
    beyond = np.maximum(deviation - _BORNE * height, 0.0)
    reach: NDArray[np.float32] = np.where(np.greater(steps, _FAST_S), beyond, 0.0).astype(np.float32)
    return reach  # of each camera as if it were alone


def _wide_overlap(
    expected: NDArray[np.float32], boxes: NDArray[np.float32], reach: NDArray[np.float32]
) -> NDArray[np.float32]:
    """`(T, N)` intersection over union of boxes that are wider by the track's `reach` on all sides.

    A slow camera sees people who moved by more than their width; so boxes that are near count as overlapping.
    """
    more = 2 * reach[:, None]
    sides = np.minimum(expected[:, None, 2:], boxes[None, :, 2:])
    sides -= np.maximum(expected[:, None, :2], boxes[None, :, :2])
    sides += more
    overlap: NDArray[np.float32] = np.prod(np.maximum(sides, _ZERO_32), axis=2)
    own = np.prod(expected[:, None, 2:] - expected[:, None, :2] + more, axis=2)
    theirs = np.prod(boxes[None, :, 2:] - boxes[None, :, :2] + more, axis=2)
    overlap /= np.maximum(own + theirs - overlap, _ONE_32)
    return overlap


def _weights(least: float, expected: NDArray[np.float32], reach: NDArray[np.float32]) -> NDArray[np.float32]:
    """`(T, 1)` weights of the appearance in the cost: the less the position says, the more."""
    across = 2 * reach[:, :1]
    unsure = across / np.maximum(expected[:, 2:3] - expected[:, :1] + across, _ONE_32)
    return np.asarray(least + (1 - least) * unsure, np.float32)


def _appearance(tracks: TrackTable, width: int) -> NDArray[np.float32]:
    appearance = tracks.appearance
    if appearance is not None and width:
        return appearance
    return np.zeros((len(tracks), width), np.float32)


def _spans(counts: Sequence[int]) -> list[slice]:
    """Positions of consecutive parts of these lengths."""
    ends = list(accumulate(counts))
    return [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]


def _take(array: NDArray[np.float32], rows: list[int]) -> NDArray[np.float32]:
    """Return `array[rows]`; not a copy where `rows` are all in order."""
    return array if rows == list(range(len(array))) else array.take(rows, axis=0)


def _join(parts: list[Array], axis: int = 0) -> Array:
    """Concatenate arrays; a single one is not copied."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=axis)  # type: ignore[return-value]
