"""Puts pre- and post-processing into a network: any ReID ONNX -> pixels in, rows out.

The prepared ReID graph takes `crops`, `uint8 [N, H, W, 3]` BGR, and gives `embedding`, L2-normalised
`float32 [N, D]`. Reasons: `docs/decisions/002-preprocessing-inside-the-network.md`. Detectors:
`engine.graph.detector`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge_agent.engine.graph.folding import fold
from edge_agent.engine.graph.nodes import OURS, make_node, opset, serialise, set_nodes
from edge_agent.engine.graph.pooling import pool_means
from edge_agent.engine.graph.prepared import PreparedGraph, PreprocessProfile, embedding_space
from edge_agent.engine.graph.reading import Layout, Network

if TYPE_CHECKING:
    import onnx

_REDUCE_AXES_AS_INPUT = 18
"""From this opset on, ReduceL2 and ReduceMax take their axes as an input."""
_TINY = 6.104e-5
"""Smallest normal float16: guards divisions so that FP16 engines keep the guard."""
_MIN_NORM = 1e-3


class Rewriter:
    """Rewrites a network, which uses none of the added names, in place: input, output, then `finish`."""

    def __init__(self, network: Network, layout: Layout) -> None:
        self._network = network
        self._model = network.model
        self._source = network.input
        self._layout = layout
        self._opset = opset(network.model)
        self._head: list[onnx.NodeProto] = []
        self._tail: list[onnx.NodeProto] = []

    def add_normalised_input(self, name: str, profile: PreprocessProfile) -> None:
        """Add an input `uint8 [N, H, W, 3]` with channel order, mean and scale of the profile.

        Order and scale move into the network's weights where these allow it, see `folding`.
        """
        last = self._layout.channels_last
        planes = self._pixels(name)
        axis, wide = (3, (1, 1, 1, 3)) if last else (1, (1, 3, 1, 1))
        order, offsets = profile.from_bgr, profile.offsets
        folded = fold(self._model, self._source.name, order, profile.factors, axis=axis)
        if folded.ordered:
            offsets = offsets[np.argsort(order)]
        else:
            reverse = self._constant("reverse", np.asarray(folded.order, np.int64))
            planes = self._add(self._head, "Gather", [planes, reverse], "ordered", axis=axis)
        if offsets.any():
            shift = self._constant("offsets", offsets.reshape(wide))
            planes = self._add(self._head, "Sub", [planes, shift], "centred")
        if not folded.scaled:
            factors = self._constant("factors", folded.factors.reshape(wide))
            planes = self._add(self._head, "Mul", [planes, factors], "scaled")
        self._connect(planes, folded.tensor)

    def float32_rows(self, *, flat: bool) -> str:
        """Return the output as float32 `[N, D]`; unless it is `flat`, other axes of size 1 are removed."""
        target = self._network.output
        rows = target.name
        if not flat:
            rows = self._add(self._tail, "Flatten", [rows], "flat", axis=1)
        return self._to_float32(rows, target)

    def unit_length(self, rows: str) -> str:
        """Return rows divided by their length, in two steps so that squares cannot overflow in float16.

        The first step scales the largest number of a row to 1; the length is then at least 1. A row of zeros
        stays zero, a row with NaN or infinity keeps at least one NaN.
        """
        tiny = self._constant("tiny", np.asarray([[_TINY]], np.float32))
        least = self._constant("least", np.asarray([[_MIN_NORM]], np.float32))
        size = self._add(self._tail, "Abs", [rows], "size")
        largest = self._add(
            self._tail, "Max", [self._reduce("ReduceMax", size, "largest"), tiny], "largest_safe"
        )
        level = self._add(self._tail, "Div", [rows, largest], "levelled")
        length = self._add(
            self._tail, "Max", [self._reduce("ReduceL2", level, "length"), least], "length_safe"
        )
        return self._add(self._tail, "Div", [level, length], "unit")

    def finish(self, name: str, rows: str, shape: Iterable[int | str]) -> bytes:
        """Make `rows` the only output, with this name and shape (text: a dynamic axis); return the model."""
        import onnx
        from onnx import helper

        self._tail.append(make_node("Identity", [rows], name, f"{OURS}Identity_{name}"))
        del self._model.graph.output[:]
        self._model.graph.output.append(
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, list(shape))
        )
        return self._assembled()

    def _assembled(self) -> bytes:
        """Return the model with all added nodes."""
        set_nodes(self._model, [*self._head, *self._model.graph.node, *self._tail])
        return serialise(self._model, str(self._network.path))

    def _pixels(self, name: str) -> str:
        """Replace the input by `uint8 [N, H, W, 3]`; return its pixels as float32 in the network's layout."""
        import onnx
        from onnx import helper

        layout, graph = self._layout, self._model.graph
        batch = "batch" if layout.batch is None else 1
        fresh = helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, [batch, *layout.size, 3])
        kept = [value for value in graph.input if value.name != self._source.name]
        del graph.input[:]
        graph.input.extend([fresh, *kept])
        pixels = self._add(self._head, "Cast", [name], "pixels", to=onnx.TensorProto.FLOAT)
        if layout.batch is not None and layout.batch > 1:  # the network computes one picture several times
            pixels = self._add(self._head, "Concat", [pixels] * layout.batch, "repeated", axis=0)
        if layout.channels_last:
            return self._add(self._head, "Identity", [pixels], "planes")
        return self._add(self._head, "Transpose", [pixels], "planes", perm=[0, 3, 1, 2])

    def _connect(self, planes: str, name: str) -> None:
        """Pass the pixels to the network as the tensor `name`, in the type of its own input."""
        kind = self._source.type.tensor_type.elem_type
        self._head.append(make_node("Cast", [planes], name, f"{OURS}Cast_{name}", to=kind))

    def _to_float32(self, rows: str, target: onnx.ValueInfoProto) -> str:
        """Return rows, which have the type of this output, as float32."""
        import onnx

        if target.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            return rows
        return self._add(self._tail, "Cast", [rows], "rows32", to=onnx.TensorProto.FLOAT)

    def _reduce(self, kind: str, rows: str, output: str) -> str:
        if self._opset >= _REDUCE_AXES_AS_INPUT:
            axes = self._constant(f"axes_{kind}", np.asarray([1], np.int64))
            return self._add(self._tail, kind, [rows, axes], output, keepdims=1)
        return self._add(self._tail, kind, [rows], output, axes=[1], keepdims=1)

    def _add(
        self,
        nodes: list[onnx.NodeProto],
        kind: str,
        inputs: list[str],
        output: str,
        **attributes: int | list[int],
    ) -> str:
        output = OURS + output
        nodes.append(make_node(kind, inputs, output, f"{OURS}{kind}_{output}", **attributes))
        return output

    def _constant(self, name: str, value: NDArray[np.generic]) -> str:
        from onnx import numpy_helper

        self._model.graph.initializer.append(numpy_helper.from_array(value, OURS + name))
        return OURS + name


