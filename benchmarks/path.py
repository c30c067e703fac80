"""How many cameras the whole path serves without losing a frame, with detection on the same device.

    python -m benchmarks.path --detector benchmarks/engines/orin-yolox-s.json [--every 2] [--motion]

The agent runs on frames in memory, 1920 x 1080 at 15 a second, with a simulated detector and a simulated ReID
network in one device queue (`edge-agent bench --pipeline --detector`). The number of cameras is raised until
frames are lost.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_agent.core.loading import load
from edge_agent.core.manifest import write_json_atomic
from edge_agent.detect.simulated import detector_table
from edge_agent.engine.simulated import latency_table
from edge_agent.offline.bench import pipeline
from edge_agent.offline.bench.load import PERIOD_S, Plan

__all__ = ["FPS", "PEOPLE", "QUIET_SHARE", "markdown"]

FPS = 15.0
PEOPLE = 8
QUIET_SHARE = 0.25
"""Share of the time with people in view, of cameras that mostly show nobody."""
ENGINE, BATCH = "orin-fp16", 64
MOST = 48
"""Cameras at most: each of them is a thread of the load."""
LESS = 0.75
"""Factor to a smaller number of cameras at most, until one is served."""
SERVED = 0.001
"""Share of lost frames up to which a number of cameras is served."""


def main() -> int:
    """Run the command line."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.path", description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )  # fmt: skip
    options.add_argument("--detector", required=True, metavar="FILE", help="table of a detector")
    options.add_argument("--every", type=int, default=1, help="detect people in every n-th frame")
    options.add_argument("--busy", type=float, default=1.0, help="share of the time with people in view")
    options.add_argument("--motion", action="store_true", help="not in frames without motion")
    options.add_argument("--seconds", type=float, default=6.0, help="of each run")
    options.add_argument("--runs", type=int, default=5, help="at most")
    options.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    chosen = options.parse_args()
    write_json_atomic(chosen.output, searched(chosen))
    return 0


def searched(chosen: argparse.Namespace) -> dict[str, Any]:
    """Return the largest number of cameras that was served, and all runs."""
    possible = device_alone(chosen)
    served, lost_at, runs = 0, MOST + 1, []
    number = max(1, min(MOST, int(0.9 * possible)))
    while len(runs) < chosen.runs and served < number < lost_at:
        run = measured(chosen, number)
        runs.append(run)
        if run["lost"] <= SERVED:
            served = number
        else:
            lost_at = number
        number = _next(number, served, lost_at, run["lost"])
    return {"cameras": served, "fewest_lost": lost_at, "device_alone": possible, "runs": runs}


def _next(number: int, served: int, lost_at: int, lost: float) -> int:
    if not served:
        return min(lost_at - 1, max(1, int(number * min(LESS, 1 - lost))))
    return (served + lost_at) // 2 if lost_at <= MOST else min(MOST, max(number + 1, number * 6 // 5))


def device_alone(chosen: argparse.Namespace) -> float:
    """Return the cameras that the device has time for, by the tables, if the host cost nothing."""
    detector, reid = detector_table(f"simulated:{chosen.detector}"), latency_table(ENGINE)
    hold = load(None, {}).motion.hold_s / PERIOD_S
    share = min(1.0, chosen.busy + hold) if chosen.motion else 1.0
    frame_s = share / detector.latencies.rate(detector.most) + chosen.busy * PEOPLE / reid.rate(BATCH)
    return chosen.every / (FPS * frame_s)


def measured(chosen: argparse.Namespace, cameras: int) -> dict[str, Any]:
    """Run the agent with this number of cameras; return its figures."""
    plan = Plan(
        cameras=cameras, people=PEOPLE, identities=1000, seconds=chosen.seconds, fps=FPS, busy=chosen.busy,
        detector=f"simulated:{chosen.detector}", every=chosen.every, motion=chosen.motion,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        settings = load(
            None, {"state_dir": folder, "engine": {"backend": f"simulated:{ENGINE}", "max_batch": BATCH}}
        )
        found = pipeline.measure(plan, settings, broker=None, trace=None, profile=None)
    lost, left_out = sum(found["dropped_frames"].values()), sum(found["spared_crops"].values())
    seen = lost + plan.every * found["frames"]
    return {
        "cameras": cameras,
        "lost": lost / max(1, seen),
        "crops_left_out": left_out / max(1, left_out + found["crops"]),
        "crops_per_second": found["images_per_second"],
        "frame_ms": found["frame_ms"],
        "latency_ms": found["latency_ms"],
        "cores": found["cpu"]["process_cores"],
        "cores_busy": found["cpu"]["cores_busy"],
        "detector": found["detector"],
    }


def markdown(steps: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> Iterator[str]:
    """Return the table of the performance page: the largest number of cameras of each way."""
    yield (
        "| detector (simulated) | people in view | searched | cameras served | the device alone |"
        " frames lost | crops left out | device busy | frame to decision p50 / p95 | cores used |"
    )
    yield "|---" * 10 + "|"
    sources = {}
    for point, result in steps:
        runs = {run["cameras"]: run for run in result["runs"]}
        run = runs.get(result["cameras"], result["runs"][-1])
        detector, wait = run["detector"], run["frame_ms"]
        sources[detector["name"]] = (
            f"{detector['name']}: {detector['model']}, {'x'.join(map(str, detector['input_size']))},"
            f" {detector['precision']}; {detector['source']}."
        )
        more = "" if result["fewest_lost"] <= MOST else " or more"
        delay = "none" if wait["p50"] is None else f"{wait['p50']:.0f} / {wait['p95']:.0f} ms"
        yield (
            f"| {detector['model']} | {point['view']} | {point['way']} | {result['cameras']}{more} |"
            f" {result['device_alone']:.1f} | {100 * run['lost']:.2f} % |"
            f" {100 * run['crops_left_out']:.0f} % |"
            f" {detector['device_busy']:.2f} | {delay} | {run['cores']:.2f} |"
        )
    yield ""
    for source in sources.values():
        yield f"- {source}"


if __name__ == "__main__":
    sys.exit(main())
