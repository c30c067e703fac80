"""Short codes of all exemplars, searched by FAISS: which rows of a very large gallery to compare exactly.

A vector is multiplied by a fixed random rotation, so that all pairs of its numbers carry about the same
information, and each pair is replaced by one of 16 values: 4 bits for two numbers, 1/16 of the vector. The
fast scan of FAISS compares a query with 32 codes at a time in registers. All codes are compared: there are no
cells or graphs that a query could miss, so recall hardly depends on the distribution of the embeddings, and a
code can be replaced or zeroed in place.

The codes are in memory only and are biometric data like the vectors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LIBRARY", "SAMPLE", "Codes"]

LIBRARY = "faiss"
"""Module of the optional library; the package's extra `index` installs it."""

SAMPLE = 32_768
"""Rows from which the 16 values of each pair are learnt; more make no measurable difference."""


class Codes:
    """The codes of an `ExemplarIndex`, at the same slots and places. Not for several threads at once."""

    def __init__(self, sample: NDArray[np.float32]) -> None:
        """Learn the values of the code from typical rows `(N, D)`; takes about two seconds."""
        faiss = _library()
        dimension = sample.shape[1]
        even = dimension + dimension % 2
        square = np.random.default_rng(0).standard_normal((even, even))
        rotation: NDArray[np.float32] = np.linalg.qr(square)[0][:dimension].astype(np.float32)
        self._rotation = rotation
        self._pattern: Any = faiss.IndexPQFastScan(even, even // 2, 4, faiss.METRIC_INNER_PRODUCT)
        self._pattern.train(self._rotated(sample))
        self._packer: Any = self._pattern.get_CodePacker()
        self._slots: list[Any] = []

    @property
    def nbytes(self) -> int:
        """Bytes of the codes."""
        return sum(slot.codes.size() for slot in self._slots)

    def filled(self, slot: int) -> int:
        """Return how many rows of a slot, from the first, have a code."""
        return int(self._slots[slot].ntotal) if slot < len(self._slots) else 0

    def put(self, slot: int, place: int, vectors: NDArray[np.float32]) -> None:
        """Encode rows `(N, D)` from `place` on, which is at most `filled(slot)`."""
        faiss = _library()
        while len(self._slots) <= slot:
            self._slots.append(faiss.clone_index(self._pattern))
        rotated = self._rotated(vectors)
        replaced = min(len(rotated), self.filled(slot) - place)
        if replaced:
            self._write(slot, place, self._pattern.pq.compute_codes(rotated[:replaced]))
        if replaced < len(rotated):
            self._slots[slot].add(rotated[replaced:])

    def cut(self, slot: int, rows: int) -> None:
        """Keep the first `rows` of a slot; the other codes are overwritten with zeros."""
        surplus = self.filled(slot) - rows
        if surplus > 0:
            self._write(slot, rows, np.zeros((surplus, self._packer.code_size), np.uint8))
            self._slots[slot].ntotal = rows

    def places(self, queries: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """Return places of about the `count` best rows of each query: `(Q, C)` int64, padded with -1."""
        _library()
        rotated = self._rotated(queries)
        found = [slot.search(rotated, min(count, slot.ntotal)) for slot in self._slots if slot.ntotal]
        scores = np.concatenate([each for each, _ in found], axis=1)
        places: NDArray[np.int64] = np.concatenate([each for _, each in found], axis=1)
        if places.shape[1] <= count:
            return places
        return np.take_along_axis(places, np.argpartition(scores, -count, axis=1)[:, -count:], axis=1)

    def _rotated(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        rotated: NDArray[np.float32] = np.ascontiguousarray(vectors @ self._rotation, np.float32)
        return rotated

    def _write(self, slot: int, place: int, codes: NDArray[np.uint8]) -> None:
        """Replace codes `(N, bytes)` from `place` on; FAISS stores them interleaved in blocks."""
        memory = self._slots[slot].codes
        blocks = _library().rev_swig_ptr(memory.get(), memory.size()).reshape(-1, self._packer.block_size)
        for row, code in enumerate(codes, start=place):
            block, within = divmod(row, self._packer.nvec)
            self._packer.pack_1(code, within, blocks[block : block + 1])


def _library() -> Any:  # noqa: ANN401 - a module without types
    """Return FAISS, limited to the calling thread: more are slower for few queries and delay other stages."""
    import faiss

    faiss.omp_set_num_threads(1)
    return faiss
