"""The socket through which the page asks the agent: bounded, private, and no harm to the agent."""

from __future__ import annotations

import contextlib
import socket
import stat
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from edge_agent.agent import page_service
from edge_agent.agent.page_service import MAX_CONNECTIONS, PageOperations, PageService
from edge_agent.core.clock import Clock
from edge_agent.core.errors import InputError
from edge_agent.core.local_socket import LENGTHS, LONGEST_BYTES, LONGEST_JSON, PAGE_SOCKET, pack, receive
from edge_agent.deliver.recent import RecentEvents


def slow(_values: Mapping[str, Any], _bytes: bytes) -> tuple[dict[str, Any], bytes]:
    return {}, b"x" * (20 << 20)


def echo(values: Mapping[str, Any], attached: bytes) -> tuple[Mapping[str, Any], bytes]:
    return {"said": values.get("say")}, attached


def wrong(_values: Mapping[str, Any], _bytes: bytes) -> tuple[dict[str, Any], bytes]:
    raise InputError("no such camera at rtsp://user:secret-password@10.0.0.1/")


def broken(_values: Mapping[str, Any], _bytes: bytes) -> tuple[dict[str, Any], bytes]:
    raise KeyError("a bug")


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    table = {"echo": echo, "wrong": wrong, "broken": broken, "slow": slow}
    with PageService(tmp_path, table):
        yield tmp_path / PAGE_SOCKET
    assert not (tmp_path / PAGE_SOCKET).exists()


def connected(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(10)
    client.connect(str(path))
    return client


def asked(client: socket.socket, values: Mapping[str, Any], attached: bytes = b"") -> tuple[Any, bytes]:
    client.sendall(pack(values, attached))
    found = receive(client)
    assert found is not None
    return found


def test_questions_on_one_connection(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with connected(path) as client:
        for say in ("a", {"b": [1]}, "ä\ud800"):
            found, data = asked(client, {"op": "echo", "say": say}, b"\x00" * 1000)
            assert found["ok"] is True
            assert data == b"\x00" * 1000
        found, _ = asked(client, {"op": "wrong"})
        assert found["ok"] is False
        assert "secret-password" not in found["error"]
        assert asked(client, {"op": "broken"})[0]["code"] == "internal"
        for op in ("nothing", None, 5, ["echo"], "echo\n" * 1000):
            assert asked(client, {"op": op})[0]["ok"] is False


NO_MESSAGES = (
    b"",
    b"GET / HTTP/1.1\r\n\r\n",
    LENGTHS.pack(LONGEST_JSON + 1, 0),
    LENGTHS.pack(2, LONGEST_BYTES + 1),
    LENGTHS.pack(2, 0) + b"[]",
    LENGTHS.pack(3, 0) + b"nul",
    LENGTHS.pack(9000, 0) + b"[" * 9000,
    LENGTHS.pack(0, 0),
    struct.pack(">I", 5),
)


@pytest.mark.parametrize("sent", NO_MESSAGES)
def test_what_is_no_message_ends_its_connection_only(path: Path, sent: bytes) -> None:
    with connected(path) as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
    with connected(path) as client:
        assert asked(client, {"op": "echo", "say": "x"})[0]["said"] == "x"


def test_a_page_that_takes_nothing_is_dropped(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_service, "SEND_S", 0.3)
    with connected(path) as stalled, connected(path) as client:
        stalled.sendall(pack({"op": "slow"}))
        assert asked(client, {"op": "echo", "say": 1})[0]["said"] == 1
        time.sleep(0.6)
        taken = 0
        while part := stalled.recv(1 << 20):
            taken += len(part)
        assert taken < 20 << 20


def test_connections_are_bounded(path: Path) -> None:
    many = [connected(path) for _ in range(MAX_CONNECTIONS)]
    try:
        assert asked(many[-1], {"op": "echo", "say": 1})[0]["ok"]
        with connected(path) as further:
            assert further.recv(1) == b""
    finally:
        for one in many:
            one.close()
    deadline = time.monotonic() + 5
    while threading.active_count() > 10 and time.monotonic() < deadline:
        time.sleep(0.05)
    with connected(path) as client:
        assert asked(client, {"op": "echo", "say": 1})[0]["ok"]


def test_the_socket_of_a_killed_agent_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as former:
        former.bind(str(tmp_path / PAGE_SOCKET))
    with PageService(tmp_path, {"echo": echo}), connected(tmp_path / PAGE_SOCKET) as client:
        assert asked(client, {"op": "echo", "say": 1})[0]["ok"]


# --- operations -------------------------------------------------------------------------------------------


def operations(recent: RecentEvents) -> PageOperations:
    anything = cast("Any", SimpleNamespace())
    return PageOperations("run-1", anything, recent, anything, Clock(), dict)


def test_events_come_in_parts_and_begin_again_with_another_outbox() -> None:
    recent = RecentEvents()
    for n in range(1, 451):
        recent.add(n, b'{"seq": %d}' % n)
    table = operations(recent).table()
    first, _ = table["events"]({"after": 0}, b"")
    assert len(first["events"]) == 200
    assert first["last"] == 450
    again, _ = table["events"]({"after": 9000, "wait_s": 2}, b"")
    assert again["events"][0] == '{"seq": 1}'


def test_a_question_waits_for_an_event() -> None:
    recent = RecentEvents()
    threading.Timer(0.2, lambda: recent.add(1, b'{"seq": 1}')).start()
    found, _ = operations(recent).events({"after": 0, "wait_s": 2}, b"")
    assert found["events"] == ['{"seq": 1}']


@pytest.mark.parametrize("after", [-1, "1", None, True, 1 << 60, float("nan"), [], {}])
def test_numbers_that_are_none(after: object) -> None:
    with pytest.raises(InputError):
        operations(RecentEvents()).events({"after": after}, b"")


@pytest.mark.parametrize(
    "values", [{}, {"verb": "name"}, {"verb": "nothing", "fields": {}}, {"verb": "name", "fields": {"x": 1}},
               {"verb": "name", "fields": {"identity_id": "p", "name": "a\x1b[2J"}},
               {"verb": "name", "fields": []},
               {"verb": "name", "fields": {"identity_id": 5, "name": "a"}}],
)  # fmt: skip
def test_commands_that_are_none(values: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        operations(RecentEvents()).command(values, b"")
