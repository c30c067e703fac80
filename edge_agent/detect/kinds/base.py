"""What a kind of network detector consists of. A new kind is one module with its facts and its decoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.structures import ScoreLevels
from edge_agent.detect.fit import Fit
from edge_agent.detect.kinds.seen import Response, Seen
from edge_agent.engine.graph.detector import DetectorGraph
from edge_agent.engine.graph.prepared import PreprocessProfile

Array = NDArray[np.float32]

RAW_BGR = PreprocessProfile("0..255 BGR", "bgr", 1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
UNIT_RGB = PreprocessProfile("0..1 RGB", "rgb", 1 / 255, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@dataclass(frozen=True)
class Decoder(ABC):
    """Turns rows of one network into boxes: here, of `x, y, w, h, score`, as most networks have them.

    Attributes:
        response: to the start-up picture with people.
    """

    response: Response

    @property
    def person(self) -> int:
        """Number of the class of people."""
        return self.response.person

    @abstractmethod
    def rows(self, graph: DetectorGraph) -> str:
        """Add nodes that reduce the outputs to what people need: `[N, A, columns]`; return their name."""

    def expected_rows(self) -> int | None:
        """Return the only possible number of rows; None for networks whose rows do not belong to cells."""
        return None

    def probabilities(self, rows: Array) -> Array:
        """Return the columns of rows that are scores, or the factors of scores."""
        return rows[:, 4:5]

    def scores(self, rows: Array) -> Array:
        """Return the score of a person for each of `(A, columns)` rows."""
        return rows[:, 4]

    def boxes(self, rows: Array, cells: NDArray[np.intp]) -> Array:  # noqa: ARG002 - of networks with a grid
        """Return xyxy in pixels of the input for some of the rows, whose numbers are `cells`."""
        return corners(rows[:, :2], rows[:, 2:4])


@dataclass(frozen=True, slots=True)
class Kind:
    """Facts of a kind.

    Attributes:
        name: as in `core.detectors.NETWORKS`.
        profile: preprocessing inside the graph.
        fit: of the frame in the input; the empty part has the value `grey`.
        levels: meaning of the scores.
        max_iou: boxes that overlap a better one by more are dropped.
        size: `(height, width)` for networks whose input size is dynamic.
        read: checks what a network gave against the invariants of the kind; Unlike where it does not fit.
    """

    name: str
    profile: PreprocessProfile
    fit: Fit
    levels: ScoreLevels
    max_iou: float
    size: tuple[int, int]
    read: Callable[[Seen], Decoder]
    grey: int = 114


def corners(centre: Array, size: Array) -> Array:
    """Convert centres and sizes, `(N, 2)` each, to xyxy `(N, 4)`."""
    return np.concatenate((centre - size / 2, centre + size / 2), axis=1)
