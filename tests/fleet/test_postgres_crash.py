"""Several processes write while another reads, and the server is killed: nothing is skipped, nothing lost."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from edge_agent.fleet.postgres.connection import Login
from edge_agent.fleet.postgres.store import PostgresStore
from edge_agent.fleet.store import StoreDown
from tests.fleet import postgres_server
from tests.fleet.postgres_server import PostgresServer
from tests.fleet.postgres_site import TEST_SPACE, Site, change, people, run
from tests.fleet.server_database import Database

WRITERS = 4
_processes = multiprocessing.get_context("spawn")


def write(login: Login, device: str, batches: int, size: int, log: Path, go: Event) -> None:
    """Push people in batches, as a process of its own; note the ids of those that were acknowledged."""

    async def work() -> None:
        store = PostgresStore(login, TEST_SPACE, device)
        connected = False
        with log.open("w") as out:
            for batch in range(batches):
                ids = [f"p-{device}-{batch}-{number}" for number in range(size)]
                while True:
                    try:
                        if not connected:
                            await store.hello(0, ())
                            connected = True
                            go.wait()
                        await store.push(people(*(change(id_, batch) for id_ in ids)), 0)
                        break
                    except StoreDown:
                        connected = False
                        await asyncio.sleep(0.1)
                out.write(json.dumps(ids) + "\n")
                out.flush()
        await store.close()

    asyncio.run(work())


def acknowledged(folder: Path) -> set[str]:
    return {
        id_
        for log in folder.glob("*.log")
        for line in log.read_text().splitlines()
        for id_ in json.loads(line)
    }


def writers(
    site: Site, folder: Path, batches: int, size: int, go: Event
) -> list[multiprocessing.process.BaseProcess]:
    found = []
    for device in "abcdefgh"[:WRITERS]:
        arguments = (site.login(device), device, batches, size, folder / f"{device}.log", go)
        process = _processes.Process(target=write, args=arguments)
        process.start()
        found.append(process)
    return found


@pytest.mark.slow
def test_a_reader_skips_no_row(site: Site, tmp_path: Path) -> None:
    batches, size = 60, 20
    go = _processes.Event()
    processes = writers(site, tmp_path, batches, size, go)
    wanted = WRITERS * batches * size
    seen: dict[str, int] = {}

    async def read() -> None:
        store = site.store("reader")
        await store.hello(0, ())
        mark, contributions = 0, set()
        go.set()
        deadline = time.monotonic() + 100
        while len(seen) < wanted and time.monotonic() < deadline:
            page = await store.pull(mark, 37)
            assert mark <= page.upto <= page.version
            for person in page.people:
                assert person.version <= page.version
                if mark < person.version <= page.upto:
                    assert person.id not in seen, "each row changes once, so it is in one page"
                    seen[person.id] = person.version
            contributions |= {(one.id, len(one.exemplars)) for one in page.contributions}
            mark = page.upto
        assert contributions == {(id_, 1) for id_ in seen}
        state = await store.state()
        assert (state.people, state.exemplars) == (wanted, wanted)
        await store.close()

    run(read(), 110)
    for process in processes:
        process.join(20)
        assert process.exitcode == 0
    assert set(seen) == acknowledged(tmp_path)
    assert len(seen) == wanted


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    with postgres_server.server() as server:
        yield server


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_when_the_server_is_killed(
    own_server: PostgresServer, tmp_path: Path
) -> None:
    own_server.run("psql", "-Xq", "-c", "CREATE DATABASE fleet", own_server.address())
    site = Site(Database(own_server, "fleet"))
    site.init()
    go = _processes.Event()
    processes = writers(site, tmp_path, 80, 5, go)
    deadline = time.monotonic() + 60
    go.set()
    for least in (20, 200, 600):
        while len(acknowledged(tmp_path)) < least and time.monotonic() < deadline:
            time.sleep(0.02)
        own_server.kill()
        own_server.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    there = set(site.database.sql("SELECT id FROM edge_agent.person").split())
    assert there == acknowledged(tmp_path)
    assert len(there) == WRITERS * 80 * 5
    counted = site.database.sql("SELECT people, exemplars FROM edge_agent.site").strip()
    assert counted == f"{len(there)}|{len(there)}"
    distinct = site.database.sql(
        "SELECT count(*), count(DISTINCT (site, created)) FROM edge_agent.person"
    ).strip()
    assert distinct == f"{len(there)}|{len(there)}"
