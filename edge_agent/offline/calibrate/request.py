"""What a calibration is asked for, its steps, and the key under which its work is kept.

Steps survive an interruption. Each writes `<name>.json` into the folder: its result, and digests of the files
that it wrote. A step is skipped while its record and its files are intact.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from edge_agent import __version__
from edge_agent.core.config import PAIR_RATE, EngineSettings, QualitySettings
from edge_agent.core.errors import InputError
from edge_agent.core.manifest import FileRecord, Manifest
from edge_agent.core.private import private_folder
from edge_agent.offline.calibrate.gate import Bounds
from edge_agent.offline.calibrate.ranges import DEFAULT_METHOD, Method
from edge_agent.offline.calibrate.sample import DEFAULT_SIZE
from edge_agent.offline.dataset import MarketDataset

if TYPE_CHECKING:
    from edge_agent.engine.golden import Golden
    from edge_agent.engine.graph.prepared import PreparedGraph

_log = structlog.get_logger(__name__)

_KIND, _VERSION = "calibration-step", 1

StepResult = tuple[dict[str, Any], tuple[str, ...]]
"""Result of a step as JSON values, and the names of the files that it wrote."""

Make = Callable[[Path], StepResult]
"""Runs a step. Takes the folder into which the step writes its files."""

_WORK = 1
"""Raised when a change of this code invalidates stored steps."""

_CANDIDATES = {
    "auto": ("int8", "fp16", "fp32"),
    "int8": ("int8", "fp16", "fp32"),
    "fp16": ("fp16", "fp32"),
    "fp32": ("fp32",),
}
"""Precisions to try for a requested one, in this order, until one passes the gate."""

NO_DATA = "no data set: name one with --dataset DIR (Market-1501 layout) to calibrate INT8 and a threshold"


class Progress(Protocol):
    """Receives the progress of a calibration."""

    def begin(self, step: str, total: int | None) -> None:
        """Begin a step of `total` parts; None where parts cannot be counted."""

    def advance(self, count: int) -> None:
        """Record that `count` further parts are done."""


class Silent:
    """Progress that is not shown."""

    def begin(self, step: str, total: int | None) -> None:
        """Do nothing."""

    def advance(self, count: int) -> None:
        """Do nothing."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to calibrate, and how.

    Attributes:
        prepared, golden: the ReID network, from `engine.models.prepare_model`, and its reference embeddings.
        engines: folder of calibrations and plans.
        disk: a folder on the disk whose state telemetry reports.
        dataset: Market-1501 layout; None to calibrate without data.
        precision: `auto`, `fp32`, `fp16` or `int8`.
        engine, quality: backend and its options; limits of the crop quality gate, passed to the embedder.
        method, size, seed: how ranges are found; crops in the calibration sample, and its seed.
        target_fmr, bounds: false-match rate of the threshold; limits of the accuracy gate.
        sensitivity: measure each block's effect, and keep the worst in FP16 until the gate passes.
        site: a site's scores, from `gate.site_scores`.
        bench_seconds: duration of each measurement of the speed table; 0 leaves the table out.
    """

    prepared: PreparedGraph
    golden: Golden
    engines: Path
    disk: Path
    dataset: Path | None = None
    precision: str = "auto"
    engine: EngineSettings = field(default_factory=EngineSettings)
    quality: QualitySettings = field(default_factory=QualitySettings)
    method: Method = DEFAULT_METHOD
    size: int = DEFAULT_SIZE
    seed: int = 0
    target_fmr: float = PAIR_RATE
    bounds: Bounds = field(default_factory=Bounds)
    sensitivity: bool = False
    site: Mapping[str, Any] | None = None
    bench_seconds: float = 2.0

    @property
    def candidates(self) -> tuple[str, ...]:
        """Precisions to try, in order; INT8 only with a data set."""
        wanted = _CANDIDATES[self.precision]
        return wanted if self.dataset is not None else tuple(name for name in wanted if name != "int8")


@dataclass(frozen=True, slots=True)
class Work:
    """What all parts of one calibration share; `backend` is the one that the request's resolves to."""

    request: Request
    backend: str
    dataset: MarketDataset | None
    steps: Steps
    progress: Progress


_INPUTS = ("precision", "method", "size", "seed", "target_fmr", "sensitivity")


def work_key(request: Request, backend: str, dataset: MarketDataset | None) -> str:
    """Return 16 hex digits of a hash over everything that the result depends on."""
    sizes = dataset and [
        [crop.path.relative_to(dataset.root).as_posix(), crop.path.stat().st_size] for crop in dataset.crops
    ]
    inputs = {
        "work": _WORK,
        "agent": __version__,
        "graph": hashlib.sha256(request.prepared.onnx).hexdigest(),
        "space": request.prepared.space,
        "dataset": None if sizes is None else hashlib.sha256(json.dumps(sizes).encode()).hexdigest(),
        "runs_on": runs_on(backend),
        "dla_core": request.engine.dla_core,
        "bounds": asdict(request.bounds),
        **{key: getattr(request, key) for key in _INPUTS},
        "site": None if request.site is None else dict(request.site),
        "bench": request.bench_seconds > 0,
    }
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def runs_on(backend: str) -> dict[str, str]:
    """Return the versions and hardware that engines of this backend depend on."""
    if backend == "onnxruntime":
        import onnxruntime

        return {"onnxruntime": onnxruntime.__version__, "machine": platform.machine()}
    from edge_agent.engine.tensorrt.recipe import this_machine

    return {name: str(value) for name, value in asdict(this_machine()).items()}


class Steps:
    """The steps of one calibration; their folder is created with mode 0700 when the first step ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.kept: list[str] = []
        """Steps that were skipped because their results existed."""

    def run(self, name: str, make: Make) -> dict[str, Any]:
        """Return the stored result of a step, or run the step and store its result."""
        found = self._stored(name)
        if found is not None:
            self.kept.append(name)
            return found
        private_folder(self.folder)
        data, files = make(self.folder)
        records = {file: FileRecord.of(self.folder / file) for file in files}
        Manifest(_KIND, _VERSION, records, dict(data)).write(self.folder / f"{name}.json")
        return dict(data)

    def is_done(self, name: str) -> bool:
        """Whether `run` would skip the step."""
        return self._stored(name) is not None

    def _stored(self, name: str) -> dict[str, Any] | None:
        path = self.folder / f"{name}.json"
        if not path.is_file():
            return None
        try:
            manifest = Manifest.read(path, kind=_KIND, version=_VERSION)
            manifest.verify(self.folder)
        except InputError as problem:
            _log.warning("step_done_again", step=name, why=str(problem))
            return None
        return manifest.data
