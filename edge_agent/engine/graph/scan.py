"""Refuses ONNX files that claim more than they contain, before memory is taken for them.

`check_encoding` walks the bytes before protobuf makes objects of them; `check_claims` compares the claims of
the parsed file with its content; `check_sizes` finds tensors that would be too large at run time. Reasons and
limits: `docs/decisions/038-networks-are-checked.md`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from edge_agent.engine.graph.inference import infer, shape_of

if TYPE_CHECKING:
    import onnx

LARGEST_TENSOR = 1 << 30
"""Bytes of a tensor at run time for two pictures, and of all constants that are computed."""

_MOST_FIELDS = 1_000_000
"""Encoded fields; a transformer of 24 layers has about 100,000. Walking through them takes a second."""
_MOST_MEMORY = 5 << 30
"""Bytes that protobuf may need for its objects: above the largest file."""
_DEEPEST = 32
"""Messages within each other; a graph within a graph adds three."""
_MESSAGE_BYTES = 256
_FIELD_BYTES = 16
_TEXT = -1
"""The kind of a field that is text."""
_FOREVER = frozenset({"Loop", "Scan"})
_TOO_LARGE_AXIS = 1 << 40
_BITS = {
    **dict.fromkeys(("FLOAT", "INT32", "UINT32"), 32),
    **dict.fromkeys(("DOUBLE", "INT64", "UINT64", "COMPLEX64"), 64),
    **dict.fromkeys(("UINT16", "INT16", "FLOAT16", "BFLOAT16"), 16),
    **dict.fromkeys(("UINT8", "INT8", "BOOL", "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2"), 8),
    **dict.fromkeys(("FLOAT8E5M2FNUZ", "FLOAT8E8M0", "STRING"), 8),
    **dict.fromkeys(("UINT4", "INT4", "FLOAT4E2M1"), 4),
    **dict.fromkeys(("UINT2", "INT2"), 2),
    "COMPLEX128": 128,
}
"""Bits of a value in a file, by type."""


class HostileModelError(Exception):
    """What is wrong with an ONNX file."""


class _Kind(dict["int", "_Kind | int"]):
    """Fields of a message: the kind of a message within, or bytes of memory for each encoded byte."""


def _kinds() -> _Kind:
    """Return the structure of `onnx.proto`, as far as small files can grow in memory, and its names."""
    pair = _Kind({1: _TEXT, 2: _TEXT})
    tensor = _Kind({1: 8, 4: 1, 5: 4, 7: 8, 8: _TEXT, 11: 8, 13: pair, 16: pair})
    sparse = _Kind({1: tensor, 2: tensor, 3: 8})
    kind = _Kind({6: _TEXT})
    axis = _Kind({2: _TEXT, 3: _TEXT})
    kind.update(
        {1: _Kind({2: _Kind({1: axis})}), 4: _Kind({1: kind}), 5: _Kind({2: kind}), 9: _Kind({1: kind})}
    )
    value = _Kind({1: _TEXT, 2: kind, 3: _TEXT, 4: pair})
    node, graph = _Kind(), _Kind()
    attribute = _Kind(
        {1: _TEXT, 5: tensor, 6: graph, 8: 8, 10: tensor, 11: graph, 13: _TEXT, 14: kind, 15: kind}
    )
    attribute.update({21: _TEXT, 22: sparse, 23: sparse})
    node.update({**dict.fromkeys((1, 2, 3, 4, 6, 7, 8), _TEXT), 5: attribute, 9: pair})
    graph.update({1: node, 2: _TEXT, 5: tensor, 10: _TEXT, 11: value, 12: value, 13: value})
    graph.update({14: _Kind({1: _TEXT, 2: pair}), 15: sparse, 16: pair})
    opset = _Kind({1: _TEXT})
    function = _Kind(
        {**dict.fromkeys((1, 4, 5, 6, 8, 10, 13), _TEXT), 7: node, 9: opset, 11: attribute, 12: value}
    )
    training = _Kind({1: graph, 2: graph, 3: pair, 4: pair})
    texts = dict.fromkeys((2, 3, 4, 6), _TEXT)
    return _Kind({**texts, 7: graph, 8: opset, 14: pair, 20: training, 25: function})


_MODEL = _kinds()


def check_encoding(data: bytes) -> None:
    """Raise HostileModelError unless the bytes are protobuf of bounded size, depth and number of parts."""
    place, fields, memory = 0, 0, len(data)
    stack = [(len(data), _MODEL)]
    while stack:
        end, kind = stack[-1]
        if place == end:
            stack.pop()
            continue
        key, place = _varint(data, place, end)
        fields += 1
        memory += _FIELD_BYTES
        wire, inner = key & 7, kind.get(key >> 3, 1)
        if wire == 0:
            _, place = _varint(data, place, end)
        elif wire in {1, 5}:
            place += 8 if wire == 1 else 4
        elif wire == 2:
            length, place = _varint(data, place, end)
            if isinstance(inner, _Kind) and place + length <= end:
                stack.append((place + length, inner))
                memory += _MESSAGE_BYTES
            else:
                if inner == _TEXT and not _is_utf8(data[place : place + length]):
                    raise HostileModelError("is not a usable ONNX file: a name in it is not UTF-8 text")
                place += length
                memory += length * abs(inner) if isinstance(inner, int) else 0
        else:
            raise HostileModelError("is not an ONNX file, or is cut off")
        if place > end:
            raise HostileModelError("is not an ONNX file, or is cut off")
        if fields > _MOST_FIELDS or memory > _MOST_MEMORY or len(stack) > _DEEPEST:
            raise HostileModelError("is not a usable ONNX file: it has too many or too deeply nested parts")


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _varint(data: bytes, place: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= end:
            break
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise HostileModelError("is not an ONNX file, or is cut off")


def check_claims(model: onnx.ModelProto) -> None:
    """Raise HostileModelError for tensors that claim what the file lacks, and for loops.

    Time and memory of a loop cannot be known before it runs; no exporter needs one for a network of pictures.
    """
    for node in _nodes(model):
        if node.op_type in _FOREVER and node.domain in {"", "ai.onnx"}:
            raise HostileModelError(
                f"contains the loop {_named(node)} ({node.op_type}), whose time and memory "
                "have no limit; export the network by tracing, which unrolls loops"
            )
        for attribute in node.attribute:
            what = f"a constant of node {_named(node)}"
            for tensor in attribute.tensors:
                _check_tensor(tensor, what)
            if attribute.HasField("t"):
                _check_tensor(attribute.t, what)
            sparse = [
                *attribute.sparse_tensors,
                *([attribute.sparse_tensor] * attribute.HasField("sparse_tensor")),
            ]
            for one in sparse:
                _check_sparse(one, what)
    for graph in _graphs(model):
        for tensor in graph.initializer:
            _check_tensor(tensor, f"the weight {tensor.name!r}")
        for sparse in graph.sparse_initializer:
            _check_sparse(sparse, f"the sparse weight {sparse.values.name!r}")
    _check_functions(model)


def _named(node: onnx.NodeProto) -> str:
    return repr(node.name or "".join(node.output[:1]))


def _check_functions(model: onnx.ModelProto) -> None:
    """Refuse functions that call themselves, and those that grow to too many nodes where they are called."""
    functions = {(one.domain, one.name): one for one in model.functions}
    sizes: dict[tuple[str, str], int] = {}

    def size(key: tuple[str, str], above: tuple[tuple[str, str], ...]) -> int:
        if key not in functions:
            return 1
        if key in above or len(above) > _DEEPEST:
            raise HostileModelError(f"has a function {key[1]!r} that calls itself, or too many others")
        if key not in sizes:
            called = [(node.domain, node.op_type) for node in _all_nodes(functions[key].node)]
            sizes[key] = 1 + sum(size(one, (*above, key)) for one in called)
        return sizes[key]

    if sum(size((node.domain, node.op_type), ()) for node in _all_nodes(model.graph.node)) > _MOST_FIELDS:
        raise HostileModelError("has functions that grow to too many nodes; export it without functions")


def _graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """Yield the graph and all graphs within nodes; the depth was limited by `check_encoding`."""
    if model.HasField("graph"):
        yield model.graph
    for node in _nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g
            yield from attribute.graphs


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of the graph, of functions, and of graphs within them."""
    yield from _all_nodes(model.graph.node)
    for function in model.functions:
        yield from _all_nodes(function.node)


