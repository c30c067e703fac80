"""Draws a person: an articulated body of textured, shaded tubes, seen by an orthographic camera.

Every limb is a tube along a bone with a profile of radii. For each pixel inside its outline the tube gives
where on the unwrapped texture it lies and how its surface is turned to the light, so the same jacket shows
its zip from the front, its print from the back and half of both from the side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import cos, hypot, pi, sin

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_agent.synthetic.clothes import Clothes, Texture, clothes
from edge_agent.synthetic.identity import Identity, identity
from edge_agent.synthetic.pose import Point, Pose, Skeleton, project, skeleton

__all__ = ["Identity", "Light", "Sprite", "identity", "render_person"]

_Canvas = NDArray[np.float32]
_Profile = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Light:
    """Where the light comes from, in the view of the camera.

    Attributes:
        right, up, near: direction towards the light; near is towards the camera. Need not be of unit length.
        ambient: share of light that comes from everywhere, 0..1.
    """

    right: float = -0.4
    up: float = 0.7
    near: float = 0.6
    ambient: float = 0.6


@dataclass(frozen=True, slots=True)
class Sprite:
    """A drawn person.

    Attributes:
        image: `(h, w, 4)` uint8 BGRA, straight alpha, cut to the drawn pixels.
        foot: `(x, y)` of the ground point below the body, in pixels of `image`.
    """

    image: NDArray[np.uint8]
    foot: tuple[float, float]


@dataclass(frozen=True, slots=True)
class _Tube:
    """One part: from `start` to `end` in the body frame, radii across and along the view at turn 0."""

    start: Point
    end: Point
    across: _Profile
    along: _Profile
    texture: Texture
    rows: tuple[float, float] = (0.0, 1.0)
    caps: tuple[bool, bool] = (False, False)
    layer: float = 0.0
    dim: float = 1.0
    spin: float = 0.0


def _profile(*radii: float) -> _Profile:
    return np.array(radii, np.float64)


def _thickness(tube: _Tube, turn: float, scale: float) -> _Profile:
    """Half width of the outline in pixels, from the elliptic cross-section seen under `turn`."""
    return scale * np.sqrt((tube.across * cos(turn)) ** 2 + (tube.along * sin(turn)) ** 2)


def _radii(
    half: _Profile, length: float, caps: tuple[bool, bool]
) -> tuple[NDArray[np.float32], float, float]:
    """Radius for each pixel along the tube, round caps included, and the lengths of the two caps."""
    top, bottom = (float(half[0]) if caps[0] else 0.0), (float(half[-1]) if caps[1] else 0.0)
    at = np.arange(-top, length + bottom + 1.0)
    radius = np.interp(at / max(length, 1e-3), np.linspace(0, 1, len(half)), half)
    over = np.maximum(-at, at - length)
    round_ = over > 0
    limit = np.where(at < 0, top, bottom)[round_]
    radius[round_] = np.sqrt(np.maximum(limit**2 - over[round_] ** 2, 0.01))
    return radius.astype(np.float32), top, bottom


def _draw(
    canvas: _Canvas,
    tube: _Tube,
    *,
    start: tuple[float, float],
    end: tuple[float, float],
    turn: float,
    scale: float,
    light: Light,
) -> None:
    """Blend one tube over the premultiplied float32 BGRA canvas; `start` and `end` in pixels."""
    length = max(hypot(end[0] - start[0], end[1] - start[1]), 1.0)
    ux, uy = (end[0] - start[0]) / length, (end[1] - start[1]) / length
    if abs(ux) < 1e-6 and abs(uy) < 1e-6:
        ux, uy = 0.0, 1.0
    radius, top, bottom = _radii(_thickness(tube, turn, scale), length, tube.caps)
    widest = float(radius.max()) + 1
    x0, y0 = start[0] - ux * top, start[1] - uy * top
    x1, y1 = start[0] + ux * (length + bottom), start[1] + uy * (length + bottom)
    left, right = max(0, int(min(x0, x1) - widest)), min(canvas.shape[1], int(max(x0, x1) + widest) + 2)
    high, low = max(0, int(min(y0, y1) - widest)), min(canvas.shape[0], int(max(y0, y1) + widest) + 2)
    if left >= right or high >= low:
        return
    xs = np.arange(left, right, dtype=np.float32)[None] - np.float32(start[0])
    ys = np.arange(high, low, dtype=np.float32)[:, None] - np.float32(start[1])
    px, py = (uy, -ux) if uy >= 0 else (-uy, ux)
    along = xs * np.float32(ux) + ys * np.float32(uy)
    across = xs * np.float32(px) + ys * np.float32(py)
    index = np.minimum(np.maximum(along + np.float32(top), 0), len(radius) - 1).astype(np.intp)
    r = radius[index]
    inside = np.minimum(
        r - np.abs(across), np.minimum(along + np.float32(top), np.float32(length + bottom) - along)
    )
    cover = np.minimum(np.maximum(inside + np.float32(0.5), 0), 1)
    side = np.minimum(np.maximum(across / np.maximum(r, 0.5), -1), 1)
    facing = np.sqrt(1 - side * side)
    colour = _sample(tube, side, along * np.float32(1 / length), turn)
    slope = np.minimum(np.maximum(np.diff(radius, append=radius[-1:]), -1.5), 1.5)
    slope[: int(top) + 1] *= 0.2  # caps are joints inside a sleeve or trouser leg, not round ends
    slope[len(slope) - int(bottom) - 1 :] *= 0.2
    size = hypot(light.right, light.up, light.near)
    lx, ly, ln = light.right / size, -light.up / size, light.near / size
    lit = side * np.float32(px * lx + py * ly) + facing * np.float32(ln)
    lit -= (slope * np.float32(ux * lx + uy * ly))[index]
    lit *= (1 / np.sqrt(1 + slope * slope))[index]
    shade = np.maximum(lit, 0) * np.float32((1 - light.ambient) * 1.5 * tube.dim) + np.float32(
        light.ambient * tube.dim
    )
    shade *= np.float32(0.8) + np.float32(0.2) * facing  # the rim of a round thing sees less of the sky
    shade *= cover
    area = canvas[high:low, left:right]
    area *= (1 - cover)[..., None]
    area[..., :3] += colour * shade[..., None]
    area[..., 3] += cover


def _sample(
    tube: _Tube, side: NDArray[np.float32], share: NDArray[np.float32], turn: float
) -> NDArray[np.uint8]:
    """Colours of the texture at `side` (-1..1 across the outline) and `share` (0..1 along the tube)."""
    rows, columns = tube.texture.shape[:2]
    angle = np.arcsin(side)
    angle *= np.float32(columns / (2 * pi))
    angle += np.float32(((0.5 - (turn + tube.spin) / (2 * pi)) % 1.0) * columns)
    first, last = tube.rows
    down = np.minimum(np.maximum(share, 0), 1)
    down *= np.float32((last - first) * (rows - 1))
    down += np.float32(first * (rows - 1))
    colour: NDArray[np.uint8] = cv2.remap(
        tube.texture, angle, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
    )
    return colour


def _leg_tubes(
    person: Identity, wear: Clothes, bones: Skeleton, nearness: tuple[float, float]
) -> Iterator[_Tube]:
    bottom, girth = person.bottom, person.body.girth
    bare = bottom.kind in {"skirt", "none"}
    wide = girth * (1.0 if bare else bottom.width)
    cloth = 0.0 if bare or bottom.kind == "leggings" else 0.005
    for index, side in enumerate((1, -1)):
        behind = nearness[index] < nearness[1 - index]
        layer, dim = (1.0, 0.8) if behind else (2.0, 1.0)
        thigh = wide * _profile(0.052, 0.05, 0.043, 0.037) + cloth
        calf = wide * _profile(0.037, 0.038, 0.031, 0.024) + cloth + bottom.flare * _profile(0, 0.2, 0.6, 1.0)
        if bottom.kind == "shorts":
            calf = girth * _profile(0.035, 0.037, 0.029, 0.021)
        spin = 0.0 if side > 0 else pi  # mirrors the outer seam
        hip, knee, ankle, toe = bones.hips[index], bones.knees[index], bones.ankles[index], bones.toes[index]
        middle = 0.5
        foot = 0.021 + 0.003 * girth
        heel = ankle + np.array([0.0, -0.022, -0.018])
        if min(person.shoes.sole) > 120:
            low, rim = np.array([0.0, 0.0, -0.012]), foot * _profile(0.8, 0.85, 0.7)
            yield _Tube(
                heel + low, toe + low, rim, rim * 0.8, wear.sole, caps=(True, True), layer=layer - 0.41
            )
        yield _Tube(
            heel,
            toe,
            foot * _profile(1, 1.05, 1.1, 0.8),
            foot * _profile(1, 0.95, 0.8, 0.55),
            wear.shoe,
            caps=(True, True),
            layer=layer - 0.4,
            dim=dim,
        )
        yield _Tube(hip, knee, thigh, thigh * 1.08, wear.leg, (0.0, middle), (True, True), layer, dim, spin)
        yield _Tube(
            knee, ankle, calf, calf * 1.1, wear.leg, (middle, 1.0), (True, False), layer + 0.1, dim, spin
        )


def _arm_tubes(person: Identity, wear: Clothes, bones: Skeleton, view: Pose) -> Iterator[_Tube]:
    girth, loose = (
        0.6 + 0.4 * person.body.girth,
        person.top.loose * (0.6 if person.top.sleeves >= 0.7 else 0.3),
    )
    for index, side in enumerate((1, -1)):
        shoulder, elbow, wrist = bones.shoulders[index], bones.elbows[index], bones.wrists[index]
        near = project((elbow + wrist + shoulder) / 3 - bones.neck, view.turn, 0.0)[2]
        layer, dim = (8.0, 1.0) if near > -0.03 else (0.5, 0.78)
        upper = girth * _profile(0.026, 0.032, 0.027) + loose * _profile(0.5, 1, 1)
        fore = girth * _profile(0.026, 0.025, 0.019) + loose * (1.0 if person.top.sleeves >= 0.7 else 0.0)
        spin = 0.0 if side > 0 else pi
        hand = wrist + (wrist - elbow) / np.linalg.norm(wrist - elbow) * 0.05
        palm = girth * _profile(0.017, 0.022, 0.014)
        if view.gesture != "pockets":
            yield _Tube(wrist, hand, palm * 0.8, palm, wear.skin, caps=(False, True), layer=layer, dim=dim)
        yield _Tube(elbow, wrist, fore, fore, wear.sleeve, (0.55, 1.0), (True, True), layer + 0.1, dim, spin)
        yield _Tube(
            shoulder,
            elbow,
            upper,
            upper * 1.1,
            wear.sleeve,
            (0.0, 0.55),
            (True, True),
            layer + 0.2,
            dim,
            spin,
        )


def _trunk_radii(person: Identity, length: float) -> tuple[_Profile, _Profile]:
    """Radii of the trunk at equal steps from the neck's base down to the hem."""
    body, top = person.body, person.top
    thick = 0.55 + 0.45 * body.girth
    across_at = {
        0.0: 0.034,
        0.016: 0.06,
        0.04: 0.098,
        0.075: 0.112,
        0.14: 0.108,
        0.24: 0.095,
        0.31: 0.1,
        0.38: 0.104,
    }
    along_at = {0.0: 0.036, 0.03: 0.05, 0.1: 0.066, 0.15: 0.07, 0.24: 0.062, 0.31: 0.068, 0.38: 0.07}
    steps = np.linspace(0, length, 24)
    across = np.interp(steps, list(across_at), list(across_at.values()))
    along = np.interp(steps, list(along_at), list(along_at.values()))
    shoulder = np.clip(1 - steps / 0.3, 0, 1)
    across *= thick * (shoulder * body.shoulders + (1 - shoulder) * body.hips)
    along *= thick
    paunch = 0.035 * body.belly * np.exp(-(((steps - 0.25) / 0.07) ** 2))
    loose = top.loose * np.clip(steps / 0.06, 0, 1)
    flare = np.clip((steps - 0.33) / 0.3, 0, 1) * (0.05 if top.kind in {"coat", "dress"} else 0.0)
    if top.kind == "puffer":
        loose = loose * (1 + 0.25 * np.sin(steps / (0.03 + top.period) * 2 * pi))
    return across + 0.8 * loose + paunch * 0.5 + flare, along + loose + paunch + flare


