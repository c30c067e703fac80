"""Whatever the wall clock does: nobody is erased before the time, and everybody a bounded time after it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edge_agent.core.clock import ACCEPT_AFTER_S, CLOCK_FILE, SAVE_INTERVAL_S, Clock
from edge_agent.core.config import GallerySettings
from edge_agent.gallery import Gallery
from edge_agent.gallery.erasure import PictureNotes
from tests.gallery.test_gallery import enrol, machine, open_aged, path, unit
from tests.hand_clock import TODAY, HandTime

__all__ = ["machine", "path"]

YEAR = 365.25 * 86_400
TTL_S = 7200.0
SLACK_S = 0.1
SPANS = st.sampled_from(
    [1.0, 30.0, 59.0, 61.0, 600.0, 3599.0, 3600.0, 7199.0, 7201.0, 10_000.0, 3 * 86_400.0]
)
WALLS = st.one_of(
    st.sampled_from([0.0, -TODAY, 10 * YEAR, -10 * YEAR, 10 * 86_400.0, -7200.0, 59.0, 61.0, 400 * 86_400.0]),
    st.floats(-TODAY, 20 * YEAR),
)


class AnyClock(RuleBasedStateMachine):
    """An agent on a machine whose clock, power and network may change at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="any-clock-"))
        self.machine = HandTime()
        self.seen: dict[int, tuple[float, float]] = {}
        """By person: the real time of the last sighting, and the running time in all boots."""
        self.ran = 0.0
        self.cuts = 0

    @initialize()
    def start(self) -> None:
        self.clock = Clock.open(self.folder / CLOCK_FILE, self.machine)
        self.clock.check()
        hours = TTL_S / 3600
        self.gallery = Gallery(
            self.folder / "gallery.db", GallerySettings(ttl_hours=hours), space="s", dimension=2, owner=True,
            clock=self.clock,
        ).__enter__()  # fmt: skip

    def stop(self) -> None:
        self.gallery.__exit__(None, None, None)

    def teardown(self) -> None:
        """With a clock that stands still where it is, everybody goes in the end."""
        for _ in range(3):
            self.passes(ACCEPT_AFTER_S)
            self.turn()
        self.passes(TTL_S + self.cuts * SAVE_INTERVAL_S)
        self.turn()
        left = len(self.gallery)
        self.stop()
        shutil.rmtree(self.folder)
        assert left == 0

    @rule(seconds=SPANS)
    def passes(self, seconds: float) -> None:
        self.machine.passes(seconds)
        self.ran += seconds

    @rule()
    def turn(self) -> None:
        """One turn of the slow thread of the agent."""
        relabelled = self.clock.check()
        if relabelled is not None:
            self.gallery.retention.relabel(relabelled)
        for person in self.gallery.retention.expire():
            real, _ = self.seen.pop(person.number)
            assert self.machine.true - real >= TTL_S - SLACK_S, "erased before the time"
        if not self.clock.paused:
            late = TTL_S + self.cuts * SAVE_INTERVAL_S + SLACK_S
            assert not [n for n, (_, ran) in self.seen.items() if self.ran - ran > late], "not erased"

    @rule()
    def enrols(self) -> None:
        row = np.eye(2, dtype=np.float32)[:1]
        time = self.clock.moment()
        person = self.gallery.enrol(row, np.ones(1, np.float32), origin="t", camera="c", time=time)
        self.seen[person.number] = self.machine.true, self.ran

    @precondition(lambda self: self.seen)
    @rule(data=st.data())
    def sees(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.seen)))
        self.gallery.touch(number, self.clock.moment())
        self.seen[number] = self.machine.true, self.ran

    @rule(seconds=WALLS, keeps_word=st.booleans())
    def steps(self, seconds: float, keeps_word: bool) -> None:
        """Set the clock to a wrong time; the kernel may not notice."""
        self.machine.error = seconds
        self.machine.sync = self.machine.sync and keeps_word

    @rule()
    def synchronises(self) -> None:
        self.machine.error, self.machine.sync = 0.0, True

    @rule()
    def restarts(self) -> None:
        self.clock.save()
        self.stop()
        self.start()

    @rule()
    def is_killed(self) -> None:
        self.stop()
        self.start()

    @rule(off=st.sampled_from([1.0, 3600.0, 7300.0, 5 * 86_400.0, 500 * 86_400.0]), wall=WALLS)
    def reboots(self, off: float, wall: float) -> None:
        self.clock.save()
        self.boot_again(off, wall)

    @rule(off=st.sampled_from([1.0, 7300.0, 5 * 86_400.0]), wall=WALLS)
    def loses_power(self, off: float, wall: float) -> None:
        """What ran since the last save is not counted; the agent saves every minute."""
        self.turn()
        self.cuts += 1
        self.boot_again(off, wall)

    def boot_again(self, off: float, wall: float) -> None:
        self.stop()
        self.machine.reboot(off)
        self.machine.error = wall
        self.start()

    @invariant()
    def nobody_is_lost(self) -> None:
        assert len(self.gallery) == len(self.seen)


