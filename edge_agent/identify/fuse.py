"""Join identities that turn out to be one person."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.structures import Decision, DecisionKind
from edge_agent.identify.fit import best_two
from edge_agent.identify.known import Shared
from edge_agent.identify.near import Lookalikes, Search, best_pairs
from edge_agent.identify.settle import Settler

__all__ = ["Fuser"]


class Fuser:
    """Finds identities that are one person, and joins them."""

    def __init__(self, shared: Shared, settler: Settler, lookalikes: Lookalikes) -> None:
        self._shared = shared
        self._settler = settler
        self._lookalikes = lookalikes

    def fuse(self, numbers: Iterable[int]) -> list[Decision]:
        """Join each identity with the one that is the same person, if any; the older number stays."""
        threshold = self._shared.thresholds.in_force.value
        decisions: list[Decision] = []
        if threshold is None:
            return decisions
        for number in numbers:
            other = self._twin(number, threshold)
            if other is not None:
                decisions += self.join(min(number, other), max(number, other))
        return decisions

    def join(self, keep: int, absorb: int) -> list[Decision]:
        """Make two identities one; of an automatic and an enrolled one the enrolled one stays."""
        kept, absorbed = self._shared.known(keep), self._shared.known(absorb)
        if absorbed is not None and absorbed.kind != "auto" and kept is not None and kept.kind == "auto":
            keep, absorb, absorbed = absorb, keep, kept
        self._shared.gallery.merge(keep, absorb)
        self._lookalikes.forget(absorb)
        self._shared.thresholds.site.rename(f"#{absorb}", f"#{keep}")
        decisions = []
        for track in self._shared.tracks.merge(keep, absorb):
            decision = self._settler.decision(track, DecisionKind.CORRECTED, "fused")
            if absorbed is not None and decision.previous is None:
                decision = replace(decision, previous=absorbed.id)
            decisions.append(decision)
        return decisions

    def forget(self, numbers: Iterable[int]) -> None:
        """Drop remembered comparisons of identities."""
        for number in numbers:
            self._lookalikes.forget(number)

    def _twin(self, number: int, threshold: float) -> int | None:
        """Return the identity that is certainly the same person as `number`, if there is one."""
        tracks, margin = self._shared.tracks, self._shared.settings.margin
        crops = sum(track.evidence.count for track in tracks.records(tracks.holders(number)))
        if crops < self._shared.settings.fuse_crops:
            return None
        numbers, mean = self._likeness(number, threshold - margin)
        order = best_two(mean)
        if not order or mean[order[0]] < threshold:
            return None
        other = int(numbers[order[0]])
        if len(order) > 1 and mean[order[0]] - mean[order[1]] < margin:
            return None
        identity, twin = self._shared.known(number), self._shared.known(other)
        if identity is None or twin is None or (identity.kind != "auto" and twin.kind != "auto"):
            return None  # two people who were enrolled by hand are never joined by a guess
        return other

    def _likeness(self, number: int, floor: float) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return how much other identities are like this one: mean best-exemplar score, both ways.

        One way alone would favour identities with many exemplars. Identities that were seen together with it
        are left out, and those whose likeness is certainly below `floor`: a mean of best pairs is no higher
        than the best of all pairs.
        """
        others = self._lookalikes.of(number, floor, self._hint(number))
        owners, theirs = self._shared.gallery.vectors(others - self._shared.seen_with(number))
        _, own = self._shared.gallery.vectors([number])
        if not len(theirs) or not len(own):
            return owners[:0], theirs[:0, 0]
        products = theirs @ own.T
        numbers, forth = best_pairs(owners, products)
        back = products.max(axis=1)
        return numbers, np.array(
            [(forth[row].mean() + back[owners == one].mean()) / 2 for row, one in enumerate(numbers)],
            np.float32,
        )

    def _hint(self, number: int) -> Search | None:
        """Return a search for a vector like the newest exemplar of an identity."""
        tracks = self._shared.tracks
        searches = (track.search for track in tracks.records(tracks.holders(number)))
        return max(filter(None, searches), key=lambda search: search.mark, default=None)
