"""From boxes of single frames to tracks of one camera.

ByteTrack's two rounds (Zhang et al., "ByteTrack: Multi-Object Tracking by Associating Every Detection
Box", ECCV 2022: high-scored boxes first, then the low-scored ones for what is left) on a Kalman filter
whose clock is the frame's own time, so that nothing depends on the frame rate. Appearance is a gate and a
term of the cost: a detection that looks like somebody else is not given to a track, however well it
overlaps. What "looks like" means is learnt from the scene: the typical similarity of one track with itself
and of two people who are visible together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from edge_agent.structures import (
    LONE_TRACKS,
    CropBatch,
    Detections,
    Embedded,
    TrackObservation,
    TrackUpdate,
    iou_matrix,
)

__all__ = ["Similarity", "Tracker", "UpstreamTracks", "associate"]

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
    def ready(self) -> bool:
        """Whether both means rest on enough samples and tell people apart at all."""
        enough = min(self.genuine_count, self.impostor_count) >= self.needed
        return enough and self.genuine - self.impostor > 0.02

    def learn_genuine(self, cosine: float) -> None:
        """Take in one similarity of a track with itself."""
        self.genuine_count = min(self.genuine_count + 1, self.memory)
        self.genuine += (cosine - self.genuine) / self.genuine_count

    def learn_impostor(self, cosine: float) -> None:
        """Take in one similarity of two people seen in one frame."""
        self.impostor_count = min(self.impostor_count + 1, self.memory)
        self.impostor += (cosine - self.impostor) / self.impostor_count

    def distance(self, cosine: Vector) -> Vector:
        """Scale cosines so that 0 is a typical genuine and 1 a typical impostor; NaN stays NaN."""
        scaled: Vector = ((self.genuine - cosine) / (self.genuine - self.impostor)).astype(np.float32)
        return scaled


_PLACE, _SPEED, _VAR, _COV, _SPEED_VAR = range(5)
"""Rows of a track's state: each axis (cx, cy, w, h) has a place, a speed per second, and the covariance of
the two. The axes never mix: neither motion nor measurement couples them."""


@dataclass(slots=True)
class _Track:
    """One track; `state` is `(5, 4)` float64, see `_PLACE`."""

    id: int
    state: NDArray[np.float64]
    time: float
    last_seen: float
    confirmed: bool
    hits: int = 1
    looks: Vector | None = None


def _measurements(boxes: Boxes) -> NDArray[np.float64]:
    """`(N, 4)` xyxy -> `(N, 4)` float64 cx, cy, w, h."""
    corners = boxes.astype(np.float64)
    first, second = corners[:, :2], corners[:, 2:]
    return np.concatenate([(first + second) / 2, second - first], axis=1)


def _predict(tracks: Sequence[_Track], time: float) -> Boxes:
    """Move tracks to `time` under white-noise acceleration; where they are expected, `(N, 4)` xyxy."""
    if not tracks:
        return np.zeros((0, 4), np.float32)
    states = np.stack([track.state for track in tracks])
    dt = np.array([max(time - track.time, 0.0) for track in tracks])[:, None]
    states[:, _PLACE] += dt * states[:, _SPEED]
    sigma = (_ACCELERATION * np.maximum(states[:, _PLACE, 3:], 1.0)) ** 2
    noise = sigma * np.array([1.0, 1.0, 0.05, 0.05])  # the size changes far more slowly than the place
    noise[dt[:, 0] == 0.0] = 0.0
    states[:, _VAR] += 2 * dt * states[:, _COV] + dt**2 * states[:, _SPEED_VAR] + noise * dt**4 / 4
    states[:, _COV] += dt * states[:, _SPEED_VAR] + noise * dt**3 / 2
    states[:, _SPEED_VAR] += noise * dt**2
    for track, state in zip(tracks, states, strict=True):
        track.state, track.time = state, time
    middle, half = states[:, _PLACE, :2], np.maximum(states[:, _PLACE, 2:], 1.0) / 2
    return np.concatenate([middle - half, middle + half], axis=1).astype(np.float32)


def _correct(tracks: Sequence[_Track], boxes: Boxes) -> None:
    """Take in a measured box `(4,)` xyxy of each of N tracks."""
    states = np.stack([track.state for track in tracks])
    measured = _measurements(boxes)
    noise = (_MEASURED * np.maximum(measured[:, 3:], 1.0)) ** 2
    variance, covariance = states[:, _VAR].copy(), states[:, _COV].copy()
    place_gain, speed_gain = variance / (variance + noise), covariance / (variance + noise)
    off = measured - states[:, _PLACE]
    states[:, _PLACE] += place_gain * off
    states[:, _SPEED] += speed_gain * off
    states[:, _VAR] -= place_gain * variance
    states[:, _COV] -= place_gain * covariance
    states[:, _SPEED_VAR] -= speed_gain * covariance
    for track, state in zip(tracks, states, strict=True):
        track.state = state


@lru_cache(maxsize=64)
def _upper(count: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Every pair of `count` things once."""
    return np.triu_indices(count, k=1)


