"""How fast a network runs here: latency and rate by batch, the network alone and end to end.

The table is that of ReIdentificationNet's model card, with its published rows beside. *Alone* is what
`trtexec` measures, a full batch in and its rows out; *end to end* begins with cut-out people of the sizes
that a 1080p camera gives, which have to be resized and packed. Latency is taken with one batch in flight,
the rate with two, as the agent runs it.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent import __version__
from edge_agent.embed.embedder import Embedder
from edge_agent.engine.base import DEPTH, Engine
from edge_agent.engine.latency import PUBLISHED, PUBLISHED_SOURCE, Published
from edge_agent.engine.onnxruntime import OnnxRuntimeEngine
from edge_agent.health.telemetry.reading import Reading

__all__ = [
    "BATCHES",
    "PUBLISHED",
    "Latency",
    "Measurement",
    "Published",
    "document",
    "machine",
    "markdown",
    "measure",
    "published",
    "rate_alone",
]

BATCHES = (1, 16, 64)
"""Batches of the model card."""

WARM_UP = 2
"""Runs that are not counted: the first ones allocate, and clocks rise."""

MIN_RUNS = 5
"""Runs of a latency at least, however long they take."""

_OVERLAPPED = 8
"""Batches in a row whose overlap is measured, fewer of slow ones; the device idles once a row."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles of the time of one batch, in milliseconds, over `runs` batches."""

    p50: float
    p95: float
    p99: float
    runs: int

    @staticmethod
    def of(seconds: Sequence[float]) -> Latency:
        """From the times of single batches."""
        p50, p95, p99 = np.percentile(np.asarray(seconds) * 1e3, [50, 95, 99])
        return Latency(float(p50), float(p95), float(p99), len(seconds))


@dataclass(frozen=True, slots=True)
class Measurement:
    """One row of the table.

    Attributes:
        backend, precision, device: as `EngineInfo` has them.
        batch: crops in a batch.
        alone: latency of the network alone.
        images_per_second: of the network alone, two batches in flight.
        end_to_end: latency from cut-out people to vectors.
        end_to_end_per_second: crops per second, packed while the network runs.
        to_published: `images_per_second` over the published figure of an AGX Orin in FP16; None elsewhere.
    """

    backend: str
    precision: str
    device: str
    batch: int
    alone: Latency
    images_per_second: float
    end_to_end: Latency
    end_to_end_per_second: float
    to_published: float | None = None


def measure(embedder: Embedder, *, seconds: float, board: str | None = None) -> Measurement:
    """Measure an open embedder with batches of its largest size.

    Args:
        embedder: open, with nothing in flight.
        seconds: how long each of the four figures is taken.
        board: as the device tree names it; on an AGX Orin the published figure is set against ours.
    """
    info, engine = embedder.info, embedder.engine
    batch = info.max_batch
    _fill_buffers(engine, np.random.default_rng(0).integers(0, 256, engine.buffer().shape, np.uint8))
    people = _people(batch)
    alone = _latency(lambda: _run_alone(engine, batch), seconds)
    row = max(DEPTH, min(_OVERLAPPED, int(seconds * 1e3 / alone.p50)))
    rate = _rate(lambda: _run_overlapped(engine, batch, row), batch * row, seconds)
    whole = _latency(lambda: embedder.embed_images(people), seconds)
    crowd = people * row
    whole_rate = _rate(lambda: embedder.embed_images(crowd), len(crowd), seconds)
    card = published(board, info.precision, batch)
    return Measurement(
        backend=info.backend,
        precision=info.precision,
        device=info.device,
        batch=batch,
        alone=alone,
        images_per_second=rate,
        end_to_end=whole,
        end_to_end_per_second=whole_rate,
        to_published=None if card is None else rate / card.images_per_second,
    )


def rate_alone(embedder: Embedder, crops: NDArray[np.uint8], *, seconds: float) -> float:
    """Images per second of an embedder's network alone; whoever packs crops is measured against this.

    With ONNX Runtime, which our engine does not use as it comes, a bare `session.run` in a row; else the
    engine with two batches in flight.

    Args:
        embedder: not entered.
        crops: a full batch as the network takes it, `(max_batch, H, W, 3)` uint8 BGR.
        seconds: how long it is measured.
    """
    engine = embedder.engine
    if isinstance(engine, OnnxRuntimeEngine):
        run = engine.bare()
        run(crops)
        return _rate(lambda: run(crops), len(crops), seconds)
    with embedder:
        _fill_buffers(engine, crops)
        return _rate(lambda: _run_overlapped(engine, len(crops), DEPTH), len(crops) * DEPTH, seconds)


def _fill_buffers(engine: Engine, crops: NDArray[np.uint8]) -> None:
    """Every buffer holds these crops."""
    for _ in range(DEPTH):
        engine.buffer()[: len(crops)] = crops
        engine.submit(len(crops))
    while engine.in_flight:
        engine.collect()


