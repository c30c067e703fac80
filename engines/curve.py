"""Draw the course of a training run: `python engines/curve.py RESULTS/train/training.jsonl CURVE.svg`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, MARGIN = 760, 360, 48
LOSSES = {"identity": "#1f77b4", "triplet": "#ff7f0e", "camera": "#9467bd", "teacher": "#8c564b"}
FIGURES = {"rank1": "#2ca02c", "mAP": "#d62728"}
Points = list[tuple[float, float]]


def curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, Points]:
    """Points `(step, value)` of each curve; losses divided by 7 share the axis 0..1 with the figures."""
    found: dict[str, Points] = {}
    for row in rows:
        for name in LOSSES.keys() & row.get("losses", {}).keys():
            found.setdefault(name, []).append((row["step"], row["losses"][name] / 7))
        for name in FIGURES.keys() & row.get("evaluation", {}).keys():
            found.setdefault(name, []).append((row["step"], row["evaluation"][name]))
    return {name: found[name] for name in (*LOSSES, *FIGURES) if name in found}


def svg(found: Mapping[str, Points]) -> str:
    """The picture as text."""
    last = max(x for points in found.values() for x, _ in points)

    def place(x: float, y: float) -> str:
        across = MARGIN + x / last * (WIDTH - 2 * MARGIN)
        return f"{across:.1f},{HEIGHT - MARGIN - min(y, 1) * (HEIGHT - 2 * MARGIN):.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for tick in (0, 0.25, 0.5, 0.75, 1):
        left, right = place(0, tick), place(last, tick)
        parts.append(f'<polyline points="{left} {right}" stroke="#ddd"/>')
        parts.append(f'<text x="10" y="{float(left.split(",")[1]) + 4:.1f}">{tick:g}</text>')
    for number, (name, points) in enumerate(found.items()):
        line = " ".join(place(x, y) for x, y in points)
        colour, title = (LOSSES | FIGURES)[name], f"{name} loss / 7" if name in LOSSES else name
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{MARGIN + 115 * number}" y="20" fill="{colour}">{title}</text>')
    parts.append(
        f'<text x="{WIDTH - MARGIN}" y="{HEIGHT - 20}" text-anchor="end">{last:g} steps</text></svg>'
    )
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    lines = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
    Path(sys.argv[2]).write_text(svg(curves([json.loads(line) for line in lines])), encoding="utf-8")
