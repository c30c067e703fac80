"""People whom two devices enrolled are joined by the holder of the lease, and only where it is certain."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent.core.config import GallerySettings, IdentifySettings
from edge_agent.fleet.reconcile import STRICTER, stricter
from edge_agent.fleet.reconciler import LONGEST_S, STEP_PEOPLE, TOMBSTONE_S, Reconciler
from edge_agent.fleet.records import (
    Apart,
    Candidate,
    Pair,
    PersonChange,
    Push,
    Setting,
    SharedExemplar,
    Vectors,
)
from edge_agent.fleet.rules import Retention
from edge_agent.fleet.store import StoreDown
from edge_agent.gallery.gallery import Gallery
from edge_agent.identify.site import ThresholdPolicy
from tests.fleet.memory_store import MemorySite, MemoryStore

D = 32
THRESHOLD = 0.6
LEASE_S = 60.0
T = TypeVar("T")


def run(call: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(call)


def unit(vector: Vectors) -> Vectors:
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


def face(who: int) -> Vectors:
    return unit(np.random.default_rng(who).normal(size=D).astype(np.float32))


def like(who: int, cosine: float, seed: int = 0) -> Vectors:
    """Return a vector with this cosine to a person's."""
    own = face(who)
    other = face(1000 + seed)
    across = unit(other - (other @ own) * own)
    return unit(cosine * own + np.sqrt(1 - cosine**2) * across)


@dataclass
class Device:
    name: str
    gallery: Gallery
    site: MemorySite
    settings: IdentifySettings = field(default_factory=lambda: IdentifySettings(threshold=THRESHOLD))
    reported: list[tuple[str, str, bool]] = field(default_factory=list)
    time: float = 0.0

    def __post_init__(self) -> None:
        self.gallery.cameras.start()
        self.store: MemoryStore = self.site.store(self.name)
        self.begin()

    def begin(self) -> None:
        """Start the program (again)."""
        self.reconciler = Reconciler(
            self.name,
            self.gallery,
            lambda: ThresholdPolicy(self.gallery, self.settings),
            lambda pair, active: self.reported.append((pair.one, pair.other, active)),
            now=lambda: self.time,
        )

    def enrol(self, id_: str, *vectors: Vectors, name: str | None = None, enrolled: bool = False) -> None:
        """Share a person whom this device knows."""
        exemplars = tuple(SharedExemplar("hall", 0, 0.8, vector) for vector in vectors)
        kind = "enrolled" if enrolled or name is not None else "auto"
        person = PersonChange(id_, (), kind, name and Setting(name), None, 1.0, 0.0, "hall", exemplars)  # type: ignore[arg-type]
        run(self.store.push(Push((person,)), 0))

    def step(self) -> bool:
        """Do all that is due; return whether this device has the lease."""
        return run(self._step())

    async def _step(self) -> bool:
        await self.reconciler.end_conflicts(self.store)
        leads = await self.store.lease("reconcile", LEASE_S)
        if leads:
            await self.reconciler.run(self.store)
        return leads


@pytest.fixture
def site() -> MemorySite:
    return MemorySite(dimension=D)


@dataclass
class Devices:
    site: MemorySite
    stack: ExitStack

    def __call__(self, name: str) -> Device:
        gallery = Gallery(":memory:", GallerySettings(), space="test", dimension=D)
        return Device(name, self.stack.enter_context(gallery), self.site)


@pytest.fixture
def device(site: MemorySite) -> Iterator[Devices]:
    with ExitStack() as stack:
        yield Devices(site, stack)


def groups(site: MemorySite) -> set[frozenset[str]]:
    found: dict[str, set[str]] = {}
    for one in site.content.people.values():
        found.setdefault(one.root, set()).add(one.id)
    return {frozenset(group) for group in found.values()}


