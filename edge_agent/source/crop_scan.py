"""Scan of a crop folder: which pictures are complete, and when the folder needs to be listed again."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

from edge_agent.core.pictures import PICTURE_SUFFIXES

__all__ = ["MAX_LISTED", "CropFile", "FolderScan", "crop_file", "identity"]

MAX_LISTED = 4096
"""Crops taken from one scan, oldest first; the others are taken by the next."""

_FULL_SCAN_SECONDS = 60.0
"""Files overwritten in place do not change the folder's modification time: scan after this time."""
_PRUNE_SECONDS = 86_400.0
_CLOCK_TICK_SECONDS = 2.0
"""Coarsest modification time: a file of the same tick as the last scan leaves the folder's time unchanged."""


@dataclass(frozen=True, slots=True)
class CropFile:
    """One picture in the folder, as listed by the directory."""

    modified_ns: int
    name: str
    size: int

    @property
    def age(self) -> float:
        """Seconds since its modification; negative where another machine's clock is ahead."""
        return time.time() - self.modified_ns / 1e9


def crop_file(entry: os.DirEntry[str]) -> CropFile | None:
    """Return a directory entry that is a picture; None for all others, and for one that has just vanished."""
    if entry.name.startswith(".") or f".{entry.name.rpartition('.')[2].lower()}" not in PICTURE_SUFFIXES:
        return None
    try:
        if not entry.is_file():
            return None
        status = entry.stat()
    except OSError:
        return None
    return CropFile(status.st_mtime_ns, entry.name, status.st_size)


def identity(path: Path) -> tuple[int, int]:
    """Return size and modification time in ns, which identify the content of a name."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


class FolderScan:
    """State between two scans of a folder.

    Attributes:
        unfinished: whether crops were left for the next scan.
    """

    def __init__(self) -> None:
        self.unfinished = True
        self._modified_ns = -1
        self._scanned = self._pruned = -math.inf
        self._young: dict[str, tuple[int, int, float]] = {}

    def due(self, modified_ns: int) -> bool:
        """Whether anything can be new: 100,000 names need not be listed twice a second."""
        stale = time.monotonic() - self._scanned > _FULL_SCAN_SECONDS
        fresh = abs(time.time() - modified_ns / 1e9) < _CLOCK_TICK_SECONDS
        return self.unfinished or fresh or stale or modified_ns != self._modified_ns

    def begin(self, modified_ns: int) -> None:
        """Start a scan of all names."""
        self.unfinished = False
        self._modified_ns = modified_ns
        self._scanned = time.monotonic()
        if len(self._young) > MAX_LISTED:
            self._young.clear()  # they are checked again, and wait a little longer

    def pruning_due(self) -> bool:
        """Whether a day has passed since the last removal of files that are gone; starts the next day."""
        if time.monotonic() - self._pruned < _PRUNE_SECONDS:
            return False
        self._pruned = time.monotonic()
        return True

    def settled(self, file: CropFile, seconds: float) -> bool:
        """Whether the file has not changed for `seconds`, by its own time or between scans."""
        if file.age >= seconds:
            self._young.pop(file.name, None)
            return True
        # Its time is recent, or in the future because of another machine's clock.
        size, modified_ns, since = self._young.get(file.name, (-1, -1, 0.0))
        if (size, modified_ns) != (file.size, file.modified_ns):
            self._young[file.name] = (file.size, file.modified_ns, time.monotonic())
            return False
        if time.monotonic() - since < seconds:
            return False
        del self._young[file.name]
        return True
