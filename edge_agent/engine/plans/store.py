"""Where TensorRT's plans are kept: by what they were made from, and only those that this device built.

A plan is executable content, made for one graph, one TensorRT, one driver and one GPU. Its key is the SHA-256
of all of that; beside `<key>.plan` stands `<key>.json`, which says it in words and holds the digest of the
plan. What is damaged or from elsewhere goes to `quarantine/` with the reason beside it, and is built again.

::

    engines/
    ├── <key>.plan, <key>.json    the plan and its manifest
    ├── active.json               which engine runs, and which one ran before it
    ├── timing/                   TensorRT's timing caches, one for each TensorRT and GPU
    └── quarantine/               what was refused, at most a few

Nothing here needs a GPU. Several processes may use one folder: a lock keeps a plan and its manifest together.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import structlog

from edge_agent.core.errors import InputError, StorageError
from edge_agent.core.locks import FileLock
from edge_agent.core.manifest import (
    FileRecord,
    Manifest,
    read_json,
    sha256_file,
    write_atomic,
    write_json_atomic,
)

__all__ = [
    "Active",
    "Machine",
    "Order",
    "PlanEntry",
    "PlanStore",
    "Pruned",
    "Recipe",
    "StoredPlan",
    "memory_class_gib",
    "this_host",
]

_log = structlog.get_logger(__name__)

_KIND, _VERSION = "plan", 1
_ACTIVE, _ACTIVE_KIND, _ACTIVE_VERSION = "active.json", "active-engine", 1
_QUARANTINE, _TIMING = "quarantine", "timing"
_KEY = re.compile("[0-9a-f]{64}")
_QUARANTINED = 4
"""Refused plans that are kept to look at: a failing disk must not fill itself with them."""
_RECORD_KEYS = ("name", "precision", "backend", "files")

Role = Literal["current", "previous"]
"""Of a plan: the active engine uses it, or the one before it does."""

Verdict = Literal["ok", "unchecked", "stale", "foreign", "damaged"]
"""Whether a plan may be loaded. `unchecked`: there is no GPU here to compare it with; `stale`: built here for
another TensorRT, driver or GPU; `foreign`: built on another device; `damaged`: not what was written."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What a plan runs on. Plans of one machine do not run on, or are not tuned for, a differing one.

    Attributes:
        tensorrt: version, in full.
        driver: CUDA version of the driver, e.g. `12.6`.
        gpu: name, as CUDA gives it.
        compute_capability: e.g. `8.7`.
        multiprocessors: how many the GPU has; power modes of a Jetson can switch some off.
        memory_gib: memory class, from `memory_class_gib`.
    """

    tensorrt: str
    driver: str
    gpu: str
    compute_capability: str
    multiprocessors: int
    memory_gib: int

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """`TensorRT 10.3.0 instead of 10.16.2` for each fact in which `other` is not this machine."""
        names = {"tensorrt": "TensorRT", "gpu": "GPU", "driver": "driver"}
        return [
            f"{names.get(fact, fact.replace('_', ' '))} {other.get(fact)} instead of {value}"
            for fact, value in asdict(self).items()
            if other.get(fact) != value
        ]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a plan is made from, apart from the machine.

    Attributes:
        graph_sha256: of the prepared ONNX.
        precision: `fp32`, `fp16` or `int8`.
        profiles: batch of each optimisation profile.
        scales: digest of the INT8 ranges, or of the pictures that TensorRT finds them with; None where the
            graph carries them itself, or needs none.
        keep: layers held in higher precision.
        dla_core: accelerator that it runs on; None: the GPU.
        gpu_fallback: whether layers that the accelerator does not know run on the GPU.
        flags: names of the builder flags.
        workspace_mb: limit that was asked for, None when it follows from free memory.
        builder: version of the code that builds.
    """

    graph_sha256: str
    precision: str
    profiles: tuple[int, ...]
    scales: str | None
    keep: tuple[str, ...]
    dla_core: int | None
    gpu_fallback: bool
    flags: tuple[str, ...]
    workspace_mb: int | None
    builder: int


