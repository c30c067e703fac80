"""What is left of a forgotten person on the disk of the server, as docs/fleet.md states."""

from __future__ import annotations

from collections import Counter

import pytest

from edge_agent.fleet.records import PersonChange, Push, Setting, SharedExemplar
from tests.fleet import postgres_server
from tests.fleet.postgres_server import PostgresServer
from tests.fleet.postgres_site import Site, change, people, run, vector
from tests.fleet.server_database import Database

NAME = "Zebulon Quartermain"


def traces(server: PostgresServer, needle: bytes) -> Counter[str]:
    """Count an embedding and the name in all files of the server, by place."""
    server.run("psql", "-Xq", "-c", "CHECKPOINT", server.address())
    found: Counter[str] = Counter()
    for path in server.data.rglob("*"):
        if path.is_file():
            place = "log" if "pg_wal" in path.parts else "tables"
            data = path.read_bytes()
            found[f"{place}: embedding"] += data.count(needle)
            if data.count(needle):
                print(path)
            found[f"{place}: name"] += data.count(NAME.encode())
    return +found


@pytest.mark.slow
def test_what_is_left_of_a_forgotten_person() -> None:
    with postgres_server.server() as server:
        database = Database(server, "postgres")
        site = Site(database)
        site.init()
        shown = vector(4711)
        needle = shown[2:6].astype("<f4").tobytes()
        person = PersonChange(
            "p-a", (), "auto", Setting(NAME), None, 9.0, 1.0, "door", (SharedExemplar("door", 0, 0.5, shown),)
        )

        async def share() -> None:
            store = site.store("a")
            await store.hello(0, ())
            await store.push(people(*(change(f"p-{n}", n) for n in range(50))), 0)
            await store.push(Push(people=(person,)), 0)
            database.sql("ANALYZE")
            await store.push(Push(forgotten=(("p-a", "request"),)), 0)
            await store.close()

        run(share())
        before = traces(server, needle)
        assert before["tables: embedding"], "until VACUUM, deleted rows stay in their pages"
        assert before["log: embedding"]
        assert database.sql("SELECT count(*) FROM edge_agent.exemplar WHERE id = 'p-a'").strip() == "0"
        kept = (
            "SELECT count(*) FROM pg_stats WHERE schemaname = 'edge_agent'"
            " AND (tablename, attname) IN (('person', 'name'), ('exemplar', 'embedding'))"
        )
        assert database.sql(kept).strip() == "0", "samples of ANALYZE would outlive the person"

        database.sql("VACUUM FULL edge_agent.person, edge_agent.exemplar")
        database.sql("CHECKPOINT")
        after = traces(server, needle)
        assert not after["tables: embedding"]
        assert not after["tables: name"]
        assert after["log: embedding"], "the write-ahead log keeps it until its segments are overwritten"
