"""Speed of a network on this machine: latency and rate by batch, of the network alone and end to end.

The table has the rows of ReIdentificationNet's model card, and its published figures. *Alone* is the time of
`trtexec`: from a full input batch to its embeddings. *End to end* begins with crops of people as large as in
1080p, which are resized and packed. Latency is measured with one batch in flight, the rate with two, as the
agent runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.errors import ConfigError, EngineError, ModelError
from edge_agent.core.served import is_served
from edge_agent.embed.embedder import Embedder
from edge_agent.embed.opening import open_embedder
from edge_agent.engine.base import DEPTH, Engine
from edge_agent.engine.models import choose_model, prepare_model
from edge_agent.engine.onnxruntime import OnnxRuntimeEngine
from edge_agent.engine.precision.calibration import current_calibration
from edge_agent.engine.simulated import PUBLISHED, PUBLISHED_SOURCE, Published
from edge_agent.health.telemetry import Telemetry
from edge_agent.health.telemetry.reading import Reading
from edge_agent.offline.bench.environment import machine

if TYPE_CHECKING:
    from edge_agent.core.config import EngineSettings, Settings

BATCHES = (1, 16, 64)
"""Batches of the model card."""

WARM_UP = 2
"""Runs before the measurement: the first ones allocate memory, and clocks rise."""

MIN_RUNS = 5
"""Smallest number of runs of a latency measurement, whatever their duration."""

_OVERLAPPED = 8
"""Consecutive batches of a rate measurement, fewer for slow networks; the device is idle once after them."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles of the time of one batch, in milliseconds, over `runs` batches."""

    p50: float
    p95: float
    p99: float
    runs: int

    @staticmethod
    def of(seconds: Sequence[float]) -> Latency:
        """Return the percentiles of the times of single batches."""
        p50, p95, p99 = np.percentile(np.asarray(seconds) * 1e3, [50, 95, 99])
        return Latency(float(p50), float(p95), float(p99), len(seconds))


