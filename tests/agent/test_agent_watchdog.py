"""The agent under a service manager: ready, alive, stuck in real ways, reloaded, stopped."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from edge_agent.core.errors import InputError
from edge_agent.health.inquiry import SOCKET_NAME, read_status
from tests.agent.test_agent import (
    Listener,
    command,
    config,
    events,
    listener,
    pictures,
    put,
    put_all,
    run,
    running,
    wait_for,
)
from tests.agent.test_agent_faults import plain, write_video
from tests.conftest import Mosquitto, started
from tests.health.test_notify import Manager, manager

__all__ = ["listener", "manager", "pictures"]  # fixtures

WATCHDOG_S = 1.5
STUCK_S = 3.0

F_SETPIPE_SZ = 1031


HANGS = """
import os, time
import edge_agent.source.file as file
examine = file.examine

def hanging(path):
    while not os.path.exists(os.path.join(os.path.dirname(__file__), "go on")):
        time.sleep(0.05)
    return examine(path)

file.examine = hanging
"""
"""A `sitecustomize` in which reading video files hangs, as in a driver, until `go on` is next to it."""


def hanging_files(folder: Path) -> dict[str, str]:
    """The environment of an agent whose video files hang."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(HANGS)
    return {"PYTHONPATH": str(folder)}


def service(
    manager: Manager,
    *arguments: object,
    log: Path,
    stuck_after_s: float = 60.0,
    environment: dict[str, str] | None = None,
) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """The agent as systemd would start it."""
    environment = {
        **os.environ,
        **(environment or {}),
        "NOTIFY_SOCKET": manager.address,
        "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6)),
        "EDGE_AGENT__SUPERVISION__STUCK_AFTER_S": str(stuck_after_s),
        "EDGE_AGENT__SUPERVISION__READY_AFTER_S": "0.2",
    }
    return started(command(*arguments), log=log, environment=environment)


def logged(log: Path, event: str) -> list[dict[str, object]]:
    lines = [line for line in log.read_text().splitlines() if line.startswith("{")]
    return [found for found in map(json.loads, lines) if found["event"] == event]


def starved(manager: Manager) -> bool:
    """Whether the watchdog got nothing for longer than its limit."""
    fed = manager.count("WATCHDOG")
    time.sleep(WATCHDOG_S + 0.3)
    return manager.count("WATCHDOG") == fed


def test_ready_alive_reloaded_and_stopped(
    tmp_path: Path, pictures: dict[int, list[bytes]], manager: Manager
) -> None:
    crops = tmp_path / "crops"
    put_all(crops, pictures)
    path = config(tmp_path, crops, once=False)
    path.write_text(path.read_text() + "[supervision]\nmemory_mb = 20\n")
    reported, log = tmp_path / "events.jsonl", tmp_path / "log"
    with service(manager, "run", "--config", path, "--events", reported, log=log) as process:
        begun = manager.until("EXTEND_TIMEOUT_USEC")
        assert "network" in begun["STATUS"]
        manager.until("READY")
        manager.until("WATCHDOG")
        path.write_text(path.read_text() + "[identify]\nmargin = 0.03\n")
        process.send_signal(signal.SIGHUP)
        manager.until("RELOADING")
        manager.until("READY")
        wait_for("the alert", lambda: manager.listen() and events(reported, "memory_growth"))
        path.write_text("nonsense")
        process.send_signal(signal.SIGHUP)
        manager.until("RELOADING")
        manager.until("READY")  # refused: the old ones stay, and the service is no longer reloading
        process.send_signal(signal.SIGTERM)
        manager.until("STOPPING")
        assert process.wait(30) == 0
    words = [
        word for message in manager.listen() for word in message if word in {"READY", "RELOADING", "STOPPING"}
    ]
    assert words == ["READY", "RELOADING", "READY", "RELOADING", "READY", "STOPPING"]
    assert not logged(log, "stage_stuck")
    (alert,) = events(reported, "memory_growth")
    assert "more than 20 MB" in alert["data"]["message"]  # type: ignore[index]


@pytest.mark.slow
def test_a_short_run_that_ends_by_itself_was_ready(
    tmp_path: Path, pictures: dict[int, list[bytes]], manager: Manager
) -> None:
    crops = tmp_path / "crops"
    put_all(crops, pictures)
    with service(manager, "run", "--config", config(tmp_path, crops), log=tmp_path / "log") as process:
        manager.until("STOPPING", 60)  # listening, since the socket holds ten messages
        assert process.wait(30) == 0
    words = [word for message in manager.listen() for word in message if word in {"READY", "STOPPING"}]
    assert words == ["READY", "STOPPING"]


