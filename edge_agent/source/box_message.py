"""The boxes of a frame from an upstream detector, and the checks that all formats of messages share.

A message is refused only when its structure is wrong. A bad box is left out and counted, and the others of
the frame are kept: not four numbers (`form`), not finite or beyond a million pixels (`range`), empty or
upside down (`empty`), a confidence outside 0..1 (`score`), an object of DeepStream that comes twice
(`twice`). Where no box at all has the form, the structure is wrong. An embedding that cannot be used is left
out, and its box is kept (`embedding`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from edge_agent.core.nv_frame import MAX_OBJECTS
from edge_agent.core.structures import Detections, Frame
from edge_agent.core.timing import LATEST_TIME, parse_time

MAX_BOXES = MAX_OBJECTS
"""Messages with more are refused."""
MAX_PIXELS = 1e6
MAX_NUMBER = 1e30
"""Within float32."""
LARGEST_NUMBER = (1 << 62) - 1
"""Of frames and tracks; the databases store signed 64 bits."""
SHOWN_LABELS = 3
"""Labels of other objects that a message keeps, for the log."""
UNKNOWN_SCORE = 1.0
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
_Corner = Annotated[float, Field(strict=True, gt=-MAX_PIXELS, lt=MAX_PIXELS)]
Box = Annotated[list[_Corner], Field(min_length=4, max_length=4)]

Row = list[float]
"""Corners and score."""

Model = TypeVar("Model", bound=BaseModel)


def decode(model: type[Model], payload: bytes) -> Model:
    """Parse a JSON object; ValueError explains in one line what is wrong with it."""
    return checked(model, load(payload))


def load(payload: bytes) -> Any:  # noqa: ANN401 - any JSON value
    """Parse JSON; ValueError where it is none."""
    try:
        return json.loads(payload)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def checked(model: type[Model], value: object) -> Model:
    """Check a JSON value; errors as in `decode`."""
    try:
        return model.model_validate(value)
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "JSON"
        got = f", got {first['input']!r:.40}" if isinstance(first["input"], str | float | int) else ""
        raise ValueError(f"`{where}`: {first['msg']}{got}") from None


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
        left_out: number of what is left out, by fault; the faults are those of this module's docstring.
        people: number of objects with a label of people, None in a format without labels.
        other_labels: some labels of the other objects.
        tracks: upstream's track of each box, None without one; empty in a format without tracks.
        vectors: `(N, D)` float32 embeddings of length 1, zero where there is none; None where none were read.
        embedded: `(N,)` bool, whether the box has an embedding; None where none were read.
        whole: whether this is all of the frame; False for one object of it.
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
    tracks: tuple[int | None, ...] = ()
    vectors: NDArray[np.float32] | None = None
    embedded: NDArray[np.bool_] | None = None
    whole: bool = True

    def on(self, frame: Frame) -> Detections:
        """Return the boxes in pixels of `frame`, clipped to it, best score first; without those outside."""
        height, width = frame.image.shape[:2]
        order = np.argsort(-self.scores, kind="stable")
        boxes = self.scaled((width, height))[order]
        return Detections(boxes, self.scores[order]).within(width, height)

    def of(self, camera: str) -> BoxMessage:
        """Return the message as one of `camera`."""
        return replace(self, camera=camera)

    def scaled(self, size: tuple[int, int]) -> NDArray[np.float32]:
        """Return the boxes in pixels of a picture of `(width, height)`."""
        scale = (1.0, 1.0) if self.size is None else (size[0] / self.size[0], size[1] / self.size[1])
        scaled: NDArray[np.float32] = self.boxes * np.array(scale * 2, np.float32)
        return scaled


def check_size(payload: bytes, most: int) -> None:
    """Raise ValueError for a message of more bytes."""
    if len(payload) > most:
        raise ValueError(f"{len(payload)} bytes are more than {most}")


class Sound(NamedTuple):
    """The good ones of some rows.

    Attributes:
        kept: `(R,)` bool of the rows, which are good.
        boxes: `(N, 4)` float32 xyxy; `scores` are `(N,)` float32.
        left_out: number of the others by fault.
    """

    kept: NDArray[np.bool_]
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    left_out: dict[str, int]


def sound(rows: Sequence[Row], malformed: int) -> Sound:
    """Examine boxes with scores; `malformed` is the number of those without the form of a row."""
    values = np.array(rows, np.float64).reshape(-1, 5)
    rounded = values.clip(-MAX_NUMBER, MAX_NUMBER).astype(np.float32)
    fine = {
        "range": (np.abs(values[:, :4]) < MAX_PIXELS).all(axis=1),
        "empty": (rounded[:, :2] < rounded[:, 2:4]).all(axis=1),
        "score": (values[:, 4] >= 0) & (values[:, 4] <= 1),
    }
    good = np.ones(len(values), np.bool_)
    left_out = {"form": malformed}
    for fault, passed in fine.items():
        left_out[fault] = int((good & ~passed).sum())
        good &= passed
    counted = {fault: number for fault, number in left_out.items() if number}
    return Sound(good, rounded[good, :4], rounded[good, 4], counted)
