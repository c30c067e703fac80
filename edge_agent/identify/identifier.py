"""The open-set decision: known, new, or wait.

For every track the good crops are pooled. Its centroid is held against the best exemplar of every identity:

- *matched* when an identity reaches the threshold with a margin over the next, and nobody who was seen
  together with this track has that identity. All undecided tracks of a camera are assigned jointly.
- *enrolled* when none does and the person has been seen well often enough.
- otherwise it waits for evidence.

What is decided can be overturned: a later track that fits an identity clearly better than the one who was
given it takes it back (contest), a track that turns out to fit somebody else is moved (switch), and two
identities that turn out to be one person are joined (fuse). Each such change is a `corrected` decision that
names the one it overturns.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import structlog
from numpy.typing import NDArray

from edge_agent.core.errors import InputError
from edge_agent.core.structures import Decision, DecisionKind, TrackObservation, TrackUpdate
from edge_agent.identify.evidence import Evidence
from edge_agent.identify.links import Covisibility, TrackKey
from edge_agent.identify.near import NEAREST, Lookalikes, Near, Neighbours, Search, Searchable, best_pairs
from edge_agent.identify.site import SiteScores, Threshold

if TYPE_CHECKING:
    from edge_agent.core.config import IdentifySettings

__all__ = ["Identifier", "KnownIdentities", "KnownIdentity"]

Vector = NDArray[np.float32]

_log = structlog.get_logger(__name__)

REVIEW_CROPS = 10
"""New good crops after which a decided track is looked at again."""

CONTEST = 0.05
"""Lead in cosine by which a better fit takes an identity from the one who was given it."""

REMEMBERED_TRACKS = 5000
"""Ended tracks whose decisions may still be corrected."""

SITE_FACT = "site_scores"
"""Name under which the site's scores are kept in the gallery file."""


class KnownIdentity(Protocol):
    """What the decision needs to know of an identity."""

    @property
    def number(self) -> int:
        """Local number."""

    @property
    def id(self) -> str:
        """Opaque id."""

    @property
    def name(self) -> str | None:
        """What the operator calls it."""

    @property
    def kind(self) -> str:
        """`auto` or `enrolled`."""


class FactStore(Protocol):
    """JSON values by key, stored with the identities."""

    def get(self, key: str) -> Any:  # noqa: ANN401  any JSON value
        """Return a value; None when there is none."""

    def set(self, key: str, value: Any) -> None:  # noqa: ANN401  any JSON value
        """Store a value."""


class KnownIdentities(Searchable, Protocol):
    """The gallery as the decision uses it; `edge_agent.gallery.Gallery` says what each method does."""

    def enrol(
        self, vectors: Vector, qualities: Vector, *, origin: str, camera: str, time: float
    ) -> KnownIdentity:
        """Make a new identity."""

    def add_exemplars(
        self, number: int, vectors: Vector, qualities: Vector, *, origin: str, camera: str, time: float
    ) -> int:
        """Offer exemplars to an identity."""

    def remove_origin(self, number: int, origin: str) -> int:
        """Take back what one track contributed."""

    def exemplars(self, number: int) -> tuple[Vector, Vector, tuple[str, ...]]:
        """Vectors, qualities and origins."""

    def exclusive(self) -> AbstractContextManager[None]:
        """Hold the lock for many calls."""

    def present(self, numbers: set[int]) -> set[int]:
        """Those that are still there."""

    def enrolled(self, numbers: list[int]) -> set[int]:
        """Those of them whom somebody entered on purpose."""

    def touch(self, number: int, time: float) -> None:
        """The person was seen."""

    def merge(self, keep: int, absorb: int) -> KnownIdentity:
        """Make two identities one."""

    def rename(self, number: int, name: str | None) -> KnownIdentity:
        """Name a person."""

    def get(self, key: int | str) -> KnownIdentity:
        """One identity; raises InputError when it is not there."""

    @property
    def facts(self) -> FactStore:
        """Values stored with the identities."""


