"""The report of a calibration as one HTML file, made from its JSON document; it shows no people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_agent.core.text import html_text
from edge_agent.offline.charts import Marker
from edge_agent.offline.page import facts, figure, page, score_chart, table, tiles

_GATE_ROWS = (
    ("mAP, FP32", "mAP_fp32", "share"),
    ("mAP, candidate", "mAP_candidate", "share"),
    ("rank-1, FP32", "rank1_fp32", "share"),
    ("rank-1, candidate", "rank1_candidate", "share"),
    ("cosine to FP32, median", "cosine_median", ".4f"),
    ("cosine to FP32, 1st percentile", "cosine_p1", ".4f"),
    ("cosine to FP32, minimum", "cosine_min", ".4f"),
    ("crops compared", "crops", "d"),
    ("threshold, FP32", "threshold_fp32", ".4f"),
    ("threshold, candidate", "threshold_candidate", ".4f"),
    ("threshold drift", "threshold_drift", ".4f"),
    ("FMR of the candidate at FP32's threshold", "fmr_at_fp32_threshold", ".2e"),
)


def html_report(document: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> bytes:
    """Render the JSON report, and the chosen engine's `Evaluation.document()`, if any, as UTF-8 HTML."""
    parts = [
        _facts(document),
        _verdict(document),
        "<h2>Accuracy gate</h2>",
        _gates(document["gates"]),
        "<h2>Match threshold</h2>",
        _threshold(document["threshold"]),
        _scores(evaluation, document["threshold"]),
        _sample(document),
        _placement(document["placement"]),
        _sensitivity(document["sensitivity"]),
        _speed(document["bench"]),
    ]
    return page(f"Calibration of {document['model']['name']}", parts)


def _facts(document: Mapping[str, Any]) -> str:
    model = document["model"]
    runs_on = ", ".join(f"{name} {value}" for name, value in document["runs_on"].items())
    lines = [
        f"Made {document['created']} by edge-agent {document['agent']} for {document['backend']} ({runs_on})",
        f"Model {model['path']}, sha256 {model['sha256']}",
        f"Preprocess profile {model['preprocess']}, {model['dimension']} numbers, space {model['space']}",
        f"Data set {document['dataset'] or 'none'}",
    ]
    return facts(lines)


def _verdict(document: Mapping[str, Any]) -> str:
    sizes = {name: f"{size / 1e6:.1f} MB" for name, size in document["bytes"].items() if size}
    threshold = document["threshold"]["value"]
    values = [("chosen", document["precision"].upper()), ("asked for", document["asked"])]
    values.append(("threshold", "none" if threshold is None else f"{threshold:.4f}"))
    values += [(f"graph in {name.upper()}", size) for name, size in sizes.items()]
    notes = [*document["missing"], *document["notes"]]
    for name, gate in document["gates"].items():
        if gate["passed"] is False:
            notes.append(f"{name.upper()} was not taken: {'; '.join(gate['reasons'])}")
    return tiles(values) + "".join(f"<p>{html_text(note)}</p>" for note in notes)


def _gates(gates: Mapping[str, Mapping[str, Any]]) -> str:
    head = "".join(f"<th>{html_text(name.upper())}</th>" for name in gates)
    words = {True: "passed", False: "failed", None: "not measured"}
    verdicts = "".join(f"<td>{words[gate['passed']]}</td>" for gate in gates.values())
    rows = f"<tr><th></th>{head}</tr><tr><td>gate</td>{verdicts}</tr>"
    for title, key, kind in _GATE_ROWS:
        cells = "".join(f'<td class="n">{_cell(gate[key], kind)}</td>' for gate in gates.values())
        rows += f"<tr><td>{title}</td>{cells}</tr>"
    bounds = next(iter(gates.values()))["bounds"]
    allowed = (
        f"Allowed: mAP loss {100 * bounds['max_map_loss']:g} points, rank-1 loss "
        f"{100 * bounds['max_rank1_loss']:g} points, median cosine at least {bounds['min_median_cosine']:g}. "
        "Measured on query and gallery crops, which calibration does not use."
    )
    return f"<table>{rows}</table>" + facts([allowed])


