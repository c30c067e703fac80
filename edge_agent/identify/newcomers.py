"""Decides on tracks that fit nobody in the gallery: enrols them, unless others know the person."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace

from edge_agent.core.structures import Decision, DecisionKind
from edge_agent.identify.elsewhere import Candidate, Elsewhere, Reply
from edge_agent.identify.fit import Fitting, Shared
from edge_agent.identify.settle import Settler
from edge_agent.identify.tracks import CLEAR_LEAD, Track


@dataclass(frozen=True, slots=True)
class _Fit:
    """How well the best candidate of a reply fits a track; `number` is its number in the gallery, if any."""

    candidate: Candidate
    number: int | None
    score: float
    device: str
    second: float
    """Best score of the other candidates."""


class Newcomers:
    """Enrols tracks or gives them a person whom others know; without an `elsewhere` nobody is asked."""

    def __init__(
        self, shared: Shared, fitting: Fitting, settler: Settler, elsewhere: Elsewhere | None
    ) -> None:
        self._shared = shared
        self._fitting = fitting
        self._settler = settler
        self._elsewhere = elsewhere
        self._asked: list[Track] = []
        """Tracks whose question may be open."""

    def replied(self) -> Track | None:
        """Return a track for which a reply has come that was not taken yet; None: there is none."""
        self._asked = [track for track in self._asked if track.question is not None and not track.ended]
        replies = ((track, track.question) for track in self._asked)
        return next((track for track, one in replies if one is not None and one.reply() is not None), None)

    def answered(self, camera: str) -> list[Track]:
        """Take the replies that have come for tracks of a camera; return these tracks.

        Once a frame, so that a recorded run can be repeated.
        """
        if self._elsewhere is None:
            return []
        present = self._shared.tracks.present(camera)
        return [track for track in present if track.question is not None and _take_reply(track)]

    def ordered(self, due: Sequence[Track]) -> Sequence[Track]:
        """Return tracks of one camera so that who fits a candidate better is decided before others."""
        if self._elsewhere is None:
            return due
        fits = {track: self._best(track, track.reply) for track in due if track.reply is not None}
        return sorted(due, key=lambda track: -fit.score if (fit := fits.get(track)) is not None else 0.0)

    def decide(self, track: Track, *, ends: bool = False) -> list[Decision]:
        """Decide on a track without an identity, as far as is possible now; one that `ends` cannot wait."""
        settings, threshold = self._shared.settings, self._shared.thresholds.in_force.value
        if track.sure < settings.enrol_crops:
            return []
        could_match = (
            threshold is not None
            and track.score is not None
            and track.score >= self._fitting.threshold(track)
        )
        if could_match and track.evidence.count < settings.pool_crops:
            return []  # ambiguous: more evidence may distinguish the two identities
        if settings.enrolment == "auto":
            if threshold is not None and (known := self._ask(track, ends=ends)) is not None:
                return known
            self._fitting.measure(track)
            return [self._settler.enrol(track, DecisionKind.ENROLLED, "new")]
        if settings.publish_unknown and track.decision is None:
            self._fitting.measure(track)
            return [self._settler.decision(track, DecisionKind.UNKNOWN, "not on the watchlist")]
        return []

    def end(self, track: Track) -> list[Decision]:
        """Decide on a track that ends while others are asked."""
        _take_reply(track)
        asked = track.question is not None or track.reply is not None
        return self.decide(track, ends=True) if asked else []

    def _ask(self, track: Track, *, ends: bool) -> list[Decision] | None:
        """Return the decision that others know the person, none while that is open; None: they do not."""
        if self._elsewhere is None:
            return None
        if track.question is None and track.reply is None and not ends:
            track.question = self._elsewhere.ask(track.key, track.pooled())
            if track.question is not None:
                self._asked.append(track)
        if track.reply is None:
            return None if ends or track.question is None else []
        return self._judge(track, track.reply, self._elsewhere)

    def _judge(self, track: Track, reply: Reply, elsewhere: Elsewhere) -> list[Decision] | None:
        fit = self._best(track, reply)
        if fit is None:
            return None
        by_looks = self._shared.thresholds.of(len(self._taken(track)), track.likeness, among=reply.people)
        threshold = by_looks.shifted(fit.candidate.shift)
        if by_looks.value is None or threshold.value is None or not fit.score >= threshold.value:
            return None
        second = max(fit.second, self._here(track, fit.number))
        settings = self._shared.settings
        if fit.score - second < settings.margin and track.evidence.count < settings.pool_crops:
            return []  # ambiguous, as above
        number = elsewhere.take(track.key, fit.candidate)
        if number is None:
            return None
        if fit.candidate.recognised is not None and fit.score - max(by_looks.value, second) >= CLEAR_LEAD:
            fit.candidate.recognised()
        track.score, track.threshold = fit.score, threshold
        track.runner_up = None if second == -math.inf else second
        decision = self._settler.settle(track, number, DecisionKind.MATCHED, "re-entry")
        return [replace(decision, origin="fleet", known_by=fit.device)]

    def _taken(self, track: Track) -> Set[int]:
        return self._shared.taken(track.key)

    def _best(self, track: Track, reply: Reply) -> _Fit | None:
        """Return the best candidate, but for people who were seen together with the track; None: nobody."""
        if not reply.candidates:
            return None
        query, taken = self._shared.compared(track), self._taken(track)
        best: _Fit | None = None
        second = -math.inf
        for candidate in reply.candidates:
            known = {one.number for id_ in candidate.ids if (one := self._shared.known(id_)) is not None}
            if known & taken:
                continue
            scores = candidate.rows @ query
            row = int(scores.argmax())
            score = float(scores[row])
            if best is not None and score <= best.score:
                second = max(second, score)
                continue
            second = second if best is None else max(second, best.score)
            best = _Fit(candidate, min(known, default=None), score, candidate.devices[row], 0.0)
        return None if best is None else replace(best, second=second)

    def _here(self, track: Track, own: int | None) -> float:
        """Return the best score of the identities in the gallery, but for one."""
        fit = self._fitting.fit([track])
        fit.scores[0, fit.numbers == own] = -math.inf
        number, score, _ = fit.best(0)
        return -math.inf if number is None else score


def _take_reply(track: Track) -> bool:
    """Take the reply to the question about a track, if one has come now."""
    if track.question is None or (reply := track.question.reply()) is None:
        return False
    track.question, track.reply = None, reply
    return True
