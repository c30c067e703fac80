"""Kafka client set-up, and the receiving of messages; the counterpart of `core.mqtt`.

confluent_kafka (librdkafka) is imported when the first client is made; it is the extra `kafka`.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

import structlog

from edge_agent.core.distribution import install_command
from edge_agent.core.errors import BrokerRefused, BrokerUnreachable, ConfigError, DeliveryError, InputError
from edge_agent.core.files import MAX_TEXT_BYTES, read_file
from edge_agent.core.host import is_loopback
from edge_agent.core.mqtt import RECONNECT_S, Incoming
from edge_agent.core.setting_types import KAFKA_TOPIC

if TYPE_CHECKING:
    from edge_agent.core.config import Settings
    from edge_agent.core.delivery_settings import KafkaSettings

_log = structlog.get_logger(__name__)

CONNECT_TIMEOUT_S = 5.0
"""For TCP, TLS and login together."""
REQUEST_TIMEOUT_S = 10.0
"""A broker that does not answer a request for this time is taken for dead."""
OFFSET_TIMEOUT_S = 1.0
"""For the end of one partition; short, since it delays a stop."""
POLL_S = 0.2
"""Longest wait of a client's thread, and thereby of a stop."""
MOST_BEHIND = 2000
"""Messages of a partition that may wait; where more do, all of them are skipped, since they are old."""
UPKEEP_S = 1.0
"""How often that is examined."""
PARTITIONS_S = 60.0
"""How often topics and partitions that are new are looked for."""
STABLE_S = 30.0
"""A connection that lasted this long resets the waits between attempts."""
QUEUE_KIB = 16 << 10
"""Of received messages that wait inside the client, at most."""
LARGEST_ANSWER = 64 << 20
"""Bytes of one answer of a broker; at a larger one the connection is closed."""


def kafka_topics(settings: Settings) -> list[str]:
    """Return the topics of Kafka that the settings read or write; none where Kafka is not used."""
    detector, copies = settings.detector, settings.metropolis
    topics = list(detector.external_topics) if detector.external_transport == "kafka" else []
    if copies.format != "off" and copies.transport == "kafka" and copies.topic is not None:
        topics.append(copies.topic)
    return topics


def client_library() -> ModuleType:
    """Return confluent_kafka. ConfigError: it is not installed, or cannot be loaded."""
    try:
        import confluent_kafka
    except ImportError as problem:
        raise ConfigError(
            f"Kafka needs the extra kafka ({problem}); install it: {install_command('kafka')}"
        ) from None
    library: ModuleType = confluent_kafka
    return library