def _cell(value: float | None, kind: str) -> str:
    if value is None:
        return "&ndash;"
    return f"{100 * value:.2f} %" if kind == "share" else format(value, kind)


def _threshold(threshold: Mapping[str, Any]) -> str:
    if threshold["value"] is None:
        return f"<p>None: {html_text(threshold['reason'])}</p>"
    interval = threshold["fmr_ci"]
    between = "" if interval is None else f", 95 % interval {interval[0]:.2e} to {interval[1]:.2e}"
    measured = "" if threshold["fmr"] is None else f"; measured {threshold['fmr']:.2e}{between}"
    fnmr = threshold["fnmr"]
    missed = "" if fnmr is None else f" {100 * fnmr:.1f} % of genuine pairs lie below."
    text = (
        f"{threshold['value']:.4f} for a false-match rate of {threshold['target_fmr']:g}{measured}, from "
        f"{threshold['pairs']} pairs of different people across cameras.{missed} {threshold['reason']}"
    )
    return f"<p>{html_text(text)}</p>" + facts([f"Interval: {threshold['method']}."])


def _scores(evaluation: Mapping[str, Any] | None, threshold: Mapping[str, Any]) -> str:
    if evaluation is None:
        return ""
    histogram = evaluation["score_histogram"]
    markers = [] if threshold["value"] is None else [Marker(threshold["value"], "threshold")]
    chart = score_chart(histogram["edges"], histogram["genuine"], histogram["impostor"], markers)
    return f'<div class="charts">{figure("Pairs across cameras", chart)}</div>'


def _sample(document: Mapping[str, Any]) -> str:
    sample = document["sample"]
    if sample is None:
        return ""
    text = (
        f"{sample['size']} crops of {sample['identities']} people and {sample['cameras']} cameras from "
        f"{sample['split']} (asked for {sample['asked']}, seed {sample['seed']}); ranges by "
        f"{document['method']}. Digest {sample['digest']}."
    )
    replaced = [f"{entry['name']}: {entry['reason']}" for entry in sample["replaced"]]
    lost = "".join(f"<li>{html_text(entry)}</li>" for entry in replaced)
    if replaced:
        lost = f"<p>Pictures that could not be read, and were replaced:</p><ul>{lost}</ul>"
    return f"<h2>Calibration sample</h2><p>{html_text(text)}</p>{lost}"


def _placement(placement: Mapping[str, Any] | None) -> str:
    if placement is None:
        return ""
    return "<h2>Q/DQ placement of the INT8 graph</h2>" + table(
        ("nodes", "d"), [(name.replace("_", " "), str(value)) for name, value in placement.items()]
    )


def _sensitivity(sensitivity: Mapping[str, Any] | None) -> str:
    if sensitivity is None:
        return ""
    rows = [
        (row["block"], str(len(row["nodes"])), f"{row['loss']:.5f}", "kept" if row["kept"] else "")
        for row in sensitivity["blocks"]
    ]
    head = ("block", "nodes", "1 - cosine with this block alone in INT8", "in higher precision")
    return "<h2>Loss per block</h2>" + table(head, rows)


def _speed(bench: Mapping[str, Any] | None) -> str:
    if bench is None:
        return ""
    rows = []
    for row in bench["rows"]:
        latency = " / ".join(f"{row['alone'][key]:.2f}" for key in ("p50", "p95", "p99"))
        rates = (f"{row[key]:.1f}" for key in ("images_per_second", "end_to_end_per_second"))
        rows.append((row["precision"], str(row["batch"]), latency, *rates))
    head = ("precision", "batch", "latency p50 / p95 / p99 (ms)", "images/s", "crops/s end to end")
    machine = bench["machine"]
    host = f"{machine['cpu'] or machine['platform']}, {machine['cores']} cores"
    return f"<h2>Speed</h2>{table(head, rows)}" + facts([f"{host}, {machine['board'] or 'no board'}"])
