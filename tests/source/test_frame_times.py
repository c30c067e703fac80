"""The rule that gives frames of a recording their times, over any positions that a container may state."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.source.frame_times import ASSUMED_FPS, FASTEST_FPS, LONGEST_GAP_S, FrameTimes

ANYTHING = st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([0.0, -1.0, 0.04, 5.0, 95_443.7])
RATES = st.none() | st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([0.0, 25.0, 600.0, 1e5])
STEPS = st.lists(
    st.floats(1.01 / FASTEST_FPS, 0.9) | st.floats(1.0, LONGEST_GAP_S * 0.99), min_size=1, max_size=60
)
STATED_RATES = st.floats(0.1, FASTEST_FPS)


def place(positions: list[float], rate: float | None = 25.0) -> list[float]:
    times = FrameTimes(rate)
    return [times.place(at, after) for at, after in zip(positions, [*positions[1:], None], strict=False)]


@given(st.lists(ANYTHING, max_size=60), RATES)
def test_times_never_decrease_whatever_the_container_states(positions, rate):
    found = place(positions, rate)
    assert all(math.isfinite(time) for time in found)
    assert found[:1] in ([], [0.0])
    assert all(0 <= later - earlier <= LONGEST_GAP_S for earlier, later in pairwise(found))


@given(STEPS, st.floats(0, 1e6), RATES)
def test_good_positions_are_kept(steps, start, rate):
    positions = (start + np.cumsum([0.0, *steps])).tolist()
    assert place(positions, rate) == pytest.approx([at - start for at in positions], abs=1e-6)


@given(st.integers(1, 50), STATED_RATES, st.sampled_from([0.0, -1.0, math.nan, math.inf, 7.0]))
def test_without_positions_the_rate_counts(frames, rate, stated):
    assert place([stated] * frames, rate) == pytest.approx([n / rate for n in range(frames)])


@given(st.integers(2, 50), RATES.filter(lambda rate: rate is None or not 1e-5 < rate <= FASTEST_FPS))
def test_without_anything_the_rate_is_assumed_and_known_to_be(frames, rate):
    times = FrameTimes(rate)
    found = [times.place(0.0, 0.0) for _ in range(frames)]
    assert found == pytest.approx([n / ASSUMED_FPS for n in range(frames)])
    assert times.guessed


@settings(max_examples=40)
@given(STEPS, st.data())
def test_lone_wrong_positions_change_no_other_time(steps, data):
    """Neither missing ones nor wild ones, except at the ends, where nothing tells which one is wrong."""
    # Two of these intervals are no leap.
    right = np.cumsum([1.0, *(min(step, LONGEST_GAP_S / 2.1) for step in steps), 0.1, 0.1]).tolist()
    wrong = list(right)
    for at in range(3, len(right) - 1, 2):
        if data.draw(st.booleans()):
            # Of a position behind the one before it, and ahead of earlier ones, either may be wrong.
            wild = st.floats(right[at + 1] + 0.001, 1e12) | st.floats(max_value=right[at - 3] - 0.001)
            wrong[at] = data.draw(st.sampled_from([0.0, math.nan, -5.0]) | wild)
    found = place(wrong)
    kept = [at for at in range(len(right)) if wrong[at] == right[at]]
    assert [found[at] for at in kept] == pytest.approx([right[at] - 1.0 for at in kept], abs=1e-6)


@given(st.lists(st.tuples(st.integers(2, 40), st.floats(0.01, 0.5)), min_size=1, max_size=5))
def test_joined_files_keep_their_durations(parts):
    """As from a recorder that starts anew: each part begins at 0."""
    found = place([step * n for frames, step in parts for n in range(frames)])
    # A short part that starts before the end of the last one is recognised by its eighth frame.
    longest = max(step for _, step in parts)
    whole = sum((frames - 1) * step for frames, step in parts)
    slack = len(parts) * 10 * longest
    assert whole - slack <= found[-1] <= whole + slack


@given(st.lists(st.floats(0, 0.9 / FASTEST_FPS), min_size=1, max_size=50), st.floats(1, FASTEST_FPS))
def test_ticks_of_a_clock_are_no_times(steps, rate):
    positions = np.cumsum([0.0, *steps]).tolist()
    assert place(positions, rate) == pytest.approx([n / rate for n in range(len(positions))])


def test_frames_in_decoding_order_do_not_stretch_time():
    """Old AVI files with B frames: a reference frame comes before the frames that are shown before it."""
    shown = [0, 3, 1, 2, 6, 4, 5, 9, 7, 8, 12, 10, 11]
    found = place([at * 0.04 for at in shown])
    assert found[-1] == pytest.approx(11 * 0.04, abs=0.05)


def test_missing_positions_before_a_pause_are_not_in_the_middle_of_it():
    assert place([0, 0.04, 0.08, 0, 3600, 3600.04]) == pytest.approx([0, 0.04, 0.08, 0.12, 3600, 3600.04])
