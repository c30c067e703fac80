"""Receives what agents publish, for `edge-agent watch`, the demo and benchmarks."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from types import TracebackType

from edge_agent.core.mqtt import BrokerSettings, Incoming, Subscription


class Subscriber:
    """The messages of some topics, in the order of their arrival. Enter it to connect.

    A lost connection is made again; messages that are published meanwhile are not received.

    Args:
        broker: address and login.
        topics: topic filters, subscribed with QoS 1.
        limit: messages that may wait for the reader; the oldest are dropped.
    """

    def __init__(self, broker: BrokerSettings, topics: tuple[str, ...], *, limit: int = 10_000) -> None:
        self._limit = limit
        self._messages: queue.SimpleQueue[Incoming] = queue.SimpleQueue()
        self._subscription = Subscription(broker, topics, self._on_message)
        self.dropped = 0
        """Messages dropped because the reader was too slow."""

    def __enter__(self) -> Subscriber:
        """Connect and subscribe.

        Raises:
            BrokerUnreachable: no answer.
            DeliveryError: the broker refuses the connection.
        """
        self._subscription.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._subscription.close()

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._subscription.connected

    def next(self, timeout: float) -> Incoming | None:
        """Return the next message, or None when none comes within `timeout` seconds."""
        try:
            return self._messages.get(timeout=timeout)
        except queue.Empty:
            return None

    def __iter__(self) -> Iterator[Incoming]:
        """Yield messages without end."""
        while True:
            message = self.next(0.5)  # an unlimited wait would not notice Ctrl-C
            if message is not None:
                yield message

    def _on_message(self, message: Incoming) -> None:
        if self._messages.qsize() >= self._limit:
            self.dropped += 1
            self._messages.get()
        self._messages.put(message)
