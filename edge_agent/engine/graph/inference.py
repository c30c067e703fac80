"""The shapes that follow from the nodes of a network, whatever its file declares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

Shape = list["int | None"]
"""Sizes of a tensor's axes, None for a dynamic one."""

_SMALL = 1024
"""Values of a weight that may hold a shape; larger ones count by their shape only, which saves copies."""


def shape_of(value: onnx.ValueInfoProto) -> Shape | None:
    """Return the declared shape of a tensor; None where it has any rank."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [  # some exporters write -1
        axis.dim_value if axis.HasField("dim_value") and axis.dim_value >= 0 else None
        for axis in tensor.shape.dim
    ]


def infer(
    model: onnx.ModelProto, source: onnx.ValueInfoProto, sizes: Sequence[int]
) -> onnx.GraphProto | None:
    """Return the network with the shapes that follow from its nodes; None where they cannot be inferred.

    `sizes` are those of the first axes of the input `source`: the batch, and perhaps further ones. Large
    weights are left out, and everything that the file declares about other tensors.
    """
    import onnx
    from onnx import helper

    bare = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    bare.functions.extend(model.functions)
    graph, weights = bare.graph, {weight.name for weight in model.graph.initializer}
    graph.name = "shapes"
    graph.node.extend(model.graph.node)
    for value in model.graph.input:
        if value.name not in weights:
            graph.input.append(value)
    for value in graph.input:
        axes = value.type.tensor_type.shape.dim
        if value.name == source.name:
            for axis, size in zip(axes, sizes, strict=False):
                axis.dim_value = size
    for weight in model.graph.initializer:
        if math.prod(weight.dims) <= _SMALL:
            graph.initializer.append(weight)
        else:
            graph.input.append(helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims))
    graph.output.extend(onnx.ValueInfoProto(name=value.name) for value in model.graph.output)
    try:
        inferred: onnx.GraphProto = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
    except Exception:  # noqa: BLE001 - its exception types are private; a run shows what is wrong
        return None
    return inferred


def inferred_output(
    model: onnx.ModelProto, source: onnx.ValueInfoProto, sizes: Sequence[int]
) -> tuple[int, Shape | None]:
    """Return type (0 if unknown) and shape of the first output; `sizes` as in `infer`."""
    graph = infer(model, source, sizes)
    if graph is None:
        return 0, None
    value = graph.output[0]
    return value.type.tensor_type.elem_type, shape_of(value)
