"""Whom not to embed when not everybody can be: while the load is lowered, and when crops exceed the engine.

A crop belongs to a track when it overlaps that track's last box clearly, no other track's, and no other
crop does. To lower the load, people who are known already are embedded less often; what is in doubt is
embedded. When the engine cannot take all crops of live cameras in time, those come first that help most:

1. new people: no track is near, or the track has shown too little for a decision; and whoever was not
   embedded for long,
2. doubt: several people at one place, tracks without a decision, decisions with a narrow lead,
3. settled people, each after a stretched interval,
4. what is left: settled people before that, and boxes too weak to start a track.

Of equals, the longest unseen comes first, and of these the one of whom the crop will show most. Cameras take
turns, one crop each, so that a crowd before one leaves the others what they need.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_agent.structures import Candidates, Decision, DecisionKind, Load, TrackUpdate, iou_matrix

__all__ = ["Outlook", "Thinning"]

SAME_BOX = 0.5
"""Least overlap (IoU) of a crop with the track that it is taken for: an ordinary match of trackers."""

OTHER_BOX = 0.2
"""Overlap with anybody else from which on it is in doubt who is who."""

FRESH_S = 1.0
"""A box older than this says nothing of where its person is now."""

ENOUGH = 8
"""Crops of a track after which it is no longer new: as many as an unknown person needs to be enrolled."""

NARROW = 0.05
"""A decision whose score is this near to the threshold, or to the second best, is looked at again soon."""

AGAIN = 10
"""Further crops for a narrow decision: as many as it needs to be reviewed."""

STRETCHED_S = 1.0
"""Between two embeddings of a settled person, while others need the engine more."""

LONGEST_S = 5.0
"""Whoever was not embedded for so long is as urgent as somebody new."""

_SETTLES = frozenset({DecisionKind.MATCHED, DecisionKind.ENROLLED, DecisionKind.CORRECTED})

_NEW, _DOUBT, _SETTLED, _REST = range(4)

Outlook = Callable[[NDArray[np.float32], NDArray[np.float32], tuple[int, int]], NDArray[np.float32]]
"""How well boxes promise to show their people; see `edge_agent.quality.QualityGate.outlook`."""


class Room(Protocol):
    """See `edge_agent.budget.Budget`."""

    def offer(self, frames: Sequence[Candidates], wanted: int, every_nth: int) -> int | None:
        """How many crops of these frames may be embedded; None for all."""

    def spend(self, crops: int, spared: int) -> None:
        """So many are, and so many are left out."""


@dataclass(slots=True)
class _Track:
    box: NDArray[np.float32]
    seen: float
    embedded: float = -math.inf
    asked: float = -math.inf
    """When it was last chosen to be embedded; the row may not have come yet."""
    crops: int = 0
    settled: bool = False
    narrow_until: int = 0
    """It is looked at again until it has shown so many crops."""

    def facts(self) -> tuple[float, float, bool, int, int]:
        """As numbers."""
        return self.embedded, self.asked, self.settled, self.crops, self.narrow_until


@dataclass(frozen=True, slots=True)
class _View:
    """The crops of a round beside the tracks that may be theirs: F frames, at most P crops and K tracks each.

    Attributes:
        wanted: `(F, P)` bool, crops that are there and not spared.
        near: `(F, P)` bool, whether a track is near.
        sure: `(F, P)` bool, whether the crop is surely that one's.
        best: `(F, P)` its place among the tracks.
        tracks: of each frame.
        embedded, asked: `(F, P)` when it was embedded last, and when that was last asked for.
        settled: `(F, P)` bool.
        fewer: `(F, P)` bool, whether it has shown fewer than `ENOUGH` crops.
        narrow: `(F, P)` bool, whether its decision is to be looked at again.

    What is said of a track means nothing where none is near.
    """

    wanted: NDArray[np.bool_]
    near: NDArray[np.bool_]
    sure: NDArray[np.bool_]
    best: NDArray[np.intp]
    tracks: tuple[tuple[_Track, ...], ...]
    embedded: NDArray[np.float64]
    asked: NDArray[np.float64]
    settled: NDArray[np.bool_]
    fewer: NDArray[np.bool_]
    narrow: NDArray[np.bool_]


@dataclass(slots=True)
class Thinning:
    """Remembers the tracks of all cameras. One thread may ask while another tells.

    Args:
        budget: what the engine takes in time; None: it is not asked, and frames are lost instead.
        outlook: what a box promises; None: all the same.
        new_track: score of a camera's detector from which on a box starts a track.
    """

    budget: Room | None = None
    outlook: Outlook | None = None
    new_track: Callable[[str], float] | None = None
    for_load: dict[str, int] = field(default_factory=dict)
    """Crops spared to lower the load, by camera."""
    for_overload: dict[str, int] = field(default_factory=dict)
    """Crops spared since the engine had no time for them, by camera."""
    _tracks: dict[str, dict[int, _Track]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def spared(self, load: Load, frames: Sequence[Candidates]) -> list[NDArray[np.bool_]]:
        """For each frame, which of its crops shall not be embedded: `(N,)` bool.

        Args:
            load: what is allowed.
            frames: the frames of one round, of any cameras.
        """
        masks = [np.zeros(len(frame.boxes), np.bool_) for frame in frames]
        with self._lock:
            if frames and (load.settled_interval_s > 0 or load.max_crops is not None):
                self._lower(load, frames, masks)
                _count(self.for_load, frames, masks)
            live = [at for at, frame in enumerate(frames) if frame.live]
            if self.budget is not None and live:
                self._keep_up(self.budget, load, [frames[at] for at in live], [masks[at] for at in live])
        return masks

    def learn(self, update: TrackUpdate, decisions: Sequence[Decision]) -> None:
        """Take in what was seen and decided in one frame."""
        with self._lock:
            tracks = self._tracks.setdefault(update.camera, {})
            for seen in update.seen:
                track = tracks.setdefault(seen.track_id, _Track(seen.box, seen.time))
                track.box, track.seen = seen.box, seen.time
                if seen.vector is not None:
                    track.embedded = seen.time
                    track.crops += 1
            for decision in decisions:
                track_of = self._tracks.get(decision.camera, {}).get(decision.track_id)
                if track_of is not None:
                    track_of.settled = decision.kind in _SETTLES
                    track_of.narrow_until = track_of.crops + AGAIN if _narrow(decision) else 0
            for ended in update.ended:
                tracks.pop(ended, None)

    # --- to lower the load --------------------------------------------------------------------

    def _lower(self, load: Load, frames: Sequence[Candidates], masks: Sequence[NDArray[np.bool_]]) -> None:
        view = self._view(frames, masks)
        since = _times(frames) - view.embedded
        known = view.near & view.sure & view.settled & (since < load.settled_interval_s)
        for mask, rows in zip(masks, known, strict=True):
            mask[:] = rows[: len(mask)]
        if load.max_crops is not None:
            self._choose(load.max_crops, frames, masks)

    # --- to keep up ---------------------------------------------------------------------------

    def _keep_up(
        self, budget: Room, load: Load, frames: Sequence[Candidates], masks: Sequence[NDArray[np.bool_]]
    ) -> None:
        wanted = sum(map(np.size, masks)) - sum(map(np.count_nonzero, masks))
        most = budget.offer(frames, wanted, load.every_nth)
        if most is None:
            budget.spend(wanted, 0)
            return
        before = [mask.copy() for mask in masks]
        chosen = self._choose(most, frames, masks)
        spared = [mask & ~was for mask, was in zip(masks, before, strict=True)]
        budget.spend(chosen, sum(map(np.count_nonzero, spared)))
        _count(self.for_overload, frames, spared)

    def _choose(self, most: int, frames: Sequence[Candidates], masks: Sequence[NDArray[np.bool_]]) -> int:
        """Spare all but the `most` crops that matter most; returns how many will be embedded.

        Whom the quality gate will refuse costs the engine nothing, and is neither spared nor counted.
        """
        view = self._view(frames, masks)
        outlook = self._outlook(frames, view)
        tier, wait = self._standing(frames, view)
        at, row = np.nonzero(view.wanted & (outlook > 0))
        numbers: dict[str, int] = {}
        cameras = np.array([numbers.setdefault(frame.camera, len(numbers)) for frame in frames], np.intp)
        chosen = _by_turns(most, cameras[at], tier[at, row], (wait * outlook)[at, row])
        near = view.near[at, row] & chosen
        for n in np.flatnonzero(~chosen).tolist():
            masks[at[n]][row[n]] = True
        for n in np.flatnonzero(near).tolist():
            view.tracks[at[n]][view.best[at[n], row[n]]].asked = frames[at[n]].time
        return int(np.count_nonzero(chosen))

    def _standing(
        self, frames: Sequence[Candidates], view: _View
    ) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """`(F, P)` tier of each crop, and for how many seconds its person has not been embedded."""
        since = _times(frames) - np.maximum(view.embedded, view.asked)
        wait = np.where(view.near, np.clip(since, 0.0, LONGEST_S), STRETCHED_S)
        doubt = ~(view.sure & view.settled) | view.narrow
        tier = np.where(doubt, _DOUBT, np.where(wait >= STRETCHED_S, _SETTLED, _REST))
        tier[(wait >= LONGEST_S) | (view.sure & ~view.settled & view.fewer)] = _NEW
        return np.where(view.near, tier, np.where(self._weak(frames, view), _REST, _NEW)), wait

    def _weak(self, frames: Sequence[Candidates], view: _View) -> NDArray[np.bool_]:
        """`(F, P)` whether a box cannot start a track."""
        weak = np.zeros(view.wanted.shape, np.bool_)
        if self.new_track is not None:
            for row, frame in zip(weak, frames, strict=True):
                if frame.scores is not None:
                    row[: len(frame.scores)] = frame.scores < self.new_track(frame.camera)
        return weak

    def _outlook(self, frames: Sequence[Candidates], view: _View) -> NDArray[np.float32]:
        """`(F, P)` what each box promises; 1 where that cannot be told."""
        found = np.ones(view.wanted.shape, np.float32)
        if self.outlook is None:
            return found
        for size in {frame.size for frame in frames if frame.size is not None}:
            at = [n for n, frame in enumerate(frames) if frame.size == size and frame.scores is not None]
            boxes, scores = _padded([frames[n] for n in at], view.wanted.shape[-1])
            found[at] = self.outlook(boxes, scores, size)
        return found

    # --- who is who ---------------------------------------------------------------------------

    def _view(self, frames: Sequence[Candidates], masks: Sequence[NDArray[np.bool_]]) -> _View:
        width = max(1, *(len(frame.boxes) for frame in frames))
        wanted = np.zeros((len(frames), width), np.bool_)
        for row, mask in zip(wanted, masks, strict=True):
            row[: len(mask)] = ~mask
        tracks = tuple(self._near(frame) for frame in frames)
        most = max(1, *map(len, tracks))
        theirs = np.zeros((len(frames), most, 4), np.float32)
        facts = np.zeros((len(frames), most, 5))
        for boxes, told, of in zip(theirs, facts, tracks, strict=True):
            if of:
                boxes[: len(of)] = [track.box for track in of]
                told[: len(of)] = [track.facts() for track in of]
        overlap = iou_matrix(_padded(frames, width)[0], theirs)
        best, close = overlap.argmax(axis=2), overlap >= OTHER_BOX
        rows = np.arange(len(frames))[:, None]
        near: NDArray[np.bool_] = np.asarray(close.any(axis=2))
        sure: NDArray[np.bool_] = np.asarray(overlap.max(axis=2) >= SAME_BOX)
        sure &= (close.sum(axis=2) == 1) & (close.sum(axis=1)[rows, best] == 1)
        for at, frame in enumerate(frames):
            if frame.track_ids is not None:
                place = {id(track): n for n, track in enumerate(tracks[at])}
                given = [self._given(frame.camera, number) for number in frame.track_ids]
                near[at, : len(given)] = sure[at, : len(given)] = [one is not None for one in given]
                best[at, : len(given)] = [place.get(id(one), 0) for one in given]
        embedded, asked, settled, crops, narrow_until = np.moveaxis(facts[rows, best], 2, 0)
        return _View(
            wanted, near, sure, best, tracks,
            embedded, asked, settled > 0, crops < ENOUGH, crops < narrow_until,
        )  # fmt: skip

    def _near(self, frame: Candidates) -> tuple[_Track, ...]:
        """The tracks that crops of this frame may belong to."""
        if frame.track_ids is not None:
            given = (self._given(frame.camera, number) for number in frame.track_ids)
            return tuple(track for track in given if track is not None)
        tracks = self._tracks.get(frame.camera, {}).values()
        return tuple(track for track in tracks if abs(frame.time - track.seen) <= FRESH_S)

    def _given(self, camera: str, number: int | None) -> _Track | None:
        """A track by the upstream's number."""
        return None if number is None else self._tracks.get(camera, {}).get(number)


