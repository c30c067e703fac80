"""Random histories of a fleet: real galleries and the real exchange, on a store in memory.

A history is a list of small steps, each a kind and two numbers, which choose a device and a person among
those that there are. Each exchange of a device is a coroutine that is driven by hand from one wait to the
next, so that every other step can come between any two of them, and a crash can end it there.

What must come out is computed by two models that know nothing of `fleet.rules`. `Site` reads what reached the
store: sets of ids, and who was last. `Truth` notes what was done on the devices.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent.core.clock import CLOCK_FILE, Clock
from edge_agent.core.config import GallerySettings
from edge_agent.core.errors import EdgeAgentError, InputError
from edge_agent.fleet.records import Pair, Push, SharedExemplar
from edge_agent.fleet.rules import Retention
from edge_agent.fleet.store import StoreDown
from edge_agent.fleet.sync import Sync
from edge_agent.gallery import Gallery
from edge_agent.gallery.erasure import forget
from tests.fleet.memory_store import MemorySite, MemoryStore
from tests.hand_clock import HandTime

DIMENSION = 6
HOUR, DAY = 3600.0, 86_400.0
TTL_S, ENROLLED_TTL_S = 20 * DAY, 60 * DAY
TOMBSTONE_S = 5 * DAY
NAMES = ("Anna", "Berta", "Cora", None)
ROUNDS = 8
"""Exchanges of all devices after which nothing moves any more."""

Key = tuple[str, int, float, bytes]


class HistoryStore(MemoryStore):
    """A store that one device may be cut off from."""

    cut = False

    async def arrive(self) -> None:
        if self.cut:
            raise StoreDown("the network is cut")
        await super().arrive()

    async def hello(self, mark: int, receipts: Any) -> Any:
        if self.cut:
            raise StoreDown("the network is cut")
        return await super().hello(mark, receipts)


class HistorySite(MemorySite):
    """A site of `HistoryStore`s."""

    def store(self, device: str) -> HistoryStore:
        return HistoryStore(self, device)

    def give_lease(self, device: str) -> None:
        self.content.leases["reconcile"] = device, self.now + 60


def new_site() -> HistorySite:
    """Return the empty site of a history."""
    return HistorySite(dimension=DIMENSION, space="s", retention=Retention(TTL_S, ENROLLED_TTL_S))


class Device:
    """A device with its gallery file, its clock, and its exchange."""

    def __init__(self, name: str, folder: Path, site: HistorySite) -> None:
        self.name = name
        self.folder = folder
        self.site = site
        self.time = HandTime()
        self.saw_reboot = False
        self.copy: Path | None = None
        self.copied_at = -1
        self.store = site.store(name)
        self.task: Coroutine[Any, Any, None] | None = None
        folder.mkdir()
        self.open()

    def open(self) -> None:
        self.clock = Clock.open(self.folder / CLOCK_FILE, self.time)
        settings = GallerySettings(
            ttl_hours=TTL_S / 3600, enrolled_ttl_hours=ENROLLED_TTL_S / 3600, max_exemplars=6
        )
        self.gallery = Gallery(
            self.folder / "gallery.db", settings, space="s", dimension=DIMENSION, owner=True, clock=self.clock
        ).__enter__()
        self.gallery.cameras.start()
        self.store = self.site.store(self.name)
        self.sync = Sync(self.gallery, self.store, self.name)

    def close(self) -> None:
        if self.task is not None:
            self.task.close()
            self.task = None
        self.gallery.__exit__(None, None, None)

    def advance(self, waits: int) -> None:
        """Drive the exchange over some waits; begin one if none is running."""
        if self.task is None:
            self.task = self.sync.step()
        try:
            for _ in range(waits):
                self.task.send(None)
        except StopIteration:
            self.task = None
        except EdgeAgentError:
            self.task = None
            self.sync.disconnected()

    def exchange(self) -> None:
        """Exchange everything; errors are those of the store."""
        self.close_task()
        task = self.sync.step()
        try:
            while True:
                task.send(None)
        except StopIteration:
            return
        except EdgeAgentError:
            self.sync.disconnected()
            raise

    def close_task(self) -> None:
        if self.task is not None:
            self.task.close()
            self.task = None
            self.sync.disconnected()

    def save_copy(self) -> None:
        copy = self.folder.with_name(self.folder.name + "-copy")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.folder, copy)
        self.copy = copy

    def restore_copy(self) -> None:
        assert self.copy is not None
        self.close()
        shutil.rmtree(self.folder)
        shutil.copytree(self.copy, self.folder)
        self.reboot()

    def reboot(self) -> None:
        self.saw_reboot = True
        self.time.reboot()
        self.open()

    # ---- what is there

    def ids(self, number: int) -> list[str]:
        return [self.gallery.get(number).id, *self.gallery.former_ids(number)]

    def vectors(self, number: int) -> set[bytes]:
        return {row.tobytes() for row in self.gallery.exemplars(number)[0]}

    def exemplars(self, number: int) -> dict[str, list[Key]]:
        """Camera, epoch, quality and vector of the exemplars of an identity, by origin."""
        with self.gallery.file.reading() as rows:
            found = rows.store.rows(
                "SELECT origin, camera, epoch, quality, vector FROM exemplar WHERE number = ? ORDER BY row",
                (number,),
            )
        by_origin: dict[str, list[Key]] = {}
        for origin, camera, epoch, quality, vector in found:
            by_origin.setdefault(origin, []).append((camera, epoch, float(np.float32(quality)), vector))
        return by_origin


@dataclass
class Group:
    """Ids that are one person, and what was set last."""

    ids: set[str]
    name: str | None = None
    named: int = -1
    ttl: float | None = None
    ttl_set: int = -1
    enrolled: bool = False
    seen: float = -np.inf

    def absorb(self, other: Group) -> None:
        self.ids |= other.ids
        if (other.name is not None, other.named) > (self.name is not None, self.named):
            self.name, self.named = other.name, other.named
        if (other.ttl is not None, other.ttl_set) > (self.ttl is not None, self.ttl_set):
            self.ttl, self.ttl_set = other.ttl, other.ttl_set
        self.enrolled |= other.enrolled
        self.seen = max(self.seen, other.seen)


@dataclass
class Site:
    """What must be at the site, by what reached it."""

    order: list[str] = field(default_factory=list)
    groups: dict[str, Group] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    expired: set[str] = field(default_factory=set)
    shared: dict[tuple[str, str], list[Key]] = field(default_factory=dict)
    pairs: set[tuple[str, str]] = field(default_factory=set)
    means: dict[tuple[str, str, int], tuple[float, bytes]] = field(default_factory=dict)
    turn: int = 0

    def know(self, id_: str) -> Group:
        if id_ not in self.groups:
            self.order.append(id_)
            self.groups[id_] = Group({id_})
        return self.groups[id_]

    def unite(self, *ids: str) -> Group:
        first, *others = [self.know(id_) for id_ in ids]
        for other in others:
            if other is not first:
                first.absorb(other)
                for id_ in other.ids:
                    self.groups[id_] = first
        if first.ids & self.gone:
            self.gone |= first.ids
        return first

    def next_turn(self) -> int:
        self.turn += 1
        return self.turn

    def root(self, group: Group) -> str:
        """Return the id that the site learnt of first."""
        return min(group.ids, key=self.order.index)

    def push(self, device: str, push: Push, now: float, people: dict[str, Any]) -> None:
        """`people` is what the store has afterwards: whether somebody expired, it decides by its clock."""
        for person in push.people:
            self.know(person.id)
        for id_, reason in sorted(push.forgotten, key=lambda one: one[1] == "expired"):
            group = self.know(id_)
            if reason == "expired" and people[id_].forgotten is None:
                continue
            self.expire(group, now) if reason == "expired" else None
            self.gone |= group.ids
        names = {id_: group.name for id_, group in self.groups.items()}
        for person in push.people:
            group = self.unite(person.id, *person.former)
            group.enrolled |= person.kind == "enrolled"
            group.seen = max(group.seen, now - person.last_age_s)
            if person.ttl_s is not None and group.ttl != person.ttl_s.value:
                group.ttl, group.ttl_set = person.ttl_s.value, self.next_turn()
            if person.exemplars is not None:
                for id_ in person.former:
                    self.shared.pop((id_, device), None)
                self.shared[person.id, device] = [_key(one) for one in person.exemplars]
        for person in push.people:
            if person.name is not None:
                group = self.groups[person.id]
                if not _is_name(names[self.root(group)], person.name.value):  # a repetition sets nothing
                    group.named = self.next_turn()
                group.name = person.name.value
        for pair in push.apart:
            assert pair.one < pair.other
            assert {pair.one, pair.other} <= self.groups.keys(), "a pair is sent before its people"
            self.pairs.add((pair.one, pair.other))
        for mean in push.means:
            self.means[device, mean.camera, mean.epoch] = mean.people, mean.total.tobytes()

    def expire(self, group: Group, now: float) -> None:
        """Check that nobody has seen the person for the time to live."""
        self.expired |= group.ids
        ttl_s = group.ttl if group.ttl is not None else ENROLLED_TTL_S if group.enrolled else TTL_S
        if not group.ids & self.gone and group.seen > -np.inf:
            assert ttl_s, "a person expired who stays for ever"
            assert group.seen + ttl_s <= now + 2, "a person expired too early"

    def live(self) -> list[Group]:
        found = {id(group): group for group in self.groups.values()}
        return [group for group in found.values() if not group.ids & self.gone]

    def check(self, site: MemorySite) -> None:
        """Compare with what the store has."""
        content, live = site.content, self.live()
        roots = {one.id: one for one in site.roots()}
        expected = {self.root(group): group for group in live}
        assert roots.keys() == expected.keys()
        assert len({one.name for one in roots.values() if one.name}) == sum(
            one.name is not None for one in roots.values()
        )
        for id_, group in expected.items():
            person = roots[id_]
            assert (person.kind == "enrolled") == group.enrolled
            assert person.ttl_s == group.ttl
            assert _is_name(person.name, group.name), f"{id_} is {person.name}, not {group.name}"
            assert abs(person.last_seen - group.seen) < 5
            assert {one.id for one in content.people.values() if one.root == id_} == group.ids
        known = content.people.keys()
        assert all(content.people[id_].forgotten for id_ in self.gone & known)
        assert known <= self.groups.keys()
        live_ids = {id_ for group in live for id_ in group.ids}
        assert live_ids <= known
        found = {
            key: [_key(each) for each in one.exemplars]
            for key, (_, one) in content.contributions.items()
            if one.exemplars
        }
        assert found == {key: rows for key, rows in self.shared.items() if key[0] in live_ids and rows}
        assert _by_root(content.apart, content.people) == {
            (min(pair), max(pair))
            for one, other in self.pairs
            if one in live_ids
            and other in live_ids
            and len(pair := {content.people[one].root, content.people[other].root}) == 2
        }
        means = {key: (one.people, one.total.tobytes()) for key, (_, one) in content.means.items()}
        assert means == self.means


@dataclass
class Truth:
    """What was done on devices, each with the place in the history, the device, and ids."""

    enrolled: list[tuple[int, str, str]] = field(default_factory=list)
    merged: list[tuple[int, str, str, str]] = field(default_factory=list)
    forgotten: list[tuple[int, str, set[str], set[bytes]]] = field(default_factory=list)
    moved: set[bytes] = field(default_factory=set)
    """Vectors that were split off: they are another person's."""
    gone: set[str] = field(default_factory=set)
    """Ids that expired somewhere before the site knew them."""

    def restored(self, device: str, since: int, known: set[str]) -> None:
        """A device has lost what was done on it after a copy, but for what the site knows."""
        self.enrolled = [one for one in self.enrolled if one[1] != device or one[0] < since]
        self.merged = [one for one in self.merged if one[1] != device or one[0] < since]
        self.forgotten = [
            one for one in self.forgotten if one[1] != device or one[0] < since or one[2] <= known
        ]


