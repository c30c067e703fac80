"""Give identities to tracks, join identities that are one person, and correct earlier decisions."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.structures import Decision, DecisionKind
from edge_agent.identify.fit import Fitting, Shared, best_two
from edge_agent.identify.near import Lookalikes, best_pairs
from edge_agent.identify.slips import Slip, Slips
from edge_agent.identify.tracks import CLEAR_LEAD, MOST_BETWEEN, Track

FUSED = "fused"
"""Reason of a correction because two identities were found to be one person."""


class Settler:
    """Writes identities of tracks to the gallery and makes the decisions."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    def enrol(self, track: Track, kind: DecisionKind, reason: str) -> Decision:
        """Make a new identity of a track."""
        identity = self._shared.gallery.enrol(
            track.pooled()[None],
            np.array([track.evidence.quality], np.float32),
            origin=track.origin,
            camera=track.key[0],
            time=track.last.time,
        )
        self._hold(track, identity.number, founder=True)
        return self.decision(track, kind, reason)

    def settle(self, track: Track, number: int, kind: DecisionKind, reason: str) -> Decision:
        """Give a known identity to a track."""
        self._hold(track, number, founder=False)
        self._shared.gallery.touch(number, track.last.time)
        self.store(track)
        return self.decision(track, kind, reason)

    def _hold(self, track: Track, number: int, *, founder: bool) -> None:
        before = track.person
        self._shared.tracks.hold(track, number, founder=founder)
        self._shared.thresholds.site.rename(before, track.person)

    def release(self, track: Track) -> None:
        """Take the identity from a track, and the track's exemplars from the identity."""
        if track.number is not None:
            self._shared.gallery.remove_origin(track.number, track.origin)
            self._shared.tracks.release(track)

    def store(self, track: Track) -> None:
        """Store the centroid as an exemplar: at first, with a full pool, and after each further pool."""
        if track.number is None:
            return
        count, pool = track.evidence.count, self._shared.settings.pool_crops
        first_pool = track.stored_at < pool <= count
        if track.stored_at and not first_pool and count - track.stored_at < pool:
            return
        if first_pool and track.stored_at and not track.founder:
            # The centroid of a full pool replaces that of the young track; a founder's may be the only one.
            self._shared.gallery.remove_origin(track.number, track.origin)
        self._shared.gallery.add_exemplars(
            track.number,
            track.pooled()[None],
            np.array([track.evidence.quality], np.float32),
            origin=track.origin,
            camera=track.key[0],
            time=track.last.time,
        )
        track.stored_at = count

    def decision(self, track: Track, kind: DecisionKind, reason: str) -> Decision:
        """Make a decision on a track as it stands now, with scores and threshold as of raw embeddings."""
        identity = self._shared.known(track.number)
        bias = self._shared.gallery.cameras.bias(track.key[0])
        score, second = (
            None if value is None else bias.before(value) for value in (track.score, track.runner_up)
        )
        threshold = track.threshold or self._shared.thresholds.in_force
        overturned = track.decision if kind is DecisionKind.CORRECTED else None
        decision = Decision(
            id=str(uuid.uuid4()),
            kind=kind,
            camera=track.key[0],
            track_id=track.key[1],
            identity=identity.id if identity is not None else None,
            number=track.number,
            name=identity.name if identity is not None else None,
            score=score,
            runner_up=second,
            threshold=threshold.stated,
            rule=threshold.rule,
            identities=threshold.identities,
            pair_rate=threshold.pair_rate,
            search_rate=threshold.search_rate,
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
            ended=track.ended,
        )
        if kind is not DecisionKind.DEPARTED:
            track.decide(decision)
        return decision


