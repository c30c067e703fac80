"""Results: the outcome of each frame, counters, and the figures of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.structures import CropBatch, Decision, Frame, MessageFrame, TrackUpdate


@dataclass(frozen=True, slots=True)
class FrameOutcome:
    """The result of one frame."""

    update: TrackUpdate
    decisions: tuple[Decision, ...]
    latency_ms: Mapping[str, float]
    """By stage (`detect`, `embed`, `decide`) and, for live sources, `total` from capture to decision. Empty
    for the end of a source."""
    trace: str
    """Id of the frame's trace, 32 hex digits; the frame's events carry it."""
    item: Frame | CropBatch | MessageFrame | None = None
    """The frame, the crops or the message; pixels may change after the call. None for the end of a source."""

    def pixels(self, row: int) -> NDArray[np.uint8] | None:
        """Return a view of the crop of `update.seen[row]`, as the network gets it; None: there is none."""
        if isinstance(self.item, CropBatch):
            crop = self.item.images[row]
        elif isinstance(self.item, Frame):
            left, top, right, bottom = (max(0, round(side)) for side in self.update.seen[row].box.tolist())
            crop = self.item.image[top:bottom, left:right]
        else:
            return None
        return crop if crop.size else None


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


@dataclass(frozen=True, slots=True)
class Summary:
    """The result of a run."""

    frames: dict[str, int]
    """Processed frames, by camera."""
    crops: int
    """Embedded crops."""
    decisions: int
    identities: int
    """In the gallery at the end."""
    seconds: float
    """Wall time from the first frame to the last decision."""
    engine_seconds: float
    """Time inside the ReID network."""
    detector_seconds: float
    """Time inside the detectors' networks."""
    stage_seconds: dict[str, float]
    """Time of the driving thread by stage."""
    dropped: dict[str, int]
    """Frames that were not processed in time, by camera."""
    refused: dict[str, int]
    """Crops that were not embedded, by reason."""
    undelivered: int
    """Events that the broker has not acknowledged."""
    received: int = 0
    """Embeddings that were computed upstream."""
    detector: str = ""
    """Names of the detectors, joined by `+`."""
    small: tuple[str, ...] = ()
    """Advice for cameras whose pictures are too small."""
