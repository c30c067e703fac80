"""A round: items of any cameras whose crops are embedded in one submission."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.structures import Candidates, CropBatch, Detections, Embedded, Frame

if TYPE_CHECKING:
    from edge_agent.embed.quality import Graded
    from edge_agent.source.reader import FrameReader

__all__ = ["EmbeddedRound", "PendingItem", "Round", "whole_image"]


@dataclass(slots=True)
class PendingItem:
    """One item whose crops are with the engine.

    Attributes:
        reader: where it comes from.
        item: a frame, or the crops of an upstream.
        detections: those of a frame; None for crops.
        pairs: number of its pairs of image and detections in the submission.
        detect_s: seconds of detection.
        trace: id of its trace.
    """

    reader: FrameReader
    item: Frame | CropBatch
    detections: Detections | None
    pairs: int
    detect_s: float
    trace: str

    @property
    def crops_per_pair(self) -> list[int]:
        """Number of crops of each pair."""
        return [len(self.detections)] if self.detections is not None else [1] * self.pairs

    def candidates(self, graded: Sequence[Graded]) -> Candidates:
        """Return its crops for the crop selection; `graded`: of each of its pairs.

        Upstream crops are only accepted or refused: the grade of a whole image says little about its person.
        """
        item = self.item
        if isinstance(item, CropBatch):
            accepted = [1.0 if not reason else 0.0 for one in graded for reason in one.reasons]
            grades = np.array(accepted, np.float32)
            return Candidates(item.camera, item.time, item.boxes, item.track_ids, grades=grades)
        found = self.detections if self.detections is not None else Detections.none()
        return Candidates(
            item.camera,
            item.time,
            found.boxes,
            scores=found.scores,
            grades=graded[0].quality,
            live=self.reader.live,
            lost=self.reader.dropped,
            detect_s=self.detect_s,
        )


@dataclass(slots=True)
class Round:
    """A submission: its items, and when it was made (`time.perf_counter`)."""

    items: list[PendingItem]
    submitted: float

    def without_embeddings(self) -> list[Embedded]:
        """Return the results of a failed batch, one per pair: no crop has an embedding."""
        return [_not_embedded(crops) for pending in self.items for crops in pending.crops_per_pair]


@dataclass(slots=True)
class EmbeddedRound:
    """A round with its embeddings, one `Embedded` per pair, and the seconds since its submission."""

    items: list[PendingItem]
    embedded: list[Embedded]
    embed_s: float


def whole_image(image: NDArray[np.uint8]) -> Detections:
    """Return one detection that covers an image."""
    height, width = image.shape[:2]
    return Detections(np.array([[0, 0, width, height]], np.float32), np.ones(1, np.float32))


def _not_embedded(crops: int) -> Embedded:
    return Embedded(
        np.zeros((crops, 0), np.float32),
        np.zeros(crops, np.bool_),
        np.zeros(crops, np.float32),
        ("engine failed",) * crops,
    )
