"""Cameras without pictures: an upstream pipeline reports people, tracks and embeddings in messages.

All such sources share one connection. Messages are those of DeepStream, in any of its forms
(`source.deepstream`), over the topics of `detector.external_topics`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from edge_agent.core.errors import ConfigError, SourceLost
from edge_agent.core.structures import Detections, MessageFrame
from edge_agent.core.text import visible
from edge_agent.source.assembly import CLOCK_SET_S, FrameAssembly
from edge_agent.source.box_message import BoxMessage
from edge_agent.source.deepstream import parse_deepstream
from edge_agent.source.pipelines import Size
from edge_agent.source.transport import upstream_broker
from edge_agent.source.upstream import Upstream

if TYPE_CHECKING:
    from edge_agent.core.config import Settings

BACKLOG = 64
"""Frames of one camera that may wait; more drop the oldest."""
SILENT_S = 30.0
"""Without a message for this time after the start, the name of the sensor or the topic may be wrong."""
CONNECT_S = 6.0
"""Wait for the connection at the start of a source; a slow one must be done by then."""
LOST_S = 2.0
"""A connection that is lost for longer is an outage of the source."""
_TICK_S = 0.5
_MOST_UNKNOWN = 16
"""Sensors without a source that are named in the log; their names come from outside."""
_MARGIN_S = 0.1


class MessageReceiver:
    """Receives the messages of all sources of this kind, while at least one of them is read.

    `others` are the ids of sources with pictures, whose boxes may come over the same topics.

    Raises:
        ConfigError: a setting is missing.
    """

    def __init__(self, settings: Settings, others: Collection[str] = ()) -> None:
        chosen = settings.detector
        wanted = {
            "detector.external_topics, the topics of the messages": chosen.external_topics,
            "detector.external_space, the space of the embeddings in the messages": chosen.external_space,
        }
        for setting in (name for name, value in wanted.items() if not value):
            raise ConfigError(f"a source deepstream:SENSOR needs {setting}")
        parse = partial(parse_deepstream, labels=chosen.external_labels, dimension=chosen.external_dimension)
        self.lost_s = settings.tracker.lost_s
        self.size = chosen.external_size
        """Size of the picture of sources that have none of their own."""
        self._names = chosen.external_cameras
        self._upstream = Upstream(chosen, upstream_broker(settings), parse, self.add)
        self._others = frozenset(others)
        self._routes: dict[str, str] = {}
        self._inboxes: dict[str, deque[BoxMessage]] = {}
        self._assembly = FrameAssembly(self._leave_out)
        self._changed = threading.Condition()
        self._lifetime = threading.Lock()
        self._users = 0
        self._unknown: set[str] = set()

    @property
    def left_out(self) -> Mapping[str, int]:
        """Refused messages, and boxes left out of the others by fault; see `source.box_message`."""
        return self._upstream.left_out

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted the connection and the subscription."""
        return self._upstream.connected

    @property
    def address(self) -> str:
        """Address of the broker, without a login."""
        return self._upstream.address

    def route(self, sensor: str, camera: str) -> None:
        """Give the messages of a sensor to a camera; ConfigError where another camera has them."""
        owner = self._routes.setdefault(sensor, camera)
        if owner != camera:
            raise ConfigError(f"sources {owner} and {camera} both take the sensor {sensor!r}")
        for name, wanted in self._names.items():
            if wanted == camera:
                self._routes.setdefault(name, camera)

    @contextmanager
    def receiving(self, camera: str) -> Iterator[None]:
        """Receive the messages of a camera during the block."""
        with self._lifetime:
            if not self._users:
                self._upstream.__enter__()
            self._users += 1
        with self._changed:
            self._inboxes[camera] = deque(maxlen=BACKLOG)
        try:
            yield
        finally:
            with self._changed:
                self._inboxes.pop(camera, None)
            with self._lifetime:
                self._users -= 1
                if not self._users:
                    self._upstream.__exit__()

    def take(self, camera: str, timeout: float) -> BoxMessage | None:
        """Return the next frame of a camera, None where none comes within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                now = time.monotonic()
                self._put(self._assembly.due(now))
                inbox = self._inboxes.get(camera)
                if inbox:
                    return inbox.popleft()
                left = deadline - now
                if left <= 0:
                    return None
                due = self._assembly.seconds_to_due(now)
                self._changed.wait(left if due is None else min(left, max(due, 0.001)))

    def wait_for_connection(self, timeout: float) -> bool:
        """Wait until the broker has accepted the subscription; False where it does not in time."""
        deadline = time.monotonic() + timeout
        while not self.connected and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.connected

    def add(self, message: BoxMessage) -> None:
        """Add a message as if it had come from the broker."""
        camera = self._routes.get(message.camera)
        if camera is None:
            if self._names.get(message.camera, message.camera) not in self._others:
                self._count_unknown(message)
            return
        with self._changed:
            self._put(self._assembly.add(message.of(camera), time.monotonic()))

    def _count_unknown(self, message: BoxMessage) -> None:
        name = visible(message.camera)
        if name not in self._unknown and len(self._unknown) >= _MOST_UNKNOWN:
            name = "of other sensors"
        self._unknown.add(name)
        self._upstream.count(name, {"sensor": len(message.boxes)})

    def leave_out(self, camera: str, fault: str, boxes: int) -> None:
        """Count boxes that are not used."""
        with self._changed:
            self._leave_out(camera, fault, boxes)

    def report_clock(self, camera: str, ahead_s: float) -> None:
        """Log that the times of a camera are not those of this machine."""
        way = "ahead of" if ahead_s > 0 else "behind"
        self._upstream.report(
            f"clock {camera}",
            f"camera {camera}: its times are {abs(ahead_s):.0f} s {way} the clock of this machine, and its"
            " events have them; unless it is a recording, set both clocks (NTP, PTP)",
        )

    def report_silence(self, camera: str, sensor: str) -> None:
        """Log that no message came."""
        self._upstream.report(
            f"silent {camera}",
            f"camera {camera}: no message of the sensor {visible(sensor)} in the first {SILENT_S:.0f} s;"
            " check the topic and the sensor's name in the messages",
        )

    def _put(self, frames: list[BoxMessage]) -> None:
        """Hand over whole frames; the caller holds the condition."""
        for message in frames:
            self._upstream.examine(message.camera, message)
            inbox = self._inboxes.get(message.camera)
            if inbox is not None:
                inbox.append(message)
        if frames:
            self._changed.notify_all()

    def _leave_out(self, camera: str, fault: str, boxes: int) -> None:
        self._upstream.count(camera, {fault: boxes})


@dataclass(frozen=True, slots=True)
class MessageOptions:
    """Options of a source without pictures; `size` is that of the upstream's nvstreammux."""

    size: Size | None = None


