"""From a model to the active engine, in steps that survive an interruption: `edge-agent calibrate`.

model -> sample -> ranges -> FP32 reference -> candidate and its gate, from INT8 down to what passes ->
threshold -> speed -> manifest and report -> switch. Results of steps are kept under a key made of everything
that they depend on: the same request continues its finished steps, another request starts from the beginning.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

import structlog

from edge_agent import __version__
from edge_agent.core.errors import ConfigError, InputError, StorageError
from edge_agent.core.files import MAX_MODEL_BYTES, read_file, read_json
from edge_agent.core.locks import FileLock
from edge_agent.core.manifest import FileRecord, Manifest, write_atomic
from edge_agent.core.private import private_folder
from edge_agent.engine import choose_backend
from edge_agent.engine.plans.active import ActiveEngine
from edge_agent.engine.precision.calibration import CALIBRATIONS, KIND, MANIFEST, VERSION, Calibration
from edge_agent.offline.bench.speed import BATCHES
from edge_agent.offline.calibrate.candidates import SAMPLE_FILE, SCALES_FILE, Candidates
from edge_agent.offline.calibrate.report import html_report
from edge_agent.offline.calibrate.request import (
    NO_DATA,
    Progress,
    Request,
    Silent,
    Steps,
    Work,
    runs_on,
    work_key,
)
from edge_agent.offline.calibrate.trial import Trials
from edge_agent.offline.dataset import MarketDataset

_log = structlog.get_logger(__name__)

_CLEARLY_SLOWER = 0.9
"""Share of FP32's rate below which a precision counts as slower; a smaller difference may be noise."""


@dataclass(frozen=True, slots=True)
class Result:
    """The stored calibration, its report, steps kept of earlier runs, and if the active engine changed."""

    calibration: Calibration
    report: dict[str, Any]
    kept: tuple[str, ...]
    switched: bool


