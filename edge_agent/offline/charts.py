"""Line and step charts as SVG text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge_agent.core.text import html_text

_WIDTH, _HEIGHT = 520, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 24, 12, 46
# Attributes instead of a style sheet: a chart that is copied out of the page keeps its look.
_TEXT = 'font-family="system-ui,sans-serif" font-size="12" fill="#333"'
_GRID = 'stroke="#e6e6e6"'
_DASHED = 'stroke="#666" stroke-dasharray="4 3"'


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis: its title, its ticks, and the function from a value to a share of its length."""

    title: str
    ticks: tuple[tuple[float, str], ...]
    place: Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Series:
    """One line of `(x, y)`; points outside the axes are moved to their border; `filled`: tinted below."""

    name: str
    colour: str
    points: Sequence[tuple[float, float]]
    filled: bool = False


@dataclass(frozen=True, slots=True)
class Marker:
    """A vertical line at `x` with a label."""

    x: float
    label: str


def linear(title: str, low: float, high: float, *, steps: int = 5, percent: bool = False) -> Axis:
    """Return an axis with about `steps` round ticks."""
    span = high - low or 1.0
    raw = span / steps
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    values = [index * step for index in range(first, last + 1)]
    ticks = tuple((value, f"{value * 100:.6g}%" if percent else f"{value:.6g}") for value in values)
    return Axis(title, ticks, lambda value: (value - low) / span)


def logarithmic(title: str, low: float, high: float = 1.0) -> Axis:
    """Return an axis over whole decades; values of zero and below lie at its low end."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    ticks = tuple((10.0**power, f"{100 * 10.0**power:g}%") for power in range(first, last + 1))
    span = max(1, last - first)
    return Axis(title, ticks, lambda value: (math.log10(max(value, 10.0**first)) - first) / span)


def svg_chart(x: Axis, y: Axis, series: Sequence[Series], markers: Sequence[Marker] = ()) -> str:
    """Return the chart as SVG; text is escaped, the width follows the page."""
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" {_TEXT} '
        f'aria-label="{html_text(y.title)} over {html_text(x.title)}">'
    ]
    parts += [_tick(_left(x, value), _HEIGHT - _BOTTOM, label, across=False) for value, label in x.ticks]
    parts += [_tick(_LEFT, _down(y, value), label, across=True) for value, label in y.ticks]
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, x.title, "middle"))
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(
        f'<text x="14" y="{middle:.0f}" text-anchor="middle" transform="rotate(-90 14 {middle:.0f})">'
        f"{html_text(y.title)}</text>"
    )
    parts += [_line(x, y, line) for line in series]
    parts += [_marker(x, marker, row) for row, marker in enumerate(markers)]
    parts += _legend(series)
    return "".join([*parts, "</svg>"])


def _left(axis: Axis, value: float) -> float:
    return _LEFT + min(1.0, max(0.0, axis.place(value))) * (_WIDTH - _LEFT - _RIGHT)


def _down(axis: Axis, value: float) -> float:
    return _HEIGHT - _BOTTOM - min(1.0, max(0.0, axis.place(value))) * (_HEIGHT - _TOP - _BOTTOM)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html_text(text)}</text>'


def _tick(x: float, y: float, label: str, *, across: bool) -> str:
    """A grid line with its label, horizontal if `across`."""
    if across:
        line = f'<line {_GRID} x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        return line + _text(x - 6, y + 4, label, "end")
    line = f'<line {_GRID} x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>'
    return line + _text(x, y + 16, label, "middle")


def _line(x: Axis, y: Axis, series: Series) -> str:
    points = [(_left(x, a), _down(y, b)) for a, b in series.points]
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    drawn = f'<polyline points="{path}" fill="none" stroke="{series.colour}" stroke-width="2"/>'
    if not (series.filled and points):
        return drawn
    foot = _HEIGHT - _BOTTOM
    area = f"{points[0][0]:.1f},{foot} {path} {points[-1][0]:.1f},{foot}"
    return f'<polygon points="{area}" fill="{series.colour}" fill-opacity="0.15"/>' + drawn


def _marker(x: Axis, marker: Marker, row: int) -> str:
    place = _left(x, marker.x)
    return (
        f'<line {_DASHED} x1="{place:.1f}" x2="{place:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>'
        + _text(place + 4, _TOP + 12 + 14 * row, marker.label, "start")
    )


def _legend(series: Sequence[Series]) -> list[str]:
    if len(series) < 2:
        return []
    return [
        f'<rect x="{_LEFT + 8}" y="{_TOP + 4 + 16 * row}" width="14" height="4" fill="{line.colour}"/>'
        + _text(_LEFT + 28, _TOP + 10 + 16 * row, line.name, "start")
        for row, line in enumerate(series)
    ]
