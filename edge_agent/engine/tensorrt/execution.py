"""What runs a batch: buffers of a submission, an optimisation profile, the captured graph of batch 1."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge_agent.engine.tensorrt import cuda
from edge_agent.engine.tensorrt.bindings import Log, checked

if TYPE_CHECKING:
    import tensorrt as trt
    from pycuda import driver


class UnusablePlanError(Exception):
    """TensorRT does not accept a plan, or the plan does not have the expected shapes."""


@dataclass(frozen=True, slots=True)
class Tensors:
    """Names of input and output, shapes of a picture and a row, least and largest batch of each profile."""

    pixels: str
    rows: str
    picture: tuple[int, ...]
    row: tuple[int, ...]
    batches: tuple[tuple[int, int], ...]


def read_tensors(engine: trt.ICudaEngine) -> Tensors:
    """Read a loaded plan; UnusablePlanError unless it has one `uint8` input and one `float32` output."""
    import tensorrt as trt

    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    outputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT]
    if (len(inputs), len(outputs)) != (1, 1):
        raise UnusablePlanError(f"it has inputs {inputs} and outputs {outputs}, not one of each")
    for name, wanted in ((inputs[0], trt.DataType.UINT8), (outputs[0], trt.DataType.FLOAT)):
        if (found := engine.get_tensor_dtype(name)) != wanted:
            raise UnusablePlanError(f"its tensor {name!r} is {found}, not {wanted}")
    taken = tuple(int(size) for size in engine.get_tensor_shape(inputs[0]))
    given = tuple(int(size) for size in engine.get_tensor_shape(outputs[0]))
    if min(*taken[1:], *given[1:]) < 1:
        raise UnusablePlanError(f"other axes than the batch are dynamic: {taken} in, {given} out")
    return Tensors(inputs[0], outputs[0], taken[1:], given[1:], _batches(engine, inputs[0], taken[0]))


def _batches(engine: trt.ICudaEngine, name: str, batch: int) -> tuple[tuple[int, int], ...]:
    """Return the smallest and largest batch of each profile; `batch` itself where it is fixed."""
    if batch >= 0:
        return ((batch, batch),)
    shapes = [engine.get_tensor_profile_shape(name, i) for i in range(engine.num_optimization_profiles)]
    return tuple((int(least[0]), int(most[0])) for least, _, most in shapes)


class Slot:
    """Tensors of one submission, and the events that mark its progress.

    `started` and `ended` are around the network, on the clock of the GPU; `done`, for waiting, comes when the
    rows are in host memory. `mapped`: host and GPU share memory.
    """

    def __init__(self, context: cuda.Context, tensors: Tensors, batch: int, *, mapped: bool) -> None:
        self.pixels = cuda.Buffer((batch, *tensors.picture), np.uint8, mapped=mapped)
        self.rows = cuda.Buffer((batch, *tensors.row), np.float32, mapped=mapped)
        self.started = context.event()
        self.ended = context.event()
        self.done = context.event(blocking=True)

    def free(self) -> None:
        """Free the tensors, on the thread of the context."""
        self.pixels.free()
        self.rows.free()


class Profile:
    """An optimisation profile with an execution context of its own, so that no context is ever switched.

    `batch` is its largest batch.
    """

    def __init__(self, context: trt.IExecutionContext, tensors: Tensors, index: int, log: Log) -> None:
        self._context = context
        self._tensors = tensors
        self._least, self.batch = tensors.batches[index]
        self._log = log
        self._shaped = 0  # batch that the context is set to, 0 when unknown

    def enqueue(self, count: int, pixels: int, rows: int, stream: driver.Stream) -> None:
        """Put one batch on the stream; one below the smallest batch is filled up.

        `pixels` and `rows` are addresses. EngineError where TensorRT refuses.
        """
        names, size = self._tensors, max(count, self._least)
        if self._shaped != size:
            self._shaped = 0
            accepted = self._context.set_input_shape(names.pixels, (size, *names.picture))
            checked(accepted, f"set a batch of {size}", self._log)
            self._shaped = size
        for name, address in ((names.pixels, pixels), (names.rows, rows)):
            accepted = self._context.set_tensor_address(name, address)
            checked(accepted, f"set the address of {name!r}", self._log)
        checked(self._context.execute_async_v3(stream.handle), f"run a batch of {count}", self._log)

    def run(self, slot: Slot, count: int, stream: driver.Stream) -> None:
        """Put the first `count` pictures of a slot on the stream, with copies and events."""
        slot.rows.poison(count, stream)
        slot.pixels.upload(count, stream)
        slot.started.record(stream)
        self.enqueue(count, slot.pixels.pointer, slot.rows.pointer, stream)
        slot.ended.record(stream)
        slot.rows.download(count, stream)


class Replay:
    """Runs single pictures by a captured graph, in memory of its own: a captured address cannot be changed.

    `profile` is that of batch 1, used for nothing else from then on; any `slot` gives the sizes. EngineError
    where the work cannot be captured.
    """

    def __init__(self, profile: Profile, slot: Slot, stream: driver.Stream) -> None:
        self._size = slot.rows.host[:1].nbytes
        with contextlib.ExitStack() as undo:
            self._pixels = cuda.DeviceMemory(slot.pixels.host[:1].nbytes)
            undo.callback(self._pixels.free)
            self._rows = cuda.DeviceMemory(self._size)
            undo.callback(self._rows.free)

            def enqueue() -> None:
                profile.enqueue(1, self._pixels.pointer, self._rows.pointer, stream)

            self._pixels.upload(slot.pixels.host[:1], stream)
            enqueue()  # work of a first run must not be captured
            stream.synchronize()
            self._graph = cuda.capture(enqueue, stream)
            undo.pop_all()

    def run(self, slot: Slot, stream: driver.Stream) -> None:
        """Put the first picture of a slot on the stream, with copies and events."""
        self._pixels.upload(slot.pixels.host[:1], stream)
        self._rows.poison(self._size, stream)
        slot.rows.poison(1, stream)
        slot.started.record(stream)
        self._graph.launch(stream)
        slot.ended.record(stream)
        self._rows.download(slot.rows.host[:1], stream)

    def free(self) -> None:
        """Free graph and memory."""
        try:
            self._graph.free()
        finally:
            self._rows.free()
            self._pixels.free()
