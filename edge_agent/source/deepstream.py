"""Messages of DeepStream's Gst-nvmsgconv, in all forms that it and Metropolis write.

=====================  ==============================================================================
form                   how it is recognised
=====================  ==============================================================================
minimal JSON           `objects` is a list of texts; one message for each frame
JSON of `nv.Frame`     `objects` is a list of JSON objects; one message for each frame
full JSON              `object`; one message for each object, see `source.assembly`
protobuf `nv.Frame`    no JSON; one message for each frame, see `core.nv_frame`
=====================  ==============================================================================

Each may be in the wrapper of DeepStream's MQTT adaptor. The text of an object in a minimal message is::

    track|left|top|right|bottom|label|#|gender|age|hair|cap|apparel|confidence|#|embedding|v1,v2,...|

Attributes, confidence and embedding may be missing; the confidence is the last field before `|#|embedding|`
and `#|SV3DT|`. A confidence of -1 to 0 marks a box of the tracker that the detector did not find. `id` is the
frame number, counted from 0, as text or number.

`source.box_message` lists what is left out of a message, and why.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import AliasChoices, BaseModel, BeforeValidator, Field

from edge_agent.core.config import PERSON_LABELS
from edge_agent.core.nv_frame import UNTRACKED, decode_frame, unwrapped
from edge_agent.source.box_message import (
    LARGEST_NUMBER,
    MAX_BOXES,
    SHOWN_LABELS,
    UNKNOWN_SCORE,
    BoxMessage,
    Row,
    Time,
    WholeNumber,
    check_size,
    checked,
    load,
    sound,
    unix_time,
)

MAX_MESSAGE_BYTES = 4 << 20
"""Larger messages are refused: 150 people with 2048 values are 3.4 MiB in the minimal form."""
NO_TRACK = frozenset({UNTRACKED, "-1", ""})
"""Track ids of objects that are not tracked."""

_OBJECT_FORM = "track|left|top|right|bottom|label[|#|...|confidence]"
_LABEL = 5
"""Field of a minimal object with its label; the box is before it."""
_MAX_FIELDS = 255
"""Of a minimal object that are separated; one with attributes, 34 joints and all extensions has 60."""
_EXTENSIONS = frozenset({"embedding", "SV3DT"})
"""Parts of a minimal object after the confidence."""
_CORNERS = ("topleftx", "toplefty", "bottomrightx", "bottomrighty")
_FRAME_CORNERS = ("leftX", "topY", "rightX", "bottomY")
_NO_CLASSES = frozenset(
    {"bbox", "bbox3d", "embedding", "location", "coordinate", "pose", "gaze", "lipActivity", "SV3DT", "info"}
)
"""Keys of a full object that hold an object, and do not name its class."""
_LEAST_NORM, _LARGEST_NORM = 1e-6, 1e30
_VERSION = re.compile(r"[0-9.]*")


class _Object(NamedTuple):
    """One object of a frame, as sent; numbers may be texts. `embedding` is None where there is none."""

    track: str
    label: str
    corners: Sequence[Any]
    confidence: Any
    embedding: Any = None


class _Header(NamedTuple):
    camera: str
    number: int | None
    time: float | None


def parse_deepstream(
    payload: bytes, labels: Collection[str] = PERSON_LABELS, dimension: int | None = None
) -> BoxMessage:
    """Parse a message in any of the forms; objects without one of the labels are no people.

    Case and surrounding blanks of labels do not matter. `dimension` is the length of the embeddings; None:
    embeddings are not read.

    Raises:
        ValueError: the structure of the message is wrong; the text states how.
    """
    check_size(payload, MAX_MESSAGE_BYTES)
    reader = _Reader(frozenset(map(_comparable, labels)), dimension)
    if payload[:1] != b"\n":  # neither a frame nor a wrapper
        return reader.protobuf(payload, "") if 0 < _first(payload) < 0x20 else reader.json(payload)
    try:
        inner = unwrapped(payload)
        if inner is None:
            return reader.protobuf(payload, "")
        if inner.payload[:1] == b"{":
            return reader.json(inner.payload)
        return reader.protobuf(inner.payload, inner.sensor)
    except ValueError:
        if payload.lstrip()[:1] != b"{":
            raise
    return reader.json(payload)


def track_number(track: str) -> int | None:
    """Return the number of an upstream track within 1 to `LARGEST_NUMBER`, None for one that is not tracked.

    Ids in these limits keep their number. DeepStream's unique ids have 64 bits, and are reduced modulo
    `LARGEST_NUMBER`; an id that is no number gets one by its digest.
    """
    if track in NO_TRACK:
        return None
    if track.isascii() and track.isdigit() and len(track) <= 20:
        value = int(track)
    else:
        value = int.from_bytes(hashlib.sha256(track.encode("utf-8", "replace")).digest()[:8], "big")
    return value % LARGEST_NUMBER or LARGEST_NUMBER


def _first(payload: bytes) -> int:
    return payload[0] if payload.strip() else 0


def _frame_number(value: object) -> object:
    text = isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19
    return int(value) if text else value  # type: ignore[call-overload] # a text


class _JsonFrame(BaseModel):
    id: Annotated[WholeNumber, BeforeValidator(_frame_number)]
    time: Time = Field(None, validation_alias=AliasChoices("@timestamp", "timestamp"))
    camera: str = Field(alias="sensorId", min_length=1, max_length=256)
    objects: list[Any] = Field(max_length=MAX_BOXES)


class _Sensor(BaseModel):
    id: str = Field(min_length=1, max_length=256)


class _FullMessage(BaseModel):
    sensor: _Sensor
    object: dict[str, Any]
    time: Annotated[float, BeforeValidator(unix_time)] = Field(alias="@timestamp")


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads messages. `labels` are comparable labels of people, `dimension` as in `parse_deepstream`."""

    labels: frozenset[str]
    dimension: int | None

    def json(self, payload: bytes) -> BoxMessage:
        value = load(payload)
        if isinstance(value, dict) and "object" in value and "objects" not in value:
            return self._full(value)
        if isinstance(value, dict) and "objects" not in value and "messageid" in value:
            raise ValueError("it has no `object`, so it is an event without a box")
        return self._frame(checked(_JsonFrame, value))

    def protobuf(self, payload: bytes, sensor: str) -> BoxMessage:
        try:
            frame = decode_frame(payload)
        except ValueError as problem:
            raise ValueError(f"neither JSON nor protobuf (nv.Frame): {problem}") from None
        if not _VERSION.fullmatch(frame.version):
            raise ValueError(f"it is no nv.Frame: {frame.version!r:.40} is no version")
        camera = frame.sensor or sensor
        if not 0 < len(camera) <= 256:
            raise ValueError("`sensorId` must have 1 to 256 characters")
        number = _frame_number(frame.id)
        if not isinstance(number, int) and frame.time is None:
            raise ValueError("neither `id`, the number of the frame, nor `timestamp`")
        header = _Header(camera, number + 1 if isinstance(number, int) else None, unix_time(frame.time))
        objects = [
            _Object(one.id, one.type, one.box, one.confidence or None, one.embedding) for one in frame.objects
        ]
        return self._message(header, objects, 0, "")

    def _frame(self, found: _JsonFrame) -> BoxMessage:
        # An object of DeepStream's type "dummy" is written without fields; it carries a message of its own.
        listed = [
            one
            for one in found.objects
            if not isinstance(one, str) or (one.strip("|#") and not one.startswith("|#|"))
        ]
        read = [_minimal(one) if isinstance(one, str) else _json_object(one) for one in listed]
        objects = [one for one in read if one is not None]
        shown = ""
        if listed:
            first = listed[0]
            given = f"{first[:60]!r:.60}" if isinstance(first, str) else type(first).__name__
            shown = f"object {given} is not"
        header = _Header(found.camera, found.id + 1, found.time)
        return self._message(header, objects, len(listed) - len(objects), f"{shown} {_OBJECT_FORM}")

    def _full(self, value: object) -> BoxMessage:
        found = checked(_FullMessage, value)
        one = found.object
        classes = [key for key, of in one.items() if isinstance(of, Mapping) and key not in _NO_CLASSES]
        label = next((key for key in classes if _comparable(key) in self.labels), (classes or [""])[0])
        box, details = one.get("bbox"), one.get(label)
        corners = [box.get(key) for key in _CORNERS] if isinstance(box, Mapping) else []
        confidence = details.get("confidence") if isinstance(details, Mapping) else None
        read = _Object(
            _text(one.get("id")), label, corners, confidence, _full_embedding(one.get("embedding"))
        )
        why = f"`object.bbox` has no numbers {', '.join(_CORNERS)}, or the confidence is none"
        message = self._message(_Header(found.sensor.id, None, found.time), [read], 0, why)
        return replace(message, whole=False)

    def _message(self, header: _Header, objects: Sequence[_Object], malformed: int, why: str) -> BoxMessage:
        """Examine the objects of a frame; `malformed` is the number of those without the form of one.

        Raises ValueError with the text `why` where no object is good enough to be examined.
        """
        people = [one for one in objects if _comparable(one.label) in self.labels]
        others = {one.label for one in objects if _comparable(one.label) not in self.labels}
        # One track, or one id with one box, is one person: two would be proven different by being together.
        distinct: dict[object, _Object] = {}
        for one in people:
            tracked = self.dimension is not None and one.track not in NO_TRACK
            distinct.setdefault(one.track if tracked else (one.track, *map(str, one.corners)), one)
        read = [(one, row) for one in distinct.values() if (row := _row(one)) is not None]
        unread = malformed + len(distinct) - len(read)
        if unread and unread == malformed + len(objects) - (len(people) - len(distinct)):
            raise ValueError(why)
        good = sound([row for _, row in read], unread)
        if twice := len(people) - len(distinct):
            good.left_out["twice"] = twice
        shown = tuple(sorted(others)[:SHOWN_LABELS])
        kept = [one for (one, _), fine in zip(read, good.kept.tolist(), strict=True) if fine]
        message = BoxMessage(
            header.camera, header.number, header.time, None, good.boxes, good.scores, good.left_out,
            len(people), shown, tuple(track_number(one.track) for one in kept),
        )  # fmt: skip
        return message if self.dimension is None else _with_embeddings(message, kept, self.dimension)


