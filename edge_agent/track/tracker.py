"""Tracks of one camera, from the boxes of single frames.

The association is in `edge_agent.track.association`, the Kalman filter in `edge_agent.track.kalman`. The
clock is the time of the frames, so that nothing depends on the frame rate. The scale of similarities is
learned from the scene: the typical similarity of one track with itself and of two people in one frame.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import compress
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.structures import (
    Detections,
    Embedded,
    ScoreLevels,
    TrackObservation,
    TrackUpdate,
    iou_matrix,
)
from edge_agent.track.association import CameraFrame, JointUpdate, Pairs
from edge_agent.track.tracks import KNOWN, LAST_SEEN, Similarity, TrackTable

if TYPE_CHECKING:
    from edge_agent.core.config import TrackerSettings

_CLEAR_OVERLAP = 0.05
"""Overlap with another person below which a crop shows one person."""
_FIRST_OVERLAP = 0.3
"""The same, until the similarities are known: people who walk side by side from the first frame on overlap,
and the tracker must not take one for the other for want of samples."""

_PART = 0.2
"""Share of a box inside a larger one from which on it may be a part of that person. Of HOG's boxes in a real
video .82 are people from here on, and .91 below."""

_LEARN_EVERY = 8
"""Of a settled scene, the similarities are learned from every 8th frame: they change with the light only."""

_PAUSE = 5.0
"""An interval between frames of this many times the one before it is a pause, if it exceeds `lost_s`."""

MAX_JOINT_TRACKS = 128
"""Tracks updated in one pass: beyond, the pairs of different cameras cost more than the pass saves."""


class Tracker:
    """Tracks of one camera, with numbers of its own. Not for use from two threads.

    The scale of similarities depends on the network more than on the camera, so that cameras that share one
    `similarity` learn sooner. Tracks are numbered from `first_number`.
    """

    def __init__(
        self,
        camera: str,
        settings: TrackerSettings,
        levels: ScoreLevels,
        similarity: Similarity | None = None,
        first_number: int = 1,
    ) -> None:
        self.camera = camera
        self.settings = settings
        self.similarity = similarity or Similarity()
        self._levels = levels
        self._tracks = TrackTable()
        self._next_id = first_number
        self._last_time: float | None = None
        self._interval = math.inf

    def __len__(self) -> int:
        return len(self._tracks)

    def update(
        self, frame: int, time: float, size: tuple[int, int], detections: Detections, embedded: Embedded
    ) -> TrackUpdate:
        """Process one frame: return confirmed tracks with a detection in it, and the tracks that ended.

        `time` is in Unix seconds; if it goes back, the time of the last frame is used. `size` is
        `(width, height)` in pixels. `embedded` has the embeddings of the N detections, where present.
        """
        return update_tracks([TrackInput(self, frame, time, size, detections, embedded)])[0]

    def finish(self, frame: int, time: float, size: tuple[int, int]) -> TrackUpdate:
        """End every track, at the end of the source."""
        ended = tuple(compress(self._tracks.ids, self._confirmed))
        self._tracks = TrackTable()
        return TrackUpdate(self.camera, frame, time, size, (), ended)

    def begin_frame(self, time: float, detections: Detections, embedded: Embedded) -> CameraFrame:
        """Return the tracks and this frame's detections, to be associated."""
        last = time if self._last_time is None else self._last_time
        self._last_time = max(time, last)
        dt = self._last_time - last
        # After a pause of the recording, or an outage, nobody is where they were. A slow camera has no pause.
        paused = dt > max(self.settings.lost_s, _PAUSE * self._interval)
        ended = self._end_lost(self._last_time) if paused else ()
        if dt > 0:
            self._interval = dt
        return CameraFrame(
            tracks=self._tracks,
            time=self._last_time,
            last=last,
            ended=ended,
            levels=self._levels,
            detections=detections,
            embedded=embedded,
        )

    def learn(self, frame: int, given: CameraFrame, pairs: Pairs) -> None:
        """Learn typical similarities from people whom no other person overlaps."""
        rows, found = pairs
        if not rows or (self.similarity.settled and frame % _LEARN_EVERY):
            return
        vectors, confirmed = given.embedded.vectors, self._confirmed
        limit = _CLEAR_OVERLAP if self.similarity.ready else _FIRST_OVERLAP
        usable, present = _isolated(given.detections.boxes, limit), given.embedded.present.tolist()
        chosen = [(row, at) for row, at in zip(rows, found, strict=True) if usable[at] and present[at]]
        known = self._tracks.facts[KNOWN].tolist()
        old = [pair for pair in chosen if known[pair[0]] and confirmed[pair[0]]]
        if old:
            before = self._tracks.appearance(vectors.shape[1]).take([row for row, _ in old], axis=0)
            now = vectors.take([at for _, at in old], axis=0)
            self.similarity.learn_genuine(np.einsum("nd,nd->n", before, now))
        if len(chosen) > 1:
            people = vectors[[at for _, at in chosen]]
            self.similarity.learn_impostor((people @ people.T)[_upper_triangle(len(chosen))])

    def end_frame(self, frame: int, size: tuple[int, int], given: CameraFrame, pairs: Pairs) -> TrackUpdate:
        """Report what was seen, end and start tracks."""
        _, found = pairs
        seen = self._observations(frame, given, pairs)
        ended = given.ended
        if given.lost:
            ended += self._end_lost(given.time)
        if len(found) < len(given.detections):
            self._start(given, found)
        return TrackUpdate(self.camera, frame, given.time, size, seen, ended)

    @property
    def _confirmed(self) -> list[bool]:
        confirmed: list[bool] = self._tracks.confirmed(self.settings.confirm_hits).tolist()
        return confirmed

    def _observations(self, frame: int, given: CameraFrame, pairs: Pairs) -> tuple[TrackObservation, ...]:
        ids, confirmed = self._tracks.ids, given.confirmed
        boxes, vectors = list(given.detections.boxes), list(given.embedded.vectors)
        scores, quality = given.detections.scores.tolist(), given.embedded.quality.tolist()
        present = given.embedded.present.tolist()
        sure = _sure(given.detections, self._levels.sure)
        return tuple([
            TrackObservation(
                self.camera, ids[row], frame, given.time, boxes[at], scores[at],
                vectors[at] if present[at] else None, quality[at], sure[at],
            )
            for row, at in zip(*pairs, strict=True)
            if confirmed[row]
        ])  # fmt: skip

    def _end_lost(self, time: float) -> tuple[int, ...]:
        """Drop tracks that were not seen for too long, unconfirmed ones after the first miss."""
        tracks, confirmed = self._tracks, self._tracks.confirmed(self.settings.confirm_hits)
        kept = time - tracks.facts[LAST_SEEN] <= np.where(confirmed, self.settings.lost_s, 0.0)
        ended = tuple(compress(tracks.ids, (confirmed & ~kept).tolist()))
        tracks.keep(np.flatnonzero(kept).tolist())
        return ended

    def _start(self, given: CameraFrame, taken: list[int]) -> None:
        """Start a track from each unmatched detection of sufficient score."""
        scores = given.detections.scores
        enough = (scores >= self._levels.new_track) & (scores >= np.float64(self._levels.high))
        enough[taken] = False
        found = np.flatnonzero(enough)
        if not len(found):
            return
        rows = self._tracks.add(self._next_id, given.time, given.detections.boxes[found])
        self._next_id += len(found)
        vectors = given.embedded.vectors[found]
        if width := vectors.shape[1]:  # 0 where the engine failed; vectors are 0 where there is no embedding
            self._tracks.appearance(width)[rows] = vectors
            self._tracks.facts[KNOWN, rows] = given.embedded.present[found]