class Fuser:
    """Finds identities that are one person, and joins them."""

    def __init__(self, shared: Shared, settler: Settler, lookalikes: Lookalikes) -> None:
        self._shared = shared
        self._settler = settler
        self._lookalikes = lookalikes

    def fuse(self, numbers: Iterable[int]) -> list[Decision]:
        """Join each identity with the one that is the same person, if any; the older number stays."""
        decisions: list[Decision] = []
        if self._shared.thresholds.in_force.value is None:
            return decisions
        for number in numbers:
            other = self._twin(number)
            if other is not None:
                decisions += self.join(min(number, other), max(number, other))
        return decisions

    def join(self, keep: int, absorb: int) -> list[Decision]:
        """Make two identities one; of an automatic and an enrolled one the enrolled one stays."""
        kept, absorbed = self._shared.known(keep), self._shared.known(absorb)
        if absorbed is not None and absorbed.kind != "auto" and kept is not None and kept.kind == "auto":
            keep, absorb, absorbed = absorb, keep, kept
        self._shared.gallery.merge(keep, absorb, FUSED)
        self._lookalikes.forget([absorb])
        self._shared.thresholds.site.rename(f"#{absorb}", f"#{keep}")
        decisions = []
        for track in self._shared.tracks.merge(keep, absorb):
            if track.is_part:
                continue
            decision = self._settler.decision(track, DecisionKind.CORRECTED, FUSED)
            if absorbed is not None and decision.previous is None:
                decision = replace(decision, previous=absorbed.id)
            decisions.append(decision)
        return decisions

    def _twin(self, number: int) -> int | None:
        """Return the identity that is certainly the same person as `number`, if there is one."""
        tracks, margin = self._shared.tracks, self._shared.settings.margin
        crops = sum(track.evidence.count for track in tracks.records(tracks.holders(number)))
        if crops < self._shared.settings.fuse_crops:
            return None
        taken = len(self._shared.seen_with(number))
        threshold = self._shared.thresholds.value_of(taken)
        assert threshold is not None  # else nothing is compared
        numbers, mean = self._likeness(number, threshold - margin)
        order = best_two(mean)
        if not order:
            return None
        other = int(numbers[order[0]])
        bias = self._shared.gallery.cameras.least_bias([number, other])
        if mean[order[0]] < max(threshold, self._shared.thresholds.value_of(taken, bias) or threshold):
            return None
        if len(order) > 1 and mean[order[0]] - mean[order[1]] < margin:
            return None
        identity, twin = self._shared.known(number), self._shared.known(other)
        if identity is None or twin is None or (identity.kind != "auto" and twin.kind != "auto"):
            return None  # two people who were enrolled by hand are never joined by a guess
        return other

    def _likeness(self, number: int, floor: float) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return how much other identities are like this one: mean best-exemplar score, both ways.

        One way alone would favour identities with many exemplars. Left out are identities that were seen
        together with it, and those certainly below `floor`: a mean of best pairs is at most the best pair.
        """
        tracks = self._shared.tracks
        searches = (track.search for track in tracks.records(tracks.holders(number)))
        newest = max(filter(None, searches), key=lambda search: search.mark, default=None)
        others = self._lookalikes.of(number, floor, newest)
        others = others - self._shared.seen_with(number)
        _, own = self._shared.gallery.vectors([number])
        owners, theirs = self._shared.gallery.vectors(others if len(own) else [])
        if not len(theirs):
            return owners, theirs[:, 0]
        products = theirs @ own.T
        numbers, forth = best_pairs(owners, products)
        starts = np.flatnonzero(np.diff(owners, prepend=-1))
        back = np.add.reduceat(products.max(axis=1), starts) / np.diff(starts, append=len(owners))
        return numbers, np.asarray((forth.mean(axis=1) + back) / 2, np.float32)


class Reviewer:
    """Corrects earlier decisions where new evidence contradicts them."""

    def __init__(self, shared: Shared, fitting: Fitting, settler: Settler, fuser: Fuser) -> None:
        self._shared = shared
        self._fitting = fitting
        self._settler = settler
        self._fuser = fuser
        self._slips = Slips(shared, fitting)

    def contest(self, tracks: Sequence[Track]) -> list[Decision]:
        """Give an identity to a track that fits it clearly better than the tracks that hold it."""
        decisions: list[Decision] = []
        for track in tracks:
            near = self._fitting.near([track], self._fitting.floor([track]))[0]
            threshold = self._fitting.threshold(track)
            for column in best_two(near.scores):
                number, score = int(near.numbers[column]), float(near.scores[column])
                if score < threshold:
                    break
                losers = self._losers(track, number, score)
                if losers:
                    decisions += self._take_back(track, number, score, losers)
                    break
        return decisions

    def _losers(self, track: Track, number: int, score: float) -> list[Track]:
        """Return the tracks that must give `number` up to `track`; none when it may not have it."""
        tracks = self._shared.tracks
        holders = tracks.records(self._shared.links.rivals(track.key) & tracks.holders(number))
        for holder in holders:
            own = self._fitting.without_own(holder, number)
            if holder.is_part or own is None or score < own + CLEAR_LEAD:
                return []
        return holders

    def _take_back(self, track: Track, number: int, score: float, losers: Sequence[Track]) -> list[Decision]:
        for loser in losers:
            self._settler.release(loser)
        track.score = score
        decisions = [self._settler.settle(track, number, DecisionKind.MATCHED, "contested")]
        return decisions + [self._reassign(loser, "contested") for loser in losers]

    def _reassign(self, track: Track, reason: str) -> Decision:
        """Find another identity for a track that lost its own, or make one."""
        if self._shared.thresholds.in_force.value is not None:
            number, score, track.runner_up = self._fitting.fit([track]).best(0)
            track.score = score if number is not None else None
            if number is not None and score >= self._fitting.threshold(track):
                return self._settler.settle(track, number, DecisionKind.CORRECTED, reason)
        if self._shared.settings.enrolment == "auto":
            return self._settler.enrol(track, DecisionKind.CORRECTED, reason)
        return self._settler.decision(track, DecisionKind.CORRECTED, reason)

    def compares(self, track: Track) -> bool:
        """Whether a review of a decided track compares it with others; else it only looks for slips."""
        return track.evidence.count >= max(self._shared.settings.fuse_crops, track.compare_at)

    def review(self, track: Track) -> list[Decision]:
        """Compare a decided track again with new evidence: fuse identities, or move the track."""
        if track.number is not None and (slip := self._slips.find(track, track.number)) is not None:
            return [self._split(track, track.number, slip)]
        if track.number is None or not self.compares(track):
            return []
        if track.founder:
            return self._join_founder(track, track.number) or self._fuser.fuse([track.number])
        number, score, second = self._fitting.fit([track]).best(0)
        if number == track.number and second is None:
            self._postpone(track)
        held = self._fitting.without_own(track, track.number)
        if (
            number is None
            or number == track.number
            or held is None
            or score < max(self._fitting.threshold(track), held + CLEAR_LEAD)
            or self._is_ambiguous(score, second)
        ):
            track.score = held if held is not None else track.score
            return []
        self._settler.release(track)
        track.score, track.runner_up = score, held
        return [self._settler.settle(track, number, DecisionKind.CORRECTED, "switched")]

    def _split(self, track: Track, held: int, slip: Slip) -> Decision:
        """Give a track the person to whom it slipped; its part before keeps its identity."""
        tracks, gallery = self._shared.tracks, self._shared.gallery
        rivals = tracks.records(self._shared.links.rivals(track.key))
        part = tracks.split(track, slip.since)
        self._shared.links.split(
            track.key,
            part.key,
            [rival.key for rival in rivals if rival.first.time < slip.before],
            [rival.key for rival in rivals if rival.last.time >= slip.since],
        )
        if gallery.remove_origin(held, track.origin, slip.since):
            part.stored_at = 0.0
            self._settler.store(part)
        track.score, track.runner_up = slip.score, slip.second
        decision = self._settler.settle(track, slip.number, DecisionKind.CORRECTED, "slipped")
        return replace(decision, since=slip.since)

    def _join_founder(self, track: Track, own: int) -> list[Decision]:
        """Join an identity that was enrolled as new with the known one that its pool fits now."""
        fit = self._fitting.fit([track])
        others = self._shared.seen_with(own) | {own}
        fit.scores[0, [number in others for number in fit.numbers.tolist()]] = -np.inf
        number, score, second = fit.best(0)
        if number is None:
            self._postpone(track)
        if number is None or score < self._fitting.threshold(track) or self._is_ambiguous(score, second):
            return []
        track.score, track.runner_up = score, second
        return self._fuser.join(min(own, number), max(own, number))

    def _postpone(self, track: Track) -> None:
        """Compare a track later again, since it is like nobody else: the longer it was, the later."""
        track.compare_at = track.evidence.count + min(track.evidence.count, MOST_BETWEEN)

    def _is_ambiguous(self, score: float, second: float | None) -> bool:
        return second is not None and score < second + self._shared.settings.margin
