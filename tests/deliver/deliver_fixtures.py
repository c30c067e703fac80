"""Events of all kinds, a listening client, and brokers of several kinds, for the tests of delivery."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import paho.mqtt.client as mqtt
from jsonschema import Draft202012Validator, ValidationError

from edge_agent.core.clock import Clock
from edge_agent.core.codec import envelope_schema
from edge_agent.core.delivery_settings import MqttSettings, OutboxSettings
from edge_agent.core.events import (
    CameraInfo,
    DeviceSummary,
    EngineData,
    Event,
    InfoData,
    identity_event,
)
from edge_agent.core.mqtt import BrokerSettings
from edge_agent.core.structures import Decision, DecisionKind, EngineInfo
from edge_agent.core.telemetry import TelemetryData
from edge_agent.deliver import connection, pacing, pump, sender
from edge_agent.deliver import outbox as outbox_module
from edge_agent.deliver.local import Origin
from edge_agent.deliver.outbox import Outbox
from edge_agent.deliver.publisher import Publisher
from edge_agent.deliver.storage import Storage
from edge_agent.deliver.topics import Topics
from tests.conftest import Mosquitto, find_free_port, mosquitto_binary

ENGINE = EngineInfo(
    backend="onnxruntime",
    precision="fp32",
    model="osnet",
    model_sha256="ab" * 32,
    space="space-1",
    dimension=512,
    max_batch=64,
    device="cpu",
)
INFO = InfoData(version="0.1.0", model=EngineData.of(ENGINE), cameras=(CameraInfo("cam1", "file"),))


def decision(track_id: int = 1, **changes: Any) -> Decision:
    now = time.time()
    values: dict[str, Any] = {
        "id": str(uuid.uuid4()),
        "kind": DecisionKind.MATCHED,
        "camera": "cam1",
        "track_id": track_id,
        "identity": "p-0001",
        "number": 1,
        "name": None,
        "score": 0.81234567,
        "runner_up": 0.4,
        "threshold": 0.6,
        "rule": "site",
        "evidence": 8,
        "quality": 0.7,
        "box": np.array([64, 48, 128, 240], np.float32),
        "size": (640, 480),
        "frame": 12,
        "time": now,
        "first_seen": now - 3,
        "last_seen": now,
    }
    return Decision(**(values | changes))


def identity(track_id: int = 1, **changes: Any) -> Event:
    return identity_event(
        decision(track_id, **changes),
        engine=ENGINE,
        device=DeviceSummary(temperature_c=51.5, temperature_zone="tj", throttled=False),
        latency_ms={"embed": 3.21, "total": 40.0},
        detector="hog",
    )


def telemetry() -> TelemetryData:
    return TelemetryData(uptime_s=1.0, state="online", temperatures_c={"tj": 51.5}, hottest_c=51.5)


@functools.lru_cache
def validator(kind: str) -> Draft202012Validator:
    """Checks whole messages of one kind, times included."""
    return Draft202012Validator(envelope_schema(kind), format_checker=Draft202012Validator.FORMAT_CHECKER)


@dataclass
class Heard:
    topic: str
    message: Any
    retained: bool
    properties: Any


@dataclass
class Listener:
    """A separate client, unlike the agent's: paho with its own thread."""

    port: int
    topic: str = "#"
    client_id: str = ""
    user: tuple[str, str] | None = None
    heard: list[Heard] = field(default_factory=list)
    invalid: list[str] = field(default_factory=list)
    """Messages that violate their schema; there must be none."""
    _client: mqtt.Client | None = None

    def __enter__(self) -> Listener:
        self._client = client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, client_id=self.client_id, protocol=mqtt.MQTTv5
        )
        if self.user:
            client.username_pw_set(*self.user)
        ready = threading.Event()
        client.on_message = self._take
        client.on_subscribe = lambda *_: ready.set()
        client.connect("127.0.0.1", self.port, clean_start=True)
        client.subscribe(self.topic, 1)
        client.loop_start()
        assert ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._client is not None
        self._client.disconnect()
        self._client.loop_stop()
        assert self.invalid == []

    def _take(self, _client: Any, _data: Any, message: mqtt.MQTTMessage) -> None:
        try:
            payload = json.loads(message.payload)
        except ValueError:
            payload = message.payload
        if re.fullmatch(r"edge/v1/[^/]+/[^/]+/(?!cmd/[^/]+$).+", message.topic):
            self._check(message.topic, payload)
        self.heard.append(Heard(message.topic, payload, bool(message.retain), message.properties))

    def _check(self, topic: str, payload: Any) -> None:
        try:
            validator(payload["type"].split(".")[1]).validate(payload)
        except (TypeError, KeyError, ValidationError) as problem:
            self.invalid.append(f"{topic}: {problem}")

    def publish(self, topic: str, payload: bytes | str, **options: Any) -> None:
        assert self._client is not None
        self._client.publish(topic, payload, 1, **options).wait_for_publish(10)

    def numbered(self) -> list[Any]:
        return [h.message for h in list(self.heard) if isinstance(h.message, dict) and "seq" in h.message]

    def of(self, topic_end: str) -> list[Any]:
        return [h.message for h in list(self.heard) if h.topic.endswith(topic_end)]


