"""Builds TensorRT plans: a prepared graph in FP32, FP16 or INT8, for the GPU that is here.

Only how a precision is chosen depends on TensorRT's version, and only `choose` knows how. Building takes
minutes and gigabytes, so memory and disk are looked at first.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import structlog

from edge_agent.core.errors import ConfigError, EngineError
from edge_agent.engine.graph.prepared import PreparedGraph
from edge_agent.engine.plans.records import Machine, Order, Recipe, StoredPlan, memory_class_gib
from edge_agent.engine.plans.store import PlanStore
from edge_agent.engine.precision.scales import Scales
from edge_agent.engine.tensorrt import bindings, cuda
from edge_agent.engine.tensorrt.calibrator import Calibration, RangeSource, make_calibrator

if TYPE_CHECKING:
    import tensorrt as trt

    from edge_agent.engine.tensorrt.engine import SuppliedPlan

__all__ = [
    "BuildOptions",
    "BuiltPlan",
    "Choice",
    "Plan",
    "PlanBuilder",
    "Progress",
    "available_memory",
    "batches_for",
    "build_plan",
    "check_disk",
    "choose",
    "order_for",
    "this_machine",
    "workspace_for",
]

_log = structlog.get_logger(__name__)

BUILDER_VERSION = 1
"""Of this file: raise it when the same options give another plan."""

_OLDEST, _TYPES, _TYPED_ONLY = 8, 10, 11
"""Major versions: the first that is taken, that takes types from the graph, and that does nothing else."""
_USUAL_BATCHES = (1, 16, 64)
"""Of NVIDIA's model card of ReIdentificationNet: those whose latencies it gives."""
_MIB = 1 << 20
_MEMORY_FLOOR = 768 * _MIB
_MEMORY_PER_GRAPH_BYTE = 4
"""Free memory without which no build is begun: the libraries and kernels that TensorRT loads, and the weights
as parsed, as converted, in the plan and in its serialised copy. Rules of thumb, not measured on a device."""
_DISK_FLOOR = 64 * _MIB
_DISK_PER_GRAPH_BYTE = 3
"""Free disk likewise: the plan, the one that it replaces, and a timing cache."""
_SMALLEST_WORKSPACE = 16 * _MIB
_TICK_S = 5.0


class Progress(Protocol):
    """Told how far a build is. An exception out of it ends the build and comes out of `build_plan`."""

    def __call__(self, phase: str, done: int, total: int) -> None:
        """Called from several threads.

        Args:
            phase: what TensorRT does.
            done: steps; seconds where TensorRT does not count steps (before version 10).
            total: steps in all; 0 when unknown.
        """


