"""Activation ranges of a prepared graph, measured with ONNX Runtime on the CPU.

Every float tensor is observed, with ONNX Runtime's graph optimisations off, so that the names are those of
the file from which TensorRT engines and the Q/DQ graph are made. Two passes over the crops: the first finds
the largest absolute value of each tensor, the second fills a histogram up to it; of large tensors it counts
evenly spaced values only. Memory does not grow with the number of crops, and ranges do not depend on their
order (docs/decisions/015-ranges-by-two-passes.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.errors import ModelError, NonFiniteEmbedding
from edge_agent.engine.graph.prepared import PreparedGraph
from edge_agent.engine.precision.scales import Scales

Method = Literal["percentile", "entropy", "minmax"]
DEFAULT_METHOD: Method = "percentile"
PERCENTILE = 99.99

_BINS = 2048
"""Bins of a histogram, as in TensorRT and NVIDIA's calibrators."""
_LEVELS = 128
"""Levels to which the entropy method reduces a histogram (GTC 2017, S7310)."""
_STEP = 16
"""Bins between two candidate ranges of the entropy method: 0.8 % of the largest value."""
BATCH = 4
"""Crops observed together: a ResNet-50 has about 25 million activations per crop, 100 MB."""
_COUNTED = 1 << 18
"""Values of a tensor that a batch adds to its histogram, evenly spaced: counting all 100 million of a
ResNet-50's batch would take longer than computing them. The largest value is exact."""
_ERRORS_ONLY = 3


def ranges(
    prepared: PreparedGraph,
    crops: NDArray[np.uint8],
    *,
    method: Method = DEFAULT_METHOD,
    advance: Callable[[int], None] | None = None,
) -> Scales:
    """Measure the range of every float tensor that depends on the picture.

    `minmax` takes the largest absolute value. `percentile` takes the value below which `PERCENTILE` per cent
    of all absolute values lie. `entropy` takes the range whose 128 levels lose the least information
    (Kullback-Leibler divergence), as TensorRT's own calibrator does. A tensor that is zero for every crop
    has no range; its readers stay in higher precision.

    `crops` are `(N, H, W, 3)` uint8 BGR, from `Sample.pixels`. `advance` is called with the number of newly
    observed crops: N in all for `minmax`, else 2 N.

    Raises:
        ModelError: the graph does not run, or it is not in FP32.
        NonFiniteEmbedding: a tensor is NaN or infinite for one of the crops.
    """
    if method not in get_args(Method):
        raise ValueError(f"unknown method {method!r}; known: {', '.join(get_args(Method))}")
    if prepared.precision != "fp32":
        raise ModelError(f"ranges are taken from the FP32 graph, {prepared.name} is {prepared.precision}")
    largest = _largest(prepared, crops, advance)
    if method == "minmax":
        amax = largest
    else:
        counts = _histograms(prepared, crops, largest, advance)
        share = _percentile_bin if method == "percentile" else _entropy_bin
        amax = {name: largest[name] * share(bins) / _BINS for name, bins in counts.items()}
    return Scales(amax, method, hashlib.sha256(prepared.onnx).hexdigest())


