"""What the pipeline reports: the outcome of each frame, and counters of the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edge_agent.core.structures import Decision, TrackUpdate

__all__ = ["Counters", "FrameOutcome"]


@dataclass(frozen=True, slots=True)
class FrameOutcome:
    """The result of one frame.

    Attributes:
        update: its tracks.
        decisions: identity decisions, in order.
        latency_ms: milliseconds by stage (`detect`, `embed`, `decide`) and, for live sources, `total` from
            capture to decision. Empty for the end of a source.
        trace: id of the frame's trace, 32 hex digits; the frame's events carry it.
    """

    update: TrackUpdate
    decisions: tuple[Decision, ...]
    latency_ms: Mapping[str, float]
    trace: str


@dataclass(slots=True)
class Counters:
    """Counts since the start of the run."""

    frames: dict[str, int] = field(default_factory=dict)
    """Processed frames by camera."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Frames left out to lower the load, by camera."""
    failed_batches: int = 0
    decisions: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """Time of the driving thread by stage."""

    def spend(self, stage: str, seconds: float) -> None:
        """Add to the time of a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
