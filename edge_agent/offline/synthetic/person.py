"""Drawing of a person: an articulated body of textured, shaded tubes under an orthographic camera.

The clothes are wrapped around the body, so a jacket shows its zip from the front, its print from the back,
and half of both from the side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import cos, pi, sin

import numpy as np
from numpy.typing import NDArray

from edge_agent.offline.synthetic.clothes import Clothes, clothes
from edge_agent.offline.synthetic.identity import Identity
from edge_agent.offline.synthetic.pose import Point, Pose, Skeleton, project, skeleton
from edge_agent.offline.synthetic.tubes import Light, Profile, Tube, draw_tube, profile

_LEFT, _BACK, _UP = np.array([1.0, 0.0, 0.0]), np.array([0.0, -1.0, 0.0]), np.array([0.0, 0.0, 1.0])
_BOTH = (True, True)
_TRUNK = (  # distances down from the neck's base, and half the width and the depth there
    (
        (0.0, 0.016, 0.04, 0.075, 0.14, 0.24, 0.31, 0.38),
        (0.034, 0.06, 0.098, 0.112, 0.108, 0.095, 0.1, 0.104),
    ),
    ((0.0, 0.03, 0.1, 0.15, 0.24, 0.31, 0.38), (0.036, 0.05, 0.066, 0.07, 0.062, 0.068, 0.07)),
)
_HAIR = {  # start and end behind (first) and above the middle of the skull, factor of the depth, radii across
    "curly": ((0.012, 0.045), (0.02, -0.045), 1.0, profile(0.05, 0.066, 0.07, 0.05)),
    "bob": ((0.015, 0.03), (0.03, -0.075), 0.8, profile(0.048, 0.058, 0.062, 0.05)),
    "long": ((0.015, 0.03), (0.03, -0.17), 0.8, profile(0.048, 0.058, 0.062, 0.05)),
    "ponytail": ((0.06, 0.01), (0.075, -0.13), 1.0, profile(0.018, 0.022, 0.012)),
    "bun": ((0.06, 0.03), (0.07, 0.02), 1.0, profile(0.025, 0.025)),
}
_Area = tuple[slice, slice]


@dataclass(frozen=True, slots=True)
class Sprite:
    """A drawn person."""

    image: NDArray[np.uint8]  # `(h, w, 4)` uint8 BGRA, straight alpha, cut to the drawn pixels
    foot: tuple[float, float]  # `(x, y)` of the ground point below the body, in pixels of `image`


def overlap(
    canvas: tuple[int, ...], corner: tuple[int, int], piece: tuple[int, ...]
) -> tuple[_Area, _Area] | None:
    """Return the common part of two shapes as rows and columns of each, or None.

    The piece, `(rows, columns, ...)`, lies on the canvas with its upper left corner at `(left, top)`.
    """
    left, top = corner
    x0, y0 = max(0, left), max(0, top)
    x1, y1 = min(canvas[1], left + piece[1]), min(canvas[0], top + piece[0])
    if x0 >= x1 or y0 >= y1:
        return None
    return (slice(y0, y1), slice(x0, x1)), (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))


def _leg_tubes(
    person: Identity, wear: Clothes, bones: Skeleton, nearness: tuple[float, float]
) -> Iterator[Tube]:
    bottom, girth = person.bottom, person.body.girth
    bare = bottom.kind in {"skirt", "none"}
    wide = girth * (1.0 if bare else bottom.width)
    cloth = 0.0 if bare or bottom.kind == "leggings" else 0.005
    for index in range(2):
        behind = nearness[index] < nearness[1 - index]
        layer, dim = (1.0, 0.8) if behind else (2.0, 1.0)
        thigh = wide * profile(0.052, 0.05, 0.043, 0.037) + cloth
        calf = wide * profile(0.037, 0.038, 0.031, 0.024) + cloth + bottom.flare * profile(0, 0.2, 0.6, 1.0)
        if bottom.kind == "shorts":
            calf = girth * profile(0.035, 0.037, 0.029, 0.021)
        hip, knee, ankle, toe = bones.hips[index], bones.knees[index], bones.ankles[index], bones.toes[index]
        foot = 0.021 + 0.003 * girth
        heel = ankle + np.array([0.0, -0.022, -0.018])
        if min(person.shoes.sole) > 120:
            low, rim = np.array([0.0, 0.0, -0.012]), foot * profile(0.8, 0.85, 0.7)
            yield Tube(heel + low, toe + low, rim, rim * 0.8, wear.sole, caps=_BOTH, layer=layer - 0.41)
        across, along = foot * profile(1, 1.05, 1.1, 0.8), foot * profile(1, 0.95, 0.8, 0.55)
        yield Tube(heel, toe, across, along, wear.shoe, caps=_BOTH, layer=layer - 0.4, dim=dim)
        trousers = wear.legs[index]
        yield Tube(hip, knee, thigh, thigh * 1.08, trousers, (0.0, 0.5), _BOTH, layer, dim)
        yield Tube(knee, ankle, calf, calf * 1.1, trousers, (0.5, 1.0), (True, False), layer + 0.1, dim)


def _arm_tubes(person: Identity, wear: Clothes, bones: Skeleton, view: Pose) -> Iterator[Tube]:
    long_sleeves = person.top.sleeves >= 0.7
    girth, loose = 0.6 + 0.4 * person.body.girth, person.top.loose * (0.6 if long_sleeves else 0.3)
    gloss = person.top.gloss if long_sleeves and person.top.kind != "gilet" else 0.0
    for index in range(2):
        shoulder, elbow, wrist = bones.shoulders[index], bones.elbows[index], bones.wrists[index]
        near = project((elbow + wrist + shoulder) / 3 - bones.neck, view.turn, 0.0)[2]
        layer, dim = (8.0, 1.0) if near > -0.03 else (0.5, 0.78)
        upper = girth * profile(0.026, 0.032, 0.027) + loose * profile(0.5, 1, 1)
        fore = girth * profile(0.026, 0.025, 0.019) + loose * (1.0 if long_sleeves else 0.0)
        hand = wrist + (wrist - elbow) / np.linalg.norm(wrist - elbow) * 0.05
        palm = girth * profile(0.017, 0.022, 0.014)
        if index == 1 and view.held:
            sheet = np.full((4, 8, 3), view.held, np.uint8)
            flat = profile(0.035, 0.035)
            yield Tube(hand, hand + np.array([0, 0.03, -0.04]), flat, flat * 0.3, sheet, layer=layer - 0.1)
        if view.gesture != "pockets":
            yield Tube(wrist, hand, palm * 0.8, palm, wear.skin, caps=(False, True), layer=layer, dim=dim)
        cloth = wear.sleeves[index]
        yield Tube(elbow, wrist, fore, fore, cloth, (0.55, 1.0), _BOTH, layer + 0.1, dim, gloss)
        yield Tube(shoulder, elbow, upper, upper * 1.1, cloth, (0.0, 0.55), _BOTH, layer + 0.2, dim, gloss)


def _trunk_radii(person: Identity, length: float) -> tuple[Profile, Profile]:
    """Radii of the trunk at equal steps from the neck's base down to the hem."""
    body, top = person.body, person.top
    thick = 0.55 + 0.45 * body.girth
    steps = np.linspace(0, length, 24)
    across, along = (np.interp(steps, *outline) for outline in _TRUNK)
    shoulder = np.clip(1 - steps / 0.3, 0, 1)
    across *= thick * (shoulder * body.shoulders + (1 - shoulder) * body.hips)
    along *= thick
    paunch = 0.035 * body.belly * np.exp(-(((steps - 0.25) / 0.07) ** 2))
    loose = top.loose * np.clip(steps / 0.06, 0, 1)
    flare = np.clip((steps - 0.33) / 0.3, 0, 1) * (0.05 if top.kind in {"coat", "dress"} else 0.0)
    if top.kind == "puffer":
        loose = loose * (1 + 0.25 * np.sin(steps / (0.03 + top.period) * 2 * pi))
    return across + 0.8 * loose + paunch * 0.5 + flare, along + loose + paunch + flare


