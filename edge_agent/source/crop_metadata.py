"""Metadata of crops, from the JSON file next to a picture or from its name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_agent.core.pictures import parse_crop_name
from edge_agent.source.crop_scan import CropFile
from edge_agent.source.fields import is_number, unix_time

__all__ = ["Crop", "CropDescriber", "UnusableCrop", "by_frame"]

_CAMERA = re.compile(r"[a-z0-9_-]{1,64}")
_MAX_JSON_BYTES = 64 << 10
_TRACKS_PER_SEQUENCE = 1_000_000
"""A tracker starts again with a recording, so track 7 of recording 1 is not track 7 of recording 2."""


@dataclass(frozen=True, slots=True)
class Crop:
    """One picture and its metadata; crops of one frame have the same `frame_key`."""

    file: CropFile
    camera: str
    number: int | None
    time: float
    track: int | None
    box: tuple[float, float, float, float] | None
    frame_key: tuple[object, ...]


class UnusableCrop(Exception):
    """Why a crop cannot be read; `final` when it will not improve."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


class CropDescriber:
    """Reads the metadata of the crops of one folder.

    Args:
        id: id of the source.
        folder: where the crops are.
        fps: rate that gives crops with a Market-1501 name their time; None: the modification time.
        start_time: Unix time of frame 0 for that; None until the folder is opened.
    """

    def __init__(self, id: str, folder: Path, fps: float | None, start_time: float | None) -> None:  # noqa: A002
        self._id = id
        self._folder = folder
        self._fps = fps
        self.start_time = start_time

    def describe(self, file: CropFile) -> Crop:
        """Return the metadata of the JSON file next to a picture, or else of its name.

        Raises:
            UnusableCrop: there is none, or it makes no sense.
        """
        sidecar = (self._folder / file.name).with_suffix(".json")
        try:
            with sidecar.open("rb") as handle:
                text = handle.read(_MAX_JSON_BYTES + 1)
        except FileNotFoundError:
            return self._from_name(file)
        except OSError as problem:
            raise UnusableCrop(f"cannot read {sidecar.name}: {problem.strerror}") from problem
        return self._from_json(file, sidecar.name, text)

    def _from_name(self, file: CropFile) -> Crop:
        name = parse_crop_name(file.name)
        if name is None:
            raise UnusableCrop("its name is not like 0007_c2s1_000451_03.jpg, and it has no .json file")
        if name.pid < 0:
            raise UnusableCrop("its name marks it as showing no person (-1)", final=True)
        moment = file.modified_ns / 1e9
        if self._fps is not None and self.start_time is not None:
            moment = self.start_time + name.frame / self._fps
        track = (name.sequence or 0) * _TRACKS_PER_SEQUENCE + name.pid if name.pid else None
        key = (name.camid, name.sequence, name.frame)
        return Crop(file, self._camera(f"c{name.camid}"), name.frame, moment, track, None, key)

    def _from_json(self, file: CropFile, sidecar: str, text: bytes) -> Crop:
        if len(text) > _MAX_JSON_BYTES:
            raise UnusableCrop(f"{sidecar} is too long", final=True)
        try:
            found = json.loads(text)
            if not isinstance(found, dict):
                raise UnusableCrop(f"{sidecar} is not a JSON object")
            camera = self._id if found.get("camera") is None else self._camera(found["camera"])
            number = _whole_number(found, "frame")
            stated = unix_time(found.get("time"))
            moment = file.modified_ns / 1e9 if stated is None else stated
            # Frame numbers start again with the writer, so the time, where stated, is part of the key.
            key = (camera, number, stated if number is not None else moment)
            track, box = _whole_number(found, "track"), _box(found.get("box"))
            return Crop(file, camera, number, moment, track, box, key)
        except (ValueError, RecursionError) as problem:
            raise UnusableCrop(f"{sidecar}: {problem}") from problem

    def _camera(self, name: object) -> str:
        full = f"{self._id}-{name}"
        if not isinstance(name, str) or not _CAMERA.fullmatch(full):
            raise UnusableCrop(
                f"camera {name!r} does not make an id of at most 64 of a-z, 0-9, _ and -", final=True
            )
        return full


def by_frame(crops: Iterable[Crop]) -> list[list[Crop]]:
    """Group crops by frame, sorted by name within a frame; frames in order of time."""
    groups: dict[tuple[object, ...], list[Crop]] = {}
    for crop in sorted(crops, key=lambda crop: crop.file.name):
        groups.setdefault(crop.frame_key, []).append(crop)
    return sorted(groups.values(), key=lambda group: min((crop.time, crop.number or 0) for crop in group))


def _whole_number(found: dict[str, Any], key: str) -> int | None:
    value = found.get(key)
    if value is not None and not (type(value) is int and 0 <= value < 1 << 62):
        raise ValueError(f"{key} must be a whole number from 0, got {value!r:.40}")
    return value


def _box(value: object) -> tuple[float, float, float, float] | None:
    """`[x1, y1, x2, y2]` in pixels."""
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 4 or not all(is_number(side) for side in value):
        raise ValueError(f"box must be [x1, y1, x2, y2] in pixels, got {value!r:.60}")
    x1, y1, x2, y2 = (float(side) for side in value)
    if not (x1 < x2 and y1 < y2):
        raise ValueError(f"box {value} is empty")
    return x1, y1, x2, y2
