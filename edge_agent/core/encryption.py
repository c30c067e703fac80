"""The key of encrypted databases, and changing it. `edge_agent.core.sqlite` opens databases.

The key is 32 bytes, written as 64 hexadecimal digits (`openssl rand -hex 32`) in a credential file. It
encrypts what stands on the disk; while the agent runs, its memory holds everything in the clear.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from edge_agent.core.errors import ConfigError, StorageError
from edge_agent.core.sqlite import connect, database_errors, key_literal

__all__ = ["KEY_BYTES", "check_plainness", "database_key", "key_check", "parse_key", "rewrite"]

if TYPE_CHECKING:
    from edge_agent.core.config import StorageSettings

KEY_BYTES = 32

_PLAIN = b"SQLite format 3\0"
"""How a database begins that is not encrypted; SQLCipher puts 16 random bytes there."""
_OVERWRITE_BYTES = 1 << 20


def parse_key(text: str) -> bytes:
    """The key that a credential holds; its text appears in no message.

    Raises:
        ConfigError: not 64 hexadecimal digits.
    """
    hint = f"make one with `openssl rand -hex {KEY_BYTES}`"
    try:
        key = bytes.fromhex(text.strip())
    except ValueError as problem:
        raise ConfigError(f"the database key is not hexadecimal; {hint}") from problem
    if len(key) != KEY_BYTES:
        raise ConfigError(f"the database key has {len(key)} bytes, it must have {KEY_BYTES}; {hint}")
    return key


def database_key(settings: StorageSettings) -> bytes | None:
    """Return the configured key of gallery and outbox; None: they are plain.

    Raises:
        ConfigError: what is set is no key.
    """
    secret = "" if settings.key is None else settings.key.get_secret_value()
    return parse_key(secret) if secret.strip() else None  # systemd supplies an absent credential as empty


def key_check(key: bytes | None) -> int:
    """A number below 2**64 that tells keys apart and tells nothing about them; 0 without a key."""
    return 0 if key is None else int.from_bytes(hashlib.sha256(b"edge-agent" + key).digest()[:8], "little")


def check_plainness(path: Path, key: bytes | None) -> None:
    """Refuse a database that is encrypted while there is no key, or is not while there is one.

    Raises:
        StorageError: it does not fit; says what mends it.
    """
    beginning = _beginning(path)
    if not beginning:
        return
    if key is not None and beginning == _PLAIN:
        raise StorageError(
            f"{path} is not encrypted, but storage.key is set; encrypt what is there with"
            f" `edge-agent rekey --state {path.parent}`, or run without the key"
        )
    if key is None and beginning != _PLAIN:
        raise StorageError(
            f"{path} is encrypted, and no key is given, or it is damaged; put the key it was made with into"
            " the credential file storage__key. If it never was encrypted, move it away together with its"
            " -wal and -shm files and restore the last export: edge-agent gallery import FILE"
        )


def _beginning(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(len(_PLAIN))
    except FileNotFoundError:
        return b""


def rewrite(path: Path, old: bytes | None, new: bytes | None) -> bool:
    """Write a database anew under another key (None: plain), in its place, whole or not at all.

    What the old file held is overwritten with zeros afterwards. Nobody else may have it open.

    Args:
        path: the database.
        old: the key that it was made with; not needed where it is plain.
        new: the key that it shall have.

    Returns:
        False where it had the new key already.

    Raises:
        ConfigError: SQLCipher is not installed.
        StorageError: neither key opens it, it is in use, or the disk refuses.
    """
    beside = path.with_name(path.name + ".rekeyed")
    if _opens(path, new):
        return False
    source = None if _beginning(path) == _PLAIN else old
    if not _opens(path, source):
        raise StorageError(
            f"{path} opens with neither key, or is in use; name the key it was made with by --old-key FILE,"
            " and stop the agent"
        )
    _remove(beside)
    try:
        _copy(path, source, beside, new)
        with path.open("r+b") as former:
            beside.replace(path)
            _sync_folder(path.parent)  # before the old file is overwritten
            for suffix in ("-wal", "-shm"):  # the copy has taken in what stood there
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            _overwrite(former.fileno())
    except database_errors(OSError) as problem:
        raise StorageError(f"cannot write {path} under another key: {problem}; it is as it was") from problem
    finally:
        _remove(beside)
    return True


def _opens(path: Path, key: bytes | None) -> bool:
    """Whether this is the key, and nobody else uses the database."""
    if (key is None) != (_beginning(path) == _PLAIN):
        return False
    with contextlib.closing(connect(path, key=key, timeout_s=1.0)) as database:
        try:
            database.execute("PRAGMA locking_mode = EXCLUSIVE")
            database.execute("BEGIN EXCLUSIVE")
            database.execute("SELECT count(*) FROM sqlite_master").fetchone()
            database.execute("COMMIT")
        except database_errors():
            return False
    return True


def _copy(path: Path, old: bytes | None, target: Path, new: bytes | None) -> None:
    """All tables, and what a database says of itself, into a new file; on the disk when this returns."""
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        former = path.stat()
        os.fchown(descriptor, former.st_uid, former.st_gid)  # root may do this for the service's user
    finally:
        os.close(descriptor)
    with contextlib.closing(connect(path, key=old, cipher=True)) as database:
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        database.execute(f"ATTACH DATABASE ? AS target KEY {key_literal(new)}", (str(target),))
        for name in ("auto_vacuum", "user_version", "application_id"):
            value = int(database.execute(f"PRAGMA main.{name}").fetchone()[0])
            database.execute(f"PRAGMA target.{name} = {value}")
        database.execute("SELECT sqlcipher_export('target')")
        database.execute("DETACH DATABASE target")
    with target.open("rb") as written:
        os.fsync(written.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _overwrite(descriptor: int) -> None:
    """Zeros over a file that nobody reads any more."""
    left = os.fstat(descriptor).st_size
    while left > 0:
        left -= os.write(descriptor, bytes(min(left, _OVERWRITE_BYTES)))
    os.fsync(descriptor)


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
