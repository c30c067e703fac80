"""sd_notify against a datagram socket in the service manager's place."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from edge_agent.core.config import SupervisionSettings
from edge_agent.health.systemd import Notifier, Readiness


class Manager:
    """Receives the messages of a service, as systemd does."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address[0] == "@" else address)
        self.heard: list[dict[str, str]] = []
        self._awaited = 0
        """Messages up to the last one that was waited for."""

    def listen(self, seconds: float = 0.0) -> list[dict[str, str]]:
        """Return the received messages; wait a limited time for the first."""
        self._socket.settimeout(seconds or 0.001)
        while True:
            try:
                message = self._socket.recv(4096).decode()
            except TimeoutError:
                return self.heard
            self.heard.append(dict(line.split("=", 1) for line in message.splitlines()))
            self._socket.settimeout(0.001)

    def until(self, word: str, seconds: float = 90.0) -> dict[str, str]:
        """The next message with this word after the last one that was waited for."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.listen(0.2)
            for at in range(self._awaited, len(self.heard)):
                if word in self.heard[at]:
                    self._awaited = at + 1
                    return self.heard[at]
        raise AssertionError(f"waited {seconds} s for {word}; heard {self.heard[self._awaited :]}")

    def count(self, word: str) -> int:
        return sum(word in message for message in self.listen())

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    found = Manager(str(tmp_path / "notify"))
    yield found
    found.close()


def test_every_word(manager: Manager) -> None:
    before = time.monotonic_ns() // 1000
    notifier = Notifier(manager.address)
    notifier.ready("all is\nwell")
    notifier.status("x" * 1000)
    notifier.alive()
    notifier.reloading()
    notifier.stopping()
    notifier.extend(2.5, "builds")
    notifier.close()
    ready, status, alive, reloading, stopping, extend = manager.listen(1)
    assert ready == {"READY": "1", "STATUS": "all is well"}
    assert len(status["STATUS"]) == 300
    assert alive == {"WATCHDOG": "1"}
    assert before <= int(reloading["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    assert reloading["RELOADING"] == stopping["STOPPING"] == "1"
    assert extend == {"EXTEND_TIMEOUT_USEC": "2500000", "STATUS": "builds"}


def test_an_abstract_socket() -> None:
    manager = Manager("@edge-agent-" + secrets.token_hex(8))
    try:
        notifier = Notifier.from_environment({"NOTIFY_SOCKET": manager.address})
        notifier.alive()
        notifier.close()
        assert manager.listen(1) == [{"WATCHDOG": "1"}]
    finally:
        manager.close()


def test_systemds_own_tool_agrees(manager: Manager) -> None:
    """`systemd-notify` is the reference for the format."""
    try:
        subprocess.run(
            ["systemd-notify", "--no-block", "--ready", "--status=fine"],
            env={**os.environ, "NOTIFY_SOCKET": manager.address},
            check=True,
            capture_output=True,
        )
    except FileNotFoundError:
        pytest.skip("systemd-notify is not installed")
    notifier = Notifier(manager.address)
    notifier.ready("fine")
    notifier.close()
    theirs, ours = manager.listen(1)
    assert {key: theirs[key] for key in ours} == ours


def test_status_without_a_listener() -> None:
    notifier = Notifier.from_environment({})
    notifier.ready()
    notifier.alive()
    with notifier.taking_long("nothing", at_most_s=1):
        pass
    assert (notifier.listening, notifier.watchdog_s) == (False, None)


@pytest.mark.parametrize(("ready_after_s", "ready"), [(0.0, True), (1000.0, False)])
def test_an_agent_without_a_source_is_ready_after_a_time(ready_after_s: float, ready: bool) -> None:
    notes: list[str] = []
    settings = SupervisionSettings(ready_after_s=ready_after_s)
    readiness = Readiness(lambda: settings, Notifier.from_environment({}), notes.append)
    readiness.open([])
    readiness.check()
    assert readiness.ready == ready
    assert bool(notes) == ready


def test_a_missing_manager_is_reported_once(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as logs:
        notifier = Notifier(str(tmp_path / "nobody"))
        notifier.alive()
        notifier.alive()
        notifier.close()
        Notifier.from_environment({"NOTIFY_SOCKET": "vsock:2:1234"}).alive()
    assert [line["event"] for line in logs] == ["service_manager_not_reached", "notify_socket_not_usable"]


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdogs_limit(environment: dict[str, str], seconds: float | None) -> None:
    assert Notifier.from_environment({"NOTIFY_SOCKET": "/x", **environment}).watchdog_s == seconds


def test_a_long_start_asks_for_time_again_and_again(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_agent.health.systemd.EXTEND_EVERY_S", 0.01)
    notifier = Notifier(manager.address)
    with notifier.taking_long("builds an engine", at_most_s=30):
        while manager.count("EXTEND_TIMEOUT_USEC") < 3:
            time.sleep(0.01)
    reported = len(manager.listen(0.1))
    time.sleep(0.05)
    assert len(manager.listen(0.1)) == reported
    assert manager.heard[0] == {"EXTEND_TIMEOUT_USEC": "60000000", "STATUS": "builds an engine"}
    with notifier.taking_long("hangs", at_most_s=0.0):
        time.sleep(0.05)
    assert len(manager.listen(0.1)) == reported  # what hangs for ever gets no more time
    notifier.progress("10 %")
    notifier.progress("11 %")
    notifier.close()
    assert [message["STATUS"] for message in manager.listen(0.1)[reported:]] == ["10 %"]
