"""The precision that a network computes in: FP32 as exported, FP16, or calibrated INT8."""

from __future__ import annotations

from edge_agent.core.errors import ConfigError
from edge_agent.engine.graph.prepared import PreparedGraph
from edge_agent.engine.precision.calibration import Calibration
from edge_agent.engine.precision.half import to_half

__all__ = ["in_precision"]


def in_precision(
    prepared: PreparedGraph, wanted: str, backend: str, calibration: Calibration | None
) -> PreparedGraph:
    """Return the network in a precision.

    Args:
        prepared: as exported.
        wanted: `auto`, `fp32`, `fp16` or `int8`. `auto`: what the calibration chose for this backend; without
            one FP16 on TensorRT, else FP32.
        backend: `onnxruntime` or `tensorrt`.
        calibration: the active one; one of another network is not used.

    Raises:
        ConfigError: INT8 is wanted, and no calibration of this network has it.
        InputError: the calibration's graph cannot be read.
    """
    own = calibration if calibration is not None and calibration.fits(prepared) else None
    if wanted == "auto" and own is not None and own.backend == backend:
        return own.graph(prepared)
    if wanted == "auto":
        wanted = "fp16" if backend == "tensorrt" else "fp32"
    if wanted == "fp32":
        return prepared
    if own is not None and own.precision == wanted:
        return own.graph(prepared)
    if wanted == "fp16":
        return to_half(prepared)
    raise ConfigError(
        f"no INT8 calibration of {prepared.name} with profile {prepared.profile and prepared.profile.name} "
        "has passed the accuracy gate here; run `edge-agent calibrate --dataset DIR`, or choose "
        "engine.precision auto or fp16"
    )