@pytest.mark.slow
def test_a_source_that_hangs_is_named_and_the_watchdog_starves(tmp_path: Path, manager: Manager) -> None:
    reported, log = tmp_path / "events.jsonl", tmp_path / "log"
    clip, hangs = write_video(tmp_path / "clip.avi", 20), hanging_files(tmp_path / "hangs")
    options = ("run", "--source", clip, *plain(tmp_path / "state"), "--events", reported)
    with service(manager, *options, log=log, stuck_after_s=STUCK_S, environment=hangs) as process:
        ready = manager.until("READY")
        assert "no source is up" in ready["STATUS"]
        wait_for("the alert", lambda: manager.listen() and events(reported, "stage_stuck"))
        assert starved(manager)
        assert process.poll() is None
    (line,) = logged(log, "stage_stuck")
    assert line["stage"] == "source:clip"
    assert any("source/file.py" in place for place in line["where"])  # type: ignore[attr-defined]
    (alert,) = events(reported, "stage_stuck")
    assert alert["data"]["details"] == {"stages": "source:clip"}  # type: ignore[index]
    # It was killed while a source was stuck, and the next run reports it.
    options = ("run", "--source", clip, *plain(tmp_path / "state"), "--events", tmp_path / "later.jsonl")
    with service(manager, *options, log=log) as process:
        assert process.wait(60) == 0
    (told_later,) = events(tmp_path / "later.jsonl", "run_crashed")
    assert told_later["data"]["details"]["how"] == "stuck"  # type: ignore[index]
    assert "source:clip is stuck" in told_later["data"]["message"]  # type: ignore[index]


