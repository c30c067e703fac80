"""Changes of identities that subscribers have to learn of, in the gallery file until they are published.

They are noted in the transaction of the change, by whatever process makes it. The agent that owns the gallery
publishes and removes them, so no change is lost by a kill, nor one of the command line while no agent runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edge_agent.gallery.rows import EVENTS_FACT, SCRUB_FACT
from edge_agent.gallery.sync import Facts, SyncedFile


@dataclass(frozen=True, slots=True)
class Notice:
    """One change.

    Attributes:
        kind: `merged` into another identity, `forgotten`, `named`, or `split` from another.
        id, number: of the identity that changed, or is new.
        other, other_number: of the identity that absorbed it, or that it was a part of; None for other kinds.
    """

    row: int
    kind: Literal["merged", "forgotten", "named", "split"]
    id: str
    number: int
    other: str | None
    other_number: int | None
    reason: str


class Notices:
    """The changes that wait to be published."""

    def __init__(self, file: SyncedFile) -> None:
        self._file = file

    def waiting(self) -> list[Notice]:
        """Return the changes in their order, up to the first of a person whose events are still to be erased.

        Published earlier, the event of a forgotten person would be erased with those.
        """
        with self._file.reading() as rows:
            found = [Notice(*row) for row in rows.store.rows("SELECT * FROM notice ORDER BY row")]
        unerased = set(Facts(self._file).get(EVENTS_FACT) or ()) if found else set()
        for place, notice in enumerate(found):
            if notice.kind == "forgotten" and notice.id in unerased:
                return found[:place]
        return found

    def published(self, last: Notice) -> None:
        """Remove all up to this one; the next `Erasure.run` removes copies of their ids from the disk."""
        self._remove("row <= ?", last.row)

    def drop_forgotten(self) -> None:
        """Remove those of forgotten people, so that they are not published."""
        self._remove("kind = ?", "forgotten")

    def _remove(self, condition: str, value: int | str) -> None:
        with self._file.changing() as rows:
            rows.store.run(f"DELETE FROM notice WHERE {condition}", (value,))  # noqa: S608 - constants
            rows.store.run("INSERT OR REPLACE INTO fact VALUES (?, 'true')", (SCRUB_FACT,))
