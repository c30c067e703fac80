"""The state that the parts of the decision share, and how well tracks fit identities."""

# ruff: noqa: D102  the methods are documented in `edge_agent.gallery.Gallery`

from __future__ import annotations

import math
from collections.abc import Collection, Sequence, Set
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.errors import InputError
from edge_agent.identify.cameras import CameraOffsets
from edge_agent.identify.covisible import Covisibility
from edge_agent.identify.near import NEAREST, Near, Neighbours, Search, Searchable
from edge_agent.identify.site import MOST_SHIFT, FactStore, ThresholdPolicy
from edge_agent.identify.tracks import Track, TrackKey, TrackTable

if TYPE_CHECKING:
    from edge_agent.core.config import IdentifySettings

Vector = NDArray[np.float32]

_MOST_TAKEN = 1000
"""Tracks whose rivals' identities are remembered."""


class KnownIdentity(Protocol):
    """The properties of an identity that the decision uses; see `edge_agent.gallery.rows.Identity`."""

    @property
    def number(self) -> int: ...
    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str | None: ...
    @property
    def kind(self) -> str: ...


class KeptApart(Protocol):
    """See `edge_agent.gallery.corrections.Corrections`."""

    def apart(self, number: int) -> Collection[int]: ...
    def seen_together(self, number: int, others: Collection[int]) -> int: ...


class KnownIdentities(Searchable, Protocol):
    """The methods of `edge_agent.gallery.Gallery` that the decision uses."""

    def enrol(
        self, vectors: Vector, qualities: Vector, *, origin: str, camera: str, time: float
    ) -> KnownIdentity: ...
    def add_exemplars(
        self, number: int, vectors: Vector, qualities: Vector, *, origin: str, camera: str, time: float
    ) -> int: ...
    def remove_origin(self, number: int, origin: str, since: float | None = None) -> int: ...
    def exclusive(self, *, together: bool = ...) -> AbstractContextManager[None]: ...
    def __len__(self) -> int: ...
    def present(self, numbers: Collection[int] | None = None) -> set[int]: ...
    def enrolled(self, numbers: list[int]) -> set[int]: ...
    def touch(self, number: int, time: float, *, sighting: bool = ...) -> None: ...
    def merge(self, keep: int, absorb: int, reason: str = ...) -> KnownIdentity: ...
    def rename(self, number: int, name: str | None) -> KnownIdentity: ...
    def person(self, key: int | str) -> KnownIdentity: ...
    @property
    def facts(self) -> FactStore: ...
    @property
    def cameras(self) -> CameraOffsets: ...
    @property
    def corrections(self) -> KeptApart: ...


