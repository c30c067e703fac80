"""A network that is ready for any engine, its preprocess profile, and the id of its embedding space.

A profile states how pixels become the numbers that a network was trained on; `graph.prepare` puts the
computation into the graph. It is part of the embedding space: never compare vectors of one network with two
profiles.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.errors import ConfigError
from edge_agent.core.structures import EngineInfo


@dataclass(frozen=True, slots=True)
class PreprocessProfile:
    """`y[c] = (x[c] * scale - mean[c]) / std[c]`, with `x` in 0..255 and `c` in the network's order.

    Attributes:
        order: channel order of the network, `rgb` or `bgr`. Frames are always BGR.
        mean, std: per channel in `order`, in units of the scaled pixel.
        resize: interpolation to the network's input size; the aspect ratio is not kept. `linear` is OpenCV's
            INTER_LINEAR.
    """

    name: str
    order: str
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: str = "linear"

    @property
    def from_bgr(self) -> list[int]:
        """Number of the channel of a BGR picture for each channel of the network."""
        return [2, 1, 0] if self.order == "rgb" else [0, 1, 2]

    @property
    def offsets(self) -> NDArray[np.float32]:
        """`(3,)` float32 in the network's order, subtracted from raw pixel values (0..255)."""
        return np.asarray([m / self.scale for m in self.mean], np.float32)

    @property
    def factors(self) -> NDArray[np.float32]:
        """`(3,)` float32 in the network's order, applied after `offsets`."""
        return np.asarray([self.scale / s for s in self.std], np.float32)

    @property
    def key(self) -> str:
        """All values that change an embedding, as text; part of the id of the embedding space."""
        return f"{self.order}|{self.scale!r}|{self.mean!r}|{self.std!r}|{self.resize}"

    def fit(self, crop: NDArray[np.uint8], target: NDArray[np.uint8]) -> None:
        """Resize a crop `(h, w, 3)` uint8 into `target` `(H, W, 3)`.

        Serving, evaluation and calibration all use it, so INT8 ranges come from the pixels of production.
        """
        import cv2

        height, width = target.shape[:2]
        interpolation = {"linear": cv2.INTER_LINEAR}[self.resize]
        cv2.resize(crop, (width, height), dst=target, interpolation=interpolation)

    def apply(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute the same in numpy: `(N, H, W, 3)` uint8 BGR -> `(N, 3, H, W)` float32.

        Seven to nine times slower than inside the network. References and tests use it as an independent
        implementation.
        """
        ordered = crops[..., ::-1] if self.order == "rgb" else crops
        scaled = ordered.astype(np.float32) * np.float32(self.scale)
        normalised = (scaled - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2))


_IMAGENET_MEAN = (0.485, 0.456, 0.406)

PROFILES: dict[str, PreprocessProfile] = {
    profile.name: profile
    for profile in (
        # NVIDIA TAO ReIdentificationNet: one std for all channels (tao-core default_config.py; the same
        # numbers as DeepStream's offsets 123.675;116.28;103.53 and netScaleFactor 0.01735207).
        PreprocessProfile("tao", "rgb", 1 / 255, _IMAGENET_MEAN, (0.226, 0.226, 0.226)),
        # torchvision's ImageNet statistics: torchreid, FastReID, BoxMOT exports.
        PreprocessProfile("imagenet", "rgb", 1 / 255, _IMAGENET_MEAN, (0.229, 0.224, 0.225)),
        # Open Model Zoo networks normalise inside themselves and take raw pixels.
        PreprocessProfile("openvino-raw", "rgb", 1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        # TAO's Swin variant (experiment_market1501_swin.yaml).
        PreprocessProfile("swin", "rgb", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    )
}


def profile_named(name: str) -> PreprocessProfile:
    """Return a profile by name; ConfigError where there is none."""
    try:
        return PROFILES[name]
    except KeyError:
        known = ", ".join(sorted(PROFILES))
        raise ConfigError(f"no preprocess profile {name!r}; known profiles: {known}") from None


BARE_INPUT, BARE_OUTPUT = "input", "fc_pred"
"""Tensor names of TAO's exports, and of a bare graph (`graph.bare`)."""
PROFILE_ENTRY = "preprocess_profile"
"""Entry of an ONNX file's metadata that names its preprocess profile."""

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
        source, source_sha256: the original file.
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
        bare: without what was added around the network, see `graph.bare`.
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
    bare: bool = False

    @property
    def pictures(self) -> tuple[str, tuple[int, int, int]]:
        """Name of the input, and the shape of one picture."""
        if self.bare:
            return BARE_INPUT, (3, *self.input_size)
        return "crops" if self.dimension else "frames", (*self.input_size, 3)

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
