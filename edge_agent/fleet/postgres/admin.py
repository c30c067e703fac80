"""What an administrator does with a store: make it, admit a device, exclude one.

The administrator's role owns the tables and makes roles: it needs CREATEROLE and CREATE on the database, and
the extension `vector` has to be there, or the role is a superuser.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from edge_agent.core.errors import InputError
from edge_agent.fleet.postgres import search, withdrawing
from edge_agent.fleet.postgres.connection import SCHEMA, Login, bounded, logged_in
from edge_agent.fleet.postgres.migrations import MIGRATIONS, SCHEMA_VERSION, check_schema, schema_statements
from edge_agent.fleet.postgres.search import literal
from edge_agent.fleet.store import StoreRefused

if TYPE_CHECKING:
    from edge_agent.fleet.postgres.connection import Connection

T = TypeVar("T")

GROUP = "edge_agent_device"
"""The role without login that has the rights of devices."""
ADMIN_S = 600.0
"""Deadline; a migration may rewrite a table."""
INDEX_S = 6 * 3600.0
"""Deadline of the making of an index, of millions of exemplars."""
LEAST_SERVER = 140000
LEAST_VECTOR = (0, 8)
LONGEST_ROLE = 63
_LOCK = 5_724_071_071
"""Key of the advisory lock that keeps two administrators apart."""
_ROUNDS = 4096
_OF_DEVICES = {
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
    "idle_in_transaction_session_timeout": "'10s'",
}
"""Settings of the roles of devices: connections of devices that vanished end within a minute."""


@dataclass(frozen=True, slots=True)
class NewSite:
    """A site as `init` makes or changes it; times to live in seconds by kind, None: for ever."""

    site: str
    space: str
    dimension: int
    ttl_s: float | None = None
    enrolled_ttl_s: float | None = None


async def init(login: Login, new: NewSite) -> tuple[str, ...]:
    """Make or update the tables, the role of devices, and a site; return what was done, a line each.

    A repetition sets the times to live, and builds the index of a site that has become large, without
    holding up devices.
    """
    if search.SITE_FORM.fullmatch(new.site) is None:
        raise InputError(f"{new.site!r} is no name of a site: use 1 to 64 letters, digits, '.', '_' and '-'")

    async def work(connection: Connection) -> tuple[str, ...]:
        done = await _extension(connection, login.where)
        done += await _tables(connection, login.where)
        done += await _site(connection, login.where, new)
        return tuple(done)

    done = await _administered(login, work)
    return done + await bounded(_index(login, new), INDEX_S, login.where)


async def join(login: Login, site: str, device: str, role: str, password: str | None = None) -> None:
    """Admit a device, or admit it again: its role may log in by the password, or by a certificate alone.

    The server gets a digest of the password, so that no log of statements contains it.
    """
    if not role or len(role.encode()) > LONGEST_ROLE:
        raise InputError(f"{role!r} is no name of a role: use 1 to {LONGEST_ROLE} bytes")
    if role == login.address.role:
        raise InputError(f"the role {role} is the administrator's: give the device one of its own")

    async def work(connection: Connection) -> None:
        await _check_site(connection, login.where, site)
        others = await connection.fetchrow(
            "SELECT site, device FROM device WHERE role = $1 AND (site, device) <> ($2, $3)",
            role,
            site,
            device,
        )
        if others is not None:
            raise InputError(f"the role {role} is that of the device {others['device']} of {others['site']}")
        await _login_role(connection, role, password)
        await connection.execute(
            "INSERT INTO device (site, device, role) VALUES ($1, $2, $3)"
            " ON CONFLICT (site, device) DO UPDATE SET role = excluded.role, gone = false,"
            # One that was excluded sends everything again: what it shared may have been deleted.
            " receipt = CASE WHEN device.gone THEN NULL ELSE device.receipt END",
            site,
            device,
            role,
        )

    await _administered(login, work)


async def leave(login: Login, site: str, device: str, *, withdraw: bool = False) -> int:
    """Exclude a device: its role cannot log in any more, and sees nothing; what it contributed stays.

    With `withdraw`, its exemplars are deleted; return how many. InputError: the site does not know it.
    """

    async def work(connection: Connection) -> int:
        await _check_site(connection, login.where, site)
        role = await connection.fetchval(
            "UPDATE device SET gone = true WHERE site = $1 AND device = $2 RETURNING role", site, device
        )
        if role is None:
            raise InputError(f"the site {site} has no device {device}")
        quoted = await connection.fetchval("SELECT quote_ident($1)", role)
        await connection.execute(f"ALTER ROLE {quoted} NOLOGIN")
        # Only a member of a role may end its connections; a superuser is one of all.
        await connection.execute(f"GRANT {quoted} TO CURRENT_USER")
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", role
        )
        await connection.execute(f"REVOKE {quoted} FROM CURRENT_USER")
        return await withdrawing.withdraw(connection, site, device) if withdraw else 0

    return await _administered(login, work)


def init_sql(new: NewSite) -> str:
    """Return what `init` runs in an empty database, as SQL for psql."""
    lines = [
        "BEGIN;",
        "CREATE EXTENSION IF NOT EXISTS vector SCHEMA public;",
        f"CREATE ROLE {GROUP} NOLOGIN;  -- unless the server has it already",
        schema_statements("public").rstrip("\n"),
        "INSERT INTO site (site, space, dimension, ttl_s, enrolled_ttl_s)"  # noqa: S608 - printed
        f" VALUES ({literal(new.site)}, {_quoted(new.space)}, {new.dimension}, {_number(new.ttl_s)},"
        f" {_number(new.enrolled_ttl_s)});",
    ]
    lines.append("COMMIT;")
    if new.dimension <= search.MOST_INDEXED_NUMBERS:
        lines.append(f"-- `fleet init` adds this from {search.EXACT_UP_TO} embeddings on:")
        lines += [f"-- {one};" for one in search.index_statements(new.site, new.dimension)]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    escaped = text.replace("'", "''")
    return f"'{escaped}'"


def _number(value: float | None) -> str:
    return "NULL" if value is None else f"{value:g}"


async def _administered(login: Login, work: Callable[[Connection], Awaitable[T]]) -> T:
    """Run work in one transaction of the administrator, alone."""

    async def run() -> T:
        connection = await logged_in(login)
        import asyncpg

        try:
            async with connection.transaction():
                await connection.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")
                return await work(connection)
        except asyncpg.InsufficientPrivilegeError as error:
            raise StoreRefused(
                f"fleet store {login.where}: the role {login.address.role} lacks rights: the administrator"
                " needs CREATEROLE, and has to own the database and the tables of the fleet"
            ) from error
        finally:
            connection.terminate()

    return await bounded(run(), ADMIN_S, login.where)


async def _extension(connection: Connection, where: str) -> list[str]:
    """Provide pgvector, and put its schema into the search path."""
    number = int(await connection.fetchval("SHOW server_version_num"))
    if number < LEAST_SERVER:
        raise StoreRefused(f"fleet store {where}: PostgreSQL {LEAST_SERVER // 10000} or later is needed")
    done = []
    found = await connection.fetchval("SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'")
    if not found:
        major = number // 10000
        raise StoreRefused(
            f"fleet store {where}: pgvector is not installed there: install its package for PostgreSQL"
            f" {major} (postgresql-{major}-pgvector)"
        )
    version = await connection.fetchval("SELECT extversion FROM pg_extension WHERE extname = 'vector'")
    if version is None:
        if not await _may_create_extension(connection):
            raise StoreRefused(
                f"fleet store {where}: this role may not create the extension: let a superuser run"
                " CREATE EXTENSION vector in this database, then repeat"
            )
        await connection.execute("CREATE EXTENSION vector SCHEMA public")
        version = await connection.fetchval("SELECT extversion FROM pg_extension WHERE extname = 'vector'")
        done.append(f"extension vector {version} created")
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < LEAST_VECTOR:
        raise StoreRefused(
            f"fleet store {where}: pgvector {version} is too old, 0.8 is needed: update its package and let a"
            " superuser run ALTER EXTENSION vector UPDATE"
        )
    return done


async def _may_create_extension(connection: Connection) -> bool:
    return bool(
        await connection.fetchval(
            "SELECT rolsuper OR (SELECT bool_or(trusted) FROM pg_available_extension_versions"
            " WHERE name = 'vector') FROM pg_roles WHERE rolname = current_user"
        )
    )


async def _tables(connection: Connection, where: str) -> list[str]:
    """Make the tables, or bring them to this program's version."""
    if not await connection.fetchval("SELECT count(*) FROM pg_roles WHERE rolname = $1", GROUP):
        await connection.execute(f"CREATE ROLE {GROUP} NOLOGIN")
    path = await _vector_schema(connection)
    if not await connection.fetchval("SELECT to_regnamespace($1) IS NOT NULL", SCHEMA):
        await connection.execute(schema_statements(path))
        return [f"tables of version {SCHEMA_VERSION} created"]
    await connection.execute(f"SET LOCAL search_path = {SCHEMA}, {path}, pg_temp")
    done = []
    version: int = await connection.fetchval("SELECT schema FROM meta")
    while version in MIGRATIONS and version < SCHEMA_VERSION:
        await connection.execute(MIGRATIONS[version])
        version += 1
        await connection.execute("UPDATE meta SET schema = $1", version)
        done.append(f"tables updated to version {version}")
    check_schema(version, where)
    return done


