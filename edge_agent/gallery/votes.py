"""Votes of identities for the means of the views of their exemplars."""

from __future__ import annotations

import numpy as np

from edge_agent.gallery.index import ExemplarIndex, Views
from edge_agent.gallery.means import CameraMeans, Sums, Vectors, direction, restored

_KEPT = 1000
"""Identities whose latest votes are kept."""


class Votes:
    """Adds and takes back the votes of identities, whose rows are in an index."""

    def __init__(self, means: CameraMeans, index: ExemplarIndex) -> None:
        self._means = means
        self._index = index
        self._given: dict[int, list[tuple[int, Sums]]] = {}
        """Views and votes of identities that changed lately."""

    def clear(self) -> None:
        """Forget what was given; the means do not change."""
        self._given.clear()

    def add(self, number: int, raw: Vectors, views: Views) -> None:
        """Add the votes of an identity by its raw exemplars `(M, D)` of views `(M,)`."""
        if len(self._given) >= _KEPT:
            self._given.clear()
        self._given[number] = _votes(raw, views)
        for view, vote in self._given[number]:
            self._means.vote(view, vote)

    def take_back(self, number: int) -> None:
        """Take back the votes of an identity, as they were given where that is known."""
        if (votes := self._given.pop(number, None)) is None:
            _, rows, views = self._index.rows([number])
            votes = _votes(restored(rows, self._means.offsets[views]), views)
        for view, vote in votes:
            self._means.vote(view, vote, -1)


def _votes(raw: Vectors, views: Views) -> list[tuple[int, Sums]]:
    totals: dict[int, Sums] = {}
    for view, row in zip(views.tolist(), raw.astype(np.float64), strict=True):
        totals[view] = totals[view] + row if view in totals else row
    return [(view, direction(total)) for view, total in totals.items()]