def test_one_person_enrolled_by_two_devices_is_joined(site: MemorySite, device: Devices) -> None:
    one, other = device("one"), device("other")
    other.enrol("p-old", face(1))
    one.enrol("p-new", like(1, 0.8))
    one.enrol("p-else", face(2))
    one.step()
    assert groups(site) == {frozenset({"p-old", "p-new"}), frozenset({"p-else"})}
    assert site.content.people["p-new"].root == "p-old"  # the older id stays
    assert one.reconciler.joined == 1


@pytest.mark.parametrize(("cosine", "joined"), [(0.57, False), (0.61, False), (0.63, True)])
def test_the_threshold_is_stricter_than_that_of_a_device(
    site: MemorySite, device: Devices, cosine: float, *, joined: bool
) -> None:
    one, other = device("one"), device("other")
    one.enrol("p-1", face(1))
    other.enrol("p-2", like(1, cosine))
    one.step()
    assert (len(groups(site)) == 1) is joined


def test_the_threshold_near_one_can_be_reached() -> None:
    assert stricter(0.5) == 0.5 + STRICTER
    assert 0.99 < stricter(0.99) < 1.0


def test_the_score_is_the_mean_both_ways(site: MemorySite, device: Devices) -> None:
    """One picture in common is not enough where all others differ."""
    one, other = device("one"), device("other")
    one.enrol("p-1", face(1), face(2), face(3))
    other.enrol("p-2", face(1), face(4), face(5))
    one.step()
    assert len(groups(site)) == 2


def test_nobody_is_joined_during_the_warm_up(site: MemorySite, device: Devices) -> None:
    one, other = device("one"), device("other")
    one.settings = IdentifySettings()
    one.enrol("p-1", face(1))
    other.enrol("p-2", face(1))
    one.step()
    assert len(groups(site)) == 2


def test_two_whom_one_device_has_seen_are_left_to_it(site: MemorySite, device: Devices) -> None:
    """E.g. two alike people who walk together: their device knows that they are two."""
    one, other = device("one"), device("other")
    one.enrol("p-1", face(1))
    one.enrol("p-2", like(1, 0.97))
    for reconciling in (other, one):
        reconciling.step()
        site.now += 2 * LEASE_S
    assert len(groups(site)) == 2
    other.enrol("p-3", unit(face(1) + like(1, 0.97)))  # near both: who it is cannot be told
    one.step()
    assert len(groups(site)) == 3


def test_a_clear_lead_over_the_second_is_enough(site: MemorySite, device: Devices) -> None:
    one, other = device("one"), device("other")
    one.enrol("p-1", face(1))
    one.enrol("p-2", like(1, 0.85, 3))
    other.enrol("p-3", like(1, 0.99, 4))
    one.step()
    assert frozenset({"p-1", "p-3"}) in groups(site)


def test_three_devices(site: MemorySite, device: Devices) -> None:
    """Somebody else's identity of the same person is no rival."""
    devices = [device(name) for name in ("a", "b", "c")]
    for number, one in enumerate(devices):
        one.enrol(f"p-{number}", like(1, 0.97, number))
        one.enrol(f"p-{number}x", like(2, 0.97, number))
    devices[2].step()
    assert groups(site) == {frozenset({"p-0", "p-1", "p-2"}), frozenset({"p-0x", "p-1x", "p-2x"})}


def test_people_kept_apart_are_not_joined(site: MemorySite, device: Devices) -> None:
    one, other = device("one"), device("other")
    one.enrol("p-1", face(1))
    other.enrol("p-2", face(1))
    run(one.store.push(Push(apart=(Apart("p-1", "p-2", "rejected"),)), 0))
    one.step()
    assert len(groups(site)) == 2


def test_two_who_were_enrolled_by_hand_are_not_joined_by_a_guess(site: MemorySite, device: Devices) -> None:
    one, other = device("one"), device("other")
    one.enrol("p-1", face(1), enrolled=True)
    other.enrol("p-2", face(1), name="Ada")
    other.enrol("p-3", face(2), name="Berta")
    one.enrol("p-4", face(2))
    one.step()
    assert groups(site) == {frozenset({"p-1"}), frozenset({"p-2"}), frozenset({"p-3", "p-4"})}
    assert one.reported == []


