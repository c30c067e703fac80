"""The open-set decision: known, new, or wait.

The good crops of each track are pooled. Their centroid is compared with the best exemplar of every identity:
- *matched* when an identity reaches the threshold with a margin over the next, and no track that was seen
  together with this one has it. All undecided tracks of a camera are assigned jointly.
- *enrolled* when none does and there are enough good crops.
- otherwise the track waits for further crops.

Later evidence can overturn a decision: a track that fits an identity clearly better takes it from the track
that has it (contest), a track that fits another identity is moved (switch), and two identities that turn out
to be one person are joined (fuse). Each change is a `corrected` decision that names the overturned one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import structlog

from edge_agent.core.errors import InputError
from edge_agent.core.structures import Decision, DecisionKind, TrackUpdate
from edge_agent.identify.company import Company
from edge_agent.identify.covisible import Covisibility
from edge_agent.identify.fit import Fitting, KnownIdentities, Shared, assign
from edge_agent.identify.near import Lookalikes, Neighbours
from edge_agent.identify.newcomers import Newcomers
from edge_agent.identify.pairs import MAX_PAIRS
from edge_agent.identify.settle import Fuser, Reviewer, Settler
from edge_agent.identify.site import Calibrated, ThresholdPolicy
from edge_agent.identify.tracks import REVIEW_CROPS, Track, TrackTable

if TYPE_CHECKING:
    from edge_agent.core.config import IdentifySettings
    from edge_agent.identify.elsewhere import Elsewhere
    from edge_agent.identify.prior import Prior

_log = structlog.get_logger(__name__)

LEARN_S = 0.25
"""Where as many scores are known as are kept, a camera's pictures within this time show the same again."""


