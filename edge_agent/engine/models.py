"""The ReID network that the settings name, and its preprocess profile."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_agent.core.errors import ConfigError, InputError
from edge_agent.core.manifest import read_json

if TYPE_CHECKING:
    from edge_agent.core.config import EngineSettings
    from edge_agent.engine.golden import Golden
    from edge_agent.engine.graph.prepared import PreparedGraph

__all__ = ["STRIPES", "Model", "choose_model", "default_model", "prepare_model"]

STRIPES = "colour-stripes"
"""Name that stands for the built-in colour-stripe graph where a model file is expected."""

_FALLBACK_PROFILE = "tao"


@dataclass(frozen=True, slots=True)
class Model:
    """A ReID network and how its input is prepared."""

    path: Path
    preprocess: str


def default_model() -> Path | None:
    """The model that ships with the project, or None where it is not installed."""
    for folder in (Path(__file__).parents[2] / "engines", Path(sys.prefix) / "share" / "edge-agent"):
        if (folder / "default.onnx").is_file():
            return folder / "default.onnx"
    return None


def choose_model(settings: EngineSettings, state: Path) -> Model:
    """The configured model, else the shipped one, with its preprocess profile.

    The profile is the configured one, else what the model's own manifest (`MODEL.json`) says, else `tao`.

    Raises:
        ConfigError: no model is configured and none ships.
        InputError: the configured file does not exist.
    """
    if settings.model is not None and str(settings.model) == STRIPES:
        return Model(_stripes(state), settings.preprocess or _FALLBACK_PROFILE)
    path = settings.model if settings.model is not None else default_model()
    if path is None:
        raise ConfigError(
            f"no ReID model: name one with --model FILE.onnx or engine.model, or {STRIPES!r} for "
            "the built-in colour comparison, which is good for a demonstration only"
        )
    if not path.is_file():
        raise InputError(f"{path}: no such model file")
    return Model(path, settings.preprocess or _profile_of(path))


def _stripes(state: Path) -> Path:
    from edge_agent.engine.graph.stripes import write_stripe_model

    path = state / f"{STRIPES}.onnx"
    write_stripe_model(path)
    return path


def _profile_of(model: Path) -> str:
    manifest = model.with_suffix(".json")
    if not manifest.is_file():
        return _FALLBACK_PROFILE
    return str(read_json(manifest).get("preprocess", _FALLBACK_PROFILE))


def prepare_model(model: Path, preprocess: str, state: Path | None) -> tuple[PreparedGraph, Golden]:
    """The network with pre- and post-processing inside, and reference embeddings for its self-test.

    Args:
        model: ReID ONNX.
        preprocess: name of the profile.
        state: folder where the reference embeddings are kept, None to keep nothing.

    Raises:
        ModelError: the file does not fit; says how to mend it.
    """
    from edge_agent.engine.golden import load_or_make
    from edge_agent.engine.graph import prepare_reid
    from edge_agent.engine.graph.profiles import profile_named

    prepared = prepare_reid(model, profile_named(preprocess))
    return prepared, load_or_make(prepared, state)
