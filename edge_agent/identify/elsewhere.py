"""Question to others before a stranger is enrolled: another device may know the person.

The identifier asks when it would enrol a track, and decides once the reply is there. It never waits: until
then the track has no identity. `fleet.ask` implements the protocols.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_agent.identify.tracks import TrackKey

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A person whom others know.

    Attributes:
        ids: all under which others know the person, the present one first.
        rows: `(M, D)` exemplars, M at least 1, as compared here: without the offsets of their cameras.
        devices: who contributed each of them.
        source: what `Elsewhere.take` needs.
        shift: what is added to the threshold for this person, by what others know besides looks.
        recognised: is called when the person was clearly recognised by looks alone.
    """

    ids: tuple[str, ...]
    rows: Vector
    devices: tuple[str, ...]
    source: object
    shift: float = 0.0
    recognised: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """The people nearest to a stranger, of `people` in all."""

    candidates: tuple[Candidate, ...] = ()
    people: int = 0


class Question(Protocol):
    """A question that was asked."""

    def reply(self) -> Reply | None:
        """Return the reply, one without candidates when it is too late for another; None: not yet."""


class Elsewhere(Protocol):
    """What knows people besides the gallery. Only for the driving thread; no call waits for a network."""

    def ask(self, track: TrackKey, vector: Vector) -> Question | None:
        """Ask for the person of a track with this raw evidence `(D,)`; None: nobody can be asked now."""

    def take(self, track: TrackKey, candidate: Candidate) -> int | None:
        """Put a candidate, who is the person of a track, into the gallery, and return the number.

        None: the person was erased here, or cannot be stored.
        """
