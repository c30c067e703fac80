"""Stuck stages, crash loops, memory, and the socket that reports them."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.core.clock import CLOCK_FILE, Clock
from edge_agent.core.config import Settings, SupervisionSettings
from edge_agent.core.errors import (
    ConfigError,
    EdgeAgentError,
    EngineError,
    InputError,
    SourceError,
    SpaceMismatch,
    StorageError,
)
from edge_agent.core.heartbeat import Heartbeat, HeartbeatState
from edge_agent.health.inquiry import StatusServer, read_status
from edge_agent.health.memory import BUCKET_S, WARM_UP, WINDOW, MemoryWatch, control_group_limit
from edge_agent.health.starts import CRASHES, KEPT, Starts, pause_s
from edge_agent.health.supervisor import Supervisor
from edge_agent.health.systemd import Notifier
from edge_agent.health.watchdog import Stage, Watchdog
from tests.health.test_notify import Manager, manager

__all__ = ["manager"]  # a fixture

# ---- stages


def stage(name: str, age: float, group: str = "", *, vital: bool = True, inactive: bool = False) -> Stage:
    return Stage(
        name,
        lambda: HeartbeatState(time.monotonic() - age, "work"),
        lambda: 10.0,
        group or name,
        vital=vital,
        inactive=lambda: inactive,
    )


def look(*stages: Stage) -> tuple[bool, dict[str, str]]:
    """Whether the watchdog is fed, and which stages are reported as stuck."""
    reported: list[dict[str, str]] = [{}]
    watchdog = Watchdog(Notifier(), reported.append, lambda: None, stages)
    with structlog.testing.capture_logs():
        watchdog.check()
    return watchdog.fed, reported[-1]


def test_all_stages_make_progress() -> None:
    assert look(stage("a", 1), stage("b", 9)) == (True, {})
    assert look() == (True, {})


def test_one_stuck_stage_starves_the_watchdog_and_is_named() -> None:
    fed, stuck = look(stage("a", 1), stage("b", 11.4))
    assert not fed
    assert stuck == {"b": "b is stuck in work for 11 s (limit 10 s)"}


@pytest.mark.parametrize(
    ("stages", "fed"),
    [
        ([stage("x", 11, "s"), stage("y", 1, "s")], True),  # one camera of two
        ([stage("x", 11, "s"), stage("y", 11, "s")], False),
        ([stage("x", 11, "s"), stage("y", 1, "s", inactive=True)], False),  # the other is away: nothing comes
        ([stage("x", 11, "s", inactive=True)], True),
        ([stage("x", 11, vital=False)], True),
    ],
)
def test_groups(stages: list[Stage], fed: bool) -> None:
    assert look(*stages)[0] is fed


def test_an_idle_stage_must_report_again() -> None:
    heartbeat = Heartbeat()
    heartbeat.idle("nothing to do")
    idle = Stage("a", lambda: heartbeat.latest, lambda: 0.05, "a")
    watchdog = Watchdog(Notifier(), lambda _: None, lambda: None, [idle])
    assert [(s.state, s.doing) for s in watchdog.states()] == [("idle", "nothing to do")]
    time.sleep(0.1)
    assert watchdog.states()[0].state == "stuck"
    heartbeat.working("work")
    assert [(s.state, s.doing) for s in watchdog.states()] == [("working", "work")]


def test_the_place_of_a_stuck_thread_is_logged() -> None:
    heartbeat, release = Heartbeat(), threading.Event()

    def hang() -> None:
        heartbeat.working("wait for ever")
        release.wait(30)

    thread = threading.Thread(target=hang)
    thread.start()
    try:
        time.sleep(0.1)
        watchdog = Watchdog(
            Notifier(),
            lambda _: None,
            lambda: None,
            [Stage("a", lambda: heartbeat.latest, lambda: 0.01, "a")],
        )
        with structlog.testing.capture_logs() as logs:
            watchdog.check()
            watchdog.check()  # said once
            heartbeat.idle("over")
            watchdog.check()
    finally:
        release.set()
        thread.join()
    assert [line["event"] for line in logs] == ["stage_stuck", "stage_goes_on"]
    assert any("hang" in place for place in logs[0]["where"])


HOLDS_THE_LOCK = """
import ctypes, time
from edge_agent.health.systemd import Notifier
from edge_agent.health import watchdog
watchdog.BLOCKED_S = 0.5
with watchdog.Watchdog(Notifier(), lambda _: None, lambda: None):
    time.sleep(0.2)
    ctypes.PyDLL(None).sleep(2)  # a library that keeps Python's lock: no thread of Python's can run
