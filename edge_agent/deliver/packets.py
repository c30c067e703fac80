"""Properties and size of the messages that are sent: PUBLISH (MQTT 5, section 3.3)."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from edge_agent.core.mqtt import properties

CLOUDEVENTS_JSON = "application/cloudevents+json"
_TRACEPARENT = b"\x26\x00\x0btraceparent\x00\x37"
"""User property `traceparent` (MQTT 5, section 2.2.2) up to its value, which has 55 characters."""
_TRACEPARENT_LENGTH = 55


@dataclass(frozen=True, slots=True)
class MessageOptions:
    """Properties of a message in MQTT 5; 3.1.1 has none."""

    schema: str = ""
    """User property `schema`, "" for none."""
    expiry_s: int | None = None
    """The broker drops the message after this time; None for never."""
    correlation: bytes | None = None
    """Correlation data of the command that the message answers."""
    content_type: str = CLOUDEVENTS_JSON


def packet_size(topic: str, payload: int, packed_properties: bytes, qos: int) -> int:
    """Return the bytes of a PUBLISH (MQTT 5, section 3.3); `payload` is the length of the payload."""
    named = len(topic) if topic.isascii() else len(topic.encode())
    rest = 2 + named + (2 if qos else 0) + len(packed_properties) + payload
    return 1 + (1 + (rest > 0x7F) + (rest > 0x3FFF) + (rest > 0x1FFFFF)) + rest


class PackedProperties:
    """Packed properties of a PUBLISH; paho calls only `pack`."""

    __slots__ = ("_body",)

    def __init__(self, options: MessageOptions, traceparent: str) -> None:
        packed = _packed(options, traced=bool(traceparent))
        self._body = packed + traceparent.encode() if traceparent else packed

    def pack(self) -> bytes:
        """Return the properties as they appear in the packet."""
        return self._body


@functools.lru_cache(maxsize=64)  # packing with paho takes longer than sending
def _packed(options: MessageOptions, *, traced: bool) -> bytes:
    """Properties of a PUBLISH with their length; where `traced`, only the value of `traceparent` lacks."""
    from paho.mqtt.properties import VariableByteIntegers

    made = properties("PUBLISH", ContentType=options.content_type, PayloadFormatIndicator=1)
    if options.schema:
        made.UserProperty = ("schema", options.schema)
    if options.expiry_s is not None:
        made.MessageExpiryInterval = options.expiry_s
    if options.correlation is not None:
        made.CorrelationData = options.correlation
    whole: bytes = made.pack()
    length, skip = VariableByteIntegers.decode(whole)  # type: ignore[no-untyped-call]
    if not traced:
        return whole
    length += len(_TRACEPARENT) + _TRACEPARENT_LENGTH
    head: bytes = VariableByteIntegers.encode(length)  # type: ignore[no-untyped-call]
    return head + whole[skip:] + _TRACEPARENT
