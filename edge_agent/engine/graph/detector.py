"""Puts preprocessing into a detector, and reduces its outputs to the rows of people.

The prepared detector takes `frames`, `uint8 [N, H, W, 3]` BGR, and gives `rows`, `float32 [N, A, columns]`.
Which columns, and what they mean, is known to `detect.kinds`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.errors import ModelError
from edge_agent.engine.graph.inference import infer, shape_of
from edge_agent.engine.graph.nodes import OURS, one_line
from edge_agent.engine.graph.prepare import Rewriter, prepared_graph
from edge_agent.engine.graph.prepared import PreparedGraph, PreprocessProfile
from edge_agent.engine.graph.reading import Layout, Network

_MOST_VALUES = 1 << 26
"""Values of all outputs for one picture at most: the largest YOLO with 1,000 classes has a third of that."""
_ROWS = "rows"
_FRAMES = "frames"


class DetectorGraph(Rewriter):
    """A network under preparation, and the few operations that the rows of a detector need.

    Each returns the name of its result. Operators and their forms are those that all opsets from 9 on have.
    """

    def __init__(self, network: Network, layout: Layout) -> None:
        super().__init__(network.copy(), layout)
        self._added = 0

    def add_pictures(self, profile: PreprocessProfile) -> None:
        """Add the input; a network that takes `uint8` gets the channel order of the profile only."""
        if self._layout.pixels:
            profile = replace(profile, scale=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        self.add_normalised_input(_FRAMES, profile)

    def only_output(self) -> str:
        """Return the only output as float32."""
        return self.output(self._network.output.name)

    def output(self, name: str) -> str:
        """Return an output as float32; of a fixed batch, that of the first picture."""
        import onnx

        values = self._operate("Cast", [name], to=onnx.TensorProto.FLOAT)
        if self._layout.batch is not None and self._layout.batch > 1:
            return self.pick(values, 0, [0])
        return values

    def pick(self, values: str, axis: int, indices: Sequence[int]) -> str:
        """Take these indices of an axis."""
        chosen = self._constant(f"indices{self._added}", np.asarray(indices, np.int64))
        return self._operate("Gather", [values, chosen], axis=axis)

    def transpose(self, values: str, order: list[int]) -> str:
        """Change the order of the axes."""
        return self._operate("Transpose", [values], perm=order)

    def reshape(self, values: str, shape: Sequence[int]) -> str:
        """Change the shape; 0 keeps an axis, -1 takes the rest."""
        wanted = self._constant(f"shape{self._added}", np.asarray(shape, np.int64))
        return self._operate("Reshape", [values, wanted])

    def concat(self, parts: list[str], axis: int) -> str:
        """Join along an axis."""
        return self._operate("Concat", parts, axis=axis)

    def first_rows(self, values: str, number: str, rows: int) -> str:
        """Replace all but the first `number` of the rows `[1, rows, 1]` by 0."""
        row = np.arange(rows, dtype=np.float32).reshape(1, rows, 1)
        index = self._constant(f"row{self._added}", row)
        zero = self._constant(f"zero{self._added}", np.zeros((1, 1, 1), np.float32))
        below = self._operate("Less", [index, number])
        return self._operate("Where", [below, values, zero])

    def unreduced(self) -> bytes:
        """Return the model with all outputs of the network.

        Raises:
            ModelError: an output, as declared or as it follows from the nodes, has too many rows.
        """
        data = self._assembled()
        declared = list(self._model.graph.output)
        inferred = infer(self._model, self._model.graph.input[0], [1])
        for output in declared if inferred is None else [*declared, *inferred.output]:
            count = math.prod(size for size in shape_of(output) or [] if size is not None)
            if count > _MOST_VALUES * (self._layout.batch or 1):
                raise ModelError(
                    f"{self._network.path}: output {output.name!r} has {count:.3g} values for a picture; no "
                    "detector that is read has so many"
                )
        return data

    def _operate(self, kind: str, inputs: list[str], **attributes: int | list[int]) -> str:
        self._added += 1
        return self._add(self._tail, kind, inputs, f"step{self._added}", **attributes)


def read_detector(network: Network) -> Network:
    """Return the network with names that do not collide with those that are added.

    Raises:
        ModelError: the network was prepared already, or needs a plugin of TensorRT.
    """
    plugin = next((node.op_type for node in network.model.graph.node if node.op_type.endswith("_TRT")), None)
    if plugin is not None:
        raise ModelError(
            f"{network.path} has the operator {plugin!r}, which exists in TensorRT only; export it without "
            "suppression inside, or with that of ONNX (YOLOv7: export.py --end2end --max-wh 640)"
        )
    if any(OURS in node.name for node in network.model.graph.node):
        raise ModelError(
            f"{network.path} was already prepared by edge-agent; name the network as it was exported"
        )
    network.avoid_names({_FRAMES, _ROWS})
    return network


def prepare_detector(
    network: Network,
    layout: Layout,
    profile: PreprocessProfile,
    rows: Callable[[DetectorGraph], str],
) -> PreparedGraph:
    """Rewrite a detector so that it takes BGR pixels and gives the rows of people.

    Args:
        network: from `read_detector`; it stays as it is.
        layout: of its input.
        profile: what the network was trained with.
        rows: adds the nodes that make `[N, A, columns]` of its outputs.
    """
    graph = DetectorGraph(network, layout)
    graph.add_pictures(profile)
    batch: int | str = "batch" if layout.batch is None else 1
    model = graph.finish(_ROWS, rows(graph), [batch, "boxes", "columns"])
    prepared = prepared_graph(network, layout, model)
    return replace(prepared, batch=None if layout.batch is None else 1)


def run_on_pictures(
    network: Network, layout: Layout, profile: PreprocessProfile, pictures: Sequence[NDArray[np.uint8]]
) -> dict[str, tuple[NDArray[np.float32], ...]]:
    """Run a detector on pictures `(H, W, 3)`; return all its outputs for each, without the batch axis.

    Raises:
        ModelError: it cannot be run, its outputs are no tensors of numbers, or are too large.
    """
    from edge_agent.engine.onnxruntime import open_session

    graph = DetectorGraph(network, layout)
    graph.add_pictures(profile)
    model = graph.unreduced()
    network.check_sizes(layout)
    session = open_session(model, 0, str(network.path))
    names = [value.name for value in session.get_outputs()]
    found: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    for picture in pictures:
        try:
            outputs = session.run(None, {_FRAMES: picture[None]})
        except Exception as problem:  # its exception types are private and differ by version
            raise ModelError(f"{network.path} fails on a picture: {one_line(problem)}") from problem
        for name, values in zip(names, outputs, strict=True):
            found[name].append(_of_one_picture(values, layout, f"{network.path}: output {name!r}"))
    return {name: tuple(values) for name, values in found.items()}


def _of_one_picture(values: Any, layout: Layout, what: str) -> NDArray[np.float32]:  # noqa: ANN401
    """Return an output as float32 without its batch axis, which tables of boxes sometimes lack."""
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub":
        raise ModelError(f"{what} is not a tensor of numbers")
    plain = np.asarray(values, np.float32)
    if layout.batch is not None and layout.batch > 1:
        if len(np.atleast_1d(plain)) != layout.batch:
            raise ModelError(f"{what} is {list(plain.shape)} for a batch of {layout.batch}")
        return np.asarray(plain[0])
    return np.asarray(plain[0]) if plain.ndim > 2 or (plain.ndim == 2 and len(plain) == 1) else plain
