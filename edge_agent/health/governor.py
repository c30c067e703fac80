"""Reduce the load before the board throttles: choose the load step by the temperatures of the board.

The kernel throttles when a zone reaches its passive trip point: clocks drop, and all cameras stutter. The
governor keeps a margin below it. It extrapolates the trend of the last minute, steps down fast and up slowly.
A step up that has to be reverted doubles the wait before the next one, so a board at its limit does not
oscillate. `docs/telemetry.md` lists the steps; they only slow down recordings and crop folders.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from edge_agent.core.config import GovernorSettings
from edge_agent.core.structures import Load

Zones = Mapping[str, float | None]
"""Degrees Celsius by thermal zone; None where unknown."""

CHECK_INTERVAL_S = 2.0
"""Interval of temperature checks: dies heat up within seconds, heat sinks within minutes."""

WINDOW_S = 60.0  # length of the trend
TREND_NEEDS_S = 20.0  # least length of a trend; a shorter one is noise
AHEAD_S = 30.0  # extrapolation of the trend
STEP_S = 30.0  # least time between two steps down: the time constant of the die, not of the heat sink
HURRY_S = 8.0  # the same when the limit would be exceeded soon
RECOVER_S = 120.0  # time with low temperatures before a step is reverted
LONGEST_RECOVER_S = 3840.0  # limit of that time after steps up that failed
TRIAL_S = 1200.0
"""A step down within this time after a step up means that the step up failed, since heat sinks settle."""

FORGIVEN_S = 3600.0  # a failure is forgotten after this time without another one
BLIND_S = 30.0  # the governor is blind after this time without a reading
FALLING_C_PER_S = 0.01  # trends below this (0.6 degrees a minute) count as level


@dataclass(frozen=True, slots=True)
class Rung:
    """One load step: the description of its own reduction, and its load, which includes earlier ones."""

    name: str
    load: Load


def ladder(cameras: Sequence[tuple[str, int]], *, max_batch: int) -> tuple[Rung, ...]:
    """Return all steps, from full load on.

    `cameras` are the id and priority of those that can be closed, in the order of the settings. Of equal
    priorities the last camera is closed first; one always stays open.
    """
    rungs = [Rung("full load", Load())]

    def add(name: str, load: Load) -> None:
        rungs.append(Rung(name, replace(load, stretch=1.0 + 0.25 * len(rungs))))

    add("settled people are embedded once a second", Load(settled_interval_s=1.0))
    add("settled people are embedded every 5 s", Load(settled_interval_s=5.0))
    for share in (8, 32):
        cap = max(1, max_batch // share)
        add(f"at most {cap} crops in a batch", replace(rungs[-1].load, max_crops=cap))
    for nth, word in ((2, "second"), (4, "fourth")):
        add(f"people are detected in every {word} frame", replace(rungs[-1].load, every_nth=nth))
    order = sorted(enumerate(cameras), key=lambda entry: (entry[1][1], -entry[0]))
    closed: tuple[str, ...] = ()
    for _, (camera, _) in order[:-1]:
        closed = (*closed, camera)
        add(f"camera {camera} is closed", replace(rungs[-1].load, closed=closed))
    return tuple(rungs)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Result of one check: the step (index in the ladder, 0 is full load), and the zone closest to its limit.

    `state` is `watching`, `limiting`, `exhausted` (last step, and still too hot), `blind` (no zone has a
    known temperature and limit), or `off`.
    """

    state: str
    step: int = 0
    zone: str | None = None
    celsius: float | None = None
    limit_c: float | None = None
    reason: str = ""