def _with_embeddings(message: BoxMessage, objects: Sequence[_Object], dimension: int) -> BoxMessage:
    """Return the message with the embeddings of its objects."""
    vectors = np.zeros((len(objects), dimension), np.float32)
    embedded = np.zeros(len(objects), np.bool_)
    faults = 0
    for row, one in enumerate(objects):
        if one.embedding is None or not len(one.embedding):
            continue
        vector = unit_vector(one.embedding, dimension)
        if vector is None:
            faults += 1
        else:
            vectors[row], embedded[row] = vector, True
    left_out = {**message.left_out, "embedding": faults} if faults else message.left_out
    return replace(message, left_out=left_out, vectors=vectors, embedded=embedded)


def unit_vector(values: Any, dimension: int) -> NDArray[np.float64] | None:  # noqa: ANN401 - as sent
    """Return an embedding with length 1, None for another dimension, or without a finite length above 0.

    `values` are numbers, or a text of numbers with commas.
    """
    length = values.count(",") + 1 if isinstance(values, str) else len(values)
    if length != dimension:
        return None
    listed = values.split(",") if isinstance(values, str) else values
    try:
        vector = np.array(listed, np.float64)
    except (ValueError, TypeError, OverflowError):
        return None
    if vector.shape != (dimension,):
        return None
    with np.errstate(all="ignore"):
        norm = math.sqrt(float(vector @ vector))
    return vector / norm if _LEAST_NORM < norm < _LARGEST_NORM else None


