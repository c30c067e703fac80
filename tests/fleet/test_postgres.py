"""The store on a real PostgreSQL: what one or two devices see."""

from __future__ import annotations

from edge_agent.fleet.postgres.connection import Link
from edge_agent.fleet.records import Push
from tests.fleet.postgres_site import Site, change, people, run, vector


def test_what_one_device_pushes_another_pulls(site: Site) -> None:
    one, two = site.store("a"), site.store("b")

    async def work() -> None:
        welcome = await one.hello(0, ())
        assert (welcome.version, welcome.known, welcome.people) == (0, True, 0)
        await two.hello(0, ())
        result = await one.push(people(change("p-1", 1, 2, name="Ada"), change("p-2", 3)), 0)
        page = await two.pull(0, 100)
        assert page.upto == page.version == result.version
        assert [(person.id, person.name, person.device) for person in page.people] == [
            ("p-1", "Ada", "a"),
            ("p-2", None, "a"),
        ]
        first, second = page.contributions
        assert [exemplar.camera for exemplar in first.exemplars] == ["door", "door"]
        assert (first.exemplars[1].vector == vector(2)).all()
        assert len(second.exemplars) == 1
        answer = await two.ask(vector(2)[None], 5)
        assert answer.candidates[0].person.id == "p-1"
        assert answer.people == 2
        await one.push(Push(forgotten=(("p-1", "request"),)), 0)
        page = await two.pull(page.upto, 100)
        assert [(person.id, person.forgotten) for person in page.people] == [("p-1", "request")]
        assert (await two.state()).exemplars == 1
        assert await two.lease("reconcile", 10)
        assert not await one.lease("reconcile", 10)
        await two.tidy(1000)
        await two.confirm(page.upto, "r1")
        await one.close()
        await two.close()

    run(work())


def test_plans_follow_the_size_of_the_tables(site: Site) -> None:
    """A statement that was prepared when tables were empty must not read them whole later."""

    async def work() -> None:
        link = Link(site.login("a"))
        await link.connect(10)
        assert await link.read(lambda one: one.fetchval("SHOW plan_cache_mode")) == "force_custom_plan"
        assert await link.read(lambda one: one.fetchval("SHOW search_path")) == "edge_agent, public, pg_temp"
        await link.close()

    run(work())
