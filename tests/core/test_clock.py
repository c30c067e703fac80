"""The clock that does not jump: ages by running time, labels for people."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.core.clock import (
    ACCEPT_AFTER_S,
    CLOCK_FILE,
    LONGEST_OFF_S,
    SAVE_INTERVAL_S,
    TOLERANCE_S,
    Clock,
)
from edge_agent.core.system_time import SystemTime
from edge_agent.core.timing import duration
from tests.hand_clock import TODAY, HandTime

YEAR = 365.25 * 86_400
DAY = 86_400.0


@pytest.fixture
def machine() -> HandTime:
    return HandTime()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / CLOCK_FILE


@pytest.mark.parametrize("error", [10 * YEAR, -10 * YEAR, 10 * DAY, -7200.0, 61.0, -TODAY])
def test_a_step_changes_no_age_and_no_label(machine: HandTime, error: float) -> None:
    clock = Clock(machine)
    clock.check()
    born = clock.now()
    machine.passes(100.0)
    machine.error = error
    assert clock.check() is None
    assert (clock.age(born), clock.label()) == (100.0, machine.true)
    assert clock.paused
    assert clock.uncertain
    state = clock.state()
    assert (state.state, state.step_s) == ("stepped", error)
    machine.passes(70.0)
    machine.error = 0.0
    assert not clock.paused
    assert clock.check() is None
    assert (clock.age(born), clock.label(born)) == (170.0, TODAY)
    assert clock.state().state == "unconfirmed"


def test_labels_follow_a_small_step(machine: HandTime) -> None:
    clock = Clock(machine)
    machine.error = TOLERANCE_S - 1
    clock.check()
    assert clock.label() == machine.wall()
    assert not clock.paused


@pytest.mark.parametrize("error", [10 * YEAR, -10 * YEAR, 10 * DAY, -3 * DAY, 0.0])
def test_a_restart_in_the_same_boot_changes_nothing(path: Path, machine: HandTime, error: float) -> None:
    born = Clock.open(path, machine).now()
    machine.passes(500.0)  # nothing was saved meanwhile: a kill
    machine.error = error
    clock = Clock.open(path, machine)
    assert clock.age(born) == 500.0
    assert clock.label(born) == TODAY
    assert clock.paused == (error != 0.0)


def test_another_process_has_the_same_instants(path: Path, machine: HandTime) -> None:
    agent = Clock.open(path, machine)
    machine.passes(5.0)
    command = Clock.open(path, machine)
    assert (agent.now(), agent.id) == (command.now(), command.id)


def test_the_first_synchronisation_relabels(path: Path, machine: HandTime) -> None:
    """The start of a board without battery: 1970 at first, then the right time."""
    machine.set_wall(30.0)
    clock = Clock.open(path, machine)
    clock.check()
    assert "not been set" in str(clock.state())
    assert clock.uncertain
    assert not clock.paused  # nothing says that ages are wrong, and they are not
    machine.passes(10.0)
    born = clock.now()
    assert clock.label(born) == 40.0
    machine.passes(10.0)
    machine.error = 0.0
    changed = clock.check()
    assert changed is not None
    assert (changed.first, changed.last, changed.step_s) == (30.0, 50.0, TODAY - 30.0)
    assert clock.label(born) == TODAY + 10
    assert clock.age(born) == 10.0


def test_the_kernel_confirms_a_time_that_was_not_confirmed(machine: HandTime) -> None:
    clock = Clock(machine)
    machine.error = -3 * DAY
    clock.check()
    assert clock.paused
    machine.sync = True
    changed = clock.check()
    assert changed is not None
    assert changed.step_s == -3 * DAY
    assert clock.state().state == "confirmed"
    assert not clock.uncertain
    # That it still says so is no evidence for a step that comes after it.
    machine.error = 10 * YEAR
    assert clock.check() is None
    assert clock.paused
    assert clock.uncertain


def test_a_step_that_stays_is_accepted_in_the_end(path: Path, machine: HandTime) -> None:
    clock = Clock.open(path, machine)
    born = clock.now()
    machine.error = -7200.0
    clock.check()
    machine.passes(ACCEPT_AFTER_S - 1)
    clock = Clock.open(path, machine)  # a restart does not start over
    assert clock.check() is None
    machine.error = 3 * DAY  # nor does another jump
    machine.passes(1.0)
    changed = clock.check()
    assert changed is not None
    assert changed.step_s == 3 * DAY
    assert not clock.paused
    assert clock.uncertain
    assert clock.age(born) == ACCEPT_AFTER_S


def test_a_clock_that_loses_its_time_keeps_labels_and_pauses_for_a_while_only(machine: HandTime) -> None:
    clock = Clock(machine)
    machine.set_wall(0.0)
    clock.check()
    assert clock.paused
    machine.passes(ACCEPT_AFTER_S)
    assert clock.check() is None
    assert clock.label() == machine.true
    assert not clock.paused
    assert clock.uncertain


def rebooted(path: Path, machine: HandTime, off: float, *, error: float = 0.0, sync: bool = True) -> Clock:
    machine.reboot(off)
    machine.error, machine.sync = error, sync
    clock = Clock.open(path, machine)
    clock.check()
    return clock


@pytest.fixture
def confirmed(path: Path, machine: HandTime) -> Clock:
    machine.sync = True
    clock = Clock.open(path, machine)
    clock.check()
    clock.save()
    return clock


def test_time_off_counts_between_two_confirmed_times(path: Path, machine: HandTime, confirmed: Clock) -> None:
    born = confirmed.now()
    clock = rebooted(path, machine, 3 * DAY)
    assert clock.age(born) == pytest.approx(3 * DAY, abs=0.01)
    later = clock.now()
    machine.passes(10.0)
    assert clock.age(later) == pytest.approx(10.0)
    assert born <= clock.ago(3 * DAY) < later


@pytest.mark.parametrize("off", [-2 * DAY, LONGEST_OFF_S + DAY, 10 * YEAR])
def test_an_absurd_time_off_does_not_count(
    path: Path, machine: HandTime, confirmed: Clock, off: float
) -> None:
    born = confirmed.now()
    clock = rebooted(path, machine, 30.0, error=off - 30.0)
    assert clock.age(born) < 1.0
    assert not clock.state().off_unknown


@pytest.mark.parametrize("error", [0.0, 10 * DAY, 10 * YEAR, -10 * DAY])
def test_time_off_does_not_count_without_synchronisation(
    path: Path, machine: HandTime, confirmed: Clock, error: float
) -> None:
    born = confirmed.now()
    clock = rebooted(path, machine, 3 * DAY, error=error, sync=False)
    machine.passes(2 * ACCEPT_AFTER_S)
    clock.check()
    machine.passes(2 * ACCEPT_AFTER_S)
    clock.check()
    assert clock.age(born) == pytest.approx(4 * ACCEPT_AFTER_S, abs=0.01)
    assert clock.state().off_unknown


def test_time_off_counts_when_the_time_is_confirmed_later(
    path: Path, machine: HandTime, confirmed: Clock
) -> None:
    """A board without battery that was off for three days, seen from people of both boots."""
    before = confirmed.now()
    machine.reboot(3 * DAY)
    machine.set_wall(20.0)
    clock = Clock.open(path, machine)
    clock.check()
    assert clock.label() == pytest.approx(TODAY)  # the last time that was known, not 1970
    assert clock.uncertain
    machine.passes(40.0)
    between = clock.now()
    machine.passes(20.0)
    machine.error, machine.sync = 0.0, True
    changed = clock.check()
    assert changed is not None
    assert changed.step_s == pytest.approx(3 * DAY)
    assert clock.age(before) == pytest.approx(3 * DAY + 60, abs=0.01)
    assert clock.age(between) == pytest.approx(20.0)
    assert clock.label(between) == pytest.approx(machine.true - 20.0)
    assert clock.label(before) == pytest.approx(TODAY, abs=0.01)
    assert Clock.open(path, machine).age(before) == clock.age(before)


def test_a_boot_that_was_never_confirmed_does_not_hide_the_time_off(
    path: Path, machine: HandTime, confirmed: Clock
) -> None:
    before = confirmed.now()
    between = rebooted(path, machine, DAY, sync=False).now()
    clock = rebooted(path, machine, DAY)
    assert clock.age(before) == pytest.approx(2 * DAY, abs=0.01)
    assert clock.age(between) < 1.0  # less than it was: that time is not known


def test_a_plausible_time_after_an_unset_one_is_taken_at_once(
    path: Path, machine: HandTime, confirmed: Clock
) -> None:
    clock = rebooted(path, machine, DAY, error=-TODAY, sync=False)
    assert clock.paused
    machine.error = 0.0
    assert clock.check() is not None
    assert not clock.paused
    assert clock.label() == machine.true


def test_a_container_that_restarts_on_an_old_host_makes_nobody_older(
    path: Path, machine: HandTime, confirmed: Clock
) -> None:
    """A new boot id with the running time of the host, as systemd-nspawn gives it."""
    born = confirmed.now()
    machine.boots += 1
    machine.booted -= 100 * DAY
    assert Clock.open(path, machine).age(born) < 1.0


def test_a_restored_snapshot_makes_nobody_older(path: Path, machine: HandTime, confirmed: Clock) -> None:
    born = confirmed.now()
    machine.booted += 50.0  # the running time of this boot is behind the stored one
    assert Clock.open(path, machine).age(born) < 1.0


def test_a_machine_without_boot_id_counts_its_own_running_time(path: Path) -> None:
    class Nameless(HandTime):
        boot = ""

    machine = Nameless()
    clock = Clock.open(path, machine)
    born = clock.now()
    machine.passes(10.0)
    clock.save()
    machine.passes(100.0)
    clock = Clock.open(path, machine)
    machine.passes(5.0)
    assert clock.age(born) == pytest.approx(15.0, abs=0.01)


def test_the_file_is_private_and_written_rarely(path: Path, machine: HandTime) -> None:
    clock = Clock.open(path, machine)
    assert path.stat().st_mode & 0o777 == 0o600
    clock.check()
    before = path.read_bytes()
    machine.passes(SAVE_INTERVAL_S / 2)
    clock.check()
    assert path.read_bytes() == before
    machine.passes(SAVE_INTERVAL_S)
    clock.check()
    assert path.read_bytes() != before


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", "null", '{"version": 2}', "\x00" * 50, "[" * 20_000],
)
def test_a_damaged_file_is_replaced_by_another_axis(path: Path, machine: HandTime, content: str) -> None:
    former = Clock.open(path, machine).id
    path.write_text(content)
    clock = Clock.open(path, machine)
    assert clock.id != former
    assert Clock.open(path, machine).id == clock.id


@settings(max_examples=60, deadline=None)
@given(
    key=st.sampled_from(
        ["id", "boot", "running", "instant", "label", "began", "confirmed", "stepped", "mark", "gaps"]
    ),
    wrong=st.one_of(
        st.none(),
        st.text(max_size=5),
        st.floats(),
        st.integers(),
        st.just(10**400),
        st.lists(st.floats(), max_size=3),
        st.lists(st.tuples(st.floats(), st.floats()), max_size=3),
        st.dictionaries(st.sampled_from(["instant", "label"]), st.floats(), max_size=2),
    ),
)
def test_a_file_with_a_wrong_value_never_fails(tmp_path_factory, key: str, wrong: object) -> None:
    path = tmp_path_factory.mktemp("clock") / CLOCK_FILE
    machine = HandTime()
    Clock.open(path, machine)
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, key: wrong}))
    clock = Clock.open(path, machine)
    clock.check()
    assert math.isfinite(clock.now())
    assert math.isfinite(clock.label())
    assert clock.age(clock.now()) == 0.0


def test_a_folder_in_the_place_of_the_file_is_survived(path: Path, machine: HandTime) -> None:
    path.mkdir()
    clock = Clock.open(path, machine)
    machine.passes(3.0)
    clock.check()
    assert clock.now() == 3.0


@settings(max_examples=200, deadline=None)
@given(
    gaps=st.lists(st.tuples(st.floats(0, 1000), st.floats(0, 1e7)), max_size=5),
    born=st.floats(-100, 1000),
    span=st.floats(0, 2e7),
)
def test_ago_and_age_agree(
    tmp_path_factory: pytest.TempPathFactory, gaps: list[tuple[float, float]], born: float, span: float
) -> None:
    path = tmp_path_factory.mktemp("clock") / CLOCK_FILE
    machine = HandTime()
    Clock.open(path, machine)
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "instant": 1000.0, "gaps": sorted(gaps)}))
    clock = Clock.open(path, machine)
    if abs(clock.age(born) - span) > 1e-3:  # rounding
        assert (born <= clock.ago(span)) == (clock.age(born) >= span)


def test_durations_in_words() -> None:
    spans = [3.0, 70.0, 7200.0, 10 * DAY, 10 * YEAR]
    assert [duration(span) for span in spans] == ["3 s", "1.17 min", "2 h", "10 days", "10 years"]


def test_the_clocks_of_this_machine() -> None:
    machine = SystemTime()
    assert abs(machine.wall() - time.time()) < 5
    assert machine.running() <= machine.running()
    assert machine.synchronised() in {True, False}
    assert machine.boot == SystemTime().boot


def test_moments_never_jump_and_become_labels(machine: HandTime) -> None:
    machine.set_wall(30.0)
    clock = Clock(machine)
    machine.passes(5.0)
    moment = clock.moment()
    assert (moment, clock.current(moment)) == (35.0, 35.0)
    machine.error = 0.0
    clock.check()
    machine.passes(5.0)
    assert clock.moment() == 40.0
    assert clock.current(moment) == machine.true - 5.0
    assert clock.current(1.7e9) == 1.7e9  # recorded material
