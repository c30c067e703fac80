"""The result of a whole-agent benchmark as JSON values and as Markdown."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.engine import is_simulated
from edge_agent.offline.bench.machine import machine
from edge_agent.offline.bench.speed import Latency

if TYPE_CHECKING:
    from edge_agent.agent.daemon import Tally
    from edge_agent.core.config import Settings
    from edge_agent.core.structures import EngineInfo
    from edge_agent.offline.bench.load import Plan
    from edge_agent.offline.bench.window import Counters, Window

__all__ = ["document", "markdown"]


def document(
    plan: Plan, settings: Settings, info: EngineInfo, window: Window, limit: float, fps: float, final: Tally
) -> dict[str, Any]:
    """Return the result as JSON values.

    Args:
        plan: the load.
        settings: of the run.
        info: engine of the run.
        window: the finished measurement.
        limit: images per second of the engine alone.
        fps: frame rate of each camera.
        final: counters at the end of the run.
    """
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


def _stages(begin: Counters, end: Counters, crops: int) -> dict[str, dict[str, float]]:
    """Time of the driving thread by stage, per embedded crop."""
    wall = _gained(begin.wall_s, end.wall_s)
    return {
        name: {"wall_us_per_crop": 1e6 * wall[name] / max(crops, 1)}
        for name in sorted(wall, key=lambda name: -wall[name])
    }


def _cpu(begin: Counters, end: Counters, crops: int, seconds: float) -> dict[str, Any]:
    """CPU time of this process, in all and by thread, and load of the cores, with other processes."""
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


def markdown(result: Mapping[str, Any]) -> str:
    """Return a result as Markdown."""
    plan, host, engine, cpu = result["plan"], result["machine"], result["engine"], result["cpu"]
    published, acknowledged = result["events_published"], result["events_acknowledged"]
    network = "SIMULATED, no network ran" if result["simulated"] else "a real network ran"
    lost, spared = sum(result["dropped_frames"].values()), sum(result["spared_crops"].values())
    lines = [
        f"{engine['backend']} ({engine['device']}, {engine['precision']}; {network}), batches of up to"
        f" {result['batch']}; {plan['cameras']} cameras of {plan['size'][0]}x{plan['size'][1]} at"
        f" {result['fps']:.1f} fps with {plan['people']} people each; {plan['identities']} identities with"
        f" {plan['exemplars']} exemplars; {result['broker']}; {result['seconds']:.0f} s on"
        f" {host['cores']} cores"
        f" ({host['cpu'] or host['platform']}).",
        "",
        "| figure | value |",
        "|---|---|",
        f"| crops embedded | {result['images_per_second']:.1f} /s |",
        f"| the engine alone | {result['engine_limit']:.1f} /s |",
        f"| ratio | {result['ratio']:.3f} |",
        f"| engine busy | {100 * result['engine_busy']:.1f} % |",
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


def _ms(of: Mapping[str, float | None]) -> str:
    if of["p50"] is None:
        return "none"
    return f"{of['p50']:.1f} / {of['p95']:.1f} / {of['p99']:.1f} ms"
