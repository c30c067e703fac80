"""The engines folder: its lock, the quarantine for refused files, and the record of the active engine.

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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import structlog

from edge_agent.core.errors import InputError, StorageError
from edge_agent.core.files import read_json
from edge_agent.core.locks import FileLock
from edge_agent.core.manifest import write_json_atomic
from edge_agent.core.private import private_folder
from edge_agent.engine.plans.records import Role

_log = structlog.get_logger(__name__)

_QUARANTINED = 4
"""Refused cases that are kept for inspection; a failing disk must not fill itself with them."""


class EnginesFolder:
    """The folder of plans and calibrations, made with mode 0700 when the first file is written."""

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

        `on_wait` is called once before waiting for another build.
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
        write_json_atomic(self.quarantine / f"{case:06d}-reason.json", reason, mode=0o600)
        for old in [*cases, case][:-_QUARANTINED]:
            for path in self.quarantine.glob(f"{old:06d}-*"):
                path.unlink()
        _log.warning("plan_quarantined", why=why, files=names, folder=str(self.quarantine))

    def _lock(self, name: str) -> FileLock:
        try:
            private_folder(self.path)
        except OSError as problem:
            raise StorageError(f"cannot make the folder {self.path}: {problem.strerror}") from problem
        return FileLock(self.path / name)


_KIND, _VERSION = "active-engine", 1
_RECORD_KEYS = ("name", "precision", "backend", "files")
_AGAIN = "run `edge-agent calibrate` again"


@dataclass(frozen=True, slots=True)
class Active:
    """The active engine and the one that was active before it; None where there is none.

    A record is a JSON object with at least `name`, `precision`, `backend` and `files`, paths relative to the
    engines folder. The optional `graphs` has the SHA-256 of the prepared graphs that the engine runs: plans
    made from them belong to the engine, also those that are built later. Other keys belong to the writer.
    """

    current: dict[str, Any] | None
    previous: dict[str, Any] | None

    def role(self, key: str, graph_sha256: str | None) -> Role | None:
        """Return which of the two uses a plan, by its files or by the graph that it was made from."""
        if _uses(self.current, key, graph_sha256):
            return "current"
        return "previous" if _uses(self.previous, key, graph_sha256) else None


class ActiveEngine:
    """Reads and changes `active.json` in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = EnginesFolder(folder)
        self._path = self._folder.path / "active.json"

    def read(self) -> Active:
        """Return the active engine and the previous one; InputError where `active.json` is damaged."""
        if not self._path.exists():
            return Active(None, None)
        found = read_json(self._path)
        if not isinstance(found, dict) or found.get("kind") != _KIND or found.get("version") != _VERSION:
            raise InputError(f"{self._path} does not name an active engine; {_AGAIN}")
        try:
            return Active(_record(found["current"]), _record(found["previous"]))
        except (KeyError, TypeError, ValueError) as problem:
            raise InputError(f"{self._path} is damaged ({problem}); {_AGAIN}") from problem

    def switch(self, record: Mapping[str, Any]) -> Active:
        """Make an engine the active one and keep the one before it; the same record changes nothing.

        A damaged `active.json` goes to the quarantine; there is then no previous engine. InputError where the
        record is incomplete, or names a file that does not exist.
        """
        try:
            wanted = _record(dict(record))
        except (TypeError, ValueError) as problem:
            raise InputError(f"not a record of an engine: {problem}") from problem
        assert wanted is not None
        with self._folder.locked():
            self._check_files(wanted)
            try:
                before = self.read()
            except InputError as problem:
                self._folder.set_aside([self._path], str(problem))
                before = Active(None, None)
            if before.current == wanted:
                return before
            return self._write(Active(wanted, before.current))

    def rollback(self) -> Active:
        """Swap the active engine and the previous one; InputError where it or one of its files is missing."""
        self._previous(self.read())  # before the lock makes a folder
        with self._folder.locked():
            before = self.read()
            previous = self._previous(before)
            self._check_files(previous)
            return self._write(Active(previous, before.current))

    def _previous(self, active: Active) -> dict[str, Any]:
        if active.previous is None:
            hint = "`edge-agent calibrate` makes engines"
            raise InputError(f"{self._folder.path} has no engine from before the active one; {hint}")
        return active.previous

    def _check_files(self, record: Mapping[str, Any]) -> None:
        for name in record["files"]:
            path = self._folder.path / name
            if not path.is_file():
                raise InputError(f"engine {record['name']!r} needs {path}, which does not exist; {_AGAIN}")

    def _write(self, active: Active) -> Active:
        write_json_atomic(self._path, {"kind": _KIND, "version": _VERSION, **asdict(active)}, mode=0o600)
        return active


def _uses(record: Mapping[str, Any] | None, key: str, graph_sha256: str | None) -> bool:
    if record is None:
        return False
    return f"{key}.plan" in record["files"] or graph_sha256 in record.get("graphs", ())


def _record(found: object) -> dict[str, Any] | None:
    """Return a checked record; ValueError or TypeError describes what is wrong."""
    if found is None:
        return None
    if not isinstance(found, dict):
        raise TypeError(f"expected an object, got {type(found).__name__}")
    if missing := [key for key in _RECORD_KEYS if key not in found]:
        raise ValueError(f"it lacks {', '.join(missing)}")
    for names in (found["files"], found.get("graphs", ())):
        if not isinstance(names, (list, tuple)):
            raise TypeError("`files` or `graphs` is not a list")
    for name in found["files"]:
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or not parts.parts:
            raise ValueError(f"file {name!r} is not inside the store")
    return {**found, "files": list(found["files"])}
