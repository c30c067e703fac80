"""Frames from messages of one object each, DeepStream's full format.

Such a message has no frame number: the messages of one sensor with the same time form a frame. It is complete
when a message of a later time comes, or after `QUIET_S` without one. A message for a frame that was complete
is late, and left out. DeepStream's newer interface stamps each message when it is written, so that those of a
frame may be some milliseconds apart: they belong together until a track comes again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from edge_agent.source.box_message import MAX_BOXES, SHOWN_LABELS, BoxMessage

QUIET_S = 0.1
"""Time without a message of the sensor after which its frame is complete."""
SAME_FRAME_S = 0.003
"""Messages of one frame are stamped within this time."""
CLOCK_SET_S = 5.0
"""A time that goes back by more is of a clock that was set, or of a recording that starts again."""
MAX_CAMERAS = 64


@dataclass(slots=True)
class _Camera:
    """The frame of a camera that is being assembled.

    Attributes:
        parts: its messages; empty when it is complete.
        latest: time of the frame, or of the one that was complete last.
        tracks: those in its messages.
        arrived: when the last part came, monotonic seconds.
    """

    parts: list[BoxMessage] = field(default_factory=list)
    latest: float | None = None
    tracks: set[int] = field(default_factory=set)
    arrived: float = 0.0


class FrameAssembly:
    """Joins messages to frames; messages that are whole frames pass through. For one thread at a time.

    `leave_out` is called with the camera, a fault and the number of boxes of a message that are not used:
    `late`, or `twice` for a track that was in the frame already.
    """

    def __init__(self, leave_out: Callable[[str, str, int], None]) -> None:
        self._leave_out = leave_out
        self._cameras: OrderedDict[str, _Camera] = OrderedDict()

    def add(self, message: BoxMessage, now: float) -> list[BoxMessage]:
        """Return the frames that are complete now, in order. `now` in monotonic seconds."""
        if message.whole:
            return [message]
        assert message.time is not None  # such messages are refused without it
        one = self._cameras.setdefault(message.camera, _Camera())
        self._cameras.move_to_end(message.camera)
        while len(self._cameras) > MAX_CAMERAS:
            self._cameras.popitem(last=False)
        tracks = {track for track in message.tracks if track is not None}
        again = bool(tracks & one.tracks)
        since = None if one.latest is None else message.time - one.latest
        fault, done = "", list[BoxMessage]()
        if since is None or since <= -CLOCK_SET_S:
            done = _close(one)
        elif one.parts and (since == 0 or (abs(since) <= SAME_FRAME_S and not again)):
            fault = "twice" if again else "late" if len(one.parts) >= MAX_BOXES else ""
        elif since <= (0 if one.parts else SAME_FRAME_S):
            fault = "late"
        else:
            done = _close(one)
        if fault:
            self._leave_out(message.camera, fault, len(message.boxes))
            return done
        if not one.parts:
            one.latest = message.time
        one.tracks |= tracks
        one.parts.append(message)
        one.arrived = now
        return done

    def due(self, now: float) -> list[BoxMessage]:
        """Return the frames that are complete because nothing more came."""
        return [
            frame
            for one in self._cameras.values()
            if one.parts and now - one.arrived >= QUIET_S
            for frame in _close(one)
        ]

    def seconds_to_due(self, now: float) -> float | None:
        """Return the seconds until `due` returns a frame, None while none is being assembled."""
        waits = [one.arrived + QUIET_S - now for one in self._cameras.values() if one.parts]
        return max(0.0, min(waits)) if waits else None


def _close(one: _Camera) -> list[BoxMessage]:
    """Return the frame that is being assembled, if there is one."""
    parts, one.parts, one.tracks = one.parts, [], set()
    if not parts:
        return []
    one.latest = max(part.time for part in parts if part.time is not None)
    return [_joined(parts)]


def _joined(parts: list[BoxMessage]) -> BoxMessage:
    first = parts[0]
    left_out: dict[str, int] = {}
    for part in parts:
        for fault, number in part.left_out.items():
            left_out[fault] = left_out.get(fault, 0) + number
    vectors = [part.vectors for part in parts if part.vectors is not None]
    embedded = [part.embedded for part in parts if part.embedded is not None]
    others = sorted({label for part in parts for label in part.other_labels})
    return replace(
        first,
        boxes=np.concatenate([part.boxes for part in parts]),
        scores=np.concatenate([part.scores for part in parts]),
        left_out=left_out,
        people=sum(part.people or 0 for part in parts),
        other_labels=tuple(others[:SHOWN_LABELS]),
        tracks=tuple(track for part in parts for track in part.tracks),
        vectors=np.concatenate(vectors) if vectors else None,
        embedded=np.concatenate(embedded) if embedded else None,
        whole=True,
    )
