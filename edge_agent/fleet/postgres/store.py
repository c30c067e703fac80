"""The store of a fleet on PostgreSQL with pgvector, as one device uses it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from edge_agent.core.errors import InputError
from edge_agent.fleet import rules
from edge_agent.fleet.postgres import greeting, merging, pages, rows, search, upkeep, withdrawing
from edge_agent.fleet.postgres.connection import CALL_S, CONNECT_S, Link, Login
from edge_agent.fleet.records import (
    Answer,
    Candidate,
    DeviceState,
    Page,
    Pair,
    Push,
    PushResult,
    SiteState,
    Vectors,
    Welcome,
)
from edge_agent.fleet.store import StoreDown

if TYPE_CHECKING:
    from edge_agent.fleet.postgres.connection import Connection
    from edge_agent.gallery.sync import Space

T = TypeVar("T")

ASK_S = 5.0
"""Deadline of a question; who asks waits `fleet.ask_ms`."""
LONG_S = 60.0
"""Deadline of the tasks of a whole site."""
LEASE = "reconcile"


class PostgresStore:
    """See `FleetStore`. The site is that of the role; `space` and `device` must be those of the store.

    Questions have a connection of their own, so that they need not wait for a page.
    """

    def __init__(self, login: Login, space: Space, device: str) -> None:
        self._login = login
        self._space = space
        self._device = device
        self._site = ""
        self._changes = Link(login)
        self._questions = Link(login)
        self._searched = search.Searched(self._site, space.dimension, search.MOST_EF_SEARCH)
        self._asked = asyncio.Lock()

    async def hello(self, mark: int, receipts: Collection[str]) -> Welcome:
        """Log in and compare this program with the store."""
        await self._questions.close()
        await self._changes.connect(CONNECT_S)

        async def greet(connection: Connection) -> tuple[str, Welcome]:
            return await greeting.greet(
                connection, self._login, self._space, self._device, mark=mark, receipts=receipts
            )

        try:
            self._site, welcome = await self._changes.write(greet, CONNECT_S)
        except BaseException:
            self._changes.drop()
            raise
        self._searched = replace(self._searched, site=self._site)
        return welcome

    async def close(self) -> None:
        """Log out; a frozen server does not hold this up."""
        await asyncio.gather(self._changes.close(), self._questions.close())

    async def push(self, push: Push, mark: int) -> PushResult:
        """Merge changes under the lock of the site."""

        async def work(connection: Connection) -> PushResult:
            locked = await merging.lock(connection, self._site)
            pages.check_mark(mark, locked.version, locked.horizon)
            held = await merging.held_for_push(connection, self._site, self._device, push)
            change = rules.Merging(
                held, locked.version, locked.now, device=self._device, retention=locked.retention
            )
            result = change.push(push, mark)
            await merging.write(connection, locked, self._device, held, change.changed())
            return result

        return await self._write(work)

    async def pull(self, mark: int, most: int, *, full: bool = False) -> Page:
        """Read a page in one snapshot."""

        async def work(connection: Connection) -> Page:
            dimension = self._space.dimension
            return await pages.read(connection, self._site, dimension, mark, most, full=full)

        return await self._read(work)

    async def confirm(self, mark: int, receipt: str) -> None:
        """Note the mark."""

        async def work(connection: Connection) -> None:
            await connection.execute(
                f"UPDATE device SET mark = $3, receipt = $4, seen = {rows.NOW}"  # noqa: S608
                " WHERE site = $1 AND device = $2",
                self._site,
                self._device,
                mark,
                receipt,
            )

        await self._write(work)

    async def ask(self, vectors: Vectors, most: int) -> Answer:
        """Search on the connection for questions."""
        async with self._asked:
            if not self._questions.connected:
                self._check_greeted()
                await self._questions.connect(ASK_S)
        while True:
            how = self._searched
            answer, self._searched = await self._questions.read(
                partial(search.ask, how=how, vectors=vectors, most=most), ASK_S, how.settings_to_ask
            )
            if self._searched == how:
                return answer

    async def lease(self, name: str, seconds: float) -> bool:
        """Take or keep a lease."""
        return await self._write(
            lambda connection: upkeep.lease(connection, self._site, self._device, name, seconds)
        )

    async def alike(
        self, after: int, most: int
    ) -> tuple[int, Sequence[tuple[Candidate, Sequence[Candidate]]]]:
        """Search for people who changed."""
        self._check_greeted()
        dimension = self._space.dimension
        return await self._changes.read(
            lambda connection: search.alike(connection, self._site, dimension, after, most),
            LONG_S,
        )

    async def join(self, pairs: Collection[Pair]) -> int:
        """Merge pairs of people."""

        async def work(connection: Connection) -> int:
            locked = await merging.lock(connection, self._site)
            if not await upkeep.leads(connection, locked, self._device, LEASE):
                return 0
            return await merging.join(connection, locked, self._device, pairs)

        return await self._write(work)

    async def tidy(self, tombstone_s: float) -> None:
        """Erase who expired, in parts; drop old tombstones."""
        more = True
        while more:
            more = await self._write(
                lambda connection: upkeep.tidy_some(connection, self._site, self._device, LEASE, tombstone_s)
            )

    async def erased(self, id_: str) -> tuple[int | None, Sequence[DeviceState]]:
        """Read a tombstone and all devices."""

        async def work(connection: Connection) -> tuple[int | None, Sequence[DeviceState]]:
            found = await connection.fetchrow(
                "SELECT forgotten IS NOT NULL AS gone, version FROM person WHERE site = $1 AND id = $2",
                self._site,
                id_,
            )
            if found is None:
                raise InputError(f"the site {self._site} does not know {id_}, or not any more")
            devices = await upkeep.devices(connection, self._site)
            return found["version"] if found["gone"] else None, devices

        return await self._read(work)

    async def leave(self, *, withdraw: bool) -> int:
        """Take this device out of the site; with `withdraw`, delete its exemplars and return how many.

        The store refuses it afterwards, until an administrator admits it again.
        """

        async def work(connection: Connection) -> int:
            gone = await withdrawing.withdraw(connection, self._site, self._device) if withdraw else 0
            await connection.execute(
                "UPDATE device SET gone = true WHERE site = $1 AND device = $2", self._site, self._device
            )
            return gone

        self._check_greeted()
        return await self._changes.write(work, LONG_S)

    async def state(self) -> SiteState:
        """Read sizes, order, and devices."""
        return await self._read(lambda connection: upkeep.state(connection, self._site))

    def _check_greeted(self) -> None:
        if not self._site:
            raise StoreDown(f"fleet store {self._login.where}: not connected")

    async def _read(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        self._check_greeted()
        return await self._changes.read(work, CALL_S)

    async def _write(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        self._check_greeted()
        return await self._changes.write(work, CALL_S)
