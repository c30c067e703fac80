"""Properties of MQTT 5 messages, packed once and reused: packing them with paho takes longer than sending."""

from __future__ import annotations

from dataclasses import dataclass

from edge_agent.core.mqtt import properties

__all__ = ["CLOUDEVENTS_JSON", "TRACEPARENT_LENGTH", "MessageOptions", "PackedProperties", "PropertyPacker"]

CLOUDEVENTS_JSON = "application/cloudevents+json"
TRACEPARENT_LENGTH = 55
_TRACEPARENT = b"\x26\x00\x0btraceparent\x00\x37"
"""User property `traceparent` (MQTT 5, section 2.2.2) up to its value, which has 55 characters."""


@dataclass(frozen=True, slots=True)
class MessageOptions:
    """Properties of a message in MQTT 5; 3.1.1 has none.

    Attributes:
        schema: user property `schema`, "" for none.
        expiry_s: the broker drops the message after this time; None for never.
        correlation: correlation data of the command that the message answers.
        content_type: of the payload.
    """

    schema: str = ""
    expiry_s: int | None = None
    correlation: bytes | None = None
    content_type: str = CLOUDEVENTS_JSON


class PackedProperties:
    """Packed properties of a PUBLISH; paho calls only `pack`."""

    __slots__ = ("_body",)

    def __init__(self, body: bytes) -> None:
        self._body = body

    def pack(self) -> bytes:
        """Return the properties as they appear in the packet."""
        return self._body


class PropertyPacker:
    """Packs the properties of messages and caches them by their options."""

    def __init__(self) -> None:
        self._cache: dict[MessageOptions, tuple[bytes, bytes]] = {}

    def pack(self, options: MessageOptions, traceparent: str) -> PackedProperties:
        """Return the packed properties, with the user property `traceparent` unless that is empty."""
        if options.correlation is not None:
            return PackedProperties(_with_length(_packed(options)))
        cached = self._cache.get(options)
        if cached is None:
            plain = _packed(options)
            traced = _with_length(plain + _TRACEPARENT + bytes(TRACEPARENT_LENGTH))[:-TRACEPARENT_LENGTH]
            cached = self._cache[options] = (_with_length(plain), traced)
        return PackedProperties(cached[1] + traceparent.encode() if traceparent else cached[0])


def _with_length(body: bytes) -> bytes:
    """Prefix properties with their length, a variable byte integer (MQTT 5, section 1.5.5)."""
    length = len(body)
    head = bytearray()
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head) + body


def _packed(options: MessageOptions) -> bytes:
    """Properties of a PUBLISH, packed by paho, without their length."""
    from paho.mqtt.properties import VariableByteIntegers

    made = properties("PUBLISH", ContentType=options.content_type, PayloadFormatIndicator=1)
    if options.schema:
        made.UserProperty = ("schema", options.schema)
    if options.expiry_s is not None:
        made.MessageExpiryInterval = options.expiry_s
    if options.correlation is not None:
        made.CorrelationData = options.correlation
    whole: bytes = made.pack()
    _, skip = VariableByteIntegers.decode(whole)  # type: ignore[no-untyped-call]
    return whole[skip:]
