"""What a gallery contains, as a person reads it: pages of identities, and contributions of tracks to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edge_agent.gallery.rows import Identity
from edge_agent.gallery.sync import SyncedFile

Order = Literal["seen", "new", "name"]
"""Latest seen first; latest enrolled first; by name, those without one last."""

_ORDERS: dict[Order, str] = {
    "seen": "seen DESC, last_seen DESC, number DESC",
    "new": "number DESC",
    "name": "name IS NULL, name COLLATE NOCASE, number",
}


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one origin (a track or a picture) contributed to an identity.

    Attributes:
        camera: "" for pictures that an operator gave.
        exemplars: number of embeddings.
        first, last: times of these, Unix seconds.
    """

    origin: str
    camera: str
    exemplars: int
    first: float
    last: float


class Listing:
    """Reads an open gallery. Any thread may call it; it holds the gallery's lock for milliseconds."""

    def __init__(self, file: SyncedFile) -> None:
        self._file = file

    def page(self, text: str, order: Order, offset: int, most: int) -> tuple[list[Identity], int]:
        """Return `most` identities from `offset` on, and the number of all.

        Only those count whose name contains `text`, without regard to case, or whose number or id it is.
        """
        wanted = text.strip().casefold()
        with self._file.reading() as rows:
            found = rows.store.rows(f"SELECT number, name, id FROM identity ORDER BY {_ORDERS[order]}")  # noqa: S608
            numbers = [
                number
                for number, name, id_ in found
                if not wanted
                or wanted in (name or "").casefold()
                or wanted == str(number)
                or text.strip() == id_
            ]
            chosen = numbers[offset : offset + most]
            marks = ",".join("?" * len(chosen))
            people = {one.number: one for one in rows.identities(f"WHERE number IN ({marks})", *chosen)}
        return [people[number] for number in chosen], len(numbers)

    def contributions(self, number: int) -> list[Contribution]:
        """Return what each origin contributed to an identity, the latest first; InputError: there is none."""
        with self._file.reading() as rows:
            rows.identity(number)
            found = rows.store.rows(
                "SELECT origin, camera, count(*), min(time), max(time) FROM exemplar WHERE number = ?"
                " GROUP BY origin, camera ORDER BY max(time) DESC, max(row) DESC",
                (number,),
            )
        return [Contribution(*row) for row in found]