def _trunk_tubes(person: Identity, wear: Clothes, bones: Skeleton, spread: float) -> Iterator[_Tube]:
    """Seat, skirt and trunk. `spread` is how far the feet are apart: long hems open that far."""
    top, bottom, body = person.top, person.bottom, person.body
    axis = bones.neck - bones.pelvis
    axis = axis / np.linalg.norm(axis)
    thick = 0.55 + 0.45 * body.girth
    seat = thick * body.hips * _profile(0.088, 0.098, 0.1, 0.09)
    yield _Tube(
        bones.pelvis + axis * 0.07,
        bones.pelvis - axis * 0.05,
        seat,
        thick * _profile(0.06, 0.074, 0.078, 0.06),
        wear.seat,
        layer=3.0,
    )
    if bottom.kind == "skirt":
        waist, hem = bones.pelvis + axis * 0.08, np.array([bones.pelvis[0], bones.pelvis[1], bottom.hem])
        flare = bottom.flare * 1.5 + 0.008
        across = thick * body.hips * _profile(0.088, 0.102, 0.106, 0.106) + flare * _profile(0, 0.2, 0.6, 1)
        along = thick * _profile(0.065, 0.08, 0.085, 0.085) + (flare + 0.3 * spread) * _profile(
            0, 0.1, 0.4, 0.8
        )
        yield _Tube(waist, hem, across, along, wear.skirt, layer=3.2)
    collar = bones.neck + axis * 0.022
    hem = bones.pelvis + axis * 0.02
    reach = float(np.linalg.norm(collar - bones.pelvis)) - (top.hem - 0.53)
    if top.hem < 0.53:
        hem = collar + (bones.pelvis - collar) / np.linalg.norm(bones.pelvis - collar) * reach
    across, along = _trunk_radii(person, reach)
    opening = np.clip((np.linspace(0, reach, 24) - 0.36) / 0.25, 0, 1) * spread * 0.35
    yield _Tube(collar, hem, across, along + opening, wear.trunk, layer=4.0)


