"""MQTT client set-up: broker address, login, TLS, protocol version and error texts, for every client.

paho is imported when the first client is made.
"""

from __future__ import annotations

import functools
import queue
import ssl
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from edge_agent.core.errors import BrokerRefused, BrokerUnreachable, ConfigError, DeliveryError, InputError
from edge_agent.core.files import MAX_TEXT_BYTES, read_file
from edge_agent.core.host import is_loopback
from edge_agent.core.redaction import ESCAPING, broker_address, parse_address
from edge_agent.core.tls import client_context

if TYPE_CHECKING:
    from paho.mqtt.client import Client

    from edge_agent.core.delivery_settings import MqttSettings

CONNECT_TIMEOUT_S = 5.0
"""For TCP and TLS together, and again for the broker's CONNACK."""
RECONNECT_S = (1, 30)
"""Shortest and longest wait of a `Subscription` between attempts to connect."""


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """The broker's address and login, as checked from the section `mqtt`; `settings` is that section."""

    host: str
    port: int
    tls: bool
    username: str | None
    password: str | None = field(repr=False)
    settings: MqttSettings = field(repr=False)

    @staticmethod
    def of(settings: MqttSettings) -> BrokerSettings:
        """Check the settings; `broker` is `mqtt://[USER[:PASSWORD]@]HOST[:PORT]` or `mqtts://...`.

        The keys `username` and `password` win over the address.

        Raises:
            ConfigError: the address is not one, or the other values do not fit it. The message does not
                repeat the password.
        """
        url = broker_address(settings.broker or "")
        address = parse_address(url)
        if address is None or address.misread or address.host is None:
            advice = f"; {ESCAPING}" if "@" in url else ""
            raise ConfigError(f"the broker's address cannot be read; write mqtt://HOST:PORT{advice}")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as problem:
            raise ConfigError("the broker's address cannot be read; write mqtt://HOST:PORT") from problem
        if parts.scheme not in {"mqtt", "mqtts"} or not parts.hostname:
            raise ConfigError(
                f"broker: {address} is not a broker; write mqtt://HOST:PORT, or mqtts://HOST:PORT for TLS"
            )
        if parts.path not in {"", "/"} or parts.query or parts.fragment:
            raise ConfigError("broker: remove the path after mqtt://HOST:PORT; MQTT has no paths")
        tls = parts.scheme == "mqtts"
        named = [name for name in ("ca_file", "cert_file", "key_file") if getattr(settings, name) is not None]
        if named and not tls:
            wanted = f"mqtts://{parts.hostname}"
            raise ConfigError(f"{named[0]} is set, but mqtt:// is not encrypted: write {wanted}")
        if ("cert_file" in named) != ("key_file" in named):
            raise ConfigError("cert_file and key_file go together: set both or neither")
        password = settings.password.get_secret_value() if settings.password else None
        username, password = _first(settings.username, parts.username), _first(password, parts.password)
        if password is not None and username is None:
            raise ConfigError("a broker password is set without a username")
        port = port or (8883 if tls else 1883)
        return BrokerSettings(parts.hostname, port, tls, username, password, settings)

    @property
    def is_loopback(self) -> bool:
        """Whether the traffic stays on this machine."""
        return is_loopback(self.host)

    @property
    def url(self) -> str:
        """Address without user and password, for logs."""
        return f"{'mqtts' if self.tls else 'mqtt'}://{self.host}:{self.port}"


def _first(own: str | None, in_address: str | None) -> str | None:
    return own if own is not None else unquote(in_address) if in_address else None


@dataclass(frozen=True, slots=True)
class Incoming:
    """A received message."""

    topic: str
    payload: bytes
    retained: bool
    """The broker had stored it before the subscription."""
    response_topic: str | None = None
    """Where the sender wants the answer."""
    correlation: bytes | None = None
    """Data to send with the answer."""
    expiry_s: int | None = None
    """Seconds until the message expires; None for never."""


def incoming(message: Any) -> Incoming:  # noqa: ANN401 - paho's MQTTMessage, imported late
    """Convert a message of paho."""
    sent = message.properties
    return Incoming(
        topic=message.topic,
        payload=bytes(message.payload),
        retained=bool(message.retain),
        response_topic=getattr(sent, "ResponseTopic", None),
        correlation=getattr(sent, "CorrelationData", None),
        expiry_s=getattr(sent, "MessageExpiryInterval", None),
    )


def new_client(broker: BrokerSettings, client_id: str = "", *, reconnect: bool = False) -> Client:
    """Return a client of paho, not yet connected. BrokerRefused: one of the PEM files cannot be used."""
    from paho.mqtt import client as mqtt
    from paho.mqtt.enums import CallbackAPIVersion

    _accept_every_reason()
    five = broker.settings.version == "5"
    client = mqtt.Client(
        CallbackAPIVersion.VERSION2,
        client_id=client_id,
        clean_session=None if five else True,
        protocol=mqtt.MQTTv5 if five else mqtt.MQTTv311,
        reconnect_on_failure=reconnect,
    )
    client.connect_timeout = CONNECT_TIMEOUT_S
    if broker.username is not None:
        client.username_pw_set(broker.username, broker.password)
    if broker.tls:
        client.tls_set_context(_tls_context(broker))
    return client


