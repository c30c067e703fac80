"""From boxes of single frames to tracks of one camera.

ByteTrack's two rounds (Zhang et al., "ByteTrack: Multi-Object Tracking by Associating Every Detection
Box", ECCV 2022: high-scored boxes first, then the low-scored ones for what is left) on a Kalman filter
whose clock is the frame's own time, so that nothing depends on the frame rate. Appearance is a gate and a
term of the cost: a detection that looks like somebody else is not given to a track, however well it
overlaps. What "looks like" means is learnt from the scene: the typical similarity of one track with itself
and of two people who are visible together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, compress, starmap
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.structures import (
    LONE_TRACKS,
    CropBatch,
    Detections,
    Embedded,
    TrackObservation,
    TrackUpdate,
    iou,
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

_GROWTHS: list[float] = _GROWTH.tolist()

_PLACE, _SPEED, _VAR, _COV, _SPEED_VAR = range(5)
"""Rows of a track's state: each axis (cx, cy, w, h) has a place, a speed per second, and the covariance of
the two. The axes never mix: neither motion nor measurement couples them."""


_FIRST_TRACKS = 16
"""Room for so many tracks to begin with; it doubles when it is full."""


_CORNERS = np.array([[0.5, 0, -1, 0], [0, 0.5, 0, -1], [0.5, 0, 1, 0], [0, 0.5, 0, 1]])
"""From corners x1, y1, x2, y2 to cx, cy, w, h."""


class _Tracks:
    """The tracks of one camera, oldest first.

    Attributes:
        states: `(5, T, 4)` float64, see `_PLACE`; all of the same time.
        ids: T numbers within the camera.
        last_seen: of each, Unix seconds.
        hits: of each, detections so far.
        confirmed: of each, whether it is reported.
        looks: `(T, D)` float32, running mean of the embeddings; None before the first embedding of all.
        known: of each, whether it has looks.
    """

    def __init__(self) -> None:
        self._states = np.zeros((5, _FIRST_TRACKS, 4))
        self.ids: list[int] = []
        self.last_seen: list[float] = []
        self.hits: list[int] = []
        self.confirmed: list[bool] = []
        self.known: list[bool] = []
        self._looks: Vector | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def states(self) -> NDArray[np.float64]:
        return self._states[:, : len(self.ids)]

    @property
    def looks(self) -> Vector | None:
        return None if self._looks is None else self._looks[: len(self.ids)]

    def see(self, rows: Sequence[int], time: float, confirm_hits: int) -> None:
        """These were detected again."""
        for row in rows:
            self.last_seen[row] = time
            self.hits[row] += 1
            if self.hits[row] >= confirm_hits:
                self.confirmed[row] = True

    def mix(self, rows: Sequence[int], vectors: Vector) -> None:
        """Take in the first embedding, or what `_mixed` made of later ones, `(N, D)`, of each of N tracks."""
        if not rows:
            return
        if self._looks is None:
            self._looks = np.zeros((self._states.shape[1], vectors.shape[1]), np.float32)
        self._looks[rows] = vectors
        for row in rows:
            self.known[row] = True

    def keep(self, rows: Sequence[int]) -> None:
        """Drop the others."""
        left = len(rows)
        self._states[:, :left] = self._states[:, rows]
        if self._looks is not None:
            self._looks[:left] = self._looks[rows]
        self.ids = [self.ids[row] for row in rows]
        self.last_seen = [self.last_seen[row] for row in rows]
        self.hits = [self.hits[row] for row in rows]
        self.confirmed = [self.confirmed[row] for row in rows]
        self.known = [self.known[row] for row in rows]

    def add(self, first_id: int, time: float, boxes: Boxes, *, confirmed: bool) -> list[int]:
        """Start a track for each of `(N, 4)` boxes xyxy; their rows."""
        begin, more = len(self.ids), len(boxes)
        while begin + more > self._states.shape[1]:
            self._double()
        spread = np.maximum(boxes[:, 3] - boxes[:, 1], 1.0)[:, None].astype(np.float64)
        states = self._states[:, begin : begin + more]
        states[:] = 0.0
        states[_PLACE] = _measurements(boxes)
        states[_VAR] = (_MEASURED * spread) ** 2
        states[_SPEED_VAR] = (np.array([_START_SPEED, _START_SPEED, 0.1, 0.1]) * spread) ** 2
        self.ids += range(first_id, first_id + more)
        self.last_seen += [time] * more
        self.hits += [1] * more
        self.confirmed += [confirmed] * more
        self.known += [False] * more
        return list(range(begin, begin + more))

    def _double(self) -> None:
        self._states = np.concatenate([self._states, np.zeros_like(self._states)], axis=1)
        if self._looks is not None:
            self._looks = np.concatenate([self._looks, np.zeros_like(self._looks)])


Number = TypeVar("Number", float, NDArray[np.float64])
"""One value, or those of many tracks and axes as an array: what is computed is the same."""


def _spread(
    variance: Number, covariance: Number, speed_variance: Number, dt: Number, noise: Number
) -> tuple[Number, Number, Number]:
    """What is less sure of an axis after `dt` seconds under white-noise acceleration."""
    square, more = dt * dt, dt * speed_variance
    return (
        variance + (dt * (2 * covariance + more) + square * square / 4 * noise),
        covariance + (more + square * dt / 2 * noise),
        speed_variance + square * noise,
    )


def _measured(
    state: tuple[Number, Number, Number, Number, Number], place: Number, noise: Number
) -> tuple[Number, Number, Number, Number, Number]:
    """The state of an axis, in the order of `_PLACE`, with its place measured to a variance of `noise`."""
    expected, speed, variance, covariance, speed_variance = state
    total, off = variance + noise, place - expected
    gain, faster = variance / total, covariance / total
    return (
        expected + gain * off,
        speed + faster * off,
        variance * (1.0 - gain),
        covariance * (1.0 - gain),
        speed_variance - faster * covariance,
    )


def _predict(states: NDArray[np.float64], dt: NDArray[np.float64]) -> Boxes:
    """Move states `(5, T, 4)` by `dt` `(T, 1)` seconds, in place.

    Returns:
        `(T, 4)` xyxy, where they are expected.
    """
    place, speed = states[: _SPEED + 1]
    place += dt * speed
    noise = _GROWTH * np.maximum(place[:, 3:], 1.0) ** 2
    states[_VAR:] = _spread(states[_VAR], states[_COV], states[_SPEED_VAR], dt, noise)
    middle, half = place[:, :2], np.maximum(place[:, 2:], 1.0) / 2
    boxes = np.empty((len(place), 4), np.float32)
    np.subtract(middle, half, out=boxes[:, :2], casting="same_kind")
    np.add(middle, half, out=boxes[:, 2:], casting="same_kind")
    return boxes


def _correct(states: NDArray[np.float64], rows: Sequence[int], boxes: Boxes) -> None:
    """Take in a measured box, `(N, 4)` xyxy, of N of the states `(5, T, 4)`."""
    measured = _measurements(boxes)
    noise = (_MEASURED * np.maximum(measured[:, 3:], 1.0)) ** 2
    place, speed, variance, covariance, speed_variance = states[:, rows]
    states[:, rows] = _measured((place, speed, variance, covariance, speed_variance), measured, noise)


def _mixed(before: Vector, known: Sequence[bool], vectors: Vector) -> Vector:
    """What N tracks look like with one more embedding: `(N, D)` and who had one before, N."""
    mixed: Vector = _LOOKS_MEMORY * before + (1 - _LOOKS_MEMORY) * vectors
    mixed /= np.maximum(np.sqrt(np.einsum("nd,nd->n", mixed, mixed)), 1e-6)[:, None]
    if not all(known):
        new = [row for row, there in enumerate(known) if not there]
        mixed[new] = vectors[new]
    return mixed


def _measurements(boxes: Boxes) -> NDArray[np.float64]:
    """`(N, 4)` xyxy -> `(N, 4)` float64 cx, cy, w, h."""
    found: NDArray[np.float64] = boxes @ _CORNERS
    return found


_NONE = np.zeros(0, np.intp)

Pairs = tuple[list[int], list[int]]
"""Of one frame, rows of its tracks and rows of its detections that belong together."""


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
    allowed = cost <= limit
    rows, columns = np.nonzero(allowed)
    if len(set(rows.tolist())) == len(rows) == len(set(columns.tolist())):
        return rows, columns  # nobody is wanted twice
    from scipy.optimize import linear_sum_assignment  # loaded beside the first frames, by the daemon

    # A large finite price keeps the solver feasible and lets it leave dear pairs apart.
    rows, columns = linear_sum_assignment(np.where(allowed, cost, 1e6))
    near = allowed[rows, columns]
    return rows[near], columns[near]


def _pairs(cost: NDArray[np.float64], limit: float) -> Pairs:
    rows, columns = associate(cost, limit)
    return rows.tolist(), columns.tolist()


def _alone(boxes: Boxes) -> list[bool]:
    """Of each, whether nobody overlaps it by `_CLEAR_OVERLAP` or more."""
    if len(boxes) == 1:
        return [True]
    overlap = iou_matrix(boxes, boxes)
    np.fill_diagonal(overlap, 0.0)
    alone: list[bool] = (overlap.max(axis=1) < _CLEAR_OVERLAP).tolist()
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
        return len(self._tracks)

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
        ended = tuple(compress(self._tracks.ids, self._tracks.confirmed))
        self._tracks = _Tracks()
        return TrackUpdate(self.camera, frame, time, size, (), ended)

    def _learn(self, detections: Detections, embedded: Embedded, pairs: Pairs) -> None:
        """Learn typical similarities from people whom nobody overlaps."""
        if not pairs[0]:
            return
        tracks, alone, present = self._tracks, _alone(detections.boxes), embedded.present.tolist()
        lone = [(row, at) for row, at in zip(*pairs, strict=True) if alone[at] and present[at]]
        old = [(row, at) for row, at in lone if tracks.known[row] and tracks.confirmed[row]]
        if tracks.looks is not None and old:
            rows, found = map(list, zip(*old, strict=True))
            looks, vectors = tracks.looks[rows], embedded.vectors[found]
            self.similarity.learn_genuine(np.einsum("nd,nd->n", looks, vectors))
        if len(lone) > 1:
            vectors = embedded.vectors[[at for _, at in lone]]
            self.similarity.learn_impostor((vectors @ vectors.T)[_upper(len(lone))])

    def _retire(self, time: float, seen: int) -> tuple[int, ...]:
        """Drop tracks that were not seen for too long; an unconfirmed one after its first miss."""
        tracks = self._tracks
        if seen == len(tracks):
            return ()
        kept, ended = [], []
        for row, (last, confirmed) in enumerate(zip(tracks.last_seen, tracks.confirmed, strict=True)):
            if time - last <= (self._lost_s if confirmed else 0.0):
                kept.append(row)
            elif confirmed:
                ended.append(tracks.ids[row])
        if len(kept) < len(tracks):
            tracks.keep(kept)
        return tuple(ended)

    def _start(self, time: float, detections: Detections, embedded: Embedded, found: Sequence[int]) -> None:
        """Start tracks from those of the detections whose score is high enough."""
        enough = (detections.scores >= self._new).tolist()
        found = [at for at in found if enough[at]]
        if not found:
            return
        rows = self._tracks.add(
            self._next_id, time, detections.boxes[found], confirmed=self._confirm_hits <= 1
        )
        self._next_id += len(found)
        shown = embedded.present[found].tolist()
        self._tracks.mix(list(compress(rows, shown)), embedded.vectors[list(compress(found, shown))])

    def _observations(
        self, frame: int, time: float, detections: Detections, embedded: Embedded, pairs: Pairs
    ) -> tuple[TrackObservation, ...]:
        ids, confirmed = self._tracks.ids, self._tracks.confirmed
        scores, shown = detections.scores.tolist(), embedded.present.tolist()
        quality = embedded.quality.tolist()
        return tuple(
            TrackObservation(
                self.camera, ids[row], frame, time, detections.boxes[at], scores[at],
                embedded.vectors[at] if shown[at] else None, quality[at],
            )
            for row, at in zip(*pairs, strict=True)
            if confirmed[row]
        )  # fmt: skip


class _Seen(NamedTuple):
    """A frame for its camera's tracker; see `Tracker.update`."""

    tracker: Tracker
    frame: int
    time: float
    size: tuple[int, int]
    detections: Detections
    embedded: Embedded