def _times(frames: Sequence[Candidates]) -> NDArray[np.float64]:
    """`(F, 1)` seconds."""
    return np.array([[frame.time] for frame in frames])


def _padded(frames: Sequence[Candidates], width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Boxes `(F, width, 4)` and scores `(F, width)`, filled up with zeros."""
    boxes = np.zeros((len(frames), width, 4), np.float32)
    scores = np.zeros((len(frames), width), np.float32)
    for at, frame in enumerate(frames):
        boxes[at, : len(frame.boxes)] = frame.boxes
        if frame.scores is not None:
            scores[at, : len(frame.boxes)] = frame.scores
    return boxes, scores


def _narrow(decision: Decision) -> bool:
    """Whether a little more evidence might have led to another decision."""
    if decision.score is None:
        return False
    if decision.threshold is not None and abs(decision.score - decision.threshold) < NARROW:
        return True
    return decision.runner_up is not None and decision.score - decision.runner_up < NARROW


def _by_turns(
    most: int, camera: NDArray[np.intp], tier: NDArray[np.intp], urgency: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """The `most` rows that are taken when cameras take turns, most important first: `(N,)` bool.

    What nobody needs now (the last tier) has its turn when all cameras have what they need.
    """
    order = np.lexsort((-urgency, tier, camera))
    turn = np.empty(len(order), np.intp)
    begins = np.searchsorted(camera[order], camera[order])
    turn[order] = np.arange(len(order)) - begins
    chosen = np.zeros(len(order), np.bool_)
    chosen[np.lexsort((-urgency, tier, turn, tier == _REST))[:most]] = True
    return chosen


def _count(counts: dict[str, int], frames: Sequence[Candidates], masks: Sequence[NDArray[np.bool_]]) -> None:
    for frame, mask in zip(frames, masks, strict=True):
        if spared := int(np.count_nonzero(mask)):
            counts[frame.camera] = counts.get(frame.camera, 0) + spared
