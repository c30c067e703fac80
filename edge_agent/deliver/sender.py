"""Sends the events of the outbox and settles them by the reason code of their PUBACK."""

from __future__ import annotations

import functools
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from enum import Enum

import structlog

from edge_agent.core.alerts import AlertKind
from edge_agent.core.codec import schema_urn
from edge_agent.core.errors import MessageTooLarge
from edge_agent.core.events import Details
from edge_agent.deliver.connection import WINDOW, Connection, Sent
from edge_agent.deliver.elimination import PACKET_TOO_LARGE, Elimination
from edge_agent.deliver.local import Counters
from edge_agent.deliver.outbox import MAX_RANGES, Outbox
from edge_agent.deliver.pacing import TokenBucket
from edge_agent.deliver.packets import MessageOptions
from edge_agent.deliver.rows import Row
from edge_agent.deliver.topics import Topics, kind_of

log = structlog.get_logger(__name__)

IDLE_S = 0.5
"""Longest sleep of the pump, so that its heartbeat stays fresh."""
QUIET_RETRY_S = 2.0
"""How often a topic without subscriber is tried again."""
SHOWN = 5
"""Refused topics that are named."""
MOST_REFUSED = 500
"""Refused topics that are remembered, and reported: response topics of commands come from outside."""
NO_SUBSCRIBER_S = 3600.0
"""How long events wait for a subscriber."""
DRAIN_PER_S = 1000.0
"""Most events per second after an outage, until all that waited are sent."""
DRAIN_JITTER_S = 2.0
"""Sending after an outage begins after a random wait up to this, which spreads the load of a fleet."""
EVENT_EXPIRY_S = 86_400
"""How long the broker keeps an event for a subscriber that is away."""
LOOK_AHEAD = 200
"""Rows read from the outbox at once."""
FORBIDDEN_S = 600.0
"""How long nothing is sent to a topic that the broker does not allow; its events are parked meanwhile.
mosquitto 2.0.11 drops a TLS connection at each such message.
"""
RETRY_S = 10.0
"""How often a topic is tried again whose message the broker could not take (`Outcome.RETRY`)."""
ATTEMPTS = 10
"""After this many answers with an error that names no cause, a message is set aside."""
REFUSED = 128
"""The lowest reason code of a PUBACK that refuses the message."""
NOT_AUTHORISED = 135
_NO_CAUSE = frozenset({128, 131})
"""Codes that name no cause."""
_RETRIED = _NO_CAUSE | {145, 151}
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
_ADVICE = {
    NOT_AUTHORISED: "check its access list, then restart the agent",
    PACKET_TOO_LARGE: "raise its limit of packet or message size, then restart the agent",
}


class Outcome(Enum):
    """What becomes of a message by the reason code of its PUBACK (MQTT 5, section 3.4.2.1)."""

    TAKEN = "taken"
    """0, and codes below 128 that are not known."""
    NO_SUBSCRIBER = "no subscriber"
    """16: it waits, and is sent again."""
    RETRY = "retry"
    """151, 145, 128, 131: the broker cannot take it now; it waits, and other topics pass. With 128 and 131,
    which name no cause, it is set aside after `ATTEMPTS`."""
    REJECTED = "rejected"
    """135, 144, 149, 153, and codes that are not known: it is set aside."""

    @staticmethod
    def of(code: int) -> Outcome:
        """Return the outcome for a reason code."""
        if code == 16:
            return Outcome.NO_SUBSCRIBER
        if code < REFUSED:
            return Outcome.TAKEN
        return Outcome.RETRY if code in _RETRIED else Outcome.REJECTED


def reason_text(code: int) -> str:
    """Return the name of a reason code of PUBACK."""
    return _REASONS.get(code, f"reason code {code}")


@functools.lru_cache
def _options(kind: str) -> MessageOptions:
    return MessageOptions(schema=schema_urn(kind), expiry_s=EVENT_EXPIRY_S)