@pytest.mark.slow
def test_one_hanging_source_among_others_is_named_and_the_rest_goes_on(
    tmp_path: Path, pictures: dict[int, list[bytes]], manager: Manager
) -> None:
    reported, log = tmp_path / "events.jsonl", tmp_path / "log"
    clip, hangs = write_video(tmp_path / "clip.avi", 5), hanging_files(tmp_path / "hangs")
    crops = tmp_path / "crops"
    crops.mkdir()
    path = config(tmp_path, crops, once=False)
    path.write_text(path.read_text() + f'[[sources]]\nurl = "{clip}"\nrealtime = true\n')
    options = ("--config", path, "--events", reported)
    with service(manager, "run", *options, log=log, stuck_after_s=STUCK_S, environment=hangs) as process:
        wait_for("the alert", lambda: manager.listen() and events(reported, "stage_stuck"))
        put_all(crops, pictures)
        wait_for("people to be enrolled", lambda: len(events(reported, "enrolled")) >= 3)
        assert not starved(manager)
        (tmp_path / "hangs" / "go on").touch()
        wait_for("its end", lambda: len(events(reported, "stage_stuck")) >= 2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert [event["data"]["active"] for event in events(reported, "stage_stuck")] == [True, False]  # type: ignore[index]


@pytest.mark.slow
def test_a_driving_thread_that_hangs_starves_the_watchdog(
    tmp_path: Path,
    manager: Manager,
    mosquitto: Mosquitto,
    listener: Listener,
) -> None:
    """The reader of the rows stops: the pipe fills, and the write blocks."""
    rows, log = tmp_path / "rows.txt", tmp_path / "log"
    video = write_video(tmp_path / "long.avi", 400)
    os.mkfifo(rows)
    reader = os.open(rows, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, F_SETPIPE_SZ, 4096)
    options = [*plain(tmp_path / "state")]
    options[options.index("none", 2)] = mosquitto.url
    try:
        options += ["--mot", rows]
        with service(manager, "run", "--source", video, *options, log=log, stuck_after_s=STUCK_S):
            wait_for("the alert", lambda: manager.listen() and listener.of("alert/stage_stuck"))
            wait_for("the status", lambda: "pipeline" in str(listener.of("/status")))
            assert starved(manager)
    finally:
        os.close(reader)
    (line,) = logged(log, "stage_stuck")
    assert line["stage"] == "pipeline"
    assert "hand over" in str(line["what"])
    assert any("mot.py" in place for place in line["where"])  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_stopped_process_feeds_nothing(
    tmp_path: Path, pictures: dict[int, list[bytes]], manager: Manager
) -> None:
    crops = tmp_path / "crops"
    crops.mkdir()
    with service(
        manager, "run", "--config", config(tmp_path, crops, once=False), log=tmp_path / "log"
    ) as process:
        manager.until("READY")
        manager.until("WATCHDOG")
        process.send_signal(signal.SIGSTOP)
        manager.listen(0.5)
        assert starved(manager)
        process.send_signal(signal.SIGCONT)
        manager.until("WATCHDOG")


@pytest.mark.slow
def test_a_broker_that_hangs_is_a_stated_reason(
    tmp_path: Path, pictures: dict[int, list[bytes]], manager: Manager, mosquitto: Mosquitto
) -> None:
    crops, log = tmp_path / "crops", tmp_path / "log"
    put_all(crops, pictures)
    path = config(tmp_path, crops, once=False, broker=mosquitto.url)
    with service(manager, "run", "--config", path, log=log) as process:
        manager.until("READY")
        assert mosquitto.process is not None
        mosquitto.process.send_signal(signal.SIGSTOP)
        try:
            put(crops, pictures, 2000.0, {10 + p: p for p in range(5)})
            manager.listen(0.5)
            assert not starved(manager)
        finally:
            mosquitto.process.send_signal(signal.SIGCONT)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert not logged(log, "stage_stuck")


@pytest.mark.slow
def test_sigabrt_writes_the_stacks_of_all_threads(tmp_path: Path, manager: Manager) -> None:
    """systemd sends SIGABRT when the watchdog expires."""
    crops, log = tmp_path / "crops", tmp_path / "log"
    crops.mkdir()
    with service(manager, "run", "--config", config(tmp_path, crops, once=False), log=log) as process:
        manager.until("READY")
        process.send_signal(signal.SIGABRT)
        assert process.wait(30) == -signal.SIGABRT
    assert "pipeline.py" in log.read_text()


def asked(state: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command("status", "--state", state, *options), capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.slow
def test_status_while_it_runs_and_when_it_does_not(
    tmp_path: Path, pictures: dict[int, list[bytes]], mosquitto: Mosquitto
) -> None:
    crops, state = tmp_path / "crops", tmp_path / "state"
    put_all(crops, pictures)
    path = config(tmp_path, crops, once=False, broker=mosquitto.url)
    with running("run", "--config", path, log=tmp_path / "log") as process:

        def status() -> dict[str, Any]:
            with contextlib.suppress(InputError):
                return read_status(state / SOCKET_NAME)
            return {}

        wait_for("people", lambda: status().get("ready") and (status()["telemetry"] or {}).get("identities"))
        found = status()
        assert (found["pid"], found["state"], found["ready"]) == (process.pid, "online", True)
        stages = {stage["name"]: stage["state"] for stage in found["stages"]}
        assert list(stages) == ["pipeline", "delivery", "telemetry", "governor", "source:yard"]
        assert "stuck" not in stages.values()
        assert found["sources"][0]["state"] == "online"
        assert found["delivery"] == {"connection": "connected", "problem": None}
        assert found["starts"]["former"] == []
        text = asked(state).stdout
        assert text.startswith("online\n")
        for word in ("source:yard", "connected", f"process {process.pid}", "5 known"):
            assert word in text
        again = run("run", "--config", path)
        assert again.returncode == 1
        assert f"in use by another edge-agent (process {process.pid})" in again.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    done = asked(state)
    assert done.returncode == 1
    assert f"no agent runs on {state}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_crash_loop_is_slowed_and_reported(
    tmp_path: Path, pictures: dict[int, list[bytes]], manager: Manager
) -> None:
    crops, reported, log = tmp_path / "crops", tmp_path / "events.jsonl", tmp_path / "log"
    put_all(crops, pictures)
    path = config(tmp_path, crops, once=False)
    path.write_text(path.read_text() + "[supervision]\ncrashes = 1\ncrash_window_min = 5\n")
    with service(manager, "run", "--config", path, log=log) as process:
        manager.until("READY")
        process.kill()
    with service(manager, "run", "--config", path, "--events", reported, log=log) as process:
        wait_for("the brake", lambda: "crash loop" in asked(tmp_path / "state").stdout)
        assert "1 runs within 5 min crashed: killed" in asked(tmp_path / "state").stdout
        waits = manager.until("EXTEND_TIMEOUT_USEC")
        assert "waiting 15 s" in waits["STATUS"]
        process.send_signal(signal.SIGTERM)  # during the wait
        assert process.wait(30) == 0
    starts = json.loads((tmp_path / "state" / "starts.json").read_text())["runs"]
    assert [run["how"] for run in starts] == ["killed", "stopped"]
    put(crops, pictures, 2000.0, {10 + p: p for p in range(5)})
    with service(manager, "run", "--config", path, "--events", reported, log=log) as process:
        wait_for("people", lambda: manager.listen() and len(events(reported, "matched")) >= 1)
        assert "degraded: 1 runs within 5 min" in asked(tmp_path / "state").stdout
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert len(events(reported, "crash_loop")) == 1
    assert not events(reported, "run_crashed")  # the run before was stopped
