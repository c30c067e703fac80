"""Writes a network for DeepStream: computes all files, measures the arithmetic, and writes one folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import structlog
from numpy.typing import NDArray

from edge_agent.core.errors import ConfigError, InputError
from edge_agent.core.files import shown
from edge_agent.core.manifest import FileRecord, Manifest
from edge_agent.core.text import is_visible
from edge_agent.engine.precision.half import kept_in_float32
from edge_agent.offline.exports.deepstream import files
from edge_agent.offline.exports.deepstream.arithmetic import Arithmetic, differences
from edge_agent.offline.exports.deepstream.graph import calibration_table, deepstream_graph
from edge_agent.offline.exports.deepstream.readme import readme
from edge_agent.offline.exports.folders import check_target, write_folder
from edge_agent.offline.exports.network import with_card

if TYPE_CHECKING:
    from edge_agent.engine.graph.prepared import PreparedGraph
    from edge_agent.engine.precision.calibration import Calibration
    from edge_agent.engine.precision.scales import Scales
    from edge_agent.offline.exports.deepstream.crops import Crops
    from edge_agent.offline.exports.network import ExportNetwork

_log = structlog.get_logger(__name__)

_KIND, _VERSION = "deepstream", 1


@dataclass(frozen=True, slots=True)
class Cosines:
    """Mean and least cosine to the agent's own embedding."""

    mean: float
    least: float

    @staticmethod
    def of(cosines: NDArray[np.float64]) -> Cosines:
        """Summarise cosines `(N,)`."""
        return Cosines(round(float(cosines.mean()), 6), round(float(cosines.min()), 6))


@dataclass(frozen=True, slots=True)
class Facts:
    """What an export is, for its README, its manifest and the command's output.

    Attributes:
        name, source, sha256, profile: of the network.
        space: id of the embedding space of what DeepStream will send.
        colour, scale, offsets: DeepStream's arithmetic.
        in_graph: factors of the channels that the graph itself multiplies by; None where one scale fits all.
        table_release: TensorRT release of the calibration table; "" without one.
        notes: further entries of the model card.
        same, moved, padded: see `arithmetic.Differences`, on `crops`.
    """

    name: str
    source: str
    sha256: str
    profile: str
    precision: str
    space: str
    keep_aspect: bool
    input_size: tuple[int, int]
    dimension: int
    colour: str
    scale: float
    offsets: tuple[float, float, float]
    in_graph: tuple[float, ...] | None
    table_release: str
    notes: Mapping[str, str]
    crops: str
    same: Cosines
    moved: Cosines
    padded: Cosines


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Raise InputError where `export_deepstream` would refuse the folder, before anything is computed."""
    check_target(folder, files.OWN, overwrite=overwrite)
    if not is_visible(str(folder.resolve())):
        raise InputError(
            f"{shown(folder)}: nvtracker's settings contain the path of this folder, and it has "
            "characters that are no text; name another folder"
        )


def precision_of(network: ExportNetwork) -> tuple[str, Scales | None]:
    """Return precision and ranges for the network of an export; errors as in `choose_precision`."""
    return choose_precision(network.prepared, network.settings.precision, network.active)


def choose_precision(
    prepared: PreparedGraph, wanted: str, calibration: Calibration | None
) -> tuple[str, Scales | None]:
    """Return the precision for TensorRT, and the ranges of INT8.

    `auto`: that of the active calibration of this network, else FP16, or FP32 where a weight is beyond FP16.

    Raises:
        ConfigError: INT8 without such a calibration, or FP16 with weights that it cannot hold.
        InputError: the calibration's ranges cannot be read.
    """
    own = calibration if calibration is not None and calibration.fits(prepared) else None
    chosen = wanted
    if wanted == "auto":
        chosen = "fp16" if own is None else own.precision
    if chosen == "int8":
        if own is None or own.precision != "int8":
            raise ConfigError(
                f"no INT8 calibration of {prepared.name} is active here, so there are no ranges for "
                "DeepStream; run `edge-agent calibrate --dataset DIR`, or choose --precision fp16"
            )
        return chosen, own.scales()
    wide = kept_in_float32(prepared) if chosen == "fp16" else ()
    if wide and wanted != "auto":
        raise ConfigError(
            f"{prepared.name} has weights beyond FP16 ({wide[0]}), which TensorRT would make infinite; "
            "export it with --precision fp32"
        )
    if wide:
        _log.warning("exported_in_fp32", model=prepared.name, why="a weight is beyond FP16", node=wide[0])
    return ("fp32" if wide else chosen), None


def export_deepstream(
    prepared: PreparedGraph,
    folder: Path,
    crops: Crops,
    *,
    precision: str = "fp16",
    scales: Scales | None = None,
    keep_aspect: bool = False,
    notes: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Facts:
    """Write the folder of a network in FP32, as exported; `precision` and `scales` from `choose_precision`.

    `notes` are further entries of the model card, in the network's metadata.

    Raises:
        ConfigError: DeepStream cannot compute the profile, or reads no INT8 ranges.
        ModelError: the exported network gives other embeddings than the agent's: nothing is written.
        InputError, StorageError: `folder` exists, or cannot be written.
    """
    check_folder(folder, overwrite=overwrite)
    profile = prepared.profile
    assert profile is not None  # only detectors have none
    arithmetic = Arithmetic.of(profile, keep_aspect=keep_aspect)
    graph = deepstream_graph(prepared, arithmetic.factors)
    found = differences(prepared, graph, arithmetic, crops.pictures)
    space = arithmetic.space(prepared)
    card = {"exported_from": prepared.source_sha256, "embedding_space": space, **(notes or {})}
    written = {files.ONNX: with_card(graph, card)[0]}
    release = ""
    if precision == "int8" and scales is not None:
        written[files.TABLE], numbers = calibration_table(graph, scales)
        release = ".".join(map(str, numbers))
    facts = Facts(
        name=prepared.name,
        source=prepared.source.name,
        sha256=prepared.source_sha256,
        profile=profile.name,
        precision=precision,
        space=space,
        keep_aspect=keep_aspect,
        input_size=prepared.input_size,
        dimension=prepared.dimension,
        colour=arithmetic.colour,
        scale=arithmetic.scale,
        offsets=arithmetic.offsets,
        in_graph=None if arithmetic.factors is None else tuple(map(float, arithmetic.factors)),
        table_release=release,
        notes=dict(notes or {}),
        crops=crops.what,
        same=Cosines.of(found.pixels),
        moved=Cosines.of(found.moved),
        padded=Cosines.of(found.padded),
    )
    written |= _settings(facts, arithmetic, folder)
    written[files.MANIFEST] = _manifest(facts, written)
    write_folder(folder, written, files.OWN, overwrite=overwrite)
    return facts


def _settings(facts: Facts, arithmetic: Arithmetic, folder: Path) -> dict[str, bytes]:
    """Return all files that are text."""
    where = folder.resolve()
    bundle = files.Bundle(arithmetic, facts.input_size, facts.dimension, facts.precision, where)
    texts = {files.NVINFER: files.nvinfer(bundle), files.README: readme(facts, where)}
    texts |= {name: files.tracker(bundle, kind) for name, kind in files.TRACKERS.items()}
    if arithmetic.factors is None:
        texts[files.INFERSERVER] = files.inferserver(bundle)
    return {name: text.encode() for name, text in texts.items()}


def _manifest(facts: Facts, written: dict[str, bytes]) -> bytes:
    records = {name: FileRecord(sha256(data).hexdigest(), len(data)) for name, data in written.items()}
    return Manifest(_KIND, _VERSION, records, asdict(facts)).encoded()
