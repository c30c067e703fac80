"""Tracks of crops that an upstream tracker has numbered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edge_agent.core.structures import LONE_TRACKS, CropBatch, Embedded, TrackObservation, TrackUpdate

if TYPE_CHECKING:
    from edge_agent.core.config import TrackerSettings

__all__ = ["UpstreamTracks"]


class UpstreamTracks:
    """Follow the crops of one camera by the track ids that they came with.

    A crop without a track id is a track of its own that ends at once.

    Args:
        camera: id of the source.
        settings: `lost_s`, the seconds after which a track without new crops ends.
    """

    def __init__(self, camera: str, settings: TrackerSettings) -> None:
        self.camera = camera
        self._settings = settings
        self._last_seen: dict[int, float] = {}
        self._last_lone = LONE_TRACKS

    def update(self, crops: CropBatch, embedded: Sequence[Embedded]) -> TrackUpdate:
        """Process the crops of one frame.

        Args:
            crops: N crops.
            embedded: N results of one row each.
        """
        seen, ended = [], []
        for row, upstream_id in enumerate(crops.track_ids):
            if upstream_id is None:
                self._last_lone += 1
                ended.append(self._last_lone)
            else:
                self._last_seen[upstream_id] = crops.time
            track_id = self._last_lone if upstream_id is None else upstream_id
            result = embedded[row]
            seen.append(
                TrackObservation(
                    self.camera, track_id, crops.number, crops.time, crops.boxes[row], 1.0,
                    result.vectors[0] if result.present[0] else None, float(result.quality[0]),
                )
            )  # fmt: skip
        lost_s = self._settings.lost_s
        silent = [t for t, last in self._last_seen.items() if crops.time - last > lost_s]
        for track_id in silent:
            del self._last_seen[track_id]
        right, bottom = crops.boxes[:, 2:].max(axis=0) if len(crops.boxes) else (1.0, 1.0)
        size = (max(int(right), 1), max(int(bottom), 1))
        return TrackUpdate(self.camera, crops.number, crops.time, size, tuple(seen), (*ended, *silent))

    def finish(self, frame: int, time: float, size: tuple[int, int]) -> TrackUpdate:
        """End every track, at the end of the source."""
        ended = tuple(self._last_seen)
        self._last_seen.clear()
        return TrackUpdate(self.camera, frame, time, size, (), ended)
