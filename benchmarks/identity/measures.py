"""How identities agree with people, over any number of cameras.

A *visit* is one passage of one person through one camera. Evidence is a count of observations per visit and
identity: boxes that overlap (IoU at least 0.5), or crops. From it:

- IDF1 as in Ristani et al. 2016, over all cameras together: people and identities are assigned one to one so
  that most observations agree; 2 agreeing / (true + assigned observations);
- re-entries recognised: visits of people who visited before, whose main identity the person had before;
- pairs merged: pairs of people who share a main identity;
- identities: of all observations. One per person is right.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from benchmarks.scoring import Rows
from edge_agent.core.structures import iou_matrix

__all__ = ["Evidence", "Measured", "Visits", "boxes"]

MIN_OVERLAP = 0.5


@dataclass(slots=True)
class Visits:
    """The truth: person and beginning of each visit, in seconds over all cameras; and its observations."""

    person: dict[int, int] = field(default_factory=dict)
    begun: dict[int, float] = field(default_factory=dict)
    seen: Counter[int] = field(default_factory=Counter)

    def see(self, visit: int, person: int, time: float, count: int = 1) -> None:
        """Add observations of a visit."""
        self.person[visit] = person
        self.begun.setdefault(visit, time)
        self.seen[visit] += count


@dataclass(frozen=True, slots=True)
class Measured:
    """See the module; `missed` are visits without an identity."""

    idf1: float
    people: int
    reentries: int
    recognised: int
    merged: int
    identities: int
    missed: int


@dataclass(slots=True)
class Evidence:
    """Observations per visit and identity, and the number of observations with an identity."""

    votes: dict[int, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    given: Counter[int] = field(default_factory=Counter)

    def measure(self, truth: Visits, least: int = 1) -> Measured:
        """Compare with the truth. Visits of fewer than `least` observations are no re-entries."""
        main = {visit: counts.most_common(1)[0][0] for visit, counts in self.votes.items() if counts}
        scored = [visit for visit in truth.seen if truth.seen[visit] >= least]
        reentries, recognised = _reentries(scored, truth, main)
        owners: dict[int, set[int]] = defaultdict(set)
        for visit in scored:
            if visit in main:
                owners[main[visit]].add(truth.person[visit])
        return Measured(
            idf1=self._idf1(truth),
            people=len({truth.person[visit] for visit in scored}),
            reentries=reentries,
            recognised=recognised,
            merged=sum(len(people) * (len(people) - 1) // 2 for people in owners.values()),
            identities=len(self.given),
            missed=sum(visit not in main for visit in scored),
        )

    def _idf1(self, truth: Visits) -> float:
        from scipy.optimize import linear_sum_assignment

        people = sorted(set(truth.person.values()))
        numbers = sorted(self.given)
        agreeing = np.zeros((len(people), len(numbers)))
        row = {person: index for index, person in enumerate(people)}
        column = {number: index for index, number in enumerate(numbers)}
        for visit, counts in self.votes.items():
            for number, count in counts.items():
                agreeing[row[truth.person[visit]], column[number]] += count
        best = agreeing[linear_sum_assignment(agreeing, maximize=True)].sum() if numbers else 0.0
        return float(2 * best / max(1, truth.seen.total() + self.given.total()))


def _reentries(scored: Iterable[int], truth: Visits, main: Mapping[int, int]) -> tuple[int, int]:
    """Return the number of re-entries, and of those whose main identity the person had before."""
    earlier: dict[int, set[int]] = {}
    reentries = recognised = 0
    for visit in sorted(scored, key=lambda one: (truth.begun[one], one)):
        known = earlier.get(truth.person[visit])
        if known is not None:
            reentries += 1
            recognised += main.get(visit) in known
        earlier.setdefault(truth.person[visit], set()).update([main[visit]] if visit in main else [])
    return reentries, recognised


def boxes(evidence: Evidence, found: Rows, truth: Rows) -> None:
    """Add one camera's boxes: rows with identities, and rows with visits."""
    for frame, (numbers, theirs) in found.items():
        evidence.given.update(numbers.tolist())
        if frame not in truth:
            continue
        visits, ours = truth[frame]
        for one, other in zip(*np.nonzero(iou_matrix(ours, theirs) >= MIN_OVERLAP), strict=True):
            evidence.votes[int(visits[one])][int(numbers[other])] += 1
