"""One PostgreSQL a session, and an empty database for each test that asks for one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.fleet import postgres_server
from tests.fleet.postgres_server import PASSWORD, PostgresServer

_numbers = itertools.count()


@dataclass(frozen=True)
class Database:
    """An empty database of the running server; its administrator logs in with `password`."""

    server: PostgresServer
    name: str
    password: str = PASSWORD

    @property
    def address(self) -> str:
        """Address for the administrator, without a password."""
        return self.server.address(self.name)

    def as_role(self, role: str) -> str:
        return self.server.address(self.name, role)

    def sql(self, text: str) -> str:
        """Return what the administrator's psql prints for some SQL, unaligned."""
        return self.server.run("psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", text, self.address).stdout


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A running PostgreSQL with pgvector on 127.0.0.1; tests share it, and must leave it running."""
    with postgres_server.server() as server:
        yield server


@pytest.fixture
def database(postgres: PostgresServer) -> Iterator[Database]:
    """A new empty database with the extension `vector`."""
    name = f"fleet_{next(_numbers)}"
    admin = postgres.address()
    postgres.run("psql", "-Xq", "-c", f"CREATE DATABASE {name}", admin)
    found = Database(postgres, name)
    found.sql("CREATE EXTENSION vector")
    yield found
    postgres.run("psql", "-Xq", "-c", f"DROP DATABASE {name} WITH (FORCE)", admin)
