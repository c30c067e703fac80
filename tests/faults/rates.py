"""How fast the outbox takes and gives, beside what it stands on: raw sqlite3 and raw paho, taking turns."""

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
from deliver_fixtures import INFO, identity

from edge_agent.deliver.connection import BrokerSettings
from edge_agent.deliver.outbox import Outbox
from edge_agent.deliver.publisher import Publisher
from edge_agent.events import encode

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
            lambda n: ours_append(folder, n, body),
            seconds / 2,
        )
        drain = compare(
            lambda _: raw_paho(port, body), lambda n: ours_drain(folder, n, url, body), seconds / 2
        )
    finally:
        listener.kill()
        listener.wait(10)
    found: dict[str, Any] = {}
    for name, (raw, ours, ratio, rounds) in (("append", append), ("drain", drain)):
        found |= {
            f"{name} raw /s": round(raw),
            f"{name} ours /s": round(ours),
            f"{name} ratio": round(ratio, 2),
            f"{name} rounds": rounds,
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


def ours_append(folder: Path, number: int, body: bytes) -> float:
    with Outbox(folder / f"ours{number}.db") as outbox:
        begin = time.perf_counter()
        for _ in range(ROWS):
            outbox.append_encoded(body, TOPIC)
        return ROWS / (time.perf_counter() - begin)


def listen(port: int) -> subprocess.Popen[bytes]:
    """Somebody has to subscribe, or the broker says so with reason code 16."""
    words = ["mosquitto_sub", "-h", "127.0.0.1", "-p", str(port), "-t", "edge/v1/+/+/identity/#"]
    listener = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    time.sleep(1.0)
    return listener


def raw_paho(port: int, body: bytes) -> float:
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
        client.publish(TOPIC, body, 1)
    assert finished.wait(60)
    rate = ROWS / (time.perf_counter() - begin)
    client.disconnect()
    client.loop_stop()
    return rate


def ours_drain(folder: Path, number: int, url: str, body: bytes) -> float:
    """From a full outbox to an empty one, connection made before the clock starts."""
    with (
        Outbox(folder / f"drain{number}.db") as outbox,
        Publisher(
            site="lab",
            device="jx01",
            session="s",
            broker=BrokerSettings.parse(url),
            outbox=outbox,
            info=lambda: INFO,
            drain_per_s=None,
            drain_jitter_s=0.0,
        ) as publisher,
    ):
        while not publisher.counters.connects:
            time.sleep(0.01)
        for _ in range(ROWS):
            outbox.append_encoded(body, TOPIC)
        begin = time.perf_counter()
        publisher._signal()
        assert publisher.drain(60)
        return ROWS / (time.perf_counter() - begin)
