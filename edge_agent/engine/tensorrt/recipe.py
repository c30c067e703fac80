"""How a plan is built: options, TensorRT's flags for a precision, and the order that identifies the plan.

Only the choice of a precision depends on TensorRT's version, and only `choose_flags` implements it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from edge_agent.core.errors import ConfigError, EngineError
from edge_agent.engine.graph.prepared import PreparedGraph
from edge_agent.engine.plans.records import Machine, Order, Recipe, memory_class_gib
from edge_agent.engine.precision.scales import Scales
from edge_agent.engine.tensorrt import bindings, cuda
from edge_agent.engine.tensorrt.calibrator import Calibration

_BUILDER_VERSION = 1
"""Part of a plan's key: raise it when the same options give another plan."""

_OLDEST, _TYPES, _TYPED_ONLY = 8, 10, 11
"""Major versions: the first supported, the first with strongly typed networks, the first with only these."""
_USUAL_BATCHES = (1, 16, 64)
"""From NVIDIA's model card of ReIdentificationNet: the batches that it gives latencies for."""


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """Options of a build.

    Attributes:
        batches: largest batch of each optimisation profile, ascending.
        dla_core: build for this deep-learning accelerator, where TensorRT supports it; None: for the GPU.
        workspace_mb: memory limit for tactics, in MiB; None: half of what is free.
        scales: INT8 ranges, or how TensorRT finds them; None where the graph has quantise/dequantise nodes,
            and for other precisions.
    """

    precision: Literal["fp32", "fp16", "int8"] = "fp16"
    batches: tuple[int, ...] = _USUAL_BATCHES
    dla_core: int | None = None
    workspace_mb: int | None = None
    scales: Scales | Calibration | None = None

    def __post_init__(self) -> None:
        if not self.batches or list(self.batches) != sorted({*self.batches}) or self.batches[0] < 1:
            raise ConfigError(f"batches of a plan must be ascending and at least 1, got {self.batches}")


@dataclass(frozen=True, slots=True)
class BuildFlags:
    """What a version of TensorRT needs for a precision.

    Names in `NetworkDefinitionCreationFlag`, names in `BuilderFlag` to set and to clear, and whether a
    calibrator gives the ranges.
    """

    network: tuple[str, ...]
    builder: tuple[str, ...]
    cleared: tuple[str, ...]
    calibrator: bool


def choose_flags(major: int, options: BuildOptions, graph: str, *, dla: bool = False) -> BuildFlags:
    """Return the flags for a build with TensorRT `major`, from a graph in the precision `graph`.

    Raises:
        EngineError: this combination cannot be built; the message names one that can.
    """
    if major < _OLDEST:
        raise EngineError(f"TensorRT {major} is too old: 8.5 or newer is needed (JetPack 5.1 or newer)")
    _check(major, options, graph, dla=dla)
    flags: tuple[str, ...] = ("GPU_FALLBACK",) if dla else ()
    # TF32 rounds to a mantissa of ten bits, which is not FP32.
    cleared = ("TF32",) if options.precision == "fp32" else ()
    if major >= _TYPED_ONLY:
        return BuildFlags((), flags, cleared, calibrator=False)
    if graph == "fp16" and major >= _TYPES and not dla:
        # With the FP16 flag instead, TensorRT would round what the graph keeps in FP32 to avoid an overflow.
        return BuildFlags(("STRONGLY_TYPED",), flags, cleared, calibrator=False)
    flags += {"fp32": (), "fp16": ("FP16",), "int8": ("FP16", "INT8")}[options.precision]
    network = () if major >= _TYPES else ("EXPLICIT_BATCH",)
    return BuildFlags(network, flags, cleared, calibrator=options.scales is not None)


def _check(major: int, options: BuildOptions, graph: str, *, dla: bool) -> None:
    """Refuse combinations that cannot be built, or that would give another precision than the wanted one."""
    wanted, typed, ranges = options.precision, major >= _TYPED_ONLY, options.scales is not None
    if ranges and wanted != "int8":
        raise EngineError(f"INT8 ranges were given for an {wanted.upper()} engine; ask for int8")
    if ranges and graph != "fp32":
        raise EngineError(
            f"separate INT8 ranges need the graph in FP32, this one computes in {graph.upper()}"
        )
    if ranges and typed:
        raise EngineError(
            f"TensorRT {major} takes no separate INT8 ranges; give it the graph with quantise/dequantise "
            "nodes, which `edge-agent calibrate` makes"
        )
    if wanted == "int8" and graph != "int8" and not ranges:
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
            f"TensorRT {major} computes in the precision of the graph, which is FP32; give it the graph in "
            "FP16, which `edge-agent calibrate` makes"
        )
    if dla and wanted == "fp32":
        raise EngineError("the DLA computes in FP16 and INT8 only; ask for one of them, or for no dla_core")
    if dla and graph == "int8" and not typed:
        raise EngineError(
            "before TensorRT 11, the DLA takes separate INT8 ranges only, not quantise/dequantise nodes; "
            "give the ranges, or ask for no dla_core"
        )
    if dla and isinstance(options.scales, Calibration) and options.scales.algorithm != "EntropyCalibration2":
        raise EngineError("the DLA takes ranges of EntropyCalibration2 only")


def this_machine() -> Machine:
    """Return what plans of this device run on; EngineError where TensorRT, CUDA or a GPU is missing."""
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
    """Return the order that identifies a plan; EngineError as in `choose_flags`."""
    release = bindings.version_numbers(machine.tensorrt)
    dla = options.dla_core is not None and bindings.has_dla(release)
    flags = choose_flags(release[0], options, prepared.precision, dla=dla)
    recipe = Recipe(
        graph_sha256=hashlib.sha256(prepared.onnx).hexdigest(),
        precision=options.precision,
        profiles=profile_batches(prepared, options),
        scales=options.scales.digest if options.scales is not None else None,
        keep=(),  # layers that INT8 must not round have no range, or no quantise/dequantise nodes
        dla_core=options.dla_core if dla else None,
        gpu_fallback="GPU_FALLBACK" in flags.builder,
        flags=flags.builder,
        workspace_mb=options.workspace_mb,
        builder=_BUILDER_VERSION,
    )
    return Order(recipe, machine)


def batches_for(largest: int) -> tuple[int, ...]:
    """Return the batches of the profiles for engines of up to `largest` pictures: 1, 16, 64 and `largest`."""
    return (*(batch for batch in _USUAL_BATCHES if batch < largest), largest)


def profile_batches(prepared: PreparedGraph, options: BuildOptions) -> tuple[int, ...]:
    """Return the batches of the profiles: those of the options, or the fixed batch of the network."""
    return options.batches if prepared.batch is None else (prepared.batch,)
