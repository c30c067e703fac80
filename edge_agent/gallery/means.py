"""Means of the people of each camera, which are subtracted before embeddings are compared.

Embeddings of one camera share an offset: its colours, its angle, its background. So two people of one camera
may be nearer than two pictures of one person by different cameras. The offset is estimated by the mean `m` of
the embeddings of different people, one vote for each person, and `normalise(v - u)` is compared::

    u = w m + max(0, W / (W + 1) - w) m_others    w = k / (k + 10)    W: sum of the w of the other views

The mean of few people contains much of themselves, so it has the weight `w` of its `k` people. A camera with
few people is completed by the mean of the others, which share the network's own offset.

A *view* is a camera that stands still, `(camera, epoch)`: one that was moved begins another epoch. Everything
without a camera, such as pictures that an operator enrolled, is the view of the camera ``""``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.structures import PEOPLE_FOR_HALF
from edge_agent.gallery.fleet_rows import owned_by

Vectors = NDArray[np.float32]
Sums = NDArray[np.float64]
Cosine = TypeVar("Cosine", float, Sums)

MOST_GUESTS = 1000
"""Guests that a mean counts; older ones fade, so that it follows the light and the season."""
FEWEST_GUESTS = 10
"""Guests whose sum may be stored, or leave the device: that of a few is nearly their embeddings."""
LONGEST_OFFSET = 0.97
"""Longest vector that is subtracted: of a network that separates nobody, only noise would be left."""


def weight(people: float) -> float:
    """Return the weight of the mean of this many people, 0..1."""
    return people / (people + PEOPLE_FOR_HALF)


def centred(vectors: Vectors, offsets: Vectors) -> Vectors:
    """Subtract `offsets`, `(D,)` or `(N, D)`, from vectors `(N, D)` of length 1; return them of length 1."""
    moved = vectors - offsets
    length = np.sqrt(np.einsum("nd,nd->n", moved, moved))
    moved /= np.maximum(length, 1e-6)[:, None]
    return moved


def restored(vectors: Vectors, offsets: Vectors) -> Vectors:
    """Return what `centred` was made of: the point of the unit sphere that lies behind each direction."""
    along = np.einsum("nd,nd->n", vectors, np.broadcast_to(offsets, vectors.shape))
    room = 1 - np.einsum("...d,...d->...", offsets, offsets)
    length = np.sqrt(np.maximum(along * along + room, 0)) - along
    return np.asarray(vectors * length[:, None] + offsets, np.float32)


@dataclass(frozen=True, slots=True)
class Bias:
    """How far the comparison is freed of the offset of one camera.

    Attributes:
        people: votes for its mean.
        weight: share of its offset that is subtracted, 0..1; also what other cameras contribute counts.
        relief: by how much the product of two people of this camera falls; two that have the cosine `c`
            before have about `(c - relief) / (1 - relief)` after.
        likeness: mean cosine of different people of this camera before; None: fewer than two voted.
    """

    people: float
    weight: float
    relief: float
    likeness: float | None

    def after(self, cosine: float) -> float:
        """Return what a cosine of raw embeddings of this camera becomes."""
        return (cosine - self.relief) / (1 - self.relief)

    def before(self, cosine: Cosine) -> Cosine:
        """Return the cosine of raw embeddings that becomes this one; also of an array."""
        return cosine + self.relief * (1 - cosine)


@dataclass(frozen=True, slots=True)
class Seen:
    """The latest track of a person at a camera: its raw embedding `(D,)`, and the identity, if it has one."""

    origin: str
    vector: Vectors
    number: int | None


class CameraMeans:
    """Votes of people for the means of views, and the offsets in force, for vectors of `dimension` numbers.

    Identities vote by their exemplars. `guests` are people without an identity.
    """

    def __init__(self, dimension: int) -> None:
        self._dimension = dimension
        self._numbers: dict[tuple[str, int], int] = {}
        self._sums: Sums = np.zeros((0, dimension))
        self._people: Sums = np.zeros(0)
        self.guests: dict[int, tuple[float, Sums]] = {}
        """Number of guests and the sum of their vectors, `(D,)`, by number of view."""
        self.shared: dict[int, tuple[float, Sums]] = {}
        """The same of cameras of other devices, as these count them: instead of the votes here."""
        self.elsewhere: dict[tuple[str, int], tuple[float, Sums]] = {}
        """What other devices count, also of views from which there is nothing here."""
        self.latest: dict[str, dict[str, Seen]] = {}
        """Latest people by camera, the oldest first, by a key that a person keeps."""
        self._biases: dict[int, Bias] = {}  # of the present votes and offsets
        self._by_others: set[int] = set()  # those of them that depend on the votes of other views
        self._likenesses: Sums = np.zeros(0)  # `likeness_of` views, NaN for None
        self._stale: set[int] = set()  # views whose likeness is another by the present votes
        self.offsets: Vectors = np.zeros((0, dimension), np.float32)
        """`(V, D)` in force, by number of view."""

    def view(self, camera: str, epoch: int) -> int:
        """Return the number of a view."""
        key = (camera, epoch)
        if key not in self._numbers:
            self._numbers[key] = len(self._numbers)
            row = np.zeros((1, self._dimension))
            self._sums = np.concatenate([self._sums, row])
            self._people = np.append(self._people, 0.0)
            self._likenesses = np.append(self._likenesses, np.nan)
            self.offsets = np.concatenate([self.offsets, row.astype(np.float32)])
            if key in self.elsewhere:
                self.shared[self._numbers[key]] = self.elsewhere[key]
                self._stale.add(self._numbers[key])
            if self.guests or self.shared or self._people.any():
                self.move(len(self.offsets) - 1, self.wanted()[-1])
        return self._numbers[key]

    def views(self, keys: Sequence[tuple[str, int]]) -> NDArray[np.int32]:
        """Return the numbers of N views, `(N,)`."""
        return np.array([self.view(*key) for key in keys], np.int32)

    def find(self, camera: str, epoch: int) -> int | None:
        """Return the number of a view, if there is such a view."""
        return self._numbers.get((camera, epoch))

    def epochs(self, camera: str) -> dict[int, int]:
        """Return the numbers of the views of a camera, by epoch."""
        return {epoch: number for (name, epoch), number in self._numbers.items() if name == camera}

    def vote(self, view: int, vote: Sums, people: int = 1) -> None:
        """Add the vote of an identity, the `direction` of its embeddings there; -1 takes it back."""
        self._add(view, people * vote, people)

    def _add(self, view: int, total: Sums, people: int) -> None:
        self._note_vote(view)
        self._people[view] += people
        if self._people[view] > 0:
            self._sums[view] += total
        else:
            self._sums[view] = self._people[view] = 0.0  # nothing of an erased person stays by rounding

    def welcome(self, view: int, vector: Vectors, people: int = 1) -> None:
        """Add the vote of a guest, `(D,)`; -1 takes it back."""
        self._note_vote(view)
        count, total = self.guests.get(view, (0.0, np.zeros(self._dimension)))
        faded = min(1.0, MOST_GUESTS / (count + 1))
        left = faded * count + people
        self.guests[view] = (left, faded * total + people * direction(vector.astype(np.float64)))
        if left < 0.5:
            del self.guests[view]

    def vote_all(self, owners: NDArray[np.int64], views: NDArray[np.int32], rows: Vectors) -> None:
        """Add the votes of the owners of exemplars: `(N,)` identities, `(N,)` views, `(N, D)` raw rows.

        All exemplars of an identity are among them.
        """
        if not len(owners):
            return
        order = np.lexsort((views, owners))
        owners, views, rows = owners[order], views[order], rows[order]
        starts = np.flatnonzero(np.diff(owners, prepend=-1) | np.diff(views, prepend=-1))
        totals = np.add.reduceat(rows, starts, axis=0, dtype=np.float64)
        totals /= np.maximum(np.linalg.norm(totals, axis=1, keepdims=True), 1e-6)
        of = views[starts]
        for view in np.unique(of).tolist():
            self._add(view, totals[of == view].sum(axis=0), int((of == view).sum()))

    def share_all(self, means: Iterable[tuple[str, int, float, Sums]]) -> None:
        """Let the means of views of other devices count: camera, epoch, number of people, sum `(D,)`."""
        self._stale.update(range(len(self._people)))
        self._biases.clear()
        self.elsewhere = {(camera, epoch): (people, total) for camera, epoch, people, total in means}
        self.shared = {
            number: self.elsewhere[key] for key, number in self._numbers.items() if key in self.elsewhere
        }

    def own(self) -> list[tuple[str, int, float, Sums]]:
        """Return camera, epoch, number of people and sum `(D,)` of the views of this device.

        Guests count where they are ten or more: the sum of a few is nearly their embeddings.
        """
        found = []
        for (camera, epoch), view in self._numbers.items():
            people, total = float(self._people[view]), self._sums[view].copy()
            if view in self.guests and self.guests[view][0] >= FEWEST_GUESTS:
                people, total = people + self.guests[view][0], total + self.guests[view][1]
            if people > 0 and owned_by(camera) is None:
                found.append((camera, epoch, people, total))
        return found

    def clear(self) -> None:
        """Take back the votes of all identities."""
        self._stale.update(range(len(self._people)))
        self._biases.clear()
        self._sums[:] = 0.0
        self._people[:] = 0.0

    def clear_guests(self) -> None:
        """Take back the votes of all guests."""
        self._stale.update(range(len(self._people)))
        self._biases.clear()
        self.guests.clear()

    def drop(self, number: int) -> None:
        """Drop an identity that is gone from the latest people."""
        for latest in self.latest.values():
            for key in [key for key, one in latest.items() if one.number == number]:
                del latest[key]

    def counts(self) -> Sums:
        """Return the number of people who voted, `(V,)`, by number of view."""
        counts: Sums = self._people.copy()
        for view, (people, _) in self.guests.items():
            counts[view] += people
        for view, (people, _) in self.shared.items():
            counts[view] = people
        return counts

    def totals(self) -> Sums:
        """Return the sums of the votes, `(V, D)`."""
        totals: Sums = self._sums.copy()
        for view, (_, total) in self.guests.items():
            totals[view] += total
        for view, (_, total) in self.shared.items():
            totals[view] = total
        return totals

    def wanted(self) -> Vectors:
        """Return the offsets by the present votes, `(V, D)`."""
        return offsets_of(self.counts(), self.totals())

    def with_others(self, people: Sums, totals: Sums) -> Vectors:
        """Return the offsets `(N, D)` that N further views would have by their votes, see `offsets_of`."""
        both = offsets_of(
            np.concatenate([self.counts(), people]),
            np.concatenate([self.totals(), totals.reshape(-1, self._dimension)]),
        )
        return both[len(both) - len(people) :]

    def move(self, view: int, offset: Vectors) -> None:
        """Put an offset `(D,)` in force."""
        self.offsets[view] = offset
        self._biases.clear()

    def bias(self, view: int) -> Bias:
        """Return what the offset in force does to people of a view who have not voted."""
        if view not in self._biases:
            self._biases[view] = self._bias(view)
        return self._biases[view]

    def _bias(self, view: int) -> Bias:
        likeness, (people, total) = self._likeness(view), self.votes(view)
        offset = self.offsets[view].astype(np.float64)
        relief = float(offset @ offset)
        if likeness is not None:
            # One's own vote is left out: a mean is nearer to those who voted than to others.
            relief = 2 * float(total @ offset - (1 - likeness) * weight(people)) / people - relief
        relief = min(max(relief, 0.0), LONGEST_OFFSET**2)
        if likeness is None:
            self._by_others.add(view)
        whole = self._greatest_likeness() if likeness is None else likeness
        share = 1 - (1 - relief / whole) ** 0.5 if whole > relief else float(relief > 0)
        return Bias(people, share, relief, likeness)

    def _note_vote(self, view: int) -> None:
        self._stale.add(view)
        self._biases.pop(view, None)
        for other in self._by_others:
            self._biases.pop(other, None)
        self._by_others.clear()

    def votes(self, view: int) -> tuple[float, Sums]:
        """Return the number of people who voted for a view, and the sum of their votes, `(D,)`."""
        if view in self.shared:
            return self.shared[view]
        people, total = float(self._people[view]), self._sums[view]
        if view not in self.guests:
            return people, total
        guests, further = self.guests[view]
        return people + guests, total + further

    def _likeness(self, view: int) -> float | None:
        """Return the mean cosine of different people of a view, see `likeness_of`."""
        if view in self._stale:
            found = likeness_of(*self.votes(view))
            self._likenesses[view] = np.nan if found is None else found
            self._stale.discard(view)
        known = float(self._likenesses[view])
        return None if np.isnan(known) else known

    def _greatest_likeness(self) -> float:
        """Return the greatest of all views; 0 where there is none."""
        stale = list(self._stale)
        found = [likeness_of(*self.votes(view)) for view in stale]
        self._likenesses[stale] = [np.nan if one is None else one for one in found]
        self._stale.clear()
        return float(np.fmax.reduce(self._likenesses, initial=0.0))


def offsets_of(people: Sums, totals: Sums) -> Vectors:
    """Return the offsets `(V, D)` of views by the numbers `(V,)` of people and the sums `(V, D)` of votes."""
    more = people + PEOPLE_FOR_HALF
    weights = people / more
    weighted = totals / more[:, None]
    others = np.maximum(weights.sum() - weights, 0.0)
    missing = np.maximum(0.0, others / (others + 1) - weights)
    share = missing / np.maximum(others, 1e-9)
    offsets = weighted + share[:, None] * (weighted.sum(axis=0) - weighted)
    length = np.sqrt(np.einsum("vd,vd->v", offsets, offsets))
    return np.asarray(offsets / np.maximum(1.0, length / LONGEST_OFFSET)[:, None], np.float32)


def likeness_of(people: float, total: Sums) -> float | None:
    """Return the mean cosine of different people by their number and sum `(D,)`; None for fewer than two."""
    return (float(total @ total) - people) / (people * (people - 1)) if people >= 2 else None


def direction(vector: Sums) -> Sums:
    """Return a vector `(D,)` of length 1."""
    return np.asarray(vector / max(float(vector @ vector) ** 0.5, 1e-6), np.float64)
