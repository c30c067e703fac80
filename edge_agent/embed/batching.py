"""Batches for the engine: crops of several submissions are packed, joined, sent and collected."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import compress, pairwise

import numpy as np
import structlog
from numpy.typing import NDArray

from edge_agent.core.errors import EngineError
from edge_agent.core.structures import Embedded
from edge_agent.embed.packer import PARCEL, Packer
from edge_agent.embed.quality import BLURRED, QualityGate
from edge_agent.engine.base import DEPTH, Engine

_log = structlog.get_logger(__name__)

JOINED_S = 0.03
"""Engine time up to which crops of different submissions share a batch, and are packed ahead: no longer than
the interval of camera frames, since the pipeline reads no frames while it waits for a batch."""
_PACKING_S = 0.001
"""Interval at which the packer is polled, and an engine of which only a part is busy."""

_ONE = np.ones(1, np.float32)
_UNIT_TOLERANCE = np.full(1, 0.02, np.float32)
"""Largest deviation of the squared length of a vector from 1; FP16 engines round to about 1e-3."""


@dataclass(slots=True)
class Job:
    """One submission, fields as in `Embedded`. The rows of its frames follow one another.

    `ends` has for each frame the row after its last, `inside` the xyxy pixels of each crop in its frame;
    `waiting` counts crops whose rows have not arrived.
    """

    ends: list[int]
    inside: list[list[int]]
    vectors: NDArray[np.float32]
    present: NDArray[np.bool_]
    quality: NDArray[np.float32]
    reasons: list[str]
    waiting: int = 0
    error: EngineError | None = None

    def put(self, rows: list[int], vectors: NDArray[np.float32], found: Sequence[str]) -> None:
        """Store the engine's vectors of some rows, and their faults, "" for none."""
        self.vectors[rows] = vectors
        for row, fault in zip(rows, found, strict=True):
            if fault:
                self.vectors[row], self.present[row], self.quality[row] = 0.0, False, 0.0
                self.reasons[row] = fault

    def results(self) -> list[Embedded]:
        """Return the result of each frame."""
        return [
            Embedded(self.vectors[a:b], self.present[a:b], self.quality[a:b], tuple(self.reasons[a:b]))
            for a, b in pairwise([0, *self.ends])
        ]


Part = tuple[Job, list[int]]  # some rows of a job


@dataclass(frozen=True, slots=True)
class _Batch:
    """A batch in flight; times are monotonic seconds: when it was sent, and its earliest end."""

    parts: list[Part]
    sent_at: float
    done_at: float


@dataclass(slots=True)
class EmbedCounters:
    """Counts since the start: crops that became vectors, engine batches, and refused crops by reason.

    `received` counts the vectors of messages that were accepted.
    """

    embedded: int = 0
    received: int = 0
    batches: int = 0
    refused: Counter[str] = field(default_factory=Counter)