"""


def test_a_library_that_keeps_pythons_lock_is_found_all_the_same() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HOLDS_THE_LOCK], capture_output=True, text=True, timeout=60, check=True
    )
    assert 'File "<string>", line 8' in done.stderr


# ---- starts


def begin(path: Path, boot: str = "b1") -> Starts:
    starts = Starts(path, Clock.open(path.with_name(CLOCK_FILE)), boot=boot)
    starts.begin()
    return starts


def test_how_the_run_before_ended(tmp_path: Path) -> None:
    path = tmp_path / "starts.json"
    begin(path).end("clean")
    begin(path)  # killed
    begin(path).stuck("pipeline has not got on")
    begin(path).end("failed", "engine")
    begin(path)
    last = begin(path, "b2")
    hows = [run.how for run in last.former]
    assert hows == ["clean", "killed", "stuck", "failed", "machine"]
    assert last.former[2].words == "pipeline has not got on"
    assert [run.how for run in last.recent_crashes(60)] == ["killed", "stuck", "failed"]
    assert last.recent_crashes(-1) == []
    assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


def test_the_first_word_on_an_end_counts(tmp_path: Path) -> None:
    starts = begin(tmp_path / "starts.json")
    starts.end("stopped")
    starts.end("failed", "too late")
    assert starts.runs[-1].how == "stopped"


def test_the_file_stays_small_and_a_broken_one_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "starts.json"
    for _ in range(KEPT + 5):
        begin(path)
    assert len(json.loads(path.read_text())["runs"]) == KEPT
    for text in ("nonsense", "[]", '{"runs": [{}]}', '{"runs": 3}'):
        path.write_text(text)
        with structlog.testing.capture_logs() as logs:
            assert list(begin(path).former) == []
        assert logs[0]["event"] == "starts_forgotten"
    path.unlink()
    path.mkdir()
    with structlog.testing.capture_logs() as logs:
        begin(path)
    assert {line["event"] for line in logs} == {"starts_forgotten", "starts_not_written"}


@given(st.integers(0, 10_000), st.integers(1, 20))
def test_the_brake(crashes: int, allowed: int) -> None:
    wait = pause_s(crashes, allowed)
    assert (wait > 0) == (crashes >= allowed)
    assert wait <= 300
    assert pause_s(crashes + 1, allowed) >= wait


def test_which_ends_count_as_a_crash() -> None:
    assert frozenset({"killed", "stuck", "failed"}) == CRASHES


# ---- memory

MB = 10**6


def memory_watch(**limits: float) -> MemoryWatch:
    settings = SupervisionSettings(**limits)
    return MemoryWatch(lambda: settings, group_limit=lambda: None)


def feed(watch: MemoryWatch, curve: list[float]) -> list[str]:
    """One reading a minute, in MB."""
    return [watch.update(n * BUCKET_S, int(value * MB)) for n, value in enumerate(curve)]


HOUR = WARM_UP + WINDOW + 2


@pytest.mark.parametrize(
    ("curve", "alarm"),
    [
        ([500.0] * (3 * HOUR), False),
        ([500.0 + n * 2 for n in range(HOUR)], True),  # 120 MB an hour
        ([500.0 + n * 0.5 for n in range(3 * HOUR)], False),  # 30
        ([100.0 * n for n in range(WARM_UP)] + [1500.0] * HOUR, False),  # models are loaded
        ([500.0 + 400 * (n % 2) for n in range(2 * HOUR)], False),  # up and down
        ([500.0] * (WARM_UP + 30) + [900.0] * HOUR, False),  # one step, and then no more
        ([500.0 + n * 2 for n in range(WARM_UP + WINDOW - 2)], False),  # not yet an hour
    ],
)
def test_growth(curve: list[float], alarm: bool) -> None:
    reported = feed(memory_watch(memory_growth_mb=64), curve)
    assert any(reported) is alarm
    if alarm:
        assert "by 120 MB an hour" in reported[-1]


def test_growth_that_ends_is_over() -> None:
    watch = memory_watch(memory_growth_mb=64)
    reported = feed(watch, [500.0 + 2 * min(n, HOUR) for n in range(3 * HOUR)])
    assert any(reported)
    assert reported[-1] == ""
    assert watch.growth == 0


def test_a_bound_with_a_margin() -> None:
    watch = memory_watch(memory_mb=1000, memory_growth_mb=1e6)
    assert [bool(reported) for reported in feed(watch, [900, 1001, 970, 960, 949, 970])] == [
        False, True, True, True, False, False,
    ]  # fmt: skip


def test_the_limit_of_the_control_group(tmp_path: Path) -> None:
    group = tmp_path / "sys/fs/cgroup/system.slice/edge-agent.service"
    group.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    assert control_group_limit(tmp_path) is None
    (tmp_path / "proc/self/cgroup").write_text("0::/system.slice/edge-agent.service\n")
    assert control_group_limit(tmp_path) is None
    (group / "memory.max").write_text("max\n")
    assert control_group_limit(tmp_path) is None
    (group / "memory.max").write_text("2000000000\n")
    assert control_group_limit(tmp_path) == 1.8e9
    (tmp_path / "proc/self/cgroup").write_text("5:memory:/x\n")  # version 1
    assert control_group_limit(tmp_path) is None


# ---- the socket


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    """A folder whose socket's name does not fit into an address."""
    folder = tmp_path / ("d" * 100) / ("e" * 100)
    folder.mkdir(parents=True)
    return folder / "status.sock"


