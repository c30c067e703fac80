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


class _Counts:
    """Number of frames in which two tracks of a camera were together, for all pairs that are in view.

    A matrix, since a newcomer in a crowd makes as many pairs as there are people. -1: the pair is known.
    """

    def __init__(self) -> None:
        self.frames: NDArray[np.int32] = np.full((_FIRST_PLACES, _FIRST_PLACES), -1, np.int32)
        self.keys: list[TrackKey] = [("", 0)] * _FIRST_PLACES
        """The track of each row of `frames` that is in use."""
        self.apart: set[int] = set()
        """Numbers of tracks that are all known to be different people."""
        self._places: dict[int, int] = {}
        self._free = list(range(_FIRST_PLACES))

    def places(
        self, camera: str, tracks: Sequence[int], rivals: Mapping[TrackKey, set[TrackKey]]
    ) -> list[int]:
        """Return the rows of tracks in `frames`; a new track has no frames with others but its rivals."""
        known = self._places
        for track in [track for track in tracks if track not in known]:
            key = (camera, track)
            self._add(key, rivals.get(key, set()))
        return [known[track] for track in tracks]

    def _add(self, key: TrackKey, rivals: set[TrackKey]) -> None:
        if not self._free:
            size = len(self.frames)
            self.frames = np.pad(self.frames, (0, size), constant_values=-1)
            self.keys += self.keys
            self._free = list(range(size, 2 * size))
        place = self._free.pop()
        self.frames[place] = self.frames[:, place] = 0
        known = [place, *(self._places[track] for _, track in rivals if track in self._places)]
        self.frames[place, known] = self.frames[known, place] = -1
        self.keys[place] = key
        self._places[key[1]] = place

    def drop(self, track: int) -> None:
        """Forget a track."""
        self.apart.discard(track)
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
        self.met: list[tuple[TrackKey, list[TrackKey]]] = []
        """Tracks, and their new rivals; `Shared.taken` reads the list and clears it."""
        self.stale: set[TrackKey] = set()
        """Tracks that lost rivals; read and cleared in the same way."""
        self.changes = 0
        """Number of times that both were cleared unread, since they were too long: any track may be stale."""

    def observe(self, seen: Sequence[TrackObservation]) -> None:
        """Count the tracks of one frame of one camera."""
        seen = [one for one in seen if one.sure]
        if len(seen) < 2:
            return
        counts = self._counts[seen[0].camera]
        tracks = [one.track_id for one in seen]
        apart = counts.apart
        open_ = [row for row, track in enumerate(tracks) if track not in apart]
        if open_:
            self._count(counts, counts.places(seen[0].camera, tracks, self._rivals), seen, open_)

    def _count(
        self, counts: _Counts, places: Sequence[int], seen: Sequence[TrackObservation], open_: Sequence[int]
    ) -> None:
        """Count the pairs of the tracks in rows `open_` with all."""
        columns = np.array(places, np.intp)
        rows = columns[open_][:, None]
        frames = counts.frames[rows, columns]
        unknown = frames >= 0
        if unknown.any():
            apart = unknown & ~_share_body(seen, open_)
            frames += apart
            known = apart & (frames >= self.needed)
            frames[known] = -1
            counts.frames[rows, columns] = counts.frames[columns, rows] = frames
            if not known.any():
                return
            unknown &= ~known
            for row in np.flatnonzero(known.any(axis=1)).tolist():
                others = [counts.keys[places[column]] for column in np.flatnonzero(known[row]).tolist()]
                self._meet(counts.keys[places[open_[row]]], others)
        counts.apart = {seen[row].track_id for row in _apart(unknown, open_)}

    def _meet(self, track: TrackKey, others: list[TrackKey]) -> None:
        """Note that a track and others are different people."""
        self._rivals[track].update(others)
        for other in others:
            self._rivals[other].add(track)
        self.met.append((track, others))
        self._bound_notes()

    def rivals(self, track: TrackKey) -> set[TrackKey]:
        """Return the tracks that are certainly other people than this one."""
        return self._rivals.get(track, set())

    def matrix(self, camera: str, tracks: Sequence[int]) -> NDArray[np.bool_]:
        """Return `(N, N)` which of N present tracks of a camera are rivals of each other."""
        counts = self._counts[camera]
        places = np.array(counts.places(camera, tracks, self._rivals), np.intp)
        rivals: NDArray[np.bool_] = counts.frames[places[:, None], places] < 0
        rivals &= places[:, None] != places
        return rivals

    def split(
        self, track: TrackKey, part: TrackKey, before: Collection[TrackKey], since: Collection[TrackKey]
    ) -> None:
        """Divide the rivals of a track among its part before a time, and the track since that time."""
        counts = self._counts[track[0]]
        counts.apart = set()
        counts.drop(track[1])
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
        self._counts[track[0]].drop(track[1])

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


def _apart(unknown: NDArray[np.bool_], open_: Sequence[int]) -> list[int]:
    """Return rows of tracks that are all known to be different people, by the `(O, N)` unknown pairs of rows
    `open_`: all other rows, and those of `open_` that fit to them.
    """
    apart = np.ones(unknown.shape[1], np.bool_)
    apart[open_] = False
    for row in np.flatnonzero(~unknown[:, apart].any(axis=1)).tolist():
        apart[open_[row]] = not unknown[row, apart].any()
    found: list[int] = np.flatnonzero(apart).tolist()
    return found


def _share_body(seen: Sequence[TrackObservation], open_: Sequence[int]) -> NDArray[np.bool_]:
    """`(O, N)` whether the smaller of two boxes, one of rows `open_`, lies mostly in the other."""
    left, top, right, bottom = sides = np.concatenate([one.box for one in seen]).reshape(-1, 4).T.copy()
    area = (right - left) * (bottom - top)
    left_, top_, right_, bottom_ = sides[:, open_, None]
    width = np.maximum(np.minimum(right_, right) - np.maximum(left_, left), 0)
    height = np.maximum(np.minimum(bottom_, bottom) - np.maximum(top_, top), 0)
    smaller = np.maximum(np.minimum(area[open_][:, None], area), 1.0)
    placed = np.array([one.placed for one in seen])
    shared: NDArray[np.bool_] = width * height >= _SAME_BODY * smaller
    shared &= placed[open_][:, None] & placed
    return shared
