"""Metadata of crops, from the JSON file next to a picture or from its name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from edge_agent.core.errors import InputError, MissingFile
from edge_agent.core.files import native_path, read_file, shown
from edge_agent.core.pictures import parse_crop_name
from edge_agent.core.timing import LATEST_TIME
from edge_agent.source.box_message import LARGEST_NUMBER, Box, Time, WholeNumber, decode
from edge_agent.source.crop_files import CropFile

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


class _Metadata(BaseModel):
    """JSON object next to a picture; `box` is xyxy in pixels of the frame."""

    camera: Any = None
    frame: WholeNumber | None = None
    time: Time = None
    track: WholeNumber | None = None
    box: Box | None = None


class UnusableCrop(Exception):
    """Why a crop cannot be read; `final` when it will not improve."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


class CropDescriber:
    """Reads the metadata of the crops of one folder.

    `fps` and `start_time`, the Unix time of frame 0, give crops with a Market-1501 name their time; without
    them it is the time of modification. `start_time` may be set when the folder is opened.
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
        try:
            native_path(file.name)  # messages, and the files that later steps write, need text
        except InputError:
            raise UnusableCrop("its name is not UTF-8 text; rename it", final=True) from None
        if file.is_link:
            raise UnusableCrop("it is a symbolic link, which is not followed", final=True)
        sidecar = (self._folder / file.name).with_suffix(".json")
        try:
            text = read_file(sidecar, _MAX_JSON_BYTES, follow=False)
        except MissingFile:
            return self._from_name(file)
        except InputError as problem:
            raise UnusableCrop(str(problem)) from problem
        return self._from_json(file, shown(sidecar.name), text)

    def _from_name(self, file: CropFile) -> Crop:
        name = parse_crop_name(file.name)
        if name is None:
            raise UnusableCrop("its name is not like 0007_c2s1_000451_03.jpg, and it has no .json file")
        if name.pid < 0:
            raise UnusableCrop("its name marks it as showing no person (-1)", final=True)
        track = (name.sequence or 0) * _TRACKS_PER_SEQUENCE + name.pid if name.pid else None
        if max(name.frame, track or 0) > LARGEST_NUMBER:
            raise UnusableCrop("a number in its name is too large", final=True)
        moment = file.modified_ns / 1e9
        if self._fps is not None and self.start_time is not None:
            moment = self.start_time + name.frame / self._fps
        key = (name.camid, name.sequence, name.frame)
        return Crop(file, self._camera(f"c{name.camid}"), name.frame, _sane(moment), track, None, key)

    def _from_json(self, file: CropFile, sidecar: str, text: bytes) -> Crop:
        try:
            found = decode(_Metadata, text)
        except ValueError as problem:
            raise UnusableCrop(f"{sidecar}: {problem}") from problem
        box = None if found.box is None else (found.box[0], found.box[1], found.box[2], found.box[3])
        if box is not None and not (box[0] < box[2] and box[1] < box[3]):
            raise UnusableCrop(f"{sidecar}: box {found.box} is empty")
        camera = self._id if found.camera is None else self._camera(found.camera)
        moment = _sane(file.modified_ns / 1e9) if found.time is None else found.time
        # Frame numbers start again with the writer, so the time, where stated, is part of the key.
        key: tuple[object, ...] = (camera, found.frame, found.time if found.frame is not None else moment)
        if found.frame is None and found.track is None and moment.is_integer():
            key = (camera, file.name)  # several frames of a second, most likely
        return Crop(file, camera, found.frame, moment, found.track, box, key)

    def _camera(self, name: object) -> str:
        full = f"{self._id}-{name}"
        if not isinstance(name, str) or not _CAMERA.fullmatch(full):
            raise UnusableCrop(
                f"camera {name!r} does not make an id of at most 64 of a-z, 0-9, _ and -", final=True
            )
        return full


def _sane(moment: float) -> float:
    """Return a time that events can express; UnusableCrop for another."""
    if not 0 <= moment <= LATEST_TIME:
        raise UnusableCrop(f"its time, {moment:.0f} s after 1970, is out of range", final=True)
    return moment


def by_frame(crops: Iterable[Crop]) -> list[list[Crop]]:
    """Group crops by frame, sorted by name within a frame; frames in order of time."""
    groups: dict[tuple[object, ...], list[Crop]] = {}
    for crop in sorted(crops, key=lambda crop: crop.file.name):
        groups.setdefault(crop.frame_key, []).append(crop)
    return sorted(groups.values(), key=lambda group: min((crop.time, crop.number or 0) for crop in group))
