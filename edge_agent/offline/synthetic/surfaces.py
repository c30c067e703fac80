"""Procedural grounds and walls, the background of people."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

GROUNDS = ("asphalt", "pavement", "cobbles", "grass", "gravel", "tiles", "carpet")
WALLS = ("plaster", "brick", "glass", "hedge", "shutter", "panels", "shelves")

_Paint = NDArray[np.float32]
_SPECKLES: dict[str, tuple[Any, float]] = {
    # range of grey and spread of the tint, or the range of each channel; then the depth of the speckles
    "asphalt": ((60, 140, 5), 0.05),
    "pavement": ((105, 190), 0.035),
    "cobbles": ((80, 150), 0.06),
    "grass": (((32, 62), (82, 120), (66, 108)), 0.13),
    "gravel": (((80, 130), (110, 150), (125, 170)), 0.1),
    "tiles": ((140, 220), 0.02),
    "carpet": ((50, 150, 22), 0.07),
    "plaster": ((120, 225, 12), 0.02),
    "brick": (((60, 95), (75, 110), (110, 160)), 0.05),
    "glass": ((40, 120, 14), 0.02),
    "hedge": (((18, 50), (50, 90), (40, 75)), 0.2),
    "shutter": ((90, 200, 18), 0.02),
    "panels": ((90, 220, 20), 0.02),
}


def noise(rng: np.random.Generator, rows: int, columns: int, cell: float) -> NDArray[np.float32]:
    """Return smooth noise `(rows, columns)` float32 of about unit spread with blobs of `cell` pixels."""
    shape = (max(2, int(rows / cell) + 1), max(2, int(columns / cell) + 1))
    small = rng.standard_normal(shape).astype(np.float32)
    return np.asarray(cv2.resize(small, (columns, rows), interpolation=cv2.INTER_CUBIC), np.float32)


def _tone(rng: np.random.Generator, low: float, high: float, tint: float = 8.0) -> NDArray[np.float32]:
    return np.clip(rng.uniform(low, high) + rng.normal(0, tint, 3), 5, 250).astype(np.float32)


def _between(rng: np.random.Generator, low: int, high: int) -> int:
    return int(rng.integers(low, high))


def _base(kind: str, rng: np.random.Generator, rows: int, columns: int) -> _Paint:
    """The speckled colour of a kind of ground or wall."""
    tone, depth = _SPECKLES[kind]
    mixed = isinstance(tone[0], tuple)
    base = np.array([rng.uniform(*limits) for limits in tone], np.float32) if mixed else _tone(rng, *tone)
    grain = depth * rng.standard_normal((rows, columns)).astype(np.float32)
    grain += 0.6 * depth * noise(rng, rows, columns, 9) + depth * noise(rng, rows, columns, 90)
    return base[None, None] * (1 + grain[..., None])


def _joints(
    paint: _Paint, rng: np.random.Generator, *, high: int, wide: int, stagger: bool, depth: float
) -> None:
    """Darken the joints between stones, and give every stone its own tone."""
    rows, columns = paint.shape[:2]
    line = np.arange(rows) // high
    shift = (line % 2) * (wide // 2) if stagger else line * 0
    column = (np.arange(columns)[None] + shift[:, None]) // wide
    spread = rng.standard_normal((int(line.max()) + 1, int(column.max()) + 1)).astype(np.float32)
    tones = 1 + 0.6 * depth * spread
    paint *= tones[line[:, None], column][..., None]
    paint[np.arange(rows) % high == 0] *= 1 - depth * 3
    paint[(np.arange(columns)[None] + shift[:, None]) % wide == 0] *= 1 - depth * 3


def ground(kind: str, rng: np.random.Generator, rows: int, columns: int) -> NDArray[np.uint8]:
    """Return a ground of this kind, `(rows, columns, 3)` uint8 BGR, seen from above."""
    paint = _base(kind, rng, rows, columns)
    if kind == "asphalt":
        for _ in range(_between(rng, 1, 4)):
            start, end = rng.integers(0, [columns, rows]), rng.integers(0, [columns, rows])
            colour = (200, 205, 205) if rng.random() < 0.7 else (60, 170, 200)
            far = (start + (end - start) * 3).tolist()
            cv2.line(paint, start.tolist(), far, colour, _between(rng, 3, 10))
    elif kind == "pavement":
        high, wide = _between(rng, 30, 70), _between(rng, 40, 90)
        _joints(paint, rng, high=high, wide=wide, stagger=rng.random() < 0.5, depth=0.06)
    elif kind == "cobbles":
        high, wide = _between(rng, 10, 18), _between(rng, 14, 28)
        _joints(paint, rng, high=high, wide=wide, stagger=True, depth=0.1)
    elif kind == "tiles":
        side = _between(rng, 40, 90)
        _joints(paint, rng, high=side, wide=side, stagger=False, depth=0.03)
        reflections = np.maximum(noise(rng, rows, columns, 120), 0)  # of lamps
        paint *= (1 + 0.18 * reflections)[..., None]
    return np.clip(paint, 0, 255).astype(np.uint8)


def _openings(paint: _Paint, rng: np.random.Generator, count: int, dark: bool) -> None:
    """Draw doors, windows and posters."""
    rows, columns = paint.shape[:2]
    for _ in range(count):
        x, y = _between(rng, 0, columns), _between(rng, 0, rows // 2)
        w, h = _between(rng, 40, 120), _between(rng, 80, rows)
        colour = _tone(rng, 20, 80 if dark else 220, 15)
        cv2.rectangle(paint, (x, y), (x + w, y + h), colour.tolist(), -1)
        cv2.rectangle(paint, (x, y), (x + w, y + h), (colour * 0.6 + 40).tolist(), 3)


def wall(kind: str, rng: np.random.Generator, rows: int, columns: int) -> NDArray[np.uint8]:
    """Return a wall of this kind, `(rows, columns, 3)` uint8 BGR, seen upright."""
    if kind == "shelves":
        tones = rng.uniform(20, 230, (rows // 24 + 1, columns // 14 + 1, 1))
        cells = (tones + rng.normal(0, 25, (*tones.shape[:2], 3))).astype(np.float32)
        paint: _Paint = cv2.resize(cells, (columns, rows), interpolation=cv2.INTER_NEAREST) * 0.5 + 40
        paint[np.arange(rows) % 72 < 7] = _tone(rng, 60, 200)
        return np.clip(paint, 0, 255).astype(np.uint8)
    paint = _base(kind, rng, rows, columns)
    if kind == "brick":
        high, wide = _between(rng, 8, 14), _between(rng, 22, 36)
        _joints(paint, rng, high=high, wide=wide, stagger=True, depth=0.08)
        _openings(paint, rng, 2, True)
    elif kind == "glass":
        paint *= (1 + 0.35 * noise(rng, rows, columns, 60))[..., None]
        for x in range(0, columns, _between(rng, 60, 140)):
            paint[:, x : x + 5] = _tone(rng, 60, 200)
    elif kind == "hedge":
        paint *= (1 + 0.3 * noise(rng, rows, columns, 14))[..., None]
    elif kind == "shutter":
        paint[np.arange(rows) % _between(rng, 8, 20) < 2] *= 0.7
    elif kind == "panels":
        _joints(paint, rng, high=160, wide=_between(rng, 60, 140), stagger=False, depth=0.05)
        _openings(paint, rng, 3, False)
    else:
        _openings(paint, rng, 2, False)
    return np.clip(paint, 0, 255).astype(np.uint8)
