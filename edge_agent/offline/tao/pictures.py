"""The two pictures of TAO's evaluation, drawn by OpenCV: the CMC curve and the sampled matches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_agent.core.errors import ConfigError, InputError
from edge_agent.core.manifest import write_atomic, write_error
from edge_agent.core.pictures import read_picture
from edge_agent.offline.evaluate.labels import EmbeddedCrops, Sides
from edge_agent.offline.evaluate.protocol import SampledQuery

PICTURES = (".png", ".jpg", ".jpeg")
MOST_ROWS = MOST_COLUMNS = 50
"""Queries, and crops for each, that the picture of sampled matches shows at most."""

_BLACK, _GRID = (0, 0, 0), (210, 210, 210)
_CURVE = (180, 119, 31)  # blue, BGR
_QUERY, _RIGHT, _WRONG = (255, 0, 0), (0, 128, 0), (0, 0, 255)  # borders, BGR: blue, green and red

_SIZE = (640, 480)
_LEFT, _TOP, _RIGHT_EDGE, _BOTTOM = 80, 58, 576, 427
_TILE = (64, 128)
_GAP, _BORDER, _TITLE, _FOOT = 6, 4, 40, 26


def require_picture(path: Path) -> None:
    """Raise ConfigError unless a picture can be written in the format of the name's suffix."""
    if path.suffix.lower() not in PICTURES:
        raise ConfigError(f"{path}: pictures are written as {', '.join(PICTURES)}; name such a file")


def make_folder(path: Path) -> None:
    """Make the folder of a picture if it is missing; StorageError if that is not possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise write_error(path.parent, problem, role="the folder") from problem


def write_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write `(H, W, 3)` uint8 BGR atomically in the format of the name's suffix; StorageError if it fails."""
    _, encoded = cv2.imencode(path.suffix.lower(), picture)
    write_atomic(path, encoded.tobytes())


def cmc_picture(cmc: Sequence[float]) -> NDArray[np.uint8]:
    """Draw the matching rate of rank 1, 2, ... (0..1) as `(480, 640, 3)` uint8 BGR, like TAO's plot."""
    canvas = np.full((_SIZE[1], _SIZE[0], 3), 255, np.uint8)
    rates = [100 * rate for rate in cmc]
    step = next(one for one in (1, 2, 5, 10, 20, 25) if (100 - min(rates)) / one <= 6)
    low = min(step * int(min(rates) // step), 100 - step)
    places = [(_across(number, len(rates)), _down(rate, low)) for number, rate in enumerate(rates)]
    for value in range(low, 101, step):
        y = _down(value, low)
        cv2.line(canvas, (_LEFT, y), (_RIGHT_EDGE, y), _GRID, 1)
        _write(canvas, str(value), (_LEFT - 8, y + 5), align=1.0)
    every = -(-len(rates) // 20)
    for number, (x, _) in enumerate(places, 1):
        if number % every == 0 or number == 1:
            cv2.line(canvas, (x, _TOP), (x, _BOTTOM), _GRID, 1)
            _write(canvas, str(number), (x, _BOTTOM + 18), align=0.5)
    cv2.rectangle(canvas, (_LEFT, _TOP), (_RIGHT_EDGE, _BOTTOM), _BLACK, 1)
    cv2.polylines(canvas, [np.array(places, np.int32)], False, _CURVE, 2, cv2.LINE_AA)
    for place in places:
        cv2.drawMarker(canvas, place, _CURVE, cv2.MARKER_STAR, 9, 1, cv2.LINE_AA)
    middle = (_LEFT + _RIGHT_EDGE) // 2
    _write(canvas, "Cumulative Matching Characteristics (CMC) Curve", (middle, 40), size=0.55, align=0.5)
    _write(canvas, "Rank", (middle, _SIZE[1] - 12), align=0.5)
    side = np.full((24, _SIZE[1], 3), 255, np.uint8)
    _write(side, "Matching Rate[%]", (_SIZE[1] - (_TOP + _BOTTOM) // 2, 17), align=0.5)
    canvas[:, 6:30] = cv2.rotate(side, cv2.ROTATE_90_COUNTERCLOCKWISE)
    return canvas


def _across(number: int, count: int) -> int:
    inner = _RIGHT_EDGE - _LEFT - 44
    return _LEFT + 22 + (round(inner * number / (count - 1)) if count > 1 else inner // 2)


def _down(rate: float, low: int) -> int:
    share = (rate - low) / (100 - low)
    return _BOTTOM - 8 - round((_BOTTOM - _TOP - 24) * share)


def _write(
    canvas: NDArray[np.uint8], text: str, at: tuple[int, int], *, size: float = 0.45, align: float = 0.0
) -> None:
    """Write text; `align` is the share of its width that is left of `at`."""
    (width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, 1)
    place = (round(at[0] - align * width), at[1])
    cv2.putText(canvas, text, place, cv2.FONT_HERSHEY_SIMPLEX, size, _BLACK, 1, cv2.LINE_AA)


def matches_picture(samples: Sequence[SampledQuery], sides: Sides) -> NDArray[np.uint8]:
    """Draw a row for each query with its nearest gallery crops as `(H, W, 3)` uint8 BGR, like TAO's plot.

    A blue border is a query's, green a right match's, red a wrong one's; a tile without picture is grey.
    """
    columns = 1 + max(len(one.nearest) for one in samples)
    width, height = _TILE[0] + _GAP, _TILE[1] + _GAP
    shape = (_TITLE + len(samples) * height + _FOOT, columns * width + _GAP, 3)
    canvas = np.full(shape, 255, np.uint8)
    _write(canvas, "Sampled Matches", (shape[1] // 2, 26), size=0.6, align=0.5)
    for row, sample in enumerate(samples):
        top = _TITLE + row * height
        _tile(canvas, (_GAP, top), sides.query, sample.query, _QUERY)
        for column, (crop, right) in enumerate(sample.nearest, 1):
            _tile(canvas, (_GAP + column * width, top), sides.gallery, crop, _RIGHT if right else _WRONG)
    for column in range(columns):
        name = f"Rank {column}" if column else "Query"
        at = (_GAP + column * width + _TILE[0] // 2, shape[0] - 10)
        _write(canvas, name, at, size=0.4, align=0.5)
    return canvas


def _tile(
    canvas: NDArray[np.uint8],
    at: tuple[int, int],
    crops: EmbeddedCrops,
    row: int,
    colour: tuple[int, int, int],
) -> None:
    left, top = at
    tile = canvas[top : top + _TILE[1], left : left + _TILE[0]]
    try:
        tile[:] = cv2.resize(read_picture(Path(crops.names[row])), _TILE, interpolation=cv2.INTER_AREA)
    except InputError:
        tile[:] = 190
    corner = (left + _TILE[0] - 1, top + _TILE[1] - 1)
    inner = _BORDER // 2
    cv2.rectangle(
        canvas, (left + inner, top + inner), (corner[0] - inner, corner[1] - inner), colour, _BORDER
    )
