"""Atomic files, and the JSON manifest that describes an artefact.

A manifest is stored next to its artefact::

    {"kind": "embeddings", "version": 1, "created": "2024-05-01T10:00:00Z", "agent": "0.1.0",
     "files": {"query.npy": {"sha256": "...", "bytes": 81920}}, "data": {...}}

Names in `files` are relative to the folder of the manifest; the kind defines `data`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from edge_agent import __version__
from edge_agent.core.errors import DiskFull, InputError, StorageError
from edge_agent.core.files import read_json, sha256_file
from edge_agent.core.text import encodable_json


@contextlib.contextmanager
def atomic_file(path: Path, *, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Open a binary file that replaces `path` as a whole when the block ends without error.

    The bytes go to a hidden file in the same folder, which is synchronised and renamed to `path`, or removed
    after an error. The folder is synchronised too, so the new file survives a power loss. `mode` holds the
    permissions before the umask: 0o600 for private files.

    DiskFull: no space is left; an old file is unchanged. StorageError: the folder is missing or not writable,
    or `path` is a folder or a device.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise StorageError(f"cannot write {path}: it exists and is not a regular file; name another path")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with os.fdopen(descriptor, "wb") as handle:
                yield handle
                handle.flush()
                os.fsync(handle.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as problem:
        raise write_error(path, problem) from problem


def sync_folder(folder: Path) -> None:
    """Synchronise `folder`, so that a rename survives a power loss."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # some network file systems do not support it
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_folder(path: Path) -> None:
    """Raise InputError, before a long run, where the folder of a result does not exist or takes no files."""
    folder = path.parent
    if not folder.is_dir():
        raise InputError(f"cannot write {path}: the folder {folder} does not exist; make it first")
    if not os.access(folder, os.W_OK | os.X_OK) and not os.access(path, os.W_OK):
        raise InputError(f"cannot write {path}: this user may not write to the folder {folder}")


def write_error(path: Path, problem: OSError, *, role: str = "") -> StorageError:
    """Return the StorageError or DiskFull for a failed write; `role` precedes the path in its message."""
    name = f"{role} {path}".lstrip()
    if problem.errno in {errno.ENOSPC, errno.EDQUOT}:
        return DiskFull(f"cannot write {name}: no space is left on its disk; free some and try again")
    if problem.errno == errno.ENXIO:
        return StorageError(f"cannot write {name}: it is a pipe that nobody reads, or a socket; name a file")
    if problem.errno == errno.ENOENT:
        return StorageError(f"cannot write {name}: the folder {path.parent} does not exist; create it first")
    return StorageError(f"cannot write {name}: {problem.strerror or problem}")


def write_atomic(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Write a file atomically; errors as in `atomic_file`."""
    with atomic_file(path, mode=mode) as handle:
        handle.write(data)


def write_json_atomic(path: Path, document: Mapping[str, Any] | Sequence[Any], *, mode: int = 0o666) -> None:
    """Write a document atomically as `json_bytes`; errors as in `atomic_file`, and ValueError as there."""
    write_atomic(path, json_bytes(document), mode=mode)


def json_bytes(document: Mapping[str, Any] | Sequence[Any]) -> bytes:
    """Return a document as indented UTF-8 JSON.

    ValueError: it contains NaN or infinity, which JSON cannot represent.
    """
    text = json.dumps(encodable_json(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode()


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Digest and size of one file of an artefact."""

    sha256: str
    bytes: int

    @staticmethod
    def of(path: Path) -> FileRecord:
        """Read digest and size of a file; InputError where it cannot be read."""
        return FileRecord(sha256_file(path), Path(path).stat().st_size)


@dataclass(frozen=True, slots=True)
class Manifest:
    """Description of an artefact of one kind (e.g. `engine`, `calibration`, `embeddings`) and its origin.

    `version` is that of the layout of `data`, and `agent` that of the package that wrote the manifest.
    """

    kind: str
    version: int
    files: dict[str, FileRecord]
    data: dict[str, Any]
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"))
    agent: str = __version__

    def write(self, path: Path) -> None:
        """Write it atomically; errors as in `write_json_atomic`."""
        write_atomic(path, self.encoded())

    def encoded(self) -> bytes:
        """Return the bytes of its file."""
        found = asdict(self)
        order = ("kind", "version", "created", "agent", "files", "data")
        return json_bytes({name: found[name] for name in order})

    @staticmethod
    def read(path: Path, *, kind: str, version: int) -> Manifest:
        """Read and check a manifest; unknown top-level keys are ignored.

        InputError: missing, not JSON, of another kind or version, or malformed.
        """
        return Manifest.parse(path, read_json(path), kind=kind, version=version)

    @staticmethod
    def parse(path: Path, found: object, *, kind: str, version: int) -> Manifest:
        """Check the content of a manifest file; errors as in `read`."""
        if not isinstance(found, dict) or "kind" not in found:
            raise InputError(f"{path} is not a manifest: expected a JSON object with `kind`")
        if found["kind"] != kind:
            raise InputError(f"{path} describes {found['kind']!r}, expected {kind!r}")
        if found.get("version") != version:
            raise InputError(
                f"{path} has layout version {found.get('version')!r}, this program reads {version}; "
                "create the artefact again with this program"
            )
        try:
            data = _object(found["data"])
            files = {_plain_name(name): _record(entry) for name, entry in found["files"].items()}
            return Manifest(kind, version, files, data, str(found["created"]), str(found["agent"]))
        except (KeyError, TypeError, ValueError, AttributeError) as problem:
            what = f"key {problem} is missing" if isinstance(problem, KeyError) else str(problem)
            raise InputError(f"{path} is a damaged manifest: {what}") from problem

    def verify(self, folder: Path) -> None:
        """Raise InputError for the first file that is missing, or differs in size or digest."""
        for name, expected in self.files.items():
            path = Path(folder) / name
            if not path.is_file():
                raise InputError(
                    f"{path} is missing, though its manifest lists it; create the artefact again"
                )
            if path.stat().st_size != expected.bytes or FileRecord.of(path) != expected:
                raise InputError(
                    f"{path} is not the file that its manifest describes (size or sha256 differ)"
                )


def _object(found: object) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise TypeError("`data` is not an object")
    return found


def _plain_name(name: str) -> str:
    """Refuse a name outside the folder of the manifest."""
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or not parts.parts:
        raise ValueError(f"file name {name!r} is outside its folder")
    return name


def _record(entry: dict[str, Any]) -> FileRecord:
    digest, size = entry["sha256"], entry["bytes"]
    if not (isinstance(digest, str) and len(digest) == hashlib.sha256().digest_size * 2):
        raise ValueError(f"{digest!r} is not a SHA-256 digest")
    return FileRecord(digest, int(size))
