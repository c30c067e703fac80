"""Placement of Q/DQ nodes in a graph, and the structures that TensorRT fuses around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.engine.graph.nodes import OURS, QUANTISABLE, Topology, load_named

if TYPE_CHECKING:
    import onnx

__all__ = ["FUSED", "Placement", "dequantised", "placement", "positions", "skip_input"]

FUSED = frozenset({"BatchNormalization", "Identity"})
"""Operators that TensorRT fuses with the convolution in front of them."""

_ACTIVATIONS = frozenset({"Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "HardSwish", "HardSigmoid"})


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the Q/DQ nodes of a graph are.

    Attributes:
        quantise: QuantizeLinear nodes.
        dequantise: DequantizeLinear nodes.
        computing: convolutions and products in the network.
        in_int8: of these, whose input and weight are both dequantised.
        outputs_quantised: convolutions whose own output is quantised: skip paths that are a convolution, and
            convolutions without an activation in front of another one.
        split: activations that read a convolution through Q/DQ, and sums of two dequantised inputs; both
            prevent TensorRT from fusing a convolution with the node after it.
        residuals: additions that add a skip path to the output of an INT8 convolution.
        residuals_quantised: of these, with a dequantised skip path.
        symmetric: whether every zero point is 0.
        weights: quantised weights.
        weights_per_channel: of these, with one scale per output channel: axis 0 of a convolution's weight.
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
        return (
            self.in_int8 > 0
            and self.split == 0
            and self.residuals_quantised == self.residuals
            and self.symmetric
            and self.weights_per_channel == self.weights
        )

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
    place = positions(topology)
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


def positions(topology: Topology) -> dict[str, int]:
    """Return the position in the file of each node, by name."""
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
