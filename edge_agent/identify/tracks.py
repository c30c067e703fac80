"""One record per track: its evidence, its identity, and the crops that it still needs.

The identifier keeps the records; crop selection reads them. Both run on the thread that drives the pipeline.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge_agent.identify.evidence import Evidence
from edge_agent.identify.links import TrackKey

if TYPE_CHECKING:
    from edge_agent.core.config import IdentifySettings
    from edge_agent.core.structures import Decision, TrackObservation, TrackUpdate
    from edge_agent.identify.near import Search

__all__ = ["CLEAR_LEAD", "REVIEW_CROPS", "Track", "TrackTable"]

REVIEW_CROPS = 10
"""Further good crops after which the decision on a track is reviewed."""
CLEAR_LEAD = 0.05
"""Lead in cosine that makes one fit clearly better than another. A decision with less is narrow."""
REMEMBERED_TRACKS = 5000
"""Ended tracks whose decisions can still be corrected."""


@dataclass(slots=True, eq=False)
class Track:
    """State of one track.

    Attributes:
        key: camera and number.
        origin: names the track in the gallery, unique over all runs.
        evidence: pool of its good crops.
        first, last: its first and latest observation.
        size: `(width, height)` of the frame in pixels.
        crop_time: of the latest crop in the evidence.
        embedded_at: time of its latest embedding, Unix seconds.
        requested_at: when crop selection last chose it; the embedding may be on its way.
        number: its identity, None while unknown.
        founder: whether that identity was enrolled from this track.
        decision: the latest one, departures aside.
        decided_at: evidence count at the latest attempt to decide.
        stored_at: evidence count when its exemplar was last stored.
        review_until: evidence count up to which a narrow decision needs further crops soon.
        ended: whether it will not be seen again.
        score, runner_up: of the best and the second-best identity at the latest comparison.
        search: the latest gallery search for it.
    """

    key: TrackKey
    origin: str
    evidence: Evidence
    first: TrackObservation
    last: TrackObservation
    size: tuple[int, int]
    crop_time: float = -math.inf
    embedded_at: float = -math.inf
    requested_at: float = -math.inf
    number: int | None = None
    founder: bool = False
    decision: Decision | None = None
    decided_at: int = 0
    stored_at: int = 0
    review_until: int = 0
    ended: bool = False
    score: float | None = None
    runner_up: float | None = None
    search: Search | None = None

    @property
    def person(self) -> str:
        """Key of its person in the site's scores: the identity where known, else the track."""
        return self.origin if self.number is None else f"#{self.number}"

    def pooled(self) -> NDArray[np.float32]:
        """Return the centroid of the evidence, `(D,)` of length 1."""
        return self.evidence.centroid()

    def decide(self, decision: Decision) -> None:
        """Keep its latest decision; after a narrow one it needs further crops soon."""
        self.decision = decision
        self.review_until = self.evidence.count + REVIEW_CROPS if _is_narrow(decision) else 0


def _is_narrow(decision: Decision) -> bool:
    """Whether a little more evidence might have led to another decision."""
    if decision.score is None:
        return False
    if decision.threshold is not None and abs(decision.score - decision.threshold) < CLEAR_LEAD:
        return True
    return decision.runner_up is not None and decision.score - decision.runner_up < CLEAR_LEAD


