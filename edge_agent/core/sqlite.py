"""SQLite databases, plain or encrypted with SQLCipher: connections, transactions and errors.

Connections are in autocommit mode: outside `transaction`, each statement is its own transaction. They may be
passed between threads, but only one thread may use a connection at a time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from edge_agent.core.distribution import install_command
from edge_agent.core.errors import ConfigError, DiskFull, StorageError

MEMORY = ":memory:"
SIDE_FILES = ("-wal", "-shm", "-journal")
"""Suffixes of the files that SQLite keeps next to a database."""
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_MINIMUM_SPACE = 64 << 10
"""With less free space (bytes), an I/O error is reported as a full disk."""


def connect(
    path: Path | None,
    *,
    key: bytes | None = None,
    timeout_s: float = 10.0,
    pragmas: Mapping[str, str | int] | None = None,
    cipher: bool = False,
) -> sqlite3.Connection:
    """Open or create a database, with mode 0600; SQLite gives its side files the same mode.

    Connections of SQLCipher have the interface of sqlite3, but other error classes, see `database_errors`.
    ConfigError when it is needed and not installed; OSError, or one of `database_errors()`, when the file
    cannot be opened.

    Args:
        path: in an existing folder; None: in memory.
        key: 32 bytes, see `edge_agent.core.encryption`; None: the file is plain.
        timeout_s: how long a statement waits for a lock of another connection.
        pragmas: set in this order.
        cipher: use SQLCipher without a key too, which can attach encrypted databases.
    """
    if path is not None:
        _create(path)
    module: Any = _sqlcipher() if key is not None or cipher else sqlite3
    connection = module.connect(
        MEMORY if path is None else str(path),
        timeout=timeout_s,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        if module is not sqlite3:
            connection.execute("PRAGMA cipher_log_level = NONE")  # it would print what is raised anyway
        if key is not None:
            connection.execute(f"PRAGMA key = {key_literal(key)}")
        for name, value in (pragmas or {}).items():
            connection.execute(f"PRAGMA {name} = {value}")
    except BaseException:
        connection.close()
        raise
    return cast("sqlite3.Connection", connection)


def _create(path: Path) -> None:
    """Create a missing database, and make it private.

    An existing one is not opened: closing a descriptor of it would end the locks of all connections that
    this process has to it (fcntl(2)). A process that closes the file then takes itself for the last one and
    deletes the write-ahead log, and the next change of this process damages the database.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path)) from None
    path.chmod(0o600)


def key_literal(key: bytes | None) -> str:
    """Return a key as SQL: raw, since 32 random bytes need no derivation, which would take longer."""
    return "''" if key is None else f"\"x'{key.hex()}'\""


def _sqlcipher() -> Any:  # noqa: ANN401 - a module without types
    try:
        from sqlcipher3 import dbapi2
    except ImportError as problem:
        raise ConfigError(f"an encrypted database needs SQLCipher: {install_command('encrypt')}") from problem
    return dbapi2


def remove_database(path: Path) -> None:
    """Delete a database and its side files, where they exist."""
    for suffix in ("", *SIDE_FILES):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


@contextlib.contextmanager
def transaction(
    connection: sqlite3.Connection, mode: Literal["DEFERRED", "IMMEDIATE", "EXCLUSIVE"] = "IMMEDIATE"
) -> Iterator[None]:
    """Run the block in one transaction: commit at the end, roll back on an exception.

    `IMMEDIATE` takes the write lock at the start, `EXCLUSIVE` also keeps readers out. With `DEFERRED`, all
    queries of a block that only reads have the same state of the database.
    """
    connection.execute(f"BEGIN {mode}")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        _roll_back(connection)
        raise


def _roll_back(connection: sqlite3.Connection) -> None:
    with contextlib.suppress(*database_errors()):
        if connection.in_transaction:  # on a full disk SQLite has rolled back by itself
            connection.execute("ROLLBACK")


def end_transaction(connection: sqlite3.Connection) -> None:
    """Commit the transaction, if one is open; where that fails, roll it back and raise."""
    if connection.in_transaction:
        try:
            connection.execute("COMMIT")
        except BaseException:
            _roll_back(connection)
            raise


@contextlib.contextmanager
def savepoint(connection: sqlite3.Connection) -> Iterator[None]:
    """Run the block as a part of the open transaction; an exception undoes this part only."""
    connection.execute("SAVEPOINT part")
    try:
        yield
    except BaseException:
        with contextlib.suppress(*database_errors()):
            connection.execute("ROLLBACK TO part")
            connection.execute("RELEASE part")
        raise
    connection.execute("RELEASE part")


