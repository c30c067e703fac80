"""Scoring of MOT files against ground truth, by motmetrics; used by the benchmarks and the tests.

Ground truth of a tracker counts visits: a person who leaves and comes back gets a new id. An agent that
re-identifies is scored against people, so visits of one person are joined first.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.structures import iou_matrix

__all__ = ["PETS_VISITS", "Score", "people_of", "read_mot", "score", "scored_reentries"]

PETS_VISITS = "19,1|13,2|11,3|12,4|9,5|10,6|15,14,18,8|7|16|17"
"""PETS09-S2L1: the 19 visits of the ground truth, assigned to 10 people by hand."""

Rows = dict[int, tuple[NDArray[np.int64], NDArray[np.float32]]]
"""Per frame: ids `(N,)` and boxes `(N, 4)` xyxy."""


@dataclass(frozen=True, slots=True)
class Score:
    """Agreement of identities with people.

    Attributes:
        idf1, mota: by motmetrics, IoU 0.5.
        reentries: re-entries in the truth.
        recognised: those whose main identity the person had before.
        merged: identities that are the main one of visits of two people.
    """

    idf1: float
    mota: float
    reentries: int
    recognised: int
    merged: int


def people_of(visits: str) -> dict[int, int]:
    """`"19,1|13,2"` -> `{19: 1, 1: 1, 13: 2, 2: 2}`."""
    return {int(v): n for n, group in enumerate(visits.split("|"), start=1) for v in group.split(",")}


def read_mot(path: Path, *, truth: bool = False) -> Rows:
    """Read a MOTChallenge file; of ground truth only the scored rows."""
    found: dict[int, list[tuple[int, list[float]]]] = defaultdict(list)
    for line in path.read_text().splitlines():
        values = line.split(",")
        if truth and float(values[6]) == 0:
            continue
        x, y, w, h = map(float, values[2:6])
        found[int(float(values[0]))].append((int(float(values[1])), [x, y, x + w, y + h]))
    return {
        frame: (np.array([i for i, _ in rows]), np.array([b for _, b in rows], np.float32))
        for frame, rows in found.items()
    }


_NOBODY = (np.zeros(0, np.int64), np.zeros((0, 4), np.float32))


def score(found: Rows, truth: Rows, people: Mapping[int, int] | None = None) -> Score:
    """Score results against the truth; `people` joins visits (None: no joining)."""
    import motmetrics

    accumulated = motmetrics.MOTAccumulator(auto_id=True)
    overlaps: dict[int, Counter[int]] = defaultdict(Counter)
    begun: dict[int, int] = {}
    for frame in sorted(truth):
        visits, boxes = truth[frame]
        identities, theirs = found.get(frame, _NOBODY)
        iou = iou_matrix(boxes, theirs).astype(np.float64)
        for visit in visits:
            begun.setdefault(int(visit), frame)
        for row, column in zip(*np.nonzero(iou >= 0.5), strict=True):
            overlaps[int(visits[row])][int(identities[column])] += 1
        who = [people[int(v)] if people else int(v) for v in visits]
        accumulated.update(who, identities.tolist(), np.where(iou >= 0.5, 1 - iou, np.nan))
    result = motmetrics.metrics.create().compute(accumulated, metrics=["idf1", "mota"], name="all")
    main = {visit: counts.most_common(1)[0][0] for visit, counts in overlaps.items()}
    person = {visit: people[visit] if people else visit for visit in begun}
    reentries, recognised = scored_reentries(begun, main, person)
    owners: dict[int, set[int]] = defaultdict(set)
    for visit, identity in main.items():
        owners[identity].add(person[visit])
    merged = sum(len(of) > 1 for of in owners.values())
    return Score(float(result["idf1"].iloc[0]), float(result["mota"].iloc[0]), reentries, recognised, merged)


def scored_reentries(
    begun: Mapping[int, int], main: Mapping[int, int], person: Mapping[int, int]
) -> tuple[int, int]:
    """Return the number of re-entries, and of those with the main identity of an earlier visit."""
    earlier: dict[int, set[int]] = defaultdict(set)
    seen: Counter[int] = Counter()
    reentries = recognised = 0
    for visit in sorted(begun, key=lambda v: begun[v]):
        who = person[visit]
        if seen[who]:
            reentries += 1
            recognised += main.get(visit) in earlier[who]
        seen[who] += 1
        if visit in main:
            earlier[who].add(main[visit])
    return reentries, recognised
