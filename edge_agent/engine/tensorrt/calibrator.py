"""INT8 ranges through TensorRT's calibrators, versions 8 to 10: known ranges, or ranges that TensorRT finds.

TensorRT asks for batches and ignores an exception in the answer: it then calibrates on fewer pictures and
builds a plan all the same. So exceptions are kept and raised after the build, and batches are counted.
TensorRT 11 has no calibrators; its graphs contain the ranges.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.errors import EngineError, ModelError
from edge_agent.engine.graph.prepared import PreparedGraph
from edge_agent.engine.precision.scales import Algorithm, Scales, read_cache
from edge_agent.engine.tensorrt import bindings
from edge_agent.engine.tensorrt.cuda import DeviceMemory

_T = TypeVar("_T")

_ALGORITHMS: dict[Algorithm, tuple[str, str]] = {
    "EntropyCalibration2": ("IInt8EntropyCalibrator2", "entropy"),
    "MinMaxCalibration": ("IInt8MinMaxCalibrator", "minmax"),
}
"""TensorRT's class and the method of its ranges, see `Scales.method`."""
_WIDE_NUMBERS = 10
"""From this major version on, a version is written as major * 10000 (NvInferRuntimeBase.h)."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures to find ranges with, e.g. a sample of Market-1501.

    `digest` identifies the set; `open` returns `count` pictures, each `(H, W, 3)` uint8 BGR of the network's
    input size.
    """

    count: int
    digest: str
    open: Callable[[], Iterator[NDArray[np.uint8]]]


@dataclass(frozen=True, slots=True)
class Calibration:
    """How TensorRT finds ranges; pictures beyond the last full batch are not used.

    The DLA accepts the algorithm `EntropyCalibration2` only.
    """

    pictures: Pictures
    algorithm: Algorithm = "EntropyCalibration2"
    batch: int = 16

    @property
    def digest(self) -> str:
        """Identifies where the ranges come from; part of the key of a plan."""
        text = f"{self.pictures.digest}|{self.pictures.count}|{self.algorithm}|{self.batch}"
        return hashlib.sha256(text.encode()).hexdigest()


def header_number(release: tuple[int, ...]) -> int:
    """`(10, 3, 0)` -> 100300, `(8, 6, 1)` -> 8601: the version in the header of a calibration cache."""
    major, minor, patch = (*release, 0, 0)[:3]
    return major * (10_000 if major >= _WIDE_NUMBERS else 1_000) + minor * 100 + patch