def test_two_names_are_a_conflict_which_is_reported_once(site: MemorySite, device: Devices) -> None:
    one, other = device("one"), device("other")
    one.enrol("p-1", face(1), name="Ada")
    other.enrol("p-2", face(1), name="Berta")
    one.step()
    assert len(groups(site)) == 2
    assert run(one.store.state()).conflicts == (("p-1", "p-2"),)
    assert one.reported == [("p-1", "p-2", True)]
    one.enrol("p-1", face(1), like(1, 0.98))  # a later sighting
    one.begin()
    one.step()
    site.now += 2 * LEASE_S
    other.step()  # another device takes the tasks over
    assert (one.reported, other.reported) == ([("p-1", "p-2", True)], [])


@pytest.mark.parametrize("merged", [False, True])
def test_an_operator_ends_a_conflict(site: MemorySite, device: Devices, *, merged: bool) -> None:
    one, other = device("one"), device("other")
    one.enrol("p-1", face(1), name="Ada")
    other.enrol("p-2", face(1), name="Berta")
    one.step()
    if merged:
        change = PersonChange("p-1", ("p-2",), "enrolled", None, None, 1.0, 0.0, "hall", None)
        run(other.store.push(Push((change,)), 0))
    else:
        run(other.store.push(Push(apart=(Apart("p-1", "p-2", "rejected"),)), 0))
    site.now += 2 * LEASE_S
    other.step()
    one.begin()  # a restart
    assert not one.step()  # without the lease
    assert one.reported == [("p-1", "p-2", True), ("p-1", "p-2", False)]
    one.step()
    assert len(one.reported) == 2


def test_the_store_joins_nobody_for_a_device_without_the_lease(site: MemorySite, device: Devices) -> None:
    one, other = device("one"), device("other")
    one.step()
    one.enrol("p-1", face(1))
    other.enrol("p-2", face(1))
    assert not other.step()
    run(other.reconciler.run(other.store))  # it lost the lease just now
    run(other.reconciler.tidy(other.store))
    assert len(groups(site)) == 2
    site.now += LEASE_S  # the holder is gone
    other.gallery.facts.set("fleet_reconciled", None)
    assert other.step()
    assert len(groups(site)) == 1


def test_a_store_that_goes_away_in_any_call_loses_nothing(site: MemorySite, device: Devices) -> None:
    one, other = device("one"), device("other")
    one.enrol("p-1", face(1))
    other.enrol("p-2", face(1))
    for lost in range(1, 8):
        site.lost_answers = lost
        for _ in range(lost):
            with contextlib.suppress(StoreDown):
                one.step()
        site.lost_answers = 0
    one.step()
    assert len(groups(site)) == 1


def test_who_was_compared_is_not_compared_again(site: MemorySite, device: Devices) -> None:
    one = device("one")
    for number in range(3 * STEP_PEOPLE):
        one.enrol(f"p-{number:03}", face(number))
    compared = noted_calls(one)
    one.step()
    assert compared[0] == 0
    assert len(compared) > 3
    one.begin()
    one.step()
    assert compared[-1] == site.content.version  # only the end


def noted_calls(device: Device, seconds: float = 0.0) -> list[int]:
    """Note the marks from which people are compared; each call takes some seconds."""
    alike, marks = device.store.alike, list[int]()

    async def noted(after: int, most: int) -> Any:
        marks.append(after)
        device.time += seconds
        return await alike(after, most)

    device.store.alike = noted  # type: ignore[method-assign]
    return marks


def test_a_part_of_many_people_waits_for_the_next_interval(site: MemorySite, device: Devices) -> None:
    """Meanwhile pages are exchanged."""
    one = device("one")
    for number in range(3 * STEP_PEOPLE):
        one.enrol(f"p-{number:03}", face(number))
    compared = noted_calls(one, LONGEST_S / 2)
    one.step()
    assert compared == [0, STEP_PEOPLE]
    one.step()
    assert compared[2] == 2 * STEP_PEOPLE


