"""From boxes of single frames to tracks of one camera.

ByteTrack's two rounds (Zhang et al., "ByteTrack: Multi-Object Tracking by Associating Every Detection
Box", ECCV 2022: high-scored boxes first, then the low-scored ones for what is left) on a Kalman filter
whose clock is the frame's own time, so that nothing depends on the frame rate. Appearance is a gate and a
term of the cost: a detection that looks like somebody else is not given to a track, however well it
overlaps. What "looks like" means is learnt from the scene: the typical similarity of one track with itself
and of two people who are visible together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, starmap
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_agent.structures import (
    LONE_TRACKS,
    CropBatch,
    Detections,
    Embedded,
    TrackObservation,
    TrackUpdate,
    iou_matrix,
)

__all__ = ["Similarity", "Tracker", "UpstreamTracks", "associate", "update_together"]

Vector = NDArray[np.float32]
Boxes = NDArray[np.float32]

# Motion model, in heights of the person and seconds. A person of 1.75 m who walks 1.4 m/s moves 0.8
# heights a second; starting, stopping and turning take about 1 m/s2, 0.6 heights.
_ACCELERATION = 0.8
_START_SPEED = 1.0
_MEASURED = 0.05
"""Standard deviation of a detector's box edge, in heights (ByteTrack uses 1/20)."""

_LOW_ROUND_COST = 0.5
"""Limit of the second round, as in ByteTrack."""

_CLEAR_OVERLAP = 0.05
"""Largest overlap with anybody else at which a crop surely shows one person."""

_LEARN_EVERY = 8
"""Frames between two that the similarities of a settled scene are learnt from: they change with the light."""

_LOOKS_MEMORY = 0.9
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
        """Whether both means rest on as many samples as they ever will."""
        return min(self.genuine_count, self.impostor_count) >= self.memory

    @property
    def ready(self) -> bool:
        """Whether both means rest on enough samples and tell people apart at all."""
        enough = min(self.genuine_count, self.impostor_count) >= self.needed
        return enough and self.genuine - self.impostor > 0.02

    def learn_genuine(self, cosines: Vector) -> None:
        """Take in similarities `(N,)` of tracks with themselves."""
        self.genuine_count = min(self.genuine_count + len(cosines), self.memory)
        self.genuine += float((cosines - self.genuine).sum()) / self.genuine_count

    def learn_impostor(self, cosines: Vector) -> None:
        """Take in similarities `(N,)` of pairs of people seen in one frame."""
        self.impostor_count = min(self.impostor_count + len(cosines), self.memory)
        self.impostor += float((cosines - self.impostor).sum()) / self.impostor_count

    def distance(self, cosine: Vector) -> Vector:
        """Scale cosines so that 0 is a typical genuine and 1 a typical impostor; NaN stays NaN."""
        scaled: Vector = ((self.genuine - cosine) / (self.genuine - self.impostor)).astype(np.float32)
        return scaled


_GROWTH = _ACCELERATION**2 * np.array([1.0, 1.0, 0.05, 0.05])
"""Of an axis' variance, in heights and seconds: the size changes far more slowly than the place."""

_PLACE, _SPEED, _VAR, _COV, _SPEED_VAR = range(5)
"""Rows of a track's state: each axis (cx, cy, w, h) has a place, a speed per second, and the covariance of
the two. The axes never mix: neither motion nor measurement couples them."""


_FIRST_TRACKS = 16
"""Room for so many tracks to begin with; it doubles when it is full."""


_CORNERS = np.array([[0.5, 0, -1, 0], [0, 0.5, 0, -1], [0.5, 0, 1, 0], [0, 0.5, 0, 1]])
"""From corners x1, y1, x2, y2 to cx, cy, w, h."""


