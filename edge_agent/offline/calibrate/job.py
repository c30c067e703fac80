"""From a model to the active engine, in steps that survive an interruption: what `edge-agent calibrate` does.

model -> sample -> ranges -> FP32 reference -> candidate and its gate, from INT8 down to what passes ->
threshold -> speed -> manifest and report -> switch. The work is kept under a key made of everything that it
depends on: the same request finds its finished steps again, another one starts anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import structlog
from numpy.typing import NDArray

from edge_agent import __version__
from edge_agent.agent import factory
from edge_agent.core.config import EngineSettings, QualitySettings, Settings
from edge_agent.core.errors import ConfigError, EngineError, InputError, ModelError, StorageError
from edge_agent.core.locks import FileLock
from edge_agent.core.manifest import (
    FileRecord,
    Manifest,
    atomic_file,
    read_json,
    write_atomic,
    write_json_atomic,
)
from edge_agent.embed.opening import make_embedder
from edge_agent.engine import choose_backend
from edge_agent.engine.plans.active import ActiveEngine
from edge_agent.engine.precision.calibration import CALIBRATIONS, KIND, MANIFEST, VERSION, Calibration
from edge_agent.engine.precision.half import to_half
from edge_agent.engine.precision.scales import Scales
from edge_agent.offline.bench import speed as bench
from edge_agent.offline.calibrate import gate as gates
from edge_agent.offline.calibrate import threshold as thresholds
from edge_agent.offline.calibrate.gate import Bounds, Embeddings, Gate
from edge_agent.offline.calibrate.quantise import implicit_scales, placement, quantise
from edge_agent.offline.calibrate.ranges import DEFAULT_METHOD, Method, ranges
from edge_agent.offline.calibrate.report import html_report
from edge_agent.offline.calibrate.sample import DEFAULT_SIZE, Sample, draw
from edge_agent.offline.calibrate.sensitivity import Sensitivity, blocks, choose_keep, measure
from edge_agent.offline.calibrate.steps import Steps
from edge_agent.offline.dataset import Crop, MarketDataset
from edge_agent.offline.evaluate import EmbeddedCrops
from edge_agent.offline.evaluate.embedding import embed_paths, labelled

if TYPE_CHECKING:
    from edge_agent.embed.embedder import Embedder
    from edge_agent.engine.golden import Golden
    from edge_agent.engine.graph.prepared import PreparedGraph

__all__ = ["Job", "Progress", "Request", "Result", "Silent"]

_log = structlog.get_logger(__name__)

_WORK = 1
"""Raised when a change of this code makes kept steps worthless."""

_CANDIDATES = {
    "auto": ("int8", "fp16", "fp32"),
    "int8": ("int8", "fp16", "fp32"),
    "fp16": ("fp16", "fp32"),
    "fp32": ("fp32",),
}
"""What is tried for a wish, in this order, until one passes the gate."""

_REFERENCE = "reference.npz"
_SENSITIVITY_CROPS = 64
"""Crops of the sample on which blocks are compared: enough to put them in order."""
_CLEARLY_SLOWER = 0.9
"""Share of FP32's rate below which a precision is said to be slower; what is above may be noise."""

NO_DATA = "no data set: name one with --dataset DIR (Market-1501 layout) to calibrate INT8 and a threshold"


class Progress(Protocol):
    """Who is told how far the work is."""

    def begin(self, step: str, total: int | None) -> None:
        """A step of `total` parts begins; None where parts cannot be counted."""

    def advance(self, count: int) -> None:
        """So many further parts are done."""


class Silent:
    """Tells nobody."""

    def begin(self, step: str, total: int | None) -> None:
        """Ignored."""

    def advance(self, count: int) -> None:
        """Ignored."""


