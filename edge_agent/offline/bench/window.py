"""The measured part of a whole-agent benchmark: counters at its start and end, and delays."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edge_agent.agent.daemon import Agent, Tally
from edge_agent.core.structures import DecisionKind
from edge_agent.core.timing import parse_time
from edge_agent.deliver.subscriber import Subscriber
from edge_agent.engine.base import DEPTH
from edge_agent.offline.bench.load import Plan
from edge_agent.offline.bench.stagetimes import Span, StageClock, cpu_of_cores, cpu_of_threads

if TYPE_CHECKING:
    from edge_agent.agent.pipeline import FrameOutcome

__all__ = ["Arrivals", "Counters", "Window"]

WARM_UP_S = 3.0
"""Not measured: all tracks are new at once and all are identified."""

_FRESH = (DecisionKind.MATCHED, DecisionKind.ENROLLED)
"""Decisions made on the frame whose time they name."""


@dataclass(slots=True)
class Arrivals:
    """Receives events on a thread; records their delay after the frame."""

    subscriber: Subscriber
    latency_s: list[float] = field(default_factory=list)
    received: int = 0
    since: float = float("inf")
    """Events of earlier frames are not counted, Unix seconds."""
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Arrivals:
        self._thread = threading.Thread(target=self._run, name="subscriber", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join(2.0)

    def _run(self) -> None:
        while not self._over.is_set():
            message = self.subscriber.next(0.2)
            if message is None:
                continue
            now = time.time()
            self.received += 1
            if not message.topic.endswith(tuple(f"/identity/{kind.value}" for kind in _FRESH)):
                continue
            at = parse_time(json.loads(message.payload)["data"]["frame_time"])
            if at >= self.since:
                self.latency_s.append(now - at)


@dataclass(frozen=True, slots=True)
class Counters:
    """All counters at one time.

    Attributes:
        at: monotonic seconds.
        tally: counters of the agent.
        wall_s: time of the driving thread by stage.
        threads_s: CPU time by thread name.
        process_s: CPU time of this process.
        cores: busy and total seconds of each core.
    """

    at: float
    tally: Tally
    wall_s: dict[str, float]
    threads_s: dict[str, float]
    process_s: float
    cores: list[tuple[float, float]]


@dataclass(slots=True)
class Window:
    """The measured part of a run, from the end of the warm-up; stops the cameras at its end.

    Attributes:
        began: called when the measurement begins.
    """

    plan: Plan
    clock: StageClock
    over: threading.Event
    arrivals: Arrivals
    agent: Agent | None = None
    begin: Counters | None = None
    end: Counters | None = None
    frame_s: list[float] = field(default_factory=list)
    batch_spans: list[Span] = field(default_factory=list)
    began: Callable[[], None] | None = None
    _first: float | None = None

    def __call__(self, outcome: FrameOutcome) -> None:
        """Count a frame; begin and end the measurement. The agent's `observe`."""
        now = time.monotonic()
        if self._first is None:
            self._first = now
        if self.end is not None or now < self._first + WARM_UP_S:
            return
        if self.begin is None:
            self._begin()
        if outcome.latency_ms:  # empty at the end of a source
            self.frame_s.append(time.time() - outcome.update.time)
        assert self.begin is not None  # it was just opened
        if now >= self.begin.at + self.plan.seconds:
            self.end = self._now()
            self.over.set()

    def _begin(self) -> None:
        self.arrivals.since = time.time()
        if self.began is not None:
            self.began()
        if self.plan.trace and self.agent is not None and self.agent.stages is not None:
            self.clock.spans = []
            self.agent.stages.embedder.batcher.on_batch = self._note_batch
        self.begin = self._now()

    def _note_batch(self, count: int, submitted: float, there: float) -> None:
        lane = f"engine {len(self.batch_spans) % DEPTH + 1}"
        self.batch_spans.append(Span(lane, f"{count} crops", submitted, there))

    def _now(self) -> Counters:
        assert self.agent is not None
        tally = self.agent.tally()
        assert tally is not None  # the agent runs
        return Counters(
            time.monotonic(),
            tally,
            dict(self.clock.wall_s),
            cpu_of_threads(),
            time.process_time(),
            cpu_of_cores(),
        )
