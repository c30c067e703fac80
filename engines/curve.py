"""Draw the course of a training run: `python engines/curve.py RESULTS/train/training.jsonl CURVE.svg`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, MARGIN = 760, 360, 48
COLOURS = {
    "identity loss / 7": "#1f77b4",
    "triplet loss / 7": "#ff7f0e",
    "rank-1": "#2ca02c",
    "mAP": "#d62728",
}
Points = list[tuple[float, float]]


def curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, Points]:
    """Points `(step, value)` of each curve; losses divided by 7 share the axis 0..1 with the figures."""
    found: dict[str, Points] = {name: [] for name in COLOURS}
    for row in rows:
        if "losses" in row:
            found["identity loss / 7"].append((row["step"], row["losses"]["identity"] / 7))
            found["triplet loss / 7"].append((row["step"], row["losses"]["triplet"] / 7))
        elif "evaluation" in row:
            found["rank-1"].append((row["step"], row["evaluation"]["rank1"]))
            found["mAP"].append((row["step"], row["evaluation"]["mAP"]))
    return found


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
        parts.append(f'<polyline points="{line}" fill="none" stroke="{COLOURS[name]}" stroke-width="2"/>')
        parts.append(f'<text x="{MARGIN + 150 * number}" y="20" fill="{COLOURS[name]}">{name}</text>')
    parts.append(
        f'<text x="{WIDTH - MARGIN}" y="{HEIGHT - 20}" text-anchor="end">{last:g} steps</text></svg>'
    )
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    lines = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
    Path(sys.argv[2]).write_text(svg(curves([json.loads(line) for line in lines])), encoding="utf-8")
