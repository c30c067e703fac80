"""A store in memory beside a real PostgreSQL: every call goes to both, and both must answer the same."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest

from edge_agent.fleet.postgres.connection import Link
from edge_agent.fleet.postgres.store import PostgresStore
from edge_agent.fleet.records import Page
from edge_agent.fleet.rules import Retention
from edge_agent.fleet.store import StaleMark
from edge_agent.gallery.sync import Space
from tests.fleet.histories import DIMENSION, ENROLLED_TTL_S, TTL_S, HistorySite, HistoryStore
from tests.fleet.memory_store import Content
from tests.fleet.postgres_site import Site
from tests.fleet.server_database import Database

SPACE = Space("s", DIMENSION)
DEVICES = tuple(f"d{number}" for number in range(5))
_TABLES = ("person", "contribution", "exemplar", "apart", "camera_mean", "conflict", "lease")


class Twin:
    """The real site, and a thread with the event loop of its connections; `with` ends both."""

    def __init__(self, database: Database) -> None:
        self.site = Site(database, "shop", SPACE)
        self.site.init(ttl_s=TTL_S, enrolled_ttl_s=ENROLLED_TTL_S)
        self._loop = asyncio.new_event_loop()
        self._thread = ThreadPoolExecutor(1)
        self._admin = Link(self.site.admin())
        self.stores: dict[str, PostgresStore] = {}
        self.greeted: set[str] = set()

    def __enter__(self) -> Twin:
        self.run(self._admin.connect(10.0))
        self.sql(
            "CREATE SCHEMA saved; " + "; ".join(f"CREATE TABLE saved.{t} (LIKE {t})" for t in self.tables())
        )
        self.stores = {name: self.site.store(name) for name in DEVICES}
        return self

    def __exit__(self, *_: object) -> None:
        for store in self.stores.values():
            self.run(store.close())
        self.run(self._admin.close())
        self._thread.submit(self._loop.close).result()
        self._thread.shutdown()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a call to its end in the thread."""
        return self._thread.submit(self._loop.run_until_complete, work).result()

    def sql(self, text: str) -> None:
        """Change the tables as the administrator."""
        self.run(self._admin.write(lambda connection: connection.execute(text)))

    @staticmethod
    def tables() -> tuple[str, ...]:
        return "site", "device", *_TABLES

    def empty(self) -> None:
        """Go back to a new site."""
        tables = "; ".join(f"DELETE FROM {table}" for table in _TABLES)
        self.sql(
            f"{tables}; UPDATE device SET mark = 0, receipt = NULL; ALTER TABLE site DISABLE TRIGGER USER;"
            " UPDATE site SET version = 0, horizon = 0, people = 0, exemplars = 0;"
            " ALTER TABLE site ENABLE TRIGGER USER"
        )

    def save(self) -> None:
        """Keep a copy of everything."""
        self.sql(
            "; ".join(
                f"DELETE FROM saved.{t}; INSERT INTO saved.{t} SELECT * FROM {t}" for t in self.tables()
            )
        )

    def restore(self) -> None:
        """Go back to the copy."""
        self.sql(
            "; ".join(f"DELETE FROM {t}; INSERT INTO {t} SELECT * FROM saved.{t}" for t in self.tables())
        )


class Clock:
    """The time of a history, in SQL."""

    def __init__(self) -> None:
        self.site: HistorySite | None = None

    def __format__(self, _: str) -> str:
        assert self.site is not None
        return f"{self.site.now!r}::float8"


class TwinSite(HistorySite):
    """The site in memory, whose stores change the real one, too."""

    def __init__(self, twin: Twin) -> None:
        super().__init__(dimension=DIMENSION, space="s", retention=Retention(TTL_S, ENROLLED_TTL_S))
        self.twin = twin
        twin.empty()

    def store(self, device: str) -> HistoryStore:
        return TwinStore(self, device)

    def give_lease(self, device: str) -> None:
        super().give_lease(device)
        until = self.now + 60
        self.twin.sql(
            f"DELETE FROM lease; INSERT INTO lease VALUES ('shop', 'reconcile', '{device}', {until!r})"
        )

    def backup(self) -> Content:
        self.twin.save()
        return super().backup()

    def restore(self, content: Content) -> None:
        super().restore(content)
        self.twin.restore()


def _both(name: str) -> Callable[..., Any]:
    async def call(self: TwinStore, *values: Any, **more: Any) -> Any:
        inner = getattr(HistoryStore, name)(self, *values, **more)
        return await _driven(inner, lambda: self.ask_twin(name, *values, **more))

    return call


class TwinStore(HistoryStore):
    """A device's share of both."""

    site: TwinSite

    hello, push, pull, confirm = _both("hello"), _both("push"), _both("pull"), _both("confirm")
    join, tidy = _both("join"), _both("tidy")

    def ask_twin(self, name: str, *values: Any, **more: Any) -> Any:
        twin = self.site.twin
        store = twin.stores[self.device]
        if self.device not in twin.greeted:
            twin.greeted.add(self.device)
            twin.run(store.hello(0, ()))  # the lease holder may not have exchanged yet
        return twin.run(getattr(store, name)(*values, **more))


@types.coroutine
def _driven(inner: Coroutine[Any, Any, Any], real: Callable[[], Any]) -> Generator[None, None, Any]:
    """Drive a call of the store in memory; when it has taken effect, do the same on the real one."""
    inner.send(None)  # until it arrives
    yield
    try:
        inner.send(None)
    except StaleMark:
        with pytest.raises(StaleMark):
            real()
        raise
    answer = real()
    yield
    try:
        inner.send(None)
    except StopIteration as end:
        expected = end.value
    assert _plain(answer) == _plain(expected)
    return expected


def _plain(value: Any) -> Any:
    """Return an answer as values that can be compared; what a page need not have is left out."""
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, Page):
        # Contributions that have ended are dropped with old tombstones.
        parts = (
            value.people,
            [one for one in value.contributions if one.exemplars],
            value.apart,
            value.means,
        )
        return [value.upto, value.version, value.now, *(sorted(map(_plain, part)) for part in parts)]
    if is_dataclass(value):
        return [_plain(getattr(value, one.name)) for one in fields(value)]
    return value
