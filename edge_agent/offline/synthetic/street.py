"""A street watched by several cameras, with the truth of who is where.

People walk through the view of one camera, leave it, and come back later in the same view or another. They
cross and cover each other, pass behind posts, and grow and shrink with distance; every camera has its own
ground, light, colour and noise. The same arguments give the same pictures, frame by frame, in any order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from math import atan2, hypot, pi
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_agent.core.errors import InputError, StorageError
from edge_agent.core.files import native_path
from edge_agent.core.manifest import write_atomic
from edge_agent.offline.synthetic.identity import identity
from edge_agent.offline.synthetic.person import overlap, render_person
from edge_agent.offline.synthetic.pose import Pose
from edge_agent.offline.synthetic.scene import FAR, NEAR, Image, Lens, Point, Scene, make_scene, street_rng

MIN_VISIBLE = 0.3
"""Truth rows below this share of visible pixels have confidence 0: they are not scored."""

_FIRST_SEED = 2_000_000_000  # people of streets; data sets use lower seeds, so no model was trained on them
_PACE = 0.76  # statures per second: 1.3 m/s, the usual walking speed
_CYCLE = 0.83  # statures walked in one gait cycle of two steps
_TURNS, _PHASES = 12, 10  # steps of the cached drawings
_DRAWN = 0.4  # height of the cached drawings, share of the picture's height
_PROP = 255  # marks pixels of an obstacle


class Truth(NamedTuple):
    """One person in one frame."""

    person: int  # number of the person, from 1, the same on all cameras
    # x1, y1, x2, y2 of the whole person in pixels, also where hidden or outside the picture
    box: tuple[float, float, float, float]
    visible: float  # share of the person's pixels that can be seen, 0..1


class StreetFrame(NamedTuple):
    """One picture of one camera."""

    camera: str  # id, such as `cam-a`
    number: int  # frame number, from 1
    time: float  # seconds since the street began
    image: Image  # `(H, W, 3)` uint8 BGR
    truth: tuple[Truth, ...]  # every person with a part inside the picture


@dataclass(frozen=True, slots=True)
class Visit:
    """One passage of one person through one camera's view."""

    person: int  # number of the person, from 1
    camera: str  # id of the camera
    start: float  # seconds at which the person enters from beyond the picture's border
    end: float  # seconds at which the person is beyond the border again
    # start and end on the ground, `(to the right, away from the camera)` in statures
    path: tuple[Point, Point]


class _Layer(NamedTuple):
    """A person or obstacle to draw: foot row, number, BGRA picture, its left and top."""

    foot: float
    number: int
    picture: Image
    left: int
    top: int


def _route(lens: Lens, rng: np.random.Generator) -> tuple[Point, Point]:
    """A straight path across the view, from beyond one side to beyond the other."""
    first = float(rng.uniform(FAR, NEAR))
    drift = float(rng.normal(0, 0.04) if rng.random() < 0.65 else rng.normal(0, 0.25))
    last = float(np.clip(first + drift, FAR, NEAR))
    side = 1 if rng.random() < 0.5 else -1
    start, end = (
        (where * ((lens.width / 2) / lens.scale(row * lens.height) + 0.35), lens.depth(row * lens.height))
        for row, where in ((first, -side), (last, side))
    )
    return start, end


@lru_cache(maxsize=1)
def _shade() -> NDArray[np.float32]:
    """A soft dark spot, 1 outside: the shade around a person's feet."""
    spot = np.ones((24, 64), np.float32)
    cv2.ellipse(spot, (32, 12), (20, 6), 0, 0, 360, 0.45, -1)
    return np.asarray(cv2.GaussianBlur(spot, (0, 0), 3), np.float32)


def _shade_ground(image: Image, foot: Point, person: float) -> None:
    """Darken the ground around `foot`, for a person of `person` pixels."""
    wide, high = max(4, round(0.5 * person)), max(3, round(0.14 * person))
    corner = round(foot[0] - wide / 2), round(foot[1] - high / 2)
    if (parts := overlap(image.shape, corner, (high, wide))) is not None:
        area, piece = parts
        image[area] = (image[area] * cv2.resize(_shade(), (wide, high))[piece][..., None]).astype(np.uint8)


