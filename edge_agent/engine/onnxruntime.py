"""ONNX Runtime backend, in threads of its own.

`session.run` releases the interpreter lock, so that crops are packed into the second buffer meanwhile.

A batch is cut into slices, and each core computes whole slices. Threads that share one `session.run` wait for
each other after every operator, above all where the host takes one of their cores for a moment, and the
intermediate tensors of a large batch exceed the cache. On two cores, 64 crops by two threads together, and in
slices of eight, crops/s and CPU time per crop (medians of three, in turn): the shipped network 803 and 923/s,
2.41 and 2.16 ms; OSNet 686 and 848/s, 2.77 and 2.34 ms. With threads that spin while they wait 834 and 717/s;
a ResNet50 takes 27/s either way. Pictures of detectors are large: slices may have one. YOLOX nano on two
cores, per picture: 13.1 ms one by one with two threads, 8.1 ms in slices (CPU 19.6 and 15.0 ms), 15.2 ms one
by one with one thread.

Measured with OSNet on batches of changing size (CPU time per crop, best of four): unpadded 3.4 ms, padded to
multiples of four or eight 3.7 and 4.2 ms, with I/O binding 3.6 ms. So there is neither.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.errors import EngineError, ModelError
from edge_agent.engine.base import GraphEngine, Submission
from edge_agent.engine.graph.hosted import hosted_graph
from edge_agent.engine.graph.nodes import one_line
from edge_agent.engine.graph.prepared import BATCH_HINT, PreparedGraph

if TYPE_CHECKING:
    import onnxruntime

_NO_LOG = 4
"""ONNX Runtime's log level: errors are raised, and it warns of every unused weight of a PyTorch export."""
_SLICE = 8
"""Pictures per slice at most: of 1 to 64 the fastest, or within 1 % of it (see above)."""
_LEAST = 2
"""Pictures per slice at least, except for a remainder: a single picture of OSNet takes a tenth longer. And
the self-test detects a network that mixes the pictures of a batch only where a slice has several."""


def _session_options(threads: int) -> onnxruntime.SessionOptions:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _NO_LOG
    options.intra_op_num_threads = threads
    return options


def open_session(model: bytes, threads: int, what: str) -> onnxruntime.InferenceSession:
    """Load a model with the options of all networks of the agent.

    `threads` compute one batch, 0: one per core; `what` names the model in the ModelError where ONNX Runtime
    does not accept it.
    """
    import onnxruntime

    options = _session_options(threads)
    # Waiting threads that spin take the cores that decoding and packing need: with a detector and a ReID
    # network on the same two cores, spinning cost 308-369 ms of CPU per round instead of 177-202.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as problem:  # its exception types are private and differ by version
        raise ModelError(f"ONNX Runtime cannot load {what}: {_reason(problem)}") from problem


def _reason(problem: Exception, hint: str = "") -> str:
    """Return why a network fails, with a hint unless memory is the reason."""
    if any(word in str(problem) for word in ("allocate memory", "bad_alloc", "bad allocation", "BFCArena")):
        return "it needs more memory than it may take"
    return f"{one_line(problem)}; {hint}" if hint else one_line(problem)


def run_once(model: bytes, batch: NDArray[Any], what: str) -> NDArray[np.float32]:
    """Run a network of the agent's own once; ModelError where it cannot be loaded or fails on this batch."""
    return np.asarray(run_session(open_session(model, 1, what), batch, what), np.float32)


