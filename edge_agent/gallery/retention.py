"""How long identities are kept, and which are erased when the gallery is full."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from edge_agent.core.errors import StorageError
from edge_agent.core.setting_types import LONGEST_TTL_HOURS
from edge_agent.gallery.rows import Identity, Policy, Rows
from edge_agent.gallery.sync import SyncedFile

if TYPE_CHECKING:
    from edge_agent.core.clock import Relabelled
    from edge_agent.core.config import GallerySettings

_log = structlog.get_logger(__name__)


class Retention:
    """Expiry and capacity of a gallery; `evicted` counts identities erased for lack of capacity."""

    def __init__(self, file: SyncedFile) -> None:
        self._file = file
        self.evicted = 0

    def apply(self, settings: GallerySettings) -> None:
        """Replace the times to live, also of the identities in the gallery."""
        wanted = Policy.of(settings)
        with self._file.lock:
            with self._file.changing() as rows:
                policy = replace(rows.policy, ttl_s=wanted.ttl_s, enrolled_ttl_s=wanted.enrolled_ttl_s)
                rows.store_policy(policy)
            rows.policy = policy

    def set_ttl(self, number: int, ttl_s: float | None) -> Identity:
        """Give one identity its own time to live in seconds; 0.0: for ever; None: as in the settings."""
        if ttl_s is not None and not 0.0 <= ttl_s <= LONGEST_TTL_HOURS * 3600:
            raise ValueError(f"ttl_s must be 0 to {LONGEST_TTL_HOURS * 3600:g}")
        with self._file.changing() as rows:
            rows.update(number, "ttl = ?", ttl_s)
            return rows.identity(number)

    def expire(self) -> list[Identity]:
        """Erase the identities that were not seen for their time to live; return what they were.

        Nobody is erased while the clock of the gallery pauses, see `core.clock`. As thorough as
        `Gallery.forget`, but pictures in crop folders stay, and it does not wait for another process that is
        reading the write-ahead log: copies there then last until the next call that erases.
        """
        with self._file.reading() as rows:
            if not rows.expired():
                return []
        with self._file.changing() as rows:
            gone = self._erase_expired(rows)
        rows.store.scrub(wait=False)
        return gone

    def relabel(self, change: Relabelled) -> None:
        """Rebase the times that were noted in this boot, after a step of the wall clock was accepted."""
        with self._file.changing() as rows:
            rows.ages.relabel(change)

    def make_room(self, rows: Rows, wanted: int, *, evict: bool = True) -> None:
        """Erase identities in the present transaction until `wanted` more fit.

        First those that have expired, then, with `evict`, the longest unseen `auto` identities: by the order
        of the sightings, which no step of the wall clock changes. StorageError when too few may be erased.
        """
        capacity = rows.policy.capacity
        missing = wanted - (capacity - len(self._file.revisions))
        if missing <= 0:
            return
        missing -= len(self._erase_expired(rows))
        if missing <= 0:
            return
        auto = "WHERE kind = 'auto' AND coalesce(ttl, 1) > 0 ORDER BY seen, last_seen, number LIMIT ?"
        oldest = rows.identities(auto, missing) if evict else []
        if len(oldest) < missing:
            raise StorageError(
                f"the gallery {self._file.where} is full: {capacity} identities"
                + (", all enrolled" if evict else "")
                + "; raise its capacity, or forget some: edge-agent gallery forget WHO"
            )
        for person in oldest:
            rows.retire(person, "evicted")
            _log.warning("identity_evicted", identity=person.id, last_seen=person.last_seen)
        self.evicted += len(oldest)

    @staticmethod
    def _erase_expired(rows: Rows) -> list[Identity]:
        expired = rows.expired()
        for person in expired:
            rows.retire(person, "expired")
        return expired
