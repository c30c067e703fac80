"""People by an ONNX network of any kind: frame into its input, rows to boxes, suppression.

What differs between the kinds is in `detect.kinds`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.errors import EngineError
from edge_agent.core.structures import Detections
from edge_agent.detect.base import Detector
from edge_agent.detect.fit import Place
from edge_agent.detect.kinds.base import Decoder, Kind
from edge_agent.detect.kinds.seen import ROUNDING
from edge_agent.engine.base import Engine

_LARGEST = 1e9
"""Magnitude of a number in a row at most: beyond, boxes would overflow."""


class NetworkDetector(Detector):
    """`engine` runs a graph of `prepare_detector` and is not yet entered."""

    engine: Engine

    def __init__(self, kind: Kind, decoder: Decoder, engine: Engine) -> None:
        self.engine = engine
        self.name = f"{kind.name}:{engine.info.model}"
        self.levels = kind.levels
        self.max_iou = kind.max_iou
        self._kind = kind
        self._decoder = decoder
        self._filled: dict[int, tuple[int, int]] = {}

    def _load(self) -> None:
        self.engine.__enter__()
        self._filled.clear()

    def _release(self) -> None:
        self.engine.__exit__(None, None, None)

    def _find(self, image: NDArray[np.uint8]) -> Detections:
        """Return boxes above `levels.low`.

        Raises:
            EngineError: the network failed, or gave scores above 1 or boxes that are no numbers.
        """
        place = self._fit(image)
        self.engine.submit(1)
        found = self._decode(self.engine.collect()[0])
        return Detections(place.in_picture(found.boxes), found.scores)

    def _fit(self, image: NDArray[np.uint8]) -> Place:
        """Scale the picture into the engine's buffer; return its place there."""
        target = self.engine.buffer()[0]
        place = Place.of(image.shape, self.engine.input_size, self._kind.fit)
        inner = place.height, place.width
        if self._filled.get(target.ctypes.data) != inner:  # another size left its edges
            target[:] = self._kind.grey
            self._filled[target.ctypes.data] = inner
        place.draw(image, target)
        return place

    def _decode(self, rows: NDArray[np.float32]) -> Detections:
        """Convert rows to boxes in pixels of the network's input; only rows above `low`."""
        expected = self._decoder.expected_rows()
        if expected is not None and len(rows) != expected:
            raise EngineError(f"detector {self.name} gave {len(rows)} rows instead of {expected}")
        with np.errstate(all="ignore"):  # the result of infinity times 0 is refused below
            scores = self._decoder.scores(rows)
        cells = np.flatnonzero(~(scores < self._kind.levels.low))  # also NaN
        kept = rows[cells]
        best = float(self._decoder.probabilities(kept).max(initial=0))
        if not best <= 1 + ROUNDING:  # also for NaN
            raise EngineError(
                f"detector {self.name} gave a score of {best:.4g}, which no {self._kind.name} network does: "
                "it is of another kind, or is faulty; see docs/models.md#detectors"
            )
        if not (np.abs(kept) <= _LARGEST).all():  # also for NaN
            raise EngineError(f"detector {self.name} gave a box of NaN or infinity: the network is faulty")
        return Detections(self._decoder.boxes(kept, cells), np.minimum(scores[cells], np.float32(1)))
