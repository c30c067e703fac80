"""From the outbox to the broker: one pump thread that sends, settles, re-connects and never loses.

`publish` writes an event to the outbox and returns; the pump does all the rest. It keeps at most 20 messages
unacknowledged (mosquitto's own limit; more makes paho slower), and settles each by its PUBACK:

===========  ===========================================================================================
0            done: the row is deleted
16           nobody subscribed: the row stays, its topic is tried again with one message at a time; when that
             went on for `no_subscriber_s`, the numbers of rows that old go into a gap event
128 and up   refused for good: the row is parked with the reason, an alert and a gap event tell of it
no answer    the connection is given up after `ack_timeout_s`, and all unacknowledged rows are sent again
===========  ===========================================================================================

What is retained (info, camera states, status) is kept in memory and published anew at every connect, in that
order, so that `online` is the last thing a subscriber hears of a birth.
"""

from __future__ import annotations

import random
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Literal, Protocol, TypeAlias

import structlog

from edge_agent import __version__
from edge_agent.core.codec import encode, schema_urn
from edge_agent.core.errors import (
    BrokerRefused,
    BrokerUnreachable,
    DeliveryError,
    EdgeAgentError,
    StorageError,
)
from edge_agent.core.events import (
    Event,
    InfoData,
    StatusData,
    TelemetryData,
    alert_event,
    camera_status_event,
    new_event,
)
from edge_agent.core.heartbeat import HeartbeatState
from edge_agent.core.mqtt import BrokerSettings, Incoming
from edge_agent.core.structures import SourceStatus
from edge_agent.deliver.commands import Reply
from edge_agent.deliver.connection import (
    Connection,
    ConnectionState,
    WakePipe,
    Will,
)
from edge_agent.deliver.eventfile import EventFile
from edge_agent.deliver.outbox import Outbox, Row, numbered
from edge_agent.deliver.pacing import Backoff, TokenBucket
from edge_agent.deliver.packing import MessageOptions
from edge_agent.deliver.topics import Topics

__all__ = ["CommandInbox", "Counters", "LocalPublisher", "Publisher", "State"]

log = structlog.get_logger(__name__)

WINDOW = 20
"""Messages on the way without PUBACK: mosquitto's default limit, and the fastest for paho."""
QUIET_RETRY_S = 2.0
"""How often a topic that nobody subscribes to is tried again."""
IDLE_S = 0.5
"""Longest sleep of the pump, so that its heartbeat stays fresh."""
FLUSH_AFTER_S = 0.1
"""Acknowledged rows are deleted at the latest after this."""
GAP_INTERVAL_S = 1.0
"""Gap events are made at most this often, so that a long row of drops becomes one."""
PATIENCE_S = 5.0
"""How long `drain` waits for somebody to subscribe to what is left."""
STOP_S = 1.8
"""For saying goodbye: the agent as a whole has 3 s to stop."""
STABLE_S = 10.0
"""A connection that held so long lets the waits begin anew. Two agents with one name lose theirs at once."""
MAX_QUEUED_ANSWERS = 1000
LOOK_AHEAD = 200
"""Rows read from the outbox at once."""
PACKET_OVERHEAD = 512
"""More than header and properties of one of our messages take (bytes)."""
NO_SUBSCRIBER = 16
REFUSED = 128
NOT_AUTHORISED = 135
FORBIDDEN_S = 600.0
"""How long a topic that the broker does not allow us is left alone; its events are parked meanwhile."""
_COUNTED = (
    "published",
    "acknowledged",
    "unwritten",
    "refused",
    "no_subscriber",
    "connects",
    "telemetry_lost",
    "answers_lost",
)
_PLAIN_JSON = MessageOptions(content_type="application/json")
_RETAINED_OPTIONS = {kind: MessageOptions(schema=schema_urn(kind)) for kind in ("status", "info", "camera")}
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

State: TypeAlias = Literal["online", "degraded", "stopping", "offline"]


