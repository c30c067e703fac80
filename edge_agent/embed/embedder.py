"""Embedding stage: crops of all cameras in common batches -> unit-length vectors.

The host only clips, crops and resizes, straight into the engine's buffers; everything else happens in
the prepared graph. While the engine runs one batch, the next one is packed.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import accumulate
from types import TracebackType

import numpy as np
import structlog
from numpy.typing import NDArray

from edge_agent.core.errors import EngineError, ModelError, NonFiniteEmbedding
from edge_agent.core.structures import Detections, Embedded, EngineInfo
from edge_agent.embed.packer import PARCEL, InlinePacker, Packer
from edge_agent.embed.quality import BLURRED, Graded, QualityGate
from edge_agent.engine.base import DEPTH, Engine
from edge_agent.engine.golden import Golden, golden_crops
from edge_agent.engine.graph.profiles import PreprocessProfile

__all__ = ["Embedder"]

_log = structlog.get_logger(__name__)

_UNIT_TOLERANCE = 0.02
"""How far from 1 the squared length of a vector may be; FP16 engines round to about 1e-3."""
_MIN_COSINE = {"fp32": 0.999, "fp16": 0.99, "int8": 0.9}
"""Self-test: least cosine of a golden crop to its reference, by precision."""

_JOINED_S = 0.03
"""Crops of different rounds share a batch, and are ahead of the engine, for so long at most: no longer than
cameras take between two frames, for who waits for a batch takes none."""
_PACKING_S = 0.001
"""How soon it is worth asking the packer again."""

Pair = tuple[NDArray[np.uint8], Detections]


@dataclass(slots=True)
class _Job:
    """One `submit`: what becomes of the crops of a few frames, whose rows stand one after another."""

    ends: list[int]
    """Of each frame, the row behind its last."""
    inside: list[list[int]]
    """xyxy of each crop in its frame, pixels."""
    vectors: NDArray[np.float32]
    present: NDArray[np.bool_]
    quality: NDArray[np.float32]
    reasons: list[str]
    waiting: int = 0
    """Crops whose rows have not arrived."""
    error: EngineError | None = None

    def take(self, rows: list[int], vectors: NDArray[np.float32], faults: Sequence[str]) -> None:
        """The engine's vectors of some rows, and why one must not be used, or ""."""
        self.vectors[rows] = vectors
        for row, fault in zip(rows, faults, strict=True):
            if fault:
                self.vectors[row], self.present[row], self.quality[row] = 0.0, False, 0.0
                self.reasons[row] = fault

    def results(self) -> list[Embedded]:
        return [
            Embedded(
                self.vectors[start:end],
                self.present[start:end],
                self.quality[start:end],
                tuple(self.reasons[start:end]),
            )
            for start, end in zip([0, *self.ends], self.ends, strict=False)
        ]


@dataclass(frozen=True, slots=True)
class _Batch:
    """What the engine works on: whose crops, and which rows of each.

    Times are monotonic seconds: when it was sent, and when it can be done at the earliest.
    """

    parts: list[tuple[_Job, list[int]]]
    sent_at: float
    done_at: float


@dataclass(slots=True)
class EmbedCounters:
    """What happened since the start.

    Attributes:
        embedded: crops that became vectors.
        refused: crops that did not, by reason.
        batches: engine batches.
    """

    embedded: int = 0
    batches: int = 0
    refused: Counter[str] = field(default_factory=Counter)


