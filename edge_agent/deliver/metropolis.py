"""Identity events in the forms that consumers of NVIDIA Metropolis read.

Both are what DeepStream's Gst-nvmsgconv writes, for one person: its full JSON schema, and `nv.Frame` of its
protobuf schema. `object.id` is the identity, `UNTRACKED` without one; `info` has what the schemas have no
place for, as text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from edge_agent import __version__
from edge_agent.core.nv_frame import UNTRACKED, NvFrame, NvObject, encode_frame
from edge_agent.core.timing import parse_time

LABEL = "Person"
CONFIDENCE = 1.0
"""Of the detector: an event has none, and nvmsgconv writes this where it has none."""
EVENT_TYPES: Mapping[str, str] = MappingProxyType(
    {"matched": "entry", "enrolled": "entry", "unknown": "entry", "corrected": "moving", "departed": "exit"}
)
"""Type of the event in nvmsgconv's schema by the kind of an identity event."""
_PLACE = {"lat": 0.0, "lon": 0.0, "alt": 0.0}
_POINT = {"x": 0.0, "y": 0.0, "z": 0.0}
_INFO = (
    "name", "score", "number", "kind", "reason", "threshold", "track_id", "previous_identity_id", "corrects",
)  # fmt: skip
"""Keys of the event's data that go into `info`, unless they are null or empty."""


def to_json(event: Mapping[str, Any]) -> bytes:
    """Return nvmsgconv's full JSON of an identity event (the message as a JSON object)."""
    data, source = event["data"], event["source"]
    site = source.split("/")[2]
    left, top, right, bottom = (round(edge) for edge in _box(data))
    document = {
        "messageid": event["id"],
        "mdsversion": "1.0",
        "@timestamp": data["frame_time"],
        "place": {"id": site, "name": site, "type": "", "location": _PLACE},
        "sensor": {
            "id": data["camera"], "type": "Camera", "description": "",
            "location": _PLACE, "coordinate": _POINT,
        },
        "analyticsModule": {
            "id": "edge-agent", "description": data["model"]["name"],
            "source": source, "version": __version__,
        },
        "object": {
            "id": data["identity_id"] or UNTRACKED,
            "speed": 0.0, "direction": 0.0, "orientation": 0.0,
            "person": {
                "age": 0, "gender": "", "hair": "", "cap": "", "apparel": "", "confidence": CONFIDENCE,
            },
            "bbox": {"topleftx": left, "toplefty": top, "bottomrightx": right, "bottomrighty": bottom},
            "location": _PLACE, "coordinate": _POINT, "pose": {},
            "info": _info(event),
        },
        "event": {"id": event["id"], "type": EVENT_TYPES.get(data["kind"], "moving")},
        "videoPath": "",
    }  # fmt: skip
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def to_frame(event: Mapping[str, Any]) -> bytes:
    """Return the `nv.Frame` of an identity event: one object, in the frame of the decision.

    DeepStream counts frames from 0.
    """
    data = event["data"]
    one = NvObject(data["identity_id"] or UNTRACKED, _box(data), LABEL, CONFIDENCE, _info(event))
    frame = NvFrame(data["camera"], str(max(data["frame"] - 1, 0)), parse_time(data["frame_time"]), [one])
    return encode_frame(frame)


FORMS: Mapping[str, Callable[[Mapping[str, Any]], bytes]] = MappingProxyType(
    {"json": to_json, "protobuf": to_frame}
)
"""By `metropolis.format`."""


def _box(data: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """The box in pixels; 0 where the event is of a version that did not state the size of the frame."""
    width, height = data.get("frame_size") or (0, 0)
    x1, y1, x2, y2 = data["bbox"]
    return x1 * width, y1 * height, x2 * width, y2 * height


def _info(event: Mapping[str, Any]) -> dict[str, str]:
    data = event["data"]
    found = {key: data.get(key) for key in _INFO}
    found |= {"event": event["id"], "seq": event.get("seq"), "device": event["source"]}
    return {key: str(one) for key, one in found.items() if one not in (None, "")}