@dataclass(frozen=True, slots=True)
class Counters:
    """What delivery has done since the start, and what it holds now."""

    published: int = 0
    acknowledged: int = 0
    unwritten: int = 0
    """Events that the disk did not take; their numbers are told in gap events."""
    refused: int = 0
    no_subscriber: int = 0
    connects: int = 0
    telemetry_lost: int = 0
    answers_lost: int = 0
    in_flight: int = 0
    outbox_rows: int = 0
    outbox_bytes: int = 0
    outbox_parked: int = 0


class CommandInbox(Protocol):
    """Takes what comes in on the command topics. Called on the pump thread: it must not wait."""

    def accept(self, message: Incoming, reply: Reply) -> None:
        """Check and queue a command; its answer goes to `reply`."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """A message that is sent once and not kept on disk: the result of a command."""

    topic: str
    payload: bytes
    options: MessageOptions


@dataclass(slots=True)  # not frozen: one is made for every message, and that would take three times as long
class _Sent:
    """A message on the way: what it was, and when it was sent (monotonic seconds)."""

    at: float
    topic: str
    row: Row | None = None
    answer: _Answer | None = None


class _Device:
    """Who speaks: gives events their source and session."""

    def __init__(self, *, site: str, device: str, session: str, event_file: EventFile | None) -> None:
        self.topics = Topics(site, device)
        self.session = session
        self._event_file = event_file
        self._file_failing = False

    def stamp(self, event: Event) -> Event:
        return replace(event, source=self.topics.root, session=self.session)

    def to_file(self, message: bytes) -> None:
        if self._event_file is None:
            return
        try:
            self._event_file.write(message)
            self._file_failing = False
        except StorageError as problem:
            if not self._file_failing:
                log.warning("events file cannot be written", error=str(problem))
            self._file_failing = True


class LocalPublisher:
    """Stands where a publisher stands when no broker is configured: numbers events and writes the file.

    Args:
        site, device: who we are.
        session: id of this run.
        event_file: where events go; None for nowhere.
    """

    def __init__(self, *, site: str, device: str, session: str, event_file: EventFile | None = None) -> None:
        self._device = _Device(site=site, device=device, session=session, event_file=event_file)
        self._lock = threading.Lock()
        self._published = 0
        self.state = ConnectionState.DISABLED

    def __enter__(self) -> LocalPublisher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def publish(self, event: Event) -> int:
        """Number an event, counted from 1 in this run, and write it to the file."""
        with self._lock:
            self._published += 1
            self._device.to_file(encode(replace(self._device.stamp(event), seq=self._published)))
            return self._published

    def set_status(self, state: State, reason: str = "") -> None:
        """Nobody to tell."""

    def set_camera_status(self, status: SourceStatus) -> None:
        """Nobody to tell."""

    def send_telemetry(self, data: TelemetryData) -> None:
        """Nobody to tell."""

    def drain(self, timeout: float) -> bool:  # noqa: ARG002 - as Publisher has it
        """Nothing waits here."""
        return True

    def stop(self) -> None:
        """Nothing to stop."""

    @property
    def heartbeat(self) -> HeartbeatState:
        """Nothing here can hang: always now."""
        return HeartbeatState(time.monotonic(), idle="no broker is set")

    @property
    def counters(self) -> Counters:
        """How many events there were."""
        return Counters(published=self._published)


class Publisher:
    """Delivers events to a broker. Enter it to start the pump, leave it to stop.

    Args:
        site, device: who we are; parts of every topic.
        session: id of this run of the agent.
        broker: where the broker is.
        outbox: an open outbox, closed after the publisher by its owner.
        info: what runs here; asked on the pump thread at every connect.
        event_file: gets every event too.
        commands: takes commands; without it no command topic is subscribed.
        drain_per_s: most events per second while an outage is caught up with; None for no limit.
        drain_jitter_s: catching up begins after a random wait up to this, for the sake of a fleet.
        ack_timeout_s: a message without PUBACK for so long means a dead connection.
        no_subscriber_s: how long events wait for somebody to subscribe.
        event_expiry_s: how long the broker keeps an event for a subscriber that is away; None for ever.
        telemetry_expiry_s: the same for telemetry.
    """

    def __init__(
        self,
        *,
        site: str,
        device: str,
        session: str,
        broker: BrokerSettings,
        outbox: Outbox,
        info: Callable[[], InfoData],
        event_file: EventFile | None = None,
        commands: CommandInbox | None = None,
        client_id: str | None = None,
        drain_per_s: float | None = 1000.0,
        drain_jitter_s: float = 2.0,
        ack_timeout_s: float = 10.0,
        no_subscriber_s: float = 3600.0,
        event_expiry_s: int | None = 86_400,
        telemetry_expiry_s: int = 90,
    ) -> None:
        self._device = _Device(site=site, device=device, session=session, event_file=event_file)
        self._topics = self._device.topics
        self._broker = broker
        self._outbox = outbox
        self._info = info
        self._commands = commands
        self._drain_per_s = drain_per_s
        self._drain_jitter_s = drain_jitter_s
        self._ack_timeout_s = ack_timeout_s
        self._no_subscriber_s = no_subscriber_s
        self._telemetry_options = MessageOptions(schema=schema_urn("telemetry"), expiry_s=telemetry_expiry_s)
        self._event_expiry_s = event_expiry_s
        self._event_options: dict[str, MessageOptions] = {}
        self._backoff = Backoff()
        self._wake = WakePipe()
        self._connection = Connection(
            broker,
            client_id=client_id or f"edge-agent-{site}-{device}",
            will=Will(self._topics.status, self._status_message("offline", "connection lost")),
            wake=self._wake,
        )
        self._lock = threading.Lock()
        self._progress = threading.Condition()
        self._retained: OrderedDict[str, bytes] = OrderedDict()
        self._unsent: OrderedDict[str, None] = OrderedDict()
        self._answers: deque[_Answer] = deque()
        self._telemetry: bytes | None = None
        self._status: tuple[State, str, float] | None = None
        self._window: dict[int, _Sent] = {}
        self._ready: deque[Row] = deque()
        self._done: list[int] = []
        self._quiet: dict[str, float] = {}
        self._quiet_since: dict[str, float] = {}
        self._forbidden: dict[str, float] = {}
        self._told: set[tuple[str, int]] = set()
        self._rate: TokenBucket | None = None
        self._probing = True
        self._stalled_since: float | None = None
        self._next_attempt = self._next_tidy = self._next_gaps = 0.0
        self._connected_at = 0.0
        self._wait = 0.0
        self._outage_logged = False
        self._counts = dict.fromkeys(_COUNTED, 0)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self.state = ConnectionState.CONNECTING
        """Where the connection stands."""
        self.problem: str | None = None
        """Why nothing can be delivered at the moment, for people; None when all is well."""
        self._loop_at = time.monotonic()
        """Start of the last turn of the pump (monotonic seconds). Connecting may take 15 s."""

    # --- for the owner ------------------------------------------------------------------------------------

    def __enter__(self) -> Publisher:
        if self._outbox.set_aside is not None:
            text = f"the outbox was damaged; see {self._outbox.set_aside}"
            self.publish(self._alert("outbox_damaged", text))
        self._requeue_parked()
        if self._broker.password is not None and not self._broker.tls and not self._broker.is_loopback:
            log.warning("the password goes to the broker in the clear: use mqtts://", broker=self._broker.url)
        self._thread.start()
        return self

    def _requeue_parked(self) -> None:
        """Try anew what the broker once refused; a full disk must not keep us from starting."""
        try:
            self._outbox.requeue_parked()
        except StorageError as problem:
            log.warning("events that the broker refused stay parked until the next start", error=str(problem))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def publish(self, event: Event) -> int:
        """Take an event: numbered and on disk when this returns. Never waits for the network.

        Where the disk refuses, the event is lost, but its number is known and a gap event will tell it.

        Returns:
            The event's number.
        """
        stamped = self._device.stamp(event)
        topic = self._topics.of(stamped)
        message = encode(replace(stamped, seq=None))
        with self._lock:  # numbers stand in the events file in their order, too
            self._counts["published"] += 1
            try:
                seq = self._outbox.append_encoded(message, topic)
            except StorageError:  # the outbox has logged it, once
                self._counts["unwritten"] += 1
                seq = self._outbox.last_number
                self._device.to_file(numbered(message, seq))
                return seq
            self._device.to_file(numbered(message, seq))
        self._wake.signal()
        return seq

    def set_status(self, state: State, reason: str = "") -> None:
        """Tell the state of the agent, retained; what was told already is not told again."""
        with self._lock:
            before = self._status
            if before is not None and before[:2] == (state, reason):
                return
            since = before[2] if before is not None and before[0] == state else time.time()
            self._status = (state, reason, since)
        self._retain(self._topics.status, self._status_message(state, reason, since))

    def set_camera_status(self, status: SourceStatus) -> None:
        """Tell the state of a camera, retained."""
        event = self._device.stamp(camera_status_event(status))
        self._retain(self._topics.camera_status(status.camera), encode(event))

    def set_retained(self, topic: str, payload: bytes) -> None:
        """Keep any other message retained on the broker, e.g. for discovery; an empty payload removes it."""
        self._retain(topic, payload)

    def refresh_info(self) -> None:
        """Ask for the info again and publish it, after a setting or the model has changed."""
        self._retain(self._topics.info, self._info_message())

    def send_telemetry(self, data: TelemetryData) -> None:
        """Send telemetry once, if the broker is there; a newer one takes the place of one that waits."""
        message = encode(self._device.stamp(new_event("telemetry", data, time=time.time())))
        with self._lock:
            if self._telemetry is not None or not self._connection.is_open:
                self._counts["telemetry_lost"] += 1
            self._telemetry = message if self._connection.is_open else None
        self._wake.signal()

    def answer(self, topic: str, event: Event, *, correlation: bytes | None = None) -> None:
        """Send the result of a command, once; it is not kept on disk."""
        options = MessageOptions(schema=schema_urn(event.kind), correlation=correlation)
        with self._lock:
            if len(self._answers) >= MAX_QUEUED_ANSWERS:
                self._answers.popleft()
                self._counts["answers_lost"] += 1
            self._answers.append(_Answer(topic, encode(self._device.stamp(event)), options))
        self._wake.signal()

    def drain(self, timeout: float) -> bool:
        """Wait until the broker has every event.

        Returns:
            False when there are some left after `timeout` seconds, or when for some seconds all that was left
            were events that nobody subscribes to.
        """
        deadline = time.monotonic() + timeout
        with self._progress:
            while (left := deadline - time.monotonic()) > 0:
                if self._is_drained:
                    return True
                if self._stalled_since is not None and time.monotonic() - self._stalled_since > PATIENCE_S:
                    return False
                self._progress.wait(min(left, IDLE_S))
        return self._is_drained

    @property
    def _is_drained(self) -> bool:
        return self._outbox.is_empty and not self._outbox.untold

    def stop(self, timeout: float = STOP_S) -> None:
        """Say `offline` and end the pump; what is not delivered waits in the outbox for the next start."""
        self._stopping.set()
        self._wake.signal()
        if self._thread.is_alive():
            self._thread.join(timeout)
        if self._thread.is_alive():  # it waits for a name server or a handshake; it ends when that does
            log.warning("publisher still connects; it is left behind", broker=self._broker.url)
            return
        self._wake.close()

    @property
    def counters(self) -> Counters:
        """What was delivered, and what waits."""
        depth = self._outbox.depth
        return Counters(
            **self._counts,
            in_flight=len(self._window),
            outbox_rows=depth.rows,
            outbox_bytes=depth.bytes,
            outbox_parked=depth.parked,
        )

    @property
    def heartbeat(self) -> HeartbeatState:
        """Last turn of the pump, and why nothing can be delivered, if so."""
        return HeartbeatState(self._loop_at, self.state.value, self.problem, self._thread.ident)

    # --- messages -----------------------------------------------------------------------------------------

    def _status_message(self, state: State, reason: str, since: float | None = None) -> bytes:
        now = time.time()
        data = StatusData(
            state=state, since=now if since is None else since, reason=reason, version=__version__
        )
        return encode(self._device.stamp(new_event("status", data, time=now)))

    def _info_message(self) -> bytes:
        return encode(self._device.stamp(new_event("info", self._info(), time=time.time())))

    def _alert(self, kind: str, message: str, **details: str | float | bool | None) -> Event:
        return alert_event(kind, message, time=time.time(), details=details)

    def _retain(self, topic: str, payload: bytes) -> None:
        with self._lock:
            self._retained[topic] = payload
            self._unsent[topic] = None
        self._wake.signal()

    # --- the pump -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        storage_failed = False
        while not self._stopping.is_set():
            self._loop_at = time.monotonic()
            try:
                if self._connection.is_open:
                    self._serve()
                else:
                    self._reconnect()
                storage_failed = False
            except BrokerUnreachable as problem:
                self._lose_connection(problem)
            except StorageError as problem:
                if not storage_failed:
                    log.warning("outbox cannot be used now", error=str(problem))
                storage_failed = True
                self._stopping.wait(IDLE_S)
            except Exception as problem:
                # Delivery goes on whatever happens here: a fault of ours or of paho's costs one connection.
                log.exception("delivery failed unexpectedly")
                self._lose_connection(DeliveryError(f"internal error: {problem}"))
        self._say_goodbye()

    def _serve(self) -> None:
        """One turn: take what came, settle it, send what is due."""
        happened = self._connection.turn(self._wait)
        self._settle(happened.acks)
        for message in happened.messages:
            if self._commands is not None:
                self._commands.accept(message, self.answer)
        if any(code >= 128 for code in happened.subscribed):
            log.warning("the broker refuses our subscription to commands", topic=self._topics.commands)
        if not self._connection.is_open:
            raise BrokerUnreachable(f"broker {self._broker.url}: connection lost: {self._connection.loss}")
        self._check_liveness()
        self._wait = IDLE_S
        self._send_retained()
        self._send_answers()
        self._send_telemetry()
        self._send_rows()
        self._strike_out()
        self._read_ahead()
        self._tidy()

    def _reconnect(self) -> None:
        """Wait for the time of the next attempt, then connect."""
        self._tidy()
        left = self._next_attempt - time.monotonic()
        if left > 0:
            self._stopping.wait(min(left, IDLE_S))
            return
        if self.state is not ConnectionState.REFUSED:
            self.state = ConnectionState.CONNECTING
        try:
            self._connection.open()
        except BrokerRefused as problem:
            self._lose_connection(problem)
        else:
            self._begin()

    def _begin(self) -> None:
        """A connection is there: everything retained is due again, the status last."""
        self.state = ConnectionState.CONNECTED
        self.problem = None if not self._forbidden else self.problem
        self._connected_at = time.monotonic()
        self._counts["connects"] += 1
        if self._outage_logged or self._counts["connects"] == 1:
            log.info("connected to the broker", broker=self._broker.url)
        self._outage_logged = False
        if self._commands is not None:
            self._connection.subscribe(self._topics.commands)
        info = self._info_message()
        with self._lock:
            self._retained[self._topics.info] = info
            self._retained.move_to_end(self._topics.info, last=False)
            if self._topics.status in self._retained:
                self._retained.move_to_end(self._topics.status)
            self._unsent = OrderedDict.fromkeys(self._retained)
        self._probing = True
        self._rate = None
        if self._drain_per_s is not None and self._outbox.depth.rows > WINDOW:
            again = self._counts["connects"] > 1
            hold = random.uniform(0.0, self._drain_jitter_s) if again else 0.0  # noqa: S311 - spreads load only
            self._rate = TokenBucket(self._drain_per_s, WINDOW, hold_s=hold)

    def _lose_connection(self, problem: EdgeAgentError) -> None:
        """The connection is gone or did not come: everything unsettled is sent again after the next one."""
        refused = isinstance(problem, BrokerRefused)
        self._connection.close()
        self._forget_sent()
        if self.state is ConnectionState.CONNECTED and time.monotonic() - self._connected_at > STABLE_S:
            self._backoff.reset()
        wait = self._backoff.next_wait(refused=refused)
        self._next_attempt = time.monotonic() + wait
        self.state = ConnectionState.REFUSED if refused else ConnectionState.WAITING
        refusals = f"; it refused {', '.join(sorted(self._forbidden))} before" if self._forbidden else ""
        self.problem = f"{problem}{refusals}"
        say = log.debug if self._outage_logged else log.warning
        self._outage_logged = True
        say("no broker: events wait in the outbox", error=str(problem), next_attempt_s=round(wait, 1))

    def _forget_sent(self) -> None:
        self._strike_out()  # before all is released, or it would be sent again
        with self._lock:
            for sent in reversed(self._window.values()):
                if sent.answer is not None:
                    self._answers.appendleft(sent.answer)
            self._telemetry = None
        self._window.clear()
        self._ready.clear()
        self._quiet.clear()
        self._stalled_since = None
        self._outbox.release()

    def _check_liveness(self) -> None:
        oldest = next(iter(self._window.values()), None)
        if oldest is not None and time.monotonic() - oldest.at > self._ack_timeout_s:
            raise BrokerUnreachable(
                f"broker {self._broker.url}: no PUBACK for {self._ack_timeout_s:g} s; it hangs or is cut off"
            )

    # --- sending ------------------------------------------------------------------------------------------

    @property
    def _room(self) -> int:
        return min(WINDOW, self._connection.receive_maximum) - len(self._window)

    def _send(
        self,
        message: bytes,
        sent: _Sent,
        options: MessageOptions,
        *,
        retain: bool = False,
        traceparent: str = "",
    ) -> None:
        number = self._connection.publish(
            sent.topic, message, qos=1, retain=retain, options=options, traceparent=traceparent
        )
        self._window[number] = sent

    def _send_retained(self) -> None:
        while self._unsent and self._room > 0:
            with self._lock:
                topic, _ = self._unsent.popitem(last=False)
                message = self._retained[topic]
            if self._is_forbidden(topic):
                continue
            kind = topic.removeprefix(self._topics.root + "/").split("/")[0]
            options = _RETAINED_OPTIONS.get(kind, _PLAIN_JSON)
            self._send(message, _Sent(time.monotonic(), topic), options, retain=True)

    def _send_answers(self) -> None:
        while self._answers and self._room > 0:
            with self._lock:
                answer = self._answers.popleft()
            sent = _Sent(time.monotonic(), answer.topic, answer=answer)
            self._send(answer.payload, sent, answer.options)

    def _send_telemetry(self) -> None:
        with self._lock:
            message, self._telemetry = self._telemetry, None
        if message is not None:
            self._connection.publish(self._topics.telemetry, message, qos=0, options=self._telemetry_options)

    def _send_rows(self) -> None:
        """Fill the window with events, oldest first."""
        if self._unsent:
            self._wait = 0.0 if self._room > 0 else self._wait
            return
        self._probe_quiet_topics()
        room = min(self._room, 1 - len(self._window)) if self._probing else self._room
        now = time.monotonic()
        while room > 0:
            row = self._next_row()
            if row is None:
                break
            wait = 0.0 if self._rate is None else self._rate.wait(now)
            if wait > 0:
                self._ready.appendleft(row)
                self._wait = min(self._wait, wait)
                break
            room -= self._send_row(row, now)

    def _read_ahead(self) -> None:
        """Have the rows for the next turns at hand while the broker is busy with those that were sent."""
        if len(self._ready) < WINDOW and len(self._window) == WINDOW:
            self._read_rows()

    def _read_rows(self) -> None:
        held = [self._topics.gap] if self._is_forbidden(self._topics.gap) else []
        self._ready.extend(self._outbox.pending(LOOK_AHEAD, without=[*self._quiet, *held]))

    def _next_row(self) -> Row | None:
        if not self._ready:
            self._read_rows()
        if self._ready:
            return self._ready.popleft()
        self._rate = None  # caught up with the outage
        if self._quiet and not self._window and self._stalled_since is None:
            self._stalled_since = time.monotonic()
        return None

    def _send_row(self, row: Row, now: float) -> int:
        """Send one event; returns how much of the window it took."""
        if self._forbidden and self._is_forbidden(row.topic):
            self._park(row, NOT_AUTHORISED, _reason_text(NOT_AUTHORISED))
            return 0
        limit = self._connection.maximum_packet
        if limit is not None and len(row.body) + len(row.topic) + PACKET_OVERHEAD > limit:
            self._park(row, 149, f"larger than the {limit} bytes that the broker takes")
            return 0
        options = self._event_options.get(row.topic) or self._options_of(row.topic)
        self._send(row.message, _Sent(now, row.topic, row), options, traceparent=row.traceparent)
        return 1

    def _options_of(self, topic: str) -> MessageOptions:
        kind = topic.removeprefix(self._topics.root + "/").split("/")[0]
        made = MessageOptions(schema=schema_urn(kind), expiry_s=self._event_expiry_s)
        self._event_options[topic] = made
        return made

    def _probe_quiet_topics(self) -> None:
        """Try the oldest event of each topic that nobody subscribed to, now and then."""
        now = time.monotonic()
        for topic, due in list(self._quiet.items()):
            if due > now:
                self._wait = min(self._wait, due - now)
            elif self._room > 0 and not any(sent.topic == topic for sent in self._window.values()):
                self._quiet[topic] = now + QUIET_RETRY_S
                row = self._outbox.first_of(topic)
                if row is None:
                    del self._quiet[topic]
                else:
                    self._send_row(row, now)

    # --- settling -----------------------------------------------------------------------------------------

    def _settle(self, acks: list[tuple[int, int]]) -> None:
        done: list[int] = []
        for number, code in acks:
            sent = self._window.pop(number, None)
            if sent is None:
                continue
            if sent.row is None:
                self._settle_unnumbered(sent, code)
            elif code == NO_SUBSCRIBER:
                self._nobody_there(sent.row)
            elif code >= REFUSED:
                self._refused(sent.row, code)
            else:
                done.append(sent.row.seq)
                self._probing = False
                self._stalled_since = None
                if self._quiet_since:
                    self._quiet_since.pop(sent.topic, None)
                if self._quiet.pop(sent.topic, None) is not None:
                    self._return_ready()  # events of this topic that were passed over come before newer ones
        self._done += done

    def _strike_out(self) -> None:
        """Take what the broker has out of the outbox: after sending, so that the broker need not wait."""
        if self._done:
            done, self._done = self._done, []
            self._outbox.acknowledge(done)
            self._counts["acknowledged"] += len(done)
            if self._outbox.is_empty:  # waking `drain` for less would cost more than sending does
                self._tell_progress()

    def _settle_unnumbered(self, sent: _Sent, code: int) -> None:
        if code == NOT_AUTHORISED:
            self._forbid(sent.topic)
        if code >= REFUSED and (sent.topic, code) not in self._told:
            self._told.add((sent.topic, code))
            log.warning("the broker refuses a message", topic=sent.topic, reason=_reason_text(code))

    def _nobody_there(self, row: Row) -> None:
        """Keep the event, and its topic out of the way of the others."""
        self._counts["no_subscriber"] += 1
        self._quiet.setdefault(row.topic, time.monotonic() + QUIET_RETRY_S)
        self._outbox.release([row.seq])
        self._return_ready()
        now = self._outbox.now()
        # Not by the age of the row alone: after a long outage of the broker its subscribers need a moment.
        if self._quiet_since.setdefault(row.topic, now) <= now - self._no_subscriber_s:
            self._outbox.drop_older(row.topic, now - self._no_subscriber_s, "no-subscriber")

    def _return_ready(self) -> None:
        """Give rows that were read ahead back, so that they are read anew in the right order."""
        self._outbox.release([row.seq for row in self._ready])
        self._ready.clear()

    def _refused(self, row: Row, code: int) -> None:
        if row.topic == self._topics.gap:
            # A gap event about a refused gap event would be refused in turn: it waits.
            self._forbid(row.topic)
            self._outbox.release([row.seq])
            self._return_ready()
            self._settle_unnumbered(_Sent(0.0, row.topic), code)
            return
        if code == NOT_AUTHORISED:
            self._forbid(row.topic)
        self._park(row, code, _reason_text(code))

    def _forbid(self, topic: str) -> None:
        """Leave a topic alone for a while. mosquitto 2.0.11 drops a TLS connection at each such message."""
        self._forbidden[topic] = time.monotonic() + FORBIDDEN_S
        self.problem = f"broker {self._broker.url} refuses messages: {', '.join(sorted(self._forbidden))}"

    def _is_forbidden(self, topic: str) -> bool:
        return self._forbidden.get(topic, 0.0) > time.monotonic()

    def _park(self, row: Row, code: int, reason: str) -> None:
        self._outbox.park(row.seq, f"{code}: {reason}")
        self._counts["refused"] += 1
        if (row.topic, code) in self._told:
            return
        self._told.add((row.topic, code))
        log.warning("the broker refuses an event: it is parked", topic=row.topic, seq=row.seq, reason=reason)
        kind = "delivery_refused"
        if row.topic != self._topics.alert(kind):
            text = f"the broker refuses {row.topic}: {reason}; check its access list, then restart the agent"
            self.publish(self._alert(kind, text, topic=row.topic, code=code, first_seq=row.seq))

    def _tidy(self) -> None:
        """Delete what was acknowledged, drop what is too old, tell what was dropped."""
        now = time.monotonic()
        if now < self._next_tidy:
            self._wait = min(self._wait, self._next_tidy - now)
            return
        self._next_tidy = now + FLUSH_AFTER_S
        self._outbox.flush()
        self._outbox.sync_marks()
        try:
            self._outbox.expire()
            self._tell_gaps(now)
        except StorageError as problem:
            # A full disk must not keep us from delivering, which is what makes room on it.
            log.debug("outbox cannot be tidied now", error=str(problem))

    def _tell_gaps(self, now: float) -> None:
        if self._connection.is_open and now >= self._next_gaps and not self._is_forbidden(self._topics.gap):
            self._next_gaps = now + GAP_INTERVAL_S
            for row in self._outbox.report_gaps(self._device.stamp, self._topics.gap):
                self._device.to_file(row.message)

    def _tell_progress(self) -> None:
        with self._progress:
            self._progress.notify_all()

    # --- the end ------------------------------------------------------------------------------------------

    def _say_goodbye(self) -> None:
        """Deliver a little longer, then say `offline`, which after a goodbye the broker does not."""
        deadline = time.monotonic() + STOP_S * 0.8
        try:
            if self._connection.is_open:
                while (
                    self._outbox.depth.rows
                    and self._stalled_since is None
                    and time.monotonic() < deadline - STOP_S * 0.4
                ):
                    self._serve()
                    self._wait = min(self._wait, 0.05)
                self._say_offline(deadline)
                self._connection.close(goodbye=True)
        except EdgeAgentError as problem:
            log.warning("could not say goodbye to the broker", error=str(problem))
            self._connection.close()
        self._forget_sent()
        self._outbox.flush()
        self.state = ConnectionState.STOPPED

    def _say_offline(self, deadline: float) -> None:
        message = self._status_message("offline", "stopped")
        topic = self._topics.status
        self._send(message, _Sent(time.monotonic(), topic), _RETAINED_OPTIONS["status"], retain=True)
        last = next(reversed(self._window))
        while last in self._window and self._connection.is_open and time.monotonic() < deadline:
            self._settle(self._connection.turn(0.05).acks)


def _reason_text(code: int) -> str:
    """MQTT 5, section 3.4.2.1, in words."""
    return _REASONS.get(code, f"reason code {code}")
