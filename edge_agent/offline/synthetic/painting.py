"""Drawing on parts of a picture."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Overlap", "overlap"]

_Slices = tuple[slice, slice]


class Overlap(NamedTuple):
    """The common part of a canvas and a piece laid on it: rows and columns in each."""

    canvas: _Slices
    piece: _Slices


def overlap(canvas: tuple[int, ...], corner: tuple[int, int], piece: tuple[int, ...]) -> Overlap | None:
    """Return where a piece lies on a canvas, or None if it lies outside.

    Args:
        canvas: `(rows, columns, ...)` of the canvas.
        corner: `(left, top)` of the piece on the canvas.
        piece: `(rows, columns, ...)` of the piece.
    """
    left, top = corner
    x0, y0 = max(0, left), max(0, top)
    x1, y1 = min(canvas[1], left + piece[1]), min(canvas[0], top + piece[0])
    if x0 >= x1 or y0 >= y1:
        return None
    return Overlap((slice(y0, y1), slice(x0, x1)), (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)))
