"""One PostgreSQL a session, and an empty database for each test that asks for one."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import pytest

from tests.fleet import postgres_server
from tests.fleet.postgres_server import PostgresServer
from tests.fleet.postgres_site import Site
from tests.fleet.server_database import Database

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A running PostgreSQL with pgvector on 127.0.0.1; tests share it, and must leave it running."""
    with postgres_server.server() as server:
        yield server


@pytest.fixture
def database(postgres: PostgresServer) -> Iterator[Database]:
    """A new empty database."""
    with new_database(postgres) as found:
        yield found


@pytest.fixture(scope="module")
def shared_database(postgres: PostgresServer) -> Iterator[Database]:
    """A database for all tests of a module: each makes a site of its own."""
    with new_database(postgres) as found:
        yield found


@contextlib.contextmanager
def new_database(postgres: PostgresServer) -> Iterator[Database]:
    """A new empty database, for the block."""
    found = Database(postgres, f"fleet_{next(_numbers)}")
    postgres.run("psql", "-Xq", "-c", f"CREATE DATABASE {found.name}", postgres.address())
    yield found
    postgres.run("psql", "-Xq", "-c", f"DROP DATABASE {found.name} WITH (FORCE)", postgres.address())


@pytest.fixture
def site(database: Database) -> Site:
    """A new site `shop` of 8 numbers."""
    found = Site(database)
    found.init()
    return found
