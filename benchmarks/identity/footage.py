"""Recordings with truth, variants made from them, and the sources that play them.

A variant changes the pictures in memory and the truth with them, so nothing is compressed again; the one of
100 kbit/s is compressed by the program `ffmpeg`.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.scoring import Rows, read_mot
from edge_agent.core.errors import InputError, MissingFile
from edge_agent.core.structures import Frame
from edge_agent.source.base import Source
from edge_agent.source.file import FileOptions, FileSource

__all__ = ["VARIANTS", "Footage", "of_file", "variant"]

Picture = NDArray[np.uint8]
START = 1.7e9
COMPRESSED_KBITS = 100
DARK = 0.4
"""Light that is left."""
MOST_CUT = 0.5
"""Boxes of which a camera that sees a part of the picture has a smaller share are no truth there."""


@dataclass(frozen=True, slots=True)
class Footage:
    """One camera: its frames, and its truth.

    Attributes:
        frames: gives number from 1, seconds from the start, and picture of each frame, as often as wanted.
        truth: boxes with ids, by frame number.
        people: visits joined into people. None: the ids are people, and a visit ends with a pause.
        fps: for times of the truth.
    """

    camera: str
    frames: Callable[[], Iterator[tuple[int, float, Picture]]]
    truth: Rows
    people: Mapping[int, int] | None
    fps: float

    def source(self) -> Source:
        """Return a source of the agent that plays it."""
        return _Played(self)


class _Played:
    """A recording in memory."""

    live = False
    ends = True
    stall_seconds = None

    def __init__(self, footage: Footage) -> None:
        self.id = footage.camera
        self._footage = footage

    def frames(self) -> Generator[Frame | None, None, None]:
        """Every frame, in order."""
        for number, time, picture in self._footage.frames():
            yield Frame(self.id, number, START + time, picture)


def of_file(
    video: Path, truth: Path, people: Mapping[int, int] | None = None, *, camera: str = "cam",
    fps: float | None = None,
) -> Footage:  # fmt: skip
    """Return a recording with MOTChallenge truth; `fps` replaces the times of the file."""
    for path in (video, truth):
        if not path.is_file():
            raise MissingFile(f"{path} is no file")
    capture = cv2.VideoCapture(str(video))
    rate = fps or capture.get(cv2.CAP_PROP_FPS) or 10.0
    capture.release()
    return Footage(camera, partial(_read, video, fps), read_mot(truth, truth=True), people, rate)


def _read(video: Path, fps: float | None) -> Iterator[tuple[int, float, Picture]]:
    for frame in FileSource("file", video, FileOptions(start_time=0.0, fps=fps)).frames():
        if frame is not None:
            yield frame.number, frame.time, frame.image


# --- variants ---------------------------------------------------------------------------------


def _changed(
    footage: Footage, picture: Callable[[Picture, int], Picture], truth: Rows | None = None
) -> Footage:
    """Change every picture; the second argument is the number of the frame."""

    def frames() -> Iterator[tuple[int, float, Picture]]:
        for number, time, image in footage.frames():
            yield number, time, np.ascontiguousarray(picture(image, number))

    return replace(footage, frames=frames, truth=footage.truth if truth is None else truth)


def _boxes(truth: Rows, change: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Rows:
    return {frame: (ids, change(boxes).astype(np.float32)) for frame, (ids, boxes) in truth.items()}


def _width(footage: Footage) -> int:
    return int(next(iter(footage.frames()))[2].shape[1])


def mirror(footage: Footage) -> Footage:
    """Left and right exchanged."""
    width = _width(footage)
    truth = _boxes(
        footage.truth, lambda b: np.column_stack([width - b[:, 2], b[:, 1], width - b[:, 0], b[:, 3]])
    )
    return _changed(footage, lambda image, _: image[:, ::-1], truth)


def backwards(footage: Footage) -> Footage:
    """The last frame first."""
    count = sum(1 for _ in footage.frames())

    def frames() -> Iterator[tuple[int, float, Picture]]:
        held = [image for _, _, image in footage.frames()]
        for number, image in enumerate(reversed(held), 1):
            yield number, (number - 1) / footage.fps, image

    return replace(
        footage, frames=frames, truth={count + 1 - frame: rows for frame, rows in footage.truth.items()}
    )


def dark(footage: Footage) -> Footage:
    """60 % less light."""
    return _changed(footage, lambda image, _: (image * DARK).astype(np.uint8))


def dusk(footage: Footage) -> Footage:
    """The light falls by 60 % from the first frame to the last."""
    last = max(footage.truth)
    return _changed(
        footage, lambda image, at: (image * (1 - (1 - DARK) * min(1, at / last))).astype(np.uint8)
    )


def blue_hour(footage: Footage) -> Footage:
    """The light falls by 30 % and turns from white to blue, from the first frame to the last."""
    last = max(footage.truth)

    def picture(image: Picture, at: int) -> Picture:
        part = min(1, at / last)
        gain = (1 - 0.3 * part) * np.array([1 + 0.35 * part, 1, 1 - 0.35 * part], np.float32)
        return np.clip(image * gain, 0, 255).astype(np.uint8)

    return _changed(footage, picture)


def half(footage: Footage) -> Footage:
    """Half the width and height."""
    return _changed(
        footage,
        lambda image, _: np.asarray(
            cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), np.uint8
        ),
        _boxes(footage.truth, lambda b: b / 2),
    )


def slow(footage: Footage, fps: float = 2.0) -> Footage:
    """Two frames a second."""
    step = max(1, round(footage.fps / fps))

    def frames() -> Iterator[tuple[int, float, Picture]]:
        for number, time, image in footage.frames():
            if number % step == 1 or step == 1:
                yield (number - 1) // step + 1, time, image

    truth = {(f - 1) // step + 1: rows for f, rows in footage.truth.items() if f % step == 1 or step == 1}
    return replace(footage, frames=frames, truth=truth, fps=footage.fps / step)


def loop(footage: Footage, times: int = 5) -> Footage:
    """Five times in a row; each passage is a visit of its own."""
    assert footage.people is not None
    count, most = sum(1 for _ in footage.frames()), 1 + max(footage.people)

    def frames() -> Iterator[tuple[int, float, Picture]]:
        for turn in range(times):
            for number, time, image in footage.frames():
                yield turn * count + number, turn * count / footage.fps + time, image

    truth = {
        turn * count + frame: (ids + turn * most, boxes)
        for turn in range(times)
        for frame, (ids, boxes) in footage.truth.items()
    }
    people = {
        turn * most + visit: person for turn in range(times) for visit, person in footage.people.items()
    }
    return replace(footage, frames=frames, truth=truth, people=people)


def split(footage: Footage) -> list[Footage]:
    """The left and the right half as two cameras; a person who leaves one and returns makes a new visit."""
    width = _width(footage)
    middle = width // 2
    found = []
    for camera, begin, end in (("left", 0, middle), ("right", middle, width)):
        truth: Rows = {}
        for frame, (ids, boxes) in footage.truth.items():
            cut = boxes.copy()
            cut[:, ::2] = np.clip(cut[:, ::2], begin, end)
            kept = (cut[:, 2] - cut[:, 0]) >= MOST_CUT * (boxes[:, 2] - boxes[:, 0])
            people = (
                ids if footage.people is None else np.array([footage.people[int(i)] for i in ids], np.int64)
            )
            if kept.any():
                cut[:, ::2] -= begin
                truth[frame] = people[kept], cut[kept]
        part = partial(_part, begin=begin, end=end)
        found.append(replace(_changed(footage, part, truth), camera=camera, people=None))
    return found


def _part(image: Picture, _: int, *, begin: int, end: int) -> Picture:
    return image[:, begin:end]


def compressed(footage: Footage, folder: Path) -> Footage:
    """Compressed to 100 kbit/s by x264, as by a camera with a poor link: MissingFile without `ffmpeg`."""
    target = folder / f"{footage.camera}-{COMPRESSED_KBITS}k.mp4"
    if not target.exists():
        _compress(footage, target)
    return replace(footage, frames=partial(_read, target, footage.fps))


def _compress(footage: Footage, target: Path) -> None:
    program = shutil.which("ffmpeg")
    if program is None:
        raise MissingFile("the program ffmpeg is not here; install it to measure compressed footage")
    target.parent.mkdir(parents=True, exist_ok=True)
    height, width = next(iter(footage.frames()))[2].shape[:2]
    part = target.with_suffix(".part.mp4")
    words = [
        program, "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "bgr24", "-s", f"{width}x{height}",
        "-r", str(footage.fps), "-i", "-", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-b:v",
        f"{COMPRESSED_KBITS}k", "-maxrate", f"{COMPRESSED_KBITS}k", "-bufsize", f"{2 * COMPRESSED_KBITS}k",
        "-threads", "1", str(part),
    ]  # fmt: skip
    with subprocess.Popen(words, stdin=subprocess.PIPE) as running:  # noqa: S603
        assert running.stdin is not None
        for _, _, image in footage.frames():
            running.stdin.write(image.tobytes())
        running.stdin.close()
    if running.returncode:
        raise MissingFile(f"ffmpeg ended with {running.returncode}; it needs libx264")
    part.replace(target)


VARIANTS: Mapping[str, Callable[[Footage], Footage | list[Footage]]] = {
    "plain": lambda footage: footage,
    "mirrored": mirror,
    "backwards": backwards,
    "lights down 60 %": dark,
    "lights fading to 40 %": dusk,
    "light turning blue": blue_hour,
    "half size": half,
    "2 frames a second": slow,
    "5 times in a row": loop,
    "split into two cameras": split,
}
"""By name; besides them `compressed`."""
COMPRESSED = f"{COMPRESSED_KBITS} kbit/s"


def variant(name: str, footage: Footage, folder: Path) -> list[Footage]:
    """Return a variant by its name; `folder` keeps compressed ones."""
    if name not in {COMPRESSED, *VARIANTS}:
        raise InputError(f"there is no variant {name!r}; choose one of {', '.join([*VARIANTS, COMPRESSED])}")
    made = compressed(footage, folder) if name == COMPRESSED else VARIANTS[name](footage)
    return made if isinstance(made, list) else [made]
