"""How changes of devices are merged into a site: pure functions of what the store holds.

A store loads the rows that are affected (`Held`) under the lock of the site, applies one `Merging`, and
writes back its `Changed`. Nothing depends on the order in which devices reach the store, except who is the
last to set a name or a time to live:

- Ids of one person are a group, whose root is the id that the site learnt of first. The row of the root has
  all values, those of the others have none. A group never falls apart.
- An erased id is a tombstone, alone. What is merged with one is erased too, now and later.
- A device replaces its contribution to an id as a whole; under `former` ids it ends.
- A name belongs to one person of the site; the next who is given it becomes `NAME (2)`.
- A pair that is kept apart ends when its ids become one, or one of them is erased.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from edge_agent.core.names import LONGEST_NAME
from edge_agent.fleet.records import (
    Apart,
    CameraMean,
    Contribution,
    Pair,
    PersonChange,
    Push,
    PushResult,
    Reason,
    SharedExemplar,
    SitePerson,
)
from edge_agent.gallery.rows import Kind

SEEN_SLACK_S = 1.0
"""A sighting counts if it is later by more than this: the repetition of a push changes nothing."""
_OLDEST_S = 1e10
_MOST_NAMESAKES = 20
"""People `NAME (2)` and so on; the next one's name contains the id."""


@dataclass(frozen=True, slots=True)
class Retention:
    """Times to live of a site in seconds by kind; None: for ever."""

    ttl_s: float | None = None
    enrolled_ttl_s: float | None = None

    def due(self, person: SitePerson, now: float) -> bool:
        """Return whether a root was seen by no device for its time to live."""
        ttl_s = person.ttl_s
        if ttl_s is None:
            ttl_s = self.ttl_s if person.kind == "auto" else self.enrolled_ttl_s
        return bool(ttl_s) and person.forgotten is None and person.last_seen + (ttl_s or 0.0) <= now


@dataclass(slots=True)
class Held:
    """What the store holds of the ids that a change names (`named_ids`, or those of pairs).

    Attributes:
        people: their rows, and those of everyone who has the same root, by id.
        digests: `digest` of the contributions of the changing device to these ids, by id.
        apart: pairs of which both ids are in `people`, the smaller first.
        names: of all roots that have one of `possible_names`, the id by name.
        means: of the changing device, by camera and epoch.
    """

    people: Mapping[str, SitePerson] = field(default_factory=dict)
    digests: Mapping[str, bytes] = field(default_factory=dict)
    apart: Collection[tuple[str, str]] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    means: Mapping[tuple[str, int], CameraMean] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Changed:
    """What the store writes back. Everything gets `version`, which becomes that of the site.

    Attributes:
        version: the former one where nothing changed.
        people: rows that are new or changed.
        contributions: replaced ones of the changing device; ended ones have no exemplars, and are kept for
            pages.
        erased: ids that became tombstones: contributions to them and pairs with them are deleted.
        apart: new pairs.
        joined: pairs that became one person; they are deleted.
        means: new or changed ones.
        conflicts: pairs of roots with two names that should be joined.
        merged: number of pairs that `join` made one.
        digests: `digest` of `contributions`, by id.
    """

    version: int
    people: tuple[SitePerson, ...] = ()
    contributions: tuple[Contribution, ...] = ()
    erased: tuple[str, ...] = ()
    apart: tuple[Apart, ...] = ()
    joined: tuple[tuple[str, str], ...] = ()
    means: tuple[CameraMean, ...] = ()
    conflicts: tuple[tuple[str, str], ...] = ()
    merged: int = 0
    digests: Mapping[str, bytes] = field(default_factory=dict)


def named_ids(push: Push) -> set[str]:
    """Return all ids that a push names."""
    return {
        *(id_ for person in push.people for id_ in (person.id, *person.former)),
        *(id_ for id_, _ in push.forgotten),
        *(id_ for pair in push.apart for id_ in (pair.one, pair.other)),
    }