def _quiet(phase: str, done: int, total: int) -> None:
    pass


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How a plan is to be built.

    Attributes:
        precision: of the plan.
        batches: largest batch of each optimisation profile, ascending.
        dla_core: build for this deep-learning accelerator, where TensorRT knows it; None: for the GPU.
        workspace_mb: most memory for tactics, in MiB; None: half of what is free.
        scales: INT8 with these ranges, or with those that TensorRT finds; None where the graph carries
            quantise/dequantise nodes, and for other precisions.
        keep: nodes of the graph that stay in FP16 when ranges come from `scales`.
    """

    precision: Literal["fp32", "fp16", "int8"] = "fp16"
    batches: tuple[int, ...] = _USUAL_BATCHES
    dla_core: int | None = None
    workspace_mb: int | None = None
    scales: Scales | Calibration | None = None
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.batches or list(self.batches) != sorted({*self.batches}) or self.batches[0] < 1:
            raise ConfigError(f"batches of a plan must be ascending and at least 1, got {self.batches}")


@dataclass(frozen=True, slots=True)
class Choice:
    """What a version of TensorRT needs to be told for a precision.

    Attributes:
        network_flags: names in `NetworkDefinitionCreationFlag`.
        builder_flags: names in `BuilderFlag` to set.
        cleared_flags: names in `BuilderFlag` to clear.
        calibrator: whether a calibrator gives the ranges.
    """

    network_flags: tuple[str, ...]
    builder_flags: tuple[str, ...]
    cleared_flags: tuple[str, ...]
    calibrator: bool


def choose(major: int, options: BuildOptions, graph: str, *, dla: bool = False) -> Choice:
    """What to tell TensorRT.

    Args:
        major: its version, 8 and up.
        options: what is wanted.
        graph: what the prepared graph computes in, see `PreparedGraph.precision`.
        dla: whether the plan is for an accelerator.

    Raises:
        EngineError: this cannot be had; the message says what can.
    """
    if major < _OLDEST:
        raise EngineError(f"TensorRT {major} is too old: 8.5 or newer is needed (JetPack 5.1 or newer)")
    implicit = options.scales is not None
    _check_wish(major, options, graph, implicit=implicit, dla=dla)
    flags: tuple[str, ...] = ("GPU_FALLBACK",) if dla else ()
    # TF32 has ten bits of mantissa: an engine that is called FP32 does not round to them.
    cleared = ("TF32",) if options.precision == "fp32" else ()
    if major >= _TYPED_ONLY:
        return Choice((), flags, cleared, calibrator=False)
    if graph == "fp16" and major >= _TYPES and not dla:
        # With a flag instead, what the graph keeps in FP32 since it overflows would be FP16 all the same.
        return Choice(("STRONGLY_TYPED",), flags, cleared, calibrator=False)
    flags += {"fp32": (), "fp16": ("FP16",), "int8": ("FP16", "INT8")}[options.precision]
    if options.keep:
        # An accelerator may have no FP16 form of a layer; on the GPU every layer has one.
        flags += ("PREFER_PRECISION_CONSTRAINTS",) if dla else ("OBEY_PRECISION_CONSTRAINTS",)
    network = () if major >= _TYPES else ("EXPLICIT_BATCH",)
    return Choice(network, flags, cleared, calibrator=implicit)


def _check_wish(major: int, options: BuildOptions, graph: str, *, implicit: bool, dla: bool) -> None:
    """Refuse combinations that cannot be built, or that would give something else than what was asked for."""
    wanted, typed = options.precision, major >= _TYPED_ONLY
    if implicit and wanted != "int8":
        raise EngineError(f"INT8 ranges were given for an {wanted.upper()} engine; ask for int8")
    if options.keep and not implicit:
        raise EngineError(
            "layers can be kept in FP16 only where INT8 ranges are given beside the graph; in a graph with "
            "quantise/dequantise nodes, leave these out around such layers"
        )
    if implicit and graph != "fp32":
        raise EngineError(
            f"INT8 ranges beside the graph need it in FP32, this one computes in {graph.upper()}"
        )
    if implicit and typed:
        raise EngineError(
            f"TensorRT {major} takes no INT8 ranges beside the graph; give it the graph with "
            "quantise/dequantise nodes, which `edge-agent calibrate` makes"
        )
    if wanted == "int8" and graph != "int8" and not implicit:
        raise EngineError(
            "an INT8 engine needs INT8 ranges, or a graph with quantise/dequantise nodes: "
            "`edge-agent calibrate` makes both"
        )
    if wanted != "int8" and graph == "int8":
        raise EngineError(f"the graph has quantise/dequantise nodes: it gives INT8, not {wanted.upper()}")
    if wanted == "fp32" and graph == "fp16":
        raise EngineError("the graph computes in FP16: take the one as exported for an FP32 engine")
    if wanted == "fp16" and graph == "fp32" and typed:
        raise EngineError(
            f"TensorRT {major} computes in what the graph says, and this one says FP32; give it the graph in "
            "FP16, which `edge-agent calibrate` makes"
        )
    if dla:
        _check_dla(options, graph, typed=typed)


def _check_dla(options: BuildOptions, graph: str, *, typed: bool) -> None:
    if options.precision == "fp32":
        raise EngineError("the DLA computes in FP16 and INT8 only; ask for one of them, or for no dla_core")
    if graph == "int8" and not typed:
        raise EngineError(
            "before TensorRT 11, the DLA takes INT8 ranges beside the graph only, not "
            "quantise/dequantise nodes; give the ranges, or ask for no dla_core"
        )
    if isinstance(options.scales, Calibration) and options.scales.algorithm != "EntropyCalibration2":
        raise EngineError("the DLA takes ranges of EntropyCalibration2 only")


@dataclass(frozen=True, slots=True)
class BuiltPlan:
    """What a build gave.

    Attributes:
        data: the plan.
        timing: TensorRT's timing cache after it, empty when there is none.
        scales: ranges that TensorRT found, None when it was not asked to.
        facts: what is worth noting, JSON values: seconds, workspace, what runs elsewhere than asked.
    """

    data: bytes
    timing: bytes
    scales: Scales | None
    facts: Mapping[str, Any]


def this_machine() -> Machine:
    """What plans that are built here run on.

    Raises:
        EngineError: TensorRT, CUDA or a GPU is missing.
    """
    bindings.require_bindings()
    import tensorrt as trt

    with cuda.Context() as context:
        gpu = context.gpu()
    return Machine(
        tensorrt=str(trt.__version__),
        driver=f"{gpu.driver_version // 1000}.{gpu.driver_version % 1000 // 10}",
        gpu=gpu.name,
        compute_capability=".".join(map(str, gpu.compute_capability)),
        multiprocessors=gpu.multiprocessors,
        memory_gib=memory_class_gib(gpu.total_memory),
    )


def order_for(prepared: PreparedGraph, options: BuildOptions, machine: Machine) -> Order:
    """The order that names a plan; EngineError where it cannot be built, as in `choose`."""
    release = tuple(int(part) for part in machine.tensorrt.split(".") if part.isdigit())
    dla = options.dla_core is not None and bindings.has_dla(release)
    choice = choose(release[0], options, prepared.precision, dla=dla)
    recipe = Recipe(
        graph_sha256=hashlib.sha256(prepared.onnx).hexdigest(),
        precision=options.precision,
        profiles=_batches(prepared, options),
        scales=options.scales.digest if options.scales is not None else None,
        keep=tuple(sorted(options.keep)),
        dla_core=options.dla_core if dla else None,
        gpu_fallback="GPU_FALLBACK" in choice.builder_flags,
        flags=choice.builder_flags,
        workspace_mb=options.workspace_mb,
        builder=BUILDER_VERSION,
    )
    return Order(recipe, machine)


def batches_for(largest: int) -> tuple[int, ...]:
    """Batches of the profiles for engines that take up to `largest` pictures: 1, 16, 64 and that."""
    return (*(batch for batch in _USUAL_BATCHES if batch < largest), largest)


def _batches(prepared: PreparedGraph, options: BuildOptions) -> tuple[int, ...]:
    """Profiles that the network can take: all, unless its own batch is fixed."""
    return options.batches if prepared.batch is None else (prepared.batch,)


# --- memory and disk --------------------------------------------------------------------------


def available_memory(root: Path = Path("/")) -> int:
    """Bytes of system memory that programs can still get: MemAvailable of /proc/meminfo.

    Raises:
        EngineError: /proc/meminfo does not say.
    """
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
    """Bytes that TensorRT may use for tactics: what is wanted, never more than is free beside the rest.

    Args:
        graph_bytes: size of the prepared ONNX.
        free: bytes of memory that are free, on a Jetson of the system, elsewhere of the GPU.
        wanted_mb: limit in MiB, None for half of what is free.

    Raises:
        EngineError: too little is free to begin.
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
    """Raise unless a plan will fit on the disk of `folder`, which need not exist yet.

    Raises:
        EngineError: it will not.
    """
    needed = _DISK_FLOOR + _DISK_PER_GRAPH_BYTE * graph_bytes
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise EngineError(
            f"an engine needs about {needed // _MIB} MiB on the disk of {folder}, {free // _MIB} MiB are "
            "free; make room (edge-agent engines prune removes plans that nothing needs)"
        )


