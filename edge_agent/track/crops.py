"""Tracks of crops that an upstream detector has cut: by its track ids, or by appearance without these."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.structures import LONE_TRACKS, CropBatch, Embedded, TrackObservation, TrackUpdate
from edge_agent.track.association import associate

if TYPE_CHECKING:
    from edge_agent.core.config import TrackerSettings

GROUP_LOST_S = 20.0
"""Time without a crop until a group ends: a detector without a tracker may send a person's crops rarely."""
_MEMORY = 10
"""Crops that a group's appearance is the mean of, about."""


@dataclass(frozen=True, slots=True)
class JoinLevels:
    """Least cosines of a crop and a group of crops that it continues.

    Attributes:
        live: while the group has been silent for at most `tracker.lost_s`.
        lost: later, when another person may have come.
    """

    live: float
    lost: float


@dataclass(slots=True)
class _Group:
    number: int
    appearance: NDArray[np.float32]
    last: float
    crops: int = 1

    def add(self, vector: NDArray[np.float32], time: float) -> None:
        memory = min(self.crops, _MEMORY)
        mean = memory * self.appearance + vector
        self.appearance = mean / np.float32(max(float(mean @ mean) ** 0.5, 1e-6))
        self.crops += 1
        self.last = time


class CropGroups:
    """Groups the crops of one camera that came without track ids, by time and appearance.

    Crops of one frame are different people. A crop continues the group that it looks like; without `levels`
    each crop stays alone. Groups are numbered after `LONE_TRACKS`.
    """

    def __init__(self, settings: TrackerSettings, levels: JoinLevels | None) -> None:
        self._settings = settings
        self._levels = levels
        self._groups: list[_Group] = []
        self._last_number = LONE_TRACKS

    def update(self, time: float, found: Sequence[Embedded]) -> tuple[list[int], list[int]]:
        """Return the group of each of N crops of one frame, one row each, and the groups that ended."""
        ended = self._end(time)
        usable = [at for at, one in enumerate(found) if one.present[0]]
        numbers = [0] * len(found)
        for group, at in self._match(time, found, usable):
            group.add(found[at].vectors[0], time)
            numbers[at] = group.number
        for at, one in enumerate(found):
            if numbers[at]:
                continue
            self._last_number += 1
            numbers[at] = self._last_number
            if self._levels is None or not one.present[0]:
                ended.append(self._last_number)
            else:
                self._groups.append(_Group(self._last_number, one.vectors[0], time))
        return numbers, ended

    def finish(self) -> list[int]:
        """End every group; return them."""
        ended = [group.number for group in self._groups]
        self._groups.clear()
        return ended

    def _end(self, time: float) -> list[int]:
        # Times can go back: crops found late, or a clock of the upstream that was set.
        limit = max(GROUP_LOST_S, self._settings.lost_s)
        ended = [group.number for group in self._groups if abs(time - group.last) > limit]
        self._groups = [group for group in self._groups if abs(time - group.last) <= limit]
        return ended

    def _match(self, time: float, found: Sequence[Embedded], usable: list[int]) -> list[tuple[_Group, int]]:
        if self._levels is None or not usable or not self._groups:
            return []
        appearances = np.stack([group.appearance for group in self._groups])
        cosines = appearances @ np.stack([found[at].vectors[0] for at in usable]).T
        recent = [abs(time - group.last) <= self._settings.lost_s for group in self._groups]
        least = np.where(recent, self._levels.live, self._levels.lost)[:, None]
        cost = np.where(cosines >= least, 1.0 - cosines, math.inf)
        return [(self._groups[row], usable[at]) for row, at in zip(*associate(cost, 2.0), strict=True)]


class UpstreamTracks:
    """Follow the crops of one camera by the track ids that they came with, and group the others."""

    def __init__(self, camera: str, settings: TrackerSettings, levels: JoinLevels | None = None) -> None:
        self.camera = camera
        self._settings = settings
        self._last_seen: dict[int, float] = {}
        self._groups = CropGroups(settings, levels)

    def update(self, crops: CropBatch, embedded: Sequence[Embedded]) -> TrackUpdate:
        """Process the N crops of one frame, and N results of one row each."""
        loose = [row for row, track in enumerate(crops.track_ids) if track is None]
        numbers, ended = self._groups.update(crops.time, [embedded[row] for row in loose])
        grouped = dict(zip(loose, numbers, strict=True))
        seen = []
        for row, upstream_id in enumerate(crops.track_ids):
            if upstream_id is not None:
                self._last_seen[upstream_id] = crops.time
            track_id = grouped[row] if upstream_id is None else upstream_id
            result = embedded[row]
            seen.append(
                TrackObservation(
                    self.camera, track_id, crops.number, crops.time, crops.boxes[row], 1.0,
                    result.vectors[0] if result.present[0] else None, float(result.quality[0]),
                    placed=_is_placed(crops, row),
                )
            )  # fmt: skip
        lost_s = self._settings.lost_s
        # Times can go back here, too.
        silent = [t for t, last in self._last_seen.items() if abs(crops.time - last) > lost_s]
        for track_id in silent:
            del self._last_seen[track_id]
        right, bottom = crops.boxes[:, 2:].max(axis=0) if len(crops.boxes) else (1.0, 1.0)
        size = (max(int(right), 1), max(int(bottom), 1))
        return TrackUpdate(self.camera, crops.number, crops.time, size, tuple(seen), (*ended, *silent))

    def finish(self, frame: int, time: float, size: tuple[int, int]) -> TrackUpdate:
        """End every track, at the end of the source."""
        ended = (*self._last_seen, *self._groups.finish())
        self._last_seen.clear()
        return TrackUpdate(self.camera, frame, time, size, (), ended)


def _is_placed(crops: CropBatch, row: int) -> bool:
    """Whether the box of a crop is more than the extent of its picture."""
    height, width = crops.images[row].shape[:2]
    extent: bool = crops.boxes[row].tolist() == [0.0, 0.0, width, height]
    return not extent
