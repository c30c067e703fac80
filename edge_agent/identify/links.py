"""Cannot-link: two tracks in one frame of a camera are different people."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from edge_agent.core.structures import TrackObservation

__all__ = ["Covisibility", "TrackKey"]

TrackKey = tuple[str, int]
"""Camera and track number."""

_SAME_BODY = 0.5
"""Two boxes that share this much of the smaller one may be two detections of one person."""

_NOBODY: frozenset[TrackKey] = frozenset()


class Covisibility:
    """Counts the frames in which tracks were seen together.

    Args:
        frames: frames together that make two tracks two people.
    """

    def __init__(self, frames: int) -> None:
        self.needed = frames
        self._together: dict[tuple[TrackKey, TrackKey], int] = {}
        """Frames of pairs that may still be one person."""
        self._rivals: dict[TrackKey, set[TrackKey]] = defaultdict(set)

    def observe(self, seen: Sequence[TrackObservation]) -> None:
        """Count the tracks of one frame of one camera."""
        keys = [(one.camera, one.track_id) for one in seen]
        undecided = [
            (i, j)
            for i, key in enumerate(keys[:-1])
            for rivals in (self._rivals.get(key, _NOBODY),)
            if not rivals.issuperset(keys[i + 1 :])
            for j in range(i + 1, len(keys))
            if keys[j] not in rivals
        ]
        if not undecided:
            return
        shared = _share_body(np.stack([one.box for one in seen]))
        for i, j in undecided:
            if not shared[i, j]:
                self._count(keys[i], keys[j])

    def rivals(self, track: TrackKey) -> set[TrackKey]:
        """Return the tracks that are certainly other people than this one."""
        return self._rivals.get(track, set())

    def forget(self, tracks: Iterable[TrackKey]) -> None:
        """Drop tracks that ended long ago."""
        gone = set(tracks)
        if not gone:
            return
        self._together = {pair: n for pair, n in self._together.items() if not gone.intersection(pair)}
        for track in gone:
            for rival in self._rivals.pop(track, set()):
                self._rivals[rival].discard(track)

    def _count(self, a: TrackKey, b: TrackKey) -> None:
        pair = (a, b) if a < b else (b, a)
        frames = self._together.pop(pair, 0) + 1
        if frames < self.needed:
            self._together[pair] = frames
        else:
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
