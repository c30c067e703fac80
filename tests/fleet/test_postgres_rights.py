"""What the role of a device may do, tried with real roles and plain SQL beside the program."""

from __future__ import annotations

import pytest

from edge_agent.core.errors import InputError
from edge_agent.fleet.postgres import admin
from edge_agent.fleet.records import CameraMean, Push
from edge_agent.fleet.store import StoreRefused
from tests.fleet.postgres_server import PASSWORD
from tests.fleet.postgres_site import SECRET, Site, change, people, run, vector
from tests.fleet.server_database import Database

TABLES = ("person", "contribution", "exemplar", "apart", "camera_mean", "conflict", "lease")


@pytest.fixture
def filled(site: Site) -> Site:
    """Devices a and b, each with a contribution to p-1 and a mean; b with p-2."""

    async def work() -> None:
        for device, ids in (("a", ["p-1"]), ("b", ["p-1", "p-2"])):
            store = site.store(device)
            await store.hello(0, ())
            means = (CameraMean("", "door", 0, 3.0, vector(5).astype(float)),)
            await store.push(Push(people=tuple(change(id_, 1, 2) for id_ in ids), means=means), 0)
            await store.lease(f"lease-{device}", 60)
            await store.close()

    run(work())
    return site


def attempt(site: Site, device: str, sql: str) -> str:
    """What psql answers to a device that runs its own SQL: rows or the error."""
    done = site.database.server.run(
        "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", f"SET search_path = edge_agent, public; {sql}",
        site.database.as_role(site.role(device)), env={"PGPASSWORD": SECRET}, check=False,
    )  # fmt: skip
    return (done.stdout + done.stderr).strip()


def test_a_device_of_another_site_sees_nothing(filled: Site) -> None:
    other = Site(filled.database, "other")
    other.init()
    other.login("c")
    for table in (*TABLES, "site", "device"):
        count = attempt(other, "c", f"SELECT count(*) FROM {table} WHERE site = 'shop'")
        assert count == "0", table
    assert attempt(other, "c", "SELECT site, device FROM device") == "other|c"
    assert attempt(other, "c", "DELETE FROM person RETURNING id") == ""
    assert (
        attempt(other, "c", "UPDATE site SET version = version + 1 WHERE site = 'shop' RETURNING site") == ""
    )
    assert "row-level security" in attempt(
        other, "c", "INSERT INTO apart VALUES ('shop', 'p-1', 'p-2', 'x', 1)"
    )


OF_ANOTHER_DEVICE = (
    "UPDATE contribution SET digest = '' WHERE device = 'b' RETURNING id",
    "DELETE FROM contribution WHERE device = 'b' RETURNING id",
    "DELETE FROM exemplar WHERE device = 'b' RETURNING id",
    "UPDATE exemplar SET embedding = (SELECT embedding FROM exemplar LIMIT 1) WHERE device = 'b' RETURNING 1",
    "UPDATE camera_mean SET people = 9 WHERE device = 'b' RETURNING 1",
    "DELETE FROM camera_mean WHERE device = 'b' RETURNING 1",
    "UPDATE device SET mark = 99 WHERE device = 'b' RETURNING 1",
    "DELETE FROM lease WHERE device = 'b' RETURNING 1",
)
REFUSED = {
    "INSERT INTO contribution VALUES ('shop', 'p-2', 'b', '', 9)": "row-level security",
    "UPDATE contribution SET device = 'b', id = 'p-9' WHERE device = 'a'": "row-level security",
    "UPDATE lease SET device = 'b' WHERE device = 'a'": "row-level security",
    "UPDATE device SET role = 'x' WHERE device = 'a'": "permission denied",
    "INSERT INTO device (site, device, role) VALUES ('shop', 'z', 'z')": "permission denied",
    "UPDATE site SET space = 'x'": "permission denied",
    "UPDATE site SET ttl_s = 1": "permission denied",
    "UPDATE meta SET schema = 9": "permission denied",
    "UPDATE site SET version = 0": "versions of a site only grow",
    "TRUNCATE person": "permission denied",
    "DROP TABLE person": "must be owner",
    "ALTER TABLE person DISABLE ROW LEVEL SECURITY": "must be owner",
    "CREATE TABLE edge_agent.x ()": "permission denied",
    "SELECT * FROM pg_authid": "permission denied",
    "COPY person TO PROGRAM 'cat'": "permission denied",
    "CREATE ROLE x": "permission denied",
}


def test_what_belongs_to_another_device_stays(filled: Site) -> None:
    answers = {sql: attempt(filled, "a", sql) for sql in OF_ANOTHER_DEVICE}
    assert answers == dict.fromkeys(OF_ANOTHER_DEVICE, "")


def test_what_is_refused(filled: Site) -> None:
    answers = {sql: attempt(filled, "a", sql) for sql in REFUSED}
    assert {sql: answer for sql, answer in answers.items() if REFUSED[sql] not in answer} == {}


