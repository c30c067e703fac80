"""The trackers of all cameras: frames get tracks, crops of an upstream keep the tracks that they have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from edge_agent.core.structures import CropBatch, Embedded, TrackUpdate
from edge_agent.track.tracker import TrackInput, update_tracks

if TYPE_CHECKING:
    from edge_agent.agent.rounds import PendingItem
    from edge_agent.track.tracker import Tracker, UpstreamTracks

__all__ = ["CameraTracking"]


class CameraTracking:
    """Makes and updates the trackers.

    Args:
        make_tracker: makes the tracker of a camera, at its first frame.
        make_upstream_tracker: makes the tracker of an upstream camera, at its first crops.
    """

    def __init__(
        self, make_tracker: Callable[[str], Tracker], make_upstream_tracker: Callable[[str], UpstreamTracks]
    ) -> None:
        self._make_tracker = make_tracker
        self._make_upstream_tracker = make_upstream_tracker
        self._trackers: dict[str, Tracker] = {}
        self._upstream: dict[str, UpstreamTracks] = {}
        self._latest: dict[str, TrackUpdate] = {}

    @property
    def cameras(self) -> list[str]:
        """Cameras that have a tracker."""
        return [*self._trackers, *self._upstream]

    def update(self, items: Sequence[PendingItem], results: Sequence[list[Embedded]]) -> list[TrackUpdate]:
        """Return the track update of each item, in order; frames of different cameras are updated at once."""
        updates: dict[int, TrackUpdate] = {}
        frames: dict[str, tuple[int, TrackInput]] = {}
        for at, (pending, embedded) in enumerate(zip(items, results, strict=True)):
            item = pending.item
            if isinstance(item, CropBatch):
                updates[at] = self._upstream_tracker(item.camera).update(item, embedded)
                continue
            if item.camera in frames:
                updates.update(_update_frames(frames))
                frames = {}
            height, width = item.image.shape[:2]
            assert pending.detections is not None  # set for every frame
            frames[item.camera] = at, TrackInput(
                self._tracker(item.camera), item.number, item.time, (width, height),
                pending.detections, embedded[0],
            )  # fmt: skip
        updates.update(_update_frames(frames))
        for update in (ordered := [updates[at] for at in range(len(items))]):
            self._latest[update.camera] = update
        return ordered

    def end_tracks(self, camera: str) -> TrackUpdate | None:
        """End the tracks of a camera that continues later; None where it has had no frame."""
        return _finish(self._trackers.get(camera), self._latest.get(camera))

    def end(self, camera: str) -> TrackUpdate | None:
        """End the tracks of a camera for good and remove its tracker; None where there is nothing to end."""
        # A tracker without tracks is false.
        tracker = self._trackers.pop(camera, None) or self._upstream.pop(camera, None)
        return _finish(tracker, self._latest.pop(camera, None))

    def _tracker(self, camera: str) -> Tracker:
        if camera not in self._trackers:
            self._trackers[camera] = self._make_tracker(camera)
        return self._trackers[camera]

    def _upstream_tracker(self, camera: str) -> UpstreamTracks:
        if camera not in self._upstream:
            self._upstream[camera] = self._make_upstream_tracker(camera)
        return self._upstream[camera]


def _finish(tracker: Tracker | UpstreamTracks | None, latest: TrackUpdate | None) -> TrackUpdate | None:
    if tracker is None or latest is None:
        return None
    return tracker.finish(latest.frame, latest.time, latest.size)


def _update_frames(frames: Mapping[str, tuple[int, TrackInput]]) -> Iterator[tuple[int, TrackUpdate]]:
    updates = update_tracks([frame for _, frame in frames.values()])
    return zip((at for at, _ in frames.values()), updates, strict=True)