# --- building ---------------------------------------------------------------------------------


def build_plan(
    prepared: PreparedGraph,
    options: BuildOptions,
    *,
    timing: bytes = b"",
    progress: Progress = _quiet,
    root: Path = Path("/"),
) -> BuiltPlan:
    """Build a plan for the GPU that is here, on the calling thread; takes minutes.

    Args:
        prepared: the network.
        options: how.
        timing: a timing cache of this TensorRT and GPU, which makes it faster, or nothing. One that does not
            fit is not used.
        progress: told how far it is.
        root: where `proc` is.

    Raises:
        EngineError: it cannot be built; carries what TensorRT logged.
        ModelError: the INT8 ranges belong to another graph.
    """
    with cuda.Context() as context:
        gpu, system = context.gpu(), available_memory(root)
        # A discrete GPU needs both: tactics run in its memory, weights are converted in the system's.
        free = system if gpu.integrated else min(system, gpu.free_memory)
        workspace = workspace_for(len(prepared.onnx), free, options.workspace_mb)
        try:
            return _build(prepared, options, workspace, timing, progress)
        except BaseException as problem:
            # What the frames of the error hold must end while there is a context, not with the error.
            traceback.clear_frames(problem.__traceback__)
            raise


def _build(
    prepared: PreparedGraph, options: BuildOptions, workspace: int, timing: bytes, progress: Progress
) -> BuiltPlan:
    """Build with a workspace in bytes, in the CUDA context of this thread; the rest as in `build_plan`."""
    began = time.monotonic()
    with ExitStack() as stack:
        build = _Build(prepared, options, stack)
        build.configure(workspace, timing)
        data = build.run(progress)
        facts = {**build.facts, "seconds": round(time.monotonic() - began, 1)}
        return BuiltPlan(data, build.timing(), build.scales(), facts)


