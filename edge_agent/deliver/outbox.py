"""The events that the broker has not acknowledged yet, numbered, in one SQLite table.

An event gets its number and is on disk before `append` returns. It leaves when the broker has acknowledged it
(`acknowledge`), when the broker refused it for good (`park`), or when a bound forces it out: then its number
goes into `dropped`, from which `report_gaps` makes an event that tells the subscribers.

Two things must survive what a database cannot: the number range that a full disk swallowed, and the next free
number when the file is found damaged, or shorter than it was after a power cut. Both stand in a small file of
fixed size beside it (`marks`), which is written in place and therefore needs no free space.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import structlog

from edge_agent.core.codec import encode
from edge_agent.core.encryption import key_check, rewrite
from edge_agent.core.errors import DiskFull, StorageError
from edge_agent.core.events import Event, GapData, NumberRange, new_event
from edge_agent.core.sqlite import connect, database_errors
from edge_agent.deliver.marks import Marks, Reserve, boot_check

__all__ = ["Depth", "Outbox", "Row", "numbered", "rekey"]

log = structlog.get_logger(__name__)

LAYOUT = 1
"""`user_version` of the database."""
RESERVE = 1024
"""Numbers that one write of the marks reserves; after damage at most this many too many are told as gone."""
MAX_PARKED = 1000
"""Refused events that are kept for a look; older ones go. Their numbers were told when they were parked."""
MAX_RANGES = 500
"""Number ranges in one gap event, which keeps it below 30 kB."""
CLOCK_SET = 1_704_067_200.0
"""2024-01-01. A row that is older was written before the clock was set; its age says nothing."""
EXPIRY_INTERVAL_S = 1.0
"""How often rows are checked for their age."""
EXPIRY_BATCH = 10_000
"""Most rows that one check drops, so that none takes long."""
ACK_BATCH = 200
"""Acknowledged rows that are deleted in one transaction, which spares flash and time."""
PAGE_BYTES = 4096
RESERVE_BYTES = 10 << 20
"""Room that is kept so that rows can be deleted on a full disk: for 2.5 logs of SQLite of 1000 pages."""
MINIMUM_SPACE = 64 << 10
"""With less room than this (bytes) an I/O error is taken for a full disk."""
KEPT_DAMAGED = 3
"""Damaged files that are kept for a look; older ones go."""

_TRACEPARENT = b'"traceparent":"'
"""Stands before all that others have written, in which it could occur; see `events.envelope`."""
TRACEPARENT_LENGTH = 55
_INSERT = "INSERT INTO event VALUES (?, ?, ?, ?, ?)"
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


@dataclass(frozen=True, slots=True)
class Row:
    """One event as it waits.

    Attributes:
        seq: its number.
        topic: where it goes.
        body: the message as it was taken in, without its number.
        created: when it came, Unix seconds.
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
        """W3C Trace Context that the message carries; "" where it carries none."""
        at = self.body.find(_TRACEPARENT)
        if at < 0:
            return ""
        begin = at + len(_TRACEPARENT)
        return self.body[begin : begin + TRACEPARENT_LENGTH].decode("ascii", "replace")


def numbered(body: bytes, seq: int) -> bytes:
    """A message, which is a JSON object without `seq`, with its number."""
    return b'%b,"seq":%d}' % (body[:-1], seq)


@dataclass(frozen=True, slots=True)
class Depth:
    """How full the outbox is."""

    rows: int
    bytes: int
    parked: int


@dataclass(slots=True)
class _Change:
    """What a transaction does to the counters, applied when it is committed."""

    rows: int = 0
    bytes: int = 0
    parked: int = 0
    dropped: int = 0
    marks_taken: bool = False
    next_expiry: float | None = None
    gone: list[int] = field(default_factory=list)
    gaps: list[int] = field(default_factory=list)


