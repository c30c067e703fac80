"""Notes people who were seen at the same time although they are alike.

Tracks of one camera at one time are different people. The device that sees them knows it while it remembers
the tracks; what is noted in the gallery remains, and other devices of the site learn of it. People who are
not alike are never taken for one, so they are not noted.
"""

from __future__ import annotations

from edge_agent.identify.fit import Shared
from edge_agent.identify.near import best_pairs
from edge_agent.identify.tracks import Track

ALIKE = 0.15
"""How far below the threshold of a match two people are still alike: other cameras may show them nearer."""


class Company:
    """Notes pairs of alike people when the later of their tracks ends, since both are best known then."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    def note(self, track: Track) -> None:
        """Note with whom a track that has ended was seen, and until when."""
        shared, number = self._shared, track.number
        threshold = shared.thresholds.in_force.value
        if number is None or not shared.gallery.present({number}):  # erased or merged since the last frame
            return
        shared.gallery.touch(number, track.last.time, sighting=False)  # others learn when and where
        if threshold is None:
            return
        rivals = shared.tracks.records(shared.links.rivals(track.key))
        others = {one.number for one in rivals if one.ended and one.number is not None}
        others -= {number, *shared.gallery.corrections.apart(number)}
        if not others:
            return
        _, own = shared.gallery.vectors([number])
        owners, theirs = shared.gallery.vectors(sorted(others))
        if not len(own) or not len(theirs):
            return
        numbers, scores = best_pairs(owners, theirs @ own.T)
        alike = numbers[scores.max(axis=1) >= threshold - ALIKE]
        if len(alike):
            shared.gallery.corrections.seen_together(number, alike.tolist())
