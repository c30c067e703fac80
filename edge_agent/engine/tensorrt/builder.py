"""Builds a TensorRT plan for the GPU of this device, after a check of memory and disk; reports progress."""

from __future__ import annotations

import shutil
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from edge_agent.core.errors import EngineError
from edge_agent.engine.graph.prepared import PreparedGraph
from edge_agent.engine.precision.scales import Scales
from edge_agent.engine.tensorrt import bindings, cuda
from edge_agent.engine.tensorrt.calibrator import RangeSource, make_calibrator
from edge_agent.engine.tensorrt.recipe import BuildOptions, choose_flags, profile_batches

if TYPE_CHECKING:
    import tensorrt as trt

_TICK_S = 5.0


class Progress(Protocol):
    """Callback for the progress of a build, called from several threads; its exception ends the build."""

    def __call__(self, phase: str, done: int, total: int) -> None:
        """`done` of `total` steps of a phase; `total` 0: seconds (before TensorRT 10), or unknown."""


def ignore_progress(phase: str, done: int, total: int) -> None:
    """Do nothing."""


class Watch:
    """Forwards progress; the build ends after the first `error` of the callback, or when `failed()`."""

    def __init__(self, progress: Progress, failed: Callable[[], bool]) -> None:
        self._progress = progress
        self._failed = failed
        self.error: BaseException | None = None

    def report(self, phase: str, done: int, total: int) -> bool:
        """Forward; return whether to continue. Raises nothing: the callers are TensorRT and a thread."""
        if self.error is None:
            try:
                self._progress(phase, done, total)
            except BaseException as problem:  # noqa: BLE001 - raised after the build
                self.error = problem
        return self.error is None and not self._failed()


@contextmanager
def watched(config: trt.IBuilderConfig, progress: Progress, failed: Callable[[], bool]) -> Iterator[Watch]:
    """Report the progress of the build that runs in the block."""
    import tensorrt as trt

    watch = Watch(progress, failed)
    base: Any = getattr(trt, "IProgressMonitor", None)  # from TensorRT 10 on
    if base is not None:
        monitor = _make_monitor(watch, base)
        untyped: Any = config
        untyped.progress_monitor = monitor
        yield watch
        del monitor  # TensorRT holds no reference, so this one lasts until here
        return
    ended = threading.Event()
    ticker = threading.Thread(target=_tick, args=(watch, ended), name="engine build", daemon=True)
    ticker.start()
    try:
        yield watch
    finally:
        ended.set()
        ticker.join()


def _tick(watch: Watch, ended: threading.Event) -> None:
    began = time.monotonic()
    while not ended.wait(_TICK_S):
        watch.report("building", round(time.monotonic() - began), 0)


