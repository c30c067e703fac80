"""Lowering the load through the real pipeline: fewer embeddings, detections, frames; and who is spared."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from edge_agent.agent.pipeline import Pipeline
from edge_agent.agent.results import FrameOutcome
from edge_agent.core.config import IdentifySettings, TrackerSettings
from edge_agent.core.structures import (
    Candidates,
    CropBatch,
    Decision,
    DecisionKind,
    Detections,
    Embedded,
    Frame,
    Load,
    TrackObservation,
    TrackUpdate,
)
from edge_agent.detect.search import one_by_one
from edge_agent.embed.quality import Graded
from edge_agent.embed.selection import CropSelector
from edge_agent.identify.tracks import TrackTable
from edge_agent.track.crops import UpstreamTracks
from edge_agent.track.tracker import Tracker
from edge_agent.track.upstream import MessageTracks
from tests.agent.test_pipeline import LEVELS, D, Embeds, Live, Recorded, frame, one_person


def observation(track: int, box: Sequence[float], at: float, *, embedded: bool = True) -> TrackObservation:
    vector = np.eye(D, dtype=np.float32)[0] if embedded else None
    return TrackObservation(
        camera="a", track_id=track, frame=1, time=at, box=np.array(box, np.float32), score=0.9, vector=vector,
        quality=1.0,
    )  # fmt: skip


def decided(track: int) -> Decision:
    return Decision(
        id=f"d{track}", kind=DecisionKind.MATCHED, camera="a", track_id=track, frame=1, time=0.0,
        size=(640, 480), box=np.zeros(4, np.float32), identity="p", number=1, name=None, score=0.9,
        runner_up=None, threshold=0.5, rule="site", evidence=6, quality=0.9, first_seen=0.0, last_seen=0.0,
    )  # fmt: skip


class Taught(CropSelector):
    """Tracks and decisions come from a test instead of an identifier."""

    def __init__(self, budget: Any = None, new_track: Callable[[str], float] | None = None) -> None:
        self.records = TrackTable("test", IdentifySettings())
        super().__init__(self.records, budget, new_track)

    def learn(self, update: TrackUpdate, decisions: Sequence[Decision]) -> None:
        self.records.observe(update)
        for decision in decisions:
            track = self.records.get((decision.camera, decision.track_id))
            if track is not None:
                self.records.hold(track, decision.number or 1, founder=False)
                track.decide(decision)


LEFT, RIGHT = (10, 10, 60, 160), (300, 10, 350, 160)


def learnt(*known: bool, at: float = 10.0) -> Taught:
    """Track 1 on the left, track 2 on the right, with an identity or not."""
    selector = Taught()
    seen = (observation(1, LEFT, at), observation(2, RIGHT, at))
    decisions = [decided(n) for n, settled in enumerate(known, start=1) if settled]
    selector.learn(TrackUpdate("a", 1, at, (640, 480), seen, ()), decisions)
    return selector


def spared(selector: Taught, load: Load, boxes: Sequence[Sequence[float]], at: float = 10.2) -> list[bool]:
    (mask,) = selector.spared(load, [Candidates("a", at, np.array(boxes, np.float32).reshape(-1, 4))])
    return mask.tolist()


def test_only_settled_tracks_are_spared_and_only_for_the_interval() -> None:
    selector = learnt(True, False)
    load = Load(settled_interval_s=1.0)
    assert spared(selector, load, [LEFT, RIGHT]) == [True, False]
    assert spared(selector, load, [RIGHT, LEFT]) == [False, True]
    assert spared(selector, Load(), [LEFT, RIGHT]) == [False, False]
    assert spared(selector, load, []) == []
    selector.learn(
        TrackUpdate("a", 2, 11.0, (640, 480), (observation(1, LEFT, 11.0, embedded=False),), ()), []
    )
    assert spared(selector, load, [LEFT], at=11.1) == [False]  # it was last embedded at 10.0


def test_doubtful_boxes_are_embedded() -> None:
    selector = learnt(True, True)
    load = Load(settled_interval_s=1.0)
    beside = (12, 12, 62, 162)
    far = (500, 10, 550, 160)
    assert spared(selector, load, [LEFT, beside]) == [False, False]  # two crops for one track
    assert spared(selector, load, [far, RIGHT]) == [False, True]
    assert spared(selector, load, [LEFT, RIGHT], at=12.0) == [False, False]  # the boxes are old
    selector.learn(TrackUpdate("a", 2, 10.1, (640, 480), (), (1, 2)), [])
    assert spared(selector, load, [LEFT, RIGHT]) == [False, False]  # the tracks have ended


def test_a_cap_takes_the_unsettled_and_the_longest_unseen_first() -> None:
    selector = learnt(True, True)
    selector.learn(TrackUpdate("a", 2, 10.1, (640, 480), (observation(2, RIGHT, 10.1),), ()), [])
    stranger = (500, 10, 550, 160)
    boxes = [LEFT, RIGHT, stranger]
    assert spared(selector, Load(max_crops=3), boxes) == [False, False, False]
    assert spared(selector, Load(max_crops=2), boxes) == [False, True, False]
    assert spared(selector, Load(max_crops=1), boxes) == [True, True, False]
    assert spared(selector, Load(max_crops=1, settled_interval_s=5.0), boxes[:2]) == [True, True]


def test_the_cap_is_one_for_all_cameras() -> None:
    frames = [Candidates(camera, 10.0, np.array([LEFT, RIGHT], np.float32)) for camera in "abc"]
    masks = Taught().spared(Load(max_crops=4), frames)
    assert sum(int((~mask).sum()) for mask in masks) == 4


def test_upstream_tracks_are_known_by_their_number() -> None:
    selector = learnt(True, False)
    boxes = np.zeros((3, 4), np.float32)
    (mask,) = selector.spared(Load(settled_interval_s=1.0), [Candidates("a", 10.2, boxes, (1, 2, None))])
    assert mask.tolist() == [True, False, False]


# ---- through the pipeline


class Counted(Embeds):
    """Notes how many crops were really embedded."""

    def __init__(self) -> None:
        super().__init__()
        self.embedded = 0
        self._masks: list[list[np.ndarray]] = []

    def submit(
        self,
        pairs: Sequence[tuple[np.ndarray, Detections]],
        graded: Sequence[Graded],
        spared: Sequence[np.ndarray] | None,
    ) -> None:
        super().submit(pairs, graded, spared)
        masks = list(spared) if spared is not None else [np.zeros(len(d), bool) for _, d in pairs]
        self._waiting[-1] = [
            Embedded(one.vectors, one.present & ~mask, one.quality, one.reasons)
            for one, mask in zip(self._waiting[-1], masks, strict=True)
        ]
        self.embedded += sum(int((~mask).sum()) for mask in masks)


class Settles:
    """Decides on each track at its third crop."""

    def __init__(self) -> None:
        self.tracks = TrackTable("test", IdentifySettings())
        self.crops: dict[tuple[str, int], int] = {}
        self.ended: list[int] = []

    def replied(self) -> None:
        """Nobody is asked."""

    def at_once(self) -> AbstractContextManager[None]:
        """Nothing is written."""
        return nullcontext()

    def update(self, update: TrackUpdate) -> list[Decision]:
        self.ended += update.ended
        found = []
        for track in self.tracks.observe(update):
            self.crops[track.key] = self.crops.get(track.key, 0) + (track.last.vector is not None)
            if self.crops[track.key] == 3:
                self.tracks.hold(track, 1, founder=False)
                found.append(decided(track.key[1]))
        return found


class Camera(Live):
    """A live camera of ten frames a second that ends the run when it is out of frames."""

    def __init__(self, name: str, count: int, stop: threading.Event) -> None:
        super().__init__(name, [frame(name, n, n * 0.1) for n in range(1, count + 1)])
        self._stop = stop

    def poll(self, *, late: bool = False) -> Frame | CropBatch | None:
        if not self._items:
            self._stop.set()
        return super().poll()


def run(
    load: Load, readers: Sequence[Recorded], stop: threading.Event
) -> tuple[Pipeline, Counted, list[int]]:
    detected: list[int] = []

    def detect(item: Frame) -> Detections:
        detected.append(item.number)
        return one_person(item)

    embed, settles = Counted(), Settles()
    outcomes: list[FrameOutcome] = []
    pipeline = Pipeline(
        readers=readers,
        wake=threading.Event(),
        search=one_by_one(detect),
        embedder=embed,
        make_tracker=lambda camera: Tracker(camera, TrackerSettings(), LEVELS),
        make_upstream_tracker=lambda camera: UpstreamTracks(camera, TrackerSettings()),
        make_message_tracker=lambda camera: MessageTracks(camera, Tracker(camera, TrackerSettings(), LEVELS)),
        identifier=settles,
        on_outcome=outcomes.append,
        selector=CropSelector(settles.tracks),
        load=load,
    )
    pipeline.run(stop)
    return pipeline, embed, detected


def live(load: Load, frames: int = 100) -> tuple[Pipeline, Counted, list[int]]:
    stop = threading.Event()
    return run(load, [Camera("a", frames, stop)], stop)


def test_the_full_load_embeds_every_crop() -> None:
    pipeline, embed, detected = live(Load())
    assert (embed.embedded, len(detected), pipeline.counters.frames["a"]) == (100, 100, 100)


def test_settled_people_are_embedded_once_in_an_interval() -> None:
    _, embed, detected = live(Load(settled_interval_s=1.0))
    assert len(detected) == 100
    assert 10 <= embed.embedded <= 40  # ten seconds, and what it took to settle
    _, rarer, _ = live(Load(settled_interval_s=5.0))
    assert rarer.embedded < embed.embedded


def test_the_tracker_keeps_a_spared_person() -> None:
    pipeline, _, _ = live(Load(settled_interval_s=5.0))
    assert isinstance(pipeline.identifier, Settles)
    assert pipeline.identifier.ended == [1]


def test_a_cap_over_several_cameras() -> None:
    stop = threading.Event()
    cameras = [Camera(name, 50, stop) for name in "abcd"]
    _, embed, detected = run(Load(max_crops=1), cameras, stop)
    assert embed.embedded * 3 < len(detected)


def test_frames_between_are_not_searched() -> None:
    stop = threading.Event()
    camera = Camera("a", 100, stop)
    pipeline, embed, detected = run(Load(every_nth=4), [camera], stop)
    assert detected == list(range(1, 101, 4))
    assert (embed.embedded, pipeline.counters.skipped["a"]) == (25, 75)
    assert len(camera.acknowledged) == 100


def test_recordings_lose_nothing_but_time() -> None:
    source = Recorded("a", [frame("a", n, n * 0.1) for n in range(1, 41)])
    load = Load(settled_interval_s=5.0, max_crops=1, every_nth=4, stretch=1.5)
    pipeline, embed, detected = run(load, [source], threading.Event())
    assert (embed.embedded, len(detected)) == (40, 40)
    assert pipeline.counters.seconds["rest"] > 0


def test_a_run_at_full_load_never_rests() -> None:
    pipeline, _, _ = run(Load(), [Recorded("a", [frame("a", 1, 0.1)])], threading.Event())
    assert "rest" not in pipeline.counters.seconds


def test_a_stop_ends_a_rest() -> None:
    class Slow(Recorded):
        def poll(self, *, late: bool = False) -> Frame | CropBatch | None:
            item = super().poll()
            if item is not None:
                time.sleep(0.01)
            return item

    stop = threading.Event()
    source = Slow("a", [frame("a", n, n * 0.1) for n in range(1, 1000)])
    threading.Timer(0.3, stop.set).start()
    run(Load(stretch=1000.0), [source], stop)
    assert len(source.acknowledged) < 50


def test_a_watched_folder_spares_the_settled_but_drops_nothing() -> None:
    class Folder(Recorded):
        ends = False

    image = np.zeros((100, 40, 3), np.uint8)
    boxes = np.array([[0, 0, 40, 100]], np.float32)
    batches = [CropBatch("a", n, n * 0.1, (image,), boxes, (7,)) for n in range(1, 51)]
    folder = Folder("a", batches)
    pipeline, embed, _ = run(Load(settled_interval_s=2.0, every_nth=4), [folder], threading.Event())
    assert len(folder.acknowledged) == 50
    assert embed.embedded < 30
    assert pipeline.counters.skipped == {}


def test_tracks_of_a_closed_camera_end_and_its_numbers_go_on() -> None:
    stop = threading.Event()
    camera = Camera("a", 40, stop)
    ended_after: list[int] = []

    embed = Counted()
    settles = Settles()

    def on_outcome(outcome: FrameOutcome) -> None:
        if outcome.update.frame == 20 and not ended_after:
            ended_after.append(20)
            pipeline.tasks.put(lambda: pipeline.end_tracks("a"))

    pipeline = Pipeline(
        readers=[camera],
        wake=threading.Event(),
        search=one_by_one(one_person),
        embedder=embed,
        make_tracker=lambda name: Tracker(name, TrackerSettings(), LEVELS),
        make_upstream_tracker=lambda camera: UpstreamTracks(camera, TrackerSettings()),
        make_message_tracker=lambda camera: MessageTracks(camera, Tracker(camera, TrackerSettings(), LEVELS)),
        identifier=settles,
        on_outcome=on_outcome,
        selector=CropSelector(settles.tracks),
    )
    pipeline.run(stop)
    assert settles.ended == [1, 2]