@functools.cache
def _accept_every_reason() -> None:
    """Let paho (2.2 and newer) read every reason code in every packet.

    It takes a code that MQTT 5 does not list for a packet as a protocol error and closes the connection.
    mosquitto sends PUBACK with 149 (packet too large), which is such a code.
    """
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.reasoncodes import ReasonCode

    known = getattr(ReasonCode, "names", None)
    if isinstance(known, Mapping):
        every = list(PacketTypes.indexes)
        codes = {code: {next(iter(known.get(code, {f"reason code {code}": 0}))): every} for code in _FAILURES}
        ReasonCode.names = MappingProxyType({**known, **codes})


def _tls_context(broker: BrokerSettings) -> ssl.SSLContext:
    """TLS 1.2 or newer, with checks of the broker's certificate and host name."""
    chosen = broker.settings
    try:
        for file in (chosen.ca_file, chosen.cert_file, chosen.key_file):
            if file is not None:
                read_file(file, MAX_TEXT_BYTES)
        context = client_context(chosen.ca_file)
        if chosen.cert_file is not None:
            context.load_cert_chain(chosen.cert_file, chosen.key_file, _refuse_passphrase)
    except (OSError, InputError) as problem:  # SSLError is an OSError
        files = ", ".join(str(f) for f in (chosen.ca_file, chosen.cert_file, chosen.key_file) if f)
        text = f"broker {broker.url}: cannot use the TLS certificates {files}: {problem}"
        raise BrokerRefused(text) from problem
    return context


def _refuse_passphrase() -> str:
    """Raise the error for an encrypted key; OpenSSL would ask on the terminal, and wait."""
    raise InputError("the key is encrypted; store it without a passphrase: openssl pkey -in KEY -out PLAIN")


def properties(packet: str, **values: Any) -> Any:  # noqa: ANN401 - paho's Properties, imported late
    """Return MQTT 5 properties of paho for one kind of packet, e.g. `CONNECT` or `PUBLISH`."""
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties

    made = Properties(getattr(PacketTypes, packet))  # type: ignore[no-untyped-call]  # paho has no types here
    for name, value in values.items():
        setattr(made, name, value)
    return made


def connect_options(broker: BrokerSettings, *, clean_start: bool, **values: int) -> dict[str, Any]:
    """Return what MQTT 5 adds to `Client.connect`; nothing for 3.1.1. `values` are properties of CONNECT."""
    if broker.settings.version != "5":
        return {}
    return {"clean_start": clean_start, "properties": properties("CONNECT", **values)}


def connect_problem(broker: BrokerSettings, problem: OSError) -> DeliveryError:
    """Translate an error of paho's `connect`; its type states whether a retry helps."""
    if isinstance(problem, ssl.SSLError):
        # Valid later: a clock that was never set will be set, so this is tried again soon.
        early = getattr(problem, "verify_code", 0) == _NOT_YET_VALID
        kind = BrokerUnreachable if early else BrokerRefused
        return kind(f"broker {broker.url}: TLS failed: {tls_reason(problem)}")
    return BrokerUnreachable(f"broker {broker.url}: {problem.strerror or problem}")


def silence_problem(broker: BrokerSettings) -> DeliveryError:
    """Explain a missing CONNACK; the type of the error states whether a retry helps.

    A finished TLS handshake shows that the broker runs; with TLS 1.3 it refuses a certificate after that.
    """
    text = f"broker {broker.url}: no CONNACK in {CONNECT_TIMEOUT_S:g} s"
    if broker.tls:
        return BrokerRefused(
            f"{text} after the TLS handshake, and no alert: it refuses the certificate or the login; check"
            " mqtt.cert_file, mqtt.key_file, username and password"
        )
    return BrokerUnreachable(f"{text}: it hangs, expects TLS (mqtts://), or is not an MQTT broker")


def connack_problem(broker: BrokerSettings, reason: Any) -> DeliveryError:  # noqa: ANN401 - paho's ReasonCode
    """Explain a CONNACK that refuses; the type of the error states whether a retry helps."""
    kind = BrokerRefused if reason.value in _REFUSALS else BrokerUnreachable
    return kind(f"broker {broker.url}: {reason}{_ADVICE.get(reason.value, '')}")


def tls_reason(problem: ssl.SSLError) -> str:
    """Return OpenSSL's reason without the position in its source."""
    if isinstance(problem, ssl.SSLCertVerificationError):
        text = f"the broker's certificate is not accepted: {problem.verify_message}"
        if problem.verify_code in (_NOT_YET_VALID, _EXPIRED):
            shown = datetime.now(timezone.utc)
            text += f"; the clock of this device shows {shown:%Y-%m-%d}, check it too"
        return text
    return str(problem.reason or problem)


