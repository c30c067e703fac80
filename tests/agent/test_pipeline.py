"""The data flow: order, batches over cameras, failures, ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import pytest

from edge_agent.agent.pipeline import MAX_ENGINE_FAILURES, Pipeline
from edge_agent.agent.results import FrameOutcome
from edge_agent.agent.sources import SourcePoller
from edge_agent.core.config import EngineSettings, TrackerSettings
from edge_agent.core.errors import EngineError, EngineUnavailable
from edge_agent.core.structures import (
    CropBatch,
    Decision,
    Detections,
    Embedded,
    Frame,
    ScoreLevels,
    TrackUpdate,
)
from edge_agent.detect.search import Begin, Search, one_by_one
from edge_agent.embed.quality import Graded
from edge_agent.track.crops import UpstreamTracks
from edge_agent.track.tracker import Tracker
from edge_agent.track.upstream import MessageTracks

D = 4
LEVELS = ScoreLevels(low=0.1, high=0.6, new_track=0.6)


class Recorded:
    """A source whose items are all there."""

    live = False
    ends = True
    dropped = 0
    backlog = None

    def __init__(self, camera: str, items: Sequence[Frame | CropBatch]) -> None:
        self.camera = camera
        self._items = list(items)
        self.acknowledged: list[int] = []

    @property
    def ended(self) -> bool:
        return not self._items

    def poll(self, *, late: bool = False) -> Frame | CropBatch | None:
        return self._items.pop(0) if self._items else None

    def done(self, item: Frame | CropBatch) -> None:
        self.acknowledged.append(item.number)


class Live(Recorded):
    live = True
    ends = False

    @property
    def ended(self) -> bool:
        return False


def frame(camera: str, number: int, time: float) -> Frame:
    return Frame(camera, number, time, np.full((120, 160, 3), number % 256, np.uint8))


def one_person(_: Frame) -> Detections:
    return Detections(np.array([[10, 10, 50, 110]], np.float32), np.array([0.9], np.float32))


class Embeds:
    """Gives every detection the same vector; fails on request."""

    waited_s = 0.0

    def __init__(self, *, fail: range = range(0), error: type[EngineError] = EngineError) -> None:
        self.sizes: list[int] = []
        self._error = error
        self._waiting: list[list[Embedded]] = []
        self._fail = fail
        self._collected = 0

    def grade(self, pairs: Sequence[tuple[np.ndarray, Detections]]) -> list[Graded]:
        return [
            Graded(np.ones(len(found), np.float32), ("",) * len(found), found.boxes.astype(np.int32))
            for _, found in pairs
        ]

    def submit(
        self, pairs: Sequence[tuple[np.ndarray, Detections]], graded: Sequence[Graded], spared: object
    ) -> None:
        assert len(graded) == len(pairs)
        assert len(self._waiting) < 2, "more than two batches in flight"
        self.sizes.append(len(pairs))
        self._waiting.append([self._result(len(detections)) for _, detections in pairs])

    @property
    def full(self) -> bool:
        """One round is on its way while another is used."""
        return len(self._waiting) > 1

    @property
    def queue(self) -> tuple[int, int]:
        """Nothing waits."""
        return 0, 1

    @property
    def due_s(self) -> float:
        """All is there at once."""
        return 0.0

    def keep_fed(self) -> None:
        """Nothing is packed elsewhere."""

    def collect(self) -> list[Embedded]:
        self._collected += 1
        result = self._waiting.pop(0)
        if self._collected - 1 in self._fail:
            raise self._error("broken on purpose")
        return result

    @staticmethod
    def _result(rows: int) -> Embedded:
        vectors = np.tile(np.eye(D, dtype=np.float32)[:1], (rows, 1))
        return Embedded(vectors, np.ones(rows, bool), np.ones(rows, np.float32), ("",) * rows)


class Notes:
    """An identifier that only records its input."""

    def __init__(self) -> None:
        self.updates: list[TrackUpdate] = []

    def update(self, update: TrackUpdate) -> list[Decision]:
        self.updates.append(update)
        return []

    def at_once(self) -> AbstractContextManager[None]:
        return nullcontext()

    def replied(self) -> None:
        """Nobody is asked."""


def build(
    readers: Sequence[Recorded], embed: Embeds | None = None, search: Begin | None = None
) -> tuple[Pipeline, Notes, list[FrameOutcome]]:
    notes, outcomes = Notes(), []
    pipeline = Pipeline(
        readers=readers,
        wake=threading.Event(),
        search=search or one_by_one(one_person),
        embedder=embed or Embeds(),
        make_tracker=lambda camera: Tracker(camera, TrackerSettings(), LEVELS),
        make_upstream_tracker=lambda camera: UpstreamTracks(camera, TrackerSettings()),
        make_message_tracker=lambda camera: MessageTracks(camera, Tracker(camera, TrackerSettings(), LEVELS)),
        identifier=notes,
        on_outcome=outcomes.append,
    )
    return pipeline, notes, outcomes


class Slow:
    """A search whose end is asked for; notes how many are in flight."""

    def __init__(self) -> None:
        self.flying = self.most = 0
        self.asked: list[tuple[str, int]] = []

    def __call__(self, frames: Sequence[Frame]) -> Search:
        self.flying += 1
        self.most = max(self.most, self.flying)
        self.asked += [(frame.camera, frame.number) for frame in frames]
        return Search(lambda: self._end(frames))

    def _end(self, frames: Sequence[Frame]) -> list[Detections]:
        self.flying -= 1
        return [one_person(frame) for frame in frames]


def test_a_search_that_takes_time_changes_no_outcome() -> None:
    def recordings() -> list[Recorded]:
        return [
            Recorded("a", [frame("a", n, n * 0.1) for n in range(1, 31)]),
            Recorded("b", [frame("b", n, n * 0.25) for n in range(1, 13)]),
        ]

    plain, _, wanted = build(recordings())
    plain.run(threading.Event())
    slow, readers = Slow(), recordings()
    pipeline, _, outcomes = build(readers, search=slow)
    pipeline.run(threading.Event())
    told = [
        [(one.update.camera, one.update.frame, [track.track_id for track in one.update.seen]) for one in run]
        for run in (outcomes, wanted)
    ]
    assert told[0] == told[1]
    assert [reader.acknowledged for reader in readers] == [list(range(1, 31)), list(range(1, 13))]
    assert sorted(slow.asked) == sorted((r.camera, n) for r in readers for n in r.acknowledged)
    assert (slow.flying, slow.most) == (0, 2)


def test_a_live_frame_does_not_wait_for_the_next_one() -> None:
    stop = threading.Event()
    pipeline, _, outcomes = build([Live("a", [frame("a", 1, 0.0)])], search=Slow())
    pipeline.on_outcome = lambda outcome: (outcomes.append(outcome), stop.set())
    late = threading.Timer(5.0, stop.set)
    late.start()
    pipeline.run(stop)
    late.cancel()
    late.join()
    assert [outcome.update.frame for outcome in outcomes][:1] == [1]


def test_recordings_come_in_the_order_of_their_times() -> None:
    a = Recorded("a", [frame("a", n, n * 0.1) for n in range(1, 11)])
    b = Recorded("b", [frame("b", n, n * 0.25) for n in range(1, 5)])
    pipeline, notes, outcomes = build([a, b])
    pipeline.run(threading.Event())
    seen = [(u.time, u.camera) for u in notes.updates if u.seen or not u.ended]
    assert seen == sorted(seen)
    assert pipeline.counters.frames == {"a": 10, "b": 4}
    assert a.acknowledged == list(range(1, 11))
    assert len(outcomes) == 14 + 2  # and the end of each camera
    assert {u.camera for u in notes.updates if u.ended} == {"a", "b"}


def test_every_live_camera_is_in_one_batch() -> None:
    cameras = [Live(name, [frame(name, 1, 1.0)]) for name in "abc"]
    embed = Embeds()
    pipeline, _, _ = build(cameras, embed)
    stop = threading.Event()
    pipeline.on_outcome = lambda outcome: stop.set() if outcome.update.camera == "c" else None
    pipeline.run(stop)
    assert embed.sizes == [3]


def test_a_failed_batch_is_dropped_and_counted_and_tracking_goes_on() -> None:
    source = Recorded("a", [frame("a", n, n * 0.1) for n in range(1, 21)])
    pipeline, notes, _ = build([source], Embeds(fail=range(1, 3)))
    pipeline.run(threading.Event())
    assert pipeline.counters.failed_batches == 2
    assert len(source.acknowledged) == 20
    tracks = {o.track_id for u in notes.updates for o in u.seen}
    assert tracks == {1}
    blind = [o for u in notes.updates for o in u.seen if o.vector is None]
    assert len(blind) == 8  # two batches of four frames


def test_an_engine_that_keeps_failing_ends_the_run() -> None:
    source = Recorded("a", [frame("a", n, n * 0.1) for n in range(1, 60)])
    pipeline, _, _ = build([source], Embeds(fail=range(100)))
    with pytest.raises(EngineError, match="on purpose"):
        pipeline.run(threading.Event())
    assert pipeline.counters.failed_batches == MAX_ENGINE_FAILURES


def test_a_server_that_is_away_does_not_end_the_run() -> None:
    source = Recorded("a", [frame("a", n, n * 0.1) for n in range(1, 60)])
    pipeline, notes, _ = build([source], Embeds(fail=range(12), error=EngineUnavailable))
    pipeline.run(threading.Event())
    assert pipeline.counters.failed_batches == 12 > MAX_ENGINE_FAILURES
    assert len(source.acknowledged) == 59
    assert [o for u in notes.updates[48:] for o in u.seen if o.vector is None] == []


def test_recordings_wait_for_the_server_and_cameras_do_not() -> None:
    for kind, waits in ((Recorded, 3), (Live, 0)):
        source = kind("a", [frame("a", n, n * 0.1) for n in range(1, 4)])
        pipeline, _, outcomes = build([source])
        calls, stop = iter([True, True, True]), threading.Event()
        pipeline.hold = lambda calls=calls: next(calls, False)  # type: ignore[misc]
        pipeline.on_outcome = lambda outcome, seen=outcomes, stop=stop: (
            seen.append(outcome), stop.set() if len(seen) == 3 else None,
        )  # fmt: skip
        pipeline.run(stop)
        assert source.acknowledged == [1, 2, 3]
        assert 3 - len(list(calls)) == waits


def test_rounds_that_shared_a_failed_batch_count_once() -> None:
    class Shared(Embeds):
        problem = EngineError("one batch")

        def collect(self) -> list[Embedded]:
            super().collect()
            raise self.problem

    source = Recorded("a", [frame("a", n, n * 0.1) for n in range(1, 60)])
    pipeline, _, _ = build([source], Shared())
    pipeline.run(threading.Event())
    assert pipeline.counters.failed_batches == 1
    assert len(source.acknowledged) == 59


def test_a_frame_that_comes_while_the_engine_works_is_started_at_once() -> None:
    class Working(Embeds):
        """Its results are there as soon as two rounds were started."""

        @property
        def due_s(self) -> float:
            return 60.0 if len(self.sizes) < 2 else 0.0

    class Later(Live):
        """Its second frame comes when the first was started."""

        def poll(self, *, late: bool = False) -> Frame | CropBatch | None:
            pipeline.wake.set()
            return super().poll() if len(self._items) + len(embed.sizes) == 2 else None

    embed = Working()
    source = Later("a", [frame("a", 1, 0.1), frame("a", 2, 0.2)])
    pipeline, _, outcomes = build([source], embed)
    stop = threading.Event()
    pipeline.on_outcome = lambda outcome: (
        outcomes.append(outcome),
        stop.set() if len(outcomes) == 2 else None,
    )
    pipeline.run(stop)
    assert embed.sizes == [1, 1]
    assert source.acknowledged == [1, 2]


def test_crops_of_an_upstream_keep_its_tracks() -> None:
    image = np.zeros((100, 40, 3), np.uint8)
    boxes = np.array([[0, 0, 40, 100], [50, 0, 90, 100]], np.float32)
    batches = [CropBatch("up-1", n, n * 0.1, (image, image), boxes, (7, 9)) for n in range(1, 6)]
    pipeline, notes, _ = build([Recorded("up", batches)])
    pipeline.run(threading.Event())
    assert [[o.track_id for o in u.seen] for u in notes.updates[:-1]] == [[7, 9]] * 5
    assert sorted(notes.updates[-1].ended) == [7, 9]


def test_stop_ends_the_run_and_its_tracks() -> None:
    class Endless(Live):
        def poll(self, *, late: bool = False) -> Frame:
            counted.append(1)
            return frame(self.camera, len(counted), len(counted) * 0.1)

    counted: list[int] = []
    pipeline, notes, _ = build([Endless("a", [])])
    stop = threading.Event()
    pipeline.on_outcome = lambda _: stop.set() if len(counted) > 10 else None
    pipeline.run(stop)
    assert notes.updates[-1].ended == (1,)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())  # threads of earlier tests may end meanwhile
    yield
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize(("max_delay_ms", "cameras"), [(0, ["early"]), (5000, ["early", "late"])])
def test_max_delay_is_the_wait_for_the_other_cameras(max_delay_ms: int, cameras: list[str]) -> None:
    wake = threading.Event()

    class Camera:
        """Has its item at the first poll, or at a later one."""

        live, ended, backlog = True, False, None

        def __init__(self, camera: str, polls: int) -> None:
            self.camera, self._polls = camera, polls

        def poll(self, *, late: bool = False) -> str | None:
            self._polls -= 1
            wake.set()
            return self.camera if self._polls == 0 else None

    settings = EngineSettings(max_delay_ms=max_delay_ms)
    poller = SourcePoller([Camera("early", 1), Camera("late", 3)], wake, settings.max_delay_ms / 1000)
    assert [item for _, item in poller.poll(wait_for_others=True)] == cameras


def test_a_camera_that_keeps_items_gives_them_all_in_one_round() -> None:
    class Messages(Live):
        backlog = 64

    camera = Messages("a", [frame("a", n, n * 0.1) for n in range(1, 21)])
    poller = SourcePoller([camera], threading.Event(), 0.0)  # type: ignore[list-item]  # has what is used
    taken = [[item.number for _, item in poller.poll(wait_for_others=False)] for _ in range(2)]
    assert taken == [list(range(1, 17)), [17, 18, 19, 20]]


def test_a_camera_gives_what_is_late_where_it_is_wanted() -> None:
    cameras = [Live(name, [frame(name, n, n * 0.1) for n in range(1, 9)]) for name in "ab"]
    poller = SourcePoller(cameras, threading.Event(), 0.0)  # type: ignore[arg-type]  # has what is used
    taken = [(reader.camera, item.number) for reader, item in poller.poll(wait_for_others=False, late=True)]
    assert taken == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]
    assert [reader.camera for reader, _ in poller.poll(wait_for_others=False)] == ["a", "b"]


def test_live_cameras_take_turns_where_a_round_takes_few_of_them() -> None:
    cameras = [Live(name, [frame(name, n, n * 0.1) for n in range(1, 9)]) for name in "abcde"]
    poller = SourcePoller(cameras, threading.Event(), 0.0)  # type: ignore[arg-type]  # has what is used
    taken = [[reader.camera for reader, _ in poller.poll(wait_for_others=True, most=2)] for _ in range(5)]
    assert taken == [["a", "b"], ["c", "d"], ["e", "a"], ["b", "c"], ["d", "e"]]
    assert len(poller.poll(wait_for_others=False)) == 5


def test_a_round_takes_as_many_cameras_as_fill_a_batch() -> None:
    embed = Embeds()
    cameras = [Live(name, [frame(name, n, n * 0.1) for n in range(1, 41)]) for name in "abcdefgh"]
    pipeline, _, outcomes = build(cameras, embed)
    pipeline.round_crops, stop = 3, threading.Event()
    pipeline.on_outcome = lambda outcome: (
        outcomes.append(outcome),
        stop.set() if len(outcomes) == 8 * 40 else None,
    )
    pipeline.run(stop)
    assert embed.sizes[0] == 8, "nothing is known yet"
    assert 1 <= min(embed.sizes) <= max(embed.sizes[-40:]) <= 3
    assert {outcome.update.camera for outcome in outcomes} == set("abcdefgh")
