"""Networks run here: the prepared graph and the backends that execute it.

`prepare_reid` and `prepare_detector` make the graph, `open_engine` chooses what runs it.
"""

from __future__ import annotations

from edge_agent.engine.base import Engine
from edge_agent.engine.prepared import PreparedGraph
from edge_agent.errors import ConfigError

__all__ = ["BACKENDS", "Engine", "PreparedGraph", "open_engine"]

BACKENDS = ("auto", "onnxruntime")
"""What a user may ask for. `auto` takes the fastest that this machine has."""


def open_engine(
    prepared: PreparedGraph, *, backend: str = "auto", max_batch: int = 64, threads: int = 0
) -> Engine:
    """The engine for a prepared graph; nothing is loaded before it is entered.

    Args:
        prepared: from `edge_agent.engine.graph`.
        backend: one of `BACKENDS`.
        max_batch: largest batch, in pictures.
        threads: CPU threads per batch, 0 for one per core.

    Raises:
        ConfigError: there is no such backend.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"no inference backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    from edge_agent.engine.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(prepared, max_batch=max_batch, threads=threads)