class Refusals:
    """Topics and messages that the broker does not take, each reported once. Not thread-safe.

    `alert` publishes an alert of a kind with text and details.
    """

    def __init__(self, topics: Topics, alert: Callable[[AlertKind, str, Details], None]) -> None:
        self._topics = topics
        self._alert = alert
        self._until: dict[str, float] = {}
        self._refused: dict[str, tuple[str, float]] = {}
        """Reason by topic, and until when it is shown."""
        self._reported: set[tuple[str, int]] = set()

    def forbids(self, topic: str) -> bool:
        """Whether nothing may be sent to a topic now."""
        return bool(self._until) and self._until.get(topic, 0.0) > time.monotonic()

    @property
    def summary(self) -> str:
        """Topics that were refused in the last minutes, with the reason, for people; "" for none."""
        now = time.monotonic()
        shown = [f"{topic} ({why})" for topic, (why, until) in sorted(self._refused.items()) if until > now]
        return ", ".join(shown[:SHOWN]) + (f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else "")

    def forbid(self, topic: str) -> None:
        """Send nothing to a topic for `FORBIDDEN_S`."""
        self._until[topic] = time.monotonic() + FORBIDDEN_S

    def retried(self, topic: str) -> None:
        """Note that the broker took a message that it could not take before."""
        self._refused.pop(topic, None)

    def report(self, topic: str, code: int, reason: str = "", *, seq: int | None = None) -> None:
        """Log a message that the broker does not take, and publish an alert: once per topic and code."""
        if code == NOT_AUTHORISED:
            self.forbid(topic)
        reason = reason or reason_text(code)
        if len(self._refused) < MOST_REFUSED or topic in self._refused:
            self._refused[topic] = reason, time.monotonic() + FORBIDDEN_S
        if (topic, code) in self._reported or len(self._reported) >= MOST_REFUSED:
            return
        self._reported.add((topic, code))
        log.warning("the broker refuses a message", topic=topic, seq=seq, reason=reason)
        kind = AlertKind.DELIVERY_REFUSED
        own = self._topics.alert(str(kind))
        if topic == own or self.forbids(own):
            return
        advice = _ADVICE.get(code, "see its log")
        text = f"the broker refuses {topic}: {reason}; {advice}"
        self._alert(kind, text, {"topic": topic, "code": code, "first_seq": seq})


