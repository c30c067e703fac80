"""Cost of the stages of a run: time by stage, CPU time by thread, and working times of each.

`StageClock` replaces the pipeline's `Heartbeat`, so the pipeline is measured unchanged.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from edge_agent.core.heartbeat import Heartbeat

__all__ = [
    "Span",
    "StageClock",
    "cpu_of_cores",
    "cpu_of_threads",
    "timeline_svg",
    "trace_events",
]

_TICK = os.sysconf("SC_CLK_TCK")


class Span(NamedTuple):
    """A working time: lane, name of the work, begin and end (monotonic seconds)."""

    lane: str
    name: str
    begin: float
    end: float


class StageClock(Heartbeat):
    """Sums the time of the driving thread by stage; with `spans`, also records each working time.

    One stage costs about 2 microseconds.
    """

    __slots__ = ("_at", "_name", "spans", "wall_s")

    def __init__(self) -> None:
        super().__init__()
        self.wall_s: defaultdict[str, float] = defaultdict(float)
        self.spans: list[Span] | None = None
        self._name = "start"
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
    """Return the CPU seconds of the threads of this process so far, summed by thread name.

    Names are those of Python's threads; other threads are `other`.
    """
    import threading

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
            "ph": "X",
            "pid": 1,
            "tid": lanes[span.lane],
            "name": span.name,
            "ts": round(1e6 * (span.begin - first), 1),
            "dur": round(1e6 * (span.end - span.begin), 1),
        }
        for span in spans
    ]
    return json.dumps({"displayTimeUnit": "ms", "traceEvents": [*names, *events]})


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
