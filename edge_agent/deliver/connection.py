"""One MQTT connection at a time, driven by the thread that owns it.

The thread and the re-connecting of paho are not used: every connection is a new `paho.mqtt.client.Client`
whose socket this module reads and writes when its owner says so (`turn`). So there is one queue, the outbox,
and not a second one inside the client; no callback runs beside the owner; and what a lost connection leaves
behind goes with its client. The callbacks only mark what happened; `turn` hands it out.
"""

from __future__ import annotations

import contextlib
import random
import re
import select
import socket
import ssl
import time
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urlsplit

from edge_agent.core.errors import BrokerUnreachable, ConfigError, DeliveryError

if TYPE_CHECKING:
    from paho.mqtt.client import Client

__all__ = [
    "Backoff",
    "BrokerRefused",
    "BrokerSettings",
    "Connection",
    "ConnectionState",
    "Incoming",
    "MessageOptions",
    "Will",
    "connack_problem",
    "connect_problem",
    "incoming",
    "new_client",
    "silence_problem",
]

CONNECT_TIMEOUT_S = 5.0
"""For TCP and TLS together; and again for the broker's CONNACK."""
CLOUDEVENTS_JSON = "application/cloudevents+json"
RECEIVE_MAXIMUM = 20
"""Commands that the broker may send before it has our acknowledgement."""
MAXIMUM_PACKET = 1 << 20
"""Bytes; larger messages the broker drops before they reach us."""


class ConnectionState(Enum):
    """Where the connection to the broker stands."""

    DISABLED = "disabled"
    """No broker is configured."""
    CONNECTING = "connecting"
    """TCP, TLS or MQTT handshake under way."""
    CONNECTED = "connected"
    """The broker accepted us."""
    WAITING = "waiting"
    """Lost or unreachable; the next attempt comes after a growing wait."""
    REFUSED = "refused"
    """The broker does not let us in (user, password, certificate, protocol): the wait is long."""
    STOPPED = "stopped"
    """Closed on purpose."""


