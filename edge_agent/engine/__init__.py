"""Networks run here: the prepared graph and the backends that execute it.

`prepare_reid` and `prepare_detector` make the graph, `open_engine` chooses what runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from edge_agent.core.errors import ConfigError, EngineError
from edge_agent.engine.base import Engine
from edge_agent.engine.graph.prepared import PreparedGraph
from edge_agent.engine.precision.scales import Scales

if TYPE_CHECKING:
    from edge_agent.engine.simulated import SimulatedEngine
    from edge_agent.engine.tensorrt.build import PlanBuilder, Progress

__all__ = [
    "BACKENDS",
    "Engine",
    "PreparedGraph",
    "TensorRTOptions",
    "choose_backend",
    "is_simulated",
    "open_engine",
    "open_simulated",
    "plan_builder",
    "takes_ranges_beside",
]

BACKENDS = ("auto", "onnxruntime", "tensorrt")
"""What a user may ask for. `auto` takes TensorRT where it and a GPU are there, else ONNX Runtime.

`simulated:TABLE` is a fourth, by that choice alone: it runs no network, see `open_simulated`.
"""

_SIMULATED = "simulated:"


def choose_backend(wanted: str) -> str:
    """`onnxruntime` or `tensorrt` for what the user asked for; a named backend is taken at its word.

    Raises:
        ConfigError: there is no such backend.
    """
    if wanted not in BACKENDS:
        raise ConfigError(f"no inference backend {wanted!r}; choose one of {', '.join(BACKENDS)}")
    if wanted != "auto":
        return wanted
    from edge_agent.engine.tensorrt import bindings, cuda

    try:
        bindings.require_bindings()
        cuda.probe()
    except EngineError:
        return "onnxruntime"
    return "tensorrt"


def is_simulated(backend: str) -> bool:
    """Whether this backend only takes a device's time."""
    return backend.startswith(_SIMULATED)


def open_simulated(backend: str, *, max_batch: int) -> SimulatedEngine:
    """The engine of `simulated:TABLE`, a name or a file of `edge_agent.engine.latency`.

    Raises:
        ConfigError, InputError: there is no such table, or the file is none.
    """
    from edge_agent.engine.latency import latency_table
    from edge_agent.engine.simulated import SimulatedEngine

    return SimulatedEngine(latency_table(backend.removeprefix(_SIMULATED)), max_batch=max_batch)


@dataclass(frozen=True, slots=True)
class TensorRTOptions:
    """How TensorRT runs a network.

    Attributes:
        plans: folder of the plans.
        largest: largest batch that plans are built for.
        scales: INT8 ranges beside an FP32 graph, for what takes no quantise/dequantise nodes.
        zero_copy: `auto`, `on` or `off`.
        cuda_graphs: `auto` or `off`.
        dla_core: accelerator to run on, None for the GPU.
        workspace_mb: limit of a build's workspace.
        progress: told how far a build is: phase, steps done, steps in all.
        conditions: asked after a build for what is worth noting of the device.
    """

    plans: Path
    largest: int = 64
    scales: Scales | None = None
    zero_copy: Literal["auto", "on", "off"] = "auto"
    cuda_graphs: Literal["auto", "off"] = "auto"
    dla_core: int | None = None
    workspace_mb: int | None = None
    progress: Progress | None = None
    conditions: Callable[[], Mapping[str, Any]] | None = None


def open_engine(
    prepared: PreparedGraph,
    *,
    backend: str = "auto",
    max_batch: int = 64,
    threads: int = 0,
    tensorrt: TensorRTOptions | None = None,
) -> Engine:
    """The engine for a prepared graph; nothing is loaded, and no plan built, before it is entered.

    Args:
        prepared: from `edge_agent.engine.graph`; its `precision` is what the engine computes in.
        backend: one of `BACKENDS`.
        max_batch: largest batch, in pictures.
        threads: CPU threads per batch of ONNX Runtime, 0 for one per core.
        tensorrt: for that backend.

    Raises:
        ConfigError: there is no such backend, or TensorRT shall run and has no folder for its plans.
    """
    if choose_backend(backend) == "onnxruntime":
        from edge_agent.engine.onnxruntime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(prepared, max_batch=max_batch, threads=threads)
    if tensorrt is None:
        raise ConfigError(
            f"TensorRT has no folder to keep the plan of {prepared.name} in; name a state folder"
        )
    from edge_agent.engine.tensorrt.engine import TensorRTEngine

    return TensorRTEngine(
        prepared,
        plan_builder(prepared, tensorrt),
        max_batch=max_batch,
        zero_copy=tensorrt.zero_copy,
        cuda_graphs=tensorrt.cuda_graphs,
        dla_core=tensorrt.dla_core,
    )


def plan_builder(prepared: PreparedGraph, options: TensorRTOptions) -> PlanBuilder:
    """What finds or builds the plan of a graph; nothing is done yet."""
    from edge_agent.engine.plans.store import PlanStore
    from edge_agent.engine.tensorrt.build import BuildOptions, PlanBuilder, batches_for

    build = BuildOptions(
        precision=cast("Literal['fp32', 'fp16', 'int8']", prepared.precision),
        batches=batches_for(options.largest),
        dla_core=options.dla_core,
        workspace_mb=options.workspace_mb,
        scales=options.scales,
    )
    # Ranges lie beside a graph that itself computes in FP32.
    graph = prepared if options.scales is None else replace(prepared, precision="fp32")
    return PlanBuilder(
        PlanStore(options.plans),
        graph,
        build,
        progress=options.progress or _quiet,
        conditions=options.conditions or dict,
    )


def _quiet(phase: str, done: int, total: int) -> None:
    """Nobody wants to know how far a build is."""


def takes_ranges_beside(dla_core: int | None) -> bool:
    """Whether INT8 on this device wants ranges beside the graph: the accelerator before TensorRT 11 does."""
    from edge_agent.engine.tensorrt import bindings

    return dla_core is not None and bindings.has_dla(bindings.version()) and bindings.major() < 11
