"""Moves what is done to each channel of the input into the first convolutions of a network.

Channel `k` of a network's input is channel `order[k]` of the picture, times `factors[k]`. Where the weights
of the first convolutions are moved and multiplied instead, the network takes the picture itself. An offset
cannot move: the zeros that a convolution adds around its input would no longer be zero.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge_agent.engine.graph.nodes import OURS

if TYPE_CHECKING:
    import onnx

FOLDED = f"{OURS}folded/"
"""Prefix of tensors of the network that hold pixels without the factors of the preprocess profile."""
_CHANNELS = 3
_SAME = list(range(_CHANNELS))
_POOLS = frozenset({"AveragePool", "MaxPool"})
_MOST_POOLED = 16
"""Pixels that one number of a pool is made of: in float16, a sum of many raw ones would overflow."""


@dataclass(frozen=True, slots=True)
class Folded:
    """What is left to do outside the network: first the order, then the factors.

    Attributes:
        tensor: name of the network's input from now on.
        order: channel of the picture for each channel of `tensor`.
        factors: of each channel of `tensor`.
    """

    tensor: str
    order: list[int]
    factors: NDArray[np.float32]

    @property
    def ordered(self) -> bool:
        """Whether the channels are in the order of the picture."""
        return self.order == _SAME

    @property
    def scaled(self) -> bool:
        """Whether nothing is left to multiply."""
        return not (self.factors != 1).any()


def fold(
    model: onnx.ModelProto, tensor: str, order: list[int], factors: NDArray[np.float32], *, axis: int
) -> Folded:
    """Move order and factors (`(3,)`, above zero) of the input `tensor`, channels along `axis`, into weights.

    Where not both can move, the order alone may, which is exact for every type. Tensors without the factors
    that they had get the prefix `FOLDED`, and lose it when the factors come back.
    """
    ones, moved = np.ones_like(factors), factors[np.argsort(order)]
    for inside, left in ((factors, ones), (ones, moved)):
        if order == _SAME and not (inside != 1).any():
            break
        walk = _Walk(model, order, inside)
        if walk.reaches_weights(tensor, axis):
            walk.rewrite()
            return Folded(walk.names.get(tensor, tensor), _SAME, left)
    return Folded(tensor, order, factors)


class _Walk:
    """Finds all weights that a channel of the input meets first, and changes them if all of them can be."""

    def __init__(self, model: onnx.ModelProto, order: list[int], factors: NDArray[np.float32]) -> None:
        self._graph = model.graph
        self._order, self._factors = order, factors
        self._scaled = bool((factors != 1).any())
        self._weights = {weight.name: weight for weight in model.graph.initializer}
        self._reads = Counter(_all_reads(model.graph))
        self._changed: dict[str, NDArray[np.generic]] = {}
        self.names: dict[str, str] = {}

    def reaches_weights(self, tensor: str, axis: int) -> bool:
        """Return whether every node that reads a tensor, with channels along `axis`, can be changed."""
        readers = [node for node in self._graph.node if tensor in node.input]
        reads = sum(list(node.input).count(tensor) for node in readers)
        if not readers or reads != self._reads[tensor]:  # the others are in branches, or are the output
            return False
        if self._scaled:
            plain = tensor.removeprefix(FOLDED)
            self.names[tensor] = plain if plain != tensor else FOLDED + tensor
        return all(self._passes(node, tensor, axis) for node in readers)

    def _passes(self, node: onnx.NodeProto, tensor: str, axis: int) -> bool:
        """Return whether a node takes the change in, or all that read its output do."""
        if list(node.input).index(tensor) or list(node.input).count(tensor) > 1 or node.domain:
            return False
        if node.op_type == "Conv":
            return axis == 1 and self._changes_convolution(node)
        if node.op_type == "InstanceNormalization":
            changed = axis == 1 and not self._scaled and all(map(self._changes_vector, node.input[1:]))
            return changed and self.reaches_weights(node.output[0], axis)
        if node.op_type == "Transpose":
            order = _values(node, "perm")
            return axis in order and self.reaches_weights(node.output[0], order.index(axis))
        pooled = node.op_type in _POOLS and axis == 1 and len(node.output) == 1
        if pooled and int(np.prod(_values(node, "kernel_shape"))) <= _MOST_POOLED:
            return self.reaches_weights(node.output[0], axis)
        return node.op_type == "Identity" and self.reaches_weights(node.output[0], axis)

    def _changes_convolution(self, node: onnx.NodeProto) -> bool:
        """Move and multiply the input channels of a convolution's weights."""
        values = self._own(node.input[1])
        if values is None or values.ndim != 4 or values.shape[1] != _CHANNELS or _groups(node) != 1:
            return False
        if self._scaled and values.dtype != np.float32:
            return False
        moved = np.empty_like(values)
        moved[:, self._order] = values * self._factors.astype(values.dtype).reshape(1, _CHANNELS, 1, 1)
        self._changed[node.input[1]] = moved
        return bool(np.isfinite(moved).all())

    def _changes_vector(self, name: str) -> bool:
        """Move the values of a parameter with one number for each channel."""
        values = self._own(name)
        if values is None or values.shape != (_CHANNELS,):
            return False
        moved = np.empty_like(values)
        moved[self._order] = values
        self._changed[name] = moved
        return True

    def _own(self, name: str) -> NDArray[np.generic] | None:
        """Return a weight that is read once and is no number from outside; None for any other tensor."""
        from onnx import numpy_helper

        if name not in self._weights or self._reads[name] != 1:
            return None
        values: NDArray[np.generic] = numpy_helper.to_array(self._weights[name])
        return values

    def rewrite(self) -> None:
        """Change the weights and the names of the tensors that have lost their factors."""
        from onnx import numpy_helper

        for name, values in self._changed.items():
            self._weights[name].CopyFrom(numpy_helper.from_array(values, name))
        for node in self._graph.node:
            for tensors in (node.input, node.output):
                for place, name in enumerate(tensors):
                    tensors[place] = self.names.get(name, name)


def _all_reads(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield each tensor once for every time that it is read, in branches and as an output too."""
    yield from (value.name for value in graph.output)
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _all_reads(inner)


def _values(node: onnx.NodeProto, name: str) -> list[int]:
    return next((list(attribute.ints) for attribute in node.attribute if attribute.name == name), [])


def _groups(node: onnx.NodeProto) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "group"), 1)
