"""Trials of candidates on this machine, and the search for the lowest precision that passes the gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_agent.core.arrays import open_archive, write_arrays
from edge_agent.core.config import TelemetrySettings
from edge_agent.core.errors import EngineError, ModelError
from edge_agent.core.files import read_json
from edge_agent.core.manifest import atomic_file, write_json_atomic
from edge_agent.embed.opening import make_embedder
from edge_agent.engine.precision.scales import Scales
from edge_agent.health.telemetry import Telemetry
from edge_agent.offline.bench import speed
from edge_agent.offline.calibrate.candidates import Candidate, Candidates, keep_digest
from edge_agent.offline.calibrate.gate import (
    Embeddings,
    Gate,
    compare,
    match_threshold,
    threshold_without_data,
)
from edge_agent.offline.calibrate.request import NO_DATA, StepResult, Work
from edge_agent.offline.calibrate.sensitivity import Loss, blocks, choose_keep, measure
from edge_agent.offline.dataset import Crop, Split
from edge_agent.offline.evaluate.embedding import embed_paths, labelled
from edge_agent.offline.evaluate.labels import EmbeddedCrops

if TYPE_CHECKING:
    from edge_agent.embed.embedder import Embedder

_REFERENCE = "reference.npz"

_SENSITIVITY_CROPS = 64
"""Crops of the sample on which blocks are compared: enough to rank them."""


class Trials:
    """Makes candidates and compares them to FP32, as steps of the work."""

    def __init__(self, work: Work, candidates: Candidates) -> None:
        self._request, self._steps, self._progress = work.request, work.steps, work.progress
        self._dataset = work.dataset
        self._candidates = candidates
        self._engine = work.request.engine.model_copy(update={"backend": work.backend})
        self._fp32 = Candidate(work.request.prepared)

    def search(self) -> dict[str, dict[str, Any]]:
        """Try the candidates in order until one passes, or cannot be measured without a data set.

        Returns:
            By precision, the chosen one last, JSON values: those of `Candidates.make`, `gate`, `threshold`,
            `evaluation` (None where nothing was measured); for INT8 also `sensitivity` if it was measured.

        Raises:
            EngineError: even FP32 fails.
        """
        tried: dict[str, dict[str, Any]] = {}
        for precision in self._request.candidates:
            found = self._try(precision, precision)
            if precision == "int8" and self._request.sensitivity and found["graph"] is not None:
                found = self._keep_worst(found)
            tried[precision] = found
            if found["gate"]["passed"] is not False:
                return tried
        reasons = "; ".join(reason for found in tried.values() for reason in found["gate"]["reasons"])
        backend, name = self._engine.backend, self._request.prepared.name
        raise EngineError(f"no engine of {name} on {backend} agrees with its reference: {reasons}")

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

    def _keep_worst(self, whole: dict[str, Any]) -> dict[str, Any]:
        """Measure the loss of each block; keep the worst in higher precision until the gate passes."""
        losses = self._losses()
        found: dict[tuple[str, ...], dict[str, Any]] = {(): whole}

        def passes(keep: tuple[str, ...]) -> bool:
            if keep not in found:
                found[keep] = self._try("int8", f"int8-{keep_digest(keep)}", keep)
            return bool(found[keep]["gate"]["passed"])

        choice = choose_keep(losses, passes)
        table = {
            "blocks": [
                {
                    "block": loss.block.name,
                    "nodes": list(loss.block.nodes),
                    "loss": loss.mean,
                    "worst": loss.worst,
                    "kept": loss.block.name in choice.blocks,
                }
                for loss in losses
            ],
            "kept": list(choice.blocks),
            "passed": choice.passed,
            "gates_tried": choice.tries,
        }
        return {**found[choice.keep], "sensitivity": table}

    def _losses(self) -> tuple[Loss, ...]:
        """Measure the loss of each block; every result is stored at once, for a run that is interrupted."""
        prepared = self._request.prepared
        scales, sample = self._candidates.scales(), self._candidates.sample()
        path = self._steps.folder / "sensitivity-blocks.json"
        known: dict[str, list[float]] = read_json(path) if path.is_file() else {}
        self._progress.begin("measuring what each block costs", len(blocks(prepared)))

        def advance(_block: str) -> None:
            write_json_atomic(path, known)
            self._progress.advance(1)

        crops = self._candidates.crops(sample)[:_SENSITIVITY_CROPS]
        return measure(prepared, scales, crops, cache=known, advance=advance)

    def _try(self, precision: str, name: str, keep: Sequence[str] = ()) -> dict[str, Any]:
        """Make a candidate in the step `name`, the nodes `keep` in higher precision; compare it to FP32."""
        made = self._candidates.make(precision, name, keep)

        def make(_folder: Path) -> StepResult:
            if made["problem"]:
                return self._failed(name, made["problem"]), ()
            candidate = self._candidates.open(precision, made)
            try:
                return (self._self_test if self._dataset is None else self._compare)(name, candidate), ()
            except (EngineError, ModelError) as problem:
                if precision == "fp32":
                    raise  # the network itself does not run; there is no further candidate
                return self._failed(name, str(problem)), ()

        return {**made, **self._steps.run(f"gate-{name}", make)}

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
        queries, gallery = self._dataset.split(Split.QUERY), self._dataset.split(Split.GALLERY)
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
        gate, evaluation = compare(
            reference, found, name=name, bounds=request.bounds, target_fmr=request.target_fmr
        )
        threshold = match_threshold(evaluation, request.target_fmr, request.site)
        measured = evaluation.document()
        return {"gate": gate.document(), "threshold": threshold.document(), "evaluation": measured}

    def _self_test(self, name: str, candidate: Candidate) -> dict[str, Any]:
        """Without a data set, check only that the engine reproduces the golden embeddings."""
        self._progress.begin(f"testing {candidate.graph.precision.upper()}", None)
        with self._open(candidate):
            pass
        return self._not_measured(Gate(name, None, (NO_DATA,), self._request.bounds))

    def _failed(self, name: str, reason: str) -> dict[str, Any]:
        """The result of a candidate that does not build, or outputs NaN."""
        return self._not_measured(Gate(name, False, (reason,), self._request.bounds))

    def _not_measured(self, gate: Gate) -> dict[str, Any]:
        threshold = threshold_without_data(self._request.target_fmr, self._request.site)
        return {"gate": gate.document(), "threshold": threshold.document(), "evaluation": None}

    def _speeds(self, candidates: Mapping[str, Candidate], left_out: dict[str, str]) -> dict[str, Any]:
        self._progress.begin("measuring the speed", len(candidates) * len(speed.BATCHES))
        rows: list[speed.Measurement] = []
        with Telemetry(TelemetrySettings(), self._request.disk) as telemetry:
            board = telemetry.read().board
            for precision, candidate in candidates.items():
                try:
                    for batch in speed.BATCHES:
                        embedder = self._open(candidate, max_batch=batch)
                        rows.append(speed.measure(embedder, seconds=self._request.bench_seconds, board=board))
                        self._progress.advance(1)
                except (EngineError, ModelError) as problem:
                    left_out[precision] = str(problem)
            return speed.document(rows, left_out, self._request.prepared.facts(), telemetry.read())


def _store(path: Path, found: Embeddings) -> None:
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for side, crops in (("query", found.query), ("gallery", found.gallery)):
        arrays |= {
            f"{side}_vectors": crops.vectors,
            f"{side}_pids": crops.pids,
            f"{side}_camids": crops.camids,
        }
        arrays[f"{side}_names"] = np.array(crops.names)
    with atomic_file(path, mode=0o600) as handle:
        write_arrays(handle, arrays)


def _load(path: Path) -> Embeddings:
    with open_archive(path) as stored:

        def side(name: str) -> EmbeddedCrops:
            names = stored.read(f"{name}_names", kinds="U", shape=(None,))
            return EmbeddedCrops(
                stored.read(f"{name}_vectors", kinds="f", shape=(len(names), None)),
                stored.read(f"{name}_pids", kinds="i", shape=(len(names),)),
                stored.read(f"{name}_camids", kinds="i", shape=(len(names),)),
                tuple(names.tolist()),
            )

        return Embeddings(side("query"), side("gallery"))
