"""Insert Q/DQ nodes into a prepared graph, so that TensorRT can fuse the quantised layers.

The placement follows NVIDIA's TensorRT guide, "Working with quantised types" (reasons in
`docs/calibration.md`):

- inputs of convolutions and matrix products are quantised, per tensor, symmetric, zero point 0;
- their weights too, per output channel;
- their outputs are not, so that a convolution and its activation can be fused;
- of the two inputs of a residual addition the skip path is quantised, the other one is the output of its
  convolution;
- gates, global pooling, the head after it, and the nodes added by `prepare` stay in higher precision: they
  take almost no time;
- so do depthwise convolutions, and nodes that read a convolution without an activation: there the ranges
  of the channels differ most, and one common scale cost more accuracy than all other layers together.

ONNX Runtime's quantiser does the first three; a separate pass after it does the fourth.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edge_agent.core.errors import ModelError
from edge_agent.engine.graph.nodes import (
    QUANTISABLE,
    Topology,
    in_order,
    load_named,
    opset,
    serialise,
    set_nodes,
)
from edge_agent.engine.graph.prepared import PreparedGraph
from edge_agent.engine.precision.scales import Scales
from edge_agent.offline.calibrate.placement import FUSED, dequantised, positions, skip_input

if TYPE_CHECKING:
    import onnx

__all__ = ["implicit_scales", "quantisable", "quantise"]

_OPSET = 13
"""Lowest opset whose QuantizeLinear takes a scale per channel."""


def quantisable(prepared: PreparedGraph) -> tuple[str, ...]:
    """Return the names of the nodes that compute in INT8 unless they are kept.

    Excluded are gates, the head, depthwise convolutions, and readers of a convolution without an activation.
    """
    topology = Topology(load_named(prepared.onnx))
    pooled = topology.pooled()
    return tuple(
        node.name
        for node in topology.quantisable()
        if node.input[0] not in pooled
        and not _is_depthwise(topology, node)
        and not _is_linear(topology, node.input[0])
    )


def implicit_scales(prepared: PreparedGraph, scales: Scales, *, keep: Collection[str] = ()) -> Scales:
    """Return the ranges without tensors that only nodes in higher precision read.

    TensorRT's calibration cache lists tensors, not nodes: TensorRT computes a layer in INT8 only if its
    input has a range there.

    Args:
        prepared: the graph that the ranges were taken from.
        scales: its ranges.
        keep: as for `quantise`.

    Raises:
        ModelError: no range is left.
    """
    chosen = set(quantisable(prepared)) - set(keep)
    nodes = Topology(load_named(prepared.onnx)).quantisable()
    needed = {node.input[0] for node in nodes if node.name in chosen}
    unwanted = {node.input[0] for node in nodes if node.name not in chosen} - needed
    if not needed & scales.amax.keys():
        raise ModelError(f"nothing of {prepared.name} is left to be quantised")
    amax = {name: value for name, value in scales.amax.items() if name not in unwanted}
    return replace(scales, amax=amax)


def _is_depthwise(topology: Topology, node: onnx.NodeProto) -> bool:
    """Whether each channel is convolved separately (groups of one channel)."""
    grouped = any(attribute.name == "group" and attribute.i > 1 for attribute in node.attribute)
    return grouped and topology.weights[node.input[1]][1] == 1


def _is_linear(topology: Topology, name: str) -> bool:
    """Whether a tensor is the output of a convolution without an activation."""
    node = topology.maker.get(name)
    while node is not None and node.op_type in FUSED:
        node = topology.maker.get(node.input[0])
    return node is not None and node.op_type == "Conv"


def quantise(prepared: PreparedGraph, scales: Scales, *, keep: Collection[str] = ()) -> PreparedGraph:
    """Return the graph in INT8, with Q/DQ nodes.

    Args:
        prepared: the graph in FP32 that the ranges were taken from.
        scales: its ranges.
        keep: names of nodes (of `quantisable`) that stay in higher precision.

    Raises:
        ModelError: the ranges belong to another graph, the network was exported in float16, a name in `keep`
            is unknown, nothing is left to quantise, or the graph cannot be converted to an opset that has
            quantisation per channel.
    """
    if hashlib.sha256(prepared.onnx).hexdigest() != scales.model_sha256:
        raise ModelError(f"the ranges belong to another graph than {prepared.source}: calibrate again")
    if prepared.half:
        raise ModelError(f"{prepared.source} was exported in float16; INT8 is made from a float32 export")
    known = quantisable(prepared)
    if unknown := sorted(set(keep) - set(known)):
        raise ModelError(f"{prepared.name} has no quantisable node {unknown[0]!r}; it has {len(known)}")
    model = _modern(prepared, load_named(prepared.onnx))
    topology = Topology(model)
    chosen = [
        node.name
        for node in topology.quantisable()
        if node.name in known and node.name not in keep and scales.scale(node.input[0]) is not None
    ]
    if not chosen:
        raise ModelError(f"nothing of {prepared.name} is left to be quantised")
    done = _quantised(model, scales, chosen)
    _quantise_skips(done, scales, set(chosen))
    set_nodes(done, in_order(done))
    onnx = serialise(done, f"{prepared.source} after quantisation")
    return replace(prepared, onnx=onnx, precision="int8")


def _modern(prepared: PreparedGraph, model: onnx.ModelProto) -> onnx.ModelProto:
    """Convert the model to an opset with quantisation per channel; names of nodes and tensors stay."""
    from onnx import version_converter

    found = opset(model)
    if found >= _OPSET:
        return model
    before = {name for node in model.graph.node if node.op_type in QUANTISABLE for name in node.input}
    try:
        converted = version_converter.convert_version(model, _OPSET)
    except Exception as problem:  # its C++ exceptions have no common type
        raise ModelError(
            f"{prepared.source} uses ONNX opset {found} and cannot be converted to {_OPSET}, which INT8 per "
            f"channel needs: {problem}; export it again with opset_version={_OPSET}"
        ) from problem
    after = {name for node in converted.graph.node if node.op_type in QUANTISABLE for name in node.input}
    if before != after:
        raise ModelError(
            f"{prepared.source}: tensors are renamed by the conversion from ONNX opset {found} to {_OPSET}; "
            f"export it again with opset_version={_OPSET}"
        )
    converted.ir_version = max(converted.ir_version, 7)
    return converted


def _quantised(model: onnx.ModelProto, scales: Scales, chosen: list[str]) -> onnx.ModelProto:
    """Run ONNX Runtime's quantiser with the settings that TensorRT needs."""
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType
    from onnxruntime.quantization.calibrate import TensorData, TensorsData

    limits = {
        name: TensorData(lowest=np.float32(-amax), highest=np.float32(amax))
        for name, amax in scales.amax.items()
    }
    quantiser = QDQQuantizer(
        onnx.shape_inference.infer_shapes(model),
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, limits),
        nodes_to_quantize=chosen,
        nodes_to_exclude=[],
        op_types_to_quantize=sorted(QUANTISABLE),
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "AddQDQPairToWeight": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": sorted(QUANTISABLE),
        },
    )
    done: onnx.ModelProto = quantiser.quantize_model()
    return done


def _quantise_skips(model: onnx.ModelProto, scales: Scales, chosen: set[str]) -> None:
    """Quantise the skip input of every residual addition, in place."""
    from onnx import helper, numpy_helper

    topology = Topology(model)
    place = positions(topology)
    added: dict[str, str] = {}
    for node in topology.nodes:
        skip = skip_input(topology, node, place, chosen)
        if skip is None or (scale := scales.scale(skip)) is None:
            continue
        known = dequantised(topology, skip) or added.get(skip)
        if known is None:
            known = added[skip] = f"{skip}_skip_dequantised"
            names = [f"{skip}_skip_scale", f"{skip}_skip_zero"]
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(scale, np.float32), names[0]))
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(0, np.int8), names[1]))
            steps = f"{skip}_skip_quantised"
            pair = [
                helper.make_node("QuantizeLinear", [skip, *names], [steps], name=f"{skip}_skip_Q"),
                helper.make_node("DequantizeLinear", [steps, *names], [known], name=f"{skip}_skip_DQ"),
            ]
            model.graph.node.extend(pair)
        for index, name in enumerate(node.input):
            if name == skip:
                node.input[index] = known
