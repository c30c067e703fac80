"""A server whose disk is full: devices say so in one line, keep everything, and send it afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.gallery import Gallery
from tests.agent.test_agent import config, pictures, put_all, running, wait_for
from tests.conftest import Mosquitto, find_free_port
from tests.fleet.postgres_server import PostgresServer, binaries
from tests.fleet.server_database import Database
from tests.fleet.test_fleet_commands import command
from tests.fleet.test_fleet_processes import edge_agent

__all__ = ["pictures"]  # a fixture

PEOPLE = 400
FULL = "its disk is full: free space there, or enlarge it (SQLSTATE 53100)"


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 96 MB of its own, in memory; a test is skipped where none can be mounted."""
    folder = Path(tempfile.mkdtemp(prefix="edge-agent-disk-"))
    mounted = os.geteuid() == 0 and shutil.which("mount") is not None
    if mounted:
        words = ["mount", "-t", "tmpfs", "-o", "size=96m,mode=0755", "tmpfs", folder]
        mounted = subprocess.run(words, capture_output=True, check=False).returncode == 0
    try:
        if not mounted:
            pytest.skip("no file system can be mounted here")
        yield folder
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", folder], check=True)
        folder.rmdir()


@pytest.fixture
def server(small_disk: Path) -> Iterator[PostgresServer]:
    """A server with its tables on the small disk; its write-ahead log is on another one."""
    log = Path(tempfile.mkdtemp(prefix="edge-agent-wal-"))
    for folder in (small_disk, log):
        shutil.chown(folder, "nobody", "nogroup")
    one = PostgresServer(binaries(), small_disk, find_free_port())
    try:
        one.create(f"--waldir={log / 'wal'}")
        one.start()
        yield one
    finally:
        one.stop()
        shutil.rmtree(log)


@contextlib.contextmanager
def full(disk: Path) -> Iterator[None]:
    """No byte is left on the disk inside the block."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        descriptor, block = file.fileno(), 1 << 20
        while block:
            try:
                os.write(descriptor, b"\0" * block)
            except OSError:
                block //= 2
    try:
        yield
    finally:
        filler.unlink()


def enrol(state: Path, people: int) -> None:
    """Add people to the gallery of a running agent, as a command does."""
    random = np.random.default_rng(1)
    with Gallery.existing(state / "gallery.db") as gallery:
        for number in range(people):
            drawn = random.normal(size=(4, gallery.dimension)).astype(np.float32)
            vectors = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
            gallery.enrol(
                vectors, np.full(4, 0.5, np.float32), origin=f"p{number}", camera="door", time=time.time()
            )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_full_disk_of_the_server(
    tmp_path: Path,
    pictures: dict[int, list[bytes]],
    mosquitto: Mosquitto,
    server: PostgresServer,
    small_disk: Path,
) -> None:
    crops = tmp_path / "crops"
    put_all(crops, pictures)
    file = config(tmp_path, crops, once=False, broker=mosquitto.url)
    file.chmod(0o600)
    database = Database(server, "postgres")
    admin, answer = ("--store", database.address, "--config", file), f"{database.password}\n"
    edge_agent("fleet", "init", *admin, answer=answer)
    edge_agent("fleet", "join", "dev1", *admin, "--output", tmp_path, answer=answer)
    edge_agent("fleet", "join", "--from", tmp_path / "dev1.fleet.toml", "--config", file)

    def agent_state() -> dict[str, Any]:
        """Return its state; empty where it is too busy to answer."""
        done = subprocess_json("status", file)
        return done["agent"] or {}

    with running("run", "--config", file, log=tmp_path / "log"):
        wait_for("the exchange", lambda: agent_state().get("exchanged"), 60)
        with full(small_disk):
            enrol(tmp_path / "state", PEOPLE)
            wait_for("the full disk", lambda: FULL in (agent_state().get("problem") or ""), 60)
            refused = edge_agent("fleet", "sync", "--config", file, code=1)
            assert FULL in one_line(refused)
            assert "change(s) are kept and sent later" in refused
            shown = edge_agent("status", "--config", file)
            assert FULL in " ".join(shown.split()), shown
            wait_for("what is kept", lambda: agent_state().get("pending", 0) >= PEOPLE, 60)
            doctor = json.loads(edge_agent("doctor", "--json", "--config", file))
            (found,) = [one for one in doctor["findings"] if one["name"] == "fleet"]
            assert found["state"] in ("ok", "warning")
            assert found["state"] == "ok" or FULL in found["found"]
        edge_agent("fleet", "sync", "--config", file)
        state = subprocess_json("status", file)
        assert state["agent"]["pending"] == 0
        with Gallery.existing(tmp_path / "state" / "gallery.db") as gallery:
            assert state["site"]["people"] == len(gallery) >= PEOPLE
    log = [line for line in (tmp_path / "log").read_text().splitlines() if "53100" in line]
    assert len(log) == 1, "the loss is logged once"


def subprocess_json(name: str, file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(command(name, "--json", "--config", file).stdout)
    return found


def one_line(text: str) -> str:
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    return lines[0]