def _trunk_tubes(person: Identity, wear: Clothes, bones: Skeleton, spread: float) -> Iterator[Tube]:
    """Seat, skirt and trunk. `spread` is the distance between the feet, by which long hems open."""
    top, bottom, body = person.top, person.bottom, person.body
    axis = bones.neck - bones.pelvis
    axis = axis / np.linalg.norm(axis)
    thick = 0.55 + 0.45 * body.girth
    across = thick * body.hips * profile(0.088, 0.098, 0.1, 0.09)
    along = thick * profile(0.06, 0.074, 0.078, 0.06)
    yield Tube(bones.pelvis + axis * 0.07, bones.pelvis - axis * 0.05, across, along, wear.seat, layer=3.0)
    if bottom.kind == "skirt":
        waist, hem = bones.pelvis + axis * 0.08, np.array([bones.pelvis[0], bones.pelvis[1], bottom.hem])
        flare = bottom.flare * 1.5 + 0.008
        across = thick * body.hips * profile(0.088, 0.102, 0.106, 0.106) + flare * profile(0, 0.2, 0.6, 1)
        opening = (flare + 0.3 * spread) * profile(0, 0.1, 0.4, 0.8)
        along = thick * profile(0.065, 0.08, 0.085, 0.085) + opening
        yield Tube(waist, hem, across, along, wear.skirt, layer=3.2)
    collar = bones.neck + axis * 0.022
    hem = bones.pelvis + axis * 0.02
    reach = float(np.linalg.norm(collar - bones.pelvis)) - (top.hem - 0.53)
    if top.hem < 0.53:
        hem = collar + (bones.pelvis - collar) / np.linalg.norm(bones.pelvis - collar) * reach
    across, along = _trunk_radii(person, reach)
    opening = np.clip((np.linspace(0, reach, 24) - 0.36) / 0.25, 0, 1) * spread * 0.35
    yield Tube(collar, hem, across, along + opening, wear.trunk, layer=4.0, gloss=top.gloss)


