"""Search: exact and by index, for devices that see one site of several."""

from __future__ import annotations

import asyncpg
import numpy as np
import pytest

from edge_agent.cli.fleet_report import site_lines
from edge_agent.fleet.postgres import search
from edge_agent.fleet.postgres.connection import Link
from edge_agent.fleet.records import PersonChange, Push, SharedExemplar, Vectors
from edge_agent.fleet.store import FleetStore
from edge_agent.gallery.sync import Space
from tests.fleet.postgres_site import Site, run
from tests.fleet.server_database import Database

PEOPLE = 300
DIMENSION = 32


def cloud(seed: int, count: int) -> Vectors:
    """Exemplars of `count` people, four each, `(count, 4, D)`; what they have in common makes them alike."""
    random = np.random.default_rng(seed)
    middles = random.normal(size=(count, 1, DIMENSION)) + 1
    found = middles + 0.4 * random.normal(size=(count, 4, DIMENSION))
    return np.asarray(found / np.linalg.norm(found, axis=2, keepdims=True), np.float32)


async def fill(store: FleetStore, rows: Vectors, start: str) -> None:
    for at in range(0, len(rows), 100):
        changes = [
            PersonChange(
                f"{start}-{at + number}", (), "auto", None, None, 1.0, 0.0, "door",
                tuple(SharedExemplar("door", 0, 0.5, vector) for vector in vectors),
            )
            for number, vectors in enumerate(rows[at : at + 100])
        ]  # fmt: skip
        await store.push(Push(people=tuple(changes)), 0)


def test_recall_of_the_index(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sites of one dimension and one of another share the table; each search sees one."""
    sites = [Site(database, name, Space("test", DIMENSION)) for name in ("one", "two")]
    other = Site(database, "three", Space("else", 8))
    for site in (*sites, other):
        site.init()
    rows = cloud(1, PEOPLE)

    async def work() -> None:
        stores = [site.store("a" + site.name) for site in sites]
        for site, store in zip(sites, stores, strict=True):
            await store.hello(0, ())
            await fill(store, rows, site.name)
        store = stores[0]
        questions = [rows[person, :2] for person in range(0, PEOPLE, 5)]
        exact = [await ids(store, vectors) for vectors in questions]
        assert [found[0] for found in exact] == [f"one-{person}" for person in range(0, PEOPLE, 5)]
        assert (await store.state()).indexed is None
        monkeypatch.setattr(search, "EXACT_UP_TO", 100)
        state = await store.state()
        assert state.indexed is False
        assert "edge-agent fleet init" in " ".join(site_lines(state, "a"))
        assert [await ids(store, vectors) for vectors in questions] == exact, "there is no index yet"
        for site in sites:
            assert site.init() == ("index of 1200 exemplars built",)
            assert site.init() == ()
        assert (await store.state()).indexed is True
        before = uses(database)
        # Comparing so few rows is cheaper than the index, which the planner knows.
        monkeypatch.setattr(search, "SETTINGS", search.SETTINGS + " SET LOCAL enable_sort = off;")
        found = [await ids(store, vectors) for vectors in questions]
        recall = np.mean([len(set(one) & set(two)) / 5 for one, two in zip(found, exact, strict=True)])
        assert recall > 0.98
        await store.close()  # statistics are written at the end of a session
        assert uses(database) > before
        upto, near = await stores[1].alike(0, 10)
        assert upto > 0
        assert all(one.person.id.startswith("two-") for _, others in near for one in others)
        await stores[1].close()

    run(work())


async def ids(store: FleetStore, vectors: Vectors) -> list[str]:
    return [candidate.person.id for candidate in (await store.ask(vectors, 5)).candidates]


def uses(database: Database) -> int:
    """How often indexes of sites were used."""
    sql = "SELECT sum(idx_scan) FROM pg_stat_user_indexes WHERE indexrelname LIKE 'exemplar_near_%'"
    return int(database.sql(sql))


def test_an_index_whose_making_was_interrupted_is_made_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "EXACT_UP_TO", -1)
    assert site.init() == ("index of 0 exemplars built",)
    name = search.index_name(site.name)
    site.database.sql(
        f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'edge_agent.{name}'::regclass"
    )
    assert site.init() == ("index of 0 exemplars built",)


def test_long_vectors_have_no_index(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "EXACT_UP_TO", -1)
    site = Site(database, space=Space("test", 2048))
    assert "index" not in " ".join(site.init())
    vector = np.full(2048, 2048**-0.5, np.float32)

    async def work() -> None:
        store = site.store("a")
        await store.hello(0, ())
        shared = (SharedExemplar("door", 0, 0.5, vector),)
        await store.push(Push((PersonChange("p-1", (), "auto", None, None, 1.0, 0.0, "door", shared),)), 0)
        answer = await store.ask(vector[None], 5)
        assert (answer.candidates[0].contributions[0].exemplars[0].vector == vector).all()
        assert (await store.state()).indexed is None
        await store.close()

    run(work())


def test_a_question_is_one_statement_and_leaves_no_settings(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection pooler gives the connection to another device afterwards."""
    monkeypatch.setattr(search, "EXACT_UP_TO", -1)
    assert site.init() == ("index of 0 exemplars built",)
    link = Link(site.login("a"))
    by_index = search.Searched(site.name, site.space.dimension, 200)
    sent: list[str] = []

    async def question(connection: asyncpg.Connection[asyncpg.Record]) -> int | None:
        vectors = np.full((1, 8), 8**-0.5, np.float32)
        with connection.query_logger(lambda record: sent.append(record.query)):
            _, how = await search.ask(connection, by_index, vectors, 5)
        assert await connection.fetchval("SHOW plan_cache_mode") == "force_generic_plan"
        assert await connection.fetchval("SHOW hnsw.ef_search") == "200"
        return how.ef_search

    async def itself(
        connection: asyncpg.Connection[asyncpg.Record],
    ) -> asyncpg.Connection[asyncpg.Record]:
        return connection

    async def work() -> None:
        await link.connect(10)
        assert await link.read(question, 10, by_index.settings_to_ask) == 200
        sent.clear()  # the first one on a connection asks for types, too
        assert await link.read(question, 10, by_index.settings_to_ask) == 200
        assert len(sent) == 1
        connection = await link.read(itself)
        assert await connection.fetchval("SHOW plan_cache_mode") == "auto"
        assert await connection.fetchval("SHOW hnsw.ef_search") == "40"
        monkeypatch.setattr(search, "EXACT_UP_TO", 0)
        how = await link.read(question, 10, by_index.settings_to_ask)
        assert how is None, "a site that shrank is compared whole"
        await link.close()

    run(work())


def test_larger_sites_are_searched_more_closely() -> None:
    sizes = (10_001, 100_000, 100_001, 300_001, 10_000_000)
    assert [search.ef_search(size) for size in sizes] == [200, 200, 400, 800, 800]


@pytest.mark.parametrize("name", ["", "a'b", "a b", "ä", "-a", "a" * 65, "a;b"])
def test_names_that_are_no_constants(name: str) -> None:
    with pytest.raises(ValueError, match="not a name of a site"):
        search.literal(name)