def prepare_reid(onnx_path: Path, profile: PreprocessProfile, *, normalise: bool = True) -> PreparedGraph:
    """Rewrite a ReID network so that it takes BGR pixels and gives unit-length embeddings.

    Args:
        onnx_path: the network as exported, with a dynamic batch axis: one floating point input
            `[N, 3, H, W]` or `[N, H, W, 3]`, one output `[N, D]`, also with axes of size 1.
        profile: that the network was trained with.
        normalise: False keeps the network's own vector lengths, as TAO's inference files have them.

    Raises:
        ModelError: the file is missing, is not ONNX, or does not fit; the message explains the fix.
    """
    network = Network(onnx_path)
    layout = network.layout()
    given = network.embedding()
    network.avoid_names({"crops", "embedding"})
    pool_means(network.model)

    graph = Rewriter(network, layout)
    graph.add_normalised_input("crops", profile)
    rows = graph.float32_rows(flat=given.flat)
    dimension = given.dimension
    onnx = graph.finish("embedding", graph.unit_length(rows) if normalise else rows, ["batch", dimension])
    space = embedding_space(network.sha256, profile, dimension, normalised=normalise)
    prepared = prepared_graph(network, layout, onnx)
    return replace(prepared, profile=profile, dimension=dimension, space=space, normalised=normalise)


def prepared_graph(network: Network, layout: Layout, onnx: bytes) -> PreparedGraph:
    """Return the rewritten network, without the facts of embeddings."""
    return PreparedGraph(
        onnx=onnx,
        source=network.path,
        source_sha256=network.sha256,
        name=network.path.stem,
        input_size=layout.size,
        batch=layout.batch,
        profile=None,
        dimension=0,
        space="",
        normalised=False,
        channels_last=layout.channels_last,
        half=layout.half,
    )