class _Tracks:
    """The tracks of one camera, oldest first, as arrays of which the first `count` rows are in use.

    Attributes:
        count: T.
        states: `(5, T, 4)` float64, see `_PLACE`; all of the same time.
        ids: `(T,)` int64, numbers within the camera.
        last_seen: `(T,)` float64, Unix seconds.
        hits: `(T,)` int64, detections so far.
        confirmed: `(T,)` bool.
        looks: `(T, D)` float32, running mean of the embeddings; None before the first embedding of all.
        known: `(T,)` bool, who has looks.
    """

    def __init__(self) -> None:
        self.count = 0
        self._states = np.zeros((5, _FIRST_TRACKS, 4))
        self._ids = np.zeros(_FIRST_TRACKS, np.int64)
        self._last_seen = np.zeros(_FIRST_TRACKS)
        self._hits = np.zeros(_FIRST_TRACKS, np.int64)
        self._confirmed = np.zeros(_FIRST_TRACKS, np.bool_)
        self._known = np.zeros(_FIRST_TRACKS, np.bool_)
        self._looks: Vector | None = None

    @property
    def states(self) -> NDArray[np.float64]:
        return self._states[:, : self.count]

    @property
    def ids(self) -> NDArray[np.int64]:
        return self._ids[: self.count]

    @property
    def last_seen(self) -> NDArray[np.float64]:
        return self._last_seen[: self.count]

    @property
    def hits(self) -> NDArray[np.int64]:
        return self._hits[: self.count]

    @property
    def confirmed(self) -> NDArray[np.bool_]:
        return self._confirmed[: self.count]

    @property
    def known(self) -> NDArray[np.bool_]:
        return self._known[: self.count]

    @property
    def looks(self) -> Vector | None:
        return None if self._looks is None else self._looks[: self.count]

    def mix(self, rows: NDArray[np.intp], vectors: Vector) -> None:
        """Take in the first embedding, or what `_mixed` made of later ones, `(N, D)`, of each of N tracks."""
        if not len(rows):
            return
        if self._looks is None:
            self._looks = np.zeros((len(self._ids), vectors.shape[1]), np.float32)
        self._looks[rows] = vectors
        self._known[rows] = True

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Drop the others."""
        rows = np.flatnonzero(kept)
        left = len(rows)
        self._states[:, :left] = self._states[:, rows]
        for column in (self._ids, self._last_seen, self._hits, self._confirmed, self._known):
            column[:left] = column[rows]
        if self._looks is not None:
            self._looks[:left] = self._looks[rows]
        self.count = left

    def add(self, first_id: int, time: float, boxes: Boxes, *, confirmed: bool) -> NDArray[np.intp]:
        """Start a track for each of `(N, 4)` boxes xyxy; their rows."""
        end = self.count + len(boxes)
        while end > len(self._ids):
            self._double()
        rows = np.arange(self.count, end)
        spread = np.maximum(boxes[:, 3] - boxes[:, 1], 1.0)[:, None].astype(np.float64)
        self._states[:, rows] = 0.0
        self._states[_PLACE, rows] = _measurements(boxes)
        self._states[_VAR, rows] = (_MEASURED * spread) ** 2
        self._states[_SPEED_VAR, rows] = (np.array([_START_SPEED, _START_SPEED, 0.1, 0.1]) * spread) ** 2
        self._ids[rows] = first_id + np.arange(len(boxes))
        self._last_seen[rows] = time
        self._hits[rows] = 1
        self._confirmed[rows] = confirmed
        self._known[rows] = False
        self.count = end
        return rows

    def _double(self) -> None:
        self._states = np.concatenate([self._states, np.zeros_like(self._states)], axis=1)
        self._ids, self._hits = np.tile(self._ids, 2), np.tile(self._hits, 2)
        self._last_seen = np.tile(self._last_seen, 2)
        self._confirmed, self._known = np.tile(self._confirmed, 2), np.tile(self._known, 2)
        if self._looks is not None:
            self._looks = np.concatenate([self._looks, np.zeros_like(self._looks)])


def _predict(states: NDArray[np.float64], dt: NDArray[np.float64]) -> Boxes:
    """Move states `(5, T, 4)` by `dt` `(T, 1)` seconds under white-noise acceleration, in place.

    Returns:
        `(T, 4)` xyxy, where they are expected.
    """
    place, speed, variance, covariance, speed_variance = states
    place += dt * speed
    noise = _GROWTH * np.maximum(place[:, 3:], 1.0) ** 2
    square, more = dt * dt, dt * speed_variance
    variance += dt * (2 * covariance + more) + square * square / 4 * noise
    covariance += more + square * dt / 2 * noise
    speed_variance += square * noise
    middle, half = place[:, :2], np.maximum(place[:, 2:], 1.0) / 2
    boxes = np.empty((len(place), 4), np.float32)
    np.subtract(middle, half, out=boxes[:, :2], casting="same_kind")
    np.add(middle, half, out=boxes[:, 2:], casting="same_kind")
    return boxes


def _correct(states: NDArray[np.float64], rows: NDArray[np.intp], boxes: Boxes) -> None:
    """Take in a measured box, `(N, 4)` xyxy, of N of the states `(5, T, 4)`."""
    found = states[:, rows]
    measured = _measurements(boxes)
    noise = (_MEASURED * np.maximum(measured[:, 3:], 1.0)) ** 2
    gains = found[_VAR : _COV + 1] / (found[_VAR] + noise)
    found[: _SPEED + 1] += gains * (measured - found[_PLACE])
    found[_SPEED_VAR] -= gains[1] * found[_COV]
    found[_VAR : _COV + 1] *= 1.0 - gains[0]
    states[:, rows] = found


def _mixed(before: Vector, known: NDArray[np.bool_], vectors: Vector) -> Vector:
    """What N tracks look like with one more embedding: `(N, D)` and who had one before, `(N,)`."""
    mixed: Vector = _LOOKS_MEMORY * before + (1 - _LOOKS_MEMORY) * vectors
    mixed /= np.maximum(np.sqrt(np.einsum("nd,nd->n", mixed, mixed)), 1e-6)[:, None]
    if not known.all():
        mixed[~known] = vectors[~known]
    return mixed


def _measurements(boxes: Boxes) -> NDArray[np.float64]:
    """`(N, 4)` xyxy -> `(N, 4)` float64 cx, cy, w, h."""
    found: NDArray[np.float64] = boxes @ _CORNERS
    return found


_NONE = np.zeros(0, np.intp)


@lru_cache(maxsize=64)
def _upper(count: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Every pair of `count` things once."""
    return np.triu_indices(count, k=1)


