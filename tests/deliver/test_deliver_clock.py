"""Ages of events and commands on a device whose wall clock is wrong, or jumps."""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.core.clock import CLOCK_FILE, Clock
from edge_agent.core.timing import rfc3339
from edge_agent.deliver.freshness import MAX_AGE_S, Freshness, session_expiry_s
from tests.conftest import Mosquitto
from tests.deliver.deliver_fixtures import Listener, identity, outbox_at, publishing, until
from tests.deliver.test_commands import Gallery, desk_of, order
from tests.hand_clock import TODAY, HandTime

ROOT = "edge/v1/lab/jx01"
HOUR, DAY, YEAR = 3600.0, 86_400.0, 365 * 86_400.0
ERRORS = st.sampled_from([0.0, -2 * HOUR, 10 * DAY, -10 * DAY, 10 * YEAR, -TODAY, -YEAR, 59.0, 30 * YEAR])


def append(outbox: Any, count: int = 3) -> None:
    for n in range(count):
        outbox.append(json.dumps({"n": n}).encode(), f"{ROOT}/identity/matched")


# --- the outbox -------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["run", "restart", "reboot"]), ERRORS, st.floats(0, 3000), st.booleans()),
        max_size=8,
    )
)
def test_no_event_is_dropped_for_a_wrong_clock(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, float, float, bool]]
) -> None:
    """Whatever the wall clock shows, at starts, reboots and while it runs; the kernel confirms none."""
    folder, system = tmp_path_factory.mktemp("clock"), HandTime()
    written = 0
    for what, error, passes, checks in steps:
        if what == "reboot":
            system.reboot()
        system.error = error
        clock = Clock.open(folder / CLOCK_FILE, system)
        with outbox_at(folder / "o.db", clock=clock, max_age_hours=168.0) as outbox:
            append(outbox)
            written += 3
            system.passes(passes)
            if checks:
                clock.check()
            outbox.expire()
            assert outbox.depth.rows == written
            clock.save()


def test_events_age_by_running_time_across_starts(tmp_path: Path) -> None:
    system = HandTime()
    for expected in (3, 3, 3, 3):
        clock = Clock.open(tmp_path / CLOCK_FILE, system)
        with outbox_at(tmp_path / "o.db", clock=clock, max_age_hours=1.5) as outbox:
            append(outbox)
            system.passes(HOUR)
            outbox.expire()
            assert outbox.depth.rows == expected
            clock.save()


def test_rows_of_an_earlier_version_count_from_now(tmp_path: Path) -> None:
    """Their times are of a wall clock that may have been wrong."""
    with outbox_at(tmp_path / "o.db") as outbox:
        append(outbox, 4)
    with sqlite3.connect(tmp_path / "o.db") as database:
        for seq, created in enumerate((60.0, TODAY, TODAY + 10 * YEAR, TODAY - YEAR), 1):
            database.execute("UPDATE event SET created = ? WHERE seq = ?", (created, seq))
        database.execute("DELETE FROM meta WHERE key = 'clock'")
    database.close()
    system = HandTime()
    clock = Clock.open(tmp_path / CLOCK_FILE, system)
    with outbox_at(tmp_path / "o.db", clock=clock, max_age_hours=1.0) as outbox:
        system.passes(HOUR - 10)
        outbox.expire()
        assert outbox.depth.rows == 4
        system.passes(20)
        outbox.expire()
        assert outbox.depth.rows == 0


# --- commands ---------------------------------------------------------------------------------------------


def judged(system: HandTime, clock: Clock, fresh: Freshness, late: float = 0.0) -> bool:
    """Whether a command is taken that a sender with the right time sent `late` seconds ago."""
    clock.check()
    return not fresh.problem(system.true - late)


@settings(max_examples=200, deadline=None)
@given(
    jumps=st.lists(st.tuples(ERRORS, st.floats(1, 3000)), min_size=1, max_size=8),
    late=st.floats(MAX_AGE_S + 5, 10 * YEAR),
    sync=st.booleans(),
)
def test_jumps_of_the_clock_change_no_verdict(
    jumps: list[tuple[float, float]], late: float, sync: bool
) -> None:
    """The clock is right at the start and jumps then: fresh commands are taken, late ones refused."""
    system = HandTime(sync=sync)
    clock = Clock(system)
    fresh = Freshness(clock)
    for error, passes in jumps:
        system.error, system.sync = error, sync and error == 0.0
        system.passes(passes)
        assert judged(system, clock, fresh)
        assert not judged(system, clock, fresh, late)


@pytest.mark.parametrize("error", [-TODAY, -2 * HOUR, -100 * DAY, -2 * YEAR, 10 * YEAR, 50 * YEAR])
def test_a_device_whose_clock_is_wrong_from_its_first_start_takes_fresh_commands(error: float) -> None:
    """Without a battery, in 1970; or far ahead."""
    system = HandTime(error=error)
    clock = Clock(system)
    fresh = Freshness(clock)
    for _ in range(3):
        assert judged(system, clock, fresh)
        for late in (100.0, HOUR, DAY):
            assert not judged(system, clock, fresh, late)
        system.passes(100)


