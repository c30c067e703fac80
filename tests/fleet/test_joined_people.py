"""Devices follow when two identities of the site become one: galleries, tracks, and what is published."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from edge_agent.agent.people_events import PeopleEvents
from edge_agent.core.clock import Clock
from edge_agent.core.config import GallerySettings, IdentifySettings
from edge_agent.fleet.reconciler import Reconciler
from edge_agent.fleet.store import FleetStore
from edge_agent.fleet.sync import Sync
from edge_agent.gallery.gallery import Gallery
from edge_agent.gallery.sync import Space
from edge_agent.identify import Identifier
from tests.agent.test_people_events import Published
from tests.fleet.memory_store import MemorySite
from tests.fleet.postgres_site import Site
from tests.identify.test_identify import D, People, Scene, unit

SETTINGS = IdentifySettings(threshold=0.6)
MakeStore = Callable[[str], FleetStore]


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


@dataclass
class Device:
    """A whole device without pictures: its gallery, decisions, events, and its part in the site."""

    name: str
    gallery: Gallery
    make_store: MakeStore
    published: Published = field(default_factory=Published)
    reported: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.identifier = Identifier(self.gallery, f"s-{self.name}", SETTINGS, shares=True)
        self.scene = Scene(self.identifier, "door")
        self.people = PeopleEvents(self.gallery, self.identifier, self.published, Clock())  # type: ignore[arg-type]

    def visit(self, people: People, who: dict[int, int]) -> None:
        self.published.decisions(self.scene.visit(people, who))

    def exchange(self, *, leads: bool = False) -> None:
        """Exchange everything with the site; with `leads`, join people before."""
        run(self._exchange(leads=leads))
        self.people.run()
        self.published.decisions(self.scene.show({}))

    async def _exchange(self, *, leads: bool) -> None:
        store = self.make_store(self.name)
        sync = Sync(self.gallery, store, self.name, erase=lambda: None)
        await sync.connect()
        await sync.step()
        if leads:
            assert await store.lease("reconcile", 60.0)
            reconciler = Reconciler(
                self.name,
                self.gallery,
                self.identifier.thresholds.as_stored,
                lambda pair, active: self.reported.append(active),
            )
            await reconciler.run(store)
            await reconciler.end_conflicts(store)
            await sync.step()
        await store.close()

    def id_of(self, track: int) -> str:
        return self.gallery.get(self.identifier.number("door", track) or 0).id

    def corrected(self) -> list[tuple[int, str, str, bool]]:
        return [
            (one["track_id"], one["previous_identity_id"], one["identity_id"], one["ended"])
            for one in (event["data"] for event in self.published.events)
            if one.get("kind") == "corrected"
        ]


@pytest.fixture(params=["memory", "postgres"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], Device]]:
    """Make devices of one site, in memory or on PostgreSQL."""
    if request.param == "memory":
        make_store: MakeStore = MemorySite(dimension=D, space="t").store
    else:
        pytest.importorskip("asyncpg")
        site = Site(request.getfixturevalue("database"), space=Space("t", D))
        site.init()
        make_store = site.store
    with ExitStack() as stack:

        def device(name: str) -> Device:
            path = tmp_path / f"{name}.db"
            gallery = Gallery(path, GallerySettings(), space="t", dimension=D, owner=True, clock=Clock())
            return Device(name, stack.enter_context(gallery), make_store)

        yield device


def test_one_person_enrolled_by_two_devices_at_once(make: Callable[[str], Device]) -> None:
    people = People(4)
    gate, hall = make("gate"), make("hall")
    gate.visit(people, {1: 0})
    hall.visit(people, {1: 0})
    hall.visit(people, {2: 0})
    hall.visit(people, {3: 1})
    older, younger, else_ = gate.id_of(1), hall.id_of(1), hall.id_of(3)
    assert hall.id_of(2) == younger != older
    gate.exchange()
    hall.exchange(leads=True)
    gate.exchange()
    assert hall.corrected() == [(1, younger, older, True), (2, younger, older, True)]
    assert gate.corrected() == []
    merged = [(one["absorbed_id"], one["identity_id"], one["reason"]) for one in hall.published.people()]
    assert merged == [(younger, older, "fleet")]
    for device in (gate, hall):
        assert {one.id for one in device.gallery.identities()} == {older, else_}
        assert device.gallery.get(younger).id == older
    assert hall.id_of(1) == hall.id_of(2) == older


def test_alike_people_who_walk_together_are_never_joined(make: Callable[[str], Device]) -> None:
    people = People(4, noise=0.2)
    people.centres[1] = unit(people.centres[0] + 0.25 * people.centres[1])
    gate, hall = make("gate"), make("hall")
    gate.visit(people, {1: 0, 2: 1})
    one, other = gate.id_of(1), gate.id_of(2)
    assert one != other
    gate.exchange(leads=True)
    hall.exchange()
    numbers = [hall.gallery.get(id_).number for id_ in (one, other)]
    assert numbers[1] in hall.gallery.corrections.apart(numbers[0])  # the other device knows it, too
    for track in range(10, 16):
        hall.visit(people, {track: track % 2})
        hall.exchange()
        gate.exchange(leads=True)
    for device in (gate, hall):
        assert {one, other} <= {each.id for each in device.gallery.identities()}
    assert {hall.id_of(track) for track in range(10, 16)} <= {one, other}


def test_two_names_are_reported_until_an_operator_decides(make: Callable[[str], Device]) -> None:
    people = People(4)
    gate, hall = make("gate"), make("hall")
    for device, name in ((gate, "Ada"), (hall, "Berta")):
        device.visit(people, {1: 0})
        device.gallery.rename(device.identifier.number("door", 1) or 0, name)
    gate.exchange()
    hall.exchange(leads=True)
    hall.exchange(leads=True)
    assert hall.reported == [True]
    gate.exchange()
    ids = {one.name: one.number for one in gate.gallery.identities()}
    gate.gallery.merge(ids["Ada"], ids["Berta"])
    gate.exchange()
    hall.exchange(leads=True)
    assert hall.reported == [True, False]
    assert [one.name for one in hall.gallery.identities()] == ["Ada"]
