"""Puts pre- and post-processing into the network: any ReID or YOLOX ONNX -> pixels in, rows out.

The prepared ReID graph takes `crops`, `uint8 [N, H, W, 3]` BGR, and gives `embedding`, L2-normalised
`float32 [N, D]`. The prepared detector takes `frames`, `uint8 [N, H, W, 3]` BGR, and gives `rows`,
`float32 [N, A, 6]`. Why this is done: `docs/decisions/002-preprocessing-inside-the-network.md`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.errors import ModelError
from edge_agent.engine.graph.prepared import BATCH_HINT, PreparedGraph, embedding_space
from edge_agent.engine.graph.profiles import PreprocessProfile

if TYPE_CHECKING:
    import onnx

__all__ = ["prepare_detector", "prepare_reid"]

_MIN_OPSET = 9
"""Oldest default-domain opset that is taken: below it, Cast and broadcasting differ."""
_REDUCE_AXES_AS_INPUT = 18
"""From this opset on, ReduceL2 and ReduceMax take their axes as an input."""
_PREFIX = "edge_agent/"
"""Begins the name of every node and tensor that is added here."""
_TINY = 6.104e-5
"""Smallest normal float16: guards divisions in a form that survives FP16 engines."""
_MIN_NORM = 1e-3
_YOLOX_STRIDES = (8, 16, 32)
_YOLOX_BOX_COLUMNS = 5
"""Columns of a YOLOX row before its classes: x, y, w, h, objectness."""


def prepare_reid(onnx_path: Path, profile: PreprocessProfile, *, normalise: bool = True) -> PreparedGraph:
    """Rewrite a ReID network so that it takes BGR pixels and gives unit-length embeddings.

    Args:
        onnx_path: the network as exported, with a dynamic batch axis: one floating point input
            `[N, 3, H, W]` or `[N, H, W, 3]`, one output `[N, D]` (or `[N, D, 1, 1]`).
        profile: what the network was trained with.
        normalise: False keeps the network's own vector lengths, as TAO's inference files have them.

    Raises:
        ModelError: the file is missing, is not ONNX, or does not fit; the message says how to mend it.
    """
    path = Path(onnx_path)
    model, digest = _load(path)
    source = _the_input(path, model)
    layout = _picture_layout(path, source, batch_must_be_free=True)
    target = _the_output(path, model)
    dimension = _embedding_size(path, model, target)
    model = _without_clashes(model, {"crops", "embedding"})
    source, target = _the_input(path, model), _the_output(path, model)

    graph = _Rewriter(path, model)
    pixels = graph.take_pixels("crops", source, layout)
    graph.normalise_pixels(pixels, source, layout, profile)
    rows = graph.flatten(target)
    rows = graph.to_float32(rows, target)
    graph.finish("embedding", graph.unit_length(rows) if normalise else rows, [None, dimension])
    return PreparedGraph(
        onnx=graph.serialised(),
        source=path,
        source_sha256=digest,
        name=path.stem,
        input_size=layout.size,
        batch=None,
        profile=profile,
        dimension=dimension,
        space=embedding_space(digest, profile, dimension, normalised=normalise),
        normalised=normalise,
        channels_last=layout.channels_last,
        half=layout.half,
    )


def prepare_detector(onnx_path: Path) -> PreparedGraph:
    """Rewrite a YOLOX network so that it takes letterboxed BGR pixels and gives only what people need.

    YOLOX takes raw BGR values (0..255). The rows of the prepared graph are the network's first six
    columns: x, y, w, h, objectness, score of the first class (`person` in COCO), as the network gives
    them: decoding needs only the few rows above the threshold and is done on the host.

    Args:
        onnx_path: a YOLOX export (nano to x, or a custom one whose first class is a person), input
            `[N, 3, H, W]`, output `[N, A, 5 + classes]`, with or without `--decode_in_inference`.

    Raises:
        ModelError: the file is missing, is not ONNX, or is not a YOLOX detector.
    """
    path = Path(onnx_path)
    model, digest = _load(path)
    source = _the_input(path, model)
    layout = _picture_layout(path, source, batch_must_be_free=False)
    _check_yolox_output(path, _the_output(path, model), layout.size)
    model = _without_clashes(model, {"frames", "rows"})
    source, target = _the_input(path, model), _the_output(path, model)

    graph = _Rewriter(path, model)
    pixels = graph.take_pixels("frames", source, layout)
    graph.pass_pixels(pixels, source, layout)
    rows = graph.to_float32(graph.first_columns(target.name, _YOLOX_BOX_COLUMNS + 1), target)
    anchors = _yolox_anchors(layout.size)
    graph.finish("rows", rows, [layout.batch, anchors, _YOLOX_BOX_COLUMNS + 1])
    return PreparedGraph(
        onnx=graph.serialised(),
        source=path,
        source_sha256=digest,
        name=path.stem,
        input_size=layout.size,
        batch=layout.batch,
        profile=None,
        dimension=0,
        space="",
        normalised=False,
        channels_last=layout.channels_last,
        half=layout.half,
    )


# --- reading and checking -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Layout:
    """How a network wants its pictures."""

    size: tuple[int, int]
    batch: int | None
    channels_last: bool
    half: bool


def _load(path: Path) -> tuple[onnx.ModelProto, str]:
    """Read and check an ONNX file as far as every network needs it; also its SHA-256."""
    import onnx

    try:
        data = path.read_bytes()
    except OSError as problem:
        raise ModelError(f"cannot read the model {path}: {problem.strerror or problem}") from problem
    try:
        model = onnx.load_model_from_string(data)
    except Exception as problem:  # protobuf's own exception, whose place differs by version
        raise ModelError(f"{path} is not an ONNX file, or is cut off: {problem}") from problem
    if not model.graph.node:
        raise ModelError(f"{path} is not an ONNX file, or holds an empty network")
    _check_opset(path, model)
    _check_weights(path, model)
    return model, hashlib.sha256(data).hexdigest()


def _opset(model: onnx.ModelProto) -> int:
    return max((entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), default=0)


def _check_opset(path: Path, model: onnx.ModelProto) -> None:
    found = _opset(model)
    if found < _MIN_OPSET:
        raise ModelError(
            f"{path} uses ONNX opset {found}, at least {_MIN_OPSET} is needed; export it again with "
            "opset_version=13 or newer, or convert it with onnx.version_converter.convert_version"
        )


def _check_weights(path: Path, model: onnx.ModelProto) -> None:
    """Refuse weights that lie in other files, and weights that are not finite numbers."""
    import onnx
    from onnx import numpy_helper

    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE}
    for weight in model.graph.initializer:
        if weight.data_location == onnx.TensorProto.EXTERNAL:
            raise ModelError(
                f"{path} keeps the weight {weight.name!r} in another file; put everything into one file: "
                f'onnx.save(onnx.load("{path.name}"), "whole.onnx")'
            )
        if weight.data_type in floats and not np.isfinite(numpy_helper.to_array(weight)).all():
            raise ModelError(
                f"{path} holds NaN or infinity in the weight {weight.name!r}: it would make every result "
                "useless; export it again from a checkpoint whose training did not diverge"
            )


def _the_input(path: Path, model: onnx.ModelProto) -> onnx.ValueInfoProto:
    """The only input; files of old exporters list the weights among the inputs."""
    weights = {weight.name for weight in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise ModelError(f"{path}: expected a network with one input, found {len(inputs)} ({names})")
    found: onnx.ValueInfoProto = inputs[0]
    return found


def _the_output(path: Path, model: onnx.ModelProto) -> onnx.ValueInfoProto:
    outputs = list(model.graph.output)
    if len(outputs) != 1:
        names = ", ".join(value.name for value in outputs) or "none"
        raise ModelError(
            f"{path}: expected a network with one output, found {len(outputs)} ({names}); export it in "
            "evaluation mode, or cut it with onnx.utils.extract_model(in, out, [input], [output])"
        )
    found: onnx.ValueInfoProto = outputs[0]
    return found


def _shape(value: onnx.ValueInfoProto) -> list[int | None] | None:
    """Sizes of a tensor, None for an axis of any size; None for a tensor of any rank."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    known = [axis.HasField("dim_value") and axis.dim_value >= 0 for axis in tensor.shape.dim]  # some write -1
    return [
        axis.dim_value if is_known else None for axis, is_known in zip(tensor.shape.dim, known, strict=True)
    ]


