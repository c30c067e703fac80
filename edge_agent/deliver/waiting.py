"""Events that wait for the broker, their bounds, and the parked ones: the tables `event` and `parked`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from edge_agent.deliver.database import CLOCK_SET, Change, OutboxDatabase, Row
from edge_agent.deliver.gaps import Gaps, runs

if TYPE_CHECKING:
    from edge_agent.core.config import OutboxSettings

__all__ = ["Bounds", "ParkedEvents", "Size", "WaitingEvents"]

Size = tuple[int, int, float]
"""Of a row: `(seq, bytes, created)`."""

MAX_PARKED = 1000
"""Refused events that are kept; the oldest are deleted. A gap event named them when they were parked."""
EXPIRY_INTERVAL_S = 1.0
"""How often rows are checked for their age."""
EXPIRY_BATCH = 10_000
"""Most rows that one check drops, so that none takes long."""
ACK_BATCH = 200
"""Acknowledged rows that are deleted in one transaction, which saves flash writes and time."""


class WaitingEvents:
    """Queue of events on disk; in memory, which of them are being sent or are acknowledged. Not
    thread-safe.
    """

    def __init__(self, database: OutboxDatabase, gaps: Gaps) -> None:
        self._database = database
        self._gaps = gaps
        self._sending: dict[int, int] = {}
        self._cursor = 0
        self.acknowledged: set[int] = set()
        """Numbers that the broker has acknowledged, and whose rows are not deleted yet."""

    def load(self) -> int:
        """Forget what was being sent; return the highest number in the table."""
        self._sending.clear()
        self.acknowledged.clear()
        self._cursor = 0
        return self._database.value("SELECT max(seq) FROM event") or 0

    def insert(self, seq: int, topic: str, body: bytes, created: float) -> None:
        """Add a row in a transaction of its own. This is the fast path of `Outbox.append`."""
        database = self._database
        database.connection.execute("INSERT INTO event VALUES (?, ?, ?, ?, 0)", (seq, topic, body, created))
        database.rows += 1
        database.bytes += len(body)

    def store(self, change: Change, row: Row, *, gap: bool = False) -> None:
        """Add a row."""
        values = (row.seq, row.topic, row.body, row.created, gap)
        self._database.connection.execute("INSERT INTO event VALUES (?, ?, ?, ?, ?)", values)
        change.rows += 1
        change.bytes += len(row.body)

    def pending(self, limit: int, without: Collection[str]) -> list[Row]:
        """Return the next rows to send in ascending order; they count as being sent from now on."""
        marks = ", ".join("?" * len(without))
        query = (
            "SELECT seq, topic, body, created FROM event WHERE seq > ?"  # noqa: S608 - question marks only
            f" AND topic NOT IN ({marks}) ORDER BY seq LIMIT ?"
        )
        rows: list[Row] = []
        while (wanted := limit - len(rows)) > 0:
            found = self._database.connection.execute(query, (self._cursor, *without, wanted)).fetchall()
            self._cursor = found[-1][0] if found else self._cursor
            rows += [Row(*values) for values in found if self._is_free(values[0])]
            if len(found) < wanted:
                break
        self._sending.update((row.seq, len(row.body)) for row in rows)
        return rows

    def first_of(self, topic: str) -> Row | None:
        """Return the oldest row of one topic that is not being sent; it counts as being sent from now on."""
        found = self._database.connection.execute(
            "SELECT seq, topic, body, created FROM event WHERE topic = ? ORDER BY seq LIMIT ?",
            (topic, 1 + self._held),
        )
        row = next((Row(*values) for values in found if self._is_free(values[0])), None)
        if row is not None:
            self._sending[row.seq] = len(row.body)
        return row

    @property
    def _held(self) -> int:
        return len(self._sending) + len(self.acknowledged)

    def _is_free(self, seq: int) -> bool:
        return seq not in self._sending and seq not in self.acknowledged

    def release(self, seqs: Iterable[int] | None = None) -> None:
        """End the sending of these rows, of all by default: `pending` returns them again."""
        for seq in list(self._sending if seqs is None else seqs):
            self._sending.pop(seq, None)
        self._cursor = 0

    def acknowledge(self, seqs: Iterable[int]) -> bool:
        """Mark rows as acknowledged; return whether it is time to delete them."""
        for seq in seqs:
            size = self._sending.pop(seq, None)
            if size is not None:
                self.acknowledged.add(seq)
                self._gaps.waiting.discard(seq)
                self._database.rows -= 1
                self._database.bytes -= size
        return len(self.acknowledged) >= ACK_BATCH

    def delete_acknowledged(self) -> None:
        """Delete the acknowledged rows; the counters did not include them any more."""
        self._database.connection.executemany(
            "DELETE FROM event WHERE seq BETWEEN ? AND ?", runs(self.acknowledged)
        )

    def droppable(self, count: int) -> list[Size]:
        """Return the oldest rows that are neither gap events, nor being sent, nor acknowledged."""
        found = self._database.connection.execute(
            "SELECT seq, length(body), created FROM event WHERE gap = 0 ORDER BY seq LIMIT ?",
            (count + self._held,),
        )
        return [size for size in found if self._is_free(size[0])][:count]

    def older(self, topic: str, before: float) -> list[Size]:
        """Return the rows of a topic that were appended before a moment and are not being sent."""
        found = self._database.connection.execute(
            "SELECT seq, length(body), created FROM event WHERE topic = ? AND created < ? AND gap = 0",
            (topic, before),
        )
        return [size for size in found if self._is_free(size[0])]

    def drop(self, change: Change, rows: Sequence[Size], reason: str) -> None:
        """Delete rows that will not be sent, and record their numbers for a gap event."""
        for seq, size, _ in rows:
            self._database.connection.execute("DELETE FROM event WHERE seq = ?", (seq,))
            self._gaps.note(change, seq, seq, reason)
            change.rows -= 1
            change.bytes -= size
        change.after.append(lambda: self._forget(rows))

    def _forget(self, rows: Sequence[Size]) -> None:
        for seq, _, _ in rows:
            self._sending.pop(seq, None)
            self._gaps.waiting.discard(seq)


class ParkedEvents:
    """Events that the broker refused, kept for another attempt at the next start. Not thread-safe."""

    def __init__(self, database: OutboxDatabase, waiting: WaitingEvents) -> None:
        self._database = database
        self._waiting = waiting
        self.count = 0

    def load(self) -> int:
        """Count the parked events; return their highest number."""
        count, last = self._database.connection.execute("SELECT count(*), max(seq) FROM parked").fetchone()
        self.count = count
        return last or 0

    def park(self, change: Change, seq: int, reason: str) -> None:
        """Move a waiting event here, and record its number for a gap event."""
        execute = self._database.connection.execute
        execute(
            "INSERT OR REPLACE INTO parked SELECT seq, topic, body, created, ? FROM event WHERE seq = ?",
            (reason, seq),
        )
        rows = execute("SELECT seq, length(body), created FROM event WHERE seq = ?", (seq,)).fetchall()
        self._waiting.drop(change, rows, "rejected")
        execute(
            "DELETE FROM parked WHERE seq IN (SELECT seq FROM parked ORDER BY seq DESC LIMIT -1 OFFSET ?)",
            (MAX_PARKED,),
        )
        change.after.append(self.load)

    def requeue(self, change: Change) -> int:
        """Move all back to the waiting events, with their numbers; return how many."""
        execute = self._database.connection.execute
        count, size = execute("SELECT count(*), coalesce(sum(length(body)), 0) FROM parked").fetchone()
        execute("INSERT INTO event SELECT seq, topic, body, created, 0 FROM parked")
        execute("DELETE FROM parked")
        change.rows += count
        change.bytes += size
        change.after += [self.load, lambda: self._waiting.release(())]
        return int(count)

    def delete(self, change: Change, rows: Sequence[Size]) -> None:
        """Delete parked events."""
        self._database.connection.executemany("DELETE FROM parked WHERE seq = ?", [(r[0],) for r in rows])
        change.after.append(self.load)

    def expire(self, change: Change, before: float) -> None:
        """Delete the parked events that were appended before a moment."""
        if self.count:
            self._database.connection.execute(
                "DELETE FROM parked WHERE created < ? AND created > ?", (before, CLOCK_SET)
            )
            change.after.append(self.load)


class Bounds:
    """Keeps the waiting events within the configured number, bytes and age: the oldest are dropped."""

    def __init__(
        self,
        settings: OutboxSettings,
        database: OutboxDatabase,
        waiting: WaitingEvents,
        parked: ParkedEvents,
    ) -> None:
        self._max_rows = settings.max_rows
        self._max_bytes = int(settings.max_megabytes * (1 << 20))
        self._max_age_s = settings.max_age_hours * 3600
        self._database = database
        self._waiting = waiting
        self._parked = parked
        self.next_expiry = 0.0
        """When the age is checked next; 0: at the next event, which takes the slow path then."""

    def allow(self, now: float, size: int) -> bool:
        """Whether a message of `size` bytes can be inserted without any other work."""
        database = self._database
        return (
            now < self.next_expiry
            and database.rows < self._max_rows
            and database.bytes + size <= self._max_bytes
        )

    def expire(self, change: Change, now: float) -> None:
        """Drop events that are too old, unless that was done a moment ago."""
        if now < self.next_expiry:
            return
        oldest = now - self._max_age_s
        head = self._database.value(
            "SELECT created FROM event WHERE gap = 0 AND created > ? ORDER BY seq LIMIT 1", CLOCK_SET
        )
        if head is not None and head < oldest:
            rows = self._waiting.droppable(EXPIRY_BATCH)
            self._waiting.drop(change, [r for r in rows if CLOCK_SET < r[2] < oldest], "age")
        self._parked.expire(change, oldest)
        # After the commit: until the marks are in the database, events must take the slow path.
        change.after.append(lambda: self._set_next(now + EXPIRY_INTERVAL_S))

    def _set_next(self, moment: float) -> None:
        self.next_expiry = moment

    def make_room(self, change: Change, size: int) -> None:
        """Drop the oldest events until one of `size` bytes fits."""
        database = self._database
        excess = database.rows + change.rows + 1 - self._max_rows
        if excess > 0:
            self._waiting.drop(change, self._waiting.droppable(excess), "rows")
        while database.bytes + change.bytes + size > self._max_bytes:
            rows = self._waiting.droppable(1)
            if not rows:
                break
            self._waiting.drop(change, rows, "bytes")