class BrokerRefused(DeliveryError):
    """The broker does not let us in, and trying again soon will not help."""


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """Where the broker is and how to talk to it.

    Attributes:
        host, port: its address.
        tls: encrypt, with the certificates of `ca_file` or of the system.
        username, password: None for none; `password` is never shown.
        ca_file, cert_file, key_file: PEM files; the last two for mutual TLS.
        version: MQTT version. 3.1.1 has no reason codes: refused messages then look delivered.
        keepalive_s: a dead broker is noticed after about twice this when nothing is sent.
        session_expiry_s: how long the broker keeps our command subscription while we are away.
        will_delay_s: how long the broker waits before it calls us offline.
    """

    host: str
    port: int
    tls: bool = False
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    version: Literal["5", "3.1.1"] = "5"
    keepalive_s: int = 15
    session_expiry_s: int = 3600
    will_delay_s: int = 5

    @staticmethod
    def parse(url: str, **settings: Any) -> BrokerSettings:  # noqa: ANN401 - the fields of this class
        """Settings from `mqtt://[USER[:PASSWORD]@]HOST[:PORT]` or `mqtts://...`; keywords win over it.

        Raises:
            ConfigError: the address is none; the message does not repeat its password.
        """
        try:
            parts = urlsplit(url if "://" in url else f"mqtt://{url}")
            port = parts.port
        except ValueError as problem:
            raise ConfigError("the broker's address cannot be read; write mqtt://HOST:PORT") from problem
        if parts.scheme not in {"mqtt", "mqtts"} or not parts.hostname:
            raise ConfigError(
                f"broker: {parts.scheme}://{parts.hostname or ''} is no broker; write mqtt://HOST:PORT, or"
                " mqtts://HOST:PORT for TLS"
            )
        if parts.path not in {"", "/"} or parts.query:
            raise ConfigError("broker: mqtt://HOST:PORT is followed by a path, which MQTT has not")
        tls = parts.scheme == "mqtts"
        found: dict[str, Any] = {
            "username": unquote(parts.username) if parts.username else None,
            "password": unquote(parts.password) if parts.password else None,
        }
        found.update({key: value for key, value in settings.items() if value is not None})
        broker = BrokerSettings(parts.hostname, port or (8883 if tls else 1883), tls, **found)
        broker._check()
        return broker

    def _check(self) -> None:
        files = {"ca_file": self.ca_file, "cert_file": self.cert_file, "key_file": self.key_file}
        named = [name for name, path in files.items() if path is not None]
        if named and not self.tls:
            raise ConfigError(f"{named[0]} is given, but mqtt:// is not encrypted: write mqtts://{self.host}")
        if (self.cert_file is None) != (self.key_file is None):
            raise ConfigError("cert_file and key_file go together: give both or none")
        if self.password is not None and self.username is None:
            raise ConfigError("a broker password is given without a username")

    @property
    def is_loopback(self) -> bool:
        """Whether what is sent stays on this machine."""
        return self.host in {"localhost", "::1"} or self.host.startswith("127.")

    @property
    def url(self) -> str:
        """Address without user and password, for logs."""
        return f"{'mqtts' if self.tls else 'mqtt'}://{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker publishes, retained, when we are gone without a word."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message that came in.

    Attributes:
        topic, payload: as published.
        retained: it was stored at the broker before we subscribed.
        response_topic, correlation: where and with what the sender wants the answer; None without.
        expiry_s: seconds until the sender considers it void; None without.
    """

    topic: str
    payload: bytes
    retained: bool
    response_topic: str | None = None
    correlation: bytes | None = None
    expiry_s: int | None = None


@dataclass(frozen=True, slots=True)
class MessageOptions:
    """What MQTT 5 carries beside a message; 3.1.1 has nothing of it.

    Attributes:
        schema: user property `schema`, "" for none.
        expiry_s: the broker drops the message after this; None for never.
        correlation: echoed to the sender of a command.
        content_type: of the payload.
    """

    schema: str = ""
    expiry_s: int | None = None
    correlation: bytes | None = None
    content_type: str = CLOUDEVENTS_JSON


NO_OPTIONS = MessageOptions()


class Backoff:
    """Waits between attempts: doubling with jitter, and a long one after a refusal.

    Jitter spreads a fleet whose broker came back: each wait is drawn between half and all of its bound.
    """

    def __init__(self, *, first_s: float = 1.0, longest_s: float = 60.0, refused_s: float = 300.0) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._refused_s = refused_s
        self._failures = 0

    def after_success(self) -> None:
        """Begin anew with short waits."""
        self._failures = 0

    def next_wait(self, *, refused: bool) -> float:
        """Seconds to wait now."""
        bound = min(self._first_s * 2.0**self._failures, self._longest_s)
        self._failures = min(self._failures + 1, 30)
        bound = max(bound, self._refused_s) if refused else bound
        return bound * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing


@dataclass(slots=True)
class Happened:
    """What the callbacks marked since the last `turn`."""

    acks: list[tuple[int, int]] = field(default_factory=list)
    """Message number and reason code of each PUBACK; 0 for MQTT 3.1.1, which has no codes."""
    messages: list[Incoming] = field(default_factory=list)
    subscribed: list[int] = field(default_factory=list)
    """Reason codes of SUBACK."""


class Connection:
    """A connection to a broker. Not thread-safe: one thread owns it.

    Args:
        broker: where and how.
        client_id: who we are to the broker; two clients with one id throw each other out.
        will: published by the broker when we vanish.
        wake: read end of a pipe; a byte in it ends the wait inside `turn`.
    """

    def __init__(self, broker: BrokerSettings, *, client_id: str, will: Will, wake: socket.socket) -> None:
        self._broker = broker
        self._client_id = client_id
        self._will = will
        self._wake = wake
        self._client: Client | None = None
        self._happened = Happened()
        self._connack: Any = None
        self._lost: str | None = None
        self._trouble = ""
        self._packed: dict[MessageOptions, tuple[bytes, bytes]] = {}
        self.receive_maximum = RECEIVE_MAXIMUM
        self.maximum_packet: int | None = None

    # --- coming and going ---------------------------------------------------------------------------------

    def open(self) -> None:
        """Connect and wait until the broker has accepted us.

        Raises:
            BrokerUnreachable: no answer, or it is not ready.
            BrokerRefused: it does not let us in.
        """
        self.close()
        self._happened = Happened()
        self._connack = self._lost = None
        self._trouble = ""
        client = self._new_client()
        try:
            client.connect(
                self._broker.host, self._broker.port, self._broker.keepalive_s, **self._connect_options()
            )
        except OSError as problem:
            raise connect_problem(self._broker, problem) from problem
        self._client = client
        _set_option(client.socket(), socket.TCP_NODELAY, 1)  # small packets must not wait for an ACK
        self._await_connack()

    def _await_connack(self) -> None:
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        while self._connack is None and self._lost is None and time.monotonic() < deadline:
            self._exchange(deadline - time.monotonic(), watch_wake=False)
        if self._client is not None and self._connack is not None and not self._connack.is_failure:
            self._client.on_log = None  # it was for the handshake, and would cost at every message
            return
        problem = self._refusal()
        self.close()
        raise problem

    def _refusal(self) -> DeliveryError:
        """Why there is no connection, as an error that says how long to wait."""
        if self._connack is not None:
            return connack_problem(self._broker, self._connack)
        if "ALERT" in self._trouble.upper():
            return BrokerRefused(self._said(f"TLS failed: {self._trouble}"))
        if self._lost is not None:
            return BrokerUnreachable(
                self._said(f"connection lost before CONNACK: {self._trouble or self._lost}")
            )
        return silence_problem(self._broker)

    def _said(self, text: str) -> str:
        return f"broker {self._broker.url}: {text}"

    def close(self, *, goodbye: bool = False) -> None:
        """Let the connection go; with `goodbye` the broker forgets the will."""
        client, self._client = self._client, None
        if client is None:
            return
        if goodbye:
            with contextlib.suppress(OSError, ValueError):
                client.disconnect()
        self._hang_up(client)

    @staticmethod
    def _hang_up(client: Client) -> None:
        """Close the socket, for which paho has no call: `disconnect` alone waits for the broker."""
        connected: Any = client.socket()
        if connected is not None:
            with contextlib.suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(OSError):
                client.loop_read()  # notices the end and closes
            with contextlib.suppress(OSError):
                connected.close()

    @property
    def is_open(self) -> bool:
        """Whether the broker accepted us and the connection was not lost."""
        return self._client is not None and self._lost is None

    @property
    def loss(self) -> str:
        """Why the connection was lost, for people."""
        return self._trouble or self._lost or ""

    # --- traffic ------------------------------------------------------------------------------------------

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int,
        retain: bool = False,
        options: MessageOptions = NO_OPTIONS,
        traceparent: str = "",
    ) -> int:
        """Send one message; returns the number under which its PUBACK comes.

        `traceparent`, of W3C Trace Context, goes with it as a user property.

        Raises:
            BrokerUnreachable: the connection is gone.
        """
        if self._client is None:
            raise BrokerUnreachable(self._said("not connected"))
        properties = self._properties(options, traceparent) if self._broker.version == "5" else None
        info = self._client.publish(topic, payload, qos, retain, properties)
        if info.rc != 0:
            self._lost = self._lost or "write failed"
            raise BrokerUnreachable(self._said("connection lost while writing"))
        return info.mid

    def subscribe(self, topic: str) -> None:
        """Ask for messages with QoS 1; the answer comes as `Happened.subscribed`."""
        if self._client is not None:
            self._client.subscribe(topic, 1)

    def turn(self, timeout: float) -> Happened:
        """Read and write what is due, waiting at most `timeout` seconds for anything to do."""
        self._exchange(timeout, watch_wake=True)
        happened, self._happened = self._happened, Happened()
        return happened

    def _exchange(self, timeout: float, *, watch_wake: bool) -> None:
        client = self._client
        connected = client.socket() if client is not None else None
        if client is None or connected is None:
            self._lost = self._lost or "connection closed"
            return
        waiting = [connected, self._wake] if watch_wake else [connected]
        buffered = isinstance(connected, ssl.SSLSocket) and connected.pending() > 0
        readable, writable, _ = select.select(
            waiting, [connected] if client.want_write() else [], [], 0.0 if buffered else max(timeout, 0.0)
        )
        if self._wake in readable:
            with contextlib.suppress(BlockingIOError):
                self._wake.recv(4096)
        if connected in readable or buffered:
            client.loop_read()
        if writable:
            client.loop_write()
        client.loop_misc()

    # --- paho ---------------------------------------------------------------------------------------------

    def _new_client(self) -> Client:
        client = new_client(self._broker, self._client_id)
        client.max_inflight_messages_set(0)  # the owner keeps to `receive_maximum`
        client.will_set(
            self._will.topic, self._will.payload, qos=1, retain=True, properties=self._will_options()
        )
        client.on_connect = self._mark_connack
        client.on_disconnect = self._mark_lost
        client.on_publish = self._mark_ack
        client.on_message = self._mark_message
        client.on_subscribe = self._mark_subscribed
        client.on_log = self._mark_log
        client.on_socket_close = self._mark_closing
        return client

    def _connect_options(self) -> dict[str, Any]:
        if self._broker.version != "5":
            return {}
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties

        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho's are not typed
        properties.SessionExpiryInterval = self._broker.session_expiry_s
        properties.ReceiveMaximum = RECEIVE_MAXIMUM
        properties.MaximumPacketSize = MAXIMUM_PACKET
        # Not a clean start: the old session's will is then cancelled, and waiting commands come.
        return {"clean_start": False, "properties": properties}

    def _will_options(self) -> Any:  # noqa: ANN401 - paho's Properties, imported late
        if self._broker.version != "5":
            return None
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties

        properties = Properties(PacketTypes.WILLMESSAGE)  # type: ignore[no-untyped-call]  # paho's are not typed
        properties.WillDelayInterval = self._broker.will_delay_s
        properties.ContentType = CLOUDEVENTS_JSON
        properties.PayloadFormatIndicator = 1
        return properties

    def _properties(self, options: MessageOptions, traceparent: str) -> Any:  # noqa: ANN401 - as paho's
        """Properties of a message. Making paho's takes longer than sending, so equal ones are kept packed."""
        if options.correlation is not None:
            return _Packed(_with_length(_packed_properties(options)))
        packed = self._packed.get(options)
        if packed is None:
            plain = _packed_properties(options)
            traced = _with_length(plain + _TRACEPARENT + bytes(TRACEPARENT_LENGTH))[:-TRACEPARENT_LENGTH]
            packed = self._packed[options] = (_with_length(plain), traced)
        return _Packed(packed[1] + traceparent.encode() if traceparent else packed[0])

    def _mark_connack(self, _client: Any, _data: Any, _flags: Any, reason: Any, properties: Any) -> None:  # noqa: ANN401
        self._connack = reason
        limit = getattr(properties, "ReceiveMaximum", None)
        self.receive_maximum = min(RECEIVE_MAXIMUM, limit) if limit else RECEIVE_MAXIMUM
        self.maximum_packet = getattr(properties, "MaximumPacketSize", None)

    def _mark_lost(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:  # noqa: ANN401
        # 128 is what paho says when the line broke without a word.
        self._lost = "the line broke" if reason.value == 128 else str(reason)

    def _mark_ack(self, _client: Any, _data: Any, mid: int, reason: Any, _properties: Any) -> None:  # noqa: ANN401
        self._happened.acks.append((mid, int(reason.value)))

    def _mark_subscribed(self, _client: Any, _data: Any, _mid: int, reasons: Any, _properties: Any) -> None:  # noqa: ANN401
        self._happened.subscribed.extend(int(reason.value) for reason in reasons)

    def _mark_message(self, _client: Any, _data: Any, message: Any) -> None:  # noqa: ANN401
        self._happened.messages.append(incoming(message))

    def _mark_closing(self, _client: Any, _data: Any, closing: Any) -> None:  # noqa: ANN401
        """A refused certificate may first show as a failed write; the alert that says why is still unread."""
        if self._connack is None and isinstance(closing, ssl.SSLSocket):
            try:
                closing.recv(1)
            except ssl.SSLError as problem:
                if "ALERT" in str(problem).upper():
                    self._trouble = _tls_reason(problem)
            except OSError:
                return

    def _mark_log(self, _client: Any, _data: Any, _level: int, text: str) -> None:  # noqa: ANN401
        """A TLS alert that comes after the handshake is told by paho only to its log."""
        if "failed to receive on socket" in text or "failed to send" in text:
            named = re.search(r"\[SSL: (\w+)\]", text)  # else it names the place in OpenSSL's source, too
            self._trouble = named[1] if named else text.partition(": ")[2]


def new_client(broker: BrokerSettings, client_id: str, *, reconnect: bool = False) -> Client:
    """A client of paho that knows the broker's user and certificates, not yet connected.

    Raises:
        BrokerRefused: one of the PEM files cannot be used.
    """
    from paho.mqtt import client as mqtt
    from paho.mqtt.enums import CallbackAPIVersion

    five = broker.version == "5"
    client = mqtt.Client(
        CallbackAPIVersion.VERSION2,
        client_id=client_id,
        clean_session=None if five else not client_id,
        protocol=mqtt.MQTTv5 if five else mqtt.MQTTv311,
        reconnect_on_failure=reconnect,
    )
    client.connect_timeout = CONNECT_TIMEOUT_S
    if broker.username is not None:
        client.username_pw_set(broker.username, broker.password)
    if broker.tls:
        client.tls_set_context(_tls_context(broker))
    return client


def _tls_context(broker: BrokerSettings) -> ssl.SSLContext:
    """TLS 1.2 or newer; certificates and host name are checked."""
    try:
        context = ssl.create_default_context(cafile=broker.ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if broker.cert_file is not None:
            context.load_cert_chain(broker.cert_file, broker.key_file)
    except OSError as problem:  # SSLError is one
        files = ", ".join(str(f) for f in (broker.ca_file, broker.cert_file, broker.key_file) if f)
        raise BrokerRefused(
            f"broker {broker.url}: cannot use the certificates {files}: {problem}"
        ) from problem
    return context


def incoming(message: Any) -> Incoming:  # noqa: ANN401 - paho's MQTTMessage, imported late
    """A message of paho as ours."""
    sent = message.properties
    return Incoming(
        topic=message.topic,
        payload=bytes(message.payload),
        retained=bool(message.retain),
        response_topic=getattr(sent, "ResponseTopic", None),
        correlation=getattr(sent, "CorrelationData", None),
        expiry_s=getattr(sent, "MessageExpiryInterval", None),
    )


def connect_problem(broker: BrokerSettings, problem: OSError) -> DeliveryError:
    """What `connect` of paho raised, as an error that says whether trying again helps."""
    if isinstance(problem, ssl.SSLError):
        return BrokerRefused(f"broker {broker.url}: TLS failed: {_tls_reason(problem)}")
    return BrokerUnreachable(f"broker {broker.url}: {problem.strerror or problem}")


def silence_problem(broker: BrokerSettings) -> DeliveryError:
    """Why a broker answers nothing to CONNECT, as an error that says whether trying again helps.

    A TLS handshake that was finished shows that it lives; with TLS 1.3 it refuses a certificate after that.
    """
    said = f"broker {broker.url}: no CONNACK in {CONNECT_TIMEOUT_S:g} s"
    if broker.tls:
        return BrokerRefused(
            f"{said} after the TLS handshake, and no alert: it refuses the certificate or the login; check"
            " mqtt.cert_file, mqtt.key_file, username and password"
        )
    return BrokerUnreachable(f"{said}: it hangs, wants TLS (mqtts://), or is no MQTT broker")


def connack_problem(broker: BrokerSettings, reason: Any) -> DeliveryError:  # noqa: ANN401 - paho's ReasonCode
    """Why the broker did not accept us, as an error that says whether trying again helps."""
    kind = BrokerRefused if reason.value in _REFUSALS else BrokerUnreachable
    return kind(f"broker {broker.url}: {reason}{_ADVICE.get(reason.value, '')}")


class _Packed:
    """Properties of a PUBLISH, packed before: all that paho asks of them is `pack`."""

    __slots__ = ("_body",)

    def __init__(self, body: bytes) -> None:
        self._body = body

    def pack(self) -> bytes:
        """The properties as they stand in the packet."""
        return self._body


def _with_length(body: bytes) -> bytes:
    """Properties after their length, a variable byte integer (MQTT 5, section 1.5.5)."""
    length = len(body)
    head = bytearray()
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head) + body


_TRACEPARENT = b"\x26\x00\x0btraceparent\x00\x37"
"""User property `traceparent` (MQTT 5, section 2.2.2) up to its value, which has 55 characters."""
TRACEPARENT_LENGTH = 55


def _packed_properties(options: MessageOptions) -> bytes:
    """Properties of a PUBLISH, packed by paho, without their length."""
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties, VariableByteIntegers

    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho's are not typed
    properties.ContentType = options.content_type
    properties.PayloadFormatIndicator = 1
    if options.schema:
        properties.UserProperty = ("schema", options.schema)
    if options.expiry_s is not None:
        properties.MessageExpiryInterval = options.expiry_s
    if options.correlation is not None:
        properties.CorrelationData = options.correlation
    whole: bytes = properties.pack()  # type: ignore[no-untyped-call]
    _, skip = VariableByteIntegers.decode(whole)  # type: ignore[no-untyped-call]
    return whole[skip:]


def _set_option(connected: Any, option: int, value: int) -> None:  # noqa: ANN401 - a socket, bare or TLS
    with contextlib.suppress(OSError, AttributeError):
        connected.setsockopt(socket.IPPROTO_TCP, option, value)


def _tls_reason(problem: ssl.SSLError) -> str:
    """What OpenSSL says, without the place in its source."""
    if isinstance(problem, ssl.SSLCertVerificationError):
        return f"the broker's certificate is not accepted: {problem.verify_message}"
    return str(problem.reason or problem)


_REFUSALS = frozenset({132, 133, 134, 135, 138, 140, 144})
"""CONNACK codes after which trying again soon does not help: protocol version, client id, user or password,
not authorised, banned, authentication method, will topic."""
_ADVICE = MappingProxyType(
    {
        132: "; set mqtt.version to the one it speaks",
        134: "; check username and password",
        135: "; check username, password, and the broker's access list",
    }
)
