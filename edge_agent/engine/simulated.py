"""Simulated backend: takes as long as a device that is not here, and computes next to nothing.

For measuring what stands around the network. Batches run one after another, two in flight, and nobody's
CPU is busy meanwhile. Rows are a fixed random projection of a coarse grid of the crop's own colours, so
that people stay apart and matching has real work; they say nothing of how well a network recognises.
The engine names itself as `simulated:<table>` wherever engines are named, and its embedding space is its own.

Measured (one Xeon core, batches of 64): 4 to 6 microseconds of CPU per crop.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.errors import EngineError
from edge_agent.core.structures import EngineInfo
from edge_agent.engine.base import DEPTH
from edge_agent.engine.graph.prepared import embedding_space
from edge_agent.engine.graph.profiles import PROFILES
from edge_agent.engine.latency import LatencyTable

__all__ = ["PROFILE", "SimulatedEngine"]

_SIZE = (256, 128)
_DIMENSION = 256
"""Of ReIdentificationNet, whose times the published tables are."""

_STEP = 16
"""Pixels between two points of the grid: 16 x 8 points."""

_RECIPE = f"grid {_STEP}, projection 20240607, {_DIMENSION} numbers"
"""What the rows are made of; part of the embedding space."""


PROFILE = PROFILES["tao"]
"""How crops are resized for it."""


@dataclass(frozen=True, slots=True)
class _Run:
    """One submission."""

    buffer: NDArray[np.uint8]
    count: int
    took: float
    """Seconds on the device."""
    done_at: float
    """When the device has it ready, monotonic seconds."""


class SimulatedEngine:
    """See `edge_agent.engine.base.Engine`.

    Args:
        table: how long batches take.
        max_batch: crops per buffer.
    """

    def __init__(self, table: LatencyTable, *, max_batch: int) -> None:
        if max_batch < 1:
            raise EngineError(f"max_batch must be at least 1, got {max_batch}")
        self.table = table
        self._max_batch = max_batch
        self._free: deque[NDArray[np.uint8]] = deque()
        self._flying: deque[_Run] = deque()
        self._busy_until = 0.0
        self._runs = 0
        self._run_seconds = 0.0
        random = np.random.default_rng(20240607)
        points = (_SIZE[0] // _STEP) * (_SIZE[1] // _STEP) * 3
        self._projection = random.standard_normal((points, _DIMENSION), np.float32)

    @property
    def info(self) -> EngineInfo:
        """What is simulated; valid before entering."""
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

    @property
    def input_size(self) -> tuple[int, int]:
        """`(height, width)` in pixels."""
        return _SIZE

    @property
    def unit_length(self) -> bool:
        """Rows are of length 1."""
        return True

    @property
    def in_flight(self) -> int:
        """Submissions not collected, 0..2."""
        return len(self._flying)

    @property
    def runs(self) -> int:
        """Batches since the engine was made."""
        return self._runs

    @property
    def run_seconds(self) -> float:
        """Seconds that the device would have been busy, summed over `runs`."""
        return self._run_seconds

    @property
    def failures(self) -> int:
        """It does not fail."""
        return 0

    def __enter__(self) -> SimulatedEngine:
        shape = (self._max_batch, *_SIZE, 3)
        self._free = deque(np.zeros(shape, np.uint8) for _ in range(DEPTH))
        self._busy_until = 0.0
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._flying.clear()
        self._free.clear()

    def buffer(self) -> NDArray[np.uint8]:
        """The `(max_batch, 256, 128, 3)` uint8 buffer to fill next."""
        if not self._free:
            why = f"{DEPTH} batches are in flight" if self._flying else "the engine is not running"
            raise EngineError(f"no buffer is free: {why}")
        return self._free[0]

    def submit(self, count: int) -> None:
        """Run the first `count` rows of the buffer; returns at once."""
        if not 1 <= count <= self._max_batch:
            raise EngineError(f"a batch holds 1 to {self._max_batch} pictures, got {count}")
        self.buffer()
        took = self.table.of(count)
        # As on a device: a batch begins when it is there and the one before it has ended.
        self._busy_until = max(time.monotonic(), self._busy_until) + took
        self._flying.append(_Run(self._free.popleft(), count, took, self._busy_until))

    def collect(self) -> NDArray[np.float32]:
        """Rows of the oldest submission, `(count, 256)` float32, not before the device would have them."""
        if not self._flying:
            raise EngineError("nothing was submitted, so there is nothing to collect")
        run = self._flying[0]
        rows = self._rows(run.buffer[: run.count])
        left = run.done_at - time.monotonic()
        if left > 0:
            time.sleep(left)
        self._flying.popleft()
        self._free.append(run.buffer)
        self._runs += 1
        self._run_seconds += run.took
        return rows

    def _rows(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """`(N, 256, 128, 3)` uint8 -> `(N, 256)` float32 of length 1."""
        grid = crops[:, _STEP // 2 :: _STEP, _STEP // 2 :: _STEP].reshape(len(crops), -1).astype(np.float32)
        grid -= 127.5  # the middle of the range: 0..255 never hits it, so no row is without length
        rows: NDArray[np.float32] = grid @ self._projection
        rows /= np.sqrt(np.einsum("nd,nd->n", rows, rows))[:, None]
        return rows
