"""The run of the demonstration: agent, broker and subscriber, and the result."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.live import Live
from rich.table import Table

from edge_agent.agent.daemon import Agent
from edge_agent.agent.outputs import Outputs
from edge_agent.agent.results import Summary
from edge_agent.core.codec import decode
from edge_agent.core.config import SourceSettings
from edge_agent.core.events import IdentityData, InfoData
from edge_agent.core.mqtt import BrokerSettings
from edge_agent.core.names import person_title
from edge_agent.deliver.subscriber import Subscriber
from edge_agent.deliver.topics import PREFIX
from edge_agent.detect.opening import open_detection
from edge_agent.engine.models import choose_model
from edge_agent.offline.demo.street import Recorder, Scene, percentiles, score

if TYPE_CHECKING:
    from rich.console import Console

    from edge_agent.core.config import Settings

DEVICE = "demo"
"""Site and device of the demo's topics."""


def check(settings: Settings, folder: Path) -> None:
    """Check the settings before anything is rendered; EdgeAgentError if model or detector cannot be used."""
    choose_model(settings.engine, folder)
    with ExitStack() as stack:
        open_detection(settings, stack, cameras={DEVICE: None})


def run(
    settings: Settings,
    scene: Scene | None,
    folder: Path,
    console: Console,
    run_agent: Callable[[Agent], Summary],
    *,
    realtime: bool = False,
) -> dict[str, Any]:
    """Run the agent with a subscriber at its broker until the videos end or it is stopped.

    The rendered street `scene` is scored; without it, the sources of the settings are used. `run_agent` runs
    the agent on the main thread; `realtime`: the street is played at its own speed.
    Return the result as JSON values.
    """
    if scene is not None:
        fps = scene.street.fps
        own = True if realtime else None
        sources = tuple(
            SourceSettings(id=v.camera, url=str(v.video), fps=fps, realtime=own) for v in scene.videos
        )
        settings = settings.model_copy(update={"sources": sources})
    recorder = Recorder(boxes=scene is not None)
    agent = Agent(settings, Outputs(folder / "events.jsonl"), observe=recorder)
    broker = BrokerSettings.of(settings.mqtt)
    with (
        Subscriber(broker, (f"{PREFIX}/{DEVICE}/{DEVICE}/#",)) as subscriber,
        Screen(subscriber, recorder, console, scene.frames if scene is not None else None) as screen,
    ):
        summary = run_agent(agent)
        screen.wait_for(sum(recorder.kinds.values()))
    return _result(scene, recorder, screen, summary)


def _result(scene: Scene | None, recorder: Recorder, screen: Screen, summary: Summary) -> dict[str, Any]:
    complete = scene is None or recorder.frames == scene.frames
    judged = score(scene, recorder) if scene is not None and complete else None
    delays = [1e3 * max(at - recorder.decided[key], 0.0) for key, at in screen.arrived.items()]
    tracks = recorder.tracks_of()
    info = screen.info
    return {
        "model": info.model.name if info else None,
        "trained": info.model.name != "colour-stripes" if info else None,
        "detector": info.detector if info else None,
        "complete": complete,
        **(asdict(judged) if judged is not None else {"identities": len(tracks)}),
        "seen_again": sum(count > 1 for count in tracks.values()),
        "decisions": dict(recorder.kinds),
        "events_received": len(screen.arrived),
        "frames": recorder.frames,
        "crops": summary.crops,
        "seconds": round(summary.seconds, 2),
        "crops_per_s": round(summary.crops / max(summary.seconds, 1e-9), 1),
        "network_crops_per_s": round(summary.crops / max(summary.engine_seconds, 1e-9), 1),
        "latency_ms": _pair(percentiles(recorder.latency_ms)),
        "delivery_ms": _pair(percentiles(delays)),
    }


def _pair(values: tuple[float, float] | None) -> dict[str, float] | None:
    return None if values is None else {"p50": round(values[0], 1), "p95": round(values[1], 1)}


RECENT = 12
"""Events in the table."""

LAST_EVENTS_S = 5.0
"""Longest wait, at the end, for events that the broker has not passed on yet."""


@dataclass(slots=True)
class Screen:
    """Shows received events on a thread, while it is entered; `total` is the number of frames, if known."""

    subscriber: Subscriber
    recorder: Recorder
    console: Console
    total: int | None
    info: InfoData | None = None
    """The latest `info` event."""
    arrived: dict[str, float] = field(default_factory=dict)
    """`time.monotonic()` of the arrival of every identity event by its id."""
    _recent: deque[tuple[str, ...]] = field(default_factory=lambda: deque(maxlen=RECENT))
    _numbers: dict[str, int] = field(default_factory=dict)
    """Numbers of the people by their ids."""
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Screen:
        self._thread = threading.Thread(target=self._show, name="screen", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(2.0)

    def wait_for(self, events: int) -> None:
        """Wait until this many identity events have arrived, at most `LAST_EVENTS_S`."""
        deadline = time.monotonic() + LAST_EVENTS_S
        while len(self.arrived) < events and time.monotonic() < deadline:
            self._stop.wait(0.05)

    def _show(self) -> None:
        if not self.console.is_terminal:
            self._receive()
            return
        with Live(get_renderable=self._table, console=self.console, refresh_per_second=4):
            self._receive()

    def _receive(self) -> None:
        while not self._stop.is_set():
            message = self.subscriber.next(0.1)
            if message is None or not message.payload:
                continue
            event = decode(message.payload)
            if event.kind == "info":
                self.info = event.data
            elif event.kind == "identity":
                self.arrived[event.id] = time.monotonic()
                cells = self._cells(event.data)
                self._recent.append(cells)
                if not self.console.is_terminal:
                    self.console.print("  ".join(cells), highlight=False, markup=False)

    def _table(self) -> Table:
        frames = f"{self.recorder.frames}" + (f" of {self.total}" if self.total else "") + " frames"
        table = Table("event", "camera", "track", "who", "score", "threshold", "rule", "why", title=frames)
        for cells in list(self._recent):
            table.add_row(*cells)
        return table

    def _cells(self, data: IdentityData) -> tuple[str, ...]:
        """Return an identity event as columns; a correction shows from whom to whom."""
        who = _person(data.number)
        if data.kind == "corrected":
            who = f"{_person(self._numbers.get(data.previous_identity_id or ''))} -> {who}"
        if data.identity_id is not None and data.number is not None:
            self._numbers[data.identity_id] = data.number
        score = "-" if data.score is None else f"{data.score:.3f}"
        threshold = "-" if data.threshold is None else f"{data.threshold:.3f}"
        return data.kind, data.camera, f"#{data.track_id}", who, score, threshold, data.rule, data.reason


def _person(number: int | None) -> str:
    return "?" if number is None else person_title(number, None)
