"""Shared by the fault scenarios: a recording subscriber, the log of the agent, and their comparison."""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.conftest import Mosquitto, find_free_port, mosquitto_binary

HERE = Path(__file__).resolve().parent
PERSISTENT = """
listener {port} 127.0.0.1
allow_anonymous true
persistence true
persistence_location {folder}/
autosave_on_changes true
autosave_interval 1
max_inflight_messages 0
max_queued_messages 0
user root
"""
"""A broker that keeps messages. `max_inflight_messages 0` sends a subscriber everything at once."""


@contextlib.contextmanager
def broker(folder: Path, lines: str = PERSISTENT, *, start: bool = True) -> Iterator[Mosquitto]:
    folder.mkdir(parents=True, exist_ok=True)
    port = find_free_port()
    config = folder / "mosquitto.conf"
    config.write_text(lines.format(port=port, folder=folder))
    made = Mosquitto(mosquitto_binary(), config, port)
    if start:
        made.start()
    try:
        yield made
    finally:
        made.stop(kill=True)


@dataclass
class Subscriber:
    """A persistent session that writes down every numbered message, in the order of arrival."""

    port: int
    tls: dict[str, str] | None = None
    seen: list[dict[str, Any]] = field(default_factory=list)
    _client: Any = None

    def __enter__(self) -> Subscriber:
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, "the-subscriber", protocol=mqtt.MQTTv5)
        if self.tls:
            client.tls_set(**self.tls)
        ready = threading.Event()
        client.on_connect = lambda c, *_: c.subscribe("edge/v1/#", 1)
        client.on_subscribe = lambda *_: ready.set()
        client.on_message = self._take
        client.reconnect_delay_set(1, 1)
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 3600
        client.connect("127.0.0.1", self.port, 30, clean_start=False, properties=properties)
        client.loop_start()
        assert ready.wait(10), "the subscriber is not let in"
        self._client = client
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _take(self, _client: Any, _data: Any, message: mqtt.MQTTMessage) -> None:
        if not message.retain:
            found = json.loads(message.payload)
            if "seq" in found:
                self.seen.append(found)

    def ids(self) -> set[str]:
        return {message["id"] for message in list(self.seen)}


@dataclass
class Log:
    """The log of the agent, over all its processes."""

    path: Path

    def words(self, word: str) -> list[list[str]]:
        if not self.path.exists():
            return []
        lines = (line.split() for line in self.path.read_text().splitlines())
        return [line for line in lines if line and line[0] == word]

    @property
    def done(self) -> dict[str, int]:
        return {line[1]: int(line[2]) for line in self.words("done") if len(line) == 3}

    @property
    def dropped(self) -> list[int]:
        return [int(line[2]) for line in self.words("drop") if len(line) == 3]

    @property
    def cut_off(self) -> set[str]:
        """Events that were begun and are neither on disk nor dropped in the log: killed in between."""
        return self.begun - self.done.keys() - {line[1] for line in self.words("drop") if len(line) == 3}

    @property
    def of_starts(self) -> set[int]:
        """Numbers of the events that starts published."""
        return {
            number
            for _, first, last in (line for line in self.words("start") if len(line) == 3)
            for number in range(int(first), int(last) + 1)
        }

    @property
    def begun(self) -> set[str]:
        return {line[1] for line in self.words("begin") if len(line) == 2}


def start_agent(**options: Any) -> subprocess.Popen[str]:
    words = [f"--{name}={value}" for name, value in options.items()]
    return subprocess.Popen(
        [sys.executable, str(HERE / "agent.py"), *words], stdout=subprocess.PIPE, text=True
    )


def numbers(ranges: list[dict[str, int]]) -> list[int]:
    return [n for r in ranges for n in range(r["first"], r["last"] + 1)]


def gaps(seen: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Numbers in gap events, by reason; a repeated delivery counts once."""
    reported: dict[str, list[int]] = {}
    for message in {m["id"]: m for m in seen if m["type"] == "edge.gap.v1"}.values():
        reported.setdefault(message["data"]["reason"], []).extend(numbers(message["data"]["ranges"]))
    return reported


def account(log: Log, seen: list[dict[str, Any]]) -> dict[str, Any]:
    """Produced, received, lost, duplicates, out of order, unknown, holes."""
    first: dict[str, int] = {}
    for message in seen:
        first.setdefault(message["id"], message["seq"])
    done = log.done
    order = list(first.values())
    received = {event: seq for event, seq in first.items() if event in done}
    reported = {n for reason in gaps(seen).values() for n in reason}
    holes = set(range(1, max(order, default=0) + 1)) - set(order) - reported
    return {
        "produced": len(done),
        "received": len(received),
        "lost": len(set(done) - set(first)),
        "duplicates": len(seen) - len(first),
        "out of order": sum(b < a for a, b in itertools.pairwise(order)),
        "number differs": sum(done[event] != seq for event, seq in received.items()),
        "numbers in gaps": len(reported),
        "holes not reported": len(holes),
        "never made": len({m["id"] for m in seen if _is_of_producer(m)} - log.begun),
    }


def _is_of_producer(message: dict[str, Any]) -> bool:
    """Whether it is an identity event, and not the departure that a start publishes for a killed run."""
    return message["type"].startswith("edge.identity") and message["data"]["reason"] != "restart"


def wait_for(log: Log, subscriber: Subscriber, seconds: float) -> None:
    """Until everything that was produced has arrived, or the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not set(log.done) <= subscriber.ids():
        time.sleep(0.5)
