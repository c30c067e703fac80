"""ONNX Runtime backend: runs a prepared graph on the CPU, one thread beside the caller's.

`session.run` releases the interpreter lock, so crops are packed into the second buffer meanwhile.

Measured with OSNet on batches of changing size (CPU time per crop, best of four): as they come 3.4 ms,
padded to multiples of four or eight 3.7 and 4.2 ms, with I/O binding 3.6 ms. So there is neither.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.engine.base import DEPTH
from edge_agent.engine.prepared import BATCH_HINT, PreparedGraph
from edge_agent.errors import EngineError, ModelError
from edge_agent.structures import EngineInfo

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["OnnxRuntimeEngine", "open_session", "run_once"]

_ERRORS_ONLY = 3
"""ONNX Runtime's log level; at its default it warns of every unused weight of a PyTorch export."""


def open_session(model: bytes, threads: int, what: str) -> onnxruntime.InferenceSession:
    """Load a model as every network of the agent is loaded.

    Args:
        model: ONNX, serialised.
        threads: threads that compute one batch, 0 for one per core.
        what: names it in errors.

    Raises:
        ModelError: ONNX Runtime does not take it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = threads
    # Waiting threads that spin take the cores that decoding and packing need: with a detector and a ReID
    # network side by side on two cores, spinning cost 308-369 ms of CPU a round instead of 177-202.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as problem:  # its exception types are private and differ by version
        raise ModelError(f"ONNX Runtime cannot load {what}: {problem}") from problem


def run_once(model: bytes, batch: NDArray[Any], what: str, threads: int = 1) -> NDArray[np.float32]:
    """Run a network with one input and one output once, for checks: the rows as float32.

    Raises:
        ModelError: the network cannot be loaded, or does not take this batch.
    """
    session = open_session(model, threads, what)
    try:
        rows = session.run(None, {session.get_inputs()[0].name: batch})[0]
    except Exception as problem:  # as in `open_session`
        raise ModelError(f"{what} fails on a batch of {len(batch)}: {problem}; {BATCH_HINT}") from problem
    if len(rows) != len(batch):
        raise ModelError(f"{what} gives {len(rows)} rows for {len(batch)} pictures; {BATCH_HINT}")
    return np.asarray(rows, np.float32)


@dataclass(slots=True)
class _Run:
    """One submission: its input, then its rows or what went wrong."""

    buffer: NDArray[np.uint8]
    count: int
    done: threading.Event
    rows: NDArray[np.float32] | None = None
    error: BaseException | None = None


class OnnxRuntimeEngine:
    """See `edge_agent.engine.base.Engine`.

    Args:
        prepared: the network, from `edge_agent.engine.graph`.
        max_batch: pictures per buffer; a network with a fixed batch lowers it.
        threads: threads that compute one batch, 0 for one per core.
    """

    def __init__(self, prepared: PreparedGraph, *, max_batch: int, threads: int = 0) -> None:
        if max_batch < 1:
            raise EngineError(f"max_batch must be at least 1, got {max_batch}")
        self._prepared = prepared
        self._max_batch = min(max_batch, prepared.batch or max_batch)
        self._threads = threads
        self._session: onnxruntime.InferenceSession | None = None
        self._options: onnxruntime.RunOptions | None = None
        self._worker: threading.Thread | None = None
        self._free: deque[NDArray[np.uint8]] = deque()
        self._flying: deque[_Run] = deque()
        self._waiting: queue.SimpleQueue[_Run | None] = queue.SimpleQueue()
        self._runs = 0
        self._run_seconds = 0.0
        self._failures = 0

    @property
    def info(self) -> EngineInfo:
        """What runs; valid before entering."""
        return EngineInfo(
            backend="onnxruntime",
            precision=self._prepared.precision,
            model=self._prepared.name,
            model_sha256=self._prepared.source_sha256,
            space=self._prepared.space,
            dimension=self._prepared.dimension,
            max_batch=self._max_batch,
            device="cpu",
        )

    @property
    def input_size(self) -> tuple[int, int]:
        """`(height, width)` in pixels."""
        return self._prepared.input_size

    @property
    def unit_length(self) -> bool:
        """Whether the graph ends in an L2 normalisation."""
        return self._prepared.normalised

    @property
    def in_flight(self) -> int:
        """Submissions not collected, 0..2."""
        return len(self._flying)

    @property
    def runs(self) -> int:
        """Batches run since the engine was made."""
        return self._runs

    @property
    def run_seconds(self) -> float:
        """Seconds inside `session.run`, summed over `runs`."""
        return self._run_seconds

    @property
    def failures(self) -> int:
        """Batches dropped since `session.run` failed."""
        return self._failures

    def __enter__(self) -> OnnxRuntimeEngine:
        import onnxruntime

        self._options = onnxruntime.RunOptions()
        self._session = open_session(self._prepared.onnx, self._threads, str(self._prepared.source))
        shape = (self._max_batch, *self._prepared.input_size, 3)
        self._free = deque(np.zeros(shape, np.uint8) for _ in range(DEPTH))
        self._worker = threading.Thread(target=self._work, name=f"engine {self._prepared.name}", daemon=True)
        self._worker.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._options is not None:
            self._options.terminate = True  # nobody will collect what still runs or waits
        self._waiting.put(None)
        if self._worker is not None:
            self._worker.join()
        self._worker = None
        self._options = None
        self._session = None
        self._flying.clear()
        self._free.clear()

    def buffer(self) -> NDArray[np.uint8]:
        """The `(max_batch, H, W, 3)` uint8 buffer to fill next."""
        if not self._free:
            why = f"{DEPTH} batches are in flight" if self._flying else "the engine is not running"
            raise EngineError(f"no buffer is free: {why}")
        return self._free[0]

    def submit(self, count: int) -> None:
        """Run the first `count` rows of the buffer; returns at once."""
        if not 1 <= count <= self._max_batch:
            raise EngineError(f"a batch holds 1 to {self._max_batch} pictures, got {count}")
        self.buffer()
        run = _Run(self._free.popleft(), count, threading.Event())
        self._flying.append(run)
        self._waiting.put(run)

    def collect(self) -> NDArray[np.float32]:
        """Rows of the oldest submission, `(count, ...)` float32."""
        if not self._flying:
            raise EngineError("nothing was submitted, so there is nothing to collect")
        run = self._flying[0]
        run.done.wait()
        self._flying.popleft()
        self._free.append(run.buffer)
        if run.rows is None:
            raise EngineError(f"{self._prepared.name} failed on a batch: {run.error}") from run.error
        return run.rows

    def _work(self) -> None:
        """Run what is submitted, in order, until told to stop."""
        while (run := self._waiting.get()) is not None:
            try:
                run.rows = self._run(run.buffer[: run.count])
            except Exception as problem:  # noqa: BLE001 - handed to `collect`, whatever it is
                run.error = problem
                self._failures += 1
            run.done.set()

    def _run(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        session = self._session
        assert session is not None  # the worker lives only while the session does
        name = session.get_inputs()[0].name
        start = time.perf_counter()
        try:
            rows: NDArray[np.float32] = session.run(None, {name: batch}, self._options)[0]
        finally:
            self._run_seconds += time.perf_counter() - start
            self._runs += 1
        if len(rows) != len(batch):
            raise EngineError(f"{len(rows)} rows came back for {len(batch)} pictures; {BATCH_HINT}")
        return rows
