"""Atomic writes and manifests."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.core.errors import DiskFull, InputError, StorageError
from edge_agent.core.files import read_json, sha256_file
from edge_agent.core.manifest import (
    FileRecord,
    Manifest,
    atomic_file,
    write_atomic,
    write_json_atomic,
)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _write_half(target: Path, problem: Exception) -> None:
    with atomic_file(target) as handle:
        handle.write(b"half")
        raise problem


def test_write_atomic_replaces_the_content_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "state.json"
    write_atomic(target, b"old")
    write_atomic(target, b"new")
    assert target.read_bytes() == b"new"
    assert _names(tmp_path) == ["state.json"]


def test_a_failure_inside_the_block_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"
    write_atomic(target, b"good")
    with pytest.raises(RuntimeError):
        _write_half(target, RuntimeError("stopped in the middle"))
    assert target.read_bytes() == b"good"
    assert _names(tmp_path) == ["model.onnx"]


def test_a_killed_writer_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"
    write_atomic(target, b"good")
    program = (
        "import os, signal, sys; from pathlib import Path; from edge_agent.core.manifest import atomic_file\n"
        "with atomic_file(Path(sys.argv[1])) as f:\n"
        "    f.write(b'half'); f.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(target)], check=False)
    assert target.read_bytes() == b"good"


def test_full_disk_is_its_own_error(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match="no space"):
        _write_half(tmp_path / "x", OSError(errno.ENOSPC, "No space left on device"))
    assert _names(tmp_path) == []


def test_missing_folder_device_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="does not exist"):
        write_atomic(tmp_path / "nowhere" / "x", b"")
    with pytest.raises(StorageError, match="not a regular file"):
        write_atomic(tmp_path, b"")
    with pytest.raises(StorageError, match="not a regular file"):
        write_atomic(Path("/dev/null"), b"")


def test_permissions_follow_mode_and_umask(tmp_path: Path) -> None:
    write_atomic(tmp_path / "secret", b"", mode=0o600)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


def test_json_round_trip_and_refusal_of_nan(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json_atomic(path, {"ä": [1, 2.5, None]})
    assert read_json(path) == {"ä": [1, 2.5, None]}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json_atomic(path, {"x": float("nan")})


@pytest.mark.parametrize(
    ("content", "message"),
    [(b'{"a": }', "line 1, column 7"), (b"\xff\xfe\xfa", "not UTF-8"), (None, "No such file")],
)
def test_read_json_describes_the_fault(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_json(path)


def test_sha256_file(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(b"x" * 3_000_001)
    assert sha256_file(path) == hashlib.sha256(b"x" * 3_000_001).hexdigest()
    with pytest.raises(InputError, match="cannot read"):
        sha256_file(tmp_path / "none")


def _written(tmp_path: Path) -> tuple[Path, Manifest]:
    (tmp_path / "q.npy").write_bytes(b"vectors")
    manifest = Manifest("embeddings", 1, {"q.npy": FileRecord.of(tmp_path / "q.npy")}, {"rows": 3})
    manifest.write(tmp_path / "manifest.json")
    return tmp_path / "manifest.json", manifest


def test_a_document_with_the_name_of_any_file_is_read_again(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.onnx")
    write_json_atomic(tmp_path / "a.json", {"model": name, "files": ({name: [1.5, None, True]},)})
    assert read_json(tmp_path / "a.json") == {
        "model": r"caf\udce9.onnx",
        "files": [{r"caf\udce9.onnx": [1.5, None, True]}],
    }


def test_a_file_of_another_size_is_not_read(tmp_path: Path) -> None:
    path, manifest = _written(tmp_path)
    os.truncate(tmp_path / "q.npy", 1 << 40)  # sparse; its digest would take an hour
    with pytest.raises(InputError, match=r"q\.npy is not the file that its manifest describes"):
        manifest.verify(path.parent)


def test_manifest_round_trip_and_verification(tmp_path: Path) -> None:
    path, manifest = _written(tmp_path)
    back = Manifest.read(path, kind="embeddings", version=1)
    assert back == manifest
    back.verify(tmp_path)


def test_manifest_of_another_file_is_noticed(tmp_path: Path) -> None:
    path, manifest = _written(tmp_path)
    (tmp_path / "q.npy").write_bytes(b"vector5")
    with pytest.raises(InputError, match="differ"):
        manifest.verify(tmp_path)
    (tmp_path / "q.npy").unlink()
    with pytest.raises(InputError, match="missing"):
        Manifest.read(path, kind="embeddings", version=1).verify(tmp_path)


def test_manifest_of_another_kind_or_version_is_refused(tmp_path: Path) -> None:
    path, _ = _written(tmp_path)
    with pytest.raises(InputError, match="describes 'embeddings', expected 'engine'"):
        Manifest.read(path, kind="engine", version=1)
    with pytest.raises(InputError, match="layout version 1"):
        Manifest.read(path, kind="embeddings", version=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"files": {"../../etc/passwd": {"sha256": "0" * 64, "bytes": 1}}}, "is outside its folder"),
        ({"files": {"/etc/passwd": {"sha256": "0" * 64, "bytes": 1}}}, "is outside its folder"),
        ({"files": {"a": {"sha256": "zz", "bytes": 1}}}, "not a SHA-256"),
        ({"files": {"a": {"bytes": 1}}}, "'sha256' is missing"),
        ({"files": []}, "damaged"),
        ({"data": []}, "not an object"),
    ],
)
def test_damaged_manifests_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path, _ = _written(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        Manifest.read(path, kind="embeddings", version=1)
