"""The readers of all sources: cameras connect while the networks open, recordings are read after that."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from edge_agent.source.reader import FrameReader

if TYPE_CHECKING:
    from edge_agent.core.structures import SourceStatus
    from edge_agent.source.base import Source

__all__ = ["SourceReaders"]


class SourceReaders:
    """Starts and stops the readers. Status changes are kept until `start_others` names a callback.

    Args:
        sources: of all readers, in order.
        stack: leaves the readers; they are asked to end first and left last, so that they end while the
            publisher disconnects.
        stop: no reader starts once it is set.
    """

    def __init__(self, sources: Sequence[Source], stack: ExitStack, stop: threading.Event) -> None:
        self.wake = threading.Event()
        """Set when a reader has an item."""
        self.readers = [FrameReader(source, wake=self.wake, on_status=self._on_status) for source in sources]
        self._cameras = [reader for reader in self.readers if reader.live and not reader.ends]
        self._stop = stop
        self._stack = stack.enter_context(ExitStack())
        self._kept: list[SourceStatus] = []
        self._callback: Callable[[SourceStatus], None] | None = None
        self._lock = threading.Lock()

    def start_cameras(self) -> None:
        """Connect to the live cameras; they drop frames until these are polled."""
        self._start(self._cameras)

    def start_others(self, on_status: Callable[[SourceStatus], None]) -> None:
        """Start the other readers; `on_status` gets the kept and all later status changes."""
        with self._lock:
            for status in self._kept:
                on_status(status)
            self._callback = on_status
        self._start([reader for reader in self.readers if reader not in self._cameras])

    def request_stop(self) -> None:
        """Ask all readers to end, without waiting for them."""
        _request_stop(self.readers)

    def stop(self) -> None:
        """Stop all readers and wait for their last status changes."""
        for reader in self.readers:
            reader.stop()

    def raise_first_error(self) -> None:
        """Raise the error of the first source that was given up, if any was."""
        for reader in self.readers:
            if reader.error is not None:
                raise reader.error

    def _start(self, readers: Sequence[FrameReader]) -> None:
        if not self._stop.is_set():
            for reader in readers:
                self._stack.enter_context(reader)
            self._stack.callback(_request_stop, readers)

    def _on_status(self, status: SourceStatus) -> None:
        with self._lock:
            if self._callback is None:
                self._kept.append(status)
                return
        self._callback(status)


def _request_stop(readers: Sequence[FrameReader]) -> None:
    """Ask before leaving one by one, so that they end in parallel."""
    for reader in readers:
        reader.request_stop()
