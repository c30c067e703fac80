"""Pairs of identities that are probably one person, for an operator to decide.

The score of a pair is that by which the agent joins identities by itself: the mean of the best scores of all
exemplars, both ways, without the offsets of cameras. Left out are pairs that were rejected or split, and
people who were seen together: tracks of one camera at the same time are two people.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge_agent.gallery.means import Vectors
from edge_agent.gallery.rows import Identity

if TYPE_CHECKING:
    from edge_agent.gallery.gallery import Gallery

MOST_COMPARED = 2000
"""Identities that are compared, the latest seen: half a second of one core at 16 exemplars each."""
_ROUGH = 20
"""Pairs that are scored exactly for each one wanted, by the scores of the mean exemplars."""
_SITE_FACT = "site_scores"


@dataclass(frozen=True, slots=True)
class Suggestion:
    """Two identities that may be one person; `one` has the lower number. `score`: as compared, -1..1."""

    one: Identity
    other: Identity
    score: float


def suggestions(gallery: Gallery, most: int, *, floor: float = -1.0) -> list[Suggestion]:
    """Return at most `most` pairs with a score of at least `floor`, best first.

    The gallery is locked only while its content is read.
    """
    gallery.cameras.start()
    with gallery.file.reading() as rows:
        people = {
            one.number: one
            for one in rows.identities("ORDER BY seen DESC, last_seen DESC LIMIT ?", MOST_COMPARED)
        }
        owners, vectors = gallery.vectors(sorted(people))
        apart = {(number, other) for number in people for other in gallery.corrections.apart(number)}
        apart |= _together(rows.store.rows(_SPANS))
    apart |= _learned(gallery.facts.get(_SITE_FACT))
    found = _best(owners, vectors, apart, most, floor)
    return [Suggestion(people[one], people[other], score) for one, other, score in found]


_SPANS = (
    "SELECT number, camera, min(time), max(time) FROM (SELECT number, camera, origin, time FROM exemplar"
    " UNION ALL SELECT number, camera, origin, time FROM crop WHERE role = 'kept')"
    " WHERE camera != '' GROUP BY number, camera, origin ORDER BY camera, min(time)"
)
"""When each track was in view, as far as it is stored."""


def _together(spans: Iterable[tuple[int, str, float, float]]) -> set[tuple[int, int]]:
    """Return the pairs, both ways, of people whose tracks at a camera overlap in time."""
    pairs: set[tuple[int, int]] = set()
    open_: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for number, camera, first, last in spans:
        open_[camera] = [one for one in open_[camera] if one[0] >= first]
        for _, other in open_[camera]:
            if other != number:
                pairs |= {(number, other), (other, number)}
        open_[camera].append((last, number))
    return pairs


def _learned(stored: object) -> set[tuple[int, int]]:
    """Return the pairs, both ways, whose scores the site has learned since they were seen together."""
    keys = stored.get("pairs", {}) if isinstance(stored, dict) else {}
    found = set()
    for key in keys if isinstance(keys, dict) else ():
        people = [one[1:] for one in str(key).split("|") if one.startswith("#") and one[1:].isdecimal()]
        if len(people) == 2:
            one, other = int(people[0]), int(people[1])
            found |= {(one, other), (other, one)}
    return found


def likeness(gallery: Gallery, one: int, other: int) -> float | None:
    """Return the score of a pair of identities as in `suggestions`; None where one has no exemplars."""
    gallery.cameras.start()
    owners, vectors = gallery.vectors([one, other])
    parts = vectors[owners == one], vectors[owners == other]
    return both_ways(*parts) if all(len(part) for part in parts) else None


def both_ways(one: Vectors, other: Vectors) -> float:
    """Return the mean of the best cosines of all exemplars `(M, D)` and `(N, D)`, both ways."""
    products = one @ other.T
    return float(products.max(axis=1).mean() + products.max(axis=0).mean()) / 2


def _best(
    owners: NDArray[np.int64], vectors: Vectors, apart: Collection[tuple[int, int]], most: int, floor: float
) -> list[tuple[int, int, float]]:
    order = np.argsort(owners, kind="stable")
    owners, vectors = owners[order], vectors[order]
    numbers, starts = np.unique(owners, return_index=True)
    if len(numbers) < 2:
        return []
    parts = np.split(vectors, starts[1:])
    means = np.stack([part.mean(axis=0) for part in parts])
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-6)
    rough = means @ means.T
    rough[np.tril_indices(len(numbers))] = -np.inf
    places = {int(number): place for place, number in enumerate(numbers)}
    for one, other in apart:
        if one in places and other in places:
            rough[places[one], places[other]] = -np.inf
    count = min(rough.size, _ROUGH * most)
    chosen = np.argpartition(rough.ravel(), rough.size - count)[rough.size - count :]
    scored = []
    for row, column in zip(*np.unravel_index(chosen, rough.shape), strict=True):
        if rough[row, column] == -np.inf:
            continue
        score = both_ways(parts[row], parts[column])
        if score >= floor:
            scored.append((int(numbers[row]), int(numbers[column]), score))
    return sorted(scored, key=lambda pair: (-pair[2], pair[:2]))[:most]