def _hair_tubes(person: Identity, wear: Clothes, skull: Point, view: float) -> Iterator[Tube]:
    """Hair that stands off the head. `view` is the heading of the head relative to the camera."""
    style = person.head.hair
    if person.head.hat in {"hood", "scarf"} or style not in _HAIR:
        return
    (start_back, start_up), (end_back, end_up), deep, radii = _HAIR[style]
    start, end = skull + _UP * start_up + _BACK * start_back, skull + _UP * end_up + _BACK * end_back
    across = person.body.head * radii
    layer = 7.0 if cos(view) <= -0.2 else 5.5 if style == "curly" else 3.6
    yield Tube(start, end, across, across * deep, wear.hair, caps=_BOTH, layer=layer)


def _head_tubes(person: Identity, wear: Clothes, bones: Skeleton, pose: Pose) -> Iterator[Tube]:
    size, head = person.body.head, person.head
    skull = bones.head
    front = np.array([sin(-pose.glance), cos(pose.glance), 0.0])
    neck = (0.6 + 0.4 * person.body.girth) * profile(0.032, 0.031, 0.036)
    yield Tube(skull - _UP * 0.04, bones.neck - _UP * 0.005, neck, neck, wear.skin, layer=3.8, dim=0.82)
    across = size * profile(0.012, 0.033, 0.042, 0.046, 0.047, 0.046, 0.044, 0.041, 0.036, 0.028, 0.014)
    along = size * profile(0.014, 0.04, 0.053, 0.058, 0.06, 0.058, 0.055, 0.051, 0.046, 0.038, 0.02)
    hood = head.hat == "hood"
    grown = 1.0 + (0.06 if head.hair in {"short", "bob", "long"} else 0.0) + (0.12 if hood else 0.0)
    grow = np.interp(np.linspace(0, 1, 11), [0, 0.45, 0.6], [grown, grown, grown if hood else 1.0])
    crown, chin = skull + _UP * 0.066 * size * grown, skull - _UP * 0.066 * size
    yield Tube(crown, chin, across * grow, along * grow, wear.head, layer=6.0, spin=pose.glance)
    if head.hat in {"cap", "brim"}:
        reach = 0.105 if head.hat == "cap" else 0.09
        peak = profile(0.03, 0.026) if head.hat == "cap" else profile(0.02, 0.02)
        start = skull + _UP * 0.022 + front * (0.03 if head.hat == "cap" else -reach)
        end, layer = skull + _UP * 0.014 + front * reach, 6.2 if cos(pose.turn) > -0.2 else 5.8
        yield Tube(start, end, peak, peak * 0.25, wear.hat, caps=_BOTH, layer=layer)
    if head.hat == "beanie":
        dome = size * profile(0.03, 0.048, 0.052, 0.053)
        yield Tube(skull + _UP * 0.082, skull + _UP * 0.022, dome, dome * 1.2, wear.hat, layer=6.1)
    if person.top.scarf or head.hat == "scarf":
        wrap = profile(0.045, 0.055, 0.06)
        start, end = bones.neck + _UP * 0.05, bones.neck - _UP * 0.012
        yield Tube(start, end, wrap, wrap, wear.scarf, caps=(False, True), layer=6.5)
    yield from _hair_tubes(person, wear, skull, pose.turn + pose.glance)