@dataclass(frozen=True, slots=True)
class KafkaBrokers:
    """Addresses and login of the brokers, as checked from the section `kafka`."""

    name: str
    """Site and device, for the brokers' logs."""
    settings: KafkaSettings = field(repr=False)

    @staticmethod
    def of(settings: Settings) -> KafkaBrokers:
        """Check the settings, and that the client library is there.

        Raises:
            ConfigError: no broker is set, the login has no password, or the library is missing.
            BrokerRefused: one of the PEM files cannot be read.
        """
        chosen = settings.kafka
        if not chosen.brokers:
            raise ConfigError("Kafka is to be used, but kafka.brokers names no broker")
        if chosen.username is not None and chosen.password is None:
            raise ConfigError("kafka.username is set, but no password: credential file kafka__password")
        client_library()
        brokers = KafkaBrokers(f"edge-agent-{settings.mqtt.site}-{settings.mqtt.device}", chosen)
        for file in (chosen.ca_file, chosen.cert_file, chosen.key_file):
            try:
                _ = None if file is None else read_file(file, MAX_TEXT_BYTES)
            except InputError as problem:
                raise BrokerRefused(f"{brokers.url}: cannot use the TLS files: {problem}") from None
        return brokers

    @property
    def url(self) -> str:
        """Addresses, for logs."""
        return f"kafka://{','.join(self.settings.brokers)}"

    @property
    def sends_password_openly(self) -> bool:
        """Whether the password goes over the network as it is."""
        local = all(is_loopback(one.rpartition(":")[0]) for one in self.settings.brokers)
        return self.settings.mechanism == "PLAIN" and not self.settings.tls and not local

    def options(self, on_error: Callable[[Any], None]) -> dict[str, Any]:
        """Return the configuration of a client of librdkafka.

        `on_error` gets its errors, on the thread that polls.
        """
        chosen = self.settings
        login = {}
        if chosen.password is not None:
            login = {
                "sasl.mechanism": chosen.mechanism,
                "sasl.username": chosen.username,
                "sasl.password": chosen.password.get_secret_value(),
            }
        files = {
            "ssl.ca.location": chosen.ca_file,
            "ssl.certificate.location": chosen.cert_file,
            "ssl.key.location": chosen.key_file,
        }
        return {
            "bootstrap.servers": ",".join(chosen.brokers),
            "client.id": self.name,
            "security.protocol": ("SASL_" if login else "") + ("SSL" if chosen.tls else "PLAINTEXT"),
            "socket.connection.setup.timeout.ms": int(1000 * CONNECT_TIMEOUT_S),
            "socket.timeout.ms": int(1000 * REQUEST_TIMEOUT_S),
            "reconnect.backoff.max.ms": int(1000 * RECONNECT_S[1]),
            "receive.message.max.bytes": LARGEST_ANSWER,
            "log_level": 0,  # it would write to standard error; what matters comes as an error, too
            "error_cb": on_error,
            **login,
            **{key: str(path) for key, path in files.items() if path is not None},
        }

    def new_client(self, kind: str, options: dict[str, Any]) -> Any:  # noqa: ANN401 - imported late
        """Make a `Consumer` or a `Producer` of confluent_kafka; it connects in the background.

        Raises:
            BrokerRefused: a certificate or key cannot be used.
            ConfigError: librdkafka does not take an option.
        """
        library = client_library()
        if self.sends_password_openly:
            _warn_of_password(self.url)
        try:
            return getattr(library, kind)(options)
        except library.KafkaException as problem:
            text = f"{self.url}: {error_text(problem.args[0])}"
            if "ssl" in text.lower():
                raise BrokerRefused(text + _FILES) from None
            raise ConfigError(text) from None

    def check(self, topics: Sequence[str]) -> tuple[int, list[str]]:
        """Return how many brokers the cluster has, and which of `topics` it lacks.

        Raises:
            BrokerUnreachable, BrokerRefused: a broker does not answer, or refuses the login.
        """
        with Consumer(self) as consumer:
            found = consumer.partitions(topics)
            # This asks the brokers that have the partitions, by the addresses that they state.
            consumer.begin(found)
            return consumer.brokers, [topic for topic in topics if not found[topic]]

    def metadata(
        self,
        client: Any,  # noqa: ANN401 - see `new_client`
        topic: str,
        errors: Iterable[Any],
        stopping: Callable[[], bool] = lambda: False,
    ) -> Any:  # noqa: ANN401 - a ClusterMetadata of confluent_kafka
        """Return what the brokers state about themselves and a topic, None after a stop.

        `errors` is what `client` has reported.

        Raises:
            BrokerUnreachable, BrokerRefused: none answers within `REQUEST_TIMEOUT_S`, or they refuse it.
        """
        deadline = time.monotonic() + REQUEST_TIMEOUT_S
        while not stopping():
            try:
                found = client.list_topics(topic, timeout=POLL_S)
            except client_library().KafkaException as problem:
                client.poll(0)  # hands over the reasons
                failure = self.failure(errors)
                if failure is None and time.monotonic() > deadline:
                    failure = self.problem(next(iter(errors), problem.args[0]))
                if failure is not None:
                    raise failure from None
                continue
            refusal = found.topics[topic].error
            if refusal is not None and is_refusal(refusal):
                raise self.problem(refusal)
            return found
        return None

    def failure(self, errors: Iterable[Any]) -> DeliveryError | None:
        """Return why a client that reported these errors is of no more use; None where it may recover."""
        known = list(errors)
        refused = next((one for one in known if is_refusal(one)), None)
        if refused is None and not any(one.name() == _ALL_DOWN for one in known):
            return None
        reasons = [one for one in known if one.name() != _ALL_DOWN] or known
        return self.problem(refused or reasons[0])

    def problem(self, error: Any) -> DeliveryError:  # noqa: ANN401 - a KafkaError
        """Translate an error of librdkafka; its type states whether a retry helps."""
        if error.name() == _ALL_DOWN:  # they close the connection, and librdkafka has no reason
            wanted = "a client certificate (kafka.cert_file)" if self.settings.tls else "TLS (kafka.tls)"
            return BrokerUnreachable(
                f"{self.url}: no broker keeps the connection; does it expect {wanted}, or a login?"
            )
        kind = BrokerRefused if is_refusal(error) else BrokerUnreachable
        return kind(f"{self.url}: {error_text(error)}{_REFUSALS.get(error.name(), '')}")


