"""Asks the store for a stranger before the device enrols one; see `identify.elsewhere`.

The store finds people by raw embeddings, approximately. Their exemplars are then compared as those in the
gallery are: without the offsets of their cameras. So a score is the one that the person would have here.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import numpy as np
import structlog

from edge_agent.core.errors import EdgeAgentError, StorageError
from edge_agent.core.names import is_id
from edge_agent.fleet import records
from edge_agent.fleet.records import MOST_CANDIDATES, Answer, Vectors
from edge_agent.fleet.store import FleetStore
from edge_agent.fleet.travel import Travel
from edge_agent.gallery.exemplars import View, checked_exemplars
from edge_agent.gallery.fleet_rows import foreign_camera
from edge_agent.gallery.gallery import Gallery
from edge_agent.gallery.means import Sums
from edge_agent.identify.elsewhere import Candidate, Question, Reply
from edge_agent.identify.tracks import TrackKey

_log = structlog.get_logger(__name__)

MOST_WAITING = 32
"""Questions that wait for the store at once; a crowd of strangers is enrolled without it."""
MOST_QUERIES = 8
"""Views for which a question asks, see `Cameras.elsewhere`; fewer while others wait: each is a search."""


class Submit(Protocol):
    """See `FleetWorker.submit`."""

    def __call__(  # noqa: D102
        self, ask: Callable[[FleetStore], Awaitable[Reply]], deadline_s: float, /
    ) -> Future[Reply]: ...


class People(Protocol):
    """See `fleet.sync.Sync`."""

    def erased(self, ids: Collection[str]) -> bool: ...  # noqa: D102
    def take(self, candidate: records.Candidate) -> int | None: ...  # noqa: D102


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
    """Strangers that were enrolled without a question: the store is away, or many questions wait."""


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
    gallery: Gallery
    people: People
    submit: Submit
    longest_s: float
    """Longest wait for an answer."""
    travel: Travel | None = None
    """Walking times between cameras."""
    now: Callable[[], float] = time.monotonic
    counts: AskCounts = field(default_factory=AskCounts)
    _waiting: list[Future[Reply]] = field(default_factory=list)

    def ask(self, track: TrackKey, vector: Vectors) -> Question | None:
        """Ask the store for the person of a track with this raw evidence `(D,)`."""
        self._waiting = [one for one in self._waiting if not one.done()]
        if len(self._waiting) < MOST_WAITING:
            views = max(1, MOST_QUERIES // (1 + len(self._waiting)))
            future = self.submit(partial(self._query, track[0], vector.copy(), views), self.longest_s)
            if not (future.done() and future.exception()):  # it fails at once while the store is left alone
                self.counts.asked += 1
                self._waiting.append(future)
                return _Asked(future, self.now() + self.longest_s, self.now, self.counts)
        self.counts.unasked += 1
        return None

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

    async def _query(self, camera: str, vector: Vectors, views: int, store: FleetStore) -> Reply:
        # The store compares raw embeddings: another camera gave the person another offset.
        queries = self.gallery.cameras.elsewhere(camera, vector, views)
        return self._prepared(camera, await store.ask(queries, MOST_CANDIDATES))

    def _prepared(self, camera: str, answer: Answer) -> Reply:
        """Return an answer as it is compared here, without people who were erased here."""
        means = {
            (self._camera(mean.device, mean.camera), mean.epoch): (mean.people, mean.total)
            for mean in answer.means
            if mean.fits(self.gallery.dimension)
        }
        found = [self._candidate(one, means) for one in answer.candidates if one.person.forgotten is None]
        walked = [self._walked(camera, one, answer.now) for one in found if one is not None]
        return Reply(tuple(walked), answer.people)

    def _walked(self, here: str, candidate: Candidate, now: float) -> Candidate:
        """Return a candidate with the shift for the time since it was seen elsewhere."""
        if self.travel is None:
            return candidate
        assert isinstance(candidate.source, records.Candidate)
        person = candidate.source.person
        walk = (person.device, person.camera, here, now - person.last_seen)
        return replace(
            candidate, shift=self.travel.shift(*walk), recognised=partial(self.travel.learn, *walk)
        )

    def _candidate(
        self, one: records.Candidate, means: Mapping[View, tuple[float, Sums]]
    ) -> Candidate | None:
        """Return a person of an answer; None where the person was erased here, or is not usable."""
        shared = [(part.device, each) for part in one.contributions for each in part.exemplars]
        ids = tuple(dict.fromkeys([one.person.id, *(part.id for part in one.contributions)]))
        if not shared or not all(map(is_id, ids)) or self.people.erased(ids):
            return None
        views = [(self._camera(device, each.camera), each.epoch) for device, each in shared]
        try:
            raw, _ = checked_exemplars(
                np.stack([each.vector for _, each in shared]),
                np.array([each.quality for _, each in shared], np.float32),
                self.gallery.dimension,
            )
        except (ValueError, EdgeAgentError) as problem:
            _log.warning("fleet_exemplars_refused", person=one.person.id, error=str(problem))
            return None
        devices = tuple(device for device, _ in shared)
        return Candidate(ids, self.gallery.cameras.of_others(raw, views, means), devices, one)

    def _camera(self, device: str, camera: str) -> str:
        return camera if device == self.device else foreign_camera(device, camera)
