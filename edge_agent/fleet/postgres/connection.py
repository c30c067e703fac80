"""One connection to PostgreSQL, on which every wait has a deadline of this program.

A frozen server, or a network that was cut, answers nothing and closes nothing, so timeouts of the server do
not help. At a deadline the connection is aborted, never closed politely, since that waits too.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from edge_agent.core.distribution import install_command
from edge_agent.core.fleet_settings import StoreAddress
from edge_agent.core.tls import client_context
from edge_agent.fleet.postgres.handshake import server_certificate
from edge_agent.fleet.store import StoreDown, StoreRefused

if TYPE_CHECKING:
    import asyncpg

    Row = asyncpg.Record
    Connection = asyncpg.Connection[Row]

T = TypeVar("T")

CONNECT_S = 10.0
"""Deadline of a login."""
CALL_S = 20.0
"""Deadline of a change or a page, with waiting for the lock of the site."""
LOCK_S = 10.0
"""Longest wait of the server for a lock."""
IDLE_S = 5.0
"""After this silence inside a change the server gives up, so that a lost device locks nobody out."""
SCHEMA = "edge_agent"

_READ = "REPEATABLE READ READ ONLY"
_WRITE = "READ COMMITTED"


@dataclass(frozen=True, slots=True)
class Login:
    """How to log in. Without `ca_file` the connection has no TLS, which only this machine itself may use."""

    address: StoreAddress
    password: str | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    def __repr__(self) -> str:
        return f"Login({self.address!r})"

    @property
    def where(self) -> str:
        """`DATABASE at HOST:PORT`, for messages."""
        return f"{self.address.database} at {self.address.authority}"

    def tls(self) -> ssl.SSLContext | None:
        """Return the context of TLS; None: none. StoreRefused: a file cannot be used."""
        if self.ca_file is None:
            if not self.address.is_loopback:
                raise StoreRefused(
                    f"fleet store {self.where}: set fleet.ca_file: a store on another machine needs TLS"
                )
            return None
        file = self.ca_file
        try:
            context = client_context(file)
            if self.cert_file is not None:
                file = self.cert_file
                # A key with a passphrase would ask for it at the terminal: it gets an empty one.
                context.load_cert_chain(file, self.key_file, password="")
        except OSError as problem:  # also ssl.SSLError
            reason = problem.strerror if not isinstance(problem, ssl.SSLError) else "not a usable PEM file"
            raise StoreRefused(
                f"fleet store {self.where}: {file}"
                + (f" with {self.key_file}" if file == self.cert_file else "")
                + f": {reason}; correct fleet.ca_file, cert_file and key_file"
            ) from problem
        return context


async def logged_in(login: Login) -> Connection:
    """Log in, without a deadline."""
    try:
        import asyncpg
    except ImportError:
        raise StoreRefused(f"asyncpg is not installed: {install_command('fleet')}") from None
    address = login.address
    try:
        return await asyncpg.connect(
            host=address.host,
            port=address.port,
            user=address.role,
            database=address.database,
            password=login.password,
            ssl=login.tls() or False,
            timeout=3600,
            server_settings={"application_name": "edge-agent"},
        )
    except asyncpg.ConnectionDoesNotExistError as error:
        if login.cert_file is not None and not isinstance(error.__cause__, ssl.SSLError):
            # The reset of a connection discards the alert that states why: a handshake alone gets it.
            with contextlib.suppress(TimeoutError, ConnectionError):
                await asyncio.to_thread(server_certificate, login)
        raise


async def bounded(work: Awaitable[T], seconds: float, where: str) -> T:
    """Wait for work on a store; raises StoreDown, StoreRefused, or a fault of this program."""
    from edge_agent.fleet.postgres.problems import problem_of

    try:
        return await asyncio.wait_for(work, seconds)
    except Exception as error:
        # A timeout has a name of its own before Python 3.11.
        found = TimeoutError() if isinstance(error, asyncio.TimeoutError) else error
        problem = problem_of(found, where)
        if problem is None or problem is error:
            raise
        raise problem from error


class Link:
    """A connection for one call at a time; others wait.

    `connect` logs in again, also after a loss. Every error is StoreDown, StoreRefused, or a fault of this
    program.
    """

    def __init__(self, login: Login) -> None:
        self._login = login
        self._connection: Connection | None = None
        self._begin = ""
        self._busy = asyncio.Lock()

    @property
    def connected(self) -> bool:
        """Whether the connection was not lost, as far as is known."""
        return self._connection is not None and not self._connection.is_closed()

    async def connect(self, seconds: float) -> None:
        """Log in, instead of an earlier login."""
        self.drop()
        await bounded(self._connect(), seconds, self._login.where)

    def drop(self) -> None:
        """Abort the connection at once; a running call ends with StoreDown."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    async def close(self, seconds: float = 1.0) -> None:
        """Log out, or abort the connection where that takes longer."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        with contextlib.suppress(Exception):
            await asyncio.wait_for(connection.close(), seconds)
        connection.terminate()

    async def read(
        self, work: Callable[[Connection], Awaitable[T]], seconds: float = CALL_S, settings: str = ""
    ) -> T:
        """Run queries in one snapshot of the database; `settings` are statements before them."""
        return await bounded(self._transaction(work, _READ, seconds, settings), seconds, self._login.where)

    async def write(self, work: Callable[[Connection], Awaitable[T]], seconds: float = CALL_S) -> T:
        """Run changes in one transaction: all or nothing, committed when this returns.

        After StoreDown it is not known whether they were.
        """
        return await bounded(self._transaction(work, _WRITE, seconds), seconds, self._login.where)

    async def _connect(self) -> None:
        connection = await logged_in(self._login)
        try:
            path = await _search_path(connection, self._login.where)
        except BaseException:
            connection.terminate()
            raise
        self._begin = (
            f"SET LOCAL search_path = {path}; SET LOCAL lock_timeout = '{LOCK_S:g}s';"
            f" SET LOCAL idle_in_transaction_session_timeout = '{IDLE_S:g}s';"
            # A plan that was kept from when tables were small would read them whole for ever.
            " SET LOCAL plan_cache_mode = force_custom_plan;"
        )
        self._connection = connection

    async def _transaction(
        self, work: Callable[[Connection], Awaitable[T]], mode: str, seconds: float, settings: str = ""
    ) -> T:
        async with self._busy:
            connection = self._connection
            if connection is None or connection.is_closed():
                raise StoreDown(f"fleet store {self._login.where}: not connected")
            limit = f"SET LOCAL statement_timeout = '{seconds:g}s'"
            try:
                # One message: a connection pooler may give the next one to another server process.
                await connection.execute(f"BEGIN ISOLATION LEVEL {mode}; {self._begin} {settings} {limit}")
                result = await work(connection)
                await connection.execute("COMMIT")
            except Exception:
                await self._roll_back(connection)
                raise
            except BaseException:  # the deadline, or the end of the program
                connection.terminate()
                raise
            return result

    async def _roll_back(self, connection: Connection) -> None:
        """Make the connection usable for the next call; a lost one is dropped."""
        try:
            await connection.execute("ROLLBACK")
        except BaseException as problem:
            connection.terminate()
            if not isinstance(problem, Exception):
                raise


async def _search_path(connection: Connection, where: str) -> str:
    """Prepare a new connection for vectors; return the search path.

    StoreRefused: the database has no store, or no pgvector.
    """
    found = await connection.fetchrow(
        "SELECT n.nspname AS place, quote_ident(n.nspname) AS quoted,"
        " to_regnamespace($1) IS NOT NULL AS ready"
        " FROM (SELECT) one LEFT JOIN pg_extension e ON e.extname = 'vector'"
        " LEFT JOIN pg_namespace n ON n.oid = e.extnamespace",
        SCHEMA,
    )
    assert found is not None
    if found["place"] is None:
        raise StoreRefused(
            f"fleet store {where}: the database lacks the extension `vector` (pgvector): install its package"
            " there and run `edge-agent fleet init` as administrator"
        )
    if not found["ready"]:
        raise StoreRefused(
            f"fleet store {where}: it has no tables of a fleet: run `edge-agent fleet init` as administrator"
        )
    await connection.set_type_codec(
        "vector", schema=found["place"], encoder=bytes, decoder=bytes, format="binary"
    )
    return f"{SCHEMA}, {found['quoted']}, pg_temp"
