"""What every inference backend offers, and nothing more.

Usage::

    with engine:
        engine.buffer()[:count] = crops     # uint8, filled in place
        engine.submit(count)                # returns at once
        ...                                 # fill and submit the next buffer meanwhile
        rows = engine.collect()             # the oldest submission's rows

Two submissions may be in flight: one runs, one waits. Engines are not for several callers at once:
one thread owns an engine.
"""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.structures import EngineInfo

__all__ = ["DEPTH", "Engine"]

DEPTH = 2
"""Submissions that may be in flight: one that runs and one that waits, so the device never idles."""


class Engine(Protocol):
    """A network that turns a batch of `uint8` pictures into rows of `float32`.

    Lifetime is a `with`: the constructor is cheap, the network is loaded on entering.
    """

    @property
    def info(self) -> EngineInfo:
        """Which network runs, and on what. Valid before entering."""

    @property
    def input_size(self) -> tuple[int, int]:
        """`(height, width)` of the pictures that the network takes."""

    @property
    def unit_length(self) -> bool:
        """Whether the rows are embeddings of length 1, to be checked as such."""

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
        """Batches that were dropped since the network failed on them."""

    def __enter__(self) -> Engine: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def buffer(self) -> NDArray[np.uint8]:
        """The `(max_batch, H, W, 3)` uint8 BGR buffer to fill next; always the same few arrays.

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
        """Wait for the oldest submission: `(count, ...)` float32, owned by the caller.

        Raises:
            EngineError: nothing is in flight, or the network failed on this batch. The batch is then
                dropped and counted; what an earlier batch left behind is never returned.
        """
