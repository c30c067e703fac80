"""Overturn decisions: contested identities, tracks that slipped, identities enrolled too early."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge_agent.core.structures import Decision, DecisionKind
from edge_agent.identify.fit import Fitting, best_two
from edge_agent.identify.fuse import Fuser
from edge_agent.identify.known import Shared
from edge_agent.identify.settle import Settler
from edge_agent.identify.tracks import CLEAR_LEAD, Track

__all__ = ["Reviewer"]


class Reviewer:
    """Corrects earlier decisions where new evidence contradicts them."""

    def __init__(self, shared: Shared, fitting: Fitting, settler: Settler, fuser: Fuser) -> None:
        self._shared = shared
        self._fitting = fitting
        self._settler = settler
        self._fuser = fuser

    def contest(self, tracks: Sequence[Track], threshold: float) -> list[Decision]:
        """Give an identity to a track that fits it clearly better than the tracks that hold it."""
        decisions: list[Decision] = []
        for track in tracks:
            near = self._fitting.near([track], threshold)[0]
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
            if own is None or score < own + CLEAR_LEAD:
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
        threshold = self._shared.thresholds.in_force.value
        if threshold is not None:
            number, score, track.runner_up = self._fitting.fit([track], threshold).best(0)
            track.score = score if number is not None else None
            if number is not None and score >= threshold:
                return self._settler.settle(track, number, DecisionKind.CORRECTED, reason)
        if self._shared.settings.enrolment == "auto":
            return self._settler.enrol(track, DecisionKind.CORRECTED, reason)
        return self._settler.decision(track, DecisionKind.CORRECTED, reason)

    def review(self, track: Track, threshold: float) -> list[Decision]:
        """Compare a decided track again with new evidence: fuse identities, or move the track."""
        if track.number is None or track.evidence.count < self._shared.settings.fuse_crops:
            return []
        if track.founder:
            return self._join_founder(track, track.number, threshold) or self._fuser.fuse([track.number])
        number, score, second = self._fitting.fit([track], threshold).best(0)
        held = self._fitting.without_own(track, track.number)
        if (
            number is None
            or number == track.number
            or held is None
            or score < max(threshold, held + CLEAR_LEAD)
            or self._is_ambiguous(score, second)
        ):
            track.score = held if held is not None else track.score
            return []
        self._settler.release(track)
        track.score, track.runner_up = score, held
        return [self._settler.settle(track, number, DecisionKind.CORRECTED, "switched")]

    def _join_founder(self, track: Track, own: int, threshold: float) -> list[Decision]:
        """Join an identity that was enrolled as new with the known one that its pool fits now."""
        fit = self._fitting.fit([track], threshold)
        fit.scores[0, np.isin(fit.numbers, [own, *self._shared.seen_with(own)])] = -np.inf
        number, score, second = fit.best(0)
        if number is None or score < threshold or self._is_ambiguous(score, second):
            return []
        track.score, track.runner_up = score, second
        return self._fuser.join(min(own, number), max(own, number))

    def _is_ambiguous(self, score: float, second: float | None) -> bool:
        return second is not None and score < second + self._shared.settings.margin
