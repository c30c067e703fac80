"""Receives what agents publish, for `edge-agent watch`, the demo and benchmarks."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from types import TracebackType

from edge_agent.core.mqtt import BrokerSettings, Incoming, Subscription


class Subscriber(Subscription):
    """The messages of some topics, in the order of their arrival. Enter it to connect.

    If more than `limit` messages wait for the reader, the oldest are dropped.
    """

    def __init__(self, broker: BrokerSettings, topics: tuple[str, ...], *, limit: int = 10_000) -> None:
        super().__init__(broker, topics, self._add)
        self._limit = limit
        self._messages: queue.SimpleQueue[Incoming] = queue.SimpleQueue()

    def __enter__(self) -> Subscriber:
        """Connect and subscribe; errors: see `open`."""
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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

    def _add(self, message: Incoming) -> None:
        if self._messages.qsize() >= self._limit:
            self._messages.get()
        self._messages.put(message)
