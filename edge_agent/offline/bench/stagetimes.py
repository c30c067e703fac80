"""Measurement of a run: time by stage, CPU time by thread, and working times of each stage.

`StageClock` replaces the pipeline's `Heartbeat` then, so the pipeline is measured unchanged.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from edge_agent.core.heartbeat import Heartbeat
from edge_agent.engine.base import DEPTH

if TYPE_CHECKING:
    from edge_agent.agent.daemon import Agent
    from edge_agent.agent.results import FrameOutcome
    from edge_agent.offline.bench.arrivals import Arrivals
    from edge_agent.offline.bench.load import Plan

_TICK = os.sysconf("SC_CLK_TCK")


class Span(NamedTuple):
    """A working time: lane, name of the work, begin and end (monotonic seconds)."""

    lane: str
    name: str
    begin: float
    end: float


class StageClock(Heartbeat):
    """Sums the time of the driving thread by stage (2 us each); with `spans`, also records working times."""

    __slots__ = ("_at", "_name", "spans", "wall_s")

    def __init__(self) -> None:
        super().__init__()
        self.wall_s: defaultdict[str, float] = defaultdict(float)
        self.spans: list[Span] | None = None
        self._name = "hand over"  # it replaces the pipeline's heartbeat at an outcome
        self._at = time.monotonic()

    def working(self, task: str) -> None:
        """Record that the stage begins this task."""
        super().working(task)
        self._turn(task)

    def idle(self, reason: str) -> None:
        """Record that the stage has nothing to do."""
        super().idle(reason)
        self._turn("idle")

    def _turn(self, name: str) -> None:
        now = self.latest.at
        self.wall_s[self._name] += now - self._at
        if self.spans is not None:
            self.spans.append(Span("pipeline", self._name, self._at, now))
        self._name, self._at = name, now


def cpu_of_threads() -> dict[str, float]:
    """Return the CPU seconds of this process so far by Python thread name; other threads are `other`."""
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    found: defaultdict[str, float] = defaultdict(float)
    for task in Path("/proc/self/task").iterdir():
        try:
            fields = (task / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # the thread has ended
            continue
        found[names.get(int(task.name), "other")] += (int(fields[11]) + int(fields[12])) / _TICK
    return dict(found)


def cpu_of_cores() -> list[tuple[float, float]]:
    """Return busy and total seconds of each core of the machine so far, with other processes."""
    found = []
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith("cpu") and line[3].isdigit():
            ticks = [int(word) for word in line.split()[1:9]]
            found.append(((sum(ticks) - ticks[3] - ticks[4]) / _TICK, sum(ticks) / _TICK))
    return found


def trace_events(spans: list[Span]) -> str:
    """Return the spans as a Chrome trace (JSON) for chrome://tracing and ui.perfetto.dev."""
    lanes = {lane: number for number, lane in enumerate(dict.fromkeys(span.lane for span in spans), start=1)}
    names = [
        {"ph": "M", "pid": 1, "tid": number, "name": "thread_name", "args": {"name": lane}}
        for lane, number in lanes.items()
    ]
    first = min((span.begin for span in spans), default=0.0)
    events = [
        {
            "ph": "X", "pid": 1, "tid": lanes[span.lane], "name": span.name,
            "ts": round(1e6 * (span.begin - first), 1), "dur": round(1e6 * (span.end - span.begin), 1),
        }
        for span in spans
    ]  # fmt: skip
    return json.dumps({"displayTimeUnit": "ms", "traceEvents": [*names, *events]})


# of timeline_svg
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#997755")
_LANE, _LEFT, _WIDE = 34, 90, 1000


def timeline_svg(spans: list[Span], seconds: float = 0.2) -> str:
    """Return a picture of the last `seconds` of the spans, one row per lane, as SVG."""
    end = max((span.end for span in spans), default=0.0)
    begin = end - seconds
    shown = [span for span in spans if span.end > begin and span.name != "idle"]
    lanes = {lane: row for row, lane in enumerate(dict.fromkeys(span.lane for span in spans))}
    names = dict.fromkeys(span.name for span in shown)
    colours = {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(names)}
    drawn = []
    for span in shown:
        x = _LEFT + _WIDE * (max(span.begin, begin) - begin) / seconds
        wide = _WIDE * (span.end - max(span.begin, begin)) / seconds
        y = 8 + _LANE * lanes[span.lane]
        drawn.append(
            f'<rect x="{x:.2f}" y="{y}" width="{wide:.2f}" height="{_LANE - 8}" '
            f'fill="{colours[span.name]}"><title>{span.name} '
            f"{1e3 * (span.end - span.begin):.2f} ms</title></rect>"
        )
    text = 'font-family="system-ui,sans-serif" font-size="12" fill="#333"'
    labels = [f'<text x="4" y="{26 + _LANE * row}" {text}>{lane}</text>' for lane, row in lanes.items()]
    low = 24 + _LANE * len(lanes)
    at = _LEFT
    for name, colour in colours.items():
        labels.append(f'<rect x="{at}" y="{low - 10}" width="10" height="10" fill="{colour}"/>')
        labels.append(f'<text x="{at + 14}" y="{low}" {text}>{name}</text>')
        at += 34 + 7 * len(name)
    labels.append(
        f'<text x="{_LEFT + _WIDE}" y="{low}" text-anchor="end" {text}>{1e3 * seconds:.0f} ms</text>'
    )
    size = f'viewBox="0 0 {_LEFT + _WIDE + 10} {low + 10}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(drawn + labels)}</svg>\n'


