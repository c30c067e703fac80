"""The thread that moves messages to the broker: connects, sends, settles, reconnects."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from edge_agent.core.alerts import AlertKind
from edge_agent.core.codec import encode, schema_urn
from edge_agent.core.errors import (
    BrokerRefused,
    BrokerUnreachable,
    DeliveryError,
    EdgeAgentError,
    MessageTooLarge,
    StorageError,
)
from edge_agent.core.events import Details, Event, InfoData, alert_event
from edge_agent.core.heartbeat import HeartbeatState
from edge_agent.core.mqtt import BrokerSettings
from edge_agent.deliver.conflict import ConflictWatch
from edge_agent.deliver.connection import Answer, Connection, ConnectionState, Sent, WakePipe
from edge_agent.deliver.elimination import PACKET_TOO_LARGE, Elimination
from edge_agent.deliver.local import Counters, Origin
from edge_agent.deliver.outbox import Outbox
from edge_agent.deliver.pacing import Backoff
from edge_agent.deliver.packets import MessageOptions
from edge_agent.deliver.present_message import PresentMessage
from edge_agent.deliver.sender import IDLE_S, REFUSED, RETRY_S, EventSender, Outcome, Refusals
from edge_agent.deliver.topics import kind_of
from edge_agent.deliver.unnumbered import UnnumberedMessages

if TYPE_CHECKING:
    from edge_agent.deliver.commands import CommandDesk

log = structlog.get_logger(__name__)

FLUSH_AFTER_S = 0.1
"""Acknowledged rows are deleted at the latest after this time."""
GAP_INTERVAL_S = 1.0
"""Gap events are made at most this often, so that many drops become one event."""
ACK_TIMEOUT_S = 10.0
"""A message without PUBACK for this time means a dead connection."""
STOP_S = 1.8
"""Time for the end of the pump: the agent as a whole has 3 s to stop."""
STABLE_S = 10.0
"""A connection that lasted this long resets the back-off. Two agents with one name lose theirs at once."""
SILENT_S = 60.0
"""A broker that has taken nothing for this long is a reason for the state `degraded`."""
TELEMETRY_EXPIRY_S = 90
SHORT_TEXT = 100
"""Characters of the error in the short form of an answer."""
_TELEMETRY_OPTIONS = MessageOptions(schema=schema_urn("telemetry"), expiry_s=TELEMETRY_EXPIRY_S)
_PLAIN_JSON = MessageOptions(content_type="application/json")
_RETAINED_OPTIONS = {
    kind: MessageOptions(schema=schema_urn(kind)) for kind in ("status", "info", "camera", "present")
}


class Pump:
    """Connects to the broker and sends what waits, on a thread of its own, from `start` to `stop`.

    See `Publisher` for the arguments; `publish` takes alerts about refused events.
    """

    def __init__(
        self,
        broker: BrokerSettings,
        client_id: str,
        origin: Origin,
        outbox: Outbox,
        *,
        commands: CommandDesk | None,
        info: Callable[[], InfoData],
        publish: Callable[[Event], int],
    ) -> None:
        self._broker = broker
        self._origin = origin
        self._topics = topics = origin.topics
        self._outbox = outbox
        self._commands = commands
        self._info = info
        self.wake = WakePipe()
        self.counters = Counters()
        self.unnumbered = UnnumberedMessages(self.counters)
        will = (topics.status, origin.status("offline", "connection lost"))
        self.connection = Connection(broker, client_id=client_id, will=will, wake=self.wake)
        self._present = PresentMessage(origin, self.connection, self.unnumbered)
        self._publish = publish
        self._conflict = ConflictWatch(broker, client_id, self._alert)
        self._refusals = Refusals(topics, self._alert)
        self._elimination = Elimination()
        self.events = EventSender(
            self.connection, outbox, self._refusals, self._elimination, self.counters, topics
        )
        self._backoff = Backoff()
        self._next_attempt = self._next_upkeep = self._next_gaps = 0.0
        self._connected_at = 0.0
        self._wait = 0.0
        self._outage_logged = False
        self._last_turn = time.monotonic()
        self._problem: str | None = None
        self._silent_since: float | None = time.monotonic()
        """Since when the broker has taken nothing; None after it took something on this connection."""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self.start = self._thread.start
        self.state = ConnectionState.CONNECTING

    def stop(self) -> None:
        """Publish `offline` and end the thread."""
        self._stopping.set()
        self.wake.signal()
        if self._thread.is_alive():
            self._thread.join(STOP_S)
        if self._thread.is_alive():  # it waits for a name server or a handshake, and ends after that
            log.warning("publisher still connects; it is left behind", broker=self._broker.url)
            return
        self.wake.close()

    @property
    def problem(self) -> str | None:
        """Why nothing, or not everything, can be delivered now, for people; None when all is well."""
        refused = self._refusals.summary
        if self._problem is None:
            return f"broker {self._broker.url} refuses messages: {refused}" if refused else None
        return f"{self._problem}; it refused {refused} before" if refused else self._problem

    @property
    def trouble(self) -> str:
        """Why the agent is degraded: a client with its id, a broker that is silent or refuses; or ""."""
        if conflict := self._conflict.text:
            return conflict
        since = self._silent_since
        if since is not None and time.monotonic() - since > SILENT_S:
            return self._problem or f"broker {self._broker.url} acknowledges nothing"
        return (self.problem or "") if self._refusals.summary else ""

    @property
    def heartbeat(self) -> HeartbeatState:
        """The time of the last turn, and the problem if there is one. A connect may take 15 s."""
        return HeartbeatState(self._last_turn, self.state.value, self.problem, self._thread.ident)

    # --- connection ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        storage_failed = False
        while not self._stopping.is_set():
            self._last_turn = time.monotonic()
            try:
                if self.connection.is_open:
                    self._serve()
                else:
                    self._reconnect()
                storage_failed = False
            except (BrokerRefused, BrokerUnreachable) as problem:
                self._handle_loss(problem)
            except StorageError as problem:
                if not storage_failed:
                    log.warning("outbox cannot be used now", error=str(problem))
                storage_failed = True
                self._stopping.wait(IDLE_S)
            except Exception as problem:
                # Delivery must continue: a bug here or in paho costs one connection.
                log.exception("delivery failed unexpectedly")
                self._handle_loss(DeliveryError(f"internal error: {problem}"))
        self._finish()

    def _reconnect(self) -> None:
        """Wait for the next attempt, then connect, and queue all retained messages, the status last."""
        self._do_upkeep()
        left = self._next_attempt - time.monotonic()
        if left > 0:
            self._stopping.wait(min(left, IDLE_S))
            return
        if self.state is not ConnectionState.REFUSED:
            self.state = ConnectionState.CONNECTING
        self.connection.open(clean_start=self.counters.connects == 0)  # no commands to an earlier run
        self.state = ConnectionState.CONNECTED
        self._problem = None
        self._connected_at = time.monotonic()
        self.counters.connects += 1
        first = self.counters.connects == 1
        if self._outage_logged or first:
            log.info("connected to the broker", broker=self._broker.url)
        self._outage_logged = False
        if self._commands is not None:
            self.connection.subscribe(self._topics.commands)
        self.unnumbered.retain(self._topics.info, self._origin.message("info", self._info()))
        self.unnumbered.resend_retained(first=self._topics.info, last=self._topics.status)
        self.events.begin(first=first)

    def _handle_loss(self, problem: EdgeAgentError) -> None:
        """Plan the next attempt; what is not settled is sent again after it."""
        refused = isinstance(problem, BrokerRefused)
        conflict_s = None
        if isinstance(problem, DeliveryError) and not self._eliminate():
            if self.state is ConnectionState.CONNECTED:
                conflict_s = self._conflict.lost(self.connection, time.monotonic() - self._connected_at)
            else:
                self._conflict.not_connected()
        self.connection.close()
        self._reset()
        if self._silent_since is None:
            self._silent_since = time.monotonic()
        if self.state is ConnectionState.CONNECTED and time.monotonic() - self._connected_at > STABLE_S:
            self._backoff.reset()
        wait = self._backoff.next_wait(refused=refused)
        if conflict_s is not None:
            wait, problem = conflict_s, BrokerUnreachable(self._conflict.text)
        self._next_attempt = time.monotonic() + wait
        self.state = ConnectionState.REFUSED if refused else ConnectionState.WAITING
        self._problem = str(problem)
        write = log.debug if self._outage_logged else log.warning
        self._outage_logged = True
        write("no broker: events wait in the outbox", error=str(problem), next_attempt_s=round(wait, 1))

    def _eliminate(self) -> bool:
        """Look for a message at which the broker closes the connection; set it aside, and return whether."""
        connection = self.connection
        code = connection.loss_code
        found = self._elimination.lost(connection.in_doubt, code, others_pass=connection.has_acks)
        connection.assumed_maximum = self._elimination.limit
        if found is None:
            return False
        self._backoff.reset()
        reason = f"{connection.loss} ({found.size} bytes)"
        if found.row is not None:
            self.events.reject(found.row, PACKET_TOO_LARGE if code is None else code, reason)
        else:
            self._refusals.forbid(found.topic)
            self._drop(found, PACKET_TOO_LARGE if code is None else code, reason)
        connection.forget(found)
        return True

    def _alert(self, kind: AlertKind, text: str, details: Details, *, active: bool = True) -> None:
        label = self._origin.clock.label()
        self._publish(alert_event(kind, text, active=active, time=label, details=details))

    def _drop(self, sent: Sent, code: int, reason: str = "") -> None:
        """Drop a message that is not an event, and report it."""
        if sent.answer is not None:
            self.unnumbered.drop_answer(sent.answer)
        self._refusals.report(sent.topic, code, reason)

    def _reset(self) -> None:
        self.unnumbered.return_unsent(list(self.connection.unsettled.values()))
        self.connection.unsettled.clear()
        self.events.reset()

    # --- one turn -----------------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Receive, settle, then send what is due."""
        connection = self.connection
        happened = connection.turn(self._wait)
        self._elimination.settled(happened.passed)
        self._settle(happened.acks)
        for message in happened.messages:
            if self._commands is not None:
                self._commands.accept(message, self.answer)
        if any(code >= REFUSED for code in happened.subscribed):
            log.warning("the broker refuses our subscription to commands", topic=self._topics.commands)
        if not connection.is_open:
            raise BrokerUnreachable(f"broker {self._broker.url}: connection lost: {connection.loss}")
        oldest = next(iter(connection.unsettled.values()), None)
        if oldest is not None and time.monotonic() - oldest.at > ACK_TIMEOUT_S:
            raise BrokerUnreachable(
                f"broker {self._broker.url}: no PUBACK for {ACK_TIMEOUT_S:g} s; it hangs or is cut off"
            )
        self._send_unnumbered()
        # Suspects among the retained messages let events pass, which shows whether the broker takes others.
        if not self.unnumbered.has_retained or (self._elimination.careful and not connection.has_acks):
            idle = self.events.send()
        else:
            idle = 0.0 if self._elimination.room(connection) > 0 else IDLE_S
        if not connection.unsettled and self._outbox.is_empty and not self.unnumbered.has_retained:
            self._elimination.end()
        self.events.delete_acknowledged()
        self.events.read_ahead()
        self._wait = min(idle, self._do_upkeep())

    def _settle(self, acks: list[tuple[Sent, int]]) -> None:
        for sent, code in acks:
            self._silent_since = None
            self._elimination.settled([sent], taken=code < REFUSED)
            if sent.row is not None:
                self.events.settle(sent.row, code)
            elif Outcome.of(code) is Outcome.RETRY and sent.answer is None:
                self._refusals.report(sent.topic, code)
                self.unnumbered.retry_retained(sent.topic, RETRY_S)
            elif code >= REFUSED:
                self._drop(sent, code)
            elif sent.answer is None:
                self._refusals.retried(sent.topic)

    def answer(self, topic: str, event: Event, correlation: bytes | None) -> None:
        """Send the result of a command, once; it is not kept on disk. Thread-safe."""
        options = MessageOptions(schema=schema_urn(event.kind), correlation=correlation)
        payload = encode(self._origin.stamp(event))
        note = event.data.error or f"the broker does not take the result's data, {len(payload)} bytes in all"
        short = replace(event, data=replace(event.data, data=None, error=note[:SHORT_TEXT]))
        self.unnumbered.add_answer(Answer(topic, payload, encode(self._origin.stamp(short)), options))
        self.wake.signal()

    def _send_unnumbered(self) -> None:
        self._present.queue()
        connection, room = self.connection, self._elimination.room
        now, suspects = time.monotonic(), self._elimination.suspects
        while room(connection) > 0 and (retained := self.unnumbered.next_retained(last=suspects)) is not None:
            topic, message = retained
            if not self._refusals.forbids(topic):
                options = _RETAINED_OPTIONS.get(kind_of(topic), _PLAIN_JSON)
                self._send(Sent(now, topic), message, options, retain=True)
        while room(connection) > 0 and (answer := self.unnumbered.next_answer()) is not None:
            sent = Sent(now, answer.topic, answer=answer)
            try:
                connection.publish(sent, answer.payload, answer.options)
            except MessageTooLarge:
                self._send(sent, answer.short, answer.options)
        topic = self._topics.telemetry
        if not self._elimination.careful and (telemetry := self.unnumbered.take_telemetry()) is not None:
            if self._refusals.forbids(topic):
                self.counters.telemetry_lost += 1
            else:
                self._send(Sent(now, topic), telemetry, _TELEMETRY_OPTIONS, qos=0)

    def _send(
        self, sent: Sent, payload: bytes, options: MessageOptions, *, qos: int = 1, retain: bool = False
    ) -> None:
        """Send a message that is not an event, or drop and report it where the broker does not take it."""
        try:
            self.connection.publish(sent, payload, options, qos=qos, retain=retain)
        except MessageTooLarge as problem:
            self._elimination.settled([sent], taken=False)
            self._drop(sent, PACKET_TOO_LARGE, str(problem))

    def _do_upkeep(self) -> float:
        """Delete acknowledged events, drop old ones, make gap events; return the seconds until it is due."""
        now = time.monotonic()
        if now < self._next_upkeep:
            return self._next_upkeep - now
        self._next_upkeep = now + FLUSH_AFTER_S
        if self.connection.is_open:
            self._conflict.connected_for(now - self._connected_at)
        self._outbox.flush()
        self._outbox.sync_marks()
        topic = self._topics.gap
        try:
            self._outbox.expire()
            if self.connection.is_open and now >= self._next_gaps and not self._refusals.forbids(topic):
                self._next_gaps = now + GAP_INTERVAL_S
                with self._origin.lock:
                    rows = self._outbox.report_gaps(self._origin.stamp, topic, most=self.events.gap_ranges)
                    for row in rows:
                        self._origin.record(row.seq, row.message)
        except StorageError as problem:
            # A full disk must not prevent delivery, which frees space.
            log.debug("outbox cannot be tidied now", error=str(problem))
        return IDLE_S

    # --- the end ------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Deliver a little longer, then publish `offline`: after a DISCONNECT the broker does not."""
        deadline = time.monotonic() + STOP_S * 0.8
        try:
            if self.connection.is_open:
                self._present.queue(at_once=True)
                while self._has_more and time.monotonic() < deadline - STOP_S * 0.4:
                    self._serve()
                    self._wait = min(self._wait, 0.05)
                self._publish_offline(deadline)
                self.connection.close(goodbye=True)
        except EdgeAgentError as problem:
            log.warning("could not disconnect from the broker properly", error=str(problem))
            self.connection.close()
        self._reset()
        self._outbox.flush()
        self.state = ConnectionState.STOPPED

    @property
    def _has_more(self) -> bool:
        """Whether states, or events that the broker takes, wait to be sent."""
        events = self._outbox.depth.rows > 0 and self.events.stalled_since is None
        return events or self.unnumbered.has_retained

    def _publish_offline(self, deadline: float) -> None:
        connection, sent = self.connection, Sent(time.monotonic(), self._topics.status)
        message = self._origin.status("offline", "stopped")
        try:
            number = connection.publish(sent, message, _RETAINED_OPTIONS["status"], retain=True)
        except MessageTooLarge:
            return
        while number in connection.unsettled and connection.is_open and time.monotonic() < deadline:
            self._settle(connection.turn(0.05).acks)
