"""A second network beside the one that decides: how often the two disagree about who somebody is.

It embeds a share of the crops of people with an identity, on the CPU, on one thread of the lowest priority,
and only while the first network has nothing to do. A crop that would have to wait for that is dropped.
Nothing it computes reaches a decision.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog
from numpy.typing import NDArray

from edge_agent.core.errors import EdgeAgentError
from edge_agent.embed.opening import open_embedder

if TYPE_CHECKING:
    from pathlib import Path

    from edge_agent.agent.results import FrameOutcome
    from edge_agent.core.config import Settings
    from edge_agent.embed.embedder import Embedder

_log = structlog.get_logger(__name__)

Vector = NDArray[np.float32]
Present = Callable[[Collection[int]], Collection[int]]
"""Returns those of some identities that exist."""

BATCH = 4
"""Crops at once: a network that becomes busy meanwhile waits for no core longer than they take."""
MOST_WAITING = 32
LONGEST_WAIT_S = 1.0
"""A crop is dropped after this time."""
IDLE_CHECK_S = 0.005
PEOPLE = 500
"""People whose means are kept, the latest seen."""
ENOUGH_CROPS = 3
"""Crops of a person before the person can be compared with others."""
_NICE = 19


@dataclass(slots=True)
class Agreement:
    """Compares two networks on the same crops: which person each finds nearest, by the means of people.

    The identity that the agent decided counts as right, so `own_errors` is what a network shows that was in
    the decision, and `errors` compares fairly with it only where decisions are right.
    """

    compared: int = 0
    disagreements: int = 0
    """Crops for which the two find different people."""
    own_errors: int = 0
    errors: int = 0
    """Crops nearest to somebody else than decided, by the first and by the second network."""
    _people: OrderedDict[int, tuple[Vector, Vector, int]] = field(default_factory=OrderedDict)
    """Sums of both embeddings, and their count, by identity."""

    def add(self, number: int, own: Vector, other: Vector, present: Present) -> None:
        """Add a crop of a person by both embeddings, `(D,)` and `(E,)` of length 1."""
        for gone in self._people.keys() - set(present(list(self._people))):
            del self._people[gone]
        sums = self._people.pop(number, None) or (np.zeros_like(own), np.zeros_like(other), 0)
        ready = [one for one, found in self._people.items() if found[2] >= ENOUGH_CROPS]
        if ready and sums[2] >= ENOUGH_CROPS:
            means = [(number, sums), *((one, self._people[one]) for one in ready)]
            found = [_nearest(means, place, vector) for place, vector in enumerate((own, other))]
            self.compared += 1
            self.disagreements += found[0] != found[1]
            self.own_errors += found[0] != number
            self.errors += found[1] != number
        self._people[number] = sums[0] + own, sums[1] + other, sums[2] + 1
        while len(self._people) > PEOPLE:
            self._people.popitem(last=False)

    @property
    def disagreement(self) -> float | None:
        """Share of the compared crops for which the two find different people; None before the first."""
        return self.disagreements / self.compared if self.compared else None


def _nearest(means: list[tuple[int, tuple[Vector, Vector, int]]], place: int, vector: Vector) -> int:
    rows = np.stack([sums[place] for _, sums in means])
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
    return means[int((rows @ vector).argmax())][0]


@dataclass(frozen=True, slots=True)
class _Crop:
    pixels: NDArray[np.uint8]
    own: Vector
    number: int
    since: float


@dataclass(slots=True)
class Shadow:
    """The second network; it computes while it is entered."""

    embedder: Embedder
    first: Embedder
    share: float
    number: Callable[[str, int], int | None]
    """Returns the identity of a track."""
    present: Present
    observe: Callable[[FrameOutcome], None] | None
    """Called with every outcome, too."""
    agreement: Agreement = field(default_factory=Agreement)
    embedded: int = 0
    dropped: int = 0
    """Crops for which the first network left no time."""
    seconds: float = 0.0
    """Time of the second network."""
    problem: str = ""
    _due: float = 0.0
    _waiting: deque[_Crop] = field(default_factory=deque)
    _wake: threading.Event = field(default_factory=threading.Event)
    _stop: bool = False
    _thread: threading.Thread | None = None

    def __enter__(self) -> Shadow:
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(5.0)

    def state(self) -> dict[str, Any]:
        """Return what `edge-agent status` shows."""
        found = self.agreement
        return {
            "model": self.embedder.info.model,
            "problem": self.problem,
            "embedded": self.embedded,
            "dropped": self.dropped,
            "seconds": round(self.seconds, 3),
            "compared": found.compared,
            "disagreement": found.disagreement,
            "own_errors": found.own_errors,
            "errors": found.errors,
        }

    def __call__(self, outcome: FrameOutcome) -> None:
        """Copy the crops that are due; on the driving thread."""
        if not self.problem:
            self._take(outcome)
        if self.observe is not None:
            self.observe(outcome)

    def _take(self, outcome: FrameOutcome) -> None:
        for row, seen in enumerate(outcome.update.seen):
            if seen.vector is None or seen.quality <= 0:
                continue
            number = self.number(seen.camera, seen.track_id)
            if number is None:
                continue
            self._due += self.share
            if self._due < 1.0:
                continue
            self._due -= 1.0
            if len(self._waiting) >= MOST_WAITING:
                self.dropped += 1
                continue
            if (pixels := outcome.pixels(row)) is not None:
                self._waiting.append(_Crop(pixels.copy(), seen.vector.copy(), number, time.monotonic()))
                self._wake.set()

    def _run(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while not self._stop:
            self._wake.wait(1.0)
            self._wake.clear()
            try:
                while self._waiting and not self._stop:
                    self._work()
            except EdgeAgentError as error:
                self._give_up(str(error))
            except Exception as error:  # noqa: BLE001 - a fault here must show in the status
                self._give_up(f"{type(error).__name__}: {error}")

    def _give_up(self, reason: str) -> None:
        self.problem = reason
        self._waiting.clear()
        _log.warning("shadow_stopped", error=reason)

    def _work(self) -> None:
        """Embed a few crops if the first network is idle; drop those that waited too long."""
        if self.first.engine.in_flight or self.first.batcher.busy:
            oldest = time.monotonic() - LONGEST_WAIT_S
            while self._waiting and self._waiting[0].since < oldest:
                self._waiting.popleft()
                self.dropped += 1
            time.sleep(IDLE_CHECK_S)
            return
        crops = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
        began = time.perf_counter()
        rows = self.embedder.embed_images([crop.pixels for crop in crops])
        self.seconds += time.perf_counter() - began
        self.embedded += len(crops)
        for crop, row in zip(crops, rows, strict=True):
            self.agreement.add(crop.number, crop.own, row, self.present)


def open_shadow(
    settings: Settings,
    state: Path,
    first: Embedder,
    number: Callable[[str, int], int | None],
    present: Present,
    observe: Callable[[FrameOutcome], None] | None,
    stack: ExitStack,
) -> Shadow:
    """Open the second network and its thread, until `stack` is closed; errors as in `open_embedder`."""
    changed = {
        "model": settings.engine.shadow_model,
        "preprocess": settings.engine.shadow_preprocess,
        "backend": "onnxruntime",
        "precision": "fp32",
        "packing": "here",
        "threads": 1,
    }
    engine = settings.engine.model_copy(update=changed)
    embedder = stack.enter_context(open_embedder(engine, settings.quality, state, max_batch=BATCH))
    shadow = Shadow(embedder, first, settings.engine.shadow_share, number, present, observe)
    return stack.enter_context(shadow)
