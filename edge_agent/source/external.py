"""Boxes from an upstream detector, over MQTT or Kafka, for frames that the agent reads itself.

`source.upstream` receives and parses the messages; this module keeps them for some seconds, and matches them
with frames by camera and frame number or time.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from edge_agent.core.structures import Detections, Frame, ScoreLevels
from edge_agent.source.assembly import MAX_CAMERAS, FrameAssembly
from edge_agent.source.box_message import BoxMessage
from edge_agent.source.boxes import parse_deepstream, parse_own
from edge_agent.source.transport import Broker
from edge_agent.source.upstream import Upstream

if TYPE_CHECKING:
    from edge_agent.core.config import DetectorSettings

LEVELS = ScoreLevels(low=0.1, high=0.5, new_track=0.5)
"""Boxes without a score have 1.0."""
WINDOW_S = 5.0
"""Messages are kept for this time; a camera that was silent for this time is not waited for."""
MESSAGES_PER_CAMERA = 256


class _Recent:
    """The latest messages of one camera in order of arrival, and its newest requested frame."""

    def __init__(self) -> None:
        self.messages: deque[tuple[float, BoxMessage]] = deque(maxlen=MESSAGES_PER_CAMERA)
        self.last_message = -math.inf
        self.last_number = 0
        self.last_time = -math.inf

    def drop_before(self, moment: float) -> None:
        while self.messages and self.messages[0][0] < moment:
            self.messages.popleft()


class ExternalBoxes:
    """Receives boxes from an upstream detector, and finds those that belong to a frame.

    A frame waits for its boxes at most `external_wait_ms`. It does not wait when its camera has been silent
    for `WINDOW_S`, or when a message for a later frame has already come: one camera whose upstream is down
    must not delay the others. The connection is made, and made again, in the background; meanwhile frames
    get no boxes.

    Own messages are matched by number where they have one; DeepStream's by time by default, since it counts
    frames from its own start.

    Raises:
        SourceError: no topic is set.
    """

    def __init__(
        self,
        settings: DetectorSettings,
        broker: Broker,
        current: Callable[[float], float] = float,
    ) -> None:
        self._settings = settings
        self._current = current
        self._deepstream = settings.external_format == "deepstream"
        match = settings.external_match
        self._by_number = match == "frame"
        self._by_time = match == "time" or (match == "auto" and self._deepstream)
        self._tolerance = settings.external_tolerance_ms / 1000
        self._upstream = Upstream(settings, broker, self._parse, self.add)
        self._assembly = FrameAssembly(self._leave_out)
        self._changed = threading.Condition()
        self._recent: OrderedDict[str, _Recent] = OrderedDict()
        self._started = time.monotonic()

    @property
    def left_out(self) -> Mapping[str, int]:
        """Refused messages, and boxes left out of the others by fault; see `source.box_message`."""
        return self._upstream.left_out

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted the connection and the subscription."""
        return self._upstream.connected

    def __enter__(self) -> ExternalBoxes:
        self._started = time.monotonic()
        self._upstream.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._upstream.__exit__()

    def detect_frame(self, frame: Frame) -> Detections:
        """Return the boxes that came with the frame, else those that match it, else none."""
        if frame.external is not None:
            return frame.external
        found = self.boxes_for(frame, self._settings.external_wait_ms / 1000)
        return Detections.none() if found is None else found

    def boxes_for(self, frame: Frame, timeout: float) -> Detections | None:
        """Return the boxes that upstream found in `frame`, None where none come within `timeout` seconds.

        A frame in which upstream found no people gives an empty `Detections`.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            recent = self._recent_of(frame.camera)
            while True:
                now = time.monotonic()
                self._keep(self._assembly.due(now), now)
                message, may_come = self._search(recent, frame)
                left = deadline - time.monotonic()
                # A camera is alive if it had a message lately, or has had no time for one since the start.
                alive = time.monotonic() - max(recent.last_message, self._started) < WINDOW_S
                if not may_come or left <= 0 or not alive:
                    break
                due = self._assembly.seconds_to_due(time.monotonic())
                self._changed.wait(left if due is None else min(left, due))
            recent.last_number = max(recent.last_number, frame.number)
            recent.last_time = self._current(frame.time)
            if message is None:
                return None
            found = message.on(frame)
            self._upstream.count(frame.camera, {"outside": len(message.boxes) - len(found)})
        return found

    def _recent_of(self, camera: str) -> _Recent:
        recent = self._recent.setdefault(camera, _Recent())
        self._recent.move_to_end(camera)
        while len(self._recent) > MAX_CAMERAS:
            self._recent.popitem(last=False)
        return recent

    def _search(self, recent: _Recent, frame: Frame) -> tuple[BoxMessage | None, bool]:
        """Return the best message so far, and whether a better one may still come."""
        recent.drop_before(time.monotonic() - WINDOW_S)
        best, distance, passed = None, math.inf, False
        frame_time = self._current(frame.time)
        for _, message in recent.messages:
            if self._is_numbered(message):
                if message.number == frame.number:
                    return message, False
                passed |= (message.number or 0) > frame.number
            elif message.time is not None:
                apart = abs(message.time - frame_time)
                # A time that is far ahead is wrong, and shows nothing about the order of messages.
                passed |= message.time >= frame_time and apart < WINDOW_S
                if apart <= self._tolerance and apart < distance:
                    best, distance = message, apart
        return best, not passed

    def _is_numbered(self, message: BoxMessage) -> bool:
        """Whether the message is matched by its frame number."""
        return message.number is not None and (
            self._by_number or not (self._by_time and message.time is not None)
        )

    def _is_late(self, recent: _Recent, message: BoxMessage) -> bool:
        if self._is_numbered(message):
            return message.number is not None and message.number <= recent.last_number
        return message.time is not None and message.time < recent.last_time - self._tolerance

    def _parse(self, payload: bytes) -> BoxMessage:
        if self._deepstream:
            return parse_deepstream(payload, self._settings.external_labels)
        return parse_own(payload)

    def add(self, message: BoxMessage) -> None:
        """Add a message, which belongs to the camera that `external_cameras` names."""
        size = self._settings.external_size
        if self._deepstream and size is not None and message.size is None:
            message = replace(message, size=(float(size[0]), float(size[1])))
        message = message.of(self._settings.external_cameras.get(message.camera, message.camera))
        now = time.monotonic()
        with self._changed:
            self._recent_of(message.camera).last_message = now
            self._keep(self._assembly.add(message, now), now)
            self._changed.notify_all()

    def _keep(self, frames: Sequence[BoxMessage], now: float) -> None:
        """Keep messages of whole frames; the caller holds the condition."""
        for message in frames:
            recent = self._recent_of(message.camera)
            self._upstream.examine(message.camera, message)
            self._check_time(recent, message)
            recent.drop_before(now - WINDOW_S)
            if not self._is_late(recent, message):
                recent.messages.append((now, message))

    def _leave_out(self, camera: str, fault: str, boxes: int) -> None:
        self._upstream.count(camera, {fault: boxes})

    def _check_time(self, recent: _Recent, message: BoxMessage) -> None:
        if message.time is None or self._is_numbered(message) or not math.isfinite(recent.last_time):
            return
        apart = message.time - recent.last_time
        if abs(apart) > WINDOW_S:
            self._upstream.report(
                f"time {message.camera}",
                f"camera {message.camera}: a message is {apart:+.0f} s from the latest frame and belongs to"
                " none; both clocks must agree (NTP), and upstream must send the time of capture",
            )
