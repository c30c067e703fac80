"""Copies of identity events for consumers of NVIDIA Metropolis, on disk until their broker has them.

The copies have an outbox of their own, so a broker of theirs that is away holds up nothing else. A copy is
written before the event that it is of, with its number: a kill between the two loses neither. They are sent
one at a time, oldest first, and a copy leaves the disk when the broker has confirmed it: at least once, in
the order of `seq`. The form is made when a copy is sent.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import structlog

from edge_agent.core.errors import (
    BrokerRefused,
    BrokerUnreachable,
    ConfigError,
    DeliveryError,
    MessageRefused,
    StorageError,
)
from edge_agent.core.heartbeat import Heartbeat
from edge_agent.core.kafka import KafkaBrokers
from edge_agent.core.mqtt import BrokerSettings
from edge_agent.deliver.metropolis import FORMS
from edge_agent.deliver.outbox import Outbox, make_outbox
from edge_agent.deliver.pacing import Backoff
from edge_agent.deliver.pump import SILENT_S
from edge_agent.deliver.rows import Row, numbered
from edge_agent.deliver.sender import IDLE_S, NO_SUBSCRIBER_S, QUIET_RETRY_S
from edge_agent.deliver.targets import KafkaTarget, MqttTarget, NoSubscriber, Target

if TYPE_CHECKING:
    from edge_agent.core.clock import Clock
    from edge_agent.core.config import Settings

log = structlog.get_logger(__name__)

COPIES_FILE = "metropolis.db"
"""Inside the state folder."""
UPKEEP_S = 0.5
"""How often the rows of sent copies are deleted, and old copies dropped."""
LOSSES = 10
"""After so many connections that the broker closed at one copy, it is set aside."""
STOP_S = 1.0
"""Time for the end of the thread, in which the last copies are sent."""
CONTENT_TYPES = {"json": "application/json", "protobuf": "application/x-protobuf"}
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, OverflowError)
_TOPIC, _GAP = "identity", "gap"
"""Of the rows: copies, and notes of copies that were dropped."""


def open_copies(settings: Settings, clock: Clock, settle: Callable[[], None] = lambda: None) -> Copies | None:
    """Return the copies of the section `metropolis`, not entered; None where there are none.

    Those that wait from an earlier run do not become older than `outbox.max_age_hours` either way.
    `settle`: see `Outbox`. Errors: see `copies_target` and `Outbox.__enter__`.
    """
    target = copies_target(settings)
    if target is None:
        if (settings.state_dir / COPIES_FILE).exists():
            with make_outbox(settings, clock, COPIES_FILE) as left:
                left.expire()
        return None
    return Copies(make_outbox(settings, clock, COPIES_FILE, settle), target, settings.metropolis.format)


def copies_target(settings: Settings) -> Target | None:
    """Return where copies go, not connected; None where there are none.

    Raises:
        ConfigError: no broker is set for them, or its settings are not valid.
        BrokerRefused: a certificate of Kafka cannot be read.
    """
    chosen = settings.metropolis
    if chosen.format == "off" or chosen.topic is None:
        return None
    if chosen.transport == "kafka":
        return KafkaTarget(KafkaBrokers.of(settings), chosen.topic)
    if settings.mqtt.broker is None:
        raise ConfigError("metropolis.transport is mqtt, but no broker is set (mqtt.broker or --broker)")
    client_id = f"edge-agent-{settings.mqtt.site}-{settings.mqtt.device}-metropolis"
    return MqttTarget(BrokerSettings.of(settings.mqtt), client_id, chosen.topic, CONTENT_TYPES[chosen.format])


class Copies:
    """Keeps copies of identity events, and sends them on a thread of its own while it is entered.

    `form` is one of `metropolis.FORMS`. The outbox is opened here.
    """

    def __init__(self, outbox: Outbox, target: Target, form: str) -> None:
        self.outbox = outbox
        self.counters: Counter[str] = Counter()
        """`delivered`, `refused`, `dropped`, `unwritten`."""
        self.heartbeat = Heartbeat()
        self._form = FORMS[form]
        self._target = target
        self._backoff = Backoff()
        self._wake = threading.Event()
        self._stop_at: float | None = None
        self._drained = threading.Condition()
        self._problem: str | None = None
        self._silent_since: float | None = None
        self._quiet_since: float | None = None
        """Since when there has been no subscriber, an instant of the clock."""
        self._losses: tuple[int, int] = (0, 0)
        """A copy at which the broker closed the connection, and how often."""
        self._next_upkeep = 0.0
        self._thread = threading.Thread(target=self._run, name="copies", daemon=True)

    def __enter__(self) -> Copies:
        """Open the outbox, and start to send; errors are those of `Outbox.__enter__`."""
        self.outbox.__enter__()
        try:
            self.outbox.parked.requeue()
        except StorageError as problem:  # a full disk must not prevent the start
            log.warning("copies that were refused stay parked until the next start", error=str(problem))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Send a little longer, and stop; what is left waits for the next start."""
        self._stop_at = time.monotonic() + STOP_S * 0.6
        self._wake.set()
        self._thread.join(STOP_S)
        if self._thread.is_alive():  # it waits for a name server or a handshake, and ends after that
            log.warning("the sender of copies is left behind", broker=self._target.url)
        self.outbox.close()

    def add(self, body: bytes, seq: int) -> None:
        """Store the copy of an identity event: its message without number, and the number that it will have.

        Never waits for the network. Where the disk fails, the copy is lost, and counted.
        """
        try:
            self.outbox.append(numbered(body, seq), _TOPIC)
        except StorageError:  # the outbox has logged it, once
            self.counters["unwritten"] += 1
        self._wake.set()

    def drain(self, timeout: float) -> bool:
        """Wait until all copies are sent; False when some are left after `timeout` seconds."""
        with self._drained:
            return self._drained.wait_for(lambda: self.outbox.is_empty, timeout)

    @property
    def trouble(self) -> str:
        """Why the agent is degraded, "" when copies are sent, or have not been for less than `SILENT_S`."""
        since = self._silent_since
        if since is None or time.monotonic() - since < SILENT_S:
            return ""
        return f"copies for Metropolis wait: {self._problem}"

    @property
    def problem(self) -> str | None:
        """Why copies cannot be sent now, for people; None when they can."""
        return self._problem

    # --- the thread ---------------------------------------------------------------------------------------

    @property
    def _stopping(self) -> bool:
        return self._stop_at is not None

    def _is_over(self) -> bool:
        """Whether the time for the last copies is over."""
        return self._stop_at is not None and time.monotonic() > self._stop_at

    def _run(self) -> None:
        wait_s = 0.0
        while not self._is_over():
            self._rest(wait_s)
            if self._stopping and wait_s > 0:
                return
            try:
                self._target.open(self._is_over)
                self._serve()
                return
            except DeliveryError as problem:
                wait_s = self._handle_loss(problem)
            except StorageError as problem:
                log.warning("copies cannot be read now", error=str(problem))
                wait_s = self._handle_loss(problem)
            except Exception as problem:  # delivery must continue: a fault costs one connection
                log.exception("copies failed unexpectedly")
                wait_s = self._handle_loss(DeliveryError(f"internal error: {problem}"))
            finally:
                self._target.close()

    def _rest(self, seconds: float) -> None:
        """Wait, with heartbeats and upkeep; a stop ends it."""
        until = time.monotonic() + seconds
        while not self._stopping and (left := until - time.monotonic()) > 0:
            self.heartbeat.idle(self._problem or "waits")
            self._do_upkeep()
            self._wake.wait(min(left, IDLE_S))
            self._wake.clear()

    def _handle_loss(self, problem: Exception) -> float:
        """Return how long to wait; what is not confirmed is sent again after that."""
        self.outbox.release()
        if not self._stopping:
            self._note(problem)
        return self._backoff.next_wait(refused=isinstance(problem, BrokerRefused))

    def _note(self, problem: Exception) -> None:
        """Note why copies wait now, and log the first reason."""
        write = log.debug if self._problem is not None else log.warning
        self._problem = str(problem)
        if self._silent_since is None:
            self._silent_since = time.monotonic()
        write("copies wait on the disk", error=self._problem)

    def _serve(self) -> None:
        """Send until a stop. Raises what `Target` raises."""
        while not self._is_over():
            self._do_upkeep()
            rows = self.outbox.pending(1)  # no more, so that a person who is forgotten is not sent afterwards
            if rows:
                self.heartbeat.working("send")
                try:
                    self._send(rows[0])
                except NoSubscriber as problem:
                    self._note(problem)
                    self._rest(QUIET_RETRY_S)
                continue
            self._all_is_well()
            with self._drained:
                self._drained.notify_all()
            if self._stopping:
                return
            self.heartbeat.idle("nothing to send")
            self._target.idle()
            self._wake.wait(IDLE_S)
            self._wake.clear()

    def _send(self, row: Row) -> None:
        try:
            if row.topic == _GAP:
                self._report_dropped(row)
                return
            event = json.loads(row.body)
            key, payload = str(event["data"]["camera"]), self._form(event)
        except _MALFORMED as problem:  # another program has written the row
            self._set_aside(row, f"{type(problem).__name__}: not an event of this agent")
            return
        try:
            self._target.send(key, payload, self._is_over)
        except MessageRefused as problem:
            self._set_aside(row, str(problem))
            return
        except NoSubscriber:
            self._handle_no_subscriber(row)
            raise
        except BrokerUnreachable as problem:
            if self._target.blames_message:
                before = self._losses[1] if self._losses[0] == row.seq else 0
                self._losses = row.seq, before + 1
                if before + 1 >= LOSSES:
                    self._set_aside(row, str(problem))
            raise
        self._confirmed(row)
        self.counters["delivered"] += 1

    def _handle_no_subscriber(self, row: Row) -> None:
        """Drop old copies when there was no subscriber for `NO_SUBSCRIBER_S`, as for events."""
        self.outbox.release([row.seq])
        now, before = self.outbox.clock.now(), self.outbox.clock.ago(NO_SUBSCRIBER_S)
        self._quiet_since = now if self._quiet_since is None else self._quiet_since
        # Not by the age alone: after a long outage of the broker, subscribers need time to return.
        if self._quiet_since <= before:
            self.outbox.drop_older(_TOPIC, before, "no-subscriber")

    def _confirmed(self, row: Row) -> None:
        self.outbox.acknowledge([row.seq])
        self._quiet_since = None
        self._all_is_well()

    def _all_is_well(self) -> None:
        self._backoff.reset()
        self._silent_since = None
        if self._problem is not None:
            self._problem = None
            log.info("copies are sent again", broker=self._target.url)

    def _set_aside(self, row: Row, reason: str) -> None:
        """Keep a copy that the broker does not take for the next start, and go on with the others."""
        self.outbox.parked.add(row.seq, reason)
        self.counters["refused"] += 1
        write = log.warning if self.counters["refused"] == 1 else log.debug
        write("the broker refuses a copy", reason=reason)

    def _report_dropped(self, row: Row) -> None:
        data: dict[str, Any] = json.loads(row.body)["data"]
        reason, count = str(data["reason"]), int(data["count"])
        self.outbox.acknowledge([row.seq])
        if reason not in {"rejected", "erased"}:  # set aside, or wanted
            self.counters["dropped"] += count
            log.warning("copies are dropped", reason=reason, count=count)

    def _do_upkeep(self) -> None:
        """Delete what was sent, and drop what is too old or too much."""
        now = time.monotonic()
        if now < self._next_upkeep:
            return
        self._next_upkeep = now + UPKEEP_S
        self.outbox.flush()
        self.outbox.sync_marks()
        try:
            self.outbox.expire()
            self.outbox.report_gaps(lambda event: event, _GAP)
        except StorageError as problem:  # a full disk must not prevent delivery, which frees space
            log.debug("copies cannot be tidied now", error=str(problem))