class _Build:
    """One build: configured, run, then asked for what came of it.

    Args:
        prepared: the network.
        options: how to build it.
        stack: gives memory of the GPU back at the end.

    Attributes:
        facts: what to note about it.
    """

    def __init__(self, prepared: PreparedGraph, options: BuildOptions, stack: ExitStack) -> None:
        release = bindings.version()
        self._prepared = prepared
        self._options = options
        self._log = log = bindings.Log()
        self._builder = builder = bindings.make_builder(log)
        self._stack = stack
        self._dla = self._dla_core(release)
        self._choice = choose(release[0], options, prepared.precision, dla=self._dla is not None)
        self._release = release
        self._ranges: RangeSource | None = None
        self._calibrator: object = None
        self.facts: dict[str, Any] = {}
        self._network = self._parse()
        config = bindings.checked(builder.create_builder_config(), "make a configuration", log)
        self._config: trt.IBuilderConfig = config

    def _dla_core(self, release: tuple[int, ...]) -> int | None:
        """The accelerator to build for; None, with a word in the log, where TensorRT knows none."""
        wanted = self._options.dla_core
        if wanted is None:
            return None
        if not bindings.has_dla(release):
            _log.warning("dla_unavailable", tensorrt=".".join(map(str, release)), runs_on="gpu")
            return None
        if self._builder.num_DLA_cores <= wanted:
            raise EngineError(
                f"there is no DLA core {wanted}: this device has {self._builder.num_DLA_cores}; "
                "take dla_core away to run on the GPU"
            )
        return wanted

    def _parse(self) -> trt.INetworkDefinition:
        """The network as TensorRT understands it.

        Raises:
            EngineError: it does not; lists why.
        """
        import tensorrt as trt

        flags = 0
        for name in self._choice.network_flags:
            flags |= 1 << int(getattr(trt.NetworkDefinitionCreationFlag, name))
        network = bindings.checked(self._builder.create_network(flags), "make a network", self._log)
        self._parser = trt.OnnxParser(network, self._log.logger)  # its weights live as long as it does
        if not self._parser.parse(self._prepared.onnx):
            errors = [str(self._parser.get_error(index)) for index in range(self._parser.num_errors)]
            raise EngineError(
                f"TensorRT {trt.__version__} does not take {self._prepared.name}: "
                + "; ".join([*errors, *self._log.take()])
            )
        return network

    def configure(self, workspace: int, timing: bytes) -> None:
        """Say how to build.

        Args:
            workspace: bytes.
            timing: as in `build_plan`.
        """
        import tensorrt as trt

        config = self._config
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
        self.facts["workspace_bytes"] = workspace
        for name in self._choice.builder_flags:
            config.set_flag(getattr(trt.BuilderFlag, name))
        for name in self._choice.cleared_flags:
            config.clear_flag(getattr(trt.BuilderFlag, name))
        for batch in _batches(self._prepared, self._options):
            # The accelerator takes no dynamic sizes; batches are filled up then.
            fixed = self._dla is not None or self._prepared.batch is not None
            config.add_optimization_profile(self._profile(batch if fixed else 1, batch, batch))
        if self._dla is not None:
            config.default_device_type = trt.DeviceType.DLA
            config.DLA_core = self._dla
            self._note_fallback()
        if self._choice.calibrator:
            self._calibrate()
        if self._options.keep:
            keep_layers(self._network, self._options.keep)
        self._set_timing(timing)

    def _profile(self, least: int, best: int, most: int) -> trt.IOptimizationProfile:
        profile = self._builder.create_optimization_profile()
        shape = (*self._prepared.input_size, 3)
        name = "crops" if self._prepared.dimension else "frames"
        profile.set_shape(name, (least, *shape), (best, *shape), (most, *shape))
        return profile

    def _calibrate(self) -> None:
        """Give the ranges by a calibrator, whose batch is that of the calibration profile."""
        assert self._options.scales is not None  # `choose` says that there is a calibrator
        source = RangeSource(self._prepared, self._options.scales, release=self._release)
        self._ranges = self._stack.enter_context(source)
        self._calibrator = make_calibrator(source)
        config: Any = self._config  # neither of the two is there from TensorRT 11 on
        config.int8_calibrator = self._calibrator
        profile = self._profile(source.batch, source.batch, source.batch)
        bindings.checked(config.set_calibration_profile(profile), "take the calibration profile", self._log)

    def _note_fallback(self) -> None:
        """Say which layers the accelerator does not take."""
        layers = [self._network.get_layer(index) for index in range(self._network.num_layers)]
        gpu = [layer.name for layer in layers if not self._config.can_run_on_DLA(layer)]
        self.facts["dla"] = {"core": self._dla, "layers": len(layers), "on_gpu": gpu}
        _log.info("dla", core=self._dla, layers=len(layers), on_gpu=len(gpu), names=gpu[:10])

    def _set_timing(self, data: bytes) -> None:
        """Take a timing cache; begin an empty one where TensorRT refuses it."""
        for content in (data, b"") if data else (b"",):
            cache = self._config.create_timing_cache(content)
            if cache is not None and self._config.set_timing_cache(cache, False):
                return
            _log.info("timing_cache_refused", bytes=len(content), reasons=self._log.take())

    def run(self, progress: Progress) -> bytes:
        """Build; the plan.

        Raises:
            EngineError: TensorRT could not, or calibration went wrong.
        """
        what = f"build {self._prepared.name} in {self._options.precision.upper()}"
        _log.info("engine_build", model=self._prepared.name, precision=self._options.precision)
        with _watched(self._config, progress, self._failed) as watch:
            plan = self._builder.build_serialized_network(self._network, self._config)
        if watch.error is not None:
            raise watch.error
        if self._ranges is not None and self._ranges.error is not None:
            raise self._ranges.error
        return bytes(bindings.checked(plan, what, self._log))

    def _failed(self) -> bool:
        """Whether going on is of no use."""
        return self._ranges is not None and self._ranges.error is not None

    def timing(self) -> bytes:
        """The timing cache after the build, empty when TensorRT kept none."""
        cache = self._config.get_timing_cache()
        return bytes(cache.serialize()) if cache is not None else b""

    def scales(self) -> Scales | None:
        """Ranges that TensorRT found; errors as in `RangeSource.check`."""
        return self._ranges.check() if self._ranges is not None else None


