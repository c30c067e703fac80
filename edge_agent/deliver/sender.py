"""Sends the events of the outbox and settles them by the reason code of their PUBACK."""

from __future__ import annotations

import functools
import random
import threading
import time
from collections import deque
from collections.abc import Callable

import structlog

from edge_agent.core.codec import schema_urn
from edge_agent.core.events import Event, alert_event
from edge_agent.deliver.connection import WINDOW, Connection, MessageOptions, Sent
from edge_agent.deliver.local import Counters
from edge_agent.deliver.outbox import Outbox
from edge_agent.deliver.pacing import TokenBucket
from edge_agent.deliver.storage import Row
from edge_agent.deliver.topics import Topics

log = structlog.get_logger(__name__)

IDLE_S = 0.5
"""Longest sleep of the pump, so that its heartbeat stays fresh."""
QUIET_RETRY_S = 2.0
"""How often a topic without subscriber is tried again."""
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
PACKET_OVERHEAD = 512
"""Upper bound for header and properties of a message (bytes)."""
FORBIDDEN_S = 600.0
"""How long nothing is sent to a topic that the broker does not allow; its events are parked meanwhile.
mosquitto 2.0.11 drops a TLS connection at each such message.
"""
NO_SUBSCRIBER = 16
REFUSED = 128
"""The lowest reason code of a PUBACK that refuses the message."""
NOT_AUTHORISED = 135
PACKET_TOO_LARGE = 149
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


@functools.lru_cache
def _options(kind: str) -> MessageOptions:
    return MessageOptions(schema=schema_urn(kind), expiry_s=EVENT_EXPIRY_S)


class Refusals:
    """Topics that the broker does not allow, and the refusals that were reported. Not thread-safe."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}
        self._reported: set[tuple[str, int]] = set()

    def forbids(self, topic: str) -> bool:
        """Whether nothing may be sent to a topic now."""
        return bool(self._until) and self._until.get(topic, 0.0) > time.monotonic()

    @property
    def topics(self) -> str:
        """All topics that were refused, for people; "" for none."""
        return ", ".join(sorted(self._until))

    def forbid(self, topic: str) -> None:
        """Send nothing to a topic for `FORBIDDEN_S`."""
        self._until[topic] = time.monotonic() + FORBIDDEN_S

    def is_new(self, topic: str, code: int) -> bool:
        """Return True once for each topic and reason code."""
        before = len(self._reported)
        self._reported.add((topic, code))
        return len(self._reported) > before

    def note(self, topic: str, code: int) -> None:
        """Handle the PUBACK of a message that is not parked."""
        if code == NOT_AUTHORISED:
            self.forbid(topic)
        if code >= REFUSED and self.is_new(topic, code):
            log.warning("the broker refuses a message", topic=topic, reason=reason_text(code))


class EventSender:
    """Keeps the connection filled with events, oldest first; not thread-safe. `publish` takes alerts."""

    def __init__(
        self,
        connection: Connection,
        outbox: Outbox,
        refusals: Refusals,
        counters: Counters,
        topics: Topics,
        publish: Callable[[Event], int],
    ) -> None:
        self._connection = connection
        self._outbox = outbox
        self._refusals = refusals
        self._counters = counters
        self._topics = topics
        self._publish = publish
        self._ready: deque[Row] = deque()
        self._done: list[int] = []
        self._quiet: dict[str, float] = {}
        self._quiet_since: dict[str, float] = {}
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
        room = self._connection.room
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
        limit = self._connection.maximum_packet
        if self._refusals.forbids(row.topic):
            self._park(row, NOT_AUTHORISED, reason_text(NOT_AUTHORISED))
        elif limit is not None and len(row.body) + len(row.topic) + PACKET_OVERHEAD > limit:
            self._park(row, PACKET_TOO_LARGE, f"larger than the {limit} bytes that the broker takes")
        else:
            options, sent = _options(self._topics.kind_of(row.topic)), Sent(now, row.topic, row)
            self._connection.publish(sent, row.message, options, traceparent=row.traceparent)
            return 1
        return 0

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
        if code == NO_SUBSCRIBER:
            self._handle_no_subscriber(row)
        elif code >= REFUSED and row.topic == self._topics.gap:
            # A gap event about a refused gap event would be refused as well, so it waits.
            self._refusals.forbid(row.topic)
            self._outbox.release([row.seq])
            self._return_ready()
            self._refusals.note(row.topic, code)
        elif code >= REFUSED:
            if code == NOT_AUTHORISED:
                self._refusals.forbid(row.topic)
            self._park(row, code, reason_text(code))
        else:
            self._done.append(row.seq)
            self._probing = False
            self.stalled_since = None
            self._quiet_since.pop(row.topic, None)
            if self._quiet.pop(row.topic, None) is not None:
                self._return_ready()  # events of this topic that were skipped come before newer ones

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
        now = self._outbox.now()
        # Not by the age of the row alone: after a long outage of the broker, subscribers need time to return.
        if self._quiet_since.setdefault(row.topic, now) <= now - NO_SUBSCRIBER_S:
            self._outbox.drop_older(row.topic, now - NO_SUBSCRIBER_S, "no-subscriber")

    def _return_ready(self) -> None:
        """Return the rows that were read ahead, so that they are read again in the right order."""
        self._outbox.release([row.seq for row in self._ready])
        self._ready.clear()

    def _park(self, row: Row, code: int, reason: str) -> None:
        self._outbox.park(row.seq, f"{code}: {reason}")
        self._counters.refused += 1
        if not self._refusals.is_new(row.topic, code):
            return
        log.warning("the broker refuses an event: it is parked", topic=row.topic, seq=row.seq, reason=reason)
        kind = "delivery_refused"
        if row.topic != self._topics.alert(kind):
            text = f"the broker refuses {row.topic}: {reason}; check its access list, then restart the agent"
            details: dict[str, str | float | bool | None] = {
                "topic": row.topic,
                "code": code,
                "first_seq": row.seq,
            }
            self._publish(alert_event(kind, text, time=time.time(), details=details))