class Batcher:
    """Moves crops from the packer to the engine, and rows back to their jobs.

    Engine and packer are entered before the first crop; the gate refuses crops that are not sharp.
    """

    def __init__(self, engine: Engine, packer: Packer, gate: QualityGate) -> None:
        self.counters = EmbedCounters()
        self.on_batch: Callable[[int, float, float], None] | None = None
        """Callback for each batch: crops, times of submission and of its rows (monotonic seconds)."""
        self.waited_s = 0.0
        """Time for which its calls have waited for the engine."""
        self.fastest = 0.0  # least seconds for one crop in any batch; 0 before the first
        self._engine, self._packer, self._gate = engine, packer, gate
        self._most = engine.info.max_batch
        self._packing: deque[Part] = deque()  # with the packer
        self._filled: list[Part] = []  # in the engine's next buffer
        self._batches: deque[_Batch] = deque()  # with the engine
        self._began_at = 0.0  # latest begin of the oldest batch with the engine
        self._done_at = 0.0  # earliest end of the last batch that was sent, monotonic seconds

    @property
    def busy(self) -> bool:
        """Whether any crop is on its way."""
        return bool(self._packing or self._filled or self._batches)

    def due_s(self, job: Job) -> float:
        """Seconds until the last rows of a job, or the next ones, can arrive at the earliest; 0: unknown."""
        if not self._batches:
            return 0.0 if self._packer.ready() else _PACKING_S
        done_at = self._batches[0].done_at
        if not any(of is job for of, _ in [*self._packing, *self._filled]):
            parts = (batch.done_at for batch in self._batches if any(of is job for of, _ in batch.parts))
            done_at = max(parts, default=done_at)
        if self._engine.hungry and not self._engine.ready:  # a frame that comes meanwhile can be begun
            return max(_PACKING_S, done_at - time.monotonic())
        return max(0.0, done_at - time.monotonic())

    @property
    def waiting(self) -> int:
        """Number of crops that wait for the engine, with what is left of the batch in it, about."""
        count = sum(len(rows) for _, rows in [*self._packing, *self._filled])
        flying = [sum(len(rows) for _, rows in batch.parts) for batch in self._batches]
        if flying and self.fastest:
            done = (time.monotonic() - self._began_at) / self.fastest
            flying[0] -= min(flying[0], int(done))
        return count + sum(flying)

    @property
    def joined(self) -> int:
        """Number of crops of several submissions that the engine embeds within `JOINED_S`."""
        return max(DEPTH, min(self._most, int(JOINED_S / self.fastest) if self.fastest else 0))

    def clear(self) -> None:
        """Drop everything that is on its way."""
        self._packing.clear()
        self._filled.clear()
        self._batches.clear()

    def put(self, job: Job, crops: Sequence[NDArray[np.uint8]], rows: list[int]) -> None:
        """Pack crops of a job; returns when the packer has the last one."""
        step = min(PARCEL, self._most)
        job.waiting = len(rows)
        for begin in range(0, len(rows), step):
            self._packer.begin(crops[begin : begin + step])
            self._packing.append((job, rows[begin : begin + step]))
            while len(self._packing) > self._packer.room:
                self._make_room()
        self.keep_fed()

    def keep_fed(self) -> None:
        """Take the rows of batches that have ended, and send packed crops to the engine if it has room.

        Never waits. A batch to which more crops would be of use stays open while the engine has another one
        to do for a while.
        """
        if self._engine.in_flight == DEPTH and self._engine.ready:
            self._collect()
        while self._engine.in_flight < DEPTH:
            full = self._fill_up(wait=False)
            if not self._filled or (self._engine.in_flight and not full and not self._idle):
                return
            self._send()

    @property
    def _idle(self) -> bool:
        """Whether a part of the engine has nothing to do, and there is enough for another batch."""
        return self._engine.hungry and 2 * self._count >= min(self.joined, self._engine.enough)

    def advance(self) -> None:
        """Send a batch if the engine has room and there is one; else wait for its oldest."""
        if self._engine.in_flight < DEPTH and (self._packing or self._filled):
            self._fill_up(wait=True)
            if self._filled:
                self._send()
        else:
            self._collect()

    def _make_room(self) -> None:
        """Take a parcel from the packer, or do what has to come first."""
        if self._engine.in_flight == DEPTH:
            self._collect()
        elif self._fits():
            self._fill()
        else:
            self._send()

    def _fill_up(self, *, wait: bool) -> bool:
        """Fill the next batch with what is packed, or being packed; return whether more is no better."""
        while self._packing and (wait or self._packer.ready()):
            if not self._fits():
                return True
            self._fill()
        return self._count >= self._engine.enough

    def _fits(self) -> bool:
        """Whether the packer's oldest parcel goes into the next batch."""
        job, rows = self._packing[0]
        alone = all(other is job for other, _ in self._filled)
        return self._count + len(rows) <= (self._most if alone else min(self.joined, self._most))

    @property
    def _count(self) -> int:
        return sum(len(rows) for _, rows in self._filled)

    def _fill(self) -> None:
        """Put the packer's oldest parcel into the next batch, without the crops that are not sharp."""
        job, rows = self._packing.popleft()
        try:
            factors, blurred = self._gate.sharp(self._packer.finish(self._engine.buffer()[self._count :]))
        except EngineError as problem:
            job.waiting -= len(rows)
            job.error = problem
            return
        job.quality[rows] *= factors
        if np.count_nonzero(blurred):
            for row in compress(rows, blurred.tolist()):
                job.present[row], job.reasons[row] = False, BLURRED
                job.waiting -= 1
            rows = [row for row in rows if job.present[row]]
        if rows:
            self._filled.append((job, rows))

    def _send(self) -> None:
        self._engine.submit(self._count)
        now = time.monotonic()
        self._done_at = max(now, self._done_at) + self.fastest * self._count
        if not self._batches:
            self._began_at = now
        self._batches.append(_Batch(self._filled, now, self._done_at))
        self._filled = []

    def _collect(self) -> None:
        """Wait for the engine's oldest batch and give its rows to their jobs."""
        batch, before = self._batches.popleft(), self._engine.run_seconds
        for job, rows in batch.parts:
            job.waiting -= len(rows)
        began = time.monotonic()
        try:
            vectors = self._engine.collect()
        except EngineError as problem:
            for job, _ in batch.parts:
                job.error = problem
            return
        finally:
            self._began_at = time.monotonic()
            self.waited_s += self._began_at - began
        took = (self._engine.run_seconds - before) / len(vectors)
        self.fastest = min(took, self.fastest or took)
        if self.on_batch is not None:
            self.on_batch(len(vectors), batch.sent_at, time.monotonic())
        self.counters.batches += 1
        found = faults(vectors, unit_length=self._engine.unit_length)
        begin = 0
        for job, rows in batch.parts:
            end = begin + len(rows)
            job.put(rows, vectors[begin:end], found[begin:end])
            begin = end
        refused = [fault for fault in found if fault]
        self.counters.embedded += len(found) - len(refused)
        if refused:
            reasons = sorted(set(refused))
            _log.error("embeddings_refused", refused=len(refused), batch=len(found), reasons=reasons)


def faults(rows: NDArray[np.float32], *, unit_length: bool) -> list[str]:
    """Return for each row of `(N, D)`: `non-finite`, `degenerate` (not of length 1), or "" for a good one."""
    squares = np.einsum("nd,nd->n", rows, rows)
    proper = np.abs(squares - _ONE) <= _UNIT_TOLERANCE if unit_length else np.isfinite(squares)
    if np.count_nonzero(proper) == len(rows):
        return [""] * len(rows)
    words = np.where(np.isfinite(squares), np.where(proper, "", "degenerate"), "non-finite")
    return [str(word) for word in words]
