"""Locks between processes."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from edge_agent.core.errors import InputError, StorageError
from edge_agent.core.files import read_text


class FileLock:
    """An exclusive lock on a file, held until `release` or the end of the process.

    The file (mode 0600) contains the id of the process that locked it last, and is not removed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self, *, wait: bool = False) -> bool:
        """Take the lock; return False when another process has it and `wait` is not set.

        StorageError when the file cannot be created, e.g. since its folder does not exist.
        """
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as problem:
            raise StorageError(f"cannot lock {self._path}: {problem.strerror or problem}") from problem
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BaseException as problem:
            os.close(descriptor)
            if isinstance(problem, BlockingIOError):
                return False
            raise
        with contextlib.suppress(OSError):  # for messages only, and the disk may be full
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
        self._descriptor = descriptor
        return True

    @contextlib.contextmanager
    def held(self, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
        """Hold the lock in the block; call `on_wait` before waiting for another process, if needed."""
        if not self.acquire():
            if on_wait is not None:
                on_wait()
            self.acquire(wait=True)
        try:
            yield
        finally:
            self.release()

    def holder(self) -> str:
        """Return the id of the process that has the lock, for messages."""
        with contextlib.suppress(InputError):
            return read_text(self._path).strip() or "unknown"
        return "unknown"

    def release(self) -> None:
        """Release the lock, if it is held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