def associate(cost: NDArray[np.float64], limit: float) -> list[tuple[int, int]]:
    """Pairs (row, column) of the cheapest assignment, none dearer than `limit`.

    Args:
        cost: `(N, M)`; infinite where a pair is forbidden.
        limit: largest cost of a pair.
    """
    if cost.size == 0:
        return []
    # A large finite price keeps the solver feasible and lets it leave dear pairs apart.
    priced = np.where(cost <= limit, cost, 1e6)
    rows, columns = linear_sum_assignment(priced)
    return [(int(r), int(c)) for r, c in zip(rows, columns, strict=True) if cost[r, c] <= limit]


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
        self._tracks: list[_Track] = []
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
        time = max(time, self._last_time or time)
        expected = dict(zip((t.id for t in self._tracks), _predict(self._tracks, time), strict=True))
        high = np.flatnonzero(detections.scores >= self._high)
        low = np.flatnonzero((detections.scores >= self._low) & (detections.scores < self._high))
        matched = self._match(
            self._tracks, expected, detections, embedded, high, weight=self._weight, limit=self._max_cost
        )
        taken = {track.id for track, _ in matched}
        # Low-scored boxes are often part of somebody hidden: they only prolong tracks seen a moment ago.
        rest = [t for t in self._tracks if t.id not in taken and t.confirmed and self._was_live(t)]
        matched += self._match(rest, expected, detections, embedded, low, weight=0.0, limit=_LOW_ROUND_COST)
        self._learn(detections, embedded, matched)
        self._advance(time, detections, embedded, matched)
        used = {row for _, row in matched}
        ended = self._retire(time)
        self._start(time, detections, embedded, [int(row) for row in high if row not in used])
        self._last_time = time
        seen = tuple(
            self._observation(track, frame, detections, embedded, row)
            for track, row in matched
            if track.confirmed
        )
        return TrackUpdate(self.camera, frame, time, size, seen, tuple(ended))

    def finish(self, frame: int, time: float, size: tuple[int, int]) -> TrackUpdate:
        """End every track, at the end of the source."""
        ended = tuple(track.id for track in self._tracks if track.confirmed)
        self._tracks.clear()
        return TrackUpdate(self.camera, frame, time, size, (), ended)

    def _was_live(self, track: _Track) -> bool:
        return self._last_time is not None and track.last_seen >= self._last_time

    def _match(
        self,
        tracks: Sequence[_Track],
        expected: Mapping[int, Boxes],
        detections: Detections,
        embedded: Embedded,
        rows: NDArray[np.intp],
        *,
        weight: float,
        limit: float,
    ) -> list[tuple[_Track, int]]:
        """One round: pairs of a track and a row of `detections`; `expected` has boxes by track id."""
        if not tracks or not len(rows):
            return []
        boxes = np.stack([expected[track.id] for track in tracks])
        cost = self._cost(tracks, boxes, detections, embedded, rows, weight)
        return [(tracks[i], int(rows[j])) for i, j in associate(cost, limit)]

    def _cost(
        self,
        tracks: Sequence[_Track],
        boxes: Boxes,
        detections: Detections,
        embedded: Embedded,
        rows: NDArray[np.intp],
        weight: float,
    ) -> NDArray[np.float64]:
        cost = (1.0 - iou_matrix(boxes, detections.boxes[rows])).astype(np.float64)
        if not self.similarity.ready:
            return cost
        distance = self._looks_distance(tracks, embedded, rows)
        known = np.isfinite(distance)
        gates = np.array([self._live_gate if self._was_live(t) else self._lost_gate for t in tracks])
        # Only pairs that overlap at all are worth a look; the rest are too dear already.
        blended = (1 - weight) * cost + weight * np.clip(distance, 0.0, 1.0)
        cost = np.where(known & (cost < 1.0), blended, cost)
        cost[known & (distance > gates[:, None])] = np.inf
        return cost

    def _looks_distance(
        self, tracks: Sequence[_Track], embedded: Embedded, rows: NDArray[np.intp]
    ) -> NDArray[np.float64]:
        """Appearance distance of every track and row; NaN where either has no embedding."""
        distance = np.full((len(tracks), len(rows)), np.nan)
        have = np.array([i for i, track in enumerate(tracks) if track.looks is not None], np.intp)
        columns = np.flatnonzero(embedded.present[rows])
        if len(have) and len(columns):
            looks = np.stack([t.looks for t in tracks if t.looks is not None])
            cosine = looks @ embedded.vectors[rows[columns]].T
            distance[np.ix_(have, columns)] = self.similarity.distance(cosine)
        return distance

    def _learn(
        self, detections: Detections, embedded: Embedded, matched: Sequence[tuple[_Track, int]]
    ) -> None:
        """Learn typical similarities from people whom nobody overlaps."""
        if not matched:
            return
        overlap = iou_matrix(detections.boxes, detections.boxes)
        np.fill_diagonal(overlap, 0.0)
        lone = embedded.present & (overlap.max(axis=1) < _CLEAR_OVERLAP)
        clear = [(track, row) for track, row in matched if lone[row]]
        vectors = embedded.vectors[[row for _, row in clear]]
        for (track, _), vector in zip(clear, vectors, strict=True):
            if track.looks is not None and track.confirmed:
                self.similarity.learn_genuine(float(track.looks @ vector))
        for cosine in (vectors @ vectors.T)[_upper(len(clear))].tolist():
            self.similarity.learn_impostor(cosine)

    def _advance(
        self,
        time: float,
        detections: Detections,
        embedded: Embedded,
        matched: Sequence[tuple[_Track, int]],
    ) -> None:
        if not matched:
            return
        _correct([track for track, _ in matched], detections.boxes[[row for _, row in matched]])
        for track, _ in matched:
            track.last_seen = time
            track.hits += 1
            track.confirmed = track.confirmed or track.hits >= self._confirm_hits
        self._mix_looks([(track, row) for track, row in matched if embedded.present[row]], embedded)

    def _mix_looks(self, matched: Sequence[tuple[_Track, int]], embedded: Embedded) -> None:
        known, rows, before = [], [], []
        for track, row in matched:
            if track.looks is None:
                track.looks = embedded.vectors[row].copy()
            else:
                known.append(track)
                rows.append(row)
                before.append(track.looks)
        if not known:
            return
        mixed = _LOOKS_MEMORY * np.stack(before) + (1 - _LOOKS_MEMORY) * embedded.vectors[rows]
        mixed /= np.maximum(np.sqrt(np.einsum("nd,nd->n", mixed, mixed)), 1e-6)[:, None]
        for track, looks in zip(known, mixed, strict=True):
            track.looks = looks

    def _retire(self, time: float) -> list[int]:
        """Drop tracks that were not seen for too long; an unconfirmed one after its first miss."""
        kept, ended = [], []
        for track in self._tracks:
            unseen = time - track.last_seen
            if (unseen > 0 and not track.confirmed) or unseen > self._lost_s:
                if track.confirmed:
                    ended.append(track.id)
            else:
                kept.append(track)
        self._tracks = kept
        return ended

    def _start(self, time: float, detections: Detections, embedded: Embedded, rows: Sequence[int]) -> None:
        for row in rows:
            if detections.scores[row] < self._new:
                continue
            box = detections.boxes[row]
            spread = max(float(box[3] - box[1]), 1.0)
            state = np.zeros((5, 4))
            state[_PLACE] = _measurements(box[None])[0]
            state[_VAR] = (_MEASURED * spread) ** 2
            state[_SPEED_VAR] = (np.array([_START_SPEED, _START_SPEED, 0.1, 0.1]) * spread) ** 2
            looks = embedded.vectors[row].copy() if embedded.present[row] else None
            self._tracks.append(
                _Track(
                    id=self._next_id,
                    state=state,
                    time=time,
                    last_seen=time,
                    confirmed=self._confirm_hits <= 1,
                    looks=looks,
                )
            )
            self._next_id += 1

    def _observation(
        self, track: _Track, frame: int, detections: Detections, embedded: Embedded, row: int
    ) -> TrackObservation:
        return TrackObservation(
            camera=self.camera,
            track_id=track.id,
            frame=frame,
            time=track.last_seen,
            box=detections.boxes[row],
            score=float(detections.scores[row]),
            vector=embedded.vectors[row] if embedded.present[row] else None,
            quality=float(embedded.quality[row]),
        )


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
