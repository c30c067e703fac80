"""Choose the crops that are not embedded: while the load is lowered, and when crops exceed the engine.

To lower the load, people with a settled identity are embedded less often. When the engine cannot embed all
crops of live cameras in time, crops are taken by tier, and cameras take turns; docs/overload.md defines both.
A crop certainly belongs to a track when it clearly overlaps that track's last box, no other track's, and no
other crop overlaps that box.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.structures import Candidates, Load, iou_matrix

if TYPE_CHECKING:
    from edge_agent.embed.capacity import CropBudget
    from edge_agent.identify.tracks import Track, TrackTable

SAME_BOX = float(np.float32(0.5))
"""Least overlap (IoU) of a crop with its track: an ordinary match of trackers. Rounded as overlaps are."""
OTHER_BOX = float(np.float32(0.2))
"""Overlap with another box from which on the identity of a crop is in doubt."""
FRESH_S = 1.0
"""A box older than this does not show where its person is now."""
STRETCHED_S = 1.0
"""Interval between two embeddings of a settled person while other crops need the engine."""
LONGEST_S = 5.0
"""A person who was not embedded for this long is as urgent as a new one."""

_NEW, _DOUBT, _SETTLED, _REST = range(4)


@dataclass(slots=True)
class _Crop:
    """One crop of a round.

    Attributes:
        track: the nearest track; None where no track is near.
        certain: whether the crop belongs to it without doubt.
        grade: of its box; 0 for a crop that the quality gate refuses.
        tier: position in the list of docs/overload.md; `urgency` is the order within it.
        turn: position among the crops of its camera.
    """

    frame: int
    row: int
    track: Track | None
    certain: bool
    grade: float
    tier: int = _REST
    urgency: float = 0.0
    turn: int = 0


Crops = Sequence[_Crop]
Masks = Sequence[NDArray[np.bool_]]


class CropSelector:
    """Chooses crops of all cameras. Runs on the thread that identifies.

    Without a `budget` no crop is spared for overload, and frames are lost instead. `new_track` returns the
    score of a camera's detector from which on a box starts a track.
    """

    def __init__(
        self,
        tracks: TrackTable,
        budget: CropBudget | None = None,
        new_track: Callable[[str], float] | None = None,
    ) -> None:
        self.budget = budget
        self.for_load: Counter[str] = Counter()
        """Crops spared to lower the load, by camera."""
        self.for_overload: Counter[str] = Counter()
        """Crops spared because the engine had no time for them, by camera."""
        self._tracks = tracks
        self._new_track = new_track

    @property
    def counts(self) -> Counter[str]:
        """All spared crops, by camera."""
        return self.for_load.copy() + self.for_overload.copy()  # other threads read it

    def spared(self, load: Load, frames: Sequence[Candidates]) -> list[NDArray[np.bool_]]:
        """Return for each frame of one round the crops that shall not be embedded: `(N,)` bool.

        Crops that the quality gate refuses cost the engine nothing; they are neither spared nor counted.
        """
        masks = [np.zeros(len(frame.boxes), np.bool_) for frame in frames]
        crops = None
        if frames and (load.settled_interval_s > 0 or load.max_crops is not None):
            crops = self._crops(frames)
            self._lower(load, frames, masks, crops)
            _count(self.for_load, frames, masks)
        if self.budget is not None and any(frame.live for frame in frames):
            self._keep_up(self.budget, load, frames, masks, crops)
        return masks

    def _lower(self, load: Load, frames: Sequence[Candidates], masks: Masks, crops: Sequence[_Crop]) -> None:
        """Spare settled people until their interval has passed, and what exceeds the allowed crops."""
        for crop in crops:
            track = crop.track
            if track is not None and crop.certain and track.number is not None and crop.grade > 0:
                since = frames[crop.frame].time - track.embedded_at
                masks[crop.frame][crop.row] = since < load.settled_interval_s
        if load.max_crops is not None:
            self._choose(load.max_crops, frames, masks, crops)

    def _keep_up(
        self, budget: CropBudget, load: Load, frames: Sequence[Candidates], masks: Masks, crops: Crops | None
    ) -> None:
        """Spare crops of live cameras that exceed the budget; `crops` are those of all frames, if known."""
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
        before = [mask.copy() for mask in masks]
        candidates = [crop for crop in crops or self._crops(frames) if frames[crop.frame].live]
        chosen = self._choose(most, frames, masks, candidates)
        spared = [mask & ~was for mask, was in zip(masks, before, strict=True)]
        budget.spend(chosen, sum(int(np.count_nonzero(mask)) for mask in spared))
        _count(self.for_overload, frames, spared)

    def _choose(self, most: int, frames: Sequence[Candidates], masks: Masks, crops: Sequence[_Crop]) -> int:
        """Spare all but the `most` crops that matter most; return the number that will be embedded."""
        spared = [mask.tolist() for mask in masks]
        wanted = [crop for crop in crops if crop.grade > 0 and not spared[crop.frame][crop.row]]
        for crop in wanted:
            self._prioritise(crop, frames[crop.frame])
        order = _by_turns(wanted, [frame.camera for frame in frames])
        for crop in order[:most]:
            if crop.track is not None:
                crop.track.requested_at = frames[crop.frame].time
        for crop in order[most:]:
            masks[crop.frame][crop.row] = True
        return min(most, len(order))

    def _prioritise(self, crop: _Crop, frame: Candidates) -> None:
        """Set the tier and the urgency of a crop."""
        track, wait = crop.track, STRETCHED_S
        if track is None:
            score = math.inf if frame.scores is None else frame.scores[crop.row]
            weak = self._new_track is not None and score < np.float32(self._new_track(frame.camera))
            crop.tier = _REST if weak else _NEW
        else:
            wait = min(max(frame.time - max(track.embedded_at, track.requested_at), 0.0), LONGEST_S)
            settled = crop.certain and track.number is not None
            needed = self._tracks.crops_wanted(track) > 0
            if wait >= LONGEST_S or (crop.certain and not settled and needed):
                crop.tier = _NEW
            elif not settled or needed:
                crop.tier = _DOUBT
            else:
                crop.tier = _SETTLED if wait >= STRETCHED_S else _REST
        crop.urgency = wait * crop.grade

    def _crops(self, frames: Sequence[Candidates]) -> list[_Crop]:
        """Return all crops, in order."""
        unnamed = [at for at, frame in enumerate(frames) if frame.track_ids is None]
        near = dict(zip(unnamed, self._nearest([frames[at] for at in unnamed]), strict=True))
        crops = []
        for at, frame in enumerate(frames):
            grades = [1.0] * len(frame.boxes) if frame.grades is None else frame.grades.tolist()
            owners = near.get(at)
            if owners is None:
                numbers = frame.track_ids or ()
                found = [None if n is None else self._tracks.find(frame.camera, n) for n in numbers]
                owners = [(track, track is not None) for track in found]
            crops += [
                _Crop(at, row, track, certain, grade)
                for row, ((track, certain), grade) in enumerate(zip(owners, grades, strict=True))
            ]
        return crops

    def _nearest(self, frames: Sequence[Candidates]) -> list[list[tuple[Track | None, bool]]]:
        """Return for each frame the track of each crop, see `_assigned`."""
        if not frames:
            return []
        tracks = [
            [one for one in self._tracks.present(of.camera) if abs(of.time - one.last.time) <= FRESH_S]
            for of in frames
        ]
        return list(map(_assigned, tracks, _overlaps(frames, tracks)))


def _overlaps(frames: Sequence[Candidates], tracks: Sequence[Sequence[Track]]) -> list[list[list[float]]]:
    """Return for each frame the overlaps of each box with each track, padded with zeros."""
    boxes = np.zeros((len(frames), max(len(frame.boxes) for frame in frames), 4), np.float32)
    theirs = np.zeros((len(frames), max(map(len, tracks)), 4), np.float32)
    for at, (frame, of) in enumerate(zip(frames, tracks, strict=True)):
        boxes[at, : len(frame.boxes)] = frame.boxes
        if of:
            theirs[at, : len(of)] = [track.last.box for track in of]
    found: list[list[list[float]]] = iou_matrix(boxes, theirs).tolist()
    return [rows[: len(frame.boxes)] for rows, frame in zip(found, frames, strict=True)]


def _assigned(
    tracks: Sequence[Track], overlaps: Sequence[Sequence[float]]
) -> list[tuple[Track | None, bool]]:
    """Return for each box the track that it overlaps most, if any, and whether it certainly belongs to it."""
    close = [[at for at, overlap in enumerate(of) if overlap >= OTHER_BOX] for of in overlaps]
    wanted = Counter(chain.from_iterable(close))
    found: list[tuple[Track | None, bool]] = []
    for of, near in zip(overlaps, close, strict=True):
        if not near:
            found.append((None, False))
            continue
        best = max(near, key=of.__getitem__)
        found.append((tracks[best], of[best] >= SAME_BOX and len(near) == 1 and wanted[best] == 1))
    return found


def _by_turns(crops: Sequence[_Crop], cameras: Sequence[str]) -> list[_Crop]:
    """Return crops in the order in which cameras (of each frame) take turns, most important first.

    Crops of the last tier come after all others.
    """
    turns: Counter[str] = Counter()
    for crop in sorted(crops, key=lambda one: (one.tier, -one.urgency)):
        camera = cameras[crop.frame]
        crop.turn = turns[camera]
        turns[camera] += 1
    return sorted(crops, key=lambda one: (one.tier == _REST, one.turn, one.tier, -one.urgency))


def _count(counts: Counter[str], frames: Sequence[Candidates], masks: Masks) -> None:
    for frame, mask in zip(frames, masks, strict=True):
        if spared := int(np.count_nonzero(mask)):
            counts[frame.camera] += spared
