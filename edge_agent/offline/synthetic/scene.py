"""The constant part of a street camera's pictures: perspective, ground, wall, obstacles, light, noise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import atan2

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_agent.offline.synthetic.camera import Camera, camera, daylight, expose
from edge_agent.offline.synthetic.surfaces import ground, wall
from edge_agent.offline.synthetic.tubes import Light

Image = NDArray[np.uint8]
Point = tuple[float, float]

FAR, NEAR = 0.52, 0.95
"""Rows of the farthest and the nearest lane, shares of the picture's height."""

_HORIZON, _WALL = 0.12, 0.41  # shares of the picture's height
_FAR_HEIGHT = 0.215  # height of a person on the far lane, share of the picture's height: 103 pixels of 480
_PER_ROW = _FAR_HEIGHT / (FAR - _HORIZON)  # growth of a person in pixels per row that the feet are lower
_GROUND_LEVEL = 116.0  # mean grey level of the ground after automatic exposure
_TEXTURE = 170.0  # texture pixels of the ground in one stature


def street_rng(seed: int, *key: int) -> np.random.Generator:
    """Return the random generator of one part of a street."""
    return np.random.default_rng([seed, 0x57, *key])


@dataclass(frozen=True, slots=True)
class Lens:
    """Pinhole geometry of a picture: converts statures on the ground to pixels and back."""

    width: int
    height: int

    @property
    def horizon(self) -> float:
        """Row of the horizon."""
        return _HORIZON * self.height

    @property
    def focal(self) -> float:
        """Focal length in pixels."""
        return 1.1 * self.width

    def scale(self, row: float) -> float:
        """Height in pixels of a person whose feet are on this row."""
        return _PER_ROW * (row - self.horizon)

    def depth(self, row: float) -> float:
        """Distance in statures of the ground on this row."""
        return self.focal / self.scale(row)

    def pixel(self, point: Point) -> tuple[float, float, float]:
        """Column, row and person height in pixels of a ground point."""
        scale = self.focal / point[1]
        return self.width / 2 + point[0] * scale, self.horizon + scale / _PER_ROW, scale

    @property
    def elevation(self) -> float:
        """Downward angle of the view at the middle lane, radians."""
        return atan2(1 / _PER_ROW, self.depth((FAR + NEAR) / 2 * self.height))


@dataclass(frozen=True, slots=True)
class Prop:
    """An obstacle: BGRA picture, its left edge and its foot line in pixels."""

    image: Image
    left: int
    foot: int


@dataclass(frozen=True, slots=True)
class Scene:
    """The constant part of one camera's pictures."""

    view: Camera
    light: Light  # light on people
    tint: tuple[float, float, float]  # colour of the light, factors for blue, green, red
    level: float  # exposure factor
    background: Image  # `(H, W, 3)` uint8 BGR without people and obstacles
    props: tuple[Prop, ...]  # obstacles
    noise: NDArray[np.int16]  # sensor noise, `(H + 61, W + 67, 3)`, of which each frame takes another part

    def coloured(self, picture: Image) -> Image:
        """Return a BGRA picture in the colours of this camera."""
        seen = expose(picture[..., :3].astype(np.float32), self.view, self.tint, self.level)
        return np.dstack([np.clip(seen, 0, 255).astype(np.uint8), picture[..., 3]])

    def noisy(self, image: Image, number: int) -> Image:
        """Return a picture with the sensor noise of frame `number`."""
        y, x = (number * 37) % 61, (number * 53) % 67
        rows, columns = image.shape[:2]
        noisy = cv2.add(image, self.noise[y : y + rows, x : x + columns], dtype=cv2.CV_8U)
        return np.asarray(noisy, np.uint8)


def make_scene(seed: int, index: int, lens: Lens) -> Scene:
    """Make the scene of camera number `index` of a street."""
    view, rng = _view(seed, index), street_rng(seed, 2, index)
    now = daylight(view, float(rng.uniform(10, 16)))
    place = _background(view, lens, rng)
    floor = place[int(_WALL * lens.height) :: 4, ::4]
    level = 1.0
    for _ in range(3):  # automatic exposure: the tone curve is not linear, so it takes a few steps
        level *= _GROUND_LEVEL / float(expose(floor, view, now.tint, level).mean())
    empty = expose(place, view, now.tint, level)
    if view.blur > 0.25:
        empty = cv2.GaussianBlur(empty, (0, 0), view.blur)
    props = (_post(lens, rng), _planter(lens, rng))
    grain = rng.standard_normal((lens.height + 61, lens.width + 67, 3), dtype=np.float32) * view.noise
    background = np.clip(empty, 0, 255).astype(np.uint8)
    scene = Scene(view, now.light, now.tint, level, background, props, grain.round().astype(np.int16))
    return replace(scene, props=tuple(replace(prop, image=scene.coloured(prop.image)) for prop in props))


def _view(seed: int, index: int) -> Camera:
    """A random camera without extreme blur and noise."""
    drawn = camera(int(street_rng(seed, 1, index).integers(2**31)))
    return replace(
        drawn,
        blur=min(drawn.blur, 0.5),
        noise=min(drawn.noise, 4.0),
        gamma=float(np.clip(drawn.gamma, 0.8, 1.2)),
        contrast=min(drawn.contrast, 0.4),
        ground=drawn.ground if drawn.ground in {"asphalt", "cobbles", "tiles"} else "pavement",
        wall=drawn.wall if drawn.wall not in {"glass", "shelves"} else "plaster",
    )


def _background(view: Camera, lens: Lens, rng: np.random.Generator) -> NDArray[np.float32]:
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
    scene[edge:] *= np.linspace(0.86, 1.0, lens.height - edge, dtype=np.float32)[:, None, None]
    return np.asarray(scene, np.float32)


def _post(lens: Lens, rng: np.random.Generator) -> Prop:
    """A lamp post."""
    foot = int(lens.height * rng.uniform(FAR + 0.08, 0.8))
    scale = lens.scale(foot)
    wide, high = max(3, int(0.05 * scale)), min(foot, int(2.2 * scale))
    tone = float(rng.uniform(45, 110))
    image = np.empty((high, wide, 4), np.uint8)
    shading = 0.6 + 0.5 * np.sin(np.linspace(0.3, 2.6, wide))
    image[..., :3] = np.clip(tone * shading, 0, 255)[None, :, None]
    image[..., 3] = 255
    return Prop(image, int(rng.uniform(0.1, 0.9) * lens.width), foot)


def _planter(lens: Lens, rng: np.random.Generator) -> Prop:
    """A low concrete box with leaves above."""
    foot = int(lens.height * rng.uniform(0.66, 0.9))
    scale = lens.scale(foot)
    wide, high = int(0.5 * scale), int(0.3 * scale)
    image = np.zeros((high, wide, 4), np.uint8)
    image[high // 3 :, :, :3] = int(rng.uniform(90, 170))
    image[high // 3 :, :, 3] = 255
    leaves = rng.integers(20, 100, (high // 2 // 3 + 1, wide // 3 + 1, 1), dtype=np.uint8)
    green = cv2.resize(leaves, (wide, high // 2), interpolation=cv2.INTER_LINEAR)
    image[: high // 2] = np.dstack([green // 2, green, green * 3 // 4, np.full_like(green, 255)])
    return Prop(image, int(rng.uniform(0.05, 0.8) * lens.width), foot)
