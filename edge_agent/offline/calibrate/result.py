"""The result of a calibration: its folder with report and manifest, and the switch to its engine."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edge_agent import __version__
from edge_agent.core.errors import InputError
from edge_agent.core.manifest import FileRecord, Manifest, write_atomic
from edge_agent.engine.plans.active import ActiveEngine
from edge_agent.engine.precision.calibration import CALIBRATIONS, KIND, MANIFEST, VERSION, Calibration
from edge_agent.offline.bench.speed import BATCHES
from edge_agent.offline.calibrate.candidates import SAMPLE_FILE, SCALES_FILE, Candidates
from edge_agent.offline.calibrate.report import html_report
from edge_agent.offline.calibrate.request import NO_DATA, Request, Work, runs_on
from edge_agent.offline.calibrate.search import Found

__all__ = ["switch", "unfinished", "write_result"]

_CLEARLY_SLOWER = 0.9
"""Share of FP32's rate below which a precision counts as slower; a smaller difference may be noise."""


def write_result(
    folder: Path, work: Work, candidates: Candidates, found: Found, speeds: dict[str, Any] | None
) -> Calibration:
    """Write everything into a new folder, move it to `folder`, and remove the steps."""
    work.progress.begin("writing the report", None)
    chosen, steps = found.tried[found.chosen], work.steps
    new, old = unfinished(folder, "new"), unfinished(folder, "old")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700)
    files: dict[str, FileRecord] = {}

    def put(name: str, data: bytes) -> str:
        write_atomic(new / name, data)
        files[name] = FileRecord.of(new / name)
        return name

    def keep(source: str, name: str) -> str:
        return put(name, (steps.folder / source).read_bytes())

    graph = None if chosen["graph"] is None else keep(chosen["graph"], f"{found.chosen}.onnx")
    has_ranges = "int8" in found.tried and steps.is_done("ranges")
    if has_ranges:
        keep(SCALES_FILE, SCALES_FILE)
    scales = keep(chosen["scales"], "tensorrt-scales.json") if found.chosen == "int8" else None
    sample = keep(SAMPLE_FILE, "sample.json") if has_ranges else None
    drawn = candidates.sample().document() if has_ranges else None
    document = _document(folder, work, found, speeds, drawn)
    put("report.json", json.dumps(document, indent=2, allow_nan=False).encode())
    put("report.html", html_report(document, chosen["evaluation"]))
    copied = ("precision", "backend", "gate", "threshold", "model", "created", "keep")
    data = {key: document[key] for key in copied} | {
        "gate": chosen["gate"],
        "space": work.request.prepared.space,
        "graph": graph,
        "scales": scales,
        "sample": sample,
    }
    Manifest(KIND, VERSION, files, data).write(new / MANIFEST)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    for done in (old, steps.folder):  # the steps hold embeddings of people
        shutil.rmtree(done, ignore_errors=True)
    return Calibration.read(folder)


def unfinished(folder: Path, what: str) -> Path:
    """Return the path next to a calibration for unfinished work; `engines prune` removes it."""
    return folder.with_name(f"{folder.name}.{what}")


def _document(
    folder: Path,
    work: Work,
    found: Found,
    speeds: dict[str, Any] | None,
    sample: dict[str, Any] | None,
) -> dict[str, Any]:
    request, tried, chosen = work.request, found.tried, found.tried[found.chosen]
    int8 = tried.get("int8", {})
    first = next(iter(tried.values()))
    return {
        "precision": found.chosen,
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
        "notes": _slower(found.chosen, speeds),
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


def switch(request: Request, calibration: Calibration) -> bool:
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
    try:
        if active.read().current == record:
            return False
    except InputError:
        pass  # damaged: `switch` moves it out of the way
    active.switch(record)
    return True
