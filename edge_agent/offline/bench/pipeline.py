"""Throughput of the whole agent: from frames in memory to events that a broker has acknowledged.

The run is the daemon's own, with its stages; only its sources differ: cameras that turn over a rendered
street and deliver the boxes, as an upstream detector does. Measured are all stages after detection: cut,
resize and pack crops, engine, tracking, identification against a full gallery, outbox and delivery. With a
simulated detector, detection too: its host part runs on the frames, and its network takes its time in the
queue of the device, which it shares with the ReID network. Cameras are live: a frame that is not read in time
is lost.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from edge_agent.agent.daemon import Agent
from edge_agent.agent.stages import Supply
from edge_agent.core.config import Settings
from edge_agent.core.errors import ConfigError, EngineError
from edge_agent.core.loading import state_folder
from edge_agent.core.manifest import write_atomic
from edge_agent.core.mqtt import BrokerSettings
from edge_agent.core.structures import ScoreLevels
from edge_agent.detect.opening import Detection
from edge_agent.detect.search import one_by_one
from edge_agent.embed.opening import open_embedder
from edge_agent.engine import is_simulated, open_simulated
from edge_agent.engine.graph.prepared import profile_named
from edge_agent.engine.precision.calibration import engines_folder
from edge_agent.offline.bench.arrivals import Arrivals
from edge_agent.offline.bench.detection import SimulatedSearch
from edge_agent.offline.bench.environment import fill_gallery, machine, open_broker
from edge_agent.offline.bench.load import Plan, given_detections, make_cameras, make_streets, packed_crops
from edge_agent.offline.bench.speed import Latency, rate_alone
from edge_agent.offline.bench.stagetimes import (
    Counters,
    DeviceWork,
    Span,
    Tally,
    Window,
    timeline_svg,
    trace_events,
)

if TYPE_CHECKING:
    from edge_agent.embed.embedder import Embedder
    from edge_agent.offline.synthetic.panorama import Panorama

ACKNOWLEDGE_S = 5.0
"""Longest wait, at the end, for the broker and the subscriber."""

PROFILE_RATE = 200
"""Samples a second of the flame graph."""

_LEVELS = ScoreLevels(low=0.1, high=0.5, new_track=0.5)


def measure(
    plan: Plan, settings: Settings, *, broker: str | None, trace: Path | None, profile: Path | None
) -> dict[str, Any]:
    """Run the agent in a scratch folder, with its own engines; return the result as JSON values.

    Args:
        plan: cameras, people and length of the run.
        settings: engine, quality, tracker, identify.
        broker: address of a broker; None to start one.
        trace: JSON file for the trace, with a picture (.svg) next to it; None for none.
        profile: SVG file for the flame graph; None for none.

    Raises:
        ConfigError: py-spy or a broker is missing, or a simulated detector is to share a real device.
        EngineError: the run ended before the measurement did, or py-spy failed.
    """
    folder = engines_folder(settings.engine, settings.state_dir)
    engine = settings.engine.model_copy(update={"folder": folder})
    with TemporaryDirectory(prefix="edge-agent-bench-") as scratch, ExitStack() as stack:
        given = None if broker is None else nullcontext((broker, "given broker"))
        address, name = stack.enter_context(given or open_broker(Path(scratch)))
        flames = stack.enter_context(closing(_FlameGraph(profile, plan.seconds)))
        own = settings.model_copy(update={"engine": engine, "state_dir": Path(scratch) / "state"})
        result, spans = _run(plan, _settings(plan, own, address), flames.begin)
        flames.finish()
    if trace is not None:
        write_atomic(trace, trace_events(spans).encode())
        write_atomic(trace.with_suffix(".svg"), timeline_svg(spans).encode())
    return {**result, "broker": name}


class _FlameGraph:
    """py-spy, which records this process into an SVG file from `begin` on; without a file, nothing."""

    def __init__(self, file: Path | None, seconds: float) -> None:
        environment = str(Path(sys.executable).parent)  # a virtual environment has its commands there
        self._binary = shutil.which("py-spy", path=environment) or shutil.which("py-spy") or ""
        if file is not None and not self._binary:
            raise ConfigError(
                "a flame graph needs py-spy: install edge-agent with the extra `profile`, or leave --profile"
                " out"
            )
        self._file, self._seconds = file, seconds
        self._process: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        if self._file is None:
            return
        self._process = subprocess.Popen(  # noqa: S603 - py-spy, as found on PATH
            [
                self._binary, "record", "--pid", str(os.getpid()), "--output", str(self._file.absolute()),
                "--duration", str(max(1, int(self._seconds))), "--rate", str(PROFILE_RATE),
                "--format", "flamegraph",
            ],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip

    def finish(self) -> None:
        if self._process is None:
            return
        _, errors = self._process.communicate(timeout=60)
        if self._process.returncode:
            raise EngineError(
                f"py-spy cannot record this process: {errors.decode(errors='replace').strip()[-300:]}; it"
                " needs the right to trace processes (root, or CAP_SYS_PTRACE in a container)"
            )

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(10)


def _run(plan: Plan, own: Settings, began: Callable[[], None]) -> tuple[dict[str, Any], list[Span]]:
    """Return the result and, with `plan.trace`, the working times; `began` is called after the warm-up."""
    stack = ExitStack()
    detector = SimulatedSearch.open(plan, own, stack)
    embedder = open_embedder(own.engine, own.quality, state_folder(own.state_dir))
    info = embedder.info
    fill_gallery(own, info, plan.identities, plan.exemplars)
    streets = make_streets(plan)
    limits = [_engine_limit(own, embedder, streets)]
    possible = limits[0] if detector is None else detector.crops_per_second(limits[0])
    fps = plan.fps or plan.load * possible * plan.every / (plan.cameras * plan.people * plan.busy)
    over = threading.Event()
    with Arrivals(BrokerSettings.of(own.mqtt)) as arrivals, stack:
        window = Window(plan, over, arrivals, began, DeviceWork if detector is None else detector.work)
        agent = window.agent = Agent(own, observe=window)
        cameras = make_cameras(plan, streets, fps, over)
        agent.supply = Supply(
            cameras,
            Detection(one_by_one(given_detections), lambda _: _LEVELS, "given", lambda: 0.0),
            None if detector is None else partial(detector.enter, cameras),
        )
        agent.run(threading.Event())
        final = Tally.of(agent)
        deadline = time.monotonic() + ACKNOWLEDGE_S
        while arrivals.received < final.acknowledged and time.monotonic() < deadline:
            time.sleep(0.05)
    if window.begin is None or window.end is None:
        raise EngineError("the run ended before the measurement did; the log says why")
    if not is_simulated(own.engine.backend):
        limits.append(_engine_limit(own, embedder, streets))
    result = {
        **_throughput(window, window.begin, window.end, statistics.fmean(limits)),
        "events_published": final.published,
        "events_acknowledged": final.acknowledged,
        "events_received": arrivals.received,
        "offered_per_second": fps * plan.cameras * plan.people * plan.busy / plan.every,
        "fps": fps,
        "detector": None if detector is None else detector.facts | _searched(window.begin, window.end),
        "simulated": is_simulated(info.backend),
        "engine": asdict(info),
        "batch": own.engine.max_batch,
        "plan": asdict(plan),
        "machine": machine(),
    }
    return result, [*(window.clock.spans or []), *window.batch_spans]


def _settings(plan: Plan, settings: Settings, broker: str) -> Settings:
    """The settings with the benchmark's cameras, broker and gallery size."""
    # The addresses are never opened: cameras in memory replace them.
    sources = [{"id": f"cam{n}", "url": f"rtsp://memory/{n}"} for n in range(1, plan.cameras + 1)]
    changes = {
        "sources": sources,
        "motion": {**settings.motion.model_dump(), "enabled": plan.motion},
        "mqtt": {"broker": broker, "site": "bench", "device": "bench"},
        "gallery": {**settings.gallery.model_dump(), "capacity": plan.identities + 10_000},
    }
    return Settings.model_validate({**settings.model_dump(), **changes})