class Governor:
    """Chooses one of `steps` steps below full load. For one thread. `settings` is replaced on reload."""

    def __init__(self, steps: int, settings: GovernorSettings) -> None:
        self.steps = steps
        self.settings = settings
        self.verdict = Verdict("blind", reason="no temperature was read yet")
        self._distances: deque[tuple[float, float]] = deque()
        """Time, and degrees between the hottest zone and its limit."""
        self._changed_at = -math.inf
        self._raised_at = -math.inf
        self._failed_at = -math.inf
        self._failures = 0
        self._cool_since: float | None = None
        self._read_at: float | None = None

    def update(self, now: float, temperatures_c: Zones, limits_c: Zones) -> Verdict:
        """Check the zones at this time (monotonic seconds), and return the new verdict."""
        hottest = self._hottest(temperatures_c, limits_c)
        if self._read_at is None:
            self._read_at = now
        if hottest is None:
            if now - self._read_at >= BLIND_S or self.verdict.state == "blind":
                self.verdict = self._blind(temperatures_c)
            return self.verdict
        self._read_at = now
        zone, degrees, limit = hottest
        distance = limit - degrees
        self._distances.append((now, distance))
        while now - self._distances[0][0] > WINDOW_S:
            self._distances.popleft()
        step = self._next_step(now, distance)
        state = "limiting" if step else "watching"
        if step and step == self.steps and distance < self.settings.margin_c / 2:
            state = "exhausted"
        reason = f"{zone} at {degrees:.1f} C of {limit:.1f} C" if step else ""
        self.verdict = Verdict(state, step, zone, degrees, limit, reason)
        return self.verdict

    def _hottest(self, temperatures_c: Zones, limits_c: Zones) -> tuple[str, float, float] | None:
        """The zone closest to its limit, its temperature and its limit."""
        zones = []
        for zone, degrees in temperatures_c.items():
            known = [limit for limit in (limits_c.get(zone), self.settings.limit_c) if limit is not None]
            if degrees is not None and known:
                zones.append((zone, degrees, min(known)))
        return min(zones, key=lambda entry: entry[2] - entry[1], default=None)

    def _blind(self, temperatures_c: Zones) -> Verdict:
        step = self.verdict.step
        if any(degrees is not None for degrees in temperatures_c.values()):
            reason = "no thermal zone has a known limit; set governor.limit_c"
        else:
            reason = "no thermal zone has a known temperature"
        return Verdict("blind", step, reason=f"{reason}; step {step} stays" if step else reason)

    def _next_step(self, now: float, distance: float) -> int:
        step, trend, margin = self.verdict.step, self._trend(), self.settings.margin_c
        ahead = distance + min(trend, 0.0) * AHEAD_S
        too_hot = min(distance, ahead) < margin and not self._improves(distance, trend)
        cool = distance >= margin + self.settings.hysteresis_c and trend > -FALLING_C_PER_S
        self._cool_since = (self._cool_since or now) if cool else None
        if now - self._failed_at > FORGIVEN_S and self._failures:
            self._failures, self._failed_at = self._failures - 1, now
        wait = HURRY_S if ahead < margin / 2 else STEP_S
        if too_hot and step < self.steps and now - self._changed_at >= wait:
            if now - self._raised_at < TRIAL_S:
                self._failures += 1
                self._failed_at, self._raised_at = now, -math.inf
            self._restart_trend(now)
            return min(self.steps, step + (2 if ahead < 0 else 1))
        recover_s = min(LONGEST_RECOVER_S, RECOVER_S * 2.0**self._failures)
        if step and self._cool_since is not None and now - self._cool_since >= recover_s:
            self._raised_at = now
            self._restart_trend(now)
            return step - 1
        return step

    def _improves(self, distance: float, trend: float) -> bool:
        """Whether the board cools down fast enough by itself; False close to the limit."""
        margin = self.settings.margin_c
        return distance > margin / 2 and trend > FALLING_C_PER_S and distance + trend * WINDOW_S > margin

    def _restart_trend(self, now: float) -> None:
        """Discard the readings before a step: they do not predict the trend after it."""
        self._changed_at = now
        self._cool_since = None
        self._distances.clear()

    def _trend(self) -> float:
        """Change of the distance in degrees per second, least squares; 0.0 with too few readings."""
        if not self._distances or self._distances[-1][0] - self._distances[0][0] < TREND_NEEDS_S:
            return 0.0
        return statistics.linear_regression(*zip(*self._distances, strict=True)).slope
