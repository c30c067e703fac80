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
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.structures import Candidates, Decision, DecisionKind, Load, TrackUpdate, iou, iou_matrix

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

_OTHER, _SAME = float(np.float32(OTHER_BOX)), float(np.float32(SAME_BOX))
"""As overlaps are compared, which are float32."""

FEW = 4
"""Pairs of crops and tracks that are compared one by one: arrays are quicker beyond."""

Picture = tuple[NDArray[np.float32], NDArray[np.float32], tuple[int, int]]
Outlook = Callable[[Sequence[Picture]], Sequence[NDArray[np.float32]]]
"""How well boxes promise to show their people; see `edge_agent.embed.quality.QualityGate.outlook`."""


class Room(Protocol):
    """See `edge_agent.embed.capacity.Budget`."""

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


@dataclass(slots=True)
class _Crop:
    """A crop beside the track that is nearest.

    Attributes:
        frame, row: where it is.
        track: whom it may show; None where no track is near.
        sure: whether it surely does.
        tier: see the module.
        urgency: orders those of a tier.
        turn: its place among those of its camera.
    """

    frame: int
    row: int
    track: _Track | None
    sure: bool
    tier: int = _REST
    urgency: float = 0.0
    turn: int = 0


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
            crops = None
            if frames and (load.settled_interval_s > 0 or load.max_crops is not None):
                crops = self._crops(frames)
                self._lower(load, frames, masks, crops)
            if self.budget is not None and any(frame.live for frame in frames):
                self._keep_up(self.budget, load, frames, masks, crops)
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

    def _lower(
        self,
        load: Load,
        frames: Sequence[Candidates],
        masks: Sequence[NDArray[np.bool_]],
        crops: Sequence[_Crop],
    ) -> None:
        for crop in crops:
            track = crop.track
            if track is not None and crop.sure and track.settled:
                since = frames[crop.frame].time - track.embedded
                masks[crop.frame][crop.row] = since < load.settled_interval_s
        if load.max_crops is not None:
            self._choose(load.max_crops, frames, masks, crops)
        _count(self.for_load, frames, masks)

    # --- to keep up ---------------------------------------------------------------------------

    def _keep_up(
        self,
        budget: Room,
        load: Load,
        frames: Sequence[Candidates],
        masks: Sequence[NDArray[np.bool_]],
        crops: Sequence[_Crop] | None,
    ) -> None:
        """Spare what live cameras have too much; `crops` are those of all frames, where they are known."""
        live = [frame for frame in frames if frame.live]
        wanted = sum(
            len(mask) - int(np.count_nonzero(mask))
            for frame, mask in zip(frames, masks, strict=True)
            if frame.live
        )
        most = budget.offer(live, wanted, load.every_nth)
        if most is None:
            budget.spend(wanted, 0)
            return
        known = self._crops(frames) if crops is None else crops
        before = [mask.copy() for mask in masks]
        chosen = self._choose(most, frames, masks, [crop for crop in known if frames[crop.frame].live])
        spared = [mask & ~was for mask, was in zip(masks, before, strict=True)]
        budget.spend(chosen, sum(map(int, map(np.count_nonzero, spared))))
        _count(self.for_overload, frames, spared)

    def _choose(
        self,
        most: int,
        frames: Sequence[Candidates],
        masks: Sequence[NDArray[np.bool_]],
        crops: Sequence[_Crop],
    ) -> int:
        """Spare all but the `most` crops that matter most; returns how many will be embedded.

        Whom the quality gate will refuse costs the engine nothing, and is neither spared nor counted.
        """
        outlooks = self._outlooks(frames)
        weak = [self._weak(frame) for frame in frames]
        wanted = [mask.tolist() for mask in masks]
        open_ = []
        for crop in crops:
            outlook = outlooks[crop.frame][crop.row]
            if outlook > 0 and not wanted[crop.frame][crop.row]:
                wait = _stand(crop, frames[crop.frame].time, weak=weak[crop.frame][crop.row])
                crop.urgency = wait * outlook
                open_.append(crop)
        order = _by_turns(open_, [frame.camera for frame in frames])
        for crop in order[:most]:
            if crop.track is not None:
                crop.track.asked = frames[crop.frame].time
        for crop in order[most:]:
            masks[crop.frame][crop.row] = True
        return min(most, len(order))

    def _weak(self, frame: Candidates) -> list[bool]:
        """Of each box whether it cannot start a track."""
        if self.new_track is None or frame.scores is None:
            return [False] * len(frame.boxes)
        weak: list[bool] = (frame.scores < self.new_track(frame.camera)).tolist()
        return weak

    def _outlooks(self, frames: Sequence[Candidates]) -> list[list[float]]:
        """Of each frame, what each box promises; 1 where that cannot be told."""
        found = [[1.0] * len(frame.boxes) for frame in frames]
        if self.outlook is not None:
            told = {
                at: (frame.boxes, frame.scores, frame.size)
                for at, frame in enumerate(frames)
                if frame.scores is not None and frame.size is not None
            }
            for at, grades in zip(told, self.outlook(list(told.values())), strict=True):
                found[at] = grades.tolist()
        return found

    # --- who is who ---------------------------------------------------------------------------

    def _crops(self, frames: Sequence[Candidates]) -> list[_Crop]:
        """All crops, in order."""
        unnamed = [at for at, frame in enumerate(frames) if frame.track_ids is None]
        near = dict(zip(unnamed, self._nearest([frames[at] for at in unnamed]), strict=True))
        crops = []
        for at, frame in enumerate(frames):
            if frame.track_ids is not None:
                given = [self._given(frame.camera, number) for number in frame.track_ids]
                crops += [_Crop(at, row, one, one is not None) for row, one in enumerate(given)]
            else:
                crops += [_Crop(at, row, track, sure) for row, (track, sure) in enumerate(near[at])]
        return crops

    def _nearest(self, frames: Sequence[Candidates]) -> list[list[tuple[_Track | None, bool]]]:
        """Of each frame, see `_assigned`."""
        tracks = [
            [
                track
                for track in self._tracks.get(frame.camera, {}).values()
                if abs(frame.time - track.seen) <= FRESH_S
            ]
            for frame in frames
        ]
        return list(map(_assigned, tracks, _overlaps(frames, tracks)))

    def _given(self, camera: str, number: int | None) -> _Track | None:
        """A track by the upstream's number."""
        return None if number is None else self._tracks.get(camera, {}).get(number)


