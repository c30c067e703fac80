"""Messages between the queues and the broker: sent and not acknowledged, not numbered, or refused."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import structlog

from edge_agent.deliver.connection import Connection
from edge_agent.deliver.database import Row
from edge_agent.deliver.packing import MessageOptions

__all__ = [
    "NOT_AUTHORISED",
    "REFUSED",
    "Answer",
    "Refusals",
    "Sent",
    "UnnumberedMessages",
    "Window",
    "reason_text",
]

log = structlog.get_logger(__name__)

WINDOW = 20
"""Messages without PUBACK: mosquitto's default limit, and the fastest for paho."""
MAX_QUEUED_ANSWERS = 1000
FORBIDDEN_S = 600.0
"""How long nothing is sent to a topic that the broker does not allow; its events are parked meanwhile."""
REFUSED = 128
"""The lowest reason code of a PUBACK that refuses the message."""
NOT_AUTHORISED = 135
_REASONS = {
    128: "unspecified error",
    131: "implementation specific error",
    135: "not authorised",
    144: "topic name invalid",
    145: "packet identifier in use",
    149: "packet too large",
    151: "quota exceeded",
    153: "payload format invalid",
}


def reason_text(code: int) -> str:
    """Return the name of a reason code of PUBACK (MQTT 5, section 3.4.2.1)."""
    return _REASONS.get(code, f"reason code {code}")


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a command: a message that is sent once and not kept on disk."""

    topic: str
    payload: bytes
    options: MessageOptions


@dataclass(slots=True)  # not frozen: creating one for each message would take three times as long
class Sent:
    """A message without PUBACK, and when it was sent (monotonic seconds)."""

    at: float
    topic: str
    row: Row | None = None
    answer: Answer | None = None


class Window:
    """Sends with QoS 1, and keeps what is not acknowledged. Used by the pump thread only."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sent: dict[int, Sent] = {}

    def __len__(self) -> int:
        return len(self._sent)

    @property
    def room(self) -> int:
        """How many more messages may be sent now."""
        return min(WINDOW, self._connection.receive_maximum) - len(self._sent)

    def send(
        self,
        sent: Sent,
        message: bytes,
        options: MessageOptions,
        *,
        retain: bool = False,
        traceparent: str = "",
    ) -> int:
        """Send one message; return its number.

        Raises:
            BrokerUnreachable: the connection is lost.
        """
        number = self._connection.publish(
            sent.topic, message, qos=1, retain=retain, options=options, traceparent=traceparent
        )
        self._sent[number] = sent
        return number

    def settle(self, acks: Iterable[tuple[int, int]]) -> Iterator[tuple[Sent, int]]:
        """Remove acknowledged messages; yield each with its reason code."""
        for number, code in acks:
            sent = self._sent.pop(number, None)
            if sent is not None:
                yield sent, code

    def is_open(self, number: int) -> bool:
        """Whether a message has no PUBACK yet."""
        return number in self._sent

    def has_topic(self, topic: str) -> bool:
        """Whether a message to this topic has no PUBACK yet."""
        return any(sent.topic == topic for sent in self._sent.values())

    def age(self) -> float:
        """Return the seconds since the oldest message was sent; 0.0 without any."""
        oldest = next(iter(self._sent.values()), None)
        return 0.0 if oldest is None else time.monotonic() - oldest.at

    def clear(self) -> list[Sent]:
        """Remove and return all messages, the oldest first."""
        lost = list(self._sent.values())
        self._sent.clear()
        return lost


class UnnumberedMessages:
    """Messages that are not in the outbox: retained ones, answers, telemetry. Thread-safe.

    Retained messages are kept in memory and sent again after each connect.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._retained: OrderedDict[str, bytes] = OrderedDict()
        self._unsent: OrderedDict[str, None] = OrderedDict()
        self._answers: deque[Answer] = deque()
        self._telemetry: bytes | None = None
        self.telemetry_lost = self.answers_lost = 0

    def retain(self, topic: str, payload: bytes) -> None:
        """Set the retained message of a topic."""
        with self._lock:
            self._retained[topic] = payload
            self._unsent[topic] = None

    def resend_retained(self, *, first: str, last: str) -> None:
        """Queue all retained messages again, with these topics at the beginning and at the end."""
        with self._lock:
            for topic, at_end in ((first, False), (last, True)):
                if topic in self._retained:
                    self._retained.move_to_end(topic, last=at_end)
            self._unsent = OrderedDict.fromkeys(self._retained)

    @property
    def has_retained(self) -> bool:
        """Whether retained messages wait to be sent."""
        return bool(self._unsent)

    def next_retained(self) -> tuple[str, bytes] | None:
        """Take the next topic and its message; None where there is none."""
        with self._lock:
            if not self._unsent:
                return None
            topic, _ = self._unsent.popitem(last=False)
            return topic, self._retained[topic]

    def add_answer(self, answer: Answer) -> None:
        """Queue an answer; the oldest is dropped when there are too many."""
        with self._lock:
            if len(self._answers) >= MAX_QUEUED_ANSWERS:
                self._answers.popleft()
                self.answers_lost += 1
            self._answers.append(answer)

    def next_answer(self) -> Answer | None:
        """Take the next answer; None where there is none."""
        with self._lock:
            return self._answers.popleft() if self._answers else None

    def set_telemetry(self, message: bytes, *, connected: bool) -> None:
        """Replace the telemetry that waits; without a connection it is dropped."""
        with self._lock:
            if self._telemetry is not None or not connected:
                self.telemetry_lost += 1
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


class Refusals:
    """Topics that the broker does not allow, and the refusals that were reported. Used by the pump thread
    only.
    """

    def __init__(self) -> None:
        self._until: dict[str, float] = {}
        self._reported: set[tuple[str, int]] = set()

    def forbid(self, topic: str) -> None:
        """Send nothing to a topic for `FORBIDDEN_S`. mosquitto 2.0.11 drops a TLS connection at each
        message.
        """
        self._until[topic] = time.monotonic() + FORBIDDEN_S

    def forbids(self, topic: str) -> bool:
        """Whether nothing may be sent to a topic now."""
        return bool(self._until) and self._until.get(topic, 0.0) > time.monotonic()

    @property
    def topics(self) -> str:
        """All topics that were refused, for people; "" for none."""
        return ", ".join(sorted(self._until))

    def is_new(self, topic: str, code: int) -> bool:
        """Return True once for each topic and reason code."""
        before = len(self._reported)
        self._reported.add((topic, code))
        return len(self._reported) > before

    def note(self, topic: str, code: int) -> None:
        """Handle the PUBACK of a message that is not in the outbox."""
        if code == NOT_AUTHORISED:
            self.forbid(topic)
        if code >= REFUSED and self.is_new(topic, code):
            log.warning("the broker refuses a message", topic=topic, reason=reason_text(code))
