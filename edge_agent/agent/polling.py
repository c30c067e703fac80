"""Polling of the sources: the newest frame of each live camera, recordings in the order of their times."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edge_agent.core.structures import CropBatch, Frame

if TYPE_CHECKING:
    from edge_agent.source.reader import FrameReader

__all__ = ["Polled", "SourcePoller"]

FILE_BURST = 4
"""Frames taken from recorded files in one round, so that the engine gets a batch of useful size."""

Polled = tuple["FrameReader", "Frame | CropBatch"]
"""An item and the reader that it comes from."""


class SourcePoller:
    """Takes the items of all sources.

    Args:
        readers: sources that are being read.
        wake: set by the readers when they have an item.
        max_delay_s: longest wait of one live camera's item for those of the others.
    """

    def __init__(self, readers: Sequence[FrameReader], wake: threading.Event, max_delay_s: float) -> None:
        self._readers = readers
        self._wake = wake
        self._max_delay_s = max_delay_s
        self._heads: dict[str, Frame | CropBatch] = {}
        """The next item of each recording."""
        self._finished: set[str] = set()

    def poll(self, *, wait_for_others: bool) -> list[Polled]:
        """Return the items that are there.

        Args:
            wait_for_others: wait up to `max_delay_s` for live cameras that have no item yet, where at least
                one source has one.
        """
        items = self._poll_live() + self._poll_files()
        if wait_for_others and items and self._max_delay_s:
            polled = {id(reader) for reader, _ in items}
            missing = [r for r in self._readers if r.live and not r.ended and id(r) not in polled]
            self._wait_for(missing, items)
        return items

    @property
    def exhausted(self) -> bool:
        """Whether every source has ended and every item was taken."""
        return not self._heads and all(reader.ended for reader in self._readers)

    def newly_finished(self) -> list[str]:
        """Return the cameras whose sources are exhausted; each is returned once."""
        cameras = [
            reader.camera
            for reader in self._readers
            if reader.ended and reader.camera not in self._finished and reader.camera not in self._heads
        ]
        self._finished.update(cameras)
        return cameras

    def _wait_for(self, missing: list[FrameReader], items: list[Polled]) -> None:
        deadline = time.monotonic() + self._max_delay_s
        while missing and (left := deadline - time.monotonic()) > 0:
            self._wake.wait(left)
            self._wake.clear()
            for reader in list(missing):
                item = reader.poll()
                if item is not None:
                    items.append((reader, item))
                    missing.remove(reader)

    def _poll_live(self) -> list[Polled]:
        found = [(reader, reader.poll()) for reader in self._readers if reader.live]
        return [(reader, item) for reader, item in found if item is not None]

    def _poll_files(self) -> list[Polled]:
        """Up to `FILE_BURST` items of the recorded sources, in the order of their times."""
        files = {reader.camera: reader for reader in self._readers if not reader.live}
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
