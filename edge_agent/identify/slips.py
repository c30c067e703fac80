"""Tracks that slip from one person to another.

Where two people cross, a track may go on with the other one. The tracker cannot see it: the change is
gradual, and as large as that of somebody who turns round. The identities can: crops since then fit another
identity clearly better than the held one and than the earlier crops, which fit the held one better.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge_agent.identify.tracks import CLEAR_LEAD, Track

if TYPE_CHECKING:
    from edge_agent.identify.fit import Fitting, Shared

Vector = NDArray[np.float32]

_MATURE_POOLS = 2
"""Pools of crops from which on an identity that was seen together with nobody is no mistake of the start."""
_CANDIDATES = 3
"""Best identities of the newest crops that are looked at."""
_ROUNDING = 5e-3
"""Upper bound of the rounding error of a sum of two angles of float32 cosines."""


@dataclass(frozen=True, slots=True)
class Slip:
    """A slip to the identity `number`, between the times `before` and `since` of two crops.

    `score` is that of the crops since then with the identity, `second` with the former one.
    """

    number: int
    before: float
    since: float
    score: float
    second: float


class Slips:
    """Finds slips of decided tracks."""

    def __init__(self, shared: Shared, fitting: Fitting) -> None:
        self._shared = shared
        self._fitting = fitting

    def find(self, track: Track, held: int) -> Slip | None:
        """Return the slip that the pool of a track shows, if any; there must be a threshold."""
        vectors, weights, times = track.evidence.crops()
        least, most = self._least(track)
        if len(times) < least + most:
            return None
        compared = self._shared.gallery.cameras.centred(track.key[0], vectors)
        own = self._reference(track, held)
        newest = _mean(compared[-most:], weights[-most:])
        needed = _needed(compared, weights, own, newest, slice(least, len(times) - most + 1))
        if needed is None:
            return None
        near = self._fitting.near_crops(track, newest, needed)
        order = np.argsort(-near.scores, kind="stable")
        rivals = [int(near.numbers[row]) for row in order[: _CANDIDATES + 1] if near.numbers[row] != held]
        for number in self._allowed(rivals):
            free = self._free_since(track, number)
            first = max(least, int(np.searchsorted(times, free, side="right")))
            if first > len(times) - most:
                continue
            theirs = self._reference(track, number)
            lead = weights * ((compared @ theirs.T).max(axis=1) - (compared @ own.T).max(axis=1))
            at = first + int(np.argmin(np.cumsum(lead)[first - 1 : len(times) - most]))
            before, after = _mean(compared[:at], weights[:at]), _mean(compared[at:], weights[at:])
            score, second = float((theirs @ after).max()), float((own @ after).max())
            if (
                (free > -np.inf or self._is_mature(track, len(times) - at))
                and float(lead[-least:].sum()) > 0
                and score >= self._fitting.threshold(track)
                and score >= max(second, float(before @ after)) + CLEAR_LEAD
                and float((own @ before).max()) >= float((theirs @ before).max()) + CLEAR_LEAD
            ):
                return Slip(number, float(times[at - 1]), float(times[at]), score, second)
        return None

    def _least(self, track: Track) -> tuple[int, int]:
        """Return how many crops before a slip and since then show it.

        Half a pool since then, since a passer-by in front of somebody looks the same for shorter.
        """
        settings, worth = self._shared.settings, track.evidence.mean_worth
        return math.ceil(settings.decide_crops / worth), math.ceil(settings.pool_crops / 2 / worth)

    def _is_mature(self, track: Track, since: int) -> bool:
        """Whether the crops before the newest ones are so many that their identity is no mistake.

        If it is one, the track is moved as a whole, or its identity is joined with the other.
        """
        before = track.evidence.count - since * track.evidence.mean_worth
        return before >= _MATURE_POOLS * self._shared.settings.pool_crops

    def _allowed(self, numbers: list[int]) -> list[int]:
        if self._shared.settings.enrolment != "watchlist":
            return numbers
        enrolled = self._shared.gallery.enrolled(numbers)
        return [number for number in numbers if number in enrolled]

    def _free_since(self, track: Track, number: int) -> float:
        """Return when an identity was last seen together with a track, about."""
        holders = self._shared.links.rivals(track.key) & self._shared.tracks.holders(number)
        return max((one.last.time for one in self._shared.tracks.records(holders)), default=-np.inf)

    def _reference(self, track: Track, number: int) -> Vector:
        """Return exemplars that show the person of an identity: those of other tracks, else the first one."""
        vectors, origins = self._shared.gallery.cameras.exemplars(number)
        others = [row for row, origin in enumerate(origins) if origin != track.origin]
        return vectors[others] if others else vectors[:1]


def _needed(compared: Vector, weights: Vector, own: Vector, newest: Vector, cuts: slice) -> float | None:
    """Return the least score of the `newest` crops with an identity to which a track slipped at a cut.

    None: there is no such identity, since the crops after each cut are near to those before it, or to the
    held identity's `own` exemplars. Most tracks need no search for this reason.
    """
    # Products of sums of crops are sums of products of crops, which are shorter.
    at = slice(cuts.start - 1, cuts.stop - 1)
    weighted = weights[:, None] * compared
    products = np.cumsum(weighted @ weighted.T, axis=0, dtype=np.float64)
    of_before = np.cumsum(products, axis=1).diagonal()[at]
    with_all = np.cumsum(products[-1])
    across = with_all[at] - of_before
    before = np.sqrt(np.maximum(of_before, 1e-12))
    after = np.sqrt(np.maximum(with_all[-1] - with_all[at] - across, 1e-12))
    others = np.cumsum(weighted @ np.concatenate([own, newest[None]]).T, axis=0)
    scores = (others[-1] - others[at]) / after[:, None]
    least = np.maximum(scores[:, :-1].max(axis=1), across / (before * after)) + CLEAR_LEAD
    if least.min() > 1 + _ROUNDING:
        return None
    # An identity that scores `least` with the crops after a cut is no further from the newest of them than
    # both angles together.
    angles = np.arccos(np.clip(least, -1, 1)) + np.arccos(np.clip(scores[:, -1], -1, 1))
    return float(np.cos(np.minimum(angles, np.pi)).min()) - _ROUNDING


def _mean(vectors: Vector, weights: Vector) -> Vector:
    """Return the weighted mean direction of `(N, D)` vectors, `(D,)` of length 1."""
    mean = weights @ vectors
    unit: Vector = mean / np.float32(max(float(np.linalg.norm(mean)), 1e-6))
    return unit
