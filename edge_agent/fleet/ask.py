"""Asks the store for a stranger before the device enrols one; see `identify.elsewhere`.

The store finds people by raw embeddings, approximately. Their exemplars are then compared as those in the
gallery are: without the offsets of their cameras. So a score is the one that the person would have here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Coroutine
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np
import structlog

from edge_agent.core.errors import EdgeAgentError, StorageError
from edge_agent.core.names import is_id
from edge_agent.fleet import records
from edge_agent.fleet.records import MOST_CANDIDATES, Answer, Vectors
from edge_agent.fleet.store import FleetStore
from edge_agent.gallery.cameras import Cameras
from edge_agent.gallery.exemplars import View, checked_vectors
from edge_agent.identify.elsewhere import Candidate, Question, Reply
from edge_agent.identify.tracks import TrackKey

_log = structlog.get_logger(__name__)

MOST_WAITING = 32
"""Questions that wait for the store at once; a crowd of strangers is enrolled without it."""


class Submit(Protocol):
    """Runs a call of the store on the fleet's thread."""

    def __call__(
        self, call: Callable[[FleetStore], Coroutine[None, None, Reply]], timeout_s: float, /
    ) -> Future[Reply] | None:
        """Return the result to come; None while the store is not connected, or failed too often."""


class People(Protocol):
    """What is known here of people of the site."""

    def erased(self, ids: Collection[str]) -> bool:
        """Whether somebody with one of these ids was erased here."""

    def take(self, candidate: records.Candidate) -> int | None:
        """Put a person of the site into the gallery; None: the person was erased, or the gallery is full."""


@dataclass(slots=True)
class AskCounts:
    """Numbers since the start of the run, for metrics; the driving thread writes them."""

    asked: int = 0
    """Strangers that the store was asked about."""
    known: int = 0
    """Of these, those that it knew."""
    late: int = 0
    """Of these, those that were enrolled since no usable answer came in time."""
    unasked: int = 0
    """Strangers that were enrolled without a question: the store is away, or too many questions wait."""


@dataclass(slots=True)
class _Asked:
    """A question on its way, until `due`, a monotonic time."""

    future: Future[Reply]
    due: float
    now: Callable[[], float]
    counts: AskCounts
    _reply: Reply | None = None

    def reply(self) -> Reply | None:
        """See `Question`."""
        if self._reply is None:
            self._reply = self._outcome()
        return self._reply

    def _outcome(self) -> Reply | None:
        if self.future.done():
            try:
                return self.future.result()
            except (EdgeAgentError, ValueError, CancelledError) as problem:
                _log.debug("fleet_question_failed", error=str(problem))
        if not self.future.done() and self.now() < self.due:
            return None
        self.counts.late += 1
        return Reply()


@dataclass(slots=True)
class Asking:
    """What the store knows of strangers; see `identify.elsewhere.Elsewhere`."""

    device: str
    """Name of this device at the site."""
    cameras: Cameras
    """Of the gallery."""
    people: People
    submit: Submit
    longest_s: float
    """Longest wait for an answer."""
    now: Callable[[], float] = time.monotonic
    counts: AskCounts = field(default_factory=AskCounts)
    _waiting: list[_Asked] = field(default_factory=list)

    def ask(self, track: TrackKey, vector: Vectors) -> Question | None:
        """Ask the store for the person of a track with this raw evidence `(D,)`."""
        self._waiting = [one for one in self._waiting if not one.future.done()]
        future = None
        if len(self._waiting) < MOST_WAITING:
            raw = vector[None]
            # Another camera sees the person with another offset: that is asked, too.
            queries = np.concatenate([raw, self.cameras.elsewhere(track[0], raw)])
            future = self.submit(partial(self._query, queries), self.longest_s)
        if future is None:
            self.counts.unasked += 1
            return None
        self.counts.asked += 1
        asked = _Asked(future, self.now() + self.longest_s, self.now, self.counts)
        self._waiting.append(asked)
        return asked

    def take(self, track: TrackKey, candidate: Candidate) -> int | None:  # noqa: ARG002 - of the protocol
        """Put a candidate into the gallery."""
        assert isinstance(candidate.source, records.Candidate)  # of an own reply
        try:
            number = self.people.take(candidate.source)
        except StorageError as problem:
            _log.warning("fleet_person_not_taken", error=str(problem))
            return None
        self.counts.known += number is not None
        return number

    async def _query(self, queries: Vectors, store: FleetStore) -> Reply:
        return self._prepared(await store.ask(queries, MOST_CANDIDATES))

    def _prepared(self, answer: Answer) -> Reply:
        """Return an answer as it is compared here, without people who were erased here."""
        means = {
            (self.camera_of(mean.device, mean.camera), mean.epoch): (mean.people, mean.total)
            for mean in answer.means
        }
        candidates = []
        for one in answer.candidates:
            shared = [(part.device, each) for part in one.contributions for each in part.exemplars]
            ids = tuple(dict.fromkeys([one.person.id, *(part.id for part in one.contributions)]))
            if not shared or not all(map(is_id, ids)) or self.people.erased(ids):
                continue
            views: list[View] = [(self.camera_of(device, each.camera), each.epoch) for device, each in shared]
            raw = checked_vectors(np.stack([each.vector for _, each in shared]), self.cameras.dimension)
            rows = self.cameras.of_others(raw, views, means)
            candidates.append(Candidate(ids, rows, tuple(device for device, _ in shared), one))
        return Reply(tuple(candidates), answer.people)

    def camera_of(self, device: str, camera: str) -> str:
        """Return what a camera of a device is called in this gallery."""
        return camera if device == self.device else f"{device}/{camera}"