def associate(cost: NDArray[np.float64], limit: float) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of the cheapest assignment, no pair dearer than `limit`.

    Args:
        cost: `(N, M)`; infinite where a pair is forbidden.
        limit: largest cost of a pair.
    """
    if cost.size == 0:
        return _NONE, _NONE
    from scipy.optimize import linear_sum_assignment  # loaded beside the first frames, by the daemon

    # A large finite price keeps the solver feasible and lets it leave dear pairs apart.
    rows, columns = linear_sum_assignment(np.where(cost <= limit, cost, 1e6))
    near = cost[rows, columns] <= limit
    return rows[near], columns[near]


def _alone(boxes: Boxes) -> NDArray[np.bool_]:
    """`(N,)`: whom nobody overlaps by `_CLEAR_OVERLAP` or more."""
    if len(boxes) == 1:
        return np.ones(1, np.bool_)
    overlap = iou_matrix(boxes, boxes)
    np.fill_diagonal(overlap, 0.0)
    alone: NDArray[np.bool_] = overlap.max(axis=1) < _CLEAR_OVERLAP
    return alone


class Tracker:
    """Tracks of one camera. Not for use from two threads.

    Args:
        camera: id of the source; every camera has a tracker of its own, with its own numbers.
        high: detections of at least this score take part in the first round.
        low: below this score a detection is ignored.
        new_track: an unmatched detection of at least this score starts a track.
        max_cost: limit of the first round, 1 - IoU plus the appearance term.
        lost_s: seconds after which a track that was not seen ends.
        confirm_hits: detections after which a track is reported.
        live_gate: largest appearance distance (see `Similarity`) for a track seen in the last frame.
        lost_gate: the same for a track that was lost for a while.
        appearance_weight: share of appearance in the cost, 0 for overlap alone.
        similarity: what is known of similarities; one for all cameras learns sooner, since it is the network
            more than the camera that sets their scale.
    """

    def __init__(
        self,
        camera: str,
        *,
        high: float,
        low: float,
        new_track: float,
        max_cost: float = 0.9,
        lost_s: float = 3.0,
        confirm_hits: int = 2,
        live_gate: float = 0.8,
        lost_gate: float = 0.6,
        appearance_weight: float = 0.3,
        similarity: Similarity | None = None,
    ) -> None:
        self.camera = camera
        self.similarity = similarity if similarity is not None else Similarity()
        self._high, self._low, self._new = high, low, new_track
        self._max_cost = max_cost
        self._lost_s = lost_s
        self._confirm_hits = confirm_hits
        self._live_gate, self._lost_gate = live_gate, lost_gate
        self._weight = appearance_weight
        self.rules = (id(self.similarity), live_gate, lost_gate, appearance_weight)
        """What trackers that are updated together have in common."""
        self._tracks = _Tracks()
        self._next_id = 1
        self._last_time: float | None = None

    def __len__(self) -> int:
        return self._tracks.count

    def update(
        self, frame: int, time: float, size: tuple[int, int], detections: Detections, embedded: Embedded
    ) -> TrackUpdate:
        """Take in one frame.

        Args:
            frame: number of the frame.
            time: Unix seconds; must not go back (if it does, the time of the last frame is used).
            size: `(width, height)` in pixels.
            detections: N boxes with scores.
            embedded: the N embeddings, where present.

        Returns:
            Confirmed tracks with a detection in this frame, and the tracks that ended.
        """
        return update_together([(self, frame, time, size, detections, embedded)])[0]

    def finish(self, frame: int, time: float, size: tuple[int, int]) -> TrackUpdate:
        """End every track, at the end of the source."""
        ended = tuple(self._tracks.ids[self._tracks.confirmed].tolist())
        self._tracks = _Tracks()
        return TrackUpdate(self.camera, frame, time, size, (), ended)

    def _learn(
        self,
        detections: Detections,
        embedded: Embedded,
        rows: NDArray[np.intp],
        found: NDArray[np.intp],
    ) -> None:
        """Learn typical similarities from people whom nobody overlaps."""
        if not len(rows):
            return
        lone = (embedded.present & _alone(detections.boxes))[found]
        rows, vectors = rows[lone], embedded.vectors[found[lone]]
        old = self._tracks.known[rows] & self._tracks.confirmed[rows]
        if self._tracks.looks is not None and old.any():
            looks = self._tracks.looks[rows[old]]
            self.similarity.learn_genuine(np.einsum("nd,nd->n", looks, vectors[old]))
        if len(rows) > 1:
            self.similarity.learn_impostor((vectors @ vectors.T)[_upper(len(rows))])

    def _retire(self, time: float, seen: int) -> tuple[int, ...]:
        """Drop tracks that were not seen for too long; an unconfirmed one after its first miss."""
        tracks = self._tracks
        if seen == tracks.count:
            return ()
        unseen = time - tracks.last_seen
        gone = (unseen > self._lost_s) | ((unseen > 0) & ~tracks.confirmed)
        if not gone.any():
            return ()
        ended = tuple(tracks.ids[gone & tracks.confirmed].tolist())
        tracks.keep(~gone)
        return ended

    def _start(
        self, time: float, detections: Detections, embedded: Embedded, found: NDArray[np.intp]
    ) -> None:
        found = found[detections.scores[found] >= self._new]
        if not len(found):
            return
        rows = self._tracks.add(
            self._next_id, time, detections.boxes[found], confirmed=self._confirm_hits <= 1
        )
        self._next_id += len(found)
        shown = embedded.present[found]
        self._tracks.mix(rows[shown], embedded.vectors[found[shown]])

    def _observations(
        self,
        frame: int,
        time: float,
        detections: Detections,
        embedded: Embedded,
        rows: NDArray[np.intp],
        found: NDArray[np.intp],
    ) -> tuple[TrackObservation, ...]:
        sure = self._tracks.confirmed[rows]
        found = found[sure]
        return tuple(
            TrackObservation(
                self.camera, track, frame, time, detections.boxes[at], score,
                embedded.vectors[at] if shown else None, quality,
            )
            for track, at, score, shown, quality in zip(
                self._tracks.ids[rows[sure]].tolist(),
                found.tolist(),
                detections.scores[found].tolist(),
                embedded.present[found].tolist(),
                embedded.quality[found].tolist(),
                strict=True,
            )
        )  # fmt: skip


class _Seen(NamedTuple):
    """A frame for its camera's tracker; see `Tracker.update`."""

    tracker: Tracker
    frame: int
    time: float
    size: tuple[int, int]
    detections: Detections
    embedded: Embedded


