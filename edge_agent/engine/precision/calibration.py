"""A finished calibration: the chosen precision of a network, its graph, and the match threshold.

`edge-agent calibrate` writes it; everything that opens an engine reads it::

    engines/calibrations/<name>/
    ├── manifest.json             kind `calibration`: the choice, and digests of all files
    ├── report.json, report.html
    ├── sample.json, scales.json  with a data set: the calibration crops and their ranges
    ├── tensorrt-scales.json      with INT8: ranges for engines without quantise/dequantise nodes
    └── int8.onnx or fp16.onnx    the graph, unless FP32 was chosen

`engines/active.json` names the active one (`edge_agent.engine.plans.active`).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.core.errors import ConfigError, InputError, StorageError
from edge_agent.core.files import MAX_MODEL_BYTES, read_file
from edge_agent.core.manifest import Manifest
from edge_agent.engine.graph.prepared import PreparedGraph
from edge_agent.engine.plans.active import ActiveEngine
from edge_agent.engine.precision.half import to_half
from edge_agent.engine.precision.scales import Scales

if TYPE_CHECKING:
    from edge_agent.core.config import EngineSettings

CALIBRATIONS = "calibrations"
"""Folder inside the engines folder."""

MANIFEST = "manifest.json"
KIND, VERSION = "calibration", 1

_AGAIN = "run `edge-agent calibrate` again"


@dataclass(frozen=True, slots=True)
class Calibration:
    """A finished calibration: the folder, the data of its manifest, and the names of its files."""

    folder: Path
    data: Mapping[str, Any]
    files: tuple[str, ...]

    @staticmethod
    def read(folder: Path) -> Calibration:
        """Read a calibration and check the digests of all files; InputError where it is not whole."""
        try:
            manifest = Manifest.read(folder / MANIFEST, kind=KIND, version=VERSION)
            manifest.verify(folder)
        except InputError as problem:
            raise InputError(f"{problem}; {_AGAIN}") from problem
        return Calibration(folder, manifest.data, tuple(manifest.files))

    @property
    def name(self) -> str:
        """Name of its folder."""
        return self.folder.name

    @property
    def precision(self) -> str:
        """`fp32`, `fp16` or `int8`."""
        return str(self.data["precision"])

    @property
    def backend(self) -> str:
        """Backend that it was made for and measured on."""
        return str(self.data["backend"])

    @property
    def threshold(self) -> float | None:
        """Least cosine of a match; None where the data was too small for one."""
        value = self.data["threshold"]["value"]
        return None if value is None else float(value)

    @property
    def pair_rate(self) -> float:
        """False-match rate of pairs at the threshold."""
        return float(self.data["threshold"]["target_fmr"])

    def fits(self, prepared: PreparedGraph) -> bool:
        """Return whether it belongs to this network with this preprocess profile."""
        return bool(self.data["space"] == prepared.space)

    def graph(self, prepared: PreparedGraph) -> PreparedGraph:
        """Return the network in the chosen precision; InputError where the file cannot be read."""
        name = self.data["graph"]
        if name is None:
            return prepared
        try:
            onnx = read_file(self.folder / name, MAX_MODEL_BYTES)
        except InputError as problem:
            raise InputError(f"{problem}; {_AGAIN}") from problem
        return replace(prepared, onnx=onnx, precision=self.precision)

    def scales(self) -> Scales:
        """Return the INT8 ranges for engines without quantise/dequantise nodes; InputError without INT8."""
        name = self.data["scales"]
        if name is None:
            raise InputError(f"{self.folder} has no INT8 ranges, since INT8 was not chosen; {_AGAIN}")
        return Scales.read(self.folder / name)

    def summary(self) -> dict[str, Any]:
        """Return what is published: no paths, nothing about single crops."""
        gate, threshold = self.data["gate"], self.data["threshold"]
        return {
            "name": self.name,
            "created": self.data["created"],
            "precision": self.precision,
            "gate_passed": gate["passed"],
            "mAP": gate["mAP_candidate"],
            "threshold": threshold["value"],
            "target_fmr": threshold["target_fmr"],
            "pairs": threshold["pairs"],
        }


def engines_folder(settings: EngineSettings, state: Path) -> Path:
    """Return the folder of calibrations and plans."""
    return settings.folder if settings.folder is not None else state / "engines"


def current_calibration(settings: EngineSettings, state: Path) -> Calibration | None:
    """Return the active calibration, of any network, or None; InputError where it is damaged."""
    engines = engines_folder(settings, state)
    active = ActiveEngine(engines).read()
    if active.current is None or "calibration" not in active.current:
        return None
    return Calibration.read(engines / str(active.current["calibration"]))


def prune_calibrations(engines: Path) -> tuple[tuple[str, ...], int]:
    """Remove calibrations that are neither active nor the previous one; return their names and total bytes.

    An interrupted one is removed too: `edge-agent calibrate` would start over. Where `active.json` is damaged
    (InputError), nothing is removed.
    """
    folder = engines / CALIBRATIONS
    active = ActiveEngine(engines).read()
    kept = {record["name"] for record in (active.current, active.previous) if record is not None}
    gone = sorted(path for path in folder.glob("*") if path.is_dir() and path.name not in kept)
    freed = 0
    for path in gone:
        freed += sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        try:
            shutil.rmtree(path)
        except OSError as problem:
            raise StorageError(f"cannot remove {path}: {problem.strerror}") from problem
    return tuple(path.name for path in gone), freed


def in_precision(
    prepared: PreparedGraph, wanted: str, backend: str, calibration: Calibration | None
) -> PreparedGraph:
    """Return a network, prepared as exported, in the precision `wanted`: `auto`, `fp32`, `fp16` or `int8`.

    `auto`: what the active calibration chose for this backend; without one FP16 on TensorRT, else FP32. A
    calibration of another network is not used.

    Raises:
        ConfigError: INT8 is wanted, and no calibration of this network has it.
        InputError: the calibration's graph cannot be read.
    """
    own = calibration if calibration is not None and calibration.fits(prepared) else None
    if wanted == "auto" and own is not None and own.backend == backend:
        return own.graph(prepared)
    if wanted == "auto":
        wanted = "fp16" if backend == "tensorrt" else "fp32"
    if wanted == "fp32":
        return prepared
    if own is not None and own.precision == wanted:
        return own.graph(prepared)
    if wanted == "fp16":
        return to_half(prepared)
    raise ConfigError(
        f"no INT8 calibration of {prepared.name} with profile {prepared.profile and prepared.profile.name} "
        "has passed the accuracy gate here; run `edge-agent calibrate --dataset DIR`, or choose "
        "engine.precision auto or fp16"
    )
