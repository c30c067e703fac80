"""What looks after a running agent: readiness, the watchdog, stuck stages.

`daemon` opens one `Oversight` before everything else and leaves it last, so that a start that takes long and
a stop that hangs are told as well.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol

import structlog

from edge_agent.config import Settings
from edge_agent.errors import EdgeAgentError
from edge_agent.events import Event, alert_event
from edge_agent.notify import Notifier
from edge_agent.progress import Beat
from edge_agent.structures import SourceState
from edge_agent.supervise import Stage, Supervisor

__all__ = ["LONGEST_START_S", "Delivers", "Oversight", "Reads"]

_log = structlog.get_logger(__name__)

LONGEST_START_S = 3600.0
"""More time is asked for at most so long: TensorRT builds an engine within minutes, on a busy board too."""

_AWAY = (SourceState.RECONNECTING, SourceState.OFFLINE, SourceState.ENDED, SourceState.DISABLED)
_UP = (SourceState.ONLINE, SourceState.ENDED)


class Reads(Protocol):
    """See `edge_agent.source.reader.FrameReader`."""

    @property
    def camera(self) -> str:
        """Id of the source."""

    @property
    def state(self) -> SourceState | None:
        """State last reported."""

    @property
    def beat(self) -> Beat:
        """Its latest sign of life."""


class Delivers(Protocol):
    """See `edge_agent.deliver.publisher.Publisher`."""

    @property
    def beat(self) -> Beat:
        """Its latest sign of life."""

    def publish(self, event: Event) -> int:
        """Deliver an event at least once."""


@dataclass(slots=True)
class Oversight:
    """Lifetime is a `with` around the whole run.

    Args:
        settings: asked anew at each look, since they may change.
        note: told what keeps the agent from working fully, by cause; "" when that is over.
        notifier: the service manager.
    """

    settings: Callable[[], Settings]
    note: Callable[[str, str], None]
    notifier: Notifier = field(default_factory=Notifier.from_environment)
    ready: bool = False
    """Whether the start is over."""
    _readers: Sequence[Reads] = ()
    _publisher: Delivers | None = None
    _opened_at: float | None = None
    _stopping: bool = False
    _without_source: bool = False
    _told: str = ""
    _supervisor: Supervisor | None = None
    _words: queue.SimpleQueue[Callable[[], object] | None] = field(default_factory=queue.SimpleQueue)

    def __enter__(self) -> Oversight:
        # What is said goes through locks that a stuck stage may hold: the supervisor must not wait for them.
        threading.Thread(target=self._speak, name="oversight", daemon=True).start()
        self._supervisor = Supervisor(self.notifier, on_change=self._on_stuck, on_tick=self._tick)
        self._supervisor.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._supervisor is not None:
            self._supervisor.__exit__(kind, error, trace)
        self._words.put(None)
        self.notifier.close()

    # --- the start ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def opening(self, what: str) -> Iterator[None]:
        """Around what may take minutes at the start."""
        with self.notifier.taking_long(f"starting: {what}", at_most_s=LONGEST_START_S):
            yield

    def watch(
        self, pipeline: Callable[[], Beat], slow: Callable[[], Beat], readers: Sequence[Reads], to: Delivers
    ) -> None:
        """Everything is open and runs from now on.

        Args:
            pipeline: beat of the driving thread: detection, inference, decisions, hand-over.
            slow: beat of the thread that reads telemetry.
            readers: the sources.
            to: delivery.
        """
        self._readers, self._publisher = readers, to
        stages = [Stage("pipeline", pipeline, self._limit_s, "inference"),
                  Stage("delivery", lambda: to.beat, self._limit_s, "delivery"),
                  Stage("telemetry", slow, self._slow_limit_s, "telemetry", vital=False)]  # fmt: skip
        stages += [_source_stage(reader, self._limit_s) for reader in readers]
        self._opened_at = time.monotonic()
        if self._supervisor is not None:
            self._supervisor.stages = stages

    def _limit_s(self) -> float:
        return self.settings().supervision.stuck_after_s

    def _slow_limit_s(self) -> float:
        return self._limit_s() + self.settings().telemetry.interval_s

    # --- while it runs ------------------------------------------------------------------------

    def reloading(self) -> None:
        """Settings are read again."""
        self.notifier.reloading()

    def reloaded(self) -> None:
        """They are in use, or refused."""
        if self.ready:
            self.notifier.ready()

    def tell(self, text: str) -> None:
        """How the agent is, for `systemctl status`; the same is told once."""
        if text != self._told:
            self._told = text
            self.notifier.status(text)

    def stopping(self) -> None:
        """No further frame will be taken: from now on the service manager's own limit for a stop holds."""
        self._stopping = True
        if self._supervisor is not None:
            self._supervisor.stages = ()
        if not self.ready:
            self.ready = True
            self.notifier.ready()  # one that ends by itself before it was ready has not failed
        self.notifier.stopping("stopping")

    def _tick(self) -> None:
        if self._opened_at is None or self._stopping or (self.ready and not self._without_source):
            return
        up = [reader.camera for reader in self._readers if reader.state in _UP]
        waited = time.monotonic() - self._opened_at
        if up and self.ready:
            self._without_source = False
            self._words.put(lambda: self.note("start", ""))
        elif up:
            self._become_ready(f"source {up[0]} is up")
        elif self.ready:
            return
        elif waited >= self.settings().supervision.ready_after_s:
            reason = f"no source is up after {waited:.0f} s"
            _log.warning("ready_without_a_source", reason=reason)
            self._without_source = True
            self._become_ready(reason)
            self._words.put(lambda: self.note("start", reason))

    def _become_ready(self, why: str) -> None:
        self.ready = True
        self.notifier.ready(why)
        _log.info("ready", reason=why)

    def _speak(self) -> None:
        while (say := self._words.get()) is not None:
            try:
                say()
            except EdgeAgentError as problem:
                _log.warning("oversight_not_heard", error=str(problem))

    # --- stuck stages -------------------------------------------------------------------------

    def _on_stuck(self, stuck: dict[str, str]) -> None:
        """Say it wherever somebody may hear it."""
        text = "; ".join(stuck.values())
        if stuck:
            self.notifier.status(f"stuck: {text}")
        if self._stopping or self._publisher is None:
            return
        publish = self._publisher.publish
        self._words.put(lambda: self.note("stuck", text))
        self._words.put(lambda: publish(_stuck_alert(stuck)))


def _source_stage(reader: Reads, limit_s: Callable[[], float]) -> Stage:
    """One source; a camera that is away is looked after by its reader, which tries again."""
    return Stage(
        f"source:{reader.camera}",
        lambda: reader.beat,
        limit_s,
        "sources",
        aside=lambda: reader.state in _AWAY,
    )


def _stuck_alert(stuck: dict[str, str]) -> Event:
    message = "; ".join(stuck.values()) + "; the service manager restarts the agent if it stays so"
    return alert_event(
        "stage_stuck",
        message if stuck else "every stage gets on again",
        severity="critical",
        active=bool(stuck),
        time=time.time(),
        details={"stages": ",".join(sorted(stuck)) or None},
    )
