"""The agent as a process whose wall clock jumps: nobody is erased, no event is lost, no command refused."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_agent.core.timing import parse_time, rfc3339
from tests.agent.test_agent import (
    PEOPLE,
    Listener,
    config,
    events,
    listener,
    pictures,
    put,
    put_all,
    wait_for,
)
from tests.conftest import Mosquitto
from tests.faults import clock_jumps
from tests.shimmed import WallClock

__all__ = ["listener", "pictures"]  # fixtures

Pictures = dict[int, list[bytes]]
YEARS = 10 * 365.25 * 86_400


@pytest.fixture
def wall(tmp_path: Path) -> WallClock:
    return WallClock(tmp_path)


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., Path]:
    """Write a configuration for the folder `crops`."""

    def write(ttl_s: float, broker: str | None = None) -> Path:
        path = config(tmp_path, tmp_path / "crops", once=False, broker=broker)
        more = '\ncommands = ["stats"]\n' if broker else "\n"
        path.write_text(path.read_text().rstrip() + more + f"[gallery]\nttl_hours = {ttl_s / 3600}\n")
        return path

    return write


class Agent:
    """What is known about a running agent from outside."""

    def __init__(self, wall: WallClock, folder: Path) -> None:
        self._wall = wall
        self.state = folder / "state"
        self.events = folder / "events.jsonl"

    def people(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(
            self._wall.run("gallery", "list", "--state", self.state, "--json").stdout
        )
        return found

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._wall.run("status", "--state", self.state, "--json").stdout)
        return found

    def alerts(self) -> list[bool]:
        return [event["data"]["active"] for event in events(self.events, "clock_stepped")]  # type: ignore[index]

    def run(self, path: Path) -> Any:
        return self._wall.running(
            "run", "--config", path, "--events", self.events, log=self.state.parent / "log"
        )


@pytest.fixture
def agent(wall: WallClock, tmp_path: Path) -> Agent:
    return Agent(wall, tmp_path)


@pytest.mark.slow
def test_a_clock_far_ahead_erases_nobody(
    agent: Agent,
    wall: WallClock,
    tmp_path: Path,
    settings: Callable[..., Path],
    pictures: Pictures,
) -> None:
    """Years ahead while the agent runs, and at its start; the material is two years old."""
    put_all(tmp_path / "crops", pictures, start=time.time() - YEARS / 5)
    before = sorted((tmp_path / "crops").iterdir())
    path = settings(3600.0)
    with agent.run(path):
        wait_for("people", lambda: len(events(agent.events, "enrolled")) == PEOPLE)
        for shift in (YEARS, -YEARS):
            known = len(agent.alerts())
            wall.shift(shift)
            wait_for("the alert", lambda known=known: agent.alerts()[known:] == [True])
            status = agent.status()
            assert status["clock"]["state"] == "stepped"
            assert status["clock"]["paused"]
            assert abs(status["clock"]["step_s"] - shift) < 2
            assert status["state"] == "degraded"
            assert 0 < status["uptime_s"] < 300
            assert len(agent.people()) == PEOPLE
            wall.shift(0)
            wait_for("its end", lambda known=known: agent.alerts()[known:] == [True, False])
    wall.shift(YEARS)
    with agent.run(path):
        wait_for("the alert", lambda: agent.alerts() == [True])
        time.sleep(2.0)  # several rounds of expiry
        assert len(agent.people()) == PEOPLE
        assert abs(agent.people()[0]["expires"] - time.time()) < 2 * 3600
        wall.shift(0)
        wait_for("its end", lambda: agent.alerts() == [True, False])
    assert sorted((tmp_path / "crops").iterdir()) == before
    assert len(agent.people()) == PEOPLE


@pytest.mark.slow
def test_expiry_follows_the_time_that_has_passed(
    agent: Agent,
    wall: WallClock,
    tmp_path: Path,
    settings: Callable[..., Path],
    pictures: Pictures,
) -> None:
    """A step pauses it, and what was due in the meantime follows; pictures in the folder stay."""
    put_all(tmp_path / "crops", pictures, start=1000.0)
    before = sorted((tmp_path / "crops").iterdir())
    with agent.run(settings(8.0)):
        wait_for("people", lambda: len(events(agent.events, "enrolled")) == PEOPLE)
        wall.shift(-YEARS)
        began = time.monotonic()
        wait_for("the alert", lambda: agent.alerts() == [True])
        time.sleep(max(0.0, began + 10.0 - time.monotonic()))
        assert len(agent.people()) == PEOPLE
        wall.shift(0)
        wait_for("the expiry", lambda: not agent.people())
    assert sorted((tmp_path / "crops").iterdir()) == before


@pytest.mark.slow
def test_a_start_in_1970_is_rebased_when_the_clock_is_set(
    agent: Agent,
    wall: WallClock,
    tmp_path: Path,
    settings: Callable[..., Path],
    pictures: Pictures,
) -> None:
    shift = -time.time() + 100
    wall.shift(shift)
    (tmp_path / "crops").mkdir()
    with agent.run(settings(3600.0)):
        wait_for("the start", lambda: "started" in (tmp_path / "log").read_text())
        put_all(tmp_path / "crops", pictures, start=time.time() + shift)  # by the same clock
        wait_for("people", lambda: len(events(agent.events, "enrolled")) == PEOPLE)
        assert all(event["data"]["time_uncertain"] for event in events(agent.events))  # type: ignore[index]
        time.sleep(3.0)  # the visit is over
        wall.shift(0)
        wait_for("the new time", lambda: "clock_set" in (tmp_path / "log").read_text())
        time.sleep(1.0)
        people = agent.people()
        assert len(people) == PEOPLE
        assert all(abs(person["last_seen"] - time.time()) < 120 for person in people)
        assert all(abs(person["expires"] - 3600 - time.time()) < 120 for person in people)
        assert agent.status()["clock"]["state"] != "stepped"


def command(listener: Listener, transaction: str) -> None:
    listener.publish(
        "edge/v1/lab/dev1/cmd/stats",
        json.dumps({"transaction": transaction, "issued": rfc3339(time.time())}),
    )


@pytest.mark.slow
def test_a_clock_that_is_set_back_refuses_no_command(
    agent: Agent,
    wall: WallClock,
    settings: Callable[..., Path],
    mosquitto: Mosquitto,
    listener: Listener,
    tmp_path: Path,
) -> None:
    (tmp_path / "crops").mkdir()

    def answers() -> dict[str, str]:
        found = [event["data"] for event in listener.of("result")]
        return {data["transaction"]: data["status"] for data in found}  # type: ignore[index]

    with agent.run(settings(3600.0, mosquitto.url)):
        wait_for("telemetry of a connection", lambda: listener.of("/telemetry"))
        command(listener, "before")
        wait_for("the first answer", lambda: "before" in answers())
        wall.shift(-7200)
        wait_for("the alert", lambda: agent.alerts() == [True])
        assert agent.status()["uptime_s"] > 0
        command(listener, "back")
        wait_for("the answer", lambda: "back" in answers())
        wall.shift(YEARS)
        time.sleep(1.0)
        command(listener, "ahead")
        wait_for("the answer", lambda: "ahead" in answers())
    assert answers() == {"before": "ok", "back": "ok", "ahead": "ok"}


@pytest.mark.slow
def test_events_wait_however_the_clock_jumps(
    agent: Agent,
    wall: WallClock,
    tmp_path: Path,
    settings: Callable[..., Path],
    mosquitto: Mosquitto,
    pictures: Pictures,
) -> None:
    mosquitto.stop()
    put_all(tmp_path / "crops", pictures)
    path = settings(3600.0, mosquitto.url)
    with agent.run(path) as process:
        wait_for("people", lambda: len(events(agent.events, "enrolled")) == PEOPLE)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    waiting = {event["id"] for event in events(agent.events)}
    for shift in (10 * 86_400, -YEARS, YEARS):
        wall.shift(shift)
        with agent.run(path):
            wait_for("the alert", lambda: True in agent.alerts())
            time.sleep(2.0)
        waiting |= {event["id"] for event in events(agent.events)}
    wall.shift(0)
    mosquitto.start()
    listener = Listener(mosquitto.port)
    try:
        with agent.run(path):
            put(tmp_path / "crops", pictures, 2000.0, {21: 1})
            wait_for("the last event", lambda: listener.of("identity/matched"))
    finally:
        listener.close()
    numbered = [event for event in listener.of("") if "seq" in event]
    assert {event["id"] for event in numbered} >= waiting
    assert not listener.of("gap")
    assert all(parse_time(str(event["time"])) < time.time() + 60 for event in numbered)


@pytest.mark.slow
def test_nothing_is_lost_in_an_hour_of_jumps(tmp_path: Path) -> None:
    result = clock_jumps.hour(tmp_path, 3600, seed=7)
    assert result["ok"], result


@pytest.mark.slow
def test_nothing_is_lost_by_an_agent_under_jumps_and_kills(tmp_path: Path) -> None:
    result = clock_jumps.agent(tmp_path, 45, seed=7)
    assert result["ok"], result
