from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator

import numpy as np
import pytest
from structlog.testing import capture_logs

from edge_agent.core.errors import SourceError, SourceLost
from edge_agent.core.structures import Frame, SourceState, SourceStatus
from edge_agent.source import read_loop, reader
from edge_agent.source.attempt import stuck_threads
from edge_agent.source.file import FileOptions, FileSource
from edge_agent.source.reader import FrameReader
from tests.source.recordings import write_avi

PICTURE = np.zeros((4, 6, 3), np.uint8)


class Scripted:
    """A source whose attempts are given as functions; the last one is repeated."""

    def __init__(self, *attempts, live=True, ends=False, stall_seconds=5.0):
        self.id = "cam"
        self.live = live
        self.ends = ends
        self.stall_seconds = stall_seconds
        self.attempts = list(attempts)
        self.opened = 0
        self.released = 0

    def frames(self) -> Generator[Frame, None, None]:
        attempt = self.attempts[min(self.opened, len(self.attempts) - 1)]
        self.opened += 1
        try:
            yield from attempt()
        finally:
            self.released += 1


def give(count: int, pause: float = 0.0, then: Exception | None = None):
    def attempt():
        for number in range(1, count + 1):
            yield Frame("cam", number, float(number), PICTURE)
            time.sleep(pause)
        if then is not None:
            raise then

    return attempt


