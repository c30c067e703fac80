"""Delivery to a broker: `publish` writes an event to the outbox and returns; the pump thread does the rest.

The pump keeps at most 20 messages unacknowledged (mosquitto's limit; more makes paho slower), and settles
each by the reason code of its PUBACK:

===========  ===========================================================================================
0            done: the row is deleted
16           no subscriber: the row stays, its topic is tried again with one message at a time; after
             `sender.NO_SUBSCRIBER_S`, the numbers of rows that old go into a gap event
128 and up   the row is tried again, or parked with the reason, which an alert and a gap event report; see
             `sender.Outcome`
no PUBACK    after `pump.ACK_TIMEOUT_S` the connection is closed, and all unacknowledged rows are sent again
===========  ===========================================================================================

A message that the broker announces not to take (Maximum Packet Size) is parked without being sent; one at
which it closes the connection is found by `elimination`.

Retained messages (info, camera states, who is present, status) are kept in memory and published again at
every connect, in that order, so that `online` is the last message of a birth. `present` is encoded when it is
sent, at most once in `present_message.INTERVAL_S`.

`pump` is the thread, `sender` handles the events of the outbox, `local` the events file and runs without a
broker.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeAlias

import structlog

from edge_agent.core.alerts import AlertKind
from edge_agent.core.codec import encode
from edge_agent.core.errors import StorageError
from edge_agent.core.events import Event, InfoData, alert_event, camera_status_event
from edge_agent.core.heartbeat import HeartbeatState
from edge_agent.core.mqtt import BrokerSettings
from edge_agent.core.structures import SourceStatus
from edge_agent.core.telemetry import TelemetryData
from edge_agent.deliver.connection import ConnectionState
from edge_agent.deliver.local import Counters, EventFile, LocalPublisher, Origin, State
from edge_agent.deliver.open_tracks import PersonNow, TrackChange
from edge_agent.deliver.outbox import Outbox
from edge_agent.deliver.pump import Pump
from edge_agent.deliver.rows import numbered
from edge_agent.deliver.topics import Topics

if TYPE_CHECKING:
    from edge_agent.core.clock import Clock
    from edge_agent.core.delivery_settings import MqttSettings
    from edge_agent.deliver.commands import CommandDesk
    from edge_agent.deliver.copies import Copies

log = structlog.get_logger(__name__)

PATIENCE_S = 5.0
"""How long `drain` waits for a subscriber to the events that are left."""


def open_publisher(
    settings: MqttSettings,
    *,
    session: str,
    info: Callable[[], InfoData],
    events: Path | None,
    outbox: Outbox | None,
    commands: CommandDesk | None,
    known: Callable[[str], PersonNow | None],
    clock: Clock,
    copies: Copies | None,
    stack: contextlib.ExitStack,
) -> AnyPublisher:
    """Start delivery to the broker, if one is set, and to the events file.

    The arguments are those of `Publisher`; `events` is the path of the events file, `session` the id of this
    run, `clock` labels them, `copies` are entered. `stack` closes the publisher, then the events file.
    """
    file = stack.enter_context(EventFile(events)) if events is not None else None
    origin = Origin(Topics(settings.site, settings.device), session, file, clock, copies)
    if settings.broker is None or outbox is None:
        return stack.enter_context(LocalPublisher(origin))
    publisher = Publisher(settings, origin, outbox=outbox, info=info, commands=commands, known=known)
    return stack.enter_context(publisher)


class Publisher:
    """Delivers events to a broker. Enter it to start the pump, leave it to stop.

    `outbox` is open; its owner closes it after the publisher. `info` returns what runs on this device; it is
    called on the pump thread at every connect. Without `commands`, no command topic is subscribed. `known`
    returns a person of the gallery by an id, also a former one; None when there is none.

    Raises:
        ConfigError: the address of the broker is wrong.
    """

    def __init__(
        self,
        settings: MqttSettings,
        origin: Origin,
        *,
        outbox: Outbox,
        info: Callable[[], InfoData],
        commands: CommandDesk | None = None,
        known: Callable[[str], PersonNow | None] = lambda _: None,
    ) -> None:
        self._settings = settings
        self._known = known
        self._commands = commands
        self.origin = origin
        """What this run has published."""
        self._topics = origin.topics
        self._broker = BrokerSettings.of(settings)
        self._outbox = outbox
        self._lock = threading.Lock()
        self._status: tuple[State, str, float] | None = None
        client_id = f"edge-agent-{settings.site}-{settings.device}"
        self._pump = Pump(
            self._broker, client_id, origin, outbox, commands=commands, info=info, publish=self.publish
        )

    def __enter__(self) -> Publisher:
        if self._outbox.set_aside is not None:
            text = f"the outbox was damaged; see {self._outbox.set_aside}"
            self.publish(alert_event(AlertKind.OUTBOX_DAMAGED, text, time=self.origin.clock.label()))
        self._end_former_tracks()
        try:
            self._outbox.parked.requeue()
        except StorageError as problem:  # a full disk must not prevent the start
            log.warning("events that the broker refused stay parked until the next start", error=str(problem))
        if self._broker.password is not None and not self._broker.tls and not self._broker.is_loopback:
            log.warning("the password is sent unencrypted: use mqtts://", broker=self._broker.url)
        if names := self._settings.names_problem:
            log.warning("names of an example", problem=names)
        self._pump.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Publish `offline` and stop; events that are not delivered wait in the outbox for the next start."""
        self._pump.stop()

    def publish(self, event: Event) -> int:
        """Take an event: numbered and on disk when this returns. Never waits for the network.

        Where the disk fails, the event is lost, but its number is recorded, and a gap event will name it.
        Returns the event's number.
        """
        stamped = self.origin.stamp(event)
        topic = self._topics.of(stamped)
        message = encode(stamped)
        with self.origin.lock:  # the events file has the events in the order of their numbers, too
            self._pump.counters.published += 1
            self.origin.copy(stamped, message, self._outbox.last_number + 1)
            try:
                seq = self._outbox.append(message, topic, TrackChange.of(stamped))
            except StorageError:  # the outbox has logged it, once
                self._pump.counters.unwritten += 1
                seq = self._outbox.last_number
            self.origin.record(seq, numbered(message, seq), stamped)
        self._pump.wake.signal()
        return seq

    def _end_former_tracks(self) -> None:
        """Publish `departed` for the tracks that were open when a former run ended without a stop."""
        outbox, origin = self._outbox, self.origin
        with origin.lock:
            origin.begin(outbox.last_number)
            try:
                for track in outbox.stored.open_tracks():
                    event = track.departed(self._known)
                    if event is not None:
                        message = encode(event)
                        origin.copy(event, message, outbox.last_number + 1)
                        seq = outbox.append(message, f"{event.source}/identity/departed", track.change)
                        origin.record(seq, numbered(message, seq))
            except StorageError as problem:  # a full disk must not prevent the start
                log.warning("tracks of the former run stay open until the next start", error=str(problem))
            origin.presence.begin(outbox.last_number)

    def set_status(self, state: State, reason: str = "") -> None:
        """Publish the state of the agent, retained; repeats are skipped."""
        with self._lock:
            before = self._status
            if before is not None and before[:2] == (state, reason):
                return
            since = before[2] if before is not None and before[0] == state else self.origin.clock.label()
            self._status = (state, reason, since)
        self.set_retained(self._topics.status, self.origin.status(state, reason, since))

    def set_camera_status(self, status: SourceStatus) -> None:
        """Publish the state of a camera, retained."""
        message = encode(self.origin.stamp(camera_status_event(status)))
        self.set_retained(self._topics.camera_status(status.camera), message)

    def set_retained(self, topic: str, payload: bytes) -> None:
        """Publish any retained message, e.g. for discovery; an empty payload removes it."""
        self._pump.unnumbered.retain(topic, payload)
        self._pump.wake.signal()

    def send_telemetry(self, data: TelemetryData) -> None:
        """Send telemetry once, if there is a connection; it replaces telemetry that still waits."""
        message = self.origin.message("telemetry", data)
        self._pump.unnumbered.set_telemetry(message, connected=self._pump.connection.is_open)
        self._pump.wake.signal()

    def drain(self, timeout: float) -> bool:
        """Wait until the broker has every event, and that of the copies every copy.

        Returns False when some are left after `timeout` seconds, or when for `PATIENCE_S` only events without
        subscriber were left.
        """
        deadline = time.monotonic() + timeout
        if not self._drain_events(deadline):
            return False
        return self.origin.drain_copies(max(deadline - time.monotonic(), 0.0))

    def _drain_events(self, deadline: float) -> bool:
        events = self._pump.events
        with events.drained:
            while (left := deadline - time.monotonic()) > 0:
                if self._is_drained:
                    return True
                stalled = events.stalled_since
                if stalled is not None and time.monotonic() - stalled > PATIENCE_S:
                    return False
                events.drained.wait(min(left, 0.5))
        return self._is_drained

    def stored(self, seq: int, last: int, most: int) -> list[tuple[int, bytes]]:
        """Return the first events that wait, above `seq` and up to `last`: see `Stored.between`."""
        return self._outbox.stored.between(seq, last, most)

    @property
    def _is_drained(self) -> bool:
        return self._outbox.is_empty and not self._outbox.unreported

    @property
    def state(self) -> ConnectionState:
        """State of the connection."""
        return self._pump.state

    @property
    def problem(self) -> str | None:
        """Why not everything can be delivered now, for people; None when all is well."""
        return self._pump.problem

    @property
    def trouble(self) -> str:
        """Why the agent is degraded; "" when delivery works, or has failed for less than `pump.SILENT_S`."""
        return self._pump.trouble or self.origin.trouble

    @property
    def heartbeat(self) -> HeartbeatState:
        """The last turn of the pump, and its problem if there is one."""
        return self._pump.heartbeat

    @property
    def counters(self) -> Counters:
        """What was delivered, and what waits."""
        depth, desk = self._outbox.depth, self._commands
        return replace(
            self.origin.with_copies(self._pump.counters),
            commands_accepted=0 if desk is None else desk.accepted,
            commands_refused=0 if desk is None else desk.refused,
            in_flight=len(self._pump.connection.unsettled),
            outbox_rows=depth.rows,
            outbox_bytes=depth.bytes,
            outbox_parked=depth.parked,
        )


AnyPublisher: TypeAlias = Publisher | LocalPublisher
"""Delivery of a run, with or without a broker."""
