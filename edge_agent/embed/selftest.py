"""The self-test of an engine at every start: its embeddings of the golden crops."""

from __future__ import annotations

import numpy as np
import structlog
from numpy.typing import NDArray

from edge_agent.core.errors import ModelError, NonFiniteEmbedding
from edge_agent.embed.batching import faults
from edge_agent.engine.base import Engine
from edge_agent.engine.golden import (
    LEAST_REPEATED,
    Golden,
    golden_crops,
    least_cosine,
    require_distinct,
    unrepeatable,
)

_log = structlog.get_logger(__name__)

_MIN_COSINE = {"fp32": 0.999, "fp16": 0.99, "int8": 0.9}
"""Least cosine of a golden crop to its reference, by precision."""


def check_engine(engine: Engine, golden: Golden | None) -> NDArray[np.float32]:
    """Compare an entered engine's embeddings of the golden crops with the reference and with each other.

    Returns the embeddings `(4, D)`.

    They are computed in a batch, in a batch of the opposite order, and singly.

    Raises:
        NonFiniteEmbedding: a golden crop has no usable embedding.
        ModelError: embeddings differ from the reference, between a batch and single crops, or from one time
            to the next; or different crops have the same.
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
    if least_cosine(batch, _embed(engine, crops[::-1])[::-1]) < LEAST_REPEATED:
        random = least_cosine(batch, _embed(engine, crops)) < LEAST_REPEATED
        raise ModelError(f"self-test: {unrepeatable(info.model, random=random)}")
    single = np.concatenate([_embed(engine, crop[None]) for crop in crops])
    if (worst := least_cosine(batch, single)) < least:
        raise ModelError(
            f"self-test: {info.model} gives other embeddings in a batch than for single crops "
            f"(cosine {worst:.4f}, at least {least} expected); its batch axis is not truly free, or it uses "
            "the statistics of the batch: export it again in evaluation mode, with a dynamic batch axis"
        )
    require_distinct(batch, f"self-test: {info.model}")
    if golden is None:
        return batch
    if golden.space != info.space:
        raise ModelError("self-test: the reference embeddings belong to another model or profile")
    if (worst := least_cosine(batch, golden.vectors)) < least:
        raise ModelError(
            f"self-test: {info.model} on {info.backend} ({info.precision}) differs from "
            f"its reference (cosine {worst:.4f}, at least {least} expected): channel order, scale, "
            "normalisation or precision is wrong in one of the two; rebuild the engine. "
            f"The reference came from {golden.origin}"
        )
    _log.info("self_test_passed", model=info.model, cosine=round(worst, 6), reference=golden.origin)
    return batch


def _embed(engine: Engine, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
    parts = []
    for start in range(0, len(crops), engine.info.max_batch):
        chunk = crops[start : start + engine.info.max_batch]
        engine.buffer()[: len(chunk)] = chunk
        engine.submit(len(chunk))
        parts.append(engine.collect())
    return np.concatenate(parts)