class Outbox:
    """Events on disk until the broker has them. One process at a time; its threads may share it.

    Args:
        path: the database; its folder must exist. `<path>.marks` is made beside it.
        synchronous: `NORMAL` survives the death of the process at any instruction and may lose the last
            moments before a power cut; `FULL` waits for the disk at every event and loses nothing even then.
        max_rows: most events kept; the oldest make room.
        max_bytes: most bytes of messages kept; the oldest make room.
        max_age_s: older events are dropped.
        key: 32 bytes; encrypts the file with SQLCipher (extra `encrypt`); see `edge_agent.core.encryption`.
        clock: Unix seconds; by default the wall clock as it was at the start plus the monotonic clock, so
            that a jump of the wall clock ages nothing.
    """

    def __init__(
        self,
        path: Path,
        *,
        synchronous: Literal["NORMAL", "FULL"] = "NORMAL",
        max_rows: int = 200_000,
        max_bytes: int = 256 << 20,
        max_age_s: float = 7 * 86400.0,
        key: bytes | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.path = Path(path)
        self.set_aside: Path | None = None
        """Where a damaged file was moved to when this outbox was opened or written, if it was."""
        self._synchronous = synchronous
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._key = key
        offset = time.time() - time.monotonic()
        self._clock = clock or (lambda: offset + time.monotonic())
        self._lock = threading.RLock()
        self._db: Any = None
        self._marks = Marks(self.path.with_name(self.path.name + ".marks"))
        self._reserve = Reserve(self.path.with_name(self.path.name + ".reserve"), RESERVE_BYTES)
        self._next = 1
        self._rows = self._bytes = self._parked = self._dropped = 0
        self._leased: dict[int, int] = {}
        self._acked: set[int] = set()
        self._gaps: set[int] = set()
        self._cursor = 0
        self._next_expiry = 0.0
        self._failing = False
        self._unsynced = False
        self._comfortable = 0
        self._is_open = False

    # --- lifetime -----------------------------------------------------------------------------------------

    def __enter__(self) -> Outbox:
        """Open it, setting a damaged file aside.

        Raises:
            StorageError: it is in use, of another version or another key, or its folder cannot be written.
            DiskFull: there is no room for a new one.
            ConfigError: a key is given, and SQLCipher is not installed.
        """
        with self._lock, contextlib.ExitStack() as undo:
            undo.callback(self._let_go)
            with self._translated("open"):
                self._marks.open()
                self._reserve.open()
                self._check_key()
                try:
                    self._open_whole()
                except database_errors(_Damaged) as problem:
                    if not _is_damage(problem):
                        raise
                    self._start_over(problem, last=self._marks.reserved)
            self._is_open = True
            undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write what was acknowledged and let the file go."""
        with self._lock:
            if self._db is not None:
                self.flush()
                self._marks.reserved = self._next - 1
                with contextlib.suppress(OSError):
                    self._marks.write()
                    self._marks.sync()
            self._let_go()
            self._next_expiry = 0.0
            self._is_open = False

    def _let_go(self) -> None:
        """Close the files."""
        self._disconnect()
        self._marks.close()
        self._reserve.close()

    def _disconnect(self) -> None:
        if self._db is not None:
            with contextlib.suppress(*database_errors()):
                self._db.close()
        self._db = None

    def _check_key(self) -> None:
        """Refuse a key that does not fit, which would otherwise look like a damaged file."""
        check = key_check(self._key)
        if self.path.exists() and self._marks.generation and self._marks.key_check != check:
            raise StorageError(
                f"{self.path} was written with {'another key' if self._marks.key_check else 'no key'}"
                f"{', and none is given' if self._key is None else ''}; give the key it was made with"
                " in the credential file storage__key, or change it with"
                f" `edge-agent rekey --state {self.path.parent}`"
            )
        self._marks.key_check = check

    def _open_whole(self) -> None:
        """Open the database, and see whether it knows as much as it should.

        Raises:
            _Damaged: it is gone, or has forgotten numbers though the machine was not cut off.
        """
        if self._marks.reserved and not self.path.exists():
            raise _Damaged("the file is gone")
        self._open()
        boot = boot_check()
        cut_off = self._synchronous != "FULL" and boot != self._marks.boot
        known = self._next - 1
        if cut_off and known < self._marks.reserved:
            with self._transaction() as change:
                self._next = self._marks.reserved + 1
                self._note_dropped(change, known + 1, self._marks.reserved, "power-loss")
        elif known < self._marks.floor:
            raise _Damaged(f"it ends at number {known}, though {self._marks.floor} was given out before")
        self._marks.boot = boot

    def _open(self) -> None:
        """Open the database, check it, and count what is in it."""
        self._db = self._connect(self.path)
        self.path.chmod(0o600)
        # Exclusive: two agents on one outbox would give out the same numbers; and no -shm file is needed.
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute(f"PRAGMA synchronous = {self._synchronous}")
        # A checkpoint needs as much room as the log holds; two logs and a half fit into the reserve.
        pages = max(16, min(1000, self._reserve.size * 2 // 5 // PAGE_BYTES))
        self._db.execute(f"PRAGMA wal_autocheckpoint = {pages}")
        found = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise _Damaged(found)
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            with self._transaction():
                for statement in _SCHEMA.split(";"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {LAYOUT}")
        elif version != LAYOUT:
            raise StorageError(
                f"{self.path} was written by another version of this program (layout {version}, this one"
                f" reads {LAYOUT}); use that version until it is empty, or move the file away"
            )
        self._count()

    def _connect(self, path: Path) -> Any:  # noqa: ANN401 - a connection of sqlite3 or of sqlcipher3
        return connect(path, key=self._key, timeout_s=0.5)

    def _count(self) -> None:
        """Fill the counters and take over what the marks know."""
        one = self._db.execute(
            "SELECT count(*), coalesce(sum(length(body)), 0), max(seq) FROM event"
        ).fetchone()
        self._rows, self._bytes = one[0], one[1]
        self._parked, highest_parked = self._db.execute("SELECT count(*), max(seq) FROM parked").fetchone()
        self._dropped, highest_dropped = self._db.execute(
            "SELECT count(*), max(last) FROM dropped"
        ).fetchone()
        used = (one[2], highest_parked, highest_dropped, self._meta("next") - 1, self._marks.last)
        self._next = max(number or 0 for number in used) + 1
        self._marks.generation = max(self._marks.generation, self._meta("marks"))
        self._gaps = {row[0] for row in self._db.execute("SELECT seq FROM event WHERE gap = 1")}
        self._leased.clear()
        self._acked.clear()
        self._cursor = 0
        with contextlib.suppress(*database_errors()), self._transaction() as change:
            self._take_over_marks(change)  # on a full disk this has to wait for the next event

    def _meta(self, key: str) -> int:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return int(row[0]) if row else 0

    def _set_meta(self, key: str, value: int) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[_Change]:
        """One transaction; the counters follow when it is committed, and stay when it is not."""
        change = _Change()
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield change
            self._db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(*database_errors()):
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
            raise
        self._rows += change.rows
        self._bytes += change.bytes
        self._parked += change.parked
        self._dropped += change.dropped
        if change.next_expiry is not None:
            # Only now: a number that the marks hold must not be followed by one that was put in without care.
            self._next_expiry = change.next_expiry
        self._gaps.update(change.gaps)
        for seq in change.gone:
            self._leased.pop(seq, None)
            self._gaps.discard(seq)
        if change.marks_taken:
            self._marks.first = self._marks.last = 0
            self._marks.write()

    @contextlib.contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        """Errors of the database and the system as ours."""
        try:
            if doing != "open":
                self._need_open()
            yield
        except database_errors(OSError, _Damaged) as problem:
            if _is_damage(problem) and doing != "open":
                with contextlib.suppress(*database_errors(OSError)):  # the next call tries again
                    self._start_over(problem, last=self._next - 1)
            raise self._storage_error(doing, problem) from problem

    def _need_open(self) -> None:
        """Open the database again, if it was damaged and a new one could not be begun then.

        Raises:
            StorageError: this outbox was closed, or never entered.
        """
        if not self._is_open:
            raise StorageError(f"the outbox {self.path} is closed")
        if self._db is None:
            self._start_over(_Damaged("it could not be begun anew before"), last=self._next - 1)

    def _storage_error(self, doing: str, problem: Exception) -> StorageError:
        text = str(problem)
        if "full" in text or getattr(problem, "errno", None) in _NO_SPACE or self._no_space_left():
            return DiskFull(f"cannot {doing} the outbox {self.path}: no space is left on its disk; free some")
        if "locked" in text:
            return StorageError(
                f"cannot {doing} the outbox {self.path}: another process uses it; stop that agent, or"
                " give this one a state folder of its own"
            )
        return StorageError(f"cannot {doing} the outbox {self.path}: {text}")

    def _no_space_left(self) -> bool:
        """SQLite reports some kinds of a full disk as an I/O error."""
        with contextlib.suppress(OSError):
            left = os.statvfs(self.path.parent)
            return left.f_bavail * left.f_frsize < MINIMUM_SPACE
        return False

    # --- in -----------------------------------------------------------------------------------------------

    def append(self, event: Event, topic: str) -> int:
        """Number an event, which has its source and session, and write it; see `append_encoded`."""
        return self.append_encoded(encode(replace(event, seq=None)), topic)

    def append_encoded(self, body: bytes, topic: str) -> int:
        """Number a message, a JSON object that has no `seq` yet, and write it durably.

        Returns:
            Its number.

        Raises:
            DiskFull: it could not be written; its number counts as dropped, and a gap event will say so.
            StorageError: the same, for another reason than a full disk.
        """
        with self._lock:
            seq = self._next
            if seq > self._comfortable:
                self._reserve_numbers(seq)
            self._next = seq + 1
            now = self._clock()
            size = len(body)
            try:
                if (
                    now < self._next_expiry
                    and self._rows < self._max_rows
                    and self._bytes + size <= self._max_bytes
                ):  # one statement is one transaction: this path has to be fast
                    self._db.execute(_INSERT, (seq, topic, body, now, 0))
                    self._rows += 1
                    self._bytes += size
                else:
                    self._insert_with_care(Row(seq, topic, body, now))
            except database_errors() as problem:
                self._lose(Row(seq, topic, body, now), problem)
            return seq

    def _reserve_numbers(self, seq: int) -> None:
        """Say in the marks that these numbers may be in use, so early that `sync_marks` comes in time."""
        self._marks.reserved = seq + RESERVE
        self._marks.write()
        self._comfortable = seq + RESERVE // 2
        self._unsynced = True

    def _insert_with_care(self, row: Row) -> None:
        """Put a row in when there may be something else to do: make room, drop what is old, tell a loss."""
        size = len(row.body)
        self._need_open()
        with self._transaction() as change:
            self._take_over_marks(change)
            self._expire(change, row.created)
            self._make_room(change, size)
            self._store(row)
            change.rows += 1
            change.bytes += size
        if self._failing:
            self._failing = False
            log.info("outbox can be written again", path=str(self.path))

    def _store(self, row: Row, *, gap: bool = False) -> None:
        self._db.execute(_INSERT, (row.seq, row.topic, row.body, row.created, gap))

    def _lose(self, row: Row, problem: Exception) -> None:
        """An event could not be written: try once more in a new file where the old one is damaged, else note
        its number in the marks and raise.
        """
        if _is_damage(problem):
            try:
                self._start_over(problem, last=row.seq - 1)
                self._next = row.seq + 1
                self._insert_with_care(row)
                return
            except database_errors(OSError) as again:
                problem = again
                self._next = row.seq + 1
        self._marks.first = self._marks.first or row.seq
        self._marks.last = row.seq
        self._marks.write()
        self._next_expiry = 0.0  # the next event is put in with care
        if not self._failing:
            self._failing = True
            log.warning(
                "outbox cannot be written: events are dropped", path=str(self.path), error=str(problem)
            )
        raise self._storage_error("write", problem) from problem

    def _take_over_marks(self, change: _Change) -> None:
        """Move the range that could not be written from the marks into the database."""
        if not self._marks.last:
            return
        if self._meta("marks") < self._marks.generation:
            self._note_dropped(change, self._marks.first, self._marks.last, "disk-full")
            self._set_meta("marks", self._marks.generation)
        change.marks_taken = True

    # --- bounds -------------------------------------------------------------------------------------------

    def expire(self) -> None:
        """Drop what is too old; for the time when nothing comes in."""
        with self._lock, self._translated("write"):
            if self._clock() >= self._next_expiry:
                with self._transaction() as change:
                    self._take_over_marks(change)
                    self._expire(change, self._clock())

    def _expire(self, change: _Change, now: float) -> None:
        if now < self._next_expiry:
            return
        change.next_expiry = now + EXPIRY_INTERVAL_S
        oldest = now - self._max_age_s
        head = self._db.execute(
            "SELECT created FROM event WHERE gap = 0 AND created > ? ORDER BY seq LIMIT 1", (CLOCK_SET,)
        ).fetchone()
        if head is not None and head[0] < oldest:
            rows = self._droppable(EXPIRY_BATCH)
            self._drop(change, [r for r in rows if CLOCK_SET < r[2] < oldest], "age")
        if self._parked:
            gone = self._db.execute(
                "DELETE FROM parked WHERE created < ? AND created > ?", (oldest, CLOCK_SET)
            )
            change.parked -= gone.rowcount

    def _make_room(self, change: _Change, size: int) -> None:
        """Drop the oldest rows until one more of this size fits."""
        while self._rows + change.rows + 1 > self._max_rows and self._rows + change.rows > 0:
            victims = self._droppable(self._rows + change.rows + 1 - self._max_rows)
            if not victims:
                break
            self._drop(change, victims, "rows")
        while self._bytes + change.bytes + size > self._max_bytes:
            victims = self._droppable(1)
            if not victims:
                break
            self._drop(change, victims, "bytes")

    def _droppable(self, count: int) -> list[tuple[int, int, float]]:
        """The oldest rows `(seq, bytes, created)` that are no gap, not under way and not acknowledged."""
        held = len(self._leased) + len(self._acked)
        found = self._db.execute(
            "SELECT seq, length(body), created FROM event WHERE gap = 0 ORDER BY seq LIMIT ?", (count + held,)
        )
        return [r for r in found if r[0] not in self._leased and r[0] not in self._acked][:count]

    def _drop(self, change: _Change, rows: Iterable[tuple[int, int, float]], reason: str) -> None:
        for seq, size, _ in rows:
            self._db.execute("DELETE FROM event WHERE seq = ?", (seq,))
            self._note_dropped(change, seq, seq, reason)
            change.rows -= 1
            change.bytes -= size
            change.gone.append(seq)

    def _note_dropped(self, change: _Change, first: int, last: int, reason: str) -> None:
        """Remember numbers for a gap event, joined to the range before them where there is one."""
        joined = self._db.execute(
            "UPDATE dropped SET last = ? WHERE last = ? AND reason = ?", (last, first - 1, reason)
        )
        if joined.rowcount == 0:
            self._db.execute("INSERT OR REPLACE INTO dropped VALUES (?, ?, ?)", (first, last, reason))
            change.dropped += 1
        self._set_meta("next", self._next)

    def report_gaps(self, stamp: Callable[[Event], Event], topic: str) -> list[Row]:
        """Make gap events of the numbers that were dropped, one per reason.

        While older gap events still wait, none are made: what is dropped meanwhile goes into the next ones.

        Args:
            stamp: gives an event its source and session.
            topic: where gap events go.

        Returns:
            The rows that were made.

        Raises:
            DiskFull, StorageError: they could not be written; the numbers stay remembered.
        """
        with self._lock, self._translated("write"):
            if self._gaps or not self.untold:
                return []
            before = self._next
            try:
                with self._transaction() as change:
                    self._take_over_marks(change)
                    return self._report_gaps(change, stamp, topic)
            except BaseException:
                self._next = before  # nobody has seen these numbers
                raise

    def _report_gaps(self, change: _Change, stamp: Callable[[Event], Event], topic: str) -> list[Row]:
        made: list[Row] = []
        ranges: dict[str, list[NumberRange]] = {}
        found = self._db.execute(
            "SELECT first, last, reason FROM dropped ORDER BY first LIMIT ?", (MAX_RANGES,)
        )
        for first, last, reason in found.fetchall():
            ranges.setdefault(reason, []).append(NumberRange(first, last))
            self._db.execute("DELETE FROM dropped WHERE first = ?", (first,))
            change.dropped -= 1
        for reason, numbers in ranges.items():
            data = GapData(reason, tuple(_joined(numbers)), sum(n.last - n.first + 1 for n in numbers))
            event = stamp(new_event("gap", data, time=self._clock()))
            row = Row(self._next, topic, encode(event), self._clock())
            self._next += 1
            self._store(row, gap=True)
            change.gaps.append(row.seq)
            change.rows += 1
            change.bytes += len(row.body)
            made.append(row)
        return made

    # --- out ----------------------------------------------------------------------------------------------

    def pending(self, limit: int, *, without: Collection[str] = ()) -> list[Row]:
        """The next rows to send, lowest number first; they count as under way until they are settled.

        Args:
            limit: most rows.
            without: topics to pass over.
        """
        with self._lock, self._translated("read"):
            marks = ", ".join("?" * len(without))
            query = (
                "SELECT seq, topic, body, created FROM event WHERE seq > ?"  # noqa: S608 - question marks only
                f" AND topic NOT IN ({marks}) ORDER BY seq LIMIT ?"
            )
            rows: list[Row] = []
            while (wanted := limit - len(rows)) > 0:
                found = self._db.execute(query, (self._cursor, *without, wanted)).fetchall()
                self._cursor = found[-1][0] if found else self._cursor
                rows += [Row(*r) for r in found if r[0] not in self._leased and r[0] not in self._acked]
                if len(found) < wanted:
                    break
            return self._lease(rows)

    def first_of(self, topic: str) -> Row | None:
        """The oldest row of one topic that is not under way, which it is from now on."""
        with self._lock, self._translated("read"):
            found = self._db.execute(
                "SELECT seq, topic, body, created FROM event WHERE topic = ? ORDER BY seq LIMIT ?",
                (topic, 1 + len(self._leased) + len(self._acked)),
            )
            rows = [Row(*r) for r in found if r[0] not in self._leased and r[0] not in self._acked][:1]
            return self._lease(rows)[0] if rows else None

    def _lease(self, rows: list[Row]) -> list[Row]:
        for row in rows:
            self._leased[row.seq] = len(row.body)
        return rows

    def release(self, seqs: Iterable[int] | None = None) -> None:
        """These rows (all, without an argument) are no longer under way: `pending` gives them again."""
        with self._lock:
            for seq in list(self._leased if seqs is None else seqs):
                self._leased.pop(seq, None)
            self._cursor = 0

    def acknowledge(self, seqs: Iterable[int]) -> None:
        """The broker has these: they are deleted, in batches (see `flush`)."""
        with self._lock:
            for seq in seqs:
                size = self._leased.pop(seq, None)
                if size is not None:
                    self._acked.add(seq)
                    self._gaps.discard(seq)
                    self._rows -= 1
                    self._bytes -= size
            if len(self._acked) >= ACK_BATCH:
                self.flush()

    def sync_marks(self) -> None:
        """Bring the numbers given out to the disk, for the case of a power cut; call it every now and then.

        It holds nobody up: the lock is not taken.
        """
        if self._unsynced:
            self._unsynced = False
            with contextlib.suppress(OSError):
                self._marks.sync()

    def flush(self) -> None:
        """Delete the acknowledged rows now. Where the disk refuses, they wait for the next time."""
        with self._lock:
            if not self._acked or self._db is None:
                return
            try:
                self._delete_acked()
            except database_errors() as problem:
                if not self._delete_with_reserve():
                    log.debug("acknowledged events stay for now", path=str(self.path), error=str(problem))
                    return
            self._acked.clear()
            lowest = self._db.execute("SELECT min(seq) FROM event").fetchone()[0]
            self._marks.floor = (lowest or self._next) - 1
            self._marks.write()

    def _delete_acked(self) -> None:
        with self._transaction():
            self._db.executemany("DELETE FROM event WHERE seq BETWEEN ? AND ?", _runs(self._acked))
            self._set_meta("next", self._next)

    def _delete_with_reserve(self) -> bool:
        """Delete on a full disk: the reserve holds the log while it is worked into the database."""
        try:
            with self._reserve.given_up():
                self._delete_acked()
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except database_errors(OSError):
            return False
        return True

    def park(self, seq: int, reason: str) -> None:
        """The broker refused this row for good: keep it aside with the reason, and tell its number."""
        with self._lock, self._translated("write"), self._transaction() as change:
            self._db.execute(
                "INSERT OR REPLACE INTO parked SELECT seq, topic, body, created, ? FROM event WHERE seq = ?",
                (reason, seq),
            )
            self._drop(change, self._sized([seq]), "rejected")
            self._db.execute(
                "DELETE FROM parked WHERE seq IN"
                " (SELECT seq FROM parked ORDER BY seq DESC LIMIT -1 OFFSET ?)",
                (MAX_PARKED,),
            )
            change.parked += self._db.execute("SELECT count(*) FROM parked").fetchone()[0] - self._parked

    def drop_older(self, topic: str, before: float, reason: str) -> int:
        """Give up the rows of a topic that came before a moment, and are not under way; returns how many."""
        with self._lock, self._translated("write"), self._transaction() as change:
            found = self._db.execute(
                "SELECT seq, length(body), created FROM event WHERE topic = ? AND created < ? AND gap = 0",
                (topic, before),
            ).fetchall()
            rows = [row for row in found if row[0] not in self._leased and row[0] not in self._acked]
            self._drop(change, rows, reason)
            return len(rows)

    def _sized(self, seqs: Iterable[int]) -> list[tuple[int, int, float]]:
        found = []
        for seq in seqs:
            row = self._db.execute(
                "SELECT seq, length(body), created FROM event WHERE seq = ?", (seq,)
            ).fetchone()
            if row:
                found.append(row)
        return found

    def requeue_parked(self) -> int:
        """Put what the broker once refused back into the queue, under the same numbers; returns how many."""
        if not self._parked:
            return 0  # without a write, which a full disk would refuse
        with self._lock, self._translated("write"), self._transaction() as change:
            one = self._db.execute("SELECT count(*), coalesce(sum(length(body)), 0) FROM parked").fetchone()
            self._db.execute("INSERT INTO event SELECT seq, topic, body, created, 0 FROM parked")
            self._db.execute("DELETE FROM parked")
            change.rows += one[0]
            change.bytes += one[1]
            change.parked -= one[0]
            self._cursor = 0
            return int(one[0])

    def now(self) -> float:
        """Unix seconds by the clock that ages the rows."""
        return self._clock()

    @property
    def last_number(self) -> int:
        """The highest number given out."""
        return self._next - 1

    @property
    def is_empty(self) -> bool:
        """Whether everything is acknowledged; does not take the lock."""
        return self._rows == 0

    @property
    def untold(self) -> bool:
        """Whether numbers were dropped that no gap event tells yet."""
        return self._dropped > 0 or self._marks.last > 0

    @property
    def depth(self) -> Depth:
        """How full it is now."""
        with self._lock:
            return Depth(self._rows, self._bytes, self._parked)

    # --- erasure ------------------------------------------------------------------------------------------

    def erase(self, word: str) -> int:
        """Erase every message that holds this word (the opaque id of a person) from the disk.

        The numbers of messages that still waited go into a gap event. The database is rewritten, so that no
        free page keeps the text, and damaged files that were set aside are deleted, since they may hold it.

        Returns:
            How many messages were erased.

        Raises:
            DiskFull, StorageError: the disk refused. Call it again; nothing is half known.
        """
        with self._lock, self._translated("erase from"):
            self.flush()
            with self._transaction() as change:
                parked = self._holding(word, "parked")
                self._db.executemany("DELETE FROM parked WHERE seq = ?", [(r[0],) for r in parked])
                change.parked -= len(parked)
                rows = self._holding(word, "event")
                self._drop(change, [r for r in rows if r[0] not in self._acked], "erased")
                done = [(r[0],) for r in rows if r[0] in self._acked]
                self._db.executemany("DELETE FROM event WHERE seq = ?", done)
            self._db.execute("VACUUM")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            for path in _damaged_files(self.path):
                _remove(path)
            return len(rows) + len(parked)

    def _holding(self, word: str, table: str) -> list[tuple[int, int, float]]:
        """Rows `(seq, bytes, created)` whose message holds the word, and not only as a part of another."""
        whole = re.compile(rb"(?<![\w-])" + re.escape(word.encode()) + rb"(?![\w-])")
        found = self._db.execute(
            f"SELECT seq, length(body), created, body FROM {table} WHERE instr(body, ?) > 0",  # noqa: S608
            (word.encode(),),
        )
        return [row[:3] for row in found if whole.search(row[3])]

    # --- damage -------------------------------------------------------------------------------------------

    def _start_over(self, problem: Exception, *, last: int) -> None:
        """Set a damaged file aside, begin a new one, and bring over what can still be read.

        A kill in the middle is mended at the next start: the new file knows less than the marks until all is
        brought over, and is then found damaged in its turn.

        Args:
            problem: how the damage showed.
            last: no number above this one was given out.
        """
        self._disconnect()
        acked = set(self._acked)
        aside = self._move_aside()
        saved = {seq: row for seq, row in self._salvage().items() if self._marks.floor < seq <= last}
        self.set_aside = aside
        log.error(
            "outbox was damaged: set aside and begun anew",
            path=str(self.path),
            set_aside=str(aside),
            saved=len(saved),
            error=str(problem),
        )
        self._open()
        self._next = max(last + 1, self._next)
        with self._transaction() as change:
            for row in saved.values():
                if row.seq not in acked:
                    gap = row.topic.endswith("/gap")
                    self._store(row, gap=gap)
                    change.gaps.extend([row.seq] if gap else [])
                    change.rows += 1
                    change.bytes += len(row.body)
            for first, end in self._missing(saved, last):
                self._note_dropped(change, first, end, "corrupt")
            self._set_meta("next", self._next)

    def _missing(self, saved: Collection[int], last: int) -> list[tuple[int, int]]:
        """Ranges between the floor and `last` that were not saved, and are not told by the marks."""
        told = range(self._marks.first, self._marks.last + 1) if self._marks.last else range(0)
        return _runs(
            seq for seq in range(self._marks.floor + 1, last + 1) if seq not in saved and seq not in told
        )

    def _move_aside(self) -> Path:
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.time_ns()}")
        for suffix in _PARTS:
            with contextlib.suppress(FileNotFoundError):
                _part(self.path, suffix).rename(_part(aside, suffix))
        for old in _damaged_files(self.path)[:-KEPT_DAMAGED]:
            _remove(old)
        return aside

    def _salvage(self) -> dict[int, Row]:
        """Whole rows that can still be read, from the front and from the back up to where it breaks."""
        saved: dict[int, Row] = {}
        for damaged in _damaged_files(self.path):
            for order in ("ASC", "DESC"):
                with (
                    contextlib.suppress(*database_errors()),
                    contextlib.closing(self._connect(damaged)) as db,
                ):
                    query = f"SELECT seq, topic, body, created FROM event ORDER BY seq {order}"  # noqa: S608
                    rows = (Row(*values) for values in db.execute(query))
                    saved.update((row.seq, row) for row in rows if _is_whole(row))
        return dict(sorted(saved.items()))


def rekey(path: Path, old: bytes | None, new: bytes | None) -> bool:
    """Write the outbox of a stopped agent anew under another key (None: plain); see `encryption.rewrite`.

    Damaged files that were set aside are deleted: they have the old key.

    Returns:
        False where it had the new key already.

    Raises:
        ConfigError, StorageError: as from `rewrite`; it is then as it was.
    """
    done = rewrite(path, old, new)
    marks = Marks(path.with_name(path.name + ".marks"))
    marks.open()
    try:
        marks.key_check = key_check(new)
        marks.write()
        marks.sync()
    finally:
        marks.close()
    for damaged in _damaged_files(path):
        _remove(damaged)
    return done


class _Damaged(Exception):
    """The check of the database found damage."""


_PARTS = ("", "-wal", "-shm")
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_DAMAGE = ("malformed", "not a database", "file is encrypted")


def _damaged_files(path: Path) -> list[Path]:
    """What was set aside of the outbox of this path, the oldest first."""
    found = path.parent.glob(f"{path.name}.damaged-*")
    return sorted(one for one in found if not one.name.endswith(_PARTS[1:]))


def _part(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _remove(path: Path) -> None:
    """Delete a database with what SQLite keeps beside it."""
    for suffix in _PARTS:
        _part(path, suffix).unlink(missing_ok=True)


def _is_damage(problem: Exception) -> bool:
    return isinstance(problem, _Damaged) or any(word in str(problem) for word in _DAMAGE)


def _is_whole(row: Row) -> bool:
    """Whether a row read from a damaged file is the message that was written."""
    try:
        return isinstance(json.loads(row.body), dict)
    except (ValueError, TypeError):
        return False


def _runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Numbers as runs `(first, last)`, ascending."""
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


def _joined(ranges: list[NumberRange]) -> Iterator[NumberRange]:
    """Neighbouring ranges as one; they come in ascending order."""
    first, last = ranges[0].first, ranges[0].last
    for one in ranges[1:]:
        if one.first == last + 1:
            last = one.last
        else:
            yield NumberRange(first, last)
            first, last = one.first, one.last
    yield NumberRange(first, last)
