"""A street watched by several cameras, with the truth of who is where.

People walk through the view of one camera, leave it, and come back later in the same view or another. They
cross and cover each other, pass behind posts, and grow and shrink with distance; every camera has its own
ground, light, colour and noise. The same arguments give the same pictures, frame by frame, in any order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import atan2, hypot, pi
from typing import NamedTuple

import cv2
import numpy as np

from edge_agent.core.errors import InputError
from edge_agent.offline.synthetic.identity import Identity, identity
from edge_agent.offline.synthetic.person import render_person
from edge_agent.offline.synthetic.pose import Pose
from edge_agent.offline.synthetic.scene import (
    FAR,
    NEAR,
    Image,
    Lens,
    Point,
    Scene,
    blend,
    make_scene,
    shade_ground,
    street_rng,
)

__all__ = ["Street", "StreetFrame", "Truth", "Visit"]

_FIRST_SEED = 2_000_000_000  # people of streets; data sets use lower seeds, so no model was trained on them
_PACE = 0.76  # statures per second: 1.3 m/s, the usual walking speed
_CYCLE = 0.83  # statures walked in one gait cycle of two steps
_TURNS, _PHASES = 12, 10  # steps of the cached drawings
_DRAWN = 0.4  # height of the cached drawings, share of the picture's height
_PROP = 255  # marks pixels of an obstacle


class Truth(NamedTuple):
    """One person in one frame.

    Attributes:
        person: number of the person, from 1, the same on all cameras.
        box: x1, y1, x2, y2 of the whole person in pixels, also where hidden or outside the picture.
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
        truth: every person with a part inside the picture.
    """

    camera: str
    number: int
    time: float
    image: Image
    truth: tuple[Truth, ...]


@dataclass(frozen=True, slots=True)
class Visit:
    """One passage of one person through one camera's view.

    Attributes:
        person: number of the person, from 1.
        camera: id of the camera.
        start: seconds at which the person enters from beyond the picture's border.
        end: seconds at which the person is beyond the border again.
        path: start and end on the ground, `(to the right, away from the camera)` in statures.
    """

    person: int
    camera: str
    start: float
    end: float
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
    ends = []
    for row, where in ((first, -side), (last, side)):
        depth = lens.depth(row * lens.height)
        edge = (lens.width / 2) / lens.scale(row * lens.height) + 0.35
        ends.append((where * edge, depth))
    return ends[0], ends[1]


class Street:
    """A synthetic street: an iterable of `StreetFrame`, the frames of all cameras at one time in sequence.

    Args:
        seed: determines everything.
        cameras: number of cameras, ids `cam-a`, `cam-b`, ...
        people: number of people.
        seconds: length.
        fps: frames per second of every camera.
        size: `(width, height)` of the pictures in pixels.
        visits: largest number of visits per person; every person with enough time comes at least twice.

    Raises:
        InputError: an argument is out of range.
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
        self.people: tuple[Identity, ...] = tuple(
            identity(_FIRST_SEED + first + number) for number in range(people)
        )
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
        for visit in self.visits:
            if visit.camera == name and visit.start <= time < visit.end:
                layers.append(self._place(visit, time))
        whole: dict[int, tuple[Truth, int]] = {}
        for foot, number, picture, left, top in sorted(layers, key=lambda layer: layer[:2]):
            high, wide = picture.shape[:2]
            if number != _PROP:
                shade_ground(image, (left + wide / 2, foot), high)
                box = (float(left), float(top), float(left + wide), float(top + high))
                whole[number] = Truth(number, box, 0.0), int(np.count_nonzero(picture[..., 3] > 127))
            blend(image, owner, picture, (left, top), number)
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
