"""The search for the lowest precision that passes the accuracy gate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge_agent.core.errors import EngineError
from edge_agent.core.manifest import read_json, write_json_atomic
from edge_agent.offline.calibrate.candidates import Candidates, keep_digest
from edge_agent.offline.calibrate.request import Work
from edge_agent.offline.calibrate.sensitivity import Choice, Loss, blocks, choose_keep, measure
from edge_agent.offline.calibrate.trial import Trials

__all__ = ["Found", "search"]

_SENSITIVITY_CROPS = 64
"""Crops of the sample on which blocks are compared: enough to rank them."""


@dataclass(frozen=True, slots=True)
class Found:
    """Result of the search.

    Attributes:
        chosen: precision that passed.
        tried: by precision, in the order of the trials: what `Candidates.make` and `Trials.gate` returned,
            for INT8 also `sensitivity` where it was measured.
    """

    chosen: str
    tried: dict[str, dict[str, Any]]


def search(work: Work, candidates: Candidates, trials: Trials) -> Found:
    """Try the candidates in order until one passes, or cannot be measured without a data set.

    Raises:
        EngineError: even FP32 fails.
    """
    tried: dict[str, dict[str, Any]] = {}
    for precision in work.request.candidates:
        tried[precision] = _try(work, candidates, trials, precision)
        if tried[precision]["gate"]["passed"] is not False:
            return Found(precision, tried)
    reasons = "; ".join(reason for found in tried.values() for reason in found["gate"]["reasons"])
    raise EngineError(
        f"no engine of {work.request.prepared.name} on {work.backend} agrees with its reference: {reasons}"
    )


def _try(work: Work, candidates: Candidates, trials: Trials, precision: str) -> dict[str, Any]:
    made = candidates.make(precision, precision)
    found = {**made, **trials.gate(precision, precision, made)}
    if precision != "int8" or not work.request.sensitivity or made["graph"] is None:
        return found
    return _with_sensitivity(work, candidates, trials, found)


def _with_sensitivity(
    work: Work, candidates: Candidates, trials: Trials, whole: dict[str, Any]
) -> dict[str, Any]:
    """Measure the loss of each block; keep the worst in higher precision until the gate passes."""
    losses = _losses(work, candidates)
    found: dict[tuple[str, ...], dict[str, Any]] = {(): whole}

    def passes(keep: tuple[str, ...]) -> bool:
        if keep not in found:
            name = f"int8-{keep_digest(keep)}"
            made = candidates.make("int8", name, keep)
            found[keep] = {**made, **trials.gate("int8", name, made)}
        return bool(found[keep]["gate"]["passed"])

    choice = choose_keep(losses, passes)
    table = {
        "blocks": [_block_row(loss, choice) for loss in losses],
        "kept": list(choice.blocks),
        "passed": choice.passed,
        "gates_tried": choice.tries,
    }
    return {**found[choice.keep], "sensitivity": table}


def _block_row(loss: Loss, choice: Choice) -> Mapping[str, Any]:
    return {
        "block": loss.block.name,
        "nodes": list(loss.block.nodes),
        "loss": loss.mean,
        "worst": loss.worst,
        "kept": loss.block.name in choice.blocks,
    }


def _losses(work: Work, candidates: Candidates) -> tuple[Loss, ...]:
    """Measure the loss of each block; every result is stored at once, for a run that is interrupted."""
    prepared = work.request.prepared
    scales, sample = candidates.scales(), candidates.sample()
    path = work.steps.folder / "sensitivity-blocks.json"
    known: dict[str, list[float]] = read_json(path) if path.is_file() else {}
    work.progress.begin("measuring what each block costs", len(blocks(prepared)))

    def advance(_block: str) -> None:
        write_json_atomic(path, known)
        work.progress.advance(1)

    crops = candidates.crops(sample)[:_SENSITIVITY_CROPS]
    return measure(prepared, scales, crops, cache=known, advance=advance)
