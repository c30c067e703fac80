"""The numbered events that the broker has not acknowledged yet, in a SQLite file.

An event has its number and is on disk before `append` returns. It leaves when the broker has acknowledged it
(`acknowledge`), when the broker has refused it (`park`), or when a bound is exceeded. In the last two cases
`report_gaps` makes an event that names its number to the subscribers.

Two facts must survive the loss of the database: the numbers that could not be written to a full disk, and
the next free number when the file is damaged, or shorter than before a power cut. Both are in `marks`, a
small file of fixed size that is written in place and therefore needs no free space. `storage` opens, replaces
and changes the files.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import structlog

from edge_agent.core.clock import CLOCK_FILE, Clock
from edge_agent.core.codec import encode
from edge_agent.core.encryption import database_key
from edge_agent.core.errors import StorageError
from edge_agent.core.events import Event, GapData, NumberRange, new_event
from edge_agent.core.sqlite import database_errors
from edge_agent.deliver.damaged import indicates_damage, remove_damaged
from edge_agent.deliver.open_tracks import TrackChange, without_person
from edge_agent.deliver.parked import Parked
from edge_agent.deliver.ranges import joined
from edge_agent.deliver.rows import Row, Size, naming
from edge_agent.deliver.storage import Storage
from edge_agent.deliver.stored import Stored

if TYPE_CHECKING:
    from edge_agent.core.config import Settings
    from edge_agent.core.delivery_settings import OutboxSettings

log = structlog.get_logger(__name__)

OUTBOX_FILE = "outbox.db"
"""Inside the state folder."""
MAX_RANGES = 500
"""Number ranges in one gap event, which keeps it below 30 kB."""
EXPIRY_INTERVAL_S = 1.0
"""How often rows are checked for their age."""
EXPIRY_BATCH = 10_000
"""Most rows that one check drops, so that none takes long."""
ACK_BATCH = 200
"""Acknowledged rows that are deleted in one transaction, which saves flash writes and time."""


@dataclass(frozen=True, slots=True)
class Depth:
    """Fill level of the outbox: events that wait, the bytes of their messages, and parked events."""

    rows: int
    bytes: int
    parked: int


def make_outbox(
    settings: Settings,
    clock: Clock | None = None,
    name: str = OUTBOX_FILE,
    settle: Callable[[], None] = lambda: None,
) -> Outbox:
    """Return an outbox of the state folder, not open yet. ConfigError: `storage.key` is not a key.

    `clock` is that of the state folder, opened here when it is None; `settle`: see `Outbox`.
    """
    clock = clock or Clock.open(settings.state_dir / CLOCK_FILE)
    path, key = settings.state_dir / name, database_key(settings.storage)
    return Outbox(path, settings.outbox, key=key, clock=clock, settle=settle)


class Outbox:
    """Events on disk until the broker has them. For one process; its threads may share it.

    Args:
        path: the database; its folder must exist. `<path>.marks` and `<path>.reserve` are next to it.
        settings: bounds, and when an event counts as written: `NORMAL` survives a kill of the process at any
            instruction and may lose the last moments before a power cut; `FULL` waits for the disk at every
            event and loses nothing even then.
        key: 32 bytes; encrypts the file with SQLCipher (extra `encrypt`); see `edge_agent.core.encryption`.
        clock: ages the events. They are stored with its instants, so no wall clock makes them old. Those of
            another clock (an earlier version, a file that was copied here) count from the opening.
        settle: called before events are given out to be sent; waits until what they state is on the disk.
    """

    def __init__(
        self,
        path: Path,
        settings: OutboxSettings,
        *,
        key: bytes | None = None,
        clock: Clock | None = None,
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        self.clock = clock or Clock()
        self._settle = settle
        self._max_rows = settings.max_rows
        self._max_bytes = int(settings.max_megabytes * (1 << 20))
        self._max_age_s = settings.max_age_hours * 3600
        self._storage = Storage(Path(path), settings, key)
        self.stored = Stored(self._storage)
        """What is in it, to read."""
        self.parked = Parked(self._storage)
        self._lock = self._storage.lock
        self._failing = False

    def __enter__(self) -> Outbox:
        """Open it; set a damaged file aside.

        Raises:
            StorageError: it is in use, of another version or another key, or its folder is not writable.
            DiskFull: there is no space for a new one.
            ConfigError: a key is given, and SQLCipher is not installed.
        """
        with self._lock:
            self._storage.open()
            _adopt_clock(self._storage, self.clock)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Delete the acknowledged rows and close the files."""
        with self._lock:
            if self._storage.is_connected:
                self.flush()
                self._storage.marks.release(self.last_number)
            self._storage.close()

    # --- in -----------------------------------------------------------------------------------------------

    def append(self, body: bytes, topic: str, track: TrackChange | None = None) -> int:
        """Number a message, a JSON object without `seq`, write it durably, and return its number.

        `track` is what it changes among the open tracks, in the same transaction.

        Raises:
            DiskFull: it could not be written; its number counts as dropped, and a gap event will name it.
            StorageError: the same, for another reason than a full disk.
        """
        storage = self._storage
        with self._lock:
            state = storage.state
            row = Row(state.next, topic, body, self.clock.now(), track)
            storage.marks.reserve(row.seq)
            state.next += 1
            try:
                if (
                    row.created < state.next_expiry
                    and state.rows < self._max_rows
                    and state.bytes + len(body) <= self._max_bytes
                ):
                    with storage.transaction() if track is not None else contextlib.nullcontext():
                        storage.store(row)
                else:
                    self._append_with_upkeep(row)
            except database_errors() as problem:
                self._handle_unwritten(row, problem)
            return row.seq

    def _append_with_upkeep(self, row: Row) -> None:
        """Add a row; drop old events, and the oldest ones until it fits."""
        storage = self._storage
        storage.require_open(last=row.seq - 1)
        storage.state.next = row.seq + 1  # a new database does not know this number
        with storage.transaction():
            self._drop_expired(row.created)
            excess = storage.state.rows + 1 - self._max_rows
            if excess > 0:
                storage.drop(storage.droppable(excess), "rows")
            while storage.state.bytes + len(row.body) > self._max_bytes and (rows := storage.droppable(1)):
                storage.drop(rows, "bytes")
            storage.store(row)
        if self._failing:
            self._failing = False
            log.info("outbox can be written again", path=str(storage.path))

    def _handle_unwritten(self, row: Row, problem: Exception) -> None:
        """Append to a new file if the old one is damaged, else record the number in the marks and raise."""
        storage = self._storage
        if indicates_damage(problem):
            try:
                storage.start_over(problem, last=row.seq - 1)
                self._append_with_upkeep(row)
                return
            except database_errors(OSError) as again:
                problem = again
        storage.state.next = row.seq + 1
        storage.state.next_expiry = 0.0
        storage.marks.note_unwritten(row.seq)
        if not self._failing:
            self._failing = True
            log.warning(
                "outbox cannot be written: events are dropped", path=str(storage.path), error=str(problem)
            )
        raise storage.description.error(problem) from problem

    def expire(self) -> None:
        """Drop events that are too old; call it regularly while no events come in."""
        with self._storage.locked():
            if self.clock.now() >= self._storage.state.next_expiry:
                with self._storage.transaction():
                    self._drop_expired(self.clock.now())

    def _drop_expired(self, now: float) -> None:
        storage = self._storage
        if now < storage.state.next_expiry:
            return
        storage.state.next_expiry = now + EXPIRY_INTERVAL_S
        if self.clock.paused:
            return
        oldest = self.clock.ago(self._max_age_s)
        head = storage.value("SELECT created FROM event WHERE gap = 0 ORDER BY seq LIMIT 1")
        if head is not None and head < oldest:
            rows = storage.droppable(EXPIRY_BATCH)
            storage.drop([row for row in rows if row[2] < oldest], "age")
        if storage.state.parked:
            storage.state.parked -= storage.connection.execute(
                "DELETE FROM parked WHERE created < ?", (oldest,)
            ).rowcount

    def report_gaps(
        self, stamp: Callable[[Event], Event], topic: str, *, most: int = MAX_RANGES
    ) -> list[Row]:
        """Append gap events for the dropped numbers, one per reason, of `most` ranges, and return their rows.

        While older gap events still wait, none are made: the next ones include what is dropped meanwhile.
        `stamp` adds source and session to an event.

        Raises:
            DiskFull, StorageError: they could not be written; the numbers stay recorded.
        """
        storage, made = self._storage, []
        with storage.locked():
            if storage.state.gaps or not self.unreported:
                return []
            now = self.clock.now()
            with storage.transaction() as execute:
                query = "SELECT first, last, reason FROM dropped ORDER BY first LIMIT ?"
                found: dict[str, list[tuple[int, int]]] = {}
                for first, last, reason in execute(query, (most,)).fetchall():
                    execute("DELETE FROM dropped WHERE first = ?", (first,))
                    storage.state.ranges -= 1
                    found.setdefault(reason, []).append((first, last))
                for reason, ranges in found.items():
                    numbers = tuple(NumberRange(*one) for one in joined(ranges))
                    data = GapData(reason, numbers, sum(last - first + 1 for first, last in ranges))
                    event = stamp(new_event("gap", data, time=self.clock.label()))
                    made.append(Row(storage.state.next, topic, encode(event), now))
                    storage.state.next += 1
                    storage.store(made[-1], gap=True)
            storage.state.gaps.update(row.seq for row in made)
            return made

    # --- out ----------------------------------------------------------------------------------------------

    def pending(self, limit: int, *, without: Collection[str] = ()) -> list[Row]:
        """Return the next rows to send, lowest number first, except of the topics `without`.

        They count as being sent until they are settled.
        """
        query = (
            "SELECT seq, topic, body, created FROM event WHERE seq > ? AND topic NOT IN"  # noqa: S608
            f" ({', '.join('?' * len(without))}) ORDER BY seq LIMIT ?"
        )
        rows: list[Row] = []
        with self._storage.locked():
            state, execute = self._storage.state, self._storage.connection.execute
            while (wanted := limit - len(rows)) > 0:
                found = execute(query, (state.cursor, *without, wanted)).fetchall()
                state.cursor = found[-1][0] if found else state.cursor
                rows += [Row(*values) for values in found if state.is_free(values[0])]
                if len(found) < wanted:
                    break
            state.sending.update((row.seq, len(row.body)) for row in rows)
        self._settled(rows)
        return rows

    def first_of(self, topic: str) -> Row | None:
        """Return the oldest row of one topic that is not being sent; it counts as being sent from now on."""
        with self._storage.locked():
            state = self._storage.state
            found = self._storage.connection.execute(
                "SELECT seq, topic, body, created FROM event WHERE topic = ? ORDER BY seq LIMIT ?",
                (topic, 1 + state.held),
            )
            row = next((Row(*values) for values in found if state.is_free(values[0])), None)
            if row is not None:
                state.sending[row.seq] = len(row.body)
        self._settled([] if row is None else [row])
        return row

    def _settled(self, rows: Sequence[Row]) -> None:
        """Wait until what rows state is on the disk; StorageError: they are not given out."""
        if not rows:
            return
        try:
            self._settle()
        except StorageError:
            self.release([row.seq for row in rows])
            raise

    def release(self, seqs: Iterable[int] | None = None) -> None:
        """End the sending of these rows, of all by default: `pending` returns them again."""
        with self._lock:
            state = self._storage.state
            for seq in list(state.sending if seqs is None else seqs):
                state.sending.pop(seq, None)
            state.cursor = 0

    def acknowledge(self, seqs: Iterable[int]) -> None:
        """Record that the broker has these rows: they are deleted in batches (see `flush`)."""
        with self._lock:
            state = self._storage.state
            for seq in seqs:
                size = state.sending.pop(seq, None)
                if size is not None:
                    state.acknowledged.add(seq)
                    state.gaps.discard(seq)
                    state.rows -= 1
                    state.bytes -= size
            if len(state.acknowledged) >= ACK_BATCH:
                self.flush()

    def flush(self) -> None:
        """Delete the acknowledged rows now. When that fails, they wait for the next call."""
        storage = self._storage
        with self._lock:
            if not storage.state.acknowledged or not storage.is_connected:
                return
            try:
                storage.delete_acknowledged()
            except database_errors() as problem:
                try:  # on a full disk the reserve holds the log while it is merged into the database
                    with storage.reserve.released():
                        storage.delete_acknowledged()
                        storage.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                except database_errors(OSError):
                    log.debug("acknowledged events stay for now", path=str(storage.path), error=str(problem))
                    return
            storage.state.acknowledged.clear()
            lowest = storage.value("SELECT min(seq) FROM event")
            storage.marks.floor = (lowest or storage.state.next) - 1
            storage.marks.write()

    def sync_marks(self) -> None:
        """Write the reserved numbers to the disk, for the case of a power cut; call it regularly.

        It does not take the lock, so that no other call waits for the disk.
        """
        self._storage.marks.sync_reserved()

    def drop_older(self, topic: str, before: float, reason: str) -> None:
        """Drop the rows of a topic that are older and not being sent."""
        with self._storage.changed() as execute:
            found = execute(
                "SELECT seq, length(body), created FROM event WHERE topic = ? AND created < ? AND gap = 0",
                (topic, before),
            ).fetchall()
            self._storage.drop([size for size in found if self._storage.state.is_free(size[0])], reason)

    def erase(self, word: str) -> int:
        """Erase every message that contains this word (the opaque id of a person) from the disk.

        Open tracks stay, without the person. The numbers of messages that still waited go into a gap event.
        The database is rewritten, so that no free page keeps the text, and damaged files that were set aside
        are deleted, since they may contain it.

        Returns how many messages were erased.

        Raises:
            DiskFull, StorageError: the disk failed. Call it again.
        """
        storage = self._storage
        with storage.locked():
            self.flush()
            acknowledged = storage.state.acknowledged
            with storage.transaction() as execute:
                parked = _containing(execute, word, "parked")
                for seq, _, _ in parked:
                    execute("DELETE FROM parked WHERE seq = ?", (seq,))
                storage.state.parked -= len(parked)
                tracks = execute("SELECT rowid, body FROM track WHERE instr(body, ?)", (word.encode(),))
                for row, body in tracks.fetchall():
                    execute("UPDATE track SET body = ? WHERE rowid = ?", (without_person(body), row))
                rows = _containing(execute, word, "event")
                storage.drop([row for row in rows if row[0] not in acknowledged], "erased")
                for seq in acknowledged & {row[0] for row in rows}:
                    execute("DELETE FROM event WHERE seq = ?", (seq,))
            for seq, _, _ in rows:
                storage.state.sending.pop(seq, None)
                storage.state.gaps.discard(seq)
            storage.connection.execute("VACUUM")
            storage.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            remove_damaged(storage.path)
            return len(rows) + len(parked)

    # --- state --------------------------------------------------------------------------------------------

    @property
    def set_aside(self) -> Path | None:
        """New path of a damaged file, if there was one when this outbox was opened or used."""
        return self._storage.set_aside

    @property
    def last_number(self) -> int:
        """The highest number given out."""
        return self._storage.state.next - 1

    @property
    def is_empty(self) -> bool:
        """Whether every event is acknowledged; does not take the lock."""
        return self._storage.state.rows == 0

    @property
    def unreported(self) -> bool:
        """Whether numbers were dropped that no gap event names yet."""
        return self._storage.state.ranges > 0 or self._storage.marks.last > 0

    @property
    def depth(self) -> Depth:
        """The fill level now."""
        with self._lock:
            state = self._storage.state
            return Depth(state.rows, state.bytes, state.parked)


def _adopt_clock(storage: Storage, clock: Clock) -> None:
    """Let rows that have instants of another clock count from now."""
    axis = int(clock.id, 16) >> 11  # below 1 << 53, as `tables` has it
    if storage.meta("clock") != axis:
        with contextlib.suppress(*database_errors()), storage.transaction() as execute:
            execute("UPDATE event SET created = ?", (clock.now(),))
            execute("UPDATE parked SET created = ?", (clock.now(),))
            storage.set_meta("clock", axis)


def _containing(
    execute: Callable[..., Iterable[tuple[int, int, float, bytes]]], word: str, table: str
) -> list[Size]:
    """Rows whose message contains the word, and not only as a part of another."""
    names = naming(word)
    query = f"SELECT seq, length(body), created, body FROM {table} WHERE instr(body, ?) > 0"  # noqa: S608
    return [row[:3] for row in execute(query, (word.encode(),)) if names(row[3])]
