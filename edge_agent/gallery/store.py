"""The gallery on disk: one SQLite file, which is the truth.

Write-ahead log, one transaction per change, so a `kill -9` at any moment leaves the state before or after
a change and nothing between. Deleted content is overwritten with zeros (`secure_delete`).
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edge_agent.core.encryption import check_plainness
from edge_agent.core.errors import StorageError
from edge_agent.core.sqlite import (
    Description,
    connect,
    database_errors,
    make_private,
    transaction,
)

__all__ = ["Store"]

_APPLICATION = 0x45414731  # "EAG1": tells a gallery from any other SQLite file
_LAYOUT = 2
_BUSY_S = 10.0  # another process holds the lock for one small change; an import may take longer

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
        self._description = Description(
            path,
            keyed=key is not None,
            damaged="move it away together with its -wal and -shm files, then restore the last export:"
            " edge-agent gallery import FILE",
        )
        with self._description.translated():
            if path is not None:
                check_plainness(path, key)
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                make_private(path)
            self._connection = _connect(path, key)
            try:
                self._prepare(check=check)
            except BaseException:
                self._connection.close()
                raise

    @property
    def where(self) -> str:
        """The path in messages."""
        return self._description.name

    def close(self) -> None:
        """Close the file; the write-ahead log is folded into it when this was the last process."""
        self._connection.close()

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        with self._description.translated():
            found: list[tuple[Any, ...]] = self._connection.execute(statement, values).fetchall()
            return found

    def pieces(self, statement: str, size: int) -> Iterator[list[tuple[Any, ...]]]:
        """All rows of a query, so many at a time: a large table is never in memory as Python objects."""
        with (
            self._description.translated(),
            contextlib.closing(self._connection.execute(statement)) as cursor,
        ):
            while rows := cursor.fetchmany(size):
                yield rows

    def value(self, statement: str, values: Sequence[Any] = ()) -> Any:  # noqa: ANN401 - any SQL value
        """First column of the first row, None when there is none."""
        rows = self.rows(statement, values)
        return rows[0][0] if rows else None

    def run(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Execute one statement of a change."""
        return self._connection.execute(statement, values)

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
        with self._description.translated():
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            with transaction(self._connection):
                yield

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
        with self._description.translated(), transaction(self._connection, "DEFERRED"):
            yield

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
        deadline = time.monotonic() + (_BUSY_S if wait else 0.0)
        with (
            self._description.translated(),
            contextlib.closing(_connect(self.path, self._key, _BUSY_S if wait else 0.0)) as connection,
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
        files = [self.path.with_name(self.path.name + suffix) for suffix in ("", "-wal")]
        return sum(file.stat().st_size for file in files if file.exists())

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
            raise self._description.damage(verdict)

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


def _connect(path: Path | None, key: bytes | None, busy_s: float = _BUSY_S) -> sqlite3.Connection:
    pragmas = {
        "foreign_keys": "ON",
        "secure_delete": "ON",
        "auto_vacuum": "INCREMENTAL",  # takes effect in a new file only
        "journal_mode": "WAL",
        "journal_size_limit": "0",  # after a checkpoint the log takes no space
    }
    return connect(path, key=key, timeout_s=busy_s, pragmas=pragmas)


def _emptied(connection: sqlite3.Connection) -> bool:
    """Give free pages back and fold the log into the file; False when somebody else is at it."""
    try:
        with transaction(connection):
            connection.execute("PRAGMA incremental_vacuum").fetchall()
        busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except database_errors() as problem:
        if "locked" not in str(problem):
            raise
        return False
    return not busy
