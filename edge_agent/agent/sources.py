"""The readers of all sources, and their polling.

Cameras connect while the networks open, recordings are read after that. A live camera gives its newest frame,
recordings give theirs in the order of their times.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from edge_agent.core.structures import SourceStatus
from edge_agent.source.base import Item
from edge_agent.source.reader import LIVE_LIMIT, FrameReader

if TYPE_CHECKING:
    from edge_agent.core.errors import EdgeAgentError
    from edge_agent.source.base import Source

FILE_BURST = 4
"""Frames taken from recorded files in one round, so that the engine gets a batch of useful size."""

MESSAGE_BURST = 16
"""The same of a live source that keeps more than one item."""

Polled = tuple[FrameReader, Item]
"""An item and the reader that it comes from."""


class SourceReaders:
    """Starts and stops the readers. Status changes are kept until `start_others` names a callback.

    `stack` asks them to end first and leaves them last, so that they end while the publisher disconnects. No
    reader starts once `stop` is set. `label` gives the times of status changes.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        stack: ExitStack,
        stop: threading.Event,
        label: Callable[[], float] = time.time,
    ) -> None:
        self.wake = threading.Event()
        """Set when a reader has an item."""
        self.readers = [FrameReader(source, wake=self.wake, on_status=self._on_status) for source in sources]
        self._cameras = [reader for reader in self.readers if reader.live and not reader.ends]
        self._stop = stop
        self._label = label
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
        for reader in self.readers:
            reader.request_stop()

    def stop(self) -> None:
        """Stop all readers and wait for their last status changes."""
        for reader in self.readers:
            reader.stop()

    @property
    def first_error(self) -> EdgeAgentError | None:
        """The error of the first source that was given up, if any was."""
        return next((reader.error for reader in self.readers if reader.error is not None), None)

    def _start(self, readers: Sequence[FrameReader]) -> None:
        if not self._stop.is_set():
            for reader in readers:
                self._stack.enter_context(reader)
            self._stack.callback(self.request_stop)  # before they are left one by one: they end in parallel

    def _on_status(self, status: SourceStatus) -> None:
        status = replace(status, time=self._label())
        with self._lock:
            if self._callback is None:
                self._kept.append(status)
                return
        self._callback(status)


@dataclass(slots=True)
class SourcePoller:
    """Takes the items of all sources."""

    readers: Sequence[FrameReader]
    wake: threading.Event
    """Set by the readers when they have an item."""
    max_delay_s: float
    """Longest wait of one live camera's item for those of the others."""
    _heads: dict[str, Item] = field(default_factory=dict)
    """The next item of each recording."""
    _finished: set[str] = field(default_factory=set)
    _turn: int = 0
    """The live reader that is polled first."""
    _live: list[FrameReader] = field(init=False)
    _files: dict[str, FrameReader] = field(init=False)
    """The other readers, by camera."""

    def __post_init__(self) -> None:
        self._live = [reader for reader in self.readers if reader.live]
        self._files = {reader.camera: reader for reader in self.readers if not reader.live}

    def poll(self, *, wait_for_others: bool, most: int | None = None, late: bool = False) -> list[Polled]:
        """Return the items that are there, of at most `most` live cameras, which take turns.

        With `late`, a frame that was not taken before the next one came is returned, too; else it is lost.
        If there is one, `wait_for_others` waits up to `max_delay_s` for live cameras that have none yet.
        """
        items = self._poll_live(most, late=late)
        taken = len(items)
        if self._files:
            items += self._poll_files()
        if wait_for_others and items and self.max_delay_s and (most is None or taken < most):
            polled = {id(reader) for reader, _ in items}
            missing = [r for r in self.readers if r.live and not r.ended and id(r) not in polled]
            self._wait_for(missing, items)
        return items

    def _poll_live(self, most: int | None, *, late: bool) -> list[Polled]:
        live = self._live
        unread = LIVE_LIMIT if late else 1
        items: list[Polled] = []
        cameras = 0
        for reader in [*live[self._turn :], *live[: self._turn]]:
            found = [
                (reader, item)
                for _ in range(min(reader.backlog or unread, MESSAGE_BURST))
                if (item := reader.poll(late=late)) is not None
            ]
            items += found
            cameras += bool(found)
            if cameras == most:
                self._turn = (live.index(reader) + 1) % len(live)
                break
        return items

    @property
    def exhausted(self) -> bool:
        """Whether every source has ended and every item was taken."""
        return not self._heads and all(reader.ended for reader in self.readers)

    def newly_finished(self) -> list[str]:
        """Return the cameras whose sources are exhausted; each is returned once."""
        cameras = [
            reader.camera
            for reader in self.readers
            if reader.ended and reader.camera not in self._finished and reader.camera not in self._heads
        ]
        self._finished.update(cameras)
        return cameras

    def _wait_for(self, missing: list[FrameReader], items: list[Polled]) -> None:
        deadline = time.monotonic() + self.max_delay_s
        while missing and (left := deadline - time.monotonic()) > 0:
            self.wake.wait(left)
            self.wake.clear()
            for reader in list(missing):
                item = reader.poll()
                if item is not None:
                    items.append((reader, item))
                    missing.remove(reader)

    def _poll_files(self) -> list[Polled]:
        """Up to `FILE_BURST` items of the recorded sources, in the order of their times."""
        files = self._files
        items: list[Polled] = []
        while len(items) < FILE_BURST:
            for camera, reader in files.items():
                if camera not in self._heads and (item := reader.poll()) is not None:
                    self._heads[camera] = item
            # A recording without an item yet may still give an earlier frame.
            if any(c not in self._heads and r.ends and not r.ended for c, r in files.items()):
                break
            if not self._heads:
                break
            camera = min(self._heads, key=lambda c: (self._heads[c].time, c))
            items.append((files[camera], self._heads.pop(camera)))
        return items
