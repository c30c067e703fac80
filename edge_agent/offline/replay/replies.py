"""Repeats in a replay what others replied about strangers, see `agent.recorded_replies`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edge_agent.core.errors import InputError
from edge_agent.identify.elsewhere import Candidate, Question, Reply
from edge_agent.identify.tracks import TrackKey
from edge_agent.offline.replay.others import Others
from edge_agent.record.entries import Vectors

_LONGEST_S = 5.0
"""Longest wait for a reply that was not recorded: the run did not ask about this track."""


@dataclass(slots=True)
class _Asked:
    replies: Replies
    track: TrackKey
    until: float

    def reply(self) -> Reply | None:
        found = self.replies.known.get(self.track)
        return Reply() if found is None and self.replies.now() >= self.until else found


@dataclass(slots=True)
class Replies:
    """The replies of a recorded run; an `identify.elsewhere.Elsewhere`."""

    now: Callable[[], float]
    """Returns the instant of the replay."""
    others: Others | None = None
    """Puts people into the gallery; set before the first frame."""
    known: dict[TrackKey, Reply] = field(default_factory=dict)
    _unasked: set[TrackKey] = field(default_factory=set)
    _taken: dict[TrackKey, tuple[Mapping[str, Any], Vectors]] = field(default_factory=dict)

    def note(self, body: Mapping[str, Any], vectors: Vectors) -> None:
        """Note a recorded reply, or whom the run took."""
        if "taken" in body:
            self._taken[_track(body["taken"])] = body, vectors
        elif body["reply"]["asked"]:
            self.known[_track(body["reply"])] = _reply(body, vectors)
        else:
            self._unasked.add(_track(body["reply"]))

    def ask(self, track: TrackKey, vector: Vectors) -> Question | None:  # noqa: ARG002 - of the protocol
        """See `Elsewhere.ask`."""
        return None if track in self._unasked else _Asked(self, track, self.now() + _LONGEST_S)

    def take(self, track: TrackKey, candidate: Candidate) -> int | None:
        """Take the candidate whom the run took, too; only of this one everything is recorded."""
        body, vectors = self._taken.get(track, ({"people": ()}, None))
        if self.others is None or vectors is None or not body["people"]:
            return None
        (person,) = body["people"]
        if person["id"] not in candidate.ids:
            return None
        gallery = self.others.gallery
        try:
            self.others.number(person["number"])
        except InputError:
            with gallery.file.changing() as rows:
                gallery.retention.make_room(rows, 1)
        self.others.repeat(body, vectors, with_vectors=True)
        try:
            return self.others.number(person["number"])
        except InputError:
            return None


def _track(about: Mapping[str, Any]) -> TrackKey:
    return str(about["camera"]), int(about["track"])


def _reply(body: Mapping[str, Any], vectors: Vectors) -> Reply:
    candidates, first = [], 0
    for person in body["people"]:
        last = first + len(person["exemplars"])
        devices = tuple(str(device) for device, _ in person["exemplars"])
        if devices:
            shift = float(person["shift"])
            candidates.append(Candidate(tuple(person["ids"]), vectors[first:last], devices, None, shift))
        first = last
    return Reply(tuple(candidates), int(body["reply"]["people"]))