@functools.cache
def _warn_of_password(url: str) -> None:
    """Log it once for each address."""
    _log.warning("kafka_password_unencrypted", brokers=url, advice="set kafka.tls")


_LOGIN = "; check kafka.mechanism, username and password"
_FILES = "; check kafka.ca_file, cert_file and key_file (PEM, the key without a passphrase)"
_PERMISSION = "; check the access list (ACL) of the brokers"
_REFUSALS = {
    "_AUTHENTICATION": _LOGIN,
    "SASL_AUTHENTICATION_FAILED": _LOGIN,
    "_SSL": _FILES,
    "TOPIC_AUTHORIZATION_FAILED": _PERMISSION,
    "GROUP_AUTHORIZATION_FAILED": _PERMISSION,
    "CLUSTER_AUTHORIZATION_FAILED": _PERMISSION,
}
"""Advice for errors of a login, a certificate or a permission, by their name."""
_ALL_DOWN = "_ALL_BROKERS_DOWN"


def is_refusal(error: Any) -> bool:  # noqa: ANN401 - a KafkaError
    """Whether an early retry is useless: the brokers refuse a login, a certificate or a permission."""
    return error.name() in _REFUSALS


def error_text(error: Any) -> str:  # noqa: ANN401 - a KafkaError
    """The text of an error of librdkafka, without the name that it repeats."""
    return str(error.str()).removeprefix("Local: ")


class Consumer:
    """One consumer of librdkafka and the errors that it reports; leave it to close it. Not thread-safe.

    It belongs to no group of consumers, and commits nothing.

    Raises:
        BrokerRefused, ConfigError: see `KafkaBrokers.new_client`.
    """

    def __init__(self, brokers: KafkaBrokers) -> None:
        self._brokers = brokers
        self._errors: deque[Any] = deque(maxlen=16)
        options = {
            **brokers.options(self._errors.append),
            "group.id": brokers.settings.group or brokers.name,  # librdkafka wants one all the same
            "enable.auto.commit": False,
            "queued.max.messages.kbytes": QUEUE_KIB,
            "fetch.max.bytes": QUEUE_KIB << 10,
        }
        self._client = brokers.new_client("Consumer", options)
        self.brokers = 0
        """Number of brokers of the cluster, as last seen."""

    def __enter__(self) -> Consumer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def partitions(
        self, topics: Sequence[str], stopping: Callable[[], bool] = lambda: False
    ) -> dict[str, list[int]]:
        """Return the partitions of each topic; none for a topic that does not exist.

        Raises:
            BrokerUnreachable, BrokerRefused: no broker answers within `REQUEST_TIMEOUT_S`, or they refuse it.
        """
        found: dict[str, list[int]] = {}
        for topic in topics:
            metadata = self._brokers.metadata(self._client, topic, self._errors, stopping)
            if metadata is None:
                break
            self.brokers = len(metadata.brokers)
            found[topic] = sorted(metadata.topics[topic].partitions)
        return found

    def begin(self, topics: dict[str, list[int]]) -> None:
        """Read these partitions from their present ends on; what is sent after this is received.

        Raises:
            BrokerUnreachable, BrokerRefused: a broker does not state an end.
        """
        library, begins = client_library(), []
        for topic, numbers in topics.items():
            for number in numbers:
                one = library.TopicPartition(topic, number)
                try:
                    one.offset = self._client.get_watermark_offsets(one, timeout=OFFSET_TIMEOUT_S)[1]
                except library.KafkaException as problem:
                    self._client.poll(0)  # hands over the reasons
                    reason = next(iter(self._errors), problem.args[0])
                    raise self._brokers.failure(self._errors) or self._brokers.problem(reason) from None
                begins.append(one)
        self._client.assign(begins)

    def poll(self, timeout_s: float) -> Any:  # noqa: ANN401 - a Message of confluent_kafka, or None
        """Return the next message, None when none comes.

        Raises:
            BrokerUnreachable, BrokerRefused: all brokers are lost, or they refuse it.
        """
        message = self._client.poll(timeout_s)
        if (failure := self._brokers.failure(self._errors)) is not None:
            raise failure
        if message is not None and message.error() is not None:
            raise self._brokers.problem(message.error())
        return message

    def skip_old(self) -> int:
        """Go to the end of each partition where more than `MOST_BEHIND` messages wait; return how many."""
        library, skipped = client_library(), 0
        for one in self._client.position(self._client.assignment()):
            high = self._client.get_watermark_offsets(one, cached=True)[1]
            if one.offset >= 0 and high - one.offset > MOST_BEHIND:
                self._client.seek(library.TopicPartition(one.topic, one.partition, high))
                skipped += high - one.offset
        return skipped


