"""Activation ranges of a prepared graph, measured with ONNX Runtime on the CPU.

Every float tensor is observed, with ONNX Runtime's graph optimisations off, so that the names are those of
the file that TensorRT and the Q/DQ graph are made from. Two passes over the crops: the first finds the
largest absolute value of each tensor, the second fills a histogram of fixed bounds up to it, of large
tensors with evenly spread values only. Memory does not grow with the number of crops, and bounds do not
depend on their order (docs/decisions/015-ranges-by-two-passes.md).
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

__all__ = ["DEFAULT_METHOD", "DEFAULT_PERCENTILE", "Method", "observe", "ranges"]

Method = Literal["percentile", "entropy", "minmax"]
DEFAULT_METHOD: Method = "percentile"
DEFAULT_PERCENTILE = 99.99

_BINS = 2048
"""Of a histogram; TensorRT and NVIDIA's calibrators take as many."""
_LEVELS = 128
"""Levels that the entropy method tries to describe a histogram with (GTC 2017, S7310)."""
_STEP = 16
"""Bins between two candidate ranges of the entropy method: 0.8 % of the largest value."""
_BATCH = 4
"""Crops observed together: a ResNet-50 has about 25 million activations a crop, 100 MB."""
_COUNTED = 1 << 18
"""Values of a tensor that a batch adds to its histogram, evenly spread: counting all 100 million of a
ResNet-50's batch would take longer than computing them. The largest value is always found exactly."""
_ERRORS_ONLY = 3


def ranges(
    prepared: PreparedGraph,
    crops: NDArray[np.uint8],
    *,
    method: Method = DEFAULT_METHOD,
    percentile: float = DEFAULT_PERCENTILE,
    batch: int = _BATCH,
    threads: int = 0,
    advance: Callable[[int], None] | None = None,
) -> Scales:
    """Find the range of every float tensor that depends on the picture.

    `minmax` takes the largest absolute value. `percentile` takes the value that `percentile` per cent of all
    absolute values stay below. `entropy` takes the range whose 128 levels lose the least information
    (Kullback-Leibler divergence), which is TensorRT's own method. A tensor that is zero for every crop has
    no range; what reads it stays in higher precision.

    Args:
        prepared: the graph, in FP32.
        crops: `(N, H, W, 3)` uint8 BGR, from `Sample.pixels`.
        method: as above.
        percentile: of method `percentile`, in per cent.
        batch: crops that are observed together.
        threads: threads of ONNX Runtime, 0 for one per core.
        advance: told the number of crops observed since the last call: N for `minmax`, else 2 N in all.

    Raises:
        ModelError: the graph does not run, or it is not in FP32.
        NonFiniteEmbedding: a tensor is NaN or infinite for one of the crops.
    """
    if method not in get_args(Method):
        raise ValueError(f"unknown method {method!r}; known: {', '.join(get_args(Method))}")
    if prepared.precision != "fp32":
        raise ModelError(f"ranges are taken from the FP32 graph, {prepared.name} is {prepared.precision}")
    largest = _largest(prepared, crops, batch, threads, advance)
    if method == "minmax":
        amax = largest
    else:
        counts = _histograms(prepared, crops, largest, batch, threads, advance)
        share = (lambda bins: _percentile_bin(bins, percentile)) if method == "percentile" else _entropy_bin
        amax = {name: largest[name] * share(bins) / _BINS for name, bins in counts.items()}
    return Scales(amax, method, hashlib.sha256(prepared.onnx).hexdigest())


