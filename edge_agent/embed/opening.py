"""From settings to an embedder: network, engine, quality gate and packer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.core.errors import ConfigError
from edge_agent.core.served import is_served
from edge_agent.embed.capacity import CropBudget
from edge_agent.embed.embedder import Embedder
from edge_agent.embed.packer import Packer, SubprocessPacker
from edge_agent.embed.quality import QualityGate
from edge_agent.embed.selection import CropSelector
from edge_agent.engine import PlanOptions, choose_backend, is_simulated, open_engine, open_simulated
from edge_agent.engine.graph.prepared import PROFILES
from edge_agent.engine.models import choose_model, prepare_model
from edge_agent.engine.precision.calibration import engines_folder, in_precision
from edge_agent.engine.upstream import UpstreamEngine
from edge_agent.source.address import no_pictures, source_kind

if TYPE_CHECKING:
    from edge_agent.core.config import EngineSettings, QualitySettings, Settings
    from edge_agent.engine.base import Engine
    from edge_agent.engine.golden import Golden
    from edge_agent.engine.graph.prepared import PreparedGraph, PreprocessProfile
    from edge_agent.engine.precision.calibration import Calibration
    from edge_agent.engine.precision.scales import Scales
    from edge_agent.engine.tensorrt.builder import Progress
    from edge_agent.identify.tracks import TrackTable


def open_agent_embedder(
    settings: Settings,
    state: Path,
    calibration: Calibration | None = None,
    *,
    building: Progress | None = None,
    patient: bool = True,
) -> Embedder:
    """Return the embedder of a run, not yet entered: without a network where no source has pictures.

    Arguments as in `open_embedder`.

    Raises:
        ModelError: as in `open_embedder`.
        ConfigError: so too, or the embeddings of messages and those of the network are of different spaces.
    """
    chosen = settings.detector
    addresses = [source.url for source in settings.sources if source.enabled]
    if no_pictures(addresses) and chosen.external_space is not None:
        computed = UpstreamEngine(chosen.external_space, chosen.external_dimension)
        return Embedder(computed, profile=PROFILES["tao"], gate=QualityGate(settings.quality))
    embedder = open_embedder(
        settings.engine, settings.quality, state, calibration, building=building, patient=patient
    )
    if any(source_kind(address) == "deepstream" for address in addresses):
        own, theirs = embedder.info, (chosen.external_space, chosen.external_dimension)
        if (own.space, own.dimension) != theirs:
            raise ConfigError(
                f"sources with pictures get embeddings of the space {own.space} ({own.dimension} numbers) of"
                f" {own.model}, sources deepstream:SENSOR those of {theirs[0]} ({theirs[1]} numbers,"
                " detector.external_space); they cannot be compared: use one network for both, or two agents"
            )
    return embedder


def open_embedder(
    engine: EngineSettings,
    quality: QualitySettings,
    state: Path,
    calibration: Calibration | None = None,
    *,
    max_batch: int | None = None,
    building: Progress | None = None,
    patient: bool = False,
) -> Embedder:
    """Return the embedder that the settings name; not yet entered.

    `state` is the folder for the self-test's references, and for plans where `engine` names no other.
    `building` is called during the build of a plan: phase, steps done, steps in all. `patient`: an inference
    server that does not answer now is no error.

    Raises:
        ModelError: the model file does not fit; the message says how to mend it.
        ConfigError: the precision is not available, or a simulated engine is given a network.
        EngineUnavailable: an inference server does not answer.
    """
    if is_served(engine.backend):
        from edge_agent.engine.triton.opening import open_served

        served = open_served(engine, state, max_batch=max_batch or engine.max_batch, patient=patient)
        return _assemble(served.engine, served.network.profile, engine.packing, quality, served.golden)
    if is_simulated(engine.backend):
        return _open_simulated(engine, quality, max_batch)
    model = choose_model(engine, state)
    prepared, golden = prepare_model(model.path, model.preprocess, state)
    ranges = None
    if calibration is not None and calibration.fits(prepared):
        ranges = partial(lambda known: (prepared, known.scales()), calibration)
    return make_embedder(
        in_precision(prepared, engine.precision, choose_backend(engine.backend), calibration),
        golden,
        engine=engine,
        quality=quality,
        plans=engines_folder(engine, state),
        ranges=ranges,
        max_batch=max_batch,
        building=building,
    )


def make_embedder(
    graph: PreparedGraph,
    golden: Golden,
    *,
    engine: EngineSettings,
    quality: QualitySettings,
    plans: Path | None,
    ranges: Callable[[], tuple[PreparedGraph, Scales]] | None = None,
    max_batch: int | None = None,
    building: Progress | None = None,
) -> Embedder:
    """Return an embedder for exactly this graph, in the precision that shall run; not yet entered.

    `plans` is the folder of TensorRT's plans, None to keep none. `ranges` returns the FP32 graph and its INT8
    ranges, for INT8 engines that take these instead.
    """
    profile = graph.profile
    assert profile is not None  # only detectors have none
    options = None
    if plans is not None:
        options = PlanOptions(plans, ranges, progress=building, conditions=lambda: _conditions(plans))
    opened = open_engine(graph, engine, options, max_batch=max_batch)
    return _assemble(opened, profile, engine.packing, quality, golden)


def make_crop_selector(
    engine: EngineSettings, embedder: Embedder, tracks: TrackTable, new_track: Callable[[str], float]
) -> CropSelector:
    """Return the crop selection of a run, for an entered embedder; `new_track` as in `CropSelector`."""
    budget = None
    if engine.overload == "thin":
        embedder.deep = True
        budget = CropBudget(
            lambda: (embedder.counters.embedded, embedder.engine.run_seconds), lambda: embedder.queue
        )
    return CropSelector(tracks, budget, new_track)


def _open_simulated(engine: EngineSettings, quality: QualitySettings, max_batch: int | None) -> Embedder:
    from edge_agent.engine.simulated import PROFILE

    keys = ("model", "preprocess", "precision")
    if named := [key for key in keys if getattr(engine, key) not in (None, "auto")]:
        raise ConfigError(
            f"engine.backend {engine.backend} runs no network, so engine.{named[0]} has no meaning: leave it"
            " out, or choose another backend"
        )
    opened = open_simulated(engine.backend, max_batch=max_batch or engine.max_batch)
    return _assemble(opened, PROFILE, engine.packing, quality, None)


def _assemble(
    opened: Engine, profile: PreprocessProfile, packing: str, quality: QualitySettings, golden: Golden | None
) -> Embedder:
    packer: Packer | None = None
    if packing == "beside" or (packing == "auto" and opened.info.backend != "onnxruntime"):
        packer = SubprocessPacker(profile, quality.min_sharpness, opened.input_size, opened.info.max_batch)
    return Embedder(opened, profile=profile, gate=QualityGate(quality), golden=golden, packer=packer)


def _conditions(disk: Path) -> dict[str, Any]:
    """Return the state of the device while a plan is built: its kernels are timed under it."""
    from edge_agent.core.config import TelemetrySettings
    from edge_agent.health.telemetry import Telemetry

    with Telemetry(TelemetrySettings(jtop=False), disk) as telemetry:
        reading = telemetry.read()
    return {key: getattr(reading, key) for key in ("power_mode", "clocks_locked", "gpu_mhz", "gpu_max_mhz")}
