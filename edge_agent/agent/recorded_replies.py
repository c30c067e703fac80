"""What others reply about strangers, for the recording; see `identify.elsewhere`, `offline.replay.replies`.

Replies and people who are taken into the gallery are recorded as changes by others, before the frame that
used them, so that who is forgotten is erased from them, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from edge_agent.gallery.gallery import Gallery
    from edge_agent.gallery.means import Vectors
    from edge_agent.gallery.rows import Rows
    from edge_agent.identify.elsewhere import Candidate, Elsewhere, Question, Reply
    from edge_agent.identify.tracks import TrackKey

Note = tuple[dict[str, Any], "Vectors | None"]
"""Body of a change, and its embeddings."""


@dataclass(slots=True)
class _Noted:
    """A question whose reply is noted when it comes."""

    question: Question
    note: Callable[[Reply], None]
    _open: bool = True

    def reply(self) -> Reply | None:
        reply = self.question.reply()
        if reply is not None and self._open:
            self._open = False
            self.note(reply)
        return reply


@dataclass(slots=True)
class RecordedElsewhere:
    """Asks others, and notes what they replied and whom the gallery took."""

    elsewhere: Elsewhere
    gallery: Gallery
    _notes: list[Note] = field(default_factory=list)

    def ask(self, track: TrackKey, vector: Vectors) -> Question | None:
        """See `Elsewhere.ask`."""
        question = self.elsewhere.ask(track, vector)
        if question is not None:
            return _Noted(question, partial(self._replied, track))
        self._note(track, "reply", {"asked": False}, [], None)
        return None

    def take(self, track: TrackKey, candidate: Candidate) -> int | None:
        """See `Elsewhere.take`."""
        number = self.elsewhere.take(track, candidate)
        if number is None:
            self._note(track, "taken", {}, [], None)
        else:
            with self.gallery.file.reading() as rows:
                person, vectors = described(rows, number)
            self._note(track, "taken", {}, [person], vectors)
        return number

    def notes(self) -> list[Note]:
        """Return what was noted since the latest call."""
        found, self._notes = self._notes, []
        return found

    def _replied(self, track: TrackKey, reply: Reply) -> None:
        people = [
            {
                "id": one.ids[0],
                "ids": one.ids,
                "exemplars": [[device, ""] for device in one.devices],
                "shift": one.shift,
            }
            for one in reply.candidates
        ]
        vectors = np.concatenate([one.rows for one in reply.candidates]) if people else None
        self._note(track, "reply", {"asked": True, "people": reply.people}, people, vectors)

    def _note(
        self, track: TrackKey, what: str, values: dict[str, Any], people: list[Any], vectors: Vectors | None
    ) -> None:
        about = {"camera": track[0], "track": track[1], **values}
        self._notes.append(
            ({"foreign": False, "gone": [], "people": people, "apart": [], what: about}, vectors)
        )


def described(rows: Rows, number: int) -> tuple[dict[str, Any], Vectors]:
    """Return an identity as JSON values, with its exemplars `(M, D)`; it exists."""
    found = rows.store.rows(
        "SELECT id, name, kind, created, last_seen, sightings, ttl, seen FROM identity WHERE number = ?",
        (number,),
    )[0]
    exemplars = rows.store.rows(
        "SELECT quality, origin, camera, time, epoch FROM exemplar WHERE number = ? ORDER BY row", (number,)
    )
    names = ("id", "name", "kind", "created", "last_seen", "sightings", "ttl_s", "seen")
    values = dict(zip(names, found, strict=True))
    return {"number": number, **values, "exemplars": exemplars}, rows.exemplars.of(number)[0]