FEW = 4
"""Tracks that are worked on one by one: arrays are quicker beyond."""

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
            done += _update_group(group, TOGETHER - room)
            group, room = [], TOGETHER
        group.append(one)
        room -= wanted
    return done + (_update_group(group, TOGETHER - room) if group else [])


def _update_group(frames: Sequence[_Seen], size: int) -> list[TrackUpdate]:
    group = _Few(frames) if size <= FEW else _Many(frames)
    matched = group.first_round()
    if not group.all_high:
        matched = group.second_round(matched)
    group.learn(matched)
    group.advance(matched)
    return [group.finish(n, pairs) for n, pairs in enumerate(matched)]


class _Group:
    """Frames of different cameras, whose tracks take in their detections.

    Attributes:
        frames: a frame of each camera.
        befores: times of the frames before.
        times: of these, which do not go back.
        live: of each frame, for each track whether it was seen in the frame before.
        high: of each frame, for each detection whether it takes part in the first round.
        all_high: whether all do.
    """

    def __init__(self, frames: Sequence[_Seen]) -> None:
        self.frames = frames
        self.befores = [
            one.time if one.tracker._last_time is None else one.tracker._last_time for one in frames
        ]
        self.times = [max(one.time, before) for one, before in zip(frames, self.befores, strict=True)]
        self.live = [
            [seen >= before for seen in one.tracker._tracks.last_seen]
            for one, before in zip(frames, self.befores, strict=True)
        ]
        self.high = [
            [score >= one.tracker._high for score in one.detections.scores.tolist()] for one in frames
        ]
        self.all_high = all(map(all, self.high))

    def first_round(self) -> list[Pairs]:
        """By overlap and appearance, with detections of high score."""
        raise NotImplementedError

    def expected(self, n: int) -> Boxes:
        """Where the tracks of a frame were expected."""
        raise NotImplementedError

    def advance(self, matched: Sequence[Pairs]) -> None:
        """Bring the tracks up to what was seen."""
        raise NotImplementedError

    def second_round(self, matched: Sequence[Pairs]) -> list[Pairs]:
        """Low-scored boxes are often part of somebody hidden: they prolong tracks seen a moment ago."""
        return [self._low(n, *pairs) for n, pairs in enumerate(matched)]

    def _low(self, n: int, rows: list[int], found: list[int]) -> Pairs:
        tracker, detections = self.frames[n].tracker, self.frames[n].detections
        scores = detections.scores
        low = np.flatnonzero((scores >= tracker._low) & (scores < tracker._high)).tolist()
        taken, confirmed = set(rows), tracker._tracks.confirmed
        rest = [row for row, live in enumerate(self.live[n]) if live and confirmed[row] and row not in taken]
        if not low or not rest:
            return rows, found
        cost = 1.0 - iou_matrix(self.expected(n)[rest], detections.boxes[low])
        late, part = _pairs(cost.astype(np.float64), _LOW_ROUND_COST)
        return rows + [rest[row] for row in late], found + [low[at] for at in part]

    def learn(self, matched: Sequence[Pairs]) -> None:
        """Learn typical similarities, once they are known only now and then."""
        for one, pairs in zip(self.frames, matched, strict=True):
            if not one.tracker.similarity.settled or one.frame % _LEARN_EVERY == 0:
                one.tracker._learn(one.detections, one.embedded, pairs)

    def finish(self, n: int, pairs: Pairs) -> TrackUpdate:
        """What became of one frame; retires and starts tracks."""
        one, time = self.frames[n], self.times[n]
        tracker, detections, embedded = one.tracker, one.detections, one.embedded
        seen = tracker._observations(one.frame, time, detections, embedded, pairs)
        ended = tracker._retire(time, len(pairs[0]))
        if len(pairs[1]) < len(detections):
            taken = set(pairs[1])
            fresh = [at for at, high in enumerate(self.high[n]) if high and at not in taken]
            tracker._start(time, detections, embedded, fresh)
        tracker._last_time = time
        return TrackUpdate(tracker.camera, one.frame, time, one.size, seen, ended)