class KafkaSubscription:
    """Receive the messages of some topics on a thread of its own; connect again when the connection is lost.

    Each connection begins with the newest messages: those of an interruption are not received. The callbacks
    are those of `core.mqtt.Subscription`, and run on that thread.

    Raises:
        ConfigError: Kafka has no topic of such a name.
    """

    def __init__(
        self,
        brokers: KafkaBrokers,
        topics: Sequence[str],
        on_message: Callable[[Incoming], None],
        *,
        on_change: Callable[[bool, str], None] = lambda *_: None,
        on_problem: Callable[[str, str], None] = lambda *_: None,
    ) -> None:
        for topic in topics:
            if not KAFKA_TOPIC.fullmatch(topic):
                raise ConfigError(f"{topic!r} is no topic of Kafka: use letters, digits, `.`, `_` and `-`")
        self._brokers = brokers
        self._topics = tuple(dict.fromkeys(topics))
        self._receive = on_message
        self._on_change = on_change
        self._on_problem = on_problem
        self._stopping = threading.Event()
        self._first: Consumer | None = None
        self._thread = threading.Thread(target=self._run, name="kafka", daemon=True)
        self.connected = False
        """Whether the topics are read now."""

    def open_in_background(self) -> None:
        """Connect on a thread; problems go to `on_problem`, except those of the making of a client."""
        self._first = Consumer(self._brokers)
        self._thread.start()

    def close(self) -> None:
        """Disconnect; a second call has no effect."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(2 * CONNECT_TIMEOUT_S)

    def _run(self) -> None:
        wait_s, since = 0.0, 0.0
        while not self._stopping.wait(wait_s):
            since = time.monotonic()
            try:
                self._connect_and_read()
            except DeliveryError as problem:
                reason = str(problem)
                key = "refused" if isinstance(problem, BrokerRefused) else "unreachable"
            except Exception as problem:  # noqa: BLE001  a fault must not end the receiving
                _log.exception("kafka_failed", brokers=self._brokers.url)
                reason, key = f"internal error: {problem}", "internal"
            else:
                continue
            if self.connected:
                self.connected = False
                self._on_change(False, reason)
            self._on_problem(key, reason)
            wait_s = RECONNECT_S[0] if time.monotonic() - since > STABLE_S else 2 * wait_s
            wait_s = min(max(wait_s, RECONNECT_S[0]), RECONNECT_S[1])

    def _connect_and_read(self) -> None:
        """Read until a stop; return earlier when there are new partitions. Raises DeliveryError."""
        consumer, self._first = self._first or Consumer(self._brokers), None
        with consumer:
            present = self._existing(consumer)
            if self._stopping.is_set():
                return
            if not any(present.values()):
                raise BrokerUnreachable(f"{self._brokers.url}: no topic {' or '.join(self._topics)} there")
            consumer.begin(present)
            if not self.connected:
                self.connected = True
                self._on_change(True, "")
            self._read(consumer, present)

    def _existing(self, consumer: Consumer) -> dict[str, list[int]]:
        found = consumer.partitions(self._topics, self._stopping.is_set)
        for topic, numbers in found.items():
            if not numbers:
                self._on_problem(f"subscribe {topic}", f"there is no topic {topic} on {self._brokers.url}")
        return found

    def _read(self, consumer: Consumer, present: dict[str, list[int]]) -> None:
        next_upkeep = time.monotonic() + UPKEEP_S
        next_look = time.monotonic() + PARTITIONS_S
        while not self._stopping.is_set():
            message = consumer.poll(POLL_S)
            if message is not None:
                self._receive(Incoming(message.topic(), message.value() or b"", retained=False))
            now = time.monotonic()
            if now >= next_upkeep:
                next_upkeep = now + UPKEEP_S
                if skipped := consumer.skip_old():
                    self._on_problem("behind", f"{skipped} messages skipped: more come than can be read")
            if now >= next_look:
                next_look = now + PARTITIONS_S
                if self._existing(consumer) != present:
                    return
