"""The other side: receives what agents publish, for `edge-agent watch` and for detections from a broker."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edge_agent.core.errors import DeliveryError
from edge_agent.deliver.connection import (
    BrokerSettings,
    Incoming,
    connack_problem,
    connect_problem,
    incoming,
    new_client,
    silence_problem,
)

if TYPE_CHECKING:
    from paho.mqtt.client import Client

__all__ = ["Subscriber"]

CONNECT_WAIT_S = 5.0
RECONNECT_S = (1, 30)
"""Shortest and longest wait of paho between attempts."""


class Subscriber:
    """Messages of some topics, in the order in which they come, while it is entered.

    A connection that is lost later is made anew; what was published meanwhile is not seen.

    Args:
        broker: where and how.
        topics: filters to subscribe, QoS 1.
        limit: messages that may wait for the reader; the oldest go first.
    """

    def __init__(self, broker: BrokerSettings, topics: tuple[str, ...], *, limit: int = 10_000) -> None:
        self._broker = broker
        self._topics = topics
        self._limit = limit
        self._messages: queue.SimpleQueue[Incoming] = queue.SimpleQueue()
        self._client: Client | None = None
        self._answered = threading.Event()
        self._refusal: DeliveryError | None = None
        self.dropped = 0
        """Messages that came faster than they were read."""
        self.connected = False
        """Whether there is a connection now."""

    def __enter__(self) -> Subscriber:
        """Connect and subscribe.

        Raises:
            BrokerUnreachable: no answer.
            DeliveryError: the broker does not let us in.
        """
        client = new_client(self._broker, "", reconnect=True)
        client.reconnect_delay_set(*RECONNECT_S)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        try:
            client.connect(self._broker.host, self._broker.port, self._broker.keepalive_s)
        except OSError as problem:
            raise connect_problem(self._broker, problem) from problem
        self._client = client
        client.loop_start()
        if not self._answered.wait(CONNECT_WAIT_S):
            self._refusal = silence_problem(self._broker)
        if self._refusal is not None:
            self.close()
            raise self._refusal
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect."""
        client, self._client = self._client, None
        if client is not None:
            client.disconnect()
            client.loop_stop()

    def next(self, timeout: float) -> Incoming | None:
        """The next message, or None when none came within `timeout` seconds."""
        try:
            return self._messages.get(timeout=timeout)
        except queue.Empty:
            return None

    def __iter__(self) -> Iterator[Incoming]:
        """All messages, for ever."""
        while True:
            message = self.next(0.5)  # a wait without end would not see Ctrl-C
            if message is not None:
                yield message

    def _on_connect(self, client: Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:  # noqa: ANN401
        if reason.is_failure:
            self._refusal = connack_problem(self._broker, reason)
        else:
            self.connected = True
            client.subscribe([(topic, 1) for topic in self._topics])
        self._answered.set()

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, _reason: Any, _properties: Any) -> None:  # noqa: ANN401
        self.connected = False

    def _on_message(self, _client: Any, _data: Any, message: Any) -> None:  # noqa: ANN401
        if self._messages.qsize() >= self._limit:
            self.dropped += 1
            self._messages.get()
        self._messages.put(incoming(message))
