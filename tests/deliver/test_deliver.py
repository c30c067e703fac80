"""From `publish` to a subscriber, over a real broker that is killed, frozen, restarted, and refuses."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from edge_agent.core.clock import Clock
from edge_agent.core.codec import decode, encode, envelope_schema
from edge_agent.core.errors import (
    BrokerRefused,
    BrokerUnreachable,
    ConfigError,
    DeliveryError,
    DiskFull,
    StorageError,
)
from edge_agent.core.events import DeviceSummary, alert_event, identity_event
from edge_agent.core.mqtt import connect_problem, new_client, silence_problem
from edge_agent.core.structures import SourceState, SourceStatus
from edge_agent.deliver.connection import ConnectionState
from edge_agent.deliver.local import EventFile, LocalPublisher, Origin
from edge_agent.deliver.pacing import Backoff
from edge_agent.deliver.topics import Topics
from edge_agent.offline.demo.broker import DemoBroker
from tests.conftest import Mosquitto, find_free_port
from tests.core.test_files import KINDS, make
from tests.deliver.deliver_fixtures import (
    ENGINE,
    INFO,
    Listener,
    broker_at,
    configured_mosquitto,
    decision,
    identity,
    named,
    outbox_at,
    publishing,
    telemetry,
    until,
)

ROOT = "edge/v1/lab/jx01"
OPEN = "listener {port} 127.0.0.1\nallow_anonymous true"


def check_schema(message: Any) -> None:
    Draft202012Validator(envelope_schema(message["type"].split(".")[1])).validate(message)


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_birth_events_telemetry_and_farewell(mosquitto: Mosquitto, tmp_path: Path, version: str) -> None:
    with Listener(mosquitto.port) as listener, outbox_at(tmp_path / "o.db") as outbox:
        with publishing(outbox, mosquitto.url, version=version) as publisher:
            publisher.set_status("online")
            publisher.set_camera_status(SourceStatus("cam1", SourceState.ONLINE, "", time.time()))
            numbers = [publisher.publish(identity(n)) for n in range(1, 31)]
            assert publisher.drain(30)
            publisher.send_telemetry(telemetry())
            until(lambda: listener.of("/telemetry"))
            assert publisher.state is ConnectionState.CONNECTED
        until(lambda: len(listener.of("/status")) >= 3)
        topics = [h.topic for h in listener.heard]
        births = [t for t in topics if t in {f"{ROOT}/info", f"{ROOT}/status"}]
        assert births == [f"{ROOT}/info", f"{ROOT}/status", f"{ROOT}/status"]
        assert topics.index(f"{ROOT}/camera/cam1/status") < len(topics)
        assert [m["seq"] for m in listener.numbered()] == numbers == list(range(1, 31))
        assert [m["data"]["state"] for m in listener.of(f"{ROOT}/status")] == ["online", "offline"]
        for heard in listener.heard:
            check_schema(heard.message)
        assert outbox.depth.rows == 0


def test_mqtt5_properties_of_a_message(mosquitto: Mosquitto, tmp_path: Path) -> None:
    with Listener(mosquitto.port) as listener, outbox_at(tmp_path / "o.db") as outbox:
        with publishing(outbox, mosquitto.url) as publisher:
            publisher.publish(identity())
            assert publisher.drain(20)
            until(lambda: listener.of("matched"))
        sent = next(h for h in listener.heard if h.topic.endswith("matched")).properties
        assert sent.ContentType == "application/cloudevents+json"
        assert sent.PayloadFormatIndicator == 1
        assert 86_000 < sent.MessageExpiryInterval <= 86_400
        user = dict(sent.UserProperty)
        assert user["schema"] == "urn:edge-agent:schema:identity:1"
        version, trace, span, flags = user["traceparent"].split("-")
        assert (version, flags) == ("00", "01")
        assert (len(trace), len(span)) == (32, 16)
        assert listener.of("matched")[0]["traceparent"] == user["traceparent"]


def test_a_trace_is_the_same_at_every_delivery_and_one_for_a_frame(
    mosquitto: Mosquitto, tmp_path: Path
) -> None:
    trace = "ab" * 16
    events = [
        identity_event(
            decision(n, ended=True), engine=ENGINE, device=DeviceSummary(), latency_ms={}, trace=trace
        )
        for n in (1, 2)
    ]
    reported = []
    with outbox_at(tmp_path / "o.db") as outbox:
        for _ in range(2):
            with Listener(mosquitto.port) as listener, publishing(outbox, mosquitto.url) as publisher:
                for event in events:
                    publisher.publish(event)
                publisher.publish(alert_event("camera_lost", "gone", time=time.time()))
                assert publisher.drain(20)
                until(lambda: len(listener.numbered()) == 3)
                sent = [h.properties for h in listener.heard if "seq" in h.message]
                reported.append(
                    [dict(properties.UserProperty)["traceparent"].split("-") for properties in sent]
                )
    for first, second, alert in reported:
        assert first[1] == second[1] == trace
        assert first[2] != second[2]
        assert alert[1] != trace
    assert reported[0][:2] == reported[1][:2]


def test_retained_state_greets_a_late_subscriber(mosquitto: Mosquitto, tmp_path: Path) -> None:
    with outbox_at(tmp_path / "o.db") as outbox, publishing(outbox, mosquitto.url) as publisher:
        publisher.set_status("online")
        publisher.set_camera_status(SourceStatus("cam1", SourceState.OFFLINE, "no route", 1.7e9))
        publisher.publish(identity())
        until(lambda: publisher.counters.no_subscriber)
        with Listener(mosquitto.port) as listener:
            until(lambda: len({h.topic for h in listener.heard if h.retained}) >= 4)
            retained = {h.topic for h in listener.heard if h.retained}
            topics = ("status", "info", "camera/cam1/status", "present")
            assert retained == {f"{ROOT}/{topic}" for topic in topics}


def test_status_is_sent_once_and_keeps_its_start(mosquitto: Mosquitto, tmp_path: Path) -> None:
    with Listener(mosquitto.port, f"{ROOT}/status") as listener, outbox_at(tmp_path / "o.db") as outbox:
        with publishing(outbox, mosquitto.url) as publisher:
            publisher.set_status("online")
            publisher.set_status("online")
            until(lambda: listener.heard)
            publisher.set_status("degraded", "one camera is away")
            publisher.set_status("degraded", "two cameras are away")
            until(lambda: listener.heard[-1].message["data"]["reason"] == "two cameras are away")
        reported = [(m["data"]["state"], m["data"]["since"]) for m in listener.of("status")]
        assert reported[0][0] == "online"
        assert len({since for state, since in reported if state == "degraded"}) == 1


def test_broker_that_is_not_there_yet(tmp_path: Path) -> None:
    folder = tmp_path / "broker"
    with outbox_at(tmp_path / "o.db") as outbox:
        port = find_free_port()
        with publishing(outbox, f"mqtt://127.0.0.1:{port}") as publisher:
            publisher.publish(identity())
            until(lambda: publisher.state is ConnectionState.WAITING)
            assert publisher.problem is not None
            assert "refused" in publisher.problem
            assert not publisher.drain(0.1)
            folder.mkdir()
            config = folder / "mosquitto.conf"
            config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nuser root\n")
            broker = Mosquitto("mosquitto", config, port)
            from tests.conftest import mosquitto_binary

            broker.binary = mosquitto_binary()
            broker.start()
            try:
                with Listener(port) as listener:
                    assert publisher.drain(20)
                    until(listener.numbered)
                    assert publisher.problem is None
            finally:
                broker.stop()


def test_events_survive_a_broker_that_is_killed(mosquitto: Mosquitto, tmp_path: Path) -> None:
    with outbox_at(tmp_path / "o.db") as outbox, publishing(outbox, mosquitto.url) as publisher:
        with Listener(mosquitto.port) as listener:
            for n in range(1, 6):
                publisher.publish(identity(n))
            assert publisher.drain(20)
            before = until(lambda: len(listener.numbered()) == 5 and listener.numbered())
        mosquitto.stop(kill=True)
        for n in range(6, 51):
            publisher.publish(identity(n))
        until(lambda: publisher.state is ConnectionState.WAITING)
        mosquitto.start()
        with Listener(mosquitto.port) as listener:
            assert publisher.drain(20)
            until(lambda: [m["seq"] for m in before + listener.numbered()] == list(range(1, 51)))
        assert publisher.counters.connects == 2


def test_a_frozen_broker_is_left_and_found_again(mosquitto: Mosquitto, tmp_path: Path) -> None:
    assert mosquitto.process is not None
    with Listener(mosquitto.port) as listener, outbox_at(tmp_path / "o.db") as outbox:
        with publishing(outbox, mosquitto.url, ack_timeout_s=1.0) as publisher:
            publisher.publish(identity(1))
            assert publisher.drain(20)
            os.kill(mosquitto.process.pid, signal.SIGSTOP)
            try:
                for n in range(2, 31):
                    publisher.publish(identity(n))
                until(lambda: publisher.state is not ConnectionState.CONNECTED)
                assert "no PUBACK" in (publisher.problem or "") or publisher.counters.connects == 1
            finally:
                os.kill(mosquitto.process.pid, signal.SIGCONT)
            assert publisher.drain(30)
        until(lambda: listener.numbered()[-1]["seq"] == 30)
        ids: dict[str, int] = {}
        for message in listener.numbered():
            ids.setdefault(message["id"], message["seq"])
        assert list(ids.values()) == list(range(1, 31))


def test_will_speaks_for_an_agent_that_was_killed(mosquitto: Mosquitto, tmp_path: Path) -> None:
    code = """