@dataclass(frozen=True, slots=True)
class Request:
    """What shall be calibrated, and how.

    Attributes:
        prepared: the ReID network, from `engine.models.prepare_model`.
        golden: its reference embeddings.
        engines: folder of calibrations and plans.
        disk: a folder on the disk whose state telemetry tells.
        dataset: Market-1501 layout; None to go without.
        precision: `auto`, `fp32`, `fp16` or `int8`.
        engine: backend and its options.
        quality: limits of the gate for crops; only carried along.
        method: how ranges are found.
        size: crops in the calibration sample.
        seed: of its draw.
        target_fmr: false-match rate of the threshold.
        bounds: what the gate allows.
        sensitivity: whether each block's effect is measured, and the worst kept in FP16 until it passes.
        site: a site's scores, see `calibrate.threshold`.
        bench_seconds: how long each figure of the speed table is taken; 0 leaves the table out.
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
    target_fmr: float = 1e-3
    bounds: Bounds = field(default_factory=Bounds)
    sensitivity: bool = False
    site: Mapping[str, Any] | None = None
    bench_seconds: float = 2.0


@dataclass(frozen=True, slots=True)
class Result:
    """What came of it.

    Attributes:
        calibration: as it is stored.
        report: everything that was measured, JSON values.
        kept: steps that an earlier run had finished.
        switched: whether another engine became the active one.
    """

    calibration: Calibration
    report: dict[str, Any]
    kept: tuple[str, ...]
    switched: bool


_Make = Callable[[Path], tuple[dict[str, Any], tuple[str, ...]]]
"""Does a step: takes the folder, gives what it found and the names of the files that it wrote."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A network in one precision, and the file with INT8 ranges for what takes no Q/DQ nodes."""

    graph: PreparedGraph
    scales: Path | None = None