def possible_names(push: Push) -> set[str]:
    """Return all names that a push may give, to find out which of them are taken."""
    return {
        name
        for person in push.people
        if person.name is not None and person.name.value is not None
        for name in _choices(str(person.name.value), person.id)
    }


def digest(exemplars: Sequence[SharedExemplar]) -> bytes:
    """Return what identifies the content of a contribution."""
    found = hashlib.sha256()
    for one in exemplars:
        found.update(repr((one.camera, one.epoch, float(one.quality), len(one.vector))).encode())
        found.update(one.vector.astype("<f4", copy=False).tobytes())
    return found.digest()


_NOTHING = digest(())


def _choices(name: str, id_: str) -> list[str]:
    numbered = [f" ({number})" for number in range(2, _MOST_NAMESAKES + 1)]
    return [name, *(name[: LONGEST_NAME - len(end)] + end for end in (*numbered, f" ({id_})"))]


class Merging:
    """One change of a site at the time `now` of the store's clock, from the version that it has so far."""

    def __init__(
        self, held: Held, version: int, now: float, *, device: str = "", retention: Retention | None = None
    ) -> None:
        self._held = held
        self._version = version
        self._now = now
        self._device = device
        self._retention = retention or Retention()
        self._order = version
        self._people = dict(held.people)
        self._members: dict[str, set[str]] = {}
        for person in held.people.values():
            self._members.setdefault(person.root, set()).add(person.id)
        self._names = {one.name: one.id for one in held.people.values() if one.name is not None}
        self._names |= held.names
        self._contributions: dict[str, tuple[SharedExemplar, ...]] = {}
        self._digests: dict[str, bytes] = {}
        self._apart: dict[tuple[str, str], str] = {}
        self._means: list[CameraMean] = []
        self._conflicts: list[tuple[str, str]] = []
        self._merged = 0

    # ---- what changes

    def push(self, push: Push, mark: int) -> PushResult:
        """Merge the changes of a device that has applied everything up to `mark`."""
        for person in push.people:
            self._know(person.id)
        for id_, reason in push.forgotten:
            self._forget(id_, reason)
        for person in push.people:
            self._union((person.id, *person.former))
        named = [person for person in push.people if person.name is not None]
        for person in named:
            self._release(person.id)
        for person in push.people:
            self._merge(person)
        renamed = {person.id: given for person in named if (given := self._rename(person)) is not None}
        for pair in push.apart:
            self._keep_apart(pair)
        for mean in push.means:
            self._set_mean(mean)
        erased = [one.id for one in push.people if self._people[one.id].forgotten is not None]
        kept = [id_ for id_, _ in push.forgotten if self._people[id_].forgotten is None]
        exact = mark == self._version and not (push.forgotten or erased or renamed) and self._is_exact(push)
        return PushResult(self._next_version(), tuple(erased), renamed, tuple(kept), exact)

    def _is_exact(self, push: Push) -> bool:
        """Return whether the site has of all people what the device has, which had the whole site before."""
        before = self._held.people
        return all(
            self._people[change.id].root == change.id
            and self._people[change.id].kind == change.kind
            and self._members[change.id] == {change.id, *change.former}
            and all(before[id_].root == change.id for id_ in self._members[change.id] if id_ in before)
            for change in push.people
        )

    def join(self, pairs: Iterable[Pair]) -> None:
        """Make pairs of ids one person each, where nothing forbids it, in the order of the ids."""
        for pair in sorted(pairs, key=lambda pair: (pair.one, pair.other)):
            one, other = (self._people.get(id_) for id_ in (pair.one, pair.other))
            if one is None or other is None or one.root == other.root:
                continue
            first, second = self._people[one.root], self._people[other.root]
            if first.forgotten is not None or second.forgotten is not None:
                continue
            if self._is_apart(first.root, second.root):
                continue
            if first.name is not None and second.name is not None:
                self._conflicts.append((min(first.id, second.id), max(first.id, second.id)))
                continue
            self._union((first.id, second.id))
            self._merged += 1

    def erase(self, ids: Iterable[str], reason: Reason) -> None:
        """Erase people."""
        for id_ in ids:
            self._forget(id_, reason)

    def changed(self) -> Changed:
        """Return what has to be written."""
        version = self._next_version()
        before = self._held.people
        people = self._changed_people()
        now_one = [pair for pair in self._held.apart if self._are_one(*pair)]
        return Changed(
            version,
            tuple(replace(person, version=version) for person in people),
            tuple(Contribution(id_, self._device, found) for id_, found in self._new_contributions().items()),
            tuple(
                one.id
                for one in people
                if one.forgotten is not None and (one.id not in before or before[one.id].forgotten is None)
            ),
            tuple(Apart(*pair, reason) for pair, reason in self._new_pairs().items()),
            tuple(now_one),
            tuple(self._means),
            tuple(self._conflicts),
            self._merged,
            self._digests,
        )

    def _changed_people(self) -> list[SitePerson]:
        before = self._held.people
        return [person for id_, person in self._people.items() if before.get(id_) != person]

    def _new_contributions(self) -> dict[str, tuple[SharedExemplar, ...]]:
        return {
            id_: found
            for id_, found in self._contributions.items()
            if self._people[id_].forgotten is None
            and self._digests[id_] != self._held.digests.get(id_, _NOTHING)
        }

    def _new_pairs(self) -> dict[tuple[str, str], str]:
        return {
            pair: reason
            for pair, reason in self._apart.items()
            if pair not in self._held.apart
            and not self._are_one(*pair)
            and all(self._people[id_].forgotten is None for id_ in pair)
        }

    def _next_version(self) -> int:
        changes = self._changed_people() or self._new_contributions() or self._new_pairs() or self._means
        return max(self._order, self._version + bool(changes))

    def _next(self) -> int:
        """Return the next place in the order of new ids and settings; the version follows."""
        self._order += 1
        return self._order

    # ---- groups

    def _know(self, id_: str) -> None:
        """Add a row for an id that the site does not know; each gets its own place in the order."""
        if id_ not in self._people:
            self._people[id_] = _unseen(id_, self._next())
            self._members[id_] = {id_}

    def _root(self, id_: str) -> SitePerson:
        return self._people[self._people[id_].root]

    def _are_one(self, one: str, other: str) -> bool:
        return self._people[one].root == self._people[other].root

    def _is_apart(self, one: str, other: str) -> bool:
        """Return whether a pair separates two groups."""
        return any(
            {self._people[id_].root for id_ in pair} == {one, other}
            for pair in (*self._held.apart, *self._apart)
        )

    def _union(self, ids: Sequence[str]) -> None:
        for id_ in ids:
            self._know(id_)
        roots = {self._people[id_].root: self._root(id_) for id_ in ids}
        reasons = {person.forgotten for person in roots.values()} - {None}
        if reasons:
            for id_ in ids:
                self._tombstone(id_, "request" if "request" in reasons else "expired")
            return
        first, *others = sorted(roots.values(), key=lambda person: person.created)
        for other in others:
            for name in {first.name, other.name} - {None}:
                self._names.pop(str(name), None)
            first = _combined(first, other)
            for member in self._members.pop(other.id):
                self._people[member] = _plain(self._people[member], root=first.id)
                self._members[first.id].add(member)
        self._put(first)

    def _put(self, person: SitePerson) -> None:
        self._people[person.id] = person
        if person.name is not None:
            self._names[person.name] = person.id

    def _forget(self, id_: str, reason: Reason) -> None:
        known = id_ in self._people
        self._know(id_)
        if known and reason == "expired" and not self._retention.due(self._root(id_), self._now):
            return  # another device saw the person later
        self._tombstone(id_, reason)

    def _tombstone(self, id_: str, reason: Reason) -> None:
        """Erase the whole group of an id."""
        root = self._root(id_)
        if root.name is not None:
            self._names.pop(root.name, None)
        for member in self._members.pop(root.id):
            row = self._people[member]
            since = self._now if row.forgotten is None else row.last_seen
            self._people[member] = replace(
                _plain(row, root=member),
                forgotten="request" if "request" in {row.forgotten, reason} else "expired",
                first_seen=since,
                last_seen=since,
            )
            self._members[member] = {member}

    # ---- people, pairs and means

    def _merge(self, change: PersonChange) -> None:
        """Merge everything but the name into the person."""
        person = self._root(change.id)
        if person.forgotten is not None:
            return
        first, last = (
            self._now - min(max(0.0, age_s), _OLDEST_S) for age_s in (change.first_age_s, change.last_age_s)
        )
        if last > person.last_seen + SEEN_SLACK_S:
            person = replace(person, last_seen=last, device=self._device, camera=change.camera)
        if change.ttl_s is not None and change.ttl_s.value != person.ttl_s:
            ttl_s = None if change.ttl_s.value is None else float(change.ttl_s.value)
            person = replace(person, ttl_s=ttl_s, ttl_set=self._next())
        kind: Kind = "enrolled" if "enrolled" in {person.kind, change.kind} else "auto"
        self._put(replace(person, first_seen=min(first, person.first_seen), kind=kind))
        if change.exemplars is not None:
            for id_, found in (*((id_, ()) for id_ in change.former), (change.id, change.exemplars)):
                self._contributions[id_], self._digests[id_] = found, digest(found)

    def _release(self, id_: str) -> None:
        """Free the name of a person who gets another one: people may exchange theirs in one push."""
        person = self._root(id_)
        if person.name is not None:
            self._names.pop(person.name, None)
            self._people[person.id] = replace(person, name=None)

    def _rename(self, change: PersonChange) -> str | None:
        """Give the wanted name, or the next one that is free; return that one, None for the wanted one."""
        person, setting = self._root(change.id), change.name
        if person.forgotten is not None or setting is None:
            return None
        before = self._held.people.get(person.id)
        present = None if before is None else before.name
        name = wanted = None if setting.value is None else str(setting.value)
        if wanted is not None and self._names.get(wanted, person.id) != person.id:
            choices = _choices(wanted, change.id)
            free = [one for one in choices if self._names.get(one, person.id) == person.id]
            name = present if present in free else free[0]
        named = self._next() if before is None or name != present else before.named
        self._release(person.id)
        self._put(replace(self._root(person.id), name=name, named=named))
        return None if name == wanted else name

    def _keep_apart(self, pair: Apart) -> None:
        key = (min(pair.one, pair.other), max(pair.one, pair.other))
        if all(id_ in self._people for id_ in key):
            self._apart.setdefault(key, pair.reason)

    def _set_mean(self, mean: CameraMean) -> None:
        held = self._held.means.get((mean.camera, mean.epoch))
        if held is None or held.people != mean.people or not np.array_equal(held.total, mean.total):
            self._means.append(replace(mean, device=self._device))


