"""`edge-agent demo`: the whole agent on a rendered street, or on a video, with a broker of its own."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from edge_agent.agent.daemon import Summary
    from edge_agent.core.config import Settings, SourceSettings
    from edge_agent.core.events import Event, InfoData
    from edge_agent.deliver.subscriber import Subscriber
    from edge_agent.offline.demo.street import Recorder, Scene, Score
    from edge_agent.offline.synthetic.street import Street

RECENT = 12
"""Events on the screen."""

LAST_EVENTS_S = 5.0
"""Longest wait, at the end, for events that the broker has not passed on yet."""

DEVICE = "demo"


def command(
    video: Annotated[
        list[str] | None,
        typer.Option(help="Video file, or address of a stream; repeat it for more. Else a rendered street."),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="ReID network, ONNX; the shipped one, else colour-stripes, if absent.")
    ] = None,
    preprocess: Annotated[
        str | None, typer.Option(help="Preprocess profile: tao, imagenet, openvino-raw or swin.")
    ] = None,
    detector: Annotated[str | None, typer.Option(help="hog or yolox:FILE.onnx; hog if absent.")] = None,
    seconds: Annotated[
        float | None, typer.Option(min=5, max=3600, help="Length of the rendered street; 60 if absent.")
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Leave videos, truth, gallery and events there; made if absent."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON, and all else on standard error.")
    ] = False,
) -> None:
    """Watch people being recognised: events live, from a broker, and a table at the end."""
    import json

    from rich.console import Console

    from edge_agent.cli.service import one_blas_thread

    one_blas_thread()
    from edge_agent.core.logs import configure
    from edge_agent.offline.demo.broker import DemoBroker
    from edge_agent.offline.demo.street import SECONDS, Recorder, default_street

    if video and seconds is not None:
        raise typer.BadParameter("is the length of the rendered street; a --video has its own")
    configure("warning")
    console = Console(stderr=as_json)
    with _folder(keep) as folder, DemoBroker() as broker:
        settings = _settings(video, model, preprocess, detector, folder, broker.url)
        _check(settings, folder)
        scene = None if video else _render(default_street(seconds or SECONDS), folder, console)
        recorder = Recorder(boxes=scene is not None)
        screen, summary = _run(settings, scene, recorder, folder, console)
        result = _result(scene, recorder, screen, summary)
    if as_json:
        print(json.dumps(result))
    else:
        _print_result(result, console)
        if keep is not None:
            console.print(f"kept in {keep}")


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    """Where the demo works: the named folder, else one that is removed afterwards."""
    from tempfile import TemporaryDirectory

    from edge_agent.agent.factory import state_folder

    if keep is not None:
        yield state_folder(keep)
        return
    with TemporaryDirectory(prefix="edge-agent-demo-") as scratch:
        yield Path(scratch)


def _render(street: Street, folder: Path, console: Console) -> Scene:
    """Write the street's videos, with a progress bar on a terminal."""
    from rich.progress import Progress

    from edge_agent.offline.demo.street import render

    cameras, people = len(street.cameras), len(street.people)
    console.print(
        f"Rendering a street of {street.frames / street.fps:.0f} s: {cameras} cameras, {people} people,"
        f" {len(street.visits)} visits. The agent sees the videos alone."
    )
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("rendering", total=None)
        return render(street, folder, lambda done, total: progress.update(task, completed=done, total=total))


def _settings(
    video: list[str] | None,
    model: Path | None,
    preprocess: str | None,
    detector: str | None,
    folder: Path,
    broker: str,
) -> Settings:
    """Settings of this run; no configuration file is read, so that the demo is the same everywhere."""
    import os

    from edge_agent.cli.service import overrides
    from edge_agent.core.loading import load
    from edge_agent.engine.models import STRIPES, default_model

    if model is None and default_model() is None:
        model = Path(STRIPES)
    values = overrides(
        source=video, detector=detector, model=model, preprocess=preprocess, broker=broker, state=folder
    )
    values["mqtt"] |= {"site": DEVICE, "device": DEVICE}
    return load(Path(os.devnull), values)


def _check(settings: Settings, folder: Path) -> None:
    """Find faults of the options before anything is rendered.

    Raises:
        EdgeAgentError: the model or the detector cannot be used.
    """
    from contextlib import ExitStack

    from edge_agent.agent import factory
    from edge_agent.engine.models import choose_model

    choose_model(settings.engine, folder)
    with ExitStack() as stack:
        factory.open_detection(settings, stack, cameras={DEVICE: None})


def _run(
    settings: Settings, scene: Scene | None, recorder: Recorder, folder: Path, console: Console
) -> tuple[Screen, Summary]:
    """Subscribe, and run the agent on the main thread until the videos end or Ctrl-C."""
    from edge_agent.agent.daemon import Agent, Outputs
    from edge_agent.cli.service import run_until_stopped
    from edge_agent.core.mqtt import BrokerSettings
    from edge_agent.deliver.subscriber import Subscriber
    from edge_agent.deliver.topics import PREFIX

    if scene is not None:
        settings = settings.model_copy(update={"sources": _sources(scene)})
    agent = Agent(settings, Outputs(folder / "events.jsonl"), observe=recorder)
    broker = BrokerSettings.of(settings.mqtt)
    with (
        Subscriber(broker, (f"{PREFIX}/{DEVICE}/{DEVICE}/#",)) as subscriber,
        Screen(subscriber, recorder, console, scene.frames if scene is not None else None) as screen,
    ):
        summary = run_until_stopped(agent)
        screen.wait_for(sum(recorder.kinds.values()))
    return screen, summary


