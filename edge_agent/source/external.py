"""Boxes from an upstream detector, over MQTT or Kafka, for frames that the agent reads itself.

`source.transport` receives the messages and `source.boxes` parses them; this module keeps them for some
seconds, and matches them with frames by camera and frame number or time.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from edge_agent.core.errors import BrokerRefused, SourceError
from edge_agent.core.mqtt import Incoming
from edge_agent.core.structures import Detections, Frame, ScoreLevels
from edge_agent.core.text import visible
from edge_agent.source.boxes import MAX_PAYLOAD_BYTES, BoxMessage, parse_deepstream, parse_own
from edge_agent.source.transport import Broker, receiver

if TYPE_CHECKING:
    from edge_agent.core.config import DetectorSettings

_log = structlog.get_logger(__name__)

LEVELS = ScoreLevels(low=0.1, high=0.5, new_track=0.5)
"""Boxes without a score have 1.0."""
MAX_CAMERAS = 64
"""Cameras that are kept; the least recently used one is dropped. Their ids come from outside."""
WINDOW_S = 5.0
"""Messages are kept for this time; a camera that was silent for this time is not waited for."""
MESSAGES_PER_CAMERA = 256
_MAX_REPORTS = 256
"""Problems that are logged at WARNING, each once."""
_MEANING = {
    "form": "not four numbers, with a number as score",
    "range": "not finite, or beyond a million pixels",
    "empty": "empty or upside down",
    "score": "the confidence is not in 0..1",
    "twice": "the same id and box a second time",
    "outside": "outside the picture",
}


class _Recent:
    """The latest messages of one camera in order of arrival, and its newest requested frame."""

    def __init__(self) -> None:
        self.messages: deque[tuple[float, BoxMessage]] = deque(maxlen=MESSAGES_PER_CAMERA)
        self.last_message = -math.inf
        self.last_number = 0
        self.last_time = -math.inf
        self.labelled = False
        """Whether a message held an object with a label of people."""

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
        ConfigError: Kafka has no topic of such a name.
    """

    def __init__(
        self,
        settings: DetectorSettings,
        broker: Broker,
        current: Callable[[float], float] = float,
    ) -> None:
        if not settings.external_topics:
            raise SourceError("external boxes: no topic to listen to")
        self._settings = settings
        self._broker = broker
        self._current = current
        self._deepstream = settings.external_format == "deepstream"
        match = settings.external_match
        self._by_number = match == "frame"
        self._by_time = match == "time" or (match == "auto" and self._deepstream)
        self._tolerance = settings.external_tolerance_ms / 1000
        self._receiver = receiver(
            broker,
            settings.external_topics,
            self._on_message,
            on_change=self._on_change,
            on_problem=self._report,
            max_packet=2 * MAX_PAYLOAD_BYTES,
        )
        self._changed = threading.Condition()
        self._recent: OrderedDict[str, _Recent] = OrderedDict()
        self._started = time.monotonic()
        self._reported: set[str] = set()
        self.left_out = dict.fromkeys(("message", *_MEANING), 0)
        """Refused messages, and boxes left out of the others by fault; see `source.boxes`."""
        self.connected = False
        """Whether the broker has accepted the connection and the subscription."""

    def __enter__(self) -> ExternalBoxes:
        self._started = time.monotonic()
        try:
            self._receiver.open_in_background()
        except BrokerRefused as problem:
            raise SourceError(f"external boxes: {problem}") from problem
        return self

    def __exit__(self, *_: object) -> None:
        self._receiver.close()

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
                message, may_come = self._search(recent, frame)
                left = deadline - time.monotonic()
                # A camera is alive if it had a message lately, or has had no time for one since the start.
                alive = time.monotonic() - max(recent.last_message, self._started) < WINDOW_S
                if not may_come or left <= 0 or not alive:
                    break
                self._changed.wait(left)
            recent.last_number = max(recent.last_number, frame.number)
            recent.last_time = self._current(frame.time)
            if message is None:
                return None
            found = message.on(frame)
            self._count(frame.camera, {"outside": len(message.boxes) - len(found)})
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

    def _on_change(self, connected: bool, reason: str) -> None:
        was_connected, self.connected = self.connected, connected
        if connected:
            self._reported.discard("unreachable")
            topics = self._settings.external_topics
            _log.info("external_boxes_connected", broker=self._broker.url, topics=topics)
        elif was_connected:
            _log.warning("external_boxes_disconnected", broker=self._broker.url, reason=reason)

    def _on_message(self, arrived: Incoming) -> None:
        try:
            self.add(self._parse(arrived))
        except ValueError as problem:
            self.left_out["message"] += 1
            self._report(f"malformed {arrived.topic}", f"message on {arrived.topic} refused: {problem}")

    def _parse(self, arrived: Incoming) -> BoxMessage:
        if arrived.retained:
            raise ValueError("it is retained, so its frame has long passed")
        if self._deepstream:
            return parse_deepstream(arrived.payload, self._settings.external_labels)
        return parse_own(arrived.payload)

    def add(self, message: BoxMessage) -> None:
        """Add a message as if it had been received."""
        size = self._settings.external_size
        if self._deepstream and size is not None and message.size is None:
            message = replace(message, size=(float(size[0]), float(size[1])))
        camera = self._settings.external_cameras.get(message.camera, message.camera)
        now = time.monotonic()
        with self._changed:
            recent = self._recent_of(camera)
            recent.last_message = now
            self._examine(camera, recent, message)
            recent.drop_before(now - WINDOW_S)
            if self._is_late(recent, message):
                return
            recent.messages.append((now, message))
            self._changed.notify_all()

    def _examine(self, camera: str, recent: _Recent, message: BoxMessage) -> None:
        """Count and report what is wrong with a message that was taken; the caller holds the condition."""
        self._count(camera, message.left_out)
        recent.labelled |= bool(message.people)
        if message.other_labels and not recent.labelled:
            labels = ", ".join(visible(label, 40) for label in message.other_labels)
            known = ", ".join(self._settings.external_labels)
            self._report(
                f"labels {camera}",
                f"camera {camera}: no object so far has a label of detector.external_labels ({known});"
                f" its objects are labelled {labels}",
            )
        if message.time is not None and not self._is_numbered(message) and math.isfinite(recent.last_time):
            apart = message.time - recent.last_time
            if abs(apart) > WINDOW_S:
                self._report(
                    f"time {camera}",
                    f"camera {camera}: a message is {apart:+.0f} s from the latest frame and belongs to none;"
                    " both clocks must agree (NTP), and upstream must send the time of capture",
                )

    def _count(self, camera: str, faults: Mapping[str, int]) -> None:
        for fault, number in faults.items():
            if number:
                self.left_out[fault] += number
                self._report(
                    f"{fault} {camera}",
                    f"camera {camera}: {number} of the boxes of a frame left out: {_MEANING[fault]}",
                )

    def _report(self, key: str, text: str) -> None:
        """Log the first problem of a kind at WARNING, later ones at DEBUG."""
        log = _log.debug
        if key not in self._reported and len(self._reported) < _MAX_REPORTS:
            self._reported.add(key)
            log = _log.warning
        log("external_boxes_trouble", broker=self._broker.url, reason=text)
