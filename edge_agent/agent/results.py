"""Figures of a run: the summary at its end, and the tally while it runs."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Summary", "Tally"]


@dataclass(frozen=True, slots=True)
class Summary:
    """The result of a run.

    Attributes:
        frames: processed frames, by camera.
        crops: embedded crops.
        decisions: identity decisions.
        identities: in the gallery at the end.
        seconds: wall time from the first frame to the last decision.
        engine_seconds: time inside the ReID network.
        detector_seconds: time inside the detectors' networks.
        stage_seconds: time of the driving thread by stage.
        undelivered: events that the broker has not acknowledged.
    """

    frames: dict[str, int]
    crops: int
    decisions: int
    identities: int
    seconds: float
    engine_seconds: float
    detector_seconds: float
    stage_seconds: dict[str, float]
    undelivered: int


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts and losses of a run so far.

    Attributes:
        crops: embedded crops.
        batches: batches that the engine ran.
        engine_seconds: time inside the ReID network.
        frames: processed frames, by camera.
        dropped: frames that a newer one replaced before they were processed, by camera.
        spared: crops that were not embedded, to lower the load or to keep up, by camera.
        overload: those of them that the engine had no time for, by camera.
        published: events that the outbox accepted.
        acknowledged: events that the broker acknowledged.
    """

    crops: int
    batches: int
    engine_seconds: float
    frames: dict[str, int]
    dropped: dict[str, int]
    spared: dict[str, int]
    overload: dict[str, int]
    published: int
    acknowledged: int
