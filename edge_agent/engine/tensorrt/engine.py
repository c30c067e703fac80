"""TensorRT backend: runs the plan of a prepared graph on an NVIDIA GPU.

One thread owns the GPU: it loads the plan, puts batches on a stream as they are submitted, and frees
everything in order. The caller's thread only waits for the event behind its batch, so the second batch is on
the stream while the first one runs. Only calls that TensorRT 8.5 to 11.4 have in common are used. Why it is
done this way: `docs/decisions/010-tensorrt-runs-exact-batches.md`.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import traceback
from collections import deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

import numpy as np
import structlog
from numpy.typing import NDArray

from edge_agent.core.errors import EdgeAgentError, EngineError
from edge_agent.core.structures import EngineInfo
from edge_agent.engine.base import DEPTH
from edge_agent.engine.graph.prepared import PreparedGraph
from edge_agent.engine.tensorrt import cuda
from edge_agent.engine.tensorrt.bindings import Log, checked, has_dla, make_runtime, version

if TYPE_CHECKING:
    import tensorrt as trt
    from pycuda import driver

__all__ = ["PlanSupply", "SuppliedPlan", "TensorRTEngine"]

_log = structlog.get_logger(__name__)


class SuppliedPlan(Protocol):
    """A serialised engine that was built on this device for the prepared graph."""

    @property
    def data(self) -> bytes:
        """What TensorRT deserialises."""

    @property
    def batches(self) -> tuple[int, ...]:
        """Largest batch of each optimisation profile, ascending, e.g. `(1, 16, 64)`."""

    @property
    def precision(self) -> str:
        """`fp32`, `fp16` or `int8`."""

    @property
    def key(self) -> str:
        """Names the plan, for messages."""


class PlanSupply(Protocol):
    """Where plans come from. Called on the thread that owns the GPU, with its context current."""

    def plan(self) -> SuppliedPlan:
        """The plan to run; may build one, which takes minutes.

        Raises:
            EdgeAgentError: there is none and none can be built.
        """

    def rejected(self, plan: SuppliedPlan, why: str) -> SuppliedPlan:
        """A new plan in place of one that cannot be used; called at most once.

        Raises:
            EdgeAgentError: as in `plan`.
        """


class _UnusablePlanError(Exception):
    """TensorRT does not take a plan, or it is not what it was said to be."""


@dataclass(slots=True)
class _Slot:
    """What one submission uses: its tensors, and events that tell how far it is."""

    pixels: cuda.Buffer
    rows: cuda.Buffer
    started: driver.Event
    ended: driver.Event
    done: driver.Event


@dataclass(slots=True)
class _Run:
    """One submission."""

    index: int
    """Of its slot."""
    count: int
    launched: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class _Tensors:
    """What goes in and what comes out.

    Attributes:
        pixels: name of the input.
        rows: name of the output.
        picture: shape of one picture.
        row: shape of one row.
        batches: smallest and largest batch of each profile.
    """

    pixels: str
    rows: str
    picture: tuple[int, ...]
    row: tuple[int, ...]
    batches: tuple[tuple[int, int], ...]


class _Profile:
    """One optimisation profile with an execution context of its own, so that none is ever switched.

    Args:
        context: of the profile alone.
        tensors: names and shapes.
        least: smallest batch; smaller ones are filled up.
        batch: largest batch.
        log: where TensorRT says why something failed.
    """

    def __init__(
        self, context: trt.IExecutionContext, tensors: _Tensors, *, least: int, batch: int, log: Log
    ) -> None:
        self._context = context
        self._tensors = tensors
        self._least = least
        self.batch = batch
        self._log = log
        self._shaped = 0  # batch that the context is set to, 0 when unknown

    def enqueue(self, count: int, pixels: int, rows: int, stream: driver.Stream) -> None:
        """Put one batch on the stream.

        Args:
            count: pictures.
            pixels: address of the input.
            rows: address of the output.
            stream: where to.

        Raises:
            EngineError: TensorRT refused.
        """
        names, size = self._tensors, max(count, self._least)
        if self._shaped != size:
            self._shaped = 0
            took = self._context.set_input_shape(names.pixels, (size, *names.picture))
            checked(took, f"set a batch of {size}", self._log)
            self._shaped = size
        for name, address in ((names.pixels, pixels), (names.rows, rows)):
            took = self._context.set_tensor_address(name, address)
            checked(took, f"set the address of {name!r}", self._log)
        checked(self._context.execute_async_v3(stream.handle), f"run a batch of {count}", self._log)


class _Replay:
    """Single pictures by a captured graph, in memory of its own: a captured address cannot be changed.

    Args:
        profile: of batch 1; used for nothing else from then on.
        slot: whose tensors tell the sizes.
        stream: where it is captured.

    Raises:
        EngineError: the work cannot be captured.
    """

    def __init__(self, profile: _Profile, slot: _Slot, stream: driver.Stream) -> None:
        self._size = slot.rows.host[:1].nbytes
        with contextlib.ExitStack() as undo:
            self._pixels = cuda.DeviceMemory(slot.pixels.host[:1].nbytes)
            undo.callback(self._pixels.free)
            self._rows = cuda.DeviceMemory(self._size)
            undo.callback(self._rows.free)

            def enqueue() -> None:
                profile.enqueue(1, self._pixels.pointer, self._rows.pointer, stream)

            self._pixels.upload(slot.pixels.host[:1], stream)
            enqueue()  # what is done on a first run only must not be captured
            stream.synchronize()
            self._graph = cuda.capture(enqueue, stream)
            undo.pop_all()

    def run(self, slot: _Slot, stream: driver.Stream) -> None:
        """Put one picture on the stream."""
        self._pixels.upload(slot.pixels.host[:1], stream)
        self._rows.poison(self._size, stream)
        slot.rows.poison(1, stream)
        slot.started.record(stream)
        self._graph.launch(stream)
        slot.ended.record(stream)
        self._rows.download(slot.rows.host[:1], stream)

    def free(self) -> None:
        """Give graph and memory back."""
        try:
            self._graph.free()
        finally:
            self._rows.free()
            self._pixels.free()


class _Session:
    """All that lives on the GPU, from entering to leaving: made, used and freed on one thread.

    Args:
        prepared: the network.
        supply: its plan.
        max_batch: pictures per buffer.
        zero_copy: `auto`, `on` or `off`.
        cuda_graphs: whether to capture a graph.
        dla_core: deep-learning accelerator to run on.

    Attributes:
        context: the CUDA context.
        slots: what submissions use in turn.
        precision: of the plan.
        device: what it runs on, for people.
    """

    def __init__(
        self,
        prepared: PreparedGraph,
        supply: PlanSupply,
        *,
        max_batch: int,
        zero_copy: str,
        cuda_graphs: bool,
        dla_core: int | None,
    ) -> None:
        self._prepared = prepared
        self._supply = supply
        self._max_batch = max_batch
        self._zero_copy = zero_copy
        self._cuda_graphs = cuda_graphs
        self._dla_core = dla_core
        self._runtime: trt.Runtime | None = None
        self._engine: trt.ICudaEngine | None = None
        self._stream: driver.Stream | None = None
        self._replay: _Replay | None = None
        self._profiles: list[_Profile] = []
        self.context = cuda.Context()
        self.slots: list[_Slot] = []
        self.precision = prepared.precision
        self.device = ""

    def __enter__(self) -> _Session:
        self._log = Log()
        with contextlib.ExitStack() as closing:
            closing.enter_context(self.context)
            closing.callback(self._free_memory)
            closing.callback(self._free_tensorrt)
            closing.callback(self._free_replay)
            closing.callback(self._finish)
            try:
                self._open()
            except BaseException as problem:
                _let_go(problem)
                raise
            self._closing = closing.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.__exit__(kind, error, trace)

    # --- opening ------------------------------------------------------------------------------

    def _open(self) -> None:
        gpu = self.context.gpu()
        mapped = self._choose_mapped(gpu)
        self._stream = self.context.stream()
        self._runtime = make_runtime(self._log)
        core = self._choose_dla(self._runtime)
        self.device = gpu.name if core is None else f"{gpu.name}, DLA {core}"
        plan, tensors = self._load()
        self.precision = plan.precision
        self.slots = [self._slot(tensors, plan.batches[-1], mapped=mapped) for _ in range(DEPTH)]
        self._profiles = [self._profile(tensors, index) for index in range(len(plan.batches))]
        for profile in self._profiles:  # the first run of each is slow, and tells whether it works
            self.launch(self.slots[0], profile.batch)
        self._stream.synchronize()
        if self._cuda_graphs and core is None and self._profiles[0].batch == 1:
            self._capture()
        _log.info(
            "tensorrt_started",
            plan=plan.key,
            device=self.device,
            precision=plan.precision,
            batches=plan.batches,
            zero_copy=mapped,
            cuda_graph=self._replay is not None,
        )

    def _choose_dla(self, runtime: trt.Runtime) -> int | None:
        """The accelerator that the plan is loaded for; None for the GPU. Must be known before loading."""
        core = self._dla_core
        if core is None:
            return None
        release = version()
        if not has_dla(release):
            reason = f"TensorRT {'.'.join(map(str, release))} does not support it"
        elif core >= runtime.num_DLA_cores:
            reason = f"this device has {runtime.num_DLA_cores}"
        else:
            runtime.DLA_core = core
            return core
        _log.warning("dla_not_used", dla_core=core, reason=reason, instead="GPU")
        return None

    def _choose_mapped(self, gpu: cuda.Gpu) -> bool:
        """Whether host and GPU share memory for pictures and rows.

        Raises:
            EngineError: that is demanded and impossible.
        """
        if self._zero_copy == "auto":
            return gpu.integrated and gpu.maps_host_memory
        if self._zero_copy == "on" and not gpu.maps_host_memory:
            raise EngineError(f'{gpu.name} cannot work in host memory; set zero_copy to "auto" or "off"')
        return self._zero_copy == "on"

    def _load(self) -> tuple[SuppliedPlan, _Tensors]:
        """Deserialise the plan; if it cannot be used, once the one that replaces it.

        Raises:
            EngineError: neither can be used.
            EdgeAgentError: there is no plan.
        """
        plan = self._supply.plan()
        try:
            return plan, self._deserialise(plan)
        except _UnusablePlanError as problem:
            why = str(problem)
        _log.warning("plan_rejected", plan=plan.key, reason=why)
        plan = self._supply.rejected(plan, why)
        try:
            return plan, self._deserialise(plan)
        except _UnusablePlanError as problem:
            raise EngineError(
                f"plan {plan.key} of {self._prepared.name} cannot be used, though it was just made: {problem}"
            ) from None

    def _deserialise(self, plan: SuppliedPlan) -> _Tensors:
        """Load a plan and see that it is what it was said to be.

        Raises:
            _UnusablePlanError: it cannot be used here.
        """
        assert self._runtime is not None  # made before any plan is asked for
        try:
            engine = checked(
                self._runtime.deserialize_cuda_engine(plan.data), f"load plan {plan.key}", self._log
            )
        except EngineError as problem:
            raise _UnusablePlanError(str(problem)) from problem
        tensors = _tensors(engine)
        if tensors.picture != (*self._prepared.input_size, 3):
            raise _UnusablePlanError(f"it takes pictures of shape {tensors.picture}")
        if self._prepared.dimension and tensors.row != (self._prepared.dimension,):
            raise _UnusablePlanError(f"it gives rows of shape {tensors.row}")
        if (found := tuple(largest for _, largest in tensors.batches)) != plan.batches:
            raise _UnusablePlanError(f"its profiles take {found} pictures, not {plan.batches}")
        if found[-1] < self._max_batch:
            raise _UnusablePlanError(f"it takes at most {found[-1]} pictures, {self._max_batch} are wanted")
        self._engine = engine
        return tensors

    def _slot(self, tensors: _Tensors, batch: int, *, mapped: bool) -> _Slot:
        return _Slot(
            pixels=cuda.Buffer((batch, *tensors.picture), np.uint8, mapped=mapped),
            rows=cuda.Buffer((batch, *tensors.row), np.float32, mapped=mapped),
            started=self.context.event(),
            ended=self.context.event(),
            done=self.context.event(to_wait_for=True),
        )

    def _profile(self, tensors: _Tensors, index: int) -> _Profile:
        """An execution context that is set to one profile for good.

        The index is known to exist: where TensorRT refuses one, the bindings of 8.6 and 10.3 end the process
        (they raise without holding the interpreter's lock), later ones raise.
        """
        assert self._engine is not None  # the plan was loaded
        assert self._stream is not None
        context = checked(self._engine.create_execution_context(), "make an execution context", self._log)
        what = f"set optimisation profile {index}"
        try:
            checked(context.set_optimization_profile_async(index, self._stream.handle), what, self._log)
        except RuntimeError:
            checked(None, what, self._log)
        self._stream.synchronize()
        least, batch = tensors.batches[index]
        return _Profile(context, tensors, least=least, batch=batch, log=self._log)

    def _capture(self) -> None:
        """Capture the run of a single picture; without it everything works, a little slower."""
        assert self._stream is not None
        try:
            self._replay = _Replay(self._profiles[0], self.slots[0], self._stream)
        except Exception as problem:  # noqa: BLE001 - whatever another release of cuda-bindings raises
            _let_go(problem)
            _log.info("cuda_graph_not_used", reason=str(problem))

    # --- running ------------------------------------------------------------------------------

    def launch(self, slot: _Slot, count: int) -> None:
        """Put the first `count` pictures of a slot on the stream; `slot.done` follows its rows.

        Raises:
            EngineError: TensorRT or CUDA refused. Nothing of it is on its way any more.
        """
        stream = self._stream
        assert stream is not None  # the thread ends with the session
        try:
            if count == 1 and self._replay is not None:
                self._replay.run(slot, stream)
            else:
                profile = next(profile for profile in self._profiles if profile.batch >= count)
                slot.rows.poison(count, stream)
                slot.pixels.upload(count, stream)
                slot.started.record(stream)
                profile.enqueue(count, slot.pixels.pointer, slot.rows.pointer, stream)
                slot.ended.record(stream)
                slot.rows.download(count, stream)
            slot.done.record(stream)
        except BaseException:
            stream.synchronize()  # the slot is filled anew next: no copy may still read it
            raise

    # --- closing ------------------------------------------------------------------------------

    def _finish(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()

    def _free_replay(self) -> None:
        replay, self._replay = self._replay, None
        if replay is not None:
            replay.free()

    def _free_tensorrt(self) -> None:
        self._profiles.clear()
        self._engine = None
        self._runtime = None

    def _free_memory(self) -> None:
        for slot in self.slots:
            slot.pixels.free()
            slot.rows.free()
        self.slots.clear()
        self._stream = None


def _tensors(engine: trt.ICudaEngine) -> _Tensors:
    """What goes in and what comes out.

    Raises:
        _UnusablePlanError: it is not one `uint8` tensor in and one `float32` tensor out, rows first.
    """
    import tensorrt as trt

    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    outputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT]
    if (len(inputs), len(outputs)) != (1, 1):
        raise _UnusablePlanError(f"it has inputs {inputs} and outputs {outputs}, not one of each")
    for name, wanted in ((inputs[0], trt.DataType.UINT8), (outputs[0], trt.DataType.FLOAT)):
        if (found := engine.get_tensor_dtype(name)) != wanted:
            raise _UnusablePlanError(f"its tensor {name!r} is {found}, not {wanted}")
    taken = tuple(int(size) for size in engine.get_tensor_shape(inputs[0]))
    given = tuple(int(size) for size in engine.get_tensor_shape(outputs[0]))
    if min(*taken[1:], *given[1:]) < 1:
        raise _UnusablePlanError(f"more than its batch is free: {taken} in, {given} out")
    return _Tensors(inputs[0], outputs[0], taken[1:], given[1:], _batches(engine, inputs[0], taken[0]))


def _batches(engine: trt.ICudaEngine, name: str, batch: int) -> tuple[tuple[int, int], ...]:
    """Smallest and largest batch of each profile; a network whose batch is fixed takes only that one."""
    if batch >= 0:
        return ((batch, batch),)
    shapes = [engine.get_tensor_profile_shape(name, i) for i in range(engine.num_optimization_profiles)]
    return tuple((int(least[0]), int(most[0])) for least, _, most in shapes)


class TensorRTEngine:
    """See `edge_agent.engine.base.Engine`.

    Args:
        prepared: the network, from `edge_agent.engine.graph`.
        plans: gives its plan, asked on entering.
        max_batch: pictures per buffer; a network with a fixed batch lowers it.
        zero_copy: `on`: pictures and rows lie in memory that host and GPU share; `off`: they are copied;
            `auto`: shared where the GPU has no memory of its own.
        cuda_graphs: `auto`: single pictures run by a captured graph where the package `cuda-bindings` is
            there; `off`: never.
        dla_core: deep-learning accelerator to run on, None for the GPU.
    """

    def __init__(
        self,
        prepared: PreparedGraph,
        plans: PlanSupply,
        *,
        max_batch: int,
        zero_copy: str = "auto",
        cuda_graphs: str = "auto",
        dla_core: int | None = None,
    ) -> None:
        if max_batch < 1:
            raise EngineError(f"max_batch must be at least 1, got {max_batch}")
        self._prepared = prepared
        self._max_batch = min(max_batch, prepared.batch or max_batch)
        self._session = _Session(
            prepared,
            plans,
            max_batch=self._max_batch,
            zero_copy=zero_copy,
            cuda_graphs=cuda_graphs == "auto",
            dla_core=dla_core,
        )
        self._worker: threading.Thread | None = None
        self._opened = threading.Event()
        self._leaving = False
        self._problem: Exception | None = None
        self._free: deque[int] = deque()
        self._flying: deque[_Run] = deque()
        self._waiting: queue.SimpleQueue[_Run | None] = queue.SimpleQueue()
        self._runs = 0
        self._run_seconds = 0.0
        self._failures = 0

    @property
    def info(self) -> EngineInfo:
        """What runs; valid before entering, when precision and device are not known for certain."""
        return EngineInfo(
            backend="tensorrt",
            precision=self._session.precision,
            model=self._prepared.name,
            model_sha256=self._prepared.source_sha256,
            space=self._prepared.space,
            dimension=self._prepared.dimension,
            max_batch=self._max_batch,
            device=self._session.device or "NVIDIA GPU",
        )

    @property
    def input_size(self) -> tuple[int, int]:
        """`(height, width)` in pixels."""
        return self._prepared.input_size

    @property
    def unit_length(self) -> bool:
        """Whether the graph ends in an L2 normalisation."""
        return self._prepared.normalised

    @property
    def in_flight(self) -> int:
        """Submissions not collected, 0..2."""
        return len(self._flying)

    @property
    def runs(self) -> int:
        """Batches whose rows came back since the engine was made."""
        return self._runs

    @property
    def run_seconds(self) -> float:
        """Seconds that the GPU took for `runs`, by its own clock, copies not counted."""
        return self._run_seconds

    @property
    def failures(self) -> int:
        """Batches dropped since TensorRT or CUDA failed."""
        return self._failures

    def __enter__(self) -> TensorRTEngine:
        self._opened.clear()
        self._leaving = False
        self._worker = threading.Thread(target=self._work, name=f"engine {self._prepared.name}", daemon=True)
        self._worker.start()
        try:
            self._opened.wait()  # for minutes, where a plan is built
        except BaseException:  # Ctrl-C: the thread cannot be stopped, but it closes what it opens
            self._leaving = True
            self._waiting.put(None)
            raise
        if self._problem is not None:
            self._worker.join()
            problem, self._problem = self._problem, None
            if isinstance(problem, EdgeAgentError):
                raise problem
            raise EngineError(f"{self._prepared.name} cannot be run by TensorRT: {problem}") from problem
        self._free = deque(range(DEPTH))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._flying.clear()
        self._free.clear()
        self._leaving = True  # nobody will collect what still waits
        self._waiting.put(None)
        if self._worker is not None:
            self._worker.join()
        self._worker = None
        if self._problem is not None:
            _log.warning("engine_not_closed_cleanly", error=str(self._problem))
            self._problem = None

    def buffer(self) -> NDArray[np.uint8]:
        """The `(max_batch, H, W, 3)` uint8 buffer to fill next."""
        if not self._free:
            why = f"{DEPTH} batches are in flight" if self._flying else "the engine is not running"
            raise EngineError(f"no buffer is free: {why}")
        pixels: NDArray[np.uint8] = self._session.slots[self._free[0]].pixels.host[: self._max_batch]
        return pixels

    def submit(self, count: int) -> None:
        """Run the first `count` rows of the buffer; returns at once."""
        if not 1 <= count <= self._max_batch:
            raise EngineError(f"a batch holds 1 to {self._max_batch} pictures, got {count}")
        self.buffer()
        run = _Run(self._free.popleft(), count)
        self._flying.append(run)
        self._waiting.put(run)

    def collect(self) -> NDArray[np.float32]:
        """Rows of the oldest submission, `(count, ...)` float32."""
        if not self._flying:
            raise EngineError("nothing was submitted, so there is nothing to collect")
        run = self._flying[0]
        run.launched.wait()
        try:
            return self._rows(run)
        except Exception as problem:  # pycuda's, TensorRT's or ours: the batch is lost in any case
            self._failures += 1
            raise EngineError(f"{self._prepared.name} failed on a batch: {problem}") from problem
        finally:
            self._flying.popleft()
            self._free.append(run.index)

    def _rows(self, run: _Run) -> NDArray[np.float32]:
        """Wait for the GPU and copy what it wrote.

        Raises:
            Exception: the batch failed, now or when it was put on the stream.
        """
        if run.error is not None:
            raise run.error
        slot = self._session.slots[run.index]
        with self._session.context.borrowed():
            slot.done.synchronize()
            seconds = slot.ended.time_since(slot.started) / 1e3
        if slot.rows.poisoned(run.count):
            raise EngineError("the GPU finished without writing all rows")
        self._runs += 1
        self._run_seconds += seconds
        rows: NDArray[np.float32] = slot.rows.host[: run.count].copy()
        return rows

    # --- the thread that owns the GPU ---------------------------------------------------------

    def _work(self) -> None:
        """Open the session, launch what is submitted, in order, until told to stop; close it."""
        try:
            with self._session as session:
                self._opened.set()
                while (run := self._waiting.get()) is not None:
                    if not self._leaving:
                        self._launch(session, run)
        except Exception as problem:  # noqa: BLE001 - handed to the caller, whatever it is
            self._problem = problem
        finally:
            self._opened.set()

    def _launch(self, session: _Session, run: _Run) -> None:
        try:
            session.launch(session.slots[run.index], run.count)
        except Exception as problem:  # noqa: BLE001 - handed to `collect`, whatever it is
            _let_go(problem)
            run.error = problem
        finally:
            run.launched.set()


def _let_go(problem: BaseException | None) -> None:
    """Drop what the frames of an error hold: objects of TensorRT must end here, not with the error."""
    while problem is not None:
        traceback.clear_frames(problem.__traceback__)
        problem = problem.__cause__ or problem.__context__
