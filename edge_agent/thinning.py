"""Which crops need not be embedded while the load is lowered: those of people who are known already.

A crop belongs to a settled track when it overlaps that track's last box clearly, no other track's, and no
other crop does. What is in doubt is embedded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge_agent.structures import Candidates, Decision, DecisionKind, Load, TrackUpdate, iou_matrix

__all__ = ["Thinning"]

SAME_BOX = 0.5
"""Least overlap (IoU) of a crop with the track that it is taken for: an ordinary match of trackers."""

OTHER_BOX = 0.2
"""Overlap with anybody else from which on it is in doubt who is who."""

FRESH_S = 1.0
"""A box older than this says nothing of where its person is now."""

_SETTLES = frozenset({DecisionKind.MATCHED, DecisionKind.ENROLLED, DecisionKind.CORRECTED})


@dataclass(slots=True)
class _Track:
    box: NDArray[np.float32]
    seen: float
    embedded: float = -math.inf
    settled: bool = False


@dataclass(slots=True)
class Thinning:
    """Remembers the tracks of all cameras. For the driving thread alone."""

    _tracks: dict[str, dict[int, _Track]] = field(default_factory=dict)

    def spared(self, load: Load, frames: Sequence[Candidates]) -> list[NDArray[np.bool_]]:
        """For each frame, which of its crops shall not be embedded: `(N,)` bool.

        Args:
            load: what is allowed.
            frames: the frames of one round, of any cameras.
        """
        known = [self._known(frame) for frame in frames]
        spared = [
            np.array(
                [
                    t is not None and t.settled and frame.time - t.embedded < load.settled_interval_s
                    for t in of
                ],
                np.bool_,
            )
            for frame, of in zip(frames, known, strict=True)
        ]
        if load.max_crops is not None:
            self._cap(load.max_crops, known, spared)
        return spared

    def learn(self, update: TrackUpdate, decisions: Sequence[Decision]) -> None:
        """Take in what was seen and decided in one frame."""
        tracks = self._tracks.setdefault(update.camera, {})
        for seen in update.seen:
            track = tracks.setdefault(seen.track_id, _Track(seen.box, seen.time))
            track.box, track.seen = seen.box, seen.time
            if seen.vector is not None:
                track.embedded = seen.time
        for decision in decisions:
            track_of = self._tracks.get(decision.camera, {}).get(decision.track_id)
            if track_of is not None:
                track_of.settled = decision.kind in _SETTLES
        for ended in update.ended:
            tracks.pop(ended, None)

    def _known(self, frame: Candidates) -> list[_Track | None]:
        """The track that each crop surely belongs to."""
        tracks = self._tracks.get(frame.camera, {})
        if frame.track_ids is not None:
            return [tracks.get(given) if given is not None else None for given in frame.track_ids]
        fresh = [track for track in tracks.values() if abs(frame.time - track.seen) <= FRESH_S]
        if not fresh or not len(frame.boxes):
            return [None] * len(frame.boxes)
        overlap = iou_matrix(frame.boxes, np.stack([track.box for track in fresh]))
        return [_sure(overlap, row, fresh) for row in range(len(frame.boxes))]

    @staticmethod
    def _cap(
        most: int,
        known: Sequence[Sequence[_Track | None]],
        spared: Sequence[NDArray[np.bool_]],
    ) -> None:
        """Leave the `most` crops that matter most: the unsettled, then those embedded longest ago."""
        wanted = [
            (track is not None and track.settled, track.embedded if track is not None else -math.inf, at, row)
            for at, of in enumerate(known)
            for row, track in enumerate(of)
            if not spared[at][row]
        ]
        for _, _, at, row in sorted(wanted)[most:]:
            spared[at][row] = True


def _sure(overlap: NDArray[np.float32], row: int, tracks: Sequence[_Track]) -> _Track | None:
    """The one track that overlaps this row, if it overlaps no other row either."""
    best = int(overlap[row].argmax())
    clear = overlap[row, best] >= SAME_BOX
    alone = (overlap[row] >= OTHER_BOX).sum() == 1 and (overlap[:, best] >= OTHER_BOX).sum() == 1
    return tracks[best] if clear and alone else None
