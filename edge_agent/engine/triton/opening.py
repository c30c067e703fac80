"""From settings to an engine on a server: which network is wanted, and what its rows are compared with."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog

from edge_agent.core.errors import ConfigError, EdgeAgentError, EngineUnavailable
from edge_agent.core.files import read_object
from edge_agent.core.manifest import write_json_atomic
from edge_agent.core.private import private_folder
from edge_agent.engine.golden import Golden, known_golden
from edge_agent.engine.graph.prepared import PROFILES, embedding_space
from edge_agent.engine.models import choose_model, prepare_model
from edge_agent.engine.precision.calibration import engines_folder
from edge_agent.engine.triton.connection import Connection
from edge_agent.engine.triton.contract import Network
from edge_agent.engine.triton.engine import TritonEngine

if TYPE_CHECKING:
    from edge_agent.core.config import EngineSettings

_log = structlog.get_logger(__name__)

STATED = "served.json"
"""File of the engines folder: what the server stated last, for a start without the server."""


class Opened(NamedTuple):
    """An engine that is not entered, the network that it runs, and the reference of its self-test, if any."""

    engine: TritonEngine
    network: Network
    golden: Golden | None


def open_served(settings: EngineSettings, state: Path, *, max_batch: int, patient: bool) -> Opened:
    """Open the network of `engine.model`, else the one that the server states, on the server.

    With `patient`, which the agent is, the server may be away: what it stated last is then taken.

    Raises:
        ConfigError: the network is not known, or a setting does not fit.
        ModelError: the model of the settings or of the server does not fit.
        EngineUnavailable: the server does not answer, and there is no statement of an earlier time.
    """
    if settings.model is not None:
        model = choose_model(settings, state)
        prepared, reference = prepare_model(model.path, model.preprocess, state)
        return _opened(settings, Network.of(prepared), reference, max_batch, patient=patient)
    network = _stated(settings, engines_folder(settings, state) / STATED, patient=patient)
    if settings.preprocess not in (None, network.profile.name):
        raise ConfigError(
            f"engine.preprocess is {settings.preprocess}, but the server states {network.profile.name}:"
            " leave engine.preprocess out"
        )
    known = known_golden(network.space, network.dimension, state)
    return _opened(settings, network, known, max_batch, patient=patient)


def _opened(
    settings: EngineSettings, network: Network, golden: Golden | None, max_batch: int, *, patient: bool
) -> Opened:
    engine = TritonEngine(settings, network, max_batch=max_batch, patient=patient)
    return Opened(engine, network, golden)


def _stated(settings: EngineSettings, file: Path, *, patient: bool) -> Network:
    connection = Connection(settings)
    try:
        network = connection.open().served.network()
    except EngineUnavailable as problem:
        if patient and (known := _read(file, settings.backend)) is not None:
            return known
        hint = (
            "; the server must answer at the first start, or engine.model name the ONNX file of its network"
        )
        raise EngineUnavailable(f"{settings.backend}: {problem}{hint if patient else ''}") from problem
    finally:
        connection.close()
    if patient:
        _write(file, settings.backend, network)
    return network


def _write(file: Path, backend: str, network: Network) -> None:
    document: dict[str, Any] = {
        "backend": backend,
        "model": network.name,
        "model_sha256": network.sha256,
        "profile": network.profile.name,
        "dimension": network.dimension,
        "input_size": list(network.input_size),
    }
    try:
        private_folder(file.parent)
        write_json_atomic(file, document, mode=0o600)
    except (EdgeAgentError, OSError) as problem:  # it only helps a later start
        _log.warning("statement_not_kept", file=str(file), error=str(problem))


def _read(file: Path, backend: str) -> Network | None:
    """Read what the same server stated at an earlier start; None where that is not known."""
    with contextlib.suppress(EdgeAgentError, KeyError, TypeError, ValueError):
        found = read_object(file)
        profile = PROFILES[found["profile"]]
        height, width = map(int, found["input_size"])
        dimension, sha256 = int(found["dimension"]), str(found["model_sha256"])
        if found["backend"] == backend and min(height, width, dimension) > 0:
            space = embedding_space(sha256, profile, dimension)
            return Network(str(found["model"]), sha256, space, dimension, (height, width), profile)
    return None