def test_asking(deep: Path) -> None:
    with StatusServer(deep, lambda: {"pid": 7, "long": "x" * 500_000}):
        assert stat.S_IMODE(deep.stat().st_mode) == 0o600
        assert read_status(deep)["pid"] == 7
        assert len(read_status(deep)["long"]) == 500_000
    assert not deep.exists()
    with pytest.raises(InputError, match="no agent runs on"):
        read_status(deep)


def test_a_client_that_does_not_read_delays_no_other(tmp_path: Path) -> None:
    path = tmp_path / "status.sock"
    with StatusServer(path, lambda: {"pid": 7}), socket.socket(socket.AF_UNIX) as rude:
        rude.connect(str(path))
        rude.close()
        assert read_status(path) == {"pid": 7}


def test_a_socket_that_was_left_behind_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "status.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with pytest.raises(InputError, match="no agent runs on"):
        read_status(path)
    with StatusServer(path, lambda: {"pid": 7}):
        assert read_status(path) == {"pid": 7}


def test_two_agents_on_one_folder(tmp_path: Path) -> None:
    path = tmp_path / "status.sock"
    with StatusServer(path, lambda: {"pid": 7}):
        with pytest.raises(StorageError, match="in use by another edge-agent \\(process 7\\)"):
            StatusServer(path, dict).__enter__()
        assert read_status(path) == {"pid": 7}


def test_invalid_answers(tmp_path: Path) -> None:
    path = tmp_path / "status.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        for answer in (b"", b"x", b"[]"):
            thread = threading.Thread(target=lambda text=answer: reply(other, text))
            thread.start()
            with pytest.raises(InputError, match="answered without"):
                read_status(path)
            thread.join()


def reply(listening: socket.socket, text: bytes) -> None:
    with listening.accept()[0] as asking:
        asking.sendall(text)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_another_user_may_not_ask(tmp_path: Path) -> None:
    code = "import os, sys\nfrom pathlib import Path\nfrom edge_agent.health.inquiry import read_status\n"
    code += "os.setgid(65534); os.setuid(65534)\nread_status(Path(sys.argv[1]))"
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and len(folder.parts) > 2:
            folder.chmod(0o755)
    path = tmp_path / "status.sock"
    with StatusServer(path, lambda: {"pid": 7}):
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60, check=False
        )
    assert "may be read by the user of the agent and by root" in done.stderr


# ---- the start


def test_how_far_a_long_start_is_can_be_seen(tmp_path: Path, manager: Manager) -> None:
    stop, notes = threading.Event(), []
    settings = Settings(state_dir=tmp_path)
    supervisor = Supervisor(
        settings=lambda: settings.supervision,
        note=lambda *words: notes.append(words),
        notifier=Notifier(manager.address),
    )
    with supervisor:
        supervisor.begin(tmp_path, stop, Clock())
        with supervisor.opening("the engine"):
            assert read_status(tmp_path / "status.sock")["reason"] == "the engine"
            supervisor.progress("builds an engine: 40 %")
            found = read_status(tmp_path / "status.sock")
    assert (found["state"], found["reason"], found["ready"]) == ("starting", "builds an engine: 40 %", False)
    reported = [message["STATUS"] for message in manager.listen(0.1) if "EXTEND_TIMEOUT_USEC" in message]
    assert reported == ["starting: the engine", "builds an engine: 40 %"]
    assert [run["how"] for run in json.loads((tmp_path / "starts.json").read_text())["runs"]] == ["clean"]


@pytest.mark.parametrize(
    ("problem", "how"),
    [
        (ConfigError("wrong"), "refused"),
        (SourceError("no such file"), "refused"),
        (SpaceMismatch("another model"), "refused"),
        (EngineError("broken"), "failed"),
        (StorageError("full"), "failed"),
        (ValueError("a fault of ours"), "failed"),
        (KeyboardInterrupt(), "clean"),
    ],
)
def test_how_an_end_by_an_error_is_recorded(tmp_path: Path, problem: BaseException, how: str) -> None:
    settings = Settings(state_dir=tmp_path)

    def run_and_fail() -> None:
        with Supervisor(settings=lambda: settings.supervision, note=lambda *_: None) as supervisor:
            supervisor.begin(tmp_path, threading.Event(), Clock())
            raise problem

    with pytest.raises(type(problem)):
        run_and_fail()
    (run,) = json.loads((tmp_path / "starts.json").read_text())["runs"]
    assert run["how"] == how
    # What is not our own error may hold a login.
    own = str(problem) if isinstance(problem, EdgeAgentError) else type(problem).__name__
    assert run["words"] == ("" if how == "clean" else own)
