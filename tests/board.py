"""A board as a thermal model: a die, a heat sink and a housing, each a mass with a resistance to the next.

Used by `tests/health/test_governor.py` and `benchmarks/governor.py`. The numbers are of the size of an AGX
Orin developer kit's (15 to 60 W, a fan, minutes to warm up), and are not measured.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edge_agent.core.config import GovernorSettings
from edge_agent.core.structures import Load
from edge_agent.health.governor import CHECK_INTERVAL_S, Governor, Rung, ladder

CAMERAS = (("gate", 5), ("yard", 0), ("hall", 0), ("door", 3))
LIMIT_C = 99.0


@dataclass
class Board:
    """Degrees, watts, kelvin per watt, joules per kelvin."""

    ambient_c: Callable[[float], float]
    idle_w: float = 12.0
    busy_w: float = 38.0
    """On top, under the full load."""
    die_to_sink: float = 0.35
    sink_to_air: Callable[[float], float] = lambda _: 0.6
    housing_to_ambient: float = 0.5
    die_j: float = 20.0
    sink_j: float = 350.0
    housing_j: float = 1500.0
    noise_c: float = 0.0
    die_c: float = field(init=False)

    def __post_init__(self) -> None:
        self.die_c = self.sink_c = self.housing_c = self.ambient_c(0.0)
        self._seed = 1

    def run(self, now: float, work: float, seconds: float) -> None:
        """Go on for a while at this share of the full load."""
        watts = self.idle_w + self.busy_w * work
        for _ in range(int(seconds / 0.5)):
            up = (self.die_c - self.sink_c) / self.die_to_sink
            across = (self.sink_c - self.housing_c) / self.sink_to_air(now)
            out = (self.housing_c - self.ambient_c(now)) / self.housing_to_ambient
            self.die_c += 0.5 * (watts - up) / self.die_j
            self.sink_c += 0.5 * (up - across) / self.sink_j
            self.housing_c += 0.5 * (across - out) / self.housing_j

    def settled_c(self, now: float, work: float) -> float:
        """Where the die ends up if nothing changes any more."""
        watts = self.idle_w + self.busy_w * work
        return self.ambient_c(now) + watts * (
            self.die_to_sink + self.sink_to_air(now) + self.housing_to_ambient
        )

    def read_c(self) -> float:
        """The sensor reading: in steps of 1/32 C, with noise that is the same every time."""
        self._seed = (1103515245 * self._seed + 12345) % (1 << 31)
        return round(32 * (self.die_c + self.noise_c * (self._seed / (1 << 30) - 1))) / 32


def work_of(load: Load, cameras: int = len(CAMERAS)) -> float:
    """Share of the full load: decoding, detection and embedding of cameras, most people settled."""
    open_cameras = (cameras - len(load.closed)) / cameras
    decode = 0.15 * open_cameras
    detect = 0.45 * open_cameras / load.every_nth
    settled = 0.3 if load.settled_interval_s == 0 else 0.3 * min(1.0, 0.1 / load.settled_interval_s)
    others = 0.1 if load.max_crops is None else 0.1 * min(1.0, load.max_crops / 16)
    return decode + detect + (settled + others) * open_cameras / load.every_nth


@dataclass
class Trace:
    """The events, one entry per check."""

    seconds: list[float] = field(default_factory=list)
    die_c: list[float] = field(default_factory=list)
    step: list[int] = field(default_factory=list)

    def changes(self, since: float, until: float) -> int:
        """Steps taken in a span of time."""
        steps = [step for t, step in zip(self.seconds, self.step, strict=True) if since <= t < until]
        return sum(before != after for before, after in itertools.pairwise(steps))

    def hottest(self, since: float = 0.0) -> float:
        return max(c for t, c in zip(self.seconds, self.die_c, strict=True) if t >= since)


def drive(
    board: Board,
    hours: float,
    *,
    governed: bool = True,
    rungs: Sequence[Rung] = ladder(CAMERAS, max_batch=64),
    margin_c: float = 5.0,
    hysteresis_c: float = 4.0,
) -> Trace:
    """The board under a governor that sees its die, or under the full load without one."""
    governor = Governor(len(rungs) - 1, GovernorSettings(margin_c=margin_c, hysteresis_c=hysteresis_c))
    trace = Trace()
    for look in range(int(3600 * hours / CHECK_INTERVAL_S)):
        now = look * CHECK_INTERVAL_S
        step = governor.update(now, {"gpu": board.read_c()}, {"gpu": LIMIT_C}).step if governed else 0
        board.run(now, work_of(rungs[step].load), CHECK_INTERVAL_S)
        trace.seconds.append(now)
        trace.die_c.append(board.die_c)
        trace.step.append(step)
    return trace
