"""One record per track: its evidence, its identity, and the crops that it still needs.

The identifier keeps the records; crop selection reads them. Both run on the thread that drives the pipeline.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from edge_agent.core.config import IdentifySettings
    from edge_agent.core.structures import Decision, TrackObservation, TrackUpdate
    from edge_agent.identify.elsewhere import Question, Reply
    from edge_agent.identify.near import Search
    from edge_agent.identify.site import Threshold

TrackKey = tuple[str, int]  # camera and track number
REVIEW_CROPS = 10
"""Further good crops after which the decision on a track is reviewed."""
MOST_BETWEEN = 30
"""Most good crops after which a decided track that is like nobody else is compared again with all others."""
CLEAR_LEAD = 0.05
"""Lead in cosine that makes one fit clearly better than another. A decision with less is narrow."""
REMEMBERED_TRACKS = 5000
"""Ended tracks whose decisions can still be corrected."""
_MOST_CHANGED = 10_000
"""Longest list of `TrackTable.changed`."""
_ALIKE_S = 0.125
"""Seconds in which two crops of a track become independent: until then they show the same pose and light. The
means of N crops of three networks agree with it over intervals of 0.1 to 1 s (decision 056)."""
_USUAL_S = 0.1
"""Interval from the crop before at which a crop counts 1."""

SURE_HEIGHT = 48
"""Pixels from which on a crop is evidence on every camera."""
_SMALL_SHARE = 0.6
"""Smaller crops are evidence from this share of the camera's mean height on: where all people are small, they
have to do; elsewhere the same person comes nearer, and what stays small is often no person."""
_HEIGHTS = 2000
"""Crops over which the mean height of a camera is taken."""


class Evidence:
    """Pool of the `limit` most recent good crops of one track.

    Recent rather than best, so that a track that slips from one person to another shows it.

    `count` is what all crops so far are worth, see `worth`.
    """

    __slots__ = ("_added", "_centroid", "_limit", "_times", "_vectors", "_weights", "count")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._vectors: NDArray[np.float32] | None = None  # `(limit, D)`, the oldest overwritten first
        self._weights = np.zeros(limit, np.float32)
        self._times = np.zeros(limit)
        self._centroid: NDArray[np.float32] | None = None
        self._added = 0
        self.count = 0.0

    def add(
        self, vector: NDArray[np.float32], quality: float, gap_s: float = _USUAL_S, time: float = 0.0
    ) -> float:
        """Add one crop: a `(D,)` unit vector and its quality, above 0, `gap_s` after the one before.

        Returns what it counts.
        """
        if self._vectors is None:
            self._vectors = np.zeros((self._limit, len(vector)), np.float32)
        place = self._added % self._limit
        self._vectors[place] = vector
        self._weights[place] = quality
        self._times[place] = time
        self._centroid = None
        counted = worth(gap_s) if self._added else 1.0
        self.count += counted
        self._added += 1
        return counted

    @property
    def pooled(self) -> int:
        """Number of crops in the pool."""
        return min(self._added, self._limit)

    @property
    def mean_worth(self) -> float:
        """What one of its crops counts on average; 1 when there is none."""
        return max(self.count / self._added, 0.1) if self._added else 1.0

    @property
    def quality(self) -> float:
        """Mean quality of the pool, 0..1; 0 when empty."""
        return float(self._weights.sum()) / self.pooled if self._added else 0.0

    def centroid(self) -> NDArray[np.float32]:
        """Return the quality-weighted mean of the pool, a `(D,)` float32 unit vector.

        Raises:
            ValueError: the pool is empty.
        """
        if self._centroid is None:
            if self._vectors is None:
                raise ValueError("a track without a good crop has no centroid")
            mean = self._weights @ self._vectors
            self._centroid = mean / np.float32(max(float(mean @ mean) ** 0.5, 1e-6))
        return self._centroid

    def crops(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]:
        """Return the pool by age: `(N, D)` vectors, `(N,)` qualities and `(N,)` times; closed: no crops."""
        if self._vectors is None:
            return np.zeros((0, 0), np.float32), self._weights[:0], self._times[:0]
        order = np.arange(self._added - self.pooled, self._added) % self._limit
        return self._vectors[order], self._weights[order], self._times[order]

    def split(self, since: float) -> tuple[Evidence, Evidence]:
        """Return the evidence of the crops before a time and from it on; what they are worth is divided."""
        before, after = Evidence(self._limit), Evidence(self._limit)
        for vector, quality, time in zip(*self.crops(), strict=True):
            (after if time >= since else before).add(vector, float(quality), time=float(time))
        after.count = after.pooled * self.mean_worth
        before.count = self.count - after.count
        return before, after

    def close(self) -> None:
        """Keep only the centroid."""
        if self._vectors is not None:
            self.centroid()
            self._vectors = None


def worth(gap_s: float) -> float:
    """Return how much a crop counts, `gap_s` seconds after the crop of its track before it: 0 to 2.6.

    Crops of a slow camera differ more, so fewer of them make the mean as sure. Of samples whose correlation
    falls as exp(-t / T), each further one adds tanh(gap / 2T) independent ones.
    """
    # Rounded, since intervals are differences of large numbers, and six crops shall reach 6.
    return round(math.tanh(gap_s / (2 * _ALIKE_S)) / _USUAL_WORTH, 2)


_USUAL_WORTH = math.tanh(_USUAL_S / (2 * _ALIKE_S))


@dataclass(slots=True, eq=False)
class Track:
    """State of one track.

    Attributes:
        origin: names the track in the gallery, unique over all runs.
        size: `(width, height)` of the frame in pixels.
        crop_time: of the latest crop in the evidence.
        sure: count of those crops of the evidence that surely show one whole person.
        embedded_at: time of its latest embedding, Unix seconds.
        requested_at: when crop selection last chose it; the embedding may be on its way.
        number: its identity, None while unknown.
        founder: whether that identity was enrolled from this track.
        decision: the latest one, departures aside.
        decided_at, stored_at: evidence count at the latest attempt to decide, and at the latest exemplar.
        compare_at: evidence count from which a review compares it with other identities.
        review_until: evidence count up to which a narrow decision needs further crops soon.
        score, runner_up: of the best and the second-best identity at the latest comparison.
        search: the latest gallery search for it.
        likeness: how much more it is like other identities than expected, by that search.
        threshold: that of the latest comparison.
        question, reply: to others before it is enrolled, while it has no identity; None: none yet.
        former: the parts that were split from it by age, and the time at which each ended.
    """

    key: TrackKey
    origin: str
    evidence: Evidence
    first: TrackObservation
    last: TrackObservation
    size: tuple[int, int]
    crop_time: float = -math.inf
    sure: float = 0.0
    embedded_at: float = -math.inf
    requested_at: float = -math.inf
    number: int | None = None
    founder: bool = False
    decision: Decision | None = None
    decided_at: float = 0.0
    stored_at: float = 0.0
    compare_at: float = 0.0
    review_until: float = 0.0
    ended: bool = False
    score: float | None = None
    runner_up: float | None = None
    search: Search | None = None
    likeness: float | None = None
    threshold: Threshold | None = None
    question: Question | None = None
    reply: Reply | None = None
    former: list[tuple[float, Track]] = field(default_factory=list)

    @property
    def is_part(self) -> bool:
        """Whether it is a part that was split from a track: it has no events."""
        return self.key[1] < 0

    @property
    def person(self) -> str:
        """Key of its person in the site's scores: the identity where known, else the track."""
        return self.origin if self.number is None else f"#{self.number}"

    def pooled(self) -> NDArray[np.float32]:
        """Return the centroid of the evidence, `(D,)` of length 1."""
        return self.evidence.centroid()

    def number_at(self, time: float) -> int | None:
        """Return the identity that it had at a time, as known now."""
        return next((part.number for until, part in self.former if time < until), self.number)

    def decide(self, decision: Decision) -> None:
        """Keep its latest decision; after a narrow one it needs further crops soon."""
        self.decision = decision
        self.review_until = self.evidence.count + REVIEW_CROPS if _is_narrow(decision) else 0.0


