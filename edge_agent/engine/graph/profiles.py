"""Preprocess profiles: how pixels become the numbers that a network was trained on.

A profile is part of an embedding space: vectors of one network with two profiles must not be compared. The
prepared graph does the computation (`edge_agent.engine.graph.rewriting`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.errors import ConfigError

__all__ = ["PROFILES", "PreprocessProfile", "profile_named"]


@dataclass(frozen=True, slots=True)
class PreprocessProfile:
    """`y[c] = (x[c] * scale - mean[c]) / std[c]`, with `x` in 0..255 and `c` in the network's order.

    Attributes:
        name: in settings and options.
        order: channel order of the network, `rgb` or `bgr`. Frames are always BGR.
        scale: factor for raw pixel values.
        mean: per channel in `order`, in units of the scaled pixel.
        std: per channel in `order`, in units of the scaled pixel.
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
