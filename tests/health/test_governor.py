"""The governor on a model of the board: below the limit, few steps, back again; and without sensors."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edge_agent.core.config import GovernorSettings
from edge_agent.core.structures import Load
from edge_agent.health.governor import BLIND_S, CHECK_INTERVAL_S, Governor, ladder
from tests.board import CAMERAS, LIMIT_C, Board, drive, work_of

RUNGS = ladder(CAMERAS, max_batch=64)

# ---- the ladder


def test_the_order_of_the_steps() -> None:
    assert [rung.name for rung in RUNGS] == [
        "full load",
        "settled people are embedded once a second",
        "settled people are embedded every 5 s",
        "at most 8 crops in a batch",
        "at most 2 crops in a batch",
        "people are detected in every second frame",
        "people are detected in every fourth frame",
        "camera hall is closed",  # of two with the same priority the later
        "camera yard is closed",
        "camera door is closed",
    ]
    assert RUNGS[0].load == Load()
    assert RUNGS[-1].load.closed == ("hall", "yard", "door")


@given(st.lists(st.integers(-5, 5), max_size=6), st.integers(1, 512))
def test_every_step_gives_up_more_and_one_camera_stays(priorities: list[int], max_batch: int) -> None:
    cameras = [(f"c{n}", priority) for n, priority in enumerate(priorities)]
    rungs = ladder(cameras, max_batch=max_batch)
    assert len(rungs) == 7 + max(0, len(cameras) - 1)
    for before, after in itertools.pairwise(rungs):
        assert after.load.settled_interval_s >= before.load.settled_interval_s
        assert (after.load.max_crops or math.inf) <= (before.load.max_crops or math.inf)
        assert after.load.every_nth >= before.load.every_nth
        assert after.load.closed[: len(before.load.closed)] == before.load.closed
        assert after.load.stretch > before.load.stretch
    assert len(rungs[-1].load.closed) == max(0, len(cameras) - 1)


# ---- the board


def ramp(to_c: float, hours: float = 1.0) -> Board:
    return Board(lambda t: 25.0 + (to_c - 25.0) * min(1.0, t / (3600 * hours)))


def blocked_fan() -> Board:
    """From the first to the third hour hardly any air moves."""
    return Board(lambda _: 30.0, sink_to_air=lambda t: 2.0 if 3600 < t < 3 * 3600 else 0.5)


def test_a_cool_board_is_left_alone() -> None:
    trace = drive(Board(lambda _: 15.0), 3)
    assert set(trace.step) == {0}


def test_the_model_would_throttle_without_a_governor() -> None:
    assert drive(ramp(50), 4, governed=False).hottest() > LIMIT_C
    assert drive(blocked_fan(), 3, governed=False).hottest() > LIMIT_C


def test_a_hot_afternoon() -> None:
    trace = drive(ramp(50), 6)
    assert trace.hottest() < LIMIT_C
    assert trace.step[-1] > 0
    assert trace.changes(0, 3600) <= 10
    assert all(trace.changes(3600 * hour, 3600 * (hour + 1)) <= 4 for hour in range(3, 6))


def test_a_blocked_fan_and_its_repair() -> None:
    trace = drive(blocked_fan(), 7)
    assert trace.hottest() < LIMIT_C
    blocked = trace.step[int(2.5 * 3600 / CHECK_INTERVAL_S)]
    assert blocked >= 5
    assert trace.changes(2 * 3600, 3 * 3600) <= 4
    assert min(trace.step[int(5 * 3600 / CHECK_INTERVAL_S) :]) <= 1


def test_a_day_of_sun() -> None:
    """Steps down and up again: all are reverted when the board cools in the evening."""
    trace = drive(Board(lambda t: 35.0 - 20.0 * math.cos(2 * math.pi * t / (12 * 3600))), 12)
    assert trace.hottest() < LIMIT_C
    assert max(trace.step) >= 1
    assert trace.step[-1] == 0
    assert trace.changes(0, 12 * 3600) <= 30


@pytest.mark.slow
@settings(max_examples=60)
@given(
    ambient=st.floats(0, 60),
    step_up=st.floats(0, 25),
    idle_w=st.floats(4, 20),
    busy_w=st.floats(8, 45),
    die_to_sink=st.floats(0.1, 0.5),
    sink_to_air=st.floats(0.2, 1.5),
    housing=st.floats(0.05, 0.6),
    sink_j=st.floats(250, 1000),
    housing_j=st.floats(500, 4000),
    noise_c=st.floats(0, 1),
)
def test_any_board_that_can_be_kept_cool_is_kept_cool_in_few_steps(
    ambient: float,
    step_up: float,
    idle_w: float,
    busy_w: float,
    die_to_sink: float,
    sink_to_air: float,
    housing: float,
    sink_j: float,
    housing_j: float,
    noise_c: float,
) -> None:
    """From cold; after two hours it gets warmer within ten minutes, and after another two cool again."""

    def ambient_c(t: float) -> float:
        return ambient + step_up * min(1.0, max(0.0, min(t - 7200, 14_400 - t) / 600))

    board = Board(
        ambient_c,
        idle_w=idle_w,
        busy_w=busy_w,
        die_to_sink=die_to_sink,
        sink_to_air=lambda _: sink_to_air,
        housing_to_ambient=housing,
        sink_j=sink_j,
        housing_j=housing_j,
        noise_c=noise_c,
    )
    assume(board.settled_c(10_000, work_of(RUNGS[-1].load)) < LIMIT_C - 8)
    trace = drive(board, 7)
    assert trace.hottest() < LIMIT_C
    assert trace.changes(0, 3600) <= 2 * len(RUNGS)
    for hour in (3, 5, 6):  # the hours in which nothing changed
        assert trace.changes(3600 * hour, 3600 * (hour + 1)) <= 6
    if board.settled_c(0, 1.0) < LIMIT_C - 12:
        assert trace.step[-1] <= 1


# ---- sensors


def governor(**more: float) -> Governor:
    return Governor(9, GovernorSettings(**more))


def test_the_zone_nearest_to_its_own_limit_counts() -> None:
    verdict = governor().update(
        0, {"cpu": 80.0, "soc": 70.0, "tj": 85.0, "cv0": None}, {"cpu": 99.0, "soc": 72.0}
    )
    assert (verdict.zone, verdict.celsius, verdict.limit_c) == ("soc", 70.0, 72.0)
    assert (verdict.state, verdict.step) == ("limiting", 1)


def test_a_configured_limit_holds_where_it_is_lower_or_the_only_one() -> None:
    verdict = governor(limit_c=85.0).update(0, {"cpu": 70.0, "tj": 75.0}, {"cpu": 99.0})
    assert (verdict.zone, verdict.limit_c, verdict.state) == ("tj", 85.0, "watching")
    assert governor(limit_c=120.0).update(0, {"cpu": 70.0}, {"cpu": 99.0}).limit_c == 99.0


@pytest.mark.parametrize(
    ("temperatures", "words"),
    [
        ({}, "has a known temperature"),
        ({"cpu": None}, "has a known temperature"),
        ({"cpu": 50.0}, "governor.limit_c"),
    ],
)
def test_without_sensors_it_is_off_and_reports_it(temperatures: dict[str, float | None], words: str) -> None:
    verdict = governor().update(0, temperatures, {"cpu": None})
    assert (verdict.state, verdict.step) == ("blind", 0)
    assert words in verdict.reason


def test_sensors_that_vanish_leave_the_step_where_it_is() -> None:
    one = governor()
    for now in range(0, 40, 2):
        verdict = one.update(now, {"cpu": 98.0}, {"cpu": 99.0})
    step = verdict.step
    assert step > 1
    assert one.update(42, {"cpu": None}, {"cpu": 99.0}).state == "limiting"  # one reading may fail
    verdict = one.update(42 + BLIND_S, {"cpu": None}, {"cpu": 99.0})
    assert (verdict.state, verdict.step) == ("blind", step)
    assert f"step {step} stays" in verdict.reason
    assert one.update(90, {"cpu": 60.0}, {"cpu": 99.0}).state == "limiting"


def test_exhausted_when_nothing_is_left() -> None:
    one = governor()
    for now in range(0, 600, 2):
        verdict = one.update(now, {"cpu": 99.0}, {"cpu": 99.0})
    assert (verdict.state, verdict.step) == ("exhausted", 9)
    assert "cpu at 99.0 C of 99.0 C" in verdict.reason
