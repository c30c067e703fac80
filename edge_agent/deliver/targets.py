"""Where copies of events go: an MQTT broker or Kafka, one message at a time, each acknowledged."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from edge_agent.core.errors import BrokerRefused, BrokerUnreachable, MessageRefused, MessageTooLarge
from edge_agent.core.kafka import REQUEST_TIMEOUT_S, KafkaBrokers, client_library
from edge_agent.core.mqtt import BrokerSettings
from edge_agent.deliver.connection import Connection, Sent
from edge_agent.deliver.elimination import NOT_BLAMED
from edge_agent.deliver.packets import MessageOptions
from edge_agent.deliver.pump import ACK_TIMEOUT_S
from edge_agent.deliver.sender import NOT_AUTHORISED, Outcome, reason_text

TURN_S = 0.1
"""Longest wait without a look at a stop."""
_TOO_LARGE = "MSG_SIZE_TOO_LARGE"
_REFUSED = frozenset({_TOO_LARGE, "INVALID_MSG", "INVALID_RECORD", "RECORD_LIST_TOO_LARGE"})
"""Kafka's errors of one message."""


class NoSubscriber(BrokerUnreachable):
    """Nobody has subscribed to the topic now."""


class Target(Protocol):
    """Takes messages of one topic, after `open` and until `close`. For one thread.

    `stopping` ends a wait.
    """

    url: str
    """Of the broker, for logs."""

    def open(self, stopping: Callable[[], bool]) -> None:
        """Connect, and wait for the answer. BrokerUnreachable, BrokerRefused: it failed."""

    def send(self, key: str, payload: bytes, stopping: Callable[[], bool]) -> None:
        """Send a message, and return when the broker has it.

        Raises:
            MessageRefused: the broker does not take this message.
            NoSubscriber: the broker has nobody to give it to.
            BrokerUnreachable, BrokerRefused: the connection failed, or the topic is refused; `open` again.
        """

    def idle(self) -> None:
        """Keep the connection while nothing is sent. BrokerUnreachable: it is lost."""

    @property
    def blames_message(self) -> bool:
        """Whether the broker closed the connection at the last message that was sent."""

    def close(self) -> None:
        """Disconnect; a second call has no effect."""


class MqttTarget:
    """A topic of an MQTT broker, with a connection of its own and QoS 1."""

    def __init__(self, broker: BrokerSettings, client_id: str, topic: str, content_type: str) -> None:
        self.url = broker.url
        self._topic = topic
        self._options = MessageOptions(content_type=content_type)
        self._connection = Connection(broker, client_id=client_id)

    def open(self, stopping: Callable[[], bool]) -> None:  # noqa: ARG002 - the wait is short
        """Connect; see `Target`."""
        self._connection.unsettled.clear()
        self._connection.open(clean_start=True)

    def send(self, key: str, payload: bytes, stopping: Callable[[], bool]) -> None:  # noqa: ARG002 - MQTT has no keys
        """Send a message; see `Target`."""
        connection, sent = self._connection, Sent(time.monotonic(), self._topic)
        number = connection.publish(sent, payload, self._options)
        code: int | None = None
        while code is None:
            happened = connection.turn(TURN_S)
            code = next((code for one, code in happened.acks if one is sent), None)
            if code is None and not connection.is_open:
                raise BrokerUnreachable(f"broker {self.url}: connection lost: {connection.loss}")
            if code is None and (stopping() or time.monotonic() - sent.at > ACK_TIMEOUT_S):
                connection.unsettled.pop(number, None)
                raise BrokerUnreachable(f"broker {self.url}: no PUBACK for message {number}")
        self._settle(code)

    def _settle(self, code: int) -> None:
        outcome = Outcome.of(code)
        text = f"broker {self.url}: {self._topic}: {reason_text(code)}"
        if outcome is Outcome.NO_SUBSCRIBER:
            raise NoSubscriber(f"broker {self.url}: nobody has subscribed to {self._topic}")
        if code == NOT_AUTHORISED:
            raise BrokerRefused(text)
        if outcome is Outcome.RETRY:
            raise BrokerUnreachable(text)
        if outcome is Outcome.REJECTED:
            raise MessageRefused(text)

    def idle(self) -> None:
        """Answer pings; see `Target`."""
        self._connection.turn(0.0)
        if not self._connection.is_open:
            raise BrokerUnreachable(f"broker {self.url}: connection lost: {self._connection.loss}")

    @property
    def blames_message(self) -> bool:
        """Whether the broker closed the connection; see `Target`."""
        code = self._connection.loss_code
        return self._connection.was_closed or (code is not None and code not in NOT_BLAMED)

    def close(self) -> None:
        """Disconnect; see `Target`."""
        self._connection.close(goodbye=True)


class KafkaTarget:
    """A topic of Kafka. The key, the camera, decides the partition, within which the order is kept."""

    blames_message = False
    """Kafka answers with a reason."""

    def __init__(self, brokers: KafkaBrokers, topic: str) -> None:
        self.url = brokers.url
        self._brokers = brokers
        self._topic = topic
        self._producer: Any = None
        self._errors: deque[Any] = deque(maxlen=16)

    def open(self, stopping: Callable[[], bool]) -> None:
        """Make a producer, and ask for the topic; see `Target`."""
        self._errors.clear()
        options = {
            **self._brokers.options(self._errors.append),
            "acks": "all",
            "linger.ms": 0,
            "message.timeout.ms": int(1000 * REQUEST_TIMEOUT_S),
        }
        self._producer = self._brokers.new_client("Producer", options)
        self._brokers.metadata(self._producer, self._topic, self._errors, stopping)

    def send(self, key: str, payload: bytes, stopping: Callable[[], bool]) -> None:
        """Send a message; see `Target`."""
        reports: list[Any] = []
        try:
            self._producer.produce(
                self._topic, payload, key.encode(), on_delivery=lambda error, _: reports.append(error)
            )
        except client_library().KafkaException as problem:
            raise self._problem(problem.args[0]) from None
        while not reports:
            self._producer.poll(TURN_S)
            if not reports and (failure := self._brokers.failure(self._errors)) is not None:
                raise failure
            if not reports and stopping():
                raise BrokerUnreachable(f"{self.url}: stopped before the brokers had confirmed")
        if reports[0] is not None:
            raise self._problem(reports[0])
        self._errors.clear()

    def _problem(self, error: Any) -> Exception:  # noqa: ANN401 - a KafkaError
        if error.name() in _REFUSED:
            kind = MessageTooLarge if error.name() == _TOO_LARGE else MessageRefused
            return kind(f"{self.url}: {self._topic}: {error.str()}")
        if error.name() == "_MSG_TIMED_OUT":  # the reason why is among the other errors
            error = next(iter(self._errors), error)
        return self._brokers.problem(error)

    def idle(self) -> None:
        """Take what librdkafka reports; it keeps its connections by itself."""
        self._producer.poll(0)
        if (failure := self._brokers.failure(self._errors)) is not None:
            raise failure

    def close(self) -> None:
        """Give up what is not confirmed; see `Target`."""
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.purge()
            producer.flush(TURN_S)
