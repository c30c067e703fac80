"""Finds people of the site who were enrolled twice, by different devices.

Two devices may enrol one person at once, or without a connection. Both identities stand at first. The device
that holds the lease compares people whose exemplars changed with those nearest to them, and joins two when

- each is the best of the other: the mean of the best scores of all exemplars, both ways, without the offsets
  of cameras, as a device joins identities by itself;
- the score is above a threshold that is stricter than that of a device, for the number of people of the site;
- nobody else comes near who is certainly not the best one, since a device has seen both, or they are kept
  apart;
- no device has seen both. That device has compared them, with more evidence and a lower threshold, and holds
  them to be two people;
- they are not kept apart, and at most one of them was enrolled or named by an operator.

Two people with different names are never joined: the pair is a conflict, which an operator decides.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from edge_agent.fleet.records import Candidate, Pair, SitePerson, Vectors
from edge_agent.gallery.suggestions import both_ways

STRICTER = 0.02
"""How far above the threshold of a device the score of two people must be, in cosine; see decision 074."""

LEAD = 0.08
"""Least lead over everybody else who is certainly not the best one."""

SiteView = tuple[str, str, int]
"""Device, camera and epoch."""
Compare = Callable[[Vectors, Sequence[SiteView]], Vectors]
"""Returns raw embeddings `(N, D)` of N views without the offsets of their cameras, `(N, D)` of length 1."""
Threshold = Callable[[Collection[SiteView]], float | None]
"""Returns the least score of two people who were seen by these views; None: none is enough."""


@dataclass(frozen=True, slots=True)
class Known:
    """A person of the site as it is compared.

    Attributes:
        raw, rows: `(M, D)` exemplars as they are shared, and without the offsets of their cameras.
        views: of the exemplars.
    """

    person: SitePerson
    raw: Vectors
    rows: Vectors
    views: frozenset[SiteView]

    @property
    def id(self) -> str:
        """The person's id."""
        return self.person.id

    @property
    def devices(self) -> set[str]:
        """The devices that have seen the person."""
        return {device for device, _, _ in self.views}


def known(candidate: Candidate, compare: Compare) -> Known | None:
    """Return a person of the site as it is compared; None: without exemplars, merged or erased."""
    shown = [(one.device, shot) for one in candidate.contributions for shot in one.exemplars]
    person = candidate.person
    if not shown or person.forgotten is not None or person.root != person.id:
        return None
    raw = np.stack([shot.vector for _, shot in shown])
    views = [(device, shot.camera, shot.epoch) for device, shot in shown]
    return Known(person, raw, compare(raw, views), frozenset(views))


@dataclass(frozen=True, slots=True)
class Match:
    """The best of some others for a person, and the score of the two."""

    one: Known
    best: Known
    score: float

    @property
    def pair(self) -> Pair:
        """The two, smaller id first."""
        return Pair(*sorted((self.one.id, self.best.id)))

    @property
    def is_conflict(self) -> bool:
        """Whether the two have different names."""
        names = self.one.person.name, self.best.person.name
        return None not in names and names[0] != names[1]


@dataclass(frozen=True, slots=True)
class Judge:
    """Compares people of a site.

    Attributes:
        threshold: of two people, by the views of both.
        apart: returns the ids of people who are certainly not this one.
    """

    threshold: Threshold
    apart: Callable[[str], Collection[str]]

    def best(self, one: Known, others: Iterable[Known]) -> Match | None:
        """Return the person who is certainly the same as `one`, seen from this one alone; None: nobody."""
        apart = self.apart(one.id)
        scored = [
            (both_ways(one.rows, other.rows), other)
            for other in others
            if other.id != one.id and other.id not in apart and not one.devices & other.devices
        ]
        if not scored:
            return None
        score, best = max(scored, key=lambda found: (found[0], found[1].id))
        needed = self.threshold(one.views | best.views)
        if needed is None or score < needed:
            return None
        rivals = self.apart(best.id)
        for near, other in scored:
            # Others may be the same person once more, unless a device has seen both.
            is_rival = bool(other.devices & best.devices) or other.id in rivals
            if other.id != best.id and is_rival and score - near < LEAD:
                return None
        return Match(one, best, score)


def mutual(match: Match, back: Match | None) -> bool:
    """Whether a match is to be joined or reported; `back` is that of the best one."""
    if back is None or back.best.id != match.one.id:
        return False
    by_hand = match.one.person.kind != "auto" and match.best.person.kind != "auto"
    return (
        match.is_conflict or not by_hand
    )  # two people who were enrolled by hand are never joined by a guess


def stricter(threshold: float) -> float:
    """Return the threshold for joining two people of a site, by that of a device, as compared."""
    return threshold + min(STRICTER, (1 - threshold) / 2)
