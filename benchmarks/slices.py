"""Timing of alternatives in turn, in small slices, so that load changes of the machine affect all equally.

The speed of a shared machine varies by a factor of two from minute to minute. Ratios within one round, and
their median over the rounds, do not.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["Taken", "in_turn"]


@dataclass(frozen=True, slots=True)
class Taken:
    """Times of one alternative by round, in seconds: wall time, and CPU time of this process."""

    wall_s: tuple[float, ...]
    cpu_s: tuple[float, ...]

    @property
    def wall(self) -> float:
        """Median of the rounds, seconds."""
        return statistics.median(self.wall_s)

    @property
    def cpu(self) -> float:
        """Median of the rounds, CPU seconds."""
        return statistics.median(self.cpu_s)

    def wall_over(self, other: Taken) -> float:
        """Return the ratio of wall times to `other`: median over the rounds."""
        return statistics.median(a / b for a, b in zip(self.wall_s, other.wall_s, strict=True))

    def cpu_over(self, other: Taken) -> float:
        """Return the ratio of CPU times to `other`: median over the rounds."""
        return statistics.median(a / b for a, b in zip(self.cpu_s, other.cpu_s, strict=True))


def in_turn(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Taken]:
    """Call each once per round, in rotating order. The first round is not counted."""
    names = list(calls)
    wall: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-1, rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            began, busy = time.perf_counter(), time.process_time()
            calls[name]()
            if number >= 0:
                wall[name].append(time.perf_counter() - began)
                cpu[name].append(time.process_time() - busy)
    return {name: Taken(tuple(wall[name]), tuple(cpu[name])) for name in names}
