"""Simulated backend: takes the time of another device and computes next to nothing.

For measuring everything around the network. Batches run one after another, two in flight, without CPU load;
with a simulated detector (`detect.simulated`) they share the queue of one device.
Rows are a fixed random projection of a coarse grid of the crop's colours, so that people stay apart and
matching has real work; they give no estimate of how well a network recognises people. The engine's name is
`simulated:<table>` in all reports and events, and it has its own embedding space.

Measured (one Xeon core, batches of 64): 4 to 6 microseconds of CPU per crop.
"""

from __future__ import annotations

import hashlib
import time
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.errors import ConfigError, InputError
from edge_agent.core.files import read_object, shown
from edge_agent.core.structures import EngineInfo
from edge_agent.engine.base import Engine, Submission
from edge_agent.engine.graph.prepared import PROFILES, embedding_space

_SIZE = (256, 128)
_DIMENSION = 256
"""Of ReIdentificationNet, which the published latencies belong to."""
_STEP = 16
"""Pixels between two points of the grid: 16 x 8 points."""
_RECIPE = f"grid {_STEP}, projection 20240607, {_DIMENSION} numbers"
"""How rows are made; part of the embedding space."""
_MOST_BATCH = 4096
_PRECISIONS = ("fp32", "fp16", "int8")

PROFILE = PROFILES["tao"]
"""How crops are resized for this engine."""
PUBLISHED_SOURCE = (
    "Published rows: NVIDIA's model card of ReIdentificationNet (ResNet50, 256 x 128), by trtexec, "
    "the network alone."
)


@dataclass(frozen=True, slots=True)
class Published:
    """A row of NVIDIA's model card of ReIdentificationNet (ResNet50), measured with trtexec."""

    device: str
    precision: str
    batch: int
    latency_ms: float
    images_per_second: float


PUBLISHED = tuple(
    Published(device, precision, batch, latency, rate)
    for device, precision, rows in (
        ("A10", "mixed", ((1, 0.49, 2057.64), (16, 2.83, 5725.13), (64, 10.64, 6088.47))),
        ("A30", "mixed", ((1, 0.50, 2004.44), (16, 2.25, 7445.72), (64, 7.14, 9103.93))),
        ("Jetson AGX Orin", "fp16", ((1, 0.96, 1043.62), (16, 6.42, 2492.26), (64, 23.09, 2771.60))),
    )
    for batch, latency, rate in rows
)


@dataclass(frozen=True, slots=True)
class LatencyTable:
    """Latency in `seconds` of batches of known sizes, ascending; `name` is the TABLE in `simulated:TABLE`.

    A what-if file has it for a device or precision without published figures::

        {"device": "Jetson AGX Orin", "precision": "int8", "source": "guess: 1.6 x FP16",
         "latency_ms": {"1": 0.7, "16": 4.0, "64": 14.4}}
    """

    name: str
    device: str
    precision: str
    source: str
    batches: tuple[int, ...]
    seconds: tuple[float, ...]

    def of(self, count: int) -> float:
        """Return the seconds for a batch of `count` crops.

        Linear between two known sizes; above the largest at its rate, below the smallest its latency.
        """
        if count > self.batches[-1]:
            return self.seconds[-1] * count / self.batches[-1]
        return float(np.interp(count, self.batches, self.seconds))

    def rate(self, count: int) -> float:
        """Return images per second in batches of `count`."""
        return count / self.of(count)


def _published(name: str, device: str, precision: str) -> LatencyTable:
    """Make a table from the published rates, which have more digits than the published latencies."""
    rows = [row for row in PUBLISHED if row.device == device]
    source = f"{PUBLISHED_SOURCE} {rows[0].precision}"
    batches = tuple(row.batch for row in rows)
    seconds = tuple(row.batch / row.images_per_second for row in rows)
    return LatencyTable(name, device, precision, source, batches, seconds)


TABLES = {
    "orin-fp16": _published("orin-fp16", "Jetson AGX Orin", "fp16"),
    "a10-mixed": _published("a10-mixed", "A10", "fp16"),
    "a30-mixed": _published("a30-mixed", "A30", "fp16"),
}


def latency_table(wanted: str) -> LatencyTable:
    """Return a published table by name, or read a what-if file; ConfigError or InputError for others."""
    if wanted in TABLES:
        return TABLES[wanted]
    path = Path(wanted)
    if not path.is_file():
        raise ConfigError(
            f"no latency table {wanted!r}: choose {', '.join(TABLES)}, or name a JSON file such as"
            ' {"device": "...", "precision": "int8", "source": "...", "latency_ms": {"1": 0.7, "64": 14.4}}'
        )
    return table_in(read_object(path), path)