def observe(prepared: PreparedGraph, crops: NDArray[np.uint8]) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Yield every float tensor that depends on the picture, as float32 of its own shape, batch by batch."""
    import onnx
    import onnxruntime

    model = onnx.load_model_from_string(prepared.onnx)
    picture = model.graph.input[0].name
    constant = {weight.name for weight in model.graph.initializer} | {""}
    for node in model.graph.node:
        if all(name in constant for name in node.input):
            constant.update(node.output)
    outputs = {value.name for value in model.graph.output}
    names = {name for node in model.graph.node for name in node.output} - outputs - constant
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(names))  # types are inferred
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = _ERRORS_ONLY
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        floats = [v.name for v in session.get_outputs() if v.type in {"tensor(float)", "tensor(float16)"}]
        for start in range(0, len(crops), BATCH):
            values = session.run(floats, {picture: crops[start : start + BATCH]})
            yield {name: np.asarray(v, np.float32) for name, v in zip(floats, values, strict=True)}
    except Exception as problem:  # ONNX Runtime's exception types are private and differ by version
        raise ModelError(f"ONNX Runtime cannot observe {prepared.source}: {problem}") from problem


def _largest(
    prepared: PreparedGraph, crops: NDArray[np.uint8], advance: Callable[[int], None] | None
) -> dict[str, float]:
    """Largest absolute value of every tensor that is not always zero."""
    found: dict[str, float] = {}
    for tensors in observe(prepared, crops):
        for name, values in tensors.items():
            if values.size:  # numpy's maximum keeps NaN, Python's max loses it
                peak = np.maximum(values.max(), -values.min())
                found[name] = float(np.maximum(found.get(name, 0.0), peak))
        _advance(advance, tensors)
    if broken := sorted(name for name, value in found.items() if not np.isfinite(value)):
        raise NonFiniteEmbedding(
            f"{len(broken)} tensors of {prepared.source} are NaN or infinite for a crop of the sample "
            f"({', '.join(broken[:3])}), so the network cannot be quantised: try another export of it, or "
            "another preprocess profile"
        )
    return {name: value for name, value in found.items() if value > 0}


def _histograms(
    prepared: PreparedGraph,
    crops: NDArray[np.uint8],
    largest: dict[str, float],
    advance: Callable[[int], None] | None,
) -> dict[str, NDArray[np.int64]]:
    """Counts of absolute values in `_BINS` equal bins from 0 to the largest value of each tensor."""
    counts = {name: np.zeros(_BINS, np.int64) for name in largest}
    for tensors in observe(prepared, crops):
        for name in counts:
            values = tensors[name].ravel()
            place = np.abs(values[:: values.size // _COUNTED | 1])
            place *= np.float32(_BINS / largest[name])
            counts[name] += np.bincount(np.minimum(place.astype(np.int32), _BINS - 1), minlength=_BINS)
        _advance(advance, tensors)
    return counts


def _advance(advance: Callable[[int], None] | None, tensors: dict[str, NDArray[np.float32]]) -> None:
    if advance is not None:
        advance(len(tensors[next(iter(tensors))]))


def _percentile_bin(counts: NDArray[np.int64]) -> int:
    """Number of bins that hold at least `PERCENTILE` per cent of all values."""
    below = np.cumsum(counts)
    return int(np.searchsorted(below, below[-1] * (PERCENTILE / 100.0))) + 1


def _entropy_bin(counts: NDArray[np.int64]) -> int:
    """Number of bins for which `_LEVELS` levels describe the histogram best, saturation included.

    The algorithm of S. Migacz, 8-bit Inference with TensorRT, GTC 2017, with the first bin set to its
    neighbour's count: zeros after a ReLU are exact in INT8 for any range, and would dominate the rest.
    """
    bins = counts.astype(np.float64)
    bins[0] = bins[1]
    if not bins.any():
        return _BINS
    best, least = _BINS, np.inf
    for kept in range(_LEVELS, _BINS + 1, _STEP):
        divergence = _divergence(bins, kept)
        if divergence <= least:
            best, least = kept, divergence
    return best


def _divergence(bins: NDArray[np.float64], kept: int) -> float:
    """Kullback-Leibler divergence of the first `kept` bins, saturated, from their `_LEVELS` levels."""
    reference = bins[:kept].copy()
    occupied = bins[:kept] > 0
    reference[-1] += bins[kept:].sum()
    level = np.minimum(np.arange(kept) * _LEVELS // kept, _LEVELS - 1)
    sums = np.bincount(level, bins[:kept], _LEVELS)
    filled = np.bincount(level, occupied, _LEVELS)
    quantised = np.where(occupied, sums[level] / np.maximum(filled[level], 1), 0.0)
    if not quantised.sum():
        return float("inf")
    p, q = reference / reference.sum(), quantised / quantised.sum()
    inside = p > 0
    return float(np.sum(p[inside] * np.log(p[inside] / np.maximum(q[inside], 1e-12))))