def _as_text(shape: list[int | None] | None) -> str:
    if shape is None:
        return "a tensor of any rank"
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


def _picture_layout(path: Path, value: onnx.ValueInfoProto, *, batch_must_be_free: bool) -> _Layout:
    """Check that an input is a batch of pictures, and say of which size."""
    import onnx

    element = value.type.tensor_type.elem_type
    if element not in {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}:
        found = onnx.TensorProto.DataType.Name(element)
        raise ModelError(
            f"{path}: input {value.name!r} is {found}, expected FLOAT or FLOAT16; name the network as it "
            "was exported, not one that was already prepared"
        )
    shape = _shape(value)
    if shape is None or len(shape) != 4 or 3 not in (shape[1], shape[3]):
        raise ModelError(
            f"{path}: input {value.name!r} is {_as_text(shape)}, expected pictures [batch, 3, height, width]"
            " (a ReID network: [batch, 3, 256, 128])"
        )
    if shape[0] is not None and batch_must_be_free:
        raise ModelError(
            f"{path}: input {value.name!r} is {_as_text(shape)}: its batch axis is fixed at {shape[0]}, "
            f"so crops cannot be batched; {BATCH_HINT}"
        )
    channels_last = shape[1] != 3
    height, width = (shape[1], shape[2]) if channels_last else (shape[2], shape[3])
    if not height or not width:
        raise ModelError(
            f"{path}: input {value.name!r} is {_as_text(shape)}: height and width must be fixed; export it "
            "again with only the batch axis dynamic"
        )
    return _Layout((height, width), shape[0] or None, channels_last, element == onnx.TensorProto.FLOAT16)


