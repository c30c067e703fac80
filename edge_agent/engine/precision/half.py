"""A prepared graph -> the same graph with float16 weights and arithmetic, which TensorRT 11 asks for.

TensorRT 8 and 10 choose FP16 by a builder flag; from 11 on types are taken from the file. Pixels still go
in as uint8 and are normalised in float32; embeddings still come out as float32 and of unit length. The
rewriting is done by ONNX Runtime (docs/decisions/016-fp16-by-onnx-runtime.md).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edge_agent.core.errors import ModelError
from edge_agent.engine.graph.prepared import PreparedGraph
from edge_agent.engine.graph.topology import OURS, Topology, in_order, load_named

if TYPE_CHECKING:
    import onnx

__all__ = ["kept_in_float32", "to_half"]

_LARGEST = 65504.0
"""Largest finite float16."""


def to_half(prepared: PreparedGraph) -> PreparedGraph:
    """Rewrite a prepared FP32 graph into typed FP16.

    Nodes of which a weight does not fit float16 stay in float32: `kept_in_float32` names them.

    Raises:
        ModelError: the graph is not in FP32, or the rewritten one is not valid.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    if prepared.precision != "fp32":
        raise ModelError(f"FP16 is made from the FP32 graph, {prepared.name} is {prepared.precision}")
    if prepared.half:  # the network was exported in float16: it is what is asked for
        return replace(prepared, precision="fp16")
    model = load_named(prepared.onnx)
    known = {node.name for node in model.graph.node}
    around = [node.name for node in model.graph.node if node.name.startswith(OURS)]
    kept = [name for name in around if name != _entrance(model)] + list(kept_in_float32(prepared))
    done = convert_float_to_float16(model, node_block_list=kept)
    _drop_there_and_back(done, known)
    _give_float32(done)
    ordered = in_order(done)
    del done.graph.node[:]
    done.graph.node.extend(ordered)
    del done.graph.value_info[:]
    try:
        onnx.checker.check_model(done)
    except onnx.checker.ValidationError as problem:
        raise ModelError(f"{prepared.source} is not valid ONNX in float16: {problem}") from problem
    return replace(prepared, onnx=done.SerializeToString(), precision="fp16")


def kept_in_float32(prepared: PreparedGraph) -> tuple[str, ...]:
    """Names of nodes of the network with a weight beyond float16, which would become infinite."""
    from onnx import TensorProto, numpy_helper

    model = load_named(prepared.onnx)
    wide = {
        weight.name
        for weight in model.graph.initializer
        if weight.data_type == TensorProto.FLOAT and _is_wide(numpy_helper.to_array(weight))
    }
    wide |= {
        name
        for node in model.graph.node
        for attribute in node.attribute
        if attribute.t.data_type == TensorProto.FLOAT and _is_wide(numpy_helper.to_array(attribute.t))
        for name in node.output
    }
    return tuple(
        node.name
        for node in model.graph.node
        if wide.intersection(node.input) or wide.intersection(node.output)
    )


def _is_wide(values: np.ndarray) -> bool:
    return bool(values.size and np.abs(values).max() > _LARGEST)


def _entrance(model: onnx.ModelProto) -> str:
    """Name of the Cast that hands the normalised pixels to the network."""
    casts = [str(n.name) for n in model.graph.node if n.name.startswith(OURS) and n.op_type == "Cast"]
    return casts[1]  # the first one turns uint8 into float32


def _drop_there_and_back(model: onnx.ModelProto, known: set[str]) -> None:
    """Take out casts to float16 that are cast back at once, between two nodes that stayed in float32.

    The rewriter leaves them around every such node; they would round the pixels and the embedding. `known`
    are the nodes from before it, which are left alone.
    """
    from onnx import TensorProto

    topology = Topology(model)
    added = {n.name: n.attribute[0].i for n in topology.nodes if n.op_type == "Cast" and n.name not in known}
    for back in topology.nodes:
        if added.get(back.name) != TensorProto.FLOAT:
            continue
        there = topology.maker.get(back.input[0])
        if there is None or added.get(there.name) != TensorProto.FLOAT16:
            continue
        for reader in topology.readers.get(back.output[0], []):
            for index, name in enumerate(reader.input):
                if name == back.output[0]:
                    reader.input[index] = there.input[0]
    _drop_unread(model)


def _give_float32(model: onnx.ModelProto) -> None:
    """Make the last node, which stayed in float32, give the output itself instead of a rounded copy."""
    from onnx import TensorProto

    (output,) = model.graph.output
    topology = Topology(model)
    rounding = topology.maker[output.name]
    topology.maker[rounding.input[0]].output[0] = output.name
    model.graph.node.remove(rounding)
    output.type.tensor_type.elem_type = TensorProto.FLOAT


def _drop_unread(model: onnx.ModelProto) -> None:
    wanted = {value.name for value in model.graph.output}
    kept = []
    for node in reversed(in_order(model)):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(node.input)
    del model.graph.node[:]
    model.graph.node.extend(kept[::-1])
