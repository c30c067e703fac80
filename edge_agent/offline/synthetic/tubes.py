"""Textured, shaded tubes, of which limbs, trunks, bags and hats are drawn.

For each pixel inside a tube's outline, the position on the unwrapped texture and the angle of the surface to
the light are computed. Outlines are antialiased by the covered share of the pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, hypot, pi, sin

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_agent.offline.synthetic.clothes import Texture
from edge_agent.offline.synthetic.pose import Point

Canvas = NDArray[np.float32]
"""`(4, H, W)`: planes of blue, green, red, each multiplied by the fourth plane, the coverage 0..1."""
Profile = NDArray[np.float64]
"""Radii at equal steps along a tube, in units of the stature."""
_Plane = NDArray[np.float32]
_Pixel = tuple[float, float]

_SHINE = 80.0  # grey levels of a highlight on the glossiest cloth in hard light


@dataclass(frozen=True, slots=True)
class Light:
    """Direction of the light, in camera coordinates."""

    right: float = -0.4  # right, up, near: towards the light, of any length; near is towards the camera
    up: float = 0.7
    near: float = 0.6
    ambient: float = 0.6  # share of diffuse light, 0..1


@dataclass(frozen=True, slots=True)
class Tube:
    """One part of a figure."""

    start: Point  # start and end of its axis in the body frame
    end: Point
    across: Profile  # radius to the person's side; the cross-section is an ellipse
    along: Profile  # radius to the front
    texture: Texture  # unwrapped surface, see `clothes`
    rows: tuple[float, float] = (0.0, 1.0)  # position of the two ends on the texture's rows, as shares
    caps: tuple[bool, bool] = (False, False)  # whether the ends are round
    layer: float = 0.0  # drawing order, the highest last
    dim: float = 1.0  # factor of the incoming light
    gloss: float = 0.0  # gloss of the surface, 0..1
    spin: float = 0.0  # turn of the texture around the axis, radians


def profile(*radii: float) -> Profile:
    """Return radii at equal steps along a tube."""
    return np.array(radii, np.float64)


@dataclass(frozen=True, slots=True)
class _Axis:
    """A tube's axis on the canvas: start, direction, length, and lengths of the caps, in pixels."""

    start: _Pixel
    direction: _Pixel
    length: float
    top: float
    bottom: float

    @property
    def side(self) -> _Pixel:
        """Direction across the tube: to the right of the picture for an upright tube."""
        ux, uy = self.direction
        return (uy, -ux) if uy >= 0 else (-uy, ux)

    def at(self, along: float) -> _Pixel:
        return self.start[0] + self.direction[0] * along, self.start[1] + self.direction[1] * along


def _axis(start: _Pixel, end: _Pixel, caps: tuple[float, float]) -> _Axis:
    length = hypot(end[0] - start[0], end[1] - start[1])
    if length < 1.0:  # the camera looks along the axis
        return _Axis(start, (0.0, 1.0), 1.0, *caps)
    return _Axis(start, ((end[0] - start[0]) / length, (end[1] - start[1]) / length), length, *caps)


def _radii(half: Profile, axis: _Axis) -> NDArray[np.float64]:
    """Half width for each pixel along the tube, round caps included."""
    at = np.arange(-axis.top, axis.length + axis.bottom + 1.0)
    radius = np.interp(at * ((len(half) - 1) / axis.length), np.arange(len(half)), half)
    over = np.maximum(-at, at - axis.length)
    cap = over > 0
    limit = np.where(at < 0, axis.top, axis.bottom)[cap]
    radius[cap] = np.sqrt(np.maximum(limit**2 - over[cap] ** 2, 0.01))
    return radius


def _rails(radius: NDArray[np.float64], axis: _Axis, downlight: float) -> NDArray[np.float32]:
    """Radius, steepness and light on the slope at each position along the tube, `(1, N, 3)`."""
    slope = np.empty_like(radius)
    slope[:-1], slope[-1] = radius[1:] - radius[:-1], 0.0
    np.minimum(np.maximum(slope, -1.5, out=slope), 1.5, out=slope)
    slope[: int(axis.top) + 1] *= 0.2  # most caps are joints inside a sleeve or trouser leg, not round ends
    slope[len(slope) - int(axis.bottom) - 1 :] *= 0.2
    steep = 1 / np.sqrt(1 + slope * slope)
    rails = np.empty((1, len(radius), 3), np.float32)
    rails[0, :, 0], rails[0, :, 1], rails[0, :, 2] = radius, steep, slope * steep * downlight
    return rails


