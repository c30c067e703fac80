"""Memory that a server on this machine can read, and the buffers of a batch."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import secrets
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FOLDER = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory is on Linux
_PREFIX = "edge-agent-"


class Region:
    """Shared memory with a random name, for this user only; it disappears with the last array on it.

    The file is locked while its owner lives, so that one left by a process that was killed can be recognised.
    `name` is that of the file; OSError where none can be made.
    """

    def __init__(self, size: int) -> None:
        _remove_left_behind()
        self.name = f"{_PREFIX}{secrets.token_hex(8)}"
        self.size = size
        self._file = os.open(_FOLDER / self.name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.posix_fallocate(self._file, 0, size)  # a full /dev/shm is an error here, not SIGBUS later
            self.bytes: NDArray[np.uint8] = np.frombuffer(mmap.mmap(self._file, size), np.uint8)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Remove the name; arrays on the memory stay valid."""
        with contextlib.suppress(OSError):
            (_FOLDER / self.name).unlink()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _remove_left_behind() -> None:
    for path in _FOLDER.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, or in use
            file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(file)


class Slot:
    """Buffers of one batch: `pixels` `(N, H, W, 3)` uint8, and `planes` `(N, 3, H, W)` float32 once wanted.

    With `shared`, they are in `regions` where shared memory can be had.
    """

    def __init__(self, most: int, size: tuple[int, int], *, shared: bool) -> None:
        self._most, self._size, self._shared = most, size, shared
        self.regions: dict[bool, Region] = {}
        """By whether it holds `pixels`."""
        self.pixels: NDArray[np.uint8] = self._array((most, *size, 3), np.uint8, prepared=True)
        self._planes: NDArray[np.float32] | None = None

    def tensor(self, *, prepared: bool) -> NDArray[np.uint8] | NDArray[np.float32]:
        """Return what a model takes: `pixels`, or `planes`."""
        if prepared:
            return self.pixels
        if self._planes is None:
            self._planes = self._array((self._most, 3, *self._size), np.float32, prepared=False)
        return self._planes

    def close(self) -> None:
        """Remove the names of shared memory."""
        for region in self.regions.values():
            region.close()
        self.regions.clear()

    def _array(self, shape: tuple[int, ...], kind: type, *, prepared: bool) -> NDArray[Any]:
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        if self._shared:
            with contextlib.suppress(OSError):
                region = self.regions[prepared] = Region(size)
                return region.bytes.view(kind).reshape(shape)
        return np.zeros(shape, kind)
