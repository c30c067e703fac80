"""A `FleetStore` in memory, by the rules of `fleet.rules`, with faults that a test chooses."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, TypeVar

import numpy as np

from edge_agent.core.errors import InputError
from edge_agent.fleet.records import (
    MOST_CANDIDATES,
    Answer,
    Apart,
    CameraMean,
    Candidate,
    Contribution,
    DeviceState,
    Page,
    Pair,
    Push,
    PushResult,
    SitePerson,
    SiteState,
    Vectors,
    Welcome,
)
from edge_agent.fleet.rules import Changed, Held, Merging, Retention, digest, named_ids, possible_names
from edge_agent.fleet.store import StaleMark, StoreDown, StoreRefused

T = TypeVar("T")

SCHEMA = 1


@dataclass
class _Device:
    mark: int = 0
    receipt: str | None = None
    seen: float = 0.0
    left: bool = False


@dataclass
class Content:
    """What a site consists of; `copy.deepcopy` is a backup."""

    version: int = 0
    horizon: int = 0
    people: dict[str, SitePerson] = field(default_factory=dict)
    contributions: dict[tuple[str, str], tuple[int, Contribution]] = field(default_factory=dict)
    """By id and device, with versions."""
    apart: dict[tuple[str, str], tuple[int, Apart]] = field(default_factory=dict)
    means: dict[tuple[str, str, int], tuple[int, CameraMean]] = field(default_factory=dict)
    devices: dict[str, _Device] = field(default_factory=dict)
    conflicts: set[tuple[str, str]] = field(default_factory=set)
    leases: dict[str, tuple[str, float]] = field(default_factory=dict)


class MemorySite:
    """The server. `now` is its clock, which a test sets.

    Faults: `down`; `frozen`: a call ends with the deadline; `slow_s`: before each answer; `lost_answers`: so
    many calls take effect but raise StoreDown; `refused`: the message of StoreRefused.
    """

    def __init__(
        self, *, dimension: int = 8, space: str = "test", retention: Retention | None = None, now: float = 2e9
    ) -> None:
        self.name = "site"
        self.space = space
        self.dimension = dimension
        self.retention = retention or Retention()
        self.now = now
        self.content = Content()
        self.starts = 1
        self.deadline_s = 0.05
        self.down = False
        self.frozen = False
        self.slow_s = 0.0
        self.lost_answers = 0
        self.refused: str | None = None
        self.pushes: list[tuple[str, Push]] = []
        """All that took effect, in the order of the store."""

    def store(self, device: str) -> MemoryStore:
        """Return the share of one device."""
        return MemoryStore(self, device)

    def backup(self) -> Content:
        """Return a copy for `restore`."""
        return copy.deepcopy(self.content)

    def restore(self, content: Content) -> None:
        """Go back to a copy."""
        self.content = copy.deepcopy(content)
        self.starts += 1  # all connections end

    # ---- what calls share

    async def arrive(self) -> None:
        """Wait as a call does before it reaches the server."""
        await asyncio.sleep(0)
        if self.refused is not None:
            raise StoreRefused(self.refused)
        if self.frozen:
            await asyncio.sleep(self.deadline_s)
            raise StoreDown("the store did not answer in time")
        if self.down:
            raise StoreDown("the store cannot be reached")
        if self.slow_s:
            await asyncio.sleep(min(self.slow_s, self.deadline_s))
            if self.slow_s > self.deadline_s:
                raise StoreDown("the store did not answer in time")

    async def answer(self) -> None:
        """Wait as a call does before its answer arrives, which may be lost."""
        await asyncio.sleep(0)
        if self.lost_answers:
            self.lost_answers -= 1
            raise StoreDown("the store did not answer in time")

    def held(self, ids: Iterable[str], names: Collection[str] = (), device: str = "") -> Held:
        """Return what the rules need to know of some ids."""
        content, wanted = self.content, set(ids)
        roots = {content.people[id_].root for id_ in wanted if id_ in content.people}
        people = {id_: one for id_, one in content.people.items() if one.root in roots}
        return Held(
            people,
            {
                id_: digest(one.exemplars)
                for (id_, of), (_, one) in content.contributions.items()
                if of == device
            },
            {pair for pair in content.apart if people.keys() >= set(pair)},
            {
                one.name: one.id
                for one in content.people.values()
                if one.name in names and one.name is not None
            },
            {(camera, epoch): one for (of, camera, epoch), (_, one) in content.means.items() if of == device},
        )

    def write(self, changed: Changed) -> None:
        """Apply what the rules returned."""
        content, version = self.content, changed.version
        content.version = version
        content.people |= {one.id: one for one in changed.people}
        erased = set(changed.erased)
        for key in [key for key in content.contributions if key[0] in erased]:
            del content.contributions[key]
        for pair in [pair for pair in content.apart if erased & set(pair) or pair in changed.joined]:
            del content.apart[pair]
        for one in changed.contributions:
            content.contributions[one.id, one.device] = version, one
        for apart in changed.apart:
            content.apart[apart.one, apart.other] = version, apart
        for mean in changed.means:
            content.means[mean.device, mean.camera, mean.epoch] = version, mean
        content.conflicts |= set(changed.conflicts)

    def roots(self) -> list[SitePerson]:
        """Return all people."""
        return [one for one in self.content.people.values() if one.root == one.id and one.forgotten is None]

    def candidate(self, root: SitePerson) -> Candidate:
        """Return a person with everything that devices contributed."""
        content = self.content
        found = [
            one
            for (id_, _), (_, one) in sorted(content.contributions.items())
            if content.people[id_].root == root.id and one.exemplars
        ]
        return Candidate(root, tuple(found))

    def conflicts(self) -> list[tuple[str, str]]:
        """Return the noted pairs that still are two people with two names."""
        people = self.content.people
        return sorted(
            pair
            for pair in self.content.conflicts
            if all(id_ in people and people[id_].root == id_ and people[id_].name is not None for id_ in pair)
            and pair not in self.content.apart
        )


class MemoryStore:
    """What one device sees of a `MemorySite`."""

    def __init__(self, site: MemorySite, device: str) -> None:
        self.site = site
        self.device = device
        self._start: int | None = None

    async def arrive(self) -> None:
        await self.site.arrive()
        if self._start not in {None, self.site.starts}:
            raise StoreDown("the store ended the connection")

    async def hello(self, mark: int, receipts: Collection[str]) -> Welcome:
        await self.site.arrive()
        self._start = self.site.starts
        content = self.site.content
        found = content.devices.get(self.device)
        if found is not None and found.left:
            raise StoreRefused(f"device {self.device} left the site {self.site.name}")
        if found is None or found.receipt is None:
            known = mark == 0 and not receipts
        else:
            known = found.receipt in receipts
        device = content.devices.setdefault(self.device, _Device())
        device.seen = self.site.now
        await self.site.answer()
        people = len(self.site.roots())
        return Welcome(content.version, content.horizon, known, device.mark, people, self.site.now)

    async def close(self) -> None:
        await asyncio.sleep(0)

    async def push(self, push: Push, mark: int) -> PushResult:
        await self.arrive()
        self._check(mark)
        content = self.site.content
        held = self.site.held(named_ids(push), possible_names(push), self.device)
        merging = Merging(
            held, content.version, self.site.now, device=self.device, retention=self.site.retention
        )
        result = merging.push(push, mark)
        self.site.write(merging.changed())
        self.site.pushes.append((self.device, push))
        await self.site.answer()
        return result

    async def pull(self, mark: int, most: int, *, full: bool = False) -> Page:
        await self.arrive()
        if not full and mark:
            self._check(mark)
        page = self._page(mark, most)
        await self.site.answer()
        return page

    def _page(self, mark: int, most: int) -> Page:
        content = self.site.content
        versions = sorted(
            version
            for version in chain(
                (one.version for one in content.people.values()),
                (version for version, _ in content.contributions.values()),
                (version for version, _ in content.apart.values()),
                (version for version, _ in content.means.values()),
            )
            if version > mark
        )
        upto = content.version if len(versions) <= most else versions[most - 1]
        contributions = _between(content.contributions, mark, upto)
        pairs = _between(content.apart, mark, upto)
        ids = {id_ for id_, one in content.people.items() if mark < one.version <= upto}
        ids |= {one.id for one in contributions} | {id_ for pair in pairs for id_ in (pair.one, pair.other)}
        ids |= {content.people[id_].root for id_ in ids}
        people = sorted((content.people[id_] for id_ in ids), key=lambda one: (one.version, one.id))
        return Page(
            upto,
            content.version,
            self.site.now,
            tuple(people),
            contributions,
            pairs,
            _between(content.means, mark, upto),
        )

    async def confirm(self, mark: int, receipt: str) -> None:
        await self.arrive()
        device = self.site.content.devices.setdefault(self.device, _Device())
        device.mark, device.receipt, device.seen = mark, receipt, self.site.now
        await self.site.answer()

    async def ask(self, vectors: Vectors, most: int) -> Answer:
        await self.arrive()
        found = self._nearest(vectors, most)
        views = {
            (one.device, exemplar.camera, exemplar.epoch)
            for candidate in found
            for one in candidate.contributions
            for exemplar in one.exemplars
        }
        means = [one for key, (_, one) in sorted(self.site.content.means.items()) if key in views]
        await self.site.answer()
        return Answer(tuple(found), tuple(means), len(self.site.roots()), self.site.now)

    def _nearest(self, vectors: Vectors, most: int, but: str = "") -> list[Candidate]:
        candidates = [self.site.candidate(root) for root in self.site.roots() if root.id != but]
        scored = [
            (float((_vectors(one) @ vectors.T).max()), one.person.id, one)
            for one in candidates
            if one.contributions
        ]
        return [one for _, _, one in sorted(scored, key=lambda found: (-found[0], found[1]))[:most]]

    async def lease(self, name: str, seconds: float) -> bool:
        await self.arrive()
        leases, now = self.site.content.leases, self.site.now
        holder, until = leases.get(name, ("", now))
        got = holder in {"", self.device} or until <= now
        if got:
            leases[name] = self.device, now + seconds
        await self.site.answer()
        return got

    def _leads(self) -> bool:
        holder, until = self.site.content.leases.get("reconcile", ("", 0.0))
        return holder == self.device and until > self.site.now

    async def alike(
        self, after: int, most: int
    ) -> tuple[int, Sequence[tuple[Candidate, Sequence[Candidate]]]]:
        await self.arrive()
        content = self.site.content
        latest: dict[str, int] = {}
        for (id_, _), (version, one) in content.contributions.items():
            if one.exemplars:
                root = content.people[id_].root
                latest[root] = max(version, latest.get(root, 0))
        changed = sorted((version, root) for root, version in latest.items() if version > after)
        upto = content.version if len(changed) <= most else changed[most - 1][0]
        people = [self.site.candidate(content.people[root]) for version, root in changed if version <= upto]
        found = [(one, self._nearest(_vectors(one), MOST_CANDIDATES, one.person.id)) for one in people]
        await self.site.answer()
        return upto, found

    async def join(self, pairs: Collection[Pair]) -> int:
        await self.arrive()
        merged = 0
        if self._leads():
            held = self.site.held(id_ for pair in pairs for id_ in (pair.one, pair.other))
            merging = Merging(held, self.site.content.version, self.site.now)
            merging.join(pairs)
            changed = merging.changed()
            self.site.write(changed)
            merged = changed.merged
        await self.site.answer()
        return merged

    async def tidy(self, tombstone_s: float) -> None:
        await self.arrive()
        if self._leads():
            content, now, retention = self.site.content, self.site.now, self.site.retention
            due = [one.id for one in self.site.roots() if retention.due(one, now)]
            merging = Merging(self.site.held(due), content.version, now, retention=retention)
            merging.erase(due, "expired")
            self.site.write(merging.changed())
            for one in list(content.people.values()):
                if one.forgotten is not None and one.last_seen <= now - tombstone_s:
                    content.horizon = max(content.horizon, one.version)
                    del content.people[one.id]
        await self.site.answer()

    async def erased(self, id_: str) -> tuple[int | None, Sequence[DeviceState]]:
        await self.arrive()
        if id_ not in self.site.content.people:
            raise InputError(f"the site {self.site.name} does not know {id_}")
        person = self.site.content.people[id_]
        await self.site.answer()
        return (None if person.forgotten is None else person.version), self._devices()

    def _devices(self) -> tuple[DeviceState, ...]:
        devices = sorted(self.site.content.devices.items())
        return tuple(DeviceState(name, one.mark, one.seen, one.left) for name, one in devices)

    async def state(self) -> SiteState:
        await self.arrive()
        site, content = self.site, self.site.content
        await self.site.answer()
        return SiteState(
            site=site.name,
            space=site.space,
            dimension=site.dimension,
            schema=SCHEMA,
            version=content.version,
            horizon=content.horizon,
            now=site.now,
            people=len(site.roots()),
            exemplars=sum(len(one.exemplars) for _, one in content.contributions.values()),
            tombstones=sum(one.forgotten is not None for one in content.people.values()),
            ttl_s=site.retention.ttl_s,
            enrolled_ttl_s=site.retention.enrolled_ttl_s,
            conflicts=tuple(site.conflicts()),
            devices=self._devices(),
        )

    def _check(self, mark: int) -> None:
        if mark < self.site.content.horizon:
            raise StaleMark("the device was away for longer than erased people are known")
        if mark > self.site.content.version:
            raise StaleMark("the site was restored from an older copy")


def _between(rows: Mapping[Any, tuple[int, T]], mark: int, upto: int) -> tuple[T, ...]:
    return tuple(one for _, (version, one) in sorted(rows.items()) if mark < version <= upto)


def _vectors(candidate: Candidate) -> Vectors:
    rows = [exemplar.vector for one in candidate.contributions for exemplar in one.exemplars]
    return np.stack(rows)