def observe(
    prepared: PreparedGraph, crops: NDArray[np.uint8], *, batch: int = _BATCH, threads: int = 0
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Every float tensor that depends on the picture, batch by batch, as float32 of its own shape.

    Raises:
        ModelError: the graph does not run.
    """
    import onnx
    import onnxruntime

    model = onnx.load_model_from_string(prepared.onnx)
    given = model.graph.input[0].name
    constant = {weight.name for weight in model.graph.initializer} | {""}
    for node in model.graph.node:
        if all(name in constant for name in node.input):
            constant.update(node.output)
    already = {value.name for value in model.graph.output}
    names = {name for node in model.graph.node for name in node.output} - already - constant
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(names))  # types are inferred
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        floats = [v.name for v in session.get_outputs() if v.type in {"tensor(float)", "tensor(float16)"}]
        for start in range(0, len(crops), batch):
            values = session.run(floats, {given: crops[start : start + batch]})
            yield {name: np.asarray(v, np.float32) for name, v in zip(floats, values, strict=True)}
    except Exception as problem:  # ONNX Runtime's exception types are private and differ by version
        raise ModelError(f"ONNX Runtime cannot observe {prepared.source}: {problem}") from problem


def _largest(
    prepared: PreparedGraph,
    crops: NDArray[np.uint8],
    batch: int,
    threads: int,
    advance: Callable[[int], None] | None,
) -> dict[str, float]:
    """Largest absolute value of every tensor that is not always zero."""
    found: dict[str, float] = {}
    for tensors in observe(prepared, crops, batch=batch, threads=threads):
        for name, values in tensors.items():
            if values.size:  # numpy's maximum keeps NaN, Python's max loses it
                peak = np.maximum(values.max(), -values.min())
                found[name] = float(np.maximum(found.get(name, 0.0), peak))
        _tell(advance, tensors)
    if broken := sorted(name for name, value in found.items() if not np.isfinite(value)):
        raise NonFiniteEmbedding(
            f"{len(broken)} tensors of {prepared.source} are NaN or infinite for a crop of the sample "
            f"({', '.join(broken[:3])}); such a network cannot be quantised: try another export of it, or "
            "another preprocess profile"
        )
    return {name: value for name, value in found.items() if value > 0}


def _histograms(
    prepared: PreparedGraph,
    crops: NDArray[np.uint8],
    largest: dict[str, float],
    batch: int,
    threads: int,
    advance: Callable[[int], None] | None,
) -> dict[str, NDArray[np.int64]]:
    """Counts of absolute values in `_BINS` equal bins from 0 to the largest value of each tensor."""
    counts = {name: np.zeros(_BINS, np.int64) for name in largest}
    for tensors in observe(prepared, crops, batch=batch, threads=threads):
        for name in counts:
            values = tensors[name].ravel()
            place = np.abs(values[:: values.size // _COUNTED | 1])
            place *= np.float32(_BINS / largest[name])
            counts[name] += np.bincount(np.minimum(place.astype(np.int32), _BINS - 1), minlength=_BINS)
        _tell(advance, tensors)
    return counts


def _tell(advance: Callable[[int], None] | None, tensors: dict[str, NDArray[np.float32]]) -> None:
    if advance is not None:
        advance(len(tensors[next(iter(tensors))]))


def _percentile_bin(counts: NDArray[np.int64], percentile: float) -> int:
    """Bins to keep so that at least `percentile` per cent of all values lie in them."""
    seen = np.cumsum(counts)
    return int(np.searchsorted(seen, seen[-1] * (percentile / 100.0))) + 1


def _entropy_bin(counts: NDArray[np.int64]) -> int:
    """Bins to keep so that `_LEVELS` levels describe the histogram best, saturation counted in.

    The algorithm of S. Migacz, 8-bit Inference with TensorRT, GTC 2017, with the first bin set to its
    neighbour's count: zeros after a ReLU are exact in INT8 whatever the range, and would drown the rest.
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
    wanted = bins[:kept].copy()
    there = bins[:kept] > 0
    wanted[-1] += bins[kept:].sum()
    level = np.minimum(np.arange(kept) * _LEVELS // kept, _LEVELS - 1)
    sums = np.bincount(level, bins[:kept], _LEVELS)
    filled = np.bincount(level, there, _LEVELS)
    told = np.where(there, sums[level] / np.maximum(filled[level], 1), 0.0)
    if not told.sum():
        return float("inf")
    p, q = wanted / wanted.sum(), told / told.sum()
    inside = p > 0
    return float(np.sum(p[inside] * np.log(p[inside] / np.maximum(q[inside], 1e-12))))
