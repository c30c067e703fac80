"""Parts of the HTML reports. A report is one file that refers to nothing outside itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template

from edge_agent.core.text import html_text
from edge_agent.offline.charts import Marker, Series, linear, svg_chart

GENUINE, SECOND = "#1565a8", "#d1731b"
"""Colours of pairs of one person and of two, or of two networks; colour-blind people can tell them apart."""

_PAGE = Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))


def page(title: str, parts: Iterable[str]) -> bytes:
    """Return a whole page as UTF-8; `parts` are HTML, the title is text."""
    return _PAGE.substitute(title=html_text(title), body="".join(parts)).encode()


def facts(lines: Iterable[str]) -> str:
    """Return a small-print paragraph of text lines."""
    return f'<p class="facts">{"<br>".join(map(html_text, lines))}</p>'


def tiles(values: Iterable[tuple[str, str]]) -> str:
    """Return a row of tiles from names and values, both HTML."""
    inner = "".join(f'<div class="tile">{name}<b>{value}</b></div>' for name, value in values)
    return f'<div class="tiles">{inner}</div>'


def figure(caption: str, drawing: str) -> str:
    """Return a drawing (HTML) with a caption (text)."""
    return f"<figure><figcaption>{html_text(caption)}</figcaption>{drawing}</figure>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of text cells."""
    top = "".join(f"<th>{html_text(title)}</th>" for title in head)
    body = "".join("<tr>" + "".join(f"<td>{html_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"


def score_chart(
    edges: Sequence[float], genuine: Sequence[int], impostor: Sequence[int], markers: Sequence[Marker]
) -> str:
    """Return the histogram of pairs of one person and of two, each as shares of its pairs.

    `edges` are N + 1 ascending cosines, `genuine` and `impostor` N counts, `markers` thresholds.
    """
    series, top = [], 0.0
    for name, colour, counts in (
        ("same person", GENUINE, genuine),
        ("different people", SECOND, impostor),
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
