"""Everything that a TensorRT engine has on the GPU between entering and leaving."""

from __future__ import annotations

import contextlib
import traceback
from typing import TYPE_CHECKING

import structlog

from edge_agent.core.errors import EngineError
from edge_agent.engine.base import DEPTH
from edge_agent.engine.graph.prepared import PreparedGraph
from edge_agent.engine.tensorrt import cuda
from edge_agent.engine.tensorrt.bindings import Log, checked, has_dla, make_runtime, version
from edge_agent.engine.tensorrt.execution import (
    Profile,
    Replay,
    Slot,
    Tensors,
    UnusablePlanError,
    read_tensors,
)

if TYPE_CHECKING:
    import tensorrt as trt
    from pycuda import driver

    from edge_agent.core.config import EngineSettings
    from edge_agent.engine.plans.records import StoredPlan
    from edge_agent.engine.tensorrt.supply import PlanBuilder

_log = structlog.get_logger(__name__)


class Session:
    """Context, plan, buffers and stream: made, used and freed on one thread. A context manager.

    Attributes:
        context: the CUDA context.
        slots: used in turn by submissions.
        precision: of the plan.
        device: what it runs on, for reports.
    """

    def __init__(
        self, prepared: PreparedGraph, plans: PlanBuilder, settings: EngineSettings, max_batch: int
    ) -> None:
        self._prepared = prepared
        self._plans = plans
        self._settings = settings
        self._max_batch = max_batch
        self._runtime: trt.Runtime | None = None
        self._engine: trt.ICudaEngine | None = None
        self._stream: driver.Stream | None = None
        self._replay: Replay | None = None
        self._profiles: list[Profile] = []
        self.context = cuda.Context()
        self.slots: list[Slot] = []
        self.precision = prepared.precision
        self.device = ""

    def __enter__(self) -> Session:
        self._log = Log()
        with contextlib.ExitStack() as closing:
            closing.enter_context(self.context)
            for step in (self._free_memory, self._free_tensorrt, self._free_replay, self._finish):
                closing.callback(step)  # called in reverse order
            try:
                self._open()
            except BaseException as problem:
                release_frames(problem)
                raise
            self._closing = closing.pop_all()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._closing.close()

    def launch(self, slot: Slot, count: int) -> None:
        """Put the first `count` pictures of a slot on the stream; `slot.done` is recorded after its rows.

        After an error, no work of this batch is on the stream.
        """
        stream = self._stream
        assert stream is not None  # the thread ends with the session
        try:
            if count == 1 and self._replay is not None:
                self._replay.run(slot, stream)
            else:
                next(profile for profile in self._profiles if profile.batch >= count).run(slot, count, stream)
            slot.done.record(stream)
        except BaseException:
            stream.synchronize()  # the slot is filled again next: no copy may still read it
            raise

    def _open(self) -> None:
        gpu = self.context.gpu()
        mapped = self._choose_mapped(gpu)
        self._stream = self.context.stream()
        self._runtime = make_runtime(self._log)
        core = self._choose_dla(self._runtime)
        self.device = gpu.name if core is None else f"{gpu.name}, DLA {core}"
        plan, tensors = self._load()
        self.precision = plan.precision
        batch = plan.batches[-1]
        self.slots = [Slot(self.context, tensors, batch, mapped=mapped) for _ in range(DEPTH)]
        self._profiles = [self._profile(tensors, index) for index in range(len(plan.batches))]
        for profile in self._profiles:  # the first run of each is slow, and shows whether it works
            self.launch(self.slots[0], profile.batch)
        self._stream.synchronize()
        if self._settings.cuda_graphs == "auto" and core is None and self._profiles[0].batch == 1:
            self._capture()
        facts = {"plan": plan.key, "precision": plan.precision, "batches": plan.batches, "zero_copy": mapped}
        _log.info("tensorrt_started", device=self.device, cuda_graph=self._replay is not None, **facts)

    def _choose_dla(self, runtime: trt.Runtime) -> int | None:
        """Return the accelerator to run on; None for the GPU. Must be set before a plan is loaded."""
        core = self._settings.dla_core
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
        """Return whether host and GPU share memory for pictures and rows."""
        zero_copy = self._settings.zero_copy
        if zero_copy == "auto":
            return gpu.integrated and gpu.maps_host_memory
        if zero_copy == "on" and not gpu.maps_host_memory:
            raise EngineError(f'{gpu.name} cannot work in host memory; set zero_copy to "auto" or "off"')
        return zero_copy == "on"

    def _load(self) -> tuple[StoredPlan, Tensors]:
        """Deserialise the plan; if it cannot be used, once the one that replaces it."""
        plan = self._plans.plan()
        try:
            return plan, self._deserialise(plan)
        except UnusablePlanError as problem:
            why = str(problem)
        _log.warning("plan_rejected", plan=plan.key, reason=why)
        plan = self._plans.rejected(plan, why)
        try:
            return plan, self._deserialise(plan)
        except UnusablePlanError as problem:
            raise EngineError(
                f"plan {plan.key} of {self._prepared.name} cannot be used, though it was just made: {problem}"
            ) from None

    def _deserialise(self, plan: StoredPlan) -> Tensors:
        """Load a plan and check its shapes; UnusablePlanError where it cannot be used."""
        assert self._runtime is not None  # made before a plan is loaded
        try:
            loaded = self._runtime.deserialize_cuda_engine(plan.data)
            engine = checked(loaded, f"load plan {plan.key}", self._log)
        except EngineError as problem:
            raise UnusablePlanError(str(problem)) from problem
        tensors = read_tensors(engine)
        if tensors.picture != (*self._prepared.input_size, 3):
            raise UnusablePlanError(f"it takes pictures of shape {tensors.picture}")
        if self._prepared.dimension and tensors.row != (self._prepared.dimension,):
            raise UnusablePlanError(f"it gives rows of shape {tensors.row}")
        if (found := tuple(largest for _, largest in tensors.batches)) != plan.batches:
            raise UnusablePlanError(f"its profiles take {found} pictures, not {plan.batches}")
        if found[-1] < self._max_batch:
            raise UnusablePlanError(f"it takes at most {found[-1]} pictures, {self._max_batch} are wanted")
        self._engine = engine
        return tensors

    def _profile(self, tensors: Tensors, index: int) -> Profile:
        """Make an execution context for one profile.

        The index must exist: where TensorRT refuses one, the bindings of 8.6 and 10.3 end the process (they
        raise without holding the interpreter's lock), later ones raise.
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
        return Profile(context, tensors, index, self._log)

    def _capture(self) -> None:
        """Capture the run of a single picture; without a graph everything works, a little slower."""
        assert self._stream is not None
        try:
            self._replay = Replay(self._profiles[0], self.slots[0], self._stream)
        except Exception as problem:  # noqa: BLE001 - whatever another release of cuda-bindings raises
            release_frames(problem)
            _log.info("cuda_graph_not_used", reason=str(problem))

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
            slot.free()
        self.slots.clear()
        self._stream = None


def release_frames(problem: BaseException | None) -> None:
    """Clear the frames of an error: objects of TensorRT must be freed here, not with the error."""
    while problem is not None:
        traceback.clear_frames(problem.__traceback__)
        problem = problem.__cause__ or problem.__context__
