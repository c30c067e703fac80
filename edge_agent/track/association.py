"""Assignment of the detections of a frame to the tracks of its camera.

Two rounds as in ByteTrack (Zhang et al., "ByteTrack: Multi-Object Tracking by Associating Every Detection
Box", ECCV 2022): detections of high score first, then those of low score for the tracks that are left.
Appearance is a gate and a term of the cost: a detection that looks like another person is not assigned to a
track, whatever its overlap.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.structures import Detections, Embedded, ScoreLevels, iou_matrix, overlapping
from edge_agent.track import kalman
from edge_agent.track.tracks import KNOWN, LAST_SEEN, Similarity, TrackTable, mixed

if TYPE_CHECKING:
    from edge_agent.core.config import TrackerSettings

Array = TypeVar("Array", bound=NDArray[Any])

_LOW_ROUND_COST = 0.5
"""Limit of the second round, as in ByteTrack."""
_FAST_S = 0.1
"""Interval between frames up to which the overlap of a box with the expected one decides alone."""
_BORNE = 0.1
"""Error of an expected position that plain overlap bears, in heights."""
_ONE = np.array(1.0)
_ZERO_32, _ONE_32 = np.array(0.0, np.float32), np.array(1.0, np.float32)
"""Arrays, since NumPy is faster with them than with numbers; `_ONE` makes costs float64."""

_NO_PAIR = 1e6
"""Cost of what is no pair, far above that of any pair."""

Places = NDArray[np.intp]
Pairs = tuple[list[int], list[int]]
"""Rows of the tracks and rows of the detections of one frame that belong together."""


def associate(cost: NDArray[np.float64], limit: float) -> Pairs:
    """Return rows and columns of the cheapest assignment in which no pair costs more than `limit`.

    `cost` is `(N, M)`, infinite where a pair is forbidden.
    """
    allowed = cost <= limit
    rows, columns = allowed.nonzero()
    rows, columns = _cheapest(rows, columns, cost[allowed])
    return rows.tolist(), columns.tolist()


def _cheapest(rows: Places, columns: Places, cost: NDArray[np.float64]) -> tuple[Places, Places]:
    """Return the cheapest assignment with as many as possible of these pairs `(P,)`, in order of the rows."""
    if len(set(rows.tolist())) == len(set(columns.tolist())) == len(rows):
        return rows, columns
    shared = (np.bincount(rows)[rows] > 1) | (np.bincount(columns)[columns] > 1)
    from scipy.optimize import linear_sum_assignment  # the daemon loads it during the first frames

    (own, row), (others, column) = _distinct(rows[shared]), _distinct(columns[shared])
    # A large finite cost keeps the problem feasible; pairs that are none are removed afterwards.
    every = np.full((len(own), len(others)), _NO_PAIR)
    every[row, column] = cost[shared]
    best = linear_sum_assignment(every)
    near = every[best] < _NO_PAIR
    rows = np.concatenate([rows[~shared], own[best[0][near]]])
    columns = np.concatenate([columns[~shared], others[best[1][near]]])
    order = rows.argsort()
    return rows[order], columns[order]


def _distinct(places: Places) -> tuple[Places, Places]:
    """Return the distinct ones, ascending, and where each is among these; faster than `np.unique`."""
    there = np.zeros(places.max() + 1, np.bool_)
    there[places] = True
    return there.nonzero()[0], (there.cumsum() - 1)[places]


@dataclass(slots=True)
class CameraFrame:
    """The tracks of a camera and the detections of its next frame."""

    tracks: TrackTable
    time: float
    """Of the frame, Unix seconds."""
    last: float
    """Time of the last frame."""
    ended: tuple[int, ...]
    """Tracks that ended before this frame."""
    levels: ScoreLevels
    detections: Detections
    embedded: Embedded
    confirmed: list[bool] = field(default_factory=list)
    """Which tracks are reported, once they are corrected."""
    lost: bool = False
    """Whether any of them was not seen for too long, likewise."""


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
        self._counts = counts = [len(frame.tracks) for frame in frames]
        found = [len(frame.detections) for frame in frames]
        self._track_rows, self._found_rows = _spans(counts), _spans(found)
        self._states = _join([frame.tracks.states for frame in frames], axis=1)
        self._facts = _join([frame.tracks.facts for frame in frames], axis=1)
        dt = [frame.time - frame.last for frame in frames]
        steps = dt[0] if len(dt) == 1 else np.repeat(dt, counts)[:, None]
        self._expected = kalman.predict(self._states, steps)
        self._reach = _reach(self._states, self._expected, steps) if max(dt) > _FAST_S else None
        self._live = self._facts[LAST_SEEN] >= _repeated([frame.last for frame in frames], counts)
        self._boxes = _join([frame.detections.boxes for frame in frames])
        self._vectors = _join([frame.embedded.vectors for frame in frames])
        width = self._vectors.shape[1]
        self._appearance = _join([frame.tracks.appearance(width) for frame in frames])
        # A failed engine gives vectors of width 0.
        self._present = _join([frame.embedded.present for frame in frames])
        if not width:
            self._present = np.zeros_like(self._present)
        scores = _join([frame.detections.scores for frame in frames])
        self._high = scores >= _repeated([frame.levels.high for frame in frames], found)
        self._cameras = None
        """Of tracks and detections, where there are several."""
        if len(frames) > 1:
            self._cameras = tuple(np.repeat(range(len(frames)), n) for n in (counts, found))

    def match(self) -> list[Pairs]:
        """Return the pairs of each frame."""
        rows, found, cost = self._costs()
        near = (cost <= self._settings.max_cost).nonzero()[0]  # `take` is faster than a mask
        rows, found = _cheapest(rows.take(near), found.take(near), cost.take(near))
        every, begin, matched = (rows.tolist(), found.tolist()), 0, []
        for starts in zip(self._track_rows, self._found_rows, strict=True):
            end = bisect_left(every[0], starts[0].stop)
            mine, theirs = (
                [row - at.start for row in part[begin:end]] for part, at in zip(every, starts, strict=True)
            )
            matched.append((mine, theirs))
            begin = end
        if np.count_nonzero(self._high) == len(self._high):
            return matched
        return [self._second_round(at, pairs) for at, pairs in enumerate(matched)]

    def _costs(self) -> tuple[Places, Places, NDArray[np.float64]]:
        """Return tracks and detections that overlap, `(P,)`, and the cost of each pair in the first round.

        It is 1 - IoU, blended with the appearance. A slow camera sees people who moved by more than their
        width: there all boxes are wider by the track's `_reach` on all sides.
        """
        together = self._high
        if self._cameras is not None:
            together = (self._cameras[0][:, None] == self._cameras[1]) & together
        rows, found, overlap = overlapping(self._expected, self._boxes, together, self._reach)
        cost: NDArray[np.float64] = np.subtract(_ONE, overlap)
        if self._similarity.ready:
            self._blend(rows, found, cost)
        return rows, found, cost

    def _blend(self, rows: Places, found: Places, cost: NDArray[np.float64]) -> None:
        """Apply gate and term of the appearance, where track and detection have one."""
        settings = self._settings
        both = ((self._facts[KNOWN] > 0).take(rows) & self._present.take(found)).nonzero()[0]
        if not len(both):
            return
        rows, found = rows.take(both), found.take(both)
        cosines = np.einsum(
            "nd,nd->n", self._appearance.take(rows, axis=0), self._vectors.take(found, axis=0)
        )
        distance = self._similarity.distance(cosines)
        weight: float | NDArray[np.float32] = settings.appearance_weight
        if self._reach is not None:
            weight = _weights(settings.appearance_weight, self._expected, self._reach)[rows, 0]
        term = np.minimum(np.maximum(distance, _ZERO_32), _ONE_32)
        blended = (1 - weight) * cost.take(both) + term * weight
        gates = np.where(self._live, settings.live_gate, settings.lost_gate).take(rows)
        blended[distance > gates] = np.inf
        cost[both] = blended

    def _second_round(self, at: int, pairs: Pairs) -> Pairs:
        """Add pairs of low-scored boxes, often parts of a hidden person, with tracks of the last frame."""
        frame, (rows, found) = self._frames[at], pairs
        scores = frame.detections.scores
        low = np.flatnonzero((scores >= frame.levels.low) & (scores < frame.levels.high)).tolist()
        rest = self._live[self._track_rows[at]] & frame.tracks.confirmed(self._settings.confirm_hits)
        rest[rows] = False
        free = np.flatnonzero(rest).tolist()
        if not low or not free:
            return pairs
        expected = self._expected[self._track_rows[at]][free]
        cost = 1.0 - iou_matrix(expected, frame.detections.boxes[low])
        late, part = associate(cost.astype(np.float64), _LOW_ROUND_COST)
        return rows + [free[row] for row in late], found + [low[column] for column in part]

    def correct(self, matched: Sequence[Pairs]) -> None:
        """Correct states, facts and appearance of the tracks by the detections of their pairs."""
        rows = [
            row + at.start for (mine, _), at in zip(matched, self._track_rows, strict=True) for row in mine
        ]
        found = [
            row + at.start for (_, mine), at in zip(matched, self._found_rows, strict=True) for row in mine
        ]
        kalman.correct(self._states, rows, _take(self._boxes, found))
        seen, shows = np.array(rows, np.intp), np.array(found, np.intp)
        last_seen, hits, known = self._facts
        last_seen[seen] = _repeated(
            [frame.time for frame in self._frames], [len(mine) for mine, _ in matched]
        )
        hits[seen] += 1
        shown = self._present.take(shows).nonzero()[0]
        if len(shown):
            there, now = seen.take(shown), self._vectors.take(shows.take(shown), axis=0)
            self._appearance[there] = mixed(self._appearance.take(there, axis=0), now, known.take(there))
            known[there] = 1
        confirmed = hits >= self._settings.confirm_hits
        times = _repeated([frame.time for frame in self._frames], self._counts)
        lost = times - last_seen > np.where(confirmed, self._settings.lost_s, 0.0)
        any_lost, every = bool(np.count_nonzero(lost)), confirmed.tolist()
        for frame, at in zip(self._frames, self._track_rows, strict=True):
            frame.confirmed = every[at]
            frame.lost = any_lost and bool(np.count_nonzero(lost[at]))
            if len(self._frames) > 1:  # else they were changed in place
                frame.tracks.states[:] = self._states[:, at]
                frame.tracks.facts[:] = self._facts[:, at]
                frame.tracks.appearance(self._appearance.shape[1])[:] = self._appearance[at]


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


def _weights(least: float, expected: NDArray[np.float32], reach: NDArray[np.float32]) -> NDArray[np.float32]:
    """`(T, 1)` weights of the appearance in the cost: the less the position says, the more."""
    across = 2 * reach[:, :1]
    unsure = across / np.maximum(expected[:, 2:3] - expected[:, :1] + across, _ONE_32)
    return np.asarray(least + (1 - least) * unsure, np.float32)


def _repeated(values: list[float], counts: list[int]) -> float | NDArray[np.float64]:
    """Each value as often as its count; one for all where they are equal."""
    first = values[0]
    return np.float64(first) if values.count(first) == len(values) else np.repeat(values, counts)


def _spans(counts: Sequence[int]) -> list[slice]:
    """Positions of consecutive parts of these lengths."""
    spans, end = [], 0
    for count in counts:
        spans.append(slice(end, end := end + count))
    return spans


def _take(array: NDArray[np.float32], rows: list[int]) -> NDArray[np.float32]:
    """Return `array[rows]`; not a copy where `rows` are all in order."""
    return array if rows == list(range(len(array))) else array.take(rows, axis=0)


def _join(parts: list[Array], axis: int = 0) -> Array:
    """Concatenate arrays; a single one is not copied."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=axis)  # type: ignore[return-value]
