"""Does less before the board has to: how much work the agent allows itself, by how hot the board is.

The kernel throttles when a zone reaches its passive trip point: the clocks fall, and every camera stutters.
The governor keeps a margin below that by giving up what costs least first. Its steps, in this order:

1. people whose identity is settled are embedded less often,
2. the crops of one batch are capped (who is not settled yet comes first),
3. cameras are looked at less often (frames in between are not searched for people),
4. cameras are closed one by one, those of the lowest priority first; one always stays.

Recordings and crop folders lose nothing: they wait, so each step makes them slower instead.

It looks ahead by the trend of the last minute, steps down quickly and up slowly. A step up that had to be
taken back doubles the wait before the next, so a board at its limit is not asked again and again.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from edge_agent.core.structures import Load

__all__ = ["Governor", "Rung", "Verdict", "ladder"]

LOOK_EVERY_S = 2.0
"""How often temperatures are looked at: dies heat up within seconds, heat sinks within minutes."""

WINDOW_S = 60.0
"""The trend is that of so long."""

TREND_NEEDS_S = 20.0
"""A trend over less is noise."""

AHEAD_S = 30.0
"""How far the trend is carried on."""

STEP_S = 30.0
"""Between two steps down: what the first has brought shows within the time of the die, not of the sink."""

HURRY_S = 8.0
"""The same when the limit would be passed before long."""

RECOVER_S = 120.0
"""It must have been cool for so long before a step is taken back."""

LONGEST_RECOVER_S = 3840.0
"""The same after steps up that failed: at most so long."""

TRIAL_S = 1200.0
"""A step down within this after a step up means that the step up failed: a heat sink has settled by then."""

FORGIVEN_S = 3600.0
"""After so long without a failure, one is forgotten."""

BLIND_S = 30.0
"""Without a single reading for so long the governor is blind."""

FALLING_C_PER_S = 0.01
"""A trend below this (0.6 degrees a minute) counts as level."""


@dataclass(frozen=True, slots=True)
class Rung:
    """One step: what is given up, on top of the steps before it.

    Attributes:
        name: for people.
        load: what the agent may do on it.
    """

    name: str
    load: Load


def ladder(cameras: Sequence[tuple[str, int]], *, max_batch: int) -> tuple[Rung, ...]:
    """All steps, from the full load on.

    Args:
        cameras: id and priority of the cameras that can be closed, in the order of the settings. Of equal
            ones the later is closed first.
        max_batch: largest batch of the engine.
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
        add(f"people are looked for in every {word} frame", replace(rungs[-1].load, every_nth=nth))
    order = sorted(enumerate(cameras), key=lambda entry: (entry[1][1], -entry[0]))
    closed: tuple[str, ...] = ()
    for _, (camera, _) in order[:-1]:
        closed = (*closed, camera)
        add(f"camera {camera} is closed", replace(rungs[-1].load, closed=closed))
    return tuple(rungs)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How the governor sees the board.

    Attributes:
        state: `watching`, `limiting`, `exhausted` (no step is left, and it is still too hot), `blind` (no
            zone says its temperature or what its limit is), or `off`.
        step: index in the ladder, 0 is the full load.
        zone: the zone nearest to its limit.
        celsius: its temperature.
        limit_c: its limit.
        reason: for people.
    """

    state: str
    step: int = 0
    zone: str | None = None
    celsius: float | None = None
    limit_c: float | None = None
    reason: str = ""


class Governor:
    """Chooses the step. Not for use from two threads.

    Args:
        steps: number of steps below the full load.
        limit_c: limit of every zone, where it is below the zone's own or that is not known.
        margin_c: the governor acts this much below a limit.
        hysteresis_c: and takes back a step when it is this much cooler than that.
    """

    def __init__(self, steps: int, *, limit_c: float | None, margin_c: float, hysteresis_c: float) -> None:
        self.steps = steps
        self.limit_c = limit_c
        self.margin_c = margin_c
        self.hysteresis_c = hysteresis_c
        self.verdict = Verdict("blind", reason="no temperature was read yet")
        self._rooms: deque[tuple[float, float]] = deque()
        self._changed_at = -math.inf
        self._raised_at = -math.inf
        self._failed_at = -math.inf
        self._failures = 0
        self._cool_since: float | None = None
        self._seen_at: float | None = None

    def take(
        self, now: float, temperatures_c: Mapping[str, float | None], limits_c: Mapping[str, float | None]
    ) -> Verdict:
        """Look at the zones at this time (monotonic seconds); returns, and keeps, the verdict."""
        hottest = self._hottest(temperatures_c, limits_c)
        if self._seen_at is None:
            self._seen_at = now
        if hottest is None:
            if now - self._seen_at >= BLIND_S or self.verdict.state == "blind":
                self.verdict = self._blind(temperatures_c)
            return self.verdict
        self._seen_at = now
        zone, degrees, limit = hottest
        room = limit - degrees
        self._rooms.append((now, room))
        while now - self._rooms[0][0] > WINDOW_S:
            self._rooms.popleft()
        step = self._next_step(now, room)
        self.verdict = Verdict(
            *self._judge(step, room), zone, degrees, limit, self._words(step, zone, degrees, limit)
        )
        return self.verdict

    def _hottest(
        self, temperatures_c: Mapping[str, float | None], limits_c: Mapping[str, float | None]
    ) -> tuple[str, float, float] | None:
        """The zone nearest to its limit, its temperature and limit."""
        zones = []
        for zone, degrees in temperatures_c.items():
            known = [limit for limit in (limits_c.get(zone), self.limit_c) if limit is not None]
            if degrees is not None and known:
                zones.append((zone, degrees, min(known)))
        return min(zones, key=lambda entry: entry[2] - entry[1], default=None)

    def _blind(self, temperatures_c: Mapping[str, float | None]) -> Verdict:
        step = self.verdict.step
        if any(degrees is not None for degrees in temperatures_c.values()):
            reason = "no thermal zone tells its limit; set governor.limit_c"
        else:
            reason = "no thermal zone tells its temperature"
        return Verdict("blind", step, reason=f"{reason}; step {step} stays" if step else reason)

    # --- the choice ---------------------------------------------------------------------------

    def _next_step(self, now: float, room: float) -> int:
        step, trend = self.verdict.step, self._trend()
        ahead = room + min(trend, 0.0) * AHEAD_S
        too_hot = min(room, ahead) < self.margin_c and not self._improves(room, trend)
        cool = room >= self.margin_c + self.hysteresis_c and trend > -FALLING_C_PER_S
        self._cool_since = (self._cool_since or now) if cool else None
        if now - self._failed_at > FORGIVEN_S and self._failures:
            self._failures, self._failed_at = self._failures - 1, now
        if too_hot and step < self.steps and now - self._changed_at >= self._down_wait(ahead):
            return self._lower(now, min(self.steps, step + (2 if ahead < 0 else 1)))
        if step and self._cool_since is not None and now - self._cool_since >= self._recover_s:
            return self._raise(now, step - 1)
        return step

    def _improves(self, room: float, trend: float) -> bool:
        """Whether it cools down fast enough by itself; never trusted when the limit is near."""
        return (
            room > self.margin_c / 2 and trend > FALLING_C_PER_S and room + trend * WINDOW_S > self.margin_c
        )

    def _down_wait(self, ahead: float) -> float:
        return HURRY_S if ahead < self.margin_c / 2 else STEP_S

    @property
    def _recover_s(self) -> float:
        return min(LONGEST_RECOVER_S, RECOVER_S * 2.0**self._failures)

    def _lower(self, now: float, step: int) -> int:
        if now - self._raised_at < TRIAL_S:
            self._failures += 1
            self._failed_at, self._raised_at = now, -math.inf
        self._change(now)
        return step

    def _raise(self, now: float, step: int) -> int:
        self._raised_at = now
        self._change(now)
        return step

    def _change(self, now: float) -> None:
        """What was before the step says nothing of the trend after it."""
        self._changed_at = now
        self._cool_since = None
        self._rooms.clear()

    def _trend(self) -> float:
        """Change of the room in degrees per second, least squares; 0.0 while too little is known."""
        if not self._rooms or self._rooms[-1][0] - self._rooms[0][0] < TREND_NEEDS_S:
            return 0.0
        count = len(self._rooms)
        mean_t = sum(t for t, _ in self._rooms) / count
        mean_room = sum(room for _, room in self._rooms) / count
        spread = sum((t - mean_t) ** 2 for t, _ in self._rooms)
        return sum((t - mean_t) * (room - mean_room) for t, room in self._rooms) / spread

    # --- words --------------------------------------------------------------------------------

    def _judge(self, step: int, room: float) -> tuple[str, int]:
        if step == 0:
            return "watching", step
        return ("exhausted" if step == self.steps and room < self.margin_c / 2 else "limiting"), step

    def _words(self, step: int, zone: str, degrees: float, limit: float) -> str:
        return f"{zone} at {degrees:.1f} C of {limit:.1f} C" if step else ""
