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
from dataclasses import dataclass, field

import numpy as np

from benchmarks.scoring import Rows
from edge_agent.core.structures import iou_matrix

__all__ = ["Evidence", "Measured", "Visits", "boxes", "reachable", "tracks_ceiling"]

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

    def scored(self, least: int) -> list[int]:
        """Return the visits of at least so many observations."""
        return [visit for visit, count in self.seen.items() if count >= least]


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

    def main(self) -> dict[int, int]:
        """Return the most frequent identity of each visit that has one."""
        return {visit: counts.most_common(1)[0][0] for visit, counts in self.votes.items() if counts}

    def unrecognised(self, truth: Visits, least: int = 1) -> tuple[list[int], list[int]]:
        """Return the re-entries, and those of them whose main identity the person did not have before."""
        main, earlier = self.main(), dict[int, set[int]]()
        reentries, missed = [], []
        for visit in sorted(truth.scored(least), key=lambda one: (truth.begun[one], one)):
            known = earlier.get(truth.person[visit])
            if known is not None:
                reentries.append(visit)
                missed += [] if main.get(visit) in known else [visit]
            earlier.setdefault(truth.person[visit], set()).update([main[visit]] if visit in main else [])
        return reentries, missed

    def measure(self, truth: Visits, least: int = 1) -> Measured:
        """Compare with the truth. Visits of fewer than `least` observations are not counted."""
        main, scored = self.main(), truth.scored(least)
        reentries, unknown = self.unrecognised(truth, least)
        owners: dict[int, set[int]] = defaultdict(set)
        for visit in scored:
            if visit in main:
                owners[main[visit]].add(truth.person[visit])
        return Measured(
            idf1=self._idf1(truth),
            people=len({truth.person[visit] for visit in scored}),
            reentries=len(reentries),
            recognised=len(reentries) - len(unknown),
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


def boxes(evidence: Evidence, found: Rows, truth: Rows) -> None:
    """Add one camera's boxes: rows with identities, and rows with visits."""
    for frame, (numbers, theirs) in found.items():
        evidence.given.update(numbers.tolist())
        if frame not in truth:
            continue
        visits, ours = truth[frame]
        for one, other in zip(*np.nonzero(iou_matrix(ours, theirs) >= MIN_OVERLAP), strict=True):
            evidence.votes[int(visits[one])][int(numbers[other])] += 1


def tracks_ceiling(tracks: Rows, truth: Rows, visits: Visits) -> tuple[int, int]:
    """Return boxes that agree, and boxes given, if every track had the person of most of its boxes."""
    votes: dict[int, Counter[int]] = defaultdict(Counter)
    sizes: Counter[int] = Counter()
    for frame, (numbers, theirs) in tracks.items():
        sizes.update(numbers.tolist())
        if frame in truth:
            ids, ours = truth[frame]
            for one, other in zip(*np.nonzero(iou_matrix(ours, theirs) >= MIN_OVERLAP), strict=True):
                votes[int(numbers[other])][visits.person[int(ids[one])]] += 1
    return sum(max(of.values()) for of in votes.values()), sum(sizes[track] for track in votes)


def reachable(tracks: Rows, truth: Rows) -> int:
    """Return the number of true boxes that a box of any track fits, one to one."""
    from scipy.optimize import linear_sum_assignment

    total = 0
    for frame, (_, ours) in truth.items():
        if frame in tracks:
            fits = iou_matrix(ours, tracks[frame][1]) >= MIN_OVERLAP
            total += int(fits[linear_sum_assignment(fits, maximize=True)].sum())
    return total
