"""The ReID network that the settings name, and its preprocess profile."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from edge_agent.core.errors import ConfigError, InputError, MissingFile
from edge_agent.core.files import open_regular, shown
from edge_agent.engine.golden import Golden, load_or_make
from edge_agent.engine.graph.prepare import prepare_reid
from edge_agent.engine.graph.prepared import PreparedGraph, profile_named
from edge_agent.engine.graph.stripes import STRIPES_NAME, STRIPES_PROFILE, write_stripe_model
from edge_agent.engine.profiles import Chosen, profile_of

if TYPE_CHECKING:
    from edge_agent.core.config import EngineSettings

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Model:
    """A ReID network and the name of its preprocess profile."""

    path: Path
    preprocess: str


def default_model() -> Path | None:
    """Return the model that ships with the project, or None where it is not installed."""
    for folder in (Path(__file__).parents[2] / "engines", Path(sys.prefix) / "share" / "edge-agent"):
        if (folder / "default.onnx").is_file():
            return folder / "default.onnx"
    return None


def choose_model(settings: EngineSettings, state: Path) -> Model:
    """Return the configured model, else the shipped one. The built-in one is written to `state`.

    The profile is the configured one, else that of `profiles.profile_of`. ConfigError where no model is
    configured and none ships, or the profile is not known, InputError where the file does not exist.
    """
    if settings.model is not None and str(settings.model) == STRIPES_NAME:
        path = write_stripe_model(state / f"{STRIPES_NAME}.onnx")
        return Model(path, settings.preprocess or STRIPES_PROFILE)
    model = settings.model if settings.model is not None else default_model()
    if model is None:
        raise ConfigError(
            f"no ReID model: name one with --model FILE.onnx or engine.model, or {STRIPES_NAME!r} for "
            "the built-in colour comparison, which is good for a demonstration only"
        )
    try:
        open_regular(model).close()
    except MissingFile:
        raise InputError(f"{shown(model)}: no such model file") from None
    chosen = Chosen(settings.preprocess, "configured") if settings.preprocess else profile_of(model)
    _log.info("model", file=shown(model), preprocess=chosen.name, origin=chosen.origin)
    return Model(model, chosen.name)


def prepare_model(model: Path, preprocess: str, state: Path | None) -> tuple[PreparedGraph, Golden]:
    """Return the prepared network and the reference embeddings of its self-test, which are kept in `state`.

    Raises:
        ModelError: the file does not fit; the message explains the fix.
    """
    prepared = prepare_reid(model, profile_named(preprocess))
    return prepared, load_or_make(prepared, state)