async def _site(connection: Connection, where: str, new: NewSite) -> list[str]:
    """Make a site, or set its times to live."""
    found = await connection.fetchrow(
        "SELECT space, dimension, ttl_s, enrolled_ttl_s FROM site WHERE site = $1", new.site
    )
    if found is not None and (found["space"], found["dimension"]) != (new.space, new.dimension):
        raise StoreRefused(
            f"fleet store {where}: the site {new.site} has embeddings of {found['space']}"
            f" ({found['dimension']} numbers), not of {new.space}: give the new network another site"
        )
    if found is not None and (found["ttl_s"], found["enrolled_ttl_s"]) == (new.ttl_s, new.enrolled_ttl_s):
        return []
    await connection.execute(
        "INSERT INTO site (site, space, dimension, ttl_s, enrolled_ttl_s) VALUES ($1, $2, $3, $4, $5)"
        " ON CONFLICT (site) DO UPDATE SET ttl_s = excluded.ttl_s, enrolled_ttl_s = excluded.enrolled_ttl_s",
        new.site,
        new.space,
        new.dimension,
        new.ttl_s,
        new.enrolled_ttl_s,
    )
    if found is not None:
        return [f"times to live of site {new.site} set"]
    return [f"site {new.site} created"]


async def _index(login: Login, new: NewSite) -> tuple[str, ...]:
    """Build the index of a large site that has none; one whose making was interrupted is made again."""
    connection = await logged_in(login)
    try:
        path = await _vector_schema(connection)
        await connection.execute(f"SET search_path = {SCHEMA}, {path}, pg_temp")
        name = search.index_name(new.site)
        row = await connection.fetchrow(
            f"SELECT exemplars, {search.IS_INDEXED} AS indexed, to_regclass($2) IS NOT NULL AS begun,"  # noqa: S608
            " (SELECT relkind = 'p' FROM pg_class WHERE oid = 'exemplar'::regclass) AS partitioned"
            " FROM site WHERE site = $1",
            new.site,
            name,
        )
        small = row is None or row["exemplars"] <= search.EXACT_UP_TO
        if row is None or small or row["indexed"] or new.dimension > search.MOST_INDEXED_NUMBERS:
            return ()
        if row["begun"]:
            await connection.execute(f"DROP INDEX {name}")
        partitioned = row["partitioned"]
        for statement in search.index_statements(new.site, new.dimension, partitioned=partitioned):
            await connection.execute(statement)
        return (f"index of {row['exemplars']} exemplars built",)
    finally:
        connection.terminate()


