"""Reader and writer of `nv.Frame`, the protobuf message of DeepStream's Gst-nvmsgconv and of Metropolis.

No protobuf package is needed for three nested messages. Field numbers (proto3):

===========  ==========================================================================================
message      fields
===========  ==========================================================================================
Frame        1 version, 2 id, 3 timestamp, 4 sensorId, 5 objects
Object       1 id, 2 bbox, 3 type, 4 confidence, 5 info (map), 6 embedding
Bbox         1 leftX, 2 topY, 3 rightX, 4 bottomY (float), 5 embeddings (Metropolis)
Embedding    1 vector (float)
Timestamp    1 seconds, 2 nanos
Wrapped      1 payload, 2 key (the sensor), 3 timestamp (text): around a message of DeepStream's MQTT adaptor
===========  ==========================================================================================

Other fields are passed over.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

VERSION = "4.0"
"""Of the schema, in every frame that DeepStream writes."""
UNTRACKED = str((1 << 64) - 1)
"""DeepStream's track id of an object that is not tracked."""
MAX_OBJECTS = 1000
"""Frames with more are refused."""
_MAX_FIELDS = 16_384
"""Of one message; bounds the time of a hostile one."""
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5
"""Wire types."""
_TWO_63, _TWO_64 = 1 << 63, 1 << 64
_NANOS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class NvObject:
    """One object of a frame.

    Attributes:
        id: of the track, unsigned 64 bits as decimal digits; of the identity in events of this agent.
        box: left, top, right, bottom in pixels.
        type: label of its class.
        embedding: `(D,)` float32, empty without one.
    """

    id: str
    box: tuple[float, float, float, float]
    type: str
    confidence: float
    info: Mapping[str, str] = field(default_factory=dict)
    embedding: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))


@dataclass(frozen=True, slots=True)
class NvFrame:
    """The objects of one frame; `time` in Unix seconds, None where the message has none."""

    sensor: str
    id: str
    time: float | None
    objects: Sequence[NvObject]
    version: str = VERSION


class Wrapped(NamedTuple):
    """A message in the wrapper of DeepStream's MQTT adaptor."""

    payload: bytes
    sensor: str


def encode_frame(frame: NvFrame) -> bytes:
    """Return the bytes of a frame."""
    parts = [_text(1, frame.version), _text(2, frame.id)]
    if frame.time is not None:
        seconds, nanos = divmod(round(frame.time * 1e6) * 1000, _NANOS)
        parts.append(_field(3, _number(1, seconds) + _number(2, nanos)))
    parts.append(_text(4, frame.sensor))
    parts += [_field(5, _encode_object(one)) for one in frame.objects]
    return b"".join(parts)


def decode_frame(payload: bytes) -> NvFrame:
    """Read a frame; ValueError where the bytes are none, or it has more than `MAX_OBJECTS` objects."""
    found = _Fields(payload, "Frame")
    bodies = found.all_bytes(5)
    if len(bodies) > MAX_OBJECTS:
        raise ValueError(f"{len(bodies)} objects are more than {MAX_OBJECTS}")
    moment = None
    if found.has(3):
        stamp = _Fields(found.message(3), "Timestamp")
        moment = stamp.number(1) + stamp.number(2) / _NANOS
    return NvFrame(
        found.text(4), found.text(2), moment, [_decode_object(body) for body in bodies], found.text(1)
    )


def unwrapped(payload: bytes) -> Wrapped | None:
    """Return what is in the wrapper of DeepStream's MQTT adaptor, None where there is no wrapper.

    A frame begins with its version, `0A 03 "4.0"`; a wrapper with a whole frame, or JSON, in the same field.
    """
    try:
        found = _Fields(payload, "Wrapped")
        inner = found.all_bytes(1)
        if len(inner) != 1 or inner[0][:1] not in {b"{", b"\n"} or found.has(5):
            return None
        return Wrapped(inner[0], found.text(2))
    except ValueError:
        return None


def _encode_object(one: NvObject) -> bytes:
    box = b"".join(_float(number, value) for number, value in enumerate(one.box, start=1))
    parts = [_text(1, one.id), _field(2, box), _text(3, one.type), _float(4, one.confidence)]
    parts += [_field(5, _text(1, key) + _text(2, value)) for key, value in one.info.items()]
    vector = np.ascontiguousarray(one.embedding, "<f4").tobytes()
    # DeepStream writes the message also where it is empty.
    return b"".join([*parts, _field(6, _field(1, vector) if vector else b"")])


