"""Cameras: place, light, colours and image faults.

A camera is drawn from a seed, so all pictures of one camera share background, colour and sharpness. These
differences make people harder to recognise across cameras than within one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import cos, pi, sin

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_agent.offline.synthetic.surfaces import GROUNDS, WALLS, ground, noise, wall
from edge_agent.offline.synthetic.tubes import Light

_SHEET = (480, 640)  # rows and columns of a camera's textures of ground and wall


@dataclass(frozen=True, slots=True)
class Camera:
    """One camera and its place."""

    seed: int
    gain: tuple[float, float, float]  # white balance and exposure, factors for blue, green, red
    gamma: float  # exponent of the tone curve; above 1 darkens the middle tones
    saturation: float  # factor; 1 keeps colours
    lift: float  # added to all values, for haze and raised blacks
    contrast: float  # steepness of the S-shaped tone curve, 0 for none
    elevation: float  # downward angle of the view, radians
    headings: tuple[float, ...]  # usual walking directions, radians (see `Pose.turn`)
    heights: tuple[float, float]  # smallest and largest height of a person in pixels
    blur: float  # spread of the lens and focus blur, pixels of the sensor
    sharpen: float  # strength of the camera's own edge sharpening
    noise: float  # spread of the sensor noise, grey levels
    quality: tuple[int, int]  # lowest and highest JPEG quality of its stream
    sun: float  # azimuth of the sun at noon relative to the line of sight, radians
    ambient: float  # share of diffuse light at noon
    indoor: bool  # whether the light stays the same all day
    ground: str
    wall: str
    skyline: float  # height at which wall and ground meet, in person heights above the feet (mean)


@dataclass(frozen=True, slots=True)
class Daylight:
    """Light at one time: direction and strength, and colour (factors for blue, green, red)."""

    light: Light
    tint: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Spread:
    """How much the cameras of a data set differ.

    Attributes:
        colours: factor of the differences in exposure, white balance, tone curve and saturation; 0 for
            cameras with the same, neutral colours.
        faults: factor of blur, noise and sharpening; 0 also leaves out the camera's compression.
        smallest: lowest height in pixels of the smallest person of a camera.
    """

    colours: float = 1.0
    faults: float = 1.0
    smallest: float = 42.0


USUAL = Spread()


def camera(seed: int, spread: Spread = USUAL) -> Camera:
    """Return the camera of this seed; place and view are the same for any `spread`."""
    view = _drawn(seed, spread.smallest)
    if spread == USUAL:
        return view
    colours, faults = spread.colours, spread.faults
    blue, green, red = view.gain
    return replace(
        view,
        gain=(blue**colours, green**colours, red**colours),
        gamma=view.gamma**colours,
        saturation=float(np.clip(1 + (view.saturation - 1) * colours, 0.1, 2.0)),
        lift=float(np.clip(view.lift * colours, -24, 64)),
        contrast=min(1.0, view.contrast * colours),
        blur=view.blur * faults,
        sharpen=view.sharpen * faults,
        noise=view.noise * faults,
        quality=view.quality if faults else (95, 96),
    )


def _drawn(seed: int, smallest: float) -> Camera:
    rng = np.random.default_rng([seed, 0xCA])
    warmth = rng.normal(0, 0.075)
    exposure = float(np.exp(rng.normal(0, 0.13)))
    low = float(rng.uniform(smallest, 110))
    first = rng.uniform(-pi, pi)
    return Camera(
        seed=seed,
        gain=(
            exposure * float(np.exp(-warmth + rng.normal(0, 0.04))),
            exposure * float(np.exp(rng.normal(0, 0.035))),
            exposure * float(np.exp(warmth + rng.normal(0, 0.04))),
        ),
        gamma=float(np.exp(rng.normal(0.02, 0.2))),
        saturation=float(np.clip(rng.normal(0.9, 0.25), 0.3, 1.5)),
        lift=float(np.clip(rng.normal(4, 9), -12, 32)),
        contrast=float(np.clip(rng.normal(0.15, 0.25), 0, 0.8)),
        elevation=float(np.clip(abs(rng.normal(0.18, 0.14)), 0.0, 0.6)),
        headings=(float(first), float(first + pi + rng.normal(0, 0.3)), float(rng.uniform(-pi, pi))),
        heights=(low, float(low * rng.uniform(1.4, 2.6))),
        blur=float(rng.choice([rng.uniform(0, 0.5), rng.uniform(0.4, 1.3)])),
        sharpen=float(rng.choice([0.0, rng.uniform(0.2, 1.2)])),
        noise=float(min(11.0, rng.gamma(1.6, 1.7))),
        quality=(int(rng.integers(35, 75)), int(rng.integers(76, 96))),
        sun=float(rng.uniform(-pi, pi)),
        ambient=float(rng.uniform(0.42, 0.88)),
        indoor=bool(rng.random() < 0.25),
        ground=str(rng.choice(GROUNDS, p=[0.24, 0.26, 0.09, 0.12, 0.08, 0.15, 0.06])),
        wall=str(rng.choice(WALLS, p=[0.24, 0.16, 0.14, 0.14, 0.1, 0.17, 0.05])),
        skyline=float(rng.normal(0.75, 0.5)),
    )


def daylight(view: Camera, hour: float) -> Daylight:
    """Return the light at `hour` (8..18): low, warm sun early and late; constant light indoors."""
    if view.indoor:
        return Daylight(Light(0.3 * sin(view.sun), 1.0, 0.5, max(0.6, view.ambient)), (0.96, 1.0, 1.03))
    day = (hour - 13.0) / 5.0
    azimuth, height = view.sun + 1.1 * day, 1.1 - 0.75 * day * day
    light = Light(sin(azimuth), height, 0.35 + cos(azimuth), min(0.95, view.ambient + 0.1 * abs(day)))
    low = day * day
    return Daylight(light, (1.0 - 0.16 * low, 1.0 - 0.11 * low, 1.0 - 0.05 * low))


@lru_cache(maxsize=160)
def _sheets(seed: int, ground_kind: str, wall_kind: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    rng = np.random.default_rng([seed, 0xB6])
    floor, back = ground(ground_kind, rng, *_SHEET), wall(wall_kind, rng, *_SHEET)
    shade = 1 - 0.35 * (noise(rng, *_SHEET, 150) > 0.7)  # shadows of trees and buildings
    shade = cv2.GaussianBlur(shade.astype(np.float32), (0, 0), 4)
    return (floor * shade[..., None]).astype(np.uint8), back


def _patch(
    sheet: NDArray[np.uint8], rng: np.random.Generator, rows: int, columns: int, zoom: float
) -> NDArray[np.uint8]:
    """A random piece of `sheet`, `(rows, columns, 3)`, magnified by `zoom`."""
    high, wide = min(_SHEET[0], max(2, int(rows / zoom))), min(_SHEET[1], max(2, int(columns / zoom)))
    y, x = int(rng.integers(0, _SHEET[0] - high + 1)), int(rng.integers(0, _SHEET[1] - wide + 1))
    piece = sheet[y : y + high, x : x + wide]
    return np.asarray(cv2.resize(piece, (columns, rows), interpolation=cv2.INTER_AREA), np.uint8)


def backdrop(
    view: Camera, rng: np.random.Generator, rows: int, columns: int, person: float
) -> NDArray[np.float32]:
    """Return the background of a person of `person` pixels near the lower edge, `(rows, columns, 3)` BGR."""
    floor, back = _sheets(view.seed, view.ground, view.wall)
    zoom = person / 200 * float(rng.uniform(0.8, 1.3))
    scene = _patch(floor, rng, rows, columns, zoom)
    edge = int(rows - person * (view.skyline + rng.normal(0, 0.15)))
    if edge > 4:
        scene[:edge] = _patch(back, rng, min(edge, rows), columns, zoom)
        if edge < rows - 2:
            scene[max(0, edge - 2) : edge + 2] //= 2
    return scene.astype(np.float32)


def _curve(view: Camera, gain: float) -> NDArray[np.float32]:
    """Tone curve of one channel at quarter steps of 0..255."""
    linear = np.arange(4 * 256) / (4 * 255) * gain
    knee = 0.72  # highlights roll off instead of clipping, as in a camera's own processing
    bright = 1 - (1 - knee) * np.exp(-np.maximum(linear - knee, 0) / (1 - knee))
    picture = np.where(linear < knee, linear, bright)
    picture = np.power(picture, view.gamma)
    picture += view.contrast * (picture * picture * (3 - 2 * picture) - picture)
    return (picture * (255 - view.lift) + view.lift).astype(np.float32)


def expose(
    scene: NDArray[np.float32], view: Camera, tint: tuple[float, float, float], level: float
) -> NDArray[np.float32]:
    """Apply the camera's light and colour: scene values 0..255 float32 BGR -> sensor values, same shape."""
    grey = scene.mean(axis=2, keepdims=True)
    steps = (grey + (scene - grey) * np.float32(view.saturation)) * np.float32(4)
    steps = np.minimum(np.maximum(steps, 0), 4 * 256 - 1).astype(np.int16)
    level *= _metering(view)
    picture = np.empty_like(scene)
    for channel in range(3):
        picture[..., channel] = _curve(view, view.gain[channel] * tint[channel] * level)[steps[..., channel]]
    return picture


