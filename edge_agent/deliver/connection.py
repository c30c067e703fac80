"""One MQTT connection at a time, driven by the thread that owns it.

The thread and the reconnecting of paho are not used: every connection is a new `paho.mqtt.client.Client`
whose socket is read and written here when the owner calls `turn`. So there is one queue, the outbox, and
not a second one inside the client; no callback runs in parallel to the owner; and the state of a lost
connection disappears with its client. The callbacks only collect what happened; `turn` returns it.
"""

from __future__ import annotations

import contextlib
import re
import select
import socket
import ssl
import struct
import time
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from edge_agent.core.errors import BrokerRefused, BrokerUnreachable, DeliveryError, MessageTooLarge
from edge_agent.core.mqtt import (
    CONNECT_TIMEOUT_S,
    BrokerSettings,
    Incoming,
    connack_problem,
    connect_options,
    connect_problem,
    incoming,
    new_client,
    properties,
    silence_problem,
    tls_reason,
)
from edge_agent.deliver.freshness import session_expiry_s
from edge_agent.deliver.packets import CLOUDEVENTS_JSON, MessageOptions, PackedProperties, packet_size

if TYPE_CHECKING:
    from paho.mqtt.client import Client

    from edge_agent.deliver.rows import Row

WINDOW = 20
"""Messages without PUBACK: mosquitto's default limit, and the fastest for paho."""
RECEIVE_MAXIMUM = 65_535
"""Commands that the broker may send before it has our acknowledgement: the largest number. mosquitto 2.0
counts a message that it drops for `MAXIMUM_PACKET` as sent for ever: with a limit of 20, it stopped after
twenty of them."""
MAXIMUM_PACKET = 1 << 20
"""Bytes; the broker drops larger messages to us."""
WILL_DELAY_S = 5
"""How long the broker waits before it publishes the will."""
CONNECT_BYTES = 1000
"""More than CONNECT has, with the will and a login; with a lower limit a broker may close the connection."""
CLOSED = "the connection broke"
QOS_0_PASSED_S = 5.0
"""A message with QoS 0 has passed when the connection lasts this long after it."""


class ConnectionState(Enum):
    """State of the connection to the broker."""

    DISABLED = "disabled"
    """No broker is configured."""
    CONNECTING = "connecting"
    """TCP, TLS or MQTT handshake in progress."""
    CONNECTED = "connected"
    """The broker accepted the connection."""
    WAITING = "waiting"
    """Lost or unreachable; the next attempt follows after a growing wait."""
    REFUSED = "refused"
    """The broker refuses the login, certificate or protocol: the wait is long."""
    STOPPED = "stopped"
    """Closed on purpose."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a command: a message that is sent once and not kept on disk."""

    topic: str
    payload: bytes
    short: bytes
    """The result without its data, for a broker that does not take the payload."""
    options: MessageOptions


@dataclass(slots=True)  # not frozen: creating one for each message would take three times as long
class Sent:
    """A message without PUBACK, and when it was sent (monotonic seconds)."""

    at: float
    topic: str
    row: Row | None = None
    answer: Answer | None = None
    size: int = 0
    """Bytes of its packet."""
    is_plain: bool = False
    """Whether it has QoS 0: no acknowledgement will come."""

    @property
    def key(self) -> Hashable:
        """What it is, at this and at every later attempt."""
        if self.row is not None:
            return self.row.seq
        return self.answer or self.topic


@dataclass(slots=True)
class Happened:
    """Results of the callbacks since the last `turn`."""

    acks: list[tuple[Sent, int]] = field(default_factory=list)
    """Messages with the reason code of their PUBACK; 0 for MQTT 3.1.1, which has no codes."""
    messages: list[Incoming] = field(default_factory=list)
    passed: list[Sent] = field(default_factory=list)
    """Messages with QoS 0 after which the connection went on."""
    subscribed: list[int] = field(default_factory=list)
    """Reason codes of SUBACK."""


