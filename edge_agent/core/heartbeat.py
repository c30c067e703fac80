"""How a stage shows that it gets on: what it does, and since when. Written by its thread, read by any."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

__all__ = ["Beat", "Progress"]


@dataclass(frozen=True, slots=True)
class Beat:
    """The latest sign of life of a stage.

    Attributes:
        at: `time.monotonic()` when it last got further, or last said that there is nothing to do.
        doing: what it began then; "" when it does not tell.
        idle: why it has nothing to do; None while it works. An idle stage says so again and again: one that
            falls silent is stuck, whatever it said last.
        thread: identifier of its thread, None where that is not known.
    """

    at: float
    doing: str = ""
    idle: str | None = None
    thread: int | None = None


class Progress:
    """The beats of one stage. No locks: each beat replaces the one before in one step."""

    __slots__ = ("latest",)

    def __init__(self) -> None:
        self.latest = Beat(time.monotonic(), "start")

    def at(self, doing: str) -> None:
        """The stage got further, and now does this."""
        self.latest = Beat(time.monotonic(), doing, None, threading.get_ident())

    def idle(self, reason: str) -> None:
        """The stage has nothing to do, and this is why."""
        self.latest = Beat(time.monotonic(), "", reason, threading.get_ident())
