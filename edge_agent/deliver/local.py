"""Events of this run: their source and session, the events file, and delivery without a broker."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, TypeAlias

import structlog

from edge_agent import __version__
from edge_agent.core.clock import Clock
from edge_agent.core.codec import encode
from edge_agent.core.errors import DiskFull, StorageError
from edge_agent.core.events import Event, StatusData, new_event
from edge_agent.core.files import open_to_write
from edge_agent.core.heartbeat import HeartbeatState
from edge_agent.core.manifest import write_error
from edge_agent.core.structures import SourceStatus
from edge_agent.core.telemetry import TelemetryData
from edge_agent.deliver.connection import ConnectionState
from edge_agent.deliver.presence import Presence
from edge_agent.deliver.recent import RecentEvents
from edge_agent.deliver.rows import numbered
from edge_agent.deliver.topics import Topics

if TYPE_CHECKING:
    from edge_agent.deliver.copies import Copies

log = structlog.get_logger(__name__)

State: TypeAlias = Literal["online", "degraded", "stopping", "offline"]
_ROLE = "the events file"


@dataclass(slots=True)
class Counters:
    """What delivery has done since the start, and what it holds now."""

    published: int = 0
    acknowledged: int = 0
    unwritten: int = 0
    """Events that could not be written to the disk; gap events name their numbers."""
    refused: int = 0
    no_subscriber: int = 0
    commands_accepted: int = 0
    commands_refused: int = 0
    connects: int = 0
    telemetry_lost: int = 0
    answers_lost: int = 0
    in_flight: int = 0
    outbox_rows: int = 0
    outbox_bytes: int = 0
    outbox_parked: int = 0
    copies_delivered: int = 0
    copies_lost: int = 0
    """Copies that were dropped, as too old or too many, or could not be written to the disk."""
    copies_refused: int = 0
    copies_rows: int = 0
    """Copies that wait."""


class EventFile:
    """Events as JSON lines in a file that is replaced when this is entered; its folder must exist."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._file: int | None = None

    def __enter__(self) -> EventFile:
        try:
            self._file = open_to_write(self.path, os.O_APPEND | os.O_TRUNC, 0o644)
        except OSError as problem:
            raise write_error(self.path, problem, role=_ROLE) from problem
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def write(self, message: bytes) -> None:
        """Add one line in one system call, so that a kill leaves no partial line.

        Raises:
            DiskFull, StorageError: it could not be written.
        """
        line = message + b"\n"
        with self._lock:
            if self._file is None:
                raise StorageError(f"{_ROLE} {self.path} is not open")
            try:
                written = os.write(self._file, line)
            except OSError as problem:
                raise write_error(self.path, problem, role=_ROLE) from problem
            if written < len(line):
                raise DiskFull(f"cannot write {_ROLE} {self.path}: no space is left on its disk")


