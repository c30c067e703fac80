"""Passes INT8 ranges to TensorRT 8 to 10 through a calibrator, as a calibration cache.

TensorRT 11 has no calibrators; its graphs contain the ranges.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from edge_agent.core.errors import EngineError, ModelError
from edge_agent.engine.graph.prepared import PreparedGraph
from edge_agent.engine.precision.scales import Scales
from edge_agent.engine.tensorrt import bindings

__all__ = ["header_number", "make_calibrator", "range_cache"]

_WIDE_NUMBERS = 10
"""From this major version on, a version is written as major * 10000 (NvInferRuntimeBase.h)."""


def header_number(release: tuple[int, ...]) -> int:
    """`(10, 3, 0)` -> 100300, `(8, 6, 1)` -> 8601: the version in the header of a calibration cache."""
    major, minor, patch = (*release, 0, 0)[:3]
    return major * (10_000 if major >= _WIDE_NUMBERS else 1_000) + minor * 100 + patch


def range_cache(prepared: PreparedGraph, scales: Scales, release: tuple[int, ...]) -> bytes:
    """Return the ranges of a network as a calibration cache for a version of TensorRT.

    Raises:
        ModelError: the ranges belong to another graph, or a tensor's name does not fit the format.
    """
    if scales.model_sha256 != hashlib.sha256(prepared.onnx).hexdigest():
        raise ModelError(
            f"the INT8 ranges belong to another graph than {prepared.name}; run `edge-agent calibrate` again"
        )
    return scales.cache(header_number(release))


def make_calibrator(cache: bytes) -> object:
    """Return an `IInt8Calibrator` with known ranges; the caller keeps a reference until the build has ended.

    Raises:
        EngineError: this TensorRT has no calibrators.
    """
    bindings.require_bindings()
    import tensorrt as trt

    base: Any = getattr(trt, "IInt8EntropyCalibrator2", None)
    if base is None:
        raise EngineError(
            f"TensorRT {trt.__version__} has no calibrators: from version 11 on, INT8 needs a graph with "
            "quantise/dequantise nodes, which `edge-agent calibrate` makes"
        )

    class Calibrator(base):  # type: ignore[misc]  # the class exists only while TensorRT has it
        def __init__(self) -> None:
            base.__init__(self)  # required by pybind11

        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, names: Sequence[str]) -> list[int] | None:  # noqa: ARG002
            return None

        def read_calibration_cache(self) -> bytes:
            return cache

        def write_calibration_cache(self, cache: memoryview) -> None:
            """Do nothing: TensorRT returns the ranges that it read."""

    return Calibrator()