def _engine_limit(settings: Settings, embedder: Embedder, streets: list[Panorama]) -> float:
    """Images per second of the network alone with full batches: from its table, or measured on crops."""
    engine = settings.engine
    if is_simulated(engine.backend):
        return open_simulated(engine.backend, max_batch=1).table.rate(engine.max_batch)
    profile = profile_named(embedder.profile)
    crops = packed_crops(streets, embedder.info.max_batch, embedder.engine.input_size, profile)
    return rate_alone(embedder, crops, seconds=5.0)


def _throughput(window: Window, begin: Counters, end: Counters, limit: float) -> dict[str, Any]:
    """Figures of the measured part; `limit`: images per second of the engine alone."""
    before, after = begin.tally, end.tally
    seconds, crops = end.at - begin.at, after.crops - before.crops
    rate = crops / seconds
    wall = _gained(begin.wall_s, end.wall_s)
    return {
        "images_per_second": rate,
        "engine_limit": limit,
        "ratio": rate / limit,
        "engine_busy": (after.engine_seconds - before.engine_seconds) / seconds,
        "mean_batch": crops / max(1, after.batches - before.batches),
        "latency_ms": _percentiles(window.arrivals.latency_s),
        "frame_ms": _percentiles(window.frame_s),
        "frames": sum(_gained(before.frames, after.frames).values()),
        "dropped_frames": _gained(before.dropped, after.dropped),
        "spared_crops": _gained(before.spared, after.spared),
        "overload_crops": _gained(before.overload, after.overload),
        "seconds": seconds,
        "crops": crops,
        "stages": {
            name: {"wall_us_per_crop": 1e6 * wall[name] / max(crops, 1)}
            for name in sorted(wall, key=lambda name: -wall[name])
        },
        "cpu": _cpu(begin, end, crops, seconds),
        "memory_mb": _resident_mb(),
    }


def _searched(begin: Counters, end: Counters) -> dict[str, float]:
    """Figures of the simulated detector and the device in the measured part."""
    seconds, frames = end.at - begin.at, end.device.searched - begin.device.searched
    return {
        "frames_per_second": frames / seconds,
        "mean_batch": frames / max(1, end.device.batches - begin.device.batches),
        "device_busy": (end.device.seconds - begin.device.seconds) / seconds,
    }


