"""Messages as DeepStream's Gst-nvmsgconv and Metropolis write them, in every form, from the same objects."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import numpy as np

from edge_agent.core.nv_frame import NvFrame, NvObject, encode_frame

TIME = 1_767_943_800.12
FORMS = ("minimal", "full", "protobuf", "frame-json")


@dataclass(frozen=True)
class Seen:
    """One object; `track` as DeepStream writes it."""

    track: str = "7"
    box: tuple[float, float, float, float] = (812.5, 240.0, 930.0, 610.0)
    label: str = "Person"
    score: float = 0.91
    vector: Sequence[float] | np.ndarray = ()


def stamp(moment: float) -> str:
    return datetime.fromtimestamp(moment, timezone.utc).isoformat(timespec="milliseconds")[:-6] + "Z"


def minimal(seen: Sequence[Seen], *, number: int = 450, moment: float = TIME, sensor: str = "front") -> bytes:
    def text(one: Seen) -> str:
        corners = "|".join(f"{side:g}" for side in one.box)
        vector = ",".join(f"{value:.6g}" for value in one.vector)
        embedding = f"|#|embedding|{vector}|" if len(one.vector) else ""
        return f"{one.track}|{corners}|{one.label}|#|||||||{one.score:g}{embedding}".replace(
            "|#|||||||", "|#||||||"
        )

    message = {"version": "4.0", "id": str(number), "@timestamp": stamp(moment), "sensorId": sensor}
    return json.dumps({**message, "objects": [text(one) for one in seen]}).encode()


def full(one: Seen, *, moment: float = TIME, sensor: str = "front") -> bytes:
    left, top, right, bottom = map(int, one.box)
    about: dict[str, Any] = {
        "id": one.track, "speed": 0.0, "direction": 0.0, "orientation": 0.0,
        one.label.lower(): {"age": 0, "gender": "", "hair": "", "cap": "", "apparel": "",
                            "confidence": one.score},
        "bbox": {"topleftx": left, "toplefty": top, "bottomrightx": right, "bottomrighty": bottom},
        "location": {"lat": 0.0, "lon": 0.0, "alt": 0.0},
        "coordinate": {"x": 0.0, "y": 0.0, "z": 0.0}, "pose": {},
    }  # fmt: skip
    if len(one.vector):
        values = [float(value) for value in one.vector]
        about["embedding"] = {"embedding_length": len(values), "embedding_vector": values}
    return json.dumps(
        {
            "messageid": "0c1a", "mdsversion": "1.0", "@timestamp": stamp(moment),
            "place": {"id": "1", "name": "hall", "type": "shop"},
            "sensor": {"id": sensor, "type": "Camera", "description": ""},
            "analyticsModule": {"id": "XYZ", "description": "", "source": "", "version": "1.0"},
            "object": about, "event": {"id": "e", "type": "moving"}, "videoPath": "",
        }
    ).encode()  # fmt: skip


def protobuf(
    seen: Sequence[Seen], *, number: int = 450, moment: float = TIME, sensor: str = "front"
) -> bytes:
    objects = [
        NvObject(one.track, one.box, one.label, one.score, embedding=np.asarray(one.vector, np.float32))
        for one in seen
    ]
    return encode_frame(NvFrame(sensor, str(number), moment, objects))


def frame_json(
    seen: Sequence[Seen], *, number: int = 450, moment: float = TIME, sensor: str = "front"
) -> bytes:
    names = ("leftX", "topY", "rightX", "bottomY")
    objects = [
        {
            "id": one.track, "type": one.label, "confidence": one.score, "info": {}, "speed": 0, "dir": [],
            "bbox": dict(zip(names, one.box, strict=True)), "gaze": None, "pose": None, "location": None,
            "embedding": {"info": {}, "vector": [float(value) for value in one.vector]},
        }
        for one in seen
    ]  # fmt: skip
    message = {"version": "4.0", "id": str(number), "timestamp": stamp(moment), "sensorId": sensor}
    return json.dumps({**message, "objects": objects}).encode()


def in_wrapper(payload: bytes, sensor: str) -> bytes:
    """The message as DeepStream's MQTT adaptor wraps it, sent at `TIME`."""

    def field(number: int, data: bytes) -> bytes:
        size, left = bytearray(), len(data)
        while left > 0x7F:
            size.append(left & 0x7F | 0x80)
            left >>= 7
        return bytes([number << 3 | 2, *size, left]) + data

    return field(1, payload) + field(2, sensor.encode()) + field(3, str(int(TIME)).encode())


def in_form(
    form: str, seen: Sequence[Seen], *, number: int = 450, moment: float = TIME, sensor: str = "front"
) -> list[bytes]:
    """The messages of one frame; in the full form one for each object."""
    if form == "full":
        return [full(one, moment=moment, sensor=sensor) for one in seen]
    write = {"minimal": minimal, "protobuf": protobuf, "frame-json": frame_json}[form]
    return [write(seen, number=number, moment=moment, sensor=sensor)]
