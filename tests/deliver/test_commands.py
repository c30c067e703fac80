"""Commands over MQTT: refusals and reasons, execution, and a flood of invalid messages."""

from __future__ import annotations

import contextlib
import gc
import json
import random
import resource
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import paho.mqtt.client as mqtt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edge_agent.core.clock import Clock
from edge_agent.core.codec import command_schema, envelope_schema
from edge_agent.core.commands import COMMAND_TYPES
from edge_agent.core.delivery_settings import MqttSettings
from edge_agent.core.errors import ConfigError, InputError
from edge_agent.core.events import Event
from edge_agent.core.mqtt import Incoming
from edge_agent.core.timing import rfc3339
from edge_agent.deliver import commands
from edge_agent.deliver.commands import CommandDesk
from tests.conftest import Mosquitto
from tests.deliver.deliver_fixtures import Listener, configured_mosquitto, outbox_at, publishing, until

ROOT = "edge/v1/lab/jx01"


class Gallery:
    """Records the commands."""

    def __init__(self) -> None:
        self.done: list[Any] = []

    def name(self, command: Any) -> dict[str, Any]:
        if command.identity_id == "nobody":
            raise InputError("there is no identity 'nobody'; see `edge-agent gallery list`")
        if command.identity_id == "bug":
            raise RuntimeError("secret detail")
        self.done.append(command)
        return {"identity_id": command.identity_id, "name": command.name}

    def stats(self, command: Any) -> None:
        self.done.append(command)


class Answers:
    def __init__(self) -> None:
        self.sent: list[tuple[str, Event, bytes | None]] = []

    def __call__(self, topic: str, event: Event, correlation: bytes | None) -> None:
        self.sent.append((topic, event, correlation))


def order(**changes: Any) -> bytes:
    values = {
        "transaction": str(uuid.uuid4()),
        "issued": rfc3339(time.time()),
        "identity_id": "p-1",
        "name": "Ada",
    }
    return json.dumps({k: v for k, v in (values | changes).items() if v is not ...}).encode()


def incoming(payload: bytes, verb: str = "name", **changes: Any) -> Incoming:
    return Incoming(**({"topic": f"{ROOT}/cmd/{verb}", "payload": payload, "retained": False} | changes))


@contextlib.contextmanager
def desk_of(
    *,
    per_s: float = 5.0,
    max_bytes: int = 512 << 10,
    clock: Any = None,
    allowed: Any = None,
    response_prefix: str = "",
    **operations: Any,
) -> Iterator[CommandDesk]:
    """A desk for these operations, all of them allowed by default."""
    settings = MqttSettings(
        site="lab", device="jx01", commands=allowed or tuple(operations), response_prefix=response_prefix
    )
    with (
        mock.patch.multiple(commands, COMMANDS_PER_S=per_s, MAX_BYTES=max_bytes),
        CommandDesk(settings, operations, clock or Clock(), "run-1") as desk,
    ):
        yield desk


@pytest.fixture
def gallery() -> Gallery:
    return Gallery()


@pytest.fixture
def desk(gallery: Gallery) -> Iterator[CommandDesk]:
    operations = {"name": gallery.name, "stats": gallery.stats, "forget": gallery.stats}
    with desk_of(**operations, allowed=("name", "stats"), per_s=1e6, max_bytes=4096) as made:
        yield made


def answer(desk: CommandDesk, message: Incoming) -> Any:
    """The data of the one answer to a message."""
    answers = Answers()
    desk.accept(message, answers)
    until(lambda: answers.sent)
    assert len(answers.sent) == 1
    return answers.sent[0][1].data


def test_a_good_command_is_carried_out_and_answered(desk: CommandDesk, gallery: Gallery) -> None:
    answers = Answers()
    desk.accept(incoming(order(transaction="t-1")), answers)
    until(lambda: answers.sent)
    topic, event, _ = answers.sent[0]
    assert topic == f"{ROOT}/cmd/name/result"
    assert (event.data.status, event.data.transaction, event.data.code) == ("ok", "t-1", None)
    assert event.data.data == {"identity_id": "p-1", "name": "Ada"}
    assert gallery.done[0].name == "Ada"


def test_null_removes_a_name(desk: CommandDesk, gallery: Gallery) -> None:
    assert answer(desk, incoming(order(name=None))).status == "ok"
    assert gallery.done[0].name is None


