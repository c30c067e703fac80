"""Rates of append and delivery compared with plain sqlite3 and plain paho, in turn.

Raw paho publishes twice: the same messages with the same MQTT 5 properties (content type, expiry, `schema`,
`traceparent`; made once), which is what the publisher is held against, and bare, without properties.
"""

from __future__ import annotations

import sqlite3
import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edge_agent.core.codec import encode
from tests.deliver.deliver_fixtures import identity, outbox_at, publishing

BROKER = """
listener {port} 127.0.0.1
allow_anonymous true
max_inflight_messages 0
max_queued_messages 0
user root
"""
TOPIC = "edge/v1/lab/jx01/identity/matched"
ROWS = 2000


def measure(folder: Path, url: str, port: int, seconds: float) -> dict[str, Any]:
    """Rounds of raw and ours alternate, so that a noisy machine disturbs both; the medians are compared."""
    body = encode(identity())
    listener = listen(port)
    try:
        append = compare(
            lambda n: raw_sqlite(folder / f"raw{n}.db", body),
            lambda n: ours_append(folder, f"append{n}", body),
            seconds / 3,
        )
        drain = compare(
            lambda _: raw_paho(port, body, same_properties()),
            lambda n: ours_drain(folder, f"drain{n}", url, body),
            seconds / 3,
        )
        bare = compare(
            lambda _: raw_paho(port, body, None),
            lambda n: ours_drain(folder, f"bare{n}", url, body),
            seconds / 3,
        )
    finally:
        listener.kill()
        listener.wait(10)
    found: dict[str, Any] = {}
    for name, (raw, ours, ratio, rounds) in (("append", append), ("drain", drain), ("drain, bare", bare)):
        found |= {
            f"{name}: raw /s": round(raw),
            f"{name}: ours /s": round(ours),
            f"{name}: ratio": round(ratio, 2),
            f"{name}: rounds": rounds,
        }
    return found | {"bytes per event": len(body), "ok": append[2] >= 0.8 and drain[2] >= 0.8}


def compare(
    raw: Callable[[int], float], ours: Callable[[int], float], seconds: float
) -> tuple[float, float, float, int]:
    """Median rates, and the median of the ratios of neighbouring rounds."""
    raws, own = [], []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline or len(own) < 5:
        raws.append(raw(len(raws)))
        own.append(ours(len(own)))
    ratios = [o / r for o, r in zip(own, raws, strict=True)]
    return statistics.median(raws), statistics.median(own), statistics.median(ratios), len(own)


def raw_sqlite(path: Path, body: bytes) -> float:
    """One committed row after the other, in a table with the same columns."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("PRAGMA locking_mode = EXCLUSIVE")
    db.execute(
        "CREATE TABLE event (seq INTEGER PRIMARY KEY, topic TEXT, body BLOB, created REAL, gap INTEGER)"
    )
    begin = time.perf_counter()
    for number in range(ROWS):
        db.execute("INSERT INTO event VALUES (?, ?, ?, ?, ?)", (number, TOPIC, body, time.time(), 0))
    rate = ROWS / (time.perf_counter() - begin)
    db.close()
    return rate


def ours_append(folder: Path, name: str, body: bytes) -> float:
    with outbox_at(folder / f"{name}.db") as outbox:
        begin = time.perf_counter()
        for _ in range(ROWS):
            outbox.append(body, TOPIC)
        return ROWS / (time.perf_counter() - begin)


def listen(port: int) -> subprocess.Popen[bytes]:
    """Subscribe, because without a subscriber the broker answers with reason code 16."""
    words = ["mosquitto_sub", "-h", "127.0.0.1", "-p", str(port), "-t", "edge/v1/+/+/identity/#"]
    listener = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    time.sleep(1.0)
    return listener


def same_properties() -> Properties:
    """The properties that the publisher sends with an event."""
    properties = Properties(PacketTypes.PUBLISH)
    properties.ContentType = "application/cloudevents+json"
    properties.PayloadFormatIndicator = 1
    properties.MessageExpiryInterval = 86_400
    properties.UserProperty = ("schema", "urn:edge-agent:schema:identity:1")
    properties.UserProperty = ("traceparent", f"00-{'ab' * 16}-{'cd' * 8}-01")
    return properties


def raw_paho(port: int, body: bytes, properties: Properties | None) -> float:
    """As fast as paho goes with its own thread, QoS 1, its default of 20 in flight."""
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    acknowledged = 0
    finished = threading.Event()

    def count(*_: Any) -> None:
        nonlocal acknowledged
        acknowledged += 1
        if acknowledged == ROWS:
            finished.set()

    client.on_publish = count
    connected = threading.Event()
    client.on_connect = lambda *_: connected.set()
    client.connect("127.0.0.1", port)
    client.loop_start()
    assert connected.wait(10)
    begin = time.perf_counter()
    for _ in range(ROWS):
        client.publish(TOPIC, body, 1, properties=properties)
    assert finished.wait(60)
    rate = ROWS / (time.perf_counter() - begin)
    client.disconnect()
    client.loop_stop()
    return rate


def ours_drain(folder: Path, name: str, url: str, body: bytes) -> float:
    """From a full outbox to an empty one, connection made before the clock starts."""
    with (
        outbox_at(folder / f"{name}.db") as outbox,
        publishing(outbox, url, drain_per_s=1e9, keepalive_s=15) as publisher,
    ):
        while not publisher.counters.connects:
            time.sleep(0.01)
        for _ in range(ROWS - 1):
            outbox.append(body, TOPIC)
        begin = time.perf_counter()
        publisher.publish(identity())  # the last one wakes the thread that sends them
        assert publisher.drain(60)
        return ROWS / (time.perf_counter() - begin)