class Job:
    """One calibration. Nothing is done before `run`.

    Args:
        request: what shall be done.
        progress: who is told how far it is.

    Raises:
        ConfigError: INT8 is asked for without a data set.
        DatasetError: the data set lacks a split.
    """

    def __init__(self, request: Request, progress: Progress | None = None) -> None:
        self._request = request
        self._progress = progress or Silent()
        self._backend = choose_backend(request.engine.backend)
        self._engine = request.engine.model_copy(update={"backend": self._backend})
        if request.dataset is None and request.precision == "int8":
            raise ConfigError(f"INT8 needs crops to be calibrated with. {NO_DATA}")
        self._dataset = None if request.dataset is None else MarketDataset.open(request.dataset)
        self._prepared = request.prepared
        self._steps = Steps(self._beside("steps"))

    # --- what it will do ----------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        """Where the result will lie."""
        return self._request.engines / CALIBRATIONS / self.key

    def _beside(self, what: str) -> Path:
        """A folder for what is not finished: `engines prune` removes it, and nothing reads it by mistake."""
        return self.folder.with_name(f"{self.key}.{what}")

    @cached_property
    def key(self) -> str:
        """16 hex digits that stand for everything that the result depends on."""
        text = json.dumps(self._inputs(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def is_done(self) -> bool:
        """Whether the result is there already, whole."""
        return self._finished() is not None

    def steps(self) -> list[dict[str, Any]]:
        """The steps that `run` would go through, each with whether it is done already; for `--dry-run`.

        FP16 and FP32 are listed with the condition under which they are tried.
        """
        names = ["sample", "ranges"] if "int8" in self._candidates else []
        names += ["reference"] if self._dataset is not None else []
        told: list[dict[str, Any]] = [{"step": name, "done": self._steps.is_done(name)} for name in names]
        for position, candidate in enumerate(self._candidates):
            condition = f"only if {self._candidates[position - 1]} does not pass" if position else ""
            for step in (candidate, f"gate-{candidate}"):
                told.append({"step": step, "done": self._steps.is_done(step), "condition": condition})
        if self._request.bench_seconds:
            told.append({"step": "bench", "done": self._steps.is_done("bench")})
        return [*told, {"step": "report", "done": self.is_done}, {"step": "switch", "done": False}]

    @cached_property
    def _candidates(self) -> tuple[str, ...]:
        wanted = _CANDIDATES[self._request.precision]
        return wanted if self._dataset is not None else tuple(name for name in wanted if name != "int8")

    def _inputs(self) -> dict[str, Any]:
        request = self._request
        return {
            "work": _WORK,
            "agent": __version__,
            "graph": hashlib.sha256(self._prepared.onnx).hexdigest(),
            "space": self._prepared.space,
            "dataset": None if self._dataset is None else _fingerprint(self._dataset),
            "runs_on": _runs_on(self._backend),
            "dla_core": request.engine.dla_core,
            "precision": request.precision,
            "method": request.method,
            "size": request.size,
            "seed": request.seed,
            "target_fmr": request.target_fmr,
            "bounds": asdict(request.bounds),
            "sensitivity": request.sensitivity,
            "site": None if request.site is None else dict(request.site),
            "bench": request.bench_seconds > 0,
        }

    # --- doing it -----------------------------------------------------------------------------

    def run(self, *, again: bool = False) -> Result:
        """Do all steps that are not done, and make the result the active engine.

        Args:
            again: forget what earlier runs with this request found.

        Raises:
            EdgeAgentError: a step failed; what earlier steps found is kept, the active engine stays.
        """
        with self._alone():
            if again:
                shutil.rmtree(self._steps.folder, ignore_errors=True)
            finished = None if again else self._finished()
            if finished is None:
                finished = self._work()
            report = json.loads((finished.folder / "report.json").read_bytes())
            return Result(finished, report, tuple(self._steps.kept), self._switch(finished))

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep a second calibration out of this folder; the lock goes with the process."""
        folder = self._request.engines / CALIBRATIONS
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as problem:
            raise StorageError(
                f"cannot write to {folder}: {problem.strerror}; choose another --output"
            ) from None
        lock = FileLock(folder / ".lock")
        if not lock.acquire():
            raise StorageError(f"another `edge-agent calibrate` is at work in {folder}; wait for it")
        try:
            yield
        finally:
            lock.release()

    def _finished(self) -> Calibration | None:
        """The whole result of an earlier run, None where there is none or it is damaged."""
        if not (self.folder / MANIFEST).is_file():
            return None
        try:
            return Calibration.read(self.folder)
        except InputError as problem:
            _log.warning("calibration_done_again", why=str(problem))
            return None

    def _work(self) -> Calibration:
        tried: dict[str, dict[str, Any]] = {}
        chosen = ""
        for candidate in self._candidates:
            found = self._try(candidate)
            tried[candidate] = found
            if found["gate"]["passed"] is not False:
                chosen = candidate
                break
        else:
            raise EngineError(
                f"no engine of {self._prepared.name} on {self._backend} agrees with its reference: "
                + "; ".join(reason for found in tried.values() for reason in found["gate"]["reasons"])
            )
        return self._finish(chosen, tried, self._bench(tried))

    def _try(self, candidate: str) -> dict[str, Any]:
        """Make one candidate and hold it against FP32."""
        if candidate != "int8":
            made = self._steps.run(candidate, self._makes(candidate))
            return {**made, **self._gate(candidate, candidate, made)}
        made = self._steps.run("int8", self._makes_int8(()))
        found = {**made, **self._gate("int8", "int8", made)}
        if self._request.sensitivity and made["graph"] is not None:
            return self._with_sensitivity(found)
        return found

    def _with_sensitivity(self, whole: Mapping[str, Any]) -> dict[str, Any]:
        """Measure what each block costs; keep the worst in higher precision until the gate passes."""
        losses = self._losses()
        found: dict[tuple[str, ...], Mapping[str, Any]] = {(): whole}

        def passes(keep: tuple[str, ...]) -> bool:
            if keep not in found:
                name = f"int8-{_digest(keep)}"
                made = self._steps.run(name, self._makes_int8(keep))
                found[keep] = {**made, **self._gate("int8", name, made)}
            return bool(found[keep]["gate"]["passed"])

        choice = choose_keep(losses.losses, passes)
        table = {
            "blocks": [
                {
                    "block": loss.block.name,
                    "nodes": list(loss.block.nodes),
                    "loss": loss.mean,
                    "worst": loss.worst,
                    "kept": loss.block.name in choice.blocks,
                }
                for loss in losses.losses
            ],
            "kept": list(choice.blocks),
            "passed": choice.passed,
            "gates_tried": choice.tries,
        }
        return {**found[choice.keep], "sensitivity": table}

    def _losses(self) -> Sensitivity:
        """What each block costs; every measured block is kept in a file as soon as it is there."""
        scales, sample = self._scales(), self._sample()
        path = self._steps.folder / "sensitivity-blocks.json"
        known: dict[str, list[float]] = read_json(path) if path.is_file() else {}
        self._progress.begin("measuring what each block costs", len(blocks(self._prepared)))

        def advance(_block: str) -> None:
            write_json_atomic(path, known)
            self._progress.advance(1)

        crops = self._crops(sample)[:_SENSITIVITY_CROPS]
        return measure(self._prepared, scales, crops, cache=known, advance=advance)

    # --- steps --------------------------------------------------------------------------------

    def _sample(self) -> Sample:
        def make(folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
            request = self._request
            self._progress.begin("drawing the calibration sample", request.size)
            assert request.dataset is not None  # INT8 is not tried without
            drawn = draw(
                request.dataset, size=request.size, seed=request.seed, advance=self._progress.advance
            )
            drawn.write(folder / "sample-files.json")
            return {"crops": len(drawn), "digest": drawn.digest}, ("sample-files.json",)

        self._steps.run("sample", make)
        return Sample.read(self._steps.folder / "sample-files.json")

    def _crops(self, sample: Sample) -> NDArray[np.uint8]:
        dataset, profile = self._request.dataset, self._prepared.profile
        assert dataset is not None
        assert profile is not None
        sample.verify(dataset)
        return sample.pixels(dataset, profile, self._prepared.input_size)

    def _scales(self) -> Scales:
        sample = self._sample()

        def make(folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
            method = self._request.method
            passes = 1 if method == "minmax" else 2
            self._progress.begin(f"measuring ranges ({method})", passes * len(sample))
            found = ranges(self._prepared, self._crops(sample), method=method, advance=self._progress.advance)
            found.write(folder / "scales.json")
            return {"digest": found.digest, "tensors": len(found.amax)}, ("scales.json",)

        self._steps.run("ranges", make)
        return Scales.read(self._steps.folder / "scales.json")

    def _makes_int8(self, keep: Sequence[str]) -> _Make:
        """A graph with Q/DQ nodes, all but `keep` in INT8."""

        def make(folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
            scales = self._scales()
            self._progress.begin("quantising", None)
            ending = f"-{_digest(keep)}" if keep else ""
            name, beside = f"int8{ending}.onnx", f"tensorrt-scales{ending}.json"
            try:
                graph = quantise(self._prepared, scales, keep=keep)
                implicit_scales(self._prepared, scales, keep=keep).write(folder / beside)
            except ModelError as problem:
                return {"graph": None, "keep": list(keep), "problem": str(problem)}, ()
            write_atomic(folder / name, graph.onnx)
            return {
                "graph": name,
                "scales": beside,
                "keep": list(keep),
                "bytes": len(graph.onnx),
                "bytes_fp32": len(self._prepared.onnx),
                "placement": placement(graph.onnx).as_json(),
                "problem": "",
            }, (name, beside)

        return make

    def _makes(self, precision: str) -> _Make:
        """The graph in FP16; FP32 is the network itself and needs no file."""

        def make(folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
            sizes = {"bytes_fp32": len(self._prepared.onnx), "keep": [], "problem": ""}
            if precision == "fp32":
                return {**sizes, "graph": None, "bytes": len(self._prepared.onnx)}, ()
            self._progress.begin("converting to FP16", None)
            try:
                graph = to_half(self._prepared)
            except ModelError as problem:
                return {**sizes, "graph": None, "bytes": None, "problem": str(problem)}, ()
            write_atomic(folder / "fp16.onnx", graph.onnx)
            return {**sizes, "graph": "fp16.onnx", "bytes": len(graph.onnx)}, ("fp16.onnx",)

        return make

    def _candidate(self, precision: str, made: Mapping[str, Any]) -> _Candidate:
        """A candidate, from the files that its step wrote."""
        if made["graph"] is None:
            return _Candidate(self._prepared)
        onnx = (self._steps.folder / made["graph"]).read_bytes()
        scales = made.get("scales")
        return _Candidate(
            dataclasses.replace(self._prepared, onnx=onnx, precision=precision),
            None if scales is None else self._steps.folder / scales,
        )

    def _open(self, candidate: _Candidate, *, max_batch: int | None = None) -> Embedder:
        beside = candidate.scales
        return make_embedder(
            candidate.graph,
            self._request.golden,
            engine=self._engine,
            quality=self._request.quality,
            plans=self._request.engines,
            ranges=None if beside is None else lambda: (self._prepared, Scales.read(beside)),
            max_batch=max_batch,
            building=self._tell_build,
        )

    def _tell_build(self, phase: str, done: int, total: int) -> None:
        """A build takes minutes, so its phases are steps of their own."""
        if not done:
            self._progress.begin(f"building: {phase}", total or None)
        else:
            self._progress.advance(1)

    def _reference(self) -> Embeddings:
        """Embeddings of the FP32 network; kept in a file of mode 0600 until the calibration is finished."""

        def make(folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
            found, unreadable = self._embed(_Candidate(self._prepared))
            _store(folder / _REFERENCE, found)
            return {"unreadable": unreadable}, (_REFERENCE,)

        self._steps.run("reference", make)
        return _load(self._steps.folder / _REFERENCE)

    def _embed(self, candidate: _Candidate) -> tuple[Embeddings, list[str]]:
        """Both sides of the evaluation split through an engine."""
        assert self._dataset is not None
        sides = {"queries": self._dataset.query, "gallery": self._dataset.gallery}
        precision = candidate.graph.precision.upper()
        self._progress.begin(f"embedding in {precision}", sum(map(len, sides.values())))
        unreadable: list[str] = []
        with self._open(candidate) as embedder:

            def one(crops: Sequence[Crop]) -> EmbeddedCrops:
                done = embed_paths(embedder, [crop.path for crop in crops], advance=self._progress.advance)
                unreadable.extend(str(problem.path) for problem in done.problems)
                return labelled(done, crops)

            return Embeddings(one(sides["queries"]), one(sides["gallery"])), unreadable

    def _gate(self, precision: str, name: str, made: Mapping[str, Any]) -> dict[str, Any]:
        """Hold a candidate against FP32; what it finds also holds its threshold and evaluation."""

        def make(_folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
            if made["problem"]:
                return self._not_measured(gates.failed(name, made["problem"], self._request.bounds)), ()
            candidate = self._candidate(precision, made)
            try:
                return (self._self_test if self._dataset is None else self._measure)(name, candidate), ()
            except (EngineError, ModelError) as problem:
                if precision == "fp32":
                    raise  # the network itself does not run: nothing is left to choose
                return self._not_measured(gates.failed(name, str(problem), self._request.bounds)), ()

        return self._steps.run(f"gate-{name}", make)

    def _measure(self, name: str, candidate: _Candidate) -> dict[str, Any]:
        reference = self._reference()
        found = reference if candidate.graph.precision == "fp32" else self._embed(candidate)[0]
        request = self._request
        gate, evaluation = gates.compare(
            reference, found, name=name, bounds=request.bounds, target_fmr=request.target_fmr
        )
        threshold = thresholds.choose(evaluation, request.target_fmr, request.site)
        return {
            "gate": gate.document(),
            "threshold": threshold.document(),
            "evaluation": evaluation.document(),
        }

    def _self_test(self, name: str, candidate: _Candidate) -> dict[str, Any]:
        """Without a data set: the engine agrees with its reference on the golden crops, no more is known."""
        self._progress.begin(f"testing {candidate.graph.precision.upper()}", None)
        with self._open(candidate):
            pass
        untested = Gate(name, passed=None, reasons=(NO_DATA,), bounds=self._request.bounds)
        return self._not_measured(untested)

    def _not_measured(self, gate: Gate) -> dict[str, Any]:
        threshold = thresholds.without_data(self._request.target_fmr, self._request.site)
        return {"gate": gate.document(), "threshold": threshold.document(), "evaluation": None}

    def _bench(self, tried: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
        """The speed table of every precision that could be made, and of FP32."""
        seconds = self._request.bench_seconds
        if not seconds:
            return None

        def make(_folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
            candidates = {"fp32": _Candidate(self._prepared)}
            left_out: dict[str, str] = {}
            for precision, found in tried.items():
                if precision != "fp32" and found["graph"] is None:
                    left_out[precision] = "; ".join(found["gate"]["reasons"])
                elif precision != "fp32":
                    candidates[precision] = self._candidate(precision, found)
            return self._speeds(candidates, left_out, seconds), ()

        return self._steps.run("bench", make)

    def _speeds(
        self, candidates: Mapping[str, _Candidate], left_out: dict[str, str], seconds: float
    ) -> dict[str, Any]:
        self._progress.begin("measuring the speed", len(candidates) * len(bench.BATCHES))
        rows: list[bench.Measurement] = []
        with factory.open_telemetry(Settings(), self._request.disk) as telemetry:
            reading = telemetry.read()
            for precision, candidate in candidates.items():
                try:
                    for batch in bench.BATCHES:
                        with self._open(candidate, max_batch=batch) as embedder:
                            rows.append(bench.measure(embedder, seconds=seconds, board=reading.board))
                        self._progress.advance(1)
                except (EngineError, ModelError) as problem:
                    left_out[precision] = str(problem)
            return bench.document(rows, left_out, self._model(), telemetry.read())

    # --- the end ------------------------------------------------------------------------------

    def _model(self) -> dict[str, Any]:
        return self._prepared.facts()

    def _finish(
        self, chosen: str, tried: Mapping[str, Mapping[str, Any]], speeds: dict[str, Any] | None
    ) -> Calibration:
        """Write everything into a new folder, put it in place, and let the steps go."""
        self._progress.begin("writing the report", None)
        found = tried[chosen]
        new = self._beside("new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        files: dict[str, FileRecord] = {}

        def put(name: str, data: bytes) -> str:
            write_atomic(new / name, data)
            files[name] = FileRecord.of(new / name)
            return name

        def keep(source: str, name: str) -> str:
            return put(name, (self._steps.folder / source).read_bytes())

        graph = None if found["graph"] is None else keep(found["graph"], f"{chosen}.onnx")
        has_ranges = "int8" in tried and self._steps.is_done("ranges")
        if has_ranges:
            keep("scales.json", "scales.json")
        scales = keep(found["scales"], "tensorrt-scales.json") if chosen == "int8" else None
        sample = keep("sample-files.json", "sample.json") if has_ranges else None
        document = self._document(chosen, tried, speeds, sampled=has_ranges)
        put("report.json", json.dumps(document, indent=2, allow_nan=False).encode())
        put("report.html", html_report(document, found["evaluation"]))
        told = ("precision", "backend", "gate", "threshold", "model", "created", "keep")
        data = {key: document[key] for key in told} | {
            "gate": found["gate"],
            "space": self._prepared.space,
            "graph": graph,
            "scales": scales,
            "sample": sample,
        }
        Manifest(KIND, VERSION, files, data).write(new / MANIFEST)
        old = self._beside("old")
        shutil.rmtree(old, ignore_errors=True)
        if self.folder.exists():
            self.folder.rename(old)
        new.rename(self.folder)
        for done in (old, self._steps.folder):  # embeddings of people among the latter
            shutil.rmtree(done, ignore_errors=True)
        return Calibration.read(self.folder)

    def _document(
        self,
        chosen: str,
        tried: Mapping[str, Mapping[str, Any]],
        speeds: dict[str, Any] | None,
        *,
        sampled: bool,
    ) -> dict[str, Any]:
        request, found = self._request, tried[chosen]
        int8 = tried.get("int8", {})
        first = next(iter(tried.values()))
        return {
            "precision": chosen,
            "asked": request.precision,
            "backend": self._backend,
            "runs_on": _runs_on(self._backend),
            "gate": first["gate"],
            "gates": {name: candidate["gate"] for name, candidate in tried.items()},
            "threshold": found["threshold"],
            "model": self._model(),
            "manifest": str(self.folder / MANIFEST),
            "report": str(self.folder / "report.html"),
            "dataset": None if request.dataset is None else str(request.dataset),
            "sample": self._sample().document() if sampled else None,
            "method": request.method if int8 else None,
            "keep": found["keep"],
            "placement": int8.get("placement"),
            "sensitivity": int8.get("sensitivity"),
            "bytes": {"fp32": len(self._prepared.onnx)}
            | {k: v["bytes"] for k, v in tried.items() if "bytes" in v},
            "bench": speeds,
            "missing": [NO_DATA] if self._dataset is None else [],
            "notes": _slower(chosen, speeds),
            "created": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "agent": __version__,
        }

    def _graphs(self, calibration: Calibration) -> list[PreparedGraph]:
        """What plans of this calibration are made from; an accelerator may take the exported graph."""
        return [calibration.graph(self._prepared), self._prepared]

    def _switch(self, calibration: Calibration) -> bool:
        """Make it the active engine; tells whether anything changed."""
        active = ActiveEngine(self._request.engines)
        folder = f"{CALIBRATIONS}/{calibration.name}"
        names = [MANIFEST, *calibration.files]
        record = {
            "name": calibration.name,
            "precision": calibration.precision,
            "backend": calibration.backend,
            "calibration": folder,
            "graphs": [hashlib.sha256(graph.onnx).hexdigest() for graph in self._graphs(calibration)],
            "files": [f"{folder}/{name}" for name in names],
        }
        try:
            if active.read().current == record:
                return False
        except InputError:
            pass  # damaged: `switch` puts it aside
        active.switch(record)
        return True


def _slower(chosen: str, speeds: Mapping[str, Any] | None) -> list[str]:
    """A word where the chosen precision is slower here than FP32, as INT8 is on many CPUs."""
    rates = (
        {}
        if speeds is None
        else {(r["precision"], r["batch"]): r["images_per_second"] for r in speeds["rows"]}
    )
    notes = []
    for batch in bench.BATCHES:
        own, full = rates.get((chosen, batch)), rates.get(("fp32", batch))
        if own is not None and full is not None and own < _CLEARLY_SLOWER * full:
            notes.append(
                f"at batch {batch} {chosen.upper()} runs at {own / full:.2f} times the rate of FP32 here; "
                f'engine.precision = "fp32" keeps the threshold and is faster'
            )
    return notes


def _fingerprint(dataset: MarketDataset) -> str:
    """SHA-256 over names and sizes of all crops: a set that changed is another piece of work."""
    told = [
        [crop.path.relative_to(dataset.root).as_posix(), crop.path.stat().st_size] for crop in dataset.crops
    ]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _runs_on(backend: str) -> dict[str, str]:
    """What engines of this backend depend on."""
    if backend == "onnxruntime":
        import onnxruntime

        return {"onnxruntime": onnxruntime.__version__, "machine": platform.machine()}
    from edge_agent.engine.tensorrt.build import this_machine

    return {name: str(value) for name, value in asdict(this_machine()).items()}


def _digest(names: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(sorted(names)).encode()).hexdigest()[:12]


def _store(path: Path, found: Embeddings) -> None:
    arrays: dict[str, NDArray[Any]] = {}
    for side in ("query", "gallery"):
        crops: EmbeddedCrops = getattr(found, side)
        arrays |= {
            f"{side}_vectors": crops.vectors,
            f"{side}_pids": crops.pids,
            f"{side}_camids": crops.camids,
        }
        arrays[f"{side}_names"] = np.array(crops.names)
    with atomic_file(path, mode=0o600) as handle:
        np.savez(handle, **arrays)  # type: ignore[arg-type]  # numpy's stubs take a keyword for `allow_pickle`


def _load(path: Path) -> Embeddings:
    with np.load(path, allow_pickle=False) as stored:
        query, gallery = (
            EmbeddedCrops(
                stored[f"{side}_vectors"],
                stored[f"{side}_pids"],
                stored[f"{side}_camids"],
                tuple(str(name) for name in stored[f"{side}_names"]),
            )
            for side in ("query", "gallery")
        )
    return Embeddings(query, gallery)