def run_each_way(
    model: bytes, batch: NDArray[Any], what: str
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Run a network on a batch, and on each picture of it alone; ModelError where it fails on either."""
    session = open_session(model, 1, what)
    alone = [run_session(session, picture[None], what) for picture in batch]
    together = np.asarray(run_session(session, batch, what), np.float32)
    if any(rows.shape != alone[0].shape for rows in alone):
        raise ModelError(f"{what} gives another number of rows for each picture")
    return together, np.asarray(np.concatenate(alone), np.float32)


def run_session(session: onnxruntime.InferenceSession, batch: NDArray[Any], what: str) -> NDArray[Any]:
    """Return the first output for a batch; ModelError where it fails or is not an array."""
    try:
        rows = session.run(None, {session.get_inputs()[0].name: batch})[0]
    except Exception as problem:  # as in `open_session`
        raise ModelError(
            f"{what} fails on a batch of {len(batch)}: {_reason(problem, BATCH_HINT)}"
        ) from problem
    if not isinstance(rows, np.ndarray):
        raise ModelError(f"{what} gives {type(rows).__name__} instead of a row for each picture")
    return rows


@dataclass(slots=True)
class _Run(Submission):
    """Rows of each slice, slices that are not finished, and a lock that is held until all are."""

    parts: list[NDArray[np.float32] | None]
    left: int
    unfinished: threading.Lock


class _Task(NamedTuple):
    """A slice: its number in the run, its bounds, and whether all threads compute it."""

    run: _Run
    number: int
    begin: int
    end: int
    whole: bool


class OnnxRuntimeEngine(GraphEngine):
    """Runs a prepared graph on the CPU.

    `run_seconds` is the mean over the threads: at full load it grows by one second per second.

    Args:
        prepared: the network.
        max_batch: pictures per buffer; a network with a fixed batch lowers it.
        threads: computing threads, 0 for one per core. They compute slices of a batch, or the whole batch
            together where it cannot be cut: `max_batch` 1, or a network with a fixed batch.
        large: whether one picture keeps all threads busy, as that of a detector. Then a slice may have one
            picture, and fewer pictures than threads are computed by all threads together.
    """

    backend = "onnxruntime"
    device = "cpu"
    shares_cores = True

    def __init__(self, prepared: PreparedGraph, *, max_batch: int, threads: int, large: bool = False) -> None:
        super().__init__(prepared, max_batch=max_batch)
        self._sliced = self._max_batch > 1 and prepared.batch is None
        self._threads = threads
        self._workers = (threads or len(os.sched_getaffinity(0))) if self._sliced else 1
        self._large = large and self._sliced and self._workers > 1
        self._session: onnxruntime.InferenceSession | None = None
        self._whole: onnxruntime.InferenceSession | None = None
        self._options: onnxruntime.RunOptions | None = None
        self._input = ""
        self._pool: list[threading.Thread] = []
        self._waiting: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._counting = threading.Lock()
        self._here = False  # whether the caller's thread computes

    @property
    def enough(self) -> int:
        """See `Engine.enough`: a slice for each thread, where there are slices."""
        return min(self._max_batch, _SLICE * self._workers) if self._sliced else self._max_batch

    @property
    def hungry(self) -> bool:
        """See `Engine.hungry`: whether a thread waits for a slice."""
        return bool(self._flying) and sum(run.left for run in self._flying) < self._workers

    def compute(self, count: int) -> NDArray[np.float32]:
        """See `Engine.compute`. One picture is computed by the caller's thread.

        The hand-over to another thread and back costs up to 90 us of CPU for each batch, packing a crop 45.
        """
        self._here = count == 1
        try:
            return super().compute(count)
        finally:
            self._here = False

    def bare(self) -> Callable[[NDArray[np.uint8]], object]:
        """Return `session.run` of the same graph to compare speed with, with default options."""
        import onnxruntime

        options = _session_options(self._threads)
        providers = ["CPUExecutionProvider"]
        session = onnxruntime.InferenceSession(self._prepared.onnx, options, providers=providers)
        name = session.get_inputs()[0].name
        return lambda batch: session.run(None, {name: batch})

    def _load(self) -> None:
        import onnxruntime

        self._options = onnxruntime.RunOptions()
        threads = 1 if self._sliced else self._threads
        hosted, what = hosted_graph(self._prepared), str(self._prepared.source)
        self._session = open_session(hosted, threads, what)
        if self._large:
            self._whole = open_session(hosted, self._threads, what)
        self._input = self._session.get_inputs()[0].name
        self._pool = [
            threading.Thread(target=self._work, name=f"engine {self._name}", daemon=True)
            for _ in range(self._workers)
        ]
        for worker in self._pool:
            worker.start()

    def _release(self) -> None:
        if self._options is not None:
            self._options.terminate = True  # rows of batches in flight are not needed any more
        for _ in self._pool:
            self._waiting.put(None)
        for worker in self._pool:
            worker.join()
        self._pool = []
        self._options = None
        self._session = self._whole = None

    def _start(self, slot: NDArray[np.uint8], count: int) -> _Run:
        whole = not self._sliced or (self._large and count < self._workers)
        least = 1 if self._large else _LEAST
        bounds = [(0, count)] if whole else _slices(count, self._workers, least)
        unfinished = threading.Lock()  # an Event costs 10 us more for each batch
        unfinished.acquire()
        run = _Run(slot, count, [None] * len(bounds), len(bounds), unfinished)
        begin_task = self._compute_slice if self._here else self._waiting.put
        for index, (begin, end) in enumerate(bounds):
            begin_task(_Task(run, index, begin, end, whole))
        return run

    def _wait(self, run: _Run) -> None:
        with run.unfinished:
            pass

    def _is_done(self, run: _Run) -> bool:
        return not run.unfinished.locked()

    def _rows(self, run: _Run) -> NDArray[np.float32]:
        parts = [part for part in run.parts if part is not None]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _work(self) -> None:
        """Compute slices in order until None is queued."""
        while (task := self._waiting.get()) is not None:
            self._compute_slice(task)

    def _compute_slice(self, task: _Task) -> None:
        run, start = task.run, time.perf_counter()
        try:
            run.parts[task.number] = self._compute(run.slot[task.begin : task.end], whole=task.whole)
        except Exception as problem:  # noqa: BLE001 - raised by `collect`
            run.error = problem
        with self._counting:
            run.seconds += (time.perf_counter() - start) / self._workers
            run.left -= 1
            if not run.left:
                run.unfinished.release()

    def _compute(self, batch: NDArray[np.uint8], *, whole: bool = False) -> NDArray[np.float32]:
        session = self._whole if whole and self._large else self._session
        assert session is not None  # workers end before the session does
        rows: NDArray[np.float32] = session.run(None, {self._input: batch}, self._options)[0]
        if len(rows) != len(batch):
            raise EngineError(f"{len(rows)} rows came back for {len(batch)} pictures; {BATCH_HINT}")
        if (numbers := self._prepared.dimension) and rows.shape[1:] != (numbers,):
            raise EngineError(f"rows of shape {rows.shape[1:]} came back, expected {numbers} numbers")
        return rows


def _slices(count: int, workers: int, least: int = _LEAST) -> list[tuple[int, int]]:
    """Return bounds of slices of nearly equal size, the same number for each worker where they suffice."""
    most = workers * -(-count // (_SLICE * workers))
    number = min(most, -(-count // least))
    return [(count * index // number, count * (index + 1) // number) for index in range(number)]