def _bag_tubes(person: Identity, wear: Clothes, bones: Skeleton, pose: Pose) -> Iterator[Tube]:
    bag = person.bag
    if bag.kind == "none":
        return
    index = 0 if bag.side > 0 else 1
    size = bag.size
    if bag.kind == "backpack":
        middle = bones.neck + _BACK * (0.115 + person.top.loose)
        start, end = middle + _UP * 0.03, middle - _UP * (0.29 * size - 0.03)
        wide = size * profile(0.045, 0.072, 0.082, 0.084, 0.084, 0.08, 0.066)
        deep = size * profile(0.03, 0.048, 0.056, 0.062, 0.064, 0.062, 0.04)
        layer = 0.2 if cos(pose.turn) > 0.15 else 8.6 if cos(pose.turn) < -0.15 else 4.5
        yield Tube(start, end, wide, deep, wear.bag, layer=layer)
        return
    if bag.kind in {"crossbody", "shoulder"}:
        spot = bones.pelvis + _LEFT * bag.side * (0.13 + person.top.loose) + _BACK * 0.02
        spot = spot + _UP * (0.02 if bag.kind == "crossbody" else 0.1)
        length = 0.1 * size if bag.kind == "crossbody" else 0.14 * size
        across, along = 0.03 * size, 0.075 * size
    elif bag.kind == "suitcase":
        spot = bones.wrists[index] * _LEFT + _BACK * 0.2 + _UP * (0.34 * size)
        length, across, along = 0.31 * size, 0.07 * size, 0.05 * size
    else:
        spot = bones.wrists[index] - _UP * 0.06
        length = 0.17 * size if bag.kind == "carrier" else 0.12 * size
        across, along = 0.03 * size, 0.085 * size
    near = project(spot - bones.pelvis, pose.turn, 0.0)[2]
    layer = 8.8 if near > -0.05 else 0.3
    flat, thin = np.ones(4), profile(0.008, 0.008)
    yield Tube(spot, spot - _UP * length, across * flat, along * flat, wear.bag, layer=layer)
    if bag.kind == "suitcase":
        yield Tube(bones.wrists[index], spot, thin, thin, wear.skin, layer=layer - 0.05, dim=0.3)
    if bag.kind == "shoulder":
        top = bones.shoulders[index] + _UP * 0.02
        yield Tube(top, spot, thin, thin, wear.bag, (0.0, 0.2), layer=layer - 0.05)


def _figure(person: Identity, pose: Pose) -> list[Tube]:
    """Return the tubes of a person, farthest first."""
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
    """Draw `person`.

    `height` is the distance in pixels from sole to crown when standing upright; the sprite may be slightly
    higher or lower. Without `light`, a mild light comes from the upper left.
    """
    light = light or Light()
    margin = 0.12 * height
    high, wide = int(height * 1.1 + 2 * margin), int(height * 0.9)
    centre, ground = wide / 2, high - margin
    canvas = np.zeros((4, high, wide), np.float32)
    for tube in _figure(person, pose):
        ends = [project(point, pose.turn, pose.elevation) for point in (tube.start, tube.end)]
        start, end = ((centre + x * height, ground + y * height) for x, y, _ in ends)
        draw_tube(canvas, tube, start=start, end=end, turn=pose.turn, scale=height, light=light)
    drawn = canvas[3] > 0.25
    rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    cut = canvas[:, top:bottom, left:right]
    cut[:3] /= np.maximum(cut[3], 1e-3)
    cut[3] *= 255
    planes = np.minimum(np.maximum(cut, 0), 255).astype(np.uint8)
    return Sprite(np.ascontiguousarray(planes.transpose(1, 2, 0)), (centre - left, ground - top))
