"""ONNX Runtime backend: runs a prepared graph on the CPU, beside the caller's thread.

`session.run` releases the interpreter lock, so crops are packed into the second buffer meanwhile.

A batch is cut into slices, and each core computes a slice by itself. Threads that share one `session.run`
wait for each other after every operator, above all where the host takes one of their cores for a moment,
and what lies between the operators of a large batch is larger than a cache. On two cores, 64 crops by two
threads at once, and in slices of eight, crops/s and CPU time per crop (medians of three, in turn): the
shipped network 803 and 923/s, 2.41 and 2.16 ms; OSNet 686 and 848/s, 2.77 and 2.34 ms. With threads that
spin while they wait 834 and 717/s; a ResNet50 takes 27/s in any way.

Measured with OSNet on batches of changing size (CPU time per crop, best of four): as they come 3.4 ms,
padded to multiples of four or eight 3.7 and 4.2 ms, with I/O binding 3.6 ms. So there is neither.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.errors import EngineError, ModelError
from edge_agent.core.structures import EngineInfo
from edge_agent.engine.base import DEPTH
from edge_agent.engine.graph.prepared import BATCH_HINT, PreparedGraph

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["OnnxRuntimeEngine", "open_session", "run_once"]

_ERRORS_ONLY = 3
"""ONNX Runtime's log level; at its default it warns of every unused weight of a PyTorch export."""
_SLICE = 8
"""Pictures of a slice at most: of 1 to 64 it is the fastest, or within 1 % of it (see above)."""
_LEAST = 2
"""Pictures of a slice, but for one that is left over: alone, a picture of OSNet takes a tenth more. And the
self-test can only see a network that mixes the pictures of a batch where a slice has several."""


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
    """One submission: its input, then the rows of its slices or what went wrong."""

    buffer: NDArray[np.uint8]
    parts: list[NDArray[np.float32] | None]
    left: int
    """Slices that have not been computed."""
    seconds: float = 0.0
    """Spent on its slices, summed over the threads."""
    done: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class _Slice:
    """Pictures `begin` to `end` of a run, whose rows are its part `index`."""

    run: _Run
    index: int
    begin: int
    end: int


class OnnxRuntimeEngine:
    """See `edge_agent.engine.base.Engine`.

    Args:
        prepared: the network, from `edge_agent.engine.graph`.
        max_batch: pictures per buffer; a network with a fixed batch lowers it.
        threads: that compute, 0 for one per core: slices of a batch, or where it cannot be cut, for
            `max_batch` is 1 or the network's batch is fixed, the batch together.
    """

    def __init__(self, prepared: PreparedGraph, *, max_batch: int, threads: int = 0) -> None:
        if max_batch < 1:
            raise EngineError(f"max_batch must be at least 1, got {max_batch}")
        self._prepared = prepared
        self._max_batch = min(max_batch, prepared.batch or max_batch)
        self._sliced = self._max_batch > 1 and prepared.batch is None
        self._threads = threads
        self._workers = (threads or len(os.sched_getaffinity(0))) if self._sliced else 1
        self._session: onnxruntime.InferenceSession | None = None
        self._options: onnxruntime.RunOptions | None = None
        self._input = ""
        self._working: list[threading.Thread] = []
        self._free: deque[NDArray[np.uint8]] = deque()
        self._flying: deque[_Run] = deque()
        self._waiting: queue.SimpleQueue[_Slice | None] = queue.SimpleQueue()
        self._counting = threading.Lock()
        self._runs = 0
        self._failures = 0
        self._run_seconds = 0.0

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
        """Batches run and collected since the engine was made."""
        return self._runs

    @property
    def run_seconds(self) -> float:
        """Seconds inside `session.run`, the mean of the threads: 1 in a second is all that they can.

        They are counted, like `runs`, as batches are collected: so much as the batch took, and no part of
        the next.
        """
        return self._run_seconds

    @property
    def failures(self) -> int:
        """Batches dropped since `session.run` failed."""
        return self._failures

    def bare(self) -> Callable[[NDArray[np.uint8]], object]:
        """`session.run` of the same graph in a session of its own, as who does without this engine has it.

        All but the number of threads and the log is as ONNX Runtime sets it.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        options.intra_op_num_threads = self._threads
        session = onnxruntime.InferenceSession(
            self._prepared.onnx, options, providers=["CPUExecutionProvider"]
        )
        name = session.get_inputs()[0].name
        return lambda batch: session.run(None, {name: batch})

    def __enter__(self) -> OnnxRuntimeEngine:
        import onnxruntime

        self._options = onnxruntime.RunOptions()
        threads = 1 if self._sliced else self._threads
        self._session = open_session(self._prepared.onnx, threads, str(self._prepared.source))
        self._input = self._session.get_inputs()[0].name
        shape = (self._max_batch, *self._prepared.input_size, 3)
        self._free = deque(np.zeros(shape, np.uint8) for _ in range(DEPTH))
        self._working = [
            threading.Thread(target=self._work, name=f"engine {self._prepared.name}", daemon=True)
            for _ in range(self._workers)
        ]
        for worker in self._working:
            worker.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._options is not None:
            self._options.terminate = True  # nobody will collect what still runs or waits
        for _ in self._working:
            self._waiting.put(None)
        for worker in self._working:
            worker.join()
        self._working = []
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
        bounds = _slices(count, self._workers) if self._sliced else [(0, count)]
        run = _Run(self._free.popleft(), [None] * len(bounds), len(bounds))
        self._flying.append(run)
        for index, (begin, end) in enumerate(bounds):
            self._waiting.put(_Slice(run, index, begin, end))

    def collect(self) -> NDArray[np.float32]:
        """Rows of the oldest submission, `(count, ...)` float32."""
        if not self._flying:
            raise EngineError("nothing was submitted, so there is nothing to collect")
        run = self._flying[0]
        run.done.wait()
        self._flying.popleft()
        self._free.append(run.buffer)
        self._runs += 1
        self._failures += run.error is not None
        self._run_seconds += run.seconds / self._workers
        if run.error is not None:
            raise EngineError(f"{self._prepared.name} failed on a batch: {run.error}") from run.error
        return np.concatenate([part for part in run.parts if part is not None])

    def _work(self) -> None:
        """Compute what is submitted, in order, until told to stop."""
        while (of := self._waiting.get()) is not None:
            start = time.perf_counter()
            try:
                of.run.parts[of.index] = self._rows(of.run.buffer[of.begin : of.end])
            except Exception as problem:  # noqa: BLE001 - handed to `collect`, whatever it is
                of.run.error = problem
            self._count(of.run, time.perf_counter() - start)

    def _rows(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        session = self._session
        assert session is not None  # workers live only while the session does
        rows: NDArray[np.float32] = session.run(None, {self._input: batch}, self._options)[0]
        if len(rows) != len(batch):
            raise EngineError(f"{len(rows)} rows came back for {len(batch)} pictures; {BATCH_HINT}")
        return rows

    def _count(self, run: _Run, seconds: float) -> None:
        """A slice of this run has ended, after so long."""
        with self._counting:
            run.seconds += seconds
            run.left -= 1
            if not run.left:
                run.done.set()


def _slices(count: int, workers: int) -> list[tuple[int, int]]:
    """Bounds of slices of nearly equal size, as many for each worker; few pictures leave some without."""
    most = workers * -(-count // (_SLICE * workers))
    number = min(most, -(-count // _LEAST))
    return [(count * index // number, count * (index + 1) // number) for index in range(number)]
