"""Edits ONNX models, and finds how their nodes are connected, as far as quantisation needs it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_agent.core.errors import ModelError

if TYPE_CHECKING:
    import onnx

_LONGEST_MESSAGE = 400
"""Characters of a library's message that are shown; some contain whole nodes."""
OURS = "edge_agent/"
"""Prefix of all nodes and tensors that are added before and after a network."""
NETWORK = "network/"
"""Prefix of names of a network that would be those of tensors added around it."""


def one_line(problem: object) -> str:
    """Return the beginning of a library's message in one line."""
    text = " ".join(str(problem).split())
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]} ..."


def opset(model: onnx.ModelProto) -> int:
    """Return the version of the default operator set, 0 where there is none."""
    return max((entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), default=0)


def metadata_of(model: onnx.ModelProto) -> dict[str, str]:
    """Return the entries of a model's metadata."""
    return {entry.key: entry.value for entry in model.metadata_props}


def make_node(
    kind: str, inputs: list[str], output: str, name: str, **attributes: int | list[int]
) -> onnx.NodeProto:
    """Make a node with one output."""
    from onnx import helper

    node = helper.make_node(kind, inputs, [output], name=name)
    node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
    return node


def load_named(data: bytes) -> onnx.ModelProto:
    """Load a model and give every node a unique name: its own, else one from its first output."""
    import onnx

    model = onnx.load_model_from_string(data)
    taken: set[str] = set()
    for node in model.graph.node:
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{node.output[0]}"
        taken.add(node.name)
    return model


def in_order(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return copies of the nodes, each after those that it reads from, otherwise in their order."""
    import onnx

    made = {weight.name for weight in model.graph.initializer} | {v.name for v in model.graph.input} | {""}
    waiting = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    maker = {name: number for number, node in enumerate(waiting) for name in node.output}
    ordered: list[onnx.NodeProto] = []
    for root in range(len(waiting)):
        stack = [root]
        while stack:
            node = waiting[stack[-1]]
            missing = [maker[name] for name in node.input if name not in made]
            if missing:
                stack += missing
                continue
            stack.pop()
            if not made.issuperset(node.output):
                made.update(node.output)
                ordered.append(node)
    return ordered


def set_nodes(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Replace all nodes by copies of these."""
    import onnx

    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def drop_unread(model: onnx.ModelProto) -> None:
    """Remove nodes that no output depends on, and bring the others in order."""
    wanted = {value.name for value in model.graph.output}
    kept = []
    for node in reversed(in_order(model)):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(_read(node))
    set_nodes(model, kept[::-1])


def _read(node: onnx.NodeProto) -> set[str]:
    """Return the tensors that a node reads, also in the branches of an `If`."""
    inner = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return set(node.input).union(*(_read(one) for graph in inner for one in graph.node))


def serialise(model: onnx.ModelProto, what: str) -> bytes:
    """Serialise an edited model, without shapes that may contradict it; ModelError if it is invalid ONNX."""
    import onnx

    del model.graph.value_info[:]
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as problem:
        raise ModelError(f"{what} is not valid ONNX: {one_line(problem)}") from problem
    data: bytes = model.SerializeToString()
    return data


QUANTISABLE = frozenset({"Conv", "Gemm", "MatMul"})
"""Operators that compute in INT8; all others run in higher precision or are fused into these."""


@dataclass(frozen=True, slots=True)
class Block:
    """A part of the network between two tensors that all data passes through.

    Its name is the common part of its nodes' names; `nodes` are the names of the quantisable ones, in order.
    """

    name: str
    nodes: tuple[str, ...]


class Topology:
    """Producers and readers of each tensor.

    Attributes:
        nodes: all nodes, in order.
        weights: shape of each weight by name.
        constants: tensors that do not depend on the picture: weights, shapes, and what is computed from them.
        maker: node that computes a tensor.
        readers: nodes that read a tensor, each once.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes: list[onnx.NodeProto] = list(model.graph.node)
        self.weights = {weight.name: tuple(weight.dims) for weight in model.graph.initializer}
        self.constants = set(self.weights)
        for node in self.nodes:
            if node.op_type == "Shape" or all(name in self.constants or not name for name in node.input):
                self.constants.update(node.output)
        self.maker: dict[str, onnx.NodeProto] = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self.readers.setdefault(name, []).append(node)

    def activations(self, node: onnx.NodeProto) -> list[str]:
        """Return the inputs of a node that depend on the picture."""
        return [name for name in node.input if name and name not in self.constants]

    def quantisable(self) -> list[onnx.NodeProto]:
        """Return nodes of the network that could compute in INT8: constant weight, variable input."""
        return [
            node
            for node in self.nodes
            if node.op_type in QUANTISABLE
            and node.input[1] in self.weights
            and node.input[0] not in self.constants
            and not node.name.startswith(OURS)
        ]

    def pooled(self) -> set[str]:
        """Return tensors with one number per channel instead of a map: everything after a global pooling.

        A product of a pooled tensor and a map is a map again: gates end there. Gemm reads two axes, so its
        input is one row per crop, however it was pooled.
        """
        found = {node.input[0] for node in self.nodes if node.op_type == "Gemm"}
        for node in self.nodes:
            inputs = self.activations(node)
            if _pools(node) or (inputs and all(name in found for name in inputs)):
                found.update(node.output)
        return found

    def blocks(self, wanted: Iterable[str]) -> list[Block]:
        """Return the wanted nodes in blocks: residual blocks whole, everything else node by node.

        Only nodes that lead to a wanted node, or to the sum that ends its residual block, count: side
        branches into the head would hide the places where the trunk is a single tensor.
        """
        wanted = set(wanted)
        pooled = self.pooled()
        sums = {
            node.name
            for node in self.nodes
            if node.op_type == "Add" and len(self.activations(node)) == 2 and node.output[0] not in pooled
        }
        trunk = self._leading_to(wanted | sums)
        last = {name: place for place, node in enumerate(trunk) for name in self.activations(node)}
        blocks: list[list[str]] = []
        current: list[str] = []
        live: set[str] = set()
        for place, node in enumerate(trunk):
            if node.name in wanted:
                current.append(node.name)
            live |= {name for name in node.output if name in last}
            live = {name for name in live if last[name] > place}
            if current and len(live) <= 1:
                blocks.append(current)
                current = []
        return [Block(_common(names), tuple(names)) for names in [*blocks, current] if names]

    def _leading_to(self, wanted: set[str]) -> list[onnx.NodeProto]:
        needed: set[str] = set()
        kept: list[onnx.NodeProto] = []
        for node in reversed(self.nodes):
            if node.name in wanted or any(name in needed for name in node.output):
                kept.append(node)
                needed.update(self.activations(node))
        return kept[::-1]


def _pools(node: onnx.NodeProto) -> bool:
    """Return whether a node reduces a map to one number per channel."""
    if node.op_type in {"GlobalAveragePool", "GlobalMaxPool", "Flatten"}:
        return True
    axes = next((list(a.ints) for a in node.attribute if a.name == "axes"), None)
    return node.op_type in {"ReduceMean", "ReduceMax"} and axes in ([2, 3], [-2, -1], [-1, -2])


def _common(names: list[str]) -> str:
    """Return the common start of names up to a separator; the name itself when there is one."""
    if len(names) == 1:
        return names[0]
    first, last = min(names), max(names)
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    shared = first[:length]
    cut = max(shared.rfind(mark) for mark in "/.")
    return shared[:cut] if cut > 0 else f"{names[0]}..{names[-1]}"
