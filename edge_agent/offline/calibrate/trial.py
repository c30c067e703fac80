"""Trials of candidates: accuracy gate, match threshold and speed on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_agent.core.config import TelemetrySettings
from edge_agent.core.errors import EngineError, ModelError
from edge_agent.core.manifest import atomic_file
from edge_agent.embed.opening import make_embedder
from edge_agent.engine.precision.scales import Scales
from edge_agent.health.telemetry import Telemetry
from edge_agent.offline.bench import speed
from edge_agent.offline.calibrate import gate as gates
from edge_agent.offline.calibrate import threshold as thresholds
from edge_agent.offline.calibrate.candidates import Candidate, Candidates
from edge_agent.offline.calibrate.gate import Embeddings, Gate
from edge_agent.offline.calibrate.request import NO_DATA, Work
from edge_agent.offline.calibrate.steps import StepResult
from edge_agent.offline.dataset import Crop
from edge_agent.offline.evaluate import EmbeddedCrops
from edge_agent.offline.evaluate.embedding import embed_paths, labelled

if TYPE_CHECKING:
    from edge_agent.embed.embedder import Embedder

__all__ = ["Trials"]

_REFERENCE = "reference.npz"


class Trials:
    """Runs candidates on this machine and compares them to FP32, as steps of the work."""

    def __init__(self, work: Work, candidates: Candidates) -> None:
        self._request, self._steps, self._progress = work.request, work.steps, work.progress
        self._dataset = work.dataset
        self._candidates = candidates
        self._engine = work.request.engine.model_copy(update={"backend": work.backend})
        self._fp32 = Candidate(work.request.prepared)

    def gate(self, precision: str, name: str, made: Mapping[str, Any]) -> dict[str, Any]:
        """Compare a candidate to FP32.

        Args:
            precision: of the candidate.
            name: of the step that made it.
            made: result of that step, from `Candidates.make`.

        Returns:
            JSON values: `gate`, `threshold` and `evaluation` (None where nothing was measured).
        """

        def make(_folder: Path) -> StepResult:
            bounds = self._request.bounds
            if made["problem"]:
                return self._not_measured(gates.failed(name, made["problem"], bounds)), ()
            candidate = self._candidates.open(precision, made)
            try:
                return (self._self_test if self._dataset is None else self._compare)(name, candidate), ()
            except (EngineError, ModelError) as problem:
                if precision == "fp32":
                    raise  # the network itself does not run; there is no further candidate
                return self._not_measured(gates.failed(name, str(problem), bounds)), ()

        return self._steps.run(f"gate-{name}", make)

    def bench(self, tried: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
        """Measure the speed of FP32 and of each precision in `tried` that could be made."""
        if not self._request.bench_seconds:
            return None

        def make(_folder: Path) -> StepResult:
            candidates = {"fp32": self._fp32}
            left_out: dict[str, str] = {}
            for precision, found in tried.items():
                if precision != "fp32" and found["graph"] is None:
                    left_out[precision] = "; ".join(found["gate"]["reasons"])
                elif precision != "fp32":
                    candidates[precision] = self._candidates.open(precision, found)
            return self._speeds(candidates, left_out), ()

        return self._steps.run("bench", make)

    def _open(self, candidate: Candidate, *, max_batch: int | None = None) -> Embedder:
        scales = candidate.scales
        return make_embedder(
            candidate.graph,
            self._request.golden,
            engine=self._engine,
            quality=self._request.quality,
            plans=self._request.engines,
            ranges=None if scales is None else lambda: (self._request.prepared, Scales.read(scales)),
            max_batch=max_batch,
            building=self._on_build,
        )

    def _on_build(self, phase: str, done: int, total: int) -> None:
        """Show the phases of a build, which takes minutes."""
        if not done:
            self._progress.begin(f"building: {phase}", total or None)
        else:
            self._progress.advance(1)

    def _reference(self) -> Embeddings:
        """Embeddings of the FP32 network, stored with mode 0600 until the calibration is finished."""

        def make(folder: Path) -> StepResult:
            found, unreadable = self._embed(self._fp32)
            _store(folder / _REFERENCE, found)
            return {"unreadable": unreadable}, (_REFERENCE,)

        self._steps.run("reference", make)
        return _load(self._steps.folder / _REFERENCE)

    def _embed(self, candidate: Candidate) -> tuple[Embeddings, list[str]]:
        """Embed query and gallery; also the paths of unreadable crops."""
        assert self._dataset is not None
        queries, gallery = self._dataset.query, self._dataset.gallery
        precision = candidate.graph.precision.upper()
        self._progress.begin(f"embedding in {precision}", len(queries) + len(gallery))
        unreadable: list[str] = []
        with self._open(candidate) as embedder:

            def embed(crops: Sequence[Crop]) -> EmbeddedCrops:
                done = embed_paths(embedder, [crop.path for crop in crops], advance=self._progress.advance)
                unreadable.extend(str(problem.path) for problem in done.problems)
                return labelled(done, crops)

            return Embeddings(embed(queries), embed(gallery)), unreadable

    def _compare(self, name: str, candidate: Candidate) -> dict[str, Any]:
        request = self._request
        reference = self._reference()
        found = reference if candidate.graph.precision == "fp32" else self._embed(candidate)[0]
        gate, evaluation = gates.compare(
            reference, found, name=name, bounds=request.bounds, target_fmr=request.target_fmr
        )
        threshold = thresholds.choose(evaluation, request.target_fmr, request.site)
        return {
            "gate": gate.document(),
            "threshold": threshold.document(),
            "evaluation": evaluation.document(),
        }

    def _self_test(self, name: str, candidate: Candidate) -> dict[str, Any]:
        """Without a data set, check only that the engine reproduces the golden embeddings."""
        self._progress.begin(f"testing {candidate.graph.precision.upper()}", None)
        with self._open(candidate):
            pass
        return self._not_measured(Gate(name, passed=None, reasons=(NO_DATA,), bounds=self._request.bounds))

    def _not_measured(self, gate: Gate) -> dict[str, Any]:
        threshold = thresholds.without_data(self._request.target_fmr, self._request.site)
        return {"gate": gate.document(), "threshold": threshold.document(), "evaluation": None}

    def _speeds(self, candidates: Mapping[str, Candidate], left_out: dict[str, str]) -> dict[str, Any]:
        self._progress.begin("measuring the speed", len(candidates) * len(speed.BATCHES))
        rows: list[speed.Measurement] = []
        with Telemetry(TelemetrySettings(), self._request.disk) as telemetry:
            board = telemetry.read().board
            for precision, candidate in candidates.items():
                try:
                    for batch in speed.BATCHES:
                        rows.append(self._speed(candidate, batch, board))
                        self._progress.advance(1)
                except (EngineError, ModelError) as problem:
                    left_out[precision] = str(problem)
            return speed.document(rows, left_out, self._request.prepared.facts(), telemetry.read())

    def _speed(self, candidate: Candidate, batch: int, board: str | None) -> speed.Measurement:
        with self._open(candidate, max_batch=batch) as embedder:
            return speed.measure(embedder, seconds=self._request.bench_seconds, board=board)


def _store(path: Path, found: Embeddings) -> None:
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for side, crops in (("query", found.query), ("gallery", found.gallery)):
        arrays |= {
            f"{side}_vectors": crops.vectors,
            f"{side}_pids": crops.pids,
            f"{side}_camids": crops.camids,
            f"{side}_names": np.array(crops.names),
        }
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
