"""The data flow: read, detect, embed, track, identify, hand over.

One thread drives all cameras. Each round takes what the readers have, finds people, and starts to embed the
crops of all cameras together; while the engine works on it, the next round is read and detected. When its
embeddings are there, first the next crops are started, then it is decided. Frames of one camera stay in
order. Recorded files are read in the order of their times, so that a run over files gives the same result
every time; live cameras give their newest frame and wait for nobody.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
import structlog
from numpy.typing import NDArray

from edge_agent.core.errors import EngineError
from edge_agent.core.heartbeat import Heartbeat
from edge_agent.core.structures import (
    Candidates,
    CropBatch,
    Decision,
    Detections,
    Embedded,
    Frame,
    Load,
    TrackUpdate,
)

__all__ = ["Counters", "FrameOutcome", "Identify", "Pipeline", "Read", "Track", "TrackGiven"]

_log = structlog.get_logger(__name__)

FILE_BURST = 4
"""Frames taken from recorded files in one round: enough for a batch worth the engine's while."""

IDLE_WAIT_S = 0.2
"""Longest sleep while no source has anything; a new item ends it early."""

LONGEST_REST_S = 5.0
"""Longest rest after one round."""

MAX_ENGINE_FAILURES = 5
"""Failed batches in a row after which the engine is taken to be broken and the run ends."""


class Read(Protocol):
    """A source that is being read; see `edge_agent.source.reader.FrameReader`."""

    @property
    def camera(self) -> str:
        """Id of the source."""

    @property
    def live(self) -> bool:
        """Whether unread frames are dropped."""

    @property
    def ends(self) -> bool:
        """Whether it is a recording, whose frames are put in order with those of other recordings."""

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""

    @property
    def dropped(self) -> int:
        """Items of a live source that a newer one replaced before they were polled."""

    def poll(self) -> Frame | CropBatch | None:
        """The next item, or None."""

    def done(self, item: Frame | CropBatch) -> None:
        """The item has been dealt with."""


class Embed(Protocol):
    """See `edge_agent.embed.embedder.Embedder`."""

    @property
    def full(self) -> bool:
        """Whether so much is on its way that `collect` is better than another `submit`."""

    def submit(
        self,
        pairs: Sequence[tuple[NDArray[np.uint8], Detections]],
        spared: Sequence[NDArray[np.bool_]] | None = None,
    ) -> None:
        """Start a batch, without the detections that are spared."""

    def collect(self) -> list[Embedded]:
        """Results of the oldest batch."""

    @property
    def due_s(self) -> float:
        """Seconds for which `collect` would wait at least."""

    def keep_fed(self) -> None:
        """Let the engine have what is ready for it; must not block."""


class Track(Protocol):
    """See `edge_agent.track.tracker.Tracker`."""

    def finish(self, frame: int, time: float, size: tuple[int, int]) -> TrackUpdate:
        """End every track."""


class TrackGiven(Protocol):
    """See `edge_agent.track.tracker.UpstreamTracks`."""

    def update(self, crops: CropBatch, embedded: Sequence[Embedded]) -> TrackUpdate:
        """Take in the crops of one frame."""

    def finish(self, frame: int, time: float, size: tuple[int, int]) -> TrackUpdate:
        """End every track."""


class Identify(Protocol):
    """See `edge_agent.identify.Identifier`."""

    def update(self, update: TrackUpdate) -> list[Decision]:
        """Decide on one frame."""


class Thin(Protocol):
    """See `edge_agent.embed.selection.Thinning`."""

    def spared(self, load: Load, frames: Sequence[Candidates]) -> list[NDArray[np.bool_]]:
        """Which crops of each frame shall not be embedded."""

    def learn(self, update: TrackUpdate, decisions: Sequence[Decision]) -> None:
        """Take in what was seen and decided."""


@dataclass(frozen=True, slots=True)
class FrameOutcome:
    """What became of one frame.

    Attributes:
        update: its tracks.
        decisions: what was decided, in order.
        latency_ms: milliseconds by stage (`detect`, `embed`, `decide`) and, for live sources, `total` from
            capture to decision.
        trace: id of the frame's trace, 32 hex digits; its events carry it to the subscribers.
    """

    update: TrackUpdate
    decisions: tuple[Decision, ...]
    latency_ms: Mapping[str, float]
    trace: str


