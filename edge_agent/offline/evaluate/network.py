"""The network that `edge-agent embed` and `edge-agent evaluate` run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edge_agent.core.errors import ConfigError
from edge_agent.core.loading import load
from edge_agent.embed.opening import open_embedder
from edge_agent.engine import choose_backend
from edge_agent.engine.graph.prepared import profile_named
from edge_agent.engine.models import choose_model
from edge_agent.engine.precision.calibration import current_calibration, engines_folder
from edge_agent.offline.evaluate.embedding import CropEmbedder, RawEmbedder

__all__ = ["Network"]


@dataclass(frozen=True, slots=True)
class Network:
    """The choice of a network; nothing is opened before `open`.

    Attributes:
        model: ReID ONNX, or the name of a built-in; None for the shipped default.
        preprocess: profile; None for that of the model's manifest.
        backend: `auto` or a backend; TensorRT's plans are kept where the agent keeps them.
        precision: `auto`, `fp32`, `fp16`, or `int8` of the agent's active calibration.
        raw: keep the network's own vector lengths; on ONNX Runtime only.
    """

    model: Path | None = None
    preprocess: str | None = None
    backend: str = "auto"
    precision: str = "auto"
    raw: bool = False

    @contextmanager
    def open(self) -> Iterator[tuple[CropEmbedder, dict[str, Any]]]:
        """Open the network; give its embedder and its description for documents and manifests.

        Raises:
            ConfigError: no such profile or backend, or a raw run on another backend.
        """
        if self.preprocess is not None:
            profile_named(self.preprocess)
        choose_backend(self.backend)
        keys = ("model", "preprocess", "backend", "precision")
        settings = load(None, {"engine": {key: getattr(self, key) for key in keys}})
        folder = engines_folder(settings.engine, settings.state_dir)
        engine = settings.engine.model_copy(update={"folder": folder})
        with TemporaryDirectory() as scratch:
            state = Path(scratch)
            chosen = choose_model(engine, state)
            if self.raw:
                if self.backend not in {"auto", "onnxruntime"} or self.precision not in {"auto", "fp32"}:
                    raise ConfigError("raw embeddings are computed by ONNX Runtime in FP32 only")
                with RawEmbedder(chosen.path, chosen.preprocess) as raw:
                    yield raw, _description(raw, chosen.preprocess)
                return
            calibration = current_calibration(engine, state) if self.precision == "int8" else None
            with open_embedder(engine, settings.quality, state, calibration) as embedder:
                yield embedder, _description(embedder, chosen.preprocess)


def _description(embedder: CropEmbedder, profile: str) -> dict[str, Any]:
    info = embedder.info
    return {
        "name": info.model,
        "sha256": info.model_sha256,
        "preprocess": profile,
        "space": info.space,
        "dimension": info.dimension,
        "backend": info.backend,
        "precision": info.precision,
        "device": info.device,
    }
