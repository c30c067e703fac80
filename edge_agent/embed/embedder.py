"""Embedding stage: crops of all cameras in common batches -> unit-length vectors.

The host only crops and resizes, straight into the engine's buffers; everything else happens in the prepared
graph. While the engine runs one batch, the next one is packed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.errors import EngineError, NonFiniteEmbedding
from edge_agent.core.structures import Detections, Embedded, EngineInfo, MessageFrame
from edge_agent.embed.batching import Batcher, Job, faults
from edge_agent.embed.packer import InlinePacker, Packer
from edge_agent.embed.quality import Graded, QualityGate
from edge_agent.embed.selftest import check_engine
from edge_agent.engine.base import DEPTH, Engine
from edge_agent.engine.golden import Golden
from edge_agent.engine.graph.prepared import PreprocessProfile

Pair = tuple[NDArray[np.uint8], Detections]

QUEUED = 1.5
"""Submissions' worth of crops, as in `Batcher.joined`, that keep the engine busy while the host works."""
MOST_QUEUED = 4
"""Multiple of that beyond which nothing is added."""


class Embedder:
    """Turns detections into embeddings, for one thread. A context manager, which enters and tests the engine.

    The engine runs a graph of `prepare_reid`, of whose profile only the resize rule is used here. Without
    `golden` the self-test needs no reference; without a `packer` crops are resized on the caller's thread.
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
        self.engine = engine
        self._profile, self._gate, self._golden = profile, gate, golden
        self.deep = False
        """Whether submissions wait until the engine can take them, instead of the caller."""
        self._packer: Packer = packer or InlinePacker(profile, gate.settings.min_sharpness)
        self.batcher = Batcher(engine, self._packer, gate)
        self.counters = self.batcher.counters
        self._jobs: deque[Job] = deque()
        self._closing = ExitStack()
        self._dimension = 0  # set on entering, since `info` takes a while

    @property
    def info(self) -> EngineInfo:
        """Which network runs, and on what."""
        return self.engine.info

    @property
    def profile(self) -> str:
        """Name of the preprocess profile."""
        return self._profile.name

    @property
    def full(self) -> bool:
        """Whether `collect` is better than `submit`: results wait, or the engine has enough to do.

        With `deep` it has that later: the crops of live cameras are limited by the `queue`.
        """
        waiting = [job.waiting for job in self._jobs if job.waiting]
        ahead = self.batcher.joined * (MOST_QUEUED * QUEUED if self.deep else 1) if self._packer.room else 0
        return bool(self._jobs) and (not self._jobs[0].waiting or (len(waiting) > 1 and sum(waiting) > ahead))

    @property
    def queue(self) -> tuple[int, int]:
        """Crops that wait for the engine or are in it, about; and how many of them keep it busy."""
        return self.batcher.waiting, round(QUEUED * self.batcher.joined)

    @property
    def waited_s(self) -> float:
        """Time for which calls have waited for the engine."""
        return self.batcher.waited_s

    @property
    def due_s(self) -> float:
        """Seconds until the results of the oldest `submit` can arrive at the earliest; 0 when unknown."""
        return self.batcher.due_s(self._jobs[0]) if self._jobs and self._jobs[0].waiting else 0.0

    def __enter__(self) -> Embedder:
        with ExitStack() as undo:
            undo.enter_context(self._packer)
            undo.enter_context(self.engine)
            self._dimension = self.info.dimension
            self.engine.check(self._test)
            self._closing = undo.pop_all()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._jobs.clear()
        self.batcher.clear()
        self._closing.close()

    def _test(self, engine: Engine) -> None:
        rows = check_engine(engine, self._golden)
        if self._golden is None:  # an engine that is tested again must still be the same
            self._golden = Golden(engine.info.space, rows, "the first self-test of this run")

    def grade(self, pairs: Sequence[Pair]) -> list[Graded]:
        """Grade the detections of several frames, `(H, W, 3)` uint8 BGR, by their boxes, for `submit`.

        Raises:
            ValueError: a picture is empty or not `(h, w, 3)` uint8.
        """
        for image, _ in pairs:
            _check_picture(image)
        return self._gate.grade(
            [(found.boxes, found.scores, (image.shape[1], image.shape[0])) for image, found in pairs]
        )

    def accept(self, message: MessageFrame) -> Embedded:
        """Return the embeddings of a message, without those of boxes that the quality gate refuses.

        Boxes are judged by their geometry alone: there is no picture.
        """
        found = message.detections
        (graded,) = self._gate.grade([(found.boxes, found.scores, message.size)])
        present = message.embedded & np.array([not reason for reason in graded.reasons], np.bool_)
        quality = np.where(present, graded.quality, np.float32(0.0))
        self.counters.refused.update(filter(None, graded.reasons))
        self.counters.received += int(np.count_nonzero(present))
        return Embedded(message.vectors, present, quality, graded.reasons)

    def submit(
        self,
        pairs: Sequence[Pair],
        graded: Sequence[Graded] | None = None,
        spared: Sequence[NDArray[np.bool_]] | None = None,
    ) -> None:
        """Start to embed the detections of several frames; returns when the packer has the last crop.

        May be called again before `collect`: batches then overlap. It waits only while the engine has
        `DEPTH` batches in flight. `graded` is the result of `grade` for these pairs; `spared` are `(N,)` for
        each pair: detections that shall not be embedded.
        """
        job = self._open_job(self.grade(pairs) if graded is None else graded)
        if spared:
            left_out = job.present & np.concatenate(spared)
            job.present[left_out], job.quality[left_out] = False, 0.0
        self._jobs.append(job)
        crops, rows = [], []
        wanted, start = job.present.tolist(), 0
        for (image, _), end in zip(pairs, job.ends, strict=True):
            for row in range(start, end):
                if wanted[row]:
                    x1, y1, x2, y2 = job.inside[row]
                    crops.append(image[y1:y2, x1:x2])
                    rows.append(row)
            start = end
        self.batcher.put(job, crops, rows)

    def _open_job(self, graded: Sequence[Graded]) -> Job:
        """Make the job of graded detections; `present` is True for those to embed."""
        reasons = [reason for of in graded for reason in of.reasons]
        return Job(
            list(accumulate(len(of.reasons) for of in graded)),
            [box for of in graded for box in of.inside.tolist()],
            np.zeros((len(reasons), self._dimension), np.float32),
            np.array([not reason for reason in reasons], np.bool_),
            np.concatenate([of.quality for of in graded]) if graded else np.zeros(0, np.float32),
            reasons,
        )

    def keep_fed(self) -> None:
        """Take the rows of batches that have ended, and send packed crops to the engine if it has room."""
        self.batcher.keep_fed()

    def collect(self) -> list[Embedded]:
        """Wait for the oldest `submit`; return one `Embedded` per pair, in order.

        Raises:
            EngineError: nothing was submitted, or the engine failed on a batch of it. Everything that shared
                the batch is then dropped, with the same error; the embedder stays usable.
        """
        if not self._jobs:
            raise EngineError("nothing was submitted to the embedder, so there is nothing to collect")
        job = self._jobs[0]
        while job.waiting:
            self.batcher.advance()
        self._jobs.popleft()
        if job.error is not None:
            raise job.error
        self.counters.refused.update(filter(None, job.reasons))
        return job.results()

    def embed_images(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Embed whole pictures, each one crop: `(N, D)` float32, rows of unit length.

        The quality gate is not applied: the caller chose these pictures, `(h, w, 3)` uint8 BGR of any size.

        Raises:
            NonFiniteEmbedding: the network gave NaN, infinity or a vector without length.
            ValueError: a picture is empty or not `(h, w, 3)` uint8.
            EngineError: the engine failed on a batch.
        """
        for image in images:
            _check_picture(image)
        while self.batcher.busy:  # rows come in order: those of frames are ahead
            self.batcher.advance()
        parts = list(self._stream(images))
        if not parts:
            return np.zeros((0, self.info.dimension), np.float32)
        rows = np.concatenate(parts)
        for index, fault in enumerate(faults(rows, unit_length=self.engine.unit_length)):
            if fault:
                self.counters.refused[fault] += 1
                raise NonFiniteEmbedding(
                    f"{self.info.model} gave a {fault} embedding for picture {index}; it is not used. "
                    "Check the model file and the precision of the engine"
                )
        self.counters.embedded += len(rows)
        return rows

    def _stream(self, images: Sequence[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        """Yield the rows of each batch of `images`; the next batch is packed while one runs.

        Not in batches of one on this machine's cores: the hand-over costs more than is gained.
        """
        step = self.info.max_batch
        at_once = self.engine.shares_cores and min(step, len(images)) == 1
        try:
            for start in range(0, len(images), step):
                chunk = images[start : start + step]
                if self.engine.in_flight == DEPTH:
                    yield self.engine.collect()
                for image, target in zip(chunk, self.engine.buffer(), strict=False):
                    self._profile.fit(image, target)
                self.counters.batches += 1
                if at_once:
                    yield self.engine.compute(1)
                else:
                    self.engine.submit(len(chunk))
            while self.engine.in_flight:
                yield self.engine.collect()
        finally:
            while self.engine.in_flight:  # after a failure the engine must not keep old batches
                with suppress(EngineError):
                    self.engine.collect()


def _check_picture(image: NDArray[np.uint8]) -> None:
    """Refuse pictures that OpenCV would resize into another array, leaving an old crop in the buffer."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(f"picture: expected (h, w, 3) uint8, got {image.shape} {image.dtype.name}")