_Axis = Sequence[float]
"""Place, speed, variance, covariance and variance of the speed, see `_PLACE`."""


class _Few(_Group):
    """A few tracks and detections as plain numbers, for a call of NumPy costs as much as dozens of them.

    Nothing is computed otherwise than by `_Many`.
    """

    def __init__(self, frames: Sequence[_Seen]) -> None:
        super().__init__(frames)
        self._states: list[list[list[_Axis]]] = []
        """Of each frame, for each track its four axes."""
        for one, before, time in zip(frames, self.befores, self.times, strict=True):
            states = one.tracker._tracks.states.transpose(1, 2, 0).tolist()
            self._states.append([_move(axes, time - before) for axes in states])
        self._expected = [
            np.array([_box(axes) for axes in states], np.float32).reshape(-1, 4) for states in self._states
        ]

    def expected(self, n: int) -> Boxes:
        return self._expected[n]

    def first_round(self) -> list[Pairs]:
        return [self._match(n) for n in range(len(self.frames))]

    def _match(self, n: int) -> Pairs:
        one, tracks = self.frames[n], self.frames[n].tracker._tracks
        if not len(tracks) or not len(one.detections):
            return [], []
        boxes = list(map(list, one.detections.boxes))
        cost = [
            [
                1.0 - iou(expected, box) if high else math.inf
                for box, high in zip(boxes, self.high[n], strict=True)
            ]
            for expected in map(list, self._expected[n])
        ]
        if one.tracker.similarity.ready and tracks.looks is not None:
            self._blend(n, cost, tracks.looks)
        limit = one.tracker._max_cost
        near = [(row, at) for row, of in enumerate(cost) for at, pair in enumerate(of) if pair <= limit]
        rows, found = [row for row, _ in near], [at for _, at in near]
        if len(set(rows)) == len(near) == len(set(found)):
            return rows, found
        return _pairs(np.array(cost), limit)

    def _blend(self, n: int, cost: list[list[float]], looks: Vector) -> None:
        """Let the looks speak where both have any."""
        embedded, tracker = self.frames[n].embedded, self.frames[n].tracker
        present, weight = embedded.present.tolist(), tracker._weight
        if True not in present:
            return
        distances = tracker.similarity.distance(looks @ embedded.vectors.T)
        terms = _term(weight, distances).tolist()
        for row, (known, distance) in enumerate(zip(tracker._tracks.known, distances.tolist(), strict=True)):
            gate = tracker._live_gate if self.live[n][row] else tracker._lost_gate
            for at in range(len(present)):
                if known and present[at]:
                    if distance[at] > gate:
                        cost[row][at] = math.inf
                    elif cost[row][at] < 1.0:
                        cost[row][at] = (1 - weight) * cost[row][at] + terms[row][at]

    def advance(self, matched: Sequence[Pairs]) -> None:
        for one, time, states, (rows, found) in zip(
            self.frames, self.times, self._states, matched, strict=True
        ):
            tracks, embedded = one.tracker._tracks, one.embedded
            boxes, present = one.detections.boxes.tolist(), embedded.present.tolist()
            for row, at in zip(rows, found, strict=True):
                states[row] = _take_in(states[row], boxes[at])
            if states:
                tracks.states[:] = np.array(states).transpose(2, 0, 1)
            tracks.see(rows, time, one.tracker._confirm_hits)
            mine = [row for row, at in zip(rows, found, strict=True) if present[at]]
            known = [tracks.known[row] for row in mine]
            vectors = embedded.vectors[[at for at in found if present[at]]]
            if tracks.looks is not None and any(known):
                vectors = _mixed(tracks.looks[mine], known, vectors)
            tracks.mix(mine, vectors)


