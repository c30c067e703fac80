"""Pictures of results, and what a curve says: its slope, and where it breaks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge_agent.offline.charts import Axis, Marker, Series, svg_chart

__all__ = ["KEPT", "LOST", "breaks_at", "curve", "doublings", "slope", "standalone"]

KEPT = 0.9
"""A curve has broken where the share of the offered that is embedded is below this of the best share ..."""
LOST = 0.01
"""... or where more than this share of the frames is lost."""


def breaks_at(points: Sequence[tuple[float, float, float]]) -> float | None:
    """The first `x` of `(x, share embedded, share of frames lost)` that has broken; None where none has."""
    best = max((share for _, share, _ in points), default=0.0)
    return next((x for x, share, lost in sorted(points) if share < KEPT * best or lost > LOST), None)


def slope(points: Sequence[tuple[float, float]]) -> float | None:
    """Exponent of `y ~ x ** slope`, a straight line through the logarithms; None below two points."""
    usable = [(x, y) for x, y in points if x > 0 and y > 0]
    if len(usable) < 2:
        return None
    x, y = np.log(np.asarray(usable, np.float64)).T
    return float(np.polyfit(x, y, 1)[0])


def doublings(title: str, values: Sequence[float]) -> Axis:
    """An axis on which each doubling has the same length, with a tick at each value."""
    low, high = np.log2(min(values)), np.log2(max(values))
    span = float(high - low) or 1.0
    ticks = tuple((value, f"{value:g}") for value in sorted(values))
    return Axis(title, ticks, lambda value: float(np.log2(value) - low) / span)


def curve(title: str, unit: str, series: Sequence[Series], broken: float | None = None) -> str:
    """Rates over what grows, both by doublings, as SVG text; a dashed line where the curve breaks."""
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
    """A chart that was drawn for a page, as a file of its own."""
    return drawn.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"
