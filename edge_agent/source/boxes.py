"""Formats of messages with boxes: the own one, and DeepStream's (`source.deepstream`).

Own format, one JSON object per frame (other keys are ignored)::

    {"camera": "front", "frame": 451, "time": 1700000000.25, "size": [1920, 1080],
     "boxes": [[812.5, 240, 930, 610]], "scores": [0.91]}

`frame` counts the frames of the camera from 1; `time` is the time of capture, Unix seconds or RFC 3339; at
least one of them is required. `boxes` are xyxy: pixels of a picture of `size`, or of the frame itself without
`size`, or fractions of width and height with `"normalised": true`. `scores` are optional.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BaseModel, Field

from edge_agent.source.box_message import (
    MAX_BOXES,
    MAX_NUMBER,
    MAX_PIXELS,
    UNKNOWN_SCORE,
    BoxMessage,
    Row,
    Time,
    WholeNumber,
    check_size,
    decode,
    sound,
)
from edge_agent.source.deepstream import parse_deepstream

__all__ = ["MAX_PAYLOAD_BYTES", "parse_deepstream", "parse_own"]

MAX_PAYLOAD_BYTES = 256 << 10
"""Larger messages of the own format are refused; 1000 boxes with scores are about 60 KiB."""

_Length = Annotated[float, Field(strict=True, ge=1, lt=MAX_PIXELS)]


class _OwnMessage(BaseModel):
    camera: str = Field(min_length=1, max_length=256)
    frame: Annotated[WholeNumber, Field(gt=0)] | None = None
    time: Time = None
    size: list[_Length] | None = Field(None, min_length=2, max_length=2)
    normalised: Any = False
    boxes: list[Any] = Field(max_length=MAX_BOXES)
    scores: list[Any] | None = None


def parse_own(payload: bytes) -> BoxMessage:
    """Parse a message of the agent's own format; ValueError explains what is wrong with its structure."""
    check_size(payload, MAX_PAYLOAD_BYTES)
    found = decode(_OwnMessage, payload)
    if found.frame is None and found.time is None:
        raise ValueError("neither `frame` nor `time`")
    size = None if found.size is None else (found.size[0], found.size[1])
    scores: list[Any] = [None] * len(found.boxes) if found.scores is None else found.scores
    if len(scores) != len(found.boxes):
        raise ValueError(f"`scores` must be a list of {len(found.boxes)} numbers, one for each box")
    graded = [
        (box, UNKNOWN_SCORE if score is None else score)
        for box, score in zip(found.boxes, scores, strict=True)
    ]
    rows = [row for box, score in graded if (row := _row(box, score)) is not None]
    if found.boxes and not rows:
        raise ValueError("no entry of `boxes` is four numbers, with a number as score")
    good = sound(rows, len(graded) - len(rows))
    size = (1.0, 1.0) if found.normalised else size
    return BoxMessage(found.camera, found.frame, found.time, size, good.boxes, good.scores, good.left_out)


def _row(box: object, score: object) -> Row | None:
    """Return corners and score of an own box, None where they are not numbers."""
    if not isinstance(box, list) or len(box) != 4:
        return None
    values = [*box, score]
    if any(type(value) not in {int, float} for value in values):
        return None
    return [float(value) if abs(value) < MAX_NUMBER else math.inf for value in values]