class EventSender:
    """Keeps the connection filled with events, oldest first. Not thread-safe."""

    def __init__(
        self,
        connection: Connection,
        outbox: Outbox,
        refusals: Refusals,
        elimination: Elimination,
        counters: Counters,
        topics: Topics,
    ) -> None:
        self._connection = connection
        self._outbox = outbox
        self._refusals = refusals
        self._elimination = elimination
        self._counters = counters
        self._topics = topics
        self._ready: deque[Row] = deque()
        self._done: list[int] = []
        self._quiet: dict[str, float] = {}
        self._quiet_since: dict[str, float] = {}
        self._attempts: dict[int, int] = {}
        """How often an event was to be tried again, by its number."""
        self._gap_ranges = MAX_RANGES
        self._rate: TokenBucket | None = None
        self._probing = True
        self.stalled_since: float | None = None
        """Since when only events without subscriber are left (monotonic seconds); None otherwise."""
        self.drained = threading.Condition()
        """Notified when the outbox becomes empty."""

    def begin(self, *, first: bool) -> None:
        """Start on a new connection with one message at a time; limit the rate where many events wait."""
        self._probing = True
        self._rate = None
        if self._outbox.depth.rows > WINDOW:
            hold_s = 0.0 if first else random.uniform(0.0, DRAIN_JITTER_S)  # noqa: S311 - spreads load only
            self._rate = TokenBucket(DRAIN_PER_S, WINDOW, hold_s=hold_s)

    def reset(self) -> None:
        """Return all rows to the outbox after the connection was lost."""
        self.delete_acknowledged()  # first, or they would be sent again
        self._ready.clear()
        self._quiet.clear()
        self.stalled_since = None
        self._outbox.release()

    # --- sending ------------------------------------------------------------------------------------------

    def send(self) -> float:
        """Send as much as there is room for; return the seconds until there may be more to send."""
        idle = self._probe_quiet_topics()
        room = self._elimination.room(self._connection)
        if self._probing:
            room = min(room, 1 - len(self._connection.unsettled))
        now = time.monotonic()
        while room > 0:
            row = self._next_row()
            if row is None:
                break
            wait = 0.0 if self._rate is None else self._rate.wait(now)
            if wait > 0:
                self._ready.appendleft(row)
                return min(idle, wait)
            room -= self._send_row(row, now)
        return idle

    def read_ahead(self) -> None:
        """Read rows for the next turns while the broker handles those that were sent."""
        if len(self._ready) < WINDOW and len(self._connection.unsettled) == WINDOW:
            self._read_rows()

    def _read_rows(self) -> None:
        skipped = [self._topics.gap] if self._refusals.forbids(self._topics.gap) else []
        self._ready.extend(self._outbox.pending(LOOK_AHEAD, without=[*self._quiet, *skipped]))

    def _next_row(self) -> Row | None:
        if not self._ready:
            self._read_rows()
        if self._ready:
            return self._ready.popleft()
        self._rate = None  # all events that waited during the outage are sent
        if self._quiet and not self._connection.unsettled and self.stalled_since is None:
            self.stalled_since = time.monotonic()
        return None

    def _send_row(self, row: Row, now: float) -> int:
        """Send or park one event; return how many were sent."""
        if self._refusals.forbids(row.topic):
            self.reject(row, NOT_AUTHORISED)
            return 0
        sent = Sent(now, row.topic, row)
        try:
            self._connection.publish(
                sent, row.message, _options(kind_of(row.topic)), traceparent=row.traceparent
            )
        except MessageTooLarge as problem:
            self._elimination.settled([sent], taken=False)
            self.reject(row, PACKET_TOO_LARGE, str(problem))
            return 0
        return 1

    def _probe_quiet_topics(self) -> float:
        """Try the oldest event of each topic without subscriber that is due; return the time to the next."""
        now = time.monotonic()
        idle = IDLE_S
        for topic, due in list(self._quiet.items()):
            if due > now:
                idle = min(idle, due - now)
            elif self._connection.room > 0 and all(
                sent.topic != topic for sent in self._connection.unsettled.values()
            ):
                self._quiet[topic] = now + QUIET_RETRY_S
                row = self._outbox.first_of(topic)
                if row is None:
                    del self._quiet[topic]
                else:
                    self._send_row(row, now)
        return idle

    # --- settling -----------------------------------------------------------------------------------------

    def settle(self, row: Row, code: int) -> None:
        """Handle the PUBACK of an event."""
        outcome = Outcome.of(code)
        if outcome is Outcome.NO_SUBSCRIBER:
            self._handle_no_subscriber(row)
        elif outcome is Outcome.RETRY:
            self._retry(row, code)
        elif outcome is Outcome.REJECTED:
            self.reject(row, code)
        else:
            self._done.append(row.seq)
            self._probing = False
            self.stalled_since = None
            if self._attempts and self._attempts.pop(row.seq, 0):
                self._refusals.retried(row.topic)
            self._quiet_since.pop(row.topic, None)
            if self._quiet.pop(row.topic, None) is not None:
                self._return_ready()  # events of this topic that were skipped come before newer ones

    def reject(self, row: Row, code: int, reason: str = "") -> None:
        """Set aside an event that the broker does not take."""
        self._counters.refused += 1
        self._attempts.pop(row.seq, None)
        if kind_of(row.topic) == "gap":
            self._reject_gap(row, code)
        else:
            self._outbox.parked.add(row.seq, f"{code}: {reason or reason_text(code)}")
        self._refusals.report(row.topic, code, reason, seq=row.seq)

    def _reject_gap(self, row: Row, code: int) -> None:
        """Make the gap events smaller; where that does not help, let them wait.

        A gap event about a refused gap event would be refused as well.
        """
        if code != NOT_AUTHORISED and self._gap_ranges > 1:
            self._gap_ranges //= 2
            self._outbox.parked.add(row.seq, f"{code}: {reason_text(code)}")
        else:
            self._refusals.forbid(row.topic)
            self._outbox.release([row.seq])
        self._return_ready()

    @property
    def gap_ranges(self) -> int:
        """How many ranges of numbers one gap event may name, so that the broker takes it."""
        return self._gap_ranges

    def _retry(self, row: Row, code: int) -> None:
        """Keep the event, try its topic again later, and let the other topics pass it."""
        self._attempts[row.seq] = self._attempts.get(row.seq, 0) + 1
        if code in _NO_CAUSE and self._attempts[row.seq] >= ATTEMPTS:
            self.reject(row, code)
            return
        self._refusals.report(row.topic, code, seq=row.seq)
        self._quiet[row.topic] = time.monotonic() + RETRY_S
        self._outbox.release([row.seq])
        self._return_ready()

    def delete_acknowledged(self) -> None:
        """Delete acknowledged events from the outbox; after sending, so that the broker need not wait."""
        if self._done:
            done, self._done = self._done, []
            self._outbox.acknowledge(done)
            self._counters.acknowledged += len(done)
            if self._outbox.is_empty:  # a notification for every batch would cost more than sending does
                with self.drained:
                    self.drained.notify_all()

    def _handle_no_subscriber(self, row: Row) -> None:
        """Keep the event, and let the other topics pass it."""
        self._counters.no_subscriber += 1
        self._quiet.setdefault(row.topic, time.monotonic() + QUIET_RETRY_S)
        self._outbox.release([row.seq])
        self._return_ready()
        now, before = self._outbox.clock.now(), self._outbox.clock.ago(NO_SUBSCRIBER_S)
        # Not by the age of the row alone: after a long outage of the broker, subscribers need time to return.
        if self._quiet_since.setdefault(row.topic, now) <= before:
            self._outbox.drop_older(row.topic, before, "no-subscriber")

    def _return_ready(self) -> None:
        """Return the rows that were read ahead, so that they are read again in the right order."""
        self._outbox.release([row.seq for row in self._ready])
        self._ready.clear()