import sys, time
sys.path.insert(0, sys.argv[1])
from tests.deliver.deliver_fixtures import *
with outbox_at(Path(sys.argv[2])) as outbox, publishing(outbox, sys.argv[3], session="doomed") as publisher:
    publisher.set_status("online")
    while not publisher.counters.connects:
        time.sleep(0.02)
    print("up", flush=True)
    time.sleep(60)
"""
    with Listener(mosquitto.port, f"{ROOT}/status") as listener:
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path / "o.db"), mosquitto.url],
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        assert b"up\n" in iter(child.stdout.readline, b"")
        until(lambda: listener.heard)
        child.kill()
        child.communicate()
        until(lambda: len(listener.heard) >= 2)
        assert [m["data"]["state"] for m in listener.of("status")] == ["online", "offline"]
        assert {m["session"] for m in listener.of("status")} == {"doomed"}
        assert listener.of("status")[-1]["data"]["reason"] == "connection lost"


# --- reason codes -----------------------------------------------------------------------------------------


def test_events_wait_for_a_subscriber(mosquitto: Mosquitto, tmp_path: Path) -> None:
    with outbox_at(tmp_path / "o.db") as outbox, publishing(outbox, mosquitto.url) as publisher:
        for n in range(1, 41):
            publisher.publish(identity(n))
        until(lambda: publisher.counters.no_subscriber)
        assert not publisher.drain(0.2)
        assert outbox.depth.rows == 40
        with Listener(mosquitto.port) as listener:
            assert publisher.drain(20)
            until(lambda: [m["seq"] for m in listener.numbered()] == list(range(1, 41)))


def test_a_topic_without_subscriber_does_not_hold_up_the_others(mosquitto: Mosquitto, tmp_path: Path) -> None:
    with (
        Listener(mosquitto.port, f"{ROOT}/identity/#") as listener,
        outbox_at(tmp_path / "o.db") as outbox,
        publishing(outbox, mosquitto.url) as publisher,
    ):
        publisher.publish(alert_event("camera_lost", "gone", time=time.time()))
        for n in range(2, 12):
            publisher.publish(identity(n))
        until(lambda: len(listener.numbered()) == 10)
        until(lambda: outbox.depth.rows == 1)


def test_without_subscriber_for_too_long_the_lost_numbers_are_published(
    mosquitto: Mosquitto, tmp_path: Path
) -> None:
    now = [1.8e9]
    with (
        outbox_at(tmp_path / "o.db", clock=lambda: now[0]) as outbox,
        publishing(outbox, mosquitto.url, no_subscriber_s=600.0) as publisher,
        Listener(mosquitto.port, f"{ROOT}/gap") as listener,
    ):
        for n in range(1, 6):
            publisher.publish(identity(n))
        until(lambda: publisher.counters.no_subscriber)
        now[0] += 700
        gap = until(listener.numbered)[0]
        assert gap["data"]["reason"] == "no-subscriber"
        assert gap["data"]["ranges"] == [{"first": 1, "last": 5}]


def test_after_a_long_outage_subscribers_get_their_time(mosquitto: Mosquitto, tmp_path: Path) -> None:
    """Old events are not dropped at the first answer without subscribers when the broker returns."""
    now = [1.8e9]
    with outbox_at(tmp_path / "o.db", clock=lambda: now[0]) as outbox:
        for n in range(1, 4):
            outbox.append(encode(replace(identity(n), source=ROOT, session="s")), f"{ROOT}/identity/matched")
        now[0] += 7200
        with publishing(outbox, mosquitto.url, no_subscriber_s=600.0) as publisher:
            until(lambda: publisher.counters.no_subscriber)
            with Listener(mosquitto.port) as listener:
                assert publisher.drain(20)
                until(lambda: [m["seq"] for m in listener.numbered()] == [1, 2, 3])


ACL = """
listener {port} 127.0.0.1
allow_anonymous true
acl_file {folder}/acl
"""


def test_refused_topic_is_parked_reported_and_delivered_once_it_is_allowed(tmp_path: Path) -> None:
    folder = tmp_path / "broker"
    folder.mkdir()
    allowed = f"topic readwrite {ROOT}/status\ntopic readwrite {ROOT}/gap\ntopic readwrite {ROOT}/alert/#\n"
    acl = folder / "acl"
    acl.write_text(f"{allowed}topic read #\n")
    with configured_mosquitto(folder, ACL) as broker:
        with (
            Listener(broker.port) as listener,
            outbox_at(tmp_path / "o.db") as outbox,
            publishing(outbox, broker.url) as publisher,
        ):
            numbers = {publisher.publish(identity(n)) for n in range(1, 4)}
            until(lambda: len(listener.numbered()) >= 2)
            until(lambda: outbox.depth.rows == 0 and publisher.counters.refused >= 3)
            assert publisher.counters.refused == 3
            alerts = [
                alert
                for alert in listener.of("alert/delivery_refused")
                if alert["data"]["details"]["topic"].endswith("/matched")
            ]
            assert len(alerts) == 1
            assert "not authorised" in alerts[0]["data"]["message"]
            until(lambda: numbers <= named(listener.of("/gap")))
        acl.write_text(f"{allowed}topic readwrite #\n")
        broker.stop()
        broker.start()
        with (
            Listener(broker.port) as listener,
            outbox_at(tmp_path / "o.db") as outbox,
            publishing(outbox, broker.url) as publisher,
        ):
            assert publisher.drain(20)
            until(lambda: [m["seq"] for m in listener.of("/matched")] == sorted(numbers))


def test_refused_gaps_and_alerts_do_not_breed(tmp_path: Path) -> None:
    folder = tmp_path / "broker"
    folder.mkdir()
    (folder / "acl").write_text(f"topic readwrite {ROOT}/status\ntopic read #\n")
    with (
        configured_mosquitto(folder, ACL) as broker,
        outbox_at(tmp_path / "o.db") as outbox,
        publishing(outbox, broker.url) as publisher,
    ):
        publisher.publish(identity(1))
        until(lambda: publisher.counters.refused >= 2)
        time.sleep(1.5)
        assert outbox.depth.parked <= 4  # the event, and an alert for it, `info` and `present`
        assert outbox.depth.rows <= 1
        assert outbox.last_number <= 5


def test_message_larger_than_the_broker_takes(tmp_path: Path) -> None:
    with (
        configured_mosquitto(tmp_path / "broker", OPEN + "\nmax_packet_size 3000") as broker,
        Listener(broker.port) as listener,
        outbox_at(tmp_path / "o.db") as outbox,
        publishing(outbox, broker.url) as publisher,
    ):
        publisher.publish(identity(1))
        publisher.publish(identity(2, reason="x" * 4000))
        publisher.publish(identity(3))
        until(lambda: len(listener.of("matched")) == 2)
        until(lambda: outbox.depth.parked == 1)
        assert publisher.counters.connects == 1


# --- who is let in ----------------------------------------------------------------------------------------


def test_wrong_password_is_said_and_the_wait_is_long(tmp_path: Path) -> None:
    folder = tmp_path / "broker"
    folder.mkdir()
    making = ["mosquitto_passwd", "-b", "-c", str(folder / "users"), "agent", "right"]
    subprocess.run(making, check=True, capture_output=True)
    lines = "listener {port} 127.0.0.1\nallow_anonymous false\npassword_file {folder}/users"
    with configured_mosquitto(folder, lines) as broker, outbox_at(tmp_path / "o.db") as outbox:
        wrong = {"username": "agent", "password": "guessed-secret"}
        with publishing(outbox, broker.url, **wrong, refused_wait_s=60) as publisher:
            until(lambda: publisher.state is ConnectionState.REFUSED)
            assert "password" in (publisher.problem or "")
            assert "guessed-secret" not in (publisher.problem or "") + repr(broker_at(broker.url, **wrong))
        right = broker_at(f"mqtt://agent:right@127.0.0.1:{broker.port}")
        assert right.password == "right"
        assert "right" not in right.url
        with publishing(outbox, f"mqtt://agent:right@127.0.0.1:{broker.port}") as publisher:
            until(lambda: publisher.state is ConnectionState.CONNECTED)


def test_a_silent_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_agent.deliver.connection.CONNECT_TIMEOUT_S", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"mqtt://127.0.0.1:{silent.getsockname()[1]}"
        with outbox_at(tmp_path / "o.db") as outbox, publishing(outbox, url) as publisher:
            until(lambda: "no CONNACK" in (publisher.problem or ""))


@pytest.mark.parametrize(("code", "kind"), [(9, BrokerUnreachable), (10, BrokerRefused), (20, BrokerRefused)])
def test_a_certificate_that_the_clock_refuses_names_the_clock(code: int, kind: type[Exception]) -> None:
    """One that is not valid yet is tried again soon: the clock of the device will be set."""
    problem = ssl.SSLCertVerificationError(1, "x")
    problem.verify_code, problem.verify_message = code, "certificate is not accepted"
    found = connect_problem(broker_at("mqtts://host"), problem)
    assert type(found) is kind
    assert ("the clock of this device shows" in str(found)) == (code != 20)


def test_silence_after_a_tls_handshake_is_a_refusal() -> None:
    assert isinstance(silence_problem(broker_at("mqtt://host")), BrokerUnreachable)
    refused = silence_problem(broker_at("mqtts://host"))
    assert isinstance(refused, BrokerRefused)
    assert "certificate" in str(refused)


def test_stop_returns_in_time_whatever_the_broker_does(mosquitto: Mosquitto, tmp_path: Path) -> None:
    assert mosquitto.process is not None
    with outbox_at(tmp_path / "o.db") as outbox:
        with publishing(outbox, mosquitto.url) as publisher:
            until(lambda: publisher.state is ConnectionState.CONNECTED)
            os.kill(mosquitto.process.pid, signal.SIGSTOP)
            publisher.publish(identity())
        os.kill(mosquitto.process.pid, signal.SIGCONT)
        assert publisher.state is ConnectionState.STOPPED
        assert outbox.depth.rows == 1


@pytest.mark.parametrize(
    ("url", "settings", "said"),
    [
        ("http://host", {}, "mqtt://HOST"),
        ("mqtt://", {}, "mqtt://HOST"),
        ("mqtt://host:port", {}, "mqtt://HOST"),
        ("mqtt://host/topic", {}, "path"),
        ("mqtt://host", {"ca_file": Path("ca.pem")}, "mqtts://"),
        ("mqtts://host", {"cert_file": Path("c.pem")}, "go together"),
        ("mqtt://:secret@host", {}, "without a username"),
    ],
)
def test_broker_addresses_that_cannot_work(url: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        broker_at(url, **settings)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fields", [("ca_file",), ("cert_file", "key_file")])
def test_certificates_that_are_no_regular_files_hang_nothing(
    kind: str, fields: tuple[str, ...], tmp_path: Path
) -> None:
    chosen = dict.fromkeys(fields, make(kind, tmp_path / "x"))
    began = time.monotonic()
    with pytest.raises(BrokerRefused, match="cannot use the TLS certificates"):
        new_client(broker_at("mqtts://host", **chosen))
    assert time.monotonic() - began < 2


def test_an_encrypted_key_does_not_wait_for_a_passphrase(tmp_path: Path) -> None:
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-keyout", key, "-out", certificate,
         "-passout", "pass:x1y2", "-subj", "/CN=x"],
        check=True, capture_output=True,
    )  # fmt: skip
    with pytest.raises(BrokerRefused, match="without a passphrase"):
        new_client(broker_at("mqtts://host", cert_file=certificate, key_file=key))


def test_backoff_grows_jitters_and_resets() -> None:
    waits = Backoff()
    bounds = [waits.next_wait(refused=False) for _ in range(12)]
    assert 0.5 <= bounds[0] <= 1
    assert 30 <= bounds[-1] <= 60
    assert waits.next_wait(refused=True) >= 150
    waits.reset()
    assert waits.next_wait(refused=False) <= 1


# --- without a broker, and the demo's ---------------------------------------------------------------------


def test_an_events_file_that_is_a_pipe_hangs_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="pipe that nobody reads"), EventFile(tmp_path / "pipe"):
        pass


def test_without_broker_events_are_numbered_and_written(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with (
        EventFile(path) as file,
        LocalPublisher(Origin(Topics("lab", "jx01"), "s", file, Clock())) as local,
    ):
        assert [local.publish(identity(n)) for n in (1, 2, 3)] == [1, 2, 3]
        local.set_status("online")
        local.send_telemetry(telemetry())
        assert local.drain(0)
        assert local.state is ConnectionState.DISABLED
    events = [decode(line) for line in path.read_bytes().splitlines()]
    assert [e.seq for e in events] == [1, 2, 3]
    for line in path.read_text().splitlines():
        check_schema(json.loads(line))


def test_file_holds_what_the_broker_got(mosquitto: Mosquitto, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with (
        Listener(mosquitto.port) as listener,
        EventFile(path) as file,
        outbox_at(tmp_path / "o.db") as outbox,
        publishing(outbox, mosquitto.url, event_file=file) as publisher,
    ):
        threads = [
            threading.Thread(target=lambda: [publisher.publish(identity(n)) for n in range(1, 21)])
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert publisher.drain(20)
        until(lambda: len(listener.numbered()) == 60)
        assert [json.loads(line) for line in path.read_text().splitlines()] == listener.numbered()


def test_events_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="events file"), EventFile(tmp_path / "no" / "e.jsonl"):
        pass


def test_demo_broker_from_a_wheel(tmp_path: Path) -> None:
    pytest.importorskip("iotcore", reason="extra `demo` is not installed")
    with DemoBroker() as broker, Listener(broker.port) as listener, outbox_at(tmp_path / "o.db") as outbox:
        with publishing(outbox, broker.url) as publisher:
            publisher.set_status("online")
            for n in range(1, 41):
                publisher.publish(identity(n))
            assert publisher.drain(20)
            until(lambda: len(listener.numbered()) == 40)
        until(lambda: [m["data"]["state"] for m in listener.of("/status")] == ["online", "offline"])
        with pytest.raises(DeliveryError, match="no demo broker"), DemoBroker(broker.port):
            pass


def test_demo_broker_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "iotcore", None)
    with pytest.raises(ConfigError, match=r"extra `demo` \(`bench --pipeline` also accepts"), DemoBroker():
        pass


def test_watch_with_an_unreachable_broker_prints_an_error() -> None:
    from edge_agent.deliver.subscriber import Subscriber

    settings = broker_at(f"mqtt://127.0.0.1:{find_free_port()}")
    with pytest.raises(BrokerUnreachable, match="refused"), Subscriber(settings, ("#",)):
        pass


def test_a_full_disk_does_not_keep_it_from_starting(
    mosquitto: Mosquitto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> int:
        raise DiskFull("no space is left")

    with Listener(mosquitto.port) as listener, outbox_at(tmp_path / "o.db") as outbox:
        monkeypatch.setattr(outbox.parked, "requeue", full)
        with publishing(outbox, mosquitto.url) as publisher:
            publisher.publish(identity())
            assert publisher.drain(20)
            until(lambda: len(listener.numbered()) == 1)


def test_a_full_disk_does_not_keep_it_from_delivering(
    mosquitto: Mosquitto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise DiskFull("no space is left")

    with (
        Listener(mosquitto.port) as listener,
        outbox_at(tmp_path / "o.db") as outbox,
        publishing(outbox, mosquitto.url) as publisher,
    ):
        monkeypatch.setattr(outbox, "expire", full)
        publisher.publish(identity())
        assert publisher.drain(20)
        until(lambda: len(listener.numbered()) == 1)


def test_a_fault_in_the_pump_costs_one_connection(mosquitto: Mosquitto, tmp_path: Path) -> None:
    answers = iter([RuntimeError("a bug"), INFO])

    def info() -> Any:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with (
        Listener(mosquitto.port) as listener,
        outbox_at(tmp_path / "o.db") as outbox,
        publishing(outbox, mosquitto.url, info=info) as publisher,
    ):
        publisher.publish(identity())
        assert publisher.drain(20)
        until(lambda: len(listener.numbered()) == 1)
