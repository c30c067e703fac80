"""Permissions of what must stay private: the state folder, and files that contain a secret."""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

_OTHERS = 0o077
"""Bits of group and others."""
_STATE_FILES = re.compile(
    r"\.?(?:gallery\.db|outbox\.db|metropolis\.db|crops-[a-z0-9_-]+\.sqlite|audit\.jsonl|starts\.json|clock\.json"
    r"|status\.sock|page\.sock|page-users|page-link|recordings|golden|engines|models|colour-stripes)(?:\b.*)?"
)
"""Names of the agent's files and folders in the state folder, with what SQLite and atomic writes append."""
_SHARED = "models"
"""Networks: fetched for the service by another user, and no secret."""


def private_folder(path: Path) -> None:
    """Make a folder and its missing parents, with mode 0700 under any umask; OSError: it cannot be made."""
    missing = [one for one in (path, *path.parents) if not os.path.exists(one)]  # noqa: PTH110 - False for all errors
    for one in reversed(missing):
        with suppress(FileExistsError):
            one.mkdir(mode=0o700)
    path.mkdir(mode=0o700, exist_ok=True)  # raises where it is not a folder


def make_private(folder: Path) -> list[str]:
    """Take the rights of group and others from the agent's files in the state folder; return their names.

    Earlier versions left some readable, and so does a copy with `cp`. The folder itself changes only where
    it holds nothing else. Links are not followed, and files of another user stay as they are.
    """
    changed: list[str] = []
    names = _names(folder)
    own = [name for name in names if _STATE_FILES.fullmatch(name)]
    for name in sorted(set(own) - {_SHARED}):
        changed += [str(one.relative_to(folder)) for one in _tree(folder / name) if _tighten(one)]
    if names and len(own) == len(names) and _tighten(folder):
        changed.append(".")
    return changed


def is_open(folder: Path) -> bool:
    """Whether others may list or change a folder."""
    return bool(folder.stat().st_mode & _OTHERS)


def exposed(files: Iterable[Path]) -> Iterator[Path]:
    """Yield the existing files that every user may read or change. Group rights are a choice of the owner."""
    for path in files:
        with suppress(OSError, ValueError):
            if path.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH):
                yield path


def remedy(path: Path) -> str:
    """Return the command that takes the rights of all others from a file."""
    return f"chmod o= {shlex.quote(str(path))}"


def _names(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except OSError:  # reported by what uses it
        return []


def _tree(path: Path) -> Iterator[Path]:
    """Yield a file, or a folder and all that it contains; what a link names is not looked at."""
    yield path
    if not path.is_symlink():
        for top, folders, files in os.walk(path):
            yield from (Path(top, name) for name in folders + files)


def _tighten(path: Path) -> bool:
    """Remove the rights of group and others from one file or folder; False where it had none or stays."""
    try:
        found = path.lstat()
        if not found.st_mode & _OTHERS or found.st_uid != os.geteuid() or stat.S_ISLNK(found.st_mode):
            return False
        # A link that takes its place meanwhile must not change another file. With O_PATH, closing the
        # descriptor does not end the locks that SQLite has in this process.
        descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISLNK(mode):
                Path(f"/proc/self/fd/{descriptor}").chmod(stat.S_IMODE(mode) & ~_OTHERS)
        finally:
            os.close(descriptor)
    except OSError:
        return False
    return True
