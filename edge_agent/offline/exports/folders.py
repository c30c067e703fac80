"""Folders of several files that appear as a whole, or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from edge_agent.core.errors import InputError, StorageError
from edge_agent.core.files import read_error, shown
from edge_agent.core.manifest import sync_folder, write_error


def check_target(target: Path, own: Collection[str], *, overwrite: bool) -> None:
    """Raise InputError where `write_folder` would refuse `target`, before anything is computed.

    `own` are the files that such an export may have, relative to the folder.
    """
    try:
        _check(target, own, overwrite=overwrite)
    except OSError as problem:
        raise read_error(target, problem) from problem


def _check(target: Path, own: Collection[str], *, overwrite: bool) -> None:
    if not os.path.lexists(target):
        return
    name = shown(target)
    if target.is_symlink() or not target.is_dir():
        raise InputError(f"{name} exists and is not a folder; name another, or remove it")
    if not overwrite:
        raise InputError(f"{name} exists already: name another folder, or give --overwrite to replace it")
    parts = {Path(path).parts[0] for path in own}
    for found in target.rglob("*"):
        inside = found.relative_to(target).as_posix()
        if inside not in own and not (inside in parts and found.is_dir() and not found.is_symlink()):
            raise InputError(
                f"{shown(found)} is not of an earlier export, so {name} is not replaced; move it away, or "
                "name another folder"
            )


def write_folder(
    target: Path,
    files: Mapping[str, bytes],
    own: Collection[str],
    *,
    overwrite: bool = False,
    scratch: Path | None = None,
) -> None:
    """Write `files`, by relative path, as the folder `target`.

    They are written and synchronised in a hidden folder beside `target`, or in `scratch` on the same disk,
    which is then renamed. With `overwrite`, a folder with nothing but files of `own` is replaced.

    Raises:
        InputError: as `check_target`.
        DiskFull, StorageError: it cannot be written; the former folder is unchanged.
    """
    check_target(target, own, overwrite=overwrite)
    draft = (scratch or target.parent) / f".{target.name}.{secrets.token_hex(4)}.tmp"
    try:
        with _removed_after(draft):
            for name, data in files.items():
                path = draft / name
                path.parent.mkdir(parents=True, exist_ok=True)
                _write(path, data)
            for folder in sorted({(draft / name).parent for name in files}, reverse=True):
                sync_folder(folder)
            _swap(draft, target)
            sync_folder(target.parent)
    except OSError as problem:
        raise write_error(target, problem) from problem


@contextlib.contextmanager
def _removed_after(draft: Path) -> Iterator[None]:
    try:
        yield
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _swap(draft: Path, target: Path) -> None:
    """Rename `draft` to `target`; a folder that was there is removed, or put back where that fails."""
    if not target.exists():
        draft.rename(target)
        return
    former = draft.with_name(f"{draft.name}.old")
    target.rename(former)
    try:
        draft.rename(target)
    except BaseException:
        former.rename(target)
        raise
    try:
        shutil.rmtree(former)
    except OSError as problem:
        raise StorageError(
            f"{shown(target)} is written, but the former one cannot be removed ({problem.strerror}): remove "
            f"{shown(former)}"
        ) from problem
