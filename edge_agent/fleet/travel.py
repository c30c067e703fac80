"""Times in which people walk from one camera to another, as evidence beside their appearance.

They are given in the settings, or learnt: each clear match of a stranger with somebody whom another device
saw last gives one time. Somebody who comes within the usual times of a pair of cameras needs a little less
likeness, somebody who comes earlier than anybody can a little more. So they never decide alone. Somebody who
comes later is as likely as anyone, since people stop on the way. Clocks of devices are not compared: times
are those of the store.

A time begins at the latest sighting that the store knew, which may be older than the person's last one. So a
time may be too long, never too short.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from edge_agent.core.fleet_settings import TravelSettings

MOST_SHIFT = 0.03
"""Greatest change of the threshold, in cosine."""
ENOUGH = 20
"""Times of a pair of cameras from which on they count."""
MOST_TIMES = 100
"""Times kept of a pair of cameras, the latest."""
MOST_PAIRS = 200
"""Pairs of cameras kept, those that people used last."""
LONGEST_S = 3600.0
"""Later arrivals show no walking time."""
_USUAL = (0.05, 0.95)
"""Quantiles between which times are usual."""
_HASTE = 0.5
"""Share of the shortest usual time in which nobody comes."""
TRAVEL_FACT = "fleet_travel"
"""Learnt times by pair of cameras, in the gallery file."""


class FactStore(Protocol):
    """JSON values by key; see `edge_agent.gallery.sync.Facts`."""

    def get(self, key: str) -> Any: ...  # noqa: ANN401, D102  any JSON value
    def set(self, key: str, value: Any) -> None: ...  # noqa: ANN401, D102


@dataclass(frozen=True, slots=True)
class Span:
    """Walking times of a pair of cameras, in seconds.

    Attributes:
        least: nobody comes earlier.
        usual: most come between these two.
    """

    least: float
    usual: tuple[float, float]

    def shift(self, passed_s: float) -> float:
        """Return what is added to the threshold for somebody who comes after this time."""
        if passed_s < self.least:
            return MOST_SHIFT
        return -MOST_SHIFT if self.usual[0] <= passed_s <= self.usual[1] else 0.0


@dataclass(slots=True)
class Travel:
    """The times to the cameras of this device; places are `DEVICE/CAMERA`. One thread may learn."""

    device: str
    given: Sequence[TravelSettings]
    facts: FactStore
    learns: bool
    _spans: dict[tuple[str, str], Span | None] = field(default_factory=dict)
    """By origin and destination; None: not known."""
    _times: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Take over what was given, and what was learnt in earlier runs."""
        if self.learns:
            self._times = _stored(self.facts.get(TRAVEL_FACT))
        for one in self.given:
            for pair in (one.between, one.between[::-1]):
                self._spans[pair] = Span(one.shortest_s, (one.shortest_s, one.longest_s))

    def shift(self, device: str, camera: str, here: str, passed_s: float) -> float:
        """Return what is added to the threshold for somebody at the camera `here` of this device.

        The person was seen by `camera` of `device` before `passed_s` seconds.
        """
        pair = f"{device}/{camera}", f"{self.device}/{here}"
        if pair not in self._spans:
            self._spans[pair] = _span(self._times.get(pair, []))
        span = self._spans[pair]
        return 0.0 if span is None or device == self.device else span.shift(passed_s)

    def learn(self, device: str, camera: str, here: str, passed_s: float) -> None:
        """Learn from somebody who was recognised clearly, without the help of times."""
        if not self.learns or device == self.device or not camera or not 0 <= passed_s <= LONGEST_S:
            return
        pair = f"{device}/{camera}", f"{self.device}/{here}"
        times = self._times.pop(pair, [])
        self._times[pair] = [*times, round(passed_s, 1)][-MOST_TIMES:]
        while len(self._times) > MOST_PAIRS:
            del self._times[next(iter(self._times))]
        if not any(pair in (one.between, one.between[::-1]) for one in self.given):
            self._spans.pop(pair, None)
        stored = [[*places, known] for places, known in self._times.items()]
        self.facts.set(TRAVEL_FACT, stored)


def _span(times: Sequence[float]) -> Span | None:
    if len(times) < ENOUGH:
        return None
    first, last = np.quantile(times, _USUAL).tolist()
    return Span(_HASTE * first, (first, last))


def _stored(found: object) -> dict[tuple[str, str], list[float]]:
    """Return the usable part of what was stored."""
    times: dict[tuple[str, str], list[float]] = {}
    for one in found if isinstance(found, list) else ():
        if not isinstance(one, list) or len(one) != 3 or not isinstance(one[2], list):
            continue
        known = [
            float(value)
            for value in one[2]
            if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= LONGEST_S
        ]
        times[str(one[0]), str(one[1])] = known[-MOST_TIMES:]
    return dict(list(times.items())[-MOST_PAIRS:])