WARM_UP_S = 3.0
"""Not measured: all tracks are new at once and all are identified."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts and losses of a run so far; dictionaries are by camera."""

    crops: int
    """Embedded crops."""
    batches: int
    engine_seconds: float
    """Time inside the ReID network."""
    frames: dict[str, int]
    """Processed frames."""
    dropped: dict[str, int]
    """Frames that a newer one replaced before they were processed."""
    spared: dict[str, int]
    """Crops that were not embedded, to lower the load or to keep up."""
    overload: dict[str, int]
    """Those of them that the engine had no time for."""
    published: int
    """Events that the outbox accepted."""
    acknowledged: int
    """Events that the broker acknowledged."""

    @classmethod
    def of(cls, agent: Agent) -> Tally:
        """Return the counts of an agent whose pipeline runs or has ended."""
        stages, pipeline = agent.stages, agent.pipeline
        assert stages is not None
        assert pipeline is not None
        delivered = stages.publisher.counters
        return cls(
            crops=stages.embedder.counters.embedded,
            batches=stages.embedder.counters.batches,
            engine_seconds=stages.embedder.engine.run_seconds,
            frames=dict(pipeline.counters.frames),
            dropped={reader.camera: reader.dropped for reader in stages.sources.readers},
            spared=dict(stages.selector.counts),
            overload=stages.selector.for_overload.copy(),
            published=delivered.published,
            acknowledged=delivered.acknowledged,
        )


class DeviceWork(NamedTuple):
    """Work of a simulated detector and of the device that it shares, so far."""

    searched: int = 0
    """Frames."""
    batches: int = 0
    """Of the detector."""
    seconds: float = 0.0
    """Work of the device, of both networks."""


@dataclass(frozen=True, slots=True)
class Counters:
    """All counters at one time, in seconds."""

    at: float
    tally: Tally
    wall_s: dict[str, float]
    """Time of the driving thread by stage."""
    threads_s: dict[str, float]
    process_s: float
    """CPU time."""
    cores: list[tuple[float, float]]
    """Busy and total time of each core."""
    device: DeviceWork


@dataclass(slots=True)
class Window:
    """The measured part of a run: from the end of the warm-up, where `began` is called; stops the cameras."""

    plan: Plan
    over: threading.Event
    arrivals: Arrivals
    began: Callable[[], None]
    device: Callable[[], DeviceWork] = DeviceWork
    agent: Agent | None = None
    clock: StageClock = field(default_factory=StageClock)
    begin: Counters | None = None
    end: Counters | None = None
    frame_s: list[float] = field(default_factory=list)
    batch_spans: list[Span] = field(default_factory=list)
    _first: float | None = None

    def __call__(self, outcome: FrameOutcome) -> None:
        """Count a frame; begin and end the measurement. The agent's `observe`."""
        now = time.monotonic()
        if self._first is None:
            self._first = now
            self._lower_load()
        if self.end is not None or now < self._first + WARM_UP_S:
            return
        begin = self.begin or self._begin()
        if outcome.latency_ms:  # empty at the end of a source
            self.frame_s.append(time.time() - outcome.update.time)
        if now >= begin.at + self.plan.seconds:
            self.end = self._now()
            self.over.set()

    def _lower_load(self) -> None:
        assert self.agent is not None
        assert self.agent.pipeline is not None  # it called this
        if self.plan.every > 1:
            self.agent.pipeline.set_load(replace(self.agent.pipeline.load, every_nth=self.plan.every))

    def _begin(self) -> Counters:
        self.arrivals.count_from(time.time())
        self.began()
        assert self.agent is not None
        assert self.agent.pipeline is not None  # it called this
        self.clock = self.agent.pipeline.heartbeat = StageClock()
        if self.plan.trace:
            self.clock.spans = []
            self.agent.pipeline.embedder.batcher.on_batch = self._note_batch
        self.begin = self._now()
        return self.begin

    def _note_batch(self, count: int, submitted: float, there: float) -> None:
        lane = f"engine {len(self.batch_spans) % DEPTH + 1}"
        self.batch_spans.append(Span(lane, f"{count} crops", submitted, there))

    def _now(self) -> Counters:
        assert self.agent is not None
        tally, wall_s = Tally.of(self.agent), dict(self.clock.wall_s)
        return Counters(
            time.monotonic(), tally, wall_s, cpu_of_threads(), time.process_time(), cpu_of_cores(),
            self.device(),
        )  # fmt: skip
