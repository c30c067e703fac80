"""The gallery on disk: one SQLite file, which is the truth.

Write-ahead log, one transaction per change, so a `kill -9` at any moment leaves the state before or after
a change and nothing between. Deleted content is overwritten with zeros (`secure_delete`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edge_agent.core.encryption import check_plainness, connect, database_errors
from edge_agent.core.errors import DiskFull, StorageError

__all__ = ["MEMORY", "OwnerLock", "Store"]

MEMORY = ":memory:"

_APPLICATION = 0x45414731  # "EAG1": tells a gallery from any other SQLite file
_LAYOUT = 2
_BUSY_MS = 10_000  # another process holds the lock for one small change; an import may take longer

# `ttl` is an identity's own time to live in seconds, 0 for ever; NULL: that of its kind.
# `pictures` are the tracks of crop folders that show a person; with the person gone, `number` becomes NULL,
# and the pictures have to go, too.
# `revision` changes with an identity's exemplars, so that another process reloads only what changed.
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE fact (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE identity (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    name TEXT UNIQUE,
    kind TEXT NOT NULL CHECK (kind IN ('auto', 'enrolled')),
    created REAL NOT NULL,
    last_seen REAL NOT NULL,
    expires REAL,
    ttl REAL,
    sightings INTEGER NOT NULL,
    revision INTEGER NOT NULL
);
CREATE INDEX identity_by_expiry ON identity (expires) WHERE expires IS NOT NULL;
CREATE INDEX identity_by_age ON identity (kind, last_seen);
CREATE TABLE former (
    id TEXT PRIMARY KEY,
    number INTEGER NOT NULL REFERENCES identity (number) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE INDEX former_by_number ON former (number);
CREATE TABLE exemplar (
    row INTEGER PRIMARY KEY,
    number INTEGER NOT NULL REFERENCES identity (number) ON DELETE CASCADE,
    vector BLOB NOT NULL,
    quality REAL NOT NULL,
    origin TEXT NOT NULL,
    camera TEXT NOT NULL,
    time REAL NOT NULL
);
CREATE INDEX exemplar_by_number ON exemplar (number);
"""
_SINCE_LAYOUT_2 = """
CREATE TABLE pictures (
    camera TEXT NOT NULL,
    track INTEGER NOT NULL,
    since REAL NOT NULL,
    number INTEGER REFERENCES identity (number) ON DELETE SET NULL,
    PRIMARY KEY (camera, track, since)
) WITHOUT ROWID;
CREATE INDEX pictures_by_number ON pictures (number);
"""


