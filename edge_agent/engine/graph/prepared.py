"""A network that is ready for any engine, and the id of the space that its embeddings lie in."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.engine.graph.profiles import PreprocessProfile

__all__ = ["BATCH_HINT", "PreparedGraph", "embedding_space"]

BATCH_HINT = (
    "export it again with a dynamic batch axis, e.g. torch.onnx.export(model, crop, path, "
    'input_names=["input"], output_names=["embedding"], '
    'dynamic_axes={"input": {0: "batch"}, "embedding": {0: "batch"}})'
)
"""What mends a network whose batch axis is not free."""


@dataclass(frozen=True, slots=True)
class PreparedGraph:
    """A network that an engine can run as it is.

    Attributes:
        onnx: the rewritten model, serialised.
        source: the file that it was made from.
        source_sha256: SHA-256 of that file.
        name: what people call the model.
        input_size: `(height, width)` of the pictures.
        batch: largest batch that the network takes, None when any.
        profile: preprocess profile inside the graph, None for a detector.
        dimension: numbers in an embedding, 0 for a detector.
        space: id of the embedding space, "" for a detector.
        normalised: whether rows are of unit length.
        channels_last: whether the network inside wants `[N, H, W, 3]` instead of `[N, 3, H, W]`.
        half: whether the network inside wants float16.
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

    def facts(self) -> dict[str, Any]:
        """What reports and manifests say about the network, as JSON values."""
        return {
            "name": self.name,
            "sha256": self.source_sha256,
            "path": str(self.source),
            "preprocess": None if self.profile is None else self.profile.name,
            "space": self.space,
            "dimension": self.dimension,
        }

    def as_network_input(self, planes: NDArray[np.float32]) -> NDArray[np.float32 | np.float16]:
        """`(N, 3, H, W)` float32 in the layout and type of the original network."""
        laid = np.ascontiguousarray(planes.transpose(0, 2, 3, 1)) if self.channels_last else planes
        return laid.astype(np.float16) if self.half else laid


def embedding_space(
    model_sha256: str, profile: PreprocessProfile, dimension: int, *, normalised: bool = True
) -> str:
    """Id of an embedding space, 16 hex digits: embeddings of different ids must not be compared."""
    raw = "" if normalised else "|raw"
    text = f"{model_sha256}|{profile.key}|{dimension}{raw}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]