def _key(one: SharedExemplar) -> Key:
    return one.camera, one.epoch, float(np.float32(one.quality)), one.vector.tobytes()


def _is_name(found: str | None, wanted: str | None) -> bool:
    if found is None or wanted is None:
        return found is wanted
    return found == wanted or found.startswith(f"{wanted.split(' (')[0]} (") or found == wanted.split(" (")[0]


def _connected(id_: str, merged: list[tuple[int, str, str, str]]) -> set[str]:
    """Return all ids that were merged with one, on whatever device."""
    found = {id_}
    for _ in merged:
        for _, _, keep, absorb in merged:
            found |= {keep, absorb} if {keep, absorb} & found else set()
    return found


def _by_root(pairs: Any, people: dict[str, Any]) -> set[tuple[str, str]]:
    found = {(people[one].root, people[other].root) for one, other in pairs}
    return {(min(pair), max(pair)) for pair in found}


MODES = ("plain", "purge", "site restored", "device restored", "both restored")
KINDS = (
    *9 * ("enrol", "advance"), *7 * ("exchange",), *5 * ("merge",), *4 * ("see", "name", "join", "crash"),
    *3 * ("forget", "split", "hours"), "expire", "down", "days", "weeks", "wall", "reboot",
    *2 * ("touch", "ttl", "reject", "cut", "lose", "lead", "save", "restore"),
)  # fmt: skip
"""The more often, the likelier."""
Step = tuple[str, int, int]


