"""The evaluation as one HTML file: figures, curves as SVG, sampled matches as embedded JPEG.

The file refers to nothing outside itself, so it can be mailed or kept beside a model. It shows people:
treat it as the data set is treated.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_agent.core.errors import InputError
from edge_agent.core.pictures import read_picture
from edge_agent.offline.evaluate.charts import Marker, Series, linear, logarithmic, svg_chart
from edge_agent.offline.evaluate.labels import EmbeddedCrops
from edge_agent.offline.evaluate.openset import OperatingPoint, Unsupported
from edge_agent.offline.evaluate.protocol import Evaluation, SampledQuery

__all__ = ["STYLE", "html_report"]

_SAME, _DIFFERENT = "#1565a8", "#d1731b"  # told apart by colour-blind people too
_TILE = (64, 128)
_CMC_SHOWN = 20

STYLE = """
body{font:15px/1.45 system-ui,sans-serif;color:#222;max-width:1180px;margin:2em auto;padding:0 1em}
h1{font-size:1.5em;margin-bottom:.1em} h2{font-size:1.15em;margin-top:2em}
.facts{color:#555} .tiles{display:flex;flex-wrap:wrap;gap:.7em;margin:1.2em 0}
.tile{border:1px solid #ddd;border-radius:6px;padding:.5em 1em} .tile b{display:block;font-size:1.5em}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(340px,1fr));gap:1em}
figure{margin:0} figcaption{font-weight:600}
svg{width:100%}
table{border-collapse:collapse} td,th{padding:.25em .8em;border-bottom:1px solid #e3e3e3;text-align:left}
td.n{text-align:right;font-variant-numeric:tabular-nums}
.matches{display:flex;gap:4px;align-items:flex-end;margin:.5em 0}
.matches figcaption{font-weight:400;font-size:11px}
.crop{border:3px solid #888;width:64px;height:128px;display:block;background:#eee}
.right{border-color:#1a9641}.wrong{border-color:#d7191c}.gap{width:10px}
.summary{width:9.5em;font-size:13px;align-self:center}
"""


def html_report(evaluation: Evaluation, document: dict[str, Any], *, title: str) -> bytes:
    """Render the report as UTF-8 HTML.

    Args:
        evaluation: figures and samples; pictures are read from the names of its sides, as paths.
        document: what `--json` prints; `model`, `dataset` and `versions` are shown.
        title: heading.
    """
    body = [
        f"<h1>{html.escape(title)}</h1>",
        _facts(document),
        _tiles(document),
        '<div class="charts">',
        _figure("Cumulative match characteristic", _cmc(evaluation)),
        _figure("Scores of pairs across cameras", _histogram(evaluation)),
        _figure("Detection error trade-off", _det(evaluation)),
        "</div>",
        "<h2>Thresholds for a false-match rate</h2>",
        _points(evaluation.points, str(document["interval_method"])),
        _samples("Hardest queries (lowest average precision)", evaluation, evaluation.hardest),
        _samples("Other queries, drawn at random", evaluation, evaluation.sampled),
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )
    return page.encode()


def _facts(document: dict[str, Any]) -> str:
    ranked = document["reranking"] or "none"
    lines = [f"Protocol: {document['protocol']}", f"Junk: {document['junk_rule']}; re-ranking: {ranked}"]
    for key in ("dataset", "model", "versions"):
        found = document.get(key)
        if found:
            told = ", ".join(f"{name} {value}" for name, value in found.items() if value not in {None, ""})
            lines.append(f"{key.capitalize()}: {told}")
    if document.get("unreadable"):
        lines.append(f"Left out since unreadable: {len(document['unreadable'])} crops")
    return '<p class="facts">' + "<br>".join(html.escape(line) for line in lines) + "</p>"


def _tiles(document: dict[str, Any]) -> str:
    shares = [
        ("rank-1", "rank1"),
        ("rank-5", "rank5"),
        ("rank-10", "rank10"),
        ("mAP", "mAP"),
        ("mINP", "mINP"),
    ]
    tiles = [(name, _percent(document[key])) for name, key in [*shares, ("EER", "eer")]]
    tiles += [("queries ranked", str(document["queries_evaluated"])), ("gallery", str(document["gallery"]))]
    inner = "".join(f'<div class="tile">{name}<b>{value}</b></div>' for name, value in tiles)
    return f'<div class="tiles">{inner}</div>'


def _percent(share: float | None, digits: int = 1) -> str:
    return "&ndash;" if share is None else f"{100 * share:.{digits}f} %"


def _figure(caption: str, drawing: str) -> str:
    return f"<figure><figcaption>{html.escape(caption)}</figcaption>{drawing}</figure>"


def _cmc(evaluation: Evaluation) -> str:
    shares = evaluation.ranking.cmc(min(_CMC_SHOWN, len(evaluation.sides.gallery))).tolist()
    floor = max(0.0, min(shares) - 0.1)
    points = list(enumerate(shares, 1))
    return svg_chart(
        linear("rank", 1, max(2, len(shares)), steps=10),
        linear("queries matched", round(floor, 1), 1.0, percent=True),
        [Series("CMC", _SAME, points)],
    )


def _histogram(evaluation: Evaluation) -> str:
    edges, genuine, impostor = evaluation.scores.histograms(80)
    groups = [("same person", _SAME, genuine), ("different people", _DIFFERENT, impostor)]
    shares = [(name, colour, counts / max(1, counts.sum())) for name, colour, counts in groups]
    steps = [
        Series(name, colour, _steps(edges.tolist(), share.tolist()), filled=True)
        for name, colour, share in shares
    ]
    top = max(float(share.max()) for _, _, share in shares) or 1.0
    markers = [
        Marker(point.threshold, f"FMR {point.target_fmr:g}")
        for point in evaluation.points
        if isinstance(point, OperatingPoint)
    ]
    if evaluation.equal_error is not None:
        markers.append(Marker(evaluation.equal_error.threshold, "EER"))
    return svg_chart(
        linear("cosine", float(edges[0]), float(edges[-1]), steps=8),
        linear("share of pairs", 0, 1.25 * top, percent=True),  # room for the legend
        steps,
        markers,
    )


def _steps(edges: list[float], heights: list[float]) -> list[tuple[float, float]]:
    """The outline of a histogram."""
    outline = [(edges[0], 0.0)]
    for left, right, height in zip(edges, edges[1:], heights, strict=False):
        outline += [(left, height), (right, height)]
    return [*outline, (edges[-1], 0.0)]


def _det(evaluation: Evaluation) -> str:
    scores = evaluation.scores
    curve = scores.det()
    if not curve:
        return "<p>There are no pairs of both kinds across cameras.</p>"
    return svg_chart(
        logarithmic("false match rate", 1 / scores.impostor_pairs),
        logarithmic("false non-match rate", max(1e-4, 1 / scores.genuine_pairs)),
        [Series("DET", _SAME, curve)],
    )


def _points(points: Sequence[OperatingPoint | Unsupported], method: str) -> str:
    head = (
        "<tr><th>target FMR</th><th>threshold</th><th>FMR</th><th>95 % interval</th><th>false matches</th>"
        "<th>FNMR</th><th>95 % interval</th><th>missed</th></tr>"
    )
    rows = "".join(_point_row(point) for point in points)
    return f'<table>{head}{rows}</table><p class="facts">Intervals: {html.escape(method)}.</p>'


def _point_row(point: OperatingPoint | Unsupported) -> str:
    if isinstance(point, Unsupported):
        target, reason = f"{point.target_fmr:g}", html.escape(point.reason)
        return f'<tr><td class="n">{target}</td><td colspan="7">{reason}</td></tr>'
    cells = [
        f"{point.target_fmr:g}",
        f"{point.threshold:.4f}",
        _percent(point.fmr, 3),
        _between(point.fmr_ci, 3),
        f"{point.false_matches} of {point.impostor_pairs}",
        _percent(point.fnmr),
        _between(point.fnmr_ci, 1),
        f"{point.false_non_matches} of {point.genuine_pairs}",
    ]
    return "<tr>" + "".join(f'<td class="n">{cell}</td>' for cell in cells) + "</tr>"


def _between(interval: tuple[float, float] | None, digits: int) -> str:
    if interval is None:
        return "&ndash;"
    return f"{_percent(interval[0], digits)} to {_percent(interval[1], digits)}"


def _samples(title: str, evaluation: Evaluation, samples: Sequence[SampledQuery]) -> str:
    if not samples:
        return ""
    rows = "".join(_sample_row(evaluation, sample) for sample in samples)
    return f"<h2>{html.escape(title)}</h2>{rows}"


def _sample_row(evaluation: Evaluation, sample: SampledQuery) -> str:
    sides = evaluation.sides
    summary = f"first match at rank {sample.first}<br>AP {sample.average_precision:.3f}"
    tiles = [
        f'<div class="summary">{summary}</div>',
        _crop(sides.query, sample.query, "", "query"),
        '<div class="gap"></div>',
    ]
    for row, right in sample.nearest:
        tiles.append(
            _crop(sides.gallery, row, "right" if right else "wrong", "&#10003;" if right else "&#10007;")
        )
    return f'<div class="matches">{"".join(tiles)}</div>'


def _crop(crops: EmbeddedCrops, row: int, kind: str, mark: str) -> str:
    name = crops.names[row]
    person = f"{crops.pids[row]:04d}" if crops.pids[row] > 0 else "other"
    caption = f"{mark} {person} c{crops.camids[row]}"
    source = _jpeg(Path(name))
    picture = (
        f'<div class="crop {kind}"></div>'
        if source is None
        else f'<img class="crop {kind}" alt="" src="data:image/jpeg;base64,{source}">'
    )
    return (
        f'<figure title="{html.escape(Path(name).name)}">{picture}<figcaption>{caption}</figcaption></figure>'
    )


def _jpeg(path: Path) -> str | None:
    """The picture at tile size as base64, or None where it cannot be read."""
    import cv2

    try:
        picture = read_picture(path)
    except InputError:
        return None
    _, encoded = cv2.imencode(".jpg", cv2.resize(picture, _TILE), [cv2.IMWRITE_JPEG_QUALITY, 85])
    return base64.b64encode(encoded.tobytes()).decode("ascii")