def keep_layers(network: trt.INetworkDefinition, names: Collection[str]) -> None:
    """Hold layers, named as the graph's nodes, in FP16.

    Raises:
        EngineError: the network has no such layer, since the graph has no such node.
    """
    import tensorrt as trt

    missing = set(names)
    for index in range(network.num_layers):
        layer: Any = network.get_layer(index)  # from TensorRT 11 on without a precision
        if layer.name not in names:
            continue
        missing.discard(layer.name)
        layer.precision = trt.DataType.HALF
    if missing:
        raise EngineError(f"no layer is called {', '.join(sorted(missing))}: it cannot be kept in FP16")


class _Watch:
    """Passes on how far a build is, and remembers what went wrong in telling.

    Attributes:
        error: the first exception out of the callback.
    """

    def __init__(self, progress: Progress, failed: Callable[[], bool]) -> None:
        self._progress = progress
        self._failed = failed
        self.error: BaseException | None = None

    def tell(self, phase: str, done: int, total: int) -> bool:
        """Whether the build shall go on. Nothing is raised: the callers are TensorRT and a thread."""
        if self.error is None:
            try:
                self._progress(phase, done, total)
            except BaseException as problem:  # noqa: BLE001 - raised after the build
                self.error = problem
        return self.error is None and not self._failed()


@contextmanager
def _watched(config: trt.IBuilderConfig, progress: Progress, failed: Callable[[], bool]) -> Iterator[_Watch]:
    """Tell how far a build is while the block runs: by steps where TensorRT counts them, else by seconds."""
    import tensorrt as trt

    watch = _Watch(progress, failed)
    base: Any = getattr(trt, "IProgressMonitor", None)  # from TensorRT 10 on
    if base is not None:
        monitor = _make_monitor(watch, base)
        told: Any = config
        told.progress_monitor = monitor
        yield watch
        del monitor  # TensorRT does not hold it, so this name had to
        return
    ended = threading.Event()
    ticker = threading.Thread(target=_tick, args=(watch, ended), name="engine build", daemon=True)
    ticker.start()
    try:
        yield watch
    finally:
        ended.set()
        ticker.join()


