"""Reads an ONNX network and checks that it can be prepared; errors explain the fix."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge_agent.core.errors import InputError, ModelError
from edge_agent.core.files import MAX_MODEL_BYTES, read_file
from edge_agent.engine.graph.nodes import OURS, opset
from edge_agent.engine.graph.prepared import BATCH_HINT

if TYPE_CHECKING:
    import onnx

_MIN_OPSET = 9
"""Oldest supported default-domain opset: before it, Cast and broadcasting differ."""
_YOLOX_STRIDES = (8, 16, 32)
YOLOX_BOX_COLUMNS = 5
"""Columns of a YOLOX row before its classes: x, y, w, h, objectness."""

Shape = list["int | None"]
"""Sizes of a tensor's axes, None for a dynamic one."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The input pictures of a network: `(height, width)`, fixed batch or None, axis order, and type."""

    size: tuple[int, int]
    batch: int | None
    channels_last: bool
    half: bool


class Network:
    """An ONNX file: its path, SHA-256 and model.

    Raises:
        ModelError: the file is missing, is not ONNX, is too old, or has unusable weights.
    """

    def __init__(self, path: Path) -> None:
        import onnx

        self.path = Path(path)
        try:
            data = read_file(self.path, MAX_MODEL_BYTES)
        except InputError as problem:
            raise ModelError(f"{problem}".replace("cannot read", "cannot read the model", 1)) from problem
        try:
            self.model = onnx.load_model_from_string(data)
        except Exception as problem:  # protobuf's own exception, whose place differs by version
            raise ModelError(f"{path} is not an ONNX file, or is cut off: {problem}") from problem
        if not self.model.graph.node:
            raise ModelError(f"{path} is not an ONNX file, or holds an empty network")
        self.sha256 = hashlib.sha256(data).hexdigest()
        if (found := opset(self.model)) < _MIN_OPSET:
            raise ModelError(
                f"{path} uses ONNX opset {found}, at least {_MIN_OPSET} is needed; export it again with "
                "opset_version=13 or newer, or convert it with onnx.version_converter.convert_version"
            )
        self._check_weights()

    def _check_weights(self) -> None:
        """Refuse weights in other files, and weights that are not finite numbers."""
        import onnx
        from onnx import numpy_helper

        floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE}
        for weight in self.model.graph.initializer:
            if weight.data_location == onnx.TensorProto.EXTERNAL:
                raise ModelError(
                    f"{self.path} keeps the weight {weight.name!r} in another file; put everything into one "
                    f'file: onnx.save(onnx.load("{self.path.name}"), "whole.onnx")'
                )
            if weight.data_type in floats and not np.isfinite(numpy_helper.to_array(weight)).all():
                raise ModelError(
                    f"{self.path} holds NaN or infinity in the weight {weight.name!r}: it would make every "
                    "result useless; export it again from a checkpoint whose training did not diverge"
                )

    @property
    def input(self) -> onnx.ValueInfoProto:
        """The only input; files of old exporters list the weights among the inputs."""
        weights = {weight.name for weight in self.model.graph.initializer}
        return self._only("input", [value for value in self.model.graph.input if value.name not in weights])

    @property
    def output(self) -> onnx.ValueInfoProto:
        """The only output."""
        cut = "cut it with onnx.utils.extract_model(in, out, [input], [output])"
        hint = f"; export it in evaluation mode, or {cut}"
        return self._only("output", list(self.model.graph.output), hint)

    def _only(self, role: str, values: list[onnx.ValueInfoProto], hint: str = "") -> onnx.ValueInfoProto:
        if len(values) != 1:
            names = ", ".join(value.name for value in values) or "none"
            raise ModelError(
                f"{self.path}: expected a network with one {role}, found {len(values)} ({names}){hint}"
            )
        return values[0]

    def layout(self, *, batch_must_be_free: bool) -> Layout:
        """Return the layout of the input pictures; ModelError where the input is not a batch of pictures."""
        value, half = self.input, self._is_half(self.input)
        if half is None:
            raise self._unexpected_type(
                "input", value, "FLOAT or FLOAT16; name the network as it was exported, not one that was "
                "already prepared"
            )  # fmt: skip
        shape = shape_of(value)
        what = f"{self.path}: input {value.name!r} is {_as_text(shape)}"
        if shape is None or len(shape) != 4 or 3 not in (shape[1], shape[3]):
            raise ModelError(
                f"{what}, expected pictures [batch, 3, height, width] (a ReID network: [batch, 3, 256, 128])"
            )
        if shape[0] is not None and batch_must_be_free:
            raise ModelError(
                f"{what}: its batch axis is fixed at {shape[0]}, so crops cannot be batched; {BATCH_HINT}"
            )
        channels_last = shape[1] != 3
        height, width = (shape[1], shape[2]) if channels_last else (shape[2], shape[3])
        if not height or not width:
            raise ModelError(
                f"{what}: height and width must be fixed; export it again with only the batch axis dynamic"
            )
        return Layout((height, width), shape[0] or None, channels_last, half)

    def embedding_size(self) -> int:
        """Return the numbers per embedding, inferred or measured where the output does not declare them."""
        value = self.output
        if self._is_half(value) is None:
            raise self._unexpected_type("output", value, "FLOAT or FLOAT16 embeddings")
        shape = shape_of(value)
        if shape is None or None in shape[1:]:  # TAO's exporter leaves the second axis dynamic too
            shape = self._inferred_shape() or shape
        what = f"{self.path}: output {value.name!r} is {_as_text(shape)}"
        if shape is None or len(shape) < 2 or any(size not in {1, None} for size in shape[2:]):
            raise ModelError(
                f"{what}, expected one vector per crop [batch, dimension]; this is not a ReID network, or it "
                "was exported before its pooling layer"
            )
        if shape[0] is not None:
            raise ModelError(f"{what}: its batch axis is fixed at {shape[0]}; {BATCH_HINT}")
        if len(shape) == 2 and shape[1]:
            return shape[1]
        return self._measured_size()

    def check_yolox(self, size: tuple[int, int]) -> None:
        """Raise ModelError unless the output is that of a YOLOX detector for pictures of this size."""
        shape, anchors = shape_of(self.output), yolox_anchors(size)
        fits = (
            shape is not None
            and len(shape) == 3
            and shape[1] in {anchors, None}
            and shape[2] is not None
            and shape[2] > YOLOX_BOX_COLUMNS
        )
        if not fits:
            raise ModelError(
                f"{self.path}: output {self.output.name!r} is {_as_text(shape)}, expected [batch, {anchors}, "
                f"5 + classes] for a YOLOX detector with a {size[0]}x{size[1]} input; export it with YOLOX's "
                "tools/export_onnx.py (other detector families are not read)"
            )

    def avoid_names(self, reserved: set[str]) -> None:
        """Prefix all names of the model when one of them is needed for the prepared graph."""
        names: set[str] = {value.name for value in self.model.graph.input}
        names.update(weight.name for weight in self.model.graph.initializer)
        for node in self.model.graph.node:
            names.update(node.output)
        if names & reserved or any(name.startswith(OURS) for name in names):
            from onnx.compose import add_prefix

            self.model = add_prefix(self.model, "network/")

    @staticmethod
    def _is_half(value: onnx.ValueInfoProto) -> bool | None:
        """Return whether a tensor is float16 rather than float32; None for other types."""
        import onnx

        known: dict[int, bool] = {onnx.TensorProto.FLOAT: False, onnx.TensorProto.FLOAT16: True}
        return known.get(value.type.tensor_type.elem_type)

    def _unexpected_type(self, role: str, value: onnx.ValueInfoProto, expected: str) -> ModelError:
        import onnx

        found = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
        return ModelError(f"{self.path}: {role} {value.name!r} is {found}, expected {expected}")

    def _inferred_shape(self) -> Shape | None:
        """Return the shape of the output that follows from the nodes, whatever the file declares."""
        import onnx

        bare = onnx.ModelProto()
        bare.CopyFrom(self.model)
        for value in bare.graph.output:
            value.type.tensor_type.ClearField("shape")
        return shape_of(onnx.shape_inference.infer_shapes(bare).graph.output[0])

    def _measured_size(self) -> int:
        """Return the numbers per embedding, found by running the network once on an empty picture."""
        from edge_agent.engine.onnxruntime import run_once

        shape = [size or 1 for size in shape_of(self.input) or []]
        picture = np.zeros(shape, np.float16 if self._is_half(self.input) else np.float32)
        rows = run_once(self.model.SerializeToString(), picture, str(self.path))
        if rows.ndim < 2 or rows[0].size != rows.shape[1]:
            raise ModelError(
                f"{self.path}: gives {list(rows.shape)} for one crop, expected one vector [1, dimension]; "
                "this is not a ReID network, or it was exported before its pooling layer"
            )
        return int(rows.shape[1])


def yolox_anchors(size: tuple[int, int]) -> int:
    """Return the rows of a YOLOX detector for pictures of `(height, width)`."""
    return sum((size[0] // stride) * (size[1] // stride) for stride in _YOLOX_STRIDES)


def shape_of(value: onnx.ValueInfoProto) -> Shape | None:
    """Return the declared shape of a tensor; None where it has any rank."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [  # some exporters write -1
        axis.dim_value if axis.HasField("dim_value") and axis.dim_value >= 0 else None
        for axis in tensor.shape.dim
    ]


def _as_text(shape: Shape | None) -> str:
    if shape is None:
        return "a tensor of any rank"
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"