def _unseen(id_: str, created: int) -> SitePerson:
    return SitePerson(id_, created, id_, "auto", None, None, math.inf, -math.inf, "", "", None, 0)


def _plain(row: SitePerson, root: str) -> SitePerson:
    """Return the row of an id that has no values of its own."""
    return SitePerson(row.id, row.created, root, "auto", None, None, 0.0, 0.0, "", "", None, row.version)


def _combined(first: SitePerson, other: SitePerson) -> SitePerson:
    """Return the root of two groups that are one person; the result depends on no order."""
    name, named = max(
        ((one.name, one.named) for one in (first, other)), key=lambda found: (found[0] is not None, found[1])
    )
    ttl_s, ttl_set = max(
        ((one.ttl_s, one.ttl_set) for one in (first, other)),
        key=lambda found: (found[0] is not None, found[1]),
    )
    latest = max((first, other), key=lambda one: (one.last_seen, one.device, one.camera))
    return replace(
        first,
        kind="enrolled" if "enrolled" in {first.kind, other.kind} else "auto",
        name=name,
        named=named,
        ttl_s=ttl_s,
        ttl_set=ttl_set,
        first_seen=min(first.first_seen, other.first_seen),
        last_seen=latest.last_seen,
        device=latest.device,
        camera=latest.camera,
    )
