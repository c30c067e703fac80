"""The files of the outbox as one unit: opening, appending, deleting, and replacing a damaged database."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from edge_agent.core.encryption import key_check
from edge_agent.core.errors import StorageError
from edge_agent.core.sqlite import Description, database_errors
from edge_agent.deliver import recovery
from edge_agent.deliver.database import Change, Damaged, OutboxDatabase, Row
from edge_agent.deliver.gaps import Gaps, runs
from edge_agent.deliver.marks import Marks, Numbers, Reserve, boot_check
from edge_agent.deliver.waiting import Bounds, ParkedEvents, WaitingEvents

if TYPE_CHECKING:
    from edge_agent.core.config import OutboxSettings

__all__ = ["Storage"]

log = structlog.get_logger(__name__)

PAGE_BYTES = 4096
RESERVE_BYTES = 10 << 20
"""Space that is kept so that rows can be deleted on a full disk: 2.5 SQLite logs of 1000 pages."""


class Storage:
    """The database, the marks and the reserve of one outbox. Callers hold `lock`, alone or by `locked`.

    Args:
        path: the database.
        settings: of the outbox.
        key: 32 bytes, or None for a plain file.
    """

    def __init__(self, path: Path, settings: OutboxSettings, key: bytes | None) -> None:
        self.path = path
        self.set_aside: Path | None = None
        """New path of a damaged file, if there was one."""
        self.lock = threading.RLock()
        self._survives_power_cut = settings.synchronous == "FULL"
        self._key_check = key_check(key)
        self._description = Description(
            path,
            damaged="it is set aside at the next attempt",
            locked="stop that agent, or give this one a state folder of its own",
            role="the outbox",
            keyed=key is not None,
        )
        self._marks = Marks(recovery.marks_path(path))
        self._reserve = Reserve(path.with_name(path.name + ".reserve"), RESERVE_BYTES)
        self.numbers = Numbers(self._marks)
        self.database = OutboxDatabase(path, synchronous=settings.synchronous, key=key)
        self.gaps = Gaps(self.database, self._marks, self.numbers)
        self.waiting = WaitingEvents(self.database, self.gaps)
        self.parked = ParkedEvents(self.database, self.waiting)
        self.bounds = Bounds(settings, self.database, self.waiting, self.parked)
        self._failing = False
        self._is_open = False

    def open(self) -> None:
        """Open the files; set a damaged database aside.

        Raises:
            StorageError, DiskFull, ConfigError: see `Outbox.__enter__`.
        """
        with contextlib.ExitStack() as undo:
            undo.callback(self.close_files)
            with self._description.translated():
                self._marks.open()
                self._reserve.open()
                self._check_key()
                try:
                    self._open_checked()
                except database_errors() as problem:
                    if not recovery.indicates_damage(problem):
                        raise
                    self._start_over(problem, last=self._marks.reserved)
            self._is_open = True
            undo.pop_all()

    def close(self) -> None:
        """Delete the acknowledged rows and close the files."""
        if self.database.is_open:
            self.flush()
            self.numbers.release()
        self.close_files()
        self.bounds.next_expiry = 0.0
        self._is_open = False

    def close_files(self) -> None:
        """Close the files as they are."""
        self.database.close()
        self._marks.close()
        self._reserve.close()

    def _check_key(self) -> None:
        """Refuse a wrong key, which would otherwise look like a damaged file."""
        if self.path.exists() and self._marks.generation and self._marks.key_check != self._key_check:
            raise StorageError(
                f"{self.path} was written with {'another key' if self._marks.key_check else 'no key'}"
                f"{'' if self._key_check else ', and none is given'}; put the right key into the credential"
                f" file storage__key, or change it with `edge-agent rekey --state {self.path.parent}`"
            )
        self._marks.key_check = self._key_check

    def _open_checked(self) -> None:
        """Open the database, and check that it contains all numbers.

        Raises:
            Damaged: it is missing, or lacks numbers although there was no power cut.
        """
        if self._marks.reserved and not self.path.exists():
            raise Damaged("the file is missing")
        self._open_database()
        boot = boot_check()
        power_cut = not self._survives_power_cut and boot != self._marks.boot
        last = self.numbers.last
        if power_cut and last < self._marks.reserved:
            with self.database.transaction() as change:
                self.numbers.next = self._marks.reserved + 1
                self.gaps.note(change, last + 1, self._marks.reserved, "power-loss")
        elif last < self._marks.floor:
            raise Damaged(f"it ends at number {last}, although {self._marks.floor} was given out before")
        self._marks.boot = boot

    def _open_database(self) -> None:
        # A checkpoint needs as much space as the log has; the reserve holds two and a half logs.
        self.database.open(max(16, min(1000, self._reserve.size * 2 // 5 // PAGE_BYTES)))
        used = (self.waiting.load(), self.parked.load(), self.gaps.load(), self.database.meta("next") - 1)
        self.numbers.next = max(0, *used) + 1
        self._marks.generation = max(self._marks.generation, self.database.meta("marks"))
        with contextlib.suppress(*database_errors()), self.database.transaction() as change:
            self.gaps.move_marks(change)  # on a full disk the next event does it

    def _start_over(self, problem: Exception, *, last: int) -> None:
        """Set a damaged file aside, create a new one, and copy the rows that can still be read.

        A kill in between is repaired at the next start: the new file lacks numbers until all rows are copied,
        and is then found damaged itself.

        Args:
            problem: the error that showed the damage.
            last: no number above this one was given out.
        """
        self.bounds.next_expiry = 0.0
        self.database.close()
        acknowledged = set(self.waiting.acknowledged)
        aside = recovery.move_aside(self.path)
        floor = self._marks.floor
        saved = [row for row in recovery.salvage(self.database) if floor < row.seq <= last]
        self.set_aside = aside
        log.error(
            "outbox was damaged: set aside and replaced",
            path=str(self.path),
            set_aside=str(aside),
            saved=len(saved),
            error=str(problem),
        )
        missing = set(range(floor + 1, last + 1)) - {row.seq for row in saved}
        if self._marks.last:  # these become a gap of their own
            missing -= set(range(self._marks.first, self._marks.last + 1))
        self._open_database()
        self.numbers.next = max(last + 1, self.numbers.next)
        with self.database.transaction() as change:
            for row in saved:
                if row.seq not in acknowledged:
                    self.waiting.store(change, row, gap=row.topic.endswith("/gap"))
            for first, end in runs(missing):
                self.gaps.note(change, first, end, "corrupt")
            self.database.set_meta("next", self.numbers.next)
            change.after.append(self.gaps.load)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock, translate errors, and replace a damaged file.

        Raises:
            StorageError: also when the outbox is closed.
        """
        with self.lock, self._description.translated():
            try:
                self._require_open()
                yield
            except database_errors() as problem:
                if recovery.indicates_damage(problem):
                    with contextlib.suppress(*database_errors(OSError)):  # the next call tries again
                        self._start_over(problem, last=self.numbers.last)
                raise

    @contextlib.contextmanager
    def changed(self) -> Iterator[Change]:
        """Run the block in a transaction, `locked`."""
        with self.locked(), self.database.transaction() as change:
            yield change

    def _require_open(self) -> None:
        """Create the database if a damaged one could not be replaced before."""
        if not self._is_open:
            raise StorageError(f"the outbox {self.path} is closed")
        if not self.database.is_open:
            self._start_over(Damaged("it could not be replaced before"), last=self.numbers.last)

    def append(self, body: bytes, topic: str, now: float) -> int:
        """Number a message and write it; see `Outbox.append`."""
        seq = self.numbers.take()
        try:
            if self.bounds.allow(now, len(body)):
                self.waiting.insert(seq, topic, body, now)
            else:
                self._append_with_upkeep(Row(seq, topic, body, now))
        except database_errors() as problem:
            self._handle_unwritten(Row(seq, topic, body, now), problem)
        return seq

    def _append_with_upkeep(self, row: Row) -> None:
        """Add a row, and do what is due: make room, drop old events, record unwritten numbers."""
        self._require_open()
        with self.database.transaction() as change:
            self.gaps.move_marks(change)
            self.bounds.expire(change, row.created)
            self.bounds.make_room(change, len(row.body))
            self.waiting.store(change, row)
        if self._failing:
            self._failing = False
            log.info("outbox can be written again", path=str(self.path))

    def _handle_unwritten(self, row: Row, problem: Exception) -> None:
        """Append to a new file if the old one is damaged, else record the number in the marks and raise."""
        if recovery.indicates_damage(problem):
            try:
                self._start_over(problem, last=row.seq - 1)
                self.numbers.next = row.seq + 1
                self._append_with_upkeep(row)
                return
            except database_errors(OSError) as again:
                problem = again
                self.numbers.next = row.seq + 1
        self.gaps.note_unwritten(row.seq)
        self.bounds.next_expiry = 0.0
        if not self._failing:
            self._failing = True
            log.warning(
                "outbox cannot be written: events are dropped", path=str(self.path), error=str(problem)
            )
        raise self._description.error(problem) from problem

    def acknowledge(self, seqs: Iterable[int]) -> None:
        """Mark rows as acknowledged; delete them when there are enough."""
        if self.waiting.acknowledge(seqs):
            self.flush()

    def flush(self) -> None:
        """Delete the acknowledged rows now. When that fails, they wait for the next call."""
        if not self.waiting.acknowledged or not self.database.is_open:
            return
        try:
            self._delete_acknowledged()
        except database_errors() as problem:
            if not self._delete_with_reserve():
                log.debug("acknowledged events stay for now", path=str(self.path), error=str(problem))
                return
        self.waiting.acknowledged.clear()
        lowest = self.database.value("SELECT min(seq) FROM event")
        self._marks.floor = (lowest or self.numbers.next) - 1
        self._marks.write()

    def _delete_acknowledged(self) -> None:
        with self.database.transaction():
            self.waiting.delete_acknowledged()
            self.database.set_meta("next", self.numbers.next)

    def _delete_with_reserve(self) -> bool:
        """Delete on a full disk: the released reserve holds the log while it is merged into the database."""
        try:
            with self._reserve.released():
                self._delete_acknowledged()
                self.database.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except database_errors(OSError):
            return False
        return True
