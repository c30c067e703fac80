"""Self-test of an engine against reference embeddings, and faults of its rows."""

from __future__ import annotations

import numpy as np
import structlog
from numpy.typing import NDArray

from edge_agent.core.errors import ModelError, NonFiniteEmbedding
from edge_agent.engine.base import Engine
from edge_agent.engine.golden import Golden, golden_crops

__all__ = ["check_engine", "faults"]

_log = structlog.get_logger(__name__)

_ONE = np.ones(1, np.float32)
_UNIT_TOLERANCE = np.full(1, 0.02, np.float32)
"""Largest deviation of the squared length of a vector from 1; FP16 engines round to about 1e-3."""
_MIN_COSINE = {"fp32": 0.999, "fp16": 0.99, "int8": 0.9}
"""Least cosine of a golden crop to its reference, by precision."""


def faults(rows: NDArray[np.float32], *, unit_length: bool) -> list[str]:
    """Return for each row of `(N, D)`: `non-finite`, `degenerate` (not of length 1), or "" for a good one."""
    squares = np.einsum("nd,nd->n", rows, rows)
    proper = np.abs(squares - _ONE) <= _UNIT_TOLERANCE if unit_length else np.isfinite(squares)
    if np.count_nonzero(proper) == len(rows):
        return [""] * len(rows)
    words = np.where(np.isfinite(squares), np.where(proper, "", "degenerate"), "non-finite")
    return [str(word) for word in words]


def check_engine(engine: Engine, golden: Golden | None) -> None:
    """Compare the engine's embeddings of the golden crops with the reference, one by one and in a batch.

    Args:
        engine: entered.
        golden: reference embeddings; None checks only what needs none.

    Raises:
        NonFiniteEmbedding: a golden crop has no usable embedding.
        ModelError: embeddings differ from the reference, or between a batch and single crops.
    """
    info, crops = engine.info, golden_crops(*engine.input_size)
    batch = _embed(engine, crops)
    for row, fault in enumerate(faults(batch, unit_length=engine.unit_length)):
        if fault:
            raise NonFiniteEmbedding(
                f"self-test: {info.model} gave a {fault} embedding for golden crop {row} on "
                f"{info.backend} ({info.precision}); use another export or precision"
            )
    least = _MIN_COSINE[info.precision]
    single = np.concatenate([_embed(engine, crop[None]) for crop in crops])
    if (worst := _worst_cosine(batch, single)) < least:
        raise ModelError(
            f"self-test: {info.model} gives other embeddings in a batch than for single crops "
            f"(cosine {worst:.4f}, at least {least} expected); its batch axis is not truly free: "
            "export it again with a dynamic batch axis"
        )
    if golden is None:
        return
    if golden.space != info.space:
        raise ModelError("self-test: the reference embeddings belong to another model or profile")
    if (worst := _worst_cosine(batch, golden.vectors)) < least:
        raise ModelError(
            f"self-test: {info.model} on {info.backend} ({info.precision}) differs from "
            f"its reference (cosine {worst:.4f}, at least {least} expected): channel order, scale, "
            "normalisation or precision is wrong in one of the two; rebuild the engine. "
            f"The reference came from {golden.origin}"
        )
    _log.info("self_test_passed", model=info.model, cosine=round(worst, 6), reference=golden.origin)


def _embed(engine: Engine, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
    parts = []
    for start in range(0, len(crops), engine.info.max_batch):
        chunk = crops[start : start + engine.info.max_batch]
        engine.buffer()[: len(chunk)] = chunk
        engine.submit(len(chunk))
        parts.append(engine.collect())
    return np.concatenate(parts)


def _worst_cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Least cosine of corresponding rows of two `(N, D)`."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float((np.einsum("nd,nd->n", a, b) / lengths).min())
