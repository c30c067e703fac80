"""Messages of an upstream detector with the boxes of one frame, in two formats.

Own format, one JSON object per frame (other keys are ignored)::

    {"camera": "front", "frame": 451, "time": 1700000000.25, "size": [1920, 1080],
     "boxes": [[812.5, 240, 930, 610]], "scores": [0.91]}

`frame` counts the frames of the camera from 1; `time` is the time of capture, Unix seconds or RFC 3339; at
least one of them is required. `boxes` are xyxy: pixels of a picture of `size`, or of the frame itself without
`size`, or fractions of width and height with `"normalised": true`. `scores` are optional.

DeepStream's minimal format is what Gst-nvmsgconv writes with `payload-type=1`
(`sources/libs/nvmsgconv/deepstream_schema` of DeepStream 6 and 7)::

    {"version": "4.0", "id": "450", "@timestamp": "2024-05-01T10:00:00.250Z", "sensorId": "front",
     "objects": ["7|812.5|240|930|610|Person|#|male|34|black|none|formal|0.91"]}

An object is track, left, top, right, bottom and label; with attributes, these follow, and the confidence is
last. `id` is the frame number, counted from 0, as text or number.
A confidence below zero marks a box of the tracker that the detector did not find.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.structures import Detections, Frame
from edge_agent.source.fields import is_number, unix_time

__all__ = ["MAX_PAYLOAD_BYTES", "BoxMessage", "parse_deepstream", "parse_own"]

MAX_PAYLOAD_BYTES = 256 << 10
"""Larger messages are refused; 1000 boxes with scores are about 60 KiB."""

_MAX_BOXES = 1000
_MAX_PIXELS = 1e6
_UNKNOWN_SCORE = 1.0
"""For boxes without a score: an upstream without scores sends only boxes above its own threshold."""


@dataclass(frozen=True, slots=True)
class BoxMessage:
    """The boxes of one frame.

    Attributes:
        camera: upstream's name of the camera.
        number: frame number counted from 1, None if absent.
        time: of capture, Unix seconds, None if absent.
        size: `(width, height)` of the picture that the boxes refer to; `(1, 1)` for fractions; None for the
            frame itself.
        boxes: `(N, 4)` float32 xyxy.
        scores: `(N,)` float32.
    """

    camera: str
    number: int | None
    time: float | None
    size: tuple[float, float] | None
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]

    def on(self, frame: Frame) -> Detections:
        """Return the boxes in pixels of `frame`, best score first."""
        height, width = frame.image.shape[:2]
        scale = (1.0, 1.0) if self.size is None else (width / self.size[0], height / self.size[1])
        order = np.argsort(-self.scores, kind="stable")
        return Detections(self.boxes[order] * np.array(scale * 2, np.float32), self.scores[order])


def parse_own(payload: bytes) -> BoxMessage:
    """Parse a message of the agent's own format; ValueError explains what is wrong with it."""
    found = _json_object(payload)
    number, moment = found.get("frame"), unix_time(found.get("time"))
    if number is not None and not (type(number) is int and 0 < number < 1 << 62):
        raise ValueError(f"`frame` must be a whole number from 1, got {number!r:.40}")
    if number is None and moment is None:
        raise ValueError("neither `frame` nor `time`")
    size = _size(found.get("size"))
    if found.get("normalised", False):
        size = (1.0, 1.0)
    boxes = _boxes(found.get("boxes"))
    scores = found.get("scores")
    scores = [_UNKNOWN_SCORE] * len(boxes) if scores is None else scores
    if not isinstance(scores, list) or len(scores) != len(boxes):
        raise ValueError(f"`scores` must be a list of {len(boxes)} numbers, one for each box")
    return BoxMessage(_camera(found.get("camera")), number, moment, size, boxes, _column(scores))


def parse_deepstream(payload: bytes) -> BoxMessage:
    """Parse a message of DeepStream's minimal format, without objects that are no person.

    Raises:
        ValueError: explains what is wrong with it.
    """
    found = _json_object(payload)
    number = found.get("id")
    if isinstance(number, str) and number.isascii() and number.isdigit() and len(number) < 19:
        number = int(number)
    if type(number) is not int or not 0 <= number < 1 << 62:
        raise ValueError(f"`id` must be a frame number, got {number!r:.40}")
    objects = found.get("objects")
    if not isinstance(objects, list) or len(objects) > _MAX_BOXES:
        raise ValueError(f"`objects` must be a list of at most {_MAX_BOXES}")
    people = [person for person in map(_object, objects) if person[0].lower() == "person"]
    return BoxMessage(
        camera=_camera(found.get("sensorId")),
        number=number + 1,
        time=unix_time(found.get("@timestamp")),
        size=None,
        boxes=_boxes([box for _, box, _ in people]),
        scores=_column([score for _, _, score in people]),
    )


def _object(text: object) -> tuple[str, list[float], float]:
    """Return label, box and score of one `track|left|top|right|bottom|label[|#|...|confidence]`."""
    fields = text.split("|") if isinstance(text, str) else []
    if len(fields) < 6:
        raise ValueError(f"object {text!r:.60} is not track|left|top|right|bottom|label")
    box = [_number(field) for field in fields[1:5]]
    score = _UNKNOWN_SCORE
    if len(fields) > 7 and fields[6] == "#":
        score = _number(fields[-1])
    return fields[5], box, score if score >= 0 else _UNKNOWN_SCORE


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r:.40} is not a number") from None


def _json_object(payload: bytes) -> dict[str, Any]:
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise ValueError(f"{len(payload)} bytes are more than {MAX_PAYLOAD_BYTES}")
    try:
        found = json.loads(payload)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - an error of the message
    return found


def _camera(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 256:
        raise ValueError("no camera name")
    return value


def _size(value: object) -> tuple[float, float] | None:
    if value is None:
        return None
    if isinstance(value, list) and len(value) == 2:
        width, height = value
        if (
            is_number(width)
            and is_number(height)
            and 0 < min(width, height) <= max(width, height) < _MAX_PIXELS
        ):
            return float(width), float(height)
    raise ValueError(f"`size` must be [width, height], got {value!r:.40}")


def _boxes(value: object) -> NDArray[np.float32]:
    if not isinstance(value, list) or len(value) > _MAX_BOXES:
        raise ValueError(f"`boxes` must be a list of at most {_MAX_BOXES}")
    if not value:
        return np.zeros((0, 4), np.float32)
    if not all(isinstance(box, list) and len(box) == 4 for box in value):
        raise ValueError("each box must be [x1, y1, x2, y2]")
    boxes = _column([side for box in value for side in box]).reshape(-1, 4)
    if not (np.abs(boxes) < _MAX_PIXELS).all() or not (boxes[:, :2] < boxes[:, 2:]).all():
        raise ValueError("a box is empty, upside down or out of range")
    return boxes


def _column(values: list[Any]) -> NDArray[np.float32]:
    if not all(is_number(value) for value in values):
        raise ValueError("a box or score is not a finite number")
    return np.array(values, np.float32)
