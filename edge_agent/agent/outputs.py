"""Output of the outcomes: events to the publisher, MOT files, latencies."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from edge_agent.core.events import DeviceSummary, identity_event
from edge_agent.core.timing import process_age_s
from edge_agent.deliver.mot import MotFinal, MotWriter
from edge_agent.identify.settle import FUSED

if TYPE_CHECKING:
    from edge_agent.agent.crop_keeper import CropKeeper
    from edge_agent.agent.live import LiveView
    from edge_agent.agent.people_events import PeopleEvents
    from edge_agent.agent.results import FrameOutcome
    from edge_agent.core.clock import Clock
    from edge_agent.core.structures import EngineInfo
    from edge_agent.deliver.metrics import Metrics
    from edge_agent.deliver.publisher import AnyPublisher
    from edge_agent.gallery.erasure import Erasure
    from edge_agent.identify import Identifier

_log = structlog.get_logger(__name__)

LATENCY_FRAMES = 5000
"""Frames whose latencies are kept for the medians of the telemetry."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """Files that a run writes."""

    events: Path | None = None
    """Every event as a JSON line."""
    mot: Path | None = None
    """MOTChallenge rows with identities as known at each frame."""
    mot_final: Path | None = None
    """The same with the last identity of each track."""


@dataclass(slots=True, kw_only=True)
class OutcomeWriter:
    """Publishes the decisions of each outcome and writes the MOT files, which `stack` closes."""

    outputs: InitVar[Outputs]
    cameras: InitVar[int]
    """Number of sources."""
    stack: InitVar[ExitStack]
    publisher: AnyPublisher
    clock: Clock
    erasure: Erasure
    """Notes the decisions."""
    identifier: Identifier
    engine: EngineInfo
    detector: str
    """Name of the detectors, for the events."""
    metrics: Metrics | None
    observe: Callable[[FrameOutcome], None] | None
    people: PeopleEvents
    crops: CropKeeper
    live: LiveView
    device: DeviceSummary
    """State of the device as last read, for the events."""
    _latencies: dict[str, deque[float]] = field(default_factory=dict)
    """Milliseconds per stage of the newest frames since the last `take_latencies`."""
    _mot: MotWriter | None = None
    _mot_final: MotFinal | None = None
    _not_yet: set[str] = field(default_factory=lambda: {"frame", "event"})
    """What is logged at its first occurrence."""

    def __post_init__(self, outputs: Outputs, cameras: int, stack: ExitStack) -> None:
        if outputs.mot:
            self._mot = stack.enter_context(MotWriter(outputs.mot, cameras))
        if outputs.mot_final:
            self._mot_final = MotFinal(outputs.mot_final, cameras)

    def write(self, outcome: FrameOutcome) -> None:
        """Publish and write one outcome."""
        self._log_first("frame", outcome.update.camera)
        self.erasure.saw(outcome.update)
        fused = False
        for decision in outcome.decisions:
            event = identity_event(
                decision,
                engine=self.engine,
                device=self.device,
                latency_ms=outcome.latency_ms,
                detector=self.detector,
                trace=outcome.trace,
                label=self.clock.current,
            )
            self.publisher.publish(event)
            self.erasure.note(decision)
            fused = fused or decision.reason == FUSED
            self._log_first("event", decision.camera)
        if fused:  # identities were merged
            self.people.run()
        for stage, latency in outcome.latency_ms.items():
            self._latencies.setdefault(stage, deque(maxlen=LATENCY_FRAMES)).append(latency)
            if self.metrics is not None:
                self.metrics.observe(stage, latency / 1000)
        if self._mot is not None:
            self._mot.write(outcome.update, self.identifier.number)
        if self._mot_final is not None:
            self._mot_final.write(outcome.update)
        self.crops.saw(outcome)
        if self.live.watched:
            self.live.show(outcome)
        if self.observe is not None:
            self.observe(outcome)

    def take_latencies(self) -> dict[str, float]:
        """Return the median milliseconds per stage, and start over."""
        taken, self._latencies = self._latencies, {}
        return {stage: round(statistics.median(list(values)), 2) for stage, values in taken.items()}

    def finish(self) -> None:
        """Write the file of final identities, once all outcomes are written."""
        if self._mot_final is not None:
            self._mot_final.finish(self.identifier.number)

    def _log_first(self, what: str, camera: str) -> None:
        if what in self._not_yet:
            self._not_yet.remove(what)
            _log.info(f"first_{what}", camera=camera, after_s=process_age_s())
