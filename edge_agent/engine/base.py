"""The interface of all inference backends, and the queue of batches that they share.

Usage::

    with engine:
        engine.buffer()[:count] = crops     # uint8, filled in place
        engine.submit(count)                # returns at once
        ...                                 # fill and submit the next buffer meanwhile
        rows = engine.collect()             # the oldest submission's rows

Two submissions may be in flight: one runs, one waits. An engine belongs to one thread.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.errors import EngineError
from edge_agent.core.structures import EngineInfo

DEPTH = 2
"""Submissions in flight at most: one that runs and one that waits, so that the device never idles."""


class Engine(Protocol):
    """A network that turns a batch of `uint8` pictures into rows of `float32`.

    A context manager: the constructor is cheap, the network is loaded on entering.
    """

    @property
    def info(self) -> EngineInfo:
        """Which network runs, and on what. Valid before entering."""

    @property
    def input_size(self) -> tuple[int, int]:
        """`(height, width)` of the input pictures."""

    @property
    def unit_length(self) -> bool:
        """Whether rows are embeddings of length 1 and must be checked for it."""

    @property
    def in_flight(self) -> int:
        """Submissions whose rows have not been collected."""

    @property
    def runs(self) -> int:
        """Batches that the network has run since the engine was made."""

    @property
    def run_seconds(self) -> float:
        """Time inside the network alone, summed over `runs`, in seconds."""

    @property
    def failures(self) -> int:
        """Batches that were dropped because the network failed on them."""

    def __enter__(self) -> Engine: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def buffer(self) -> NDArray[np.uint8]:
        """Return the `(max_batch, H, W, 3)` uint8 BGR buffer to fill next; one of `DEPTH` fixed arrays.

        It belongs to the caller until `submit`, and to the engine from then until `collect`.

        Raises:
            EngineError: all buffers are in flight, or the engine is not entered.
        """

    def submit(self, count: int) -> None:
        """Run the first `count` rows of the buffer; returns at once.

        Raises:
            EngineError: `count` is not in `1..max_batch`, or `DEPTH` submissions are in flight already.
        """

    def collect(self) -> NDArray[np.float32]:
        """Wait for the oldest submission; return `(count, ...)` float32, owned by the caller.

        Raises:
            EngineError: nothing is in flight, or the network failed on this batch. The batch is then
                dropped and counted; rows of an earlier batch are never returned.
        """


Slot = TypeVar("Slot")


@dataclass(slots=True)
class Submission(Generic[Slot]):
    """A batch in flight: what holds its pictures, and how many there are."""

    slot: Slot
    count: int


Run = TypeVar("Run", bound="Submission[Any]")


class QueuedEngine(ABC, Generic[Slot, Run]):
    """Order, checks and counters of an `Engine`. A subclass fills `_free` with `DEPTH` slots on entering.

    Args:
        name: of the network, for messages.
        input_size: `(height, width)` of the input pictures.
        unit_length: whether rows have length 1.
        max_batch: pictures per buffer.
    """

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
        self._free: deque[Slot] = deque()
        self._flying: deque[Run] = deque()

    @property
    def in_flight(self) -> int:
        """Submissions that were not collected, 0..2."""
        return len(self._flying)

    def buffer(self) -> NDArray[np.uint8]:
        """See `Engine.buffer`."""
        if not self._free:
            why = f"{DEPTH} batches are in flight" if self._flying else "the engine is not running"
            raise EngineError(f"no buffer is free: {why}")
        return self._pixels(self._free[0])

    def submit(self, count: int) -> None:
        """See `Engine.submit`."""
        if not 1 <= count <= self._max_batch:
            raise EngineError(f"a batch holds 1 to {self._max_batch} pictures, got {count}")
        self.buffer()
        self._flying.append(self._start(self._free.popleft(), count))

    def collect(self) -> NDArray[np.float32]:
        """See `Engine.collect`."""
        if not self._flying:
            raise EngineError("nothing was submitted, so there is nothing to collect")
        run = self._flying[0]
        self._wait(run)
        try:
            return self._rows(run)
        except Exception as problem:  # of any library: the batch is lost in any case
            self.failures += 1
            raise EngineError(f"{self._name} failed on a batch: {problem}") from problem
        finally:
            self._flying.popleft()
            self._free.append(run.slot)

    def _clear(self) -> None:
        """Forget all slots and submissions."""
        self._flying.clear()
        self._free.clear()

    @abstractmethod
    def _pixels(self, slot: Slot) -> NDArray[np.uint8]:
        """Return the buffer of a slot."""

    @abstractmethod
    def _start(self, slot: Slot, count: int) -> Run:
        """Begin to compute the first `count` pictures of a slot."""

    @abstractmethod
    def _wait(self, run: Run) -> None:
        """Wait until the batch was computed or has failed; does not fail itself."""

    @abstractmethod
    def _rows(self, run: Run) -> NDArray[np.float32]:
        """Return the rows and count the run, or raise what went wrong."""