def _embedding_size(path: Path, model: onnx.ModelProto, value: onnx.ValueInfoProto) -> int:
    """Numbers per embedding, checked; read from the graph itself where the output does not say."""
    import onnx

    element = value.type.tensor_type.elem_type
    if element not in {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}:
        found = onnx.TensorProto.DataType.Name(element)
        raise ModelError(f"{path}: output {value.name!r} is {found}, expected FLOAT or FLOAT16 embeddings")
    shape = _shape(value)
    if shape is None or None in shape[1:]:  # TAO's exporter leaves the second axis open too
        shape = _inferred_shape(model, value.name) or shape
    if shape is None or len(shape) < 2 or any(size not in {1, None} for size in shape[2:]):
        raise ModelError(
            f"{path}: output {value.name!r} is {_as_text(shape)}, expected one vector per crop "
            "[batch, dimension]; this is not a ReID network, or it was exported before its pooling layer"
        )
    if shape[0] is not None:
        raise ModelError(
            f"{path}: output {value.name!r} is {_as_text(shape)}: its batch axis is fixed at {shape[0]}; "
            f"{BATCH_HINT}"
        )
    if len(shape) == 2 and shape[1]:
        return shape[1]
    return _probed_size(path, model)


def _inferred_shape(model: onnx.ModelProto, name: str) -> list[int | None] | None:
    """Shape of the output as it follows from the nodes, whatever the file claims."""
    import onnx

    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(bare)
    return next((_shape(value) for value in inferred.graph.output if value.name == name), None)


def _probed_size(path: Path, model: onnx.ModelProto) -> int:
    """Numbers per embedding, found by running the network once on an empty picture."""
    import onnx

    from edge_agent.engine.onnxruntime import run_once

    source = _the_input(path, model)
    half = source.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    shape = [size or 1 for size in _shape(source) or []]
    rows = run_once(model.SerializeToString(), np.zeros(shape, np.float16 if half else np.float32), str(path))
    if rows.ndim < 2 or rows[0].size != rows.shape[1]:
        raise ModelError(
            f"{path}: gives {list(rows.shape)} for one crop, expected one vector [1, dimension]; this is "
            "not a ReID network, or it was exported before its pooling layer"
        )
    return int(rows.shape[1])


