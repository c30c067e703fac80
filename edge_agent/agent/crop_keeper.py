"""Keeps pictures of the people that the agent decides about, where `gallery.keep_crops` allows it.

The driving thread only cuts a crop from the frame, now and then for each track. A thread of its own scales
and encodes them, and gives them to the gallery once the track has an identity. A track without one leaves
no picture.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import structlog
from numpy.typing import NDArray

from edge_agent.core.errors import EdgeAgentError
from edge_agent.core.pictures import encode_kept
from edge_agent.core.structures import Decision, DecisionKind, TrackObservation
from edge_agent.gallery.crop_rows import EVER, EVIDENCE_PER_TRACK, Shot

if TYPE_CHECKING:
    from edge_agent.agent.results import FrameOutcome
    from edge_agent.gallery.crops import Crops

_log = structlog.get_logger(__name__)

TrackKey = tuple[str, int]

_APART_S = 0.5
"""Least time between two crops of a track; it doubles with every `_DENSE` crops."""
_DENSE = 4
_LONGEST_GAP_S = 60.0
_WAITING_BYTES = 16 << 20
"""Pixels that wait for the thread; further crops are left out."""
_PAUSE_S = 0.2
"""The thread looks this often: waking it for each crop would cost the driving thread more."""
_STORE_S = 10.0
"""Interval at which further crops of a track go to the gallery, besides its decisions and its end."""


@dataclass(frozen=True, slots=True)
class _Cut:
    """A crop that is to be encoded."""

    seen: TrackObservation
    pixels: NDArray[np.uint8]


@dataclass(slots=True)
class _Track:
    """What the thread knows of a track."""

    number: int | None = None
    shots: list[Shot] = field(default_factory=list)
    """Encoded crops that are not stored yet."""
    stored: float = -math.inf
    """When crops of it were stored last (monotonic)."""


class CropKeeper:
    """Takes every outcome from the driving thread; stores pictures while it is entered."""

    def __init__(self, crops: Crops, session: str) -> None:
        self._crops = crops
        self._session = session
        self._due: dict[TrackKey, tuple[float, int]] = {}
        """When the next crop of a track is taken, and how many were."""
        self._messages: deque[_Cut | Decision | TrackKey] = deque()
        """For the thread, in order; a key: this track has ended."""
        self._waiting = 0
        self._tracks: dict[TrackKey, _Track] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="crops", daemon=True)
        self.left_out = 0
        """Crops that were not taken since too many waited."""

    def __enter__(self) -> CropKeeper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Store what was taken."""
        self._stop.set()
        self._thread.join(10.0)

    # ---- on the driving thread

    def saw(self, outcome: FrameOutcome) -> None:
        """Cut the crops that are due, and note decisions and ends of tracks."""
        if not self._crops.most:
            self._due.clear()
            return
        update = outcome.update
        for row, seen in enumerate(update.seen):
            if seen.vector is not None and seen.sure and seen.quality > 0:
                self._take(outcome, row, seen)
        self._messages.extend(outcome.decisions)
        for track in update.ended:
            self._due.pop((update.camera, track), None)
            self._messages.append((update.camera, track))

    def _take(self, outcome: FrameOutcome, row: int, seen: TrackObservation) -> None:
        key = seen.camera, seen.track_id
        due, taken = self._due.get(key, (-math.inf, 0))
        if seen.time < due:
            return
        if self._waiting > _WAITING_BYTES:
            self.left_out += 1
            return
        if (pixels := outcome.pixels(row)) is None:
            return
        gap = min(_LONGEST_GAP_S, _APART_S * 2.0 ** (taken // _DENSE))
        self._due[key] = seen.time + gap, taken + 1
        self._waiting += pixels.nbytes
        self._messages.append(_Cut(seen, pixels.copy()))  # the frame's memory is used again

    # ---- on the thread

    def _run(self) -> None:
        last = False
        while not last:
            last = self._stop.wait(_PAUSE_S)
            try:
                self._work(last=last)
            except EdgeAgentError as error:  # a full disk; the pictures are lost, the agent goes on
                _log.warning("crops_not_kept", error=str(error))
            except Exception:  # noqa: BLE001  a bug must not fill the memory with crops
                _log.exception("crops_not_kept")

    def _work(self, *, last: bool) -> None:
        while self._messages:
            message = self._messages.popleft()
            if isinstance(message, _Cut):
                self._waiting -= message.pixels.nbytes
                self._encode(message)
            elif isinstance(message, Decision):
                self._decided(message)
            elif (track := self._tracks.pop(message, None)) is not None:
                self._store(track)
        if not self._crops.most:  # switched off meanwhile
            self._tracks.clear()
        now = time.monotonic()
        for track in self._tracks.values():
            if last or now - track.stored >= _STORE_S:
                self._store(track)

    def _encode(self, cut: _Cut) -> None:
        seen = cut.seen
        assert seen.vector is not None  # others are not cut
        track = self._tracks.setdefault((seen.camera, seen.track_id), _Track())
        shot = Shot(
            self._origin(seen.camera, seen.track_id),
            seen.camera,
            seen.time,
            float(seen.quality),
            seen.vector,
            encode_kept(cut.pixels),
        )
        track.shots.append(shot)
        if len(track.shots) > self._crops.most + EVIDENCE_PER_TRACK:
            track.shots.remove(min(track.shots, key=lambda one: one.quality))

    def _decided(self, decision: Decision) -> None:
        if decision.kind is DecisionKind.DEPARTED:
            return  # the end of the track follows
        key = decision.camera, decision.track_id
        track, since = self._tracks.get(key, _Track()), decision.since
        if not decision.ended:
            self._tracks[key] = track
        if since is not None:  # before, it was somebody else
            self._store(track, since)
        if decision.kind is DecisionKind.CORRECTED:
            self._crops.move(self._origin(*key), decision.number, EVER if since is None else since)
        track.number = decision.number
        if decision.number is None:
            track.shots.clear()  # of somebody who was forgotten, or is not known
        self._store(track)

    def _store(self, track: _Track, before: float = math.inf) -> None:
        """Give the crops of a track up to a time to the gallery, if it has an identity."""
        chosen = [one for one in track.shots if one.time < before]
        if track.number is None or not chosen:
            return
        track.shots = [one for one in track.shots if one.time >= before]
        track.stored = time.monotonic()
        best = sorted(chosen, key=lambda one: -one.quality)[:EVIDENCE_PER_TRACK]
        self._crops.add(track.number, chosen, best)

    def _origin(self, camera: str, track_id: int) -> str:
        return f"{self._session}:{camera}:{track_id}"
