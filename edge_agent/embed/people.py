"""Rendered people with whom a network is measured: one picture, the same on every machine.

`people.jpg` holds crops of 64 x 128 pixels, 40 in a row, written by `edge_agent/offline/people.py`. Nobody
in it is real. Eight cameras see 20 people each, four crops of each; half of them come back at another time.
Every person passes two cameras.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.pictures import read_picture

SHEET = Path(__file__).parent / "people.jpg"
VERSION = 1
"""Of the picture; raised when it changes, since what was measured on it is then measured again."""
CAMERAS = 8
PEOPLE = 80
CROPS = 4
"""Crops of one visit."""
COLUMNS = 40
"""Crops in a row of the picture."""
TILE = (128, 64)
"""Rows and columns of a crop."""
_EACH = PEOPLE // CAMERAS


@dataclass(frozen=True, slots=True)
class Visit:
    """A visit of a person to a camera: the first, or `again` at another time; it has `CROPS` crops."""

    camera: int
    person: int
    again: bool


def visits(camera: int) -> list[Visit]:
    """Return the visits of a camera, in the order of their crops in the picture."""
    here = [camera * _EACH + one for one in range(_EACH)]
    there = [person for person in range(PEOPLE) if _second_camera(person) == camera]
    return [Visit(camera, person, False) for person in here + there] + [
        Visit(camera, person, True) for person in here
    ]


def _second_camera(person: int) -> int:
    return (person // _EACH + 1 + person % _EACH % (CAMERAS - 1)) % CAMERAS


def crops() -> list[NDArray[np.uint8]]:
    """Return all crops, `(128, 64, 3)` uint8 BGR, camera by camera; InputError where the file is damaged."""
    sheet = read_picture(SHEET)
    high, wide = TILE
    count = sum(len(visits(camera)) for camera in range(CAMERAS)) * CROPS
    places = [divmod(at, COLUMNS) for at in range(count)]
    return [
        np.ascontiguousarray(sheet[row * high : (row + 1) * high, column * wide : (column + 1) * wide])
        for row, column in places
    ]