TestAnyClock = AnyClock.TestCase
TestAnyClock.settings = settings(max_examples=12, stateful_step_count=30, deadline=None)


@pytest.mark.slow
def test_many_sequences() -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        AnyClock, settings=settings(max_examples=150, stateful_step_count=50, deadline=None)
    )


def test_a_file_of_an_earlier_version_counts_as_seen_now(path: Path, machine: HandTime) -> None:
    """Nobody knows by which clock its times were written; and it can go back to that version."""
    with open_aged(path, machine, ttl_s=100) as gallery:
        for seed in range(3):
            enrol(gallery, unit(1, seed), time=TODAY - 5 * YEAR * seed)
        statement = "UPDATE identity SET seen = NULL, expires = last_seen + 100"
        with gallery.file.changing() as rows:
            rows.store.run(statement)
            rows.store.run("DELETE FROM meta WHERE key = 'clock'")
    machine.error = 10 * YEAR
    with open_aged(path, machine, ttl_s=100) as gallery:
        assert gallery.retention.expire() == []
        machine.passes(50.0)
        gallery.touch(1, gallery.get(1).last_seen)
        with gallery.file.changing() as rows:  # the earlier version saw another
            rows.store.run("UPDATE identity SET expires = 1.0 WHERE number = 2")
    machine.error = 0.0
    with open_aged(path, machine, ttl_s=100) as gallery:
        machine.passes(60.0)
        assert [person.number for person in gallery.retention.expire()] == [3]


def test_a_file_of_another_device_counts_as_seen_now(tmp_path: Path, machine: HandTime) -> None:
    here, there = tmp_path / "here" / "gallery.db", tmp_path / "there" / "gallery.db"
    with open_aged(here, machine, ttl_s=100) as gallery:
        enrol(gallery, unit(1))
    other = HandTime(booted=TODAY - 1e9)
    with open_aged(there, other, ttl_s=100):
        other.passes(1e6)
    shutil.copy(here, there)
    with open_aged(there, other, ttl_s=100) as gallery:
        assert gallery.retention.expire() == []
        other.passes(101.0)
        assert len(gallery.retention.expire()) == 1


def test_who_is_evicted_depends_on_no_wall_clock(path: Path, machine: HandTime) -> None:
    with open_aged(path, machine, capacity=3) as gallery:
        for error in (10 * YEAR, 0.0, -10 * YEAR):
            machine.error = error
            machine.passes(10.0)
            enrol(gallery, unit(1, int(machine.true)), time=machine.wall())
        enrol(gallery, unit(1, 9), time=machine.wall())
        assert [person.number for person in gallery.identities()] == [2, 3, 4]


def test_pictures_of_the_evicted_stay(path: Path, machine: HandTime) -> None:
    with open_aged(path, machine, capacity=1) as gallery:
        pictures = PictureNotes(gallery.file)
        assert pictures.note(enrol(gallery, unit(1)).number, "hall", 1, 100.0)
        enrol(gallery, unit(1, 1))
        assert pictures.orphaned() == []


def test_labels_are_rebased_when_the_clock_is_set(path: Path, machine: HandTime) -> None:
    machine.set_wall(50.0)
    with open_aged(path, machine, ttl_s=100) as gallery:
        clock = Clock.open(path.with_name(CLOCK_FILE), machine)
        machine.passes(10.0)
        live = enrol(gallery, unit(1), time=clock.moment())
        recorded = enrol(gallery, unit(1, 1), time=1.6e9)
        assert live.last_seen == 60.0
        machine.passes(10.0)
        machine.error = 0.0
        relabelled = clock.check()
        assert relabelled is not None
        gallery.retention.relabel(relabelled)
        now = gallery.get(live.number)
        assert (now.created, now.last_seen) == (TODAY + 10, TODAY + 10)
        assert gallery.get(recorded.number).last_seen == 1.6e9
