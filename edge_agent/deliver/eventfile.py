"""Events as JSON lines in a file, with or without a broker."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType

from edge_agent.core.errors import DiskFull, StorageError
from edge_agent.core.manifest import write_error

__all__ = ["EventFile"]

_ROLE = "the events file"


class EventFile:
    """One message per line, written without buffering.

    Args:
        path: the file; its folder must exist.
        append: add to an existing file instead of replacing it.
    """

    def __init__(self, path: Path, *, append: bool = False) -> None:
        self.path = Path(path)
        self._append = append
        self._lock = threading.Lock()
        self._file: int | None = None

    def __enter__(self) -> EventFile:
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_APPEND | (0 if self._append else os.O_TRUNC)
        try:
            self._file = os.open(self.path, flags, 0o644)
        except OSError as problem:
            raise write_error(self.path, problem, role=_ROLE) from problem
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def write(self, message: bytes) -> None:
        """Add one line in one system call, so that a kill leaves no partial line.

        Raises:
            DiskFull, StorageError: it could not be written.
        """
        line = message + b"\n"
        with self._lock:
            if self._file is None:
                raise StorageError(f"{_ROLE} {self.path} is not open")
            try:
                written = os.write(self._file, line)
            except OSError as problem:
                raise write_error(self.path, problem, role=_ROLE) from problem
            if written < len(line):
                raise DiskFull(f"cannot write {_ROLE} {self.path}: no space is left on its disk")
