"""TLS and client certificates, made by the commands of docs/fleet.md, with Debian's PostgreSQL.

That server has no pgvector, so a login that is accepted ends with the advice to install it.
"""

from __future__ import annotations

import gc
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edge_agent.cli.checks import fleet as fleet_check
from edge_agent.core.fleet_settings import parse_store
from edge_agent.fleet.postgres.connection import Login
from edge_agent.fleet.postgres.store import PostgresStore
from edge_agent.fleet.store import StoreDown, StoreRefused
from edge_agent.gallery.sync import Space
from tests.conftest import REPO, find_free_port
from tests.fleet.postgres_server import PostgresServer, _as_nobody
from tests.fleet.postgres_site import run

pytestmark = pytest.mark.filterwarnings(  # asyncpg leaves the socket of a login that TLS refuses
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(autouse=True)
def _no_sockets() -> Iterator[None]:
    yield
    gc.collect()


ACCEPTED = "lacks the extension `vector`"
ROLE = "plant-7.gate-a"


def documented(folder: Path, word: str) -> None:
    """Run the shell block of the documentation that has a word, without what changes the system."""
    blocks = re.findall(r"```sh\n(.*?)```", (REPO / "docs" / "fleet.md").read_text(), re.DOTALL)
    (block,) = (one for one in blocks if word in one and "openssl" in one)
    lines = [line for line in block.split("\n") if not line.startswith("sudo ")]
    subprocess.run(["bash", "-euc", "\n".join(lines)], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def secure() -> Iterator[tuple[PostgresServer, Path]]:
    """A server that admits devices by certificate, and the folder of the certificates."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not programs or shutil.which("openssl") is None:
        pytest.skip("Debian's postgresql or openssl is not installed")
    folder = Path(tempfile.mkdtemp(prefix="edge-agent-tls-"))
    folder.chmod(0o755)
    documented(folder, "-keyout server.key")
    documented(folder, "gate-a.key")
    own = folder / "own"
    own.mkdir()
    server = PostgresServer(programs[-1].parent, own, find_free_port())
    server.hba = (
        "hostssl all administrator 127.0.0.1/32 scram-sha-256",
        "hostssl fleet +edge_agent_device 127.0.0.1/32 cert",
    )
    names = ("server.pem", "server.key", "ca.pem")
    server.settings = {
        "ssl": "on",
        "ssl_cert_file": str(own / "server.pem"),
        "ssl_key_file": str(own / "server.key"),
        "ssl_ca_file": str(own / "ca.pem"),
        "ssl_min_protocol_version": "TLSv1.2",
    }
    try:
        for name in names:
            shutil.copy(folder / name, own / name)
            (own / name).chmod(0o600)
            if _as_nobody():
                shutil.chown(own / name, **_as_nobody())
        if _as_nobody():
            shutil.chown(own, **_as_nobody())
        server.create()
        server.start()
        for statement in (
            "CREATE DATABASE fleet",
            "CREATE ROLE edge_agent_device NOLOGIN",
            f'CREATE ROLE "{ROLE}" LOGIN IN ROLE edge_agent_device',
            'CREATE ROLE "plant-7.yard" LOGIN IN ROLE edge_agent_device',
        ):
            home = {"HOME": str(own)}  # psql looks there for certificates
            server.run("psql", "-Xq", "-c", statement, server.address(), env=home)
        yield server, folder
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def login(secure: tuple[PostgresServer, Path], **more: object) -> Login:
    server, folder = secure
    files = {"ca_file": "ca.pem", "cert_file": "gate-a.pem", "key_file": "gate-a.key"}
    paths = {name: folder / file for name, file in files.items()}
    found = Login(parse_store(f"postgresql://{ROLE}@127.0.0.1:{server.port}/fleet"), None, **paths)
    return replace(found, **more)  # type: ignore[arg-type]


def outcome(one: Login) -> str:
    """What a device is told."""

    async def greet() -> None:
        store = PostgresStore(one, Space("s", 8), "gate-a")
        try:
            await store.hello(0, ())
        finally:
            await store.close()

    with pytest.raises((StoreRefused, StoreDown)) as caught:
        run(greet())
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


@pytest.mark.slow
def test_certificates_as_documented(secure: tuple[PostgresServer, Path], tmp_path: Path) -> None:
    right = login(secure)
    assert ACCEPTED in outcome(right)
    by_name = right.address._replace(host="localhost")
    assert ACCEPTED in outcome(replace(right, address=by_name))

    without = outcome(replace(right, cert_file=None, key_file=None))
    assert "certificate" in without, without
    other_role = right.address._replace(role="plant-7.yard")
    assert "does not admit this role" in outcome(replace(right, address=other_role))

    (tmp_path / "foreign").mkdir()
    documented(tmp_path / "foreign", "-keyout server.key")
    documented(tmp_path / "foreign", "gate-a.key")
    foreign = {
        "cert_file": tmp_path / "foreign" / "gate-a.pem",
        "key_file": tmp_path / "foreign" / "gate-a.key",
    }
    assert "does not trust the certificate of this device" in outcome(login(secure, **foreign))
    other_authority = outcome(login(secure, ca_file=tmp_path / "foreign" / "ca.pem"))
    assert "its certificate is not trusted: fleet.ca_file must hold the authority" in other_authority

    mixed = outcome(login(secure, key_file=tmp_path / "foreign" / "gate-a.key"))
    assert "correct fleet.ca_file, cert_file and key_file" in mixed
    assert "gate-a.pem with " in outcome(login(secure, cert_file=tmp_path / "gate-a.pem"))
    assert fleet_check.certificate(right) == []


@pytest.mark.slow
def test_a_certificate_that_ends_soon_is_found(
    secure: tuple[PostgresServer, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_check, "SOON_S", 900 * 86_400.0)
    (finding,) = fleet_check.certificate(login(secure))
    assert finding.state == "warning"
    assert re.match(r"the server's certificate ends in 82\d day\(s\), on ", finding.found)


def test_a_server_without_tls(site: object) -> None:
    one = site.login("a", ca_file=None)  # type: ignore[attr-defined]
    authority = Path(tempfile.mkdtemp(prefix="edge-agent-tls-")) / "ca.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc",
         "-keyout", "/dev/null", "-out", str(authority), "-subj", "/CN=x"],
        check=True, capture_output=True,
    )  # fmt: skip
    try:
        assert "it does not offer TLS: set ssl = on there" in outcome(replace(one, ca_file=authority))
    finally:
        shutil.rmtree(authority.parent)