def table_in(found: Mapping[str, Any], path: Path) -> LatencyTable:
    """Return the table in an object that was read from `path`; InputError where it has none."""
    where = shown(path)
    missing = {"device", "precision", "source", "latency_ms"} - found.keys()
    if missing:
        raise InputError(f"{where}: the latency table has no {', '.join(sorted(missing))}")
    if not isinstance(found["precision"], str) or found["precision"] not in _PRECISIONS:
        raise InputError(f"{where}: precision {found['precision']!r}; choose of {', '.join(_PRECISIONS)}")
    try:
        rows = sorted((int(batch), float(ms) / 1e3) for batch, ms in found["latency_ms"].items())
    except (AttributeError, TypeError, ValueError):
        rows = []
    if not rows or not all(1 <= batch <= _MOST_BATCH and 0 < seconds < 1e3 for batch, seconds in rows):
        raise InputError(
            f"{where}: latency_ms must map batch sizes from 1 to {_MOST_BATCH} to milliseconds above 0"
        )
    batches, seconds = zip(*rows, strict=True)
    return LatencyTable(
        path.stem, str(found["device"]), found["precision"], str(found["source"]), batches, seconds
    )


class Device:
    """A device whose engines share one queue, as those of a GPU: what was submitted first is done first.

    Attributes:
        seconds: of all work so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._busy_until = 0.0

    def put(self, seconds: float, now: float) -> float:
        """Queue work of this length; return when it is done (monotonic, as `now`)."""
        self._busy_until = max(now, self._busy_until) + seconds
        self.seconds += seconds
        return self._busy_until


@dataclass(slots=True)
class _Run(Submission):
    """When the device is done (monotonic), and the rows."""

    done_at: float
    rows: NDArray[np.float32] | None = None


class TimedEngine(Engine):
    """Takes the latencies of `table` on a device, without CPU load; never fails. Subclasses compute rows.

    `device` is its own by default. `run_seconds` are what its batches took, as events of a CUDA stream
    measure it: with the time in which other engines of the device had the queue.
    """

    def __init__(
        self,
        table: LatencyTable,
        device: Device | None,
        *,
        input_size: tuple[int, int],
        unit_length: bool,
        max_batch: int,
    ) -> None:
        super().__init__(name=table.name, input_size=input_size, unit_length=unit_length, max_batch=max_batch)
        self.table = table
        self.device = device or Device()
        self._done_at = 0.0

    def _load(self) -> None:
        self._done_at = 0.0

    def _release(self) -> None:
        """There is nothing to free."""

    def _start(self, slot: NDArray[np.uint8], count: int) -> _Run:
        now = time.monotonic()
        begin = max(now, self._done_at)
        self._done_at = self.device.put(self.table.of(count), now)
        return _Run(slot, count, self._done_at, seconds=self._done_at - begin)

    def _wait(self, run: _Run) -> None:
        run.rows = self._compute(run)
        left = run.done_at - time.monotonic()
        if left > 0:
            time.sleep(left)

    def _is_done(self, run: _Run) -> bool:
        return time.monotonic() >= run.done_at

    def _rows(self, run: _Run) -> NDArray[np.float32]:
        assert run.rows is not None  # `_wait` comes first
        return run.rows

    @abstractmethod
    def _compute(self, run: _Run) -> NDArray[np.float32]:
        """Return the rows of a batch, before they are due."""


class SimulatedEngine(TimedEngine):
    """A simulated ReID network."""

    def __init__(self, table: LatencyTable, *, max_batch: int) -> None:
        super().__init__(table, None, input_size=_SIZE, unit_length=True, max_batch=max_batch)
        random = np.random.default_rng(20240607)
        points = (_SIZE[0] // _STEP) * (_SIZE[1] // _STEP) * 3
        self._projection = random.standard_normal((points, _DIMENSION), np.float32)

    @property
    def info(self) -> EngineInfo:
        """See `Engine.info`."""
        sha256 = hashlib.sha256(_RECIPE.encode()).hexdigest()
        return EngineInfo(
            backend=f"simulated:{self.table.name}",
            precision=self.table.precision,
            model="simulated ReIdentificationNet",
            model_sha256=sha256,
            space=embedding_space(sha256, PROFILE, _DIMENSION),
            dimension=_DIMENSION,
            max_batch=self._max_batch,
            device=f"simulated {self.table.device}",
        )

    def _compute(self, run: _Run) -> NDArray[np.float32]:
        return self._project(run.slot[: run.count])

    def _project(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """`(N, 256, 128, 3)` uint8 -> `(N, 256)` float32 of length 1."""
        grid = crops[:, _STEP // 2 :: _STEP, _STEP // 2 :: _STEP].reshape(len(crops), -1).astype(np.float32)
        grid -= 127.5  # the middle of 0..255, which no value equals: no row has length 0
        rows: NDArray[np.float32] = grid @ self._projection
        rows /= np.sqrt(np.einsum("nd,nd->n", rows, rows))[:, None]
        return rows