TOGETHER = 128
"""Tracks that are worked on at once: beyond, pairs of different cameras cost more than is saved."""


def update_together(
    frames: Iterable[tuple[Tracker, int, float, tuple[int, int], Detections, Embedded]],
) -> list[TrackUpdate]:
    """Take in frames of different cameras, each by its tracker: as one by one, in fewer steps.

    Args:
        frames: for each a tracker, and what its `update` takes.
    """
    done: list[TrackUpdate] = []
    group: list[_Seen] = []
    room = TOGETHER
    for one in starmap(_Seen, frames):
        wanted = max(len(one.tracker), len(one.detections))
        if group and (wanted > room or one.tracker.rules != group[0].tracker.rules):
            done += _update_group(group)
            group, room = [], TOGETHER
        group.append(one)
        room -= wanted
    return done + (_update_group(group) if group else [])


def _update_group(frames: Sequence[_Seen]) -> list[TrackUpdate]:
    table = _Table(frames)
    matched = table.first_round()
    if not table.high.all():
        matched = table.second_round(matched)
    table.learn(matched)
    table.advance(matched)
    return [table.finish(n, rows, found) for n, (rows, found) in enumerate(matched)]


Matched = list[tuple[NDArray[np.intp], NDArray[np.intp]]]
"""Of each frame, rows of its tracks and rows of its detections that belong together."""


