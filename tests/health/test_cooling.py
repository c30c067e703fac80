"""The governor in the running agent: a hot board, and its report in every output."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_agent.agent.daemon import Agent
from edge_agent.agent.outputs import Outputs
from edge_agent.core.config import GovernorSettings, Settings, TelemetrySettings
from edge_agent.core.events import Event
from edge_agent.core.loading import load
from edge_agent.core.structures import Load
from edge_agent.health.cooling import Cooling
from edge_agent.health.governor import ladder
from edge_agent.health.inquiry import SOCKET_NAME, read_status
from edge_agent.health.telemetry import Telemetry
from tests.agent.test_agent import events, wait_for
from tests.agent.test_agent_faults import write_video
from tests.health.test_telemetry import plant
from tests.source.test_source_stream import serving

RUNGS = ladder([("a", 0), ("b", 5)], max_batch=64)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Minutes become tenths of a second."""
    monkeypatch.setattr("edge_agent.health.cooling.CHECK_INTERVAL_S", 0.02)
    monkeypatch.setattr("edge_agent.health.governor.HURRY_S", 0.1)
    monkeypatch.setattr("edge_agent.health.governor.RECOVER_S", 0.1)
    monkeypatch.setattr("edge_agent.health.governor.TRIAL_S", 0.0)
    monkeypatch.setattr("edge_agent.health.governor.BLIND_S", 0.2)


class Board:
    """A recorded AGX Orin whose heat the test sets."""

    def __init__(self, root: Path) -> None:
        self.root = plant("agx-orin-jetpack6", root)
        self.set(50.0)

    def set(self, degrees: float | None) -> None:
        for zone in self.root.glob("sys/class/thermal/thermal_zone*/temp"):
            hidden = zone.with_name(".temp")
            hidden.write_text("" if degrees is None else f"{degrees * 1000:.0f}\n")
            hidden.replace(zone)


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hurried: None) -> Board:
    found = Board(tmp_path / "board")

    def telemetry(settings: TelemetrySettings, disk: Path) -> Telemetry:
        return Telemetry(settings, disk, root=found.root)

    monkeypatch.setattr("edge_agent.agent.stages.Telemetry", telemetry)
    return found


@contextlib.contextmanager
def agent(settings: Settings, reported: Path) -> Iterator[Callable[[], dict[str, Any]]]:
    """A running agent; gives its status."""
    stop, faults = threading.Event(), []

    def run() -> None:
        try:
            Agent(settings, Outputs(reported)).run(stop)
        except Exception as problem:
            faults.append(problem)

    thread = threading.Thread(target=run)
    thread.start()
    socket = settings.state_dir / SOCKET_NAME
    try:
        wait_for("the socket", socket.exists)
        yield lambda: read_status(socket)
    finally:
        stop.set()
        thread.join(60)
    assert faults == []


def configured(tmp_path: Path, text: str) -> Settings:
    path = tmp_path / "config.toml"
    path.write_text(
        f'state_dir = "{tmp_path / "state"}"\n{text}\n[detector]\nkind = "none"\n'
        '[engine]\nmodel = "colour-stripes"\nthreads = 1\n[telemetry]\ninterval_s = 0.2\njtop = false\n'
    )
    return load(path)


