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
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.errors import ModelError
from edge_agent.engine.graph.nodes import (
    OURS,
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

if TYPE_CHECKING:
    import onnx

_OPSET = 13
"""Lowest opset whose QuantizeLinear takes a scale per channel."""


FUSED = frozenset({"BatchNormalization", "Identity"})
"""Operators that TensorRT fuses with the convolution in front of them."""

_ACTIVATIONS = frozenset({"Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "HardSwish", "HardSigmoid"})


def quantisable(prepared: PreparedGraph) -> tuple[str, ...]:
    """Return the names of the nodes that compute in INT8 unless they are kept, see the module."""
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
    input has a range there. ModelError where no range is left; `keep` as for `quantise`.
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
    """Return the FP32 graph that the ranges were taken from in INT8, with Q/DQ nodes.

    `keep` are names of nodes (of `quantisable`) that stay in higher precision.

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

    amax = {name: np.float32(value) for name, value in scales.amax.items()}
    limits = {name: TensorData(lowest=-value, highest=value) for name, value in amax.items()}
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
    place = _positions(topology)
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


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the Q/DQ nodes of a graph are.

    Attributes:
        quantise, dequantise: QuantizeLinear and DequantizeLinear nodes.
        computing, in_int8: convolutions and products; of these, whose input and weight are both dequantised.
        outputs_quantised: convolutions whose own output is quantised: skip paths that are a convolution, and
            convolutions without an activation in front of another one.
        split: activations that read a convolution through Q/DQ, and sums of two dequantised inputs; both
            prevent TensorRT from fusing a convolution with the node after it.
        residuals, residuals_quantised: additions of a skip path to the output of an INT8 convolution; of
            these, with a dequantised skip path.
        symmetric: whether every zero point is 0.
        weights, weights_per_channel: quantised weights; of these, with one scale per output channel (axis 0
            of a convolution's weight).
    """

    quantise: int
    dequantise: int
    computing: int
    in_int8: int
    outputs_quantised: int
    split: int
    residuals: int
    residuals_quantised: int
    symmetric: bool
    weights: int
    weights_per_channel: int

    @property
    def fits_tensorrt(self) -> bool:
        """Whether TensorRT can fuse every quantised layer."""
        complete = self.residuals_quantised == self.residuals and self.weights_per_channel == self.weights
        return self.in_int8 > 0 and self.split == 0 and self.symmetric and complete

    def as_json(self) -> dict[str, Any]:
        """Return the fields and `fits_tensorrt`."""
        return {**asdict(self), "fits_tensorrt": self.fits_tensorrt}


def placement(data: bytes) -> Placement:
    """Return the placement of the Q/DQ nodes of a serialised model."""
    from onnx import numpy_helper

    model = load_named(data)
    topology = Topology(model)
    values = {weight.name: numpy_helper.to_array(weight) for weight in model.graph.initializer}
    pairs = [node for node in topology.nodes if node.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    starts = [node for node in pairs if node.op_type == "QuantizeLinear"]
    computing = [
        node for node in topology.nodes if node.op_type in QUANTISABLE and not node.name.startswith(OURS)
    ]
    int8 = {n.name for n in computing if all(_origin(topology, name) is not None for name in n.input[:2])}
    place = _positions(topology)
    skips = [skip_input(topology, node, place, int8) for node in topology.nodes]
    residuals = [skip for skip in skips if skip is not None]
    weights = [node for node in starts if node.input[0] in topology.constants]
    return Placement(
        quantise=len(starts),
        dequantise=len(pairs) - len(starts),
        computing=len(computing),
        in_int8=len(int8),
        outputs_quantised=sum(dequantised(topology, node.output[0]) is not None for node in computing),
        split=sum(_is_split(topology, node) for node in topology.nodes),
        residuals=len(residuals),
        residuals_quantised=sum(_origin(topology, skip) is not None for skip in residuals),
        symmetric=not any(values[node.input[2]].any() for node in pairs if len(node.input) > 2),
        weights=len(weights),
        weights_per_channel=sum(_is_per_channel(topology, node, values) for node in weights),
    )


def _positions(topology: Topology) -> dict[str, int]:
    return {node.name: number for number, node in enumerate(topology.nodes)}


def _origin(topology: Topology, name: str) -> str | None:
    """The tensor before Q and DQ; None for a tensor that no DequantizeLinear produces."""
    back = topology.maker.get(name)
    if back is None or back.op_type != "DequantizeLinear":
        return None
    start = topology.maker.get(back.input[0])
    return str(start.input[0]) if start is not None and start.op_type == "QuantizeLinear" else None


def _is_split(topology: Topology, node: onnx.NodeProto) -> bool:
    origins = [_origin(topology, name) for name in topology.activations(node)]
    if node.op_type == "Add":
        return len(origins) == 2 and None not in origins
    maker = topology.maker.get(origins[0]) if origins and origins[0] is not None else None
    return node.op_type in _ACTIVATIONS and maker is not None and maker.op_type in QUANTISABLE


def _is_per_channel(
    topology: Topology, node: onnx.NodeProto, values: Mapping[str, NDArray[np.generic]]
) -> bool:
    """Whether a weight has a scale for each of its output channels, along the axis that holds them."""
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    reader = next(
        reader
        for back in topology.readers[node.output[0]]
        for reader in topology.readers[back.output[0]]
        if reader.op_type in QUANTISABLE
    )
    transposed = any(a.name == "transB" and a.i for a in reader.attribute)
    rank = values[node.input[0]].ndim
    wanted = 0 if reader.op_type == "Conv" or transposed else rank - 1
    return axis % rank == wanted and values[node.input[1]].size == values[node.input[0]].shape[wanted]


def skip_input(
    topology: Topology, node: onnx.NodeProto, place: dict[str, int], chosen: set[str]
) -> str | None:
    """Return the skip path of a residual addition: the input that its quantised convolution does not produce.

    Where convolutions produce both inputs (in a downsampling block), the skip path is the one whose
    convolution reads the earlier tensor: the block's own input. None for other nodes.
    """
    if node.op_type != "Add" or len(topology.activations(node)) != 2 or node.input[0] == node.input[1]:
        return None
    mains = {}
    for name in node.input:
        convolution = _fused_convolution(topology, name)
        if convolution is not None and convolution.name in chosen:
            mains[name] = _last_made(topology, convolution.input[0], place)
    if not mains:
        return None
    main = max(mains, key=lambda name: mains[name])
    return next(str(name) for name in node.input if name != main)


def _fused_convolution(topology: Topology, name: str) -> onnx.NodeProto | None:
    """The convolution or product that produces this tensor, if the tensor has one reader."""
    node = topology.maker.get(name)
    while node is not None and len(topology.readers.get(name, [])) == 1:
        if node.op_type in QUANTISABLE:
            return node
        if node.op_type not in FUSED:
            return None
        name = node.input[0]
        node = topology.maker.get(name)
    return None


def _last_made(topology: Topology, name: str, place: dict[str, int]) -> int:
    """Position of the node that produces a tensor; Q and DQ are skipped."""
    node = topology.maker.get(name)
    while node is not None and node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
        node = topology.maker.get(node.input[0])
    return -1 if node is None else place[node.name]


def dequantised(topology: Topology, name: str) -> str | None:
    """Return the tensor after Q and DQ if this one is quantised already, else None."""
    for quantised in topology.readers.get(name, []):
        if quantised.op_type == "QuantizeLinear":
            for reader in topology.readers.get(quantised.output[0], []):
                if reader.op_type == "DequantizeLinear":
                    return str(reader.output[0])
    return None
