"""What every `FleetStore` does: a test class inherits `StoreContract` and has a fixture `new_site`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent.core.errors import InputError
from edge_agent.core.names import LONGEST_NAME
from edge_agent.fleet import rules
from edge_agent.fleet.records import (
    Apart,
    CameraMean,
    Contribution,
    Page,
    Pair,
    PersonChange,
    Push,
    Reason,
    Setting,
    SharedExemplar,
    SitePerson,
    Vectors,
)
from edge_agent.fleet.store import FleetStore, StaleMark

DIMENSION = 8
HOUR = 3600.0
DAY = 24 * HOUR
TTL_S = 10 * DAY
"""Of people of kind `auto` at the sites under test; `enrolled` stay for ever."""


class SiteUnderTest(Protocol):
    """An empty site of `DIMENSION` numbers with `TTL_S`."""

    def store(self, device: str) -> FleetStore:
        """Return the share of a device, which has the right to use it."""

    async def passes(self, seconds: float) -> None:
        """Make everything that the store knows older."""


NewSite = Callable[[], SiteUnderTest]


def vector(seed: int) -> Vectors:
    """Return one of a few directions that are far apart, `(D,)`."""
    found = np.random.default_rng(seed).normal(size=DIMENSION)
    return np.asarray(found / np.linalg.norm(found), np.float32)


def exemplars(*seeds: int, camera: str = "hall") -> tuple[SharedExemplar, ...]:
    return tuple(SharedExemplar(camera, 0, 0.5 + seed / 100, vector(seed)) for seed in seeds)


def change(id_: str, *former: str, seeds: Sequence[int] | None = (1,), **values: Any) -> PersonChange:
    """Return a change of a person who was seen an hour ago for the first time, and just now."""
    shared = None if seeds is None else exemplars(*seeds)
    plain = PersonChange(id_, tuple(former), "auto", None, None, HOUR, 0.0, "hall", shared)
    return replace(plain, **values)


def push_of(*people: PersonChange) -> Push:
    return Push(people=tuple(people))


def named(id_: str, name: str | None, *former: str) -> PersonChange:
    return change(id_, *former, seeds=None, name=Setting(name), kind="enrolled" if name else "auto")


def run(site: SiteUnderTest, work: Callable[..., Awaitable[None]], *devices: str) -> None:
    """Run `work` with connected stores of these devices."""

    async def connected() -> None:
        stores = [site.store(device) for device in devices]
        try:
            for store in stores:
                await store.hello(0, ())
            await asyncio.wait_for(work(*stores), 60)
        finally:
            for store in stores:
                await store.close()

    asyncio.run(connected())


async def everything(store: FleetStore) -> Page:
    """Return a full copy."""
    page = await store.pull(0, 100_000)
    assert page.upto == page.version
    return page


async def person(store: FleetStore, id_: str) -> SitePerson:
    """Return the row of the person who has an id."""
    people = {one.id: one for one in (await everything(store)).people}
    return people[people[id_].root]


async def shared(store: FleetStore) -> dict[tuple[str, str], Contribution]:
    """Return what devices contribute now, by id and device."""
    return {(one.id, one.device): one for one in (await everything(store)).contributions if one.exemplars}


def same(one: Sequence[SharedExemplar], other: Sequence[SharedExemplar]) -> bool:
    """Whether exemplars are equal, vectors byte by byte."""
    return [(each.camera, each.epoch, each.quality, each.vector.tobytes()) for each in one] == [
        (each.camera, each.epoch, each.quality, each.vector.tobytes()) for each in other
    ]


def without_versions(page: Page) -> Any:
    """Return the content of a full copy, to be compared with another one; times in whole minutes."""
    order = {one.id: place for place, one in enumerate(sorted(page.people, key=lambda one: one.created))}
    people = {
        one.id: (
            one.root, one.kind, one.name, one.ttl_s, one.device, one.camera, one.forgotten, order[one.id],
            *((round((page.now - time) / 60) if time and one.forgotten is None else None)
              for time in (one.first_seen, one.last_seen)),
        )
        for one in page.people
    }  # fmt: skip
    return (
        people,
        {(one.id, one.device): [each.vector.tobytes() for each in one.exemplars] for one in page.contributions
         if one.exemplars},
        {(one.one, one.other) for one in page.apart},
        {(one.device, one.camera, one.epoch): (one.people, one.total.tobytes()) for one in page.means},
    )  # fmt: skip


class StoreContract:
    """The tests; they use only the protocol."""

    # ---- order and pages

    def test_a_change_is_in_the_pages_of_all_devices(self, new_site: NewSite) -> None:
        async def work(one: FleetStore, other: FleetStore) -> None:
            result = await one.push(push_of(change("p-1", seeds=(1, 2))), 0)
            assert result.forgotten == ()
            assert result.renamed == {}
            for store in (one, other):
                page = await store.pull(0, 100)
                assert page.upto == page.version == result.version > 0
                assert [(row.id, row.root, row.kind, row.name) for row in page.people] == [
                    ("p-1", "p-1", "auto", None)
                ]
                (found,) = page.contributions
                assert (found.id, found.device) == ("p-1", "one")
                assert same(found.exemplars, exemplars(1, 2))
                assert page.people[0].device == "one"
                assert page.people[0].camera == "hall"
                empty = await store.pull(page.upto, 100)
                assert empty.people == empty.contributions == ()
                assert empty.upto == page.upto

        run(new_site(), work, "one", "other")

    def test_a_repetition_changes_nothing(self, new_site: NewSite, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rules, "SEEN_SLACK_S", 60.0)  # a busy machine is slower than that
        push = Push(
            people=(
                change("p-1", "p-2", seeds=(1,), name=Setting("Anna"), ttl_s=Setting(60.0)),
                change("p-3"),
            ),
            forgotten=(("p-4", "request"),),
            apart=(Apart("p-1", "p-3", "split"),),
            means=(CameraMean("one", "hall", 0, 2.0, np.arange(DIMENSION, dtype=np.float64)),),
        )

        async def work(one: FleetStore) -> None:
            first = await one.push(push, 0)
            assert await one.push(push, 0) == first
            assert await one.push(push, 0) == first
            page = await one.pull(first.version, 10)
            assert (page.people, page.contributions, page.apart, page.means) == ((), (), (), ())

        run(new_site(), work, "one")

    def test_an_empty_push_changes_nothing(self, new_site: NewSite) -> None:
        async def work(one: FleetStore) -> None:
            first = await one.push(push_of(change("p-1")), 0)
            assert (await one.push(Push(), 0)).version == first.version

        run(new_site(), work, "one")

    @pytest.mark.parametrize("most", [1, 2, 3, 7])
    def test_pages_skip_nothing(self, new_site: NewSite, most: int) -> None:
        async def work(one: FleetStore, other: FleetStore) -> None:
            for number in range(6):
                store = (one, other)[number % 2]
                await store.push(push_of(change(f"p-{number}", seeds=(number,))), 0)
                await store.push(
                    Push(
                        people=(named(f"p-{number // 2}", f"Anna {number}"),),
                        apart=(Apart("p-0", f"p-{number}", "rejected"),) if number else (),
                        means=(CameraMean("", "hall", number, 1.0, np.ones(DIMENSION)),),
                    ),
                    0,
                )
            whole = await everything(one)
            people: dict[str, SitePerson] = {}
            rows: list[Any] = []
            mark, version = 0, whole.version
            while mark < version:
                page = await one.pull(mark, most)
                assert mark < page.upto <= page.version == version
                assert [row.version for row in page.people] == sorted(row.version for row in page.people)
                people |= {row.id: row for row in page.people}
                known = people.keys()
                assert {row.root for row in page.people} <= known
                assert {row.id for row in page.contributions} <= known
                assert {id_ for pair in page.apart for id_ in (pair.one, pair.other)} <= known
                rows += [*page.contributions, *page.apart, *page.means]
                mark = page.upto
            assert people == {row.id: row for row in whole.people}
            assert len(rows) == len(whole.contributions) + len(whole.apart) + len(whole.means)

        run(new_site(), work, "one", "other")

    def test_concurrent_changes_have_an_order_that_no_reader_skips(self, new_site: NewSite) -> None:
        devices = [f"device-{number}" for number in range(4)]

        async def work(*stores: FleetStore) -> None:
            *writers, reader = stores
            seen: set[str] = set()
            mark, done = 0, False

            async def write(number: int, store: FleetStore) -> None:
                for turn in range(8):
                    await store.push(push_of(change(f"p-{number}-{turn}")), 0)

            async def read() -> None:
                nonlocal mark
                while True:
                    last = done
                    page = await reader.pull(mark, 5)
                    seen.update(row.id for row in page.people if row.version > mark)
                    mark = page.upto
                    if last and mark == page.version:
                        return

            reading = asyncio.create_task(read())
            await asyncio.gather(*(write(number, store) for number, store in enumerate(writers)))
            done = True
            await reading
            assert seen == {f"p-{number}-{turn}" for number in range(len(writers)) for turn in range(8)}
            created = [row.created for row in (await everything(reader)).people]
            assert len(set(created)) == len(created)

        run(new_site(), work, *devices)

    # ---- people

    def test_values_are_merged_over_devices(self, new_site: NewSite) -> None:
        async def work(one: FleetStore, other: FleetStore) -> None:
            await one.push(push_of(change("p-1", first_age_s=2 * HOUR, last_age_s=HOUR)), 0)
            await other.push(
                push_of(change("p-1", seeds=(2,), kind="enrolled", last_age_s=60.0, camera="yard")), 0
            )
            await one.push(push_of(change("p-1", seeds=None, first_age_s=10.0, last_age_s=5 * HOUR)), 0)
            found, now = await person(one, "p-1"), (await everything(one)).now
            assert found.kind == "enrolled"
            assert now - found.first_seen == pytest.approx(2 * HOUR, abs=30)
            assert now - found.last_seen == pytest.approx(60, abs=30)
            assert (found.device, found.camera) == ("other", "yard")
            assert set(await shared(one)) == {("p-1", "one"), ("p-1", "other")}

        run(new_site(), work, "one", "other")

    def test_ages_that_are_no_ages_count_as_now(self, new_site: NewSite) -> None:
        async def work(one: FleetStore) -> None:
            await one.push(push_of(change("p-1", first_age_s=-HOUR, last_age_s=float("nan"))), 0)
            await one.push(push_of(change("p-2", first_age_s=float("inf"), last_age_s=1e300)), 0)
            page = await everything(one)
            assert all(np.isfinite([row.first_seen, row.last_seen]).all() for row in page.people)
            assert page.now - (await person(one, "p-1")).last_seen < 60

        run(new_site(), work, "one")

    def test_the_last_writer_of_a_name_and_of_a_time_to_live(self, new_site: NewSite) -> None:
        async def work(one: FleetStore, other: FleetStore) -> None:
            await one.push(push_of(named("p-1", "Anna")), 0)
            await other.push(push_of(change("p-1", name=Setting("Berta"), ttl_s=Setting(0.0))), 0)
            found = await person(one, "p-1")
            assert (found.name, found.ttl_s) == ("Berta", 0.0)
            await one.push(push_of(change("p-1", name=Setting(None), ttl_s=Setting(None))), 0)
            found = await person(one, "p-1")
            assert (found.name, found.ttl_s, found.kind) == (None, None, "enrolled")

        run(new_site(), work, "one", "other")

    def test_two_people_cannot_have_one_name(self, new_site: NewSite) -> None:
        async def work(one: FleetStore, other: FleetStore) -> None:
            await one.push(push_of(named("p-1", "Anna")), 0)
            second = await other.push(push_of(named("p-2", "Anna"), named("p-3", "Anna")), 0)
            assert second.renamed == {"p-2": "Anna (2)", "p-3": "Anna (3)"}
            again = await other.push(push_of(named("p-2", "Anna"), named("p-3", "Anna")), 0)
            assert again == second
            await one.push(push_of(named("p-1", None)), 0)
            assert (await other.push(push_of(named("p-2", "Anna")), 0)).renamed == {}
            assert (await person(one, "p-2")).name == "Anna"

        run(new_site(), work, "one", "other")

    def test_names_of_erased_and_merged_people_are_free(self, new_site: NewSite) -> None:
        async def work(one: FleetStore) -> None:
            await one.push(push_of(named("p-1", "Anna"), named("p-2", "Berta"), change("p-3")), 0)
            await one.push(Push(forgotten=(("p-1", "request"),), people=(named("p-3", "Anna"),)), 0)
            assert (await person(one, "p-3")).name == "Anna"
            await one.push(push_of(change("p-3", "p-2", seeds=None, name=Setting("Anna"))), 0)
            assert (await one.push(push_of(named("p-4", "Berta")), 0)).renamed == {}

        run(new_site(), work, "one")

    def test_people_exchange_their_names(self, new_site: NewSite) -> None:
        async def work(one: FleetStore) -> None:
            await one.push(push_of(named("p-1", "Anna"), named("p-2", "Berta")), 0)
            result = await one.push(push_of(named("p-1", "Berta"), named("p-2", "Anna")), 0)
            assert result.renamed == {}
            assert (await person(one, "p-1")).name == "Berta"
            assert (await person(one, "p-2")).name == "Anna"

        run(new_site(), work, "one")

    def test_many_people_of_one_long_name(self, new_site: NewSite) -> None:
        async def work(one: FleetStore) -> None:
            people = [named(f"p-{number:02d}", "x" * LONGEST_NAME) for number in range(25)]
            await one.push(push_of(*people), 0)
            names = [row.name for row in (await everything(one)).people]
            assert len(set(names)) == 25
            assert all(name is not None and len(name) <= LONGEST_NAME for name in names)

        run(new_site(), work, "one")

    # ---- contributions

    def test_a_contribution_is_replaced_as_a_whole(self, new_site: NewSite) -> None:
        async def work(one: FleetStore, other: FleetStore) -> None:
            await one.push(push_of(change("p-1", seeds=(1, 2, 3))), 0)
            await other.push(push_of(change("p-1", seeds=(4,))), 0)
            mark = (await everything(one)).upto
            await one.push(push_of(change("p-1", seeds=(3, 5))), 0)
            found = await shared(one)
            assert same(found["p-1", "one"].exemplars, exemplars(3, 5))
            assert same(found["p-1", "other"].exemplars, exemplars(4))
            assert [row.device for row in (await other.pull(mark, 10)).contributions] == ["one"]
            await one.push(push_of(change("p-1", seeds=())), 0)
            assert set(await shared(one)) == {("p-1", "other")}

        run(new_site(), work, "one", "other")

    def test_contributions_to_former_ids_end_for_their_device(self, new_site: NewSite) -> None:
        async def work(one: FleetStore, other: FleetStore) -> None:
            await one.push(push_of(change("p-1"), change("p-2", seeds=(2,))), 0)
            await other.push(push_of(change("p-2", seeds=(3,))), 0)
            mark = (await everything(one)).upto
            await one.push(push_of(change("p-1", "p-2", seeds=(1, 2))), 0)
            assert set(await shared(one)) == {("p-1", "one"), ("p-2", "other")}
            ended = [row for row in (await other.pull(mark, 10)).contributions if not row.exemplars]
            assert [(row.id, row.device) for row in ended] == [("p-2", "one")]

        run(new_site(), work, "one", "other")

    def test_vectors_are_kept_byte_by_byte(self, new_site: NewSite) -> None:
        rare = np.array([1e-40, -0.0, 1.0, np.float32(1) / 3, -1.0, 1e-8, 0.5, 2e-38], np.float32)
        given_ = (SharedExemplar("Tür/é", 3, 0.1, rare), SharedExemplar("", 0, 1.0, vector(1)))

        async def work(one: FleetStore) -> None:
            await one.push(push_of(change("p-1", exemplars=given_)), 0)
            assert same((await shared(one))["p-1", "one"].exemplars, given_)

        run(new_site(), work, "one")

    def test_means_are_those_of_their_device(self, new_site: NewSite) -> None:
        def mean(people: float, device: str = "") -> CameraMean:
            return CameraMean(device, "hall", 2, people, np.full(DIMENSION, people / 3))

        async def work(one: FleetStore, other: FleetStore) -> None:
            await one.push(Push(means=(mean(3.0), replace(mean(1.0), camera="yard"))), 0)
            await other.push(Push(means=(mean(7.0, "one"),)), 0)
            await one.push(Push(means=(mean(4.0),)), 0)
            found = {(row.device, row.camera): row for row in (await everything(one)).means}
            assert set(found) == {("one", "hall"), ("one", "yard"), ("other", "hall")}
            assert found["one", "hall"].people == 4.0
            assert found["one", "hall"].total.tobytes() == mean(4.0).total.tobytes()
            assert found["other", "hall"].people == 7.0

        run(new_site(), work, "one", "other")

    # ---- one person

    def test_the_oldest_id_stays(self, new_site: NewSite) -> None:
        async def work(one: FleetStore, other: FleetStore) -> None:
            await one.push(push_of(change("p-9", first_age_s=5 * HOUR)), 0)
            await other.push(push_of(named("p-1", "Anna")), 0)
            await other.push(push_of(change("p-1", "p-9", "p-5", seeds=None)), 0)
            page = await everything(one)
            assert {row.id: row.root for row in page.people} == dict.fromkeys(("p-9", "p-1", "p-5"), "p-9")
            found = await person(one, "p-1")
            assert (found.id, found.name, found.kind) == ("p-9", "Anna", "enrolled")
            assert page.now - found.first_seen == pytest.approx(5 * HOUR, abs=30)
            await one.push(push_of(named("p-5", "Berta")), 0)
            assert (await person(one, "p-9")).name == "Berta"

        run(new_site(), work, "one", "other")

    def test_an_id_is_older_than_those_merged_into_it_before_they_were_known(self, new_site: NewSite) -> None:
        async def work(one: FleetStore) -> None:
            await one.push(push_of(change("p-5", "p-1", "p-9")), 0)
            assert (await person(one, "p-1")).id == (await person(one, "p-9")).id == "p-5"

        run(new_site(), work, "one")

    def test_changes_in_any_order_give_one_state(self, new_site: NewSite) -> None:
        ids = [f"p-{number}" for number in range(5)]
        group = st.lists(st.sampled_from(ids), min_size=1, max_size=3, unique=True)
        step = st.one_of(
            group.map(lambda found: push_of(change(found[0], *found[1:], seeds=None))),
            st.sampled_from(ids).map(lambda id_: Push(forgotten=((id_, "request"),))),
            st.lists(st.sampled_from(ids), min_size=2, max_size=2, unique=True).map(
                lambda found: Push(apart=(Apart(min(found), max(found), "split"),))
            ),
            st.tuples(st.sampled_from(ids), st.integers(1, 9)).map(
                lambda found: push_of(
                    change(found[0], seeds=None, first_age_s=found[1] * HOUR, last_age_s=found[1] * 600.0)
                )
            ),
        )

        @settings(max_examples=self.order_examples, suppress_health_check=list(HealthCheck))
        @given(st.lists(step, min_size=1, max_size=6), st.randoms(use_true_random=False), st.booleans())
        def check(steps: list[Push], random: Any, repeat: bool) -> None:
            found = []
            for turn in range(2):
                order = list(steps)
                if turn:
                    random.shuffle(order)
                    order += steps[: 2 * repeat]

                async def work(one: FleetStore, other: FleetStore, order: list[Push] = order) -> None:
                    for place, id_ in enumerate(ids):
                        if place < 4:
                            await one.push(
                                push_of(named(id_, f"Anna {place}"), change(id_, seeds=(place,))), 0
                            )
                    for step in order:
                        await other.push(step, 0)
                    people, *rest = without_versions(await everything(one))
                    # The place of what nobody knew before is given by who comes first.
                    found.append(({key: value[:-3] + value[-2:] for key, value in people.items()}, *rest))

                run(new_site(), work, "one", "other")
            if all("p-4" not in str(step) for step in steps):
                assert found[0] == found[1]

        check()

    order_examples = 25
    """Of `test_changes_in_any_order_give_one_state`; each uses two sites."""

    # ---- erased

    @pytest.mark.parametrize("late", ["again", "merged", "merging", "before"])
    def test_a_tombstone_absorbs_what_comes_later(self, new_site: NewSite, late: str) -> None:
        async def work(one: FleetStore, other: FleetStore) -> None:
            if late != "before":
                await one.push(push_of(named("p-1", "Anna"), change("p-1", seeds=(1,)), change("p-3")), 0)
                await other.push(push_of(change("p-1", seeds=(2,))), 0)
            mark = (await everything(one)).upto
            result = await one.push(Push(forgotten=(("p-1", "request"),)), 0)
            assert result.forgotten == ()
            page = await other.pull(mark, 10)
            (stone,) = page.people
            assert (stone.id, stone.root, stone.forgotten, stone.name) == ("p-1", "p-1", "request", None)
            assert stone.last_seen == pytest.approx(page.now, abs=30)
            changes = {
                "again": change("p-1", name=Setting("Anna")),
                "before": change("p-1", name=Setting("Anna")),
                "merged": change("p-2", "p-1", seeds=(5,)),
                "merging": change("p-1", "p-3", seeds=(5,)),
            }
            result = await other.push(push_of(changes[late]), 0)
            assert result.forgotten == (changes[late].id,)
            assert result.renamed == {}
            gone = [row for row in (await everything(one)).people if row.id != "p-3" or late == "merging"]
            assert all(row.forgotten == "request" and row.name is None for row in gone)
            assert {id_ for id_, _ in await shared(one)} == (
                {"p-3"} if late in {"again", "merged"} else set()
            )
            assert (await one.state()).people == (late in {"again", "merged"})

        run(new_site(), work, "one", "other")

    def test_all_ids_of_a_person_are_erased(self, new_site: NewSite) -> None:
        async def work(one: FleetStore) -> None:
            await one.push(push_of(change("p-1", "p-2"), change("p-3", "p-4"), change("p-5")), 0)
            await one.push(Push(forgotten=(("p-2", "request"),)), 0)
            gone = {row.id for row in (await everything(one)).people if row.forgotten}
            assert gone == {"p-1", "p-2"}
            # A device merges others into one of them, and a third into that.
            await one.push(push_of(change("p-4", "p-1")), 0)
            await one.push(push_of(change("p-5", "p-3")), 0)
            assert all(row.forgotten for row in (await everything(one)).people)
            assert await shared(one) == {}

        run(new_site(), work, "one")

    def test_a_device_cannot_let_somebody_expire_whom_others_see(self, new_site: NewSite) -> None:
        site = new_site()

        async def work(one: FleetStore, other: FleetStore) -> None:
            await one.push(push_of(change("p-1"), change("p-2"), change("p-3", kind="enrolled")), 0)
            await site.passes(TTL_S - HOUR)
            await other.push(push_of(change("p-1", seeds=None)), 0)
            await site.passes(2 * HOUR)
            gone: tuple[tuple[str, Reason], ...] = tuple(
                (f"p-{number}", "expired") for number in (1, 2, 3, 4)
            )
            await one.push(Push(forgotten=gone), 0)
            found = {row.id: row.forgotten for row in (await everything(one)).people}
            assert found == {"p-1": None, "p-2": "expired", "p-3": None, "p-4": "expired"}
            assert (await one.push(push_of(change("p-2")), 0)).forgotten == ("p-2",)

        run(site, work, "one", "other")

    def test_which_devices_have_erased_a_person(self, new_site: NewSite) -> None:
        async def work(one: FleetStore, other: FleetStore) -> None:
            await one.push(push_of(change("p-1"), change("p-2")), 0)
            version = (await one.push(Push(forgotten=(("p-1", "request"),)), 0)).version
            await one.confirm(version, "a")
            await other.confirm(version - 1, "b")
            at, devices = await one.erased("p-1")
            assert at == version
            assert {state.device: state.mark for state in devices} == {"one": version, "other": version - 1}
            assert (await one.erased("p-2"))[0] is None
            with pytest.raises(InputError, match="p-unknown"):
                await one.erased("p-unknown")

        run(new_site(), work, "one", "other")

    # ---- kept apart, and joined

    def test_pairs_follow_people(self, new_site: NewSite) -> None:
        async def work(one: FleetStore) -> None:
            pairs = (
                Apart("p-1", "p-2", "split"),
                Apart("p-2", "p-9", "split"),
                Apart("p-3", "p-1", "rejected"),
            )
            await one.push(Push(people=tuple(change(f"p-{number}") for number in (1, 2, 3)), apart=pairs), 0)
            found = {(pair.one, pair.other): pair.reason for pair in (await everything(one)).apart}
            assert found == {("p-1", "p-2"): "split", ("p-1", "p-3"): "rejected"}  # nobody knows p-9
            await one.push(push_of(change("p-1", "p-2")), 0)
            assert [(pair.one, pair.other) for pair in (await everything(one)).apart] == [("p-1", "p-3")]
            await one.push(Push(apart=pairs), 0)
            assert len((await everything(one)).apart) == 1
            await one.push(Push(forgotten=(("p-3", "request"),)), 0)
            await one.push(Push(apart=pairs), 0)
            assert (await everything(one)).apart == ()

        run(new_site(), work, "one")

    def test_joining_needs_the_lease(self, new_site: NewSite) -> None:
        async def work(one: FleetStore, other: FleetStore) -> None:
            await one.push(push_of(change("p-1"), change("p-2", seeds=(2,))), 0)
            assert await one.lease("reconcile", 60)
            assert await other.join([Pair("p-1", "p-2")]) == 0
            assert await one.join([Pair("p-1", "p-2")]) == 1
            assert (await person(other, "p-2")).id == "p-1"
            assert await one.join([Pair("p-1", "p-2")]) == 0
            assert set(await shared(one)) == {("p-1", "one"), ("p-2", "one")}

        run(new_site(), work, "one", "other")

    def test_what_is_not_joined(self, new_site: NewSite) -> None:
        async def work(one: FleetStore) -> None:
            people = [change(f"p-{number}") for number in range(1, 8)]
            await one.push(
                Push(
                    people=(*people, named("p-6", "Anna"), named("p-7", "Berta"), named("p-4", "Cora")),
                    apart=(Apart("p-2", "p-3", "together"),),
                    forgotten=(("p-5", "request"),),
                ),
                0,
            )
            assert await one.lease("reconcile", 60)
            pairs = [
                ("p-1", "p-2"),
                ("p-1", "p-3"),
                ("p-1", "p-5"),
                ("p-1", "p-x"),
                ("p-6", "p-7"),
                ("p-3", "p-4"),
            ]
            assert await one.join([Pair(*pair) for pair in pairs]) == 2
            roots = {row.id: row.root for row in (await everything(one)).people}
            assert (roots["p-2"], roots["p-3"], roots["p-4"]) == ("p-1", "p-3", "p-3")
            assert roots["p-6"] != roots["p-7"]
            assert (await one.state()).conflicts == (("p-6", "p-7"),)
            await one.push(push_of(named("p-7", None)), 0)
            assert (await one.state()).conflicts == ()

        run(new_site(), work, "one")

    # ---- search

    def test_the_nearest_people(self, new_site: NewSite) -> None:
        async def work(one: FleetStore, other: FleetStore) -> None:
            total = np.ones(DIMENSION)
            await one.push(push_of(change("p-1", seeds=(1, 2)), change("p-2", seeds=(3,)), change("p-3")), 0)
            await other.push(
                Push(people=(change("p-2", seeds=(4,)),), means=(CameraMean("", "hall", 0, 1.0, total),)), 0
            )
            await one.push(Push(forgotten=(("p-3", "request"),)), 0)
            answer = await other.ask(np.stack([vector(4)]), 5)
            assert [one.person.id for one in answer.candidates] == ["p-2", "p-1"]
            assert answer.people == 2
            first = {found.device: found for found in answer.candidates[0].contributions}
            assert same(first["one"].exemplars, exemplars(3))
            assert same(first["other"].exemplars, exemplars(4))
            assert [(mean.device, mean.camera) for mean in answer.means] == [("other", "hall")]
            assert len((await other.ask(np.stack([vector(1), vector(4)]), 1)).candidates) == 1
            await one.push(push_of(change("p-1", "p-2", seeds=None)), 0)
            answer = await one.ask(np.stack([vector(4)]), 5)
            assert [one.person.id for one in answer.candidates] == ["p-1"]
            assert answer.people == 1
            assert {(one.id, one.device) for one in answer.candidates[0].contributions} == {
                ("p-1", "one"), ("p-2", "one"), ("p-2", "other"),
            }  # fmt: skip

        run(new_site(), work, "one", "other")

    def test_an_empty_site_has_no_candidates(self, new_site: NewSite) -> None:
        async def work(one: FleetStore) -> None:
            answer = await one.ask(np.stack([vector(4)]), 5)
            assert (answer.candidates, answer.means, answer.people) == ((), (), 0)
            assert list((await one.alike(0, 10))[1]) == []

        run(new_site(), work, "one")

    def test_people_who_changed_and_those_like_them(self, new_site: NewSite) -> None:
        async def work(one: FleetStore, other: FleetStore) -> None:
            for number in range(5):
                await one.push(push_of(change(f"p-{number}", seeds=(number,))), 0)
            upto, found = await one.alike(0, 2)
            assert len(found) == 2
            seen = {candidate.person.id for candidate, _ in found}
            while found:
                upto, found = await one.alike(upto, 2)
                seen |= {candidate.person.id for candidate, _ in found}
            assert seen == {f"p-{number}" for number in range(5)}
            await one.push(push_of(change("p-0", seeds=None, last_age_s=0.0)), 0)
            await other.push(push_of(change("p-3", seeds=(4,))), 0)
            upto, found = await one.alike(upto, 2)
            ((changed, near),) = found
            assert changed.person.id == "p-3"
            assert len(changed.contributions) == 2
            assert near[0].person.id == "p-4"
            assert "p-3" not in {candidate.person.id for candidate in near}
            assert upto == (await everything(one)).version

        run(new_site(), work, "one", "other")

    # ---- devices, leases and tidying

    def test_receipts_tell_restored_copies(self, new_site: NewSite) -> None:
        async def work(one: FleetStore) -> None:
            welcome = await one.hello(0, ())
            assert (welcome.known, welcome.version, welcome.horizon, welcome.people) == (True, 0, 0, 0)
            assert not (await one.hello(5, ("receipt",))).known  # the store was restored to before it joined
            version = (await one.push(push_of(change("p-1")), 0)).version
            await one.confirm(version, "first")
            await one.confirm(version, "second")
            welcome = await one.hello(version, ("second", "third"))
            assert welcome.known
            assert (welcome.confirmed, welcome.people) == (version, 1)
            assert (await one.hello(version, ("first", "second"))).known
            assert not (await one.hello(version, ("third", "fourth"))).known
            assert not (await one.hello(0, ())).known  # the device was restored to before it joined

        run(new_site(), work, "one")

    def test_leases(self, new_site: NewSite) -> None:
        site = new_site()

        async def work(one: FleetStore, other: FleetStore) -> None:
            assert await one.lease("reconcile", 60)
            assert not await other.lease("reconcile", 60)
            assert await other.lease("another", 60)
            await site.passes(50)
            assert await one.lease("reconcile", 60)
            await site.passes(50)
            assert not await other.lease("reconcile", 60)
            await site.passes(20)
            assert await other.lease("reconcile", 60)
            assert not await one.lease("reconcile", 60)

        run(site, work, "one", "other")

    def test_the_site_expires_people_and_drops_tombstones(self, new_site: NewSite) -> None:
        site = new_site()

        async def work(one: FleetStore, other: FleetStore) -> None:
            people = (change("p-1"), change("p-2", kind="enrolled"), change("p-3", ttl_s=Setting(0.0)))
            await one.push(
                push_of(*people, change("p-4", ttl_s=Setting(90 * DAY)), change("p-5", ttl_s=Setting(60.0))),
                0,
            )
            await site.passes(HOUR)
            assert await one.lease("reconcile", 60)
            await other.tidy(30 * DAY)
            await one.tidy(30 * DAY)
            assert {row.id for row in (await everything(one)).people if row.forgotten == "expired"} == {"p-5"}
            await site.passes(TTL_S)
            assert await one.lease("reconcile", 60)
            await one.tidy(30 * DAY)
            page = await everything(one)
            assert {row.id for row in page.people if row.forgotten == "expired"} == {"p-1", "p-5"}
            assert {id_ for id_, _ in await shared(one)} == {"p-2", "p-3", "p-4"}
            assert (await one.hello(0, ())).horizon == 0
            await site.passes(31 * DAY)
            assert await one.lease("reconcile", 60)
            await one.tidy(30 * DAY)
            welcome = await one.hello(0, ())
            assert 0 < welcome.horizon <= page.version
            assert {row.id for row in (await everything(one)).people} == {"p-2", "p-3", "p-4"}
            for call in (other.pull(1, 10), other.push(Push(), 1)):
                with pytest.raises(StaleMark):
                    await call
            assert (await other.pull(1, 10, full=True)).upto > 0
            assert (await other.push(Push(), welcome.horizon)).version == welcome.version

        run(site, work, "one", "other")

    def test_the_state_of_a_site(self, new_site: NewSite) -> None:
        async def work(one: FleetStore, other: FleetStore) -> None:
            await one.push(push_of(change("p-1", "p-2", seeds=(1, 2)), change("p-3")), 0)
            await other.push(Push(people=(change("p-1", seeds=(3,)),), forgotten=(("p-3", "request"),)), 0)
            await one.confirm(1, "receipt")
            state = await one.state()
            assert state.dimension == DIMENSION
            assert state.ttl_s == TTL_S
            assert state.enrolled_ttl_s is None
            assert (state.people, state.exemplars, state.tombstones) == (1, 3, 1)
            assert {found.device: found.mark for found in state.devices} == {"one": 1, "other": 0}
            assert not any(found.left for found in state.devices)

        run(new_site(), work, "one", "other")
