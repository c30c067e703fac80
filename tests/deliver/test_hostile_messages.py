"""A thousand hostile messages on the command topics: memory stays bounded, and a good command is run."""

from __future__ import annotations

import gc
import json
import random
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edge_agent.deliver.connection import MAXIMUM_PACKET
from tests.deliver.deliver_fixtures import Listener, configured_mosquitto, outbox_at, publishing, until
from tests.deliver.test_commands import Gallery, desk_of, order

ROOT = "edge/v1/lab/jx01"
COUNT = 1000
BOUND_KIB = 48 << 10
"""Growth of the resident memory at its peak. One payload may have 512 KiB; parsed it takes some MiB."""
LARGE = 500_000


def payloads(chance: random.Random) -> Iterator[bytes]:
    """Sizes, junk, nesting, numbers, keys, strings: each close to the largest payload."""
    good = json.loads(order())
    while True:
        yield chance.randbytes(chance.randrange(LARGE))
        yield b"[" * LARGE
        yield b'{"a":' * 90_000 + b"1" + b"}" * 90_000
        yield b"[" + b"1," * (LARGE // 2 - 2) + b"1]"
        yield b'{"transaction": ' + b"9" * LARGE + b"}"
        yield b'{"issued": 1e' + b"9" * LARGE + b"}"
        yield json.dumps({f"k{n}": n for n in range(35_000)}).encode()
        yield json.dumps(good | {"name": "x" * LARGE}).encode()
        yield json.dumps(good | {"transaction": "\\ud800" * 60_000}).encode()
        yield json.dumps(good | {"identity_id": ["x"] * 60_000}).encode()
        yield json.dumps(good | {"unknown": {"deep": [[[]]] * 60_000}}).encode()
        yield b"\xff\xfe" * 100_000
        yield b""
        yield b"x" * 2_000_000  # the broker does not pass it on


@pytest.mark.slow
def test_memory_is_bounded(tmp_path: Path) -> None:
    gallery, chance = Gallery(), random.Random(11)
    quiet = "listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\nmax_queued_bytes 0"
    with (
        configured_mosquitto(tmp_path / "broker", quiet) as broker,
        desk_of(name=gallery.name, per_s=1e6) as desk,
        outbox_at(tmp_path / "o.db") as outbox,
        publishing(outbox, broker.url, commands=desk) as publisher,
        Listener(broker.port, f"{ROOT}/cmd/+/result") as listener,
    ):
        until(lambda: publisher.counters.connects)
        time.sleep(0.3)
        made = payloads(chance)
        sent = flood(broker.port, [next(made) for _ in range(14)], chance)
        until(lambda: desk.refused >= sent - 1, seconds=60)
        gc.collect()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(COUNT // 50):
            sent += flood(broker.port, [next(made) for _ in range(50)], chance)
            until(lambda sent=sent: desk.refused >= sent * 13 // 14 - 1, seconds=60)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < BOUND_KIB
        listener.publish(f"{ROOT}/cmd/name", order(transaction="after the flood"))
        until(lambda: len(gallery.done) == 1, seconds=30)
        assert publisher.counters.connects == 1


def test_messages_that_the_broker_drops_do_not_block_commands(tmp_path: Path) -> None:
    """Those larger than what the agent takes; mosquitto never counts them as acknowledged."""
    gallery = Gallery()
    with (
        configured_mosquitto(
            tmp_path / "broker", "listener {port} 127.0.0.1\nallow_anonymous true"
        ) as broker,
        desk_of(name=gallery.name) as desk,
        outbox_at(tmp_path / "o.db") as outbox,
        publishing(outbox, broker.url, commands=desk) as publisher,
        Listener(broker.port, f"{ROOT}/cmd/+/result") as listener,
    ):
        until(lambda: publisher.counters.connects)
        time.sleep(0.3)
        flood(broker.port, [b"x" * (MAXIMUM_PACKET + 1)] * 30, random.Random(1))
        listener.publish(f"{ROOT}/cmd/name", order(transaction="after them"))
        until(lambda: len(gallery.done) == 1)
        assert (desk.refused, publisher.counters.connects) == (0, 1)


def flood(port: int, batch: list[bytes], chance: random.Random) -> int:
    """Publish a batch with response topics and correlation data of all sizes; return its size."""
    client: Any = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    client.connect("127.0.0.1", port)
    client.loop_start()
    for payload in batch:
        properties = Properties(PacketTypes.PUBLISH)
        properties.CorrelationData = chance.randbytes(chance.choice([1, 1000, 60_000]))
        properties.ResponseTopic = chance.choice([f"{ROOT}/replies/x", "lock/set", "x" * 60_000])
        info = client.publish(f"{ROOT}/cmd/name", payload, 1, properties=properties)
        info.wait_for_publish(30)
    client.disconnect()
    client.loop_stop()
    return len(batch)
