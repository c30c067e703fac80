"""Procedural grounds and walls: what a camera sees behind people."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["GROUNDS", "WALLS", "ground", "noise", "wall"]

GROUNDS = ("asphalt", "pavement", "cobbles", "grass", "gravel", "tiles", "carpet")
WALLS = ("plaster", "brick", "glass", "hedge", "shutter", "panels", "shelves")

_Paint = NDArray[np.float32]


def noise(rng: np.random.Generator, rows: int, columns: int, cell: float) -> NDArray[np.float32]:
    """Smooth noise `(rows, columns)` float32 of about unit spread with blobs of `cell` pixels."""
    shape = (max(2, int(rows / cell) + 1), max(2, int(columns / cell) + 1))
    small = rng.standard_normal(shape).astype(np.float32)
    smooth: NDArray[np.float32] = cv2.resize(small, (columns, rows), interpolation=cv2.INTER_CUBIC)
    return smooth


def _tone(rng: np.random.Generator, low: float, high: float, tint: float = 8.0) -> NDArray[np.float32]:
    return np.clip(rng.uniform(low, high) + rng.normal(0, tint, 3), 5, 250).astype(np.float32)


def _speckled(
    rng: np.random.Generator, rows: int, columns: int, base: NDArray[np.float32], depth: float
) -> _Paint:
    grain = depth * rng.standard_normal((rows, columns)).astype(np.float32)
    grain += 0.6 * depth * noise(rng, rows, columns, 9) + depth * noise(rng, rows, columns, 90)
    return base[None, None] * (1 + grain[..., None])


def _joints(
    paint: _Paint, rng: np.random.Generator, *, high: int, wide: int, stagger: bool, depth: float
) -> None:
    """Darkens the joints of laid stones, and gives every stone its own tone."""
    rows, columns = paint.shape[:2]
    line = np.arange(rows) // high
    shift = (line % 2) * (wide // 2) if stagger else line * 0
    column = (np.arange(columns)[None] + shift[:, None]) // wide
    tones = 1 + 0.6 * depth * rng.standard_normal((int(line.max()) + 1, int(column.max()) + 1)).astype(
        np.float32
    )
    paint *= tones[line[:, None], column][..., None]
    paint[np.arange(rows) % high == 0] *= 1 - depth * 3
    paint[(np.arange(columns)[None] + shift[:, None]) % wide == 0] *= 1 - depth * 3


def ground(kind: str, rng: np.random.Generator, rows: int, columns: int) -> NDArray[np.uint8]:
    """A floor or ground of this kind, `(rows, columns, 3)` uint8 BGR, seen from above."""
    if kind == "asphalt":
        paint = _speckled(rng, rows, columns, _tone(rng, 60, 140, 5), 0.05)
        for _ in range(int(rng.integers(1, 4))):
            start, end = rng.integers(0, [columns, rows]), rng.integers(0, [columns, rows])
            colour = (200, 205, 205) if rng.random() < 0.7 else (60, 170, 200)
            cv2.line(
                paint, start.tolist(), (start + (end - start) * 3).tolist(), colour, int(rng.integers(3, 10))
            )
    elif kind == "pavement":
        paint = _speckled(rng, rows, columns, _tone(rng, 105, 190), 0.035)
        _joints(
            paint,
            rng,
            high=int(rng.integers(30, 70)),
            wide=int(rng.integers(40, 90)),
            stagger=bool(rng.random() < 0.5),
            depth=0.06,
        )
    elif kind == "cobbles":
        paint = _speckled(rng, rows, columns, _tone(rng, 80, 150), 0.06)
        _joints(
            paint,
            rng,
            high=int(rng.integers(10, 18)),
            wide=int(rng.integers(14, 28)),
            stagger=True,
            depth=0.1,
        )
    elif kind == "grass":
        base = np.array([rng.uniform(32, 62), rng.uniform(82, 120), rng.uniform(66, 108)], np.float32)
        paint = _speckled(rng, rows, columns, base, 0.13)
    elif kind == "gravel":
        base = np.array([rng.uniform(80, 130), rng.uniform(110, 150), rng.uniform(125, 170)], np.float32)
        paint = _speckled(rng, rows, columns, base, 0.1)
    elif kind == "tiles":
        paint = _speckled(rng, rows, columns, _tone(rng, 140, 220), 0.02)
        side = int(rng.integers(40, 90))
        _joints(paint, rng, high=side, wide=side, stagger=False, depth=0.03)
        paint *= (1 + 0.18 * np.maximum(noise(rng, rows, columns, 120), 0))[
            ..., None
        ]  # lamps mirrored in the floor
    else:
        paint = _speckled(rng, rows, columns, _tone(rng, 50, 150, 22), 0.07)
    return np.clip(paint, 0, 255).astype(np.uint8)


def _openings(paint: _Paint, rng: np.random.Generator, count: int, dark: bool) -> None:
    """Doors, windows and posters."""
    rows, columns = paint.shape[:2]
    for _ in range(count):
        x, y = int(rng.integers(0, columns)), int(rng.integers(0, rows // 2))
        w, h = int(rng.integers(40, 120)), int(rng.integers(80, rows))
        colour = _tone(rng, 20, 80 if dark else 220, 15)
        cv2.rectangle(paint, (x, y), (x + w, y + h), colour.tolist(), -1)
        cv2.rectangle(paint, (x, y), (x + w, y + h), (colour * 0.6 + 40).tolist(), 3)


def wall(kind: str, rng: np.random.Generator, rows: int, columns: int) -> NDArray[np.uint8]:
    """A background of this kind, `(rows, columns, 3)` uint8 BGR, seen upright."""
    if kind == "brick":
        base = np.array([rng.uniform(60, 95), rng.uniform(75, 110), rng.uniform(110, 160)], np.float32)
        paint = _speckled(rng, rows, columns, base, 0.05)
        _joints(
            paint,
            rng,
            high=int(rng.integers(8, 14)),
            wide=int(rng.integers(22, 36)),
            stagger=True,
            depth=0.08,
        )
        _openings(paint, rng, 2, True)
    elif kind == "glass":
        paint = _speckled(rng, rows, columns, _tone(rng, 40, 120, 14), 0.02)
        paint *= (1 + 0.35 * noise(rng, rows, columns, 60))[..., None]
        for x in range(0, columns, int(rng.integers(60, 140))):
            paint[:, x : x + 5] = _tone(rng, 60, 200)
    elif kind == "hedge":
        base = np.array([rng.uniform(18, 50), rng.uniform(50, 90), rng.uniform(40, 75)], np.float32)
        paint = (
            _speckled(rng, rows, columns, base, 0.2) * (1 + 0.3 * noise(rng, rows, columns, 14))[..., None]
        )
    elif kind == "shutter":
        paint = _speckled(rng, rows, columns, _tone(rng, 90, 200, 18), 0.02)
        paint[np.arange(rows) % int(rng.integers(8, 20)) < 2] *= 0.7
    elif kind == "panels":
        paint = _speckled(rng, rows, columns, _tone(rng, 90, 220, 20), 0.02)
        _joints(paint, rng, high=160, wide=int(rng.integers(60, 140)), stagger=False, depth=0.05)
        _openings(paint, rng, 3, False)
    elif kind == "shelves":
        tones = rng.uniform(20, 230, (rows // 24 + 1, columns // 14 + 1, 1))
        cells = (tones + rng.normal(0, 25, (*tones.shape[:2], 3))).astype(np.float32)
        paint = cv2.resize(cells, (columns, rows), interpolation=cv2.INTER_NEAREST) * 0.5 + 40
        paint[np.arange(rows) % 72 < 7] = _tone(rng, 60, 200)
    else:
        paint = _speckled(rng, rows, columns, _tone(rng, 120, 225, 12), 0.02)
        _openings(paint, rng, 2, False)
    return np.clip(paint, 0, 255).astype(np.uint8)