def test_an_erased_person_stays_erased(filled: Site) -> None:
    async def work() -> None:
        store = filled.store("a")
        await store.hello(0, ())
        await store.push(Push(forgotten=(("p-1", "request"),)), 0)
        await store.close()

    run(work())
    assert filled.database.sql("SELECT device, id FROM edge_agent.exemplar GROUP BY 1, 2") == "b|p-2\n"
    answer = attempt(filled, "a", "UPDATE person SET forgotten = NULL WHERE id = 'p-1'")
    assert "an erased person stays erased" in answer
    sql = "INSERT INTO exemplar VALUES ('shop', 'p-1', 'a', 0, 'door', 0, 0.5, '[1,0,0,0,0,0,0,0]')"
    assert "row-level security" in attempt(filled, "a", sql)


def test_a_device_that_left_is_refused(filled: Site) -> None:
    store = filled.store("a")

    async def work() -> None:
        await store.hello(0, ())
        await admin.leave(filled.admin(), "shop", "a")
        with pytest.raises(Exception, match=r"not connected|connection was lost|ended the connection"):
            await store.state()
        with pytest.raises(StoreRefused, match="does not admit this role"):
            await store.hello(0, ())
        filled.database.sql(f'ALTER ROLE "{filled.role("a")}" LOGIN')
        with pytest.raises(StoreRefused, match="the device a left the site shop"):
            await store.hello(0, ())
        assert attempt(filled, "a", "SELECT count(*) FROM person") == "0"
        await admin.join(filled.admin(), "shop", "a", filled.role("a"), SECRET)
        assert (await store.hello(0, ())).people == 2
        await store.close()

    run(work())
    assert filled.database.sql("SELECT count(*) FROM edge_agent.contribution WHERE device = 'a'") == "1\n"


def test_no_log_has_a_password(site: Site) -> None:
    site.database.sql(f"ALTER DATABASE {site.database.name} SET log_statement = 'all'")
    start = len(site.database.server.log())

    async def work() -> None:
        store = site.store("a")
        await store.hello(0, ())
        await store.close()

    run(work())
    log = site.database.server.log()[start:]
    assert "ROLE" in log
    assert SECRET not in log
    assert PASSWORD not in log


def test_who_may_join(site: Site) -> None:
    site.login("a")
    with pytest.raises(InputError, match="is that of the device a of shop"):
        run(admin.join(site.admin(), "shop", "b", site.role("a"), SECRET))
    with pytest.raises(InputError, match="is the administrator's"):
        run(admin.join(site.admin(), "shop", "b", "administrator", SECRET))
    site.database.sql(f"CREATE ROLE strong_{site.database.name} CREATEROLE")
    with pytest.raises(InputError, match="rights of an administrator"):
        run(admin.join(site.admin(), "shop", "b", f"strong_{site.database.name}", SECRET))
    with pytest.raises(InputError, match="no site nowhere"):
        run(admin.join(site.admin(), "nowhere", "b", "b", SECRET))
    with pytest.raises(InputError, match="no device b"):
        run(admin.leave(site.admin(), "shop", "b"))


def test_init_repeats(site: Site) -> None:
    assert site.init() == ()
    assert site.init(ttl_s=60.0) == ("times to live of site shop set",)
    with pytest.raises(StoreRefused, match="another site"):
        Site(site.database, space=type(site.space)("else", 8)).init()
    with pytest.raises(InputError, match="no name of a site"):
        Site(site.database, "a'b").init()


def test_an_administrator_who_is_no_superuser(database: Database) -> None:
    name = f"owner_{database.name}"
    database.sql(f"CREATE ROLE {name} LOGIN CREATEROLE PASSWORD '{PASSWORD}'")
    database.sql(f"GRANT CREATE ON DATABASE {database.name} TO {name}")
    site = Site(database)
    login = site.admin()
    login = type(login)(login.address._replace(role=name), PASSWORD)
    new = admin.NewSite("shop", "test", 8)
    with pytest.raises(StoreRefused, match="let a superuser run CREATE EXTENSION vector"):
        run(admin.init(login, new))
    database.sql("CREATE EXTENSION vector")
    database.sql(
        f"GRANT edge_agent_device TO {name} WITH ADMIN OPTION"
    ) if "edge_agent_device" in database.sql("SELECT rolname FROM pg_roles") else None
    assert run(admin.init(login, new))[-1] == "site shop created"
    run(admin.join(login, "shop", "a", site.role("a"), SECRET))
    site.joined.add("a")

    async def work() -> None:
        store = site.store("a")
        await store.hello(0, ())
        await store.push(people(change("p-1", 1)), 0)
        await store.close()
        await admin.leave(login, "shop", "a")

    run(work())