def _is_narrow(decision: Decision) -> bool:
    """Whether a little more evidence might have led to another decision."""
    if decision.score is None:
        return False
    if decision.threshold is not None and abs(decision.score - decision.threshold) < CLEAR_LEAD:
        return True
    return decision.runner_up is not None and decision.score - decision.runner_up < CLEAR_LEAD


@dataclass(slots=True)
class _Heights:
    """Running mean of the heights of a camera's crops, pixels."""

    mean: float = 0.0
    count: int = 0

    def admit(self, height: float) -> bool:
        """Learn from a crop; return whether it is large enough for evidence."""
        self.count = min(self.count + 1, _HEIGHTS)
        self.mean += (height - self.mean) / self.count
        return height >= SURE_HEIGHT or height >= _SMALL_SHARE * self.mean


class TrackTable:
    """The tracks of all cameras, and which of them hold an identity."""

    def __init__(self, session: str, settings: IdentifySettings) -> None:
        self.settings = settings
        self._session = session
        self._tracks: dict[TrackKey, Track] = {}
        self._present: dict[str, dict[int, Track]] = {}
        self._holders: dict[int, set[TrackKey]] = {}
        self._numbers: dict[TrackKey, int] = {}
        """Identities of the tracks that have one."""
        self.changed: list[tuple[TrackKey, int | None]] = []
        """Tracks that got an identity, and that identity; with None, tracks that lost one, or got another.
        `Shared.taken` reads the list and clears it."""
        self.changes = 0
        """Number of times that it was cleared unread, since it was too long."""
        self._parts = 0
        self._heights: dict[str, _Heights] = defaultdict(_Heights)

    def observe(self, update: TrackUpdate) -> list[Track]:
        """Update the tracks of one frame; return those that were seen, in order."""
        present, size = self._present.setdefault(update.camera, {}), update.size
        seen: list[Track] = []
        for one in update.seen:
            if (track := present.get(one.track_id)) is None:
                track = present[one.track_id] = self._appear(one, size)
            track.last, track.size = one, size
            if one.vector is not None:
                self._pool(track, one, one.vector)
            seen.append(track)
        for number in update.ended:
            present.pop(number, None)
        return seen

    def _appear(self, seen: TrackObservation, size: tuple[int, int]) -> Track:
        """Return the record of a track that appears; an upstream tracker may report an ended one again."""
        key = (seen.camera, seen.track_id)
        if (track := self._tracks.get(key)) is None:
            origin = f"{self._session}:{seen.camera}:{seen.track_id}"
            track = Track(key, origin, Evidence(self.settings.pool_crops), seen, seen, size)
            self._tracks[key] = track
        return track

    def _pool(self, track: Track, seen: TrackObservation, vector: NDArray[np.float32]) -> None:
        """Put an embedding into the evidence of its track, if it is good enough and not too soon."""
        time, box, quality = seen.time, seen.box, seen.quality
        track.embedded_at = time
        gap = abs(time - track.crop_time)
        large = self._heights[seen.camera].admit(float(box[3] - box[1]))
        if large and quality > 0 and gap >= self.settings.crop_interval_s:
            counted = track.evidence.add(vector, quality, gap, time)
            track.crop_time = time
            if seen.sure:
                track.sure += counted

    def get(self, key: TrackKey) -> Track | None:
        """Return a track, present or ended; None when it is unknown."""
        return self._tracks.get(key)

    def present(self, camera: str) -> Collection[Track]:
        """Return the tracks of a camera that have not ended."""
        return self._present.get(camera, {}).values()

    def find(self, camera: str, number: int) -> Track | None:
        """Return a track of a camera that has not ended."""
        return self._present.get(camera, {}).get(number)

    def crops_wanted(self, tracks: Iterable[Track]) -> list[float]:
        """Return the good crops that each track lacks to be decided, or looked at again; 0 or less: none."""
        enrol = self.settings.enrol_crops
        return [
            (enrol if track.number is None else track.review_until) - track.evidence.count for track in tracks
        ]

    @property
    def identified(self) -> int:
        """Number of tracks with an identity that have not ended; any thread may read it."""
        return sum(not track.ended and track.number is not None for track in list(self._tracks.values()))

    @property
    def identities(self) -> list[int]:
        """Numbers of the identities that tracks hold or held, in order."""
        return sorted(self._holders)

    def holders(self, number: int) -> set[TrackKey]:
        """Return the tracks that hold an identity, ended ones too."""
        return self._holders.get(number, set())

    def records(self, keys: Iterable[TrackKey]) -> list[Track]:
        """Return those of the tracks that are still remembered, by key: the order of a set differs by run."""
        return [self._tracks[key] for key in sorted(keys) if key in self._tracks]

    def numbers(self, keys: Iterable[TrackKey]) -> set[int]:
        """Return the identities of tracks, where they are known."""
        found = set(map(self._numbers.get, keys))
        found.discard(None)
        return cast("set[int]", found)

    def hold(self, track: Track, number: int, *, founder: bool) -> None:
        """Give an identity to a track."""
        self._set(track, number, founder=founder)
        track.question = track.reply = None
        track.stored_at = track.evidence.count if founder else 0.0
        self._holders.setdefault(number, set()).add(track.key)

    def release(self, track: Track) -> None:
        """Take the identity from a track."""
        if track.number is not None:
            self.holders(track.number).discard(track.key)
            self._set(track, None)

    def _set(self, track: Track, number: int | None, *, founder: bool = False) -> None:
        before = self._numbers.pop(track.key, None)
        track.number, track.founder, track.compare_at = number, founder, 0.0
        if number is not None:
            self._numbers[track.key] = number
        if len(self.changed) == _MOST_CHANGED:
            self.changed.clear()
            self.changes += 1
        self.changed.append((track.key, number if before is None else None))

    def split(self, track: Track, since: float) -> Track:
        """Make a record of a track before a time, which has its identity; the track goes on without one.

        What is remembered of its rivals is stale, see `Covisibility.split`.
        """
        self._parts += 1
        count, number = track.evidence.count, track.number
        key = (track.key[0], -self._parts)
        before, track.evidence = track.evidence.split(since)
        last = replace(track.last, time=since)
        part = replace(track, key=key, evidence=before, last=last, ended=True, search=None, former=[])
        part.sure, track.sure = (track.sure * one.evidence.count / count for one in (part, track))
        self._tracks[key] = part
        self.release(track)
        if number is not None:
            self._holders.setdefault(number, set()).add(key)
            self._numbers[key] = number
        before.close()
        track.former.append((since, part))
        track.decided_at, track.review_until = track.evidence.count, 0.0
        track.search = track.likeness = None
        return part

    def drop(self, number: int, tracks: Sequence[Track]) -> None:
        """Drop an identity that is gone from the gallery; `tracks` lose it."""
        self._holders.pop(number, None)
        for track in tracks:
            if track.number == number:
                self._set(track, None)

    def merge(self, keep: int, absorb: int) -> list[Track]:
        """Move all tracks of an identity to another; return them in the order of their keys."""
        moved = [self._tracks[key] for key in sorted(self._holders.pop(absorb, set()))]
        for track in moved:
            self._set(track, keep)
            self._holders.setdefault(keep, set()).add(track.key)
        return moved

    def forget_old(self) -> tuple[list[TrackKey], list[int]]:
        """Drop the oldest ended tracks above the limit; return them, and identities without a track.

        What is remembered of their rivals is stale, see `Covisibility.forget`.
        """
        surplus = len(self._tracks) - REMEMBERED_TRACKS
        if surplus <= 0:
            return [], []
        gone = list(islice((key for key, track in self._tracks.items() if track.ended), surplus))
        unheld = []
        for key in gone:
            number = self._tracks.pop(key).number
            self._present.get(key[0], {}).pop(key[1], None)  # where one that had ended was reported again
            self._numbers.pop(key, None)
            if number is not None:
                self.holders(number).discard(key)
                if not self._holders.get(number):
                    self._holders.pop(number, None)
                    unheld.append(number)
        return gone, unheld