class Watch:
    """A reader with its reports; it tries again at once."""

    def __init__(self, source, *, queue=4, offline_after=30.0):
        self.wake = threading.Event()
        self.statuses: list[SourceStatus] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(read_loop, "BACKOFF_S", (0.01, 0.05))
            patch.setattr(read_loop, "OFFLINE_AFTER_S", offline_after)
            patch.setattr(reader, "QUEUE_LIMIT", queue)
            self.reader = FrameReader(source, wake=self.wake, on_status=self.statuses.append)

    @property
    def states(self) -> list[SourceState]:
        return [status.state for status in self.statuses]

    def until(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not reached within {seconds} s; states {self.states}"
            self.wake.wait(0.02)
            self.wake.clear()

    def drain(self, seconds: float = 10.0) -> list[Frame]:
        items = []

        def over() -> bool:
            while (item := self.reader.poll()) is not None:
                items.append(item)
            return self.reader.ended

        self.until(over, seconds)
        return items


def test_a_file_waits_for_a_slow_consumer_and_ends(tmp_path):
    watch = Watch(FileSource("door", write_avi(tmp_path / "a.avi", 30), FileOptions()), queue=2)
    with watch.reader as reader:
        watch.until(lambda: reader.waiting == 2)
        time.sleep(0.05)
        assert reader.waiting == 2
        assert not reader.ended
        items = watch.drain()
    assert [frame.number for frame in items] == list(range(1, 31))
    assert (reader.delivered, reader.dropped, reader.error) == (30, 0, None)
    assert watch.states == [SourceState.ONLINE, SourceState.ENDED]


def test_a_live_source_keeps_only_the_newest():
    watch = Watch(Scripted(give(50, then=SourceLost("over")), give(0, pause=1)))
    assert watch.reader.poll() is None  # from now on somebody looks
    with watch.reader as reader:
        watch.until(lambda: SourceState.RECONNECTING in watch.states)
        frame = reader.poll()
        assert frame.number == 50
        assert reader.poll() is None
        assert (reader.delivered, reader.dropped) == (1, 49)


def test_a_late_frame_of_a_live_source_can_be_had_too():
    watch = Watch(Scripted(give(50, then=SourceLost("over")), give(0, pause=1)))
    assert watch.reader.poll() is None
    with watch.reader as reader:
        watch.until(lambda: SourceState.RECONNECTING in watch.states)
        assert [reader.poll(late=True).number for _ in range(2)] == [49, 50]
        assert reader.poll(late=True) is None
        assert (reader.delivered, reader.dropped) == (2, 48)


def test_an_outage_does_not_end_the_run_and_recovery_is_logged_once():
    source = Scripted(
        give(2), give(0, then=SourceLost("refused")), give(0, then=SourceLost("refused")), give(500, 0.01)
    )
    watch = Watch(source)
    with capture_logs() as logs, watch.reader as reader:
        watch.until(lambda: watch.states.count(SourceState.ONLINE) == 2)
        assert not reader.ended
        assert reader.error is None
    assert watch.states == [SourceState.ONLINE, SourceState.RECONNECTING, SourceState.ONLINE]
    assert watch.statuses[1].reason == "the stream ended"
    levels = [entry["log_level"] for entry in logs if entry["event"].startswith("source_")]
    assert levels == ["debug", "warning", "debug", "debug", "info"]
    assert source.released == source.opened


def test_a_long_outage_is_offline_but_goes_on_trying():
    source = Scripted(give(0, then=SourceLost("no route")))
    watch = Watch(source, offline_after=0.1)
    with watch.reader:
        watch.until(lambda: SourceState.OFFLINE in watch.states)
        tried = source.opened
        watch.until(lambda: source.opened > tried + 2)
    assert watch.states == [SourceState.RECONNECTING, SourceState.OFFLINE]


def test_a_permanent_fault_ends_with_the_error(tmp_path):
    watch = Watch(FileSource("door", tmp_path / "missing.mp4", FileOptions()))
    with watch.reader as reader:
        watch.until(lambda: reader.ended)
        assert isinstance(reader.error, SourceError)
        assert "missing.mp4" in str(reader.error)
    assert watch.states == [SourceState.OFFLINE]


FAULTS = (
    ZeroDivisionError("bug"),
    UnicodeEncodeError("utf-8", "\udce9", 0, 1, "no"),
    MemoryError(),
    OSError(5, "io"),
)


@pytest.mark.parametrize("fault", FAULTS, ids=repr)
def test_an_unexpected_error_starts_the_source_again(fault):
    source = Scripted(give(2, then=fault), give(0, then=fault), give(500, 0.01))
    watch = Watch(source)
    with capture_logs() as logs, watch.reader as reader:
        watch.until(lambda: watch.states.count(SourceState.ONLINE) == 2)
        assert (reader.failures, reader.error, reader.ended) == (2, None, False)
    failed = [line for line in logs if line["event"] == "source_failed"]
    assert [(line["camera"], line["exc_info"]) for line in failed] == [("cam", True)] * 2
    assert source.opened == source.released == 3


def test_a_camera_and_a_watched_folder_never_end_by_errors():
    source = Scripted(give(1, then=ZeroDivisionError("bug")), live=False)
    watch = Watch(source)
    with watch.reader as reader:
        watch.until(lambda: (reader.poll(), reader.failures > 6)[1])
        assert not reader.ended


class Recording(Scripted):
    rewinds = True


def test_a_recording_goes_on_where_an_error_ended_it():
    source = Recording(
        give(3, then=ZeroDivisionError("bug")), give(5, then=MemoryError()), give(9), live=False, ends=True
    )
    watch = Watch(source)
    with watch.reader as reader:
        assert [frame.number for frame in watch.drain()] == list(range(1, 10))
        assert (reader.failures, reader.error) == (2, None)
    assert watch.states[-1] is SourceState.ENDED


def test_an_unexpected_error_shows_no_password():
    source = Scripted(
        give(0, then=RuntimeError("rtsp://me:secret@host broke")), give(0, then=SourceError("x"))
    )
    watch = Watch(source)
    with watch.reader as reader:
        watch.until(lambda: reader.ended)
    reasons = [status.reason for status in watch.statuses]
    assert "broke" in reasons[0]
    assert "secret" not in "".join(reasons)


@pytest.mark.parametrize("kind", [Recording, Scripted])
def test_a_recording_that_fails_at_the_same_place_is_given_up(kind):
    source = kind(give(3, then=ZeroDivisionError("bug")), live=False, ends=True)
    watch = Watch(source)
    with watch.reader as reader:
        items = watch.drain()
        assert reader.failures == source.opened == 3
        assert str(reader.error) == (
            "source cam: unexpected error: ZeroDivisionError('bug'), 3 times after item 3"
        )
    assert len(items) == (3 if kind is Recording else 9)
    assert watch.states[-1] is SourceState.OFFLINE


def test_errors_at_different_places_do_not_end_a_recording():
    source = Recording(
        *(give(count, then=ZeroDivisionError("bug")) for count in (1, 1, 2, 2, 1, 3)), give(4),
        live=False, ends=True,
    )  # fmt: skip
    watch = Watch(source)
    with watch.reader as reader:
        assert [frame.number for frame in watch.drain()] == [1, 2, 3, 4]
        assert (reader.failures, reader.error) == (6, None)


def test_an_error_in_the_report_of_a_state_does_not_end_the_source():
    source = Scripted(give(1, then=SourceLost("away")), give(500, 0.01))
    watch = Watch(source)
    reports = iter([ZeroDivisionError("bug"), OSError("full")])

    def report(status: SourceStatus) -> None:
        for fault in reports:
            raise fault
        watch.statuses.append(status)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read_loop, "BACKOFF_S", (0.01, 0.05))
        reader = FrameReader(source, wake=watch.wake, on_status=report)
    with capture_logs() as logs, reader:
        watch.until(lambda: len(watch.statuses) == 1)
        assert (reader.state, source.opened, reader.ended) == (SourceState.ONLINE, 2, False)
    assert [line["event"] for line in logs].count("source_report_failed") == 2


def test_one_source_that_fails_does_not_stop_another():
    bad = Watch(Scripted(give(1, then=ZeroDivisionError("bug"))))
    good = Watch(Scripted(give(60, 0.005), live=False, ends=True))
    with bad.reader, good.reader:
        assert len(good.drain()) == 60
        assert bad.reader.failures > 0


