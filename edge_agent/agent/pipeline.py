"""The driving loop: read, detect, embed, track, identify, report.

One thread drives all cameras. Each round takes the items that the readers have, detects people, and submits
the crops of all cameras in one batch; while the engine computes it, the next round is read and detected.
Once its embeddings are there, the next crops are submitted first, then its decisions are made. While a
detector's network runs, the next frames are read and begun, and decisions are made. Frames of one
camera stay in order. Recorded files are read in the order of their times, so that a run over files gives the
same result every time; live cameras give their newest frame, also a late one while crops are left out, and
wait for nothing.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import structlog
from numpy.typing import NDArray

from edge_agent.agent.results import Counters, FrameOutcome
from edge_agent.agent.rounds import CameraTracking, PendingItem, Round, Searched, whole_image
from edge_agent.agent.sources import Polled, SourcePoller
from edge_agent.agent.tasks import TaskQueue
from edge_agent.core.errors import EngineError, Retryable
from edge_agent.core.heartbeat import Heartbeat
from edge_agent.core.structures import Decision, Detections, Frame, Load, MessageFrame, TrackUpdate

if TYPE_CHECKING:
    from edge_agent.detect.search import Begin
    from edge_agent.embed.embedder import Embedder
    from edge_agent.embed.quality import Graded
    from edge_agent.embed.selection import CropSelector
    from edge_agent.identify import Identifier
    from edge_agent.source.base import Item
    from edge_agent.source.reader import FrameReader
    from edge_agent.track.crops import UpstreamTracks
    from edge_agent.track.tracker import Tracker
    from edge_agent.track.upstream import MessageTracks

T = TypeVar("T")

_log = structlog.get_logger(__name__)

IDLE_WAIT_S = 0.2
"""Longest sleep while no source has an item; a new item ends it early."""

LONGEST_REST_S = 5.0
"""Longest rest after one round."""

MAX_ENGINE_FAILURES = 5
"""Failed batches in a row after which the engine counts as broken and the run ends."""

MOST_LATENCY_MS = 60_000.0
"""Of messages: what is beyond shows the difference of two clocks, or a recording."""

ROUND_S = 0.025
"""Work of the driving thread on a round of live cameras, about: what comes in a round waits for all of it."""

PAUSE_S = 0.01
"""Least time between two rounds while crops are left out, or half an interval of the fastest camera: the
frames of a round share much of its work."""

_LEARNT = 0.1
"""Weight of the latest round in a running mean."""


@dataclass(slots=True)
class Pipeline:
    """Drives the stages until the sources end or `stop` is set."""

    readers: Sequence[FrameReader]
    """Entered and left by the caller."""
    wake: threading.Event
    """Set by the readers when they have an item."""
    search: Begin
    embedder: Embedder
    make_tracker: Callable[[str], Tracker]
    make_upstream_tracker: Callable[[str], UpstreamTracks]
    make_message_tracker: Callable[[str], MessageTracks]
    identifier: Identifier
    on_outcome: Callable[[FrameOutcome], None]
    """Called with every outcome, in order; must not block."""
    now: Callable[[], float] = time.time
    """Gives the time of a frame that arrives now, Unix seconds."""
    max_delay_s: float = 0.02
    """Longest wait of one camera's crops for another's, live sources only."""
    round_crops: int | None = None
    """Crops of live cameras in a round, about; None: as many as there are."""
    tasks: TaskQueue = field(default_factory=TaskQueue)
    selector: CropSelector | None = None
    """Chooses the crops that are not embedded, to lower the load or to keep up; None: embed all."""
    hold: Callable[[], object] = bool
    """Whether recordings wait, since the engine gives no embeddings for now."""
    load: Load = field(default_factory=Load)
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    counters: Counters = field(default_factory=Counters)
    _poller: SourcePoller = field(init=False)
    _tracking: CameraTracking = field(init=False)
    _searched: deque[Searched] = field(default_factory=deque)
    """Items that are searched for people, at most two of them."""
    _rounds: deque[Round] = field(default_factory=deque)
    _collected: Round | None = None
    """The round that is decided next."""
    _turn: dict[str, int] = field(default_factory=dict)
    """Position of each camera's newest frame in its cycle of `load.every_nth` frames."""
    _crops_per_item: float = 0.0
    """Embedded crops of one item, mean of the latest rounds."""
    _item_s: float = 0.0
    """Work on one item, likewise, seconds."""
    _overloaded: bool = False
    """Whether crops of the latest round were left out."""
    _started_at: float = 0.0
    """When it was started, `time.perf_counter`."""
    _failures: int = 0
    """Failed batches in a row."""
    _latest_error: EngineError | None = None

    def __post_init__(self) -> None:
        self._poller = SourcePoller(self.readers, self.wake, self.max_delay_s)
        self._tracking = CameraTracking(
            self.make_tracker, self.make_upstream_tracker, self.make_message_tracker
        )

    def run(self, stop: threading.Event) -> None:
        """Run until every source has ended or `stop` is set.

        Raises:
            EngineError: the engine failed `MAX_ENGINE_FAILURES` times in a row, with its server present.
        """
        while not stop.is_set():
            self.wake.clear()
            self._run_tasks()
            self.heartbeat.working("read")
            idle = not self._searched and not self._rounds and self._collected is None
            pause_s = self._pause_s
            late = self._overloaded and self.selector is not None and self.selector.catches_up
            items = (
                [] if pause_s else self._poller.poll(wait_for_others=idle, most=self._most_cameras, late=late)
            )
            began = time.perf_counter()
            self._begin(items)
            started = self._start_searched()  # before deciding, so that the engine does not idle meanwhile
            decided = self._decide_collected()
            if not items and not started and self._search_is_next:
                started = self._start(self._searched.popleft())
            if self._rounds and (
                self.embedder.full or (not started and not self._wait_for_source_or_engine(pause_s))
            ):
                self._collected = self._collect(self._rounds.popleft())
            elif not items and not decided and not started and not self._rounds:
                if self._poller.exhausted:
                    break
                self._end_cameras(self._poller.newly_finished())
                self._report_end(self.identifier.replied())
                self.heartbeat.idle("no source has a new item")
                self._wait(IDLE_WAIT_S, pause_s)
            self._rest(items, time.perf_counter() - began, stop)
            self._wait_for_server(items, stop)
        self._finish()

    def _finish(self) -> None:
        """Decide everything that was read, and end the tracks of all cameras."""
        while self._searched:
            self._start(self._searched.popleft())
        self._decide_collected()
        while self._rounds:
            self._collected = self._collect(self._rounds.popleft())
            self._decide_collected()
        self._end_cameras(self._tracking.cameras)

    def set_load(self, load: Load) -> None:
        """Set the load from the next round on; tracks of cameras that it closes end. For any thread."""
        for camera in set(load.closed) - set(self.load.closed):
            self.tasks.put(partial(self.end_tracks, camera))
        self.load = load

    def end_tracks(self, camera: str) -> None:
        """End the tracks of a camera that is closed for a while; only for `tasks`."""
        self._report_end(self._tracking.end_tracks(camera))

    def _run_tasks(self) -> None:
        while (task := self.tasks.take()) is not None:
            self.heartbeat.working("a command")
            task()

    # -- detect and submit ---------------------------------------------------------------------

    def _begin(self, items: Sequence[Polled]) -> None:
        """Begin to search the frames of these items for people."""
        load = self.load
        taken = [(reader, item) for reader, item in items if not self._skip(reader, item, load)]
        if not taken:
            return
        began = time.perf_counter()
        self.heartbeat.working("detect")
        search = self.search([item for _, item in taken if isinstance(item, Frame)])
        self._searched.append(Searched(taken, search, began, time.perf_counter() - began))

    @property
    def _search_is_next(self) -> bool:
        """Whether the oldest search probably ends before the oldest round: a GPU works in order."""
        return bool(self._searched) and (
            not self._rounds or self._searched[0].begun < self._rounds[0].submitted
        )

    def _start_searched(self) -> bool:
        """Submit the crops of searches that have ended, or whose end the next one waits for."""
        started = False
        while self._searched and (self._searched[0].search.done or len(self._searched) > 1):
            started |= self._start(self._searched.popleft())
        return started

    def _start(self, searched: Searched) -> bool:
        """Wait for a search and submit the crops of the people; False when there is nothing to submit."""
        began = time.perf_counter()
        self.heartbeat.working("detect")
        found = iter(searched.search.results())
        frames = sum(isinstance(item, Frame) for _, item in searched.items)
        detect_s = searched.begun_s + time.perf_counter() - began
        if frames:
            self.counters.spend("detect", detect_s)
        pairs: list[tuple[NDArray[np.uint8], Detections]] = []
        pending: list[PendingItem] = []
        for reader, item in searched.items:
            trace = _new_trace()
            if isinstance(item, MessageFrame):
                received = self.embedder.accept(item)
                pending.append(PendingItem(reader, item, None, 0, 0.0, trace, received))
            elif isinstance(item, Frame):
                detections = next(found)
                pairs.append((item.image, detections))
                pending.append(PendingItem(reader, item, detections, 1, detect_s / frames, trace))
            else:
                pairs += [(image, whole_image(image)) for image in item.images]
                pending.append(PendingItem(reader, item, None, len(item.images), 0.0, trace))
        began = time.perf_counter()
        self.heartbeat.working("pack")
        graded = self.embedder.grade(pairs)
        spared = self._spared(pending, graded, self.load)
        self._overloaded, self._started_at = spared is not None, began
        chosen, waited_s = time.perf_counter(), self.embedder.waited_s
        self.embedder.submit(pairs, graded, spared)
        ended, waited_s = time.perf_counter(), self.embedder.waited_s - waited_s
        self.counters.spend("pack", ended - began)
        frames_s = chosen - began + sum(one.detect_s for one in pending)
        crops_s = ended - chosen - waited_s
        self._rounds.append(Round(pending, began, frames_s=frames_s, crops_s=crops_s))
        return True

    def _skip(self, reader: FrameReader, item: Item, load: Load) -> bool:
        """Whether this frame of a live camera is left out; one in `every_nth` is not."""
        if load.every_nth == 1 or not reader.live or not isinstance(item, Frame):
            return False
        self._turn[item.camera] = turn = (self._turn.get(item.camera, -1) + 1) % load.every_nth
        if turn:
            self.counters.skipped[item.camera] = self.counters.skipped.get(item.camera, 0) + 1
            reader.done(item)
        return turn != 0

    def _spared(
        self, pending: Sequence[PendingItem], graded: Sequence[Graded], load: Load
    ) -> list[NDArray[np.bool_]] | None:
        """For each pair of the round, the crops not to embed; None for none. Recordings lose nothing."""
        if self.selector is None:
            return None
        starts = accumulate((one.pairs for one in pending), initial=0)
        candidates = {
            id(one): one.candidates(graded[start : start + one.pairs])
            for one, start in zip(pending, starts, strict=False)
            if one.pairs and (one.reader.live or not one.reader.ends)
        }
        masks = self.selector.spared(load, list(candidates.values()))
        if not any(map(np.count_nonzero, masks)):
            return None
        chosen = dict(zip(candidates, masks, strict=True))
        spared: list[NDArray[np.bool_]] = []
        for one in pending:
            mask = chosen.get(id(one))
            if mask is None:
                mask = np.zeros(sum(one.crops_per_pair), np.bool_)
            spared += [mask] if one.detections is not None else [mask[n : n + 1] for n in range(len(mask))]
        return spared

    def _rest(self, items: Sequence[Polled], worked_s: float, stop: threading.Event) -> None:
        """Slow down the reading of sources that wait, while the load is lowered."""
        stretch = self.load.stretch
        if stretch > 1.0 and any(not reader.live for reader, _ in items):
            self.heartbeat.idle("rests to lower the load")
            rest = min(LONGEST_REST_S, (stretch - 1.0) * worked_s)
            self.counters.spend("rest", rest)
            stop.wait(rest)

    def _wait_for_server(self, items: Sequence[Polled], stop: threading.Event) -> None:
        """Hold recordings while the inference server is away; live sources go on without embeddings."""
        if items and not any(reader.live for reader in self.readers):
            while self.hold() and not stop.is_set():
                self.heartbeat.idle("waits for the inference server")
                self._run_tasks()
                stop.wait(IDLE_WAIT_S)

    # -- collect -------------------------------------------------------------------------------

    @property
    def _pause_s(self) -> float:
        """How long frames are left with the readers now, so that those that come meanwhile share a round."""
        if not self._overloaded or self.selector is None or self.selector.budget is None:
            return 0.0
        pause_s = min(PAUSE_S, self.selector.budget.interval_s / 2)
        return max(0.0, self._started_at + pause_s - time.perf_counter())

    def _wait(self, longest_s: float, pause_s: float) -> None:
        """Wait for a source; during a pause for its end."""
        if pause_s:
            time.sleep(min(longest_s, pause_s))
        else:
            self.wake.wait(longest_s)

    def _wait_for_source_or_engine(self, pause_s: float) -> bool:
        """Wait for a source, at most until the engine may be done; False when it may be."""
        began = time.perf_counter()
        self.embedder.keep_fed()
        due_s = self.embedder.due_s
        if due_s <= 0:
            return False
        self.heartbeat.working("wait for the engine")
        self._wait(min(due_s, IDLE_WAIT_S), pause_s)
        self.counters.spend("wait", time.perf_counter() - began)
        return True

    def _collect(self, round_: Round) -> Round:
        """Wait for the embeddings of a round."""
        began = time.perf_counter()
        self.heartbeat.working("wait for the engine")
        try:
            round_.embedded = self.embedder.collect()
            self._failures = 0
        except EngineError as error:
            passing = isinstance(error, Retryable)  # a server is away: the engine reports it, and waits
            if error is not self._latest_error:  # rounds that shared a batch share its failure
                self._latest_error = error
                self._failures = 0 if passing else self._failures + 1
                self.counters.failed_batches += 1
            log = _log.debug if passing else _log.warning
            log("batch_dropped", error=str(error), in_a_row=self._failures)
            if self._failures >= MAX_ENGINE_FAILURES:
                raise
            round_.embedded = round_.without_embeddings()
        ended = time.perf_counter()
        self.counters.spend("wait", ended - began)
        round_.embed_s = ended - round_.submitted
        return round_

    # -- track and decide ----------------------------------------------------------------------

    def _decide_collected(self) -> bool:
        """Track and identify the collected round, frame by frame; False where there is none."""
        if self._collected is None:
            return False
        round_, self._collected = self._collected, None
        began = time.perf_counter()
        self.heartbeat.working("track")
        starts = accumulate((pending.pairs for pending in round_.items), initial=0)
        results = [
            round_.embedded[start : start + pending.pairs]
            for start, pending in zip(starts, round_.items, strict=False)
        ]
        updates = self._tracking.update(round_.items, results)
        track_s = (time.perf_counter() - began) / max(1, len(updates))
        self.counters.spend("track", track_s * len(updates))
        tracked = time.perf_counter()
        frames = list(zip(round_.items, updates, strict=True))
        live = all(pending.reader.live for pending in round_.items)
        for group in [frames] if live else [[frame] for frame in frames]:
            self._decide(group, round_.embed_s, track_s)
        self._note_work(round_, tracked - began, time.perf_counter() - tracked)
        return True

    @property
    def _most_cameras(self) -> int | None:
        """How many live cameras a round takes: `round_crops` of them or `ROUND_S`, so that it ends soon."""
        if self.round_crops is None or not self._item_s:
            return None
        fitting = min(ROUND_S / self._item_s, self.round_crops / max(self._crops_per_item, 0.1))
        return max(1, math.ceil(fitting))

    def _note_work(self, round_: Round, track_s: float, decide_s: float) -> None:
        """Learn from a round: crops and work of an item, and for the budget the work of the host."""
        crops, items = round_.crops, len(round_.items)
        crops_s, frames_s = round_.crops_s + decide_s, round_.frames_s + track_s
        learnt = _LEARNT if self._item_s else 1.0
        self._crops_per_item += learnt * (crops / items - self._crops_per_item)
        self._item_s += learnt * ((crops_s + frames_s) / items - self._item_s)
        if self.selector is not None and self.selector.budget is not None:
            self.selector.budget.host.note(crops_s, frames_s)

    def _decide(
        self, frames: Sequence[tuple[PendingItem, TrackUpdate]], embed_s: float, track_s: float
    ) -> None:
        """Decide frame by frame and commit the changes at once; only then report them."""
        began = time.perf_counter()
        self.heartbeat.working("decide")
        decided: list[tuple[list[Decision], float]] = []
        with self.identifier.at_once() if len(frames) > 1 else nullcontext():  # one does it by itself
            for _, update in frames:
                self.embedder.keep_fed()  # deciding takes as long as a batch; the engine must not wait for it
                started = time.perf_counter()
                decided.append((self.identifier.update(update), time.perf_counter() - started))
        self.counters.spend("decide", time.perf_counter() - began)
        for (pending, update), (decisions, decide_s) in zip(frames, decided, strict=True):
            item = pending.item
            latency = {
                "detect": 1e3 * pending.detect_s,
                "embed": 1e3 * embed_s,
                "decide": 1e3 * (track_s + decide_s),
            }
            if pending.reader.live:
                total = 1e3 * (self.now() - item.time)
                if not isinstance(item, MessageFrame) or 0 <= total <= MOST_LATENCY_MS:
                    latency["total"] = total
            self.counters.frames[item.camera] = self.counters.frames.get(item.camera, 0) + 1
            self._report(FrameOutcome(update, tuple(decisions), latency, pending.trace, item))
            pending.reader.done(item)

    def _report(self, outcome: FrameOutcome) -> None:
        began = time.perf_counter()
        self.heartbeat.working("hand over")
        self.counters.decisions += len(outcome.decisions)
        self.on_outcome(outcome)
        self.counters.spend("hand_over", time.perf_counter() - began)

    # -- ends of tracks ------------------------------------------------------------------------

    def _end_cameras(self, cameras: Sequence[str]) -> None:
        for camera in cameras:
            self._report_end(self._tracking.end(camera))

    def _report_end(self, update: TrackUpdate | None) -> None:
        if update is not None:
            decisions = tuple(self.identifier.update(update))
            self._report(FrameOutcome(update, decisions, {}, _new_trace()))


def _new_trace() -> str:
    """Return 32 hex digits, not all 0. No secret, so `random` is enough and faster than `uuid4`."""
    return f"{random.getrandbits(128) or 1:032x}"