def database_errors(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """Return the error classes of sqlite3 and, where it is loaded, of SQLCipher, followed by `more`."""
    loaded = sys.modules.get("sqlcipher3.dbapi2")
    return (sqlite3.Error, *more) if loaded is None else (sqlite3.Error, loaded.Error, *more)


_DAMAGE = (
    "malformed",
    "not a database",
    "file is encrypted",
    "Could not decode",
    "no such table",
    "no such column",
)


def is_damage(problem: Exception) -> bool:
    """Return whether a database error means that the file is damaged, of another kind, or has another key."""
    return any(text in str(problem) for text in _DAMAGE)


def foreign_content(connection: sqlite3.Connection, rules: Mapping[str, str]) -> str | None:
    """Return a description of content that the agent does not write; None where there is none.

    SQLite keeps a value of any type in any column, and runs the triggers of a file. `rules` gives a condition
    for the rows of each table; every row must fulfil it.
    """
    programs = "SELECT 1 FROM sqlite_master WHERE type IN ('trigger', 'view')"
    if connection.execute(programs).fetchone() is not None:
        return "it has triggers or views"
    for table, rule in rules.items():
        query = f"SELECT count(*) FROM {table} WHERE ({rule}) IS NOT 1"  # noqa: S608 - constants
        if count := connection.execute(query).fetchone()[0]:
            return f"the table {table} has {count} row(s) with a value of a wrong type"
    return None


@dataclass(frozen=True, slots=True)
class Description:
    """A database in error messages; `damaged` and `locked` are advice that ends those about such a file."""

    path: Path | None
    damaged: str
    locked: str = "try again when it is done"
    role: str = ""
    """Precedes the path, e.g. "the outbox"."""
    keyed: bool = False

    @property
    def name(self) -> str:
        """Role and path."""
        return f"{self.role} {self.path or MEMORY}".lstrip()

    def translated(self) -> _Translated:
        """Raise errors of SQLite and of the file system as StorageError or DiskFull."""
        return _Translated(self)

    def error(self, problem: Exception) -> StorageError:
        """Return the StorageError or DiskFull that explains an error of SQLite or of the file system."""
        text = str(getattr(problem, "strerror", None) or problem)
        if "locked" in text or "busy" in text:
            return StorageError(f"cannot use {self.name}: another process keeps it locked; {self.locked}")
        if "is full" in text or getattr(problem, "errno", None) in _NO_SPACE or self._out_of_space(problem):
            return DiskFull(f"cannot write {self.name}: no space is left on its disk; free some")
        if is_damage(problem):
            return self.damage(text)
        if isinstance(problem, OSError) or "unable to open" in text or "readonly" in text:
            text = f"cannot open {self.name}: {text}; check the owner and permissions of it and its folder"
        elif "disk I/O" in text:
            text = f"cannot write {self.name}: {text}; check the disk (dmesg) and its limits and quotas"
        else:
            text = f"cannot change {self.name}: {text}"
        return StorageError(text)

    def damage(self, text: str) -> StorageError:
        """Return the error for a damaged file, or one of another key; `text` describes the damage."""
        if self.keyed and "not a database" in text:
            return StorageError(
                f"{self.name} does not open with this key: it was made with another key, or is damaged; put"
                " the right one into the credential file storage__key (`edge-agent rekey --old-key FILE`"
                " changes keys)"
            )
        return StorageError(f"{self.name} is damaged or of another kind ({text}); {self.damaged}")

    def _out_of_space(self, problem: Exception) -> bool:
        """SQLite reports some cases of a full disk as an I/O error or as a file that does not open."""
        if self.path is None or type(problem).__name__ not in ("OperationalError", "OSError"):
            return False
        with contextlib.suppress(OSError):
            left = os.statvfs(self.path.parent)
            return left.f_bavail * left.f_frsize < _MINIMUM_SPACE
        return False


class _Translated:
    """What `Description.translated` returns: a generator takes three times as long, and queries are many."""

    __slots__ = ("_description",)

    def __init__(self, description: Description) -> None:
        self._description = description

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, problem: BaseException | None, trace: object) -> None:
        if isinstance(problem, database_errors(OSError)):
            raise self._description.error(problem) from problem
