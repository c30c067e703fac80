"""Events of this run: their source and session, the events file, and delivery without a broker."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Literal, TypeAlias

import structlog

from edge_agent.core.codec import encode
from edge_agent.core.errors import StorageError
from edge_agent.core.events import Event
from edge_agent.core.heartbeat import HeartbeatState
from edge_agent.core.structures import SourceStatus
from edge_agent.core.telemetry import TelemetryData
from edge_agent.deliver.connection import ConnectionState
from edge_agent.deliver.eventfile import EventFile
from edge_agent.deliver.topics import Topics

__all__ = ["Counters", "LocalPublisher", "Origin", "State"]

log = structlog.get_logger(__name__)

State: TypeAlias = Literal["online", "degraded", "stopping", "offline"]


@dataclass(frozen=True, slots=True)
class Counters:
    """What delivery has done since the start, and what it holds now."""

    published: int = 0
    acknowledged: int = 0
    unwritten: int = 0
    """Events that could not be written to the disk; gap events name their numbers."""
    refused: int = 0
    no_subscriber: int = 0
    connects: int = 0
    telemetry_lost: int = 0
    answers_lost: int = 0
    in_flight: int = 0
    outbox_rows: int = 0
    outbox_bytes: int = 0
    outbox_parked: int = 0


class Origin:
    """Adds source and session to events, and copies messages to the events file.

    Args:
        topics: of this device.
        session: id of this run.
        event_file: gets every numbered event; None for no file.
    """

    def __init__(self, topics: Topics, session: str, event_file: EventFile | None) -> None:
        self.topics = topics
        self._session = session
        self._event_file = event_file
        self._file_failing = False

    def stamp(self, event: Event) -> Event:
        """Return the event with source and session."""
        return replace(event, source=self.topics.root, session=self._session)

    def copy_to_file(self, message: bytes) -> None:
        """Write a message to the events file, if there is one; log the first of several failures."""
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

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._lock = threading.Lock()
        self._published = 0
        self.state = ConnectionState.DISABLED

    def __enter__(self) -> LocalPublisher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Has no effect."""

    def publish(self, event: Event) -> int:
        """Number an event, from 1 in each run, and write it to the file."""
        with self._lock:
            self._published += 1
            self._origin.copy_to_file(encode(replace(self._origin.stamp(event), seq=self._published)))
            return self._published

    def set_status(self, state: State, reason: str = "") -> None:
        """Has no effect."""

    def set_camera_status(self, status: SourceStatus) -> None:
        """Has no effect."""

    def send_telemetry(self, data: TelemetryData) -> None:
        """Has no effect."""

    def drain(self, timeout: float) -> bool:  # noqa: ARG002 - as Publisher has it
        """Return True: nothing waits here."""
        return True

    @property
    def heartbeat(self) -> HeartbeatState:
        """Always now: there is no thread that could hang."""
        return HeartbeatState(time.monotonic(), idle="no broker is set")

    @property
    def counters(self) -> Counters:
        """The number of events."""
        return Counters(published=self._published)
