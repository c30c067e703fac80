"""Exchange of changes between galleries and a site, by the code that the worker runs."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.core.clock import Clock
from edge_agent.core.config import GallerySettings
from edge_agent.core.errors import InputError
from edge_agent.fleet.records import Apart, CameraMean, Contribution, SharedExemplar
from edge_agent.fleet.store import StoreDown
from edge_agent.fleet.sync import Sync
from edge_agent.gallery import Gallery, Identity
from edge_agent.gallery import erasure as erasing
from edge_agent.gallery.archive import export_gallery, import_archive
from edge_agent.gallery.crop_rows import Shot
from edge_agent.gallery.reembedding import Reembedding
from edge_agent.gallery.sync import Space
from tests.fleet.memory_store import MemorySite

D = 8


class Time:
    """The clocks of a machine that never was off."""

    boot = "one"

    def __init__(self) -> None:
        self.wall_s: float | None = None
        self.passed_s = 0.0

    def running(self) -> float:
        return 1000.0 + self.passed_s

    def wall(self) -> float:
        return (time.time() if self.wall_s is None else self.wall_s) + self.passed_s

    def synchronised(self) -> bool:
        return self.wall_s is None


class Device:
    """A gallery with its exchange, each with a clock of its own."""

    def __init__(self, site: MemorySite, name: str, folder: Path, **settings: Any) -> None:
        self.name = name
        self.folder = folder
        self.settings = GallerySettings(**settings)
        self.site = site
        self.clock_source = Time()
        self.stack = ExitStack()
        self.open()

    def open(self) -> None:
        """Start, as after a kill: only the file is left."""
        self.stack.close()
        self.clock = clock = Clock.open(self.folder / f"{self.name}.json", self.clock_source)
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

    def older(self, seconds: float) -> None:
        """Let time pass."""
        self.clock_source.passed_s += seconds

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


def test_an_archive_has_what_others_contributed(make: Callable[..., Device], tmp_path: Path) -> None:
    a, b = make("a"), make("b")
    person = a.enrol(1, name="Ada")
    exchange(a, b)
    number = b.gallery.get("Ada").number
    b.gallery.add_exemplars(number, near(2), np.ones(1), origin="s:x:1", camera="x", time=1e9)
    export_gallery(b.gallery, tmp_path / "copy.zip")
    with Gallery(tmp_path / "new.db", GallerySettings(), space="s", dimension=D) as new:
        assert import_archive(new, tmp_path / "copy.zip").added == 1
        assert set(new.exemplars(1)[2]) == {f"fleet/a/{person.id}", "s:x:1"}
        with pytest.raises(InputError, match="device a"):
            new.corrections.split(1, f"fleet/a/{person.id}")


def test_an_archive_of_somebody_who_was_erased_at_the_site_does_not_bring_them_back(
    make: Callable[..., Device], tmp_path: Path
) -> None:
    a, b = make("a"), make("b")
    person = a.enrol(1, name="Ada")
    export_gallery(a.gallery, tmp_path / "copy.zip")
    exchange(a, b)
    erasing.forget(a.gallery, person.number)
    exchange(a, b)
    import_archive(b.gallery, tmp_path / "copy.zip")
    assert b.gallery.get("Ada").id == person.id
    exchange(b, a)
    assert content(a) == content(b) == []


def test_pruning_counts_own_exemplars_only(make: Callable[..., Device]) -> None:
    a, b = make("a", max_exemplars=3), make("b", max_exemplars=3)
    person = a.enrol(1)
    number = person.number
    for seed in range(2, 8):
        a.gallery.add_exemplars(number, near(seed), np.ones(1), origin=f"s:x:{seed}", camera="x", time=1e9)
    exchange(a, b)
    there = b.gallery.get(person.id).number
    for seed in range(12, 18):
        b.gallery.add_exemplars(there, near(seed), np.ones(1), origin=f"s:y:{seed}", camera="y", time=1e9)
    exchange(b, a)
    for device, mine in ((a, "s:"), (b, "s:")):
        origins = device.gallery.exemplars(device.gallery.get(person.id).number)[2]
        assert sum(origin.startswith(mine) for origin in origins) == 3
        assert sum(origin.startswith("fleet/") for origin in origins) == 3


def test_a_full_gallery_keeps_whom_it_saw_later(make: Callable[..., Device]) -> None:
    a, b = make("a"), make("b", capacity=3)
    for seed in range(5):
        a.enrol(seed)
    a.step()
    time.sleep(0.02)
    own = b.enrol(20)
    b.step()
    assert len(b.gallery) == 3
    assert own.id in {one.id for one in b.gallery.identities()}
    assert len(a.gallery) == 5
    assert not any(notice.kind == "forgotten" for notice in a.gallery.notices.waiting())


def test_a_person_who_is_seen_elsewhere_does_not_expire_here(
    make: Callable[..., Device], site: MemorySite
) -> None:
    a, b = make("a"), make("b", ttl_hours=1.0)
    person = a.enrol(1)
    exchange(a, b)
    b.older(1800.0)
    site.now += 1800.0
    a.gallery.touch(person.number, 1e9)
    a.older(0.0)
    with a.gallery.file.changing() as rows:
        rows.fleet.note_all()
    exchange(a, b)
    b.older(2000.0)
    assert b.gallery.retention.expire() == []
    b.older(2000.0)
    assert len(b.gallery.retention.expire()) == 1


def test_a_device_that_starts_in_1970_sends_ages(make: Callable[..., Device], site: MemorySite) -> None:
    a, b = make("a"), make("b")
    a.clock_source.wall_s = 100.0
    a.open()
    a.enrol(1)
    a.older(60.0)
    exchange(a, b)
    (person,) = site.roots()
    assert site.now - person.last_seen == pytest.approx(60, abs=5)
    assert site.now - person.first_seen == pytest.approx(60, abs=5)
    (there,) = b.gallery.identities()
    assert there.last_seen == pytest.approx(b.clock.label() - 60, abs=5)


def test_nothing_is_noted_before_the_first_start_and_after_leaving(make: Callable[..., Device]) -> None:
    a = make("a")
    a.enrol(1)
    with a.gallery.file.reading() as rows:
        assert rows.fleet.waiting() == 0
    a.step()
    a.enrol(2)
    with a.gallery.file.changing() as rows:
        assert rows.fleet.waiting() == 1
        rows.fleet.leave()
    a.enrol(3)
    with a.gallery.file.reading() as rows:
        assert rows.fleet.waiting() == 0
        assert rows.store.value("SELECT count(*) FROM sqlite_temp_master") == 0
        assert rows.fleet.device is None


def test_a_command_beside_the_agent_is_sent_too(make: Callable[..., Device], tmp_path: Path) -> None:
    a, b = make("a"), make("b")
    person = a.enrol(1)
    exchange(a, b)
    with Gallery.existing(tmp_path / "a.db", clock=a.clock) as beside:
        beside.rename(person.number, "Ada")
    exchange(a, b)
    assert b.gallery.get("Ada").id == person.id
    with Gallery.existing(tmp_path / "a.db", clock=a.clock) as beside:
        erasing.forget(beside, person.number)
    exchange(a, b)
    assert content(b) == []


def test_another_device_name_sends_everything_again(make: Callable[..., Device], site: MemorySite) -> None:
    a = make("a")
    a.enrol(1)
    exchange(a)
    with a.gallery.file.changing() as rows:
        rows.fleet.start("z")
        assert (rows.site.mark, rows.site.receipts, rows.fleet.waiting()) == (0, [], 1)
    del site


def test_reembedding_sends_the_new_embeddings(make: Callable[..., Device], tmp_path: Path) -> None:
    a, b = make("a"), make("b")
    person = a.enrol(1)
    exchange(a, b)
    shot = Shot("s:door:1", "door", 1e9, 1.0, near(1)[0], b"picture")
    with b.gallery.file.changing() as rows:
        rows.crops.add(b.gallery.get(person.id).number, [shot], "kept", 4)
    b.stack.close()
    with Reembedding(tmp_path / "b.db", None) as moving:
        moving.begin(Space("other", D))
        for batch in moving.batches(10):
            moving.store([row for row, _ in batch], [near(9)[0] for _ in batch])
        moving.finish()
    clock = Clock.open(tmp_path / "b.json")
    with Gallery(tmp_path / "b.db", b.settings, space="other", dimension=D, owner=True, clock=clock) as moved:
        assert [len(moved.exemplars(one.number)[2]) for one in moved.identities()] == [1]
        assert moved.exemplars(moved.get(person.id).number)[2] == ("s:door:1",)  # the others' are of the old
        with moved.file.reading() as rows:
            assert rows.fleet.waiting() == 1


def test_rows_that_no_device_sends_are_left_out(make: Callable[..., Device], site: MemorySite) -> None:
    """Another program, or a device that was taken over, may write anything into the store."""
    a, b = make("a"), make("b")
    person = a.enrol(1)
    a.step()
    good = site.content.people[person.id]
    for id_, changes in {
        "../../etc": {},
        "p-aaaaaaaaaaaa": {"last_seen": math.nan},
        "p-aaaaaaaaaaab": {"ttl_s": math.inf},
        "p-aaaaaaaaaaac": {"kind": "king"},
        "p-aaaaaaaaaaad": {"name": "a\nb"},
        "p-aaaaaaaaaaae": {"name": "7"},
    }.items():
        row = dataclasses.replace(good, **{"id": id_, "root": id_, "version": 1, **changes})
        site.content.people[id_] = row
    shots = (SharedExemplar("door", 0, 0.5, near(5)[0]), SharedExemplar("../x", 0, 0.5, near(6)[0]))
    for device, exemplars in {
        "x/y": shots[:1],
        "c": shots,
        "d": (dataclasses.replace(shots[0], vector=np.full(D, np.nan, np.float32)),),
        "e": (dataclasses.replace(shots[0], vector=np.ones(3, np.float32)),),
        "f": (dataclasses.replace(shots[0], quality=math.nan),),
        "g": (dataclasses.replace(shots[0], epoch=-1),),
    }.items():
        site.content.contributions[person.id, device] = 1, Contribution(person.id, device, exemplars)
    site.content.means["c", "door", 0] = 1, CameraMean("c", "door", 0, 3.0, np.full(D, np.inf))
    site.content.means["c", "hall", 0] = 1, CameraMean("c", "hall", 0, 3.0, np.ones(3))
    site.content.apart[person.id, "p-aaaaaaaaaaad"] = 1, Apart(person.id, "p-aaaaaaaaaaad", "x" * 10_000)
    b.step()
    assert sorted(one.id for one in b.gallery.identities()) == sorted(
        [person.id, "p-aaaaaaaaaaad", "p-aaaaaaaaaaae"]
    )
    assert {one.name for one in b.gallery.identities()} == {None}
    assert b.gallery.exemplars(b.gallery.get(person.id).number)[2] == (f"fleet/a/{person.id}",)
    assert b.gallery.corrections.apart(b.gallery.get(person.id).number) == set()
    b.gallery.cameras.start()
    assert b.gallery.search(near(1), 1)[1][0, 0] == pytest.approx(1.0, abs=1e-5)


def test_a_lost_clock_lets_sightings_be_sent_again(make: Callable[..., Device], site: MemorySite) -> None:
    a = make("a")
    person = a.enrol(1)
    a.older(1e6)
    a.gallery.touch(person.number, 1e9)
    exchange(a)
    a.stack.close()
    (a.folder / "a.json").unlink()
    a.open()
    a.older(3600.0)
    site.now += 3600.0
    a.gallery.touch(person.number, 1e9)
    exchange(a)
    (known,) = site.roots()
    assert site.now - known.last_seen < 5
