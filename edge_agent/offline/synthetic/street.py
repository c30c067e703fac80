"""A street watched by several cameras, with the truth about who is where.

People walk through the view of one camera, leave it, and come back later in the same view or another. They
cross and cover each other, pass behind posts, grow and shrink with distance; every camera has its own ground,
light, colour and noise. The same arguments give the same pictures, frame by frame, in any order.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from math import atan2, hypot, pi
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_agent.core.errors import InputError, StorageError
from edge_agent.offline.synthetic.camera import Camera, camera, daylight, expose
from edge_agent.offline.synthetic.identity import Identity, identity
from edge_agent.offline.synthetic.person import Light, render_person
from edge_agent.offline.synthetic.pose import Pose
from edge_agent.offline.synthetic.surfaces import ground, wall

__all__ = ["Street", "StreetFrame", "StreetVideo", "Truth", "Visit"]

_Image = NDArray[np.uint8]
_Point = tuple[float, float]

_FIRST_SEED = 2_000_000_000  # people of streets; no data set draws from here, so no model was trained on them
_HORIZON, _WALL, _FAR, _NEAR = 0.12, 0.41, 0.52, 0.95  # shares of the picture's height
_FAR_HEIGHT = 0.215  # a person on the far lane, share of the picture's height: 103 pixels of 480
_PACE = 0.76  # statures a second: 1.3 m/s, the usual walking speed
_CYCLE = 0.83  # statures walked in one gait cycle of two steps
_TURNS, _PHASES = 12, 10  # steps of the cached drawings
_DRAWN = 0.4  # height of the cached drawings, share of the picture's height
_GROUND_LEVEL = 116.0  # mean grey level of the ground after automatic exposure
_TEXTURE = 170.0  # texture pixels of the ground in one stature
MIN_VISIBLE = 0.3
"""Truth rows below this share of visible pixels are written with confidence 0: not to be scored."""


class Truth(NamedTuple):
    """Who is where in one frame.

    Attributes:
        person: number of the person, from 1, the same on all cameras.
        box: x1, y1, x2, y2 of the whole person in pixels, also where covered or outside the picture.
        visible: share of the person's pixels that can be seen, 0..1.
    """

    person: int
    box: tuple[float, float, float, float]
    visible: float


class StreetFrame(NamedTuple):
    """One picture of one camera.

    Attributes:
        camera: id, such as `cam-a`.
        number: frame number, from 1.
        time: seconds since the street began.
        image: `(H, W, 3)` uint8 BGR.
        truth: everyone of whom a part lies inside the picture.
    """

    camera: str
    number: int
    time: float
    image: _Image
    truth: tuple[Truth, ...]


@dataclass(frozen=True, slots=True)
class Visit:
    """One passage of one person through one camera's view.

    Attributes:
        person: number of the person, from 1.
        camera: id of the camera.
        start: seconds at which the person steps out from beyond the picture's border.
        end: seconds at which the person is beyond the border again.
        path: start and end on the ground, `(to the right, away from the camera)` in statures.
    """

    person: int
    camera: str
    start: float
    end: float
    path: tuple[_Point, _Point]


@dataclass(frozen=True, slots=True)
class StreetVideo:
    """Files of one camera: the video and its truth in MOTChallenge rows."""

    camera: str
    video: Path
    truth: Path


@dataclass(frozen=True, slots=True)
class _Prop:
    """Something that stands in the way: BGRA picture, its left edge and its foot line in pixels."""

    image: _Image
    left: int
    foot: int


@dataclass(frozen=True, slots=True)
class _Scene:
    """What one camera always sees."""

    view: Camera
    light: Light
    tint: tuple[float, float, float]
    level: float
    background: _Image
    props: tuple[_Prop, ...]
    noise: NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class _Lens:
    """Pinhole geometry of a picture: statures on the ground <-> pixels."""

    width: int
    height: int

    @property
    def horizon(self) -> float:
        return _HORIZON * self.height

    @property
    def _per_row(self) -> float:
        """Growth of a person in pixels for each row that the feet are lower."""
        return _FAR_HEIGHT / (_FAR - _HORIZON)

    @property
    def focal(self) -> float:
        return 1.1 * self.width

    def scale(self, row: float) -> float:
        """Height in pixels of a person whose feet are on this row."""
        return self._per_row * (row - self.horizon)

    def depth(self, row: float) -> float:
        """Distance in statures of the ground seen on this row."""
        return self.focal / self.scale(row)

    def pixel(self, point: _Point) -> tuple[float, float, float]:
        """Column, row and person height in pixels of a ground point."""
        scale = self.focal / point[1]
        return self.width / 2 + point[0] * scale, self.horizon + scale / self._per_row, scale

    @property
    def elevation(self) -> float:
        """How far the camera looks down on the middle lane, radians."""
        return atan2(1 / self._per_row, self.depth((_FAR + _NEAR) / 2 * self.height))


def _rng(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng([seed, 0x57, *key])


def _view(seed: int, index: int) -> Camera:
    """A working camera: coloured like any, but not one of the blurred and noisy extremes."""
    drawn = camera(int(_rng(seed, 1, index).integers(2**31)))
    return replace(
        drawn,
        blur=min(drawn.blur, 0.5),
        noise=min(drawn.noise, 4.0),
        gamma=float(np.clip(drawn.gamma, 0.8, 1.2)),
        contrast=min(drawn.contrast, 0.4),
        ground=drawn.ground if drawn.ground in {"asphalt", "cobbles", "tiles"} else "pavement",
        wall=drawn.wall if drawn.wall not in {"glass", "shelves"} else "plaster",
    )


def _background(view: Camera, lens: _Lens, rng: np.random.Generator) -> NDArray[np.float32]:
    """The empty place in perspective, float32 BGR."""
    floor = ground(view.ground, rng, 1024, 1024)
    scale = np.array([[max(lens.scale(row), 2.0)] for row in range(lens.height)], np.float32)
    across = (np.arange(lens.width, dtype=np.float32)[None] - lens.width / 2) / scale * np.float32(_TEXTURE)
    away = np.broadcast_to(np.float32(lens.focal * _TEXTURE) / scale, across.shape)
    scene = cv2.remap(
        floor,
        across.astype(np.float32) + 512,
        np.ascontiguousarray(away, np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT,
    ).astype(np.float32)
    edge = int(_WALL * lens.height)
    back = cv2.resize(wall(view.wall, rng, 300, 800), (lens.width, edge), interpolation=cv2.INTER_AREA)
    scene[:edge] = cv2.GaussianBlur(back, (0, 0), 0.8)
    scene[edge : edge + max(2, lens.height // 120)] *= 0.55
    fade = np.linspace(0.86, 1.0, lens.height - edge, dtype=np.float32)[:, None, None]
    scene[edge:] *= fade
    return np.asarray(scene, np.float32)


def _post(lens: _Lens, rng: np.random.Generator) -> _Prop:
    """A lamp post."""
    foot = int(lens.height * rng.uniform(_FAR + 0.08, 0.8))
    scale = lens.scale(foot)
    wide, high = max(3, int(0.05 * scale)), min(foot, int(2.2 * scale))
    tone = float(rng.uniform(45, 110))
    image = np.empty((high, wide, 4), np.uint8)
    round_ = 0.6 + 0.5 * np.sin(np.linspace(0.3, 2.6, wide))
    image[..., :3] = np.clip(tone * round_, 0, 255)[None, :, None]
    image[..., 3] = 255
    return _Prop(image, int(rng.uniform(0.1, 0.9) * lens.width), foot)


def _planter(lens: _Lens, rng: np.random.Generator) -> _Prop:
    """A low box of concrete with leaves above."""
    foot = int(lens.height * rng.uniform(0.66, 0.9))
    scale = lens.scale(foot)
    wide, high = int(0.5 * scale), int(0.3 * scale)
    image = np.zeros((high, wide, 4), np.uint8)
    image[high // 3 :, :, :3] = int(rng.uniform(90, 170))
    image[high // 3 :, :, 3] = 255
    leaves = rng.integers(20, 100, (high // 2 // 3 + 1, wide // 3 + 1, 1), dtype=np.uint8)
    green = cv2.resize(leaves, (wide, high // 2), interpolation=cv2.INTER_LINEAR)
    image[: high // 2, :, 0], image[: high // 2, :, 1], image[: high // 2, :, 2] = (
        green // 2,
        green,
        green * 3 // 4,
    )
    image[: high // 2, :, 3] = 255
    return _Prop(image, int(rng.uniform(0.05, 0.8) * lens.width), foot)


def _coloured(picture: _Image, view: Camera, tint: tuple[float, float, float], level: float) -> _Image:
    """A BGRA picture in the colours of a camera."""
    seen = expose(picture[..., :3].astype(np.float32), view, tint, level)
    return np.dstack([np.clip(seen, 0, 255).astype(np.uint8), picture[..., 3]])


def _scene(seed: int, index: int, lens: _Lens) -> _Scene:
    view, rng = _view(seed, index), _rng(seed, 2, index)
    now = daylight(view, float(rng.uniform(10, 16)))
    place = _background(view, lens, rng)
    floor = place[int(_WALL * lens.height) :: 4, ::4]
    level = 1.0
    for _ in range(3):  # automatic exposure: the tone curve bends, so a few steps are needed
        level *= _GROUND_LEVEL / float(expose(floor, view, now.tint, level).mean())
    empty = expose(place, view, now.tint, level)
    if view.blur > 0.25:
        empty = cv2.GaussianBlur(empty, (0, 0), view.blur)
    props = tuple(
        replace(prop, image=_coloured(prop.image, view, now.tint, level))
        for prop in (_post(lens, rng), _planter(lens, rng))
    )
    grain = rng.standard_normal((lens.height + 61, lens.width + 67, 3), dtype=np.float32) * view.noise
    background = np.clip(empty, 0, 255).astype(np.uint8)
    return _Scene(view, now.light, now.tint, level, background, props, grain.round().astype(np.int16))


def _route(lens: _Lens, rng: np.random.Generator) -> tuple[_Point, _Point]:
    """A straight path across the view, from beyond one side to beyond the other."""
    first = float(rng.uniform(_FAR, _NEAR))
    drift = float(rng.normal(0, 0.04) if rng.random() < 0.65 else rng.normal(0, 0.25))
    last = float(np.clip(first + drift, _FAR, _NEAR))
    side = 1 if rng.random() < 0.5 else -1
    ends = []
    for row, where in ((first, -side), (last, side)):
        depth = lens.depth(row * lens.height)
        edge = (lens.width / 2) / lens.scale(row * lens.height) + 0.35
        ends.append((where * edge, depth))
    return ends[0], ends[1]


class Street:
    """A synthetic street: an iterable of `StreetFrame`, all cameras of one moment after each other.

    Args:
        seed: decides everything.
        cameras: number of cameras, ids `cam-a`, `cam-b`, ...
        people: number of people.
        seconds: length.
        fps: frames a second of every camera.
        size: `(width, height)` of the pictures in pixels.
        visits: how often each person comes by at most; everyone who has the time comes at least twice.

    Raises:
        InputError: an argument makes no street.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        cameras: int = 2,
        people: int = 8,
        seconds: float = 60.0,
        fps: float = 10.0,
        size: tuple[int, int] = (640, 480),
        visits: int = 3,
    ) -> None:
        if not 1 <= cameras <= 26 or people < 1 or seconds <= 0 or fps <= 0 or visits < 1 or min(size) < 96:
            raise InputError(
                "a street needs 1..26 cameras, a person, a visit, a positive length and rate, pictures of at "
                f"least 96 x 96; got cameras={cameras}, people={people}, visits={visits}, seconds={seconds}, "
                f"fps={fps}, size={size}"
            )
        self.seed, self.fps, self.size = seed, fps, size
        self.cameras = tuple(f"cam-{chr(ord('a') + index)}" for index in range(cameras))
        self.frames = max(1, round(seconds * fps))
        self._lens = _Lens(*size)
        self._limit = visits
        first = int(_rng(seed, 3).integers(1_000_000_000))
        self.people: tuple[Identity, ...] = tuple(
            identity(_FIRST_SEED + first + number) for number in range(people)
        )
        self.visits = self._script(seconds)
        self._scenes: dict[str, _Scene] = {}
        self._sprite = lru_cache(maxsize=2048)(self._draw_sprite)

    def _script(self, seconds: float) -> tuple[Visit, ...]:
        """When and where everyone walks."""
        plan: list[Visit] = []
        count = len(self.people)
        for number in range(count):
            rng = _rng(self.seed, 4, number)
            now = 0.5 * seconds * number / count + float(rng.uniform(0, 0.5))
            place = int(rng.integers(len(self.cameras)))
            for _ in range(self._limit):
                visit = self._visit(number, place, now, rng)
                plan.append(visit)
                now = visit.end + float(rng.uniform(2.0, 5.0))
                if now > seconds - 3:
                    break
                if rng.random() < 0.65:
                    place = (place + 1) % len(self.cameras)
        return tuple(sorted(plan, key=lambda visit: visit.start))

    def _visit(self, number: int, place: int, start: float, rng: np.random.Generator) -> Visit:
        path = _route(self._lens, rng)
        length = hypot(path[1][0] - path[0][0], path[1][1] - path[0][1])
        pace = _PACE * float(np.clip(rng.normal(1, 0.12), 0.7, 1.4))
        return Visit(number + 1, self.cameras[place], start, start + length / pace, path)

    @property
    def reentries(self) -> tuple[Visit, ...]:
        """The visits, seen within the street's length, of people who had been seen before."""
        seen: set[int] = set()
        again = []
        for visit in self.visits:
            if visit.start >= self.frames / self.fps:
                continue
            if visit.person in seen:
                again.append(visit)
            seen.add(visit.person)
        return tuple(again)

    def __iter__(self) -> Iterator[StreetFrame]:
        for number in range(1, self.frames + 1):
            for name in self.cameras:
                yield self.frame(name, number)

    def frame(self, name: str, number: int) -> StreetFrame:
        """Frame `number` (from 1) of camera `name`."""
        if name not in self.cameras or not 1 <= number <= self.frames:
            raise InputError(
                f"no frame {number} of camera {name!r}: frames are 1..{self.frames}, "
                f"cameras are {', '.join(self.cameras)}"
            )
        if name not in self._scenes:
            self._scenes[name] = _scene(self.seed, self.cameras.index(name), self._lens)
        scene, time = self._scenes[name], (number - 1) / self.fps
        image = scene.background.copy()
        truth = self._populate(image, scene, name, time)
        return StreetFrame(name, number, time, _grain(image, scene.noise, number), truth)

    def _populate(self, image: _Image, scene: _Scene, name: str, time: float) -> tuple[Truth, ...]:
        """Draw people and props into `image`, the farthest first."""
        owner = np.zeros(image.shape[:2], np.uint8)
        things: list[tuple[float, int, _Image, int, int]] = [
            (float(prop.foot), 255, prop.image, prop.left, prop.foot - len(prop.image))
            for prop in scene.props
        ]
        for visit in self.visits:
            if visit.camera == name and visit.start <= time < visit.end:
                things.append(self._place(visit, time))
        whole: dict[int, tuple[Truth, int]] = {}
        for foot, who, picture, left, top in sorted(things, key=lambda thing: thing[:2]):
            high, wide = picture.shape[:2]
            if who != 255:
                _shade_ground(image, (left + wide / 2, foot), high)
                box = (float(left), float(top), float(left + wide), float(top + high))
                whole[who] = Truth(who, box, 0.0), int(np.count_nonzero(picture[..., 3] > 127))
            _blend(image, owner, picture, (left, top), who)
        return tuple(self._seen(whole, owner))

    def _seen(self, whole: dict[int, tuple[Truth, int]], owner: _Image) -> Iterator[Truth]:
        width, height = self.size
        for who, (truth, pixels) in whole.items():
            x1, y1, x2, y2 = (int(value) for value in truth.box)
            if x2 <= 0 or x1 >= width or y1 >= height:
                continue
            part = owner[max(0, y1) : y2, max(0, x1) : x2]
            yield truth._replace(visible=np.count_nonzero(part == who) / max(1, pixels))

    def _place(self, visit: Visit, time: float) -> tuple[float, int, _Image, int, int]:
        """Foot row, person, picture, left and top of a visitor at `time`."""
        (x0, z0), (x1, z1) = visit.path
        share = (time - visit.start) / (visit.end - visit.start)
        x, z = x0 + (x1 - x0) * share, z0 + (z1 - z0) * share
        column, row, high = self._lens.pixel((x, z))
        turn = atan2(x1 - x0, z0 - z1) - atan2(x, z)
        walked = hypot(x1 - x0, z1 - z0) * share
        phase = int((walked / _CYCLE + 0.37 * visit.person) * _PHASES) % _PHASES
        body = self.people[visit.person - 1].body
        high *= body.stature / 1.71
        picture, (foot_x, foot_y) = self._sprite(
            visit.person, visit.camera, round(turn / (2 * pi) * _TURNS) % _TURNS, phase
        )
        zoom = high / (_DRAWN * self.size[1])
        wide, tall = max(2, round(picture.shape[1] * zoom)), max(4, round(picture.shape[0] * zoom))
        small = cv2.resize(picture, (wide, tall), interpolation=cv2.INTER_AREA)
        left, top = round(column - foot_x * zoom), round(row - foot_y * zoom)
        return row, visit.person, np.asarray(small, np.uint8), left, top

    def _draw_sprite(
        self, person: int, name: str, turn: int, phase: int
    ) -> tuple[_Image, tuple[float, float]]:
        """A person in one phase of the gait, in the colours of one camera, and the foot point."""
        scene, who = self._scenes[name], self.people[person - 1]
        gesture = "pockets" if who.seed % 5 == 0 else "walk"
        pose = Pose(
            2 * pi * turn / _TURNS,
            2 * pi * phase / _PHASES,
            stride=0.36,
            elevation=self._lens.elevation,
            gesture=gesture,
        )
        sprite = render_person(who, pose, _DRAWN * self.size[1], scene.light)
        return _coloured(sprite.image, scene.view, scene.tint, scene.level), sprite.foot

    def write_videos(
        self, folder: Path, progress: Callable[[int, int], None] | None = None
    ) -> tuple[StreetVideo, ...]:
        """Write each camera as Motion JPEG in AVI, its truth, and `street.json` with the script.

        Truth rows are `frame,person,left,top,width,height,conf,class,visibility`, as in the `gt.txt` of the
        MOTChallenge; `person` is the same on all cameras, conf is 0 below `MIN_VISIBLE`.

        Args:
            folder: made when missing.
            progress: called with `(frames done, frames in all)`, counted over all cameras.

        Raises:
            StorageError: a file could not be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        videos = []
        for index, name in enumerate(self.cameras):
            video = StreetVideo(name, folder / f"{name}.avi", folder / f"{name}.txt")
            rows = self._write_video(video, index * self.frames, progress)
            _write(video.truth, "".join(rows))
            videos.append(video)
        script = {"seed": self.seed, "fps": self.fps, "size": self.size, "frames": self.frames}
        people = {str(number): person.seed for number, person in enumerate(self.people, 1)}
        visits = [asdict(visit) for visit in self.visits]
        _write(folder / "street.json", json.dumps({**script, "people": people, "visits": visits}, indent=1))
        return tuple(videos)

    def _write_video(
        self, video: StreetVideo, done: int, progress: Callable[[int, int], None] | None
    ) -> list[str]:
        part = video.video.with_name(f"{video.camera}.part.avi")
        writer = cv2.VideoWriter(str(part), cv2.VideoWriter.fourcc(*"MJPG"), self.fps, self.size)
        if not writer.isOpened():
            raise StorageError(f"{part}: could not be opened for writing; check free space and permissions")
        rows = []
        try:
            for number in range(1, self.frames + 1):
                frame = self.frame(video.camera, number)
                writer.write(frame.image)
                rows += [_mot_row(number, truth) for truth in frame.truth]
                if progress:
                    progress(done + number, self.frames * len(self.cameras))
        finally:
            writer.release()
        part.replace(video.video)
        return rows


def _mot_row(number: int, truth: Truth) -> str:
    x1, y1, x2, y2 = truth.box
    counts = int(truth.visible >= MIN_VISIBLE)
    box = f"{x1:.1f},{y1:.1f},{x2 - x1:.1f},{y2 - y1:.1f}"
    return f"{number},{truth.person},{box},{counts},1,{truth.visible:.3f}\n"


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    part.replace(path)


@lru_cache(maxsize=1)
def _blot() -> NDArray[np.float32]:
    """A soft spot, 1 outside: what a person takes from the light on the ground around the feet."""
    spot = np.ones((24, 64), np.float32)
    cv2.ellipse(spot, (32, 12), (20, 6), 0, 0, 360, 0.45, -1)
    smooth: NDArray[np.float32] = cv2.GaussianBlur(spot, (0, 0), 3)
    return smooth


def _shade_ground(image: _Image, foot: _Point, person: float) -> None:
    """Darken the ground around `foot`."""
    wide, high = max(4, round(0.5 * person)), max(3, round(0.14 * person))
    left, top = round(foot[0] - wide / 2), round(foot[1] - high / 2)
    x0, y0, x1, y1 = (
        max(0, left),
        max(0, top),
        min(image.shape[1], left + wide),
        min(image.shape[0], top + high),
    )
    if x0 >= x1 or y0 >= y1:
        return
    spot = cv2.resize(_blot(), (wide, high))[y0 - top : y1 - top, x0 - left : x1 - left]
    area = image[y0:y1, x0:x1]
    area[:] = (area * spot[..., None]).astype(np.uint8)


def _blend(image: _Image, owner: _Image, picture: _Image, corner: tuple[int, int], who: int) -> None:
    """Draw a BGRA `picture` with its upper left at `corner`, and note in `owner` which pixels it took."""
    left, top = corner
    high, wide = picture.shape[:2]
    x0, y0, x1, y1 = (
        max(0, left),
        max(0, top),
        min(image.shape[1], left + wide),
        min(image.shape[0], top + high),
    )
    if x0 >= x1 or y0 >= y1:
        return
    piece = picture[y0 - top : y1 - top, x0 - left : x1 - left]
    alpha = piece[..., 3:].astype(np.uint16)
    area = image[y0:y1, x0:x1]
    area[:] = (area * (255 - alpha) + piece[..., :3] * alpha) // 255
    owner[y0:y1, x0:x1][piece[..., 3] > 127] = who


def _grain(image: _Image, noise: NDArray[np.int16], number: int) -> _Image:
    """Sensor noise that differs from frame to frame."""
    y, x = (number * 37) % 61, (number * 53) % 67
    rows, columns = image.shape[:2]
    noisy = cv2.add(image, noise[y : y + rows, x : x + columns], dtype=cv2.CV_8U)
    return np.asarray(noisy, np.uint8)
