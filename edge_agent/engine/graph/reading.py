"""Reads an ONNX network and checks that it can be prepared; errors explain the fix."""

from __future__ import annotations

import ast
import copy
import hashlib
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import structlog

from edge_agent.core.arrays import MOST_NUMBERS
from edge_agent.core.errors import InputError, ModelError
from edge_agent.core.files import MAX_MODEL_BYTES, read_file
from edge_agent.engine.graph.inference import Shape, inferred_output, shape_of
from edge_agent.engine.graph.nodes import NETWORK, OURS, one_line, opset
from edge_agent.engine.graph.prepared import BATCH_HINT
from edge_agent.engine.graph.scan import HostileModelError, check_claims, check_encoding, check_sizes

if TYPE_CHECKING:
    import onnx

_log = structlog.get_logger(__name__)

_MIN_OPSET = 9
"""Oldest supported default-domain opset: before it, Cast and broadcasting differ."""
MOST_PIXELS = 1 << 20
"""Pixels of a crop: 32 times those of 256 x 128. Buffers have `max_batch` of them."""
_TRIED = 2
"""Pictures for which the shape of the output is found: one would not show which axis is the batch."""
_SIDES = (32, 4096)
"""Width and height of a detector's input at least and at most, pixels."""
_MOST_METADATA = 100_000
"""Longest value of the metadata that is read, characters."""
MOST_PIXELS_OF_BATCH = 1 << 25
"""Pixels of a detector's input at most; where the batch is fixed, each picture is computed that often."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The input pictures of a network: `(height, width)`, fixed batch or None, axis order, and type.

    `pixels`: the network takes `uint8`, and normalises inside.
    """

    size: tuple[int, int]
    batch: int | None
    channels_last: bool
    half: bool
    pixels: bool = False


