"""The tasks of a site that one device does for all: joining people, and removing what has expired."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import structlog

from edge_agent.core.errors import EdgeAgentError, InputError
from edge_agent.fleet.reconcile import Judge, Known, Match, SiteView, known, mutual, stricter
from edge_agent.fleet.records import MOST_CANDIDATES, Candidate, Pair, Vectors
from edge_agent.fleet.worker import Task
from edge_agent.gallery.exemplars import checked_exemplars

if TYPE_CHECKING:
    from edge_agent.fleet.store import FleetStore
    from edge_agent.gallery.exemplars import View
    from edge_agent.gallery.gallery import Gallery
    from edge_agent.identify.site import ThresholdPolicy

_log = structlog.get_logger(__name__)

RECONCILE_S = 10.0
"""Interval at which people who have changed are compared."""
STEP_PEOPLE = 20
"""People who are compared at once: some 10 ms of a core, after which questions are answered."""
LONGEST_S = 5.0
"""Time after which the rest waits for the next interval, so that pages are exchanged meanwhile."""
TIDY_S = 3600.0
"""Interval at which people and tombstones that have expired are removed."""
CHECK_S = 60.0
"""Interval at which conflicts of names are looked at."""
TOMBSTONE_S = 90 * 86400.0
"""How long the site knows that somebody was erased. A device that was away for longer takes a full copy."""
CHECK_S = 60.0
"""Interval at which conflicts that were reported are looked at again."""
DONE_FACT = "fleet_reconciled"
"""Version of the site up to which this device has compared everybody."""
CONFLICTS_FACT = "fleet_conflicts"
"""Pairs of ids that this device has reported as a conflict that has not ended."""


@dataclass(slots=True)
class Reconciler:
    """Does the tasks of the site in steps. Only for the fleet's thread."""

    device: str
    """Name of this device at the site."""
    gallery: Gallery
    thresholds: Callable[[], ThresholdPolicy]
    """Returns the threshold of this device, for this thread."""
    report: Callable[[Pair, bool], None]
    """Reports a conflict of names, or that it has ended (False); called on the fleet's thread."""
    now: Callable[[], float] = time.monotonic
    joined: int = 0
    """Pairs of people that were joined in this run."""
    conflicts: int | None = None
    """Pairs of people with two names, as of the latest look; None: nobody looked."""
    _people: int = 0
    """People of the site, by the latest answer."""

    def tasks(self) -> list[Task]:
        """Return what the worker does at intervals."""
        return [
            Task(self.run, RECONCILE_S),
            Task(self.tidy, TIDY_S),
            Task(self.count_conflicts, CHECK_S),
            Task(self.end_conflicts, CHECK_S, leads=False),
        ]

    async def run(self, store: FleetStore) -> None:
        """Compare people who have changed, as the holder of the lease. Raises what the store raises."""
        until = self.now() + LONGEST_S
        while await self._reconcile(store) and self.now() < until:
            pass

    async def tidy(self, store: FleetStore) -> None:
        """Remove what has expired, as the holder of the lease."""
        await store.tidy(TOMBSTONE_S)

    async def end_conflicts(self, store: FleetStore) -> None:
        """Report the end of conflicts that this device has reported, with or without the lease."""
        reported = self._reported()
        if not reported:
            return
        noted = await self._conflicts(store)
        open_ = {pair for pair in reported if (pair.one, pair.other) in noted}
        for pair in sorted(reported - open_, key=lambda one: (one.one, one.other)):
            self.report(pair, False)
        if open_ != reported:
            self._note(open_)

    async def _reconcile(self, store: FleetStore) -> bool:
        """Compare some people; return whether more may be waiting."""
        after = self._done()
        upto, changed = await store.alike(after, STEP_PEOPLE)
        if changed and await self._join(store, changed):
            return True  # who was joined may be nearer to others now: the same people again
        if upto != after:
            self.gallery.facts.set(DONE_FACT, upto)
        return bool(changed)

    def _done(self) -> int:
        stored = self.gallery.facts.get(DONE_FACT)
        return stored if type(stored) is int and stored >= 0 else 0

    async def _join(self, store: FleetStore, changed: Sequence[tuple[Candidate, Sequence[Candidate]]]) -> int:
        """Join people with those nearest to them where that is certain; return how many."""
        judge = self._judge()
        matches: dict[Pair, Match] = {}
        for candidate, others in changed:
            match = self._best(judge, candidate, others)
            if match is not None and match.pair not in matches and await self._is_mutual(store, judge, match):
                matches[match.pair] = match
            await asyncio.sleep(0)  # questions of the driving thread come first
        if not matches:
            return 0
        two_names = [one.pair for one in matches.values() if one.is_conflict]
        for pair in await self._new_conflicts(store, two_names):
            self._note({*self._reported(), pair})
            self.report(pair, True)
        joined = await store.join(list(matches))
        if joined:
            self.joined += joined
            _log.info("fleet_people_joined", pairs=joined)
        return joined

    def _best(self, judge: Judge, candidate: Candidate, others: Sequence[Candidate]) -> Match | None:
        one = self._known(candidate)
        near = [self._known(other) for other in others]
        return None if one is None else judge.best(one, [other for other in near if other is not None])

    def _known(self, candidate: Candidate) -> Known | None:
        try:
            return known(candidate, self._compared)
        except (ValueError, EdgeAgentError) as problem:  # of another device: what it shares is not trusted
            _log.warning("fleet_exemplars_refused", person=candidate.person.id, error=str(problem))
            return None

    async def _is_mutual(self, store: FleetStore, judge: Judge, match: Match) -> bool:
        """Compare the best one with those nearest to it in turn."""
        answer = await store.ask(match.best.raw, MOST_CANDIDATES + 1)  # itself is among them
        self._people = answer.people
        others = [self._known(one) for one in answer.candidates]
        near = [other for other in others if other is not None and other.id != match.one.id]
        return mutual(match, judge.best(match.best, [match.one, *near]))

    def _judge(self) -> Judge:
        policy = self.thresholds()

        def threshold(views: Collection[SiteView]) -> float | None:
            bias = self.gallery.cameras.least_bias_of(self._here(views))
            value = policy.of(0, None, bias, among=self._people).value
            return None if value is None else stricter(value)

        return Judge(threshold, self._apart)

    def _here(self, views: Iterable[SiteView]) -> list[View]:
        """Return the names of views in this gallery."""
        return [
            (camera if device == self.device else f"{device}/{camera}", epoch)
            for device, camera, epoch in views
        ]

    def _compared(self, vectors: Vectors, views: Sequence[SiteView]) -> Vectors:
        qualities = np.ones(len(vectors), np.float32)
        raw, _ = checked_exemplars(vectors, qualities, self.gallery.dimension)
        return self.gallery.cameras.of_others(raw, self._here(views), {})

    def _apart(self, id_: str) -> Collection[str]:
        """Return the ids of people who are certainly not this one, as far as this device knows them."""
        try:
            with self.gallery.file.reading() as rows:
                numbers = self.gallery.corrections.apart(rows.find(id_).number)
                return {rows.identity(number).id for number in numbers}
        except InputError:  # the store keeps them apart
            return ()

    # ---- conflicts of names

    async def _new_conflicts(self, store: FleetStore, conflicts: Sequence[Pair]) -> list[Pair]:
        """Return those that no device has reported yet."""
        new = [pair for pair in conflicts if pair not in self._reported()]
        if not new:
            return []
        noted = await self._conflicts(store)
        return [pair for pair in new if (pair.one, pair.other) not in noted]

    async def count_conflicts(self, store: FleetStore) -> None:
        """Count the conflicts of the site, as the holder of the lease."""
        await self._conflicts(store)

    async def _conflicts(self, store: FleetStore) -> Collection[tuple[str, str]]:
        found = (await store.state()).conflicts
        self.conflicts = len(found)
        return found

    def _reported(self) -> set[Pair]:
        stored = self.gallery.facts.get(CONFLICTS_FACT)
        found = stored if isinstance(stored, list) else []
        return {Pair(*map(str, pair)) for pair in found if isinstance(pair, list) and len(pair) == 2}

    def _note(self, pairs: Collection[Pair]) -> None:
        listed = sorted([pair.one, pair.other] for pair in pairs)
        self.gallery.facts.set(CONFLICTS_FACT, listed or None)
