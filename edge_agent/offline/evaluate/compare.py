"""Two networks on the same pictures: differences of their figures, with intervals by the paired bootstrap.

Pictures of one person are not independent, so people are drawn, not queries (cluster bootstrap; Davison and
Hinkley 1997, "Bootstrap Methods and their Application", 2.4 and 3.8): each draw takes as many people as there
are, with replacement, and both networks are scored on the queries of the same people. The interval is that of
the 2.5 and 97.5 % quantiles of the differences.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.errors import InputError
from edge_agent.offline.evaluate.metrics import Ranking
from edge_agent.offline.evaluate.protocol import Evaluation

DRAWS = 2000
_LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure of two networks; rates are fractions, the interval is that of `second - first`."""

    figure: str
    first: float
    second: float
    low: float
    high: float

    @property
    def certain(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def differences(first: Evaluation, second: Evaluation) -> list[Difference]:
    """Compare two evaluations query by query: rank-1, 5 and 10, mAP and mINP.

    The draws are the same in every call (seed 0).

    Raises:
        InputError: the two did not rank the same queries, or those of one person only.
    """
    names = [_ranked(evaluation) for evaluation in (first, second)]
    if names[0] != names[1]:
        raise InputError("the two networks were not evaluated on the same queries")
    people = first.sides.query.pids[first.ranking.rows]
    _, index = np.unique(people, return_inverse=True)
    count = int(index.max()) + 1
    if count < 2:
        raise InputError("all queries show one person; an interval needs at least two")
    weights = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=DRAWS)
    size = weights @ np.bincount(index, minlength=count)
    found = []
    for figure in ("rank1", "rank5", "rank10", "mAP", "mINP"):
        one, other = _values(first.ranking, figure), _values(second.ranking, figure)
        drawn = weights @ np.bincount(index, weights=other - one, minlength=count) / size
        low, high = np.quantile(drawn, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
        found.append(Difference(figure, float(one.mean()), float(other.mean()), float(low), float(high)))
    return found


def _ranked(evaluation: Evaluation) -> list[str]:
    return [evaluation.sides.query.names[row] for row in evaluation.ranking.rows]


def _values(ranking: Ranking, figure: str) -> NDArray[np.float64]:
    """Return the `(V,)` values of the queries whose mean is the figure."""
    if figure == "mAP":
        return ranking.average_precision
    if figure == "mINP":
        return ranking.inverse_penalty
    return (ranking.first <= int(figure.removeprefix("rank"))).astype(np.float64)
