"""Leaving a fleet: what a gallery has of other devices, and what it noted for the site, is dropped."""

from __future__ import annotations

from edge_agent.fleet.reconciler import CONFLICTS_FACT, DONE_FACT
from edge_agent.fleet.travel import TRAVEL_FACT
from edge_agent.gallery.erasure import erase_in
from edge_agent.gallery.fleet_rows import FOREIGN
from edge_agent.gallery.gallery import Gallery
from edge_agent.gallery.rows import Rows

STEP = 100
"""People in one transaction."""
REASON = "fleet"


def leave(gallery: Gallery, *, keep: bool) -> int:
    """End the notes for the site; return how many people were erased here.

    Without `keep`, exemplars of other devices are deleted, and people of whom this device has none are
    erased. A kill on the way only leaves some of them: the next call goes on.
    """
    erased = 0 if keep else _drop_others(gallery)
    with gallery.file.changing() as rows:
        rows.fleet.leave()
    for fact in (DONE_FACT, CONFLICTS_FACT, TRAVEL_FACT):
        gallery.facts.set(fact, None)
    return erased


def _drop_others(gallery: Gallery) -> int:
    with gallery.file.reading() as rows:
        numbers = [
            number
            for (number,) in rows.store.rows(
                f"SELECT number FROM exemplar WHERE {FOREIGN}"  # noqa: S608 - constants
                " UNION SELECT number FROM fleet_shared WHERE number NOT IN (SELECT number FROM exemplar)"
            )
        ]
    erased = 0
    for begin in range(0, len(numbers), STEP):
        with gallery.file.changing(durable=False) as rows, rows.fleet.quiet():
            erased += sum(_drop(rows, number) for number in numbers[begin : begin + STEP])
    return erased


def _drop(rows: Rows, number: int) -> bool:
    """Delete what others contributed to a person; return whether nothing is left, so that it was erased."""
    if not rows.exemplars.own(number):
        erase_in(rows, number, REASON)
        return True
    rows.store.run(f"DELETE FROM exemplar WHERE number = ? AND {FOREIGN}", (number,))  # noqa: S608 - constants
    rows.exemplars.mark(number)
    return False
