"""A site on a real PostgreSQL, and what devices send."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from edge_agent.core.fleet_settings import parse_store
from edge_agent.fleet.postgres import admin
from edge_agent.fleet.postgres.admin import NewSite
from edge_agent.fleet.postgres.connection import Login
from edge_agent.fleet.postgres.store import PostgresStore
from edge_agent.fleet.records import PersonChange, Push, Setting, SharedExemplar
from edge_agent.gallery.sync import Space
from tests.fleet.server_database import Database

T = TypeVar("T")

SECRET = "secret-of-a-device"
TEST_SPACE = Space("test", 8)


def run(work: Coroutine[Any, Any, T], seconds: float = 60.0) -> T:
    """Run a coroutine to its end."""

    async def bounded() -> T:
        try:
            return await asyncio.wait_for(work, seconds)
        finally:
            await asyncio.sleep(0.02)  # connections that were aborted end in the loop

    with ThreadPoolExecutor(1) as thread:  # a test's own loop may run in this one
        return thread.submit(asyncio.run, bounded()).result()


@dataclass
class Site:
    """A site in a database of the running server."""

    database: Database
    name: str = "shop"
    space: Space = TEST_SPACE
    joined: set[str] = field(default_factory=set)

    def admin(self) -> Login:
        return Login(parse_store(self.database.address), self.database.password)

    def init(self, **more: Any) -> tuple[str, ...]:
        new = NewSite(self.name, self.space.space, self.space.dimension, **more)
        return run(admin.init(self.admin(), new))

    def role(self, device: str) -> str:
        return f"{self.database.name}-{self.name}-{device}"

    def login(self, device: str, **more: Any) -> Login:
        """How a device logs in; it joins first where it did not yet."""
        if device not in self.joined:
            run(admin.join(self.admin(), self.name, device, self.role(device), SECRET))
            self.joined.add(device)
        address = parse_store(self.database.as_role(self.role(device)))
        return replace(Login(address, SECRET), **more)

    async def passes(self, seconds: float) -> None:
        """Make everything that the store knows older."""
        self.database.sql(
            f"UPDATE edge_agent.person SET first_seen = first_seen - {seconds},"
            f" last_seen = last_seen - {seconds} WHERE site = '{self.name}' AND last_seen > 0;"
            f" UPDATE edge_agent.lease SET until = until - {seconds} WHERE site = '{self.name}'"
        )

    def store(self, device: str, **more: Any) -> PostgresStore:
        return PostgresStore(self.login(device, **more), self.space, device)


def vector(seed: int, dimension: int = 8) -> np.ndarray[Any, np.dtype[np.float32]]:
    found = np.random.default_rng(seed).normal(size=dimension).astype(np.float32)
    return found / np.linalg.norm(found)


def exemplar(seed: int, camera: str = "door", dimension: int = 8) -> SharedExemplar:
    return SharedExemplar(camera, 0, 0.5, vector(seed, dimension))


def change(
    id_: str,
    *seeds: int,
    former: tuple[str, ...] = (),
    name: str | None = None,
    dimension: int = 8,
    **more: Any,
) -> PersonChange:
    """What a device sends of a person; without seeds its exemplars did not change."""
    exemplars = tuple(exemplar(seed, dimension=dimension) for seed in seeds) if seeds else None
    setting = None if name is None else Setting(name)
    fields = {"first_age_s": 10.0, "last_age_s": 0.0, "camera": "door", **more}
    return PersonChange(id_, former, "auto", setting, None, exemplars=exemplars, **fields)


def people(*changes: PersonChange) -> Push:
    return Push(people=changes)