class _Table:
    """Tracks and detections of a few cameras, one camera's behind another's."""

    def __init__(self, frames: Sequence[_Seen]) -> None:
        self.frames = frames
        trackers = [one.tracker for one in frames]
        self.befores = [
            t._last_time if t._last_time is not None else f.time
            for t, f in zip(trackers, frames, strict=True)
        ]
        self.times = [max(one.time, before) for one, before in zip(frames, self.befores, strict=True)]
        self.tracks = _slices(len(t) for t in trackers)
        self.found = _slices(len(one.detections) for one in frames)
        counts = [len(t) for t in trackers]
        self.states = np.concatenate([t._tracks.states for t in trackers], axis=1)
        dt = [time - before for time, before in zip(self.times, self.befores, strict=True)]
        self.expected = _predict(self.states, np.repeat(dt, counts)[:, None])
        self.live = np.concatenate(
            [t._tracks.last_seen >= b for t, b in zip(trackers, self.befores, strict=True)]
        )
        self.boxes = np.concatenate([one.detections.boxes for one in frames])
        self.scores = np.concatenate([one.detections.scores for one in frames])
        self.present = np.concatenate([one.embedded.present for one in frames])
        self.vectors = np.concatenate([one.embedded.vectors for one in frames])
        self.high = self.scores >= np.repeat(
            [t._high for t in trackers], [len(one.detections) for one in frames]
        )
        self.known = np.concatenate([t._tracks.known for t in trackers])
        width = self.vectors.shape[1]
        self.looks = np.zeros((len(self.known), width), np.float32)
        if width == 0:  # the engine failed: nobody looks like anything
            self.known = np.zeros(len(self.known), np.bool_)
        for tracker, rows in zip(trackers, self.tracks, strict=True):
            if width and tracker._tracks.looks is not None:
                self.looks[rows] = tracker._tracks.looks

    def first_round(self) -> Matched:
        """By overlap and appearance, with detections of high score."""
        if not len(self.expected) or not len(self.boxes):
            return [(_NONE, _NONE) for _ in self.frames]
        cost = 1.0 - iou_matrix(self.expected, self.boxes).astype(np.float64)
        first = self.frames[0].tracker
        if first.similarity.ready:
            self._blend(cost, first)
        if not self.high.all():
            cost[:, ~self.high] = np.inf
        return [
            associate(cost[rows, columns], one.tracker._max_cost)
            for one, rows, columns in zip(self.frames, self.tracks, self.found, strict=True)
        ]

    def _blend(self, cost: NDArray[np.float64], settings: Tracker) -> None:
        """Let the looks speak where both have any."""
        distance = settings.similarity.distance(self.looks @ self.vectors.T)
        gates = np.where(self.live, settings._live_gate, settings._lost_gate)[:, None]
        strange = distance > gates
        # Only pairs that overlap at all are worth a look; the rest are too dear already.
        blended = (1 - settings._weight) * cost + settings._weight * np.clip(distance, 0.0, 1.0)
        looked = cost < 1.0
        if not (self.known.all() and self.present.all()):
            both = self.known[:, None] & self.present
            looked &= both
            strange &= both
        np.copyto(cost, blended, where=looked)
        cost[strange] = np.inf

    def second_round(self, matched: Matched) -> Matched:
        """Low-scored boxes are often part of somebody hidden: they prolong tracks seen a moment ago."""
        return [
            self._low(one, self.live[rows], self.expected[rows], *pairs)
            for one, rows, pairs in zip(self.frames, self.tracks, matched, strict=True)
        ]

    @staticmethod
    def _low(
        one: _Seen,
        live: NDArray[np.bool_],
        expected: Boxes,
        rows: NDArray[np.intp],
        found: NDArray[np.intp],
    ) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        tracker, scores = one.tracker, one.detections.scores
        low = np.flatnonzero((scores >= tracker._low) & (scores < tracker._high))
        free = tracker._tracks.confirmed & live
        free[rows] = False
        rest = np.flatnonzero(free)
        cost = 1.0 - iou_matrix(expected[rest], one.detections.boxes[low])
        late, part = associate(cost.astype(np.float64), _LOW_ROUND_COST)
        return np.concatenate([rows, rest[late]]), np.concatenate([found, low[part]])

    def learn(self, matched: Matched) -> None:
        """Learn typical similarities, once they are known only now and then."""
        for one, (rows, found) in zip(self.frames, matched, strict=True):
            if not one.tracker.similarity.settled or one.frame % _LEARN_EVERY == 0:
                one.tracker._learn(one.detections, one.embedded, rows, found)

    def advance(self, matched: Matched) -> None:
        """Bring the tracks up to what was seen."""
        rows = np.concatenate([of + at.start for (of, _), at in zip(matched, self.tracks, strict=True)])
        found = np.concatenate([of + at.start for (_, of), at in zip(matched, self.found, strict=True)])
        _correct(self.states, rows, self.boxes[found])
        mixed = _mixed(self.looks[rows], self.known[rows], self.vectors[found])
        shown = self.present[found]
        begin = 0
        for one, time, place, (mine, _) in zip(self.frames, self.times, self.tracks, matched, strict=True):
            tracks, end = one.tracker._tracks, begin + len(mine)
            tracks.states[:] = self.states[:, place]
            tracks.last_seen[mine] = time
            tracks.hits[mine] += 1
            tracks.confirmed[mine] |= tracks.hits[mine] >= one.tracker._confirm_hits
            seen = shown[begin:end]
            tracks.mix(mine[seen], mixed[begin:end][seen])
            begin = end

    def finish(self, n: int, rows: NDArray[np.intp], found: NDArray[np.intp]) -> TrackUpdate:
        """What became of one frame; retires and starts tracks."""
        one, time = self.frames[n], self.times[n]
        tracker, detections, embedded = one.tracker, one.detections, one.embedded
        seen = tracker._observations(one.frame, time, detections, embedded, rows, found)
        ended = tracker._retire(time, len(rows))
        fresh = self.high[self.found[n]].copy()
        fresh[found] = False
        if fresh.any():
            tracker._start(time, detections, embedded, np.flatnonzero(fresh))
        tracker._last_time = time
        return TrackUpdate(tracker.camera, one.frame, time, one.size, seen, ended)


