"""The base class of all inference backends, with the queue of batches that they share.

Usage::

    with engine:
        engine.buffer()[:count] = crops     # uint8, filled in place
        engine.submit(count)                # returns at once
        ...                                 # fill and submit the next buffer meanwhile
        rows = engine.collect()             # the oldest submission's rows

Two submissions may be in flight: one runs, one waits. An engine belongs to one thread.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.errors import EngineError, EngineUnavailable, Retryable
from edge_agent.core.structures import EngineInfo
from edge_agent.engine.graph.nodes import one_line
from edge_agent.engine.graph.prepared import PreparedGraph

DEPTH = 2
"""Submissions in flight at most: one that runs and one that waits, so that the device never idles."""


@dataclass(slots=True)
class Submission:
    """A batch in flight: `slot` holds its pictures; its type belongs to the backend.

    The backend adds the time that the network took to `seconds`, without which that of `_rows` counts, and
    sets `error` where it failed.
    """

    slot: Any
    count: int
    seconds: float = field(default=0.0, kw_only=True)
    error: Exception | None = field(default=None, kw_only=True)


class Engine(ABC):
    """A network that turns a batch of `uint8` pictures into rows of `float32`.

    A context manager: the constructor is cheap, the network is loaded on entering. A subclass has `info`,
    loads and frees the network (`_load`, `_release`), and computes a batch: in `_rows` alone, or begun by
    `_start` and awaited by `_wait`. `GraphEngine` is the base of those that run a prepared graph.

    Args:
        name: of the network, for messages.
        input_size: `(height, width)` of the input pictures.
        unit_length: whether rows are embeddings of length 1 and must be checked for it.
        max_batch: pictures per buffer.

    Attributes:
        input_size, unit_length: as given.
        runs: batches whose rows were collected since the engine was made.
        run_seconds: time inside the network alone, summed over `runs`.
        failures: batches that were dropped because the network failed on them.
        problem: why an engine is `away`, once another attempt has failed; "" normally.
        on_problem: called with `problem` when it changes, on any thread.
    """

    shares_cores = False
    """Whether the network computes on this machine's cores, so that work of the caller beside it slows it."""

    def __init__(self, *, name: str, input_size: tuple[int, int], unit_length: bool, max_batch: int) -> None:
        if max_batch < 1:
            raise EngineError(f"max_batch must be at least 1, got {max_batch}")
        self.input_size = input_size
        self.unit_length = unit_length
        self.runs = 0
        self.run_seconds = 0.0
        self.failures = 0
        self._name = name
        self._max_batch = max_batch
        self._free: deque[Any] = deque()
        self._flying: deque[Any] = deque()
        self.problem = ""
        self.on_problem: Callable[[str], object] = str

    @property
    @abstractmethod
    def info(self) -> EngineInfo:
        """Which network runs, and on what. Valid before entering."""

    def __enter__(self) -> Engine:
        self._load()
        self._free = deque(self._slots())
        return self

    def __exit__(self, *_exception: object) -> None:
        self._flying.clear()
        self._free.clear()
        self._release()

    def check(self, test: Callable[[Engine], None]) -> None:
        """Run the self-test on this entered engine; one that may lose its network repeats it when it is back.

        Raises what `test` raises.
        """
        test(self)

    @property
    def away(self) -> bool:
        """Whether batches fail at once for now, since the network is elsewhere and is not to be had."""
        return False

    @property
    def in_flight(self) -> int:
        """Submissions whose rows have not been collected, 0..2."""
        return len(self._flying)

    @property
    def ready(self) -> bool:
        """Whether `collect` returns at once; False where that is not known."""
        return bool(self._flying) and self._is_done(self._flying[0])

    @property
    def enough(self) -> int:
        """Pictures from which on a batch takes no less time for each of them."""
        return self._max_batch

    @property
    def hungry(self) -> bool:
        """Whether a part of the device has nothing to do until more is submitted, as far as that is known."""
        return self.ready

    def buffer(self) -> NDArray[np.uint8]:
        """Return the `(max_batch, H, W, 3)` uint8 BGR buffer to fill next; one of `DEPTH` fixed arrays.

        It belongs to the caller until `submit`, and to the engine from then until `collect`.

        Raises:
            EngineError: all buffers are in flight, or the engine is not entered.
        """
        if not self._free:
            why = f"{DEPTH} batches are in flight" if self._flying else "the engine is not running"
            raise EngineError(f"no buffer is free: {why}")
        return self._pixels(self._free[0])

    def submit(self, count: int) -> None:
        """Run the first `count` rows of the buffer; returns at once.

        Raises:
            EngineError: `count` is not in `1..max_batch`, or `DEPTH` submissions are in flight already.
        """
        if not 1 <= count <= self._max_batch:
            raise EngineError(f"a batch holds 1 to {self._max_batch} pictures, got {count}")
        self.buffer()
        self._flying.append(self._start(self._free.popleft(), count))

    def collect(self) -> NDArray[np.float32]:
        """Wait for the oldest submission; return `(count, ...)` float32, owned by the caller.

        Raises:
            EngineError: nothing is in flight, or the network failed on this batch. The batch is then
                dropped and counted; rows of an earlier batch are never returned.
            EngineUnavailable: the same, and later batches may succeed.
        """
        if not self._flying:
            raise EngineError("nothing was submitted, so there is nothing to collect")
        run = self._flying[0]
        self._wait(run)
        try:
            if run.error is not None:
                raise run.error  # noqa: TRY301 - handled as an error of `_rows`
            begin = time.perf_counter()
            rows = self._rows(run)
            self.runs += 1
            self.run_seconds += run.seconds or time.perf_counter() - begin
            return rows
        except Exception as problem:  # of any library: the batch is lost in any case
            self.failures += 1
            kind = EngineUnavailable if isinstance(problem, Retryable) else EngineError
            raise kind(f"{self._name} failed on a batch: {one_line(problem)}") from problem
        finally:
            self._flying.popleft()
            self._free.append(run.slot)

    def compute(self, count: int) -> NDArray[np.float32]:
        """Run the first `count` rows of the buffer and return their rows; nothing may be in flight.

        For callers that have nothing else to do. Errors are those of `submit` and `collect`.
        """
        self.submit(count)
        return self.collect()

    @abstractmethod
    def _load(self) -> None:
        """Load the network."""

    @abstractmethod
    def _release(self) -> None:
        """Free the network, without waiting for batches in flight: their rows are not needed any more."""

    def _slots(self) -> Iterable[Any]:
        """Return `DEPTH` slots."""
        return (np.zeros((self._max_batch, *self.input_size, 3), np.uint8) for _ in range(DEPTH))

    def _pixels(self, slot: Any) -> NDArray[np.uint8]:  # noqa: ANN401 - the subclass's type
        """Return the buffer of a slot, which is the slot itself unless a subclass has other slots."""
        pixels: NDArray[np.uint8] = slot
        return pixels

    def _start(self, slot: Any, count: int) -> Submission:  # noqa: ANN401
        """Begin to compute the first `count` pictures of a slot, where that is possible."""
        return Submission(slot, count)

    def _wait(self, run: Any) -> None:  # noqa: ANN401, B027 - nothing was begun
        """Wait until the batch was computed or has failed; does not fail itself."""

    def _is_done(self, run: Any) -> bool:  # noqa: ANN401, ARG002
        """Return whether a batch was computed or has failed, as far as that is known."""
        return False

    @abstractmethod
    def _rows(self, run: Any) -> NDArray[np.float32]:  # noqa: ANN401
        """Return the rows of a batch without `error`, or raise what went wrong."""


class GraphEngine(Engine):
    """An `Engine` that runs a prepared graph; a network with a fixed batch lowers `max_batch`.

    Attributes:
        backend: name of the subclass, as in the settings.
        device: display name of the device that computes.
    """

    backend: str
    device: str
    _precision: str | None = None
    """In which the backend computes, where that may differ from the graph's."""

    def __init__(self, prepared: PreparedGraph, *, max_batch: int) -> None:
        super().__init__(
            name=prepared.name,
            input_size=prepared.input_size,
            unit_length=prepared.normalised,
            max_batch=min(max_batch, prepared.batch or max_batch),
        )
        self._prepared = prepared

    @property
    def info(self) -> EngineInfo:
        """See `Engine.info`."""
        return self._prepared.info(
            backend=self.backend, device=self.device, max_batch=self._max_batch, precision=self._precision
        )