def _make_monitor(watch: Watch, base: Any) -> object:  # noqa: ANN401 - a class of TensorRT
    class Monitor(base):  # type: ignore[misc]  # the class exists only where TensorRT has it
        def __init__(self) -> None:
            base.__init__(self)  # required by pybind11
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # noqa: ARG002
            self._steps[phase_name] = num_steps
            watch.report(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return watch.report(phase_name, step + 1, self._steps.get(phase_name, 0))

        def phase_finish(self, phase_name: str) -> None:
            steps = self._steps.pop(phase_name, 0)
            watch.report(phase_name, steps, steps)

    return Monitor()


_log = structlog.get_logger(__name__)

_MIB = 1 << 20
_MEMORY_FLOOR = 768 * _MIB
_MEMORY_PER_GRAPH_BYTE = 4
"""Free memory that a build needs: for the libraries and kernels that TensorRT loads, and for the weights as
parsed, as converted, in the plan and in its serialised copy. Rules of thumb, not measured on a device."""
_DISK_FLOOR = 64 * _MIB
_DISK_PER_GRAPH_BYTE = 3
"""Free disk that a build needs: for the plan, the plan that it replaces, and a timing cache."""
_SMALLEST_WORKSPACE = 16 * _MIB


def available_memory(root: Path = Path("/")) -> int:
    """Return MemAvailable of /proc/meminfo in bytes; EngineError where it has no such value."""
    path = root / "proc/meminfo"
    try:
        for line in path.read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024
    except (OSError, ValueError, IndexError) as problem:
        raise EngineError(f"cannot tell how much memory is free: {path}: {problem}") from problem
    raise EngineError(f"cannot tell how much memory is free: {path} has no MemAvailable")


def workspace_for(graph_bytes: int, free: int, wanted_mb: int | None) -> int:
    """Return the bytes that TensorRT may use for tactics, at most what the rest of the build leaves free.

    `graph_bytes` is the size of the prepared ONNX; `wanted_mb` None means half of `free`, the bytes of free
    memory. EngineError where too little is free to begin.
    """
    needed = _MEMORY_FLOOR + _MEMORY_PER_GRAPH_BYTE * graph_bytes
    spare = free - needed
    if spare < _SMALLEST_WORKSPACE:
        raise EngineError(
            f"building this engine needs about {(needed + _SMALLEST_WORKSPACE) // _MIB} MiB of free memory, "
            f"{free // _MIB} MiB are free; stop other programs, this agent too where it runs (on a Jetson "
            "the GPU uses the system's memory)"
        )
    wanted = free // 2 if wanted_mb is None else wanted_mb * _MIB
    if wanted > spare and wanted_mb is not None:
        _log.warning("workspace_capped", wanted_mb=wanted_mb, given_mb=spare // _MIB, free_mb=free // _MIB)
    return min(wanted, spare)


def check_disk(folder: Path, graph_bytes: int) -> None:
    """Raise EngineError unless a plan fits on the disk of `folder`, which need not exist yet."""
    needed = _DISK_FLOOR + _DISK_PER_GRAPH_BYTE * graph_bytes
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise EngineError(
            f"an engine needs about {needed // _MIB} MiB on the disk of {folder}, {free // _MIB} MiB are "
            "free; make room (edge-agent engines prune removes plans that are not needed)"
        )


@dataclass(frozen=True, slots=True)
class BuiltPlan:
    """A serialised plan, and what came with it.

    Attributes:
        timing: TensorRT's timing cache after the build; empty when there is none.
        scales: ranges that TensorRT found; None when it did not search for any.
        facts: about the build, JSON values: seconds, workspace, layers that do not run on the accelerator.
    """

    data: bytes
    timing: bytes
    scales: Scales | None
    facts: Mapping[str, Any]


def build_plan(
    prepared: PreparedGraph,
    options: BuildOptions,
    *,
    timing: bytes = b"",
    progress: Progress = ignore_progress,
) -> BuiltPlan:
    """Build a plan on the calling thread; takes minutes.

    `timing` is a timing cache of this TensorRT and GPU, which makes the build faster, or b""; one that does
    not fit is not used.

    Raises:
        EngineError: the plan cannot be built; contains what TensorRT logged.
        ModelError: the INT8 ranges belong to another graph.
    """
    with cuda.Context() as context:
        gpu, system = context.gpu(), available_memory()
        # A discrete GPU needs both: tactics run in its memory, weights are converted in the system's.
        free = system if gpu.integrated else min(system, gpu.free_memory)
        workspace = workspace_for(len(prepared.onnx), free, options.workspace_mb)
        try:
            return _build(prepared, options, workspace, timing, progress)
        except BaseException as problem:
            # Objects of TensorRT that its frames hold must be freed while the context exists.
            traceback.clear_frames(problem.__traceback__)
            raise


def _build(
    prepared: PreparedGraph, options: BuildOptions, workspace: int, timing: bytes, progress: Progress
) -> BuiltPlan:
    """Build in the current context; a function of its own, so that its objects end before the context."""
    began = time.monotonic()
    with ExitStack() as stack:
        build = _Build(prepared, options, stack)
        build.configure(workspace, timing)
        data = build.run(progress)
        facts = {**build.facts, "seconds": round(time.monotonic() - began, 1)}
        return BuiltPlan(data, build.timing(), build.scales(), facts)


class _Build:
    """One build: call `configure`, then `run`, then read the results. `stack` frees GPU memory at the end."""

    def __init__(self, prepared: PreparedGraph, options: BuildOptions, stack: ExitStack) -> None:
        self._release = bindings.version()
        self._prepared = prepared
        self._options = options
        self._stack = stack
        self._log = bindings.Log()
        self._builder = bindings.make_builder(self._log)
        self._dla = self._dla_core()
        self._flags = choose_flags(self._release[0], options, prepared.precision, dla=self._dla is not None)
        self._ranges: RangeSource | None = None
        self._calibrator: object = None
        self.facts: dict[str, Any] = {}
        self._network = self._parse()
        config = bindings.checked(self._builder.create_builder_config(), "make a configuration", self._log)
        self._config: trt.IBuilderConfig = config

    def _dla_core(self) -> int | None:
        """Return the accelerator to build for; None and a warning where TensorRT does not support any."""
        wanted = self._options.dla_core
        if wanted is None:
            return None
        if not bindings.has_dla(self._release):
            _log.warning("dla_unavailable", tensorrt=".".join(map(str, self._release)), runs_on="gpu")
            return None
        if self._builder.num_DLA_cores <= wanted:
            raise EngineError(
                f"there is no DLA core {wanted}: this device has {self._builder.num_DLA_cores}; "
                "remove dla_core to run on the GPU"
            )
        return wanted

    def _parse(self) -> trt.INetworkDefinition:
        """Return the network as TensorRT reads it; EngineError lists what it does not accept."""
        import tensorrt as trt

        flags = 0
        for name in self._flags.network:
            flags |= 1 << int(getattr(trt.NetworkDefinitionCreationFlag, name))
        network = bindings.checked(self._builder.create_network(flags), "make a network", self._log)
        self._parser = trt.OnnxParser(network, self._log.logger)  # it owns the weights
        if not self._parser.parse(self._prepared.onnx):
            errors = [str(self._parser.get_error(index)) for index in range(self._parser.num_errors)]
            raise EngineError(
                f"TensorRT {trt.__version__} does not take {self._prepared.name}: "
                + "; ".join([*errors, *self._log.take()])
            )
        return network

    def configure(self, workspace: int, timing: bytes) -> None:
        """Set everything but the progress callback; `workspace` in bytes."""
        import tensorrt as trt

        config = self._config
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
        self.facts["workspace_bytes"] = workspace
        for name in self._flags.builder:
            config.set_flag(getattr(trt.BuilderFlag, name))
        for name in self._flags.cleared:
            config.clear_flag(getattr(trt.BuilderFlag, name))
        for batch in profile_batches(self._prepared, self._options):
            # The accelerator supports no dynamic sizes; smaller batches are filled up.
            fixed = self._dla is not None or self._prepared.batch is not None
            config.add_optimization_profile(self._profile(batch if fixed else 1, batch))
        if self._dla is not None:
            config.default_device_type = trt.DeviceType.DLA
            config.DLA_core = self._dla
            self._note_fallback()
        if self._flags.calibrator:
            self._calibrate()
        self._set_timing(timing)

    def _profile(self, least: int, most: int) -> trt.IOptimizationProfile:
        """Return a profile of `least` to `most` pictures, tuned for `most`."""
        profile = self._builder.create_optimization_profile()
        name, shape = self._prepared.pictures
        profile.set_shape(name, (least, *shape), (most, *shape), (most, *shape))
        return profile

    def _calibrate(self) -> None:
        """Set a calibrator and the calibration profile of its batch."""
        assert self._options.scales is not None  # see `BuildFlags.calibrator`
        source = RangeSource(self._prepared, self._options.scales, release=self._release)
        self._ranges = self._stack.enter_context(source)
        self._calibrator = make_calibrator(source)
        config: Any = self._config  # neither of the two exists from TensorRT 11 on
        config.int8_calibrator = self._calibrator
        profile = self._profile(source.batch, source.batch)
        bindings.checked(config.set_calibration_profile(profile), "take the calibration profile", self._log)

    def _note_fallback(self) -> None:
        """Record the layers that the accelerator does not support."""
        layers = [self._network.get_layer(index) for index in range(self._network.num_layers)]
        gpu = [layer.name for layer in layers if not self._config.can_run_on_DLA(layer)]
        self.facts["dla"] = {"core": self._dla, "layers": len(layers), "on_gpu": gpu}
        _log.info("dla", core=self._dla, layers=len(layers), on_gpu=len(gpu), names=gpu[:10])

    def _set_timing(self, data: bytes) -> None:
        """Set the timing cache; an empty one where TensorRT refuses it."""
        for content in (data, b"") if data else (b"",):
            cache = self._config.create_timing_cache(content)
            if cache is not None and self._config.set_timing_cache(cache, False):
                return
            _log.info("timing_cache_refused", bytes=len(content), reasons=self._log.take())

    def run(self, progress: Progress) -> bytes:
        """Build and return the plan; EngineError where TensorRT or the calibration failed."""
        what = f"build {self._prepared.name} in {self._options.precision.upper()}"
        _log.info("engine_build", model=self._prepared.name, precision=self._options.precision)
        with watched(self._config, progress, lambda: self._calibration_error() is not None) as watch:
            plan = self._builder.build_serialized_network(self._network, self._config)
        if (error := watch.error or self._calibration_error()) is not None:
            raise error
        return bytes(bindings.checked(plan, what, self._log))

    def _calibration_error(self) -> BaseException | None:
        return None if self._ranges is None else self._ranges.error

    def timing(self) -> bytes:
        """Return the timing cache after the build; empty when TensorRT has none."""
        cache = self._config.get_timing_cache()
        return bytes(cache.serialize()) if cache is not None else b""

    def scales(self) -> Scales | None:
        """Return the ranges that TensorRT found; errors as in `RangeSource.check`."""
        return self._ranges.check() if self._ranges is not None else None
