"""How much the whole agent gets through: from frames in memory to events that a broker has acknowledged.

The run is the daemon's own, with the factory's stages; only its sources are others: cameras that turn over
a rendered street and give the boxes along, as an upstream detector would, so what is measured is all that
is behind the detector: crop, resize and pack, the engine, tracking, identification against a full gallery,
the outbox and delivery. Cameras are live: they give a frame when it is due, and who is too slow loses it.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.agent.daemon import Agent, Supply, Tally
from edge_agent.core.config import Settings
from edge_agent.core.errors import DeliveryError, EngineError
from edge_agent.core.loading import state_folder
from edge_agent.core.mqtt import BrokerSettings
from edge_agent.core.structures import DecisionKind, Detections, Frame, ScoreLevels
from edge_agent.deliver.subscriber import Subscriber
from edge_agent.detect import Detection
from edge_agent.embed.opening import open_embedder
from edge_agent.engine import is_simulated, open_simulated
from edge_agent.engine.base import DEPTH
from edge_agent.engine.graph.profiles import PreprocessProfile, profile_named
from edge_agent.engine.models import choose_model
from edge_agent.offline.bench.speed import Latency, machine
from edge_agent.offline.bench.stagetimes import Span, StageClock, cpu_of_cores, cpu_of_threads
from edge_agent.offline.synthetic.panorama import TALLEST, Panorama

if TYPE_CHECKING:
    from edge_agent.agent.pipeline import FrameOutcome
    from edge_agent.core.structures import EngineInfo
    from edge_agent.embed.embedder import Embedder

__all__ = ["Plan", "fill_gallery", "markdown", "measure", "open_broker"]

VISIT_S = 10.0
"""How long the camera's turn keeps a person in view."""

SCENES = 8
"""Different streets; more cameras see the same people again, at another moment."""

ACKNOWLEDGE_S = 5.0
"""Longest wait, at the end, for the broker and the subscriber."""

WARM_UP_S = 3.0
"""Before the measurement begins: the tracks are new, and all are looked up at once."""

_LEVELS = ScoreLevels(low=0.1, high=0.5, new_track=0.5)
_FRESH = (DecisionKind.MATCHED, DecisionKind.ENROLLED)
"""Decisions that are made on the frame whose time they name."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run.

    Attributes:
        cameras: how many.
        people: in view of each, on average.
        identities: in the gallery at the beginning.
        exemplars: of each of them.
        seconds: length of the measurement.
        load: crops offered over what the engine could take; sets the frame rate.
        fps: frames a second of each camera, instead of `load`.
        size: `(width, height)` of the frames.
        tallest: height of the tallest person, of the frame's.
        trace: whether each stay in a stage is kept.
    """

    cameras: int = 8
    people: int = 8
    identities: int = 10_000
    exemplars: int = 4
    seconds: float = 60.0
    load: float = 1.1
    fps: float | None = None
    size: tuple[int, int] = (1920, 1080)
    tallest: float = TALLEST
    trace: bool = False


# --- cameras ----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Turning:
    """A camera that turns over a street; see `edge_agent.source.base.Source`."""

    id: str
    street: Panorama
    fps: float
    phase: float
    speed: float
    """Pixels a second."""
    over: threading.Event
    live: bool = True
    ends: bool = True
    stall_seconds: float | None = None

    def frames(self) -> Generator[Frame | None, None, None]:
        """Frames as they are due; what is late by more than a frame is left out, as a camera would."""
        number, begin = 0, time.monotonic() + self.phase / self.fps
        while not self.over.is_set():
            number += 1
            left = begin + number / self.fps - time.monotonic()
            if left > 0:
                time.sleep(left)
            elif left < -1 / self.fps:
                number += int(-left * self.fps)
            image, found = self.street.frame(
                self.phase * 997 + self.speed * (time.monotonic() - begin), number
            )
            yield Frame(self.id, number, time.time(), image, found)


def _given(frame: Frame) -> Detections:
    return frame.external if frame.external is not None else Detections.none()


def _streets(plan: Plan) -> list[Panorama]:
    return [
        Panorama(seed, people=plan.people, size=plan.size, tallest=plan.tallest)
        for seed in range(min(plan.cameras, SCENES))
    ]


def _cameras(plan: Plan, streets: list[Panorama], fps: float, over: threading.Event) -> list[_Turning]:
    return [
        _Turning(
            f"cam{number + 1}",
            streets[number % SCENES],
            fps,
            number / plan.cameras,
            plan.size[0] / VISIT_S,
            over,
        )
        for number in range(plan.cameras)
    ]