def _hair_tubes(person: Identity, wear: Clothes, skull: Point, view: float) -> Iterator[_Tube]:
    """What stands off the head. `view` is the heading of the head against the camera."""
    style, size = person.head.hair, person.body.head
    if person.head.hat in {"hood", "scarf"}:
        return
    facing = cos(view) > -0.2
    up, back = np.array([0.0, 0.0, 1.0]), np.array([0.0, -1.0, 0.0])
    layer = 3.6 if facing else 7.0
    if style == "curly":
        ball = size * _profile(0.05, 0.066, 0.07, 0.05)
        yield _Tube(
            skull + up * 0.045 + back * 0.012,
            skull - up * 0.045 + back * 0.02,
            ball,
            ball,
            wear.hair,
            caps=(True, True),
            layer=5.5 if facing else 7.0,
        )
    elif style in {"long", "bob"}:
        drop = 0.075 if style == "bob" else 0.17
        fall = size * _profile(0.048, 0.058, 0.062, 0.05)
        yield _Tube(
            skull + up * 0.03 + back * 0.015,
            skull - up * drop + back * 0.03,
            fall,
            fall * 0.8,
            wear.hair,
            caps=(True, True),
            layer=layer,
        )
    elif style == "ponytail":
        tail = size * _profile(0.018, 0.022, 0.012)
        yield _Tube(
            skull + back * 0.06 + up * 0.01,
            skull + back * 0.075 - up * 0.13,
            tail,
            tail,
            wear.hair,
            caps=(True, True),
            layer=layer,
        )
    elif style == "bun":
        knot = size * _profile(0.025, 0.025)
        yield _Tube(
            skull + back * 0.06 + up * 0.03,
            skull + back * 0.07 + up * 0.02,
            knot,
            knot,
            wear.hair,
            caps=(True, True),
            layer=layer,
        )