@dataclass(frozen=True, slots=True)
class Measurement:
    """One row of the table; `to_published` is the rate over the published one, None without such a figure."""

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
    """Open an embedder, measure it with batches of its largest size, and close it.

    Args:
        embedder: what to measure.
        seconds: duration of each of the four measurements.
        board: name in the device tree; on an AGX Orin the result is compared to the published figure.
    """
    info, engine = embedder.info, embedder.engine
    batch = info.max_batch
    people = _people(batch)
    with embedder:
        _fill_buffers(engine, np.random.default_rng(0).integers(0, 256, engine.buffer().shape, np.uint8))
        alone = _latency(lambda: _run_overlapped(engine, batch, 1), seconds)
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
    """Return the images per second of an embedder's network alone, the limit for the whole agent.

    With ONNX Runtime, consecutive calls of a plain `session.run`; else the engine with two batches in flight.
    The embedder is not entered; `crops` are a full input batch, `(max_batch, H, W, 3)` uint8 BGR.
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
    """Fill every input buffer with these crops."""
    for _ in range(DEPTH):
        engine.buffer()[: len(crops)] = crops
        engine.submit(len(crops))
    while engine.in_flight:
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
    """Run `row` full batches, two in flight."""
    for _ in range(row):
        if engine.in_flight == DEPTH:
            engine.collect()
        engine.submit(batch)
    while engine.in_flight:
        engine.collect()


def _rate(run: Callable[[], object], pictures: int, seconds: float) -> float:
    """Pictures per second of a call that processes `pictures`."""
    done = 0
    began = time.perf_counter()
    while not done or time.perf_counter() < began + seconds:
        run()
        done += pictures
    return done / (time.perf_counter() - began)


def _people(count: int) -> list[NDArray[np.uint8]]:
    """Random pictures of the sizes of people in 1080p, 120 to 480 pixels high; the same every time."""
    random = np.random.default_rng(1)
    heights = random.integers(120, 481, count)
    return [
        random.integers(0, 256, (int(height), int(height) * 2 // 5, 3)).astype(np.uint8) for height in heights
    ]


def published(board: str | None, precision: str, batch: int) -> Published | None:
    """Return the published row of the same board, precision and batch, or None."""
    for row in PUBLISHED:
        same_board = board is not None and row.device.removeprefix("Jetson ") in board
        if same_board and (row.precision, row.batch) == (precision, batch):
            return row
    return None


def document(
    rows: Sequence[Measurement], left_out: Mapping[str, str], model: Mapping[str, Any], reading: Reading
) -> dict[str, Any]:
    """Return the table as JSON values; `left_out` are precisions that were not measured, with the reason."""
    return {
        "model": dict(model),
        "machine": machine(reading),
        "rows": [asdict(row) for row in rows],
        "left_out": dict(left_out),
        "published": [asdict(row) for row in PUBLISHED],
        "published_source": PUBLISHED_SOURCE,
    }


def markdown(table: Mapping[str, Any]) -> str:
    """Return the table of a `document` as Markdown."""
    head = (
        "| device | precision | batch | latency p50 / p95 / p99 (ms) | images/s | end to end p50 (ms) | "
        "end to end crops/s | to published |\n|---|---|---|---|---|---|---|---|\n"
    )
    ours = "".join(_markdown_row(row) for row in table["rows"])
    theirs = "".join(
        f"| {row['device']} (published) | {row['precision']} | {row['batch']} | {row['latency_ms']:.2f} | "
        f"{row['images_per_second']:.2f} | | | |\n"
        for row in table["published"]
    )
    host, model = table["machine"], table["model"]
    facts = [
        f"{model['name']} (profile {model['preprocess']}), {host['cores']} cores",
        host["cpu"] or "",
        host["board"] or "",
    ]
    facts += [f"power mode {host['power_mode']}"] if host["power_mode"] else []
    missing = "".join(f"\nNot measured: {name}: {why}\n" for name, why in table["left_out"].items())
    return (
        f"{', '.join(filter(None, facts))}.\n\n{head}{ours}{theirs}{missing}\n{table['published_source']}\n"
    )


def _markdown_row(row: Mapping[str, Any]) -> str:
    alone, whole = row["alone"], row["end_to_end"]
    ratio = "" if row["to_published"] is None else f"{row['to_published']:.2f}"
    return (
        f"| {row['device']} ({row['backend']}) | {row['precision']} | {row['batch']} | {alone['p50']:.2f} / "
        f"{alone['p95']:.2f} / {alone['p99']:.2f} | {row['images_per_second']:.2f} | {whole['p50']:.2f} | "
        f"{row['end_to_end_per_second']:.2f} | {ratio} |\n"
    )


def speed_table(
    settings: Settings,
    folder: Path,
    *,
    precisions: Sequence[str],
    batches: Sequence[int],
    seconds: float,
    on_step: Callable[[str], object],
) -> dict[str, Any]:
    """Measure the configured network for every precision and batch; return the table as JSON values.

    Args:
        settings: all settings.
        folder: the state folder, with calibrations and plans.
        precisions: `fp32`, `fp16`, `int8`, of which one that is not available is listed with the reason; or
            `auto`.
        batches: batch sizes.
        seconds: length of each measurement.
        on_step: called with the description of each step.

    Raises:
        EngineError, ModelError, ConfigError: the network does not run in FP32.
    """
    rows: list[Measurement] = []
    left_out: dict[str, str] = {}
    calibration = current_calibration(settings.engine, folder)
    largest = max(settings.engine.max_batch, *batches)  # one plan for all batches
    served = is_served(settings.engine.backend)
    with Telemetry(settings.telemetry, folder) as telemetry:
        board = telemetry.read().board
        for precision in precisions:
            engine = settings.engine.model_copy(update={"precision": precision, "max_batch": largest})
            try:
                for size in batches:
                    on_step(f"measuring {precision}, batch {size}")
                    embedder = open_embedder(engine, settings.quality, folder, calibration, max_batch=size)
                    rows.append(measure(embedder, seconds=seconds, board=board))
            except (EngineError, ModelError, ConfigError) as error:
                if precision in {"fp32", "auto"} or served:
                    raise
                left_out[precision] = str(error)
        facts = _served_facts(settings.engine, embedder) if served else _file_facts(settings.engine, folder)
        return document(rows, left_out, facts, telemetry.read())


def _file_facts(engine: EngineSettings, folder: Path) -> dict[str, Any]:
    model = choose_model(engine, folder)
    prepared, _ = prepare_model(model.path, model.preprocess, folder)
    return prepared.facts()


def _served_facts(engine: EngineSettings, embedder: Embedder) -> dict[str, Any]:
    """Return what `PreparedGraph.facts` states; a network on a server has no file, but an address."""
    info = embedder.info
    return {
        "name": info.model,
        "sha256": info.model_sha256,
        "path": engine.backend,
        "preprocess": embedder.profile,
        "space": info.space,
        "dimension": info.dimension,
    }
