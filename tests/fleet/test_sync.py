"""Exchange of changes between galleries and a site, by the code that the worker runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.core.clock import Clock
from edge_agent.core.config import GallerySettings
from edge_agent.core.errors import InputError
from edge_agent.fleet.store import StoreDown
from edge_agent.fleet.sync import Sync
from edge_agent.gallery import Gallery, Identity
from edge_agent.gallery import erasure as erasing
from tests.fleet.memory_store import MemorySite

D = 8


class Device:
    """A gallery with its exchange, each with a clock of its own."""

    def __init__(self, site: MemorySite, name: str, folder: Path, **settings: Any) -> None:
        self.name = name
        self.folder = folder
        self.settings = GallerySettings(**settings)
        self.site = site
        self.stack = ExitStack()
        self.open()

    def open(self) -> None:
        """Start, as after a kill: only the file is left."""
        self.stack.close()
        clock = Clock.open(self.folder / f"{self.name}.json")
        self.gallery = self.stack.enter_context(
            Gallery(
                self.folder / f"{self.name}.db",
                self.settings,
                space="s",
                dimension=D,
                owner=True,
                clock=clock,
            )
        )
        self.sync = Sync(self.gallery, self.site.store(self.name), self.name)

    def enrol(self, seed: int, camera: str = "door", **more: Any) -> Identity:
        return self.gallery.enrol(
            near(seed), np.ones(1), origin=f"s:{camera}:{seed}", camera=camera, time=1e9, **more
        )

    def step(self) -> None:
        asyncio.run(self.sync.step())


def near(seed: int) -> np.ndarray:
    row = np.random.default_rng(seed).standard_normal(D)
    return (row / np.linalg.norm(row)).astype(np.float32)[None]


@pytest.fixture
def site() -> MemorySite:
    return MemorySite(dimension=D)


@pytest.fixture
def make(site: MemorySite, tmp_path: Path) -> Iterator[Callable[..., Device]]:
    with ExitStack() as stack:

        def made(name: str, **settings: Any) -> Device:
            device = Device(site, name, tmp_path, **settings)
            stack.callback(device.stack.close)
            return device

        yield made


def exchange(*devices: Device) -> None:
    for _ in range(3):
        for device in devices:
            device.step()


def content(device: Device) -> list[tuple[Any, ...]]:
    """Who is known, without numbers and times."""
    return sorted(
        (one.id, one.name or "", one.kind, one.ttl_s, device.gallery.former_ids(one.number))
        for one in device.gallery.identities()
    )


def test_people_of_one_device_are_found_by_the_other(make: Callable[..., Device]) -> None:
    a, b = make("a"), make("b")
    person = a.enrol(1, name="Ada")
    exchange(a, b)
    assert content(a) == content(b)
    number = b.gallery.get("Ada").number
    assert b.gallery.search(near(1), 1)[0].tolist() == [[number]]
    assert b.gallery.get(person.id).exemplars == 1
    assert b.gallery.exemplars(number)[2] == (f"fleet/a/{person.id}",)
    assert a.sync.pending() == b.sync.pending() == 0
    (notice,) = b.gallery.notices.waiting()
    assert (notice.kind, notice.id, notice.reason) == ("named", person.id, "fleet")


def test_nothing_is_sent_twice_and_a_repeat_changes_nothing(
    make: Callable[..., Device], site: MemorySite
) -> None:
    a, b = make("a"), make("b")
    a.enrol(1)
    exchange(a, b)
    sent, version = len(site.pushes), site.content.version
    exchange(a, b)
    assert (len(site.pushes), site.content.version) == (sent, version)
    with a.gallery.file.changing() as rows:
        rows.fleet.note_all()
    site.now += 0.5
    exchange(a, b)
    assert site.content.version == version


def test_a_merge_follows(make: Callable[..., Device]) -> None:
    a, b = make("a"), make("b")
    one, two = a.enrol(1), a.enrol(2)
    exchange(a, b)
    b.gallery.merge(b.gallery.get(two.id).number, b.gallery.get(one.id).number)
    exchange(a, b)
    assert content(a) == content(b)
    (left,) = a.gallery.identities()
    assert (left.id, left.exemplars) == (one.id, 2)  # the older id stays
    assert b.gallery.get(two.id).id == one.id
    merged = [(notice.kind, notice.id, notice.other) for notice in b.gallery.notices.waiting()]
    assert merged == [("merged", one.id, two.id), ("merged", two.id, one.id)]


def test_a_forgotten_person_is_erased_everywhere(make: Callable[..., Device], site: MemorySite) -> None:
    a, b = make("a"), make("b")
    person = a.enrol(1)
    exchange(a, b)
    b.gallery.add_exemplars(
        b.gallery.get(person.id).number, near(3), np.ones(1), origin="s:x:1", camera="x", time=1e9
    )
    erasing.forget(a.gallery, person.number)
    a.open()  # a kill right after it
    exchange(a, b)
    assert content(a) == content(b) == []
    notices = [(notice.kind, notice.reason) for notice in b.gallery.notices.waiting()]
    assert notices == []  # its events are erased first
    assert b.gallery.facts.get("events_to_erase") == [person.id]
    assert not any(one.exemplars for _, one in site.content.contributions.values())


def test_unsent_changes_survive_a_page(make: Callable[..., Device]) -> None:
    a, b = make("a"), make("b")
    person = a.enrol(1)
    exchange(a, b)
    a.gallery.rename(a.gallery.get(person.id).number, "Ada")
    a.step()
    b.gallery.rename(b.gallery.get(person.id).number, "Grace")
    exchange(b, a)
    assert content(a) == content(b)
    assert a.gallery.get(person.id).name == "Grace"  # whose change reached the store last


def test_two_people_of_one_name(make: Callable[..., Device]) -> None:
    a, b = make("a"), make("b")
    a.enrol(1, name="Ada")
    b.enrol(2, name="Ada")
    exchange(a, b)
    assert content(a) == content(b)
    assert {one.name for one in a.gallery.identities()} == {"Ada", "Ada (2)"}


def test_what_another_device_contributed_is_not_split_off(make: Callable[..., Device]) -> None:
    a, b = make("a"), make("b")
    person = a.enrol(1)
    exchange(a, b)
    number = b.gallery.get(person.id).number
    b.gallery.add_exemplars(number, near(2), np.ones(1), origin="s:x:1", camera="x", time=1e9)
    with pytest.raises(InputError, match="device a"):
        b.gallery.corrections.split(number, f"fleet/a/{person.id}")
    new = b.gallery.corrections.split(number, "s:x:1")
    exchange(a, b)
    assert content(a) == content(b)
    assert new.id in {one.id for one in a.gallery.identities()}
    assert len(a.gallery.corrections.apart(a.gallery.get(new.id).number)) == 1


def test_a_store_that_is_down_loses_nothing(make: Callable[..., Device], site: MemorySite) -> None:
    a, b = make("a"), make("b")
    site.down = True
    a.enrol(1)
    with pytest.raises(StoreDown):
        a.step()
    site.down = False
    exchange(a, b)
    assert content(a) == content(b) != []


def test_a_restored_store_is_refilled(make: Callable[..., Device], site: MemorySite) -> None:
    a, b = make("a"), make("b")
    one = a.enrol(1)
    exchange(a, b)
    kept = site.backup()
    a.enrol(2, name="Ada")
    exchange(a, b)
    erasing.forget(a.gallery, a.gallery.get(one.id).number)
    exchange(a, b)
    site.restore(kept)
    for device in (a, b):
        with pytest.raises(StoreDown):
            device.step()
        device.sync.disconnected()
    exchange(b, a)
    assert content(a) == content(b)
    assert [person.name for person in a.gallery.identities()] == ["Ada"]


def test_a_device_that_returns_late_erases_what_the_site_does_not_have(
    make: Callable[..., Device], site: MemorySite
) -> None:
    a, b = make("a"), make("b")
    gone, stays = a.enrol(1), a.enrol(2)
    exchange(a, b)
    own = b.enrol(3)
    erasing.forget(a.gallery, gone.number)
    a.step()
    site.now += 1e7
    store = site.store("a")
    asyncio.run(store.hello(0, []))
    asyncio.run(store.lease("reconcile", 60))
    asyncio.run(store.tidy(1.0))
    assert site.content.horizon > 0
    a.step()
    b.open()
    exchange(b, a)
    assert {one.id for one in b.gallery.identities()} == {stays.id, own.id}
    assert content(a) == content(b)
