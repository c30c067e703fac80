"""The open tracks in the outbox: what their `departed` events need after a crash.

A row is changed in the transaction that appends the event which changes the track. So the next run knows
every track that subscribers have seen open, and ends each exactly once.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edge_agent.core.events import Event, IdentityData, new_event
from edge_agent.core.timing import parse_time

if TYPE_CHECKING:
    from edge_agent.deliver.rows import Row

RESTART = "restart"
"""Reason of the `departed` of a track whose run was killed."""


@dataclass(frozen=True, slots=True)
class PersonNow:
    """An identity as the gallery has it now."""

    id: str
    number: int
    name: str | None


@dataclass(frozen=True, slots=True)
class TrackChange:
    """What an identity event means for the table: the track is open with this event, or it has ended."""

    session: str
    camera: str
    track_id: int
    ended: bool

    @staticmethod
    def of(event: Event) -> TrackChange | None:
        """Return the change of a stamped event; None for other kinds."""
        data = event.data
        if not isinstance(data, IdentityData):
            return None
        return TrackChange(event.session, data.camera, data.track_id, data.ended)

    def store(self, execute: Callable[..., sqlite3.Cursor], row: Row) -> None:
        """Change the table, inside the transaction that appends `row`."""
        key = (self.session, self.camera, self.track_id)
        if self.ended:
            execute("DELETE FROM track WHERE session = ? AND camera = ? AND track_id = ?", key)
        else:
            execute(
                "INSERT INTO track VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET body = excluded.body",
                (*key, row.seq, row.body),
            )


@dataclass(frozen=True, slots=True)
class OpenTrack:
    """A track that was open when its run ended, and the message of its last event."""

    change: TrackChange
    """Removes its row."""
    body: bytes

    def departed(self, known: Callable[[str], PersonNow | None]) -> Event | None:
        """Return its last event: with the source and session of its run, and the person as known now.

        None when another program has written the row.
        """
        try:
            return self._departed(known)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def _departed(self, known: Callable[[str], PersonNow | None]) -> Event:
        last: dict[str, Any] = json.loads(self.body)
        data = last["data"]
        identity = data["identity_id"]
        person = None if identity is None else known(identity)
        data |= {
            "kind": "departed",
            "reason": RESTART,
            "ended": True,
            "corrects": None,
            "previous_identity_id": None,
            "identity_id": None if person is None else person.id,
            "number": None if person is None else person.number,
            "name": None if person is None else person.name,
        }
        event = new_event("identity", data, detail="departed", time=parse_time(last["time"]))
        return replace(event, source=last["source"], session=last["session"])


def open_tracks(execute: Callable[..., sqlite3.Cursor]) -> list[OpenTrack]:
    """Return all rows, in the order of the first events of the tracks."""
    rows = execute("SELECT session, camera, track_id, body FROM track ORDER BY first").fetchall()
    return [
        OpenTrack(TrackChange(session, camera, number, ended=True), body)
        for session, camera, number, body in rows
    ]


def without_person(body: bytes) -> bytes:
    """Return the message of a track without the person that it names."""
    message = json.loads(body)
    unknown = dict.fromkeys(("identity_id", "number", "name", "previous_identity_id"))
    return json.dumps(message | {"data": message["data"] | unknown}, ensure_ascii=False).encode()
