"""A machine whose clocks a test sets by hand."""

from __future__ import annotations

from dataclasses import dataclass

TODAY = 1_780_000_000.0
"""Unix seconds at the start of a test."""


@dataclass
class HandTime:
    """An `edge_agent.core.system_time.TimeSource`.

    `true` is the real time; the wall clock is off from it by `error`, and the kernel reports `sync`.
    """

    true: float = TODAY
    error: float = 0.0
    sync: bool = False
    booted: float = TODAY - 100.0
    boots: int = 1

    @property
    def boot(self) -> str:
        return f"boot-{self.boots}"

    def running(self) -> float:
        return self.true - self.booted

    def wall(self) -> float:
        return self.true + self.error

    def synchronised(self) -> bool:
        return self.sync

    def passes(self, seconds: float) -> None:
        """Let time pass."""
        self.true += seconds

    def reboot(self, off: float = 30.0) -> None:
        """Restart the machine, which is off for some seconds."""
        self.true += off
        self.booted = self.true
        self.boots += 1
        self.sync = False

    def set_wall(self, seconds: float) -> None:
        """Set the wall clock."""
        self.error = seconds - self.true
