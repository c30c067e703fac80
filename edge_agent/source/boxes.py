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
import re
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from edge_agent.core.structures import Detections, Frame
from edge_agent.core.timing import LATEST_TIME, parse_time

MAX_PAYLOAD_BYTES = 256 << 10
"""Larger messages are refused; 1000 boxes with scores are about 60 KiB."""

_MAX_BOXES = 1000
_MAX_PIXELS = 1e6
_MAX_NUMBER = 1e30
"""Within float32."""
LARGEST_NUMBER = (1 << 62) - 1
"""Of frames and tracks; the databases store signed 64 bits."""
_UNKNOWN_SCORE = 1.0
"""For boxes without a score: an upstream without scores sends only boxes above its own threshold."""


def unix_time(value: object) -> float | None:
    """Return Unix seconds from a number or an RFC 3339 text with a zone; None from None.

    Raises:
        ValueError: anything else, or a time before 1970 or after `LATEST_TIME`.
    """
    if value is None:
        return None
    if isinstance(value, str) and len(value) < 64:
        # Python 3.10 does not parse fractions of other than 3 or 6 digits.
        value = parse_time(re.sub(r"\.(\d{1,6})\d*", lambda match: "." + match[1].ljust(6, "0"), value))
    if type(value) not in {int, float} or not 0 <= value <= LATEST_TIME:  # type: ignore[operator] # a number
        raise ValueError("neither Unix seconds nor RFC 3339 of a time since 1970")
    return float(value)  # type: ignore[arg-type] # a number


Number = Annotated[float, Field(strict=True, gt=-_MAX_NUMBER, lt=_MAX_NUMBER)]
WholeNumber = Annotated[int, Field(strict=True, ge=0, le=LARGEST_NUMBER)]
Time = Annotated[float | None, BeforeValidator(unix_time)]
Box = Annotated[list[Number], Field(min_length=4, max_length=4)]

_Length = Annotated[Number, Field(gt=0, lt=_MAX_PIXELS)]

Model = TypeVar("Model", bound=BaseModel)


def decode(model: type[Model], payload: bytes) -> Model:
    """Parse a JSON object; ValueError explains in one line what is wrong with it."""
    try:
        return model.model_validate(json.loads(payload))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "JSON"
        got = f", got {first['input']!r:.40}" if isinstance(first["input"], str | float | int) else ""
        raise ValueError(f"`{where}`: {first['msg']}{got}") from None


class _OwnMessage(BaseModel):
    camera: str = Field(min_length=1, max_length=256)
    frame: Annotated[WholeNumber, Field(gt=0)] | None = None
    time: Time = None
    size: list[Annotated[Number, Field(gt=0, lt=_MAX_PIXELS)]] | None = Field(
        None, min_length=2, max_length=2
    )
    normalised: Any = False
    boxes: list[Box] = Field(max_length=_MAX_BOXES)
    scores: list[Number] | None = None


def _frame_number(value: object) -> object:
    text = isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19
    return int(value) if text else value  # type: ignore[call-overload] # a text


class _DeepStreamMessage(BaseModel):
    id: Annotated[WholeNumber, BeforeValidator(_frame_number)]
    time: Time = Field(None, alias="@timestamp")
    camera: str = Field(alias="sensorId", min_length=1, max_length=256)
    objects: list[str] = Field(max_length=_MAX_BOXES)


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
    found = _decode_message(_OwnMessage, payload)
    if found.frame is None and found.time is None:
        raise ValueError("neither `frame` nor `time`")
    size = None if found.size is None else (found.size[0], found.size[1])
    scores = [_UNKNOWN_SCORE] * len(found.boxes) if found.scores is None else found.scores
    if len(scores) != len(found.boxes):
        raise ValueError(f"`scores` must be a list of {len(found.boxes)} numbers, one for each box")
    return BoxMessage(
        found.camera, found.frame, found.time, (1.0, 1.0) if found.normalised else size,
        *_arrays(found.boxes, scores),
    )  # fmt: skip


def parse_deepstream(payload: bytes) -> BoxMessage:
    """Parse a message of DeepStream's minimal format, without objects that are no person; as `parse_own`."""
    found = _decode_message(_DeepStreamMessage, payload)
    people = [(box, score) for label, box, score in map(_object, found.objects) if label.lower() == "person"]
    arrays = _arrays([box for box, _ in people], [score for _, score in people])
    return BoxMessage(found.camera, found.id + 1, found.time, None, *arrays)


def _decode_message(model: type[Model], payload: bytes) -> Model:
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise ValueError(f"{len(payload)} bytes are more than {MAX_PAYLOAD_BYTES}")
    return decode(model, payload)


def _object(text: str) -> tuple[str, list[float], float]:
    """Return label, box and score of one object."""
    fields = text.split("|")
    try:
        box, label = [float(field) for field in fields[1:5]], fields[5]
        score = float(fields[-1]) if len(fields) > 7 and fields[6] == "#" else _UNKNOWN_SCORE
    except (ValueError, IndexError):
        raise ValueError(
            f"object {text!r:.60} is not track|left|top|right|bottom|label[|#|...|confidence]"
        ) from None
    return label, box, _UNKNOWN_SCORE if score < 0 else score


def _arrays(boxes: list[list[float]], scores: list[float]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return `(N, 4)` and `(N,)` float32."""
    corners, graded = np.array(boxes, np.float64).reshape(-1, 4), np.array(scores, np.float64)
    if not (np.abs(graded) < _MAX_NUMBER).all():
        raise ValueError("a score is not a finite number")
    if not (np.abs(corners) < _MAX_PIXELS).all():
        raise ValueError("a box is out of range")
    rounded = corners.astype(np.float32)
    if not (rounded[:, :2] < rounded[:, 2:]).all():
        raise ValueError("a box is empty or upside down")
    return rounded, graded.astype(np.float32)
