"""Boxes of an upstream detector over Kafka: librdkafka's mock cluster, which speaks the real protocol."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from edge_agent.core import kafka
from edge_agent.core.config import Settings
from edge_agent.core.errors import BrokerRefused, BrokerUnreachable, ConfigError, SourceError
from edge_agent.core.kafka import KafkaBrokers, KafkaSubscription
from edge_agent.core.loading import load
from edge_agent.core.mqtt import Incoming
from edge_agent.core.structures import Frame
from edge_agent.detect.opening import open_detection
from edge_agent.source.external import ExternalBoxes
from edge_agent.source.transport import upstream_broker
from tests.conftest import REPO, find_free_port
from tests.deliver.deliver_fixtures import until
from tests.kafka_broker import FETCH, KafkaBroker, kafka_broker

TOPIC_AUTHORIZATION_FAILED, NOT_LEADER = 29, 6


@pytest.fixture(scope="module")
def cluster() -> Iterator[KafkaBroker]:
    with kafka_broker(1, ("boxes",)) as started:
        yield started


@pytest.fixture
def broker() -> Iterator[KafkaBroker]:
    with kafka_broker(1, ("boxes",)) as started:
        yield started


def settings(*brokers: str, topics: tuple[str, ...] = ("boxes",), **keys: Any) -> Settings:
    detector = {"kind": "external", "external_transport": "kafka", "external_topics": topics}
    return Settings(kafka={"brokers": brokers, **keys}, detector=detector)


def frame(number: int = 1) -> Frame:
    return Frame("front", number, 1_700_000_000.0 + number, np.zeros((100, 200, 3), np.uint8))


def message(number: int = 1, **more: Any) -> bytes:
    return json.dumps({"camera": "front", "frame": number, "boxes": [[1, 2, 3, 4]], **more}).encode()


@contextlib.contextmanager
def reading(
    broker: str, *topics: str
) -> Iterator[tuple[list[Incoming], list[tuple[bool, str]], dict[str, str]]]:
    """What a subscription receives, its changes of connection, and its problems by key."""
    received: list[Incoming] = []
    changes: list[tuple[bool, str]] = []
    problems: dict[str, str] = {}
    subscription = KafkaSubscription(
        KafkaBrokers.of(settings(broker)), topics, received.append,
        on_change=lambda *change: changes.append(change), on_problem=problems.__setitem__,
    )  # fmt: skip
    subscription.open_in_background()
    try:
        yield received, changes, problems
    finally:
        subscription.close()


def test_boxes_over_kafka(cluster):
    chosen = settings(*cluster.brokers)
    with capture_logs() as logs, ExternalBoxes(chosen.detector, upstream_broker(chosen)) as boxes:
        until(lambda: boxes.connected)
        cluster.send("boxes", message(7), key=b"front")
        found = boxes.boxes_for(frame(7), 10.0)
        assert found is not None
        assert found.boxes.tolist() == [[1, 2, 3, 4]]
        cluster.send("boxes", b"{", None, b"\xff" * 10, message(8))
        assert boxes.boxes_for(frame(8), 10.0) is not None
        assert boxes.left_out["message"] == 3  # an empty message, too, is a message
    assert {"event": "external_boxes_connected", "log_level": "info",
            "broker": f"kafka://{cluster.brokers[0]}", "topics": ("boxes",)} in logs  # fmt: skip


def test_messages_that_are_there_already_are_not_read(cluster):
    cluster.send("boxes", *[message(number) for number in range(50)])
    with reading(cluster.brokers[0], "boxes") as (received, changes, _):
        until(lambda: changes)
        cluster.send("boxes", b"new")
        until(lambda: received)
    assert [one.payload for one in received] == [b"new"]


def test_large_messages_reach_the_check_of_their_size(cluster):
    chosen = settings(*cluster.brokers)
    with ExternalBoxes(chosen.detector, upstream_broker(chosen)) as boxes:
        until(lambda: boxes.connected)
        cluster.send("boxes", b" " * (4 << 20), message(3))
        assert boxes.boxes_for(frame(3), 10.0) is not None
        assert boxes.left_out["message"] == 1


def test_a_broker_that_is_absent_and_comes_back(broker, monkeypatch):
    monkeypatch.setattr(kafka, "RECONNECT_S", (0.1, 0.2))
    broker.down()
    with reading(broker.brokers[0], "boxes") as (received, changes, problems):
        until(lambda: "Connection refused" in problems.get("unreachable", ""))
        assert changes == []
        broker.up()
        until(lambda: changes == [(True, "")])
        broker.send("boxes", b"one")
        until(lambda: received)
        broker.down()
        until(lambda: len(changes) == 2)
        assert not changes[1][0]
        broker.up()
        until(lambda: len(changes) == 3)
        broker.send("boxes", b"two")
        until(lambda: len(received) == 2)
    assert [one.payload for one in received] == [b"one", b"two"]


def test_a_topic_that_does_not_exist_yet(broker, monkeypatch):
    monkeypatch.setattr(kafka, "RECONNECT_S", (0.1, 0.2))
    monkeypatch.setattr(kafka, "PARTITIONS_S", 0.2)
    with reading(broker.brokers[0], "later", "boxes") as (received, changes, problems):
        until(lambda: changes)  # the other one is read meanwhile
        assert problems == {"subscribe later": f"there is no topic later on kafka://{broker.brokers[0]}"}
        broker.topic("later", 3)
        until(lambda: (broker.send("later", b"here"), received)[1])
    with reading(broker.brokers[0], "never") as (_, changes, problems):
        until(lambda: "no topic never" in problems.get("unreachable", ""))
        assert changes == []


def test_a_broker_that_states_an_address_which_nobody_knows(broker):
    broker.advertise("kafka.invalid", 9092)
    with reading(broker.brokers[0], "boxes") as (_, changes, problems):
        until(lambda: "Failed to resolve 'kafka.invalid:9092'" in problems.get("unreachable", ""))
        assert changes == []
    with pytest.raises(BrokerUnreachable, match="Failed to resolve"):
        KafkaBrokers.of(settings(*broker.brokers)).check(["boxes"])


def test_a_topic_that_is_not_permitted(broker):
    broker.refuse("boxes", TOPIC_AUTHORIZATION_FAILED)
    with reading(broker.brokers[0], "boxes") as (_, changes, problems):
        until(lambda: "Topic authorization failed" in problems.get("refused", ""))
        assert changes == []


@pytest.mark.slow
def test_errors_of_the_broker_that_pass(broker):
    with reading(broker.brokers[0], "boxes") as (received, changes, _):
        until(lambda: changes)
        broker.fail(FETCH, NOT_LEADER, NOT_LEADER)
        broker.send("boxes", b"after")
        until(lambda: received)


def test_messages_that_come_faster_than_they_are_read_are_skipped(broker, monkeypatch):
    monkeypatch.setattr(kafka, "UPKEEP_S", 0.2)
    monkeypatch.setattr(kafka, "MOST_BEHIND", 50)
    received: list[bytes] = []
    problems: dict[str, str] = {}

    def slow(one: Incoming) -> None:
        time.sleep(0.05)
        received.append(one.payload)

    subscription = KafkaSubscription(
        KafkaBrokers.of(settings(*broker.brokers)), ["boxes"], slow, on_problem=problems.__setitem__
    )
    subscription.open_in_background()
    try:
        until(lambda: subscription.connected)
        broker.send("boxes", *[b"%d" % number for number in range(500)])
        until(lambda: "behind" in problems)
        broker.send("boxes", b"last")
        until(lambda: received[-1:] == [b"last"])
    finally:
        subscription.close()
    assert len(received) < 200


@pytest.mark.slow
def test_a_broker_that_is_frozen(broker, monkeypatch):
    monkeypatch.setattr(kafka, "RECONNECT_S", (0.1, 0.2))
    monkeypatch.setattr(kafka, "REQUEST_TIMEOUT_S", 1.0)
    with reading(broker.brokers[0], "boxes") as (received, changes, _):
        until(lambda: changes)
        os.kill(broker.process.pid, signal.SIGSTOP)
        try:
            until(lambda: len(changes) == 2, seconds=30)
        finally:
            os.kill(broker.process.pid, signal.SIGCONT)
        until(lambda: len(changes) == 3, seconds=30)
        broker.send("boxes", b"thawed")
        until(lambda: received, seconds=30)


def test_the_end_does_not_wait_for_a_broker():
    port = find_free_port()
    chosen = settings(f"127.0.0.1:{port}", topics=("boxes",))
    began = time.monotonic()
    with ExternalBoxes(chosen.detector, upstream_broker(chosen)):
        pass
    assert time.monotonic() - began < 5


@contextlib.contextmanager
def tls_proxy(folder: Path, port: int) -> Iterator[int]:
    """TLS in front of a port, with certificates from both sides; yields its port."""
    for line in (
        "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 1 -subj /CN=ca",
        "req -newkey rsa:2048 -nodes -keyout own.key -out own.csr -subj /CN=localhost"
        " -addext subjectAltName=DNS:localhost",
        "x509 -req -in own.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out own.pem -days 1"
        " -copy_extensions copy",
    ):
        subprocess.run(["openssl", *line.split()], cwd=folder, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "own.pem", folder / "own.key")
    context.load_verify_locations(folder / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))

    ready: queue.SimpleQueue[tuple[int, asyncio.AbstractEventLoop]] = queue.SimpleQueue()
    over = asyncio.Event()

    async def run() -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
            ready.put((server.sockets[0].getsockname()[1], asyncio.get_running_loop()))
            await over.wait()

    thread = threading.Thread(target=asyncio.run, args=(run(),), daemon=True)
    thread.start()
    number, loop = ready.get(timeout=10)
    try:
        yield number
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(10)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_tls_from_both_sides(broker, tmp_path):
    with tls_proxy(tmp_path, int(broker.brokers[0].rpartition(":")[2])) as port:
        broker.send("boxes", b"before")
        broker.advertise("localhost", port)
        tls = {"tls": True, "ca_file": tmp_path / "ca.pem"}
        keys = {"cert_file": tmp_path / "own.pem", "key_file": tmp_path / "own.key"}
        assert KafkaBrokers.of(settings(f"localhost:{port}", **tls, **keys)).check(["boxes", "no"]) == (
            1,
            ["no"],
        )
        with pytest.raises(BrokerUnreachable, match=r"(?i)ssl|certificate"):
            KafkaBrokers.of(settings(f"localhost:{port}", **tls)).check(["boxes"])
        with pytest.raises(BrokerRefused, match="certificate"):  # it is for localhost
            KafkaBrokers.of(settings(f"127.0.0.1:{port}", **tls, **keys)).check(["boxes"])
        with pytest.raises(BrokerUnreachable, match=r"kafka\.tls|SSL listener"):
            KafkaBrokers.of(settings(f"localhost:{port}")).check(["boxes"])


# ---- settings ---------------------------------------------------------------------------------------


def test_a_broker_is_needed():
    with contextlib.ExitStack() as stack, pytest.raises(ConfigError, match="names no broker"):
        open_detection(settings(), stack, cameras={"front": None})


def test_topics_that_kafka_does_not_have():
    chosen = settings("localhost:9092", topics=("boxes/front",))
    with pytest.raises(ConfigError, match="'boxes/front' is no topic of Kafka"):
        ExternalBoxes(chosen.detector, upstream_broker(chosen))


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({"brokers": ["host"]}, "HOST:PORT"),
        ({"brokers": ["user:s3cret@host:9092"]}, "a login belongs in username and password"),
        ({"brokers": ["kafka://host:9092"]}, "HOST:PORT"),
        ({"brokers": ["host:99999"]}, "HOST:PORT"),
        ({"username": "me"}, "mechanism, username and password; here is only username"),
        ({"mechanism": "PLAIN", "password": "s3cret"}, "here is only mechanism and password"),
        ({"mechanism": "GSSAPI"}, "PLAIN"),
        ({"ca_file": "/ca.pem"}, "tls is false"),
        ({"tls": True, "key_file": "/key.pem"}, "go together"),
    ],
)
def test_settings_that_do_not_fit(keys, wanted):
    with pytest.raises(ConfigError, match=wanted) as caught:
        load(Path(os.devnull), {"kafka": keys})
    assert "s3cret" not in str(caught.value)


def test_a_password_is_needed_only_by_what_connects():
    # A credential file is there for the service, but not for `status` and `gallery` in a shell.
    login = {"brokers": ["localhost:9092"], "mechanism": "PLAIN", "username": "me"}
    chosen = load(Path(os.devnull), {"kafka": login})
    with pytest.raises(ConfigError, match="no password: credential file kafka__password"):
        KafkaBrokers.of(chosen)


def test_the_extra_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(ConfigError, match=r"needs the extra kafka .* pip install"):
        KafkaBrokers.of(settings("localhost:9092"))


def test_tls_files_that_cannot_be_used(tmp_path):
    with pytest.raises(BrokerRefused, match="No such file"):
        KafkaBrokers.of(settings("localhost:9092", tls=True, ca_file=tmp_path / "ca.pem"))
    (tmp_path / "ca.pem").write_text("no certificate")
    chosen = settings("localhost:9092", tls=True, ca_file=tmp_path / "ca.pem")
    boxes = ExternalBoxes(chosen.detector, upstream_broker(chosen))
    with pytest.raises(SourceError, match="ssl"), boxes:
        pass


def test_a_password_from_a_credential_file_is_never_shown(tmp_path, monkeypatch):
    (tmp_path / "kafka__password").write_text("s3cret-word\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    port = find_free_port()
    keys = {"brokers": [f"127.0.0.1:{port}"], "mechanism": "SCRAM-SHA-512", "username": "jetson"}
    chosen = load(Path(os.devnull), {"kafka": keys})
    assert chosen.kafka.password.get_secret_value() == "s3cret-word"
    brokers = KafkaBrokers.of(chosen)
    assert brokers.options(print)["security.protocol"] == "SASL_PLAINTEXT"
    monkeypatch.setattr(kafka, "REQUEST_TIMEOUT_S", 0.5)
    with pytest.raises(BrokerUnreachable, match="Connection refused") as caught:
        brokers.check(["boxes"])
    for text in (str(caught.value), repr(brokers), repr(chosen), str(chosen.kafka)):
        assert "s3cret" not in text


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_each_login_is_one_that_librdkafka_takes(mechanism):
    login = {"mechanism": mechanism, "username": "me", "password": "s3cret"}
    brokers = KafkaBrokers.of(settings("127.0.0.1:9092", tls=True, **login))
    assert brokers.options(print)["security.protocol"] == "SASL_SSL"
    with kafka.Consumer(brokers) as consumer:
        assert consumer.brokers == 0


def test_a_password_that_everybody_could_read_on_the_way():
    login = {"mechanism": "PLAIN", "username": "me", "password": "s3cret"}
    assert KafkaBrokers.of(settings("kafka.example:9092", **login)).sends_password_openly
    assert not KafkaBrokers.of(settings("kafka.example:9092", tls=True, **login)).sends_password_openly
    assert not KafkaBrokers.of(settings("127.0.0.1:9092", **login)).sends_password_openly
    assert KafkaBrokers.of(settings("127.example.org:9092", **login)).sends_password_openly
    with capture_logs() as logs:
        for _ in range(2):
            with kafka.Consumer(KafkaBrokers.of(settings("kafka.invalid:9092", **login))):
                pass
    assert [entry["event"] for entry in logs] == ["kafka_password_unencrypted"]


@pytest.mark.slow
def test_librdkafka_writes_nothing_to_standard_error():
    code = (
        "from edge_agent.core import kafka\n"
        "from edge_agent.core.config import Settings\n"
        "kafka.REQUEST_TIMEOUT_S = 1.0\n"
        "brokers = kafka.KafkaBrokers.of(Settings(kafka={'brokers': ['127.0.0.1:1']}))\n"
        "try: brokers.check(['boxes'])\n"
        "except Exception as problem: print(type(problem).__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("BrokerUnreachable\n", "")
