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
last, before the parts `|#|embedding|` and `|#|SV3DT|`. `id` is the frame number, counted from 0, as text or
number. A confidence of -1 to 0 marks a box of the tracker that the detector did not find.

A message is refused only when its structure is wrong. A bad box is left out and counted, and the others of
the frame are kept: not four numbers (`form`), not finite or beyond a million pixels (`range`), empty or
upside down (`empty`), a confidence outside 0..1 (`score`), an object of DeepStream with the same id and box
as another one (`twice`). Where no box at all has the form, the structure is wrong.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from edge_agent.core.config import PERSON_LABELS
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
_OBJECT_FORM = "track|left|top|right|bottom|label[|#|...|confidence]"
_LABEL = 5
"""Field of an object of DeepStream with its label; the box is before it."""
_EXTENSIONS = frozenset({"embedding", "SV3DT"})
"""Parts of an object after the confidence."""
_SHOWN_LABELS = 3
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


WholeNumber = Annotated[int, Field(strict=True, ge=0, le=LARGEST_NUMBER)]
Time = Annotated[float | None, BeforeValidator(unix_time)]
_Corner = Annotated[float, Field(strict=True, gt=-_MAX_PIXELS, lt=_MAX_PIXELS)]
Box = Annotated[list[_Corner], Field(min_length=4, max_length=4)]

_Length = Annotated[float, Field(strict=True, ge=1, lt=_MAX_PIXELS)]

_Row = list[float]
"""Corners and score."""

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
    size: list[_Length] | None = Field(None, min_length=2, max_length=2)
    normalised: Any = False
    boxes: list[Any] = Field(max_length=_MAX_BOXES)
    scores: list[Any] | None = None


def _frame_number(value: object) -> object:
    text = isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19
    return int(value) if text else value  # type: ignore[call-overload] # a text


class _DeepStreamMessage(BaseModel):
    id: Annotated[WholeNumber, BeforeValidator(_frame_number)]
    time: Time = Field(None, alias="@timestamp")
    camera: str = Field(alias="sensorId", min_length=1, max_length=256)
    objects: list[Any] = Field(max_length=_MAX_BOXES)


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
        scores: `(N,)` float32 in 0..1.
        left_out: number of bad boxes by fault: `form`, `range`, `empty`, `score`, `twice`.
        people: number of objects with a label of people, None in a format without labels.
        other_labels: some labels of the other objects.
    """

    camera: str
    number: int | None
    time: float | None
    size: tuple[float, float] | None
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    left_out: Mapping[str, int] = field(default_factory=dict)
    people: int | None = None
    other_labels: tuple[str, ...] = ()

    def on(self, frame: Frame) -> Detections:
        """Return the boxes in pixels of `frame`, clipped to it, best score first; without those outside."""
        height, width = frame.image.shape[:2]
        scale = (1.0, 1.0) if self.size is None else (width / self.size[0], height / self.size[1])
        order = np.argsort(-self.scores, kind="stable")
        boxes = self.boxes[order] * np.array(scale * 2, np.float32)
        return Detections(boxes, self.scores[order]).within(width, height)


def parse_own(payload: bytes) -> BoxMessage:
    """Parse a message of the agent's own format; ValueError explains what is wrong with its structure."""
    found = _decode_message(_OwnMessage, payload)
    if found.frame is None and found.time is None:
        raise ValueError("neither `frame` nor `time`")
    size = None if found.size is None else (found.size[0], found.size[1])
    scores: list[Any] = [None] * len(found.boxes) if found.scores is None else found.scores
    if len(scores) != len(found.boxes):
        raise ValueError(f"`scores` must be a list of {len(found.boxes)} numbers, one for each box")
    graded = [
        (box, _UNKNOWN_SCORE if score is None else score)
        for box, score in zip(found.boxes, scores, strict=True)
    ]
    rows = [row for box, score in graded if (row := _row(box, score)) is not None]
    if found.boxes and not rows:
        raise ValueError("no entry of `boxes` is four numbers, with a number as score")
    boxes, kept, left_out = _sound(rows, len(graded) - len(rows))
    size = (1.0, 1.0) if found.normalised else size
    return BoxMessage(found.camera, found.frame, found.time, size, boxes, kept, left_out)


