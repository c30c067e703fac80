"""TensorRT backend: runs the plan of a prepared graph on an NVIDIA GPU.

One thread owns the GPU: it loads the plan, puts batches on a stream as they are submitted, and frees
everything in order. The caller's thread only waits for the event of its batch, so the second batch is on the
stream while the first one runs. Only calls that TensorRT 8.5 to 11.4 have in common are used. Reasons:
`docs/decisions/010-tensorrt-runs-exact-batches.md`.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import structlog
from numpy.typing import NDArray

from edge_agent.core.errors import EdgeAgentError, EngineError
from edge_agent.engine.base import DEPTH, GraphEngine, Submission
from edge_agent.engine.graph.prepared import PreparedGraph
from edge_agent.engine.tensorrt.session import Session, release_frames

if TYPE_CHECKING:
    from edge_agent.core.config import EngineSettings
    from edge_agent.engine.tensorrt.supply import PlanBuilder

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Run(Submission):
    """A submission by the number of its slot: frames of an error must not hold CUDA's objects.

    `launched` is set once it is on the stream, or `error` has the reason why it is not.
    """

    launched: threading.Event = field(default_factory=threading.Event)


class TensorRTEngine(GraphEngine):
    """Runs the plan that `plans` supplies on entering, in batches of `max_batch` or the network's own.

    `run_seconds` is measured by the clock of the GPU, without copies. `info` states the precision of the
    graph and no device before the engine is entered.
    """

    backend = "tensorrt"
    device = "NVIDIA GPU"

    def __init__(
        self, prepared: PreparedGraph, plans: PlanBuilder, settings: EngineSettings, *, max_batch: int
    ) -> None:
        super().__init__(prepared, max_batch=max_batch)
        self._session = Session(prepared, plans, settings, self._max_batch)
        self._worker: threading.Thread | None = None
        self._opened = threading.Event()
        self._leaving = False
        self._problem: Exception | None = None
        self._waiting: queue.SimpleQueue[_Run | None] = queue.SimpleQueue()

    def _load(self) -> None:
        self._opened.clear()
        self._leaving = False
        self._worker = threading.Thread(target=self._work, name=f"engine {self._name}", daemon=True)
        self._worker.start()
        try:
            self._opened.wait()  # for minutes, where a plan is built
        except BaseException:  # Ctrl-C: the thread cannot be stopped, but it closes what it opens
            self._leaving = True
            self._waiting.put(None)
            raise
        if self._problem is not None:
            self._worker.join()
            problem, self._problem = self._problem, None
            if isinstance(problem, EdgeAgentError):
                raise problem
            raise EngineError(f"{self._name} cannot be run by TensorRT: {problem}") from problem
        self.device, self._precision = self._session.device, self._session.precision

    def _release(self) -> None:
        self._leaving = True
        self._waiting.put(None)
        if self._worker is not None:
            self._worker.join()
        self._worker = None
        if self._problem is not None:
            _log.warning("engine_not_closed_cleanly", error=str(self._problem))
            self._problem = None

    def _slots(self) -> Iterable[int]:
        return range(DEPTH)

    def _pixels(self, slot: int) -> NDArray[np.uint8]:
        pixels: NDArray[np.uint8] = self._session.slots[slot].pixels.host[: self._max_batch]
        return pixels

    def _start(self, slot: int, count: int) -> _Run:
        run = _Run(slot, count)
        self._waiting.put(run)
        return run

    def _wait(self, run: _Run) -> None:
        run.launched.wait()

    def _rows(self, run: _Run) -> NDArray[np.float32]:
        """Wait for the GPU and copy its rows, or raise why the batch failed."""
        slot = self._session.slots[run.slot]
        with self._session.context.borrowed():
            slot.done.synchronize()
            run.seconds = slot.ended.time_since(slot.started) / 1e3
        if slot.rows.poisoned(run.count):
            raise EngineError("the GPU finished without writing all rows")
        rows: NDArray[np.float32] = slot.rows.host[: run.count].copy()
        return rows

    def _work(self) -> None:
        """Run the thread that owns the GPU: launch submissions in order until None is queued."""
        try:
            with self._session as session:
                self._opened.set()
                while (run := self._waiting.get()) is not None:
                    if not self._leaving:
                        _launch(session, run)
        except Exception as problem:  # noqa: BLE001 - raised or logged by the caller's thread
            self._problem = problem
        finally:
            self._opened.set()


def _launch(session: Session, run: _Run) -> None:
    try:
        session.launch(session.slots[run.slot], run.count)
    except Exception as problem:  # noqa: BLE001 - raised by `collect`
        release_frames(problem)
        run.error = problem
    finally:
        run.launched.set()