class Origin:
    """Adds source and session to events, and copies numbered ones to the events file, if there is one.

    `copies` are those for other consumers, None for none; their owner enters them. The times of events are
    labels of `clock`, and marked while it is uncertain.
    """

    def __init__(
        self,
        topics: Topics,
        session: str,
        event_file: EventFile | None,
        clock: Clock,
        copies: Copies | None = None,
    ) -> None:
        self.topics = topics
        self.copies = copies
        self.clock = clock
        self.presence = Presence()
        self.recent = RecentEvents()
        self.notify: Callable[[], None] = lambda: None
        """Called after each numbered event."""
        self.lock = threading.Lock()
        """Held while an event gets its number and is recorded."""
        self._session = session
        self._event_file = event_file
        self._file_failing = False

    def stamp(self, event: Event) -> Event:
        """Return the event with source and session, and the mark of uncertain times."""
        data = event.data
        if hasattr(data, "time_uncertain") and self.clock.uncertain:
            data = replace(data, time_uncertain=True)
        return Event(
            event.id, event.type, event.time, data, self.topics.root, self._session,
            traceparent=event.traceparent,
        )  # fmt: skip

    def message(self, kind: str, data: object) -> bytes:
        """Return the message of a new event without number."""
        return encode(self.stamp(new_event(kind, data, time=self.clock.label())))

    def status(self, state: State, reason: str, since: float | None = None) -> bytes:
        """Return a status message; `since` is now by default."""
        return self.message("status", StatusData(state, since or self.clock.label(), reason, __version__))

    def copy(self, event: Event, body: bytes, seq: int) -> None:
        """Store a copy of an identity event before it is stored itself; other kinds have none.

        `body` is its message without the number, which will be `seq`. The caller holds `lock`.
        """
        if self.copies is not None and event.kind == "identity":
            self.copies.add(body, seq)

    def begin(self, last: int) -> None:
        """Set the last number that was given out before this run."""
        self.presence.begin(last)
        self.recent.begin(last)

    def record(self, seq: int, message: bytes, event: Event | None = None) -> None:
        """Note a numbered message, and copy it to the events file. The caller holds `lock`.

        `event` is that of the message, None where it changes nothing about who is present.
        """
        if event is not None:
            self.presence.apply(event, seq)
        self.recent.add(seq, message)
        self.copy_to_file(message)
        self.notify()

    def drain_copies(self, timeout: float) -> bool:
        """Wait until all copies are sent; False when some are left after `timeout` seconds."""
        return self.copies is None or self.copies.drain(timeout)

    @property
    def trouble(self) -> str:
        """Why the agent is degraded, by the copies; "" when nothing is wrong with them."""
        return "" if self.copies is None else self.copies.trouble

    def with_copies(self, counters: Counters) -> Counters:
        """Return the counters with those of the copies."""
        if self.copies is None:
            return counters
        found = self.copies.counters
        return replace(
            counters,
            copies_delivered=found["delivered"],
            copies_lost=found["dropped"] + found["unwritten"],
            copies_refused=found["refused"],
            copies_rows=self.copies.outbox.depth.rows,
        )

    def copy_to_file(self, message: bytes) -> None:
        """Write a message to the events file; log the first of several failures."""
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
    """Replaces `Publisher` when no broker is configured: numbers events and writes them to the file."""

    state = ConnectionState.DISABLED

    def __init__(self, origin: Origin) -> None:
        self._published = 0
        self.origin = origin

    def __enter__(self) -> LocalPublisher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Has no effect."""

    def publish(self, event: Event) -> int:
        """Number an event, from 1 in each run, and write it to the file."""
        origin = self.origin
        stamped = origin.stamp(event)
        with origin.lock:
            self._published += 1
            seq = self._published
            message = encode(stamped)
            origin.copy(stamped, message, seq)
            origin.record(seq, numbered(message, seq), stamped)
            return seq

    def set_status(self, state: State, reason: str = "") -> None:
        """Has no effect."""

    def set_camera_status(self, status: SourceStatus) -> None:
        """Has no effect."""

    def send_telemetry(self, data: TelemetryData) -> None:
        """Has no effect."""

    def stored(self, seq: int, last: int, most: int) -> list[tuple[int, bytes]]:  # noqa: ARG002 - as Publisher has it
        """Return nothing: there is no outbox."""
        return []

    def drain(self, timeout: float) -> bool:
        """Wait until all copies are sent; nothing else waits here."""
        return self.origin.drain_copies(timeout)

    @property
    def trouble(self) -> str:
        """Why the agent is degraded; "" when nothing is wrong."""
        return self.origin.trouble

    @property
    def counters(self) -> Counters:
        """What was numbered, and the copies."""
        return self.origin.with_copies(Counters(published=self._published))

    @property
    def heartbeat(self) -> HeartbeatState:
        """Always now: there is no thread that could hang."""
        return HeartbeatState(time.monotonic(), idle="no broker is set")