REFUSED = (
    (order(), {"retained": True}, "retained"),
    (order(name="x" * 5000), {}, "too-large"),
    (order(), {"topic": f"{ROOT}/cmd/forget"}, "not-allowed"),
    (order(), {"topic": f"{ROOT}/cmd/shutdown"}, "not-allowed"),
    (order(), {"topic": f"{ROOT}/cmd/name/../forget"}, "not-allowed"),
    (b"", {}, "malformed"),
    (b"\xff\xfe", {}, "malformed"),
    (b"[]", {}, "malformed"),
    (b"[" * 4000, {}, "malformed"),
    (order(nmae="typo"), {}, "malformed"),
    (order(identity_id=...), {}, "malformed"),
    (order(identity_id=""), {}, "malformed"),
    (order(identity_id=7), {}, "malformed"),
    (order(name="x" * 201), {}, "malformed"),
    (order(name="line\nbreak\x1b[2J"), {}, "malformed"),
    (order(transaction=...), {}, "malformed"),
    (order(transaction="x" * 129), {}, "malformed"),
    (order(issued=...), {}, "malformed"),
    (order(issued=12), {}, "malformed"),
    (order(session="another run"), {}, "expired"),
    (order(session=7), {}, "malformed"),
    (order(issued="0001-01-01T00:00:00+23:59"), {}, "malformed"),
    (order(issued="2020-01-01T00:00:00Z"), {}, "expired"),
    (order(issued="2099-01-01T00:00:00Z"), {}, "expired"),
    (order(), {"response_topic": "a/#"}, "malformed"),
    (order(), {"response_topic": f"{ROOT}/identity/matched"}, "malformed"),
    (order(), {"response_topic": "$SYS/x"}, "malformed"),
)


@pytest.mark.parametrize(
    ("payload", "changes", "code"), REFUSED, ids=range(len(REFUSED))
)  # payloads differ at every start
def test_what_is_refused(
    desk: CommandDesk, gallery: Gallery, payload: bytes, changes: dict[str, Any], code: str
) -> None:
    data = answer(desk, incoming(payload, **changes))
    assert (data.status, data.code) == ("error", code)
    assert data.error
    assert gallery.done == []
    assert desk.refused == 1


def test_a_transaction_counts_once(desk: CommandDesk, gallery: Gallery) -> None:
    message = incoming(order())
    assert answer(desk, message).status == "ok"
    assert answer(desk, message).code == "replayed"
    assert len(gallery.done) == 1


def test_too_many_are_refused_and_answers_do_not_flood(gallery: Gallery) -> None:
    answers = Answers()
    with desk_of(stats=gallery.stats, per_s=1.0) as desk:
        for _ in range(500):
            desk.accept(incoming(order(identity_id=..., name=...), "stats"), answers)
        until(lambda: len(gallery.done) >= 20)
        assert len(gallery.done) <= 25
        assert desk.refused > 400
        assert len(answers.sent) < 80
        assert "too-many" in {event.data.code for _, event, _ in answers.sent}


def test_a_slow_command_does_not_hold_up_the_pump(gallery: Gallery) -> None:
    release = threading.Event()
    answers = Answers()
    with desk_of(stats=lambda _: release.wait(20) and None, per_s=1e6) as desk:
        for _ in range(60):
            desk.accept(incoming(order(identity_id=..., name=...), "stats"), answers)
        assert {event.data.code for _, event, _ in answers.sent} == {"busy"}
        release.set()


def test_errors_are_reported_without_details_of_bugs(desk: CommandDesk) -> None:
    assert "gallery list" in answer(desk, incoming(order(identity_id="nobody"))).error
    bug = answer(desk, incoming(order(identity_id="bug")))
    assert bug.code == "failed"
    assert "secret" not in bug.error
    assert answer(desk, incoming(order())).status == "ok"


def test_verbs_without_a_handler_are_a_config_error() -> None:
    for verb in ("name", "dance"):
        with pytest.raises(ConfigError, match=verb):
            CommandDesk(MqttSettings(commands=(verb,)), {}, Clock(), "")


@pytest.mark.parametrize("verb", COMMAND_TYPES)
def test_schemas_of_commands(verb: str) -> None:
    schema = command_schema(verb)
    Draft202012Validator.check_schema(schema)
    assert {"transaction", "issued"} <= set(schema["required"])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(["transaction", "issued", "identity_id", "name", "camera", "track_id", "crop", "x"])


