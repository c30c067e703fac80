"""Contact sheet of a data set: a sample of each split as one picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_agent.core.errors import InputError
from edge_agent.core.pictures import read_picture
from edge_agent.offline.dataset import DISTRACTOR, JUNK, Crop, MarketDataset, Split, SplitStatistics

PEOPLE, PICTURES = 8, 12
"""Rows per split, without distractors and junk, and pictures per row."""

_Item = TypeVar("_Item")

_TILE_WIDTH, _TILE_HEIGHT, _GAP = 64, 128, 4
_LABEL_WIDTH, _HEADER_HEIGHT = 92, 28


def contact_sheet(dataset: MarketDataset) -> NDArray[np.uint8]:
    """Draw a sample of each split: one row per person, crops spread over that person's cameras.

    People are taken at even steps through the sorted ids, so a data set always gives the same sheet;
    distractors and junk come last, one row each. A picture that cannot be decoded is a crossed box.

    Returns:
        `(H, W, 3)` uint8 BGR.
    """
    return np.concatenate([_draw_split(split, crops) for split, crops in dataset.splits.items()])


def _draw_split(split: Split, crops: Sequence[Crop]) -> NDArray[np.uint8]:
    by_person = _grouped(crops, lambda crop: crop.pid)
    named = [pid for pid in sorted(by_person) if pid not in {JUNK, DISTRACTOR}]
    shown = _even_steps(named, PEOPLE) + [pid for pid in (DISTRACTOR, JUNK) if pid in by_person]
    width = _LABEL_WIDTH + PICTURES * (_TILE_WIDTH + _GAP)
    band = np.full((_HEADER_HEIGHT + len(shown) * (_TILE_HEIGHT + _GAP), width, 3), 255, np.uint8)
    of = SplitStatistics.of(crops)
    header = f"{split.folder}: {of.identities} identities, {of.images} images, {of.cameras} cameras"
    _write(band, header, (6, 19), 0.5)
    for row, pid in enumerate(shown):
        top = _HEADER_HEIGHT + row * (_TILE_HEIGHT + _GAP)
        label = {JUNK: "junk", DISTRACTOR: "distractor"}.get(pid, f"{pid:04d}")
        _write(band, label, (6, top + 60), 0.42)
        _draw_row(band, top, _spread_over_cameras(by_person[pid], PICTURES))
    return band


def _write(band: NDArray[np.uint8], text: str, at: tuple[int, int], size: float) -> None:
    cv2.putText(band, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, (0, 0, 0), 1, cv2.LINE_AA)


def _draw_row(band: NDArray[np.uint8], top: int, crops: Sequence[Crop]) -> None:
    for column, crop in enumerate(crops):
        left = _LABEL_WIDTH + column * (_TILE_WIDTH + _GAP)
        tile = band[top : top + _TILE_HEIGHT, left : left + _TILE_WIDTH]
        try:
            tile[:] = cv2.resize(read_picture(crop.path), (_TILE_WIDTH, _TILE_HEIGHT))
        except InputError:
            tile[:] = (220, 220, 255)
            corner = (left + _TILE_WIDTH - 1, top + _TILE_HEIGHT - 1)
            cv2.line(band, (left, top), corner, (0, 0, 255), 2)
        for colour, thickness in (((0, 0, 0), 2), ((255, 255, 255), 1)):
            at, text = (left + 2, top + 10), f"c{crop.camid}"
            cv2.putText(band, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.33, colour, thickness)


def _grouped(crops: Sequence[Crop], key: Callable[[Crop], int]) -> dict[int, list[Crop]]:
    groups: dict[int, list[Crop]] = {}
    for crop in crops:
        groups.setdefault(key(crop), []).append(crop)
    return groups


def _even_steps(items: list[_Item], count: int) -> list[_Item]:
    """At most `count` items at even steps, including first and last."""
    if len(items) <= count:
        return items
    last = len(items) - 1
    return [items[round(step * last / max(1, count - 1))] for step in range(count)]


def _spread_over_cameras(crops: Sequence[Crop], count: int) -> list[Crop]:
    """At most `count` crops, from the cameras in turn, each camera's at even steps of time."""
    by_camera = _grouped(crops, lambda crop: crop.camid)
    quota = -(-count // len(by_camera))
    chosen = [_even_steps(group, quota) for _, group in sorted(by_camera.items())]
    # the first of each camera, then the second of each, ... up to `count`; then sorted by camera
    ranked = [crop for turn in range(quota) for group in chosen for crop in group[turn : turn + 1]]
    return sorted(ranked[:count], key=lambda crop: (crop.camid, crop.path.name))
