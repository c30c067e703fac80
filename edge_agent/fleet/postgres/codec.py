"""Vectors as pgvector sends them: two 16-bit numbers, dimension and 0, then float32, all big-endian."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge_agent.fleet.records import Vectors

_HEADER = struct.Struct(">HH")


def packed(vectors: Vectors) -> list[bytes]:
    """Return rows `(N, D)` as the values of a column `vector`."""
    header = _HEADER.pack(vectors.shape[1], 0)
    return [header + row.tobytes() for row in vectors.astype(">f4", order="C")]


def unpacked(values: Sequence[bytes], dimension: int) -> Vectors:
    """Return the values of a column `vector` as rows `(N, dimension)`."""
    size = _HEADER.size + 4 * dimension
    if any(len(value) != size for value in values):
        raise ValueError(f"the store has a vector that does not have {dimension} numbers")
    rows = np.frombuffer(b"".join(values), np.uint8).reshape(len(values), size)[:, _HEADER.size :]
    return np.ascontiguousarray(rows).view(">f4").astype(np.float32)


def packed_sum(total: NDArray[np.float64]) -> bytes:
    """Return a sum of votes as a value of `camera_mean.total`."""
    return np.asarray(total, "<f8").tobytes()


def unpacked_sum(value: bytes) -> NDArray[np.float64]:
    """Return a value of `camera_mean.total`."""
    return np.frombuffer(value, "<f8").astype(np.float64)
