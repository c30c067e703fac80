"""Numbers of events that will not come: the table `dropped`, and the gap events made from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from edge_agent.core.codec import encode
from edge_agent.core.events import Event, GapData, NumberRange, new_event
from edge_agent.deliver.database import Change, OutboxDatabase, Row
from edge_agent.deliver.marks import Marks, Numbers

__all__ = ["Gaps", "runs"]

MAX_RANGES = 500
"""Number ranges in one gap event, which keeps it below 30 kB."""


class Gaps:
    """Records dropped numbers and makes gap events of them. Not thread-safe."""

    def __init__(self, database: OutboxDatabase, marks: Marks, numbers: Numbers) -> None:
        self._database = database
        self._marks = marks
        self._numbers = numbers
        self._ranges = 0
        self.waiting: set[int] = set()
        """Numbers of gap events that are not acknowledged yet."""

    def load(self) -> int:
        """Read the state from the database; return the highest dropped number."""
        execute = self._database.connection.execute
        self.waiting = {row[0] for row in execute("SELECT seq FROM event WHERE gap = 1")}
        self._ranges, last = execute("SELECT count(*), max(last) FROM dropped").fetchone()
        return max(last or 0, self._marks.last)

    @property
    def unreported(self) -> bool:
        """Whether there are dropped numbers that no gap event names yet."""
        return self._ranges > 0 or self._marks.last > 0

    def note(self, change: Change, first: int, last: int, reason: str) -> None:
        """Record a range for a gap event; extend the range before it if there is one."""
        execute = self._database.connection.execute
        extended = execute(
            "UPDATE dropped SET last = ? WHERE last = ? AND reason = ?", (last, first - 1, reason)
        )
        if extended.rowcount == 0:
            execute("INSERT OR REPLACE INTO dropped VALUES (?, ?, ?)", (first, last, reason))
            change.after.append(lambda: self._count(1))
        self._database.set_meta("next", self._numbers.next)

    def _count(self, ranges: int) -> None:
        self._ranges += ranges

    def note_unwritten(self, seq: int) -> None:
        """Record in the marks that an event could not be written."""
        self._marks.first = self._marks.first or seq
        self._marks.last = seq
        self._marks.write()

    def move_marks(self, change: Change) -> None:
        """Move the range of unwritten numbers from the marks into the database."""
        if not self._marks.last:
            return
        if self._database.meta("marks") < self._marks.generation:
            self.note(change, self._marks.first, self._marks.last, "disk-full")
            self._database.set_meta("marks", self._marks.generation)
        change.after.append(self._clear_marks)

    def _clear_marks(self) -> None:
        self._marks.first = self._marks.last = 0
        self._marks.write()

    def report(self, change: Change, stamp: Callable[[Event], Event], topic: str, now: float) -> list[Row]:
        """Store one gap event per reason in place of the dropped ranges; return their rows."""
        execute = self._database.connection.execute
        ranges: dict[str, list[NumberRange]] = {}
        found = execute(
            "SELECT first, last, reason FROM dropped ORDER BY first LIMIT ?", (MAX_RANGES,)
        ).fetchall()
        for first, last, reason in found:
            ranges.setdefault(reason, []).append(NumberRange(first, last))
            execute("DELETE FROM dropped WHERE first = ?", (first,))
        made: list[Row] = []
        for reason, numbers in ranges.items():
            data = GapData(reason, tuple(_joined(numbers)), sum(n.last - n.first + 1 for n in numbers))
            row = Row(self._numbers.next, topic, encode(stamp(new_event("gap", data, time=now))), now)
            self._numbers.next += 1
            execute("INSERT INTO event VALUES (?, ?, ?, ?, 1)", (row.seq, row.topic, row.body, row.created))
            change.rows += 1
            change.bytes += len(row.body)
            made.append(row)
        change.after.append(lambda: self._count(-len(found)))
        change.after.append(lambda: self.waiting.update(row.seq for row in made))
        return made


def runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Return numbers as ascending ranges `(first, last)`."""
    found: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def _joined(ranges: list[NumberRange]) -> Iterator[NumberRange]:
    """Join neighbouring ranges; they come in ascending order."""
    first, last = ranges[0].first, ranges[0].last
    for one in ranges[1:]:
        if one.first == last + 1:
            last = one.last
        else:
            yield NumberRange(first, last)
            first, last = one.first, one.last
    yield NumberRange(first, last)
