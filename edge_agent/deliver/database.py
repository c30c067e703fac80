"""The database file of the outbox: schema, opening, transactions and counters."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edge_agent.core import sqlite
from edge_agent.core.errors import StorageError
from edge_agent.core.sqlite import database_errors

__all__ = ["CLOCK_SET", "Change", "Damaged", "OutboxDatabase", "Row", "numbered"]

CLOCK_SET = 1_704_067_200.0
"""2024-01-01. A clock that shows less was never set; an older row has no meaningful age."""
LAYOUT = 1
"""`user_version` of the database."""
LOCK_TIMEOUT_S = 0.5
_SCHEMA = """
CREATE TABLE IF NOT EXISTS event (
    seq INTEGER PRIMARY KEY, topic TEXT NOT NULL, body BLOB NOT NULL, created REAL NOT NULL,
    gap INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS parked (
    seq INTEGER PRIMARY KEY, topic TEXT NOT NULL, body BLOB NOT NULL, created REAL NOT NULL,
    reason TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS dropped (first INTEGER PRIMARY KEY, last INTEGER NOT NULL, reason TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL);
"""
_TRACEPARENT = b'"traceparent":"'
"""Precedes all text from outside, which could contain it too; see `events.envelope`."""
_TRACEPARENT_LENGTH = 55


class Damaged(sqlite3.DatabaseError):
    """A check of the database found damage."""


@dataclass(frozen=True, slots=True)
class Row:
    """One event in the outbox.

    Attributes:
        seq: its number.
        topic: MQTT topic.
        body: the message without its number.
        created: when it was appended, Unix seconds.
    """

    seq: int
    topic: str
    body: bytes
    created: float

    @property
    def message(self) -> bytes:
        """The message as it is sent, with its number."""
        return numbered(self.body, self.seq)

    @property
    def traceparent(self) -> str:
        """W3C Trace Context of the message; "" where it has none."""
        at = self.body.find(_TRACEPARENT)
        if at < 0:
            return ""
        begin = at + len(_TRACEPARENT)
        return self.body[begin : begin + _TRACEPARENT_LENGTH].decode("ascii", "replace")


def numbered(body: bytes, seq: int) -> bytes:
    """Add the number to a message, a JSON object without `seq`."""
    return b'%b,"seq":%d}' % (body[:-1], seq)


@dataclass(slots=True)
class Change:
    """What a transaction changes in memory; applied after the commit."""

    rows: int = 0
    bytes: int = 0
    after: list[Callable[[], object]] = field(default_factory=list)
    """Called in this order after the commit."""


class OutboxDatabase:
    """The open database. Not thread-safe.

    Args:
        path: the file.
        synchronous: see `OutboxSettings.synchronous`.
        key: 32 bytes, or None for a plain file.
    """

    def __init__(self, path: Path, *, synchronous: Literal["NORMAL", "FULL"], key: bytes | None) -> None:
        self.path = path
        self._synchronous = synchronous
        self._key = key
        self._connection: sqlite3.Connection | None = None
        self.rows = self.bytes = 0
        """Events that wait, and the bytes of their messages."""

    def connect(self, path: Path) -> sqlite3.Connection:
        """Open a file with the key of this database."""
        return sqlite.connect(path, key=self._key, timeout_s=LOCK_TIMEOUT_S)

    def open(self, checkpoint_pages: int) -> None:
        """Open the file, check it, and create the tables of a new one.

        Args:
            checkpoint_pages: size of SQLite's log at which it is merged into the database.

        Raises:
            Damaged: the check found damage.
            StorageError: another version wrote it.
            database_errors(): it cannot be opened.
        """
        self._connection = connection = self.connect(self.path)
        # Exclusive: two agents on one outbox would give out the same numbers; and no -shm file is needed.
        for pragma in (
            "locking_mode = EXCLUSIVE",
            "journal_mode = WAL",
            f"synchronous = {self._synchronous}",
            f"wal_autocheckpoint = {checkpoint_pages}",
        ):
            connection.execute(f"PRAGMA {pragma}")
        found = self.value("PRAGMA quick_check(1)")
        if found != "ok":
            raise Damaged(found)
        version = self.value("PRAGMA user_version")
        if version == 0:
            with self.transaction():
                for statement in _SCHEMA.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {LAYOUT}")
        elif version != LAYOUT:
            raise StorageError(
                f"{self.path} was written by another version of this program (layout {version}, this one"
                f" reads {LAYOUT}); use that version until it is empty, or move the file away"
            )
        self.rows, self.bytes = connection.execute(
            "SELECT count(*), coalesce(sum(length(body)), 0) FROM event"
        ).fetchone()

    def close(self) -> None:
        """Close the file; a second call has no effect."""
        if self._connection is not None:
            with contextlib.suppress(*database_errors()):
                self._connection.close()
        self._connection = None

    @property
    def is_open(self) -> bool:
        """Whether the file is open."""
        return self._connection is not None

    @property
    def connection(self) -> sqlite3.Connection:
        """The connection.

        Raises:
            Damaged: the file was damaged, and a new one could not be created yet.
        """
        if self._connection is None:
            raise Damaged("it could not be created again before")
        return self._connection

    def value(self, query: str, *values: object) -> Any:  # noqa: ANN401 - any SQL value
        """Return the first column of the first row; None without a row."""
        row = self.connection.execute(query, values).fetchone()
        return row[0] if row else None

    def meta(self, key: str) -> int:
        """Return a number of the table `meta`; 0 where it is missing."""
        return int(self.value("SELECT value FROM meta WHERE key = ?", key) or 0)

    def set_meta(self, key: str, value: int) -> None:
        """Store a number in the table `meta`."""
        self.connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Change]:
        """Run the block in a transaction; counters change when it is committed, and stay when it is not."""
        change = Change()
        with sqlite.transaction(self.connection):
            yield change
        self.rows += change.rows
        self.bytes += change.bytes
        for apply in change.after:
            apply()