def _head_tubes(person: Identity, wear: Clothes, bones: Skeleton, pose: Pose) -> Iterator[_Tube]:
    size, head = person.body.head, person.head
    skull = bones.head
    up, front = np.array([0.0, 0.0, 1.0]), np.array([sin(-pose.glance), cos(pose.glance), 0.0])
    neck = (0.6 + 0.4 * person.body.girth) * _profile(0.032, 0.031, 0.036)
    yield _Tube(skull - up * 0.04, bones.neck - up * 0.005, neck, neck, wear.skin, layer=3.8, dim=0.82)
    across = size * _profile(0.012, 0.033, 0.042, 0.046, 0.047, 0.046, 0.044, 0.041, 0.036, 0.028, 0.014)
    along = size * _profile(0.014, 0.04, 0.053, 0.058, 0.06, 0.058, 0.055, 0.051, 0.046, 0.038, 0.02)
    grown = (
        1.0 + (0.06 if head.hair in {"short", "bob", "long"} else 0.0) + (0.12 if head.hat == "hood" else 0.0)
    )
    grow = np.interp(
        np.linspace(0, 1, 11), [0, 0.45, 0.6], [grown, grown, 1.0 if head.hat != "hood" else grown]
    )
    yield _Tube(
        skull + up * 0.066 * size * grown,
        skull - up * 0.066 * size,
        across * grow,
        along * grow,
        wear.head,
        layer=6.0,
        spin=pose.glance,
    )
    if head.hat in {"cap", "brim"}:
        reach = 0.105 if head.hat == "cap" else 0.09
        peak = _profile(0.03, 0.026) if head.hat == "cap" else _profile(0.02, 0.02)
        start = skull + up * 0.022 + front * (0.03 if head.hat == "cap" else -reach)
        yield _Tube(
            start,
            skull + up * 0.014 + front * reach,
            peak,
            peak * 0.25,
            wear.hat,
            caps=(True, True),
            layer=6.2 if cos(pose.turn) > -0.2 else 5.8,
        )
    if head.hat == "beanie":
        dome = size * _profile(0.03, 0.048, 0.052, 0.053)
        yield _Tube(skull + up * 0.082, skull + up * 0.022, dome, dome * 1.2, wear.hat, layer=6.1)
    if person.top.scarf or head.hat == "scarf":
        wrap = _profile(0.045, 0.055, 0.06)
        yield _Tube(
            bones.neck + up * 0.05,
            bones.neck - up * 0.012,
            wrap,
            wrap,
            wear.scarf,
            caps=(False, True),
            layer=6.5,
        )
    yield from _hair_tubes(person, wear, skull, pose.turn + pose.glance)


