"""The governor on the thermal model of a board: three scenarios, as figures and pictures.

    python -m benchmarks.governor [--pictures docs/images]

The model is that of the tests (`tests/board.py`); nothing was measured on a board.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from benchmarks.plots import standalone
from edge_agent.core.manifest import write_atomic
from edge_agent.offline.charts import Series, linear, svg_chart
from tests.board import LIMIT_C, Board, Trace, drive

HOURS = 6

SCENARIOS: dict[str, Callable[[], Board]] = {
    "ambient ramp": lambda: Board(lambda t: 25.0 + 25.0 * min(1.0, t / 3600)),
    "blocked fan": lambda: Board(
        lambda _: 30.0, sink_to_air=lambda t: 2.0 if 3600 < t < 3 * 3600 else 0.5, noise_c=0.5
    ),
    "hot cabinet": lambda: Board(lambda _: 45.0, housing_to_ambient=0.6, housing_j=4000.0, noise_c=0.5),
}

COLOURS = {"full load": "#c33", "governed": "#26a", "limit": "#999", "step x 10": "#393"}
EVERY = 30  # governor steps per point of a picture: one minute


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--pictures", type=Path)
    options.add_argument("--json", action="store_true", help="all figures")
    chosen = options.parse_args()
    figures = {}
    for name, board in SCENARIOS.items():
        free, governed = drive(board(), HOURS, governed=False), drive(board(), HOURS)
        hours = [governed.changes(3600 * hour, 3600 * (hour + 1)) for hour in range(HOURS)]
        figures[name] = {
            "hottest_free_c": free.hottest(), "hottest_governed_c": governed.hottest(),
            "limit_c": LIMIT_C, "last_step": governed.step[-1], "changes_by_hour": hours,
        }  # fmt: skip
        if chosen.pictures is not None:
            path = chosen.pictures / f"governor-{name.replace(' ', '-')}.svg"
            write_atomic(path, picture(free, governed).encode())
    if chosen.json:
        print(json.dumps(figures, indent=2))
        return
    print(
        f"{'scenario':14} {'hottest, free':>19} {'governed':>9} {'last step':>10} {'steps by the hour':>25}"
    )
    for name, of in figures.items():
        print(
            f"{name:14} {of['hottest_free_c']:17.1f} C {of['hottest_governed_c']:7.1f} C "
            f"{of['last_step']:10} {' '.join(map(str, of['changes_by_hour'])):>25}"
        )


def picture(free: Trace, governed: Trace) -> str:
    """Return a chart of temperatures and steps over the hours."""
    hours = [seconds / 3600 for seconds in governed.seconds][::EVERY]
    lines = {
        "full load": free.die_c[::EVERY],
        "governed": governed.die_c[::EVERY],
        "limit": [LIMIT_C] * len(hours),
        "step x 10": [10.0 * step for step in governed.step[::EVERY]],
    }
    series = [
        Series(name, COLOURS[name], list(zip(hours, values, strict=True))) for name, values in lines.items()
    ]
    return standalone(svg_chart(linear("hours", 0, HOURS), linear("degrees Celsius", 0, 140), series))


if __name__ == "__main__":
    main()
