"""Copies of identity events for consumers of NVIDIA Metropolis: both forms, over MQTT and Kafka."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.core.clock import Clock
from edge_agent.core.codec import encode
from edge_agent.core.config import Settings
from edge_agent.core.errors import (
    BrokerRefused,
    BrokerUnreachable,
    ConfigError,
    MessageRefused,
    MessageTooLarge,
)
from edge_agent.core.kafka import KafkaBrokers
from edge_agent.core.loading import load
from edge_agent.core.nv_frame import UNTRACKED, decode_frame
from edge_agent.deliver import copies as copies_module
from edge_agent.deliver import pacing, targets
from edge_agent.deliver.copies import COPIES_FILE, Copies, open_copies
from edge_agent.deliver.local import LocalPublisher, Origin
from edge_agent.deliver.metropolis import to_frame, to_json
from edge_agent.deliver.publisher import Publisher
from edge_agent.deliver.targets import KafkaTarget, MqttTarget, NoSubscriber
from edge_agent.deliver.topics import Topics
from edge_agent.source.deepstream import parse_deepstream
from tests.conftest import REPO, find_free_port
from tests.deliver.deliver_fixtures import (
    INFO,
    CalledTime,
    Listener,
    broker_at,
    configured_mosquitto,
    identity,
    outbox_at,
    until,
)
from tests.kafka_broker import PRODUCE, KafkaBroker, kafka_broker

MSG_SIZE_TOO_LARGE, TOPIC_AUTHORIZATION_FAILED, NOT_LEADER = 10, 29, 6


@pytest.fixture(scope="module")
def cluster() -> Iterator[KafkaBroker]:
    with kafka_broker(1) as started:
        yield started


@pytest.fixture
def broker() -> Iterator[KafkaBroker]:
    with kafka_broker(1, ("events",)) as started:
        yield started


@pytest.fixture(autouse=True)
def short_waits() -> Iterator[None]:
    with (
        mock.patch.multiple(pacing, FIRST_WAIT_S=0.05, LONGEST_WAIT_S=0.2, REFUSED_WAIT_S=0.3),
        mock.patch.multiple(copies_module, IDLE_S=0.05, QUIET_RETRY_S=0.05),
    ):
        yield


def event(**changes: Any) -> dict[str, Any]:
    made = Origin(Topics("lab", "jx01"), "session-1", None, Clock()).stamp(identity(7, **changes))
    message: dict[str, Any] = json.loads(encode(made)) | {"seq": 12}
    return message


@functools.cache
def frame_class() -> Any:
    """`nv.Frame` by google's library, from the schema's field numbers."""
    file = descriptor_pb2.FileDescriptorProto(name="nv.proto", package="nv", syntax="proto3")
    file.dependency.append("google/protobuf/timestamp.proto")
    text, real, message = 9, 2, 11
    layout = {
        "Embedding": [("vector", 1, real, 3, "")],
        "Bbox": [
            (name, at, real, 1, "") for at, name in enumerate(("leftX", "topY", "rightX", "bottomY"), 1)
        ],
        "Object": [
            ("id", 1, text, 1, ""), ("bbox", 2, message, 1, ".nv.Bbox"), ("type", 3, text, 1, ""),
            ("confidence", 4, real, 1, ""), ("info", 5, message, 3, ".nv.Object.InfoEntry"),
            ("embedding", 6, message, 1, ".nv.Embedding"),
        ],
        "Frame": [
            ("version", 1, text, 1, ""), ("id", 2, text, 1, ""),
            ("timestamp", 3, message, 1, ".google.protobuf.Timestamp"), ("sensorId", 4, text, 1, ""),
            ("objects", 5, message, 3, ".nv.Object"),
        ],
    }  # fmt: skip
    for name, fields in layout.items():
        made = file.message_type.add(name=name)
        for field, number, kind, label, of in fields:
            made.field.add(name=field, number=number, type=kind, label=label, type_name=of or None)
        if name == "Object":
            entry = made.nested_type.add(name="InfoEntry")
            entry.options.map_entry = True
            for number, field in enumerate(("key", "value"), 1):
                entry.field.add(name=field, number=number, type=text, label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(timestamp_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("nv.Frame"))


# ---- forms -------------------------------------------------------------------------------------------


def test_protobuf_as_googles_library_and_our_reader_have_it():
    sent = event(name="Zoë", time=1_700_000_000.25)
    payload = to_frame(sent)
    frame = frame_class()()
    frame.ParseFromString(payload)
    assert (frame.version, frame.id, frame.sensorId) == ("4.0", "11", "cam1")  # counted from 0
    assert frame.timestamp.ToMilliseconds() == 1_700_000_000_250
    (person,) = frame.objects
    assert (person.id, person.type, person.confidence) == ("p-0001", "Person", 1.0)
    box = person.bbox
    assert (box.leftX, box.topY, box.rightX, box.bottomY) == (64, 48, 128, 240)
    assert dict(person.info) == {
        "name": "Zoë", "score": "0.8123", "number": "1", "kind": "matched", "threshold": "0.6",
        "track_id": "7", "event": sent["id"], "seq": "12", "device": "edge/v1/lab/jx01",
    }  # fmt: skip
    assert list(person.embedding.vector) == []
    assert frame.SerializeToString(deterministic=True) == type(frame).FromString(payload).SerializeToString(
        deterministic=True
    )
    own = decode_frame(payload)
    assert (own.sensor, own.id, own.time) == ("cam1", "11", 1_700_000_000.25)
    assert own.objects[0].id == "p-0001"
    assert own.objects[0].info == dict(person.info)


@given(
    name=st.none() | st.text(max_size=200),
    identity=st.none() | st.text(min_size=1, max_size=64),
    box=st.lists(st.floats(-1e4, 1e4, width=32), min_size=4, max_size=4),
    score=st.none() | st.floats(-1, 1),
    moment=st.floats(0, 4e9),
)
def test_any_event_is_written_and_read(name, identity, box, score, moment):
    changes = {"name": name, "identity": identity, "score": score, "time": moment}
    sent = event(**changes, box=np.array(box, np.float32))
    found = json.loads(to_json(sent))
    frame = frame_class().FromString(to_frame(sent))
    (person,) = frame.objects
    assert person.id == found["object"]["id"] == (identity or UNTRACKED)
    assert dict(person.info) == found["object"]["info"]
    assert person.info.get("name") == (name or None)
    assert decode_frame(to_frame(sent)).objects[0].info == dict(person.info)
    corners = [person.bbox.leftX, person.bbox.topY, person.bbox.rightX, person.bbox.bottomY]
    assert corners == pytest.approx(box, abs=0.01, rel=1e-4)
    assert list(found["object"]["bbox"].values()) == pytest.approx(box, abs=1.01, rel=1e-4)


@pytest.mark.parametrize("form", [to_json, to_frame])
def test_the_agent_itself_reads_both_as_messages_of_deepstream(form):
    read = parse_deepstream(form(event(time=1_700_000_000.25)))
    assert (read.camera, read.time, read.people) == ("cam1", 1_700_000_000.25, 1)
    assert read.boxes.tolist() == [[64, 48, 128, 240]]
    assert read.scores.tolist() == [1.0]
    assert read.number == (None if form is to_json else 12)
    again, other = parse_deepstream(form(event())), parse_deepstream(form(event(identity="p-0002")))
    assert read.tracks == again.tracks != other.tracks
    assert parse_deepstream(form(event(identity=None))).tracks == (None,)


def test_json_has_the_keys_of_nvmsgconv():
    sent = event(name="Zoë", time=1_700_000_000.25)
    found = json.loads(to_json(sent))
    assert found["messageid"] == sent["id"]
    assert (found["mdsversion"], found["@timestamp"]) == ("1.0", "2023-11-14T22:13:20.250Z")
    assert found["sensor"]["id"] == "cam1"
    assert found["place"]["id"] == "lab"
    assert found["analyticsModule"]["source"] == "edge/v1/lab/jx01"
    person = found["object"]
    assert person["id"] == "p-0001"
    assert person["person"]["confidence"] == 1.0
    assert person["bbox"] == {"topleftx": 64, "toplefty": 48, "bottomrightx": 128, "bottomrighty": 240}
    assert person["info"]["name"] == "Zoë"
    assert person["info"]["score"] == "0.8123"
    assert found["event"] == {"id": sent["id"], "type": "entry"}
    assert "embedding" not in person


@pytest.mark.parametrize(
    ("transport", "read", "refused"),
    [
        ("mqtt", "mdx/reid", True), ("mqtt", "#", True), ("mqtt", "mdx/reid/#", True),
        ("mqtt", "+/reid", True),
        ("mqtt", "$share/group/mdx/+", True), ("mqtt", "mdx", False), ("mqtt", "mdx/reid/boxes", False),
        ("mqtt", "+", False), ("mqtt", "mdx/boxes", False),
        ("kafka", "mdx-reid", True), ("kafka", "mdx", False),
    ],
)  # fmt: skip
def test_an_agent_does_not_read_its_own_copies(transport: str, read: str, refused: bool):
    topic = "mdx/reid" if transport == "mqtt" else "mdx-reid"
    copies = {"format": "json", "transport": transport, "topic": topic}
    other = "kafka" if transport == "mqtt" else "mqtt"

    def loaded(way: str) -> Settings:
        boxes = {"external_transport": way, "external_topics": [read]}
        return load(Path(os.devnull), {"metropolis": copies, "detector": boxes})

    assert loaded(other).metropolis.topic == topic
    if refused:
        with pytest.raises(ConfigError, match="take its own copies for people"):
            loaded(transport)
    else:
        loaded(transport)


def test_json_has_the_whole_pixels_that_upstream_sent():
    sent = event()
    sent["data"] |= {"bbox": [0.08125, 0.09259, 0.15937, 0.46296], "frame_size": [1920, 1080]}
    box = json.loads(to_json(sent))["object"]["bbox"]
    assert box == {"topleftx": 156, "toplefty": 100, "bottomrightx": 306, "bottomrighty": 500}


def test_json_has_all_keys_of_a_sample_of_deepstream():
    sample = REPO.parent / "shared/data/deepstream/full-embedding-7.json"
    if not sample.is_file():
        pytest.skip(f"{sample} is not there")

    def keys(value: Any, at: str = "") -> set[str]:
        if not isinstance(value, dict):
            return {at}
        return {at} | {one for key, below in value.items() for one in keys(below, f"{at}.{key}")}

    theirs, ours = keys(json.loads(sample.read_bytes())), keys(json.loads(to_json(event())))
    lacking = {one for one in theirs - ours if not one.startswith((".object.embedding", ".place.entrance"))}
    assert lacking <= {".place.entrance"}


@pytest.mark.parametrize(
    ("kind", "type_"),
    [
        ("matched", "entry"),
        ("enrolled", "entry"),
        ("unknown", "entry"),
        ("corrected", "moving"),
        ("departed", "exit"),
    ],
)
def test_kinds_of_events(kind, type_):
    from edge_agent.core.structures import DecisionKind

    found = json.loads(to_json(event(kind=DecisionKind(kind))))
    assert (found["event"]["type"], found["object"]["info"]["kind"]) == (type_, kind)


def test_a_person_without_identity_has_deepstreams_id_of_an_object_without_track():
    unknown = event(identity=None, number=None, score=None, threshold=None)
    assert json.loads(to_json(unknown))["object"]["id"] == UNTRACKED == "18446744073709551615"
    (person,) = decode_frame(to_frame(unknown)).objects
    assert person.id == UNTRACKED
    assert not {"score", "name", "number", "threshold"} & person.info.keys()


def test_an_event_of_an_earlier_version_has_no_box():
    old = event()
    del old["data"]["frame_size"]
    assert set(json.loads(to_json(old))["object"]["bbox"].values()) == {0}
    assert decode_frame(to_frame(old)).objects[0].box == (0, 0, 0, 0)


# ---- delivery ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(
    folder: Path, target: Any, form: str = "json", **limits: Any
) -> Iterator[tuple[Copies, LocalPublisher]]:
    """Copies that are sent to `target`, and a publisher without a broker of its own."""
    copies = Copies(outbox_at(folder / COPIES_FILE, **limits), target, form)
    with copies:
        origin = Origin(Topics("lab", "jx01"), "session-1", None, Clock(), copies)
        yield copies, LocalPublisher(origin)


def kafka_target(broker: KafkaBroker, topic: str = "events") -> KafkaTarget:
    return KafkaTarget(KafkaBrokers.of(Settings(kafka={"brokers": broker.brokers})), topic)


def mqtt_target(port: int, topic: str = "metropolis/events", **settings: Any) -> MqttTarget:
    broker = broker_at(f"mqtt://127.0.0.1:{port}", **settings)
    return MqttTarget(broker, "edge-agent-lab-jx01-metropolis", topic, "application/json")


def numbers(messages: list[Any]) -> list[int]:
    return [int(json.loads(one)["object"]["info"]["seq"]) for one in messages]


def test_over_kafka(cluster, tmp_path):
    with running(tmp_path, kafka_target(cluster), "protobuf") as (copies, publisher):
        for track in range(1, 31):
            publisher.publish(identity(track, camera=f"cam{track % 2}"))
        assert publisher.drain(20)
        assert publisher.counters.copies_delivered == 30
    found = cluster.stored("events", 30)
    frames = [decode_frame(one.value()) for one in found]
    assert {one.key().decode() for one in found} == {"cam0", "cam1"}
    for camera in ("cam0", "cam1"):  # in order within the partition of the camera
        seqs = [int(one.objects[0].info["seq"]) for one in frames if one.sensor == camera]
        assert seqs == sorted(seqs)
    assert copies.trouble == ""


def test_over_mqtt(mosquitto, tmp_path):
    with (
        Listener(mosquitto.port, "metropolis/#") as listener,
        running(tmp_path, mqtt_target(mosquitto.port)) as (_, publisher),
    ):
        for track in range(1, 31):
            publisher.publish(identity(track))
        assert publisher.drain(20)
        until(lambda: len(listener.heard) == 30)
    found = [json.dumps(one.message).encode() for one in listener.heard]
    assert numbers(found) == list(range(1, 31))
    assert listener.heard[0].properties.ContentType == "application/json"


def test_other_events_have_no_copies(cluster, tmp_path):
    from edge_agent.core.alerts import AlertKind
    from edge_agent.core.events import alert_event

    with running(tmp_path, kafka_target(cluster)) as (copies, publisher):
        publisher.publish(alert_event(AlertKind.CRASH_LOOP, "text", time=time.time()))
        assert copies.outbox.depth.rows == 0


@pytest.mark.parametrize("transport", ["kafka", "mqtt"])
def test_a_broker_that_is_away_loses_nothing_and_keeps_the_order(transport, tmp_path, request, monkeypatch):
    monkeypatch.setattr(targets, "REQUEST_TIMEOUT_S", 0.5)
    monkeypatch.setattr(targets, "ACK_TIMEOUT_S", 0.5)
    with contextlib.ExitStack() as stack:
        if transport == "kafka":
            broker = request.getfixturevalue("broker")
            target, away, back = kafka_target(broker), broker.down, broker.up
        else:
            broker = request.getfixturevalue("mosquitto")
            target, away, back = mqtt_target(broker.port), broker.stop, broker.start
            # A session that the broker keeps, as nobody could receive anything while it is away.
            subscriber = subprocess_listener(stack, broker.port, tmp_path / "heard")
        copies, publisher = stack.enter_context(running(tmp_path, target))
        for track in range(1, 6):
            publisher.publish(identity(track))
        assert publisher.drain(20)
        away()
        for track in range(6, 16):
            publisher.publish(identity(track))
        until(lambda: copies.problem)
        assert copies.outbox.depth.rows == 10
        back()
        assert publisher.drain(30)
        assert copies.problem is None
        if transport == "kafka":
            found = numbers([one.value() for one in broker.stored("events", 15)])
        else:
            found = numbers(until(lambda: lines if len(lines := subscriber()) >= 15 else None))
    assert list(dict.fromkeys(found)) == list(range(1, 16))


def subprocess_listener(stack: contextlib.ExitStack, port: int, path: Path) -> Any:
    """A subscriber with a session; returns what it has heard so far."""
    code = (
        "import sys, paho.mqtt.client as mqtt\n"
        "out = open(sys.argv[2], 'ab', buffering=0)\n"
        "client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id='keeps', clean_session=False)\n"
        "client.reconnect_delay_set(1, 1)\n"
        "client.on_connect = lambda *_: client.subscribe('metropolis/#', 1)\n"
        "client.on_subscribe = lambda *_: print('ready', flush=True)\n"
        "client.on_message = lambda _c, _d, m: out.write(m.payload + b'\\n')\n"
        "client.connect('127.0.0.1', int(sys.argv[1]))\n"
        "client.loop_forever()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(port), str(path)], stdout=subprocess.PIPE)

    def end() -> None:
        process.kill()
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()

    stack.callback(end)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return lambda: path.read_bytes().splitlines()


def test_what_a_killed_run_has_left_is_sent_by_the_next(broker, tmp_path):
    broker.down()
    with running(tmp_path, kafka_target(broker)) as (copies, publisher):
        for track in range(1, 6):
            publisher.publish(identity(track))
        until(lambda: copies.problem)
    broker.up()
    with running(tmp_path, kafka_target(broker)) as (copies, _):
        assert copies.drain(20)
    assert numbers([one.value() for one in broker.stored("events", 5)]) == [1, 2, 3, 4, 5]


def test_a_message_that_kafka_does_not_take_is_set_aside(broker, tmp_path):
    broker.fail(PRODUCE, MSG_SIZE_TOO_LARGE)
    with running(tmp_path, kafka_target(broker)) as (copies, publisher):
        for track in range(1, 4):
            publisher.publish(identity(track))
        assert copies.drain(20)
        assert copies.counters["refused"] == 1
        assert copies.outbox.depth.parked == 1
        assert numbers([one.value() for one in broker.stored("events", 2)]) == [2, 3]
        until(lambda: copies.outbox.is_empty)
        assert copies.counters["dropped"] == 0
    with running(tmp_path, kafka_target(broker)) as (copies, _):
        assert copies.drain(20)
    assert numbers([one.value() for one in broker.stored("events", 3)]) == [2, 3, 1]


def test_errors_of_kafka_that_pass(broker, tmp_path):
    broker.fail(PRODUCE, NOT_LEADER, NOT_LEADER)
    with running(tmp_path, kafka_target(broker)) as (copies, publisher):
        publisher.publish(identity(1))
        assert copies.drain(20)
    broker.stored("events", 1)


def test_a_topic_of_kafka_that_is_not_permitted(broker, tmp_path):
    broker.fail(PRODUCE, *[TOPIC_AUTHORIZATION_FAILED] * 3)
    with running(tmp_path, kafka_target(broker)) as (copies, publisher):
        publisher.publish(identity(1))
        until(lambda: "authorization failed" in (copies.problem or ""))
        with mock.patch.object(copies_module, "SILENT_S", 0.0):
            assert "authorization failed" in copies.trouble
            assert publisher.trouble == copies.trouble
        assert copies.drain(20)  # it is allowed at the fourth attempt
        assert copies.trouble == ""


def test_large_messages_over_kafka(cluster):
    target = kafka_target(cluster)
    target.open(lambda: False)
    try:
        with pytest.raises(MessageTooLarge):
            target.send("cam1", b"x" * (2 << 20), lambda: False)
        target.send("cam1", b"{}", lambda: False)
    finally:
        target.close()
        target.close()


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"{}", b"null", b"\xff", b"[" * 100_000, b'{"data": {"camera": "c"}}',
        json.dumps(event() | {"source": "x"}).encode(),
        json.dumps(event() | {"data": event()["data"] | {"bbox": [1e400] * 4}}).encode(),
    ],
)  # fmt: skip
def test_a_row_that_another_program_has_written_is_set_aside(body, cluster, tmp_path):
    with running(tmp_path, kafka_target(cluster, "rows")) as (copies, publisher):
        copies.outbox.append(body, "identity")
        copies.outbox.append(body, "gap")
        publisher.publish(identity(1))
        assert copies.drain(20)
        until(lambda: copies.outbox.is_empty)
        assert copies.counters["delivered"] == 1


def test_a_broker_of_mqtt_that_is_frozen(mosquitto, tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "ACK_TIMEOUT_S", 0.3)
    with (
        Listener(mosquitto.port, "metropolis/#") as listener,
        running(tmp_path, mqtt_target(mosquitto.port)) as (copies, publisher),
    ):
        publisher.publish(identity(1))
        assert copies.drain(20)
        os.kill(mosquitto.process.pid, signal.SIGSTOP)
        try:
            publisher.publish(identity(2))
            until(lambda: "no PUBACK" in (copies.problem or ""))
        finally:
            os.kill(mosquitto.process.pid, signal.SIGCONT)
        assert copies.drain(20)
        until(lambda: len({one.message["messageid"] for one in listener.heard}) == 2)


def test_nobody_has_subscribed(mosquitto, tmp_path):
    with running(tmp_path, mqtt_target(mosquitto.port)) as (copies, publisher):
        publisher.publish(identity(1))
        until(lambda: "nobody has subscribed" in (copies.problem or ""))
        with Listener(mosquitto.port, "metropolis/#") as listener:
            assert copies.drain(20)
            until(lambda: listener.heard)
    with (
        mock.patch.object(copies_module, "NO_SUBSCRIBER_S", 0.0),
        running(tmp_path, mqtt_target(mosquitto.port)) as (copies, publisher),
    ):
        publisher.publish(identity(2))
        until(lambda: copies.counters["dropped"])


def test_a_broker_of_mqtt_that_refuses(tmp_path):
    lines = "listener {port} 127.0.0.1\nallow_anonymous true\nacl_file {folder}/acl\n"
    (tmp_path / "acl").write_text("topic read #\n")
    with (
        configured_mosquitto(tmp_path, lines) as broker,
        Listener(broker.port, "metropolis/#"),
        running(tmp_path, mqtt_target(broker.port)) as (copies, publisher),
    ):
        publisher.publish(identity(1))
        until(lambda: "not authorised" in (copies.problem or ""))
        assert copies.outbox.depth.rows == 1


def test_a_message_at_which_the_broker_hangs_up(tmp_path, monkeypatch):
    monkeypatch.setattr(copies_module, "LOSSES", 3)
    lines = "listener {port} 127.0.0.1\nallow_anonymous true\nmax_packet_size 1500\n"
    with (
        configured_mosquitto(tmp_path, lines) as broker,
        Listener(broker.port, "metropolis/#") as listener,
        running(tmp_path, mqtt_target(broker.port, version="3.1.1"), "protobuf") as (copies, publisher),
    ):
        publisher.publish(identity(1, name="x" * 2000))
        publisher.publish(identity(2))
        assert copies.drain(20)
        until(lambda: listener.heard)
        assert copies.counters["refused"] == 1


def test_too_many_are_dropped_and_counted(tmp_path):
    target = mqtt_target(find_free_port())
    with running(tmp_path, target, max_rows=5) as (copies, publisher):
        for track in range(1, 11):
            publisher.publish(identity(track))
        assert copies.outbox.depth.rows <= 5
        assert publisher.counters.copies_rows <= 5
    earlier = copies.counters["dropped"]  # a note of them takes a place, too
    with (
        configured_mosquitto(
            tmp_path / "broker", "listener {port} 127.0.0.1\nallow_anonymous true\n"
        ) as broker,
        Listener(broker.port, "metropolis/#") as listener,
        running(tmp_path, mqtt_target(broker.port)) as (copies, _),
    ):
        assert copies.drain(20)
        until(lambda: earlier + copies.counters["dropped"] + len(listener.heard) == 10)
        assert 0 < len(listener.heard) <= 5


def test_the_end_does_not_wait_for_a_broker(tmp_path, broker):
    os.kill(broker.process.pid, signal.SIGSTOP)
    try:
        with running(tmp_path, kafka_target(broker)) as (_, publisher):
            publisher.publish(identity(1))
            began = time.monotonic()
        assert time.monotonic() - began < 2.0
    finally:
        os.kill(broker.process.pid, signal.SIGCONT)


def test_copies_do_not_wait_for_the_broker_of_the_events(cluster, tmp_path):
    """The outbox of the events is full of what nobody takes; the copies go."""
    from edge_agent.core.delivery_settings import MqttSettings

    settings = MqttSettings(broker=f"mqtt://127.0.0.1:{find_free_port()}", site="lab", device="jx01")
    with (
        outbox_at(tmp_path / "outbox.db") as outbox,
        Copies(outbox_at(tmp_path / COPIES_FILE), kafka_target(cluster, "own"), "json") as copies,
        Publisher(
            settings,
            Origin(Topics("lab", "jx01"), "s", None, Clock(), copies),
            outbox=outbox,
            info=lambda: INFO,
        ) as publisher,
    ):
        seqs = [publisher.publish(identity(track)) for track in range(1, 6)]
        assert copies.drain(20)
        assert publisher.counters.copies_delivered == 5
        assert not publisher.drain(0.1)
    assert numbers([one.value() for one in cluster.stored("own", 5)]) == seqs


def test_a_kill_between_the_copy_and_the_event_loses_neither(tmp_path):
    """The copy is written first, with the number that the event will have."""
    copies = Copies(outbox_at(tmp_path / COPIES_FILE), mqtt_target(find_free_port()), "json")
    from edge_agent.core.delivery_settings import MqttSettings

    settings = MqttSettings(broker=f"mqtt://127.0.0.1:{find_free_port()}", site="lab", device="jx01")

    class Killed(BaseException):
        pass

    with copies, outbox_at(tmp_path / "outbox.db") as outbox:
        origin = Origin(Topics("lab", "jx01"), "s", None, Clock(), copies)
        with Publisher(settings, origin, outbox=outbox, info=lambda: INFO) as publisher:
            with mock.patch.object(outbox, "append", side_effect=Killed), pytest.raises(Killed):
                publisher.publish(identity(1))
            assert outbox.depth.rows == 0
            assert copies.outbox.depth.rows == 1
            (_, body), *_ = copies.outbox.stored.between(0, 10, 10)
            assert json.loads(body)["seq"] == 1
            assert publisher.publish(identity(2)) == 1


# ---- settings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({"format": "json"}, "topic is not"),
        ({"format": "protobuf", "transport": "kafka", "topic": "a/b"}, "Kafka takes letters"),
        ({"format": "json", "topic": "edge/v1/lab/jx01/identity/matched"}, "of the agents"),
        ({"format": "json", "topic": "a/#"}, "wildcards"),
        ({"format": "xml", "topic": "a"}, "json"),
    ],
)
def test_settings_that_do_not_fit(keys, wanted):
    with pytest.raises(ConfigError, match=wanted):
        load(Path(os.devnull), {"metropolis": keys})


def test_settings_that_lack_a_broker(tmp_path):
    for transport in ("mqtt", "kafka"):
        chosen = {"format": "json", "topic": "events", "transport": transport}
        with pytest.raises(ConfigError, match="broker"):
            open_copies(Settings(state_dir=tmp_path, metropolis=chosen), Clock())
    assert open_copies(Settings(state_dir=tmp_path), Clock()) is None


def test_copies_that_are_left_when_they_are_switched_off_become_too_old(tmp_path):
    seconds = [0.0]
    clock = Clock(CalledTime(lambda: seconds[0]))
    with outbox_at(tmp_path / COPIES_FILE, clock=clock) as copies:
        copies.append(b"{}", "identity")
        seconds[0] = 3600.0
        copies.append(b"{}", "identity")
    seconds[0] = 3700.0
    assert open_copies(Settings(state_dir=tmp_path, outbox={"max_age_hours": 1.0}), clock) is None
    with outbox_at(tmp_path / COPIES_FILE, clock=clock) as copies:
        assert copies.depth.rows == 1


def test_errors_have_names():
    assert issubclass(NoSubscriber, BrokerUnreachable)
    assert not issubclass(BrokerRefused, BrokerUnreachable)
    assert issubclass(MessageTooLarge, MessageRefused)


@pytest.mark.parametrize("block", ["metropolis", "kafka"])
def test_the_examples_of_the_page(block, tmp_path):
    page = (REPO / "docs/deepstream.md").read_text()
    text = re.search(rf"^```toml {block}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert text is not None
    login = '[kafka]\npassword = "s3cret"\n'
    (tmp_path / "config.toml").write_text(text[1].replace("[kafka]\n", login))
    chosen = load(tmp_path / "config.toml")
    assert (chosen.metropolis.format, chosen.detector.external_transport) in {
        ("protobuf", "mqtt"),
        ("off", "kafka"),
    }
