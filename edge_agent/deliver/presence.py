"""Who is in view after each numbered event: the state of the retained `present` message.

`Presence.apply` is the rule that docs/subscribers.md states for subscribers; they come to the same result.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from edge_agent.core.events import IdentityData
from edge_agent.core.presence import PersonData, PresentData, PresentPerson

if TYPE_CHECKING:
    from edge_agent.core.events import Event


class Presence:
    """The open tracks of this run. Thread-safe; `apply` is called in the order of the numbers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._people: dict[tuple[str, int], PresentPerson] = {}
        self._seq = 0
        self.changes = 0
        """Changes so far; another number means that a former snapshot is old."""

    def begin(self, seq: int) -> None:
        """Set the last number that was given out before this run."""
        with self._lock:
            self._seq = seq

    def apply(self, event: Event, seq: int) -> None:
        """Take an event and its number."""
        data = event.data
        with self._lock:
            self._seq = seq
            if isinstance(data, IdentityData):
                self._apply_identity(event.id, data)
            elif isinstance(data, PersonData):
                self._apply_person(data)
            else:
                return
            self.changes += 1

    def _apply_identity(self, event_id: str, data: IdentityData) -> None:
        key = data.camera, data.track_id
        self._people.pop(key, None)  # so that the order is that of the last events
        if not data.ended:
            self._people[key] = PresentPerson(
                data.camera,
                data.track_id,
                data.identity_id,
                data.number,
                data.name,
                data.first_seen,
                data.score,
                event_id,
            )

    def _apply_person(self, data: PersonData) -> None:
        old = data.absorbed_id if data.kind == "merged" else data.identity_id
        new = None if data.kind == "forgotten" else data.identity_id
        for key, person in self._people.items():
            if person.identity_id is not None and person.identity_id in (old, data.identity_id):
                self._people[key] = replace(person, identity_id=new, number=data.number, name=data.name)

    def on_camera(self, camera: str) -> dict[int, PresentPerson]:
        """Return the open tracks of one camera by their numbers."""
        with self._lock:
            return {track: person for (where, track), person in self._people.items() if where == camera}

    def snapshot(self, most: int | None = None) -> PresentData:
        """Return the state now, with at most `most` people, those with the newest events."""
        with self._lock:
            people, seq = tuple(self._people.values()), self._seq
        kept = people if most is None else people[max(0, len(people) - most) :]
        return PresentData(seq, kept, len(people) - len(kept))