@dataclass(slots=True)
class _Track:
    """What is known of one track."""

    key: TrackKey
    evidence: Evidence
    first: TrackObservation
    last: TrackObservation
    size: tuple[int, int]
    crop_time: float = -math.inf
    """When the last crop of the evidence was taken."""
    number: int | None = None
    founder: bool = False
    """Whether `number` was enrolled from this very track."""
    decision: Decision | None = None
    looked_at: int = 0
    """Evidence count at the last look."""
    stored_at: int = 0
    """Evidence count when its exemplar was last stored."""
    ended: bool = False
    score: float | None = None
    runner_up: float | None = None
    search: Search | None = None
    """The latest search for this person."""

    def pooled(self) -> Vector:
        """The centroid of the evidence."""
        return self.evidence.centroid()


@dataclass(slots=True)
class _Fit:
    """How tracks fit identities: numbers `(I,)`, scores `(T, I)`, -inf where a match is impossible."""

    numbers: NDArray[np.int64]
    scores: Vector

    def best(self, row: int) -> tuple[int | None, float, float | None]:
        """Best number, its score, and the runner-up's score."""
        scores = self.scores[row]
        order = _best_two(scores)
        if not order:
            return None, -1.0, None
        second = float(scores[order[1]]) if len(order) > 1 else None
        return int(self.numbers[order[0]]), float(scores[order[0]]), second


