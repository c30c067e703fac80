"""Kafka brokers for tests: the mock cluster inside librdkafka, in a process of its own.

It speaks Kafka's protocol on TCP ports. `KafkaBroker` starts it, and gives it orders on its standard input.
"""

from __future__ import annotations

import contextlib
import ctypes
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PRODUCE, FETCH = 0, 1
"""Keys of requests, for `fail`."""


def library() -> Path:
    """librdkafka as it comes with confluent_kafka."""
    import pytest  # here: the process that serves needs none of it, and starts sooner

    confluent_kafka = pytest.importorskip("confluent_kafka")
    folder = Path(confluent_kafka.__file__).parent.parent / "confluent_kafka.libs"
    found = next(iter(folder.glob("librdkafka*.so*")), None)
    if found is None:
        pytest.skip("confluent_kafka without the librdkafka of its wheel")
    return found


@dataclass
class KafkaBroker:
    """A running cluster."""

    process: subprocess.Popen[str]
    brokers: tuple[str, ...]

    def order(self, *words: object) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def down(self) -> None:
        """Close all connections, and accept none."""
        self.order("down")

    def up(self) -> None:
        self.order("up")

    def topic(self, name: str, partitions: int = 1) -> None:
        self.order("topic", name, partitions)

    def advertise(self, host: str, port: int) -> None:
        """State another address than its own, as a broker behind a proxy does."""
        self.order("advertise", host, port)

    def fail(self, request: int, *codes: int) -> None:
        """Answer the next requests of a kind with these codes."""
        self.order("fail", request, *codes)

    def refuse(self, topic: str, code: int) -> None:
        """Answer every metadata request for a topic with a code; 0: no more."""
        self.order("refuse", topic, code)

    def send(self, topic: str, *values: bytes | None, key: bytes | None = None) -> None:
        """Produce messages as another program does."""
        from confluent_kafka import Producer

        producer = Producer(
            {"bootstrap.servers": self.brokers[0], "message.max.bytes": 64 << 20, "log_level": 0}
        )
        for value in values:
            producer.produce(topic, value, key)
        assert producer.flush(20) == 0

    def stored(self, topic: str, count: int, *, seconds: float = 20.0) -> list[Any]:
        """The first messages of a topic, as another program reads them; fails when they do not come."""
        deadline = time.monotonic() + seconds
        with self._reading(topic) as poll:
            found: list[Any] = []
            while len(found) < count:
                assert time.monotonic() < deadline, f"{len(found)} of {count} messages"
                found += poll()
        return found

    def everything(self, topic: str) -> list[Any]:
        """All messages of a topic: until none comes for a while."""
        with self._reading(topic) as poll:
            found: list[Any] = []
            until = time.monotonic() + 1.0
            while time.monotonic() < until:
                if more := poll():
                    until = time.monotonic() + 0.5
                found += more
        return found

    @contextlib.contextmanager
    def _reading(self, topic: str) -> Iterator[Callable[[], list[Any]]]:
        from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

        consumer = Consumer(
            {
                "bootstrap.servers": self.brokers[0], "group.id": "tests", "enable.auto.commit": False,
                "log_level": 0,
            }
        )  # fmt: skip
        known = consumer.list_topics(topic, timeout=20).topics[topic].partitions
        consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in known])
        try:
            yield lambda: [one for one in consumer.consume(500, 0.1) if one.error() is None]
        finally:
            consumer.close()


@contextlib.contextmanager
def kafka_broker(brokers: int = 1, topics: tuple[str, ...] = ()) -> Iterator[KafkaBroker]:
    found = library()
    process = subprocess.Popen(
        [sys.executable, __file__, str(found), str(brokers)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        started = KafkaBroker(process, tuple(process.stdout.readline().strip().split(",")))
        for topic in topics:
            started.topic(topic)
        yield started
    finally:
        process.kill()
        process.wait(10)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def serve(file: str, count: int) -> None:
    """Run a cluster, print its addresses, and carry out orders until standard input ends."""
    rd = ctypes.CDLL(file)
    for name in ("conf_new", "new", "mock_cluster_new"):
        getattr(rd, f"rd_kafka_{name}").restype = ctypes.c_void_p
    rd.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
    text = ctypes.create_string_buffer(512)
    conf = ctypes.c_void_p(rd.rd_kafka_conf_new())
    client = ctypes.c_void_p(rd.rd_kafka_new(0, conf, text, len(text)))
    cluster = ctypes.c_void_p(rd.rd_kafka_mock_cluster_new(client, count))
    print(rd.rd_kafka_mock_cluster_bootstraps(cluster).decode(), flush=True)
    for line in sys.stdin:
        order, *words = line.split()
        if order in ("down", "up"):
            for number in range(1, count + 1):
                getattr(rd, f"rd_kafka_mock_broker_set_{order}")(cluster, ctypes.c_int32(number))
        elif order == "advertise":
            rd.rd_kafka_mock_broker_set_host_port(cluster, 1, words[0].encode(), int(words[1]))
        elif order == "topic":
            rd.rd_kafka_mock_topic_create(cluster, words[0].encode(), int(words[1]), 1)
        elif order == "fail":
            codes = (ctypes.c_int * len(words[1:]))(*map(int, words[1:]))
            rd.rd_kafka_mock_push_request_errors_array(
                cluster, ctypes.c_int16(int(words[0])), ctypes.c_size_t(len(codes)), codes
            )
        elif order == "refuse":
            rd.rd_kafka_mock_topic_set_error(cluster, words[0].encode(), int(words[1]))
        print("done", flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