@dataclass(slots=True)
class Counters:
    """What happened since the start."""

    frames: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    """Frames that nobody was looked for in, to lower the load."""
    spared: dict[str, int] = field(default_factory=dict)
    """Crops that were not embedded, to lower the load or to keep up, by camera."""
    detections: int = 0
    batches: int = 0
    failed_batches: int = 0
    decisions: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """Time spent by stage, seconds."""

    def spend(self, stage: str, seconds: float) -> None:
        """Add to the time of a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


@dataclass(slots=True)
class _Pending:
    """One item whose crops are with the engine."""

    reader: Read
    item: Frame | CropBatch
    detections: Detections | None
    pairs: int
    detect_s: float
    trace: str


@dataclass(slots=True)
class _Round:
    items: list[_Pending]
    submitted: float


@dataclass(slots=True)
class _Collected:
    """A round whose embeddings are there."""

    items: list[_Pending]
    embedded: list[Embedded]
    embed_s: float


@dataclass(slots=True)
class Pipeline:
    """Drives the stages until the sources end or `stop` is set.

    Args:
        readers: sources that are being read; entered and left by the caller.
        wake: set by the readers when they have something.
        detect: finds people in a frame.
        embed: the embedding stage, entered.
        tracker: makes the tracker of a camera, at its first frame.
        together: lets trackers take in a frame each, see `edge_agent.track.tracker.update_together`.
        given: makes what follows the crops of one upstream camera.
        identify: decides.
        hand_over: called with every outcome, in order; must not block.
        max_delay_s: longest wait of one camera's crops for another's, live sources only.
    """

    readers: Sequence[Read]
    wake: threading.Event
    detect: Callable[[Frame], Detections]
    embed: Embed
    tracker: Callable[[str], Track]
    together: Callable[[Sequence[Any]], list[TrackUpdate]]
    given: Callable[[str], TrackGiven]
    identify: Identify
    hand_over: Callable[[FrameOutcome], None]
    max_delay_s: float = 0.02
    chores: deque[Callable[[], None]] = field(default_factory=deque)
    """Functions that other threads want run on the driving thread, between two frames."""
    counters: Counters = field(default_factory=Counters)
    thin: Thin | None = None
    """Chooses whom to spare, to lower the load or to keep up."""
    load: Load = field(default_factory=Load)
    """How much work is allowed; another thread may replace it at any time."""
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    """What the driving thread does, by stage, and since when."""
    _trackers: dict[str, Track] = field(default_factory=dict)
    _given: dict[str, TrackGiven] = field(default_factory=dict)
    _heads: dict[str, Frame | CropBatch] = field(default_factory=dict)
    _rounds: deque[_Round] = field(default_factory=deque)
    _collected: _Collected | None = None
    """What is decided on next."""
    _latest: dict[str, TrackUpdate] = field(default_factory=dict)
    _finished: set[str] = field(default_factory=set)
    _turn: dict[str, int] = field(default_factory=dict)
    _failures: int = 0
    _problem: EngineError | None = None
    """The latest failure of the engine."""

    def run(self, stop: threading.Event) -> None:
        """Until every source has ended or `stop` is set.

        Raises:
            EngineError: the engine failed `MAX_ENGINE_FAILURES` times in a row.
        """
        while not stop.is_set():
            self.wake.clear()
            while self.chores:
                self.heartbeat.working("a command")
                self.chores.popleft()()
            self.heartbeat.working("read")
            items = self._gather(patient=not self._rounds and self._collected is None)
            began = time.perf_counter()
            started = self._start(items)  # before deciding, so that the engine need not wait for that
            decided = self._decide_collected()
            if self._rounds and (self.embed.full or (not started and not self._wait_for_both())):
                self._collected = self._collect(self._rounds.popleft())
            elif not items and not decided and not self._rounds:
                if self._all_over():
                    break
                self._end_finished()
                self.heartbeat.idle("no source has anything to give")
                self.wake.wait(IDLE_WAIT_S)
            self._rest(items, time.perf_counter() - began, stop)
        self._decide_collected()
        while self._rounds:
            self._collected = self._collect(self._rounds.popleft())
            self._decide_collected()
        self._end_all()

    # -- reading -------------------------------------------------------------------------------

    def _gather(self, *, patient: bool) -> list[tuple[Read, Frame | CropBatch]]:
        """What the sources have now; with live sources, after a short wait for the others.

        No wait while something is on its way: crops gather by themselves while that is decided on.
        """
        items = self._poll_live() + self._poll_files()
        live = [reader for reader in self.readers if reader.live and not reader.ended]
        seen = {id(reader) for reader, _ in items}
        if patient and items and self.max_delay_s and any(id(reader) not in seen for reader in live) and seen:
            self._await_others(items, [reader for reader in live if id(reader) not in seen])
        return items

    def _await_others(self, items: list[tuple[Read, Frame | CropBatch]], missing: list[Read]) -> None:
        deadline = time.monotonic() + self.max_delay_s
        while missing and (left := deadline - time.monotonic()) > 0:
            self.wake.wait(left)
            self.wake.clear()
            for reader in list(missing):
                item = reader.poll()
                if item is not None:
                    items.append((reader, item))
                    missing.remove(reader)

    def _poll_live(self) -> list[tuple[Read, Frame | CropBatch]]:
        found = [(reader, reader.poll()) for reader in self.readers if reader.live]
        return [(reader, item) for reader, item in found if item is not None]

    def _poll_files(self) -> list[tuple[Read, Frame | CropBatch]]:
        """Up to `FILE_BURST` items of the recorded sources, in the order of their times."""
        files = {reader.camera: reader for reader in self.readers if not reader.live}
        items: list[tuple[Read, Frame | CropBatch]] = []
        while len(items) < FILE_BURST:
            for camera, reader in files.items():
                if camera not in self._heads and (item := reader.poll()) is not None:
                    self._heads[camera] = item
            # An earlier frame may still come from a file that has nothing to show yet.
            if any(c not in self._heads and r.ends and not r.ended for c, r in files.items()):
                break
            if not self._heads:
                break
            camera = min(self._heads, key=lambda c: (self._heads[c].time, c))
            items.append((files[camera], self._heads.pop(camera)))
        return items

    def _all_over(self) -> bool:
        return not self._heads and all(reader.ended for reader in self.readers)

    def end_tracks(self, camera: str) -> None:
        """End the tracks of a camera that is closed for a while. For the driving thread: a chore."""
        stage, latest = self._trackers.get(camera), self._latest.get(camera)
        if stage is not None and latest is not None:
            update = stage.finish(latest.frame, latest.time, latest.size)
            self._give(update, self.identify.update(update), {}, _new_trace())

    # -- one round -----------------------------------------------------------------------------

    def _start(self, items: Sequence[tuple[Read, Frame | CropBatch]]) -> bool:
        """Find people and start their embedding; False when there is nothing to do it with."""
        pairs: list[tuple[NDArray[np.uint8], Detections]] = []
        pending = []
        load = self.load
        for reader, item in items:
            if self._skip(reader, item, load):
                continue
            began = time.perf_counter()
            trace = _new_trace()
            detections = None
            self.heartbeat.working("detect")
            if isinstance(item, Frame):
                detections = self.detect(item)
                self.counters.detections += len(detections)
                new = [(item.image, detections)]
            else:
                new = [(image, _whole(image)) for image in item.images]
            took = time.perf_counter() - began
            self.counters.spend("detect", took)
            pairs += new
            pending.append(_Pending(reader, item, detections, len(new), took, trace))
        if not pending:
            return False
        began = time.perf_counter()
        self.heartbeat.working("pack")
        spared = self._spared(pending, load)
        if spared is None:
            self.embed.submit(pairs)
        else:
            self.embed.submit(pairs, spared)
        self.counters.spend("pack", time.perf_counter() - began)
        self._rounds.append(_Round(pending, began))
        return True

    def _skip(self, reader: Read, item: Frame | CropBatch, load: Load) -> bool:
        """Whether this frame of a live camera is left out; one in `every_nth` is not."""
        if load.every_nth == 1 or not reader.live or not isinstance(item, Frame):
            return False
        self._turn[item.camera] = turn = (self._turn.get(item.camera, -1) + 1) % load.every_nth
        if turn:
            self.counters.skipped[item.camera] = self.counters.skipped.get(item.camera, 0) + 1
            reader.done(item)
        return turn != 0

    def _spared(self, pending: Sequence[_Pending], load: Load) -> list[NDArray[np.bool_]] | None:
        """For each pair of the round, whom not to embed; None for nobody. Recordings lose nothing."""
        if self.thin is None:
            return None
        thinned = [one for one in pending if one.reader.live or not one.reader.ends]
        chosen = dict(
            zip(map(id, thinned), self.thin.spared(load, list(map(_candidates, thinned))), strict=True)
        )
        if not any(mask.any() for mask in chosen.values()):
            return None
        spared: list[NDArray[np.bool_]] = []
        for one in pending:
            mask = chosen.get(id(one), np.zeros(sum(_rows(one)), np.bool_))
            if left_out := int(np.count_nonzero(mask)):
                camera = one.item.camera
                self.counters.spared[camera] = self.counters.spared.get(camera, 0) + left_out
            spared += [mask] if one.detections is not None else [mask[n : n + 1] for n in range(len(mask))]
        return spared

    def _rest(
        self, items: Sequence[tuple[Read, Frame | CropBatch]], worked_s: float, stop: threading.Event
    ) -> None:
        """Sources that wait are worked on more slowly while the load is lowered."""
        stretch = self.load.stretch
        if stretch > 1.0 and any(not reader.live for reader, _ in items):
            self.heartbeat.idle("rests, to lower the load")
            rest = min(LONGEST_REST_S, (stretch - 1.0) * worked_s)
            self.counters.spend("rest", rest)
            stop.wait(rest)

    def _collect(self, round_: _Round) -> _Collected:
        """Wait for the embeddings of a round."""
        began = time.perf_counter()
        self.heartbeat.working("wait for the engine")
        embedded = self._embedded(round_)
        ended = time.perf_counter()
        self.counters.spend("wait", ended - began)
        self.counters.batches += 1
        return _Collected(round_.items, embedded, ended - round_.submitted)

    def _wait_for_both(self) -> bool:
        """Wait for a source, as long as the engine cannot be done; False when it may be."""
        began = time.perf_counter()
        self.embed.keep_fed()
        due_s = self.embed.due_s
        if due_s <= 0:
            return False
        self.heartbeat.working("wait for the engine")
        self.wake.wait(min(due_s, IDLE_WAIT_S))
        self.counters.spend("wait", time.perf_counter() - began)
        return True

    def _decide_collected(self) -> bool:
        """Track and identify, frame by frame, where embeddings are there; False where none are."""
        if self._collected is None:
            return False
        round_, self._collected = self._collected, None
        began = time.perf_counter()
        self.heartbeat.working("track")
        rows = accumulate((pending.pairs for pending in round_.items), initial=0)
        results = [round_.embedded[at : at + of.pairs] for at, of in zip(rows, round_.items, strict=False)]
        updates = self._track(round_.items, results)
        track_s = (time.perf_counter() - began) / max(1, len(updates))
        self.counters.spend("track", track_s * len(updates))
        for pending, update in zip(round_.items, updates, strict=True):
            self.embed.keep_fed()  # deciding takes as long as a batch, and the engine shall not wait for it
            self._decide(pending, update, round_.embed_s, track_s)
        return True

    def _track(self, items: Sequence[_Pending], results: Sequence[list[Embedded]]) -> list[TrackUpdate]:
        """The tracks of each item, in order; frames of different cameras together."""
        updates: dict[int, TrackUpdate] = {}
        frames: dict[str, tuple[int, Any]] = {}
        for at, (pending, embedded) in enumerate(zip(items, results, strict=True)):
            item = pending.item
            if isinstance(item, CropBatch):
                updates[at] = self._follow(item.camera).update(item, embedded)
                continue
            if item.camera in frames:
                updates.update(self._track_frames(frames))
                frames = {}
            height, width = item.image.shape[:2]
            assert pending.detections is not None  # every frame was searched
            frames[item.camera] = at, (
                self._tracker(item.camera), item.number, item.time, (width, height),
                pending.detections, embedded[0],
            )  # fmt: skip
        updates.update(self._track_frames(frames))
        return [updates[at] for at in range(len(items))]

    def _track_frames(self, frames: Mapping[str, tuple[int, Any]]) -> Iterator[tuple[int, TrackUpdate]]:
        told = self.together([frame for _, frame in frames.values()])
        return zip((at for at, _ in frames.values()), told, strict=True)

    def _embedded(self, round_: _Round) -> list[Embedded]:
        try:
            embedded = self.embed.collect()
        except EngineError as problem:
            if problem is not self._problem:  # rounds that shared a batch share its failure
                self._problem = problem
                self._failures += 1
                self.counters.failed_batches += 1
            _log.warning("batch_dropped", error=str(problem), in_a_row=self._failures)
            if self._failures >= MAX_ENGINE_FAILURES:
                raise
            return [_not_embedded(n) for pending in round_.items for n in _rows(pending)]
        self._failures = 0
        return embedded

    def _decide(self, pending: _Pending, update: TrackUpdate, embed_s: float, track_s: float) -> None:
        began = time.perf_counter()
        self.heartbeat.working("decide")
        item = pending.item
        self._latest[item.camera] = update
        decisions = self.identify.update(update)
        decide_s = time.perf_counter() - began
        self.counters.spend("decide", decide_s)
        latency = {
            "detect": 1e3 * pending.detect_s,
            "embed": 1e3 * embed_s,
            "decide": 1e3 * (track_s + decide_s),
        }
        if pending.reader.live:
            latency["total"] = 1e3 * (time.time() - item.time)
        self.counters.frames[item.camera] = self.counters.frames.get(item.camera, 0) + 1
        self._give(update, decisions, latency, pending.trace)
        pending.reader.done(item)

    def _give(
        self, update: TrackUpdate, decisions: list[Decision], latency: Mapping[str, float], trace: str
    ) -> None:
        began = time.perf_counter()
        self.heartbeat.working("hand over")
        self.counters.decisions += len(decisions)
        if self.thin is not None:
            self.thin.learn(update, decisions)
        self.hand_over(FrameOutcome(update, tuple(decisions), latency, trace))
        self.counters.spend("hand_over", time.perf_counter() - began)

    # -- trackers and ends ---------------------------------------------------------------------

    def _tracker(self, camera: str) -> Track:
        if camera not in self._trackers:
            self._trackers[camera] = self.tracker(camera)
        return self._trackers[camera]

    def _follow(self, camera: str) -> TrackGiven:
        if camera not in self._given:
            self._given[camera] = self.given(camera)
        return self._given[camera]

    def _end_finished(self) -> None:
        """End the tracks of sources that are over while others go on."""
        for reader in self.readers:
            if reader.ended and reader.camera not in self._finished and reader.camera not in self._heads:
                self._finished.add(reader.camera)
                self._end(reader.camera)

    def _end_all(self) -> None:
        for camera in [*self._trackers, *self._given]:
            self._end(camera)

    def _end(self, camera: str) -> None:
        stage = self._trackers.pop(camera, None) or self._given.pop(camera, None)
        latest = self._latest.pop(camera, None)
        if stage is None or latest is None:
            return
        update = stage.finish(latest.frame, latest.time, latest.size)
        self._give(update, self.identify.update(update), {}, _new_trace())


def _new_trace() -> str:
    """32 hex digits, not all 0. Not secret, so they need not come from the kernel, as those of `uuid4` do."""
    return f"{random.getrandbits(128) or 1:032x}"


def _candidates(pending: _Pending) -> Candidates:
    item, reader = pending.item, pending.reader
    if isinstance(item, CropBatch):
        return Candidates(item.camera, item.time, item.boxes, item.track_ids)
    found = pending.detections if pending.detections is not None else Detections.none()
    height, width = item.image.shape[:2]
    return Candidates(
        item.camera,
        item.time,
        found.boxes,
        scores=found.scores,
        size=(width, height),
        live=reader.live,
        lost=reader.dropped,
        detect_s=pending.detect_s,
    )


def _whole(image: NDArray[np.uint8]) -> Detections:
    """One detection that covers a crop."""
    height, width = image.shape[:2]
    return Detections(np.array([[0, 0, width, height]], np.float32), np.ones(1, np.float32))


def _rows(pending: _Pending) -> list[int]:
    return [len(pending.detections)] if pending.detections is not None else [1] * pending.pairs


def _not_embedded(rows: int) -> Embedded:
    return Embedded(
        np.zeros((rows, 0), np.float32),
        np.zeros(rows, np.bool_),
        np.zeros(rows, np.float32),
        ("engine failed",) * rows,
    )
