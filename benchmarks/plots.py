"""Charts of results, and properties of a curve: its slope, and the point where it breaks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge_agent.offline.charts import Axis, Marker, Series, svg_chart

__all__ = ["KEPT", "LOST", "breaks_at", "curve", "doublings", "slope", "standalone"]

KEPT = 0.9
"""A curve breaks where the embedded share of the offered crops is below this part of the best share ..."""
LOST = 0.01
"""... or where more than this share of the frames is lost."""


def breaks_at(points: Sequence[tuple[float, float, float]]) -> float | None:
    """Return the first broken `x` of `(x, share embedded, share of frames lost)`; None if none is."""
    best = max((share for _, share, _ in points), default=0.0)
    return next((x for x, share, lost in sorted(points) if share < KEPT * best or lost > LOST), None)


def slope(points: Sequence[tuple[float, float]]) -> float | None:
    """Return the exponent of `y ~ x ** slope`, from a line through the logarithms; None below two points."""
    usable = [(x, y) for x, y in points if x > 0 and y > 0]
    if len(usable) < 2:
        return None
    x, y = np.log(np.asarray(usable, np.float64)).T
    return float(np.polyfit(x, y, 1)[0])


def doublings(title: str, values: Sequence[float]) -> Axis:
    """Return an axis on which each doubling has the same length, with a tick at each value."""
    low, high = np.log2(min(values)), np.log2(max(values))
    span = float(high - low) or 1.0
    ticks = tuple((value, f"{value:g}") for value in sorted(values))
    return Axis(title, ticks, lambda value: float(np.log2(value) - low) / span)


def curve(title: str, unit: str, series: Sequence[Series], broken: float | None = None) -> str:
    """Return a chart with two axes of doublings as SVG; a dashed line marks where the curve breaks."""
    across = sorted({x for line in series for x, _ in line.points})
    rates = [y for line in series for _, y in line.points if y > 0]
    powers = range(int(np.floor(np.log2(min(rates)))), int(np.ceil(np.log2(max(rates)))) + 1)
    if broken is not None:
        title = f"{title} (dashed: it breaks at {broken:g})"
    drawn = svg_chart(
        doublings(title, across),
        doublings(unit, [2.0**power for power in powers]),
        series,
        [] if broken is None else [Marker(broken, "")],
    )
    return standalone(drawn)


def standalone(drawn: str) -> str:
    """Return the chart of a page as an SVG file."""
    return drawn.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"