def _move(axes: Sequence[_Axis], dt: float) -> list[_Axis]:
    """As `_predict`, of one track."""
    high = max(axes[3][_PLACE] + dt * axes[3][_SPEED], 1.0)
    return [
        (
            place + dt * speed,
            speed,
            *_spread(variance, covariance, speed_variance, dt, growth * (high * high)),
        )
        for (place, speed, variance, covariance, speed_variance), growth in zip(axes, _GROWTHS, strict=True)
    ]


def _box(axes: Sequence[_Axis]) -> tuple[float, float, float, float]:
    """Corners x1, y1, x2, y2."""
    x, y, wide, high = (axis[_PLACE] for axis in axes)
    across, up = max(wide, 1.0) / 2, max(high, 1.0) / 2
    return x - across, y - up, x + across, y + up


def _take_in(axes: Sequence[_Axis], box: Sequence[float]) -> list[_Axis]:
    """As `_correct`, of one track."""
    x1, y1, x2, y2 = box
    places = 0.5 * x1 + 0.5 * x2, 0.5 * y1 + 0.5 * y2, x2 - x1, y2 - y1
    deviation = _MEASURED * max(places[3], 1.0)
    noise = deviation * deviation
    return [
        _measured((place, speed, variance, covariance, speed_variance), found, noise)
        for (place, speed, variance, covariance, speed_variance), found in zip(axes, places, strict=True)
    ]