def _blend(image: Image, owner: Image, picture: Image, corner: tuple[int, int], number: int) -> None:
    """Draw a BGRA `picture` at `corner` (left, top); mark the pixels it covers with `number` in `owner`."""
    if (parts := overlap(image.shape, corner, picture.shape)) is not None:
        area, piece = parts[0], picture[parts[1]]
        alpha = piece[..., 3:].astype(np.uint16)
        image[area] = (image[area] * (255 - alpha) + piece[..., :3] * alpha) // 255
        owner[area][piece[..., 3] > 127] = number


class Street:
    """A synthetic street: an iterable of `StreetFrame`, the frames of all cameras at one time in sequence.

    Cameras have the ids `cam-a`, `cam-b`, ...; `size` is `(width, height)` of their pictures. A person makes
    at most `visits` visits, and at least two where the time suffices. InputError if a value is out of range.
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
        self._lens = Lens(*size)
        first = int(street_rng(seed, 3).integers(1_000_000_000))
        self.people = tuple(identity(_FIRST_SEED + first + number) for number in range(people))
        self.visits = self._script(seconds, visits)
        self._scenes: dict[str, Scene] = {}
        self._sprite = lru_cache(maxsize=2048)(self._draw_sprite)

    def _script(self, seconds: float, limit: int) -> tuple[Visit, ...]:
        """The visits of all people in the order of their start."""
        plan: list[Visit] = []
        count = len(self.people)
        for number in range(count):
            rng = street_rng(self.seed, 4, number)
            now = 0.5 * seconds * number / count + float(rng.uniform(0, 0.5))
            place = int(rng.integers(len(self.cameras)))
            for _ in range(limit):
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
        """Visits, within the street's length, of people who were seen before."""
        shown = [visit for visit in self.visits if visit.start < self.frames / self.fps]
        seen = [visit.person for visit in shown]
        return tuple(visit for place, visit in enumerate(shown) if visit.person in seen[:place])

    def __iter__(self) -> Iterator[StreetFrame]:
        for number in range(1, self.frames + 1):
            for name in self.cameras:
                yield self.frame(name, number)

    def frame(self, name: str, number: int) -> StreetFrame:
        """Return frame `number` (from 1) of camera `name`."""
        if name not in self.cameras or not 1 <= number <= self.frames:
            raise InputError(
                f"no frame {number} of camera {name!r}: frames are 1..{self.frames}, "
                f"cameras are {', '.join(self.cameras)}"
            )
        if name not in self._scenes:
            self._scenes[name] = make_scene(self.seed, self.cameras.index(name), self._lens)
        scene, time = self._scenes[name], (number - 1) / self.fps
        image = scene.background.copy()
        truth = self._populate(image, scene, name, time)
        return StreetFrame(name, number, time, scene.noisy(image, number), truth)

    def _populate(self, image: Image, scene: Scene, name: str, time: float) -> tuple[Truth, ...]:
        """Draw people and obstacles into `image`, the farthest first."""
        owner = np.zeros(image.shape[:2], np.uint8)
        layers = [
            _Layer(float(prop.foot), _PROP, prop.image, prop.left, prop.foot - len(prop.image))
            for prop in scene.props
        ]
        present = (visit for visit in self.visits if visit.camera == name and visit.start <= time < visit.end)
        layers += [self._place(visit, time) for visit in present]
        whole: dict[int, tuple[Truth, int]] = {}
        for foot, number, picture, left, top in sorted(layers, key=lambda layer: layer[:2]):
            high, wide = picture.shape[:2]
            if number != _PROP:
                _shade_ground(image, (left + wide / 2, foot), high)
                box = (float(left), float(top), float(left + wide), float(top + high))
                whole[number] = Truth(number, box, 0.0), int(np.count_nonzero(picture[..., 3] > 127))
            _blend(image, owner, picture, (left, top), number)
        return tuple(self._seen(whole, owner))

    def _seen(self, whole: dict[int, tuple[Truth, int]], owner: Image) -> Iterator[Truth]:
        width, height = self.size
        for number, (truth, pixels) in whole.items():
            x1, y1, x2, y2 = (int(value) for value in truth.box)
            if x2 <= 0 or x1 >= width or y1 >= height:
                continue
            part = owner[max(0, y1) : y2, max(0, x1) : x2]
            yield truth._replace(visible=np.count_nonzero(part == number) / max(1, pixels))

    def _place(self, visit: Visit, time: float) -> _Layer:
        """The picture of a visitor at `time`."""
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
        return _Layer(row, visit.person, np.asarray(small, np.uint8), left, top)

    def _draw_sprite(self, person: int, name: str, turn: int, phase: int) -> tuple[Image, Point]:
        """A person in one phase of the gait, in the colours of one camera, and the foot point."""
        scene, who = self._scenes[name], self.people[person - 1]
        pose = Pose(
            2 * pi * turn / _TURNS,
            2 * pi * phase / _PHASES,
            stride=0.36,
            elevation=self._lens.elevation,
            gesture="pockets" if who.seed % 5 == 0 else "walk",
        )
        sprite = render_person(who, pose, _DRAWN * self.size[1], scene.light)
        return scene.coloured(sprite.image), sprite.foot


