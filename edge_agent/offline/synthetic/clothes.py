"""Unwrapped textures of a person, one picture per body part.

Columns run around the part (the left edge is the back, the middle the front, the person's left at three
quarters), rows run along it from top to bottom. Colours are uint8 BGR under neutral light; rendering adds
light and shade.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_agent.offline.synthetic.identity import Bottom, Colour, Identity, Top

Texture = NDArray[np.uint8]
_Paint = NDArray[np.float32]

_ROWS, _COLUMNS = 96, 192  # of the trunk
_AROUND = 0.62  # circumference of the trunk in statures, for the real size of patterns


@dataclass(frozen=True, slots=True)
class Clothes:
    """Textures of one person, `(rows, columns, 3)` uint8 BGR each; of a pair, the left comes first."""

    trunk: Texture
    sleeves: tuple[Texture, Texture]
    legs: tuple[Texture, Texture]
    seat: Texture
    skirt: Texture
    shoe: Texture
    sole: Texture
    head: Texture
    hair: Texture
    hat: Texture
    skin: Texture
    bag: Texture
    scarf: Texture


def _fill(rows: int, columns: int, colour: Colour) -> _Paint:
    return np.full((rows, columns, 3), colour, np.float32)


def _darker(colour: Colour, share: float) -> Colour:
    blue, green, red = colour
    return share * blue, share * green, share * red


def _column(angle: float, columns: int = _COLUMNS) -> int:
    """Column of an angle around the body, 0 is the front."""
    return round((angle / (2 * np.pi) + 0.5) * columns)


def _noise(rng: np.random.Generator, rows: int, columns: int, cell: tuple[int, int]) -> NDArray[np.float32]:
    """Smooth noise of unit spread; `cell` is the size of a blob as (rows, columns). Left and right match."""
    small = rng.standard_normal((max(2, rows // cell[0]), max(2, columns // cell[1]))).astype(np.float32)
    small[:, -1] = small[:, 0]
    return np.asarray(cv2.resize(small, (columns, rows), interpolation=cv2.INTER_CUBIC), np.float32)


def _fabric(paint: _Paint, rng: np.random.Generator, folds: float) -> Texture:
    """Multiply the colours by folds, wear and weave."""
    rows, columns = paint.shape[:2]
    relief = folds * (
        0.6 * _noise(rng, rows, columns, (max(2, rows // 3), max(2, columns // 14)))
        + 0.6 * _noise(rng, rows, columns, (max(2, rows // 9), max(2, columns // 6)))
    )
    relief += 0.025 * _noise(rng, rows, columns, (3, 3))
    return np.clip(paint * np.exp(relief)[..., None], 0, 255).astype(np.uint8)


def _pattern_mask(
    cloth: Top | Bottom, rng: np.random.Generator, rows: int, columns: int, length: float
) -> NDArray[np.float32]:
    """Share of the second colour, 0..1, `(rows, columns)`; `length` is the length of the part."""
    along = np.linspace(0, length, rows, dtype=np.float32)[:, None]
    around = np.linspace(0, _AROUND, columns, dtype=np.float32)[None]
    full = np.zeros((rows, columns), np.float32)
    if cloth.pattern == "bands":
        full += (along / cloth.period) % 1 < 0.45
    elif cloth.pattern == "stripes":
        full += (around / (cloth.period * 0.6)) % 1 < 0.4
    elif cloth.pattern == "pinstripe":
        full += 0.5 * ((around / 0.02) % 1 < 0.25)
    elif cloth.pattern == "check":
        full += 0.5 * ((along / cloth.period) % 1 < 0.4) + 0.5 * ((around / cloth.period) % 1 < 0.4)
    elif cloth.pattern == "blotch":
        cell = max(2, int(rows * cloth.period / length * 0.7))
        full += _noise(rng, rows, columns, (cell, cell)) > 0.35
    return full


def _panel_mask(top: Top) -> NDArray[np.float32]:
    """Panels of the trunk in the second colour."""
    mask = np.zeros((_ROWS, _COLUMNS), np.float32)
    share = top.period / 0.075
    if top.pattern == "yoke":
        mask[: int(_ROWS * (0.18 + 0.2 * share))] = 1
    elif top.pattern == "half":
        mask[int(_ROWS * (0.4 + 0.3 * share)) :] = 1
    elif top.pattern == "chest":
        start = int(_ROWS * (0.2 + 0.25 * share))
        mask[start : start + int(_ROWS * (0.06 + 0.1 * share))] = 1
    elif top.pattern == "sides":
        for side in (-1, 1):
            middle, half = _column(side * np.pi / 2), int(_COLUMNS * (0.03 + 0.04 * share))
            mask[:, middle - half : middle + half] = 1
    return mask


def _mix(paint: _Paint, mask: NDArray[np.float32], colour: Colour) -> None:
    paint += mask[..., None] * (np.array(colour, np.float32) - paint)


def _front(paint: _Paint, top: Top) -> None:
    """Opening, zip, buttons and collar."""
    rows, columns = paint.shape[:2]
    middle = columns // 2
    if top.open:
        edge = ((0.9, 0), (0.7, int(rows * 0.45)), (1, rows))
        left, right = ([[_column(side * top.open * x), y] for x, y in edge] for side in (-1, 1))
        opening = np.array([left[0], *right, *left[:0:-1]], np.int32)
        cv2.fillPoly(paint, [opening], top.inner)
        cv2.polylines(paint, [opening], isClosed=True, color=_darker(top.colour, 0.6), thickness=2)
    elif top.kind in {"jacket", "puffer", "coat", "blazer", "gilet"}:
        cv2.line(paint, (middle, 0), (middle, rows), _darker(top.colour, 0.7), 2)
    if top.kind in {"blazer", "coat"} or (top.kind == "shirt" and top.third[0] > 120):
        depth = 0.34 if top.kind != "shirt" else 0.1
        wedge = np.array([[middle - 13, 0], [middle + 13, 0], [middle, int(rows * depth)]], np.int32)
        cv2.fillPoly(paint, [wedge], top.inner)
    if top.kind in {"tshirt", "dress", "sweater"}:
        cv2.ellipse(paint, (middle, 0), (15, 7), 0, 0, 360, _darker(top.colour, 0.75), 2)


def _print(paint: _Paint, top: Top, rng: np.random.Generator) -> None:
    """Logos on chest and back: a block, a disc, or lines of writing."""
    rows, columns = paint.shape[:2]
    half, share = int(top.logo_size[0] / (2 * np.pi) * columns), int(top.logo_size[1] * rows)
    places = {
        "chest": [columns // 2],
        "left": [_column(0.45)],
        "back": [0, columns],
        "both": [columns // 2, 0, columns],
    }
    shape = int(rng.integers(3))
    for middle in places.get(top.logo, []):
        wide, high = (5, 6) if top.logo == "left" else (max(4, half), max(5, share))
        y = int(rows * 0.22)
        if shape == 0:
            cv2.rectangle(paint, (middle - wide, y), (middle + wide, y + high), top.third, -1)
        elif shape == 1:
            cv2.ellipse(paint, (middle, y + high // 2), (wide, max(3, high // 2)), 0, 0, 360, top.third, -1)
        else:
            for line in range(y, y + high, 6):
                cv2.line(paint, (middle - wide, line), (middle + wide, line), top.third, 3)


def _trim(paint: _Paint, top: Top) -> None:
    """Quilting, hood, hem band, reflective strips, pockets."""
    rows, columns = paint.shape[:2]
    darker = _darker(top.colour, 0.68)
    if top.kind in {"puffer", "gilet"}:
        step = int(rows * (0.07 + top.period))
        for line in range(step, rows, step):
            paint[line - 1 : line + 2] *= 0.68
            paint[line + 2 : line + 5] *= 1.12
    if top.kind == "hoodie" or (top.kind in {"puffer", "coat"} and top.period > 0.045):
        for middle in (0, columns):
            cv2.ellipse(paint, (middle, 0), (int(columns * 0.13), int(rows * 0.2)), 0, 0, 360, darker, -1)
    if top.kind in {"hoodie", "jacket", "sweater", "tshirt"} and top.period > 0.055:
        paint[int(rows * 0.94) :] *= 0.78
    if min(top.colour[1:]) > 190 and top.kind in {"jacket", "gilet"}:
        for share in (0.42, 0.62):
            paint[int(rows * share) : int(rows * (share + 0.07))] = (190, 195, 195)
    if top.kind in {"jacket", "coat", "hoodie", "puffer", "blazer"}:
        for side in (-1, 1):
            x = _column(side * 0.75)
            cv2.line(paint, (x, int(rows * 0.68)), (x + side * 5, int(rows * 0.84)), darker, 2)


def _straps(paint: _Paint, person: Identity) -> None:
    """Straps of a backpack or a crossbody bag."""
    rows, columns = paint.shape[:2]
    bag = person.bag
    if bag.kind == "backpack":
        for side in (-1, 1):
            x = _column(side * 0.55)
            cv2.line(paint, (x, 0), (x + side * 6, int(rows * 0.6)), bag.colour, 6)
    elif bag.kind == "crossbody":
        high, low = _column(-bag.side * 0.35), _column(bag.side * 1.5)
        cv2.line(paint, (high, 0), (low, int(rows * 0.9)), bag.colour, 4)
        back_high, back_low = _column(-bag.side * 2.8), _column(bag.side * 1.6)
        seam = (columns if bag.side > 0 else 0, int(rows * 0.1))
        cv2.line(paint, (back_high % columns, 0), seam, bag.colour, 4)
        cv2.line(paint, seam, (back_low, int(rows * 0.9)), bag.colour, 4)


def _trunk(person: Identity, rng: np.random.Generator) -> Texture:
    top = person.top
    paint = _fill(_ROWS, _COLUMNS, top.colour)
    _mix(paint, _pattern_mask(top, rng, _ROWS, _COLUMNS, 0.83 - top.hem), top.second)
    _mix(paint, _panel_mask(top), top.second)
    _trim(paint, top)
    _print(paint, top, rng)
    _front(paint, top)
    if person.bottom.belt and top.kind == "dress":
        paint[int(_ROWS * 0.4) : int(_ROWS * 0.45)] = person.bottom.belt
    _straps(paint, person)
    return _fabric(paint, rng, 0.07 if top.kind == "tshirt" else 0.11)


def _sleeve(person: Identity, rng: np.random.Generator) -> Texture:
    top = person.top
    paint = _fill(64, 48, top.sleeve_colour)
    if top.sleeve_colour == top.colour:
        _mix(paint, _pattern_mask(top, rng, 64, 48, 0.35), top.second)
        if top.pattern == "yoke":
            paint[:16] = top.second
        elif top.pattern == "sides":
            paint[:, 32:40] = top.second
    if top.kind == "puffer":
        paint[::9] *= 0.7
    if top.kind in {"jacket", "hoodie", "sweater"} and top.period > 0.055:
        paint[58:] *= 0.75
    cloth = _fabric(paint, rng, 0.12)
    end = round(64 * top.sleeves)
    cloth[end:] = np.clip(person.body.skin, 0, 255)
    return cloth


def _leg(person: Identity, rng: np.random.Generator) -> Texture:
    """One leg from hip to ankle; the outer side of the left leg is at three quarters of the columns."""
    bottom = person.bottom
    rows, columns = 96, 64
    bare = bottom.kind in {"skirt", "none"}
    paint = _fill(rows, columns, bottom.legs if bare else bottom.colour)
    if not bare:
        _mix(paint, _pattern_mask(bottom, rng, rows, columns, 0.49), bottom.second)
    if bottom.fade:
        thigh = np.exp(-(((np.linspace(0, 1, rows) - 0.28) / 0.2) ** 2))[:, None]
        front = np.exp(-((np.linspace(-1, 1, columns) / 0.45) ** 2))[None]
        back = np.exp(-(((np.abs(np.linspace(-1, 1, columns)) - 1) / 0.45) ** 2))[None]
        paint *= (1 + bottom.fade * thigh * (front + 0.6 * back))[..., None].astype(np.float32)
    if bottom.stripe:
        paint[:, 44:52] = bottom.stripe
    else:
        paint[:, 47:49] *= 0.85
    cloth = _fabric(paint, rng, 0.03 if bare else 0.12)
    if bottom.kind == "shorts" or bottom.hem > 0.05:
        end = round(rows * (0.53 - bottom.hem) / (0.53 - 0.039))
        cloth[max(0, end) :] = np.clip(bottom.legs, 0, 255)
    shaft = round(rows * (0.53 - person.shoes.shaft) / (0.53 - 0.039))
    cloth[max(0, shaft) :] = np.clip(person.shoes.colour, 0, 255)
    return cloth


def _seat(person: Identity, rng: np.random.Generator) -> Texture:
    bottom = person.bottom
    paint = _fill(32, 96, bottom.legs if bottom.kind == "none" else bottom.colour)
    if bottom.belt:
        paint[:5] = bottom.belt
    if bottom.kind in {"jeans", "trousers", "shorts"}:
        for side in (-1, 1):
            x = _column(np.pi + side * 0.5, 96) % 96
            cv2.rectangle(paint, (x - 5, 12), (x + 5, 24), _darker(bottom.colour, 0.8), 1)
    return _fabric(paint, rng, 0.06)


def _skirt(person: Identity, rng: np.random.Generator) -> Texture:
    paint = _fill(48, 128, person.bottom.colour)
    _mix(paint, _pattern_mask(person.bottom, rng, 48, 128, 0.62 - person.bottom.hem), person.bottom.second)
    pleats = 1 + 0.16 * np.sin(np.linspace(0, 2 * np.pi * 14, 128)) * np.linspace(0.2, 1, 48)[:, None]
    return _fabric(paint * pleats[..., None].astype(np.float32), rng, 0.08)


def _face(paint: _Paint, person: Identity) -> None:
    """Eyes, nose, mouth, beard on an unwrapped head of 48 x 64."""
    head, skin = person.head, person.body.skin
    dark = _darker(skin, 0.45)
    for side in (-1, 1):
        x = _column(side * 0.36, 64)
        cv2.rectangle(paint, (x - 2, 21), (x + 2, 23), (25, 25, 28) if head.glasses else dark, -1)
    if head.glasses:
        cv2.line(paint, (_column(-1.4, 64), 21), (_column(1.4, 64), 21), (25, 25, 28), 1)
    cv2.line(paint, (32, 24), (32, 30), _darker(skin, 0.8), 2)
    cv2.line(paint, (30, 35), (34, 35), (70, 60, 0.75 * skin[2]), 1)
    if head.beard:
        paint[31:44, 17:47] = 0.55 * np.array(head.hair_colour) + 0.25 * np.array(skin)


def _hairline(paint: _Paint, person: Identity) -> None:
    """Hair that lies on the head; bald heads keep a fringe."""
    style, colour = person.head.hair, person.head.hair_colour
    angle = np.abs(np.linspace(-np.pi, np.pi, 64))
    front = {"bald": 0.0, "cropped": 11.0, "short": 14.0}.get(style, 15.0)
    back = {"bald": 30.0, "cropped": 30.0, "short": 36.0}.get(style, 47.0)
    line = front + (back - front) * np.clip((angle - 0.75) / 1.0, 0, 1)
    rows = np.arange(48)[:, None]
    covered = rows < line[None]
    if style == "bald":
        covered &= (rows > 17) & (angle > 1.2)[None]
    paint[covered] = colour
    if style == "cropped":
        paint[covered] = 0.75 * np.array(colour) + 0.25 * np.array(person.body.skin)


def _head_texture(person: Identity, rng: np.random.Generator) -> Texture:
    paint = _fill(48, 64, person.body.skin)
    _face(paint, person)
    _hairline(paint, person)
    hat = person.head.hat
    angle = np.abs(np.linspace(-np.pi, np.pi, 64))[None]
    rows = np.arange(48)[:, None]
    if hat in {"cap", "brim", "beanie"}:
        paint[rows < (16 if hat != "beanie" else 17) + 6 * np.clip(angle - 1, 0, 1)] = person.head.hat_colour
    elif hat in {"hood", "scarf"}:
        paint[(rows < 10) | (angle > 0.95) & (rows >= 0)] = person.head.hat_colour
    return _fabric(paint, rng, 0.05)


def _plain(colour: Colour, rng: np.random.Generator, folds: float) -> Texture:
    return _fabric(_fill(24, 48, colour), rng, folds)


def _bag_texture(person: Identity, rng: np.random.Generator) -> Texture:
    bag = person.bag
    paint = _fill(48, 64, bag.colour)
    if bag.kind in {"backpack", "carrier", "handbag"}:
        for middle in (32, 0, 64):
            cv2.rectangle(paint, (middle - 9, 24), (middle + 9, 42), bag.second, -1 if bag.size > 1 else 2)
        cv2.line(paint, (0, 14), (64, 14), _darker(bag.colour, 0.7), 2)
    return _fabric(paint, rng, 0.08)


@lru_cache(maxsize=512)
def clothes(person: Identity) -> Clothes:
    """Return all textures of a person; equal identities give equal pictures."""
    rng = np.random.default_rng([person.seed, 0xC1])
    trunk, sleeve, leg = _trunk(person, rng), _sleeve(person, rng), _leg(person, rng)
    return Clothes(
        trunk=trunk,
        sleeves=(sleeve, np.ascontiguousarray(sleeve[:, ::-1])),
        legs=(leg, np.ascontiguousarray(leg[:, ::-1])),
        seat=_seat(person, rng),
        skirt=_skirt(person, rng),
        shoe=_plain(person.shoes.colour, rng, 0.04),
        sole=_plain(person.shoes.sole, rng, 0.03),
        head=_head_texture(person, rng),
        hair=_plain(person.head.hair_colour, rng, 0.12),
        hat=_plain(person.head.hat_colour, rng, 0.06),
        skin=_plain(person.body.skin, rng, 0.03),
        bag=_bag_texture(person, rng),
        scarf=_plain(person.top.scarf or person.head.hat_colour, rng, 0.12),
    )