def _sample(tube: Tube, side: _Plane, share: _Plane, turn: float) -> list[NDArray[np.uint8]]:
    """Texture planes at `side` (-1..1 across the outline) and `share` (0..1 along it); alters `share`."""
    rows, columns = tube.texture.shape[:2]
    angle = np.arcsin(side)
    angle *= np.float32(columns / (2 * pi))
    angle += np.float32(((0.5 - (turn + tube.spin) / (2 * pi)) % 1.0) * columns)
    first, last = tube.rows
    np.minimum(np.maximum(share, 0, out=share), 1, out=share)
    share *= np.float32((last - first) * (rows - 1))
    share += np.float32(first * (rows - 1))
    colour = cv2.remap(tube.texture, angle, share, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    return list(cv2.split(colour))


def _window(axis: _Axis, widest: float, canvas: Canvas) -> tuple[slice, slice]:
    """Rows and columns of the canvas that the tube may cover."""
    (x0, y0), (x1, y1) = axis.at(-axis.top), axis.at(axis.length + axis.bottom)
    rows = slice(max(0, int(min(y0, y1) - widest)), min(canvas.shape[1], int(max(y0, y1) + widest) + 2))
    columns = slice(max(0, int(min(x0, x1) - widest)), min(canvas.shape[2], int(max(x0, x1) + widest) + 2))
    return rows, columns


def draw_tube(
    canvas: Canvas, tube: Tube, *, start: _Pixel, end: _Pixel, turn: float, scale: float, light: Light
) -> None:
    """Blend one tube over the canvas, in place.

    `start` and `end` are the pixels `(x, y)` of the upper and the lower end, `turn` is the heading of the
    body relative to the camera in radians, `scale` the number of pixels in one stature.
    """
    half = scale * np.sqrt((tube.across * cos(turn)) ** 2 + (tube.along * sin(turn)) ** 2)
    caps = float(half[0]) if tube.caps[0] else 0.0, float(half[-1]) if tube.caps[1] else 0.0
    axis = _axis(start, end, caps)
    radius = _radii(half, axis)
    rows, columns = _window(axis, float(radius.max()) + 1, canvas)
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return
    towards = _towards(light)
    rails = _rails(radius, axis, axis.direction[0] * towards[0] + axis.direction[1] * towards[1])
    along, across = _coordinates(axis, rows, columns)
    place = along + np.float32(axis.top)
    r, steep, sloped = cv2.split(
        cv2.remap(rails, place, np.zeros_like(place), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    )
    np.minimum(place, np.float32(axis.length + axis.bottom) - along, out=place)
    cover = np.minimum(r - np.abs(across), place, out=place)
    cover += np.float32(0.5)
    np.minimum(np.maximum(cover, 0, out=cover), 1, out=cover)
    side = np.divide(across, np.maximum(r, 0.5, out=r), out=across)
    np.minimum(np.maximum(side, -1, out=side), 1, out=side)
    facing = np.sqrt(1 - side * side)
    along *= np.float32(1 / axis.length)
    colour = _sample(tube, side, along, turn)
    side *= np.float32(axis.side[0] * towards[0] + axis.side[1] * towards[1])
    side += facing * np.float32(towards[2])
    side *= steep
    side -= sloped
    lit = np.maximum(side, 0, out=side)
    shade = lit * np.float32((1 - light.ambient) * 1.5 * tube.dim)
    shade += np.float32(light.ambient * tube.dim)
    facing *= np.float32(0.2)
    facing += np.float32(0.8)  # the rim of a round surface receives less ambient light
    shade *= facing
    area = canvas[:, rows, columns]
    area *= 1 - cover
    area[3] += cover
    shade *= cover
    for channel in range(3):
        area[channel] += colour[channel] * shade
    if tube.gloss:
        shine = np.square(np.square(lit))
        shine *= cover
        area[:3] += shine * np.float32(_SHINE * tube.gloss * (1 - light.ambient))


def _towards(light: Light) -> tuple[float, float, float]:
    """Unit vector towards the light as `(right, down, near)`."""
    size = hypot(light.right, light.up, light.near)
    return light.right / size, -light.up / size, light.near / size


def _coordinates(axis: _Axis, rows: slice, columns: slice) -> tuple[_Plane, _Plane]:
    """Position of each pixel of a window along the axis and across it."""
    (ux, uy), (px, py) = axis.direction, axis.side
    xs = np.arange(columns.start, columns.stop, dtype=np.float32)[None] - np.float32(axis.start[0])
    ys = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] - np.float32(axis.start[1])
    return xs * np.float32(ux) + ys * np.float32(uy), xs * np.float32(px) + ys * np.float32(py)