@dataclass(frozen=True, slots=True)
class StreetVideo:
    """Files of one camera: the video and its truth in MOTChallenge rows."""

    camera: str
    video: Path
    truth: Path


def write_videos(
    street: Street, folder: Path, progress: Callable[[int, int], None] | None = None
) -> tuple[StreetVideo, ...]:
    """Write each camera as Motion JPEG in AVI, its truth, and `street.json` with the script.

    Truth rows are `frame,person,left,top,width,height,conf,class,visibility`, as in the `gt.txt` of the
    MOTChallenge; `person` is the same on all cameras, conf is 0 below `MIN_VISIBLE`. The folder is created if
    missing. `progress` is called with `(frames done, frames in all)`, counted over all cameras. StorageError
    if a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    videos = []
    for index, name in enumerate(street.cameras):
        video = StreetVideo(name, folder / f"{name}.avi", folder / f"{name}.txt")
        rows = _write_video(street, video, index * street.frames, progress)
        write_atomic(video.truth, "".join(rows).encode())
        videos.append(video)
    script = {"seed": street.seed, "fps": street.fps, "size": street.size, "frames": street.frames}
    people = {str(number): person.seed for number, person in enumerate(street.people, 1)}
    visits = [asdict(visit) for visit in street.visits]
    document = json.dumps({**script, "people": people, "visits": visits}, indent=1)
    write_atomic(folder / "street.json", document.encode())
    return tuple(videos)


def _write_video(
    street: Street, video: StreetVideo, done: int, progress: Callable[[int, int], None] | None
) -> list[str]:
    """Write one video; return its rows of truth."""
    part = video.video.with_name(f"{video.camera}.part.avi")
    writer = cv2.VideoWriter(native_path(part), cv2.VideoWriter.fourcc(*"MJPG"), street.fps, street.size)
    if not writer.isOpened():
        raise StorageError(f"{part}: cannot be opened for writing; check free space and permissions")
    rows = []
    try:
        for number in range(1, street.frames + 1):
            frame = street.frame(video.camera, number)
            writer.write(frame.image)
            rows += [_mot_row(number, truth) for truth in frame.truth]
            if progress:
                progress(done + number, street.frames * len(street.cameras))
    finally:
        writer.release()
    part.replace(video.video)
    return rows


def _mot_row(number: int, truth: Truth) -> str:
    x1, y1, x2, y2 = truth.box
    scored = int(truth.visible >= MIN_VISIBLE)
    box = f"{x1:.1f},{y1:.1f},{x2 - x1:.1f},{y2 - y1:.1f}"
    return f"{number},{truth.person},{box},{scored},1,{truth.visible:.3f}\n"