def _all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        yield node
        for attribute in node.attribute:
            waiting.extend(attribute.g.node)
            waiting.extend(node for graph in attribute.graphs for node in graph.node)


def _check_sparse(sparse: onnx.SparseTensorProto, what: str) -> None:
    """Refuse a sparse tensor whose parts are wrong, or that is too large when it is filled."""
    _check_tensor(sparse.values, what)
    _check_tensor(sparse.indices, what)
    if min(sparse.dims, default=0) < 0 or 4 * math.prod(sparse.dims) > LARGEST_TENSOR:
        raise HostileModelError(f"claims the shape {list(sparse.dims)} for {what}")


def _check_tensor(tensor: onnx.TensorProto, what: str) -> None:
    import onnx

    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
        raise HostileModelError(
            f"keeps {what} in another file; put everything into one file: "
            'onnx.save(onnx.load("model.onnx"), "whole.onnx")'
        )
    names = {number: name for name, number in onnx.TensorProto.DataType.items()}
    kind = names.get(tensor.data_type, "")
    if kind not in _BITS:
        raise HostileModelError(f"has values of the unknown type {tensor.data_type} in {what}")
    if min(tensor.dims, default=0) < 0:
        raise HostileModelError(f"claims the shape {list(tensor.dims)} for {what}")
    claimed = math.prod(tensor.dims)
    contained, expected = _contained(tensor, kind, claimed)
    if contained != expected:
        unit = "bytes" if tensor.HasField("raw_data") else "numbers"
        raise HostileModelError(
            f"claims {claimed:,} values for {what} and contains {contained:,} of {expected:,} {unit}; it is "
            "damaged: export it again"
        )


