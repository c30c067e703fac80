"""Boxes from an upstream detector, over MQTT, for frames that the agent reads itself.

What the messages look like stands in `edge_agent.source.boxes`; here they are received, kept for a while,
and matched with frames by camera and frame number, or by camera and time.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import structlog

from edge_agent.core.errors import SourceError
from edge_agent.core.structures import Detections, Frame
from edge_agent.source.boxes import MAX_PAYLOAD_BYTES, BoxMessage, parse_deepstream, parse_own

if TYPE_CHECKING:
    from paho.mqtt.client import Client, MQTTMessage

__all__ = ["ExternalBoxes", "ExternalCounts"]

_log = structlog.get_logger(__name__)

Format = Literal["edge-agent", "deepstream"]
Match = Literal["auto", "frame", "time"]

_MAX_CAMERAS = 64
"""Cameras kept apart; the one unheard for longest makes room. Ids come from outside."""
_CONNECT_SECONDS = 2.0
"""Blocks the client's thread, and so the end of the program, at most so long."""
_LONGEST_WAIT_SECONDS = 30


@dataclass(frozen=True, slots=True)
class ExternalCounts:
    """What became of the messages and frames so far.

    Attributes:
        received: messages understood.
        malformed: messages refused: not of the format, too large, or retained.
        late: messages for a frame that had already gone on without them.
        matched: frames that got their boxes.
        missed: frames that got none in time.
    """

    received: int = 0
    malformed: int = 0
    late: int = 0
    matched: int = 0
    missed: int = 0


class _Recent:
    """The latest messages of one camera, in order of arrival, and how far its frames have come."""

    def __init__(self, size: int) -> None:
        self.messages: deque[tuple[float, BoxMessage]] = deque(maxlen=size)
        self.heard = -math.inf
        self.asked_number = 0
        self.asked_time = -math.inf

    def forget_before(self, moment: float) -> None:
        while self.messages and self.messages[0][0] < moment:
            self.messages.popleft()


