"""The engines folder: its lock, and the quarantine for refused files.

::

    engines/
    ├── <key>.plan, <key>.json    a plan and its manifest
    ├── active.json               which engine is active, and which one was before it
    ├── calibrations/             one folder per calibration
    ├── timing/                   TensorRT's timing caches, one per TensorRT version and GPU
    └── quarantine/               refused files, only the newest few
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import structlog

from edge_agent.core.errors import StorageError
from edge_agent.core.locks import FileLock
from edge_agent.core.manifest import write_json_atomic

__all__ = ["EnginesFolder"]

_log = structlog.get_logger(__name__)

_QUARANTINED = 4
"""Refused cases that are kept for inspection; a failing disk must not fill itself with them."""


class EnginesFolder:
    """The folder of plans and calibrations; the constructor does not touch the disk.

    Args:
        path: made with mode 0700 when the first file is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.quarantine = self.path / "quarantine"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock that keeps a plan and its manifest together; an OSError becomes a StorageError."""
        with self._lock(".lock").held():
            try:
                yield
            except OSError as problem:
                raise StorageError(f"cannot use {self.path}: {problem}") from problem

    @contextlib.contextmanager
    def building(self, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
        """Hold the lock for builds: concurrent builds would disturb each other's kernel timings.

        Args:
            on_wait: called once before waiting for another build.
        """
        with self._lock(".build.lock").held(on_wait):
            yield

    def set_aside(self, paths: list[Path], why: str) -> None:
        """Move files to the quarantine and write the reason next to them; the caller holds the lock."""
        self.quarantine.mkdir(mode=0o700, exist_ok=True)
        cases = sorted({int(path.name.split("-", 1)[0]) for path in self.quarantine.glob("[0-9]*-*")})
        case = cases[-1] + 1 if cases else 1
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                path.replace(self.quarantine / f"{case:06d}-{path.name}")
        names = [path.name for path in paths]
        reason = {"why": why, "time": time.time(), "files": names}
        write_json_atomic(self.quarantine / f"{case:06d}-reason.json", reason)
        for old in [*cases, case][:-_QUARANTINED]:
            for path in self.quarantine.glob(f"{old:06d}-*"):
                path.unlink()
        _log.warning("plan_quarantined", why=why, files=names, folder=str(self.quarantine))

    def _lock(self, name: str) -> FileLock:
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as problem:
            raise StorageError(f"cannot make the folder {self.path}: {problem.strerror}") from problem
        return FileLock(self.path / name)
