"""Short codes of all exemplars, searched by FAISS: which rows of a very large gallery to compare exactly.

A vector is multiplied by a fixed random rotation, so that all pairs of its numbers carry about the same
information, and each pair is replaced by one of 16 values: 4 bits for two numbers, 1/16 of the vector. The
fast scan of FAISS compares a query with 32 codes at a time in registers. All codes are compared: there are no
cells or graphs that a query could miss, so recall hardly depends on the distribution of the embeddings, and a
code can be replaced or zeroed in place.

The codes are in memory only and are biometric data like the vectors.
"""

from __future__ import annotations

import importlib.util
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog
from numpy.typing import NDArray

from edge_agent.core.distribution import install_command
from edge_agent.core.errors import ConfigError

if TYPE_CHECKING:
    from edge_agent.core.config import GallerySettings
    from edge_agent.gallery.means import Vectors
    from edge_agent.gallery.sync import SyncedFile

_log = structlog.get_logger(__name__)

_SAMPLE = 32_768
"""Rows from which the 16 values of each pair are learnt; more make no measurable difference."""
_PAUSE_S = 0.002
"""Between two batches, for threads that wait for the lock."""
_NICE = 10
_SHRUNK = 0.8
"""Share of `exact_up_to` below which a gallery is searched exactly again."""


class IndexBuilder:
    """Gives the index of `file` its shortlist when there are more than `exact_up_to` identities.

    `settings.index`: `faiss` needs the library (else ConfigError); `auto` searches exactly, with a warning,
    where it is missing; `exact` always does.
    """

    def __init__(self, settings: GallerySettings, file: SyncedFile) -> None:
        self._settings = settings
        self._file = file
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._disabled = settings.index == "exact"
        if settings.index == "faiss" and importlib.util.find_spec("faiss") is None:
            raise ConfigError(
                "gallery.index = faiss needs the faiss library, which is not installed: "
                f"{install_command('index')}, or set gallery.index to auto or exact"
            )

    def close(self) -> None:
        """Stop building; takes two seconds at most."""
        self._closing.set()
        self.wait()

    def wait(self) -> None:
        """Wait for the end of the build, if one runs."""
        if self._thread is not None:
            self._thread.join()

    @property
    def exact(self) -> bool:
        """Whether the next search compares with every identity."""
        with self._file.reading():
            return not self._file.index.listed

    def update(self) -> None:
        """Start to build the shortlist of a gallery that grew; drop that of one that shrank."""
        index, limit = self._file.index, self._settings.exact_up_to
        if index.shortlist is not None and len(index) < _SHRUNK * limit:
            index.shortlist = None
        if len(index) <= limit or self._disabled or index.shortlist is not None:
            return
        if self._thread is not None and self._thread.is_alive():
            return
        if importlib.util.find_spec("faiss") is None:
            self._disabled = True
            reason = f"no faiss: {install_command('index')}"
            _log.warning("gallery_searched_exactly", identities=len(index), reason=reason)
            return
        self._closing.clear()
        self._thread = threading.Thread(target=self._build, name="gallery-index", daemon=True)
        self._thread.start()

    def _build(self) -> None:
        """Make the codes batch by batch; the lock is free in between."""
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        began = time.monotonic()
        index, lock = self._file.index, self._file.lock
        try:
            with lock:
                sample = index.sample(_SAMPLE)
            codes = Codes(sample)
            del sample
            with lock:
                index.shortlist = codes
            more = True
            while more and not self._closing.wait(_PAUSE_S):
                with lock:
                    more = index.encode()
        except Exception as error:  # noqa: BLE001 - whatever the library raises: search stays exact
            with lock:
                index.shortlist = None
                self._disabled = True
            _log.error("gallery_index_failed", error=str(error), outcome="the gallery is searched exactly")
            return
        _log.info("gallery_index_built", identities=len(index), seconds=time.monotonic() - began)


class Codes:
    """The codes of an `ExemplarIndex`, at the same slots and places. Not for several threads at once."""

    def __init__(self, sample: Vectors) -> None:
        """Learn the values of the code from typical rows `(N, D)`; takes about two seconds."""
        faiss = _library()
        dimension = sample.shape[1]
        even = dimension + dimension % 2
        square = np.random.default_rng(0).standard_normal((even, even))
        rotation: Vectors = np.linalg.qr(square)[0][:dimension].astype(np.float32)
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

    def put(self, slot: int, place: int, vectors: Vectors) -> None:
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

    def places(self, queries: Vectors, count: int) -> NDArray[np.int64]:
        """Return places of about the `count` best rows of each query: `(Q, C)` int64, padded with -1."""
        _library()
        rotated = self._rotated(queries)
        found = [slot.search(rotated, min(count, slot.ntotal)) for slot in self._slots if slot.ntotal]
        scores = np.concatenate([each for each, _ in found], axis=1)
        places: NDArray[np.int64] = np.concatenate([each for _, each in found], axis=1)
        if places.shape[1] <= count:
            return places
        return np.take_along_axis(places, np.argpartition(scores, -count, axis=1)[:, -count:], axis=1)

    def _rotated(self, vectors: Vectors) -> Vectors:
        rotated: Vectors = np.ascontiguousarray(vectors @ self._rotation, np.float32)
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
