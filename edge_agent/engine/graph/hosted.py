"""A prepared graph as ONNX Runtime runs it: less work around the network, for the same rows.

Each operator costs the CPU a pass over its numbers, and two to four us however few these are. TensorRT's
plans and INT8 ranges belong to the nodes of the prepared graph, which stays as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge_agent.engine.graph.nodes import OURS, Topology, in_order, set_nodes

if TYPE_CHECKING:
    import onnx

    from edge_agent.engine.graph.prepared import PreparedGraph

_PLANES = (1, 3, 1, 1)
_SHORTEST = 6.104e-8
"""Rows of at least this length get length 1, as far as the two steps of the prepared graph can do it."""
_LEVELLED = (("Abs", "size"), ("ReduceMax", "largest"), ("Max", "largest_safe"), ("Div", "levelled"))
"""Nodes of `prepare.Rewriter.unit_length` that keep squares of float16 from overflowing."""
_UNIT = (("ReduceL2", "length"), ("Max", "length_safe"), ("Div", "unit"))
"""Those that follow them."""


def hosted_graph(prepared: PreparedGraph) -> bytes:
    """Return the model with the mean subtracted behind a first pooling, and unit length in three nodes.

    A graph in another precision than FP32 stays as it is.
    """
    import onnx

    if prepared.precision != "fp32":
        return prepared.onnx
    model = onnx.load_model_from_string(prepared.onnx)
    named = {node.name: node for node in model.graph.node}
    centred = named.get(_named("Sub", "centred"))
    moved = centred is not None and _subtract_later(model, centred)
    shorter = _shorten(model, named)
    if not (moved or shorter):
        return prepared.onnx
    set_nodes(model, in_order(model))
    data: bytes = model.SerializeToString()
    return data


def _subtract_later(model: onnx.ModelProto, sub: onnx.NodeProto) -> bool:
    """Subtract from means of pixels instead of pixels; return whether the network begins with such means."""
    import onnx

    topology = Topology(model)
    cast = _reader(topology, sub)
    pool = None if cast is None or cast.op_type != "Cast" else _reader(topology, cast)
    if cast is None or pool is None or pool.op_type != "AveragePool":
        return False
    if topology.weights[sub.input[1]] != _PLANES:
        return False
    values = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in pool.attribute}
    padded = any(values.get("pads", ())) or values.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
    if padded or values.get("ceil_mode", 0) or cast.attribute[0].i != onnx.TensorProto.FLOAT:
        return False
    means, pooled = pool.output[0], f"{OURS}pooled"
    cast.input[0], pool.output[0] = sub.input[0], pooled
    sub.input[0], sub.output[0] = pooled, means
    return True


def _shorten(model: onnx.ModelProto, named: dict[str, onnx.NodeProto]) -> bool:
    """Divide rows by their length at once; return whether they were divided in two steps."""
    from onnx import numpy_helper

    if any(_named(*step) not in named for step in (*_LEVELLED, *_UNIT)):
        return False
    rows = named[_named(*_LEVELLED[0])].input[0]
    length, safe, unit = (named[_named(*step)] for step in _UNIT)
    least = numpy_helper.from_array(np.asarray([[_SHORTEST]], np.float32), f"{OURS}shortest")
    model.graph.initializer.append(least)
    length.input[0], safe.input[1], unit.input[0] = rows, least.name, rows
    gone = {_named(*step) for step in _LEVELLED}
    set_nodes(model, [node for node in model.graph.node if node.name not in gone])
    return True


def _named(kind: str, tensor: str) -> str:
    """Return the name of a node of `prepare.Rewriter`."""
    return f"{OURS}{kind}_{OURS}{tensor}"


def _reader(topology: Topology, node: onnx.NodeProto) -> onnx.NodeProto | None:
    """Return the only node that reads the output of one; None where there are others, or branches."""
    readers = topology.readers.get(node.output[0], [])
    branches = any(attribute.HasField("g") for other in topology.nodes for attribute in other.attribute)
    return readers[0] if len(readers) == 1 and not branches else None