def _bag_tubes(person: Identity, wear: Clothes, bones: Skeleton, pose: Pose) -> Iterator[_Tube]:
    bag = person.bag
    if bag.kind == "none":
        return
    up, back, left = np.array([0.0, 0.0, 1.0]), np.array([0.0, -1.0, 0.0]), np.array([1.0, 0.0, 0.0])
    index = 0 if bag.side > 0 else 1
    size = bag.size
    if bag.kind == "backpack":
        middle = bones.neck + back * (0.115 + person.top.loose)
        shape = size * _profile(0.06, 0.082, 0.085, 0.085, 0.08)
        layer = 0.2 if cos(pose.turn) > 0.15 else 8.6 if cos(pose.turn) < -0.15 else 4.5
        yield _Tube(
            middle - up * 0.02,
            middle - up * (0.02 + 0.24 * size),
            shape,
            size * _profile(0.035, 0.055, 0.06, 0.062, 0.05),
            wear.bag,
            caps=(True, True),
            layer=layer,
        )
        return
    if bag.kind in {"crossbody", "shoulder"}:
        spot = (
            bones.pelvis
            + left * bag.side * (0.13 + person.top.loose)
            + back * 0.02
            + up * (0.02 if bag.kind == "crossbody" else 0.1)
        )
        length = 0.1 * size if bag.kind == "crossbody" else 0.14 * size
        across, along = 0.03 * size, 0.075 * size
    else:
        spot = bones.wrists[index] - up * 0.06
        length = 0.17 * size if bag.kind == "carrier" else 0.12 * size
        across, along = 0.03 * size, 0.085 * size
    near = project(spot - bones.pelvis, pose.turn, 0.0)[2]
    layer = 8.8 if near > -0.05 else 0.3
    flat = np.ones(4)
    yield _Tube(spot, spot - up * length, across * flat, along * flat, wear.bag, layer=layer)
    if bag.kind == "shoulder":
        strap = _profile(0.008, 0.008)
        yield _Tube(
            bones.shoulders[index] + up * 0.02, spot, strap, strap, wear.bag, (0.0, 0.2), layer=layer - 0.05
        )


