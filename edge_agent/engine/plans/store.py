"""The store of TensorRT plans: finds only plans that are whole and were built on this device.

`<key>.json` next to `<key>.plan` is its manifest, with the order in plain text and the digest of the plan.
Damaged and foreign plans go to the quarantine (`plans.active`) and are built again. Nothing here needs a
GPU. Several processes may use one folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edge_agent.core.errors import InputError, MissingFile, StorageError
from edge_agent.core.files import MAX_MODEL_BYTES, read_file, sha256_file
from edge_agent.core.host import this_host
from edge_agent.core.manifest import FileRecord, Manifest, write_atomic
from edge_agent.engine.plans.active import Active, ActiveEngine, EnginesFolder
from edge_agent.engine.plans.records import (
    Machine,
    Order,
    PlanEntry,
    Pruned,
    StoredPlan,
    Verdict,
)

_KIND, _VERSION = "plan", 1
_KEY = re.compile("[0-9a-f]{64}")


class PlanStore:
    """Plans in a folder of the device `host`, by default `this_host()`; making it does not touch the disk.

    The folder is made with mode 0700 when the first plan is written. `building` is `EnginesFolder.building`.
    """

    def __init__(self, folder: Path, *, host: str | None = None) -> None:
        self.folder = Path(folder)
        self._host = this_host() if host is None else host
        self._own = EnginesFolder(folder)
        self._active = ActiveEngine(folder)
        self.building = self._own.building

    def find(self, order: Order) -> StoredPlan | None:
        """Return the plan for an order, or None where there is no usable one; StorageError for the folder.

        A damaged or foreign plan goes to the quarantine.
        """
        key = order.key
        if not self._manifest(key).exists():
            return None  # also after an interrupted write: the manifest is written last
        with self._own.locked():
            try:
                manifest = self._read_manifest(key)
                data = _read_plan(self._plan(key), manifest.files[f"{key}.plan"])
            except InputError as problem:
                self._quarantine(key, str(problem))
                return None
            if why := self._foreign(manifest) or _stale(manifest, order.machine):
                self._quarantine(key, why)
                return None
            os.utime(self._manifest(key))  # time of the last use, for `prune`
        return StoredPlan.of(order, data, manifest.data["facts"])

    def put(self, order: Order, data: bytes, facts: Mapping[str, Any]) -> StoredPlan:
        """Store a new plan; replaces a plan with the same key. `facts`: JSON values, with `model`.

        Raises:
            DiskFull, StorageError: no space is left, or the folder cannot be written.
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
        with self._own.locked():
            # A plan without a manifest counts as absent, so a half-written plan is never loaded.
            self._manifest(key).unlink(missing_ok=True)
            write_atomic(self._plan(key), data, mode=0o600)
            manifest = Manifest(_KIND, _VERSION, {f"{key}.plan": record}, noted)
            manifest.write(self._manifest(key))
        return StoredPlan.of(order, data, noted["facts"])

    def quarantine(self, key: str, why: str) -> None:
        """Move a plan and its manifest to the quarantine."""
        with self._own.locked():
            self._quarantine(key, why)

    def read_timing(self, machine: Machine) -> bytes:
        """Return TensorRT's timing cache for this machine, or b""."""
        try:
            return read_file(self._timing(machine), MAX_MODEL_BYTES)
        except MissingFile:
            return b""
        except InputError as problem:
            raise StorageError(str(problem)) from problem

    def write_timing(self, machine: Machine, data: bytes) -> None:
        """Store a timing cache; errors as in `put`."""
        with self._own.locked():
            path = self._timing(machine)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            write_atomic(path, data, mode=0o600)

    def entries(self, machine: Machine | None = None, *, digests: bool = False) -> list[PlanEntry]:
        """Return all plans, the last used first; InputError where `active.json` is damaged.

        They are compared with `machine`, unless there is no GPU; `digests`: every plan is read and checked.
        """
        if not self.folder.is_dir():
            return []
        with self._own.locked():
            active = self._active.read()
            found = [self._entry(key, active, machine, digests=digests) for key in self._keys()]
        return sorted(found, key=lambda entry: (-entry.used, entry.key))

    def prune(self, *, unused_s: float = 0.0) -> Pruned:
        """Remove plans that are not needed, the quarantine, and files of interrupted writes.

        Plans of the last `unused_s` seconds (built or loaded) stay, and those of the active engine and
        of the one before it, also for another TensorRT or driver, which may come back. These seconds end with
        the latest use of any plan, since the wall clock may be ahead.

        Raises:
            InputError: `active.json` is damaged. Nothing is removed, since it is unknown what is in use.
            StorageError: the folder cannot be used.
        """
        if not self.folder.is_dir():
            return Pruned((), 0, 0)
        with self._own.locked():
            active = self._active.read()
            entries = [self._entry(key, active, None, digests=False) for key in self._keys()]
            unused_since = max((entry.used for entry in entries), default=0.0) - unused_s
            gone = [entry.key for entry in entries if entry.role is None and entry.used <= unused_since]
            freed = sum(_remove(path) for key in gone for path in (self._manifest(key), self._plan(key)))
            litter = [*self.folder.glob("*/.*.tmp"), *self.folder.glob(".*.tmp")]
            litter += self._own.quarantine.glob("*")
            freed += sum(map(_remove, litter))
        return Pruned(tuple(gone), len(litter), freed)

    def _plan(self, key: str) -> Path:
        return self.folder / f"{key}.plan"

    def _manifest(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def _timing(self, machine: Machine) -> Path:
        # The driver is not part of the name: TensorRT itself refuses a cache that does not fit.
        what = f"{machine.tensorrt}|{machine.gpu}|{machine.compute_capability}|{machine.multiprocessors}"
        return self.folder / "timing" / f"{hashlib.sha256(what.encode()).hexdigest()[:32]}.cache"

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
            _check_plan(plan := self._plan(key))
            if digests:
                _check_digest(plan, sha256_file(plan), manifest.files[plan.name])
        except InputError as problem:
            return None, "damaged", str(problem)
        if why := self._foreign(manifest):
            return manifest, "foreign", why
        if machine is None:
            return manifest, "unchecked", ""
        why = _stale(manifest, machine)
        return manifest, "stale" if why else "ok", why

    def _read_manifest(self, key: str) -> Manifest:
        """Return the checked manifest of a key; InputError describes what is wrong."""
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
        """Return why the plan is not one of this device, or ""."""
        if manifest.data.get("host") != self._host:
            return "it was built on another device; a plan is executable content and is built where it runs"
        return ""

    def _quarantine(self, key: str, why: str) -> None:
        self._own.set_aside([self._manifest(key), self._plan(key)], why)


def _stale(manifest: Manifest, machine: Machine) -> str:
    """Return how the machine of the plan differs from this one, or ""."""
    differences = machine.differences(manifest.data["machine"])
    return f"it was built for {', '.join(differences)}" if differences else ""


def _read_plan(path: Path, record: FileRecord) -> bytes:
    """Return the bytes of a plan; InputError where they are not those that the manifest describes."""
    _check_plan(path)
    data = read_file(path, record.bytes)
    _check_digest(path, hashlib.sha256(data).hexdigest(), record)
    return data


def _check_plan(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"{path} is missing, though its manifest exists")


def _check_digest(path: Path, found: str, record: FileRecord) -> None:
    if found != record.sha256:
        raise InputError(f"{path} is not the plan that was written: its sha256 differs from the manifest's")


def _remove(path: Path) -> int:
    """Unlink a file; return its size in bytes, or 0 where it does not exist."""
    with contextlib.suppress(FileNotFoundError):
        size = path.stat().st_size
        path.unlink()
        return size
    return 0