class TrackInput(NamedTuple):
    """One frame for the tracker of its camera; see `Tracker.update`."""

    tracker: Tracker
    frame: int
    time: float
    size: tuple[int, int]
    detections: Detections
    embedded: Embedded


def update_tracks(frames: Iterable[TrackInput]) -> list[TrackUpdate]:
    """Process one frame of each of several cameras; the result is the same as camera by camera."""
    done: list[TrackUpdate] = []
    group: list[TrackInput] = []
    tracks = 0
    for one in frames:
        wanted = max(len(one.tracker), len(one.detections))
        if group and (tracks + wanted > MAX_JOINT_TRACKS or not _joinable(one.tracker, group[0].tracker)):
            done += _update_group(group)
            group, tracks = [], 0
        group.append(one)
        tracks += wanted
    return done + (_update_group(group) if group else [])


def _joinable(a: Tracker, b: Tracker) -> bool:
    return a.similarity is b.similarity and a.settings is b.settings


def _update_group(inputs: Sequence[TrackInput]) -> list[TrackUpdate]:
    given = [one.tracker.begin_frame(one.time, one.detections, one.embedded) for one in inputs]
    joint = JointUpdate(given, inputs[0].tracker.settings, inputs[0].tracker.similarity)
    matched = joint.match()
    for one, its, pairs in zip(inputs, given, matched, strict=True):
        one.tracker.learn(one.frame, its, pairs)
    joint.correct(matched)
    return [
        one.tracker.end_frame(one.frame, one.size, its, pairs)
        for one, its, pairs in zip(inputs, given, matched, strict=True)
    ]


@lru_cache(maxsize=64)
def _upper_triangle(count: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices of every pair of `count` things once."""
    return np.triu_indices(count, k=1)


def _isolated(boxes: NDArray[np.float32], limit: float) -> list[bool]:
    """For each box, whether every other overlaps it by less than `limit`."""
    if len(boxes) == 1:
        return [True]
    overlap = iou_matrix(boxes, boxes)
    np.fill_diagonal(overlap, 0.0)
    isolated: list[bool] = (overlap.max(axis=1) < limit).tolist()
    return isolated


def _sure(detections: Detections, level: float) -> list[bool]:
    """For each detection, whether it surely shows one whole person, see `ScoreLevels`."""
    if level <= 0 or not len(detections):
        return [True] * len(detections)
    boxes = detections.boxes
    corner = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    opposite = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = np.prod(np.clip(opposite - corner, 0, None), axis=2)
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    part = ((shared > _PART * area[:, None]) & (area[None, :] > area[:, None])).any(axis=1)
    sure: list[bool] = ((detections.scores >= level) & ~part).tolist()
    return sure
