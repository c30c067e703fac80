"""The properties of cameras that the decision uses; `edge_agent.gallery.cameras` has them."""

# ruff: noqa: D102  the methods are documented there

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
Cosine = TypeVar("Cosine", float, NDArray[np.float64])


class CameraBias(Protocol):
    """See `edge_agent.gallery.means.Bias`."""

    @property
    def weight(self) -> float: ...
    @property
    def relief(self) -> float: ...
    def after(self, cosine: float) -> float: ...
    def before(self, cosine: Cosine) -> Cosine: ...


class CameraOffsets(Protocol):
    """The methods of `edge_agent.gallery.cameras.Cameras` that the decision uses, documented there."""

    def start(self) -> None: ...
    def centred(self, camera: str, vectors: Vector) -> Vector: ...
    def bias(self, camera: str) -> CameraBias: ...
    def least_bias(self, numbers: Collection[int]) -> CameraBias | None: ...
    def cosines(self, camera: str, vectors: Vector, voted: Collection[bool]) -> Vector: ...
    def exemplars(self, number: int) -> tuple[Vector, tuple[str, ...]]: ...
    def saw(self, camera: str, origin: str, vector: Vector, number: int | None) -> None: ...