def test_what_has_expired_is_removed(site: MemorySite, device: Devices) -> None:
    one = device("one")
    one.step()
    one.enrol("p-1", face(1))
    site.retention = Retention(ttl_s=3600.0)
    for passed, left in ((3700.0, 1), (TOMBSTONE_S + 60, 0)):
        site.now += passed
        one.step()
        run(one.reconciler.tidy(one.store))
        assert len(site.content.people) == left


def test_a_foreign_fact_is_no_position(site: MemorySite, device: Devices) -> None:
    one, other = device("one"), device("other")
    for stored in (-5, "7", [1], {"a": 1}, 2.5, True):
        one.gallery.facts.set("fleet_reconciled", stored)
        one.gallery.facts.set("fleet_conflicts", stored)
        one.begin()
        one.step()
    one.enrol("p-1", face(1))
    other.enrol("p-2", face(1))
    one.step()
    assert len(groups(site)) == 1


def test_a_site_with_fewer_versions_than_the_position(site: MemorySite, device: Devices) -> None:
    """E.g. the device joined another site, or the store was restored from an older copy."""
    one, other = device("one"), device("other")
    one.gallery.facts.set("fleet_reconciled", 10_000)
    one.step()
    one.enrol("p-1", face(1))
    other.enrol("p-2", face(1))
    one.step()
    assert len(groups(site)) == 1


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seen=st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.sampled_from([0.7, 0.9, 0.97])),
        min_size=2,
        max_size=10,
    )
)
def test_whoever_is_joined_is_one_person_whom_different_devices_saw(
    seen: list[tuple[str, int, float]],
) -> None:
    site = MemorySite(dimension=D)
    with ExitStack() as stack:
        devices = {name: Devices(site, stack)(name) for name in "abc"}
        who: dict[str, tuple[str, int]] = {}
        for number, (name, person, cosine) in enumerate(seen):
            devices[name].enrol(f"p-{number}", like(person, cosine, number))
            who[f"p-{number}"] = name, person
            if number % 3 == 0:
                devices["b"].step()
        devices["b"].step()
    for group in groups(site):
        assert len({who[id_][1] for id_ in group}) == 1
        assert len({who[id_][0] for id_ in group}) == len(group)


def test_pairs_have_the_smaller_id_first(site: MemorySite, device: Devices) -> None:
    one, other = device("one"), device("other")
    asked: list[Pair] = []
    join = one.store.join

    async def noted(pairs: Any) -> int:
        asked.extend(pairs)
        return await join(pairs)

    one.store.join = noted  # type: ignore[method-assign]
    one.enrol("p-z", face(1))
    other.enrol("p-a", face(1))
    one.step()
    assert asked == [Pair("p-a", "p-z")]


@pytest.mark.parametrize("bad", [np.zeros(D), np.full(D, np.nan), 3 * np.ones(D), np.ones(D + 1) / 6])
def test_what_is_no_embedding_does_not_stop_the_task(
    site: MemorySite, device: Devices, monkeypatch: pytest.MonkeyPatch, bad: Any
) -> None:
    """The others of the site are joined all the same."""
    one, other, third = device("one"), device("other"), device("third")
    one.enrol("p-1", face(1))
    other.enrol("p-2", face(1))
    third.enrol("p-3", face(2))
    (key,) = [key for key in site.content.contributions if key[0] == "p-3"]
    version, contribution = site.content.contributions[key]
    shot = replace(contribution.exemplars[0], vector=np.asarray(bad, np.float32))
    site.content.contributions[key] = version, replace(contribution, exemplars=(shot,))
    monkeypatch.setattr("tests.fleet.memory_store._vectors", _searched)
    one.step()
    assert frozenset({"p-1", "p-2"}) in groups(site)


def _searched(candidate: Candidate) -> Vectors:
    """Return what a server searches, which finds anything."""
    rows = [shot.vector for one in candidate.contributions for shot in one.exemplars]
    usable = [row for row in rows if row.shape == (D,) and np.isfinite(row).all()]
    return np.stack(usable or [face(99)])