def _comparable(label: str) -> str:
    return label.strip().casefold()


def _text(value: object) -> str:
    """Return an id, which is a text or a number."""
    return value if isinstance(value, str) else str(value) if type(value) in {int, float} else ""


def _minimal(text: str) -> _Object | None:
    """Read an object of a minimal message; None where it has not even a label."""
    fields = text.split("|", _MAX_FIELDS)
    if len(fields) <= _LABEL:
        return None
    marks = [at for at in range(_LABEL + 1, len(fields) - 1) if fields[at] == "#"]
    ends = [at for at in marks if fields[at + 1] in _EXTENSIONS]
    attributes = fields[_LABEL + 1 : ends[0] if ends else None]
    confidence = attributes[-1].strip() if len(attributes) > 1 and attributes[0] == "#" else ""
    vectors = [fields[at + 2] for at in ends if fields[at + 1] == "embedding" and at + 2 < len(fields)]
    return _Object(fields[0], fields[_LABEL], fields[1:_LABEL], confidence, vectors[0] if vectors else None)


def _json_object(one: object) -> _Object | None:
    """Read an object of `nv.Frame` as JSON; None where it is none."""
    if not isinstance(one, Mapping) or not isinstance(one.get("type"), str):
        return None
    box = one["bbox"] if isinstance(one.get("bbox"), Mapping) else {}
    corners = [box.get(key, 0.0) for key in _FRAME_CORNERS] if box else []
    several = box.get("embeddings")
    places = [one.get("embedding"), *(several[:1] if isinstance(several, list) else ())]
    vectors = [place.get("vector") for place in places if isinstance(place, Mapping)]
    vector = next((found for found in vectors if isinstance(found, list) and found), None)
    return _Object(_text(one.get("id")), one["type"], corners, one.get("confidence"), vector)


def _full_embedding(found: object) -> Any:  # noqa: ANN401 - as sent
    """Return the vector of `object.embedding`; one of another length than stated is none."""
    if not isinstance(found, Mapping):
        return None
    vector = found.get("embedding_vector")
    if not isinstance(vector, list):
        return None
    return vector if found.get("embedding_length", len(vector)) == len(vector) else ["another length"]


def _row(one: _Object) -> Row | None:
    """Return corners and score of an object, None where they are not numbers."""
    if len(one.corners) != 4:
        return None
    try:
        score = _number(one.confidence) if one.confidence not in (None, "") else UNKNOWN_SCORE
        score = UNKNOWN_SCORE if -1 <= score < 0 else score
        return [*map(_number, one.corners), score]
    except (TypeError, ValueError):
        return None


def _number(value: object) -> float:
    """Return a number, or a text of one; beyond the range of a float, infinity."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError
    try:
        return float(value)
    except OverflowError:
        return math.inf