@dataclass(frozen=True, slots=True)
class Rows:
    """What a ReID network gives: numbers per crop, and whether as `[N, D]`, without further axes."""

    dimension: int
    flat: bool


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
            check_encoding(data)
            self.model = onnx.load_model_from_string(data)
            check_claims(self.model)
        except HostileModelError as problem:
            raise ModelError(f"{path} {problem}") from problem
        except Exception as problem:  # protobuf's own exception, whose place differs by version
            raise ModelError(f"{path} is not an ONNX file, or is cut off: {one_line(problem)}") from problem
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
        """Refuse weights that are not finite numbers."""
        import onnx
        from onnx import numpy_helper

        floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE}
        for weight in self.model.graph.initializer:
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

    def copy(self) -> Network:
        """Return the same network with a model of its own, which may be rewritten."""
        import onnx

        other = copy.copy(self)
        other.model = onnx.ModelProto()
        other.model.CopyFrom(self.model)
        return other

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

    def layout(self) -> Layout:
        """Return the layout of a ReID network's input; ModelError where it is not a batch of pictures."""
        value, half = self.input, self._is_half(self.input)
        if half is None:
            raise self._unexpected_type(
                "input", value, "FLOAT or FLOAT16; name the network as it was exported, not one that was "
                "already prepared"
            )  # fmt: skip
        batch, size, channels_last = self._picture_axes()
        what = f"{self.path}: input {value.name!r} is {_as_text(shape_of(value))}"
        if batch is not None:
            raise ModelError(
                f"{what}: its batch axis is fixed at {batch}, so crops cannot be batched; {BATCH_HINT}"
            )
        height, width = size
        if not height or not width:
            raise ModelError(
                f"{what}: height and width must be fixed; export it again with only the batch axis dynamic"
            )
        if height * width > MOST_PIXELS:
            raise ModelError(
                f"{what}: at most {MOST_PIXELS:,} pixels are supported; export it for smaller pictures"
            )
        if width > height:
            hint = "crops of people are higher than wide: were the two swapped in the export?"
            _log.warning("input_wider_than_high", file=str(self.path), height=height, width=width, hint=hint)
        found = Layout((height, width), None, channels_last, half)
        self.check_sizes(found)
        return found

    def detector_layout(self, wanted: tuple[int, int] | None, usual: tuple[int, int]) -> Layout:
        """Return the layout of the input of a detector, whose size and batch may be dynamic.

        Args:
            wanted: `(height, width)` of a dynamic input, from the settings.
            usual: the same, where neither settings nor metadata of the file have it.

        Raises:
            ModelError: the input is no picture, is too small or too large, or has another size than wanted.
        """
        import onnx

        value, half = self.input, self._is_half(self.input)
        pixels = value.type.tensor_type.elem_type == onnx.TensorProto.UINT8
        if half is None and not pixels:
            raise self._unexpected_type("input", value, "FLOAT, FLOAT16 or UINT8")
        batch, size, channels_last = self._picture_axes()
        default = wanted or self._exported_size() or usual
        height, width = (fixed or chosen for fixed, chosen in zip(size, default, strict=True))
        what = f"{self.path}: input {value.name!r} is {_as_text(shape_of(value))}"
        if wanted is not None and (height, width) != wanted:
            raise ModelError(
                f"{what}: it cannot be {wanted[1]}x{wanted[0]} pixels; unset detector.input_size"
            )
        if not all(_SIDES[0] <= side <= _SIDES[1] for side in (height, width)):
            limits = f"{_SIDES[0]} to {_SIDES[1]}"
            raise ModelError(f"{what}: a detector's picture has {limits} pixels a side, not {width}x{height}")
        if (batch or 1) * height * width > MOST_PIXELS_OF_BATCH:
            raise ModelError(f"{what}: its batch axis is fixed at {batch}; export it with a batch of 1")
        return Layout((height, width), batch, channels_last, bool(half), pixels)

    def check_sizes(self, layout: Layout) -> None:
        """Raise ModelError where a tensor would be too large for one batch of pictures of this layout."""
        batch = layout.batch or _TRIED
        planes = [batch, *layout.size, 3] if layout.channels_last else [batch, 3, *layout.size]
        try:
            check_sizes(self.model, self.input, planes)
        except HostileModelError as problem:
            raise ModelError(f"{self.path} {problem}") from problem

    def _picture_axes(self) -> tuple[int | None, list[int | None], bool]:
        """Return batch, height and width, None where dynamic, and whether channels come last."""
        shape = shape_of(self.input)
        if shape is None or len(shape) != 4 or 3 not in (shape[1], shape[3]):
            raise ModelError(
                f"{self.path}: input {self.input.name!r} is {_as_text(shape)}, expected pictures "
                "[batch, 3, height, width] (a ReID network: [batch, 3, 256, 128])"
            )
        channels_last = shape[1] != 3
        return shape[0] or None, shape[1:3] if channels_last else shape[2:4], channels_last

    def _exported_size(self) -> tuple[int, int] | None:
        """Return `(height, width)` for which Ultralytics exported the network, from its metadata."""
        size = self._metadata("imgsz")
        if isinstance(size, (list, tuple)) and len(size) == 2 and all(type(side) is int for side in size):
            return size[0], size[1]
        return None

    def class_names(self) -> tuple[str, ...] | None:
        """Return the names of a detector's classes by number, from the metadata that Ultralytics writes."""
        names = self._metadata("names")
        if isinstance(names, (list, tuple)):
            names = dict(enumerate(names))
        if not isinstance(names, dict) or not names or set(names) != set(range(len(names))):
            return None
        return tuple(str(names[number]) for number in range(len(names)))

    def task(self) -> str:
        """Return the task of an Ultralytics export, e.g. `detect` or `pose`; "" where the file has none."""
        found = [entry.value for entry in self.model.metadata_props if entry.key == "task"]
        return found[0][:40] if found else ""

    def _metadata(self, key: str) -> object:
        """Return a value of the file's metadata that is written in Python's notation; None without one."""
        for entry in self.model.metadata_props:
            if entry.key == key and len(entry.value) <= _MOST_METADATA:
                try:
                    return ast.literal_eval(entry.value)
                except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                    return None
        return None

    def embedding(self) -> Rows:
        """Return what the network gives for each crop, whatever its file declares.

        The shape follows from the nodes. Where it does not, a declared `[N, D]` is taken, which the first run
        checks, else a run on two empty pictures finds it. A file that declares another shape than its nodes
        have is used with the true one, and a warning.

        Raises:
            ModelError: not one vector per crop, or another type than declared.
        """
        value = self.output
        declared, kind = shape_of(value), value.type.tensor_type.elem_type
        if self._is_half(value) is None:
            raise self._unexpected_type("output", value, "FLOAT or FLOAT16 embeddings")
        true_kind, given = inferred_output(self.model, self.input, [_TRIED])
        if true_kind not in {0, kind}:
            raise ModelError(
                f"{self.path}: output {value.name!r} is declared {_type_name(kind)} and gives "
                f"{_type_name(true_kind)}; export the network again, all in one type"
            )
        if given is None or None in given:  # as often before opset 13
            given = self._declared_vector() or self._measured_shape()
        what = f"{self.path}: output {value.name!r} is declared {_as_text(declared)} and gives {given}"
        what += f" for {_TRIED} pictures"
        if len(given) > 1 and given[0] != _TRIED:
            raise ModelError(f"{what}: its first axis is not the batch; {BATCH_HINT}")
        sizes = [size for size in given[1:] if size != 1]
        if len(sizes) != 1:
            raise ModelError(
                f"{what}, expected one vector per crop [batch, dimension]; this is not a ReID network, or it "
                "was exported before its pooling layer"
            )
        if not 1 < (dimension := sizes[0] or 0) <= MOST_NUMBERS:
            raise ModelError(f"{what}; an embedding has 2 to {MOST_NUMBERS:,} numbers")
        if declared is None or any(
            size not in {None, true} for size, true in zip_longest(declared, given, fillvalue=-1)
        ):
            _log.warning("output_declared_wrong", file=str(self.path), output=value.name,
                         declared=_as_text(declared), gives=given)  # fmt: skip
        return Rows(dimension, flat=len(given) == 2)

    def avoid_names(self, reserved: set[str]) -> None:
        """Prefix all names of the model when one of them is needed for the prepared graph."""
        names: set[str] = {value.name for value in self.model.graph.input}
        names.update(weight.name for weight in self.model.graph.initializer)
        for node in self.model.graph.node:
            names.update(node.output)
        if names & reserved or any(name.startswith(OURS) for name in names):
            from onnx.compose import add_prefix

            self.model = add_prefix(self.model, NETWORK)

    @staticmethod
    def _is_half(value: onnx.ValueInfoProto) -> bool | None:
        """Return whether a tensor is float16 rather than float32; None for other types."""
        import onnx

        known: dict[int, bool] = {onnx.TensorProto.FLOAT: False, onnx.TensorProto.FLOAT16: True}
        return known.get(value.type.tensor_type.elem_type)

    def _unexpected_type(self, role: str, value: onnx.ValueInfoProto, expected: str) -> ModelError:
        found = _type_name(value.type.tensor_type.elem_type)
        return ModelError(f"{self.path}: {role} {value.name!r} is {found}, expected {expected}")

    def _declared_vector(self) -> Shape | None:
        """Return the declared shape of the output if it is `[N, D]`, which the first run checks."""
        declared = shape_of(self.output) or []
        return [_TRIED, declared[1]] if len(declared) == 2 and declared[1] else None

    def _measured_shape(self) -> Shape:
        """Return the shape of the output, found by a run on empty pictures."""
        from edge_agent.engine.apart import run_apart

        shape = [_TRIED, *[size or 1 for size in (shape_of(self.input) or [])[1:]]]
        pictures = np.zeros(shape, np.float16 if self._is_half(self.input) else np.float32)
        (found,) = run_apart(self.model.SerializeToString(), [pictures], str(self.path))
        return list(found.shape)


def _type_name(kind: int) -> str:
    import onnx

    names: dict[int, str] = {value: name for name, value in onnx.TensorProto.DataType.items()}
    return names.get(kind, f"of the unknown type {kind}")


def _as_text(shape: Shape | None) -> str:
    if shape is None:
        return "a tensor of any rank"
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"