def _stand(crop: _Crop, time: float, *, weak: bool) -> float:
    """Set the tier of a crop; for how many seconds its person has not been embedded."""
    track = crop.track
    if track is None:
        crop.tier = _REST if weak else _NEW
        return STRETCHED_S
    wait = min(max(time - max(track.embedded, track.asked), 0.0), LONGEST_S)
    if wait >= LONGEST_S or (crop.sure and not track.settled and track.crops < ENOUGH):
        crop.tier = _NEW
    elif not (crop.sure and track.settled) or track.crops < track.narrow_until:
        crop.tier = _DOUBT
    else:
        crop.tier = _SETTLED if wait >= STRETCHED_S else _REST
    return wait


def _overlaps(frames: Sequence[Candidates], tracks: Sequence[Sequence[_Track]]) -> list[list[list[float]]]:
    """Of each frame, how much each box overlaps each track's, and some that are none."""
    if sum(len(frame.boxes) * len(of) for frame, of in zip(frames, tracks, strict=True)) <= FEW:
        return [
            [[iou(box, list(track.box)) for track in of] for box in map(list, frame.boxes)]
            for frame, of in zip(frames, tracks, strict=True)
        ]
    boxes = np.zeros((len(frames), max(len(frame.boxes) for frame in frames), 4), np.float32)
    theirs = np.zeros((len(frames), max(map(len, tracks)), 4), np.float32)
    for at, (frame, of) in enumerate(zip(frames, tracks, strict=True)):
        boxes[at, : len(frame.boxes)] = frame.boxes
        if of:
            theirs[at, : len(of)] = [track.box for track in of]
    found: list[list[list[float]]] = iou_matrix(boxes, theirs).tolist()
    return [rows[: len(frame.boxes)] for rows, frame in zip(found, frames, strict=True)]


def _assigned(
    tracks: Sequence[_Track], overlaps: Sequence[Sequence[float]]
) -> list[tuple[_Track | None, bool]]:
    """For each box the track that it overlaps most, if any, and whether it is surely its."""
    close = [[at for at, overlap in enumerate(of) if overlap >= _OTHER] for of in overlaps]
    wanted = Counter(chain.from_iterable(close))
    found: list[tuple[_Track | None, bool]] = []
    for of, near in zip(overlaps, close, strict=True):
        if not near:
            found.append((None, False))
            continue
        best = max(near, key=of.__getitem__)
        found.append((tracks[best], of[best] >= _SAME and len(near) == 1 and wanted[best] == 1))
    return found


def _narrow(decision: Decision) -> bool:
    """Whether a little more evidence might have led to another decision."""
    if decision.score is None:
        return False
    if decision.threshold is not None and abs(decision.score - decision.threshold) < NARROW:
        return True
    return decision.runner_up is not None and decision.score - decision.runner_up < NARROW


def _by_turns(crops: Sequence[_Crop], cameras: Sequence[str]) -> list[_Crop]:
    """The order in which crops are taken when cameras take turns, most important first.

    What nobody needs now (the last tier) has its turn when all cameras have what they need.

    Args:
        crops: in order.
        cameras: of each frame.
    """
    turns: dict[str, int] = {}
    for crop in sorted(crops, key=lambda one: (one.tier, -one.urgency)):
        camera = cameras[crop.frame]
        crop.turn = turns[camera] = turns.get(camera, -1) + 1
    return sorted(crops, key=lambda one: (one.tier == _REST, one.turn, one.tier, -one.urgency))


def _count(counts: dict[str, int], frames: Sequence[Candidates], masks: Sequence[NDArray[np.bool_]]) -> None:
    for frame, mask in zip(frames, masks, strict=True):
        if spared := int(np.count_nonzero(mask)):
            counts[frame.camera] = counts.get(frame.camera, 0) + spared
