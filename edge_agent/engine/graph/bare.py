"""A prepared ReID graph in the form that NVIDIA's tools load: TAO's tensor names, no pixels, no unit length.

The bare graph takes `input`, `float32 [N, 3, H, W]`, which the caller has normalised by the profile, and
gives `fc_pred`, `float32 [N, D]`, of any length, as TAO's export does. It is cut from the prepared graph, so
its precision is that of the prepared graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edge_agent.core.errors import ModelError
from edge_agent.engine.graph.folding import Folded, fold
from edge_agent.engine.graph.nodes import (
    NETWORK,
    OURS,
    drop_unread,
    make_node,
    metadata_of,
    serialise,
    set_nodes,
)
from edge_agent.engine.graph.prepared import BARE_INPUT, BARE_OUTPUT, PROFILE_ENTRY, PreparedGraph

if TYPE_CHECKING:
    import onnx

_STEPS = (
    ("Mul", "scaled"),
    ("Sub", "centred"),
    ("Gather", "ordered"),
    ("Transpose", "planes"),
    ("Identity", "planes"),
)
"""Nodes of `prepare.Rewriter` from pixels to the network, the last one first; some graphs lack some."""
_RAW = ("Abs", "size")
"""Node of `prepare.Rewriter` that reads the network's own rows."""


def bare_graph(prepared: PreparedGraph) -> PreparedGraph:
    """Return the network without the nodes before and after it.

    ModelError where `prepared` is not a ReID graph with unit-length rows.
    """
    import onnx

    model = onnx.load_model_from_string(prepared.onnx)
    named = {node.name: node for node in model.graph.node}
    steps = [named[name] for name in (_named(*step) for step in _STEPS) if name in named]
    if not steps or _named(*_RAW) not in named:
        raise ModelError(f"{prepared.name} is not a prepared re-identification network")
    planes, rows = steps[0].output[0], named[_named(*_RAW)].input[0]
    undone = _unfold(model, prepared, planes, named)
    free = {name: f"{NETWORK}{name}" for name in (BARE_INPUT, BARE_OUTPUT)}
    _rename(model.graph, free)
    rows = free.get(rows, rows)
    head = _head(model, undone, planes, channels_last=prepared.channels_last)
    tail = make_node("Identity", [rows], BARE_OUTPUT, f"{OURS}bare_output")
    set_nodes(model, [*head, *(node for node in model.graph.node if planes not in node.output), tail])
    _declare(model, prepared)
    _describe(model, prepared)
    data = serialise(model, f"{prepared.source} with TAO's names")
    return replace(prepared, onnx=data, normalised=False, bare=True)


def _unfold(
    model: onnx.ModelProto, prepared: PreparedGraph, planes: str, named: Mapping[str, onnx.NodeProto]
) -> Folded:
    """Take order and factors out of the weights; return what is left to do before `planes`.

    Weights in another precision than FP32 stay as they are.
    """
    assert prepared.profile is not None  # only detectors have none
    order, factors = prepared.profile.from_bgr, np.float32(1) / prepared.profile.factors
    if _named("Gather", "ordered") in named:
        order = sorted(order)
    if _named("Mul", "scaled") in named:
        factors = np.ones_like(factors)
    back = np.argsort(order)
    entrance = next(node.output[0] for node in model.graph.node if planes in node.input)
    return fold(model, entrance, back.tolist(), factors[back], axis=3 if prepared.channels_last else 1)


def _head(
    model: onnx.ModelProto, undone: Folded, planes: str, *, channels_last: bool
) -> list[onnx.NodeProto]:
    """Return the nodes from the new input to `planes`; their constants are added."""
    from onnx import numpy_helper

    steps: list[tuple[str, list[str], dict[str, int | list[int]]]] = []
    if not undone.ordered:
        name = f"{OURS}bare_order"
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(undone.order, np.int64), name))
        steps.append(("Gather", [name], {"axis": 1}))
    if not undone.scaled:
        name = f"{OURS}bare_factors"
        wide = undone.factors.reshape(1, 3, 1, 1)
        model.graph.initializer.append(numpy_helper.from_array(wide, name))
        steps.append(("Mul", [name], {}))
    steps.append(("Transpose", [], {"perm": [0, 2, 3, 1]}) if channels_last else ("Identity", [], {}))
    nodes, last = [], BARE_INPUT
    for number, (kind, constants, attributes) in enumerate(steps, 1):
        made = planes if number == len(steps) else f"{OURS}bare_{kind}"
        nodes.append(make_node(kind, [last, *constants], made, f"{OURS}bare_{kind}_{number}", **attributes))
        last = made
    return nodes


def _named(kind: str, tensor: str) -> str:
    """Return the name of a node of `prepare.Rewriter`; tensors have other names in other precisions."""
    return f"{OURS}{kind}_{OURS}{tensor}"


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Rename tensors, also in the branches of an `If`."""
    for node in graph.node:
        for tensors in (node.input, node.output):
            for place, name in enumerate(tensors):
                tensors[place] = names.get(name, name)
        for attribute in node.attribute:
            _rename(attribute.g, names)
    for value in (*graph.initializer, *graph.input, *graph.output):
        value.name = names.get(value.name, value.name)


def _declare(model: onnx.ModelProto, prepared: PreparedGraph) -> None:
    """Give the model TAO's input and output, and remove what only the former ones needed."""
    import onnx
    from onnx import helper

    graph, kind = model.graph, onnx.TensorProto.FLOAT
    picture = helper.make_tensor_value_info(BARE_INPUT, kind, ["batch", 3, *prepared.input_size])
    former = [value for value in graph.input if value.name == "crops"]
    graph.input.insert(0, picture)
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(BARE_OUTPUT, kind, ["batch", prepared.dimension]))
    drop_unread(model)
    for value in former:
        graph.input.remove(value)
    read = {name for node in graph.node for name in node.input}
    for weight in [one for one in graph.initializer if one.name.startswith(OURS) and one.name not in read]:
        graph.initializer.remove(weight)


def _describe(model: onnx.ModelProto, prepared: PreparedGraph) -> None:
    """State the profile in the metadata, where `profiles.profile_of` finds it."""
    from onnx import helper

    assert prepared.profile is not None  # only detectors have none
    helper.set_model_props(model, metadata_of(model) | {PROFILE_ENTRY: prepared.profile.name})
