"""TLS with client certificates, on a server that admits devices by certificate alone."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.core.fleet_settings import parse_store
from edge_agent.fleet.postgres.connection import Link, Login
from edge_agent.fleet.store import StoreRefused
from tests.faults import certificates
from tests.faults.certificates import Certificates
from tests.fleet import postgres_server
from tests.fleet.postgres_server import PostgresServer
from tests.fleet.postgres_site import run

pytestmark = pytest.mark.filterwarnings(  # asyncpg leaves the socket of a login that TLS refuses
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(autouse=True)
def _no_sockets() -> Iterator[None]:
    yield
    gc.collect()


HBA = (
    "hostssl all administrator 127.0.0.1/32 scram-sha-256",
    "hostssl all all 127.0.0.1/32 cert",
)


@pytest.fixture(scope="module")
def made() -> Iterator[Certificates]:
    folder = Path(tempfile.mkdtemp(prefix="edge-agent-certificates-"))
    folder.chmod(0o755)
    yield certificates.make(folder / "made")
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def encrypted(made: Certificates) -> Iterator[PostgresServer]:
    """A server whose certificate is that of `made`, with the roles jx01 and jx99; it has no pgvector."""
    key = made.folder / "server-of-postgres.key"
    shutil.copy(made.file("server.key"), key)
    if os.geteuid() == 0:
        shutil.chown(key, "nobody")
    key.chmod(0o600)
    settings = {"ssl": "on", "ssl_ca_file": made.ca, "ssl_cert_file": made.file("server.pem")}
    settings["ssl_key_file"] = str(key)
    programs = postgres_server.binaries_with_tls()
    with postgres_server.server(programs, settings=settings, hba=HBA) as server:
        sql = "CREATE ROLE jx01 LOGIN; CREATE ROLE jx99 LOGIN"
        server.run("psql", "-Xq", "-c", sql, server.address() + "?sslmode=require")
        yield server


def answer(
    server: PostgresServer, made: Certificates, certificate: str | None, role: str = "jx01", ca: str = "ca"
) -> str:
    """Log in with a certificate; return the refusal: one for want of pgvector comes after a login."""
    login = Login(
        parse_store(server.address("postgres", role)),
        ca_file=Path(made.file(f"{ca}.pem")),
        cert_file=None if certificate is None else Path(made.file(f"{certificate}.pem")),
        key_file=None if certificate is None else Path(made.file(f"{certificate}.key")),
    )
    with pytest.raises(StoreRefused) as caught:
        run(Link(login).connect(10))
    return str(caught.value)


LOGGED_IN = "lacks the extension `vector`"


def test_certificates(encrypted: PostgresServer, made: Certificates) -> None:
    assert LOGGED_IN in answer(encrypted, made, "jx01")
    assert LOGGED_IN in answer(encrypted, made, "jx99", "jx99")
    assert "does not admit this role" in answer(encrypted, made, "jx99"), "the certificate of another role"
    assert "does not admit this role" in answer(encrypted, made, None)
    assert "does not trust the certificate of this device" in answer(encrypted, made, "foreign")
    assert "has expired" in answer(encrypted, made, "expired")
    assert "fleet.ca_file must hold the authority" in answer(encrypted, made, "jx01", ca="other")


def test_files_that_cannot_be_used(encrypted: PostgresServer, made: Certificates) -> None:
    assert "No such file" in answer(encrypted, made, "nothing")
    assert "No such file" in answer(encrypted, made, "jx01", ca="nothing")
    shutil.copy(made.file("jx01.key"), made.file("key.pem"))
    assert "not a usable PEM file" in answer(encrypted, made, "jx01", ca="key")


def test_a_server_without_tls(postgres: PostgresServer, made: Certificates) -> None:
    assert "does not offer TLS" in answer(postgres, made, None)
