"""What docs/fleet.md states about backups and partitions, on a real server."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from edge_agent.core.loading import load
from edge_agent.fleet.postgres import search
from edge_agent.fleet.postgres.connection import Login
from edge_agent.fleet.postgres.store import PostgresStore
from edge_agent.fleet.records import Push
from edge_agent.fleet.store import StoreDown, StoreRefused
from edge_agent.gallery import Gallery
from edge_agent.gallery.sync import Space
from tests.conftest import REPO
from tests.fleet import postgres_server
from tests.fleet.postgres_site import Site, change, people, run, vector
from tests.fleet.server_database import Database
from tests.fleet.test_fleet_commands import SPACE, D, Plant, command


def people_of(file: Path) -> dict[str, tuple[str | None, int]]:
    with Gallery.existing(file.with_suffix("") / "gallery.db") as gallery:
        return {one.id: (one.name, one.exemplars) for one in gallery.identities()}


@pytest.mark.slow
def test_a_site_that_is_restored_from_a_backup_is_refilled(tmp_path: Path, database: Database) -> None:
    plant = Plant(tmp_path, database)
    plant.init()
    one, other = plant.joined("gate-b", (1, 2, 3)), plant.joined("yard", (4,))
    for file in (one, other, one):
        command("sync", "--config", file)
    server, dump = database.server, Path("/tmp") / f"edge-agent-{os.getpid()}.dump"
    server.run("pg_dump", "--format=custom", f"--file={dump}", database.address)
    try:
        with plant.gallery(one) as gallery:
            first, second, *_ = gallery.identities()
            gallery.rename(first.number, "Ada")
        command("forget", second.id, "--config", one, "--yes")
        with plant.gallery(other) as gallery:
            gallery.enrol(vector(9)[None], [0.5], origin="t9", camera="c", time=1.7e9)
        for file in (one, other, one):
            command("sync", "--config", file)
        before = people_of(one)
        assert before == people_of(other)
        assert second.id not in before
        assert len(before) == 4

        server.run("psql", "-Xq", "-c", f"DROP DATABASE {database.name} WITH (FORCE)", server.address())
        server.run("psql", "-Xq", "-c", f"CREATE DATABASE {database.name}", server.address())
        server.run("pg_restore", "--no-owner", f"--dbname={database.address}", dump)
    finally:
        dump.unlink()
    for _ in range(2):
        for file in (one, other):
            command("sync", "--config", file)
    assert people_of(one) == people_of(other) == before
    found = json.loads(command("erased", second.id, "--config", one, "--json").output)
    assert all(device["confirmed"] for device in found["devices"])
    site = json.loads(command("status", "--config", one, "--json").output)["site"]
    assert site["people"] == 4


@pytest.mark.slow
def test_partitions_as_documented(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (REPO / "docs" / "fleet.md").read_text(), re.DOTALL)
    (block,) = (one for one in blocks if "PARTITION BY HASH" in one)
    block = block.replace("--space SPACE --dimension 256", "--space test --dimension 8 --config /dev/null")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(["bash", "-euc", block], cwd=tmp_path, check=True, env={**os.environ, "PATH": path})
    script = (tmp_path / "partitioned.sql").read_text()
    if database.sql("SELECT 1 FROM pg_roles WHERE rolname = 'edge_agent_device'"):
        script = re.sub(r"^CREATE ROLE.*$", "", script, flags=re.MULTILINE)
    database.sql(script)
    parts = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'edge_agent.exemplar'::regclass"
    assert database.sql(parts).strip() == "8"

    site = Site(database, "plant-7")
    assert site.init() == ("times to live of site plant-7 set",), "and nothing else was missing"
    store, other = site.store("a"), site.store("b")

    async def work() -> None:
        await store.hello(0, ())
        await other.hello(0, ())
        changes = [change(f"p-{n}", n, name="Ada" if n == 3 else None) for n in range(30)]
        result = await store.push(people(*changes), 0)
        page = await other.pull(0, 100)
        assert (page.version, len(page.people), len(page.contributions)) == (result.version, 30, 30)
        answer = await other.ask(vector(7)[None], 5)
        assert answer.candidates[0].person.id == "p-7"
        await other.push(Push(forgotten=(("p-7", "request"),)), page.upto)
        assert (await store.state()).people == 29
        await store.close()
        await other.close()

    run(work())
    plan = database.sql("EXPLAIN SELECT * FROM edge_agent.person WHERE site = 'plant-7'")
    assert plan.count("person") <= 3, "only one partition is read"

    monkeypatch.setattr(search, "EXACT_UP_TO", 10)
    assert site.init(ttl_s=60.0)[-1] == "index of 29 exemplars built"
    assert site.init(ttl_s=60.0) == ()


@pytest.mark.slow
def test_an_administrator_who_is_no_superuser(tmp_path: Path) -> None:
    """As in docs/fleet.md: CREATEROLE, and owner of the database in which a superuser made the extension."""
    with postgres_server.server() as server:
        Database(server, "postgres").sql("CREATE ROLE fleet_admin LOGIN CREATEROLE PASSWORD 'of the fleet'")
        Database(server, "postgres").sql("CREATE DATABASE fleet OWNER fleet_admin")
        whole = Database(server, "fleet", "of the fleet")
        whole.sql("CREATE EXTENSION vector")

        @dataclass(frozen=True)
        class Own(Database):
            @property
            def address(self) -> str:
                return self.as_role("fleet_admin")

        plant = Plant(tmp_path, Own(server, "fleet", "of the fleet"))
        plant.init()
        file = plant.joined("gate-b", (1, 2))
        command("sync", "--config", file)
        fleet = load(file).fleet
        assert fleet.address is not None
        assert fleet.password is not None
        store = PostgresStore(
            Login(fleet.address, fleet.password.get_secret_value()), Space(SPACE, D), "gate-b"
        )

        async def excluded() -> None:
            await store.hello(0, ())
            await asyncio.to_thread(plant.admin, "leave", "gate-b", "--withdraw", "--yes")
            with pytest.raises((StoreDown, StoreRefused)):
                await store.state()
            await store.close()

        run(excluded())
        plant.admin("join", "gate-b", "--output", tmp_path)
        command("join", "--from", tmp_path / "gate-b.fleet.toml", "--config", file)
        command("sync", "--config", file)
        site = json.loads(command("status", "--config", file, "--json").output)["site"]
        assert site["exemplars"] == 4, "what was deleted is sent again"
        assert site["devices"][0]["lag"] == 0
        Database(server, "postgres").sql("ALTER ROLE fleet_admin NOCREATEROLE")
        with pytest.raises(StoreRefused, match="the administrator needs CREATEROLE"):
            plant.admin("join", "yard", "--output", tmp_path)
