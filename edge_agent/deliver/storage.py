"""The files of the outbox: database, marks and reserve, opened as one unit, and replaced after damage."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from edge_agent.core import sqlite
from edge_agent.core.encryption import key_check, rewrite
from edge_agent.core.errors import StorageError
from edge_agent.core.sqlite import Description, database_errors, foreign_content
from edge_agent.deliver.damaged import Damaged, indicates_damage, remove_damaged, salvage, set_aside
from edge_agent.deliver.marks import Marks, Reserve, boot_check
from edge_agent.deliver.ranges import between, joined
from edge_agent.deliver.rows import Row, Size
from edge_agent.deliver.tables import LAYOUT, RULES, SCHEMA

if TYPE_CHECKING:
    from edge_agent.core.delivery_settings import OutboxSettings

log = structlog.get_logger(__name__)

LOCK_TIMEOUT_S = 0.5
PAGE_BYTES = 4096
RESERVE_BYTES = 10 << 20
"""Space that is kept so that rows can be deleted on a full disk: 2.5 SQLite logs of 1000 pages."""
_FORGOTTEN = "SELECT 1 FROM event WHERE seq BETWEEN ? AND ? AND topic LIKE '%/person/forgotten' LIMIT 1"
"""Whether one of these numbers is of an event that names an erased person."""


@dataclass(slots=True)
class State:
    """What is known about the open database. A failed transaction restores all but the collections."""

    next: int = 1
    """The next number to give out."""
    rows: int = 0
    bytes: int = 0
    """Events that are not acknowledged, and the bytes of their messages."""
    parked: int = 0
    ranges: int = 0
    """Rows of the table `dropped`: numbers that no gap event names yet."""
    next_expiry: float = 0.0
    """When the age of events is checked next; 0: at the next event, which also moves the marks."""
    cursor: int = 0
    """`pending` continues after this number."""
    sending: dict[int, int] = field(default_factory=dict)
    """Numbers of the events that are being sent, with their bytes."""
    acknowledged: set[int] = field(default_factory=set)
    """Numbers of acknowledged events whose rows are not deleted yet."""
    gaps: set[int] = field(default_factory=set)
    """Numbers of the gap events that are not acknowledged yet."""

    def is_free(self, seq: int) -> bool:
        """Whether a row is neither being sent nor acknowledged."""
        return seq not in self.sending and seq not in self.acknowledged

    @property
    def held(self) -> int:
        """Number of rows that are not free."""
        return len(self.sending) + len(self.acknowledged)


class Storage:
    """The database, the marks and the reserve of one outbox. Callers hold `lock`, alone or by `locked`."""

    def __init__(self, path: Path, settings: OutboxSettings, key: bytes | None) -> None:
        self.path = path
        self.set_aside: Path | None = None
        self.lock = threading.RLock()
        self.state = State()
        self.marks = Marks(_marks_path(path))
        self.reserve = Reserve(path.with_name(path.name + ".reserve"), RESERVE_BYTES)
        self.description = Description(
            path,
            damaged="it is set aside at the next attempt",
            locked="stop that agent, or give this one a state folder of its own",
            role="the outbox",
            keyed=key is not None,
        )
        self._synchronous = settings.synchronous
        self._key = key
        self._connection: sqlite3.Connection | None = None
        self._is_open = False

    # --- lifetime -----------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the files; set a damaged database aside. Errors: see `Outbox.__enter__`."""
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            with self.description.translated():
                self.marks.open()
                self.reserve.open()
                self._check_key()
                try:
                    self._open_checked()
                except database_errors() as problem:
                    if not indicates_damage(problem):
                        raise
                    self.start_over(problem, last=self.marks.reserved)
            self._is_open = True
            undo.pop_all()

    def close(self) -> None:
        """Close the files as they are, as a kill of the process does."""
        self._disconnect()
        self.marks.close()
        self.reserve.close()
        self.state.next_expiry = 0.0
        self._is_open = False

    def _disconnect(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(*database_errors()):
                self._connection.close()
        self._connection = None

    def _check_key(self) -> None:
        """Refuse a wrong key, which would otherwise look like a damaged file."""
        check = key_check(self._key)
        if self.path.exists() and self.marks.generation and self.marks.key_check != check:
            raise StorageError(
                f"{self.path} was written with {'another key' if self.marks.key_check else 'no key'}"
                f"{'' if check else ', and none is given'}; put the right key into the credential"
                f" file storage__key, or change it with `edge-agent rekey --state {self.path.parent}`"
            )
        self.marks.key_check = check

    def _open_checked(self) -> None:
        """Open the database, and check that it contains all numbers.

        Raises:
            Damaged: it is missing, or lacks numbers although there was no power cut.
        """
        marks = self.marks
        if marks.reserved and not self.path.exists():
            raise Damaged("the file is missing")
        self._open_database()
        boot = boot_check()
        power_cut = self._synchronous != "FULL" and boot != marks.boot
        last = self.state.next - 1
        if power_cut and last < marks.reserved:
            with self.transaction():
                self.state.next = marks.reserved + 1
                self.note(last + 1, marks.reserved, "power-loss")
        elif last < marks.floor:
            raise Damaged(f"it ends at number {last}, although {marks.floor} was given out before")
        marks.boot = boot

    def _open_database(self) -> None:
        """Open and check the file, create the tables of a new one, and load the state."""
        pragmas: dict[str, str | int] = {
            # Exclusive: two agents on one outbox would give out the same numbers; and no -shm file is needed.
            "locking_mode": "EXCLUSIVE",
            "journal_mode": "WAL",
            "synchronous": self._synchronous,
            # A checkpoint needs as much space as the log has; the reserve holds two and a half logs.
            "wal_autocheckpoint": max(16, min(1000, self.reserve.size * 2 // 5 // PAGE_BYTES)),
        }
        self._connection = connection = sqlite.connect(
            self.path, key=self._key, timeout_s=LOCK_TIMEOUT_S, pragmas=pragmas
        )
        found = self.value("PRAGMA quick_check(1)")
        if found != "ok":
            raise Damaged(found)
        version = self.value("PRAGMA user_version")
        if version == 0:
            self._create_tables()
        elif version == LAYOUT:
            if not self.value("SELECT count(*) FROM sqlite_master WHERE name = 'track'"):
                with self.reserve.released():  # a full disk must not keep the file of an earlier version out
                    self._create_tables()
        else:
            raise StorageError(
                f"{self.path} was written by another version of this program (layout {version}, this one"
                f" reads {LAYOUT}); use that version until it is empty, or move the file away"
            )
        if (foreign := foreign_content(connection, RULES)) is not None:
            raise Damaged(foreign)
        state = self.state = State()
        state.rows, state.bytes, last_event = connection.execute(
            "SELECT count(*), coalesce(sum(length(body)), 0), max(seq) FROM event"
        ).fetchone()
        state.parked, last_parked = connection.execute("SELECT count(*), max(seq) FROM parked").fetchone()
        state.ranges, last_dropped = connection.execute("SELECT count(*), max(last) FROM dropped").fetchone()
        state.gaps = {row[0] for row in connection.execute("SELECT seq FROM event WHERE gap = 1")}
        used = (last_event, last_parked, last_dropped, self.marks.last, self.meta("next") - 1)
        state.next = max(number or 0 for number in used) + 1
        self.marks.generation = max(self.marks.generation, self.meta("marks"))
        if self.marks.last:  # on a full disk the next event moves them
            with contextlib.suppress(*database_errors()), self.transaction():
                pass

    def _create_tables(self) -> None:
        with sqlite.transaction(self.connection):
            for statement in SCHEMA.split(";"):
                self.connection.execute(statement)
            self.connection.execute(f"PRAGMA user_version = {LAYOUT}")

    def start_over(self, problem: Exception, *, last: int) -> None:
        """Set a damaged file aside, create a new one, and copy the rows that can still be read.

        A kill in between is repaired at the next start: the new file lacks numbers until all rows are copied,
        and is then found damaged itself. No number above `last` was given out.
        """
        marks, acknowledged = self.marks, self.state.acknowledged
        self.state.next_expiry = 0.0
        self._disconnect()
        aside = set_aside(self.path)
        found = salvage(self.path, self._key, LOCK_TIMEOUT_S)
        saved = [row for row in found if marks.floor < row.seq <= last]
        self.set_aside = aside
        log.error(
            "outbox was damaged: set aside and replaced",
            path=str(self.path),
            set_aside=str(aside),
            saved=len(saved),
            error=str(problem),
        )
        present = [(row.seq, row.seq) for row in saved]
        if marks.last:  # these become a gap of their own
            present.append((marks.first, marks.last))
        self._open_database()
        self.state.next = max(last + 1, self.state.next)
        kept = [row for row in saved if row.seq not in acknowledged]
        gaps = {row.seq for row in kept if row.topic.endswith("/gap")}
        with self.transaction():
            for row in kept:
                self.store(row, gap=row.seq in gaps)
            for first, end in between(present, marks.floor + 1, last):
                self.note(first, end, "corrupt")
            self.set_meta("next", self.state.next)
        self.state.gaps.update(gaps)

    def require_open(self, *, last: int | None = None) -> None:
        """Create the database if a damaged one could not be replaced before; see `start_over`.

        Raises:
            StorageError: the outbox is closed.
        """
        if not self._is_open:
            raise StorageError(f"the outbox {self.path} is closed")
        if self._connection is None:
            problem = Damaged("it could not be replaced before")
            self.start_over(problem, last=self.state.next - 1 if last is None else last)

    # --- access -------------------------------------------------------------------------------------------

    @property
    def is_connected(self) -> bool:
        """Whether the database is open."""
        return self._connection is not None

    @property
    def connection(self) -> sqlite3.Connection:
        """The open database.

        Raises:
            Damaged: the file was damaged, and a new one could not be created yet.
        """
        if self._connection is None:
            raise Damaged("it could not be created again before")
        return self._connection

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock, translate errors, and replace a damaged file."""
        with self.lock, self.description.translated():
            try:
                self.require_open()
                yield
            except database_errors() as problem:
                if indicates_damage(problem):
                    with contextlib.suppress(*database_errors(OSError)):  # the next call tries again
                        self.start_over(problem, last=self.state.next - 1)
                raise

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Callable[..., sqlite3.Cursor]]:
        """Run the block in a transaction, which also moves unwritten numbers from the marks to the database.

        Yields `execute`. If the transaction fails, the state is restored.
        """
        before, marks = replace(self.state), self.marks
        try:
            with sqlite.transaction(self.connection):
                if marks.last and self.meta("marks") < marks.generation:
                    self.note(marks.first, marks.last, "disk-full")
                    self.set_meta("marks", marks.generation)
                yield self.connection.execute
        except BaseException:
            self.state = before
            raise
        if marks.last:
            marks.first = marks.last = 0
            marks.write()

    @contextlib.contextmanager
    def changed(self) -> Iterator[Callable[..., sqlite3.Cursor]]:
        """Run the block in a `transaction`, `locked`."""
        with self.locked(), self.transaction() as execute:
            yield execute

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

    def store(self, row: Row, *, gap: bool = False) -> None:
        """Add an event."""
        values = (row.seq, row.topic, row.body, row.created, gap)
        self.connection.execute("INSERT INTO event VALUES (?, ?, ?, ?, ?)", values)
        if row.track is not None:
            row.track.store(self.connection.execute, row)
        self.state.rows += 1
        self.state.bytes += len(row.body)

    def delete_acknowledged(self) -> None:
        """Delete the acknowledged rows, which the counters do not include; zero the ids of erased people."""
        ranges = joined((number, number) for number in sorted(self.state.acknowledged))
        erased = any(self.connection.execute(_FORGOTTEN, one).fetchone() for one in ranges)
        self.connection.execute(f"PRAGMA secure_delete = {int(erased)}")
        with self.transaction():
            self.connection.executemany("DELETE FROM event WHERE seq BETWEEN ? AND ?", ranges)
            self.set_meta("next", self.state.next)
        if erased:
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def droppable(self, count: int) -> list[Size]:
        """Return the oldest free rows that are not gap events."""
        found = self.connection.execute(
            "SELECT seq, length(body), created FROM event WHERE gap = 0 ORDER BY seq LIMIT ?",
            (count + self.state.held,),
        )
        return [size for size in found if self.state.is_free(size[0])][:count]

    def drop(self, rows: Sequence[Size], reason: str) -> None:
        """Delete events that will not be sent, and record their numbers for a gap event."""
        for seq, size, _ in rows:
            self.connection.execute("DELETE FROM event WHERE seq = ?", (seq,))
            self.note(seq, seq, reason)
            self.state.rows -= 1
            self.state.bytes -= size

    def note(self, first: int, last: int, reason: str) -> None:
        """Record a range of numbers for a gap event; extend the range before it if there is one."""
        execute = self.connection.execute
        extended = execute(
            "UPDATE dropped SET last = ? WHERE last = ? AND reason = ?", (last, first - 1, reason)
        )
        if extended.rowcount == 0:
            execute("INSERT OR REPLACE INTO dropped VALUES (?, ?, ?)", (first, last, reason))
            self.state.ranges += 1
        self.set_meta("next", self.state.next)


def _marks_path(path: Path) -> Path:
    return path.with_name(path.name + ".marks")


def rekey(path: Path, old: bytes | None, new: bytes | None) -> bool:
    """Rewrite the outbox of a stopped agent under another key (None: plain); see `encryption.rewrite`.

    Damaged files that were set aside are deleted, since they have the old key. Returns False where the file
    had the new key already. Errors are those of `rewrite`; the file is then unchanged.
    """
    done = rewrite(path, old, new)
    marks = Marks(_marks_path(path))
    marks.open()
    try:
        marks.key_check = key_check(new)
        marks.write()
        marks.sync()
    finally:
        marks.close()
    remove_damaged(path)
    return done