def _decode_object(body: bytes) -> NvObject:
    found = _Fields(body, "Object")
    box = _Fields(found.message(2), "Bbox")
    vector = _Fields(found.message(6), "Embedding").floats(1)
    if not len(vector) and (nested := box.all_bytes(5)):
        vector = _Fields(nested[0], "Embedding").floats(1)
    return NvObject(
        found.text(1),
        (box.real(1), box.real(2), box.real(3), box.real(4)),
        found.text(3),
        found.real(4),
        _info(found.all_bytes(5)),
        vector,
    )


def _info(entries: Sequence[bytes]) -> dict[str, str]:
    read = [_Fields(entry, "info") for entry in entries]
    return {one.text(1): one.text(2) for one in read}


class _Fields:
    """The fields of one message by number; reading one of another wire type raises ValueError."""

    def __init__(self, data: bytes, message: str) -> None:
        self._message = message
        self._found: dict[int, list[tuple[int, int | bytes]]] = {}
        for number, wire, value in _scan(data, message):
            self._found.setdefault(number, []).append((wire, value))

    def has(self, number: int) -> bool:
        return number in self._found

    def all_bytes(self, number: int) -> list[bytes]:
        return [self._checked(entry, number, _BYTES) for entry in self._found.get(number, ())]  # type: ignore[misc]

    def message(self, number: int) -> bytes:
        """Several occurrences of one message are merged, as protobuf does."""
        return b"".join(self.all_bytes(number))

    def text(self, number: int) -> str:
        values = self.all_bytes(number)
        try:
            return values[-1].decode() if values else ""
        except UnicodeDecodeError:
            raise ValueError(f"field {number} of {self._message} is not UTF-8") from None

    def number(self, number: int) -> int:
        values = self._found.get(number)
        if not values:
            return 0
        value = int(self._checked(values[-1], number, _VARINT))
        return value - _TWO_64 if value >= _TWO_63 else value

    def real(self, number: int) -> float:
        values = self._found.get(number)
        if not values:
            return 0.0
        found: float = struct.unpack("<f", self._checked(values[-1], number, _FOUR))[0]  # type: ignore[arg-type]
        return found

    def floats(self, number: int) -> NDArray[np.float32]:
        """Return repeated floats, packed or not: `(D,)` float32."""
        parts = []
        for wire, value in self._found.get(number, ()):
            if wire not in {_BYTES, _FOUR} or len(value) % 4:  # type: ignore[arg-type]
                raise ValueError(f"field {number} of {self._message} is not a list of float")
            parts.append(value)
        return np.frombuffer(b"".join(parts), "<f4").astype(np.float32)  # type: ignore[arg-type]

    def _checked(self, entry: tuple[int, int | bytes], number: int, wire: int) -> int | bytes:
        if entry[0] != wire:
            raise ValueError(f"field {number} of {self._message} has wire type {entry[0]}, expected {wire}")
        return entry[1]


def _scan(data: bytes, message: str) -> Iterator[tuple[int, int, int | bytes]]:
    """Yield number, wire type and value of each field."""
    at, end, left = 0, len(data), _MAX_FIELDS
    while at < end:
        left -= 1
        if not left:
            raise ValueError(f"{message} has more than {_MAX_FIELDS} fields")
        tag, at = _read_varint(data, at, message)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise ValueError(f"{message} has a field of number {number}")
        if wire == _VARINT:
            value, at = _read_varint(data, at, message)
            yield number, wire, value
            continue
        if wire == _BYTES:
            size, at = _read_varint(data, at, message)
        elif wire in {_EIGHT, _FOUR}:
            size = 8 if wire == _EIGHT else 4
        else:
            raise ValueError(f"field {number} of {message} has the wire type {wire}")
        if size > end - at:
            raise ValueError(f"{message} is cut off in field {number}")
        yield number, wire, data[at : at + size]
        at += size


def _read_varint(data: bytes, at: int, message: str) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError(f"{message} is cut off")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value % _TWO_64, at
    raise ValueError(f"{message} has a number of more than 64 bits")


def _varint(value: int) -> bytes:
    out = bytearray()
    value %= _TWO_64
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(value)) + value


def _text(number: int, value: str) -> bytes:
    """Return a text field; proto3 leaves out the empty text."""
    return _field(number, value.encode()) if value else b""


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3 | _VARINT) + _varint(value) if value else b""


def _float(number: int, value: float) -> bytes:
    packed = struct.pack("<f", value)
    return _varint(number << 3 | _FOUR) + packed if any(packed) else b""