@lru_cache(maxsize=1024)
def _metering(view: Camera) -> float:
    """Automatic exposure: half the correction to a middle grey for the whole place."""
    floor, back = _sheets(view.seed, view.ground, view.wall)
    return float((126 / (0.6 * floor.mean() + 0.4 * back.mean())) ** 0.5)


def transmit(picture: NDArray[np.float32], view: Camera, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Apply lens, sensor and compression: float32 BGR -> uint8 BGR of the same size."""
    blur = view.blur * float(rng.uniform(0.7, 1.4))
    if blur > 0.25:
        picture = cv2.GaussianBlur(picture, (0, 0), blur)
    if rng.random() < 0.12:
        picture = cv2.blur(picture, (int(rng.integers(2, 5)), 1))
    if view.noise > 0.3:
        spread = view.noise * float(rng.uniform(0.7, 1.3))
        picture = picture + spread * rng.standard_normal(picture.shape, dtype=np.float32)
    if view.sharpen:
        picture = picture + np.float32(view.sharpen) * (picture - cv2.GaussianBlur(picture, (0, 0), 1.0))
    clipped = np.clip(picture, 0, 255).astype(np.uint8)
    _, packed = cv2.imencode(".jpg", clipped, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(*view.quality))])
    return np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR), np.uint8)