def _run_alone(engine: Engine, batch: int) -> None:
    engine.submit(batch)
    engine.collect()


def _latency(run: Callable[[], object], seconds: float) -> Latency:
    for _ in range(WARM_UP):
        run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < MIN_RUNS or time.perf_counter() < end:
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return Latency.of(times)


def _run_overlapped(engine: Engine, batch: int, row: int) -> None:
    """So many full batches, two in flight."""
    for _ in range(row):
        if engine.in_flight == DEPTH:
            engine.collect()
        engine.submit(batch)
    while engine.in_flight:
        engine.collect()


def _rate(run: Callable[[], object], pictures: int, seconds: float) -> float:
    """Pictures per second of a call that deals with so many."""
    done = 0
    began = time.perf_counter()
    while not done or time.perf_counter() < began + seconds:
        run()
        done += pictures
    return done / (time.perf_counter() - began)


def _people(count: int) -> list[NDArray[np.uint8]]:
    """Pictures of the sizes of people in 1080p, 120 to 480 pixels high; the same every time."""
    random = np.random.default_rng(1)
    heights = random.integers(120, 481, count)
    return [
        random.integers(0, 256, (int(height), int(height) * 2 // 5, 3)).astype(np.uint8) for height in heights
    ]


def published(board: str | None, precision: str, batch: int) -> Published | None:
    """The published row that a measurement may be held against: same board, precision and batch."""
    for row in PUBLISHED:
        same_board = board is not None and row.device.removeprefix("Jetson ") in board
        if same_board and (row.precision, row.batch) == (precision, batch):
            return row
    return None


def machine(reading: Reading | None = None) -> dict[str, Any]:
    """What the figures were taken on: hardware, clocks, power mode, temperature, versions."""
    reading = reading or Reading()
    return {
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "board": reading.board,
        "l4t": reading.l4t,
        "power_mode": reading.power_mode,
        "clocks_locked": reading.clocks_locked,
        "cpu_mhz": reading.cpu_mhz,
        "cpu_max_mhz": reading.cpu_max_mhz,
        "gpu_mhz": reading.gpu_mhz,
        "gpu_max_mhz": reading.gpu_max_mhz,
        "hottest_c": reading.hottest_c,
        "throttled": reading.throttled,
        "python": platform.python_version(),
        "edge_agent": __version__,
    }


def _cpu_name() -> str | None:
    """As the kernel names it; None on boards whose kernel does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def document(
    rows: Sequence[Measurement], left_out: Mapping[str, str], model: Mapping[str, Any], reading: Reading
) -> dict[str, Any]:
    """Everything as JSON values.

    Args:
        rows: what was measured.
        left_out: precisions that were not, with the reason.
        model: what the manifests say about the network.
        reading: the device at the end of the measurement.
    """
    return {
        "model": dict(model),
        "machine": machine(reading),
        "rows": [asdict(row) for row in rows],
        "left_out": dict(left_out),
        "published": [asdict(row) for row in PUBLISHED],
        "published_source": PUBLISHED_SOURCE,
    }


def markdown(told: Mapping[str, Any]) -> str:
    """The table of a `document`, for a README or a report."""
    head = (
        "| device | precision | batch | latency p50 / p95 / p99 (ms) | images/s | end to end p50 (ms) | "
        "end to end crops/s | to published |\n|---|---|---|---|---|---|---|---|\n"
    )
    ours = "".join(_markdown_row(row) for row in told["rows"])
    theirs = "".join(
        f"| {row['device']} (published) | {row['precision']} | {row['batch']} | {row['latency_ms']:.2f} | "
        f"{row['images_per_second']:.2f} | | | |\n"
        for row in told["published"]
    )
    host, model = told["machine"], told["model"]
    facts = [f"{model['name']}, {host['cores']} cores", host["cpu"] or "", host["board"] or ""]
    facts += [f"power mode {host['power_mode']}"] if host["power_mode"] else []
    missing = "".join(f"\nNot measured: {name}: {why}\n" for name, why in told["left_out"].items())
    return f"{', '.join(filter(None, facts))}.\n\n{head}{ours}{theirs}{missing}\n{told['published_source']}\n"


def _markdown_row(row: Mapping[str, Any]) -> str:
    alone, whole = row["alone"], row["end_to_end"]
    ratio = "" if row["to_published"] is None else f"{row['to_published']:.2f}"
    return (
        f"| {row['device']} ({row['backend']}) | {row['precision']} | {row['batch']} | {alone['p50']:.2f} / "
        f"{alone['p95']:.2f} / {alone['p99']:.2f} | {row['images_per_second']:.2f} | {whole['p50']:.2f} | "
        f"{row['end_to_end_per_second']:.2f} | {ratio} |\n"
    )