def _tubes(person: Identity, pose: Pose) -> list[_Tube]:
    """All parts, farthest first."""
    bones, wear = skeleton(person.body, pose), clothes(person)
    left, right = (project(knee, pose.turn, 0.0)[2] for knee in bones.knees)
    spread = float(abs(bones.ankles[0][1] - bones.ankles[1][1]))
    parts = [
        *_leg_tubes(person, wear, bones, (left, right)),
        *_trunk_tubes(person, wear, bones, spread),
        *_head_tubes(person, wear, bones, pose),
        *_arm_tubes(person, wear, bones, pose),
        *_bag_tubes(person, wear, bones, pose),
    ]
    return sorted(parts, key=lambda part: part.layer)


def render_person(person: Identity, pose: Pose, height: float, light: Light | None = None) -> Sprite:
    """Draw `person` in `pose`.

    Args:
        person: who.
        pose: how, and as seen from where.
        height: pixels from sole to crown when standing upright; the sprite may be a little higher or lower.
        light: where the light comes from; a mild light from the upper left when None.

    Returns:
        The sprite, cut to what was drawn.
    """
    light = light or Light()
    scale, margin = height, 0.12 * height
    rows, columns = int(height * 1.1 + 2 * margin), int(height * 0.9)
    centre, ground = columns / 2, rows - margin
    canvas = np.zeros((rows, columns, 4), np.float32)
    for tube in _tubes(person, pose):
        x0, y0, _ = project(tube.start, pose.turn, pose.elevation)
        x1, y1, _ = project(tube.end, pose.turn, pose.elevation)
        start, end = (centre + x0 * scale, ground + y0 * scale), (centre + x1 * scale, ground + y1 * scale)
        _draw(canvas, tube, start=start, end=end, turn=pose.turn, scale=scale, light=light)
    return _cut(canvas, centre, ground)


def _cut(canvas: _Canvas, centre: float, ground: float) -> Sprite:
    alpha = canvas[..., 3]
    rows, columns = np.flatnonzero(alpha.max(axis=1) > 0.25), np.flatnonzero(alpha.max(axis=0) > 0.25)
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    cut = canvas[top:bottom, left:right]
    straight = cut[..., :3] / np.maximum(cut[..., 3:], 1e-3)
    image = np.dstack([np.clip(straight, 0, 255), 255 * cut[..., 3]]).astype(np.uint8)
    return Sprite(image, (centre - float(left), ground - float(top)))
