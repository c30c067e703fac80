"""The messages of an upstream pipeline: received, parsed and counted. What is done with them is for others.

`source.external` gives them to the frames that the agent reads, `source.messages` makes frames of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import structlog

from edge_agent.core.errors import BrokerRefused, SourceError
from edge_agent.core.mqtt import Incoming
from edge_agent.core.text import visible
from edge_agent.source.box_message import BoxMessage
from edge_agent.source.deepstream import MAX_MESSAGE_BYTES
from edge_agent.source.transport import Broker, receiver

if TYPE_CHECKING:
    from edge_agent.core.config import DetectorSettings

_log = structlog.get_logger(__name__)

_MAX_REPORTS = 256
"""Problems that are logged at WARNING, each once."""
_MEANING = {
    "form": "not four numbers, with a number as score",
    "range": "not finite, or beyond a million pixels",
    "empty": "empty or upside down",
    "score": "the confidence is not in 0..1",
    "twice": "the same object a second time",
    "late": "the message came after its frame was complete, or after a later frame",
    "outside": "outside the picture",
    "sensor": 'no source takes this sensor (url = "deepstream:SENSOR")',
}
_EMBEDDING = "embedding"


class Upstream:
    """Receives messages during the `with` block, on a thread of its own; connects again after a loss.

    Args:
        settings: topics, labels of people, dimension of embeddings.
        broker: MQTT or Kafka, where the messages are.
        parse: reads a message; ValueError explains why it is refused.
        deliver: gets each message; on the thread of the connection.

    Raises:
        SourceError: no topic is set.
    """

    def __init__(
        self,
        settings: DetectorSettings,
        broker: Broker,
        parse: Callable[[bytes], BoxMessage],
        deliver: Callable[[BoxMessage], None],
    ) -> None:
        if not settings.external_topics:
            raise SourceError("external boxes: no topic to listen to")
        self._settings = settings
        self._broker = broker
        self._parse = parse
        self._deliver = deliver
        self._reported: set[str] = set()
        self._labelled: set[str] = set()
        """Cameras of which a message held an object with a label of people."""
        self.left_out = dict.fromkeys(("message", *_MEANING, _EMBEDDING), 0)
        """Refused messages, and boxes left out of the others by fault; see `source.box_message`."""
        self.connected = False
        """Whether the broker has accepted the connection and the subscription."""
        self._new_receiver = partial(
            receiver,
            broker,
            settings.external_topics,
            self._on_message,
            on_change=self._on_change,
            on_problem=self.report,
            max_packet=2 * MAX_MESSAGE_BYTES,
        )
        self._receiver = self._new_receiver()

    @property
    def address(self) -> str:
        """Address of the broker, without a login."""
        return self._broker.url

    def __enter__(self) -> Upstream:
        try:
            self._receiver.open_in_background()
        except BrokerRefused as problem:
            raise SourceError(f"external boxes: {problem}") from problem
        return self

    def __exit__(self, *_: object) -> None:
        self._receiver.close()
        self.connected = False
        self._receiver = self._new_receiver()  # the next block has another connection

    def examine(self, camera: str, message: BoxMessage) -> None:
        """Count and report what is wrong with a message that was taken; for one thread at a time."""
        self.count(camera, message.left_out)
        if message.people and len(self._labelled) < _MAX_REPORTS:  # names come from outside
            self._labelled.add(camera)
        if message.other_labels and camera not in self._labelled:
            labels = ", ".join(visible(label, 40) for label in message.other_labels)
            known = ", ".join(self._settings.external_labels)
            self.report(
                f"labels {camera}",
                f"camera {camera}: no object so far has a label of detector.external_labels ({known});"
                f" its objects are labelled {labels}",
            )

    def count(self, camera: str, faults: Mapping[str, int]) -> None:
        """Count boxes that are left out, and report the first of each fault and camera."""
        for fault, number in faults.items():
            if not number:
                continue
            self.left_out[fault] += number
            text = f"{number} of the boxes of a frame left out: {_MEANING.get(fault)}"
            if fault == _EMBEDDING:
                length = self._settings.external_dimension
                text = (
                    f"{number} of the embeddings of a frame left out: not {length} finite numbers"
                    " (detector.external_dimension) with a length above 0; the boxes are tracked without"
                )
            self.report(f"{fault} {camera}", f"camera {camera}: {text}")

    def report(self, key: str, text: str) -> None:
        """Log the first problem of a kind at WARNING, later ones at DEBUG."""
        log = _log.debug
        if key not in self._reported and len(self._reported) < _MAX_REPORTS:
            self._reported.add(key)
            log = _log.warning
        log("external_boxes_trouble", broker=self._broker.url, reason=text)

    def _on_message(self, arrived: Incoming) -> None:
        try:
            if arrived.retained:
                raise ValueError("it is retained, so its frame has long passed")  # noqa: TRY301 - as a bad one
            self._deliver(self._parse(arrived.payload))
        except ValueError as problem:
            self.left_out["message"] += 1
            self.report(f"malformed {arrived.topic}", f"message on {arrived.topic} refused: {problem}")

    def _on_change(self, connected: bool, reason: str) -> None:
        was_connected, self.connected = self.connected, connected
        if connected:
            self._reported.discard("unreachable")
            topics = self._settings.external_topics
            _log.info("external_boxes_connected", broker=self._broker.url, topics=topics)
        elif was_connected:
            _log.warning("external_boxes_disconnected", broker=self._broker.url, reason=reason)
