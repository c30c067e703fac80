"""The key of encrypted databases, and changing it. `edge_agent.core.sqlite` opens databases.

The key is 32 bytes, written as 64 hexadecimal digits (`openssl rand -hex 32`) in a credential file. It
encrypts the files; the memory of a running agent is not encrypted.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from edge_agent.core import sqlite
from edge_agent.core.errors import ConfigError, StorageError
from edge_agent.core.files import open_regular
from edge_agent.core.manifest import sync_folder

if TYPE_CHECKING:
    from edge_agent.core.config import StorageSettings

_KEY_BYTES = 32
_PLAIN = b"SQLite format 3\0"
"""First bytes of a database that is not encrypted; SQLCipher writes 16 random bytes there."""
_OVERWRITE_BYTES = 1 << 20


def parse_key(text: str) -> bytes:
    """Return the key in a credential; ConfigError, without the text, when it is not 64 hexadecimal digits."""
    hint = f"make one with `openssl rand -hex {_KEY_BYTES}`"
    try:
        key = bytes.fromhex(text.strip())
    except ValueError as problem:
        raise ConfigError(f"the database key is not hexadecimal; {hint}") from problem
    if len(key) != _KEY_BYTES:
        raise ConfigError(f"the database key has {len(key)} bytes, it must have {_KEY_BYTES}; {hint}")
    return key


def database_key(settings: StorageSettings) -> bytes | None:
    """Return the configured key of gallery and outbox; None: they are plain. Errors as in `parse_key`."""
    secret = "" if settings.key is None else settings.key.get_secret_value()
    return parse_key(secret) if secret.strip() else None  # systemd supplies an absent credential as empty


def key_check(key: bytes | None) -> int:
    """Return a number below 2**64 that differs by key and does not reveal it; 0 without a key."""
    return 0 if key is None else int.from_bytes(hashlib.sha256(b"edge-agent" + key).digest()[:8], "little")


def check_plainness(path: Path, key: bytes | None) -> None:
    """Raise StorageError for an encrypted database without a key, and a plain one with a key."""
    if not path.exists() or path.stat().st_size == 0 or _is_plain(path) == (key is None):
        return
    if key is not None:
        raise StorageError(
            f"{path} is not encrypted, but storage.key is set; encrypt the databases with"
            f" `edge-agent rekey --state {path.parent}`, or run without the key"
        )
    raise StorageError(
        f"{path} is encrypted, and no key is given, or it is damaged; put the key it was made with into"
        " the credential file storage__key. If it never was encrypted, move it away together with its"
        " -wal and -shm files and restore the last export: edge-agent gallery import FILE"
    )


def _is_plain(path: Path) -> bool:
    with open_regular(path) as file:
        return file.read(len(_PLAIN)) == _PLAIN


def rewrite(path: Path, old: bytes | None, new: bytes | None) -> bool:
    """Replace a database by a copy under another key (None: plain), completely or not at all.

    The old file is overwritten with zeros. No other process may have it open. `old` is its present key, not
    needed where it is plain. Returns False where it had the new key already.

    Raises:
        ConfigError: SQLCipher is not installed.
        StorageError: neither key opens it, it is in use, or the disk refuses; it is then unchanged.
    """
    if _opens(path, new):
        return False
    present = None if _is_plain(path) else old
    if not _opens(path, present):
        raise StorageError(
            f"{path} opens with neither key, or is in use; name the key it was made with by --old-key FILE,"
            " and stop the agent"
        )
    copy = _copy_of(path)
    sqlite.remove_database(copy)
    try:
        _copy(path, present, copy, new)
        with path.open("r+b") as former:
            copy.replace(path)
            sync_folder(path.parent)  # before the old file is overwritten
            for suffix in sqlite.SIDE_FILES:  # the copy includes their content
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            _overwrite(former.fileno())
    except sqlite.database_errors(OSError) as problem:
        raise StorageError(f"cannot write {path} under another key: {problem}; it is unchanged") from problem
    finally:
        sqlite.remove_database(copy)
    return True


def remove_unfinished(path: Path) -> None:
    """Delete the copy of a database that a killed `rewrite` left; call it while no other can run."""
    sqlite.remove_database(_copy_of(path))


def _copy_of(path: Path) -> Path:
    return path.with_name(path.name + ".rekeyed")


def _opens(path: Path, key: bytes | None) -> bool:
    """Return whether the key fits, and no other process uses the database."""
    if (key is None) != _is_plain(path):
        return False
    with contextlib.closing(sqlite.connect(path, key=key, timeout_s=1.0)) as database:
        try:
            database.execute("PRAGMA locking_mode = EXCLUSIVE")
            with sqlite.transaction(database, "EXCLUSIVE"):
                database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite.database_errors():
            return False
    return True


def _copy(path: Path, old: bytes | None, target: Path, new: bytes | None) -> None:
    """Copy tables and properties to a new file, and wait until it is on the disk."""
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        former = path.stat()
        os.fchown(descriptor, former.st_uid, former.st_gid)  # root may rekey the files of the service's user
        with contextlib.closing(sqlite.connect(path, key=old, cipher=True)) as database:
            database.execute("PRAGMA locking_mode = EXCLUSIVE")
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            database.execute(f"ATTACH DATABASE ? AS target KEY {sqlite.key_literal(new)}", (str(target),))
            for name in ("auto_vacuum", "user_version", "application_id"):
                value = int(database.execute(f"PRAGMA main.{name}").fetchone()[0])
                database.execute(f"PRAGMA target.{name} = {value}")
            database.execute("SELECT sqlcipher_export('target')")
            database.execute("DETACH DATABASE target")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _overwrite(descriptor: int) -> None:
    left = os.fstat(descriptor).st_size
    while left > 0:
        left -= os.write(descriptor, bytes(min(left, _OVERWRITE_BYTES)))
    os.fsync(descriptor)
