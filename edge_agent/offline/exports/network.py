"""The network that an export takes: the one that the agent runs with these settings, checked once more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from edge_agent import __version__
from edge_agent.core.errors import ConfigError, ModelError
from edge_agent.core.files import shown
from edge_agent.embed.selftest import check_engine
from edge_agent.engine import BACKENDS, choose_backend
from edge_agent.engine.golden import Golden, golden_crops, least_cosine
from edge_agent.engine.graph.bare import bare_graph
from edge_agent.engine.graph.nodes import metadata_of
from edge_agent.engine.graph.prepared import PreparedGraph, PreprocessProfile
from edge_agent.engine.models import choose_model, prepare_model
from edge_agent.engine.onnxruntime import OnnxRuntimeEngine, run_once
from edge_agent.engine.precision.calibration import (
    Calibration,
    current_calibration,
    engines_folder,
    in_precision,
)

if TYPE_CHECKING:
    from edge_agent.core.config import EngineSettings, Settings

_LEAST_SAME = {"fp32": 0.99999, "fp16": 0.9999, "int8": 0.99}
"""Least cosine of a bare graph's rows to those of the prepared graph, by precision: their input differs in
the last bits, which INT8 may round to another step."""
_MOST_TEXT, _MOST_ENTRIES = 4_000, 64
"""Characters of an entry of a file's own card, and entries, that are taken over."""


@dataclass(frozen=True, slots=True)
class ExportNetwork:
    """A ReID network as the agent runs it.

    Attributes:
        prepared: the prepared graph, FP32.
        graph: the prepared graph in the precision that the agent runs: pixels in, unit rows out.
        golden: reference embeddings of the self-test.
        settings: section `engine` of the settings.
        backend: `onnxruntime` or `tensorrt`.
        active: the active calibration, of any network.
        engines: folder of calibrations and plans.
        notes: further entries of the model card.
    """

    prepared: PreparedGraph
    graph: PreparedGraph
    golden: Golden
    settings: EngineSettings
    backend: str
    active: Calibration | None
    engines: Path
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def profile(self) -> PreprocessProfile:
        """Preprocess profile of the network."""
        assert self.graph.profile is not None  # only detectors have none
        return self.graph.profile

    @property
    def calibration(self) -> Calibration | None:
        """The active calibration where `graph` is of it."""
        known = self.active
        fits = known is not None and known.fits(self.prepared) and known.precision == self.graph.precision
        return known if fits else None

    def bare(self) -> PreparedGraph:
        """Return the graph with TAO's names and shapes; ModelError where its rows differ from `graph`'s."""
        bare = bare_graph(self.graph)
        crops = golden_crops(*self.graph.input_size)
        rows = run_once(bare.onnx, self.profile.apply(crops), f"{self.graph.name} with TAO's names")
        expected = run_once(self.graph.onnx, crops, self.graph.name)
        if (same := least_cosine(rows, expected)) < _LEAST_SAME[self.graph.precision]:
            raise ModelError(
                f"{self.graph.source} gives other embeddings with TAO's names (cosine {same:.6f}): nothing "
                "was written; export it from its training with a float32 input [batch, 3, H, W]"
            )
        return bare

    def card(self) -> dict[str, Any]:
        """Return the model card: what the network is, how it is fed, and what its own file states."""
        profile, graph = self.profile, self.graph
        card: dict[str, Any] = {
            "name": shown(graph.name),
            "sha256": graph.source_sha256,
            "file": shown(graph.source.name),
            "preprocess": {
                "profile": profile.name,
                "order": profile.order,
                "scale": profile.scale,
                "mean": list(profile.mean),
                "std": list(profile.std),
                "resize": profile.resize,
                "keep_aspect": False,
            },
            "input_size": list(graph.input_size),
            "dimension": graph.dimension,
            "space": graph.space,
            "precision": graph.precision,
            "calibration": None if self.calibration is None else self.calibration.summary(),
            "producer": f"edge-agent {__version__}",
            "file_card": _own_card(self.prepared),
        }
        return card | {"notes": dict(self.notes)}


def open_network(settings: Settings, notes: Mapping[str, str] | None = None) -> ExportNetwork:
    """Prepare the network of the settings in the precision that the agent would run, and test it.

    Raises:
        ConfigError: the backend runs no network here, or the precision is not available.
        ModelError: the network does not fit, or fails the self-test.
        InputError: the file, or the active calibration, cannot be read.
    """
    engine = settings.engine
    if engine.backend not in BACKENDS:
        raise ConfigError(
            f"engine.backend {engine.backend} runs no network on this device, so there is nothing to export "
            f"from it; name another with --backend: {', '.join(BACKENDS)}"
        )
    backend = choose_backend(engine.backend)
    with TemporaryDirectory() as scratch:  # for the built-in network
        chosen = choose_model(engine, Path(scratch))
        prepared, golden = prepare_model(chosen.path, chosen.preprocess, None)
    calibration = current_calibration(engine, settings.state_dir)
    graph = in_precision(prepared, engine.precision, backend, calibration)
    with OnnxRuntimeEngine(graph, max_batch=len(golden.vectors), threads=1) as engine_run:
        check_engine(engine_run, golden)
    engines = engines_folder(engine, settings.state_dir)
    return ExportNetwork(prepared, graph, golden, engine, backend, calibration, engines, dict(notes or {}))


def with_card(graph: PreparedGraph, entries: Mapping[str, str]) -> tuple[bytes, dict[str, str]]:
    """Return the graph's file with further entries in its metadata, and all of its metadata."""
    import onnx

    model = onnx.load_model_from_string(graph.onnx)
    card = metadata_of(model) | dict(entries)
    onnx.helper.set_model_props(model, card)
    return model.SerializeToString(), card


def _own_card(prepared: PreparedGraph) -> dict[str, str]:
    """Return what the file of a network states about itself in its metadata, without long entries."""
    import onnx

    entries = metadata_of(onnx.load_model_from_string(prepared.onnx))
    short = [(key, text) for key, text in entries.items() if len(key) + len(text) <= _MOST_TEXT]
    return dict(short[:_MOST_ENTRIES])