class RangeSource:
    """The answers of a calibrator. A context manager, used on a thread with a CUDA context.

    `known` are ranges, which TensorRT then reads instead of asking for pictures, or how to find them.

    Attributes:
        batch: pictures per answer, also the batch of the calibration profile.
        error: of the first answer that failed; `check` raises it.

    Raises:
        ModelError: known ranges belong to another graph.
        EngineError: fewer pictures than one batch.
    """

    def __init__(
        self, prepared: PreparedGraph, known: Scales | Calibration, *, release: tuple[int, ...]
    ) -> None:
        self._graph_sha256 = hashlib.sha256(prepared.onnx).hexdigest()
        self._shape = (*prepared.input_size, 3)
        self._release = release
        self._known = known if isinstance(known, Scales) else None
        self._calibration = known if isinstance(known, Calibration) else None
        if self._known is not None and self._known.model_sha256 != self._graph_sha256:
            raise ModelError(
                f"the INT8 ranges belong to another graph than {prepared.name}; "
                "run `edge-agent calibrate` again"
            )
        self.algorithm: Algorithm = "EntropyCalibration2"
        self.batch, self._batches = 1, 0
        if self._calibration is not None:
            self.algorithm, self.batch = self._calibration.algorithm, int(self._calibration.batch)
            count = self._calibration.pictures.count
            self._batches = count // self.batch
            if not self._batches:
                what = f"{count} pictures do not fill a calibration batch of {self.batch}"
                raise EngineError(f"{what}; give at least that many")
        self.error: BaseException | None = None
        self._sent = 0
        self._found: Scales | None = None
        self._pictures: Iterator[NDArray[np.uint8]] = iter(())
        self._host = np.zeros((self.batch, *self._shape), np.uint8)
        self._memory: DeviceMemory | None = None

    def __enter__(self) -> RangeSource:
        if self._calibration is not None:
            self._pictures = self._calibration.pictures.open()
            self._memory = DeviceMemory(self._host.nbytes)
        return self

    def __exit__(self, *_: object) -> None:
        memory, self._memory = self._memory, None
        if memory is not None:
            memory.free()

    def next_batch(self, names: Sequence[str]) -> list[int] | None:
        """Return the address of the next batch for each of `names`; None after the last one."""
        if self.error is not None or self._memory is None or self._sent == self._batches:
            return None
        if len(names) != 1:  # TensorRT reads one address per name, unchecked
            raise EngineError(f"a calibrator fills one input, TensorRT asks for {', '.join(names) or 'none'}")
        for row in self._host:
            picture = next(self._pictures, None)
            if picture is None:
                at = f"batch {self._sent + 1} of {self._batches}"
                raise EngineError(f"the calibration pictures ended in {at}")
            if picture.shape != self._shape or picture.dtype != np.uint8:
                found = f"{picture.shape} {picture.dtype}"
                raise EngineError(f"calibration picture: expected {self._shape} uint8, got {found}")
            row[...] = picture
        from pycuda import driver

        driver.memcpy_htod(self._memory.pointer, self._host)
        self._sent += 1
        return [self._memory.pointer]

    def read(self) -> bytes | None:
        """Return the known ranges as a cache of the running TensorRT; None when it must find them."""
        if self._known is None:
            return None
        return self._known.cache(header_number(self._release), self.algorithm)

    def write(self, cache: bytes) -> None:
        """Store the ranges that TensorRT found; InputError or ModelError where they are not readable."""
        if self._calibration is None:
            return  # TensorRT returns the known ranges
        amax = read_cache(cache).amax
        found = {name: value for name, value in amax.items() if math.isfinite(value) and value > 0}
        self._found = Scales(found, _ALGORITHMS[self.algorithm][1], self._graph_sha256)

    def check(self) -> Scales | None:
        """Return the ranges that were found, None when they were known; or raise the error of an answer.

        Raises:
            EngineError: TensorRT used another number of batches, or returned no ranges.
        """
        if self.error is not None:
            raise self.error
        if self._calibration is None:
            return None
        if self._sent != self._batches:
            raise EngineError(
                f"TensorRT calibrated with {self._sent} of {self._batches} batches; its ranges are not used"
            )
        if self._found is None:
            raise EngineError("TensorRT built with calibration, but gave no ranges back")
        return self._found


def make_calibrator(source: RangeSource) -> object:
    """Return an `IInt8Calibrator`, which the caller keeps during the build; EngineError where none exists."""
    bindings.require_bindings()
    import tensorrt as trt

    name = _ALGORITHMS[source.algorithm][0]
    base: Any = getattr(trt, name, None)
    if base is None:
        raise EngineError(
            f"TensorRT {trt.__version__} has no {name}: from version 11 on, INT8 needs a graph with "
            "quantise/dequantise nodes, which `edge-agent calibrate` makes"
        )

    class Calibrator(base):  # type: ignore[misc]  # the class exists only while TensorRT has it
        def __init__(self) -> None:
            base.__init__(self)  # required by pybind11

        def get_batch_size(self) -> int:
            return source.batch

        def get_batch(self, names: Sequence[str]) -> list[int] | None:
            return _answer(source, lambda: source.next_batch(names))

        def read_calibration_cache(self) -> bytes | None:
            return _answer(source, source.read)

        def write_calibration_cache(self, cache: memoryview) -> None:
            data = bytes(cache)  # a copy: the memory belongs to TensorRT
            _answer(source, lambda: source.write(data))

    return Calibrator()


def _answer(source: RangeSource, answer: Callable[[], _T]) -> _T | None:
    """Return an answer, or None and keep its error, which TensorRT would ignore."""
    try:
        return answer()
    except BaseException as problem:  # noqa: BLE001 - raised by `check`
        source.error = problem
        return None
