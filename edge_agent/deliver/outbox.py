"""The numbered events that the broker has not acknowledged yet, in a SQLite file.

An event has its number and is on disk before `append` returns. It leaves when the broker has acknowledged it
(`acknowledge`), when the broker has refused it (`park`), or when a bound is exceeded. In the last two cases
`report_gaps` makes an event that names its number to the subscribers.

Two facts must survive the loss of the database: the numbers that could not be written to a full disk, and
the next free number when the file is damaged, or shorter than before a power cut. Both are in `marks`, a
small file of fixed size that is written in place and therefore needs no free space.

============  ================================================================
`storage`     all files as one unit: open, append, delete, replace after damage
`database`    the SQLite file: schema, transactions, counters
`waiting`     the queue, its bounds, and the events that the broker refused
`gaps`        dropped numbers, and gap events
`marks`       numbers and disk space outside of the database
`recovery`    damaged files
============  ================================================================
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from edge_agent.core.encryption import database_key
from edge_agent.core.events import Event
from edge_agent.deliver import recovery
from edge_agent.deliver.database import Row
from edge_agent.deliver.storage import Storage
from edge_agent.deliver.waiting import Size

if TYPE_CHECKING:
    from edge_agent.core.config import OutboxSettings, Settings

__all__ = ["OUTBOX_FILE", "Depth", "Outbox", "make_outbox"]

OUTBOX_FILE = "outbox.db"
"""Inside the state folder."""


@dataclass(frozen=True, slots=True)
class Depth:
    """Fill level of the outbox: events that wait, the bytes of their messages, and parked events."""

    rows: int
    bytes: int
    parked: int


def make_outbox(settings: Settings) -> Outbox:
    """Return the outbox of the state folder; not open yet.

    Raises:
        ConfigError: `storage.key` is not a key.
    """
    return Outbox(settings.state_dir / OUTBOX_FILE, settings.outbox, key=database_key(settings.storage))


class Outbox:
    """Events on disk until the broker has them. For one process; its threads may share it.

    Args:
        path: the database; its folder must exist. `<path>.marks` and `<path>.reserve` are next to it.
        settings: bounds, and when an event counts as written: `NORMAL` survives a kill of the process at any
            instruction and may lose the last moments before a power cut; `FULL` waits for the disk at every
            event and loses nothing even then.
        key: 32 bytes; encrypts the file with SQLCipher (extra `encrypt`); see `edge_agent.core.encryption`.
        clock: Unix seconds; by default the wall clock at the start plus the monotonic clock, so that a jump
            of the wall clock does not change the age of events.
    """

    def __init__(
        self,
        path: Path,
        settings: OutboxSettings,
        *,
        key: bytes | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.path = Path(path)
        offset = time.time() - time.monotonic()
        self.now = clock or (lambda: offset + time.monotonic())
        """Returns Unix seconds by the clock that ages the events."""
        self._storage = Storage(self.path, settings, key)
        self._lock = self._storage.lock

    def __enter__(self) -> Outbox:
        """Open it; set a damaged file aside.

        Raises:
            StorageError: it is in use, of another version or another key, or its folder is not writable.
            DiskFull: there is no space for a new one.
            ConfigError: a key is given, and SQLCipher is not installed.
        """
        with self._lock:
            self._storage.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Delete the acknowledged rows and close the files."""
        with self._lock:
            self._storage.close()

    # --- in -----------------------------------------------------------------------------------------------

    def append(self, body: bytes, topic: str) -> int:
        """Number a message, a JSON object without `seq`, and write it durably.

        Returns:
            Its number.

        Raises:
            DiskFull: it could not be written; its number counts as dropped, and a gap event will name it.
            StorageError: the same, for another reason than a full disk.
        """
        with self._lock:
            return self._storage.append(body, topic, self.now())

    def expire(self) -> None:
        """Drop events that are too old; call it regularly while no events come in."""
        storage = self._storage
        with storage.locked():
            if self.now() >= storage.bounds.next_expiry:
                with storage.database.transaction() as change:
                    storage.gaps.move_marks(change)
                    storage.bounds.expire(change, self.now())

    def report_gaps(self, stamp: Callable[[Event], Event], topic: str) -> list[Row]:
        """Append gap events for the dropped numbers, one per reason.

        While older gap events still wait, none are made: the next ones include what is dropped meanwhile.

        Args:
            stamp: adds source and session to an event.
            topic: of gap events.

        Returns:
            The new rows.

        Raises:
            DiskFull, StorageError: they could not be written; the numbers stay recorded.
        """
        storage = self._storage
        with storage.locked():
            if storage.gaps.waiting or not storage.gaps.unreported:
                return []
            before = storage.numbers.next
            try:
                with storage.database.transaction() as change:
                    storage.gaps.move_marks(change)
                    return storage.gaps.report(change, stamp, topic, self.now())
            except BaseException:
                storage.numbers.next = before  # these numbers were not used
                raise

    # --- out ----------------------------------------------------------------------------------------------

    def pending(self, limit: int, *, without: Collection[str] = ()) -> list[Row]:
        """Return the next rows to send, lowest number first; they count as being sent until they are settled.

        Args:
            limit: most rows.
            without: topics to skip.
        """
        with self._storage.locked():
            return self._storage.waiting.pending(limit, without)

    def first_of(self, topic: str) -> Row | None:
        """Return the oldest row of one topic that is not being sent; it counts as being sent from now on."""
        with self._storage.locked():
            return self._storage.waiting.first_of(topic)

    def release(self, seqs: Iterable[int] | None = None) -> None:
        """End the sending of these rows, of all by default: `pending` returns them again."""
        with self._lock:
            self._storage.waiting.release(seqs)

    def acknowledge(self, seqs: Iterable[int]) -> None:
        """Record that the broker has these rows: they are deleted in batches (see `flush`)."""
        with self._lock:
            self._storage.acknowledge(seqs)

    def flush(self) -> None:
        """Delete the acknowledged rows now. When that fails, they wait for the next call."""
        with self._lock:
            self._storage.flush()

    def sync_marks(self) -> None:
        """Write the reserved numbers to the disk, for the case of a power cut; call it regularly.

        It does not take the lock, so that no other call waits for the disk.
        """
        self._storage.numbers.sync()

    def park(self, seq: int, reason: str) -> None:
        """Set aside an event that the broker refuses, and record its number for a gap event."""
        with self._storage.changed() as change:
            self._storage.parked.park(change, seq, reason)

    def requeue_parked(self) -> int:
        """Move parked events back into the queue, with their numbers; return how many."""
        storage = self._storage
        if not storage.parked.count:
            return 0  # without a write, which fails on a full disk
        with storage.changed() as change:
            return storage.parked.requeue(change)

    def drop_older(self, topic: str, before: float, reason: str) -> int:
        """Drop the rows of a topic that are older and not being sent; return how many."""
        storage = self._storage
        with storage.changed() as change:
            rows = storage.waiting.older(topic, before)
            storage.waiting.drop(change, rows, reason)
            return len(rows)

    def erase(self, word: str) -> int:
        """Erase every message that contains this word (the opaque id of a person) from the disk.

        The numbers of messages that still waited go into a gap event. The database is rewritten, so that no
        free page keeps the text, and damaged files that were set aside are deleted, since they may contain
        it.

        Returns:
            How many messages were erased.

        Raises:
            DiskFull, StorageError: the disk failed. Call it again.
        """
        storage = self._storage
        with storage.locked():
            storage.flush()
            with storage.database.transaction() as change:
                parked = self._containing(word, "parked")
                storage.parked.delete(change, parked)
                rows = self._containing(word, "event")
                acknowledged = storage.waiting.acknowledged
                storage.waiting.drop(change, [r for r in rows if r[0] not in acknowledged], "erased")
                done = [(r[0],) for r in rows if r[0] in acknowledged]
                storage.database.connection.executemany("DELETE FROM event WHERE seq = ?", done)
            storage.database.connection.execute("VACUUM")
            storage.database.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            recovery.remove_damaged(self.path)
            return len(rows) + len(parked)

    def _containing(self, word: str, table: str) -> list[Size]:
        """Rows whose message contains the word, and not only as a part of another."""
        whole = re.compile(rb"(?<![\w-])" + re.escape(word.encode()) + rb"(?![\w-])")
        found = self._storage.database.connection.execute(
            f"SELECT seq, length(body), created, body FROM {table} WHERE instr(body, ?) > 0",  # noqa: S608
            (word.encode(),),
        )
        return [row[:3] for row in found if whole.search(row[3])]

    # --- state --------------------------------------------------------------------------------------------

    @property
    def set_aside(self) -> Path | None:
        """New path of a damaged file, if there was one when this outbox was opened or used."""
        return self._storage.set_aside

    @property
    def last_number(self) -> int:
        """The highest number given out."""
        return self._storage.numbers.last

    @property
    def is_empty(self) -> bool:
        """Whether every event is acknowledged; does not take the lock."""
        return self._storage.database.rows == 0

    @property
    def unreported(self) -> bool:
        """Whether numbers were dropped that no gap event names yet."""
        return self._storage.gaps.unreported

    @property
    def depth(self) -> Depth:
        """The fill level now."""
        storage = self._storage
        with self._lock:
            return Depth(storage.database.rows, storage.database.bytes, storage.parked.count)