def test_a_hanging_read_is_noticed_and_replaced():
    release = threading.Event()

    def hang():
        yield Frame("cam", 1, 1.0, PICTURE)
        release.wait(20)
        yield Frame("cam", 666, 1.0, PICTURE)

    watch = Watch(Scripted(hang, give(500, 0.01), stall_seconds=0.3))
    try:
        with watch.reader as reader:
            watch.until(lambda: watch.states.count(SourceState.ONLINE) == 2)
            assert watch.states[1] is SourceState.RECONNECTING
            assert "no frame for 0.3 s" in watch.statuses[1].reason
            release.set()
            seen = []
            watch.until(lambda: seen.append(reader.poll()) or len(seen) > 20)
            assert 666 not in [frame.number for frame in seen if frame]
    finally:
        release.set()


def test_hanging_reads_do_not_pile_up():
    release = threading.Event()

    def hang():
        release.wait(20)
        yield Frame("cam", 1, 1.0, PICTURE)

    source = Scripted(hang, stall_seconds=0.05)
    watch = Watch(source)
    try:
        with watch.reader as reader:
            watch.until(lambda: source.opened == 3)
            time.sleep(0.5)
            assert source.opened == 3
            release.set()
            watch.until(lambda: reader.poll() is not None)
    finally:
        release.set()


@pytest.mark.parametrize("hangs", [True, False])
def test_stop_returns_in_two_seconds(hangs):
    release = threading.Event()

    def hang():
        yield Frame("cam", 1, 1.0, PICTURE)
        if hangs:
            release.wait(20)
        else:
            yield from give(5)()

    watch = Watch(Scripted(hang, live=hangs), queue=1)
    try:
        with watch.reader as reader:
            watch.until(lambda: reader.waiting == 1)
            began = time.monotonic()
        assert time.monotonic() - began < 2.0  # the promise of `stop`, not a speed
        assert stuck_threads() == int(hangs)
        reader.stop()
    finally:
        release.set()
    watch.until(lambda: stuck_threads() == 0)


def test_a_silent_folder_is_online_and_alive_and_can_be_stopped():
    def silent():
        while True:
            yield None
            time.sleep(0.02)

    source = Scripted(silent, live=False, stall_seconds=None)
    watch = Watch(source)
    with watch.reader as reader:
        watch.until(lambda: watch.states == [SourceState.ONLINE])
        before = reader.heartbeat.at
        watch.until(lambda: reader.heartbeat.at > before)
        assert reader.poll() is None
    assert source.released == 1


def test_progress_stops_only_while_frames_are_due():
    release = threading.Event()

    def slow():
        yield Frame("cam", 1, 1.0, PICTURE)
        release.wait(20)

    watch = Watch(Scripted(slow, stall_seconds=10.0))
    try:
        with watch.reader as reader:
            watch.until(lambda: SourceState.ONLINE in watch.states)
            before = reader.heartbeat.at
            time.sleep(1.3)
            assert reader.heartbeat.at == before
            release.set()
            watch.until(lambda: reader.heartbeat.at > before)
    finally:
        release.set()


def test_a_closed_camera_is_given_back_and_read_on_later():
    source = Scripted(give(10_000, 0.01))
    watch = Watch(source)
    with watch.reader as reader:
        watch.until(lambda: reader.poll() is not None and watch.states == [SourceState.ONLINE])
        reader.close("too hot")
        watch.until(lambda: watch.states[-1:] == [SourceState.DISABLED])
        watch.until(lambda: source.released == 1)
        assert reader.poll() is None
        assert reader.heartbeat.idle == "disabled: too hot"
        before = reader.heartbeat.at
        watch.until(lambda: reader.heartbeat.at > before)  # it is closed for a reason, not stuck
        assert (source.opened, reader.ended) == (1, False)
        reader.reopen()
        watch.until(lambda: reader.poll() is not None and watch.states[-1] == SourceState.ONLINE)
        reader.close("again")
        watch.until(lambda: watch.states[-1:] == [SourceState.DISABLED])
    watch.until(lambda: source.released == source.opened == 2)
    states = [SourceState.ONLINE, SourceState.DISABLED]
    assert watch.states == states * 2
    assert watch.statuses[1].reason == "too hot"


def test_a_camera_that_hangs_can_be_closed_too():
    release = threading.Event()

    def hang():
        yield Frame("cam", 1, 1.0, PICTURE)
        release.wait(20)
        yield Frame("cam", 666, 1.0, PICTURE)

    watch = Watch(Scripted(hang, give(500, 0.01), stall_seconds=20.0))
    try:
        with watch.reader as reader:
            watch.until(lambda: SourceState.ONLINE in watch.states)
            reader.close("too hot")
            watch.until(lambda: watch.states[-1:] == [SourceState.DISABLED])
            reader.reopen()
            watch.until(lambda: watch.states[-1:] == [SourceState.ONLINE])
            release.set()
            seen = []
            watch.until(lambda: seen.append(reader.poll()) or len(seen) > 20)
            assert 666 not in [frame.number for frame in seen if frame]
    finally:
        release.set()


def test_the_state_of_a_reader_is_reported(tmp_path):
    watch = Watch(FileSource("door", write_avi(tmp_path / "a.avi", 30), FileOptions()), queue=2)
    with watch.reader as reader:
        watch.until(lambda: reader.waiting == 2)
        assert reader.heartbeat.idle == "waits for the pipeline"
        watch.drain()
        assert reader.heartbeat.idle == "every frame was read"
