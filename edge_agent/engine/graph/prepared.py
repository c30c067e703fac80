"""A network that is ready for any engine, and the id of its embedding space."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.structures import EngineInfo
from edge_agent.engine.graph.profiles import PreprocessProfile

__all__ = ["BATCH_HINT", "PreparedGraph", "embedding_space"]

BATCH_HINT = (
    "export it again with a dynamic batch axis, e.g. torch.onnx.export(model, crop, path, "
    'input_names=["input"], output_names=["embedding"], '
    'dynamic_axes={"input": {0: "batch"}, "embedding": {0: "batch"}})'
)
"""How to fix a network whose batch axis is fixed."""


@dataclass(frozen=True, slots=True)
class PreparedGraph:
    """A network with pre- and post-processing inside.

    Attributes:
        onnx: the rewritten model, serialised.
        source: the original file.
        source_sha256: SHA-256 of the original file.
        name: of the model, in reports.
        input_size: `(height, width)` of the pictures.
        batch: the fixed batch of the network; None when its batch axis is free.
        profile: preprocess profile inside the graph; None for a detector.
        dimension: numbers in an embedding; 0 for a detector.
        space: id of the embedding space; "" for a detector.
        normalised: whether rows have unit length.
        channels_last: whether the network inside takes `[N, H, W, 3]` instead of `[N, 3, H, W]`.
        half: whether the network inside takes float16.
        precision: what the graph computes in: `fp32` as exported, `fp16` with typed float16 weights, `int8`
            with quantise/dequantise nodes.
    """

    onnx: bytes
    source: Path
    source_sha256: str
    name: str
    input_size: tuple[int, int]
    batch: int | None
    profile: PreprocessProfile | None
    dimension: int
    space: str
    normalised: bool
    channels_last: bool
    half: bool
    precision: str = "fp32"

    def info(self, *, backend: str, device: str, max_batch: int, precision: str | None = None) -> EngineInfo:
        """Describe an engine that runs this network; `precision`: of its plan, where that differs."""
        return EngineInfo(
            backend=backend,
            precision=precision or self.precision,
            model=self.name,
            model_sha256=self.source_sha256,
            space=self.space,
            dimension=self.dimension,
            max_batch=max_batch,
            device=device,
        )

    def facts(self) -> dict[str, Any]:
        """Return what reports and manifests state about the network, as JSON values."""
        return {
            "name": self.name,
            "sha256": self.source_sha256,
            "path": str(self.source),
            "preprocess": None if self.profile is None else self.profile.name,
            "space": self.space,
            "dimension": self.dimension,
        }

    def as_network_input(self, planes: NDArray[np.float32]) -> NDArray[np.float32 | np.float16]:
        """Convert `(N, 3, H, W)` float32 to the layout and type of the original network."""
        laid = np.ascontiguousarray(planes.transpose(0, 2, 3, 1)) if self.channels_last else planes
        return laid.astype(np.float16) if self.half else laid


def embedding_space(
    model_sha256: str, profile: PreprocessProfile, dimension: int, *, normalised: bool = True
) -> str:
    """Return the id of an embedding space, 16 hex digits; never compare embeddings of different ids."""
    raw = "" if normalised else "|raw"
    text = f"{model_sha256}|{profile.key}|{dimension}{raw}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]
