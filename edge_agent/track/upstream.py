"""Tracks of a camera without pictures: those of its upstream, and own ones of what that does not track."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge_agent.core.structures import Embedded, MessageFrame, TrackObservation, TrackUpdate

if TYPE_CHECKING:
    from edge_agent.track.tracker import Tracker


class MessageTracks:
    """Follows people by the tracks that they came with, the others by an own tracker.

    Upstream ends a track by not reporting it; it counts as ended after `lost_s`. The numbers of `own` must
    not be those of upstream's tracks.
    """

    def __init__(self, camera: str, own: Tracker) -> None:
        self.camera = camera
        self._own = own
        self._last_seen: dict[int, float] = {}

    def update(self, item: MessageFrame, embedded: Embedded) -> TrackUpdate:
        """Process one frame; `embedded` has a row for each of its boxes."""
        named = np.array([track is not None for track in item.track_ids], np.bool_)
        seen, ended = self._follow(item, embedded, np.flatnonzero(named).tolist())
        if len(self._own) or not named.all():
            other = self._own.update(
                item.number, item.time, item.size, item.detections.take(~named), embedded.take(~named)
            )
            seen, ended = seen + other.seen, ended + other.ended
        return TrackUpdate(self.camera, item.number, item.time, item.size, seen, ended)

    def finish(self, frame: int, time: float, size: tuple[int, int]) -> TrackUpdate:
        """End every track."""
        ended = (*self._last_seen, *self._own.finish(frame, time, size).ended)
        self._last_seen.clear()
        return TrackUpdate(self.camera, frame, time, size, (), ended)

    def _follow(
        self, item: MessageFrame, embedded: Embedded, rows: list[int]
    ) -> tuple[tuple[TrackObservation, ...], tuple[int, ...]]:
        """Return what upstream's tracks show, and those that ended."""
        seen = []
        whole = [0.0, 0.0, *map(float, item.size)]  # of pipelines that know no place in the frame
        for row in rows:
            track = item.track_ids[row]
            assert track is not None  # one of `rows`
            self._last_seen[track] = item.time
            vector = embedded.vectors[row] if embedded.present[row] else None
            seen.append(
                TrackObservation(
                    self.camera, track, item.number, item.time, item.detections.boxes[row],
                    float(item.detections.scores[row]), vector, float(embedded.quality[row]),
                    placed=item.detections.boxes[row].tolist() != whole,
                )
            )  # fmt: skip
        lost_s = self._own.settings.lost_s
        # Times can go back when the clock of the upstream is set.
        ended = tuple(track for track, last in self._last_seen.items() if abs(item.time - last) > lost_s)
        for track in ended:
            del self._last_seen[track]
        return tuple(seen), ended
