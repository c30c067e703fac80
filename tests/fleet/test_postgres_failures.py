"""The store when the server is frozen, killed, full, wrong or not there: in time, with a useful message."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from edge_agent.core.fleet_settings import parse_store
from edge_agent.fleet.postgres import store as store_module
from edge_agent.fleet.postgres.connection import Link, Login
from edge_agent.fleet.store import FleetStore, StoreDown, StoreRefused
from tests.conftest import find_free_port
from tests.fleet import postgres_server
from tests.fleet.postgres_server import PostgresServer
from tests.fleet.postgres_site import SECRET, Site, change, people, run, vector
from tests.fleet.server_database import Database


def refusal(store: FleetStore) -> str:
    """What `hello` says when it refuses the device."""

    async def work() -> None:
        try:
            await store.hello(0, ())
        finally:
            await store.close()

    with pytest.raises(StoreRefused) as caught:
        run(work())
    text = str(caught.value)
    assert SECRET not in text
    assert len(text.splitlines()) == 1
    return text


def test_a_frozen_server_ends_every_call_in_time(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    store = site.store("a")
    calls = {
        "push": lambda: store.push(people(change("p-1", 1)), 0),
        "pull": lambda: store.pull(0, 10),
        "ask": lambda: store.ask(vector(1)[None], 5),
        "alike": lambda: store.alike(0, 10),
        "state": store.state,
        "hello": lambda: store.hello(0, ()),
    }

    async def work() -> None:
        before = asyncio.all_tasks()
        for call in calls.values():
            await store.hello(0, ())
            await store.ask(vector(1)[None], 5)
            with site.database.server.frozen(), monkeypatch.context() as patch:
                for name in ("CALL_S", "CONNECT_S", "ASK_S", "LONG_S"):
                    patch.setattr(store_module, name, 0.3)
                start = time.monotonic()
                with pytest.raises(StoreDown, match="did not answer in time"):
                    await call()
                assert time.monotonic() - start < 2
        await store.hello(0, ())
        with site.database.server.frozen():
            start = time.monotonic()
            await store.close()
            assert time.monotonic() - start < 2.5
        assert asyncio.all_tasks() == before, "nothing waits for the server any more"

    run(work())


def test_the_end_of_the_program_does_not_wait_for_a_frozen_server(site: Site) -> None:
    store = site.store("a")

    async def work() -> None:
        await store.hello(0, ())
        with site.database.server.frozen():
            task = asyncio.create_task(store.push(people(change("p-1", 1)), 0))
            await asyncio.sleep(0.2)
            start = time.monotonic()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            assert time.monotonic() - start < 0.5

    run(work())


def test_a_killed_server_comes_back(own_server: PostgresServer) -> None:
    site = Site(own_database(own_server))
    site.init()
    store = site.store("a")

    async def work() -> None:
        await store.hello(0, ())
        await store.ask(vector(1)[None], 5)
        await store.push(people(change("p-1", 1)), 0)
        own_server.kill()
        for call in (lambda: store.push(people(change("p-2", 2)), 0), lambda: store.ask(vector(1)[None], 5)):
            with pytest.raises(StoreDown, match=r"fleet at 127\.0\.0\.1"):
                await call()
        with pytest.raises(StoreDown, match="it cannot be reached: "):
            await store.hello(0, ())
        own_server.start()
        welcome = await store.hello(0, ())
        assert welcome.people == 1
        assert (await store.ask(vector(1)[None], 5)).candidates
        await store.close()

    run(work())


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    with postgres_server.server() as server:
        yield server


def own_database(server: PostgresServer) -> Database:
    server.run("psql", "-Xq", "-c", "CREATE DATABASE fleet", server.address())
    return Database(server, "fleet")


def test_nobody_listens(site: Site) -> None:
    address = site.login("a").address._replace(port=find_free_port())

    async def work() -> None:
        store = store_module.PostgresStore(replace(site.login("a"), address=address), site.space, "a")
        await store.hello(0, ())

    with pytest.raises(StoreDown, match="cannot be reached"):
        run(work())


def test_wrong_password(site: Site) -> None:
    assert "fleet__password" in refusal(site.store("a", password="wrong"))
    assert "fleet__password" in refusal(site.store("a", password=None))


def test_wrong_database(site: Site) -> None:
    address = site.login("a").address._replace(database="nothing")
    assert "no such database" in refusal(site.store("a", address=address))


def test_a_database_without_a_store(site: Site) -> None:
    address = site.login("a").address._replace(database="postgres")
    assert "extension `vector`" in refusal(site.store("a", address=address))
    site.database.server.run(
        "psql", "-Xq", "-c", "CREATE EXTENSION vector", site.database.server.address("postgres")
    )
    assert "no tables of a fleet" in refusal(site.store("a", address=address))
    site.database.server.run(
        "psql", "-Xq", "-c", "DROP EXTENSION vector", site.database.server.address("postgres")
    )


def test_a_role_that_is_no_device(site: Site) -> None:
    site.login("a")
    site.database.sql(f"CREATE ROLE stranger_{site.database.name} LOGIN PASSWORD '{SECRET}'")
    address = site.login("a").address._replace(role=f"stranger_{site.database.name}")
    assert "lacks rights" in refusal(site.store("a", address=address))
    site.database.sql(f"GRANT edge_agent_device TO stranger_{site.database.name}")
    assert "belongs to no device" in refusal(site.store("a", address=address))


def test_another_device_with_this_role(site: Site) -> None:
    store = store_module.PostgresStore(site.login("a"), site.space, "b")
    assert "is that of the device a, and this one is b" in refusal(store)


def test_another_space(site: Site) -> None:
    site.login("a")
    for other in (replace(site.space, space="other"), replace(site.space, dimension=16)):
        store = store_module.PostgresStore(site.login("a"), other, "a")
        assert "use the same network" in refusal(store)


@pytest.mark.parametrize(("version", "advice"), [(0, "edge-agent fleet init"), (2, "update edge-agent")])
def test_older_and_newer_tables(site: Site, version: int, advice: str) -> None:
    site.login("a")
    site.database.sql(f"UPDATE edge_agent.meta SET schema = {version}")
    assert advice in refusal(site.store("a"))


def test_a_store_elsewhere_needs_tls() -> None:
    login = Login(parse_store("postgresql://a@store.example/fleet"), SECRET)
    with pytest.raises(StoreRefused, match=r"set fleet\.ca_file"):
        run(Link(login).connect(1))


def test_a_read_only_server(site: Site) -> None:
    store = site.store("a")
    site.database.sql(f"ALTER DATABASE {site.database.name} SET default_transaction_read_only = on")

    async def work() -> None:
        with pytest.raises(StoreDown, match="read-only"):
            await store.hello(0, ())

    run(work())


def test_too_many_connections(site: Site) -> None:
    site.login("a")
    site.database.sql(f'ALTER ROLE "{site.role("a")}" CONNECTION LIMIT 0')

    async def work() -> None:
        await site.store("a").hello(0, ())

    with pytest.raises(StoreDown, match="no connection left"):
        run(work())


def test_a_pooler_without_prepared_statements(site: Site) -> None:
    async def work() -> None:
        link = Link(site.login("a"))
        await link.connect(10)
        await link.read(lambda one: one.fetchval("SELECT 1"))
        await link.read(lambda one: one.execute("DEALLOCATE ALL"))  # as in another server process
        with pytest.raises(StoreRefused, match="max_prepared_statements"):
            await link.read(lambda one: one.fetchval("SELECT 1"))
        await link.close()

    run(work())


def test_an_administrator_ends_the_connection(site: Site) -> None:
    store = site.store("a")

    async def work() -> None:
        await store.hello(0, ())
        site.database.sql(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{site.role('a')}'"
        )
        with pytest.raises(StoreDown):
            await store.state()
        await store.hello(0, ())
        await store.state()
        await store.close()

    run(work())