@pytest.mark.parametrize("error", [2 * HOUR, 300 * DAY])
def test_a_device_that_is_ahead_from_its_first_start_takes_commands_to_this_run(error: float) -> None:
    """Nothing else shows that it is the clock that is wrong, and not the command that is late."""
    system = HandTime(error=error)
    clock = Clock(system)
    fresh = Freshness(clock)
    assert "not confirmed" in fresh.problem(system.true)
    assert not fresh.problem(system.true, names_run=True)
    assert judged(system, clock, fresh)
    assert not judged(system, clock, fresh, 100.0)


def test_a_confirmed_clock_decides_alone() -> None:
    system = HandTime(sync=True)
    clock = Clock(system)
    clock.check()
    fresh = Freshness(clock)
    assert "ahead" in fresh.problem(system.true + HOUR)
    for _ in range(10):
        system.passes(20)
        clock.check()
        assert fresh.problem(system.true - HOUR)
        assert not fresh.problem(system.true)


def test_an_impossible_future_is_refused() -> None:
    fresh = Freshness(Clock(HandTime()))
    for issued in (TODAY + 30 * YEAR, TODAY + 70 * YEAR):
        assert "ahead" in fresh.problem(issued)
    assert not fresh.problem(TODAY)


@pytest.mark.parametrize("ahead", [100.0, 2 * HOUR, 300 * DAY, 2 * YEAR])
def test_a_sender_that_is_ahead_does_not_lock_out_the_others(ahead: float) -> None:
    """The clock is not confirmed, but a command has agreed with it."""
    system = HandTime()
    clock = Clock(system)
    fresh = Freshness(clock)
    assert judged(system, clock, fresh)
    for _ in range(3):
        system.passes(100)
        assert not fresh.problem(system.true + ahead)
        assert not fresh.problem(system.true - HOUR, names_run=True)
        assert judged(system, clock, fresh)
        assert not judged(system, clock, fresh, 100.0)


@given(keepalive=st.integers(5, 3600))
def test_a_command_never_waits_longer_in_the_broker(keepalive: int) -> None:
    kept = session_expiry_s(keepalive, 5)
    assert kept >= 5
    assert kept == 5 or kept + 1.5 * keepalive <= MAX_AGE_S


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_commands_of_an_earlier_run_do_not_come(mosquitto: Mosquitto, tmp_path: Path, version: str) -> None:
    """The broker kept them; the device cannot tell how old they are if its clock is wrong."""
    gallery = Gallery()
    for run in range(2):
        with (
            desk_of(name=gallery.name) as desk,
            outbox_at(tmp_path / "o.db") as outbox,
            publishing(outbox, mosquitto.url, commands=desk, version=version) as publisher,
            Listener(mosquitto.port, f"{ROOT}/cmd/+/result") as listener,
        ):
            until(lambda publisher=publisher: publisher.counters.connects)
            time.sleep(0.3)
            listener.publish(f"{ROOT}/cmd/name", order(transaction=f"run {run}"))
            until(lambda listener=listener: listener.heard)
            assert [m["data"]["transaction"] for m in listener.of("result")] == [f"run {run}"]
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        client.connect("127.0.0.1", mosquitto.port)
        client.loop_start()
        client.publish(f"{ROOT}/cmd/name", order(transaction=str(uuid.uuid4())), 1).wait_for_publish(10)
        client.disconnect()
        client.loop_stop()
    assert len(gallery.done) == 2


def test_wrong_clock_over_a_broker(mosquitto: Mosquitto, tmp_path: Path) -> None:
    system, gallery = HandTime(true=time.time()), Gallery()
    clock = Clock(system)
    with (
        desk_of(name=gallery.name, clock=clock) as desk,
        outbox_at(tmp_path / "o.db", clock=clock) as outbox,
        publishing(outbox, mosquitto.url, commands=desk, clock=clock) as publisher,
        Listener(mosquitto.port) as listener,
    ):
        until(lambda: publisher.counters.connects)
        time.sleep(0.3)
        for count, error in enumerate((0.0, -2 * HOUR, 10 * YEAR, -TODAY), 1):
            system.error = error
            clock.check()
            publisher.publish(identity())
            listener.publish(f"{ROOT}/cmd/name", order())
            until(lambda count=count: len(gallery.done) == count)
            old = order(issued=rfc3339(system.true - 300))
            listener.publish(f"{ROOT}/cmd/name", old)
            until(
                lambda count=count: (
                    [m["data"]["code"] for m in listener.of("result")].count("expired") == count
                )
            )
        assert publisher.drain(20)
        assert len(gallery.done) == 4