class MessageSource:
    """One sensor of an upstream pipeline.

    After `tracker.lost_s` without a message one frame without people is given, so that tracks end: upstream
    may send nothing while nobody is there.
    """

    live = True
    ends = False
    stall_seconds: float | None = None
    backlog = BACKLOG

    def __init__(
        self,
        id: str,  # noqa: A002 - name of `Source`
        sensor: str,
        receiver: MessageReceiver,
        size: Size | None,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        if size is None:
            raise ConfigError(
                f"source {id}: size is missing: width and height of the picture that its boxes refer to,"
                " those of nvstreammux, e.g. size = [1920, 1080]"
            )
        receiver.route(sensor, id)
        self.id = id
        self.receiver = receiver
        self._sensor = sensor
        self._size = size
        self._now = now

    def frames(self) -> Generator[MessageFrame | None, None, None]:
        """Yield a frame for each message; see `Source.frames`."""
        with self.receiver.receiving(self.id):
            if not self.receiver.wait_for_connection(CONNECT_S):
                raise self._lost()
            yield from self._received()

    def _received(self) -> Generator[MessageFrame | None, None, None]:
        latest: MessageFrame | None = None
        arrived = connected = time.monotonic()
        open_tracks, heard = False, False
        while True:
            message = self.receiver.take(self.id, _TICK_S)
            now = time.monotonic()
            if message is not None and latest is not None and self._late(message, latest.time):
                continue
            if message is not None:
                latest, arrived = self._frame(message, 0 if latest is None else latest.number), now
                open_tracks = heard = True
                yield latest
                continue
            connected = now if self.receiver.connected else connected
            if now - connected > LOST_S:
                raise self._lost()
            silent = now - arrived
            if latest is not None and open_tracks and silent > self.receiver.lost_s + _MARGIN_S:
                open_tracks = False
                yield self._empty(latest.number + 1, latest.time + silent)
                continue
            if not heard and silent > SILENT_S:
                heard = True
                self.receiver.report_silence(self.id, self._sensor)
            yield None

    def _lost(self) -> SourceLost:
        return SourceLost(f"no connection to {self.receiver.address}, where its messages are")

    def _late(self, message: BoxMessage, latest: float) -> bool:
        """Return whether a frame came after a later one, which is not because the clock was set; count it."""
        late = message.time is not None and latest - CLOCK_SET_S < message.time < latest
        if late:
            self.receiver.leave_out(self.id, "late", len(message.boxes))
        return late

    def _frame(self, message: BoxMessage, last_number: int) -> MessageFrame:
        assert message.vectors is not None  # this receiver reads them
        assert message.embedded is not None
        width, height = self._size
        boxes = np.clip(message.scaled(self._size), 0, np.array([width, height] * 2, np.float32))
        inside = np.asarray((boxes[:, :2] < boxes[:, 2:]).all(axis=1), np.bool_)
        if outside := len(boxes) - int(np.count_nonzero(inside)):
            self.receiver.leave_out(self.id, "outside", outside)
        now = self._now()
        if message.time is not None and abs(message.time - now) > CLOCK_SET_S:
            self.receiver.report_clock(self.id, message.time - now)
        return MessageFrame(
            camera=self.id,
            number=last_number + 1 if message.number is None else message.number,
            time=now if message.time is None else message.time,
            size=self._size,
            detections=Detections(boxes[inside], message.scores[inside]),
            track_ids=tuple(t for t, fine in zip(message.tracks, inside.tolist(), strict=True) if fine),
            vectors=message.vectors[inside],
            embedded=message.embedded[inside],
        )

    def _empty(self, number: int, time_: float) -> MessageFrame:
        vectors = np.zeros((0, 1), np.float32)
        return MessageFrame(
            self.id, number, time_, self._size, Detections.none(), (), vectors, np.zeros(0, np.bool_)
        )