@dataclass(frozen=True, slots=True)
class Order:
    """A plan that is wanted: what it is made from, and for which machine."""

    recipe: Recipe
    machine: Machine

    @property
    def key(self) -> str:
        """SHA-256 over canonical JSON of all of it, 64 hex digits."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class StoredPlan:
    """A plan that this device built, as it was written.

    Attributes:
        key: of the order that it answers.
        data: what TensorRT serialised.
        facts: what was noted when it was built.
    """

    key: str
    data: bytes
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PlanEntry:
    """One plan in the store, for people.

    Attributes:
        key: its name without ending.
        bytes: size of the plan, None when the file is missing.
        created: when it was built, UTC; None where the manifest cannot be read.
        used: when it was last built or loaded, seconds since the epoch.
        model: name of the network.
        precision: `fp32`, `fp16` or `int8`.
        profiles: batch of each optimisation profile.
        machine: facts that it was built for, see `Machine`.
        role: `current` or `previous` when the active engine or the one before it uses this plan.
        verdict: whether it may be loaded.
        problem: why not; empty when it may.
    """

    key: str
    bytes: int | None
    created: str | None
    used: float
    model: str | None
    precision: str | None
    profiles: tuple[int, ...]
    machine: Mapping[str, Any]
    role: Role | None
    verdict: Verdict
    problem: str


@dataclass(frozen=True, slots=True)
class Active:
    """The engine that runs, and the one that ran before it; None where there is none.

    A record is a JSON object with at least `name`, `precision`, `backend` and `files`, paths relative to the
    store's folder. `graphs`, where it is there, holds the SHA-256 of the prepared graphs that it runs: their
    plans are its own, also those that are built later. The rest is the business of who writes it.
    """

    current: dict[str, Any] | None
    previous: dict[str, Any] | None

    def role(self, key: str, graph_sha256: str | None) -> Role | None:
        """Which of the two uses a plan, by its files or by the graph that it was made from."""
        if _uses(self.current, key, graph_sha256):
            return "current"
        return "previous" if _uses(self.previous, key, graph_sha256) else None


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was removed: keys of plans, how many other files, and bytes in all."""

    plans: tuple[str, ...]
    others: int
    bytes: int


