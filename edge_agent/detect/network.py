"""People by an ONNX network of any kind: frames into its input, rows to boxes, suppression.

What differs between the kinds is in `detect.kinds`. Pictures that are searched together are one batch, as
far as the engine takes them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.errors import EngineError
from edge_agent.core.structures import Detections
from edge_agent.detect.base import Detector
from edge_agent.detect.fit import Place
from edge_agent.detect.kinds.base import Decoder, Kind
from edge_agent.detect.kinds.seen import ROUNDING
from edge_agent.detect.search import Search
from edge_agent.engine.base import DEPTH, Engine

_LARGEST = 1e9
"""Magnitude of a number in a row at most: beyond, boxes would overflow."""


@dataclass(slots=True)
class _Batch:
    """Pictures that the engine has, in order: their shapes and places; and their rows once they are there."""

    shapes: list[tuple[int, ...]]
    places: list[Place]
    rows: NDArray[np.float32] | None = None
    error: EngineError | None = None


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
        self._flying: deque[_Batch] = deque()

    def _load(self) -> None:
        self.engine.__enter__()
        self._filled.clear()

    def _release(self) -> None:
        self._flying.clear()
        self.engine.__exit__(None, None, None)

    def begin(self, images: Sequence[NDArray[np.uint8]]) -> Search:
        """See `Detector.begin`: waits only while the engine has `DEPTH` batches in flight."""
        self._require_entered()
        most = self.engine.info.max_batch
        batches = [self._submit(images[start : start + most]) for start in range(0, len(images), most)]
        return Search(
            lambda: [found for batch in batches for found in self._found(batch)],
            lambda: self._have_ended(batches),
        )

    def _find(self, image: NDArray[np.uint8]) -> Detections:
        """Return boxes above `levels.low`.

        Raises:
            EngineError: the network failed, or gave scores above 1 or boxes that are no numbers.
        """
        batch = self._submit([image])
        return self._boxes(batch.places[0], self._rows(batch)[0])

    def _submit(self, images: Sequence[NDArray[np.uint8]]) -> _Batch:
        if len(self._flying) == DEPTH:
            self._collect()
        buffer = self.engine.buffer()
        places = [self._fit(image, target) for image, target in zip(images, buffer, strict=False)]
        self.engine.submit(len(images))
        batch = _Batch([image.shape for image in images], places)
        self._flying.append(batch)
        return batch

    def _collect(self) -> None:
        """Wait for the oldest batch."""
        batch = self._flying.popleft()
        try:
            batch.rows = self.engine.collect()
        except EngineError as error:
            batch.error = error

    def _have_ended(self, batches: Sequence[_Batch]) -> bool:
        while self._flying and self.engine.ready:
            self._collect()
        return all(batch.rows is not None or batch.error is not None for batch in batches)

    def _rows(self, batch: _Batch) -> NDArray[np.float32]:
        while batch.rows is None:
            if batch.error is not None:
                raise batch.error
            self._collect()
        return batch.rows

    def _found(self, batch: _Batch) -> list[Detections]:
        """Wait for a batch; return the people in each of its pictures."""
        rows = self._rows(batch)
        return [
            self._best(self._boxes(place, of), shape)
            for place, of, shape in zip(batch.places, rows, batch.shapes, strict=True)
        ]

    def _boxes(self, place: Place, rows: NDArray[np.float32]) -> Detections:
        found = self._decode(rows)
        return Detections(place.in_picture(found.boxes), found.scores)

    def _fit(self, image: NDArray[np.uint8], target: NDArray[np.uint8]) -> Place:
        """Scale the picture into its part of the engine's buffer; return its place there."""
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