async def _vector_schema(connection: Connection) -> str:
    """Return where the extension is, quoted."""
    found: str = await connection.fetchval(
        "SELECT quote_ident(n.nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace"
        " WHERE e.extname = 'vector'"
    )
    return found


async def _check_site(connection: Connection, where: str, site: str) -> None:
    """Put the tables into the search path. StoreRefused: they are missing; InputError: the site is."""
    if not await connection.fetchval("SELECT to_regnamespace($1) IS NOT NULL", SCHEMA):
        raise StoreRefused(f"fleet store {where}: it has no tables of a fleet: run `edge-agent fleet init`")
    await connection.execute(f"SET LOCAL search_path = {SCHEMA}, pg_temp")
    check_schema(await connection.fetchval("SELECT schema FROM meta"), where)
    if not await connection.fetchval("SELECT count(*) FROM site WHERE site = $1", site):
        raise InputError(f"fleet store {where}: there is no site {site}: run `edge-agent fleet init`")


async def _login_role(connection: Connection, role: str, password: str | None) -> None:
    """Make the role of a device, or permit its login again."""
    quoted = await connection.fetchval("SELECT quote_ident($1)", role)
    found = await connection.fetchrow(
        "SELECT rolsuper OR rolbypassrls OR rolcreaterole AS strong FROM pg_roles WHERE rolname = $1", role
    )
    if found is not None and found["strong"]:
        raise InputError(f"the role {role} has rights of an administrator: give the device one of its own")
    verb = "CREATE" if found is None else "ALTER"
    secret = "" if password is None else f" PASSWORD '{verifier(password)}'"
    await connection.execute(f"{verb} ROLE {quoted} LOGIN{secret}")
    await connection.execute(f"GRANT {GROUP} TO {quoted}")
    for name, value in _OF_DEVICES.items():
        await connection.execute(f"ALTER ROLE {quoted} SET {name} = {value}")


def verifier(password: str) -> str:
    """Return what PostgreSQL stores of a password, SCRAM-SHA-256 (RFC 5803)."""
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, _ROUNDS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    words = (base64.b64encode(one).decode() for one in (salt, stored, server))
    return "SCRAM-SHA-256${}:{}${}:{}".format(_ROUNDS, *words)