def memory_class_gib(total_bytes: int) -> int:
    """The size that a device is sold with: the least of 1, 2, 3, 4, 6, 8, 12, ... GiB above its total.

    What the driver reports varies by a few hundred megabytes with what firmware keeps for itself.
    """
    size = 1
    while True:
        for step in (size, size * 3 // 2):
            if step << 30 >= total_bytes:
                return step
        size *= 2


def this_host(root: Path = Path("/")) -> str | None:
    """16 hex digits that name this device: of its serial number, else of its machine id; None without either.

    A digest, since neither number should stand in files that people send around.
    """
    for name in ("proc/device-tree/serial-number", "etc/machine-id"):
        with contextlib.suppress(OSError):
            if text := (root / name).read_bytes().strip(b"\0 \n"):
                return hashlib.sha256(b"edge-agent host|" + text).hexdigest()[:16]
    return None


class PlanStore:
    """Plans in a folder; the constructor touches nothing.

    Args:
        folder: made, for its owner alone, when the first plan is written.
        host: of this device.
    """

    def __init__(self, folder: Path, *, host: str | None = None) -> None:
        self.folder = Path(folder)
        self._host = this_host() if host is None else host

    # --- plans --------------------------------------------------------------------------------

    def find(self, order: Order) -> StoredPlan | None:
        """The plan for an order, whole and built by this device; None when there is none.

        What is damaged or from elsewhere goes to the quarantine and counts as none.

        Raises:
            StorageError: the folder cannot be used.
        """
        key = order.key
        if not self._manifest(key).exists():
            return None  # also where writing was interrupted: the manifest comes last
        with self._locked():
            try:
                manifest = self._read_manifest(key)
                data = _read_plan(self._plan(key), manifest.files[f"{key}.plan"])
            except InputError as problem:
                self._quarantine(key, str(problem))
                return None
            if why := self._foreign(manifest) or self._stale(manifest, order.machine):
                self._quarantine(key, why)
                return None
            os.utime(self._manifest(key))  # when it was last used, for `prune`
        return StoredPlan(key, data, manifest.data["facts"])

    def put(self, order: Order, data: bytes, facts: Mapping[str, Any]) -> StoredPlan:
        """Keep a plan that was built just now, in place of what was there under its key.

        Args:
            order: what it was built from.
            data: what TensorRT serialised.
            facts: what else is worth knowing: `model`, seconds, power mode; JSON values.

        Raises:
            DiskFull: no space is left.
            StorageError: the folder cannot be written.
        """
        key = order.key
        record = FileRecord(hashlib.sha256(data).hexdigest(), len(data))
        noted: dict[str, Any] = {
            "key": key,
            "host": self._host,
            "machine": asdict(order.machine),
            "recipe": asdict(order.recipe),
            "facts": dict(facts),
        }
        with self._locked():
            # A plan without its manifest counts as absent, so nothing halfway is ever loaded.
            self._manifest(key).unlink(missing_ok=True)
            write_atomic(self._plan(key), data, mode=0o600)
            manifest = Manifest(_KIND, _VERSION, {f"{key}.plan": record}, noted)
            manifest.write(self._manifest(key))
        return StoredPlan(key, data, noted["facts"])

    def quarantine(self, key: str, why: str) -> None:
        """Move a plan and its manifest out of the way, with the reason beside them.

        Raises:
            StorageError: the folder cannot be written.
        """
        with self._locked():
            self._quarantine(key, why)

    @contextlib.contextmanager
    def building(self, waiting: Callable[[], None] | None = None) -> Iterator[None]:
        """One build at a time on this store: two at once would time each other's kernels.

        Args:
            waiting: called once when another process is building now, before waiting for it.
        """
        with FileLock(self._make() / ".build.lock").held(waiting):
            yield

    # --- timing caches ------------------------------------------------------------------------

    def read_timing(self, machine: Machine) -> bytes:
        """What TensorRT remembers of kernel timings for this machine; empty when there is nothing."""
        try:
            return self._timing(machine).read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as problem:
            raise StorageError(f"cannot read {self._timing(machine)}: {problem.strerror}") from problem

    def write_timing(self, machine: Machine, data: bytes) -> None:
        """Keep a timing cache; errors as in `put`."""
        with self._locked():
            path = self._timing(machine)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            write_atomic(path, data, mode=0o600)

    def _timing(self, machine: Machine) -> Path:
        # The driver is not part of it: TensorRT itself refuses a cache that does not fit.
        what = f"{machine.tensorrt}|{machine.gpu}|{machine.compute_capability}|{machine.multiprocessors}"
        return self.folder / _TIMING / f"{hashlib.sha256(what.encode()).hexdigest()[:32]}.cache"

    # --- the engine that runs -----------------------------------------------------------------

    def active(self) -> Active:
        """Which engine runs, and which ran before it.

        Raises:
            InputError: `active.json` is damaged; says what mends it.
        """
        path = self.folder / _ACTIVE
        if not path.exists():
            return Active(None, None)
        found = read_json(path)
        if (
            not isinstance(found, dict)
            or found.get("kind") != _ACTIVE_KIND
            or found.get("version") != _ACTIVE_VERSION
        ):
            raise InputError(f"{path} does not say which engine is active; run `edge-agent calibrate` again")
        try:
            return Active(_record(found["current"]), _record(found["previous"]))
        except (KeyError, TypeError, ValueError) as problem:
            raise InputError(f"{path} is damaged ({problem}); run `edge-agent calibrate` again") from problem

    def switch(self, record: Mapping[str, Any]) -> Active:
        """Make an engine the active one and keep the one before it; the same record again changes nothing.

        A damaged `active.json` is put into the quarantine: there is then no engine to go back to.

        Raises:
            InputError: the record lacks something, or names a file that is not there.
            StorageError: the folder cannot be written.
        """
        try:
            wanted = _record(dict(record))
        except (TypeError, ValueError) as problem:
            raise InputError(f"not a record of an engine: {problem}") from problem
        assert wanted is not None
        with self._locked():
            self._check_files(wanted)
            try:
                before = self.active()
            except InputError as problem:
                self._set_aside([self.folder / _ACTIVE], str(problem))
                before = Active(None, None)
            if before.current == wanted:
                return before
            return self._write_active(Active(wanted, before.current))

    def rollback(self) -> Active:
        """Make the engine before the present one active again; a second time undoes the first.

        Raises:
            InputError: there is none, or a file of it is gone.
            StorageError: the folder cannot be written.
        """
        if not self.folder.is_dir() or (before := self.active()).previous is None:
            raise InputError(
                f"{self.folder} knows no engine before the present one; `edge-agent calibrate` makes engines"
            )
        with self._locked():
            before = self.active()
            if before.previous is None:
                raise InputError(f"{self.folder} knows no engine before the present one any more")
            self._check_files(before.previous)
            return self._write_active(Active(before.previous, before.current))

    def _check_files(self, record: Mapping[str, Any]) -> None:
        for name in record["files"]:
            if not (self.folder / name).is_file():
                raise InputError(
                    f"engine {record['name']!r} needs {self.folder / name}, which is not there; "
                    "run `edge-agent calibrate` again"
                )

    def _write_active(self, active: Active) -> Active:
        document = {"kind": _ACTIVE_KIND, "version": _ACTIVE_VERSION, **asdict(active)}
        write_json_atomic(self.folder / _ACTIVE, document)
        return active

    # --- looking after them -------------------------------------------------------------------

    def entries(self, machine: Machine | None = None, *, digests: bool = False) -> list[PlanEntry]:
        """All plans, the last used first.

        Args:
            machine: what they are compared with; None where there is no GPU to ask.
            digests: whether every plan is read and compared with its digest.

        Raises:
            InputError: `active.json` is damaged.
            StorageError: the folder cannot be used.
        """
        if not self.folder.is_dir():
            return []
        with self._locked():
            active = self.active()
            found = [self._entry(key, active, machine, digests=digests) for key in self._keys()]
        return sorted(found, key=lambda entry: (-entry.used, entry.key))

    def prune(self, keep: Collection[str] = (), *, unused_s: float = 0.0) -> Pruned:
        """Remove plans that nothing needs, the quarantine, and what interrupted writes left.

        Plans of the active engine and of the one before it stay, whatever is asked for; also those for
        another TensorRT or driver, which may come back.

        Args:
            keep: keys of other plans that stay.
            unused_s: plans that were built or loaded within this many seconds stay.

        Raises:
            InputError: `active.json` is damaged; nothing is removed, since it is not known what is in use.
            StorageError: the folder cannot be used.
        """
        if not self.folder.is_dir():
            return Pruned((), 0, 0)
        with self._locked():
            active = self.active()
            unused_since = time.time() - unused_s
            gone = [
                entry.key
                for entry in (self._entry(key, active, None, digests=False) for key in self._keys())
                if entry.key not in keep and entry.role is None and entry.used <= unused_since
            ]
            freed = sum(_remove(path) for key in gone for path in (self._manifest(key), self._plan(key)))
            litter = [*self.folder.glob("*/.*.tmp"), *self.folder.glob(".*.tmp")]
            litter += (self.folder / _QUARANTINE).glob("*")
            freed += sum(map(_remove, litter))
        return Pruned(tuple(gone), len(litter), freed)

    def _keys(self) -> list[str]:
        names = {path.stem for pattern in ("*.plan", "*.json") for path in self.folder.glob(pattern)}
        return sorted(name for name in names if _KEY.fullmatch(name))

    def _used(self, key: str) -> float:
        for path in (self._manifest(key), self._plan(key)):
            with contextlib.suppress(FileNotFoundError):
                return path.stat().st_mtime
        return 0.0

    def _entry(self, key: str, active: Active, machine: Machine | None, *, digests: bool) -> PlanEntry:
        plan = self._plan(key)
        manifest, verdict, problem = self._judge(key, machine, digests=digests)
        data = manifest.data if manifest is not None else {"facts": {}, "recipe": {}, "machine": {}}
        return PlanEntry(
            key=key,
            bytes=plan.stat().st_size if plan.is_file() else None,
            created=manifest.created if manifest is not None else None,
            used=self._used(key),
            model=data["facts"].get("model"),
            precision=data["recipe"].get("precision"),
            profiles=tuple(data["recipe"].get("profiles", ())),
            machine=data["machine"],
            role=active.role(key, data["recipe"].get("graph_sha256")),
            verdict=verdict,
            problem=problem,
        )

    def _judge(
        self, key: str, machine: Machine | None, *, digests: bool
    ) -> tuple[Manifest | None, Verdict, str]:
        try:
            manifest = self._read_manifest(key)
            _check_plan(self._plan(key), manifest.files[f"{key}.plan"], digests=digests)
        except InputError as problem:
            return None, "damaged", str(problem)
        if why := self._foreign(manifest):
            return manifest, "foreign", why
        if machine is None:
            return manifest, "unchecked", ""
        why = self._stale(manifest, machine)
        return manifest, "stale" if why else "ok", why

    def _read_manifest(self, key: str) -> Manifest:
        """The manifest of a key, checked; InputError says what is wrong."""
        path = self._manifest(key)
        if not path.is_file():
            raise InputError(f"{path} is missing: writing the plan was interrupted")
        manifest = Manifest.read(path, kind=_KIND, version=_VERSION)
        if f"{key}.plan" not in manifest.files or manifest.data.get("key") != key:
            raise InputError(f"{path} describes another plan than {key}.plan")
        for part in ("machine", "recipe", "facts"):
            if not isinstance(manifest.data.get(part), dict):
                raise InputError(f"{path} is a damaged manifest: `{part}` is not an object")
        return manifest

    def _foreign(self, manifest: Manifest) -> str:
        """Why it is not a plan of this device; empty when it is."""
        if manifest.data.get("host") != self._host:
            return "it was built on another device; a plan is executable content and is built where it runs"
        return ""

    def _stale(self, manifest: Manifest, machine: Machine) -> str:
        """In what this machine is not the one that it was built for; empty when it is."""
        differences = machine.differences(manifest.data["machine"])
        return f"it was built for {', '.join(differences)}" if differences else ""

    def _quarantine(self, key: str, why: str) -> None:
        self._set_aside([self._manifest(key), self._plan(key)], why)

    def _set_aside(self, paths: list[Path], why: str) -> None:
        """Move files into the quarantine, where only the newest few cases are kept."""
        folder = self.folder / _QUARANTINE
        folder.mkdir(mode=0o700, exist_ok=True)
        cases = sorted({int(path.name.split("-", 1)[0]) for path in folder.glob("[0-9]*-*")})
        case = cases[-1] + 1 if cases else 1
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                path.replace(folder / f"{case:06d}-{path.name}")
        reason = {"why": why, "time": time.time(), "files": [path.name for path in paths]}
        write_json_atomic(folder / f"{case:06d}-reason.json", reason)
        for old in [*cases, case][:-_QUARANTINED]:
            for path in folder.glob(f"{old:06d}-*"):
                path.unlink()
        _log.warning("plan_quarantined", why=why, files=[path.name for path in paths], folder=str(folder))

    def _plan(self, key: str) -> Path:
        return self.folder / f"{key}.plan"

    def _manifest(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def _make(self) -> Path:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as problem:
            raise StorageError(f"cannot make the folder {self.folder}: {problem.strerror}") from problem
        return self.folder

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with FileLock(self._make() / ".lock").held():
            try:
                yield
            except OSError as problem:
                raise StorageError(f"cannot use {self.folder}: {problem}") from problem


def _read_plan(path: Path, record: FileRecord) -> bytes:
    """The bytes of a plan, which are those that its manifest describes."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as problem:
        raise InputError(_missing(path)) from problem
    if hashlib.sha256(data).hexdigest() != record.sha256:
        raise InputError(_differs(path))
    return data


def _check_plan(path: Path, record: FileRecord, *, digests: bool) -> None:
    if not path.is_file():
        raise InputError(_missing(path))
    if digests and sha256_file(path) != record.sha256:
        raise InputError(_differs(path))


def _missing(path: Path) -> str:
    return f"{path} is missing, though its manifest is there"


def _differs(path: Path) -> str:
    return f"{path} is not the plan that was written: its sha256 differs from its manifest's"


def _uses(record: Mapping[str, Any] | None, key: str, graph_sha256: str | None) -> bool:
    if record is None:
        return False
    return f"{key}.plan" in record["files"] or graph_sha256 in record.get("graphs", ())


def _record(found: object) -> dict[str, Any] | None:
    """A record of an engine, checked; ValueError or TypeError says what is wrong."""
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


def _remove(path: Path) -> int:
    """Unlink a file: the bytes that it had, 0 when it is not there."""
    with contextlib.suppress(FileNotFoundError):
        size = path.stat().st_size
        path.unlink()
        return size
    return 0