def _tick(watch: _Watch, ended: threading.Event) -> None:
    began = time.monotonic()
    while not ended.wait(_TICK_S):
        watch.tell("building", round(time.monotonic() - began), 0)


def _make_monitor(watch: _Watch, base: Any) -> object:  # noqa: ANN401 - a class of TensorRT
    class Monitor(base):  # type: ignore[misc]  # the class exists only where TensorRT has it
        def __init__(self) -> None:
            base.__init__(self)  # without it, pybind11 calls into nothing
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # noqa: ARG002
            self._steps[phase_name] = num_steps
            watch.tell(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return watch.tell(phase_name, step + 1, self._steps.get(phase_name, 0))

        def phase_finish(self, phase_name: str) -> None:
            steps = self._steps.pop(phase_name, 0)
            watch.tell(phase_name, steps, steps)

    return Monitor()


# --- supply -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan for `TensorRTEngine`; see `edge_agent.engine.tensorrt.engine.SuppliedPlan`.

    Attributes:
        data: what TensorRT deserialises.
        batches: largest batch of each optimisation profile, ascending.
        precision: `fp32`, `fp16` or `int8`.
        key: its name in the store.
        dla_core: accelerator that it runs on; None: the GPU.
        facts: what was noted when it was built.
    """

    data: bytes
    batches: tuple[int, ...]
    precision: str
    key: str
    dla_core: int | None
    facts: Mapping[str, Any]


def _nothing_known() -> Mapping[str, Any]:
    return {}


class PlanBuilder:
    """Supplies an engine with its plan: from the store, else built; the `PlanSupply` of `engine.tensorrt`.

    Args:
        store: where plans are kept.
        prepared: the network.
        options: how plans are built.
        progress: as in `build_plan`.
        conditions: asked at the end of a build for what is worth noting of the device: power mode, clocks.

    Attributes:
        scales: ranges that TensorRT found in a build of this object; None when it was not asked to.
    """

    def __init__(
        self,
        store: PlanStore,
        prepared: PreparedGraph,
        options: BuildOptions,
        *,
        progress: Progress = _quiet,
        conditions: Callable[[], Mapping[str, Any]] = _nothing_known,
    ) -> None:
        self._store = store
        self._prepared = prepared
        self._options = options
        self._progress = progress
        self._conditions = conditions
        self._rebuilt = False
        self.scales: Scales | None = None

    def order(self) -> Order:
        """What names the plan on this machine; errors as in `this_machine` and `choose`."""
        return order_for(self._prepared, self._options, this_machine())

    def plan(self) -> Plan:
        """The plan that the store has, else a new one, which takes minutes.

        Raises:
            EngineError: it cannot be built.
            ModelError: the INT8 ranges belong to another graph.
            StorageError: it cannot be kept.
        """
        order = self.order()
        return self._supplied(order, self._store.find(order) or self._build(order))

    def rejected(self, plan: SuppliedPlan, why: str) -> Plan:
        """A new plan in place of one that cannot be used, which goes to the quarantine.

        Raises:
            EngineError: it was a rebuilt one already, or as in `plan`.
        """
        self._store.quarantine(plan.key, why)
        if self._rebuilt:
            raise EngineError(
                f"the engine was built again and cannot be used either: {why}. The plan is in "
                f"{self._store.folder / 'quarantine'}"
            )
        self._rebuilt = True
        return self.plan()

    def _build(self, order: Order) -> StoredPlan:
        check_disk(self._store.folder, len(self._prepared.onnx))
        with self._store.building(lambda: self._progress("waiting for another build", 0, 0)):
            if (found := self._store.find(order)) is not None:
                return found  # built by the one that was waited for
            built = build_plan(
                self._prepared,
                self._options,
                timing=self._store.read_timing(order.machine),
                progress=self._progress,
            )
            self.scales = built.scales
            if built.timing:
                self._store.write_timing(order.machine, built.timing)
            facts = {"model": self._prepared.name, **built.facts, **self._conditions()}
            stored = self._store.put(order, built.data, facts)
        _log.info(
            "engine_built", model=self._prepared.name, key=order.key, bytes=len(built.data), **built.facts
        )
        return stored

    def _supplied(self, order: Order, stored: StoredPlan) -> Plan:
        return Plan(
            data=stored.data,
            batches=order.recipe.profiles,
            precision=order.recipe.precision,
            key=stored.key,
            dla_core=order.recipe.dla_core,
            facts=stored.facts,
        )
