"""Inference engines: a prepared graph, in a precision, on a backend.

The flow: `graph` puts pre- and post-processing into a network, `precision` chooses FP32, FP16 or calibrated
INT8, `open_engine` chooses the backend. TensorRT's plans are built by `tensorrt` and kept by `plans`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from edge_agent.core.errors import ConfigError, EngineError
from edge_agent.core.served import is_served
from edge_agent.core.setting_types import Backend
from edge_agent.engine.base import Engine
from edge_agent.engine.graph.prepared import PreparedGraph
from edge_agent.engine.precision.scales import Scales

if TYPE_CHECKING:
    from edge_agent.core.config import EngineSettings
    from edge_agent.engine.simulated import SimulatedEngine
    from edge_agent.engine.tensorrt.builder import Progress

BACKENDS = get_args(Backend)

_SIMULATED = "simulated:"
"""Beginning of a backend that runs no network and is never chosen by `auto`, see `open_simulated`."""


def choose_backend(wanted: str) -> str:
    """Resolve `auto`; return `onnxruntime` or `tensorrt`; ConfigError where there is no such backend here."""
    if is_served(wanted):
        raise ConfigError(
            f"{wanted} runs the network on a server, but this needs it here: choose another engine.backend"
            f" (--backend), of {', '.join(BACKENDS)}"
        )
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
    """Return whether a backend only takes the time of another device."""
    return backend.startswith(_SIMULATED)


def open_simulated(backend: str, *, max_batch: int) -> SimulatedEngine:
    """Open `simulated:TABLE`; errors as in `latency_table`."""
    from edge_agent.engine.simulated import SimulatedEngine, latency_table

    return SimulatedEngine(latency_table(backend.removeprefix(_SIMULATED)), max_batch=max_batch)


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """The engines folder, and what builds of plans need beyond the settings.

    Attributes:
        ranges: returns the exported FP32 graph and its INT8 ranges, for TensorRT versions whose accelerator
            takes no quantise/dequantise nodes; None where there are no ranges.
        progress: called during a build: phase, steps done, steps in total.
        conditions: called after a build; returns facts of the device to record.
    """

    folder: Path
    ranges: Callable[[], tuple[PreparedGraph, Scales]] | None = None
    progress: Progress | None = None
    conditions: Callable[[], Mapping[str, Any]] = dict


def open_engine(
    prepared: PreparedGraph,
    settings: EngineSettings,
    plans: PlanOptions | None = None,
    *,
    max_batch: int | None = None,
) -> Engine:
    """Open a network on the configured backend; nothing is loaded or built before the engine is entered.

    The engine computes in `prepared.precision`. `max_batch` is at most `settings.max_batch`, its default, for
    which plans are built.

    Raises:
        ConfigError: there is no such backend, or TensorRT has no folder for its plans.
    """
    size = settings.max_batch if max_batch is None else max_batch
    if choose_backend(settings.backend) == "onnxruntime":
        from edge_agent.engine.onnxruntime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(prepared, max_batch=size, threads=settings.threads)
    if plans is None:
        raise ConfigError(
            f"TensorRT has no folder to keep the plan of {prepared.name} in; name a state folder"
        )
    return _open_tensorrt(prepared, settings, plans, size)


def _open_tensorrt(
    prepared: PreparedGraph, settings: EngineSettings, plans: PlanOptions, max_batch: int
) -> Engine:
    from edge_agent.engine.plans.store import PlanStore
    from edge_agent.engine.tensorrt.builder import ignore_progress
    from edge_agent.engine.tensorrt.engine import TensorRTEngine
    from edge_agent.engine.tensorrt.recipe import BuildOptions, batches_for
    from edge_agent.engine.tensorrt.supply import PlanBuilder

    graph, scales = prepared, None
    if prepared.precision == "int8" and plans.ranges is not None and _takes_ranges(settings.dla_core):
        graph, scales = plans.ranges()
        prepared = replace(graph, precision="int8")
    options = BuildOptions(
        precision=cast("Literal['fp32', 'fp16', 'int8']", prepared.precision),
        batches=batches_for(settings.max_batch),
        dla_core=settings.dla_core,
        workspace_mb=settings.workspace_mb,
        scales=scales,
    )
    progress = plans.progress or ignore_progress
    store = PlanStore(plans.folder)
    builder = PlanBuilder(store, graph, options, progress=progress, conditions=plans.conditions)
    return TensorRTEngine(prepared, builder, settings, max_batch=max_batch)


def _takes_ranges(dla_core: int | None) -> bool:
    """Return whether INT8 needs ranges separate from the graph: on an accelerator before TensorRT 11."""
    from edge_agent.engine.tensorrt import bindings

    return dla_core is not None and bindings.has_dla(bindings.version()) and bindings.version()[0] < 11
