"""Limits of the broker: what it does not take, and messages at which it closes the connection."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.core.events import alert_event
from edge_agent.deliver import conflict, elimination, pump, sender
from edge_agent.deliver.connection import ConnectionState, Sent
from edge_agent.deliver.elimination import BLAMED, LOSSES, NOT_BLAMED, Elimination
from edge_agent.deliver.packets import packet_size
from edge_agent.deliver.rows import Row
from edge_agent.deliver.sender import Outcome
from tests.deliver.deliver_fixtures import (
    Listener,
    configured_mosquitto,
    identity,
    named,
    outbox_at,
    publishing,
    telemetry,
    until,
)
from tests.deliver.test_commands import desk_of, order

ROOT = "edge/v1/lab/jx01"
OPEN = "listener {port} 127.0.0.1\nallow_anonymous true\n"


def alert(size: int) -> Any:
    return alert_event("camera_lost", "x" * size, time=time.time())


@pytest.mark.parametrize("version", ["5", pytest.param("3.1.1", marks=pytest.mark.slow)])
def test_max_packet_size_sets_large_events_aside(tmp_path: Path, version: str) -> None:
    """mosquitto announces it with MQTT 5, and closes the connection without a reason with 3.1.1."""
    with (
        configured_mosquitto(tmp_path / "broker", OPEN + "max_packet_size 1400") as broker,
        Listener(broker.port) as listener,
        outbox_at(tmp_path / "o.db") as outbox,
        publishing(outbox, broker.url, version=version) as publisher,
    ):
        numbers = [publisher.publish(alert(size)) for size in (10, 2000, 20, 3000, 30)]
        publisher.set_retained(f"{ROOT}/info", json.dumps({"much": "x" * 3000}).encode())
        got = until(lambda: [m["seq"] for m in listener.of("camera_lost")][2:] and listener.of("camera_lost"))
        assert [m["seq"] for m in got] == [numbers[0], numbers[2], numbers[4]]
        until(lambda: outbox.depth.parked == 2)
        rejected = until(
            lambda: (
                {n for m in listener.of("/gap") for r in m["data"]["ranges"] for n in (r["first"], r["last"])}
                >= {numbers[1], numbers[3]}
            )
        )
        assert rejected
        assert {m["data"]["reason"] for m in listener.of("/gap")} == {"rejected"}
        until(
            lambda: any("camera_lost" in m["data"]["message"] for m in listener.of("alert/delivery_refused"))
        )
        until(lambda: outbox.depth.rows == 0)
        assert "refuses messages" in publisher.trouble
        connects = publisher.counters.connects
        for size in range(5):
            publisher.publish(alert(3000 + size))
            publisher.publish(alert(size))
        until(lambda: len(listener.of("camera_lost")) >= 8)
        time.sleep(1)
        assert publisher.counters.connects == connects <= (1 if version == "5" else 1 + 5 * LOSSES)
        assert publisher.state is ConnectionState.CONNECTED


def test_a_limit_of_size_is_no_conflict_of_ids(tmp_path: Path) -> None:
    """With 3.1.1, each message that is too large costs losses without a reason, telemetry too."""

    def on_publish(topic: str, packet: bytes) -> int | bytes:
        return b"" if topic.endswith(("/telemetry", "/poison")) else 0

    with scripted(tmp_path, on_publish, "3.1.1") as (_, publisher, outbox):
        publisher.set_status("online")
        publisher.publish(alert_event("poison", "x", time=time.time()))
        until(lambda: outbox.depth.parked == 1, seconds=30)

        def send() -> bool:
            publisher.send_telemetry(telemetry())
            time.sleep(0.05)
            return "telemetry" in publisher.trouble

        until(send, seconds=30)
        assert "another client" not in publisher.trouble
        publisher.publish(alert_event("fine", "x", time=time.time()))
        until(lambda: outbox.depth.rows == 0)


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_a_limit_below_the_first_packet_is_a_possible_cause(tmp_path: Path, version: str) -> None:
    with (
        configured_mosquitto(tmp_path / "broker", OPEN + "max_packet_size 200") as broker,
        outbox_at(tmp_path / "o.db") as outbox,
        publishing(outbox, broker.url, version=version) as publisher,
    ):
        number = publisher.publish(identity())
        until(lambda: "must take packets of" in (publisher.problem or ""))
        assert outbox.depth.rows == number == 1


def test_message_size_limit_sets_large_events_aside(tmp_path: Path) -> None:
    """mosquitto answers PUBACK with 149, which MQTT 5 does not list for PUBACK."""
    with (
        configured_mosquitto(tmp_path / "broker", OPEN + "message_size_limit 700") as broker,
        Listener(broker.port) as listener,
        outbox_at(tmp_path / "o.db") as outbox,
        publishing(outbox, broker.url) as publisher,
    ):
        numbers = [publisher.publish(alert(size)) for size in (0, 2000, 1)]
        until(lambda: len(listener.of("camera_lost")) == 2)
        gap = until(lambda: listener.of("/gap"))[0]["data"]
        assert (gap["reason"], gap["ranges"][0]["first"]) == ("rejected", numbers[1])
        until(lambda: outbox.depth.rows == 0)
        assert publisher.counters.connects == 1
        assert outbox.depth.parked >= 1


def test_a_packet_too_large_answer_is_sent_without_its_data(tmp_path: Path) -> None:
    with (
        configured_mosquitto(tmp_path / "broker", OPEN + "max_packet_size 1400") as broker,
        Listener(broker.port) as listener,
        outbox_at(tmp_path / "o.db") as outbox,
        desk_of(stats=lambda _: {"much": "x" * 5000}) as desk,
        publishing(outbox, broker.url, commands=desk) as publisher,
    ):
        until(lambda: publisher.counters.connects and publisher.state is ConnectionState.CONNECTED)
        time.sleep(0.3)
        listener.publish(f"{ROOT}/cmd/stats", order(identity_id=..., name=..., transaction="t-1"))
        data = until(lambda: listener.of("stats/result"))[0]["data"]
        assert (data["status"], data["transaction"], data["data"]) == ("ok", "t-1", None)
        assert "does not take" in data["error"]


@pytest.mark.slow
@pytest.mark.parametrize("limit", [900, 1200])
def test_many_gaps_fit_into_a_small_packet(tmp_path: Path, limit: int) -> None:
    with outbox_at(tmp_path / "o.db") as outbox:
        for n in range(1, 101):  # every second event is rejected: 50 ranges
            outbox.append(json.dumps({"n": n}).encode(), f"{ROOT}/identity/matched")
            if n % 2:
                outbox.parked.add(n, "test")
        wanted = set(range(1, 101, 2))
        with (
            configured_mosquitto(tmp_path / "broker", OPEN + f"max_packet_size {limit}") as broker,
            Listener(broker.port, f"{ROOT}/gap") as listener,
            mock.patch.object(pump, "GAP_INTERVAL_S", 0.0),
            mock.patch.object(outbox.parked, "requeue", int),
            publishing(outbox, broker.url) as publisher,
        ):
            until(lambda: named(listener.of("/gap")) >= wanted, seconds=40)
            assert publisher.counters.connects == 1


# --- a broker that follows a script -----------------------------------------------------------------------


def _varint(number: int) -> bytes:
    made = b""
    while True:
        number, byte = divmod(number, 128)
        made += bytes([byte | (0x80 if number else 0)])
        if not number:
            return made


class ScriptedBroker:
    """Answers CONNECT, PUBLISH, SUBSCRIBE and PINGREQ. `on_publish(topic, packet)` returns a PUBACK code,
    None for no answer, or the bytes to send before it closes the connection."""

    def __init__(self, on_publish: Callable[[str, bytes], int | bytes | None], version: str = "5") -> None:
        self.on_publish = on_publish
        self.five = version == "5"
        self.connects = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.url = f"mqtt://127.0.0.1:{self.port}"

    def __enter__(self) -> ScriptedBroker:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError, IndexError, struct.error):
            file = client.makefile("rb")
            while head := file.read(1):
                length, shift = 0, 0
                while True:
                    byte = file.read(1)[0]
                    length |= (byte & 127) << shift
                    shift += 7
                    if byte < 128:
                        break
                answer = self._answer(head[0], file.read(length))
                if answer is None:
                    continue
                client.sendall(answer[1])
                if answer[0]:
                    return

    def _answer(self, head: int, body: bytes) -> tuple[bool, bytes] | None:
        """Whether to close the connection, and what to send before."""
        kind = head >> 4
        if kind == 1:
            self.connects += 1
            return False, b"\x20\x03\x00\x00\x00" if self.five else b"\x20\x02\x00\x00"
        if kind == 12:
            return False, b"\xd0\x00"
        if kind == 8:
            return False, b"\x90" + _varint(3 + self.five) + body[:2] + (
                b"\x00\x01" if self.five else b"\x01"
            )
        if kind != 3:
            return None
        (named,) = struct.unpack_from("!H", body)
        code = self.on_publish(body[2 : 2 + named].decode(), body)
        if not head & 6 and not isinstance(code, bytes):
            return None
        number = body[2 + named : 4 + named]
        if isinstance(code, bytes):
            return True, code
        if code is None:
            return None
        return False, b"\x40\x04" + number + bytes([code, 0]) if self.five else b"\x40\x02" + number


@contextlib.contextmanager
def scripted(
    tmp_path: Path, on_publish: Callable[[str, bytes], int | bytes | None], version: str = "5", **options: Any
) -> Iterator[tuple[ScriptedBroker, Any, Any]]:
    with (
        ScriptedBroker(on_publish, version) as broker,
        outbox_at(tmp_path / "o.db") as outbox,
        publishing(outbox, broker.url, version=version, **options) as publisher,
    ):
        yield broker, publisher, outbox


@pytest.mark.parametrize("version", ["5", "3.1.1"])
@pytest.mark.parametrize("poison", ["alert/poison", "/info", "/status", "homeassistant/x", "/telemetry"])
def test_a_message_at_which_the_broker_hangs_up_is_set_aside(
    tmp_path: Path, version: str, poison: str
) -> None:
    """The broker gives no reason; all other messages pass."""
    taken: list[str] = []

    def on_publish(topic: str, packet: bytes) -> int | bytes | None:
        if topic.endswith(poison):
            return b""
        taken.append(topic)
        return 0

    with scripted(tmp_path, on_publish, version) as (_, publisher, outbox):
        publisher.set_status("online")
        publisher.set_retained("homeassistant/x", b"{}")
        for n in range(30):
            publisher.publish(alert_event("poison" if n == 7 else "fine", "x", time=time.time()))
        if poison == "/telemetry":

            def send() -> bool:
                publisher.send_telemetry(telemetry())
                time.sleep(0.1)
                return "telemetry" in publisher.trouble

            until(send)
        else:
            until(lambda: poison in publisher.trouble, seconds=30)
        until(lambda: outbox.depth.rows == 0, seconds=30)
        connects = publisher.counters.connects
        for _ in range(20):
            publisher.publish(alert_event("fine", "x", time=time.time()))
        until(lambda: outbox.depth.rows == 0)
        time.sleep(0.5)
        assert publisher.counters.connects == connects <= 3 + 2 * LOSSES
        assert outbox.depth.parked == (1 if poison == "alert/poison" else 0)


@pytest.mark.slow
def test_a_message_without_puback_is_set_aside_where_others_get_theirs(tmp_path: Path) -> None:
    def on_publish(topic: str, packet: bytes) -> int | None:
        return None if topic.endswith("poison") else 0

    with scripted(tmp_path, on_publish, ack_timeout_s=0.3) as (_, publisher, outbox):
        for n in range(10):
            publisher.publish(alert_event("poison" if n == 3 else "fine", "x", time=time.time()))
        until(lambda: outbox.depth.parked == 1)
        until(lambda: outbox.depth.rows == 0)


@pytest.mark.slow
@pytest.mark.parametrize("hangs_up", [True, False])
def test_a_broker_that_takes_nothing_sets_nothing_aside(tmp_path: Path, hangs_up: bool) -> None:
    answer = b"" if hangs_up else None
    with (
        mock.patch.object(pump, "SILENT_S", 1.0),
        scripted(tmp_path, lambda *_: answer, ack_timeout_s=0.2) as (broker, publisher, outbox),
    ):
        for _ in range(5):
            publisher.publish(identity())
        until(lambda: broker.connects > 8, seconds=40)
        assert (outbox.depth.rows, outbox.depth.parked) == (5, 0)
        assert publisher.trouble
        broker.on_publish = lambda *_: 0
        until(lambda: outbox.depth.rows == 0)
        until(lambda: publisher.trouble == "")


@pytest.mark.parametrize(("code", "aside"), [(149, 1), (144, 1), (153, 1), (139, 0), (152, 0), (142, 0)])
def test_reasons_of_disconnect(tmp_path: Path, code: int, aside: int) -> None:
    """Those that blame a message set it aside at once; after the others it is sent again."""
    hung_up: list[int] = []

    def on_publish(topic: str, packet: bytes) -> int | bytes:
        if topic.endswith("poison") and (aside or len(hung_up) < 4):
            hung_up.append(1)
            return bytes([0xE0, 2, code, 0])
        return 0

    with (
        mock.patch.object(conflict, "CONFLICT_WAIT_S", 0.1),
        scripted(tmp_path, on_publish) as (_, publisher, outbox),
    ):
        publisher.publish(alert_event("fine", "x", time=time.time()))
        publisher.publish(alert_event("poison", "x", time=time.time()))
        publisher.publish(alert_event("fine", "x", time=time.time()))
        until(lambda: outbox.depth.rows == 0 and publisher.counters.acknowledged >= 2)
        assert outbox.depth.parked == aside
        assert len(hung_up) <= (2 if aside else 4)


@pytest.mark.parametrize("code", [128, 131, 135, 144, 145, 149, 151, 153, 160, 255])
def test_every_failure_of_puback_has_its_outcome(tmp_path: Path, code: int) -> None:
    answers: list[int] = []

    def on_publish(topic: str, packet: bytes) -> int:
        if topic.endswith("/poison") and len(answers) < 3:
            answers.append(code)
            return code
        return 0

    with (
        mock.patch.multiple(sender, RETRY_S=0.05, IDLE_S=0.05),
        scripted(tmp_path, on_publish) as (broker, publisher, outbox),
    ):
        publisher.publish(alert_event("poison", "x", time=time.time()))
        publisher.publish(alert_event("fine", "x", time=time.time()))
        retried = code in (128, 131, 145, 151)
        assert (Outcome.of(code) is Outcome.RETRY) == retried
        until(lambda: outbox.depth.rows == 0)
        assert outbox.depth.parked == (0 if retried else 1)
        assert len(answers) == (3 if retried else 1)
        assert broker.connects == 1
        until(lambda: bool(publisher.trouble) != retried)


@pytest.mark.parametrize("code", [128, 131, 145, 151])
def test_retained_messages_are_sent_again_where_the_broker_could_not_take_them(
    tmp_path: Path, code: int
) -> None:
    taken: list[str] = []
    refused: list[str] = []

    def on_publish(topic: str, packet: bytes) -> int:
        if len(refused) < 5:
            refused.append(topic)
            return code
        taken.append(topic)
        return 0

    with (
        mock.patch.multiple(pump, RETRY_S=0.05, IDLE_S=0.05),
        mock.patch.multiple(sender, RETRY_S=0.05, IDLE_S=0.05),
        scripted(tmp_path, on_publish) as (broker, publisher, _),
    ):
        publisher.set_status("online")
        publisher.set_retained("homeassistant/x", b"{}")
        until(lambda: {f"{ROOT}/info", f"{ROOT}/status", "homeassistant/x"} <= set(taken))
        until(lambda: publisher.trouble == "")
        assert broker.connects == 1


def test_an_error_without_cause_is_not_retried_for_ever(tmp_path: Path) -> None:
    def on_publish(topic: str, packet: bytes) -> int:
        return 131 if topic.endswith("/poison") else 0

    with (
        mock.patch.multiple(sender, RETRY_S=0.02, IDLE_S=0.02),
        scripted(tmp_path, on_publish) as (_, publisher, outbox),
    ):
        publisher.publish(alert_event("poison", "x", time=time.time()))
        until(lambda: outbox.depth.parked == 1)
        until(lambda: outbox.depth.rows == 0)


def test_frequent_telemetry_does_not_hold_up_events(tmp_path: Path) -> None:
    """Nothing acknowledges it, so each might be the one at which the broker closes the connection."""
    with scripted(tmp_path, lambda *_: 0) as (_, publisher, outbox):
        until(lambda: publisher.state is ConnectionState.CONNECTED)
        for n in range(10):
            publisher.send_telemetry(telemetry())
            publisher.publish(identity(n))
            time.sleep(0.05)
        until(lambda: outbox.depth.rows == 0, seconds=2)


# --- the parts --------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    topic=st.text(st.characters(codec="utf-8", exclude_characters="#+\0"), min_size=1, max_size=200),
    payload=st.integers(0, 3_000_000) | st.sampled_from([110, 127, 128, 16_360, 16_384, 2_097_100]),
    properties=st.binary(min_size=1, max_size=300),
    qos=st.sampled_from([0, 1]),
)
def test_packet_size_is_that_of_the_packet(topic: str, payload: int, properties: bytes, qos: int) -> None:
    encoded = topic.encode()
    rest = struct.pack("!H", len(encoded)) + encoded + b"\0\1" * qos + properties
    whole = b"\x32" + _varint(len(rest) + payload) + rest
    assert packet_size(topic, payload, properties, qos) == len(whole) + payload


def sent(seq: int, size: int = 100) -> Sent:
    return Sent(time.monotonic(), "t", Row(seq, "t", b"{}", 0.0), size=size)


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(100, 2000), min_size=1, max_size=30),
    limit=st.integers(100, 2000),
    window=st.integers(1, 20),
    code=st.sampled_from([None, 149]),
)
def test_elimination_finds_all_and_only_what_exceeds_a_limit(
    sizes: list[int], limit: int, window: int, code: int | None
) -> None:
    """A model of sender and broker: the broker closes the connection above its limit."""
    finder, waiting = Elimination(), [sent(n, size) for n, size in enumerate(sizes)]
    passed: list[Sent] = []
    aside: list[Sent] = []
    for _ in range(len(sizes) * (LOSSES + 2)):
        control = sent(-1, 90)  # retained messages pass first
        finder.settled([control])
        while waiting:
            known = finder.limit
            aside += [one for one in waiting if known is not None and one.size > known]
            waiting = [one for one in waiting if known is None or one.size <= known]
            under_way = waiting[: 1 if finder.careful else window]
            bad = next((at for at, one in enumerate(under_way) if one.size > limit), None)
            done = under_way if bad is None else under_way[:bad]
            finder.settled(done)
            passed += done
            waiting = waiting[len(done) :]
            if bad is not None:
                found = finder.lost(under_way[bad:], code, others_pass=True)
                if found is not None:
                    assert found is waiting[0]
                    aside.append(waiting.pop(0))
                break
    assert not waiting
    assert sorted(one.size for one in passed) == sorted(size for size in sizes if size <= limit)
    assert all(one.size > limit for one in aside)


@pytest.mark.parametrize("code", sorted(NOT_BLAMED))
def test_other_causes_blame_no_message(code: int) -> None:
    finder = Elimination()
    for _ in range(20):
        assert finder.lost([sent(1)], code, others_pass=True) is None
    assert not finder.careful


def test_a_limit_that_was_found_is_tried_again_later() -> None:
    finder = Elimination()
    assert finder.lost([sent(1, 500)], min(BLAMED), others_pass=False) is not None
    assert finder.limit is None  # its content may be the cause
    assert finder.lost([sent(2, 600)], min(BLAMED), others_pass=False) is not None
    assert finder.limit == 499
    with mock.patch.object(elimination.time, "monotonic", return_value=1e12):
        assert finder.limit is None
