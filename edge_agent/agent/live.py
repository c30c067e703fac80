"""Pictures of the cameras for those who watch, with the boxes of the people in them.

The driving thread hands over a reference to a frame, and only of a camera that somebody asked for within the
last `WATCHED_S`, at most `fps` times a second. Scaling and encoding run on the thread that asks, once for all
that ask.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from edge_agent.core.structures import CropBatch, Frame

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_agent.agent.results import FrameOutcome
    from edge_agent.core.page_settings import PageSettings
    from edge_agent.core.presence import PresentPerson
    from edge_agent.identify.tracks import TrackTable

WATCHED_S = 2.0
"""A camera is watched for this time after it was asked for."""
QUALITY = 70
"""Of the JPEG."""
_LEAST_SHARE = 0.75
"""An exact part of a frame, as its half, is much faster to compute: it is taken if it has this share of the
wanted width."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One frame: its facts and boxes as JSON values, and a JPEG, b"" where its source has no pictures."""

    values: dict[str, Any]
    jpeg: bytes


@dataclass(slots=True)
class _Camera:
    """What is known of one watched camera; `number` counts the frames that were handed over."""

    until: float = 0.0
    due: float = 0.0
    number: int = 0
    values: dict[str, Any] = field(default_factory=dict)
    image: NDArray[np.uint8] | None = None
    encoding: threading.Lock = field(default_factory=threading.Lock)
    encoded: tuple[int, Picture] | None = None


class LiveView:
    """The newest frames of watched cameras.

    `people` returns what was published last of the open tracks of a camera, by track number; for any thread.
    """

    def __init__(
        self, tracks: TrackTable, people: Callable[[str], dict[int, PresentPerson]], settings: PageSettings
    ) -> None:
        self.watched = False
        """Whether any camera may be watched: `show` needs a call only then."""
        self._tracks = tracks
        self._people = people
        self._interval_s = 1.0 / settings.fps
        self._width = settings.picture_width
        self._cameras: dict[str, _Camera] = defaultdict(_Camera)
        self._new = threading.Condition()

    def show(self, outcome: FrameOutcome) -> None:
        """Take the frame if somebody waits for it; called on the driving thread."""
        update, now = outcome.update, time.monotonic()
        camera = self._cameras.get(update.camera)
        if camera is None or now < camera.due or outcome.item is None:
            return
        if now > camera.until:
            self._unwatch(camera, now)
            return
        camera.due = max(camera.due + self._interval_s, now + 0.5 * self._interval_s)
        item = outcome.item
        boxes = [self._box(seen.track_id, seen.box, update.camera, update.size) for seen in update.seen]
        if isinstance(item, CropBatch):
            boxes = [box | {"box": None} for box in boxes]  # their places are unknown
        values = {
            "camera": update.camera,
            "frame": update.frame,
            "time": update.time,
            "size": list(update.size),
            "boxes": boxes,
        }
        with self._new:
            camera.values, camera.image = values, item.image if isinstance(item, Frame) else None
            camera.number += 1
            self._new.notify_all()

    def _unwatch(self, camera: _Camera, now: float) -> None:
        with self._new:
            camera.values, camera.image, camera.encoded = {}, None, None  # nobody gets them later as new ones
            self.watched = any(one.until >= now for one in self._cameras.values())

    def _box(
        self, track_id: int, box: NDArray[np.float32], camera: str, size: tuple[int, int]
    ) -> dict[str, Any]:
        """Return one track: its box as fractions of the frame, and how far its decision is."""
        width, height = size
        x1, y1, x2, y2 = box.tolist()
        shown: dict[str, Any] = {
            "track": track_id,
            "box": [round(x1 / width, 4), round(y1 / height, 4), round(x2 / width, 4), round(y2 / height, 4)],
            "state": "undecided",
            "score": None,
        }
        track = self._tracks.get((camera, track_id))
        if track is None:
            return shown
        threshold = None if track.threshold is None else track.threshold.value
        if track.score is not None and not track.founder:  # a new person's is that of the nearest other one
            shown["score"] = round(float(track.score), 3)
        if track.number is not None:
            shown["state"] = "matched"
        elif track.score is not None and threshold is not None and track.score >= threshold:
            shown["state"] = "ambiguous"
        return shown

    def picture(self, camera: str, after: int, wait_s: float) -> tuple[int, Picture | None]:
        """Return the newest picture that has a number above `after`, and its number; None: none came.

        Waits at most `wait_s` for it. Keeps the camera watched.
        """
        deadline = time.monotonic() + wait_s
        with self._new:
            entry = self._cameras[camera]
            entry.until = time.monotonic() + WATCHED_S + wait_s
            self.watched = True
            if after > entry.number:
                after = 0  # of another run
            while entry.number <= after or not entry.values:
                left = deadline - time.monotonic()
                if left <= 0 or not self._new.wait(left):
                    return after, None
        with entry.encoding:
            with self._new:
                number, values, image = entry.number, entry.values, entry.image
            if entry.encoded is None or entry.encoded[0] != number:
                shown = values | {"boxes": self._named(camera, values["boxes"])}
                entry.encoded = number, Picture(shown, b"" if image is None else self._encode(image))
            return entry.encoded

    def _named(self, camera: str, boxes: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the boxes with the person of each track, as published last."""
        people = self._people(camera)
        return [box | _person(people.get(box["track"])) for box in boxes]

    def _encode(self, image: NDArray[np.uint8]) -> bytes:
        height, width = image.shape[:2]
        if width > self._width:
            parts = round(width / self._width)
            if parts > 1 and width // parts >= _LEAST_SHARE * self._width:
                size, how = (width // parts, height // parts), cv2.INTER_AREA
            else:
                size, how = (self._width, round(height * self._width / width)), cv2.INTER_LINEAR
            size = size[0], max(1, size[1])
            image = np.asarray(cv2.resize(image, size, interpolation=how), np.uint8)
        encoded: bytes = simplejpeg.encode_jpeg(
            np.ascontiguousarray(image), quality=QUALITY, colorspace="BGR", colorsubsampling="420"
        )
        return encoded


def _person(person: PresentPerson | None) -> dict[str, Any]:
    if person is None or person.identity_id is None:
        return {}
    return {"identity": person.identity_id, "number": person.number, "name": person.name}
