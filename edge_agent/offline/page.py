"""Parts of the HTML reports. A report is one file that refers to nothing outside itself."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from edge_agent.offline.charts import Marker, Series, linear, svg_chart

GENUINE, _IMPOSTOR = "#1565a8", "#d1731b"
"""Colours of pairs of one person and of two; colour-blind people can tell them apart."""

_STYLE = """
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


def page(title: str, parts: Iterable[str]) -> bytes:
    """Return a whole page as UTF-8; `parts` are HTML, the title is text."""
    heading = html.escape(title)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{heading}</title><style>{_STYLE}</style></head>"
        f"<body><h1>{heading}</h1>{''.join(parts)}</body></html>\n"
    ).encode()


def facts(lines: Iterable[str]) -> str:
    """Return a small-print paragraph of text lines."""
    return f'<p class="facts">{"<br>".join(map(html.escape, lines))}</p>'


def tiles(values: Iterable[tuple[str, str]]) -> str:
    """Return a row of tiles from names and values, both HTML."""
    inner = "".join(f'<div class="tile">{name}<b>{value}</b></div>' for name, value in values)
    return f'<div class="tiles">{inner}</div>'


def figure(caption: str, drawing: str) -> str:
    """Return a drawing (HTML) with a caption (text)."""
    return f"<figure><figcaption>{html.escape(caption)}</figcaption>{drawing}</figure>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of text cells."""
    top = "".join(f"<th>{html.escape(title)}</th>" for title in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{top}</tr>{body}</table>"


def score_chart(
    edges: Sequence[float], genuine: Sequence[int], impostor: Sequence[int], markers: Sequence[Marker]
) -> str:
    """Return the histogram of the scores of genuine and impostor pairs, each as shares of its pairs.

    Args:
        edges: N + 1 ascending cosines.
        genuine: N counts of pairs of one person.
        impostor: N counts of pairs of different persons.
        markers: thresholds to mark.
    """
    series, top = [], 0.0
    for name, colour, counts in (
        ("same person", GENUINE, genuine),
        ("different people", _IMPOSTOR, impostor),
    ):
        total = max(1, sum(counts))
        shares = [count / total for count in counts]
        series.append(Series(name, colour, _outline(edges, shares), filled=True))
        top = max(top, *shares)
    return svg_chart(
        linear("cosine", edges[0], edges[-1], steps=8),
        linear("share of pairs", 0, 1.25 * (top or 1.0), percent=True),  # leaves space for the legend
        series,
        markers,
    )


def _outline(edges: Sequence[float], heights: Sequence[float]) -> list[tuple[float, float]]:
    points = [(edges[0], 0.0)]
    for left, right, height in zip(edges, edges[1:], heights, strict=False):
        points += [(left, height), (right, height)]
    return [*points, (edges[-1], 0.0)]
