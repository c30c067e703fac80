"""The evaluation as one HTML file: figures, curves as SVG, sampled matches as embedded JPEG.

It shows people: protect it as the data set is protected.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_agent.core.errors import InputError
from edge_agent.core.pictures import read_picture
from edge_agent.core.text import html_text
from edge_agent.offline.charts import Marker, Series, linear, logarithmic, svg_chart
from edge_agent.offline.evaluate.labels import EmbeddedCrops, Sides
from edge_agent.offline.evaluate.openset import OperatingPoint, Unsupported
from edge_agent.offline.evaluate.protocol import Evaluation, SampledQuery
from edge_agent.offline.page import GENUINE, SECOND, facts, figure, page, score_chart, table, tiles

_TILE = (64, 128)
_CMC_SHOWN = 20


def html_report(evaluation: Evaluation, document: dict[str, Any], *, title: str) -> bytes:
    """Render the report as UTF-8 HTML; names in `evaluation` are paths, `document` is the JSON output."""
    charts = [
        figure("Cumulative match characteristic", _cmc(evaluation)),
        figure("Scores of pairs across cameras", _histogram(evaluation)),
        figure("Detection error trade-off", _det(evaluation)),
    ]
    body = [
        _facts(document),
        _tiles(document),
        f'<div class="charts">{"".join(charts)}</div>',
        "<h2>Thresholds for a false-match rate</h2>",
        _points(evaluation.points, str(document["interval_method"])),
        _samples("Hardest queries (lowest average precision)", evaluation, evaluation.hardest),
        _samples("Other queries, drawn at random", evaluation, evaluation.sampled),
    ]
    return page(title, body)


def compared_report(
    evaluations: Sequence[Evaluation],
    document: dict[str, Any],
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str,
) -> bytes:
    """Render two evaluations side by side as UTF-8 HTML; `head` and `rows` are the table of differences."""
    series = [
        Series(letter, colour, list(enumerate(_cmc_shares(one), 1)))
        for letter, colour, one in zip("AB", (GENUINE, SECOND), evaluations, strict=True)
    ]
    body = [
        table(head, rows),
        facts([f"Differences in percentage points; intervals: {document['interval_method']}."]),
        f'<div class="charts">{figure("Cumulative match characteristic", _cmc_chart(series))}</div>',
        *(
            f"<h2>{letter}</h2>{_facts(one)}{_tiles(one)}"
            for letter, one in zip("AB", document["networks"], strict=True)
        ),
    ]
    return page(title, body)


def _facts(document: dict[str, Any]) -> str:
    ranked = document["reranking"] or "none"
    lines = [f"Protocol: {document['protocol']}", f"Junk: {document['junk_rule']}; re-ranking: {ranked}"]
    for key in ("dataset", "model", "versions"):
        found = document.get(key)
        if found:
            plain = {name: value for name, value in found.items() if isinstance(value, str | int | float)}
            values = ", ".join(f"{name} {value}" for name, value in plain.items() if value != "")
            lines.append(f"{key.capitalize()}: {values}")
    if document.get("unreadable"):
        lines.append(f"Left out as unreadable: {len(document['unreadable'])} crops")
    return facts(lines)


def _tiles(document: dict[str, Any]) -> str:
    names = {"rank-1": "rank1", "rank-5": "rank5", "rank-10": "rank10", "mAP": "mAP", "mINP": "mINP"}
    values = [(name, _percent(document[key])) for name, key in {**names, "EER": "eer"}.items()]
    values += [("queries ranked", str(document["queries_evaluated"])), ("gallery", str(document["gallery"]))]
    return tiles(values)


def _percent(share: float | None, digits: int = 1) -> str:
    return "&ndash;" if share is None else f"{100 * share:.{digits}f} %"


def _cmc(evaluation: Evaluation) -> str:
    return _cmc_chart([Series("CMC", GENUINE, list(enumerate(_cmc_shares(evaluation), 1)))])


def _cmc_shares(evaluation: Evaluation) -> list[float]:
    shown: list[float] = evaluation.ranking.cmc(min(_CMC_SHOWN, len(evaluation.sides.gallery))).tolist()
    return shown


def _cmc_chart(series: Sequence[Series]) -> str:
    floor = max(0.0, min(share for one in series for _, share in one.points) - 0.1)
    ranks = linear("rank", 1, max(2, *(len(one.points) for one in series)), steps=10)
    matched = linear("queries matched", round(floor, 1), 1.0, percent=True)
    return svg_chart(ranks, matched, series)


def _histogram(evaluation: Evaluation) -> str:
    edges, genuine, impostor = evaluation.scores.histograms(80)
    markers = [
        Marker(point.threshold, f"FMR {point.target_fmr:g}")
        for point in evaluation.points
        if isinstance(point, OperatingPoint)
    ]
    if evaluation.equal_error is not None:
        markers.append(Marker(evaluation.equal_error.threshold, "EER"))
    return score_chart(edges.tolist(), genuine.tolist(), impostor.tolist(), markers)


def _det(evaluation: Evaluation) -> str:
    scores = evaluation.scores
    curve = scores.det()
    if not curve:
        return "<p>There are no pairs of both kinds across cameras.</p>"
    fmr = logarithmic("false match rate", 1 / scores.impostor_pairs)
    fnmr = logarithmic("false non-match rate", max(1e-4, 1 / scores.genuine_pairs))
    return svg_chart(fmr, fnmr, [Series("DET", GENUINE, curve)])


def _points(points: Sequence[OperatingPoint | Unsupported], method: str) -> str:
    head = (
        "<tr><th>target FMR</th><th>threshold</th><th>FMR</th><th>95 % interval</th><th>false matches</th>"
        "<th>FNMR</th><th>95 % interval</th><th>missed</th></tr>"
    )
    rows = "".join(_point_row(point) for point in points)
    return f"<table>{head}{rows}</table>" + facts([f"Intervals: {method}."])


def _point_row(point: OperatingPoint | Unsupported) -> str:
    if isinstance(point, Unsupported):
        target, reason = f"{point.target_fmr:g}", html_text(point.reason)
        return f'<tr><td class="n">{target}</td><td colspan="7">{reason}</td></tr>'
    cells = [
        f"{point.target_fmr:g}", f"{point.threshold:.4f}",
        _percent(point.fmr, 3), _between(point.fmr_ci, 3), f"{point.false_matches} of {point.impostor_pairs}",
        _percent(point.fnmr), _between(point.fnmr_ci, 1),
        f"{point.false_non_matches} of {point.genuine_pairs}",
    ]  # fmt: skip
    return "<tr>" + "".join(f'<td class="n">{cell}</td>' for cell in cells) + "</tr>"


def _between(interval: tuple[float, float] | None, digits: int) -> str:
    if interval is None:
        return "&ndash;"
    return f"{_percent(interval[0], digits)} to {_percent(interval[1], digits)}"


def _samples(title: str, evaluation: Evaluation, samples: Sequence[SampledQuery]) -> str:
    if not samples:
        return ""
    rows = "".join(_sample_row(evaluation.sides, sample) for sample in samples)
    return f"<h2>{html_text(title)}</h2>{rows}"


def _sample_row(sides: Sides, sample: SampledQuery) -> str:
    summary = f"first match at rank {sample.first}<br>AP {sample.average_precision:.3f}"
    tiles = [
        f'<div class="summary">{summary}</div>',
        _crop(sides.query, sample.query, "", "query"),
        '<div class="gap"></div>',
    ]
    marks = {True: ("right", "&#10003;"), False: ("wrong", "&#10007;")}
    tiles += [_crop(sides.gallery, row, *marks[right]) for row, right in sample.nearest]
    return f'<div class="matches">{"".join(tiles)}</div>'


def _crop(crops: EmbeddedCrops, row: int, kind: str, mark: str) -> str:
    name = crops.names[row]
    person = f"{crops.pids[row]:04d}" if crops.pids[row] > 0 else "other"
    caption = f"{mark} {person} c{crops.camids[row]}"
    shown = _picture(Path(name), kind)
    return f'<figure title="{html_text(Path(name).name)}">{shown}<figcaption>{caption}</figcaption></figure>'


def _picture(path: Path, kind: str) -> str:
    """The picture at tile size; an empty box where it cannot be read."""
    import cv2

    try:
        picture = read_picture(path)
    except InputError:
        return f'<div class="crop {kind}"></div>'
    _, encoded = cv2.imencode(".jpg", cv2.resize(picture, _TILE), [cv2.IMWRITE_JPEG_QUALITY, 85])
    data = base64.b64encode(encoded.tobytes()).decode("ascii")
    return f'<img class="crop {kind}" alt="" src="data:image/jpeg;base64,{data}">'
