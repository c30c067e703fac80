"""Events, presence, people and status over HTTP: right, bounded, and only with the token."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from edge_agent.core import serving
from edge_agent.core.clock import Clock
from edge_agent.core.config import TelemetrySettings
from edge_agent.core.loading import load
from edge_agent.core.setting_secrets import secrets_of
from edge_agent.deliver import recent
from edge_agent.deliver.connection import ConnectionState
from edge_agent.deliver.http import Api, Follower
from edge_agent.deliver.local import Counters, LocalPublisher, Origin
from edge_agent.deliver.metrics import Metrics
from edge_agent.deliver.topics import Topics
from tests.conftest import REPO, find_free_port
from tests.deliver.deliver_fixtures import INFO, identity, until

TOKEN = "a-token-of-some-length"
PERSON = {
    "number": 1, "id": "p-1", "name": None, "kind": "auto", "created": 1.7e9, "last_seen": 1.7e9,
    "expires": None, "ttl_s": None, "exemplars": 3, "sightings": 1,
}  # fmt: skip
STATUS = {
    "version": "0", "pid": 1, "session": "s", "uptime_s": 1.0, "state": "online", "reason": "", "ready": True,
}  # fmt: skip


class Served:
    """A publisher without broker, and its API."""

    def __init__(self) -> None:
        self.stored: list[tuple[int, bytes]] = []
        self.origin = Origin(Topics("lab", "jx01"), "session-1", None, Clock())
        self.publisher = LocalPublisher(self.origin)
        people = [PERSON | {"number": n} for n in range(1, 2501)]
        self.api = Api(
            token=TOKEN,
            origin=self.origin,
            stored=lambda low, high, most: [row for row in self.stored if low < row[0] <= high][:most],
            people=lambda after, most: [one for one in people if one["number"] > after][:most],
            status=lambda: STATUS,
        )
        delivery = SimpleNamespace(counters=Counters(), state=ConnectionState.DISABLED)
        self.metrics = Metrics(port=0, delivery=delivery, info=INFO, api=self.api)

    def get(
        self, path: str, token: str | None = TOKEN, method: str = "GET", **headers: str
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.metrics.port, timeout=10)
        with contextlib.closing(connection):
            more = {} if token is None else {"Authorization": f"Bearer {token}"}
            connection.request(method, path, headers=more | headers)
            answer = connection.getresponse()
            return answer.status, answer.read()

    @contextlib.contextmanager
    def following(self, last: int | None = None) -> Iterator[Any]:
        """Yield what reads the next events of a stream."""
        with socket.create_connection(("127.0.0.1", self.metrics.port), timeout=10) as stream:
            begin = "" if last is None else f"Last-Event-ID: {last}\r\n"
            head = f"GET /events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n{begin}\r\n"
            stream.sendall(head.encode())
            file = stream.makefile("rb")
            lines = iter(file.readline, b"")
            assert b"200" in next(lines)
            assert any(line == b"\r\n" for line in lines)

            def read(count: int) -> list[tuple[int, str, Any]]:
                found: list[tuple[int, str, Any]] = []
                fields: dict[str, str] = {}
                while len(found) < count:
                    line = next(lines).decode().rstrip("\n")
                    if line:
                        name, _, text = line.partition(": ")
                        fields[name] = text
                    else:
                        if "data" in fields:
                            kind = fields.get("event", "message")
                            found.append((int(fields["id"]), kind, json.loads(fields["data"])))
                        fields = {}
                return found

            yield read


@pytest.fixture
def served() -> Iterator[Served]:
    found = Served()
    with found.metrics:
        yield found


def openapi() -> Any:
    return yaml.safe_load((REPO / "docs" / "openapi.yaml").read_text())


@pytest.mark.parametrize("path", ["/present", "/people", "/people?after=2000&limit=3", "/status"])
def test_answers_are_as_documented(served: Served, path: str) -> None:
    served.publisher.publish(identity(1))
    status, body = served.get(path)
    assert status == 200
    operation = openapi()["paths"][path.partition("?")[0]]["get"]
    schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
    Draft202012Validator(schema).validate(json.loads(body))


def test_every_documented_path_exists_and_no_other(served: Served) -> None:
    paths = openapi()["paths"]
    assert {path for path in paths if served.get(path, "wrong-token-wrong-token")[0] == 401} == set(paths)
    assert served.get("/other")[0] == 404


def test_people_in_pages(served: Served) -> None:
    numbers, after = [], 0
    while after is not None:
        page = json.loads(served.get(f"/people?after={after}")[1])
        numbers += [one["number"] for one in page["people"]]
        after = page["next"]
    assert numbers == list(range(1, 2501))
    for wrong in ("after=-1", "limit=0", "limit=1001", "after=x", "limit=%C2%B2", "after=" + "9" * 30):
        assert served.get(f"/people?{wrong}")[0] == 400


@pytest.mark.parametrize("token", [None, "", "a-token-of-some-lengtH", TOKEN + "x", "\xe9" * 20])
def test_without_the_token_nothing_is_answered(served: Served, token: str | None) -> None:
    for path in openapi()["paths"]:
        assert served.get(path, token)[0] == 401
    assert served.get("/metrics", token)[0] == 200  # as before


def test_without_the_setting_there_is_no_api() -> None:
    delivery = SimpleNamespace(counters=Counters(), state=ConnectionState.DISABLED)
    found = Served()
    found.metrics = Metrics(port=0, delivery=delivery, info=INFO)
    with found.metrics:
        assert {found.get(path)[0] for path in openapi()["paths"]} == {404}


def test_the_setting(tmp_path: Path) -> None:
    """A short token, or one without a port, is refused; no output shows it."""
    assert TelemetrySettings().http_token is None
    for values in ({"http_token": TOKEN}, {"http_token": "short", "metrics_port": 9000}):
        with pytest.raises(ValueError, match="http_token"):
            TelemetrySettings(**values)
    found = load(None, {"telemetry": {"http_token": TOKEN, "metrics_port": 9000}})
    assert TOKEN in secrets_of(found)
    assert TOKEN not in repr(found) + found.model_dump_json()


def test_a_stream_follows_and_continues(served: Served) -> None:
    with served.following() as read:
        until(lambda: served.metrics.port)
        time.sleep(0.1)
        for track in range(1, 4):
            served.publisher.publish(identity(track))
        assert [(seq, kind, event["seq"]) for seq, kind, event in read(3)] == [
            (n, "message", n) for n in (1, 2, 3)
        ]
    with served.following(1) as read:
        assert [event["data"]["track_id"] for _, _, event in read(2)] == [2, 3]
        served.publisher.publish(identity(9))
        assert read(1)[0][2]["data"]["track_id"] == 9


def test_a_stream_states_what_is_missing(served: Served) -> None:
    """Of earlier runs: what the outbox still has comes, the other numbers are named."""
    served.origin.begin(100)
    served.stored = [(n, b'{"n":1}') for n in (95, 96, 99)]
    with served.origin.lock:
        served.origin.record(101, b'{"n":1,"seq":101}')
    with served.following(90) as read:
        assert [(seq, kind, data.get("first")) for seq, kind, data in read(7)] == [
            (94, "missed", 91), (95, "message", None), (96, "message", None), (98, "missed", 97),
            (99, "message", None), (100, "missed", 100), (101, "message", None),
        ]  # fmt: skip


def test_a_stream_that_returns_gets_nothing_of_a_person_who_was_forgotten(served: Served) -> None:
    for track, person in enumerate(("p-1", "p-11", "p-1"), 1):
        served.publisher.publish(identity(track, identity=person))
    with served.following(0) as read:
        assert [seq for seq, _, _ in read(3)] == [1, 2, 3]
    served.origin.recent.erase("p-1")
    with served.following(0) as read:
        assert [(seq, kind, data.get("first")) for seq, kind, data in read(3)] == [
            (1, "missed", 1), (2, "message", None), (3, "missed", 3),
        ]  # fmt: skip
        served.publisher.publish(identity(4))
        assert read(1)[0][:2] == (4, "message")


def test_a_number_of_the_future_means_that_the_numbers_began_again(served: Served) -> None:
    served.publisher.publish(identity(1))
    with served.following(500) as read:
        assert read(1) == [(1, "missed", {"first": 1, "last": 1})]
        served.publisher.publish(identity(2))
        assert read(1)[0][0] == 2
    for wrong in ("x", "-1", "1.5", "\xb2", "9" * 30):
        assert served.get("/events", **{"Last-Event-ID": wrong})[0] == 400


@settings(max_examples=100, deadline=None)
@given(
    base=st.integers(0, 30),
    new=st.integers(0, 30),
    stored=st.sets(st.integers(1, 30)),
    erased=st.sets(st.integers(1, 60)),
    start=st.integers(0, 60),
    kept=st.integers(1, 10),
)
def test_every_number_comes_or_is_named_as_missed(
    base: int, new: int, stored: set[int], erased: set[int], start: int, kept: int
) -> None:
    """Each number after the start exactly once, in order, whatever is kept where."""
    origin = Origin(Topics("lab", "jx01"), "s", None, Clock())
    with mock.patch.object(recent, "MOST_EVENTS", kept):
        origin.begin(base)
        for seq in range(base + 1, base + new + 1):
            origin.record(seq, b'{"id":"p-gone"}' if seq in erased else b"{}")
    origin.recent.erase("p-gone")
    rows = [(n, b"{ }") for n in sorted(stored)]
    start = min(start, base + new)
    follower = Follower(
        origin, lambda low, high, most: [row for row in rows if low < row[0] <= high][:most], start
    )
    text = b"".join(iter(follower.more, b"")).decode()
    assert "p-gone" not in text
    numbers: list[int] = []
    for part in text.split("\n\n")[:-1]:
        hole = re.search(r'"first":(\d+),"last":(\d+)', part)
        number = int(part.split("\n")[0].removeprefix("id: "))
        numbers += range(int(hole[1]), int(hole[2]) + 1) if hole else [number]
    assert numbers == list(range(start + 1, base + new + 1))


def test_streams_are_bounded_and_do_not_hold_up_others(served: Served) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(serving.MAX_STREAMS):
            stack.enter_context(served.following())
        assert served.get("/events")[0] == 503
        for _ in range(serving.MAX_CONNECTIONS + 5):
            assert served.get("/status")[0] == 200
    until(lambda: _can_follow(served))


def _can_follow(served: Served) -> bool:
    with contextlib.suppress(AssertionError), served.following():
        return True
    return False


def test_a_client_that_takes_nothing_is_closed(served: Served) -> None:
    with mock.patch.object(serving, "TIME_S", 0.3), served.following():
        for _ in range(40):  # more than the buffers of the connection hold
            for track in range(1, 500):
                served.publisher.publish(identity(track))
            time.sleep(0.02)
        assert served.get("/status")[0] == 200


def test_an_idle_stream_gets_comments(served: Served) -> None:
    with (
        mock.patch.object(serving, "KEEPALIVE_S", 0.1),
        socket.create_connection(("127.0.0.1", served.metrics.port), timeout=10) as stream,
    ):
        stream.sendall(f"GET /events HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
        text = b""
        while text.count(b":\n\n") < 2:
            part = stream.recv(1000)
            assert part
            text += part


def test_the_port_is_on_loopback_only(served: Served) -> None:
    assert find_free_port()
    with socket.socket() as other:
        other.settimeout(1)
        assert other.connect_ex((socket.gethostbyname(socket.gethostname()), served.metrics.port)) != 0 or (
            socket.gethostbyname(socket.gethostname()).startswith("127.")
        )
