"""The network that DeepStream loads, and the INT8 ranges of its tensors as TensorRT's calibration table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.errors import ConfigError, EngineError, ModelError
from edge_agent.engine.graph.bare import bare_graph
from edge_agent.engine.graph.folding import FOLDED
from edge_agent.engine.graph.nodes import NETWORK, OURS, make_node, metadata_of, serialise, set_nodes
from edge_agent.engine.graph.prepared import BARE_INPUT, PROFILE_ENTRY, PreparedGraph
from edge_agent.engine.precision.scales import Scales

TENSORRT = (10, 3, 0)
"""Release in the header of a calibration table where none is installed: that of JetPack 6.1 and 6.2."""
_WITHOUT_TABLES = 11
"""The first major release that reads none."""


def deepstream_graph(prepared: PreparedGraph, factors: NDArray[np.float32] | None) -> PreparedGraph:
    """Return the bare graph, `float32 [N, 3, H, W]` to rows of any length, in FP32 as exported.

    `factors` `(3,)` multiply the channels of the input first. Such a graph states no preprocess profile: none
    describes its input. ModelError as in `bare_graph`.
    """
    bare = bare_graph(prepared)
    if factors is None:
        return bare
    import onnx
    from onnx import numpy_helper

    model = onnx.load_model_from_string(bare.onnx)
    name, scaled = f"{OURS}deepstream_factors", f"{OURS}deepstream_scaled"
    model.graph.initializer.append(numpy_helper.from_array(factors.reshape(1, 3, 1, 1), name))
    for node in model.graph.node:
        for place, read in enumerate(node.input):
            if read == BARE_INPUT:
                node.input[place] = scaled
    multiply = make_node("Mul", [BARE_INPUT, name], scaled, f"{OURS}deepstream_multiply")
    set_nodes(model, [multiply, *model.graph.node])
    props = {key: text for key, text in metadata_of(model).items() if key != PROFILE_ENTRY}
    onnx.helper.set_model_props(model, props)
    return replace(bare, onnx=serialise(model, f"{prepared.source} for DeepStream"))


def calibration_table(bare: PreparedGraph, scales: Scales) -> tuple[bytes, tuple[int, ...]]:
    """Return the table for the tensors of the network, and the TensorRT release that its header names.

    TensorRT refuses a table whose header names another release: the installed one is taken, else `TENSORRT`.

    Raises:
        ConfigError: the installed TensorRT reads no tables.
        ModelError: no range belongs to this graph.
    """
    import onnx

    release = _release()
    if release[0] >= _WITHOUT_TABLES:
        raise ConfigError(
            f"TensorRT {'.'.join(map(str, release))} is installed, which reads no calibration table, so "
            "DeepStream cannot build an INT8 engine with it; choose --precision fp16"
        )
    model = onnx.load_model_from_string(bare.onnx)
    tensors = {value.name for value in model.graph.input}
    tensors.update(name for node in model.graph.node for name in node.output)
    assert bare.profile is not None  # only detectors have none
    largest, found = float(bare.profile.factors.max()), {}
    for name, amax in scales.amax.items():
        own = name.removeprefix(FOLDED)  # its factors are back in this graph
        inside = next((known for known in (NETWORK + own, own) if known in tensors), None)
        if inside is not None and not own.startswith(OURS):
            found[inside] = amax if own == name else amax * largest
    if not found:
        raise ModelError(f"no INT8 range of {bare.name} belongs to the exported network; calibrate again")
    return replace(scales, amax=found).cache(_header(release), "EntropyCalibration2"), release


def _release() -> tuple[int, ...]:
    from edge_agent.engine.tensorrt import bindings

    try:
        return bindings.version()
    except EngineError:
        return TENSORRT


def _header(release: tuple[int, ...]) -> int:
    from edge_agent.engine.tensorrt.calibrator import header_number

    return header_number(release)
