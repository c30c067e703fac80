"""Networks run here: the prepared graph and the backends that execute it.

`prepare_reid` and `prepare_detector` make the graph, `open_engine` chooses what runs it.
"""

from __future__ import annotations

from pathlib import Path

from edge_agent.engine.base import Engine
from edge_agent.engine.prepared import PreparedGraph
from edge_agent.engine.scales import Scales
from edge_agent.errors import ConfigError, EngineError

__all__ = ["BACKENDS", "Engine", "PreparedGraph", "choose_backend", "open_engine"]

BACKENDS = ("auto", "onnxruntime", "tensorrt")
"""What a user may ask for. `auto` takes TensorRT where it and a GPU are there, else ONNX Runtime."""


def choose_backend(wanted: str) -> str:
    """`onnxruntime` or `tensorrt` for what the user asked for; a named backend is taken at its word.

    Raises:
        ConfigError: there is no such backend.
    """
    if wanted not in BACKENDS:
        raise ConfigError(f"no inference backend {wanted!r}; choose one of {', '.join(BACKENDS)}")
    if wanted != "auto":
        return wanted
    from edge_agent.engine import cuda, trt

    try:
        trt.require_bindings()
        cuda.probe()
    except EngineError:
        return "onnxruntime"
    return "tensorrt"


def open_engine(
    prepared: PreparedGraph,
    *,
    backend: str = "auto",
    max_batch: int = 64,
    threads: int = 0,
    plans: Path | None = None,
    scales: Scales | None = None,
    zero_copy: str = "auto",
    cuda_graphs: str = "auto",
    dla_core: int | None = None,
    workspace_mb: int | None = None,
) -> Engine:
    """The engine for a prepared graph; nothing is loaded, and no plan built, before it is entered.

    Args:
        prepared: from `edge_agent.engine.graph`; its `precision` is what the engine computes in.
        backend: one of `BACKENDS`.
        max_batch: largest batch, in pictures.
        threads: CPU threads per batch of ONNX Runtime, 0 for one per core.
        plans: folder of TensorRT's plans.
        scales: ranges for INT8 on a deep-learning accelerator, which takes no Q/DQ graph.
        zero_copy: TensorRT: `auto`, `on` or `off`.
        cuda_graphs: TensorRT: `auto` or `off`.
        dla_core: TensorRT: accelerator to run on, None for the GPU.
        workspace_mb: TensorRT: limit of a build's workspace.

    Raises:
        ConfigError: there is no such backend, or TensorRT has no folder for its plans.
    """
    if choose_backend(backend) == "onnxruntime":
        from edge_agent.engine.onnxruntime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(prepared, max_batch=max_batch, threads=threads)
    raise NotImplementedError
