"""A prepared graph -> the same graph with float16 weights and arithmetic.

TensorRT 8 and 10 choose FP16 by a builder flag; from 11 on, precision comes from the file. Pixels still enter
as uint8 and are normalised in float32; embeddings still leave as float32 with unit length. ONNX Runtime does
the conversion (docs/decisions/016-fp16-by-onnx-runtime.md).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edge_agent.core.errors import ModelError
from edge_agent.engine.graph.nodes import (
    OURS,
    Topology,
    drop_unread,
    in_order,
    load_named,
    serialise,
    set_nodes,
)
from edge_agent.engine.graph.prepared import PreparedGraph

if TYPE_CHECKING:
    import onnx

_LARGEST = 65504.0
"""Largest finite float16."""


def to_half(prepared: PreparedGraph) -> PreparedGraph:
    """Return a graph in typed FP16, but for nodes of `kept_in_float32`; ModelError unless it is in FP32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    if prepared.precision != "fp32":
        raise ModelError(f"FP16 is made from the FP32 graph, {prepared.name} is {prepared.precision}")
    if prepared.half:  # the network was exported in float16
        return replace(prepared, precision="fp16")
    model = load_named(prepared.onnx)
    known = {node.name for node in model.graph.node}
    around = [node.name for node in model.graph.node if node.name.startswith(OURS)]
    kept = [name for name in around if name != _entrance(model)] + list(kept_in_float32(prepared))
    done = convert_float_to_float16(model, node_block_list=kept)
    _drop_round_trips(done, known)
    _output_float32(done)
    set_nodes(done, in_order(done))
    return replace(prepared, onnx=serialise(done, f"{prepared.source} in float16"), precision="fp16")


def kept_in_float32(prepared: PreparedGraph) -> tuple[str, ...]:
    """Return names of nodes of the network with a weight beyond float16, which would become infinite."""
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
    """Return the name of the Cast that passes the normalised pixels to the network."""
    casts = [str(n.name) for n in model.graph.node if n.name.startswith(OURS) and n.op_type == "Cast"]
    return casts[1]  # the first one converts uint8 to float32


def _drop_round_trips(model: onnx.ModelProto, known: set[str]) -> None:
    """Remove casts to float16 and straight back between two nodes that stayed in float32.

    The converter puts them around every such node; they would round the pixels and the embedding. Nodes in
    `known`, which existed before the conversion, stay.
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
    drop_unread(model)


def _output_float32(model: onnx.ModelProto) -> None:
    """Output the last node, which stayed in float32, instead of a rounded copy of it."""
    from onnx import TensorProto

    (output,) = model.graph.output
    topology = Topology(model)
    rounding = topology.maker[output.name]
    topology.maker[rounding.input[0]].output[0] = output.name
    model.graph.node.remove(rounding)
    output.type.tensor_type.elem_type = TensorProto.FLOAT