class WakePipe:
    """Ends a wait in `Connection.turn` from another thread. At most about one byte is in the pipe."""

    def __init__(self) -> None:
        self.reader, self._writer = socket.socketpair()
        self.reader.setblocking(False)
        self._writer.setblocking(False)
        self._signalled = False

    def signal(self) -> None:
        """End the present or the next wait."""
        if not self._signalled:
            self._signalled = True
            with contextlib.suppress(OSError):
                self._writer.send(b".")

    def clear(self) -> None:
        """Reset the signal; call it before reading the queues that it announces."""
        with contextlib.suppress(BlockingIOError):
            self.reader.recv(4096)
        self._signalled = False

    def close(self) -> None:
        """Close both ends."""
        self._writer.close()
        self.reader.close()


class Connection:
    """A connection to a broker. Not thread-safe: one thread owns it.

    Args:
        broker: address and login.
        client_id: two clients with one id disconnect each other.
        will: topic and payload of the retained message that the broker publishes when the connection ends
            without a DISCONNECT; None for none.
        wake: ends the wait inside `turn`; None for none.
    """

    def __init__(
        self,
        broker: BrokerSettings,
        *,
        client_id: str,
        will: tuple[str, bytes] | None = None,
        wake: WakePipe | None = None,
    ) -> None:
        self._broker = broker
        self._client_id = client_id
        self._will = will
        self._wake = wake
        self._client: Client | None = None
        self._happened = Happened()
        self._connack: Any = None
        self._lost: str | None = None
        self._trouble = ""
        self._window = WINDOW
        self.unsettled: dict[int, Sent] = {}
        """Messages without PUBACK by number, the oldest first; the owner clears it after a loss."""
        self._announced_maximum: int | None = None
        """Largest packet in bytes that the broker announced; None for no limit."""
        self.assumed_maximum: int | None = None
        """The same, as its owner has found out."""
        self.has_acks = False
        """Whether the broker has acknowledged a message on this connection."""
        self.loss_code: int | None = None
        """Reason code of the broker's DISCONNECT; None where it sent none."""
        self._can_retain = True
        self._maximum_qos = 1
        self._last_plain: Sent | None = None

    def open(self, *, clean_start: bool) -> None:
        """Connect and wait until the broker has accepted the connection.

        With `clean_start`, the broker forgets commands that waited for the agent; MQTT 3.1.1 cannot keep them
        for a bounded time, and so never keeps any.

        Raises:
            BrokerUnreachable: no answer, or the broker is not ready.
            BrokerRefused: the broker refuses the login, certificate or protocol.
        """
        self.close()
        self._happened = Happened()
        self._connack = self._lost = self.loss_code = self._last_plain = None
        self.has_acks = False
        self._trouble = ""
        client = self._new_client()
        options = connect_options(
            self._broker,
            clean_start=clean_start,  # False cancels the will of the old session
            SessionExpiryInterval=session_expiry_s(self._broker.settings.keepalive_s, WILL_DELAY_S),
            ReceiveMaximum=RECEIVE_MAXIMUM,
            MaximumPacketSize=MAXIMUM_PACKET,
        )
        try:
            client.connect(self._broker.host, self._broker.port, self._broker.settings.keepalive_s, **options)
        except OSError as problem:
            raise connect_problem(self._broker, problem) from problem
        self._client = client
        connected: Any = client.socket()
        with contextlib.suppress(OSError, AttributeError):  # small packets must not wait for an ACK
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        while self._connack is None and self._lost is None and time.monotonic() < deadline:
            self._exchange(deadline - time.monotonic(), watch_wake=False)
        if self._connack is None or self._connack.is_failure:
            refusal = self._refusal()
            self.close()
            raise refusal
        if self._maximum_qos < 1:
            self.close()
            raise BrokerRefused(f"broker {self._broker.url}: it does not support QoS 1, which events need")
        client.on_log = None  # needed for the handshake only; it costs time at every message

    def _refusal(self) -> DeliveryError:
        """Explain why there is no connection; the type of the error decides how long to wait."""
        if self._connack is not None:
            return connack_problem(self._broker, self._connack)
        if "ALERT" in self._trouble.upper():
            return BrokerRefused(f"broker {self._broker.url}: TLS failed: {self._trouble}")
        if self._lost is not None:
            return BrokerUnreachable(
                f"broker {self._broker.url}: connection lost before CONNACK: {self.loss};"
                f" it must take packets of {CONNECT_BYTES} bytes"
            )
        return silence_problem(self._broker)

    def close(self, *, goodbye: bool = False) -> None:
        """Close the connection; with `goodbye` (DISCONNECT) the broker discards the will."""
        client, self._client = self._client, None
        if client is None:
            return
        if goodbye:
            with contextlib.suppress(OSError, ValueError):
                client.disconnect()
        # paho has no call that closes the socket: `disconnect` alone waits for the broker.
        connected: Any = client.socket()
        if connected is not None:
            with contextlib.suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(OSError):
                client.loop_read()  # sees the end of the stream and closes
            with contextlib.suppress(OSError):
                connected.close()

    @property
    def is_open(self) -> bool:
        """Whether the broker accepted the connection and it was not lost."""
        return self._client is not None and self._lost is None

    @property
    def was_closed(self) -> bool:
        """Whether the broker, or something between, closed an accepted connection without a reason."""
        return self._lost == CLOSED and not self._trouble

    @property
    def loss(self) -> str:
        """Why the connection was lost, for people."""
        return self._trouble or self._lost or ""

    @property
    def room(self) -> int:
        """How many more messages may be sent with QoS 1 now."""
        return self._window - len(self.unsettled)

    def publish(
        self,
        sent: Sent,
        payload: bytes,
        options: MessageOptions,
        *,
        qos: int = 1,
        retain: bool = False,
        traceparent: str = "",
    ) -> int:
        """Send one message and return its number; with QoS 1 its PUBACK appears in `Happened.acks`.

        `traceparent`, of W3C Trace Context, is added as a user property.

        Raises:
            BrokerUnreachable: the connection is lost.
            MessageTooLarge: the broker does not take it; nothing was sent.
        """
        if self._client is None:
            raise BrokerUnreachable(f"broker {self._broker.url}: not connected")
        packed: Any = PackedProperties(options, traceparent) if self._broker.settings.version == "5" else None
        sent.is_plain = qos == 0
        sent.size = packet_size(sent.topic, len(payload), packed.pack() if packed else b"", qos)
        limit = self.packet_limit
        if limit is not None and sent.size > limit:
            raise MessageTooLarge(f"{sent.size} bytes; the broker takes at most {limit}")
        retain = retain and self._can_retain
        info = self._client.publish(sent.topic, payload, qos, retain, packed)
        if info.rc != 0:
            self._lost = self._lost or "write failed"
            raise BrokerUnreachable(f"broker {self._broker.url}: connection lost while writing")
        if qos:
            self.unsettled[info.mid] = sent
        else:
            self._note_passed()
            self._last_plain = sent
        return info.mid

    @property
    def packet_limit(self) -> int | None:
        """Largest packet in bytes that the broker takes, as far as is known; None for no limit."""
        known = [one for one in (self._announced_maximum, self.assumed_maximum) if one is not None]
        return min(known, default=None)

    @property
    def in_doubt(self) -> list[Sent]:
        """Messages for which the broker may have closed the connection: no sign shows that it took them."""
        last = self._last_plain
        plain = [last] if last is not None and time.monotonic() - last.at < QOS_0_PASSED_S else []
        return [*self.unsettled.values(), *plain]

    def forget(self, sent: Sent) -> None:
        """Do not count a message as unsettled any more: it will not be sent again."""
        self.unsettled = {number: one for number, one in self.unsettled.items() if one is not sent}

    def _note_passed(self) -> None:
        """Record that the broker took the last message with QoS 0: the connection went on after it."""
        passed, self._last_plain = self._last_plain, None
        if passed is not None:
            self._happened.passed.append(passed)

    def subscribe(self, topic: str) -> None:
        """Subscribe with QoS 1; the answer appears in `Happened.subscribed`."""
        if self._client is not None:
            self._client.subscribe(topic, 1)

    def turn(self, timeout: float) -> Happened:
        """Read and write what is due, after waiting at most `timeout` seconds for it."""
        self._exchange(timeout, watch_wake=True)
        happened, self._happened = self._happened, Happened()
        return happened

    def _exchange(self, timeout: float, *, watch_wake: bool) -> None:
        client = self._client
        connected = client.socket() if client is not None else None
        if client is None or connected is None:
            self._lost = self._lost or "connection closed"
            return
        wake = self._wake if watch_wake else None
        waiting = [connected] if wake is None else [connected, wake.reader]
        buffered = isinstance(connected, ssl.SSLSocket) and connected.pending() > 0
        readable, writable, _ = select.select(
            waiting, [connected] if client.want_write() else [], [], 0.0 if buffered else max(timeout, 0.0)
        )
        if wake is not None and wake.reader in readable:
            wake.clear()
        if connected in readable or buffered:
            try:
                client.loop_read()
            except (ValueError, KeyError, struct.error) as problem:  # paho before 2.2, at an unlisted reason
                self._lost = f"protocol error: {problem}"
                return
        if writable:
            client.loop_write()
        client.loop_misc()

    def _new_client(self) -> Client:
        client = new_client(self._broker, self._client_id)
        client.max_inflight_messages_set(0)  # the owner keeps to `room`
        will_properties = None
        if self._broker.settings.version == "5":
            will_properties = properties(
                "WILLMESSAGE",
                WillDelayInterval=WILL_DELAY_S,
                ContentType=CLOUDEVENTS_JSON,
                PayloadFormatIndicator=1,
            )
        if self._will is not None:
            client.will_set(*self._will, qos=1, retain=True, properties=will_properties)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_message = lambda _client, _data, message: self._happened.messages.append(incoming(message))
        client.on_subscribe = lambda _client, _data, _mid, reasons, _properties: (
            self._happened.subscribed.extend(reason.value for reason in reasons)
        )
        client.on_log = self._on_log
        client.on_socket_close = self._on_socket_close
        return client

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: Any, properties: Any) -> None:  # noqa: ANN401
        self._connack = reason
        self._window = min(WINDOW, getattr(properties, "ReceiveMaximum", None) or WINDOW)
        self._maximum_qos = getattr(properties, "MaximumQoS", 1)
        self._can_retain = bool(getattr(properties, "RetainAvailable", 1))
        self._announced_maximum = getattr(properties, "MaximumPacketSize", None)

    def _on_disconnect(self, _client: Any, _data: Any, flags: Any, reason: Any, _properties: Any) -> None:  # noqa: ANN401
        if flags.is_disconnect_packet_from_server:
            self.loss_code = int(reason.value)
        # paho reports 128 when the connection broke without a DISCONNECT.
        self._lost = CLOSED if reason.value == 128 and self.loss_code is None else str(reason)

    def _on_publish(self, _client: Any, _data: Any, mid: int, reason: Any, _properties: Any) -> None:  # noqa: ANN401
        sent = self.unsettled.pop(mid, None)
        if sent is not None:
            self.has_acks = True
            if self._last_plain is not None and self._last_plain.at < sent.at:
                self._note_passed()
            self._happened.acks.append((sent, int(reason.value)))

    def _on_socket_close(self, _client: Any, _data: Any, closing: Any) -> None:  # noqa: ANN401
        """Read the TLS alert: a refused certificate may first appear as a failed write, the alert unread."""
        if self._connack is None and isinstance(closing, ssl.SSLSocket):
            try:
                closing.recv(1)
            except ssl.SSLError as problem:
                if "ALERT" in str(problem).upper():
                    self._trouble = tls_reason(problem)
            except OSError:
                return

    def _on_log(self, _client: Any, _data: Any, _level: int, text: str) -> None:  # noqa: ANN401
        """Find a TLS alert that comes after the handshake: paho only logs it."""
        if "failed to receive on socket" in text or "failed to send" in text:
            named = re.search(r"\[SSL: (\w+)\]", text)  # else it has the position in the source
            self._trouble = named[1] if named else text.partition(": ")[2]