_NOT_YET_VALID, _EXPIRED = 9, 10
"""X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED of OpenSSL."""
_FAILURES = range(128, 256)
"""Reason codes of MQTT 5 that report a failure."""
_REFUSALS = frozenset({132, 133, 134, 135, 138, 140, 144})
"""CONNACK codes after which a retry does not help: protocol version, client id, user or password, not
authorised, banned, authentication method, will topic."""
_ADVICE = {
    132: "; set mqtt.version to the one that it supports",
    134: "; check username and password",
    135: "; check username, password, and the broker's access list",
}


class Subscription:
    """Receive the messages of some topics on a thread of its own; connect again when the connection is lost.

    Messages that are published during an interruption are not received.

    The callbacks run on the client's thread: `on_change` with True when the broker has accepted a topic, and
    with False and the reason when the connection is lost; `on_problem` with a short key and a text after each
    failed attempt to connect or subscribe. `max_packet` limits the packets of the broker (bytes, MQTT 5).
    `connect_timeout_s` is for TCP and TLS; `close` waits as long.
    """

    def __init__(
        self,
        broker: BrokerSettings,
        topics: Sequence[str],
        on_message: Callable[[Incoming], None],
        *,
        on_change: Callable[[bool, str], None] = lambda *_: None,
        on_problem: Callable[[str, str], None] = lambda *_: None,
        qos: int = 1,
        max_packet: int | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> None:
        self._broker = broker
        self._address = broker.host, broker.port, broker.settings.keepalive_s
        self._topics = tuple(topics)
        self._on_change = on_change
        self._on_problem = on_problem
        self._receive = on_message
        self._qos = qos
        limit = {} if max_packet is None else {"MaximumPacketSize": max_packet}
        self._options = connect_options(broker, clean_start=True, **limit)
        self._connect_timeout_s = connect_timeout_s
        self._client: Client | None = None
        self._answered = threading.Event()
        self._refusal: DeliveryError | None = None
        self.connected = False
        """Whether the broker accepts the connection now."""

    def open(self) -> None:
        """Connect, and wait until the broker has answered.

        Raises:
            BrokerUnreachable: no answer.
            DeliveryError: the broker refuses the connection.
        """
        client = self._new_client()
        try:
            client.connect(*self._address, **self._options)
        except OSError as problem:
            raise connect_problem(self._broker, problem) from problem
        client.loop_start()
        if not self._answered.wait(CONNECT_TIMEOUT_S):
            self._refusal = silence_problem(self._broker)
        if self._refusal is not None:
            self.close()
            raise self._refusal

    def open_in_background(self) -> None:
        """Connect on the client's thread; problems go to `on_problem`, except those of `new_client`."""
        client = self._new_client()
        client.connect_async(*self._address, **self._options)
        client.loop_start()

    def publish(self, topic: str, payload: bytes, timeout_s: float) -> str | None:
        """Publish with QoS 1, not retained; return why the broker refused it, None when it confirmed it.

        With MQTT 3.1.1 a broker confirms a message also where it drops it.
        """
        if self._client is None:
            return "not connected"
        confirmed: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._client.on_publish = lambda _client, _data, _mid, reason, _properties: confirmed.put(reason)
        self._client.publish(topic, payload, qos=1)
        try:
            reason = confirmed.get(timeout=timeout_s)
        except queue.Empty:
            return f"not confirmed within {timeout_s:g} s"
        return str(reason) if reason.is_failure else None

    def close(self) -> None:
        """Disconnect; a second call has no effect."""
        client, self._client = self._client, None
        if client is not None:
            client.disconnect()
            client.loop_stop()

    def _new_client(self) -> Client:
        self._client = client = new_client(self._broker, reconnect=True)
        client.reconnect_delay_set(*RECONNECT_S)
        client.connect_timeout = self._connect_timeout_s
        client.on_connect = self._on_connect
        client.on_connect_fail = lambda *_: self._on_problem("unreachable", "the broker does not answer")
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_message = lambda _client, _data, message: self._receive(incoming(message))
        return client

    def _on_connect(self, client: Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:  # noqa: ANN401
        if reason.is_failure:
            self._refusal = connack_problem(self._broker, reason)
            self._on_problem("refused", f"the broker refuses the connection: {reason}")
        else:
            self.connected = True
            client.subscribe([(topic, self._qos) for topic in self._topics])
        self._answered.set()

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:  # noqa: ANN401
        was_connected, self.connected = self.connected, False
        if was_connected and self._client is not None:
            self._on_change(False, str(reason))

    def _on_subscribe(self, _client: Any, _data: Any, _mid: int, reasons: Any, _properties: Any) -> None:  # noqa: ANN401
        for topic, reason in zip(self._topics, reasons, strict=False):
            if reason.is_failure:
                text = f"the broker refuses the subscription to {topic}: {reason}"
                self._on_problem(f"subscribe {topic}", text)
        if not all(reason.is_failure for reason in reasons):
            self._on_change(True, "")