class ExternalBoxes:
    """Listens to an upstream detector, and finds the boxes that belong to a frame.

    A frame waits for its boxes at most `wait_seconds`, and not at all while its camera has been silent for
    `window_seconds`, or when a message for a later frame has already come: one camera's upstream that is
    down must not slow the others. Connects, and connects again, by itself; until then frames get no boxes.

    Args:
        host, port: the broker.
        topics: MQTT topic filters to subscribe to.
        format: `edge-agent` or `deepstream`, see the module.
        match: by `frame` number, by `time`, or `auto`: own messages by number where they have one;
            DeepStream's by time, since it counts frames from when it was started.
        wait_seconds: how long `detect_frame` waits.
        tolerance_seconds: largest distance between the times of a frame and of its boxes.
        window_seconds: messages are kept so long.
        buffer: messages kept for each camera.
        cameras: ids of our sources by upstream's names; a name that is not in it stands for itself.
        labels: DeepStream objects that are people.
        size: `(width, height)` of the picture that DeepStream's boxes are pixels of (its muxer's), where
            that is not the frame's.
        tls, ca_file, cert_file, key_file: encryption, certificates as PEM files.
        username, password: None for none.
        version: of MQTT.
        keepalive_s: a dead broker is noticed after about twice this.
    """

    def __init__(
        self,
        host: str,
        port: int = 1883,
        *,
        topics: Sequence[str],
        format: Format = "edge-agent",  # noqa: A002 - the name that the setting has
        match: Match = "auto",
        wait_seconds: float = 0.2,
        tolerance_seconds: float = 0.05,
        window_seconds: float = 5.0,
        buffer: int = 256,
        cameras: Mapping[str, str] | None = None,
        labels: Sequence[str] = ("person",),
        size: tuple[int, int] | None = None,
        tls: bool = False,
        ca_file: str | Path | None = None,
        cert_file: str | Path | None = None,
        key_file: str | Path | None = None,
        username: str | None = None,
        password: str | None = None,
        version: Literal["5", "3.1.1"] = "5",
        keepalive_s: int = 15,
    ) -> None:
        if not topics:
            raise SourceError("external boxes: no MQTT topic to listen to")
        self._host, self._port = host, port
        self._topics = tuple(topics)
        self._parse: Callable[[bytes], BoxMessage] = parse_own
        if format == "deepstream":
            self._parse = lambda payload: parse_deepstream(payload, labels=labels)
        self._by_time = match == "time" or (match == "auto" and format == "deepstream")
        self._by_number = match == "frame"
        self._wait_seconds = wait_seconds
        self._tolerance = tolerance_seconds
        self._window = window_seconds
        self._buffer = buffer
        self._cameras = dict(cameras or {})
        self._size = size if format == "deepstream" else None
        self._tls = (ca_file, cert_file, key_file) if tls else None
        self._login = (username, password)
        self._version = version
        self._keepalive = keepalive_s
        self._client: Client | None = None
        self._changed = threading.Condition()
        self._recent: OrderedDict[str, _Recent] = OrderedDict()
        self._started = -math.inf
        self._connected = False
        self._told: set[str] = set()
        self._counts = dict.fromkeys(ExternalCounts.__slots__, 0)

    def __enter__(self) -> ExternalBoxes:
        self._started = time.monotonic()
        self._client = self._open_client()
        self._client.connect_async(self._host, self._port, self._keepalive, **self._connect_options())
        self._client.loop_start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            self._connected = False  # on purpose: no warning
            self._client.disconnect()
            self._client.loop_stop()
            self._client = None

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted the connection and the subscription."""
        return self._connected

    @property
    def counts(self) -> ExternalCounts:
        """What became of the messages and frames so far."""
        with self._changed:
            return ExternalCounts(**self._counts)

    def detect_frame(self, frame: Frame) -> Detections:
        """The boxes that came with the frame, else those that match it, else none (counted as missed)."""
        if frame.external is not None:
            return frame.external
        found = self.boxes_for(frame, self._wait_seconds)
        return Detections.none() if found is None else found

    def boxes_for(self, frame: Frame, timeout: float) -> Detections | None:
        """The boxes that upstream found in `frame`, None where they did not come within `timeout` seconds.

        A frame in which upstream found nobody gives an empty `Detections`.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            recent = self._recent_of(frame.camera)
            while True:
                message, may_come = self._search(recent, frame)
                left = deadline - time.monotonic()
                if message is not None and not may_come:
                    break
                if left <= 0 or not may_come or not self._expects(recent):
                    break
                self._changed.wait(left)
            recent.asked_number = max(recent.asked_number, frame.number)
            recent.asked_time = max(recent.asked_time, frame.time)
            self._counts["missed" if message is None else "matched"] += 1
        return None if message is None else message.on(frame)

    # ---- matching; the caller holds the lock ------------------------------------------------------

    def _recent_of(self, camera: str) -> _Recent:
        recent = self._recent.pop(camera, None) or _Recent(self._buffer)
        self._recent[camera] = recent  # the last one is the latest used
        while len(self._recent) > _MAX_CAMERAS:
            self._recent.popitem(last=False)
        return recent

    def _expects(self, recent: _Recent) -> bool:
        """Whether it is worth waiting: the camera was heard lately, or nobody had the time to be heard."""
        return time.monotonic() - max(recent.heard, self._started) < self._window

    def _search(self, recent: _Recent, frame: Frame) -> tuple[BoxMessage | None, bool]:
        """The best message so far, and whether a better one may still come."""
        recent.forget_before(time.monotonic() - self._window)
        best, distance, passed = None, math.inf, False
        for _, message in recent.messages:
            if self._numbered(message):
                if message.number == frame.number:
                    return message, False
                passed |= (message.number or 0) > frame.number
            elif message.time is not None:
                passed |= message.time >= frame.time
                apart = abs(message.time - frame.time)
                if apart <= self._tolerance and apart < distance:
                    best, distance = message, apart
        return best, not passed

    def _numbered(self, message: BoxMessage) -> bool:
        return message.number is not None and (
            self._by_number or not (self._by_time and message.time is not None)
        )

    def _is_late(self, recent: _Recent, message: BoxMessage) -> bool:
        if self._numbered(message):
            return message.number is not None and message.number <= recent.asked_number
        return message.time is not None and message.time < recent.asked_time - self._tolerance

    # ---- the client's thread ----------------------------------------------------------------------

    def _open_client(self) -> Client:
        from paho.mqtt.client import Client, MQTTv5, MQTTv311
        from paho.mqtt.enums import CallbackAPIVersion

        protocol = MQTTv5 if self._version == "5" else MQTTv311
        client = Client(CallbackAPIVersion.VERSION2, protocol=protocol)
        client.connect_timeout = _CONNECT_SECONDS
        client.reconnect_delay_set(1, _LONGEST_WAIT_SECONDS)
        username, password = self._login
        if username is not None:
            client.username_pw_set(username, password)
        if self._tls is not None:
            ca_file, cert_file, key_file = (None if path is None else str(path) for path in self._tls)
            try:
                client.tls_set(ca_file, cert_file, key_file)
            except (OSError, ValueError) as problem:
                raise SourceError(f"external boxes: TLS files cannot be used: {problem}") from problem
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        return client

    def _connect_options(self) -> dict[str, Any]:
        if self._version != "5":
            return {}
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties

        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call] # paho says nothing of it
        properties.MaximumPacketSize = 2 * MAX_PAYLOAD_BYTES  # larger ones need not even cross the wire
        return {"clean_start": True, "properties": properties}

    def _on_connect(self, client: Client, *details: Any) -> None:  # noqa: ANN401 - paho's signature
        reason = details[2]
        if reason.is_failure:
            self._tell("refused", f"the broker refuses the connection: {reason}")
            return
        client.subscribe([(topic, 0) for topic in self._topics])

    def _on_connect_fail(self, *_: Any) -> None:  # noqa: ANN401 - paho's signature
        self._tell("unreachable", "the broker does not answer")

    def _on_disconnect(self, *details: Any) -> None:  # noqa: ANN401 - paho's signature
        if self._connected:
            self._connected = False
            _log.warning("external_boxes_disconnected", host=self._host, reason=str(details[3]))

    def _on_subscribe(self, *details: Any) -> None:  # noqa: ANN401 - paho's signature
        reasons = details[3]
        for topic, reason in zip(self._topics, reasons, strict=False):
            if reason.is_failure:
                self._tell(f"subscribe {topic}", f"the broker refuses the subscription to {topic}: {reason}")
        if all(reason.is_failure for reason in reasons):
            return
        self._connected = True
        self._told.discard("unreachable")
        _log.info("external_boxes_connected", host=self._host, port=self._port, topics=self._topics)

    def _on_message(self, _client: Client, _data: object, arrived: MQTTMessage) -> None:
        if arrived.retain:
            self._refuse(arrived.topic, "retained: it belongs to a frame of long ago")
            return
        try:
            message = self._parse(bytes(arrived.payload))
        except ValueError as problem:
            self._refuse(arrived.topic, str(problem))
        else:
            self.add(message)

    def _refuse(self, topic: str, reason: str) -> None:
        with self._changed:
            self._counts["malformed"] += 1
        self._tell(f"malformed {topic}", f"message on {topic} refused: {reason}")

    def add(self, message: BoxMessage) -> None:
        """Take a message in, as if it had come over MQTT."""
        if self._size is not None and message.size is None:
            size = (float(self._size[0]), float(self._size[1]))
            message = replace(message, size=size)
        now = time.monotonic()
        with self._changed:
            recent = self._recent_of(self._cameras.get(message.camera, message.camera))
            recent.heard = now
            recent.forget_before(now - self._window)
            self._counts["received"] += 1
            if self._is_late(recent, message):
                self._counts["late"] += 1
                return
            recent.messages.append((now, message))
            self._changed.notify_all()

    def _tell(self, key: str, text: str) -> None:
        """The first time at WARNING, later at DEBUG; the keys come from us or from our subscriptions."""
        log = _log.debug
        if key not in self._told and len(self._told) < _MAX_CAMERAS:
            self._told.add(key)
            log = _log.warning
        log("external_boxes_trouble", host=self._host, port=self._port, reason=text)