class Job:
    """One calibration. The constructor only checks the request; `run` does the work.

    Raises:
        ConfigError: INT8 is requested without a data set.
        DatasetError: the data set lacks a split.
    """

    def __init__(self, request: Request, progress: Progress | None = None) -> None:
        if request.dataset is None and request.precision == "int8":
            raise ConfigError(f"INT8 needs crops to be calibrated with. {NO_DATA}")
        self._request = request
        self._backend = choose_backend(request.engine.backend)
        self._dataset = None if request.dataset is None else MarketDataset.open(request.dataset)
        self._steps = Steps(_unfinished(self.folder, "steps"))
        self._work = Work(request, self._backend, self._dataset, self._steps, progress or Silent())

    @cached_property
    def folder(self) -> Path:
        """Folder of the result."""
        key = work_key(self._request, self._backend, self._dataset)
        return self._request.engines / CALIBRATIONS / key

    @property
    def is_done(self) -> bool:
        """Whether an intact result exists."""
        return self._finished() is not None

    def steps(self) -> list[dict[str, Any]]:
        """Return the steps that `run` would take, each with whether it is done; for `--dry-run`.

        FP16 and FP32 are listed with the condition under which they are tried.
        """
        candidates = self._request.candidates
        names = ["sample", "ranges"] if "int8" in candidates else []
        names += ["reference"] if self._dataset is not None else []
        steps: list[dict[str, Any]] = [{"step": name, "done": self._steps.is_done(name)} for name in names]
        for position, candidate in enumerate(candidates):
            condition = f"only if {candidates[position - 1]} does not pass" if position else ""
            for step in (candidate, f"gate-{candidate}"):
                steps.append({"step": step, "done": self._steps.is_done(step), "condition": condition})
        if self._request.bench_seconds:
            steps.append({"step": "bench", "done": self._steps.is_done("bench")})
        return [*steps, {"step": "report", "done": self.is_done}, {"step": "switch", "done": False}]

    def run(self, *, again: bool = False) -> Result:
        """Run all steps that are not done (with `again`: all), and make the result the active engine.

        Raises:
            EdgeAgentError: a step failed; results of earlier steps are kept, the active engine stays.
        """
        with self._locked():
            if again:
                shutil.rmtree(self._steps.folder, ignore_errors=True)
            calibration = None if again else self._finished()
            if calibration is None:
                calibration = self._calibrate()
            report = read_json(calibration.folder / "report.json", MAX_MODEL_BYTES)
            return Result(calibration, report, tuple(self._steps.kept), _switch(self._request, calibration))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Exclude a second calibration; the lock ends with the process."""
        folder = self._request.engines / CALIBRATIONS
        try:
            private_folder(folder)
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
        """Result of an earlier run; None where there is none or it is damaged."""
        if not (self.folder / MANIFEST).is_file():
            return None
        try:
            return Calibration.read(self.folder)
        except InputError as problem:
            _log.warning("calibration_done_again", why=str(problem))
            return None

    def _calibrate(self) -> Calibration:
        candidates = Candidates(self._work)
        trials = Trials(self._work, candidates)
        tried = trials.search()
        return _write_result(self.folder, self._work, candidates, tried, trials.bench(tried))


def _write_result(
    folder: Path,
    work: Work,
    candidates: Candidates,
    tried: dict[str, dict[str, Any]],
    speeds: dict[str, Any] | None,
) -> Calibration:
    """Write everything into a new folder, move it to `folder`, and remove the steps."""
    work.progress.begin("writing the report", None)
    (precision, chosen), steps = list(tried.items())[-1], work.steps
    new, old = _unfinished(folder, "new"), _unfinished(folder, "old")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700)
    files: dict[str, FileRecord] = {}

    def put(name: str, data: bytes) -> str:
        write_atomic(new / name, data)
        files[name] = FileRecord.of(new / name)
        return name

    def keep(source: str, name: str) -> str:
        return put(name, read_file(steps.folder / source, MAX_MODEL_BYTES))

    graph = None if chosen["graph"] is None else keep(chosen["graph"], f"{precision}.onnx")
    has_ranges = "int8" in tried and steps.is_done("ranges")
    if has_ranges:
        keep(SCALES_FILE, SCALES_FILE)
    scales = keep(chosen["scales"], "tensorrt-scales.json") if precision == "int8" else None
    sample = keep(SAMPLE_FILE, "sample.json") if has_ranges else None
    drawn = candidates.sample().document() if has_ranges else None
    document = _document(folder, work, tried, speeds, drawn)
    put("report.json", json.dumps(document, indent=2, allow_nan=False).encode())
    put("report.html", html_report(document, chosen["evaluation"]))
    copied = ("precision", "backend", "gate", "threshold", "model", "created", "keep")
    own = {"gate": chosen["gate"], "graph": graph, "scales": scales, "sample": sample}
    data = {key: document[key] for key in copied} | own | {"space": work.request.prepared.space}
    Manifest(KIND, VERSION, files, data).write(new / MANIFEST)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    for done in (old, steps.folder):  # the steps hold embeddings of people
        shutil.rmtree(done, ignore_errors=True)
    return Calibration.read(folder)


def _unfinished(folder: Path, what: str) -> Path:
    """Return the path next to a calibration for unfinished work; `engines prune` removes it."""
    return folder.with_name(f"{folder.name}.{what}")


def _document(
    folder: Path,
    work: Work,
    tried: dict[str, dict[str, Any]],
    speeds: dict[str, Any] | None,
    sample: dict[str, Any] | None,
) -> dict[str, Any]:
    request, (precision, chosen) = work.request, list(tried.items())[-1]
    int8 = tried.get("int8", {})
    first = next(iter(tried.values()))
    return {
        "precision": precision,
        "asked": request.precision,
        "backend": work.backend,
        "runs_on": runs_on(work.backend),
        "gate": first["gate"],
        "gates": {name: candidate["gate"] for name, candidate in tried.items()},
        "threshold": chosen["threshold"],
        "model": request.prepared.facts(),
        "manifest": str(folder / MANIFEST),
        "report": str(folder / "report.html"),
        "dataset": None if request.dataset is None else str(request.dataset),
        "sample": sample,
        "method": request.method if int8 else None,
        "keep": chosen["keep"],
        "placement": int8.get("placement"),
        "sensitivity": int8.get("sensitivity"),
        "bytes": {"fp32": len(request.prepared.onnx)}
        | {name: made["bytes"] for name, made in tried.items() if "bytes" in made},
        "bench": speeds,
        "missing": [NO_DATA] if work.dataset is None else [],
        "notes": [*_slower(precision, speeds), *([] if work.dataset is None else work.dataset.notes())],
        "created": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "agent": __version__,
    }


def _slower(chosen: str, speeds: Mapping[str, Any] | None) -> list[str]:
    """Notes where the chosen precision is slower here than FP32, as INT8 is on many CPUs."""
    rows = [] if speeds is None else speeds["rows"]
    rates = {(row["precision"], row["batch"]): row["images_per_second"] for row in rows}
    notes = []
    for batch in BATCHES:
        own, full = rates.get((chosen, batch)), rates.get(("fp32", batch))
        if own is not None and full is not None and own < _CLEARLY_SLOWER * full:
            notes.append(
                f"at batch {batch} {chosen.upper()} runs at {own / full:.2f} times the rate of FP32 here; "
                f'engine.precision = "fp32" keeps the threshold and is faster'
            )
    return notes


def _switch(request: Request, calibration: Calibration) -> bool:
    """Make a calibration's engine the active one; return whether anything changed."""
    active = ActiveEngine(request.engines)
    folder = f"{CALIBRATIONS}/{calibration.name}"
    # plans are built from either graph: an accelerator may take the exported one
    graphs = [calibration.graph(request.prepared), request.prepared]
    record = {
        "name": calibration.name,
        "precision": calibration.precision,
        "backend": calibration.backend,
        "calibration": folder,
        "graphs": [hashlib.sha256(graph.onnx).hexdigest() for graph in graphs],
        "files": [f"{folder}/{name}" for name in (MANIFEST, *calibration.files)],
    }
    with contextlib.suppress(InputError):  # damaged: `switch` moves it out of the way
        if active.read().current == record:
            return False
    active.switch(record)
    return True
