"""Give identities to tracks: gallery entries, exemplars, and the decisions that report them."""

from __future__ import annotations

import uuid

import numpy as np

from edge_agent.core.structures import Decision, DecisionKind
from edge_agent.identify.known import Shared
from edge_agent.identify.tracks import Track

__all__ = ["Settler"]


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
        """Make a decision on a track as it stands now."""
        identity = self._shared.known(track.number)
        threshold = self._shared.thresholds.in_force
        overturned = track.decision if kind is DecisionKind.CORRECTED else None
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
            track.decide(decision)
        return decision