@dataclass(slots=True)
class Shared:
    """What the parts of the decision work on; a reload replaces the settings."""

    gallery: KnownIdentities
    settings: IdentifySettings
    tracks: TrackTable
    links: Covisibility
    thresholds: ThresholdPolicy
    _taken: dict[TrackKey, set[int]] = field(default_factory=dict)
    """What `taken` returned, kept up to date: a track of a crowd has hundreds of rivals."""
    _taken_at: tuple[int, int] = (0, 0)

    def reload(self, settings: IdentifySettings) -> None:
        """Replace the settings of all parts."""
        self.settings = self.tracks.settings = settings
        self.links.needed = settings.covisible_frames
        self.thresholds.reload(settings)

    def compared(self, track: Track) -> Vector:
        """Return the pooled evidence of a track without the offset of its camera, `(D,)` of length 1."""
        compared: Vector = self.compared_all([track])[0]
        return compared

    def compared_all(self, tracks: Sequence[Track]) -> Vector:
        """Return `compared` of tracks of one camera, `(T, D)`."""
        pooled = np.array([track.pooled() for track in tracks])
        return self.gallery.cameras.centred(tracks[0].key[0], pooled)

    def known(self, key: int | str | None) -> KnownIdentity | None:
        """Return an identity by number or (former) id; None where it is unknown or was erased meanwhile."""
        with suppress(InputError):
            return None if key is None else self.gallery.person(key)
        return None

    def taken(self, key: TrackKey) -> Set[int]:
        """Return the identities of the tracks that were seen together with this one; maybe its own, too.

        The set may change with the next call.
        """
        self._follow_taken()
        if (found := self._taken.get(key)) is None:
            found = self._taken[key] = self.tracks.numbers(self.links.rivals(key))
        return found

    def _follow_taken(self) -> None:
        """Update what `taken` knows by the tracks whose identity changed, or that got a rival."""
        tracks, links, taken = self.tracks, self.links, self._taken
        state = tracks.changes, links.changes
        if state != self._taken_at or len(taken) > _MOST_TAKEN:
            taken.clear()
            self._taken_at = state
        for track in links.stale:
            taken.pop(track, None)
        links.stale.clear()
        for track, rivals in links.met:
            if track in taken:
                taken[track] |= tracks.numbers(rivals)
            if numbers := tracks.numbers((track,)):
                for rival in taken.keys() & rivals:
                    taken[rival] |= numbers
        links.met.clear()
        for track, number in tracks.changed:
            for rival in taken.keys() & links.rivals(track):
                if number is None:
                    del taken[rival]
                else:
                    taken[rival].add(number)
        tracks.changed.clear()

    def seen_with(self, number: int) -> set[int]:
        """Return the identities that were seen together with this one, or that an operator keeps apart."""
        return set(self.gallery.corrections.apart(number)).union(
            *(self.taken(key) for key in self.tracks.holders(number))
        )


@dataclass(slots=True)
class Fit:
    """Scores of tracks and identities: numbers `(I,)`, scores `(T, I)`, -inf where a match is impossible."""

    numbers: NDArray[np.int64]
    scores: Vector

    def best(self, row: int) -> tuple[int | None, float, float | None]:
        """Return the best number, its score, and the runner-up's score."""
        scores = self.scores[row]
        order = best_two(scores)
        best, second = (*(float(scores[column]) for column in order), None, None)[:2]
        return (None, -1.0, None) if best is None else (int(self.numbers[order[0]]), best, second)