class Store:
    """An open gallery file. Statements go through `rows` and, inside `change`, through `run`."""

    def __init__(self, path: Path | None, *, key: bytes | None = None, check: bool = True) -> None:
        """Open or create the file; None keeps everything in memory.

        Args:
            path: of the file.
            key: encrypts it, see `edge_agent.core.encryption`; None: it is plain.
            check: look through the whole file for damage.

        Raises:
            StorageError: not a gallery, damaged, of a newer layout, of another key, or not accessible.
            DiskFull: no space is left to create it.
            ConfigError: there is a key, and SQLCipher is not installed.
        """
        self.path = path
        self._key = key
        with _translated(self.where, keyed=key is not None):
            if path is not None:
                check_plainness(path, key)
                _make_private(path)
            self._connection = _connect(path, key)
            try:
                self._prepare(check=check)
            except BaseException:
                self._connection.close()
                raise

    @property
    def where(self) -> str:
        """The path for people."""
        return MEMORY if self.path is None else str(self.path)

    def close(self) -> None:
        """Close the file; the write-ahead log is folded into it when this was the last process."""
        self._connection.close()

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        with _translated(self.where):
            found: list[tuple[Any, ...]] = self._connection.execute(statement, values).fetchall()
            return found

    def pieces(self, statement: str, size: int) -> Iterator[list[tuple[Any, ...]]]:
        """All rows of a query, so many at a time: a large table is never in memory as Python objects."""
        with _translated(self.where), contextlib.closing(self._connection.execute(statement)) as cursor:
            while rows := cursor.fetchmany(size):
                yield rows

    def value(self, statement: str, values: Sequence[Any] = ()) -> Any:  # noqa: ANN401 - any SQL value
        """First column of the first row, None when there is none."""
        rows = self.rows(statement, values)
        return rows[0][0] if rows else None

    def run(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Execute one statement of a change; SQLCipher's cursor is as that of sqlite3."""
        cursor: sqlite3.Cursor = self._connection.execute(statement, values)
        return cursor

    def run_many(self, statement: str, values: Sequence[Sequence[Any]]) -> None:
        """Execute one statement of a change for each row of values."""
        self._connection.executemany(statement, values)

    @contextlib.contextmanager
    def change(self, *, durable: bool = True) -> Iterator[None]:
        """One transaction: all of the block is stored, or none of it.

        Args:
            durable: wait until the change would survive a power cut. Without it a power cut may undo the
                last changes (never a part of one); a killed process loses nothing either way.
        """
        with _translated(self.where):
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # SQLite has rolled back by itself when the disk is full
                    self._connection.execute("ROLLBACK")
                raise

    def changed_outside(self) -> int:
        """A number that differs from the last one when another connection has changed the file."""
        return int(self.value("PRAGMA data_version"))

    def meta(self, key: str) -> Any:  # noqa: ANN401 - any SQL value
        """A property of the gallery itself, None when it was never set."""
        return self.value("SELECT value FROM meta WHERE key = ?", (key,))

    def put_meta(self, key: str, value: Any) -> None:  # noqa: ANN401 - any SQL value
        """Set a property of the gallery itself, inside a change."""
        self.run("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Let all queries of the block see the same state, whatever other processes write meanwhile."""
        with _translated(self.where):
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                self._connection.execute("COMMIT")

    def scrub(self, *, wait: bool) -> bool:
        """Give the pages of deleted rows back, and empty the write-ahead log, which has copies of them.

        `secure_delete` has zeroed the rows; a whole VACUUM would add nothing to that, but rewrite the file,
        which takes seconds at 10,000 identities and wears flash. Works on a connection of its own, so that
        this store can be used meanwhile.

        Args:
            wait: for other processes that are just reading the log, ten seconds at most.

        Returns:
            whether the log could be emptied.
        """
        if self.path is None:
            return True
        deadline = time.monotonic() + (_BUSY_MS / 1000 if wait else 0.0)
        with (
            _translated(self.where),
            contextlib.closing(_connect(self.path, self._key, _BUSY_MS if wait else 0)) as connection,
        ):
            while not _emptied(connection):
                # SQLite's own wait does not cover every way in which two connections meet.
                if time.monotonic() >= deadline:
                    return False
                time.sleep(0.01)
        return True

    def file_bytes(self) -> int:
        """Size on disk, with the write-ahead log."""
        if self.path is None:
            return 0
        beside = (self.path, self.path.with_name(self.path.name + "-wal"))
        return sum(file.stat().st_size for file in beside if file.exists())

    def _prepare(self, *, check: bool) -> None:
        layout = self._connection.execute("PRAGMA user_version").fetchone()[0]
        tables = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if not tables:
            self._create()
            return
        if self._connection.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION:
            raise StorageError(f"{self.where} is an SQLite file, but not a gallery; name another path")
        if layout == 1:
            self._take_over_layout_1()
        elif layout != _LAYOUT:
            raise StorageError(
                f"{self.where} has layout {layout}, this edge-agent reads {_LAYOUT}; "
                "run the version that wrote it, export the gallery there and import it here"
            )
        verdict = self._connection.execute("PRAGMA quick_check(1)").fetchone()[0] if check else "ok"
        if verdict != "ok":
            raise _damaged(self.where, verdict)

    def _take_over_layout_1(self) -> None:
        with self.change():
            if self._connection.execute("PRAGMA user_version").fetchone()[0] == _LAYOUT:
                return  # another process was faster
            self._connection.execute("ALTER TABLE identity ADD COLUMN ttl REAL")
            for statement in _SINCE_LAYOUT_2.split(";"):
                self._connection.execute(statement)
            self._connection.execute(f"PRAGMA user_version = {_LAYOUT}")

    def _create(self) -> None:
        with self.change():
            if self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                return  # another process was faster
            for statement in (_SCHEMA + _SINCE_LAYOUT_2).split(";"):
                self._connection.execute(statement)
            self._connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            self._connection.execute(f"PRAGMA user_version = {_LAYOUT}")


class OwnerLock:
    """Held by the one process that keeps a gallery's index for a live system."""

    def __init__(self, gallery: Path) -> None:
        self._path = gallery.with_name(gallery.name + ".lock")
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Take the lock; False when another process has it. It is freed by `release` or the process's end."""
        with _translated(str(self._path)):
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return False
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
        self._descriptor = descriptor
        return True

    def holder(self) -> str:
        """Process id of whoever has the lock, for messages."""
        with contextlib.suppress(OSError):
            return self._path.read_text().strip() or "unknown"
        return "unknown"

    def release(self) -> None:
        """Give the lock back, if it is held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _connect(path: Path | None, key: bytes | None, busy_ms: int = _BUSY_MS) -> Any:  # noqa: ANN401 - of sqlite3 or sqlcipher3
    """A connection in autocommit mode (transactions are explicit), for one thread at a time."""
    connection = connect(
        MEMORY if path is None else path,
        key=key,
        isolation_level=None,
        check_same_thread=False,
        timeout=busy_ms / 1000,
    )
    try:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # takes effect in a new file only
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA journal_size_limit = 0")  # a folded log does not stay on disk
    except BaseException:
        connection.close()
        raise
    return connection


def _emptied(connection: Any) -> bool:  # noqa: ANN401 - of sqlite3 or sqlcipher3
    """Give free pages back and fold the log into the file; False when somebody else is at it."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.execute("PRAGMA incremental_vacuum").fetchall()
        finally:
            connection.execute("COMMIT")
        busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except database_errors() as problem:
        if "locked" not in str(problem):
            raise
        return False
    return not busy


def _make_private(path: Path) -> None:
    """Make the folder (0700) and the file (0600); SQLite gives its side files the same mode."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _translated(where: str, *, keyed: bool = False) -> Iterator[None]:
    """Turn errors of SQLite and of the file system into this package's, with the way out."""
    try:
        yield
    except database_errors() as problem:
        if keyed and "not a database" in str(problem):
            raise StorageError(
                f"{where} does not open with this key: it was made with another, or is damaged; put that one"
                " into the credential file storage__key (`edge-agent rekey --old-key FILE` changes keys)"
            ) from problem
        raise _explained(where, problem) from problem
    except OSError as problem:
        raise StorageError(f"cannot open {where}: {problem.strerror or problem}") from problem


def _explained(where: str, problem: Exception) -> StorageError:
    text = str(problem)
    if "disk is full" in text:
        return DiskFull(f"cannot write {where}: no space is left on its disk; free some and try again")
    if "locked" in text or "busy" in text:
        return StorageError(
            f"cannot change {where}: another process keeps it locked; try again when it is done"
        )
    if "unable to open" in text or "readonly" in text:
        return StorageError(
            f"cannot open {where}: {text}; check the owner and permissions of it and its folder"
        )
    if "disk I/O" in text:
        return StorageError(f"cannot write {where}: {text}; check the disk (dmesg) and its limits and quotas")
    if type(problem).__name__ == "IntegrityError":  # of sqlite3 or sqlcipher3
        return StorageError(f"cannot change {where}: {text}")
    return _damaged(where, text)


def _damaged(where: str, text: str) -> StorageError:
    return StorageError(
        f"{where} is damaged or not a gallery ({text}); move it away together with its -wal and -shm files, "
        "then restore the last export: edge-agent gallery import FILE"
    )