class Identifier:
    """Decides for all cameras of one agent. Not safe for use from two threads.

    `session` is unique for this run: it is part of the origin of every exemplar. The site's own threshold can
    only raise the `calibrated` one. `shares`: people are shared with other devices.
    """

    def __init__(
        self,
        gallery: KnownIdentities,
        session: str,
        settings: IdentifySettings,
        calibrated: Calibrated | None = None,
        prior: Prior | None = None,
        elsewhere: Elsewhere | None = None,
        *,
        shares: bool = False,
    ) -> None:
        gallery.cameras.start()
        self.tracks = TrackTable(session, settings)
        self.thresholds = ThresholdPolicy(gallery, settings, calibrated, prior)
        links = Covisibility(settings.covisible_frames)
        self._shared = Shared(gallery, settings, self.tracks, links, self.thresholds)
        neighbours = Neighbours(gallery)
        self._fitting = Fitting(self._shared, neighbours)
        self._settler = Settler(self._shared)
        self._lookalikes = Lookalikes(gallery, neighbours)
        self._fuser = Fuser(self._shared, self._settler, self._lookalikes)
        self._reviewer = Reviewer(self._shared, self._fitting, self._settler, self._fuser)
        self._newcomers = Newcomers(self._shared, self._fitting, self._settler, elsewhere)
        self.shares = shares
        self._company = Company(self._shared) if shares else None
        self._had_threshold = False
        self._learnt_at: dict[str, float] = {}
        """Time of the latest picture of each camera from which the site's scores were learned."""
        self._waiting: list[Decision] = []
        """Decisions outside of frames; the next `update` returns them."""

    def at_once(self) -> AbstractContextManager[None]:
        """Commit the changes of several calls of `update` at once, at the end of the block.

        Nothing of them may be published before that: a kill undoes them all.
        """
        return self._shared.gallery.exclusive(together=True)

    def update(self, update: TrackUpdate) -> list[Decision]:
        """Process one frame of one camera; return decisions in the order in which they were made."""
        seen = self.tracks.observe(update)
        self._shared.links.observe(update.seen)
        decisions, self._waiting = self._waiting, []
        due = self._due(seen)
        due += [track for track in self._newcomers.answered(update.camera) if track not in due]
        try:
            if due or update.ended:
                with self._shared.gallery.exclusive(together=True):
                    self._decide_frame(seen, due, update, decisions)
        except InputError as vanished:
            # Another process erased an identity between two calls; the next frame decides again.
            _log.warning("identity_vanished", error=str(vanished))
        return decisions

    def replied(self) -> TrackUpdate | None:
        """Return an empty update of a camera, for `update`, where a reply about a track waits for a frame.

        A camera that has become silent would let it wait for ever; None: no reply waits.
        """
        track = self._newcomers.replied()
        if track is None:
            return None
        return TrackUpdate(track.key[0], track.last.frame, track.last.time, track.size, (), ())

    def number(self, camera: str, track_id: int, time: float | None = None) -> int | None:
        """Return the identity of a track as known now, also after the track ended; of a time, if given."""
        track = self.tracks.get((camera, track_id))
        if track is None:
            return None
        return track.number if time is None else track.number_at(time)

    def reload(self, settings: IdentifySettings) -> None:
        """Replace the settings of a running identifier."""
        self._shared.reload(settings)

    def calibrate(self, calibrated: Calibrated | None) -> None:
        """Replace the calibrated threshold of a running identifier."""
        self.thresholds.calibrated = calibrated

    def enrol_track(self, camera: str, track_id: int, name: str | None) -> int:
        """Enrol the person of a track; return the identity's number.

        A track with an identity keeps it, and the identity gets the name.

        Raises:
            InputError: there is no such track, it showed no good crop, or the name is taken.
        """
        track = self.tracks.get((camera, track_id))
        if track is None or track.ended:
            raise InputError(f"camera {camera} shows no track {track_id} now")
        if track.number is None:
            if not track.evidence.pooled:
                raise InputError(f"track {track_id} of camera {camera} has shown no good crop yet")
            self.thresholds.refresh(self._shared.gallery.cameras.bias(camera))
            decision = self._settler.enrol(track, DecisionKind.ENROLLED, "operator")
            self._waiting.append(replace(decision, name=name))
        assert track.number is not None  # enrolled just now, if not before
        if name is not None:
            self._shared.gallery.rename(track.number, name)
        return track.number

    def merged(self, keep: int, absorb: int) -> None:
        """Move the tracks of an identity that was merged into another; all that named it are corrected."""
        self.thresholds.site.rename(f"#{absorb}", f"#{keep}")
        self._lookalikes.forget([absorb])
        kept = self._shared.known(keep)
        named = [
            track
            for track in self.tracks.merge(keep, absorb)
            if not track.is_part
            and (kept is None or track.decision is None or track.decision.identity != kept.id)
        ]
        self._correct(named, "merged", ended=True)

    def split(self, number: int, new: int) -> None:
        """Let tracks follow that an operator split from an identity; those that are open are corrected."""
        origins = set(self._shared.gallery.cameras.exemplars(new)[1])
        tracks = [
            track
            for track in self.tracks.records(sorted(self.tracks.holders(number)))
            if track.origin in origins
        ]
        for track in tracks:
            self.tracks.release(track)
            self.tracks.hold(track, new, founder=True)
        self._lookalikes.forget([number])
        self._correct(tracks, "split")

    def together(self, numbers: Collection[int]) -> set[tuple[int, int]]:
        """Return the pairs of these identities and others, lower number first, that were seen together."""
        return {
            (min(number, other), max(number, other))
            for number in numbers
            for other in self._shared.seen_with(number)
            if other != number
        }

    def forgotten(self, number: int) -> None:
        """Detach an identity that no longer exists from its tracks; those that are open are corrected."""
        tracks = self.tracks.records(self.tracks.holders(number))
        self.tracks.drop(number, tracks)
        self._lookalikes.forget([number])
        for track in tracks:
            track.score = track.runner_up = None
        self._correct(tracks, "forgotten")

    def _correct(self, tracks: Sequence[Track], reason: str, *, ended: bool = False) -> None:
        """Correct the decisions on open tracks; with `ended`, on all."""
        self._waiting += [
            self._settler.decision(track, DecisionKind.CORRECTED, reason)
            for track in tracks
            if ended or not track.ended
        ]

    def recalibrate(self) -> None:
        """Forget the site's scores; the threshold starts with a warm-up again."""
        self.thresholds.forget()
        self._had_threshold = False

    def set_threshold(self, value: float | None) -> None:
        """Set the threshold of an operator, see `ThresholdPolicy.set_by_hand`."""
        self.thresholds.set_by_hand(value)

    def _due(self, seen: Sequence[Track]) -> list[Track]:
        """Return the tracks that need a decision or a review, but none that waits for a reply."""
        least = self._shared.settings.decide_crops
        due = []
        for track in seen:
            count = track.evidence.count
            fresh = count - track.decided_at
            if (fresh >= REVIEW_CROPS or (fresh and track.number is None)) and count >= least:
                due.append(track)
        return [track for track in due if track.question is None]

    def _decide_frame(
        self, seen: Sequence[Track], due: Sequence[Track], update: TrackUpdate, decisions: list[Decision]
    ) -> None:
        if due:
            self._drop_vanished(seen)
            decisions += self._waiting
            self._waiting = []
            self._learn_site(seen)
        self.thresholds.refresh(self._shared.gallery.cameras.bias(update.camera))
        if due:
            decisions += self._decide(due)
        for track_id in update.ended:
            track = self.tracks.get((update.camera, track_id))
            if track is not None:
                decisions += self._end(track)

    def _drop_vanished(self, tracks: Sequence[Track]) -> None:
        """Follow what others did to the identities of tracks: merged ones move, erased ones are dropped."""
        held = {track.number: track for track in tracks if track.number is not None}
        for number in sorted(held.keys() - self._shared.gallery.present(held.keys())):
            decision = held[number].decision
            kept = self._shared.known(None if decision is None else decision.identity)
            if kept is None:
                self.forgotten(number)
            else:
                self.merged(kept.number, number)

    def _learn_site(self, seen: Sequence[Track]) -> None:
        """Learn the scores of people in one picture: they are impostors of each other."""
        if not seen:
            return
        cameras, camera, time = self._shared.gallery.cameras, seen[0].key[0], seen[0].last.time
        since = abs(time - self._learnt_at.get(camera, -math.inf))
        if since < LEARN_S and len(self.thresholds.site) >= MAX_PAIRS:
            return
        pooled = [track for track in seen if track.evidence.count >= self._shared.settings.decide_crops]
        if len(pooled) < 2:
            return
        self._learnt_at[camera] = time
        rivals = self._shared.links.matrix(camera, [track.key[1] for track in pooled])
        pairs = np.argwhere(np.triu(rivals))[-MAX_PAIRS:]  # as many as the site keeps
        if not len(pairs):
            return
        first = int(pairs.min())
        pooled, pairs = pooled[first:], pairs - first
        centroids = np.array([track.pooled() for track in pooled])
        cosines = cameras.cosines(camera, centroids, [track.number is not None for track in pooled])
        scores = cosines[pairs[:, 0], pairs[:, 1]].astype(np.float64)
        raw = cameras.bias(camera).before(scores)
        self.thresholds.site.learn_all([track.person for track in pooled], pairs, raw, camera)

    def _decide(self, due: Sequence[Track]) -> list[Decision]:
        threshold = self.thresholds.in_force.value
        decisions: list[Decision] = []
        if threshold is not None:
            undecided = [track for track in due if track.number is None]
            decided = [track for track in due if track.number is not None]
            self._fitting.follow([*undecided, *filter(self._reviewer.compares, decided)])
            decisions += self._match(undecided)
            decisions += self._reviewer.contest([t for t in undecided if t.number is None])
            for track in decided:
                decisions += self._reviewer.review(track)
        for track in self._newcomers.ordered(due):
            track.decided_at = track.evidence.count
            if track.number is None:
                decisions += self._newcomers.decide(track)
            else:
                self._settler.store(track)
        if threshold is not None and not self._had_threshold:
            self.thresholds.save()  # so that a restart does not begin with a warm-up
            decisions += self._fuser.fuse(self.tracks.identities)
        self._had_threshold = threshold is not None
        return decisions

    def _match(self, tracks: Sequence[Track]) -> list[Decision]:
        """Assign undecided tracks of one camera and free identities jointly."""
        if not tracks:
            return []
        settings = self._shared.settings
        fit = self._fitting.fit(tracks)
        thresholds = [self._fitting.threshold(track) for track in tracks]
        certain = []
        for row, track in enumerate(tracks):
            number, score, track.runner_up = fit.best(row)
            track.score = score if number is not None else None
            lead = score - (track.runner_up if track.runner_up is not None else -1.0)
            is_clear = lead >= settings.margin or track.evidence.count >= settings.pool_crops
            if number is not None and score >= thresholds[row] and is_clear:
                certain.append(row)
        decisions = []
        for row, column in assign(fit.scores[certain], [thresholds[row] for row in certain]):
            track = tracks[certain[row]]
            track.score = float(fit.scores[certain[row], column])
            number = int(fit.numbers[column])
            decisions.append(self._settler.settle(track, number, DecisionKind.MATCHED, "re-entry"))
        return decisions

    def _end(self, track: Track) -> list[Decision]:
        decided = self._newcomers.end(track)
        track.ended = True
        track.evidence.close()
        self._shared.links.ended(track.key)
        if track.sure >= self._shared.settings.decide_crops:
            cameras = self._shared.gallery.cameras
            cameras.saw(track.key[0], track.origin, track.pooled(), track.number)
        forgotten, unheld = self.tracks.forget_old()
        self._shared.links.forget(forgotten)
        self._lookalikes.forget(unheld)
        decisions = decided
        if track.number is not None and track.evidence.count >= track.compare_at:
            decisions = [*decided, *self._fuser.fuse([track.number])]
        if self._company is not None:
            self._company.note(track)
        if track.number is not None or track.decision is not None:  # an event of the track was published
            return [*decisions, self._settler.decision(track, DecisionKind.DEPARTED, "left")]
        if self._shared.settings.publish_unknown:
            decisions.append(self._settler.decision(track, DecisionKind.UNKNOWN, "seen too little"))
        return decisions