class History:
    """Runs steps, then heals everything and checks."""

    def __init__(self, folder: Path, devices: int, mode: str, site: HistorySite | None = None) -> None:
        self.mode = mode
        self.site = site or new_site()
        self.expected = Site()
        self.truth = Truth()
        self.devices = [Device(f"d{number}", folder / f"d{number}", self.site) for number in range(devices)]
        self.place = 0
        self.vectors = 0
        self.backup: tuple[Any, Site, int] | None = None
        self.rng = np.random.default_rng(1)
        self.site_was_restored = False

    def close(self) -> None:
        for device in self.devices:
            device.close()

    def run(self, steps: list[Step]) -> None:
        for self.place, (kind, one, other) in enumerate(steps):
            device = self.devices[one % len(self.devices)]
            getattr(self, "do_" + kind)(device, other)
            self.hear()
        self.heal()

    def hear(self) -> None:
        """Let the model of the site know what has reached the store."""
        for device, push in self.site.pushes:
            self.expected.push(device, push, self.site.now, self.site.content.people)
        self.site.pushes.clear()

    # ---- steps

    def person(self, device: Device, other: int) -> int | None:
        people = device.gallery.identities()
        return people[other % len(people)].number if people else None

    def vector(self) -> Any:
        self.vectors += 1
        found = self.rng.normal(size=(1, DIMENSION))
        return np.asarray(found / np.linalg.norm(found), np.float32)

    def do_enrol(self, device: Device, other: int) -> None:
        name = NAMES[other % 4] if other >= 12 else None
        try:
            person = device.gallery.enrol(
                self.vector(), np.array([0.5], np.float32), name=name, kind="enrolled" if name else "auto",
                origin=f"t{self.place}", camera=("hall", "yard")[other % 2], time=device.clock.label(),
            )  # fmt: skip
        except InputError:
            return
        self.truth.enrolled.append((self.place, device.name, person.id))

    def do_see(self, device: Device, other: int) -> None:
        if (number := self.person(device, other)) is not None:
            device.gallery.add_exemplars(
                number, np.concatenate([self.vector(), self.vector()]), np.array([0.7, 0.4], np.float32),
                origin=f"t{self.place}", camera=("hall", "yard")[other % 2], time=device.clock.label(),
            )  # fmt: skip
            device.gallery.touch(number, device.clock.label())

    def do_touch(self, device: Device, other: int) -> None:
        if (number := self.person(device, other)) is not None:
            device.gallery.touch(number, device.clock.label())

    def do_merge(self, device: Device, other: int) -> None:
        people = device.gallery.identities()
        if len(people) < 2:
            return
        keep, absorb = people[other % len(people)], people[(other + 1 + other // 4) % len(people)]
        if keep.number == absorb.number:
            return
        device.gallery.merge(keep.number, absorb.number)
        self.truth.merged.append((self.place, device.name, keep.id, absorb.id))

    def do_name(self, device: Device, other: int) -> None:
        if (number := self.person(device, other // 4)) is not None:
            try:
                device.gallery.rename(number, NAMES[other % 4])
            except InputError:
                return

    def do_ttl(self, device: Device, other: int) -> None:
        if (number := self.person(device, other // 4)) is not None:
            device.gallery.retention.set_ttl(number, (None, 0.0, 2 * DAY, 90 * DAY)[other % 4])

    def do_forget(self, device: Device, other: int) -> None:
        if (number := self.person(device, other)) is not None:
            ids, vectors = set(device.ids(number)), device.vectors(number)
            forget(device.gallery, number)
            self.truth.forgotten.append((self.place, device.name, ids, vectors))

    def do_split(self, device: Device, other: int) -> None:
        if (number := self.person(device, other)) is None:
            return
        origins = device.gallery.exemplars(number)[2]
        if origins:
            origin = origins[other % len(origins)]
            try:
                new = device.gallery.corrections.split(number, origin)
            except InputError:
                return
            self.truth.moved |= device.vectors(new.number)
            self.truth.enrolled.append((self.place, device.name, new.id))

    def do_reject(self, device: Device, other: int) -> None:
        people = device.gallery.identities()
        if len(people) > 1:
            one, two = people[other % len(people)], people[(other + 1) % len(people)]
            device.gallery.corrections.reject(one.number, two.number)

    def do_expire(self, device: Device, _: int) -> None:
        ids = {one.number: device.ids(one.number) for one in device.gallery.identities()}
        for person in device.gallery.retention.expire():
            self.truth.gone |= set(ids[person.number])

    def do_advance(self, device: Device, other: int) -> None:
        device.advance(1 + other)

    def do_exchange(self, device: Device, _: int) -> None:
        try:
            device.exchange()
        except EdgeAgentError:
            return

    def do_crash(self, device: Device, _: int) -> None:
        device.close()
        device.open()

    def do_cut(self, device: Device, _: int) -> None:
        device.store.cut = not device.store.cut

    def do_down(self, _: Device, other: int) -> None:
        self.site.down = other % 2 == 1

    def do_lose(self, _: Device, other: int) -> None:
        self.site.lost_answers = 1 + other % 2

    def passes(self, seconds: float) -> None:
        for device in self.devices:
            device.close_task()  # its calls have deadlines of seconds
        self.site.now += seconds
        for device in self.devices:
            device.time.passes(seconds)
            device.clock.check()

    def do_hours(self, _: Device, other: int) -> None:
        self.passes(HOUR * (1 + other))

    def do_days(self, _: Device, other: int) -> None:
        self.passes(DAY * (1 + other % 4))

    def do_weeks(self, _: Device, other: int) -> None:
        self.passes(7 * DAY * (1 + other % 4))

    def do_wall(self, device: Device, other: int) -> None:
        device.time.error = (0.0, -1.7e9, 1e8, -7200.0, 86_400.0)[other % 5]
        device.clock.check()

    def do_reboot(self, device: Device, _: int) -> None:
        device.close()
        device.reboot()

    def do_lead(self, device: Device, _: int) -> None:
        """Let the lease holder tidy the site, once it is up to date with what devices have sent."""
        before = {one.id for one in self.site.roots()}
        if not self.lead(device, "tidy", TOMBSTONE_S if self.mode == "purge" else 1000 * DAY):
            return
        content = self.site.content
        for id_ in before - {one.id for one in self.site.roots()}:
            self.expected.expire(self.expected.groups[id_], self.site.now)
            self.expected.gone |= self.expected.groups[id_].ids
        for id_ in self.expected.gone - content.people.keys():
            self.expected.shared = {key: rows for key, rows in self.expected.shared.items() if key[0] != id_}

    def do_join(self, device: Device, other: int) -> None:
        """Let the lease holder join two people, as the reconciler does."""
        roots = sorted(self.site.roots(), key=lambda one: one.created)
        if len(roots) < 2:
            return
        one, two = roots[other % len(roots)], roots[(other + 1) % len(roots)]
        if one is two:
            return
        pair = Pair(min(one.id, two.id), max(one.id, two.id))
        apart = (pair.one, pair.other) in _by_root(self.site.content.apart, self.site.content.people)
        may = not apart and (one.name is None or two.name is None)
        if self.lead(device, "join", [pair]):
            content = self.site.content
            assert (content.people[one.id].root == content.people[two.id].root) == may
            if may:
                self.expected.unite(one.id, two.id)

    def lead(self, device: Device, what: str, value: Any) -> bool:
        if device.store.cut or self.site.down or self.site.lost_answers:
            return False
        self.site.give_lease(device.name)
        task = getattr(self.site.store(device.name), what)(value)
        try:
            while True:
                task.send(None)
        except StopIteration:
            return True

    def do_save(self, device: Device, other: int) -> None:
        if other % 2 and self.mode in {"device restored", "both restored"}:
            device.save_copy()
            device.copied_at = self.place
        elif not other % 2 and self.mode in {"site restored", "both restored"}:
            self.backup = self.site.backup(), copy.deepcopy(self.expected), self.place

    def do_restore(self, device: Device, other: int) -> None:
        if other % 2 and device.copy is not None:
            stones = {id_ for id_, one in self.site.content.people.items() if one.forgotten}
            self.truth.restored(device.name, device.copied_at, stones)
            device.restore_copy()
        elif not other % 2 and self.backup is not None:
            content, expected, _ = self.backup
            self.site.restore(content)
            self.expected = copy.deepcopy(expected)
            self.site_was_restored = True

    # ---- the end

    def heal(self) -> None:
        """End all faults, and let everybody exchange until nothing moves; then check."""
        self.site.down, self.site.lost_answers = False, 0
        for device in self.devices:
            device.store.cut = False
            device.time.error = 0.0
        for _ in range(ROUNDS):
            before = self.site.content.version
            self.do_lead(self.devices[0], 0)
            for device in self.devices:
                self.do_expire(device, 0)
                try:
                    device.exchange()
                except StoreDown:  # the store was restored: all connections have ended
                    device.exchange()
                self.hear()
            counts = [(device.sync.pending(), device.sync.mark) for device in self.devices]
            if all(one == (0, self.site.content.version) for one in [*counts, (0, before)]):
                break
        else:
            raise AssertionError(
                f"no end after {ROUNDS} rounds: {counts}, version {self.site.content.version}"
            )
        self.expected.check(self.site)
        for device in self.devices:
            self.check_device(device)
        self.check_truth()

    def check_device(self, device: Device) -> None:
        """A device has exactly what the store has."""
        content = self.site.content
        roots = {one.id: one for one in self.site.roots()}
        here = {one.id: one for one in device.gallery.identities()}
        assert here.keys() == roots.keys(), (
            f"{device.name}: more {here.keys() - roots.keys()}, less {roots.keys() - here.keys()}"
        )
        for id_, person in here.items():
            site = roots[id_]
            assert (person.name, person.kind, person.ttl_s) == (site.name, site.kind, site.ttl_s)
            ids = {one.id for one in content.people.values() if one.root == id_}
            assert {id_, *device.gallery.former_ids(person.number)} == ids
            found, own = device.exemplars(person.number), []
            for origin, rows in list(found.items()):
                if "/" not in rows[0][0]:
                    own += found.pop(origin)
            theirs = {
                f"fleet/{of}/{each}": [
                    (f"{of}/{camera}", *rest) for camera, *rest in map(_key, one.exemplars)
                ]
                for (each, of), (_, one) in content.contributions.items()
                if each in ids and of != device.name and one.exemplars
            }
            assert found == theirs, f"{device.name} {id_}"
            shared = [
                _key(one)
                for each in sorted(ids)
                for one in content.contributions.get((each, device.name), (0, _NOBODY))[1].exemplars
            ]
            assert set(shared) <= set(own), f"{device.name} {id_}: shares what it does not have"
            assert len(own) == 0 or shared, f"{device.name} {id_}: shares nothing"
            if not any(one.saw_reboot for one in self.devices):
                with device.gallery.file.reading() as rows:
                    age_s = rows.age_s(person.number)
                assert age_s is not None
                assert abs(self.site.now - site.last_seen - age_s) < 65
        self.check_rest(device)

    def check_rest(self, device: Device) -> None:
        content = self.site.content
        with device.gallery.file.reading() as rows:
            id_of = dict(rows.store.rows("SELECT number, id FROM identity"))
            pairs = {tuple(sorted((id_of[one], id_of[other]))) for one, other in rows.apart.pairs()}
            means = rows.site.means(DIMENSION)
            known = {*id_of.values(), *(id_ for (id_,) in rows.store.rows("SELECT id FROM former"))}
            known |= {id_ for (id_,) in rows.store.rows("SELECT id FROM fleet_tombstone")}
            known |= {id_ for (id_,) in rows.store.rows("SELECT id FROM notice WHERE kind = 'forgotten'")}
        assert pairs == _by_root(content.apart, content.people), device.name
        assert {(camera, epoch): (people, total.tobytes()) for camera, epoch, people, total in means} == {
            (f"{of}/{camera}", epoch): (one.people, one.total.tobytes())
            for (of, camera, epoch), (_, one) in content.means.items()
            if of != device.name
        }, device.name
        for notice in device.gallery.notices.waiting():
            assert notice.id in known, f"{device.name}: {notice}"
            assert notice.other is None or notice.other in known, f"{device.name}: {notice}"

    def check_truth(self) -> None:
        """What was forgotten is nowhere, and nothing else was lost."""
        content = self.site.content
        stones = {id_ for id_, one in content.people.items() if one.forgotten}
        present: set[str] = content.people.keys() - stones
        vectors = {
            each.vector.tobytes() for _, one in content.contributions.values() for each in one.exemplars
        }
        for device in self.devices:
            for person in device.gallery.identities():
                present |= {*device.ids(person.number)}
                vectors |= device.vectors(person.number)
        if self.mode != "both restored":
            for _, by, ids, theirs in self.truth.forgotten:
                assert not ids & present, f"{ids} came back, forgotten by {by}"
                assert not (theirs - self.truth.moved) & vectors, f"exemplars of {ids} came back"
        known = content.people.keys() | self.truth.gone | self.expected.gone
        known = known.union(*(ids for _, _, ids, _ in self.truth.forgotten))
        for _ in self.truth.merged:  # what was merged with an erased person went with them, unsent
            for _, _, keep, absorb in self.truth.merged:
                known |= {keep, absorb} if {keep, absorb} & (known - present) else set()
        lost = self.truth.gone | self.expected.expired
        if not self.site_was_restored or self.mode == "site restored":
            for _, by, id_ in self.truth.enrolled:
                assert id_ in known, f"{id_}, enrolled by {by}, is lost"
            for _, by, keep, absorb in self.truth.merged:
                if {keep, absorb} <= present and not lost & _connected(keep, self.truth.merged):
                    assert content.people[keep].root == content.people[absorb].root, (
                        f"a merge by {by} is lost"
                    )


class _Nobody:
    exemplars: tuple[SharedExemplar, ...] = ()


_NOBODY = _Nobody()