def _packed(
    streets: list[Panorama], count: int, size: tuple[int, int], profile: PreprocessProfile
) -> NDArray[np.uint8]:
    """So many people in these streets as a network takes them, `(count, *size, 3)` uint8 BGR."""
    batch = np.zeros((count, *size, 3), np.uint8)
    for target, crop in zip(batch, _crops(streets), strict=False):
        profile.fit(crop, target)
    return batch


def _crops(streets: list[Panorama]) -> Iterator[NDArray[np.uint8]]:
    """One after another, without end."""
    for number, street in enumerate(itertools.cycle(streets)):
        image, found = street.frame(997.0 * number, number)
        height, width = image.shape[:2]
        inside = found.boxes.clip(0, (width, height, width, height)).astype(int)
        for x1, y1, x2, y2 in inside[(inside[:, 2:] > inside[:, :2]).all(axis=1)]:
            yield image[y1:y2, x1:x2]


# --- gallery and broker -----------------------------------------------------------------------


def fill_gallery(settings: Settings, info: EngineInfo, identities: int, exemplars: int) -> None:
    """Put so many people into the gallery of the state folder: random embeddings, far from everybody's.

    By the gallery's own import, so that the file is what an agent would have written.
    """
    from edge_agent.gallery.archive import Archive, ArchivedIdentity, import_archive, write_archive
    from edge_agent.gallery.gallery import open_gallery
    from edge_agent.gallery.identity import new_id

    if not identities:
        return
    random, now = np.random.default_rng(5), time.time()
    facts = tuple((0.9, "bench", "bench", now) for _ in range(exemplars))
    people = []
    for _ in range(identities):
        middle = random.standard_normal(info.dimension, np.float32)
        rows = middle + 0.5 * random.standard_normal((exemplars, info.dimension), np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        people.append(ArchivedIdentity(new_id(), None, "auto", now, now, 1, None, (), facts, rows))
    archive = settings.state_dir / "people.zip"
    write_archive(archive, Archive(info.space, info.dimension, tuple(people), {}))
    with open_gallery(settings, info, owner=True) as gallery:
        import_archive(gallery, archive)
    archive.unlink()


@contextmanager
def open_broker(folder: Path) -> Iterator[tuple[str, str]]:
    """A broker of our own on 127.0.0.1: its address, and what it is.

    mosquitto where it is installed, else the one that comes as a wheel.

    Raises:
        ConfigError: neither is installed.
        DeliveryError: it does not start.
    """
    binary = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if binary is None:
        from edge_agent.offline.demo.broker import DemoBroker

        with DemoBroker() as demo:
            yield demo.url, "iotcore (rumqttd)"
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    config = folder / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n")
    process = subprocess.Popen(  # noqa: S603 - mosquitto, as found on PATH
        [binary, "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _await_port(port, process)
        yield f"mqtt://127.0.0.1:{port}", "mosquitto"
    finally:
        process.terminate()
        process.wait(10)


def _await_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise DeliveryError(f"mosquitto does not start on port {port}; name a broker with --broker")


# --- the run ----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Arrivals:
    """Takes what the broker passes on, and how long after its frame it came."""

    subscriber: Subscriber
    latency_s: list[float] = field(default_factory=list)
    received: int = 0
    since: float = float("inf")
    """Frames before this do not count, Unix seconds."""
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> _Arrivals:
        self._thread = threading.Thread(target=self._run, name="subscriber", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join(2.0)

    def _run(self) -> None:
        from edge_agent.core.timing import parse_time

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
class _Moment:
    """All counters at one time."""

    at: float
    tally: Tally
    wall_s: dict[str, float]
    threads_s: dict[str, float]
    process_s: float
    cores: list[tuple[float, float]]


@dataclass(slots=True)
class _Window:
    """The measured part of a run: begins after the warm-up, and ends the cameras when it is over.

    It is the agent's `observe`.
    """

    plan: Plan
    clock: StageClock
    over: threading.Event
    arrivals: _Arrivals
    agent: Agent | None = None
    begin: _Moment | None = None
    end: _Moment | None = None
    frame_s: list[float] = field(default_factory=list)
    batch_spans: list[Span] = field(default_factory=list)
    began: Callable[[], None] | None = None
    """Called when the measurement begins."""
    _first: float | None = None

    def __call__(self, outcome: FrameOutcome) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now
        if self.end is not None or now < self._first + WARM_UP_S:
            return
        if self.begin is None:
            self._open()
        if outcome.latency_ms:  # the end of a camera is no frame
            self.frame_s.append(time.time() - outcome.update.time)
        assert self.begin is not None  # it was just opened
        if now >= self.begin.at + self.plan.seconds:
            self.end = self._now()
            self.over.set()

    def _open(self) -> None:
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

    def _now(self) -> _Moment:
        assert self.agent is not None  # whoever calls it back
        tally = self.agent.tally()
        assert tally is not None  # a frame was seen
        return _Moment(
            time.monotonic(),
            tally,
            dict(self.clock.wall_s),
            cpu_of_threads(),
            time.process_time(),
            cpu_of_cores(),
        )


def measure(
    plan: Plan,
    settings: Settings,
    *,
    broker: tuple[str, str],
    began: Callable[[], None] | None = None,
) -> tuple[dict[str, Any], list[Span]]:
    """Run it, and tell what came of it as JSON values; with `plan.trace`, also who was at work when.

    Args:
        plan: what is run.
        settings: engine, quality, tracker, identify; `state_dir` is an empty folder.
        broker: address and what it is.
        began: called when the measurement begins, after the warm-up.

    Raises:
        EngineError: the run ended before the measurement did.
    """
    own = _settings(plan, settings, broker[0])
    embedder = open_embedder(own.engine, own.quality, state_folder(own.state_dir))
    info = embedder.info
    fill_gallery(own, info, plan.identities, plan.exemplars)
    streets = _streets(plan)
    limits = [_engine_limit(own, embedder, streets)]
    fps = plan.fps or plan.load * limits[0] / (plan.cameras * plan.people)
    over = threading.Event()
    connection = BrokerSettings.of(own.mqtt)
    with ExitStack() as stack:
        subscriber = stack.enter_context(Subscriber(connection, ("edge/v1/#",), limit=100_000))
        arrivals = stack.enter_context(_Arrivals(subscriber))
        window = _Window(plan, StageClock(), over, arrivals, began=began)
        agent = Agent(own, observe=window, heartbeat=window.clock)
        agent.supply = Supply(
            _cameras(plan, streets, fps, over),
            Detection(_given, lambda _: _LEVELS, "given", lambda: 0.0),
        )
        window.agent = agent
        agent.run(threading.Event())
        final = agent.tally()
        _await_arrivals(arrivals, final.acknowledged if final is not None else 0)
    if window.begin is None or window.end is None or final is None:
        raise EngineError("the run ended before the measurement did; the log says why")
    if not is_simulated(own.engine.backend):
        limits.append(_engine_limit(own, embedder, streets))
    told = _document(plan, own, info, window, statistics.fmean(limits), fps, final)
    told["broker"] = broker[1]
    told["events_received"] = arrivals.received
    spans = [*(window.clock.spans or []), *window.batch_spans]
    return told, spans


def _settings(plan: Plan, settings: Settings, broker: str) -> Settings:
    """The given settings with our cameras, broker and room in the gallery."""
    return Settings.model_validate(
        {
            **settings.model_dump(),
            "sources": [
                {"id": f"cam{number + 1}", "url": f"turning:{number}"} for number in range(plan.cameras)
            ],
            "mqtt": {"broker": broker, "site": "bench", "device": "bench"},
            "gallery": {**settings.gallery.model_dump(), "capacity": plan.identities + 10_000},
        }
    )


def _engine_limit(settings: Settings, embedder: Embedder, streets: list[Panorama]) -> float:
    """Images per second of the network alone with full batches: its table's, or measured on packed crops."""
    engine = settings.engine
    if is_simulated(engine.backend):
        return open_simulated(engine.backend, max_batch=1).table.rate(engine.max_batch)
    from edge_agent.offline.bench.speed import rate_alone

    profile = profile_named(choose_model(engine, settings.state_dir).preprocess)
    crops = _packed(streets, embedder.info.max_batch, embedder.engine.input_size, profile)
    return rate_alone(embedder, crops, seconds=5.0)


def _await_arrivals(arrivals: _Arrivals, wanted: int) -> None:
    """Let the subscriber take what the broker has."""
    deadline = time.monotonic() + ACKNOWLEDGE_S
    while arrivals.received < wanted and time.monotonic() < deadline:
        time.sleep(0.05)


# --- what is told -----------------------------------------------------------------------------


def _document(
    plan: Plan,
    settings: Settings,
    info: EngineInfo,
    window: _Window,
    limit: float,
    fps: float,
    final: Tally,
) -> dict[str, Any]:
    begin, end = window.begin, window.end
    assert begin is not None
    assert end is not None
    seconds = end.at - begin.at
    crops = end.tally.crops - begin.tally.crops
    rate = crops / seconds
    return {
        "images_per_second": rate,
        "engine_limit": limit,
        "ratio": rate / limit,
        "engine_busy": (end.tally.engine_seconds - begin.tally.engine_seconds) / seconds,
        "mean_batch": crops / max(1, end.tally.batches - begin.tally.batches),
        "latency_ms": _percentiles(window.arrivals.latency_s),
        "frame_ms": _percentiles(window.frame_s),
        "events_published": final.published,
        "events_acknowledged": final.acknowledged,
        "frames": sum(_gained(begin.tally.frames, end.tally.frames).values()),
        "dropped_frames": _gained(begin.tally.dropped, end.tally.dropped),
        "spared_crops": _gained(begin.tally.spared, end.tally.spared),
        "overload_crops": _gained(begin.tally.overload, end.tally.overload),
        "offered_per_second": fps * plan.cameras * plan.people,
        "fps": fps,
        "seconds": seconds,
        "crops": crops,
        "stages": _stages(begin, end, crops),
        "cpu": _cpu(begin, end, crops, seconds),
        "memory_mb": _resident_mb(),
        "simulated": is_simulated(info.backend),
        "engine": asdict(info),
        "batch": settings.engine.max_batch,
        "plan": asdict(plan),
        "machine": machine(),
    }


def _percentiles(seconds: list[float]) -> dict[str, float | int | None]:
    if not seconds:
        return {"p50": None, "p95": None, "p99": None, "runs": 0}
    return asdict(Latency.of(seconds))


def _gained(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, Any]:
    return {name: value - before.get(name, 0) for name, value in after.items()}


def _stages(begin: _Moment, end: _Moment, crops: int) -> dict[str, dict[str, float]]:
    """Time of the driving thread by stage, per crop that was embedded."""
    wall = _gained(begin.wall_s, end.wall_s)
    return {
        name: {
            "wall_us_per_crop": 1e6 * wall[name] / max(crops, 1),
        }
        for name in sorted(wall, key=lambda name: -wall[name])
    }


def _cpu(begin: _Moment, end: _Moment, crops: int, seconds: float) -> dict[str, Any]:
    """Of this process in all and by thread, and of the machine's cores, other processes included."""
    used = end.process_s - begin.process_s
    cores = [
        (after[0] - before[0]) / max(after[1] - before[1], 1e-9)
        for before, after in zip(begin.cores, end.cores, strict=True)
    ]
    return {
        "us_per_crop": 1e6 * used / max(crops, 1),
        "process_cores": used / seconds,
        "by_thread": {
            name: spent / seconds
            for name, spent in sorted(_gained(begin.threads_s, end.threads_s).items(), key=lambda it: -it[1])
            if spent > 0
        },
        "cores_busy": cores,
    }


def _resident_mb() -> float:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def markdown(told: Mapping[str, Any]) -> str:
    """What `measure` tells, for people."""
    plan, machine_, engine = told["plan"], told["machine"], told["engine"]
    word = "SIMULATED, no network ran" if told["simulated"] else "a real network ran"
    lost, spared = sum(told["dropped_frames"].values()), sum(told["spared_crops"].values())
    lines = [
        f"{engine['backend']} ({engine['device']}, {engine['precision']}; {word}), batches of up to"
        f" {told['batch']}; {plan['cameras']} cameras of {plan['size'][0]}x{plan['size'][1]} at"
        f" {told['fps']:.1f} fps with {plan['people']} people each; {plan['identities']} identities with"
        f" {plan['exemplars']} exemplars; {told['broker']}; {told['seconds']:.0f} s on"
        f" {machine_['cores']} cores"
        f" ({machine_['cpu'] or machine_['platform']}).",
        "",
        "| figure | value |",
        "|---|---|",
        f"| crops embedded | {told['images_per_second']:.1f} /s |",
        f"| the engine alone | {told['engine_limit']:.1f} /s |",
        f"| ratio | {told['ratio']:.3f} |",
        f"| engine busy | {100 * told['engine_busy']:.1f} % |",
        f"| crops in a batch, mean | {told['mean_batch']:.1f} |",
        f"| frame to event at the subscriber, p50 / p95 / p99 | {_ms(told['latency_ms'])} |",
        f"| frame to decision, p50 / p95 / p99 | {_ms(told['frame_ms'])} |",
        f"| events published / acknowledged | {told['events_published']} / {told['events_acknowledged']} |",
        f"| frames taken / dropped; crops spared | {told['frames']} / {lost}; {spared} |",
        f"| CPU | {told['cpu']['us_per_crop']:.0f} us per crop, {told['cpu']['process_cores']:.2f} cores |",
        f"| memory | {told['memory_mb']:.0f} MB |",
        "",
        "| stage of the driving thread | us per crop |",
        "|---|---|",
        *(f"| {name} | {spent['wall_us_per_crop']:.1f} |" for name, spent in told["stages"].items()),
        "",
        "| thread | cores |",
        "|---|---|",
        *(f"| {name} | {share:.3f} |" for name, share in told["cpu"]["by_thread"].items()),
    ]
    return "\n".join(lines) + "\n"


def _ms(of: Mapping[str, float | None]) -> str:
    if of["p50"] is None:
        return "none"
    return f"{of['p50']:.1f} / {of['p95']:.1f} / {of['p99']:.1f} ms"