@settings(max_examples=100, deadline=None)
@given(
    payload=st.binary(max_size=300)
    | st.dictionaries(KEYS, JSON, max_size=7).map(lambda v: json.dumps(v).encode()),
    verb=st.sampled_from([*COMMAND_TYPES, "", "x", "name/result", "#"]) | st.text(max_size=10),
    retained=st.booleans(),
    response=st.none() | st.text(max_size=30),
)
def test_no_incoming_message_raises(payload: bytes, verb: str, retained: bool, response: str | None) -> None:
    answers = Answers()
    done: list[Any] = []
    with desk_of(**dict.fromkeys(COMMAND_TYPES, done.append), per_s=1e6, max_bytes=2000) as desk:
        desk.accept(incoming(payload, verb, retained=retained, response_topic=response), answers)
    for _, event, _ in answers.sent:
        json.dumps(event.data.error)


@pytest.mark.slow
def test_ten_thousand_malformed_commands_over_a_broker(tmp_path: Path) -> None:
    """The agent lives, its memory stays flat, and a good command still gets through."""
    gallery = Gallery()
    chance = random.Random(7)
    quiet = "listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0"
    with (
        configured_mosquitto(tmp_path / "broker", quiet) as mosquitto,
        desk_of(name=gallery.name, per_s=50.0) as desk,
        outbox_at(tmp_path / "o.db") as outbox,
        publishing(outbox, mosquitto.url, commands=desk) as publisher,
        Listener(mosquitto.port, f"{ROOT}/cmd/+/result") as listener,
    ):
        until(lambda: publisher.counters.connects)
        flood(mosquitto.port, chance, 2000)
        until(lambda: desk.refused >= 2000, seconds=60)
        gc.collect()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        flood(mosquitto.port, chance, 8000)
        until(lambda: desk.refused >= 10_000, seconds=60)
        grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown_kib < 20_000
        time.sleep(0.2)  # the allowance fills again
        listener.publish(f"{ROOT}/cmd/name", order(transaction="after the flood"))
        until(
            lambda: [m for m in listener.of("name/result") if m["data"]["transaction"] == "after the flood"]
        )
        assert len(gallery.done) == 1
        for message in listener.of("result"):
            Draft202012Validator(envelope_schema("command-result")).validate(message)


def flood(port: int, chance: random.Random, count: int) -> None:
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    client.connect("127.0.0.1", port)
    client.loop_start()
    good = order()
    for number in range(count):
        payload = bytearray(good)
        for _ in range(chance.randint(1, 6)):
            payload[chance.randrange(len(payload))] = chance.randrange(256)
        payload[0] = 0x78  # some changes alone would leave a good command
        kind = number % 4
        body = [bytes(payload), chance.randbytes(200), b"[" * 300, b'{"transaction":1}'][kind]
        last = client.publish(f"{ROOT}/cmd/{chance.choice(['name', 'forget', 'x'])}", body, 1)
    last.wait_for_publish(60)
    client.disconnect()
    client.loop_stop()


def test_response_topic_and_correlation_come_back(mosquitto: Mosquitto, tmp_path: Path) -> None:
    gallery = Gallery()
    with (
        desk_of(name=gallery.name, response_prefix="replies/") as desk,
        outbox_at(tmp_path / "o.db") as outbox,
        publishing(outbox, mosquitto.url, commands=desk) as publisher,
        Listener(mosquitto.port, "replies/me") as listener,
    ):
        until(lambda: publisher.counters.connects)
        properties = Properties(PacketTypes.PUBLISH)
        properties.ResponseTopic = "replies/me"
        properties.CorrelationData = b"c-17"
        time.sleep(0.2)
        listener.publish(f"{ROOT}/cmd/name", order(), properties=properties)
        heard = until(lambda: listener.heard)[0]
        assert heard.properties.CorrelationData == b"c-17"
        assert heard.message["data"]["status"] == "ok"


def answered(desk: CommandDesk, topic: str | None, correlation: bytes | None = None) -> tuple[str, Any, Any]:
    """Topic, code and correlation data of the answer to a good command."""
    answers = Answers()
    payload = order(identity_id=..., name=...)
    desk.accept(incoming(payload, "stats", response_topic=topic, correlation=correlation), answers)
    until(lambda: answers.sent)
    ((to, event, data),) = answers.sent
    return to, event.data.code, data