@dataclass(slots=True)
class Identifier:
    """Decides for all cameras of one agent. Not for use from two threads.

    Args:
        gallery: the identities, open.
        session: unique for this run; part of the origin of every exemplar.
        settings: limits of the decision.
        calibrated: threshold of a calibration; the site's own can only raise it.
    """

    gallery: KnownIdentities
    session: str
    settings: IdentifySettings
    calibrated: float | None = None
    _tracks: dict[TrackKey, _Track] = field(default_factory=dict)
    _of_identity: dict[int, set[TrackKey]] = field(default_factory=dict)
    _neighbours: Neighbours = field(init=False)
    _lookalikes: Lookalikes = field(init=False)
    _links: Covisibility = field(init=False)
    _site: SiteScores = field(init=False)
    _in_force: Threshold = field(init=False)
    """What the decisions that are being made are held against: joining identities may change the site's."""
    _was_ready: bool = False

    def __post_init__(self) -> None:
        self._neighbours = Neighbours(self.gallery)
        self._lookalikes = Lookalikes(self.gallery, self._neighbours)
        self._links = Covisibility(self.settings.covisible_frames)
        self._site = SiteScores(self.settings.target_fmr)
        stored = self.gallery.facts.get(SITE_FACT)
        if stored:
            self._site.load(stored)
        self._in_force = self.threshold()

    # -- what the pipeline calls ---------------------------------------------------------------

    def update(self, update: TrackUpdate) -> list[Decision]:
        """Take in one frame of one camera; decisions in the order they were made."""
        seen = [self._absorb(observation, update.size) for observation in update.seen]
        self._links.observe(update.seen)
        decisions: list[Decision] = []
        due = [track for track in seen if self._due(track)]
        try:
            if due or update.ended:
                with self.gallery.exclusive():
                    self._decide_frame(seen, due, update, decisions)
        except InputError as vanished:
            # Another process erased an identity between two calls; the next frame decides anew.
            _log.warning("identity_vanished", error=str(vanished))
        return decisions

    def _decide_frame(
        self, seen: Sequence[_Track], due: Sequence[_Track], update: TrackUpdate, decisions: list[Decision]
    ) -> None:
        if due:
            self._drop_vanished(seen)
            self._learn_site(seen)
        self._in_force = self.threshold()
        if due:
            decisions += self._decide(due)
        for track_id in update.ended:
            decisions += self._end((update.camera, track_id))

    def number(self, camera: str, track_id: int) -> int | None:
        """The number of the identity of a track as known now, also after the track ended."""
        track = self._tracks.get((camera, track_id))
        return track.number if track is not None else None

    def threshold(self) -> Threshold:
        """The threshold in force and its rule."""
        if self.settings.threshold is not None:
            return Threshold(self.settings.threshold, "configured")
        site = self._site.threshold()
        if self.calibrated is not None and (site.value is None or site.value <= self.calibrated):
            return Threshold(self.calibrated, "calibrated")
        return site  # people of this place are more alike than those of the calibration's data set

    def reload(self, settings: IdentifySettings) -> None:
        """Replace the settings of a running identifier."""
        self.settings = settings
        self._site.aim(settings.target_fmr)
        self._links.needed = settings.covisible_frames

    def save(self) -> None:
        """Keep what was learnt of the site for the next run."""
        self.gallery.facts.set(SITE_FACT, self._site.to_json())

    def enrol_track(self, camera: str, track_id: int, name: str | None) -> int:
        """Put the person of a track into the gallery at an operator's word; returns the number.

        A track with an identity keeps it, and gets the name.

        Raises:
            InputError: there is no such track, it showed no good crop, or the name is taken.
        """
        track = self._tracks.get((camera, track_id))
        if track is None or track.ended:
            raise InputError(f"camera {camera} shows no track {track_id} now")
        if track.number is None:
            if not track.evidence.pooled:
                raise InputError(f"track {track_id} of camera {camera} has shown no good crop yet")
            self._in_force = self.threshold()
            self._enrol(track, DecisionKind.ENROLLED, "operator")
        assert track.number is not None  # it was just enrolled where it was not known
        if name is not None:
            self.gallery.rename(track.number, name)
        return track.number

    def merged(self, keep: int, absorb: int) -> None:
        """An operator made two identities one: tracks follow."""
        self._site.rename(f"#{absorb}", f"#{keep}")
        for key in self._of_identity.pop(absorb, set()):
            self._tracks[key].number = keep
            self._tracks[key].founder = False
            self._of_identity.setdefault(keep, set()).add(key)

    def recalibrate(self) -> None:
        """Forget the site's scores; the threshold starts with a warm-up again."""
        self._site = SiteScores(self.settings.target_fmr)
        self._was_ready = False
        self.save()

    @property
    def present(self) -> int:
        """Tracks with an identity that have not ended."""
        return sum(not track.ended and track.number is not None for track in list(self._tracks.values()))

    @property
    def site(self) -> SiteScores:
        """The site's impostor scores."""
        return self._site

    # -- evidence ------------------------------------------------------------------------------

    def _absorb(self, seen: TrackObservation, size: tuple[int, int]) -> _Track:
        key = (seen.camera, seen.track_id)
        track = self._tracks.get(key)
        if track is None:
            track = _Track(key, Evidence(self.settings.pool_crops), seen, seen, size)
            self._tracks[key] = track
        track.last, track.size = seen, size
        fresh = seen.time - track.crop_time >= self.settings.crop_interval_s
        if seen.vector is not None and seen.quality > 0 and fresh:
            track.evidence.add(seen.vector, seen.quality)
            track.crop_time = seen.time
        return track

    def _drop_vanished(self, tracks: Sequence[_Track]) -> None:
        """Identities may be erased, merged or evicted from outside: their tracks are undecided again."""
        held = {track.number for track in tracks if track.number is not None}
        gone = held - self.gallery.present(held)
        for track in tracks:
            if track.number in gone:
                self._of_identity.pop(track.number, None)
                track.number, track.founder = None, False
        for number in gone:
            self._lookalikes.forget(number)

    def _due(self, track: _Track) -> bool:
        fresh = track.evidence.count - track.looked_at
        if track.evidence.count < self.settings.decide_crops or fresh == 0:
            return False
        return track.number is None or fresh >= REVIEW_CROPS

    def _learn_site(self, seen: Sequence[_Track]) -> None:
        """Pairs of people on one picture are impostors of each other."""
        known = [track for track in seen if track.evidence.count >= self.settings.decide_crops]
        if len(known) < 2:
            return
        pooled = np.stack([track.pooled() for track in known])
        cosines = (pooled @ pooled.T).tolist()
        people = [self._person(track) for track in known]
        for i, first in enumerate(known):
            rivals = self._links.rivals(first.key)
            for j in range(i + 1, len(known)):
                if known[j].key in rivals:
                    self._site.learn(people[i], people[j], cosines[i][j])

    def _person(self, track: _Track) -> str:
        """Key of a person in the site's scores: the identity where known, else the track."""
        if track.number is not None:
            return f"#{track.number}"
        return f"{self.session}:{track.key[0]}:{track.key[1]}"

    # -- decisions -----------------------------------------------------------------------------

    def _decide(self, due: Sequence[_Track]) -> list[Decision]:
        threshold = self._in_force
        decisions: list[Decision] = []
        if threshold.value is not None:
            undecided = [track for track in due if track.number is None]
            decisions += self._match(undecided, threshold.value)
            decisions += self._contest([t for t in undecided if t.number is None], threshold.value)
            for track in due:
                if track.number is not None and track not in undecided:
                    decisions += self._review(track, threshold.value)
        for track in due:
            track.looked_at = track.evidence.count
            if track.number is None:
                decisions += self._enrol_unknown(track, threshold)
            else:
                self._store(track)
        ready = threshold.value is not None
        if ready and not self._was_ready:
            self.save()  # a restart must not begin with a warm-up again
            decisions += self._fuse(sorted(self._of_identity))
        self._was_ready = ready
        return decisions

    def _match(self, tracks: Sequence[_Track], threshold: float) -> list[Decision]:
        """Assign undecided tracks of one camera and free identities jointly."""
        if not tracks:
            return []
        fit = self._fit(tracks, threshold)
        sure = []
        for row, track in enumerate(tracks):
            number, score, track.runner_up = fit.best(row)
            track.score = score if number is not None else None
            lead = score - (track.runner_up if track.runner_up is not None else -1.0)
            if (
                number is not None
                and score >= threshold
                and (lead >= self.settings.margin or track.evidence.count >= self.settings.pool_crops)
            ):
                sure.append(row)
        decisions = []
        for row, column in _assign(fit.scores[sure], threshold):
            track = tracks[sure[row]]
            track.score = float(fit.scores[sure[row], column])
            decisions.append(self._settle(track, int(fit.numbers[column]), DecisionKind.MATCHED, "re-entry"))
        return decisions

    def _contest(self, tracks: Sequence[_Track], threshold: float) -> list[Decision]:
        """Give an identity to a track that fits it clearly better than the one who holds it."""
        decisions: list[Decision] = []
        for track in tracks:
            near = self._near([track], threshold)[0]
            for column in _best_two(near.scores):
                number, score = int(near.numbers[column]), float(near.scores[column])
                if score < threshold:
                    break
                losers = self._losers(track, number, score)
                if losers:
                    decisions += self._take_back(track, number, score, losers)
                    break
        return decisions

    def _losers(self, track: _Track, number: int, score: float) -> list[_Track]:
        """Tracks that must give `number` up to `track`; empty when it may not have it."""
        holders = [self._tracks[k] for k in self._rival_holders(track.key, number) if k in self._tracks]
        for holder in holders:
            own = self._fit_without_own(holder, number)
            if own is None or score < own + CONTEST:
                return []
        return holders

    def _take_back(
        self, track: _Track, number: int, score: float, losers: Sequence[_Track]
    ) -> list[Decision]:
        for loser in losers:
            self._release(loser)
        track.score = score
        decisions = [self._settle(track, number, DecisionKind.MATCHED, "contested")]
        threshold = self._in_force
        for loser in losers:
            decisions += self._reassign(loser, threshold, "contested")
        return decisions

    def _reassign(self, track: _Track, threshold: Threshold, reason: str) -> list[Decision]:
        """Find another identity for a track that lost its own, or make one."""
        if threshold.value is not None:
            number, score, track.runner_up = self._fit([track], threshold.value).best(0)
            track.score = score if number is not None else None
            if number is not None and score >= threshold.value:
                return [self._settle(track, number, DecisionKind.CORRECTED, reason)]
        if self.settings.enrolment == "auto":
            return [self._enrol(track, DecisionKind.CORRECTED, reason)]
        return [self._decision(track, DecisionKind.CORRECTED, reason)]

    def _review(self, track: _Track, threshold: float) -> list[Decision]:
        """Look again at a decided track with new evidence: fuse what is one, move what is wrong."""
        if track.number is None or track.evidence.count < self.settings.fuse_crops:
            return []
        if track.founder:
            return self._join_founder(track, track.number, threshold) or self._fuse([track.number])
        number, score, second = self._fit([track], threshold).best(0)
        held = self._fit_without_own(track, track.number)
        if (
            number is None
            or number == track.number
            or held is None
            or score < max(threshold, held + CONTEST)
            or (second is not None and score < second + self.settings.margin)
        ):
            track.score = held if held is not None else track.score
            return []
        self._release(track)
        track.score, track.runner_up = score, held
        return [self._settle(track, number, DecisionKind.CORRECTED, "switched")]

    def _join_founder(self, track: _Track, own: int, threshold: float) -> list[Decision]:
        """The person who was enrolled as new turns out to be known: what is pooled now says so."""
        fit = self._fit([track], threshold)
        fit.scores[0, np.isin(fit.numbers, [own, *self._apart(own)])] = -np.inf
        number, score, second = fit.best(0)
        if (
            number is None
            or score < threshold
            or (second is not None and score < second + self.settings.margin)
        ):
            return []
        track.score, track.runner_up = score, second
        return self._join(min(own, number), max(own, number))

    def _enrol_unknown(self, track: _Track, threshold: Threshold) -> list[Decision]:
        if track.evidence.count < self.settings.enrol_crops:
            return []
        could_match = (
            threshold.value is not None and track.score is not None and track.score >= threshold.value
        )
        if could_match and track.evidence.count < self.settings.pool_crops:
            return []  # ambiguous: more evidence may tell the two identities apart
        if self.settings.enrolment == "auto":
            self._measure(track)
            return [self._enrol(track, DecisionKind.ENROLLED, "new")]
        if self.settings.publish_unknown and track.decision is None:
            self._measure(track)
            return [self._decision(track, DecisionKind.UNKNOWN, "not on the watchlist")]
        return []

    def _measure(self, track: _Track) -> None:
        """The best and the second score, also of those who are far from the threshold."""
        if self._in_force.value is None:
            return
        near, count = self._near([track], self._in_force.value - self.settings.margin)[0], NEAREST
        while True:
            scores = near.scores.copy()
            scores[self._forbidden(track, near.numbers)] = -np.inf
            best = [float(scores[column]) for column in _best_two(scores)]
            if (len(best) == 2 and best[1] >= near.reach) or near.reach == -math.inf:
                track.score, track.runner_up = (*best, None, None)[:2]
                return
            near, count = self._neighbours.nearest(track.pooled(), count), 4 * count

    # -- identities ----------------------------------------------------------------------------

    def _enrol(self, track: _Track, kind: DecisionKind, reason: str) -> Decision:
        identity = self.gallery.enrol(
            track.pooled()[None],
            np.array([track.evidence.quality], np.float32),
            origin=self._origin(track),
            camera=track.key[0],
            time=track.last.time,
        )
        before = self._person(track)
        self._hold(track, identity.number, founder=True)
        self._site.rename(before, self._person(track))
        return self._decision(track, kind, reason)

    def _settle(self, track: _Track, number: int, kind: DecisionKind, reason: str) -> Decision:
        before = self._person(track)
        self._hold(track, number, founder=False)
        self._site.rename(before, self._person(track))
        self.gallery.touch(number, track.last.time)
        self._store(track)
        return self._decision(track, kind, reason)

    def _hold(self, track: _Track, number: int, *, founder: bool) -> None:
        track.number, track.founder = number, founder
        track.stored_at = track.evidence.count if founder else 0
        self._of_identity.setdefault(number, set()).add(track.key)

    def _release(self, track: _Track) -> None:
        """Take the identity from a track, with everything that the track put into it."""
        if track.number is None:
            return
        self.gallery.remove_origin(track.number, self._origin(track))
        self._of_identity.get(track.number, set()).discard(track.key)
        track.number, track.founder = None, False

    def _store(self, track: _Track) -> None:
        """Keep the track's centroid as an exemplar: at first, with a full pool, and after each new pool."""
        if track.number is None:
            return
        count = track.evidence.count
        first_pool = track.stored_at < self.settings.pool_crops <= count
        if track.stored_at and not first_pool and count - track.stored_at < self.settings.pool_crops:
            return
        if first_pool and track.stored_at:
            self._replace_exemplar(track)
        self.gallery.add_exemplars(
            track.number,
            track.pooled()[None],
            np.array([track.evidence.quality], np.float32),
            origin=self._origin(track),
            camera=track.key[0],
            time=track.last.time,
        )
        track.stored_at = count

    def _replace_exemplar(self, track: _Track) -> None:
        """The young track's exemplar gives way to the one of a full pool, if others remain."""
        if track.number is not None and not track.founder:
            self.gallery.remove_origin(track.number, self._origin(track))

    def _fuse(self, numbers: Iterable[int]) -> list[Decision]:
        """Join identities that turn out to be one person; the older number stays."""
        threshold = self._in_force.value
        decisions: list[Decision] = []
        if threshold is None:
            return decisions
        for number in numbers:
            other = self._twin(number, threshold)
            if other is not None:
                decisions += self._join(min(number, other), max(number, other))
        return decisions

    def _twin(self, number: int, threshold: float) -> int | None:
        """The identity that is the same person as `number`, if one surely is."""
        if not self._seen_enough(number):
            return None
        numbers, mean = self._likeness(number, threshold - self.settings.margin)
        order = _best_two(mean)
        if not order or mean[order[0]] < threshold:
            return None
        other = int(numbers[order[0]])
        if len(order) > 1 and mean[order[0]] - mean[order[1]] < self.settings.margin:
            return None
        identity, twin = self._known(number), self._known(other)
        if identity is None or twin is None or (identity.kind != "auto" and twin.kind != "auto"):
            return None  # two people whom somebody enrolled by hand are never joined by a guess
        return other

    def _likeness(self, number: int, floor: float) -> tuple[NDArray[np.int64], Vector]:
        """How much other identities are like this one: mean best-exemplar score, both ways.

        One way alone would favour identities with many exemplars. Those that were seen together with it are
        left out, and those whose likeness is surely below `floor`: a mean of best pairs is no higher than the
        best of all pairs.
        """
        others = self._lookalikes.of(number, floor, self._hint(number))
        owners, theirs = self.gallery.vectors(others - self._apart(number))
        _, own = self.gallery.vectors([number])
        if not len(theirs) or not len(own):
            return owners[:0], theirs[:0, 0]
        products = theirs @ own.T
        numbers, forth = best_pairs(owners, products)
        back = products.max(axis=1)
        return numbers, np.array(
            [(forth[row].mean() + back[owners == one].mean()) / 2 for row, one in enumerate(numbers)],
            np.float32,
        )

    def _hint(self, number: int) -> Search | None:
        """A search for somebody like the newest exemplar of an identity."""
        searches = (self._tracks[key].search for key in self._of_identity.get(number, ()))
        return max(filter(None, searches), key=lambda search: search.mark, default=None)

    def _join(self, keep: int, absorb: int) -> list[Decision]:
        kept, absorbed = self._known(keep), self._known(absorb)
        if absorbed is not None and absorbed.kind != "auto" and kept is not None and kept.kind == "auto":
            keep, absorb = absorb, keep
        previous = self._known(absorb)
        self.gallery.merge(keep, absorb)
        self._lookalikes.forget(absorb)
        self._site.rename(f"#{absorb}", f"#{keep}")
        moved = sorted(self._of_identity.pop(absorb, set()))
        decisions = []
        for key in moved:
            track = self._tracks[key]
            track.number, track.founder = keep, False
            self._of_identity.setdefault(keep, set()).add(key)
            decision = self._decision(track, DecisionKind.CORRECTED, "fused")
            if previous is not None and decision.previous is None:
                decision = replace(decision, previous=previous.id)
            decisions.append(decision)
        return decisions

    def _seen_enough(self, number: int) -> bool:
        tracks = [self._tracks[key] for key in self._of_identity.get(number, ())]
        return sum(track.evidence.count for track in tracks) >= self.settings.fuse_crops

    # -- who may be whom -----------------------------------------------------------------------

    def _near(self, tracks: Sequence[_Track], floor: float) -> list[Near]:
        """Everybody who scores at least `floor` with each track, and some more, their own among them."""
        found = self._neighbours.near(
            [track.pooled() for track in tracks],
            floor,
            [track.search for track in tracks],
            [track.number for track in tracks],
        )
        for track, near in zip(tracks, found, strict=True):
            track.search = near.search
        return found

    def _fit(self, tracks: Sequence[_Track], threshold: float) -> _Fit:
        """Scores of tracks against identities that they may have: all that can matter to a decision."""
        found = self._near(tracks, threshold - self.settings.margin)
        numbers = np.unique(np.concatenate([near.numbers for near in found]))
        scores = np.full((len(tracks), len(numbers)), -np.inf, np.float32)
        for row, (track, near) in enumerate(zip(tracks, found, strict=True)):
            scores[row, np.searchsorted(numbers, near.numbers)] = near.scores
            scores[row, self._forbidden(track, numbers)] = -np.inf
        return _Fit(numbers, scores)

    def _known(self, number: int | None) -> KnownIdentity | None:
        """The identity, or None where somebody erased it meanwhile."""
        if number is None:
            return None
        try:
            return self.gallery.get(number)
        except InputError:
            return None

    def _forbidden(self, track: _Track, numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        """`(I,)`: identities that somebody else has who was seen together with this track."""
        taken = {
            rival.number
            for key in self._links.rivals(track.key)
            if (rival := self._tracks.get(key)) is not None and rival.number is not None
        }
        told = numbers.tolist()
        allowed = self.gallery.enrolled(told) if self.settings.enrolment == "watchlist" else told
        allowed = set(allowed) - taken
        return np.array([number not in allowed for number in told], np.bool_)

    def _rival_holders(self, key: TrackKey, number: int) -> set[TrackKey]:
        return self._links.rivals(key) & self._of_identity.get(number, set())

    def _apart(self, number: int) -> set[int]:
        """Identities that were ever seen together with this one."""
        rivals = {rival for key in self._of_identity.get(number, ()) for rival in self._links.rivals(key)}
        return {
            track.number
            for key in rivals
            if (track := self._tracks.get(key)) is not None and track.number is not None
        }

    def _fit_without_own(self, track: _Track, number: int) -> float | None:
        """Score of a track and its identity without what the track itself put there; None: nothing else."""
        vectors, _, origins = self.gallery.exemplars(number)
        own = self._origin(track)
        others = [row for row, origin in enumerate(origins) if origin != own]
        if not others:
            return None
        return float((vectors[others] @ track.pooled()).max())

    def _origin(self, track: _Track) -> str:
        return f"{self.session}:{track.key[0]}:{track.key[1]}"

    # -- ends ----------------------------------------------------------------------------------

    def _end(self, key: TrackKey) -> list[Decision]:
        track = self._tracks.get(key)
        if track is None:
            return []
        track.ended = True
        track.evidence.close()
        self._forget_old()
        if track.number is not None:
            decisions = self._fuse([track.number])
            return [*decisions, self._decision(track, DecisionKind.DEPARTED, "left")]
        if self.settings.publish_unknown and track.decision is None:
            return [self._decision(track, DecisionKind.UNKNOWN, "seen too little")]
        return []

    def _forget_old(self) -> None:
        surplus = len(self._tracks) - REMEMBERED_TRACKS
        if surplus <= 0:
            return
        gone = [key for key, track in self._tracks.items() if track.ended][:surplus]
        for key in gone:
            number = self._tracks.pop(key).number
            if number is not None:
                held = self._of_identity.get(number, set())
                held.discard(key)
                if not held:
                    self._of_identity.pop(number, None)
                    self._lookalikes.forget(number)
        self._links.forget(gone)

    def _decision(self, track: _Track, kind: DecisionKind, reason: str) -> Decision:
        identity = self._known(track.number)
        threshold = self._in_force
        former = track.decision
        overturned = former if kind is DecisionKind.CORRECTED else None
        decision = Decision(
            id=str(uuid.uuid4()),
            kind=kind,
            camera=track.key[0],
            track_id=track.key[1],
            identity=identity.id if identity is not None else None,
            number=track.number,
            name=identity.name if identity is not None else None,
            score=track.score,
            runner_up=track.runner_up,
            threshold=threshold.value,
            rule=threshold.rule,
            evidence=track.evidence.pooled,
            quality=track.evidence.quality,
            box=track.last.box,
            size=track.size,
            frame=track.last.frame,
            time=track.last.time,
            first_seen=track.first.time,
            last_seen=track.last.time,
            corrects=overturned.id if overturned is not None else None,
            previous=overturned.identity if overturned is not None else None,
            reason=reason,
        )
        if kind is not DecisionKind.DEPARTED:
            track.decision = decision
        return decision


def _best_two(scores: Vector) -> list[int]:
    """Columns of the two highest scores `(I,)`, best first; fewer where fewer are finite."""
    found: list[int] = []
    left = scores.copy()
    for _ in range(min(2, len(left))):
        best = int(left.argmax())
        if left[best] == -np.inf:
            break
        found.append(best)
        left[best] = -np.inf
    return found


def _assign(scores: Vector, threshold: float) -> list[tuple[int, int]]:
    """Pairs (row, column) with the greatest sum of scores, each at least `threshold`."""
    from scipy.optimize import linear_sum_assignment

    if scores.size == 0:
        return []
    gain = np.where(scores >= threshold, scores, -10.0)
    rows, columns = linear_sum_assignment(gain, maximize=True)
    return [(int(r), int(c)) for r, c in zip(rows, columns, strict=True) if scores[r, c] >= threshold]
