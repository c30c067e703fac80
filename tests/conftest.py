"""Shared fixtures: the real material where it is present, free ports, real brokers."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
import structlog

if TYPE_CHECKING:
    from tests.kserve.environment import Server

# Images of containers turn bytecode off. Each worker would then rewrite the assertions of all tests, and each
# of some hundred started programs compile the package.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# The same examples every time: a change must not fail for what an earlier one did. Search for new ones with
# `pytest --hypothesis-profile search`.
hypothesis.settings.register_profile("repeat", derandomize=True, deadline=None, database=None)
hypothesis.settings.register_profile("search", deadline=None)
hypothesis.settings.load_profile("repeat")

REPO = Path(__file__).resolve().parent.parent
SHARED = REPO.parent / "shared"


def _need(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"real material not present: {path.name} (looked in {path.parent})")
    return path


@pytest.fixture(scope="session")
def vtest_video() -> Path:
    """PETS09-S2L1 View 001, real pedestrians."""
    return _need(SHARED / "data" / "vtest.avi")


@pytest.fixture(scope="session")
def vtest_truth() -> Path:
    """Ground truth of `vtest_video` in MOTChallenge format; ids are visits, not people."""
    return _need(SHARED / "data" / "vtest_gt.txt")


@pytest.fixture(scope="session")
def pets_market() -> Path:
    """A small real set in Market-1501 layout."""
    return _need(SHARED / "data" / "pets_market_visits")


@pytest.fixture(scope="session")
def osnet_onnx() -> Path:
    """OSNet x0.25, profile `imagenet`, 512 numbers."""
    return _need(SHARED / "models" / "osnet_x0_25_msmt17.onnx")


@pytest.fixture(scope="session")
def omz_onnx() -> Path:
    """Open Model Zoo 0267, profile `openvino-raw`, 256 numbers."""
    return _need(SHARED / "models" / "person-reidentification-retail-0267_gnfix.onnx")


@pytest.fixture(scope="session")
def yolox_onnx() -> Path:
    """YOLOX nano, 416 x 416."""
    return _need(SHARED / "models" / "yolox_nano.onnx")


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A command that a test runs in this process may have sent the logs to a stream that is closed since."""
    yield
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def no_installed_networks(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is installed on this machine must not change the default detector."""
    nowhere = tmp_path_factory.getbasetemp() / "nothing-installed"
    monkeypatch.setattr("edge_agent.core.installed.SYSTEM_FOLDER", nowhere / "models")
    monkeypatch.setattr("edge_agent.core.installed.DEFAULT_STATE", nowhere / "state")


@pytest.fixture
def free_port() -> int:
    """A free TCP port on 127.0.0.1."""
    return find_free_port()


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def started(
    words: Sequence[object], *, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program that writes to `log`; it is killed where it still runs at the end of the block."""
    with log.open("ab") as out:
        process = subprocess.Popen(list(map(str, words)), stdout=out, stderr=out, env=environment)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(10)


@pytest.fixture(scope="module")
def start_triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """`start_triton(REPOSITORY, *OPTIONS)`: a real Triton that serves a model repository."""
    from tests.kserve import environment

    with contextlib.ExitStack() as stack:

        def start(repository: Path, *options: str) -> Server:
            folder = tmp_path_factory.mktemp("triton")
            try:
                server = environment.triton(repository, folder, *options)
            except environment.NotHereError as problem:
                pytest.skip(str(problem))
            return stack.enter_context(environment.running(server))

        yield start


@dataclass
class Mosquitto:
    """A real mosquitto on loopback, restartable on the same port and data."""

    binary: str
    config: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> None:
        log = self.config.with_suffix(".log").open("ab")
        self.process = subprocess.Popen([self.binary, "-c", str(self.config)], stdout=log, stderr=log)
        log.close()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 0.2):
                return
            time.sleep(0.05)
        raise RuntimeError(f"mosquitto did not start: {self.config.with_suffix('.log').read_text()}")

    def stop(self, *, kill: bool = False) -> None:
        if self.process is None:
            return
        self.process.kill() if kill else self.process.terminate()
        self.process.wait(10)
        self.process = None


def mosquitto_binary() -> str:
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip("mosquitto is not installed (apt-get install mosquitto)")
    return found


@pytest.fixture
def mosquitto(tmp_path: Path, free_port: int) -> Iterator[Mosquitto]:
    """A running mosquitto with persistence, anonymous, on 127.0.0.1."""
    binary = mosquitto_binary()
    data = tmp_path / "mosquitto"
    data.mkdir()
    config = data / "mosquitto.conf"
    config.write_text(
        f"listener {free_port} 127.0.0.1\nallow_anonymous true\npersistence true\n"
        f"persistence_location {data}/\nautosave_interval 1\nautosave_on_changes true\nuser root\n"
    )
    broker = Mosquitto(binary, config, free_port)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()