def _contained(tensor: onnx.TensorProto, kind: str, claimed: int) -> tuple[int, int]:
    """Return the bytes or numbers that a tensor contains, and those that `claimed` values need."""
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data), -(-claimed * _BITS[kind] // 8)
    if kind.startswith("COMPLEX"):
        return len(tensor.float_data if kind == "COMPLEX64" else tensor.double_data), 2 * claimed
    by_kind = {
        "FLOAT": tensor.float_data, "DOUBLE": tensor.double_data, "INT64": tensor.int64_data,
        "UINT32": tensor.uint64_data, "UINT64": tensor.uint64_data, "STRING": tensor.string_data,
    }  # fmt: skip
    return len(by_kind.get(kind, tensor.int32_data)), -(-claimed * min(_BITS[kind], 8) // 8)


def check_sizes(model: onnx.ModelProto, source: onnx.ValueInfoProto, sizes: Sequence[int]) -> None:
    """Raise HostileModelError where a tensor is larger than `LARGEST_TENSOR` for pictures of these sizes.

    So far as shapes follow from the nodes. Constants that nodes compute count together, since they are kept.
    """
    graph = infer(model, source, sizes)
    if graph is None:
        return
    constant = {weight.name for weight in model.graph.initializer} | {""}
    for node in model.graph.node:
        if all(name in constant for name in node.input):
            constant.update(node.output)
    computed = 0
    for value in (*graph.value_info, *graph.output):
        shape = [size for size in shape_of(value) or [] if size is not None]
        size = 4 * math.prod(shape)
        computed += size if value.name in constant else 0
        if max(size, computed) > LARGEST_TENSOR or max(shape, default=0) > _TOO_LARGE_AXIS:
            raise HostileModelError(
                f"needs a tensor {value.name!r} of the shape {shape}, more than {LARGEST_TENSOR >> 20} MiB; "
                "no network of pictures does: export it again"
            )