def until(what: Callable[[], Any], *, seconds: float = 60.0) -> Any:
    """Wait until `what` is true, and return it; the timeout is long, because machines may be slow."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.02)
    raise AssertionError(f"never came true: {what}")


def named(gaps: list[Any]) -> set[int]:
    """The numbers that gap events name."""
    return {n for gap in gaps for one in gap["data"]["ranges"] for n in range(one["first"], one["last"] + 1)}


@contextlib.contextmanager
def publishing(outbox: Outbox, url: str, **changes: Any) -> Iterator[Publisher]:
    """A publisher with short waits.

    Args:
        outbox: open.
        url: of the broker.
        changes: keys of the section mqtt, constants by their name in lower case, or arguments of Publisher.
    """
    constants: dict[Any, dict[str, Any]] = {
        pacing: {"FIRST_WAIT_S": 0.1, "LONGEST_WAIT_S": 0.3, "REFUSED_WAIT_S": 0.5},
        connection: {"WILL_DELAY_S": 0},
        sender: {
            "DRAIN_PER_S": sender.DRAIN_PER_S,
            "DRAIN_JITTER_S": 0.0,
            "NO_SUBSCRIBER_S": sender.NO_SUBSCRIBER_S,
        },
        pump: {"ACK_TIMEOUT_S": pump.ACK_TIMEOUT_S},
    }
    for values in constants.values():
        values.update({name: changes.pop(name.lower(), value) for name, value in values.items()})
    known = MqttSettings.model_fields.keys() - {"commands"}
    keys = {key: changes.pop(key) for key in known & changes.keys()}
    settings = MqttSettings(**({"broker": url, "site": "lab", "device": "jx01", "keepalive_s": 5} | keys))
    topics = Topics(settings.site, settings.device)
    session, file = changes.pop("session", "session-1"), changes.pop("event_file", None)
    origin = Origin(topics, session, file, changes.pop("clock", None) or Clock())
    with contextlib.ExitStack() as stack:
        for module, values in constants.items():
            stack.enter_context(mock.patch.multiple(module, **values))
        arguments = {"outbox": outbox, "info": lambda: INFO} | changes
        yield stack.enter_context(Publisher(settings, origin, **arguments))


def limits(**changes: Any) -> OutboxSettings:
    """Settings of the outbox; values below the configurable minimum are allowed."""
    return OutboxSettings.model_construct(**changes)


@dataclass
class CalledTime:
    """A machine whose clocks a function returns."""

    clock: Callable[[], float]
    sync: bool = False
    boot: str = "boot"

    def running(self) -> float:
        return self.clock()

    def wall(self) -> float:
        return self.clock()

    def synchronised(self) -> bool:
        return self.sync


def outbox_at(path: Path, *, key: bytes | None = None, clock: Any = None, **changes: Any) -> Outbox:
    """An outbox; `clock`: a Clock, or a function that returns the seconds of one."""
    if callable(clock):
        clock = Clock(CalledTime(clock))
    return Outbox(path, limits(**changes), key=key, clock=clock)


def outbox_and_storage(path: Path, **changes: Any) -> tuple[Outbox, Storage]:
    """An outbox and its storage: what it counts, and `close`, which leaves the files as a kill does."""
    made: list[Storage] = []

    def make(*given: Any) -> Storage:
        made.append(Storage(*given))
        return made[0]

    with mock.patch.object(outbox_module, "Storage", make):
        outbox = outbox_at(path, **changes)
    return outbox, made[0]


def broker_at(url: str, **settings: Any) -> BrokerSettings:
    return BrokerSettings.of(MqttSettings(broker=url, keepalive_s=5, **settings))


@contextlib.contextmanager
def configured_mosquitto(folder: Path, lines: str) -> Iterator[Mosquitto]:
    """A mosquitto with its own configuration; `{port}` and `{folder}` in it are filled in."""
    folder.mkdir(exist_ok=True)
    port = find_free_port()
    config = folder / "mosquitto.conf"
    config.write_text(lines.format(port=port, folder=folder) + "\nuser root\n")
    broker = Mosquitto(mosquitto_binary(), config, port)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()