def _yolox_anchors(size: tuple[int, int]) -> int:
    return sum((size[0] // stride) * (size[1] // stride) for stride in _YOLOX_STRIDES)


def _check_yolox_output(path: Path, value: onnx.ValueInfoProto, size: tuple[int, int]) -> None:
    shape = _shape(value)
    anchors = _yolox_anchors(size)
    fits = (
        shape is not None
        and len(shape) == 3
        and shape[1] in {anchors, None}
        and shape[2] is not None
        and shape[2] > _YOLOX_BOX_COLUMNS
    )
    if not fits:
        raise ModelError(
            f"{path}: output {value.name!r} is {_as_text(shape)}, expected [batch, {anchors}, 5 + classes] "
            f"for a YOLOX detector with a {size[0]}x{size[1]} input; export it with YOLOX's "
            "tools/export_onnx.py (other detector families are not read)"
        )


# --- rewriting ----------------------------------------------------------------------------------


def _without_clashes(model: onnx.ModelProto, reserved: set[str]) -> onnx.ModelProto:
    """The model with all its names prefixed when one of them is needed for the prepared graph."""
    names: set[str] = {value.name for value in model.graph.input}
    names.update(weight.name for weight in model.graph.initializer)
    for node in model.graph.node:
        names.update(node.output)
    if not names & reserved and not any(name.startswith(_PREFIX) for name in names):
        return model
    from onnx.compose import add_prefix

    return add_prefix(model, "network/")


class _Rewriter:
    """Adds nodes before and after a network, in place."""

    def __init__(self, path: Path, model: onnx.ModelProto) -> None:
        self._path = path
        self._model = model
        self._head: list[onnx.NodeProto] = []
        self._tail: list[onnx.NodeProto] = []
        self._opset = _opset(model)

    def _node(
        self,
        where: list[onnx.NodeProto],
        kind: str,
        inputs: list[str],
        output: str,
        **attributes: int | list[int],
    ) -> str:
        from onnx import helper

        node = helper.make_node(kind, inputs, [output], name=f"{_PREFIX}{kind}_{output}")
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        where.append(node)
        return output

    def _constant(self, name: str, value: NDArray[np.generic]) -> str:
        from onnx import numpy_helper

        self._model.graph.initializer.append(numpy_helper.from_array(value, _PREFIX + name))
        return _PREFIX + name

    def take_pixels(self, name: str, source: onnx.ValueInfoProto, layout: _Layout) -> str:
        """Replace the network's input by `uint8 [N, H, W, 3]`; the pixels as float32, same layout."""
        import onnx
        from onnx import helper

        batch = "batch" if layout.batch is None else layout.batch
        fresh = helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, [batch, *layout.size, 3])
        kept = [value for value in self._model.graph.input if value.name != source.name]
        del self._model.graph.input[:]
        self._model.graph.input.extend([fresh, *kept])
        return self._node(self._head, "Cast", [name], _PREFIX + "pixels", to=onnx.TensorProto.FLOAT)

    def _to_layout(self, pixels: str, layout: _Layout, output: str) -> str:
        if layout.channels_last:
            return self._node(self._head, "Identity", [pixels], output)
        return self._node(self._head, "Transpose", [pixels], output, perm=[0, 3, 1, 2])

    def _to_source(self, pixels: str, source: onnx.ValueInfoProto) -> None:
        """Hand the pixels to the network under the name and type of its own input."""
        kind = source.type.tensor_type.elem_type
        self._node(self._head, "Cast", [pixels], source.name, to=kind)

    def pass_pixels(self, pixels: str, source: onnx.ValueInfoProto, layout: _Layout) -> None:
        """Raw BGR values in the network's layout."""
        self._to_source(self._to_layout(pixels, layout, _PREFIX + "planes"), source)

    def normalise_pixels(
        self, pixels: str, source: onnx.ValueInfoProto, layout: _Layout, profile: PreprocessProfile
    ) -> None:
        """Layout, channel order, mean and scale of the profile."""
        planes = self._to_layout(pixels, layout, _PREFIX + "planes")
        axis = 3 if layout.channels_last else 1
        if profile.order == "rgb":
            reverse = self._constant("reverse", np.asarray([2, 1, 0], np.int64))
            planes = self._node(self._head, "Gather", [planes, reverse], _PREFIX + "ordered", axis=axis)
        wide = (1, 1, 1, 3) if layout.channels_last else (1, 3, 1, 1)
        if profile.offsets.any():
            offsets = self._constant("offsets", profile.offsets.reshape(wide))
            planes = self._node(self._head, "Sub", [planes, offsets], _PREFIX + "centred")
        if (profile.factors != 1).any():
            factors = self._constant("factors", profile.factors.reshape(wide))
            planes = self._node(self._head, "Mul", [planes, factors], _PREFIX + "scaled")
        self._to_source(planes, source)

    def flatten(self, target: onnx.ValueInfoProto) -> str:
        """`[N, D, 1, 1]` -> `[N, D]`; leaves `[N, D]` as it is."""
        shape = _shape(target)
        if shape is not None and len(shape) == 2:
            return target.name
        return self._node(self._tail, "Flatten", [target.name], _PREFIX + "flat", axis=1)

    def to_float32(self, rows: str, target: onnx.ValueInfoProto) -> str:
        import onnx

        if target.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            return rows
        return self._node(self._tail, "Cast", [rows], _PREFIX + "rows32", to=onnx.TensorProto.FLOAT)

    def first_columns(self, rows: str, count: int) -> str:
        """`[N, A, C]` -> `[N, A, count]`."""
        one = [
            self._constant(f"column_{what}", np.asarray([value], np.int64))
            for what, value in (("start", 0), ("end", count), ("axis", 2))
        ]
        if self._opset >= 10:
            return self._node(self._tail, "Slice", [rows, *one], _PREFIX + "columns")
        return self._node(
            self._tail, "Slice", [rows], _PREFIX + "columns", starts=[0], ends=[count], axes=[2]
        )

    def _reduce(self, kind: str, rows: str, output: str) -> str:
        if self._opset >= _REDUCE_AXES_AS_INPUT:
            axes = self._constant(f"axes_{kind}", np.asarray([1], np.int64))
            return self._node(self._tail, kind, [rows, axes], output, keepdims=1)
        return self._node(self._tail, kind, [rows], output, axes=[1], keepdims=1)

    def unit_length(self, rows: str) -> str:
        """Rows divided by their length, in two steps so that squares cannot overflow in float16.

        The first step brings the largest number of a row to 1; the length is then at least 1. A row of
        zeros stays zero, a row with NaN or infinity keeps at least one NaN.
        """
        tiny = self._constant("tiny", np.asarray([[_TINY]], np.float32))
        least = self._constant("least", np.asarray([[_MIN_NORM]], np.float32))
        size = self._node(self._tail, "Abs", [rows], _PREFIX + "size")
        largest = self._reduce("ReduceMax", size, _PREFIX + "largest")
        largest = self._node(self._tail, "Max", [largest, tiny], _PREFIX + "largest_safe")
        level = self._node(self._tail, "Div", [rows, largest], _PREFIX + "levelled")
        length = self._reduce("ReduceL2", level, _PREFIX + "length")
        length = self._node(self._tail, "Max", [length, least], _PREFIX + "length_safe")
        return self._node(self._tail, "Div", [level, length], _PREFIX + "unit")

    def finish(self, name: str, rows: str, shape: Iterable[int | None]) -> None:
        """Make `rows` the only output, under `name` and with this shape (None: the batch)."""
        import onnx
        from onnx import helper

        self._node(self._tail, "Identity", [rows], name)
        graph = self._model.graph
        nodes = [*self._head, *graph.node, *self._tail]
        fresh = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(fresh)
        del graph.output[:]
        sizes = ["batch" if size is None else size for size in shape]
        graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, sizes))
        del graph.value_info[:]  # intermediate shapes of old exporters may contradict the new input

    def serialised(self) -> bytes:
        """The whole model, checked against the rules of ONNX."""
        import onnx

        try:
            onnx.checker.check_model(self._model)
        except onnx.checker.ValidationError as problem:
            raise ModelError(f"{self._path} is not valid ONNX: {problem}") from problem
        data: bytes = self._model.SerializeToString()
        return data
