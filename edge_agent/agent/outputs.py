"""Output of the outcomes: events to the publisher, MOT files, latencies."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from edge_agent.core.events import DeviceSummary, identity_event
from edge_agent.core.timing import process_age_s
from edge_agent.deliver.mot import MotFinal, MotWriter

if TYPE_CHECKING:
    from edge_agent.agent.outcome import FrameOutcome
    from edge_agent.core.structures import EngineInfo
    from edge_agent.deliver.metrics import Metrics
    from edge_agent.deliver.publisher import AnyPublisher
    from edge_agent.gallery.erasure import Erasure
    from edge_agent.identify import Identifier

__all__ = ["Latencies", "OutcomeWriter", "Outputs"]

_log = structlog.get_logger(__name__)

LATENCY_FRAMES = 5000
"""Frames whose latencies are kept for the medians of the telemetry."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """Files that a run writes.

    Attributes:
        events: every event as a JSON line.
        mot: MOTChallenge rows with identities as known at each frame.
        mot_final: the same with the last identity of each track.
    """

    events: Path | None = None
    mot: Path | None = None
    mot_final: Path | None = None


@dataclass(slots=True)
class Latencies:
    """Milliseconds per stage of the newest frames since the last `take`."""

    _latencies: dict[str, deque[float]] = field(default_factory=dict)

    def add(self, latency_ms: Mapping[str, float]) -> None:
        """Add those of one frame."""
        for stage, latency in latency_ms.items():
            self._latencies.setdefault(stage, deque(maxlen=LATENCY_FRAMES)).append(latency)

    def take(self) -> dict[str, float]:
        """Return the median per stage, and start over."""
        taken, self._latencies = self._latencies, {}
        return {stage: round(statistics.median(list(values)), 2) for stage, values in taken.items()}


class OutcomeWriter:
    """Publishes the decisions of each outcome and writes the MOT files.

    Args:
        outputs: the MOT files.
        cameras: number of sources.
        stack: closes the files.
        publisher: takes the events.
        erasure: notes the decisions.
        identifier: gives the identities of tracks.
        engine: of the embeddings, for the events.
        detector: name of the detectors, for the events.
        metrics: takes the latencies; None without a metrics port.
        observe: called with every outcome.
    """

    def __init__(
        self,
        outputs: Outputs,
        cameras: int,
        stack: ExitStack,
        *,
        publisher: AnyPublisher,
        erasure: Erasure,
        identifier: Identifier,
        engine: EngineInfo,
        detector: str,
        metrics: Metrics | None,
        observe: Callable[[FrameOutcome], None] | None,
    ) -> None:
        self.device = DeviceSummary()
        """State of the device as last read, for the events."""
        self.latencies = Latencies()
        self._publisher = publisher
        self._erasure = erasure
        self._identifier = identifier
        self._engine = engine
        self._detector = detector
        self._metrics = metrics
        self._observe = observe
        self._mot = stack.enter_context(MotWriter(outputs.mot, cameras)) if outputs.mot else None
        self._mot_final = MotFinal(outputs.mot_final, cameras) if outputs.mot_final else None
        self._not_yet = {"frame", "event"}
        """What is logged at its first occurrence."""

    def write(self, outcome: FrameOutcome) -> None:
        """Publish and write one outcome."""
        self._log_first("frame", outcome.update.camera)
        for decision in outcome.decisions:
            event = identity_event(
                decision,
                engine=self._engine,
                device=self.device,
                latency_ms=outcome.latency_ms,
                detector=self._detector,
                trace=outcome.trace,
            )
            self._publisher.publish(event)
            self._erasure.note(decision)
            self._log_first("event", decision.camera)
        self.latencies.add(outcome.latency_ms)
        if self._metrics is not None:
            for stage, latency in outcome.latency_ms.items():
                self._metrics.observe(stage, latency / 1000)
        if self._mot is not None:
            self._mot.write(outcome.update, self._identifier.number)
        if self._mot_final is not None:
            self._mot_final.write(outcome.update)
        if self._observe is not None:
            self._observe(outcome)

    def finish(self) -> None:
        """Write the file of final identities, once all outcomes are written."""
        if self._mot_final is not None:
            self._mot_final.finish(self._identifier.number)

    def _log_first(self, what: str, camera: str) -> None:
        if what in self._not_yet:
            self._not_yet.remove(what)
            _log.info(f"first_{what}", camera=camera, after_s=process_age_s())