class Fitting:
    """Scores tracks against the gallery."""

    def __init__(self, shared: Shared, neighbours: Neighbours) -> None:
        self._shared = shared
        self._neighbours = neighbours

    def near(self, tracks: Sequence[Track], floor: float) -> list[Near]:
        """Return the identities that score at least `floor` with each track, its own, and some more.

        The tracks are of one camera.
        """
        found = self._neighbours.near(
            list(self._shared.compared_all(tracks)),
            floor,
            [track.search for track in tracks],
            [track.number for track in tracks],
        )
        for track, near in zip(tracks, found, strict=True):
            if track.search is not near.search:
                self._judge(track, near.search)
        return found

    def follow(self, tracks: Sequence[Track]) -> None:
        """Prepare the comparison of tracks with what changed since they were compared."""
        self._neighbours.follow(track.search for track in tracks)

    def near_crops(self, track: Track, compared: Vector, needed: float) -> Near:
        """Return all identities that some crops of a track, `(D,)` of length 1, may fit, and some more.

        Those that score less than `needed` do not.
        """
        floor = max(needed, self.floor([track]))
        return self._neighbours.near([compared], floor, [track.search], [track.number])[0]

    def _judge(self, track: Track, search: Search) -> None:
        """Note a new search of a track, and how like it is to others by it."""
        thresholds, first = self._shared.thresholds, track.likeness is None
        scores = [
            score
            for number, score in zip(search.numbers, search.scores, strict=True)
            if number != track.number
        ]
        track.search, track.likeness = search, thresholds.likeness(scores)
        if first and track.likeness is not None:
            thresholds.note(track.likeness)

    def threshold(self, track: Track) -> float:
        """Return the threshold for a track, after a search; there must be one."""
        track.threshold = self._shared.thresholds.of(self._taken(track), track.likeness)
        assert track.threshold.value is not None  # else nothing is compared
        return track.threshold.value

    def floor(self, tracks: Sequence[Track]) -> float:
        """Return the least score that can matter to a decision on tracks; there must be a threshold."""
        taken = max(map(self._taken, tracks))
        base = self._shared.thresholds.value_of(taken)
        assert base is not None  # else nothing is compared
        return base - MOST_SHIFT - self._shared.settings.margin

    def _taken(self, track: Track) -> int:
        """Return how many identities of others were seen together with a track."""
        taken = self._shared.taken(track.key)
        return len(taken) - (track.number in taken)

    def fit(self, tracks: Sequence[Track]) -> Fit:
        """Score tracks against the identities that they may have, as far as it can matter to a decision."""
        found = self.near(tracks, self.floor(tracks))
        if len(found) == 1:
            numbers = np.sort(found[0].numbers)
        else:
            numbers = np.unique(np.concatenate([near.numbers for near in found]))
        scores = np.full((len(tracks), len(numbers)), -np.inf, np.float32)
        for row, (track, near) in enumerate(zip(tracks, found, strict=True)):
            scores[row, np.searchsorted(numbers, near.numbers)] = near.scores
            scores[row, self._forbidden(track, numbers)] = -np.inf
        return Fit(numbers, scores)

    def measure(self, track: Track) -> None:
        """Set the best and the second score of a track, also of identities far from the threshold."""
        if self._shared.thresholds.in_force.value is None:
            return
        near, count = self.near([track], self.floor([track]))[0], 0
        while True:
            scores = near.scores.copy()
            scores[self._forbidden(track, near.numbers)] = -np.inf
            best = [float(scores[column]) for column in best_two(scores)]
            if (len(best) == 2 and best[1] >= near.reach) or near.reach == -math.inf:
                track.score, track.runner_up = (*best, None, None)[:2]
                return
            query, count = self._shared.compared(track), 4 * count or NEAREST
            if count == NEAREST:
                near = self._neighbours.widest(query, near.search)
            else:
                near = self._neighbours.nearest(query, count)

    def without_own(self, track: Track, number: int) -> float | None:
        """Score a track against an identity, its own exemplars left out; None: there are no others."""
        vectors, origins = self._shared.gallery.cameras.exemplars(number)
        others = [row for row, origin in enumerate(origins) if origin != track.origin]
        return float((vectors[others] @ self._shared.compared(track)).max()) if others else None

    def _forbidden(self, track: Track, numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        """`(I,)`: identities of tracks that were seen together with this one, or not on the watchlist."""
        taken = self._shared.taken(track.key)
        listed = numbers.tolist()
        watchlist = self._shared.settings.enrolment == "watchlist"
        allowed = set(self._shared.gallery.enrolled(listed) if watchlist else listed) - taken
        return np.array([number not in allowed for number in listed], np.bool_)


def best_two(scores: Vector) -> list[int]:
    """Return the columns of the two highest scores `(I,)`, best first; fewer where fewer are finite."""
    found: list[int] = []
    left = scores.copy()
    for _ in range(min(2, len(left))):
        best = int(left.argmax())
        if left[best] == -np.inf:
            break
        found.append(best)
        left[best] = -np.inf
    return found


def assign(scores: Vector, thresholds: Sequence[float]) -> list[tuple[int, int]]:
    """Return the pairs (row, column) with the greatest sum of scores, none below the threshold of its row."""
    from scipy.optimize import linear_sum_assignment

    if scores.size == 0:
        return []
    good = scores >= np.array(thresholds)[:, None]
    gain = np.where(good, scores, -10.0)
    rows, columns = linear_sum_assignment(gain, maximize=True)
    return [(int(r), int(c)) for r, c in zip(rows, columns, strict=True) if good[r, c]]