def governed(status: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    return status().get("governor") or {}


def test_a_hot_board_is_worked_less_and_later_as_before(tmp_path: Path, board: Board) -> None:
    video, reported = write_video(tmp_path / "clip.avi", 900), tmp_path / "events.jsonl"
    settings = configured(tmp_path, f'[[sources]]\nurl = "{video}"\nrealtime = true\n')
    with agent(settings, reported) as status:
        wait_for("the first look", lambda: governed(status).get("state") == "watching")
        assert governed(status)["limit_c"] == 99.0
        board.set(98.5)
        wait_for("the last step", lambda: governed(status)["state"] == "exhausted")
        assert governed(status)["does"] == "people are detected in every fourth frame"
        wait_for("less work", lambda: (status()["telemetry"]["dropped"].get("skipped:clip") or 0) > 3)
        found = status()
        assert (found["state"], found["telemetry"]["governor_step"]) == ("degraded", 6)
        assert "load reduced because of heat" in found["reason"]
        assert found["telemetry"]["governor_state"] == "exhausted"
        assert found["telemetry"]["limits_c"]["gpu"] == 99.0
        assert found["telemetry"]["throttle_reasons"] == ["devfreq-17000000.gpu", "gpu-throttle-alert"]
        board.set(60.0)
        wait_for("the full load", lambda: governed(status)["step"] == 0)
        wait_for("the end of it", lambda: status()["state"] == "online")
    assert events(reported, "thermal_throttle")[0]["data"]["details"]["reasons"].startswith("devfreq")  # type: ignore[index]
    alerts: list[Any] = [event["data"] for event in events(reported, "governor")]
    steps = [alert["details"]["step"] for alert in alerts]
    assert steps[0] in {1, 2}
    assert steps[-1] == 0
    assert max(steps) == 6
    assert [alert["active"] for alert in alerts] == [True] * (len(alerts) - 1) + [False]
    assert "critical" in {alert["severity"] for alert in alerts}


def test_a_governor_that_is_off_or_without_sensors_reports_it(tmp_path: Path, board: Board) -> None:
    board.set(None)
    video, reported = write_video(tmp_path / "clip.avi", 300), tmp_path / "events.jsonl"
    sources = f'[[sources]]\nurl = "{video}"\nrealtime = true\n'
    with agent(configured(tmp_path, sources), reported) as status:
        wait_for("the first look", lambda: governed(status).get("state") == "blind")
        assert governed(status)["reason"] == "no thermal zone has a known temperature"
        assert status()["state"] == "online"
    assert events(reported, "governor") == []  # auto: nobody was promised one
    with agent(configured(tmp_path, f'{sources}[governor]\nenabled = "on"\n'), reported) as status:
        wait_for("the alert", lambda: events(reported, "governor"))
    with agent(configured(tmp_path, f'{sources}[governor]\nenabled = "off"\n'), reported) as status:
        board.set(99.0)
        wait_for("the first look", lambda: governed(status).get("state") == "off")
        assert governed(status)["step"] == 0


class Shutter:
    """A stand-in for a camera."""

    def __init__(self, camera: str) -> None:
        self.camera = camera
        self.open = True

    def close(self, reason: str) -> None:
        self.open = False

    def reopen(self) -> None:
        self.open = True


def test_switching_it_off_opens_everything_again(hurried: None) -> None:
    chosen = [GovernorSettings()]
    applied: list[Load] = []
    cameras = [Shutter("a"), Shutter("b")]
    published: list[Event] = []
    notes: dict[str, str] = {}
    with Cooling(
        settings=lambda: chosen[0],
        heat=lambda: ({"gpu": 98.9}, {"gpu": 99.0}),
        rungs=RUNGS,
        cameras=cameras,
        apply=applied.append,
        publish=published.append,
        note=notes.__setitem__,
        label=time.time,
    ) as cooling:
        wait_for("the last step", lambda: cooling.verdict.state == "exhausted")
        assert [camera.open for camera in cameras] == [False, True]
        assert notes["heat"] == "load reduced because of heat: camera a is closed"
        chosen[0] = GovernorSettings(enabled="off")
        wait_for("the end", lambda: cooling.verdict.state == "off" and notes["heat"] == "")
        assert [camera.open for camera in cameras] == [True, True]
    assert applied[-1] == Load()
    assert published[-1].data.active is False


@pytest.mark.slow
def test_cameras_are_closed_by_priority_and_opened_again(tmp_path: Path, board: Board) -> None:
    reported = tmp_path / "events.jsonl"
    with serving(
        "--mount", "/a", "--mount", "/b", "--width", "64", "--height", "160", "--fps", "5"
    ) as server:
        cameras = "".join(
            f'[[sources]]\nid = "{name}"\nurl = "{server.url("/" + name)}"\npriority = {priority}\n'
            for name, priority in (("a", 3), ("b", 0))
        )
        with agent(configured(tmp_path, cameras), reported) as status:

            def states() -> dict[str, str]:
                return {source["camera"]: source["state"] for source in status().get("sources", ())}

            wait_for("both", lambda: states() == {"a": "online", "b": "online"})
            board.set(98.5)
            wait_for("b to close", lambda: states() == {"a": "online", "b": "disabled"})
            assert governed(status)["does"] == "camera b is closed"
            wait_for(
                "no frames of b",
                lambda: (
                    status()["telemetry"]["frames_per_s"].get("b") == 0.0
                    and status()["telemetry"]["frames_per_s"]["a"] > 0
                ),
            )
            board.set(60.0)
            wait_for("both", lambda: states() == {"a": "online", "b": "online"})
            wait_for("frames of b", lambda: status()["telemetry"]["frames_per_s"]["b"] > 0)
    assert json.loads(reported.read_text().splitlines()[-1])["type"].startswith("edge.")
