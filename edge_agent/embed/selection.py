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
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.structures import Candidates, Load, overlapping
from edge_agent.embed.capacity import late

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
class _Crops:
    """All N crops of a round, in order; arrays are `(N,)`.

    Attributes:
        frame, row: place of a crop in the round.
        owner: place of its nearest track in `tracks`; -1 where no track is near.
        certain: whether the crop belongs to it without doubt.
        grade: of its box; 0 for a crop that the quality gate refuses.
    """

    tracks: list[Track]
    frame: NDArray[np.intp]
    row: NDArray[np.intp]
    owner: NDArray[np.intp]
    certain: NDArray[np.bool_]
    grade: NDArray[np.float64]

    def of_tracks(self, values: Sequence[float], default: float) -> NDArray[np.float64]:
        """`(N,)`: the value of each crop's track, of `values` by track; `default` where no track is near."""
        return np.array([*values, default]).take(self.owner)  # -1 is the last

    def take(self, wanted: NDArray[np.bool_]) -> _Crops:
        """Return some of the crops."""
        arrays = (self.frame, self.row, self.owner, self.certain, self.grade)
        places = wanted.nonzero()[0]
        return _Crops(self.tracks, *(array.take(places) for array in arrays))  # type: ignore[arg-type]


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

    @property
    def catches_up(self) -> bool:
        """Whether late frames can be processed, too, since leaving out crops makes up for them."""
        return self.budget is not None and self.budget.helps

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

    def _lower(self, load: Load, frames: Sequence[Candidates], masks: Masks, crops: _Crops) -> None:
        """Spare settled people until their interval has passed, and what exceeds the allowed crops."""
        if load.settled_interval_s > 0:
            settled = crops.of_tracks([track.number is not None for track in crops.tracks], False) > 0
            embedded_at = crops.of_tracks([track.embedded_at for track in crops.tracks], 0.0)
            since = _times(frames)[crops.frame] - embedded_at
            spared = settled & crops.certain & (crops.grade > 0) & (since < load.settled_interval_s)
            _spare(masks, crops.take(spared))
        if load.max_crops is not None:
            self._choose(load.max_crops, frames, masks, crops)

    def _keep_up(
        self,
        budget: CropBudget,
        load: Load,
        frames: Sequence[Candidates],
        masks: Masks,
        crops: _Crops | None,
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
            budget.spend(wanted)
            return
        before = [mask.copy() for mask in masks]
        crops = crops or self._crops(frames)
        if len(live) < len(frames):
            crops = crops.take(np.array([frame.live for frame in frames])[crops.frame])
        chosen = self._choose(most, frames, masks, crops)
        spared = [mask & ~was for mask, was in zip(masks, before, strict=True)]
        budget.spend(chosen)
        _count(self.for_overload, frames, spared)

    def _choose(self, most: int, frames: Sequence[Candidates], masks: Masks, crops: _Crops) -> int:
        """Spare all but the `most` crops that matter most; return the number that will be embedded."""
        starts = np.cumsum([0, *map(len, masks)])
        free = ~np.concatenate(masks)[starts[crops.frame] + crops.row]
        wanted = crops.take(free & (crops.grade > 0))
        tier, urgency = self._priorities(wanted, frames)
        order = _by_turns(tier, urgency, _camera_places(frames)[wanted.frame])
        chosen = order[:most]
        for owner, frame in zip(wanted.owner[chosen].tolist(), wanted.frame[chosen].tolist(), strict=True):
            if owner >= 0:
                wanted.tracks[owner].requested_at = frames[frame].time
        left = np.ones(len(order), np.bool_)
        left[chosen] = False
        _spare(masks, wanted.take(left))
        return min(most, len(order))

    def _priorities(
        self, crops: _Crops, frames: Sequence[Candidates]
    ) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Return the tier of each crop, as in docs/overload.md, and its urgency within that."""
        tracks = crops.tracks
        owned = crops.owner >= 0
        embedded_at = crops.of_tracks([one.embedded_at for one in tracks], math.inf)
        latest = np.maximum(embedded_at, crops.of_tracks([one.requested_at for one in tracks], math.inf))
        waited = np.minimum(np.maximum(_times(frames)[crops.frame] - latest, 0.0), LONGEST_S)
        wait = np.where(owned, waited, STRETCHED_S)
        needed = crops.of_tracks(self._tracks.crops_wanted(tracks), 0) > 0
        settled = crops.of_tracks([one.number is not None for one in tracks], False) > 0
        settled &= crops.certain
        tier = np.where(wait >= STRETCHED_S, _SETTLED, _REST)
        tier[~settled | needed] = _DOUBT
        tier[(wait >= LONGEST_S) | (crops.certain & ~settled & needed)] = _NEW
        tier[~owned] = _NEW
        tier[np.array(late(frames))[crops.frame]] = _REST
        if self._new_track is not None and not owned.all():
            for at, frame in enumerate(frames):
                new = np.flatnonzero(~owned & (crops.frame == at))
                if len(new) and frame.scores is not None:
                    weak = frame.scores[crops.row[new]] < np.float32(self._new_track(frame.camera))
                    tier[new[weak]] = _REST
        return tier, wait * crops.grade

    def _crops(self, frames: Sequence[Candidates]) -> _Crops:
        """Return all crops, in order."""
        counts = [len(frame.boxes) for frame in frames]
        near = [[] if frame.track_ids is not None else self._recent(frame) for frame in frames]
        tracks = [track for of in near for track in of]
        of_crop = np.repeat(range(len(frames)), counts)
        of_track = np.repeat(range(len(frames)), [len(of) for of in near])
        boxes = np.concatenate([frame.boxes for frame in frames])
        owner, certain = _nearest(boxes, tracks, of_crop[:, None] == of_track)
        starts = np.cumsum(counts) - counts
        for start, frame in zip(starts.tolist(), frames, strict=True):
            for row, number in enumerate(frame.track_ids or ()):
                track = None if number is None else self._tracks.find(frame.camera, number)
                if track is not None:
                    owner[start + row], certain[start + row] = len(tracks), True
                    tracks.append(track)
        grades = [np.ones(len(of.boxes)) if of.grades is None else of.grades for of in frames]
        rows = np.arange(len(boxes)) - starts[of_crop]
        return _Crops(tracks, of_crop, rows, owner, certain, np.concatenate(grades))

    def _recent(self, frame: Candidates) -> list[Track]:
        """Return the tracks of its camera whose last box shows where the person is now."""
        now = frame.time
        present = self._tracks.present(frame.camera)
        return [track for track in present if -FRESH_S <= now - track.last.time <= FRESH_S]


def _nearest(
    boxes: NDArray[np.float32], tracks: Sequence[Track], together: NDArray[np.bool_]
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Return for each box the track that it overlaps most, -1 for none, and whether it certainly is its.

    `together` `(N, T)`: which boxes and tracks are of the same frame.
    """
    best, owner = np.zeros(len(boxes), np.float32), np.full(len(boxes), -1)
    if not tracks or not len(boxes):
        return owner, best > 0
    rows, columns, overlap = overlapping(boxes, np.array([track.last.box for track in tracks]), together)
    close = (overlap >= OTHER_BOX).nonzero()[0]
    rows, columns, overlap = rows.take(close), columns.take(close), overlap.take(close)
    np.maximum.at(best, rows, overlap)
    most = (overlap == best.take(rows)).nonzero()[0][::-1]  # of several, the first is written last
    owner[rows.take(most)] = columns.take(most)
    of_box, of_track = np.bincount(rows, minlength=len(boxes)), np.bincount(columns, minlength=len(tracks))
    return owner, (of_box == 1) & (of_track.take(owner) == 1) & (best >= SAME_BOX)


def _times(frames: Sequence[Candidates]) -> NDArray[np.float64]:
    return np.array([frame.time for frame in frames])


def _camera_places(frames: Sequence[Candidates]) -> NDArray[np.intp]:
    """`(F,)`: a number for the camera of each frame."""
    places: dict[str, int] = {}
    return np.array([places.setdefault(frame.camera, len(places)) for frame in frames], np.intp)


def _spare(masks: Masks, crops: _Crops) -> None:
    for at, mask in enumerate(masks):
        mask[crops.row[crops.frame == at]] = True


def _by_turns(
    tier: NDArray[np.intp], urgency: NDArray[np.float64], camera: NDArray[np.intp]
) -> NDArray[np.intp]:
    """Return the places of N crops in the order in which cameras take turns, most important first.

    Crops of the last tier come after all others.
    """
    order = np.lexsort((-urgency, tier, camera))  # by camera, and most important first
    sizes = np.bincount(camera, minlength=1)
    turn = np.empty(len(order), np.intp)
    turn[order] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.lexsort((-urgency, tier, turn, tier == _REST))


def _count(counts: Counter[str], frames: Sequence[Candidates], masks: Masks) -> None:
    for frame, mask in zip(frames, masks, strict=True):
        if spared := int(np.count_nonzero(mask)):
            counts[frame.camera] += spared
