"""Simulated detector: the host's work on real pictures, with the time and boxes of a network that is absent.

For measuring the whole path. Each picture is scaled into the input, the batch takes the latencies of a table
in the queue of a device, and the rows are of the size that the network gives: background, and for each known
person a best row with less certain ones around it, which the host decodes and suppresses. The boxes are those
that come with the frame. The detector's name is `simulated:<table>` in all reports and events.

A file has the table and what the network is::

    {"kind": "yolox", "input_size": [640, 640], "model": "YOLOX-S", "device": "Jetson AGX Orin",
     "precision": "fp16", "source": "guess", "latency_ms": {"1": 3.1, "8": 20.0}}

`input_size` is `[width, height]`. The largest batch of the table is the largest that the detector takes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.errors import ConfigError, InputError
from edge_agent.core.files import read_object, shown
from edge_agent.core.structures import Detections, EngineInfo, Frame
from edge_agent.detect.fit import Place
from edge_agent.detect.kinds import peoplenet, yolox
from edge_agent.detect.kinds.base import Decoder, Kind
from edge_agent.detect.kinds.seen import Response
from edge_agent.detect.network import NetworkDetector
from edge_agent.detect.search import Search
from edge_agent.engine.base import Engine, Submission
from edge_agent.engine.simulated import Device, LatencyTable, TimedEngine, table_in

PREFIX = "simulated:"

_AROUND = 12
"""Less certain rows around the best one of a person. YOLOX nano on `vtest.avi`: 12.7 rows above the lowest
score for each person above the score of a new track."""
_STEPS = np.asarray([(x, y) for y in (-1, 0, 1, 2) for x in (-1, 0, 1, 2) if (x, y) != (0, 0)])[:_AROUND]
"""Cells of these rows, from that of the best one."""
_ERRORS = np.random.default_rng(61).normal(0, 0.02, (_AROUND, 4)).astype(np.float32)
"""Their box edges, in widths and heights: they overlap the best box enough to be suppressed."""
_CERTAINTY = np.linspace(0.9, 0.2, _AROUND, dtype=np.float32)
"""Their scores over the best one."""
_BACKGROUND = 0.02
"""Highest score without a person."""
_RESPONSE = Response(0, 0.9)
_MOST_SIDE = 4096


class _Network(ABC):
    """The rows of a network with a grid of cells, for boxes `(N, 4)` xyxy in pixels of its input."""

    kind: Kind
    decoder: Decoder
    columns: int

    @abstractmethod
    def cells(self, boxes: NDArray[np.float32]) -> NDArray[np.intp]:
        """Return the rows of the best cell and of those around it: `(N, 1 + 12)`."""

    @abstractmethod
    def rows(
        self, boxes: NDArray[np.float32], scores: NDArray[np.float32], cells: NDArray[np.intp]
    ) -> NDArray[np.float32]:
        """Return `(N, columns)`: what the decoder turns into these boxes."""


class _Yolox(_Network):
    kind = yolox.YOLOX
    columns = 6

    def __init__(self, size: tuple[int, int]) -> None:
        self.decoder = self._grid = yolox.grid_decoder(size, _RESPONSE)
        strides, first = np.unique(self._grid.strides[:, 0], return_index=True)
        self._strides, self._first = strides.astype(np.intp), first
        self._sides = np.asarray([[size[1] // s, size[0] // s] for s in self._strides])

    def cells(self, boxes: NDArray[np.float32]) -> NDArray[np.intp]:
        level = np.searchsorted([64.0, 160.0], boxes[:, 3] - boxes[:, 1])
        centre = (boxes[:, :2] + boxes[:, 2:]) / (2 * self._strides[level, None])
        return _around(np.asarray(centre, np.float32), self._sides[level], self._first[level])

    def rows(
        self, boxes: NDArray[np.float32], scores: NDArray[np.float32], cells: NDArray[np.intp]
    ) -> NDArray[np.float32]:
        stride = self._grid.strides[cells]
        centre = (boxes[:, :2] + boxes[:, 2:]) / (2 * stride) - self._grid.cells[cells]
        size = np.log(np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-3) / stride)
        certain = np.sqrt(scores)[:, None]  # as objectness, and as class
        return np.concatenate((centre, size, certain, certain), axis=1, dtype=np.float32)


class _PeopleNet(_Network):
    kind = peoplenet.PEOPLENET
    columns = 5

    def __init__(self, size: tuple[int, int]) -> None:
        self.decoder = self._grid = peoplenet.grid_decoder(size, _RESPONSE)
        self._sides = np.asarray([size[1] // peoplenet.STRIDE, size[0] // peoplenet.STRIDE])

    def cells(self, boxes: NDArray[np.float32]) -> NDArray[np.intp]:
        centre = (boxes[:, :2] + boxes[:, 2:]) / np.float32(2 * peoplenet.STRIDE)
        sides = np.broadcast_to(self._sides, centre.shape)
        return _around(centre, sides, np.zeros(len(boxes), np.intp))

    def rows(
        self, boxes: NDArray[np.float32], scores: NDArray[np.float32], cells: NDArray[np.intp]
    ) -> NDArray[np.float32]:
        centre, sides = self._grid.centres[cells], boxes / peoplenet.NORM
        return np.concatenate(
            (centre - sides[:, :2], sides[:, 2:] - centre, scores[:, None]), axis=1, dtype=np.float32
        )


_NETWORKS: dict[str, type[_Yolox | _PeopleNet]] = {"yolox": _Yolox, "peoplenet": _PeopleNet}


def _around(
    centre: NDArray[np.float32], sides: NDArray[np.intp], first: NDArray[np.intp]
) -> NDArray[np.intp]:
    """Return rows of the cells at and around centres, in grids of `sides` cells that begin at row `first`."""
    best = np.clip(np.floor(centre).astype(np.intp), 0, sides - 1)
    near = np.clip(best[:, None] + _STEPS, 0, sides[:, None] - 1)
    x, y = np.moveaxis(np.concatenate((best[:, None], near), axis=1), 2, 0)
    found: NDArray[np.intp] = first[:, None] + y * sides[:, :1] + x
    return found


@dataclass(frozen=True, slots=True)
class DetectorTable:
    """A file: the kind of network, its name, `(height, width)` of its input, and its latencies."""

    kind: str
    model: str
    size: tuple[int, int]
    latencies: LatencyTable

    @property
    def most(self) -> int:
        """Pictures in a batch at most."""
        return self.latencies.batches[-1]


def detector_table(text: str) -> DetectorTable:
    """Read the file of `simulated:FILE`.

    Raises:
        ConfigError: the text is not of this form, or there is no such file.
        InputError: the file has no table of a detector.
    """
    path = Path(text.removeprefix(PREFIX))
    if not text.startswith(PREFIX) or not path.is_file():
        raise ConfigError(
            f"no simulated detector {text!r}: write simulated:FILE.json, a file such as"
            ' {"kind": "yolox", "input_size": [640, 640], "model": "...", "device": "...",'
            ' "precision": "fp16", "source": "...", "latency_ms": {"1": 3.1}}'
        )
    found, where = read_object(path), shown(path)
    missing = {"kind", "input_size", "model"} - found.keys()
    if missing:
        raise InputError(f"{where}: the table of a detector has no {', '.join(sorted(missing))}")
    kind, size = found["kind"], found["input_size"]
    if not isinstance(kind, str) or kind not in _NETWORKS:
        raise InputError(f"{where}: kind {kind!r} cannot be simulated; choose of {', '.join(_NETWORKS)}")
    if not _is_size(size):
        raise InputError(
            f"{where}: input_size must be [width, height], multiples of 32 up to {_MOST_SIDE}, not {size!r}"
        )
    return DetectorTable(kind, str(found["model"]), (size[1], size[0]), table_in(found, path))


def _is_size(size: object) -> bool:
    return (
        isinstance(size, list)
        and len(size) == 2
        and all(type(side) is int and 32 <= side <= _MOST_SIDE and side % 32 == 0 for side in size)
    )


class _SimulatedNetwork(TimedEngine):
    """Gives the rows of the people that `expect` announced, in the order of the pictures."""

    def __init__(self, table: DetectorTable, network: _Network, device: Device, most: int) -> None:
        super().__init__(
            table.latencies, device, input_size=table.size, unit_length=False, max_batch=min(table.most, most)
        )
        self._model, self._network = table.model, network
        self._expected: deque[Detections] = deque()
        random, count = np.random.default_rng(6), network.decoder.expected_rows()
        assert count is not None  # these networks have a grid
        self._empty = random.uniform(0, _BACKGROUND, (count, network.columns)).astype(np.float32)

    @property
    def info(self) -> EngineInfo:
        """See `Engine.info`."""
        return EngineInfo(
            backend=f"simulated:{self.table.name}",
            precision=self.table.precision,
            model=f"simulated {self._model}",
            model_sha256="",
            space="",
            dimension=0,
            max_batch=self._max_batch,
            device=f"simulated {self.table.device}",
        )

    def __enter__(self) -> Engine:
        self._expected.clear()
        return super().__enter__()

    def expect(self, people: Detections) -> None:
        """Announce the people, in pixels of the input, of the next picture that is submitted."""
        self._expected.append(people)

    def _compute(self, run: Submission) -> NDArray[np.float32]:
        rows = np.repeat(self._empty[None], run.count, axis=0)
        for picture in rows:
            self._draw(self._expected.popleft(), picture)
        return rows

    def _draw(self, people: Detections, picture: NDArray[np.float32]) -> None:
        if not len(people):
            return
        boxes = people.boxes
        cells = self._network.cells(boxes)
        sides = np.tile(boxes[:, 2:] - boxes[:, :2], (1, 2))
        near = (boxes[:, None] + _ERRORS * sides[:, None]).reshape(-1, 4)
        less = (people.scores[:, None] * _CERTAINTY).reshape(-1)
        around = cells[:, 1:].reshape(-1)
        picture[around] = self._network.rows(near, less, around)
        picture[cells[:, 0]] = self._network.rows(boxes, people.scores, cells[:, 0])  # last: none is lost


class SimulatedDetector(NetworkDetector):
    """A detector without its network; the people come with the frames.

    `most` is the largest number of pictures together; `searched` counts frames.
    """

    engine: _SimulatedNetwork

    def __init__(self, table: DetectorTable, device: Device, *, most: int) -> None:
        network = _NETWORKS[table.kind](table.size)
        super().__init__(network.kind, network.decoder, _SimulatedNetwork(table, network, device, most))
        self.name = f"{PREFIX}{table.latencies.name}"
        self.table = table
        self.searched = 0
        self._fitted = network.kind.fit

    def begin_frames(self, frames: Sequence[Frame]) -> Search:
        """Begin to search frames, in whose pictures the people of `Frame.external` are found."""
        for frame in frames:
            people = frame.external if frame.external is not None else Detections.none()
            place = Place.of(frame.image.shape, self.table.size, self._fitted)
            self.engine.expect(Detections(place.in_input(people.boxes), people.scores))
        self.searched += len(frames)
        return self.begin([frame.image for frame in frames])
