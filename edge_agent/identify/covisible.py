"""Tracks that were seen together: they show different people."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edge_agent.identify.tracks import TrackKey

if TYPE_CHECKING:
    from edge_agent.core.structures import TrackObservation

_SAME_BODY = 0.5
"""Two boxes that share this much of the smaller one may be two detections of one person."""
_NOBODY: frozenset[TrackKey] = frozenset()


class Covisibility:
    """Cannot-link: two tracks that were together in `needed` frames of a camera are different people.

    Boxes that share a body may be two detections of one person. Where the place of a box is not known, the
    upstream that cut the crops is believed.
    """

    def __init__(self, frames: int) -> None:
        self.needed = frames
        self._together: dict[TrackKey, dict[TrackKey, int]] = {}
        """Frames of pairs that may be one person, by each of both tracks."""
        self._rivals: dict[TrackKey, set[TrackKey]] = defaultdict(set)
        self.changes = 0
        """Number of changes of these."""
        self._apart: dict[str, set[TrackKey]] = {}
        """Tracks of the latest frame of a camera that are all known to be different people."""

    def observe(self, seen: Sequence[TrackObservation]) -> None:
        """Count the tracks of one frame of one camera."""
        if not all(one.sure for one in seen):
            seen = [one for one in seen if one.sure]
        if len(seen) < 2:
            return
        places = {(one.camera, one.track_id): place for place, one in enumerate(seen)}
        camera = seen[0].camera
        apart = self._apart.get(camera, set()).intersection(places)
        if len(apart) == len(places):
            return
        open_ = [key for key in places if key not in apart]
        pairs = [
            (key, other)
            for key in open_
            for other in places.keys() - self._rivals.get(key, _NOBODY)
            if key < other or (other in apart and key != other)
        ]
        if pairs:
            shared = _share_body(np.stack([one.box for one in seen]))
            placed = [one.placed for one in seen]
            for a, b in pairs:
                i, j = places[a], places[b]
                if not (shared[i, j] and placed[i] and placed[j]):
                    self._count(a, b)
        for key in open_:
            if self._rivals.get(key, _NOBODY) >= apart:
                apart.add(key)
        self._apart[camera] = apart

    def rivals(self, track: TrackKey) -> set[TrackKey]:
        """Return the tracks that are certainly other people than this one."""
        return self._rivals.get(track, set())

    def split(
        self, track: TrackKey, part: TrackKey, before: Collection[TrackKey], since: Collection[TrackKey]
    ) -> None:
        """Divide the rivals of a track among its part before a time, and the track since that time."""
        self.changes += 1
        self._apart.pop(track[0], None)
        rivals = self._rivals.pop(track, set())
        for rival in rivals:
            self._rivals[rival].discard(track)
        for key, seen in ((part, before), (track, since)):
            for rival in rivals.intersection(seen):
                self._rivals[rival].add(key)
                self._rivals[key].add(rival)

    def forget(self, tracks: Iterable[TrackKey]) -> None:
        """Drop tracks that ended long ago."""
        if not (gone := set(tracks)):
            return
        self.changes += 1
        for track in gone:
            for other in self._together.pop(track, ()):
                self._together.get(other, {}).pop(track, None)
            for rival in self._rivals.pop(track, set()):
                self._rivals[rival].discard(track)

    def _count(self, a: TrackKey, b: TrackKey) -> None:
        of_a, of_b = self._together.setdefault(a, {}), self._together.setdefault(b, {})
        frames = of_a.pop(b, 0) + 1
        if frames < self.needed:
            of_a[b] = of_b[a] = frames
        else:
            of_b.pop(a, None)
            self.changes += 1
            self._rivals[a].add(b)
            self._rivals[b].add(a)


def _share_body(boxes: np.ndarray) -> np.ndarray:
    """`(N, N)` bool: whether the smaller of two boxes lies mostly in the other."""
    corner = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    opposite = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    sides = np.clip(opposite - corner, 0, None)
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    smaller = np.minimum(area[:, None], area[None, :])
    shared: np.ndarray = sides[..., 0] * sides[..., 1] >= _SAME_BODY * np.maximum(smaller, 1.0)
    return shared
