"""Helpers to read and edit ONNX models."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from edge_agent.core.errors import ModelError

if TYPE_CHECKING:
    import onnx

__all__ = ["OURS", "in_order", "load_named", "make_node", "opset", "serialise", "set_nodes"]

OURS = "edge_agent/"
"""Prefix of all nodes and tensors that are added before and after a network."""


def opset(model: onnx.ModelProto) -> int:
    """Return the version of the default operator set, 0 where there is none."""
    return max((entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), default=0)


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


def serialise(model: onnx.ModelProto, what: str) -> bytes:
    """Check and serialise an edited model, without intermediate shapes, which may contradict the edits.

    Args:
        model: edited; changed.
        what: completes "<what> is not valid ONNX".

    Raises:
        ModelError: the model breaks a rule of ONNX.
    """
    import onnx

    del model.graph.value_info[:]
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as problem:
        raise ModelError(f"{what} is not valid ONNX: {problem}") from problem
    data: bytes = model.SerializeToString()
    return data