def _percentiles(seconds: list[float]) -> dict[str, float | int | None]:
    if not seconds:
        return {"p50": None, "p95": None, "p99": None, "runs": 0}
    return asdict(Latency.of(seconds))


def _gained(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, Any]:
    return {name: value - before.get(name, 0) for name, value in after.items()}


def _cpu(begin: Counters, end: Counters, crops: int, seconds: float) -> dict[str, Any]:
    """CPU time of this process, in all and by thread, and load of the cores, with other processes."""
    used = end.process_s - begin.process_s
    threads = sorted(_gained(begin.threads_s, end.threads_s).items(), key=lambda item: -item[1])
    return {
        "us_per_crop": 1e6 * used / max(crops, 1),
        "process_cores": used / seconds,
        "by_thread": {name: spent / seconds for name, spent in threads if spent > 0},
        "cores_busy": [
            (after[0] - before[0]) / max(after[1] - before[1], 1e-9)
            for before, after in zip(begin.cores, end.cores, strict=True)
        ],
    }


def _resident_mb() -> float:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def markdown(result: Mapping[str, Any]) -> str:
    """Return a result as Markdown."""
    plan, host, engine, cpu = result["plan"], result["machine"], result["engine"], result["cpu"]
    published, acknowledged = result["events_published"], result["events_acknowledged"]
    network = "SIMULATED, no network ran" if result["simulated"] else "a real network ran"
    lost, spared = sum(result["dropped_frames"].values()), sum(result["spared_crops"].values())
    detector = result["detector"]
    lines = [
        f"{engine['backend']} ({engine['device']}, {engine['precision']}; {network}), batches of up to"
        f" {result['batch']}; {plan['cameras']} cameras of {plan['size'][0]}x{plan['size'][1]} at"
        f" {result['fps']:.1f} fps with {plan['people']} people each{_time_in_view(plan)};"
        f" {plan['identities']} identities with"
        f" {plan['exemplars']} exemplars; {result['broker']}; {result['seconds']:.0f} s on"
        f" {host['cores']} cores ({host['cpu'] or host['platform']}). {_detection_words(detector, plan)}",
        "",
        "| figure | value |",
        "|---|---|",
        f"| crops embedded | {result['images_per_second']:.1f} /s |",
        f"| the engine alone | {result['engine_limit']:.1f} /s |",
        f"| ratio | {result['ratio']:.3f} |",
        f"| engine busy | {100 * result['engine_busy']:.1f} % |",
        *_detector_rows(detector),
        f"| crops in a batch, mean | {result['mean_batch']:.1f} |",
        f"| frame to event at the subscriber, p50 / p95 / p99 | {_ms(result['latency_ms'])} |",
        f"| frame to decision, p50 / p95 / p99 | {_ms(result['frame_ms'])} |",
        f"| events published / acknowledged | {published} / {acknowledged} |",
        f"| frames taken / dropped; crops spared | {result['frames']} / {lost}; {spared} |",
        f"| CPU | {cpu['us_per_crop']:.0f} us per crop, {cpu['process_cores']:.2f} cores |",
        f"| memory | {result['memory_mb']:.0f} MB |",
        "",
        "| stage of the driving thread | us per crop |",
        "|---|---|",
        *(f"| {name} | {spent['wall_us_per_crop']:.1f} |" for name, spent in result["stages"].items()),
        "",
        "| thread | cores |",
        "|---|---|",
        *(f"| {name} | {share:.3f} |" for name, share in cpu["by_thread"].items()),
    ]
    return "\n".join(lines) + "\n"


def _time_in_view(plan: Mapping[str, Any]) -> str:
    return "" if plan["busy"] == 1 else f" for {plan['busy']:.0%} of the time"


def _detection_words(detector: Mapping[str, Any] | None, plan: Mapping[str, Any]) -> str:
    """How people are detected."""
    if detector is None:
        return "No detector: boxes are given."
    every = "every frame" if plan["every"] == 1 else f"one of {plan['every']} frames"
    gate = ", motion gate" if plan["motion"] else ""
    size = "x".join(map(str, detector["input_size"]))
    return (
        f"Detector {detector['name']} ({detector['model']}, {size}, {detector['device']},"
        f" {detector['precision']}; SIMULATED, no network ran; {detector['source']}), batches of up to"
        f" {detector['max_batch']}, {every}{gate}, in the queue of the ReID engine's device."
    )


def _detector_rows(detector: Mapping[str, Any] | None) -> list[str]:
    if detector is None:
        return []
    return [
        f"| device busy, with both networks | {100 * detector['device_busy']:.1f} % |",
        f"| frames searched (simulated) | {detector['frames_per_second']:.1f} /s,"
        f" {detector['mean_batch']:.1f} together |",
    ]


def _ms(of: Mapping[str, float | None]) -> str:
    return "none" if of["p50"] is None else f"{of['p50']:.1f} / {of['p95']:.1f} / {of['p99']:.1f} ms"
