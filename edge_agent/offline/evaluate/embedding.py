"""Embeddings of crops on disk, in batches; threads decode while the network runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.errors import ConfigError, InputError, NonFiniteEmbedding
from edge_agent.core.loading import load
from edge_agent.core.pictures import UnreadablePicture, read_picture
from edge_agent.core.served import is_served
from edge_agent.core.structures import EngineInfo
from edge_agent.embed.opening import open_embedder
from edge_agent.engine import choose_backend
from edge_agent.engine.graph.prepared import profile_named
from edge_agent.engine.models import choose_model
from edge_agent.engine.precision.calibration import current_calibration, engines_folder
from edge_agent.offline.dataset import Crop, Problem
from edge_agent.offline.evaluate.labels import EmbeddedCrops

if TYPE_CHECKING:
    from edge_agent.core.config import Settings
    from edge_agent.engine.base import Engine

_BATCH = 64
_DECODERS = 2


class CropEmbedder(Protocol):
    """An open embedder: `edge_agent.embed.embedder.Embedder` or `RawEmbedder`."""

    @property
    def info(self) -> EngineInfo:
        """The network."""

    def embed_images(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """N pictures `(h, w, 3)` uint8 BGR -> `(N, D)` float32."""


@dataclass(frozen=True, slots=True)
class EmbeddedPaths:
    """`(N, D)` float32 of the readable pictures, their rows `(N,)` among the paths, and pictures left out."""

    rows: NDArray[np.intp]
    vectors: NDArray[np.float32]
    problems: tuple[Problem, ...]


def embed_paths(
    embedder: CropEmbedder, paths: Sequence[Path], *, advance: Callable[[int], None] | None = None
) -> EmbeddedPaths:
    """Embed every readable picture, in order; `advance` is called with the number of newly processed paths.

    Raises:
        InputError: none of the pictures can be read.
        NonFiniteEmbedding, EngineError: from the network.
    """
    rows: list[int] = []
    vectors: list[NDArray[np.float32]] = []
    problems: list[Problem] = []
    pictures = enumerate(_decoded(paths))
    while batch := list(itertools.islice(pictures, _BATCH)):
        problems += [picture for _, picture in batch if isinstance(picture, Problem)]
        good = [(row, picture) for row, picture in batch if not isinstance(picture, Problem)]
        if good:
            rows += [row for row, _ in good]
            vectors.append(embedder.embed_images([picture for _, picture in good]))
        if advance is not None:
            advance(len(batch))
    if not vectors:
        raise InputError(f"none of the {len(paths)} pictures can be read; the first: {problems[0].path}")
    return EmbeddedPaths(np.array(rows, np.intp), np.concatenate(vectors), tuple(problems))


def labelled(done: EmbeddedPaths, crops: Sequence[Crop]) -> EmbeddedCrops:
    """Return the embeddings with the labels of their crops."""
    return EmbeddedCrops.of_crops(done.vectors, [crops[row] for row in done.rows])


def _decoded(paths: Sequence[Path]) -> Iterator[NDArray[np.uint8] | Problem]:
    """Yield pictures in the order of `paths`, decoded by threads at most two batches ahead."""
    with ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode") as pool:
        waiting = [pool.submit(_read, path) for path in paths[: 2 * _BATCH]]
        for path in itertools.chain(paths[2 * _BATCH :], itertools.repeat(None, len(waiting))):
            yield waiting.pop(0).result()
            if path is not None:
                waiting.append(pool.submit(_read, path))


def _read(path: Path) -> NDArray[np.uint8] | Problem:
    try:
        return read_picture(path)
    except UnreadablePicture as problem:
        return Problem(path, problem.reason)


class RawEmbedder:
    """Embeddings that are not normalised, as in TAO's inference files.

    Runs the network on ONNX Runtime without the normalisation that is otherwise part of the graph; engines of
    other backends always include it. A context manager.
    """

    def __init__(self, model: Path, preprocess: str) -> None:
        from edge_agent.engine.graph.prepare import prepare_reid
        from edge_agent.engine.models import prepare_model
        from edge_agent.engine.onnxruntime import OnnxRuntimeEngine

        self._profile = profile_named(preprocess)
        _, golden = prepare_model(model, preprocess, None)
        prepared = prepare_reid(model, self._profile, normalise=False)
        self._golden = replace(golden, space=prepared.space)
        self._engine: Engine = OnnxRuntimeEngine(prepared, max_batch=_BATCH, threads=0)

    @property
    def info(self) -> EngineInfo:
        """The network; its space differs from that of unit-length embeddings."""
        return self._engine.info

    def __enter__(self) -> RawEmbedder:
        from edge_agent.embed.selftest import check_engine

        self._engine.__enter__()
        try:
            check_engine(self._engine, self._golden)
        except BaseException:
            self._engine.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._engine.__exit__(kind, error, trace)

    def embed_images(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """N pictures `(h, w, 3)` uint8 BGR -> `(N, D)` float32 of any length.

        Raises:
            NonFiniteEmbedding: an output is NaN or infinite.
        """
        parts = []
        for start in range(0, len(images), self.info.max_batch):
            batch = images[start : start + self.info.max_batch]
            buffer = self._engine.buffer()
            for image, target in zip(batch, buffer, strict=False):
                self._profile.fit(image, target)
            self._engine.submit(len(batch))
            parts.append(self._engine.collect())
        rows = np.concatenate(parts)
        if not np.isfinite(rows).all():
            raise NonFiniteEmbedding(f"{self.info.model} outputs NaN or infinity; check the model file")
        return rows


@dataclass(frozen=True, slots=True)
class Network:
    """The choice of a network; nothing is opened before `open`.

    Attributes:
        model: ReID ONNX, or the name of a built-in; None for the shipped default.
        preprocess: profile; None for the one that is known for the model.
        backend: `auto` or a backend; TensorRT's plans are kept where the agent keeps them.
        precision: `auto`, `fp32`, `fp16`, or `int8` of the agent's active calibration.
        raw: keep the network's own vector lengths; on ONNX Runtime only.
    """

    model: Path | None = None
    preprocess: str | None = None
    backend: str = "auto"
    precision: str = "auto"
    raw: bool = False

    def check(self) -> None:
        """Raise what `open` raises for file, profile and backend, before anything is computed."""
        with TemporaryDirectory() as scratch:
            choose_model(self._settings().engine, Path(scratch))

    def _settings(self) -> Settings:
        if self.preprocess is not None:
            profile_named(self.preprocess)
        if not is_served(self.backend):
            choose_backend(self.backend)
        keys = ("model", "preprocess", "backend", "precision")
        settings = load(None, {"engine": {key: getattr(self, key) for key in keys}})
        folder = engines_folder(settings.engine, settings.state_dir)
        return settings.model_copy(update={"engine": settings.engine.model_copy(update={"folder": folder})})

    @contextmanager
    def open(self) -> Iterator[tuple[CropEmbedder, dict[str, Any]]]:
        """Open the network; give its embedder and its description for documents and manifests.

        Raises:
            ConfigError: no such profile or backend, or a raw run on another backend.
        """
        with TemporaryDirectory() as scratch:
            state = Path(scratch)
            settings = self._settings()
            engine = settings.engine
            if self.raw:
                chosen = choose_model(engine, state)
                if self.backend not in {"auto", "onnxruntime"} or self.precision not in {"auto", "fp32"}:
                    raise ConfigError("raw embeddings are computed by ONNX Runtime in FP32 only")
                with RawEmbedder(chosen.path, chosen.preprocess) as raw:
                    yield raw, _description(raw, chosen.preprocess)
                return
            calibration = current_calibration(engine, state) if self.precision == "int8" else None
            with open_embedder(engine, settings.quality, state, calibration) as embedder:
                yield embedder, _description(embedder, embedder.profile)


def _description(embedder: CropEmbedder, profile: str) -> dict[str, Any]:
    info = embedder.info
    keys = ("space", "dimension", "backend", "precision", "device")
    known = {"name": info.model, "sha256": info.model_sha256, "preprocess": profile}
    return known | {key: getattr(info, key) for key in keys}
