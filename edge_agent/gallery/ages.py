"""How old the sightings in a gallery file are, by the clock of the state folder.

The file contains instants of one axis, see `core.clock`, whose id is the meta value `clock`. A file without,
or of another axis (one that an earlier version wrote, or that was copied here), gets new instants when a live
system opens it: everyone was seen just now. Until then ages are not known, and nobody expires.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from edge_agent.core.errors import StorageError

if TYPE_CHECKING:
    from edge_agent.core.clock import Clock, Relabelled
    from edge_agent.gallery.store import Store

_log = structlog.get_logger(__name__)

_AXIS = "clock"
_FOREIGN = "? OR seen IS NULL OR seen > ? OR expires IS NOT NULL"
"""Rows without a usable instant. Only earlier versions, which do not know `seen`, write `expires`."""
_SLACK_S = 1.0


class Ages:
    """Ages of the sightings in an open file; without a `clock`, or one of another axis, they are unknown."""

    def __init__(self, store: Store, clock: Clock | None) -> None:
        self._store = store
        self._clock = clock
        self._axis = clock if clock is not None and store.meta(_AXIS) == clock.id else None
        """The clock, if the instants in the file are on its axis; None while ages are unknown."""

    def adopt(self) -> None:
        """Give instants of this clock to rows that have none; for the one live system that owns the file.

        A failure is logged: ages then stay unknown, since a full disk must not prevent the start.
        """
        if self._clock is None:
            return
        now = self._clock.now()
        known = self._axis is not None
        values = (not known, now)
        foreign = f"SELECT count(*) FROM identity WHERE {_FOREIGN}"  # noqa: S608
        if known and not self._store.value(foreign, values):
            return
        try:
            with self._store.change():
                statement = f"UPDATE identity SET seen = ?, expires = NULL WHERE {_FOREIGN}"  # noqa: S608
                self._store.run(statement, (now, *values))
                self._store.run("UPDATE fleet_shared SET seen = min(seen, ?)", (now,))
                self._store.put_meta(_AXIS, self._clock.id)
        except StorageError as problem:
            _log.warning("ages_unknown", gallery=self._store.where, error=str(problem))
        else:
            self._axis = self._clock

    def seen(self, age_s: float = 0.0) -> float | None:
        """Return the instant of a sighting of this age, by default now; None while ages are unknown."""
        return None if self._axis is None else self._axis.ago(age_s)

    def ago(self, seconds: float) -> float | None:
        """Return the instant up to which sightings are at least so old; None while that may not be judged."""
        return None if self._axis is None or self._axis.paused else self._axis.ago(seconds)

    def stored(self, number: int) -> float | None:
        """Return the instant at which an identity was last seen; None: unknown."""
        seen: float | None = self._store.value("SELECT seen FROM identity WHERE number = ?", (number,))
        return seen

    def span(self) -> float | None:
        """Return the age of the oldest instant, in seconds; None while ages are unknown."""
        return None if self._axis is None else self._axis.age(0.0)

    def of(self, seen: float | None) -> float | None:
        """Return the age of a sighting in seconds; None while it is unknown."""
        return None if seen is None or self._axis is None else self._axis.age(seen)

    def label(self, seen: float | None, last_seen: float) -> float:
        """Return when a person was last seen, Unix seconds; `last_seen` where the age is unknown."""
        return last_seen if seen is None or self._axis is None else self._axis.label(seen)

    def current(self, time: float) -> float:
        """Return the label of the time of a frame, see `Clock.current`."""
        return time if self._clock is None else self._clock.current(time)

    def relabel(self, change: Relabelled) -> None:
        """Rebase the labels of the present boot, inside a change of the file."""
        first, last = change.first - _SLACK_S, change.last + _SLACK_S
        for table, column, more in (
            ("identity", "last_seen", "AND seen >= ?"),
            ("identity", "created", "AND seen >= ?"),
            ("exemplar", "time", "AND number IN (SELECT number FROM identity WHERE seen >= ?)"),
            ("crop", "time", "AND number IN (SELECT number FROM identity WHERE seen >= ?)"),
        ):
            self._store.run(
                f"UPDATE {table} SET {column} = {column} + ? WHERE {column} BETWEEN ? AND ? {more}",  # noqa: S608
                (change.step_s, first, last, change.since),
            )