class _Many(_Group):
    """Tracks and detections as arrays, one camera's behind another's."""

    def __init__(self, frames: Sequence[_Seen]) -> None:
        super().__init__(frames)
        tracks = [one.tracker._tracks for one in frames]
        counts = [len(of) for of in tracks]
        self._tracks = _slices(counts)
        self._found = _slices(len(one.detections) for one in frames)
        self._states = np.concatenate([of.states for of in tracks], axis=1)
        dt = [time - before for time, before in zip(self.times, self.befores, strict=True)]
        self._expected = _predict(self._states, np.repeat(dt, counts)[:, None])
        self._boxes = np.concatenate([one.detections.boxes for one in frames])
        self._present = np.concatenate([one.embedded.present for one in frames])
        self._vectors = np.concatenate([one.embedded.vectors for one in frames])
        width = self._vectors.shape[1]
        self._known = [known and width > 0 for of in tracks for known in of.known]
        """Nobody, where the engine failed and gave no vectors."""
        self._looks = np.zeros((len(self._known), width), np.float32)
        for of, rows in zip(tracks, self._tracks, strict=True):
            if width and of.looks is not None:
                self._looks[rows] = of.looks

    def expected(self, n: int) -> Boxes:
        return self._expected[self._tracks[n]]

    def first_round(self) -> list[Pairs]:
        if not len(self._expected) or not len(self._boxes):
            return [([], []) for _ in self.frames]
        cost = 1.0 - iou_matrix(self._expected, self._boxes).astype(np.float64)
        first = self.frames[0].tracker
        if first.similarity.ready:
            self._blend(cost, first)
        if not self.all_high:
            cost[:, [not high for of in self.high for high in of]] = np.inf
        return [
            _pairs(cost[rows, columns], one.tracker._max_cost)
            for one, rows, columns in zip(self.frames, self._tracks, self._found, strict=True)
        ]

    def _blend(self, cost: NDArray[np.float64], settings: Tracker) -> None:
        """Let the looks speak where both have any."""
        distance: Vector = settings.similarity.distance(self._looks @ self._vectors.T)
        gates = [settings._live_gate if live else settings._lost_gate for of in self.live for live in of]
        strange = distance > np.array(gates)[:, None]
        # Only pairs that overlap at all are worth a look; the rest are too dear already.
        blended = (1 - settings._weight) * cost + _term(settings._weight, distance)
        looked = cost < 1.0
        if not (all(self._known) and self._present.all()):
            both = np.array(self._known)[:, None] & self._present
            looked &= both
            strange &= both
        np.copyto(cost, blended, where=looked)
        cost[strange] = np.inf

    def advance(self, matched: Sequence[Pairs]) -> None:
        rows = [of + at.start for (mine, _), at in zip(matched, self._tracks, strict=True) for of in mine]
        found = [of + at.start for (_, mine), at in zip(matched, self._found, strict=True) for of in mine]
        _correct(self._states, rows, self._boxes[found])
        mixed = _mixed(self._looks[rows], [self._known[row] for row in rows], self._vectors[found])
        shown = self._present[found].tolist()
        begin = 0
        for one, time, place, (mine, _) in zip(self.frames, self.times, self._tracks, matched, strict=True):
            tracks, end = one.tracker._tracks, begin + len(mine)
            tracks.states[:] = self._states[:, place]
            tracks.see(mine, time, one.tracker._confirm_hits)
            seen, part = shown[begin:end], mixed[begin:end]
            tracks.mix(list(compress(mine, seen)), part if all(seen) else part[seen])
            begin = end


def _term(weight: float, distance: Vector) -> Vector:
    """What a distance of looks adds to the cost."""
    term: Vector = np.minimum(np.maximum(distance, 0.0), 1.0)
    term *= weight
    return term


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
