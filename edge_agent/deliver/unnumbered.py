"""Messages that are not in the outbox: retained ones, answers, telemetry."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Hashable
from typing import TypeAlias

from edge_agent.deliver.connection import Answer, Sent
from edge_agent.deliver.local import Counters

MAX_QUEUED_ANSWERS = 1000
Payload: TypeAlias = "bytes | Callable[[], bytes]"
"""A message, or what makes it when it is sent."""


class UnnumberedMessages:
    """Messages that are not in the outbox: retained ones, answers, telemetry. Thread-safe.

    Retained messages are kept in memory and sent again after each connect.
    """

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._lock = threading.Lock()
        self._retained: OrderedDict[str, Payload] = OrderedDict()
        self._unsent: OrderedDict[str, None] = OrderedDict()
        self._later: dict[str, float] = {}
        """Topics that the broker could not take, and when they are tried again (monotonic seconds)."""
        self._answers: deque[Answer] = deque()
        self._telemetry: bytes | None = None

    def retain(self, topic: str, payload: Payload) -> None:
        """Set the retained message of a topic."""
        with self._lock:
            self._retained[topic] = payload
            self._unsent[topic] = None

    def resend(self, topic: str) -> None:
        """Queue the retained message of a topic again."""
        with self._lock:
            self._unsent[topic] = None

    def resend_retained(self, *, first: str, last: str) -> None:
        """Queue all retained messages again, with these topics at the beginning and at the end."""
        with self._lock:
            for topic, at_end in ((first, False), (last, True)):
                if topic in self._retained:
                    self._retained.move_to_end(topic, last=at_end)
            self._unsent = OrderedDict.fromkeys(self._retained)
            self._later.clear()

    def retry_retained(self, topic: str, after_s: float) -> None:
        """Queue the retained message of a topic again, after a time."""
        with self._lock:
            self._later[topic] = time.monotonic() + after_s

    @property
    def has_retained(self) -> bool:
        """Whether retained messages wait to be sent."""
        return bool(self._unsent)

    def next_retained(self, *, last: Collection[Hashable] = ()) -> tuple[str, bytes] | None:
        """Take the next topic and its message, those of `last` after all others; None where there is none."""
        with self._lock:
            for topic in [one for one, due in self._later.items() if due <= time.monotonic()]:
                del self._later[topic]
                self._unsent[topic] = None
            if not self._unsent:
                return None
            topic = next((one for one in self._unsent if one not in last), next(iter(self._unsent)))
            del self._unsent[topic]
            payload = self._retained[topic]
        return topic, payload() if callable(payload) else payload

    def add_answer(self, answer: Answer) -> None:
        """Queue an answer; the oldest is dropped when there are too many."""
        with self._lock:
            if len(self._answers) >= MAX_QUEUED_ANSWERS:
                self._answers.popleft()
                self._counters.answers_lost += 1
            self._answers.append(answer)

    def next_answer(self) -> Answer | None:
        """Take the next answer; None where there is none."""
        with self._lock:
            return self._answers.popleft() if self._answers else None

    def set_telemetry(self, message: bytes, *, connected: bool) -> None:
        """Replace the telemetry that waits; without a connection it is dropped."""
        with self._lock:
            if self._telemetry is not None or not connected:
                self._counters.telemetry_lost += 1
            self._telemetry = message if connected else None

    def take_telemetry(self) -> bytes | None:
        """Take the telemetry that waits."""
        with self._lock:
            message, self._telemetry = self._telemetry, None
            return message

    def return_unsent(self, lost: list[Sent]) -> None:
        """Queue the answers among these messages again, after a lost connection, and drop the telemetry."""
        with self._lock:
            self._answers.extendleft(sent.answer for sent in reversed(lost) if sent.answer is not None)
            self._telemetry = None

    def drop_answer(self, answer: Answer) -> None:
        """Drop an answer that the broker does not take."""
        with self._lock:
            self._counters.answers_lost += 1
            if answer in self._answers:
                self._answers.remove(answer)
