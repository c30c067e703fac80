"""The thread that moves messages to the broker: connects, sends, settles, reconnects."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

from edge_agent.core.codec import encode, schema_urn
from edge_agent.core.errors import (
    BrokerRefused,
    BrokerUnreachable,
    DeliveryError,
    EdgeAgentError,
    StorageError,
)
from edge_agent.core.events import Event
from edge_agent.core.heartbeat import HeartbeatState
from edge_agent.core.mqtt import BrokerSettings
from edge_agent.deliver.connection import Connection, ConnectionState, WakePipe
from edge_agent.deliver.local import Origin
from edge_agent.deliver.outbox import Outbox
from edge_agent.deliver.pacing import Backoff
from edge_agent.deliver.packing import MessageOptions
from edge_agent.deliver.sender import IDLE_S, EventSender
from edge_agent.deliver.window import REFUSED, Answer, Refusals, Sent, UnnumberedMessages, Window

if TYPE_CHECKING:
    from edge_agent.deliver.commands import CommandDesk

__all__ = ["Pump"]

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
TELEMETRY_EXPIRY_S = 90
_TELEMETRY_OPTIONS = MessageOptions(schema=schema_urn("telemetry"), expiry_s=TELEMETRY_EXPIRY_S)
_PLAIN_JSON = MessageOptions(content_type="application/json")
_RETAINED_OPTIONS = {kind: MessageOptions(schema=schema_urn(kind)) for kind in ("status", "info", "camera")}


class Pump:
    """Connects to the broker and sends what waits, on a thread of its own, until `stop`.

    Args:
        broker: address and login.
        connection: to the broker; owned by this thread.
        wake: ends a wait of the connection.
        origin: of the events.
        outbox: open.
        unnumbered: messages that are not in the outbox.
        commands: takes commands; None: no command topic is subscribed.
        info: makes the info message; called at every connect.
        offline: makes the last status message.
        publish: takes alerts about refused events.
    """

    def __init__(
        self,
        broker: BrokerSettings,
        connection: Connection,
        wake: WakePipe,
        *,
        origin: Origin,
        outbox: Outbox,
        unnumbered: UnnumberedMessages,
        commands: CommandDesk | None,
        info: Callable[[], bytes],
        offline: Callable[[], bytes],
        publish: Callable[[Event], int],
    ) -> None:
        self._broker = broker
        self._connection = connection
        self._wake = wake
        self._origin = origin
        self._topics = origin.topics
        self._outbox = outbox
        self._unnumbered = unnumbered
        self._commands = commands
        self._info = info
        self._offline = offline
        self._window = Window(connection)
        self._refusals = Refusals()
        self.events = EventSender(connection, self._window, outbox, self._refusals, origin.topics, publish)
        """Counters of events, and whether they wait for subscribers."""
        self._backoff = Backoff()
        self._next_attempt = self._next_upkeep = self._next_gaps = 0.0
        self._connected_at = 0.0
        self._wait = 0.0
        self._outage_logged = False
        self._last_turn = time.monotonic()
        self._problem: str | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self.state = ConnectionState.CONNECTING
        self.connects = 0

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float = STOP_S) -> None:
        """Publish `offline` and end the thread."""
        self._stopping.set()
        self._wake.signal()
        if self._thread.is_alive():
            self._thread.join(timeout)
        if self._thread.is_alive():  # it waits for a name server or a handshake, and ends after that
            log.warning("publisher still connects; it is left behind", broker=self._broker.url)
            return
        self._wake.close()

    @property
    def problem(self) -> str | None:
        """Why nothing, or not everything, can be delivered now, for people; None when all is well."""
        refused = self._refusals.topics
        if self._problem is None:
            return f"broker {self._broker.url} refuses messages: {refused}" if refused else None
        return f"{self._problem}; it refused {refused} before" if refused else self._problem

    @property
    def heartbeat(self) -> HeartbeatState:
        """The time of the last turn, and the problem if there is one. A connect may take 15 s."""
        return HeartbeatState(self._last_turn, self.state.value, self.problem, self._thread.ident)

    @property
    def in_flight(self) -> int:
        """Messages without PUBACK."""
        return len(self._window)

    # --- connection ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        storage_failed = False
        while not self._stopping.is_set():
            self._last_turn = time.monotonic()
            try:
                if self._connection.is_open:
                    self._serve()
                else:
                    self._reconnect()
                storage_failed = False
            except BrokerUnreachable as problem:
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
        """Wait for the next attempt, then connect."""
        self._do_upkeep()
        left = self._next_attempt - time.monotonic()
        if left > 0:
            self._stopping.wait(min(left, IDLE_S))
            return
        if self.state is not ConnectionState.REFUSED:
            self.state = ConnectionState.CONNECTING
        try:
            self._connection.open()
        except BrokerRefused as problem:
            self._handle_loss(problem)
        else:
            self._begin()

    def _begin(self) -> None:
        """Queue all retained messages on a new connection, the info first and the status last."""
        self.state = ConnectionState.CONNECTED
        self._problem = None
        self._connected_at = time.monotonic()
        self.connects += 1
        if self._outage_logged or self.connects == 1:
            log.info("connected to the broker", broker=self._broker.url)
        self._outage_logged = False
        if self._commands is not None:
            self._connection.subscribe(self._topics.commands)
        self._unnumbered.retain(self._topics.info, self._info())
        self._unnumbered.resend_retained(first=self._topics.info, last=self._topics.status)
        self.events.begin(first=self.connects == 1)

    def _handle_loss(self, problem: EdgeAgentError) -> None:
        """Plan the next attempt; what is not settled is sent again after it."""
        refused = isinstance(problem, BrokerRefused)
        self._connection.close()
        self._reset()
        if self.state is ConnectionState.CONNECTED and time.monotonic() - self._connected_at > STABLE_S:
            self._backoff.reset()
        wait = self._backoff.next_wait(refused=refused)
        self._next_attempt = time.monotonic() + wait
        self.state = ConnectionState.REFUSED if refused else ConnectionState.WAITING
        self._problem = str(problem)
        write = log.debug if self._outage_logged else log.warning
        self._outage_logged = True
        write("no broker: events wait in the outbox", error=str(problem), next_attempt_s=round(wait, 1))

    def _reset(self) -> None:
        self._unnumbered.return_unsent(self._window.clear())
        self.events.reset()

    # --- one turn -----------------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Receive, settle, then send what is due."""
        happened = self._connection.turn(self._wait)
        self._settle(happened.acks)
        for message in happened.messages:
            if self._commands is not None:
                self._commands.accept(message, self.answer)
        if any(code >= REFUSED for code in happened.subscribed):
            log.warning("the broker refuses our subscription to commands", topic=self._topics.commands)
        if not self._connection.is_open:
            raise BrokerUnreachable(f"broker {self._broker.url}: connection lost: {self._connection.loss}")
        if self._window.age() > ACK_TIMEOUT_S:
            raise BrokerUnreachable(
                f"broker {self._broker.url}: no PUBACK for {ACK_TIMEOUT_S:g} s; it hangs or is cut off"
            )
        self._send_unnumbered()
        if not self._unnumbered.has_retained:
            idle = self.events.send()
        else:
            idle = 0.0 if self._window.room > 0 else IDLE_S
        self.events.delete_acknowledged()
        self.events.read_ahead()
        self._wait = min(idle, self._do_upkeep())

    def _settle(self, acks: list[tuple[int, int]]) -> None:
        for sent, code in self._window.settle(acks):
            if sent.row is None:
                self._refusals.note(sent.topic, code)
            else:
                self.events.settle(sent.row, code)

    def answer(self, topic: str, event: Event, *, correlation: bytes | None = None) -> None:
        """Send the result of a command, once; it is not kept on disk. Thread-safe."""
        options = MessageOptions(schema=schema_urn(event.kind), correlation=correlation)
        self._unnumbered.add_answer(Answer(topic, encode(self._origin.stamp(event)), options))
        self._wake.signal()

    def _send_unnumbered(self) -> None:
        while self._window.room > 0 and (retained := self._unnumbered.next_retained()) is not None:
            topic, message = retained
            if not self._refusals.forbids(topic):
                options = _RETAINED_OPTIONS.get(self._topics.kind_of(topic), _PLAIN_JSON)
                self._window.send(Sent(time.monotonic(), topic), message, options, retain=True)
        while self._window.room > 0 and (answer := self._unnumbered.next_answer()) is not None:
            sent = Sent(time.monotonic(), answer.topic, answer=answer)
            self._window.send(sent, answer.payload, answer.options)
        telemetry = self._unnumbered.take_telemetry()
        if telemetry is not None:
            self._connection.publish(self._topics.telemetry, telemetry, qos=0, options=_TELEMETRY_OPTIONS)

    def _do_upkeep(self) -> float:
        """Delete acknowledged events, drop old ones, make gap events; return the seconds until it is due."""
        now = time.monotonic()
        if now < self._next_upkeep:
            return self._next_upkeep - now
        self._next_upkeep = now + FLUSH_AFTER_S
        self._outbox.flush()
        self._outbox.sync_marks()
        try:
            self._outbox.expire()
            self._report_gaps(now)
        except StorageError as problem:
            # A full disk must not prevent delivery, which frees space.
            log.debug("outbox cannot be tidied now", error=str(problem))
        return IDLE_S

    def _report_gaps(self, now: float) -> None:
        topic = self._topics.gap
        if self._connection.is_open and now >= self._next_gaps and not self._refusals.forbids(topic):
            self._next_gaps = now + GAP_INTERVAL_S
            for row in self._outbox.report_gaps(self._origin.stamp, topic):
                self._origin.copy_to_file(row.message)

    # --- the end ------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Deliver a little longer, then publish `offline`: after a DISCONNECT the broker does not."""
        deadline = time.monotonic() + STOP_S * 0.8
        try:
            if self._connection.is_open:
                while (
                    self._outbox.depth.rows
                    and self.events.stalled_since is None
                    and time.monotonic() < deadline - STOP_S * 0.4
                ):
                    self._serve()
                    self._wait = min(self._wait, 0.05)
                self._publish_offline(deadline)
                self._connection.close(goodbye=True)
        except EdgeAgentError as problem:
            log.warning("could not disconnect from the broker properly", error=str(problem))
            self._connection.close()
        self._reset()
        self._outbox.flush()
        self.state = ConnectionState.STOPPED

    def _publish_offline(self, deadline: float) -> None:
        sent = Sent(time.monotonic(), self._topics.status)
        number = self._window.send(sent, self._offline(), _RETAINED_OPTIONS["status"], retain=True)
        while self._window.is_open(number) and self._connection.is_open and time.monotonic() < deadline:
            self._settle(self._connection.turn(0.05).acks)