class TrackTable:
    """The tracks of all cameras, and which of them hold an identity.

    Args:
        session: unique for this run.
        settings: how crops become evidence; may be replaced.
    """

    def __init__(self, session: str, settings: IdentifySettings) -> None:
        self.settings = settings
        self._session = session
        self._tracks: dict[TrackKey, Track] = {}
        self._present: dict[str, dict[int, Track]] = {}
        self._holders: dict[int, set[TrackKey]] = {}

    def observe(self, update: TrackUpdate) -> list[Track]:
        """Update the tracks of one frame; return those that were seen, in order."""
        present = self._present.setdefault(update.camera, {})
        seen = [self._observe(observation, update.size) for observation in update.seen]
        present.update((track.key[1], track) for track in seen)
        for number in update.ended:
            present.pop(number, None)
        return seen

    def _observe(self, seen: TrackObservation, size: tuple[int, int]) -> Track:
        key = (seen.camera, seen.track_id)
        track = self._tracks.get(key)
        if track is None:
            origin = f"{self._session}:{seen.camera}:{seen.track_id}"
            track = Track(key, origin, Evidence(self.settings.pool_crops), seen, seen, size)
            self._tracks[key] = track
        track.last, track.size = seen, size
        if seen.vector is not None:
            track.embedded_at = seen.time
            if seen.quality > 0 and seen.time - track.crop_time >= self.settings.crop_interval_s:
                track.evidence.add(seen.vector, seen.quality)
                track.crop_time = seen.time
        return track

    def get(self, key: TrackKey) -> Track | None:
        """Return a track, present or ended; None when it is unknown."""
        return self._tracks.get(key)

    def present(self, camera: str) -> Collection[Track]:
        """Return the tracks of a camera that have not ended."""
        return self._present.get(camera, {}).values()

    def find(self, camera: str, number: int) -> Track | None:
        """Return a track of a camera that has not ended."""
        return self._present.get(camera, {}).get(number)

    def crops_wanted(self, track: Track) -> int:
        """Return how many good crops a track needs soon: to be decided, or after a narrow decision."""
        target = self.settings.enrol_crops if track.number is None else track.review_until
        return max(0, target - track.evidence.count)

    @property
    def identified(self) -> int:
        """Number of tracks with an identity that have not ended; any thread may read it."""
        return sum(not track.ended and track.number is not None for track in list(self._tracks.values()))

    # -- holders of identities -----------------------------------------------------------------

    @property
    def identities(self) -> list[int]:
        """Numbers of the identities that tracks hold or held, in order."""
        return sorted(self._holders)

    def holders(self, number: int) -> set[TrackKey]:
        """Return the tracks that hold an identity, ended ones too."""
        return self._holders.get(number, set())

    def records(self, keys: Iterable[TrackKey]) -> list[Track]:
        """Return those of the tracks that are still remembered."""
        return [self._tracks[key] for key in keys if key in self._tracks]

    def numbers(self, keys: Iterable[TrackKey]) -> set[int]:
        """Return the identities of tracks, where they are known."""
        return {track.number for track in self.records(keys) if track.number is not None}

    def hold(self, track: Track, number: int, *, founder: bool) -> None:
        """Give an identity to a track."""
        track.number, track.founder = number, founder
        track.stored_at = track.evidence.count if founder else 0
        self._holders.setdefault(number, set()).add(track.key)

    def release(self, track: Track) -> None:
        """Take the identity from a track."""
        if track.number is not None:
            self.holders(track.number).discard(track.key)
            track.number, track.founder = None, False

    def drop(self, number: int, tracks: Sequence[Track]) -> None:
        """Drop an identity that is gone from the gallery; `tracks` lose it."""
        self._holders.pop(number, None)
        for track in tracks:
            if track.number == number:
                track.number, track.founder = None, False

    def merge(self, keep: int, absorb: int) -> list[Track]:
        """Move all tracks of an identity to another; return them in the order of their keys."""
        moved = [self._tracks[key] for key in sorted(self._holders.pop(absorb, set()))]
        for track in moved:
            track.number, track.founder = keep, False
            self._holders.setdefault(keep, set()).add(track.key)
        return moved

    def forget_old(self) -> tuple[list[TrackKey], list[int]]:
        """Drop the oldest ended tracks above the limit; return them, and identities without a track."""
        surplus = len(self._tracks) - REMEMBERED_TRACKS
        if surplus <= 0:
            return [], []
        gone = [key for key, track in self._tracks.items() if track.ended][:surplus]
        unheld = []
        for key in gone:
            number = self._tracks.pop(key).number
            if number is not None:
                self.holders(number).discard(key)
                if not self._holders.get(number):
                    self._holders.pop(number, None)
                    unheld.append(number)
        return gone, unheld