def _slices(counts: Iterable[int]) -> list[slice]:
    """Places of parts that stand one behind another."""
    ends = list(accumulate(counts))
    return [slice(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]


class UpstreamTracks:
    """Follows crops that an upstream detector has tracked already.

    A crop without a track id stands for itself: it gets a number of its own and ends at once.

    Args:
        camera: id of the source.
        lost_s: seconds after which a track of which no crop came ends.
    """

    def __init__(self, camera: str, *, lost_s: float = 3.0) -> None:
        self.camera = camera
        self._lost_s = lost_s
        self._last_seen: dict[int, float] = {}
        self._alone = LONE_TRACKS

    def update(self, crops: CropBatch, embedded: Sequence[Embedded]) -> TrackUpdate:
        """Take in the crops of one frame.

        Args:
            crops: N crops.
            embedded: N results of one row each.
        """
        seen, ended = [], []
        for row, given in enumerate(crops.track_ids):
            if given is None:
                self._alone += 1
                ended.append(self._alone)
            else:
                self._last_seen[given] = crops.time
            track_id = self._alone if given is None else given
            seen.append(self._observation(track_id, crops, row, embedded[row]))
        silent = [t for t, last in self._last_seen.items() if crops.time - last > self._lost_s]
        for track_id in silent:
            del self._last_seen[track_id]
        right, bottom = crops.boxes[:, 2:].max(axis=0) if len(crops.boxes) else (1.0, 1.0)
        size = (max(int(right), 1), max(int(bottom), 1))
        return TrackUpdate(self.camera, crops.number, crops.time, size, tuple(seen), (*ended, *silent))

    def finish(self, frame: int, time: float, size: tuple[int, int]) -> TrackUpdate:
        """End every track, at the end of the source."""
        ended = tuple(self._last_seen)
        self._last_seen.clear()
        return TrackUpdate(self.camera, frame, time, size, (), ended)

    def _observation(self, track_id: int, crops: CropBatch, row: int, embedded: Embedded) -> TrackObservation:
        return TrackObservation(
            camera=self.camera,
            track_id=track_id,
            frame=crops.number,
            time=crops.time,
            box=crops.boxes[row],
            score=1.0,
            vector=embedded.vectors[0] if embedded.present[0] else None,
            quality=float(embedded.quality[0]),
        )
