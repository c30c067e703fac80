"""Results of detectors and ReID networks by the content of their input, kept on disk.

A run of the whole agent over a recording spends nearly all its time in networks, and an experiment with
tracks or decisions gives them the same pictures again. `cached` replaces the detectors and the ONNX Runtime
engine of this process by ones that compute what the store does not have. Everything else of the agent runs
as always.

- A ReID network's key: SHA-256 of the prepared graph (weights, preprocessing, precision), and the digest of
  the resized crop.
- A detector's key: its name, the file of its network, the source text of `edge_agent/detect`, and the
  digest of the frame.

A batch of another size changes a row in the last digits; a store may be used by several processes at once.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.detectors import parse_detector
from edge_agent.core.structures import Detections
from edge_agent.detect import opening
from edge_agent.detect.base import Detector
from edge_agent.detect.network import NetworkDetector
from edge_agent.engine import onnxruntime
from edge_agent.engine.graph.prepared import PreparedGraph

__all__ = ["Store", "cached", "default_folder"]

_AT_ONCE = 400


def default_folder() -> Path:
    """`$XDG_CACHE_HOME/edge-agent-benchmarks`."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "edge-agent-benchmarks"


class Store:
    """Arrays by key in an SQLite file; for any thread."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._rows = sqlite3.connect(path, timeout=60, check_same_thread=False, isolation_level=None)
        self._rows.execute("PRAGMA journal_mode = WAL")
        self._rows.execute("PRAGMA synchronous = OFF")
        self._rows.execute(
            "CREATE TABLE IF NOT EXISTS results (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID"
        )
        self.hits = self.misses = 0

    def take(self, keys: Sequence[bytes]) -> dict[bytes, NDArray[np.float32]]:
        """Return what is known of these keys, flat."""
        found: dict[bytes, NDArray[np.float32]] = {}
        with self._lock:
            for start in range(0, len(keys), _AT_ONCE):
                part = keys[start : start + _AT_ONCE]
                marks = ",".join("?" * len(part))
                query = f"SELECT key, value FROM results WHERE key IN ({marks})"  # noqa: S608 - marks only
                for key, value in self._rows.execute(query, part):
                    found[key] = np.frombuffer(value, np.float32)
            self.hits += sum(key in found for key in keys)
            self.misses += sum(key not in found for key in keys)
        return found

    def put(self, results: dict[bytes, NDArray[np.float32]]) -> None:
        """Keep arrays; their shapes are the caller's to know."""
        rows = [(key, np.ascontiguousarray(value, np.float32).tobytes()) for key, value in results.items()]
        with self._lock:
            self._rows.execute("BEGIN IMMEDIATE")
            self._rows.executemany("INSERT OR REPLACE INTO results VALUES (?, ?)", rows)
            self._rows.execute("COMMIT")

    def close(self) -> None:
        """Close the file."""
        self._rows.close()


def _key(of: bytes, pixels: NDArray[np.uint8]) -> bytes:
    digest = hashlib.blake2b(of, digest_size=16)
    digest.update(str(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()


def _sha256(*parts: bytes) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.digest()


def _code(detector: Detector) -> bytes:
    """Return the digest of the source text that decides what a detector finds."""
    files = {Path(inspect.getfile(kind)) for kind in type(detector).__mro__ if issubclass(kind, Detector)}
    if isinstance(detector, NetworkDetector):
        folder = Path(inspect.getfile(NetworkDetector)).parent
        files |= {folder / "fit.py", *(folder / "kinds").glob("*.py")}
    return _sha256(*(path.read_bytes() for path in sorted(files)))


class _CachedDetector(Detector):
    """A detector that looks into the store first."""

    def __init__(self, inner: Detector, of: bytes, store: Store) -> None:
        self.name, self.levels, self.engine = inner.name, inner.levels, inner.engine
        self._inner, self._of, self._store = inner, of, store

    def _load(self) -> None:
        self._inner.__enter__()

    def _release(self) -> None:
        self._inner.__exit__(None, None, None)

    def detect(self, image: NDArray[np.uint8]) -> Detections:
        key = _key(self._of, image)
        known = self._store.take([key]).get(key)
        if known is None:
            found = self._inner.detect(image)
            known = np.column_stack([found.boxes, found.scores]).astype(np.float32)
            self._store.put({key: known})
        rows = known.reshape(-1, 5)
        return Detections(rows[:, :4].copy(), rows[:, 4].copy())

    def _find(self, image: NDArray[np.uint8]) -> Detections:
        raise NotImplementedError


def _cached_engine(store: Store) -> type[onnxruntime.OnnxRuntimeEngine]:
    class CachedEngine(onnxruntime.OnnxRuntimeEngine):
        """Computes the crops of ReID networks that the store does not have; detectors as always."""

        def __init__(self, prepared: PreparedGraph, **options: Any) -> None:  # noqa: ANN401
            super().__init__(prepared, **options)
            self._of = _sha256(prepared.onnx) if prepared.normalised else None

        def _compute(self, batch: NDArray[np.uint8], *, whole: bool = False) -> NDArray[np.float32]:
            if self._of is None:
                return super()._compute(batch, whole=whole)
            keys = [_key(self._of, picture) for picture in batch]
            known = store.take(keys)
            missing = {key: row for row, key in enumerate(keys) if key not in known}
            if missing:
                rows = super()._compute(np.ascontiguousarray(batch[list(missing.values())]))
                new = dict(zip(missing, rows, strict=True))
                store.put(new)
                known.update(new)
            return np.stack([known[key] for key in keys])

    return CachedEngine


@contextmanager
def cached(folder: Path | None = None) -> Iterator[Store]:
    """Compute only what the store in `folder` lacks, in this process and until the end of the `with`."""
    store = Store((folder or default_folder()) / "results.sqlite")
    opens = opening.open_detector

    def open_cached(text: str, **options: Any) -> Detector:  # noqa: ANN401
        detector, choice = opens(text, **options), parse_detector(text)
        which = text.encode() if choice.file is None else choice.file.read_bytes()
        of = _sha256(_code(detector), which, repr(options.get("input_size")).encode())
        return _CachedDetector(detector, of, store)

    with ExitStack() as stack:
        stack.callback(store.close)
        stack.enter_context(mock.patch.object(opening, "open_detector", open_cached))
        stack.enter_context(mock.patch.object(onnxruntime, "OnnxRuntimeEngine", _cached_engine(store)))
        yield store
