"""What DeepStream computes from a box to a network's input, in numpy, and how far it is from the agent.

NVIDIA's sources: `gst-nvinfer/gstnvinfer.cpp`, `get_converted_buffer` (even corners and sizes, black padding
at the right or the bottom); `nvdsinfer/nvdsinfer_conversion.cu` (`y = net-scale-factor * (x - offsets)`,
float32). The bilinear filter of the hardware (`scaling-filter=1`) is not public; OpenCV's is taken for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.errors import ConfigError, ModelError
from edge_agent.engine.graph.prepared import PreparedGraph, PreprocessProfile, embedding_space
from edge_agent.engine.onnxruntime import open_session, run_session

LEAST_COSINE = 0.9999
"""Least cosine to the agent for the same pixels; anything below it is an error of the export."""
_BATCH = 8
_LETTERBOX = "linear-letterbox"
"""Resize rule in the id of the space where the aspect ratio is kept."""


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """The settings of DeepStream's preprocessing.

    Attributes:
        colour: `rgb` or `bgr`, the order of the network.
        scale: `net-scale-factor`, one number for all channels.
        offsets: subtracted from the pixel first, in the network's order.
        factors: `(3,)` that the graph multiplies itself with, where one scale does not fit all channels.
        keep_aspect: keep the aspect ratio of a box and fill up with black, instead of stretching it.
    """

    colour: str
    scale: float
    offsets: tuple[float, float, float]
    factors: NDArray[np.float32] | None
    keep_aspect: bool

    @staticmethod
    def of(profile: PreprocessProfile, *, keep_aspect: bool = False) -> Arithmetic:
        """Return the arithmetic of a profile; ConfigError where DeepStream has no setting for a value."""
        factors = [profile.scale / deviation if deviation else np.inf for deviation in profile.std]
        offsets = tuple(mean / profile.scale if profile.scale else np.inf for mean in profile.mean)
        if profile.resize != "linear" or profile.order not in {"rgb", "bgr"}:
            raise ConfigError(
                f"preprocess profile {profile.name!r}: DeepStream cannot resize by {profile.resize!r} or "
                f"order channels as {profile.order!r}"
            )
        if not all(np.isfinite([*factors, *offsets])) or min(factors) <= 0:
            raise ConfigError(
                f"preprocess profile {profile.name!r}: DeepStream needs finite offsets and a scale above "
                f"zero; it has scale {profile.scale}, mean {profile.mean}, std {profile.std}"
            )
        first, second, third = offsets
        if max(factors) == min(factors):
            return Arithmetic(profile.order, factors[0], (first, second, third), None, keep_aspect)
        inside = np.asarray([1 / deviation for deviation in profile.std], np.float32)
        return Arithmetic(profile.order, profile.scale, (first, second, third), inside, keep_aspect)

    def space(self, prepared: PreparedGraph) -> str:
        """Return the id of the embedding space: the agent's own where boxes are stretched."""
        if not self.keep_aspect:
            return prepared.space
        assert prepared.profile is not None  # only detectors have none
        profile = replace(prepared.profile, resize=_LETTERBOX)
        return embedding_space(prepared.source_sha256, profile, prepared.dimension)

    def resized(self, crop: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
        """Resize a crop `(h, w, 3)` to `(H, W, 3)` as nvinfer does."""
        import cv2

        height, width = size
        fit_height, fit_width = height, width
        if self.keep_aspect:
            rows, columns = crop.shape[:2]
            fit_height, fit_width = int(width * rows / columns), int(height * columns / rows)
            fit_height, fit_width = (fit_height, width) if fit_height <= height else (height, fit_width)
        picture = np.zeros((height, width, 3), np.uint8)
        inner = (max(fit_width, 1), max(fit_height, 1))
        picture[: inner[1], : inner[0]] = cv2.resize(crop, inner, interpolation=cv2.INTER_LINEAR)
        return picture

    def planes(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the input of the network, `(N, 3, H, W)`, for pictures `(N, H, W, 3)` uint8 BGR."""
        ordered = pictures[..., ::-1] if self.colour == "rgb" else pictures
        offsets = np.asarray(self.offsets, np.float32)
        scaled = np.float32(self.scale) * (ordered.astype(np.float32) - offsets)
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


@dataclass(frozen=True, slots=True)
class Differences:
    """Cosines to the agent's own embedding of the same crop, `(N,)` each.

    Attributes:
        pixels: the same crop, stretched: scale, offsets, colour order and the graph alone.
        moved: stretched, the crop a pixel smaller at the left and the top, and even: nvinfer's rounding.
        padded: the whole crop with its aspect ratio kept.
    """

    pixels: NDArray[np.float64]
    moved: NDArray[np.float64]
    padded: NDArray[np.float64]


def differences(
    prepared: PreparedGraph, bare: PreparedGraph, arithmetic: Arithmetic, crops: Sequence[NDArray[np.uint8]]
) -> Differences:
    """Compare DeepStream's arithmetic with the agent's, both on ONNX Runtime in FP32.

    Raises:
        ModelError: the same pixels give another embedding: the export is wrong.
        EngineError: the network fails.
    """
    agent = _Network(prepared.onnx, prepared.name)
    deepstream = _Network(bare.onnx, prepared.name)
    size, profile = prepared.input_size, prepared.profile
    assert profile is not None  # only detectors have none
    stretched = replace(arithmetic, keep_aspect=False)
    padded = replace(arithmetic, keep_aspect=True)
    found: list[list[NDArray[np.float64]]] = [[], [], []]
    for batch in _batches(crops):
        pictures = np.empty((len(batch), *size, 3), np.uint8)
        for crop, picture in zip(batch, pictures, strict=True):
            profile.fit(crop, picture)
        own = agent.rows(pictures)
        known = np.isfinite(own).all(axis=1)  # a crop of one colour may have no embedding
        cut = [_smaller(crop) for crop in batch]
        for number, (rule, taken) in enumerate(((stretched, batch), (stretched, cut), (padded, batch))):
            planes = arithmetic.planes(np.stack([rule.resized(crop, size) for crop in taken]))
            cosines = (own * deepstream.rows(planes)).sum(axis=1)
            found[number].append(np.where(np.isnan(cosines) & known, -1.0, cosines))
    pixels, moved, around = (np.concatenate(cosines) for cosines in found)
    usable = ~np.isnan(pixels)
    if not usable.any():
        raise ModelError(
            f"{prepared.name} gives no embedding for any of the crops: nothing was measured or written; name "
            "other crops"
        )
    if (least := pixels[usable].min()) < LEAST_COSINE:
        raise ModelError(
            f"with DeepStream's arithmetic {prepared.name} gives another embedding (cosine {least:.6f}, at "
            f"least {LEAST_COSINE} is needed): nothing was written; this is an error of the exporter"
        )
    return Differences(pixels[usable], moved[usable], around[usable])


class _Network:
    """A network on ONNX Runtime that gives rows of length 1."""

    def __init__(self, onnx: bytes, name: str) -> None:
        self._session, self._name = open_session(onnx, 0, name), name

    def rows(self, batch: NDArray[np.generic]) -> NDArray[np.float64]:
        rows = np.asarray(run_session(self._session, batch, self._name), np.float64)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        return rows / np.where(lengths > 0, lengths, np.nan)


def _smaller(crop: NDArray[np.uint8]) -> NDArray[np.uint8]:
    rows, columns = ((side - 1) // 2 * 2 for side in crop.shape[:2])
    return crop[1 : 1 + rows, 1 : 1 + columns] if rows and columns else crop


def _batches(crops: Sequence[NDArray[np.uint8]]) -> Iterator[Sequence[NDArray[np.uint8]]]:
    for start in range(0, len(crops), _BATCH):
        yield crops[start : start + _BATCH]