@pytest.mark.parametrize(
    "topic",
    [
        "zigbee2mqtt/lock/set",
        "homeassistant/device/x/config",
        "edge/v1/lab/other/cmd/forget",
        "edge/v1/lab/jx01",
        "edge/v1/lab/jx01/",
        "edge/v1/lab/jx010/x",
        f"{ROOT}/status",
        f"{ROOT}/identity/matched",
        f"{ROOT}/alert/x",
        f"{ROOT}/gap",
        f"{ROOT}/camera/gate/status",
        f"{ROOT}/cmd/forget",
        f"{ROOT}/cmd",
        f"{ROOT}/x/#",
        f"{ROOT}/+/x",
        f"{ROOT}/x\0",
        f"{ROOT}/x\ny",
        f"{ROOT}/" + "x" * 600,
        f"{ROOT}/" + "ü" * 300,
        "$SYS/x",
        "$share/g/x",
        "",
        "/",
        "repliesx/a",
        "replies",
        "replies/",
        "Replies/a",
    ],
)
@pytest.mark.parametrize("prefix", ["", "replies", "edge"])
def test_results_go_nowhere_else(topic: str, prefix: str) -> None:
    with desk_of(stats=lambda _: None, response_prefix=prefix) as desk:
        assert answered(desk, topic) == (f"{ROOT}/cmd/stats/result", "malformed", None)
        assert desk.refused == 1


@pytest.mark.parametrize(
    "topic", [f"{ROOT}/cmd/stats/result", f"{ROOT}/cmd/stats/result/me", f"{ROOT}/replies/7"]
)
def test_results_go_to_the_own_subtree(topic: str) -> None:
    with desk_of(stats=lambda _: None) as desk:
        assert answered(desk, topic, b"c") == (topic, None, b"c")


def test_results_go_below_the_prefix_that_is_set() -> None:
    with desk_of(stats=lambda _: None, response_prefix="fleet/replies") as desk:
        assert answered(desk, "fleet/replies/me")[:2] == ("fleet/replies/me", None)
        assert answered(desk, "fleet/other")[1] == "malformed"
        assert answered(desk, f"{ROOT}/replies/me")[1] is None


@settings(max_examples=200, deadline=None)
@given(
    topic=st.text(max_size=40)
    | st.lists(
        st.sampled_from(["edge", "v1", "lab", "jx01", "cmd", "status", "x", "", "replies", "$SYS", "+", "#"]),
        max_size=7,
    ).map("/".join)
)
def test_a_response_topic_is_never_one_of_others(topic: str) -> None:
    with desk_of(stats=lambda _: None, response_prefix="replies", per_s=1e6) as desk:
        to, code, _ = answered(desk, topic)
    assert to == topic or code == "malformed"
    assert to.startswith((f"{ROOT}/", "replies/"))
    assert not to.startswith((f"{ROOT}/status", f"{ROOT}/identity"))
    assert "+" not in to
    assert "#" not in to


@pytest.mark.parametrize("prefix", ["a/#", "+", "$SYS/x", "edge/v1", "edge/v1/lab/other", "a\0", "x" * 300])
def test_prefixes_that_cannot_be_allowed(prefix: str) -> None:
    with pytest.raises(ValueError, match="must"):
        MqttSettings(response_prefix=prefix)


def test_correlation_data_are_bounded() -> None:
    with desk_of(stats=lambda _: None) as desk:
        assert answered(desk, None, b"x" * 1024)[1:] == (None, b"x" * 1024)
        assert answered(desk, None, b"x" * 1025)[1:] == ("malformed", None)


def test_retained_command_is_refused_over_a_broker(mosquitto: Mosquitto, tmp_path: Path) -> None:
    gallery = Gallery()
    with Listener(mosquitto.port, f"{ROOT}/cmd/+/result") as listener:
        listener.publish(f"{ROOT}/cmd/name", order(), retain=True)
        with (
            desk_of(name=gallery.name) as desk,
            outbox_at(tmp_path / "o.db") as outbox,
            publishing(outbox, mosquitto.url, commands=desk),
        ):
            heard = until(lambda: listener.heard)[0]
        assert heard.message["data"]["code"] == "retained"
        assert gallery.done == []