def _sources(scene: Scene) -> tuple[SourceSettings, ...]:
    from edge_agent.core.config import SourceSettings

    fps = scene.street.fps
    return tuple(SourceSettings(id=v.camera, url=str(v.video), fps=fps) for v in scene.videos)


@dataclass(slots=True)
class Screen:
    """Shows what the subscriber receives, on a thread: a live table, or lines without a terminal."""

    subscriber: Subscriber
    recorder: Recorder
    console: Console
    total: int | None
    info: InfoData | None = None
    arrived: dict[str, float] = field(default_factory=dict)
    """`time.monotonic()` of every identity event by its id."""
    kinds: Counter[str] = field(default_factory=Counter)
    recent: deque[Event] = field(default_factory=lambda: deque(maxlen=RECENT))
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
        """Until so many identity events have come, or `LAST_EVENTS_S` have passed."""
        import time

        deadline = time.monotonic() + LAST_EVENTS_S
        while len(self.arrived) < events and time.monotonic() < deadline:
            self._stop.wait(0.05)

    def _show(self) -> None:
        from rich.live import Live

        if not self.console.is_terminal:
            self._receive()
            return
        with Live(get_renderable=self._table, console=self.console, refresh_per_second=4):
            self._receive()

    def _receive(self) -> None:
        import time

        from edge_agent.core.codec import decode

        while not self._stop.is_set():
            message = self.subscriber.next(0.1)
            if message is None or not message.payload:
                continue
            event = decode(message.payload)
            if event.kind == "info":
                self.info = event.data
            elif event.kind == "identity":
                self.arrived[event.id] = time.monotonic()
                self.kinds[event.data.kind] += 1
                self.recent.append(event)
                if not self.console.is_terminal:
                    self.console.print("  ".join(_cells(event)), highlight=False, markup=False)

    def _table(self) -> Table:
        from rich.table import Table

        done = f"{self.recorder.frames}" + (f" of {self.total}" if self.total else "") + " frames"
        table = Table("event", "camera", "track", "who", "score", "threshold", "rule", "why", title=done)
        for event in list(self.recent):
            table.add_row(*_cells(event))
        return table


def _cells(event: Event) -> tuple[str, ...]:
    """An identity event as columns."""
    data = event.data
    who = "?" if data.number is None else f"person {data.number}"
    score = "-" if data.score is None else f"{data.score:.3f}"
    threshold = "-" if data.threshold is None else f"{data.threshold:.3f}"
    cells = (data.kind, data.camera, f"#{data.track_id}", who, score, threshold, data.rule, data.reason)
    return tuple(map(str, cells))


def _result(scene: Scene | None, recorder: Recorder, screen: Screen, summary: Summary) -> dict[str, Any]:
    """All that is told at the end, as JSON values."""
    from edge_agent.offline.demo.street import percentiles, score

    complete = scene is None or recorder.frames == scene.frames
    judged: Score | None = score(scene, recorder) if scene is not None and complete else None
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


_ROWS = (
    ("people", "people", "who could be seen for a second or more"),
    ("visits", "visits", "passages of a person through a camera's view"),
    ("re-entries", "reentries", "visits of people who had been there before"),
    ("recognised", "recognised", "of these, given an old identity of the same person"),
    ("  at once", "at_once", "... without a correction"),
    ("confused", "confused", "identities that two or more people got"),
    ("missed", "missed", "visits without any identity"),
    ("identities", "identities", "in use at the end"),
    ("seen again", "seen_again", "identities that several tracks have"),
    ("frames", "frames", "of all cameras"),
    ("crops/s", "crops_per_s", "embedded, over the whole run with its detector"),
    ("  network", "network_crops_per_s", "... over the time inside the network alone"),
    ("latency, ms", "latency_ms", "of a frame, from detection to decision: median, 95th percentile"),
    ("delivery, ms", "delivery_ms", "from decision to subscriber: median, 95th percentile"),
)
"""Title, key of the result, meaning."""


def _print_result(result: dict[str, Any], console: Console) -> None:
    """The table at the end."""
    from rich import box
    from rich.table import Table

    table = Table("", "", "", box=box.SIMPLE, show_header=False)
    for title, key, meaning in _ROWS:
        value = result.get(key)
        if value is not None:
            shown = f"{value['p50']:.0f}, {value['p95']:.0f}" if isinstance(value, dict) else f"{value}"
            table.add_row(title, shown, meaning)
    console.print(table)
    kind = "" if result["trained"] else " (built in and untrained: it compares colours of clothing)"
    console.print(f"model {result['model']}{kind}, detector {result['detector']}")
    made, received = sum(result["decisions"].values()), result["events_received"]
    console.print(f"{received} of {made} events came back from the broker")
    if not result["complete"]:
        console.print("stopped early: not scored against the truth")