class Embedder:
    """Turns detections into embeddings. Lifetime is a `with`, which enters the engine and tests it.

    One thread owns an embedder.

    Args:
        engine: runs a graph of `prepare_reid`; not yet entered.
        profile: the graph's preprocess profile; only its resize rule is used here.
        gate: refuses and grades crops.
        golden: reference embeddings for the self-test; None tests only what needs no reference.
        packer: makes pictures of crops, by the same profile and gate; on the caller's thread when None.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        profile: PreprocessProfile,
        gate: QualityGate,
        golden: Golden | None = None,
        packer: Packer | None = None,
    ) -> None:
        self._engine = engine
        self._profile = profile
        self._gate = gate
        self._golden = golden
        self._packer: Packer = packer or InlinePacker(profile, gate.settings.min_sharpness)
        self._packing: deque[tuple[_Job, list[int]]] = deque()
        """With the packer: whose, and which rows of it."""
        self._jobs: deque[_Job] = deque()
        self._filled: list[tuple[_Job, list[int]]] = []
        """In the engine's next buffer: whose, and which rows of it."""
        self._batches: deque[_Batch] = deque()
        """With the engine."""
        self._fastest = 0.0
        """Least seconds for a crop in any batch; 0 before the first."""
        self._done_at = 0.0
        """When the last batch that was sent can be done at the earliest, monotonic seconds."""
        self._closing = ExitStack()
        self._dimension = self._most = 0
        """D, and crops of a batch; known once the engine runs."""
        self.counters = EmbedCounters()
        self.on_batch: Callable[[int, float, float], None] | None = None
        """Told of each batch: crops, when submitted and when its rows were there (monotonic seconds)."""

    @property
    def info(self) -> EngineInfo:
        """Which network runs, and on what."""
        return self._engine.info

    @property
    def engine(self) -> Engine:
        """The engine, for its time and batch counters."""
        return self._engine

    @property
    def full(self) -> bool:
        """Whether so much is on its way that `collect` is better than another `submit`.

        That is so when its results wait, and when the engine will have enough to do until they are used.
        """
        waiting = [job.waiting for job in self._jobs if job.waiting]
        ahead = self._joined if self._packer.room else 0
        return bool(self._jobs) and (not self._jobs[0].waiting or (len(waiting) > 1 and sum(waiting) > ahead))

    @property
    def due_s(self) -> float:
        """Seconds until the results of the oldest `submit` can be there at the earliest; 0 when not known."""
        if not self._jobs or not self._jobs[0].waiting:
            return 0.0
        if not self._batches:
            return 0.0 if self._packer.ready() else _PACKING_S
        return max(0.0, self._batches[0].done_at - time.monotonic())

    def __enter__(self) -> Embedder:
        with ExitStack() as undo:
            undo.enter_context(self._packer)
            undo.enter_context(self._engine)
            self._dimension, self._most = self.info.dimension, self.info.max_batch
            self._self_test()
            self._closing = undo.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._jobs.clear()
        self._packing.clear()
        self._filled.clear()
        self._batches.clear()
        self._closing.__exit__(kind, error, trace)

    # --- frames -------------------------------------------------------------------------------

    def grade(self, pairs: Sequence[Pair]) -> list[Graded]:
        """Grade the detections of several frames by their boxes, for `submit`.

        Args:
            pairs: `(H, W, 3)` uint8 BGR picture and its detections, of any cameras.

        Raises:
            ValueError: a picture is empty or not `(h, w, 3)` uint8.
        """
        for image, _ in pairs:
            _check_picture(image)
        return self._gate.grade(
            [(found.boxes, found.scores, (image.shape[1], image.shape[0])) for image, found in pairs]
        )

    def submit(
        self,
        pairs: Sequence[Pair],
        graded: Sequence[Graded] | None = None,
        spared: Sequence[NDArray[np.bool_]] | None = None,
    ) -> None:
        """Start to embed the detections of several frames; returns when the last crop is with the packer.

        May be called again before `collect`: batches then overlap. It waits only when the engine has
        `DEPTH` batches in flight.

        Args:
            pairs: as in `grade`.
            graded: what `grade` returned for these pairs; graded here when None.
            spared: `(N,)` for each pair: detections that shall not be embedded.
        """
        job = self._open_job(self.grade(pairs) if graded is None else graded)
        if spared is not None:
            left_out = job.present & np.concatenate([*spared, np.zeros(0, np.bool_)])
            job.present[left_out] = False
            job.quality[left_out] = 0.0
        self._jobs.append(job)
        self._pack(job, pairs)

    def keep_fed(self) -> None:
        """Give the engine what has been packed meanwhile, if it has room; never waits.

        A batch that is not full stays open while the engine has another to do.
        """
        while self._engine.in_flight < DEPTH:
            full = self._fill_up(patient=False)
            if not self._filled or (self._engine.in_flight and not full):
                return
            self._send()

    def collect(self) -> list[Embedded]:
        """What became of the oldest `submit`: one `Embedded` per pair, in order.

        Raises:
            EngineError: nothing was submitted, or the engine failed on a batch of it. What was submitted
                is then dropped, as is everything that shared the batch, with the same error; the embedder
                stays usable.
        """
        if not self._jobs:
            raise EngineError("nothing was submitted to the embedder, so there is nothing to collect")
        job = self._jobs[0]
        while job.waiting:
            self._advance()
        self._jobs.popleft()
        if job.error is not None:
            raise job.error
        self.counters.refused.update(filter(None, job.reasons))
        return job.results()

    def _open_job(self, graded: Sequence[Graded]) -> _Job:
        """Make the job of graded detections; `present` is True for those to embed."""
        reasons = [reason for of in graded for reason in of.reasons]
        return _Job(
            list(accumulate(len(of.reasons) for of in graded)),
            [box for of in graded for box in of.inside.tolist()],
            np.zeros((len(reasons), self._dimension), np.float32),
            np.array([not reason for reason in reasons], np.bool_),
            np.concatenate([*(of.quality for of in graded), np.zeros(0, np.float32)]),
            reasons,
        )

    def _pack(self, job: _Job, pairs: Sequence[Pair]) -> None:
        """Give the crops to the packer, and what it has packed to the engine."""
        crops, rows = [], []
        wanted, start = job.present.tolist(), 0
        for (image, _), end in zip(pairs, job.ends, strict=True):
            for row in range(start, end):
                if wanted[row]:
                    x1, y1, x2, y2 = job.inside[row]
                    crops.append(image[y1:y2, x1:x2])
                    rows.append(row)
            start = end
        step = min(PARCEL, self._most)
        job.waiting = len(rows)
        for begin in range(0, len(rows), step):
            self._packer.begin(crops[begin : begin + step])
            self._packing.append((job, rows[begin : begin + step]))
            while len(self._packing) > self._packer.room:
                self._unpack()
        self.keep_fed()

    def _unpack(self) -> None:
        """Take a parcel from the packer, or make room for it."""
        if self._engine.in_flight == DEPTH:
            self._absorb()
        elif self._fits():
            self._fill()
        else:
            self._send()

    def _advance(self) -> None:
        """Give the engine a batch, if it has room and there is one; else wait for its oldest."""
        if self._engine.in_flight < DEPTH and (self._packing or self._filled):
            self._fill_up(patient=True)
            if self._filled:
                self._send()
        else:
            self._absorb()

    def _fill_up(self, *, patient: bool) -> bool:
        """Fill the next batch with what has been packed, or is being packed; whether no more goes into it."""
        while self._packing and (patient or self._packer.ready()):
            if not self._fits():
                return True
            self._fill()
        return self._count == self._most

    def _fits(self) -> bool:
        """Whether the oldest parcel of the packer goes into the next batch."""
        job, rows = self._packing[0]
        alone = all(other is job for other, _ in self._filled)
        return self._count + len(rows) <= (self._most if alone else min(self._joined, self._most))

    @property
    def _joined(self) -> int:
        """Crops of several rounds that the engine does within `_JOINED_S`."""
        return max(DEPTH, min(self._most, int(_JOINED_S / self._fastest) if self._fastest else 0))

    @property
    def _count(self) -> int:
        """Crops in the next batch."""
        return sum(len(rows) for _, rows in self._filled)

    def _fill(self) -> None:
        """Put the oldest parcel of the packer into the next batch, but for crops that are not sharp."""
        job, rows = self._packing.popleft()
        try:
            factors, blurred = self._gate.sharp(self._packer.finish(self._engine.buffer()[self._count :]))
        except EngineError as problem:
            job.waiting -= len(rows)
            job.error = problem
            return
        job.quality[rows] *= factors
        if blurred.any():
            for row in [row for row, refused in zip(rows, blurred.tolist(), strict=True) if refused]:
                job.present[row], job.reasons[row] = False, BLURRED
            rows = [row for row in rows if job.present[row]]
            job.waiting -= int(np.count_nonzero(blurred))
        if rows:
            self._filled.append((job, rows))

    def _send(self) -> None:
        """Let the engine work on the next batch."""
        self._engine.submit(self._count)
        now = time.monotonic()
        self._done_at = max(now, self._done_at) + self._fastest * self._count
        self._batches.append(_Batch(self._filled, now, self._done_at))
        self._filled = []

    def _absorb(self) -> None:
        """Take the oldest engine batch and hand its rows to where they belong."""
        batch, before = self._batches.popleft(), self._engine.run_seconds
        for job, rows in batch.parts:
            job.waiting -= len(rows)
        try:
            vectors = self._engine.collect()
        except EngineError as problem:
            for job, _ in batch.parts:
                job.error = problem
            return
        took = (self._engine.run_seconds - before) / len(vectors)
        self._fastest = min(took, self._fastest or took)
        if self.on_batch is not None:
            self.on_batch(len(vectors), batch.sent_at, time.monotonic())
        self.counters.batches += 1
        faults = self._faults(vectors)
        begin = 0
        for job, rows in batch.parts:
            end = begin + len(rows)
            job.take(rows, vectors[begin:end], faults[begin:end])
            begin = end
        refused = [fault for fault in faults if fault]
        self.counters.embedded += len(faults) - len(refused)
        if refused:
            _log.error(
                "embeddings_refused", refused=len(refused), batch=len(faults), reasons=sorted(set(refused))
            )

    # --- whole pictures -----------------------------------------------------------------------

    def embed_images(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Embed whole pictures, each one crop: `(N, D)` float32, rows of unit length.

        No gate: the caller chose these pictures. Batches overlap.

        Args:
            images: N pictures `(h, w, 3)` uint8 BGR of any size, at least one pixel.

        Raises:
            NonFiniteEmbedding: the network gave NaN, infinity or a vector without length.
            ValueError: a picture is empty or not `(h, w, 3)` uint8.
            EngineError: the engine failed on a batch.
        """
        for image in images:
            _check_picture(image)
        while self._packing or self._filled or self._batches:  # rows come in order: frames' are ahead
            self._advance()
        parts = list(self._stream(images))
        if not parts:
            return np.zeros((0, self.info.dimension), np.float32)
        rows = np.concatenate(parts)
        for index, fault in enumerate(self._faults(rows)):
            if fault:
                self.counters.refused[fault] += 1
                raise NonFiniteEmbedding(
                    f"{self.info.model} gave a {fault} embedding for picture {index}; it is not used. "
                    "Check the model file and the precision of the engine"
                )
        self.counters.embedded += len(rows)
        return rows

    def _stream(self, images: Sequence[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        """Rows of `images`, batch by batch, with the next batch packed while one runs."""
        step = self.info.max_batch
        try:
            for start in range(0, len(images), step):
                chunk = images[start : start + step]
                if self._engine.in_flight == DEPTH:
                    yield self._engine.collect()
                buffer = self._engine.buffer()
                for image, target in zip(chunk, buffer, strict=False):
                    self._profile.fit(image, target)
                self._engine.submit(len(chunk))
                self.counters.batches += 1
            while self._engine.in_flight:
                yield self._engine.collect()
        finally:
            while self._engine.in_flight:  # after a failure the engine must not keep old batches
                _discard(self._engine)

    # --- self-test ----------------------------------------------------------------------------

    def _self_test(self) -> None:
        """Raise unless the engine treats the golden crops as the reference says."""
        crops = golden_crops(*self._engine.input_size)
        together = self._rows(crops)
        for row, fault in enumerate(self._faults(together)):
            if fault:
                raise NonFiniteEmbedding(
                    f"self-test: {self.info.model} gave a {fault} embedding for golden crop {row} on "
                    f"{self.info.backend} ({self.info.precision}); use another export or precision"
                )
        least = _MIN_COSINE[self.info.precision]
        alone = np.concatenate([self._rows(crop[None]) for crop in crops])
        if (worst := _worst_cosine(together, alone)) < least:
            raise ModelError(
                f"self-test: {self.info.model} gives other embeddings in a batch than for single crops "
                f"(cosine {worst:.4f}, at least {least} expected); its batch axis is not truly free: "
                "export it again with a dynamic batch axis"
            )
        if self._golden is None:
            return
        if self._golden.space != self.info.space:
            raise ModelError("self-test: the reference embeddings belong to another model or profile")
        if (worst := _worst_cosine(together, self._golden.vectors)) < least:
            raise ModelError(
                f"self-test: {self.info.model} on {self.info.backend} ({self.info.precision}) differs from "
                f"its reference (cosine {worst:.4f}, at least {least} expected): channel order, scale, "
                "normalisation or precision is wrong on one of the two ways; rebuild the engine. "
                f"The reference came from {self._golden.origin}"
            )
        _log.info(
            "self_test_passed", model=self.info.model, cosine=round(worst, 6), reference=self._golden.origin
        )

    def _faults(self, rows: NDArray[np.float32]) -> list[str]:
        """Why each row of `(N, D)` must not be used: `non-finite`, `degenerate` (not of length 1), or ""."""
        with np.errstate(invalid="ignore", over="ignore"):
            squares = np.einsum("nd,nd->n", rows, rows)
            finite = np.isfinite(squares)
            proper = np.abs(squares - 1.0) <= _UNIT_TOLERANCE if self._engine.unit_length else finite
        if finite.all() and proper.all():
            return [""] * len(rows)
        words = np.where(finite, np.where(proper, "", "degenerate"), "non-finite")
        return [str(word) for word in words]

    def _rows(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        parts = []
        for start in range(0, len(crops), self.info.max_batch):
            chunk = crops[start : start + self.info.max_batch]
            self._engine.buffer()[: len(chunk)] = chunk
            self._engine.submit(len(chunk))
            parts.append(self._engine.collect())
        return np.concatenate(parts)


def _check_picture(image: NDArray[np.uint8]) -> None:
    """Refuse what OpenCV would resize into an array of its own, leaving an old crop in the buffer."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(f"picture: expected (h, w, 3) uint8, got {image.shape} {image.dtype.name}")


def _worst_cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Least cosine of corresponding rows of two `(N, D)`."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float((np.einsum("nd,nd->n", a, b) / lengths).min())


def _discard(engine: Engine) -> None:
    try:
        engine.collect()
    except EngineError as problem:
        _log.debug("batch_dropped", error=str(problem))
