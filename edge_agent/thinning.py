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
"""Boxes, scores, `(width, height)` -> how well each box promises to show its person: `(N,)` 0..1, 0 where it
will be refused; see `edge_agent.quality.QualityGate.outlook`."""


class Room(Protocol):
    """See `edge_agent.budget.Budget`."""

    def offer(self, frames: Sequence[Candidates], every_nth: int) -> int | None:
        """How many crops of these frames may be embedded; None for all."""

    def spend(self, crops: int) -> None:
        """So many are."""


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


@dataclass(frozen=True, slots=True)
class _Row:
    """One crop: the track that is near, if any, and whether it surely is that one's."""

    track: _Track | None
    sure: bool


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
        known = [self._known(frame) for frame in frames]
        for frame, rows, mask in zip(frames, known, masks, strict=True):
            mask[:] = [
                row.sure
                and row.track is not None
                and row.track.settled
                and frame.time - row.track.embedded < load.settled_interval_s
                for row in rows
            ]
        if load.max_crops is not None:
            self._choose(load.max_crops, frames, known, masks)

    # --- to keep up ---------------------------------------------------------------------------

    def _keep_up(
        self, budget: Room, load: Load, frames: Sequence[Candidates], masks: Sequence[NDArray[np.bool_]]
    ) -> None:
        most = budget.offer(frames, load.every_nth)
        before = [mask.copy() for mask in masks]
        wanted = sum(map(np.size, masks)) - sum(map(np.count_nonzero, masks))
        if most is not None and wanted > most:
            wanted = self._choose(most, frames, [self._known(frame) for frame in frames], masks)
        budget.spend(wanted)
        spared = [mask & ~was for mask, was in zip(masks, before, strict=True)]
        _count(self.for_overload, frames, spared)

    def _choose(
        self,
        most: int,
        frames: Sequence[Candidates],
        known: Sequence[Sequence[_Row]],
        masks: Sequence[NDArray[np.bool_]],
    ) -> int:
        """Spare all but the `most` crops that matter most; returns how many will be embedded.

        Whom the quality gate will refuse costs the engine nothing, and is neither spared nor counted.
        """
        graded = [
            self._grade(frame, rows, ~mask) for frame, rows, mask in zip(frames, known, masks, strict=True)
        ]
        at = np.concatenate([np.full(len(rows), n) for n, (rows, _, _) in enumerate(graded)])
        row = np.concatenate([rows for rows, _, _ in graded])
        tier = np.concatenate([tiers for _, tiers, _ in graded])
        urgency = np.concatenate([urgencies for _, _, urgencies in graded])
        chosen = _by_turns(
            most, np.unique([f.camera for f in frames], return_inverse=True)[1][at], tier, urgency
        )
        for n in np.flatnonzero(~chosen).tolist():
            masks[at[n]][row[n]] = True
        for n in np.flatnonzero(chosen).tolist():
            track = known[at[n]][row[n]].track
            if track is not None:
                track.asked = frames[at[n]].time
        return int(np.count_nonzero(chosen))

    def _grade(
        self, frame: Candidates, rows: Sequence[_Row], wanted: NDArray[np.bool_]
    ) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
        """Rows of a frame that are wanted and will not be refused, their tiers, and how urgent each is."""
        outlook = np.ones(len(rows), np.float32)
        if self.outlook is not None and frame.scores is not None and frame.size is not None:
            outlook = self.outlook(frame.boxes, frame.scores, frame.size)
        left = np.flatnonzero(wanted & (outlook > 0))
        weak = np.zeros(len(rows), np.bool_)
        if self.new_track is not None and frame.scores is not None:
            weak = frame.scores < self.new_track(frame.camera)
        told = [_standing(rows[n], frame.time, bool(weak[n])) for n in left.tolist()]
        tiers = np.array([tier for tier, _ in told], np.intp)
        waits = np.array([wait for _, wait in told], np.float64)
        return left, tiers, waits * outlook[left]

    # --- who is who ---------------------------------------------------------------------------

    def _known(self, frame: Candidates) -> list[_Row]:
        """The track of each crop, by the upstream's number or by overlap."""
        tracks = self._tracks.get(frame.camera, {})
        if frame.track_ids is not None:
            return [
                _Row(tracks.get(given) if given is not None else None, sure=True) for given in frame.track_ids
            ]
        fresh = [track for track in tracks.values() if abs(frame.time - track.seen) <= FRESH_S]
        if not fresh or not len(frame.boxes):
            return [_Row(None, sure=False)] * len(frame.boxes)
        overlap = iou_matrix(frame.boxes, np.stack([track.box for track in fresh]))
        near = overlap >= OTHER_BOX
        best = overlap.argmax(axis=1)
        most = overlap.max(axis=1)
        alone = (near.sum(axis=1) == 1) & (near.sum(axis=0)[best] == 1)
        return [
            _Row(fresh[column] if close else None, sure=sure)
            for column, close, sure in zip(
                best.tolist(),
                (most >= OTHER_BOX).tolist(),
                (alone & (most >= SAME_BOX)).tolist(),
                strict=True,
            )
        ]


def _standing(row: _Row, time: float, weak: bool) -> tuple[int, float]:
    """Tier of a crop, and for how many seconds its person has not been embedded."""
    track = row.track
    if track is None:
        return (_REST if weak else _NEW), STRETCHED_S
    wait = min(LONGEST_S, max(0.0, time - max(track.embedded, track.asked)))
    if wait >= LONGEST_S or (row.sure and not track.settled and track.crops < ENOUGH):
        return _NEW, wait
    if not row.sure or not track.settled or track.crops < track.narrow_until:
        return _DOUBT, wait
    return (_SETTLED if wait >= STRETCHED_S else _REST), wait


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
