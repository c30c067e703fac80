"""A round: items of any cameras whose crops are embedded in one submission; and the tracks it updates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.structures import (
    Candidates,
    CropBatch,
    Detections,
    Embedded,
    Frame,
    MessageFrame,
    TrackUpdate,
)
from edge_agent.track.crops import UpstreamTracks
from edge_agent.track.tracker import Tracker, TrackInput, update_tracks
from edge_agent.track.upstream import MessageTracks

if TYPE_CHECKING:
    from edge_agent.agent.sources import Polled
    from edge_agent.detect.search import Search
    from edge_agent.embed.quality import Graded
    from edge_agent.source.reader import FrameReader


@dataclass(slots=True)
class Searched:
    """Items of one poll, whose frames are searched for people; the search may still run."""

    items: Sequence[Polled]
    search: Search
    begun: float
    """`time.perf_counter`"""
    begun_s: float
    """Time of this thread to begin the search."""


@dataclass(slots=True)
class PendingItem:
    """One item whose crops are with the engine."""

    reader: FrameReader
    item: Frame | CropBatch | MessageFrame
    detections: Detections | None
    """Those of a frame; None for crops of an upstream, and for messages."""
    pairs: int
    """Number of its pairs of image and detections in the submission."""
    detect_s: float
    """Time of this thread for its search."""
    trace: str
    received: Embedded | None = None
    """The embeddings of a message."""

    @property
    def crops_per_pair(self) -> list[int]:
        """Number of crops of each pair."""
        return [len(self.detections)] if self.detections is not None else [1] * self.pairs

    def candidates(self, graded: Sequence[Graded]) -> Candidates:
        """Return its crops for the crop selection; `graded`: of each of its pairs.

        Upstream crops are only accepted or refused: the grade of a whole image says little about its person.
        """
        item = self.item
        if isinstance(item, CropBatch):
            accepted = [1.0 if not reason else 0.0 for one in graded for reason in one.reasons]
            grades = np.array(accepted, np.float32)
            return Candidates(item.camera, item.time, item.boxes, item.track_ids, grades=grades)
        found = self.detections if self.detections is not None else Detections.none()
        return Candidates(
            item.camera,
            item.time,
            found.boxes,
            scores=found.scores,
            grades=graded[0].quality,
            live=self.reader.live,
            lost=self.reader.dropped,
            detect_s=self.detect_s,
        )


@dataclass(slots=True)
class Round:
    """A submission, and its result once it is collected."""

    items: list[PendingItem]
    submitted: float
    """`time.perf_counter`"""
    embedded: list[Embedded] = field(default_factory=list)
    """One per pair."""
    embed_s: float = 0.0
    """From submission to collection."""
    frames_s: float = 0.0
    """Work of the driving thread on its frames, embedded or not."""
    crops_s: float = 0.0
    """Work of the driving thread on its crops, without waiting for the engine."""

    @property
    def crops(self) -> int:
        """Embedded crops."""
        return sum(int(np.count_nonzero(one.present)) for one in self.embedded)

    def without_embeddings(self) -> list[Embedded]:
        """Return the results of a failed batch, one per pair: no crop has an embedding."""
        return [
            Embedded(
                np.zeros((n, 0), np.float32),
                np.zeros(n, np.bool_),
                np.zeros(n, np.float32),
                ("engine failed",) * n,
            )
            for pending in self.items
            for n in pending.crops_per_pair
        ]


def whole_image(image: NDArray[np.uint8]) -> Detections:
    """Return one detection that covers an image."""
    height, width = image.shape[:2]
    return Detections(np.array([[0, 0, width, height]], np.float32), np.ones(1, np.float32))


AnyTracker = Tracker | UpstreamTracks | MessageTracks


@dataclass(slots=True)
class CameraTracking:
    """The trackers of all cameras: frames get tracks, crops and messages of an upstream keep theirs.

    A tracker is made at the first frame or crops of its camera.
    """

    make_tracker: Callable[[str], Tracker]
    make_upstream_tracker: Callable[[str], UpstreamTracks]
    make_message_tracker: Callable[[str], MessageTracks]
    _trackers: dict[str, Tracker] = field(default_factory=dict)
    _upstream: dict[str, UpstreamTracks] = field(default_factory=dict)
    _messages: dict[str, MessageTracks] = field(default_factory=dict)
    _latest: dict[str, TrackUpdate] = field(default_factory=dict)

    @property
    def cameras(self) -> list[str]:
        """Cameras that have a tracker."""
        return [*self._trackers, *self._upstream, *self._messages]

    def update(self, items: Sequence[PendingItem], results: Sequence[list[Embedded]]) -> list[TrackUpdate]:
        """Return the track update of each item, in order; frames of different cameras are updated at once."""
        updates: dict[int, TrackUpdate] = {}
        frames: dict[str, tuple[int, TrackInput]] = {}
        for at, (pending, embedded) in enumerate(zip(items, results, strict=True)):
            item = pending.item
            if isinstance(item, CropBatch):
                if item.camera not in self._upstream:
                    self._upstream[item.camera] = self.make_upstream_tracker(item.camera)
                updates[at] = self._upstream[item.camera].update(item, embedded)
                continue
            if isinstance(item, MessageFrame):
                if item.camera not in self._messages:
                    self._messages[item.camera] = self.make_message_tracker(item.camera)
                assert pending.received is not None  # set for every message
                updates[at] = self._messages[item.camera].update(item, pending.received)
                continue
            if item.camera in frames:
                updates.update(_update_frames(frames))
                frames = {}
            if item.camera not in self._trackers:
                self._trackers[item.camera] = self.make_tracker(item.camera)
            height, width = item.image.shape[:2]
            assert pending.detections is not None  # set for every frame
            frames[item.camera] = at, TrackInput(
                self._trackers[item.camera], item.number, item.time, (width, height),
                pending.detections, embedded[0],
            )  # fmt: skip
        updates.update(_update_frames(frames))
        for update in (ordered := [updates[at] for at in range(len(items))]):
            self._latest[update.camera] = update
        return ordered

    def end_tracks(self, camera: str) -> TrackUpdate | None:
        """End the tracks of a camera that continues later; None where it has had no frame."""
        tracker = self._trackers.get(camera)
        return _finish(self._messages.get(camera) if tracker is None else tracker, self._latest.get(camera))

    def end(self, camera: str) -> TrackUpdate | None:
        """End the tracks of a camera for good and remove its tracker; None where there is nothing to end."""
        # A tracker without tracks is false.
        tracker: AnyTracker | None = self._trackers.pop(camera, None) or self._upstream.pop(camera, None)
        tracker = tracker or self._messages.pop(camera, None)
        return _finish(tracker, self._latest.pop(camera, None))


def _finish(tracker: AnyTracker | None, latest: TrackUpdate | None) -> TrackUpdate | None:
    if tracker is None or latest is None:
        return None
    return tracker.finish(latest.frame, latest.time, latest.size)


def _update_frames(frames: Mapping[str, tuple[int, TrackInput]]) -> Iterator[tuple[int, TrackUpdate]]:
    updates = update_tracks([frame for _, frame in frames.values()])
    return zip((at for at, _ in frames.values()), updates, strict=True)
