"""Tracks that were seen together: they show different people."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge_agent.identify.tracks import TrackKey

if TYPE_CHECKING:
    from edge_agent.core.structures import TrackObservation

_SAME_BODY = 0.5
"""Two boxes that share this much of the smaller one may be two detections of one person."""
_MOST_NOTES = 10_000
"""Most entries of `Covisibility.met` and `stale` together."""
_FIRST_PLACES = 16
Boxes = NDArray[np.float32]
Places = NDArray[np.intp]


class _Counts:
    """Number of frames in which two tracks of a camera were together, for all pairs that are in view.

    A matrix, since a newcomer in a crowd makes as many pairs as there are people. -1: the pair is known.
    """

    def __init__(self) -> None:
        self.frames: NDArray[np.int32] = np.full((_FIRST_PLACES, _FIRST_PLACES), -1, np.int32)
        self._places: dict[TrackKey, int] = {}
        self._free = list(range(_FIRST_PLACES))

    def places(self, tracks: Sequence[TrackKey], rivals: Mapping[TrackKey, set[TrackKey]]) -> Places:
        """Return the rows of tracks in `frames`; a new track has no frames with others but its rivals."""
        for track in tracks:
            if track not in self._places:
                self._add(track, rivals.get(track, set()))
        return np.array([self._places[track] for track in tracks], np.intp)

    def _add(self, track: TrackKey, rivals: set[TrackKey]) -> None:
        if not self._free:
            size = len(self.frames)
            self.frames = np.pad(self.frames, (0, size), constant_values=-1)
            self._free = list(range(size, 2 * size))
        place = self._free.pop()
        self.frames[place] = self.frames[:, place] = 0
        known = [place, *(self._places[rival] for rival in rivals if rival in self._places)]
        self.frames[place, known] = self.frames[known, place] = -1
        self._places[track] = place

    def drop(self, track: TrackKey) -> None:
        """Forget a track."""
        if (place := self._places.pop(track, None)) is not None:
            self._free.append(place)


class Covisibility:
    """Cannot-link: two tracks that were together in `needed` frames of a camera are different people.

    Boxes that share a body may be two detections of one person. Where the place of a box is not known, the
    upstream that cut the crops is believed.
    """

    def __init__(self, frames: int) -> None:
        self.needed = frames
        self._counts: dict[str, _Counts] = defaultdict(_Counts)
        """By camera, of pairs that may be one person."""
        self._rivals: dict[TrackKey, set[TrackKey]] = defaultdict(set)
        self.met: list[tuple[TrackKey, TrackKey]] = []
        """New pairs of rivals; `Shared.taken` reads the list and clears it."""
        self.stale: set[TrackKey] = set()
        """Tracks that lost rivals; read and cleared in the same way."""
        self.changes = 0
        """Number of times that both were cleared unread, since they were too long: any track may be stale."""
        self._apart: dict[str, set[TrackKey]] = {}
        """Tracks of the latest frame of a camera that are all known to be different people."""

    def observe(self, seen: Sequence[TrackObservation]) -> None:
        """Count the tracks of one frame of one camera."""
        if not all(one.sure for one in seen):
            seen = [one for one in seen if one.sure]
        if len(seen) < 2:
            return
        camera = seen[0].camera
        keys = [(camera, one.track_id) for one in seen]
        apart = self._apart.get(camera, set())
        open_ = [row for row, key in enumerate(keys) if key not in apart]
        if not open_:
            return
        apart = apart.intersection(keys)
        self._count(self._counts[camera], keys, seen, open_)
        for row in open_:
            if self._rivals.get(keys[row], set()) >= apart:
                apart.add(keys[row])
        self._apart[camera] = apart

    def _count(
        self,
        counts: _Counts,
        keys: Sequence[TrackKey],
        seen: Sequence[TrackObservation],
        open_: Sequence[int],
    ) -> None:
        """Count the pairs of the tracks in rows `open_` with all."""
        places = counts.places(keys, self._rivals)
        frames = counts.frames
        rows, others = np.nonzero(frames[places[open_]][:, places] >= 0)
        if not len(rows):
            return
        rows = np.array(open_, np.intp)[rows]
        boxes = np.concatenate([one.box for one in seen]).reshape(-1, 4)
        placed = np.array([one.placed for one in seen])
        apart = ~(_share_body(boxes[rows], boxes[others]) & placed[rows] & placed[others])
        rows, others = rows[apart], others[apart]
        a, b = places[rows], places[others]
        count = frames[a, b] + 1
        known = count >= self.needed
        count[known] = -1
        frames[a, b] = frames[b, a] = count
        for i, j in zip(rows[known].tolist(), others[known].tolist(), strict=True):
            self._rivals[keys[i]].add(keys[j])
            self._rivals[keys[j]].add(keys[i])
            self.met.append((keys[i], keys[j]))
        self._bound_notes()

    def rivals(self, track: TrackKey) -> set[TrackKey]:
        """Return the tracks that are certainly other people than this one."""
        return self._rivals.get(track, set())

    def split(
        self, track: TrackKey, part: TrackKey, before: Collection[TrackKey], since: Collection[TrackKey]
    ) -> None:
        """Divide the rivals of a track among its part before a time, and the track since that time."""
        self._apart.pop(track[0], None)
        self._counts[track[0]].drop(track)
        rivals = self._rivals.pop(track, set())
        self.stale.update(rivals, (track, part))
        self._bound_notes()
        for rival in rivals:
            self._rivals[rival].discard(track)
        for key, seen in ((part, before), (track, since)):
            for rival in rivals.intersection(seen):
                self._rivals[rival].add(key)
                self._rivals[key].add(rival)

    def ended(self, track: TrackKey) -> None:
        """Note that a track is not seen any more; its rivals stay."""
        self._counts[track[0]].drop(track)

    def forget(self, tracks: Iterable[TrackKey]) -> None:
        """Drop tracks that ended long ago."""
        for track in tracks:
            self.ended(track)
            rivals = self._rivals.pop(track, set())
            self.stale.update(rivals, (track,))
            for rival in rivals:
                self._rivals[rival].discard(track)
        self._bound_notes()

    def _bound_notes(self) -> None:
        if len(self.met) + len(self.stale) > _MOST_NOTES:
            self.met.clear()
            self.stale.clear()
            self.changes += 1


def _share_body(some: Boxes, others: Boxes) -> NDArray[np.bool_]:
    """`(N,)` whether the smaller of two boxes, of `(N, 4)` each, lies mostly in the other."""
    sides = np.minimum(some[:, 2:], others[:, 2:]) - np.maximum(some[:, :2], others[:, :2])
    sides = np.maximum(sides, 0)
    smaller = np.minimum(_area(some), _area(others))
    shared: NDArray[np.bool_] = sides[:, 0] * sides[:, 1] >= _SAME_BODY * np.maximum(smaller, 1.0)
    return shared


def _area(boxes: Boxes) -> Boxes:
    area: Boxes = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return area