def parse_deepstream(payload: bytes, labels: Collection[str] = PERSON_LABELS) -> BoxMessage:
    """Parse a message of DeepStream's minimal format; objects without one of the labels are no people.

    Case and surrounding blanks of labels do not matter. ValueError as in `parse_own`.
    """
    try:
        found = _decode_message(_DeepStreamMessage, payload)
    except ValueError:
        if b'"messageid"' in payload:
            raise ValueError("it is in DeepStream's full format; set payload-type=1 in its msgconv") from None
        raise
    objects = [one.split("|") for one in found.objects if isinstance(one, str)]
    known = [fields for fields in objects if len(fields) > _LABEL]
    wanted = {_comparable(label) for label in labels}
    people = [fields for fields in known if _comparable(fields[_LABEL]) in wanted]
    others = {fields[_LABEL] for fields in known if _comparable(fields[_LABEL]) not in wanted}
    # One id with one box is one person: two would be proven different by being seen together.
    distinct: dict[tuple[str, ...], list[str]] = {}
    for fields in people:
        distinct.setdefault(tuple(fields[:_LABEL]), fields)
    twice = len(people) - len(distinct)
    rows = [row for fields in distinct.values() if (row := _object(fields)) is not None]
    malformed = len(found.objects) - len(known) + len(distinct) - len(rows)
    if found.objects and malformed == len(found.objects):
        first = found.objects[0]
        shown = f"{first!r:.60}" if isinstance(first, str) else type(first).__name__
        raise ValueError(f"object {shown} is not {_OBJECT_FORM}")
    boxes, scores, left_out = _sound(rows, malformed)
    if twice:
        left_out["twice"] = twice
    return BoxMessage(
        found.camera, found.id + 1, found.time, None, boxes, scores, left_out,
        len(people), tuple(sorted(others)[:_SHOWN_LABELS]),
    )  # fmt: skip


def _decode_message(model: type[Model], payload: bytes) -> Model:
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise ValueError(f"{len(payload)} bytes are more than {MAX_PAYLOAD_BYTES}")
    return decode(model, payload)


def _comparable(label: str) -> str:
    return label.strip().casefold()


def _object(fields: list[str]) -> _Row | None:
    """Return corners and score of one object, None where they are not numbers."""
    ends = [
        at for at in range(_LABEL + 1, len(fields) - 1) if fields[at] == "#" and fields[at + 1] in _EXTENSIONS
    ]
    fields = fields[: ends[0]] if ends else fields
    attributes = fields[_LABEL + 1 :]
    confidence = attributes[-1] if len(attributes) > 1 and attributes[0] == "#" else ""
    try:
        score = float(confidence) if confidence.strip() else _UNKNOWN_SCORE
        return [*(float(field) for field in fields[1:_LABEL]), _UNKNOWN_SCORE if -1 <= score < 0 else score]
    except ValueError:
        return None


def _row(box: object, score: object) -> _Row | None:
    """Return corners and score of an own box, None where they are not numbers."""
    if not isinstance(box, list) or len(box) != 4:
        return None
    values = [*box, score]
    if any(type(value) not in {int, float} for value in values):
        return None
    return [float(value) if abs(value) < _MAX_NUMBER else math.inf for value in values]


def _sound(
    rows: list[_Row], malformed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], dict[str, int]]:
    """Return boxes `(N, 4)` and scores `(N,)` of the good rows, and the number of the others by fault."""
    values = np.array(rows, np.float64).reshape(-1, 5)
    rounded = values.clip(-_MAX_NUMBER, _MAX_NUMBER).astype(np.float32)
    fine = {
        "range": (np.abs(values[:, :4]) < _MAX_PIXELS).all(axis=1),
        "empty": (rounded[:, :2] < rounded[:, 2:4]).all(axis=1),
        "score": (values[:, 4] >= 0) & (values[:, 4] <= 1),
    }
    good = np.ones(len(values), np.bool_)
    left_out = {"form": malformed}
    for fault, passed in fine.items():
        left_out[fault] = int((good & ~passed).sum())
        good &= passed
    counted = {fault: number for fault, number in left_out.items() if number}
    return rounded[good, :4], rounded[good, 4], counted
