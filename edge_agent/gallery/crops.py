"""Pictures of the people of a gallery, only where `gallery.keep_crops` allows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from edge_agent.core.errors import InputError
from edge_agent.gallery.crop_rows import EVER, Crop, Shot
from edge_agent.gallery.rows import SCRUB_FACT
from edge_agent.gallery.sync import SyncedFile

if TYPE_CHECKING:
    from edge_agent.core.config import GallerySettings

_LEFT = 0.9
"""Share of the limit that is left when pictures had to make room."""


class Crops:
    """The pictures in an open gallery, with at most `limit` bytes in all. Any thread may call it.

    They are deleted with their identity on every path, and move when it is merged or split.
    """

    def __init__(self, file: SyncedFile, limit: int) -> None:
        self._file = file
        self._limit = limit
        self._bytes: int | None = None
        """At least the bytes of all pictures; None: not counted yet."""
        self.most = 0
        """Pictures kept of one identity; 0: none are."""

    def begin(self) -> None:
        """Take over the setting of the file, once it is open."""
        with self._file.reading() as rows:
            self.most = rows.policy.keep_crops

    def apply(self, settings: GallerySettings) -> int:
        """Put other settings in force; return the number of pictures that were deleted by that.

        The next `Erasure.run` removes their copies from the disk.
        """
        self._limit, wanted = settings.crops_mb << 20, settings.keep_crops
        with self._file.lock:
            with self._file.reading() as rows:
                self.most = rows.policy.keep_crops
                if self.most == wanted and not rows.crops.exceeds(wanted):
                    return 0  # nothing to write, so that a gallery on a full disk still opens
            with self._file.changing() as rows:
                policy = replace(rows.policy, keep_crops=wanted)
                rows.store_policy(policy)
                gone = rows.crops.prune_all(wanted)
                if gone:
                    rows.store.run("INSERT OR REPLACE INTO fact VALUES (?, 'true')", (SCRUB_FACT,))
            rows.policy, self.most, self._bytes = policy, wanted, None
        return gone

    def add(self, number: int, shots: Sequence[Shot], evidence: Sequence[Shot] = ()) -> None:
        """Offer pictures of an identity, and of the track that was decided; nothing if it does not exist.

        The best, most diverse of old and new are kept. InputError: one is too large.
        """
        if not self.most or not (shots or evidence):
            return
        with self._file.lock:
            with self._file.changing(durable=False) as rows:
                size = 0
                for role, some in (("kept", shots), ("evidence", evidence)):
                    current = [replace(one, time=rows.ages.current(one.time)) for one in some]
                    if current:
                        size += rows.crops.add(number, current, role, self.most)  # type: ignore[arg-type]
            self._bound(size)

    def _bound(self, added: int) -> None:
        with self._file.reading() as rows:
            self._bytes = rows.crops.nbytes() if self._bytes is None else self._bytes + added
            if self._bytes <= self._limit:
                return
        with self._file.changing(durable=False) as rows:
            self._bytes = rows.crops.nbytes()
            if self._bytes > self._limit:
                self._bytes = rows.crops.bound(int(_LEFT * self._limit))

    def move(self, origin: str, number: int | None, since: float = EVER) -> None:
        """Give the pictures of an origin from a time on to another identity; None deletes them."""
        if not self.most:
            return
        with self._file.changing(durable=False) as rows:
            first = since if since == EVER else rows.ages.current(since)
            rows.crops.move(origin, number, first, self.most)

    def remove_origin(self, number: int, origin: str) -> None:
        """Delete the pictures that one origin contributed to an identity."""
        with self._file.changing(durable=False) as rows:
            rows.crops.remove_origin(number, origin)

    def of(self, number: int) -> list[Crop]:
        """Return the kept pictures of an identity, best first; InputError: there is no such identity."""
        with self._file.reading() as rows:
            return rows.crops.of(rows.identity(number).number)

    def listed(self, numbers: Sequence[int] | None = None) -> dict[int, list[int]]:
        """Return the rows of the kept pictures by identity, best first; without the pictures."""
        with self._file.reading() as rows:
            return rows.crops.listed(numbers)

    def get(self, row: int) -> Crop:
        """Return one picture; InputError where it is gone."""
        with self._file.reading() as rows:
            if (found := rows.crops.get(row)) is None:
                raise InputError("this picture is not kept any more")
            return found

    def evidence(self, session: str, camera: str, track_id: int) -> list[Crop]:
        """Return the pictures of a decided track, oldest first; none where they made room for others."""
        with self._file.reading() as rows:
            return rows.crops.evidence(f"{session}:{camera}:{track_id}")
