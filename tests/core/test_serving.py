"""Listeners under clients that are idle, slow, many or hostile: real sockets."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

from edge_agent.core import serving
from edge_agent.core.serving import MAX_CONNECTIONS, MAX_REQUEST_BYTES, BoundedServer
from edge_agent.deliver.connection import ConnectionState
from edge_agent.deliver.local import Counters
from edge_agent.deliver.metrics import Metrics
from edge_agent.health.inquiry import StatusServer, read_status
from tests.deliver.deliver_fixtures import INFO, until


@contextlib.contextmanager
def metrics() -> Iterator[int]:
    delivery = SimpleNamespace(counters=Counters(), state=ConnectionState.WAITING)
    with Metrics(port=0, delivery=delivery, info=INFO) as served:
        yield served.port


@contextlib.contextmanager
def idle(port: int, count: int, first: bytes = b"") -> Iterator[list[socket.socket]]:
    """Open connections that send `first` and then nothing."""
    with contextlib.ExitStack() as stack:
        opened = []
        for _ in range(count):
            opened.append(stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10)))
            with contextlib.suppress(OSError):
                opened[-1].send(first)
        yield opened


def scrape(port: int, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        assert answer.headers["Content-Length"] is not None
        return str(answer.read().decode())


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("first", [b"", b"G", b"GET /metrics HTTP/1.1\r\nHost: x\r\n"])
def test_900_idle_connections_take_no_thread_and_do_not_delay_a_scrape(first: bytes) -> None:
    threads = threading.active_count()
    with metrics() as port, idle(port, 450, first), idle(port, 450, first):
        began = time.monotonic()
        assert "edge_agent_broker" in scrape(port)
        assert time.monotonic() - began < serving.TIME_S
        assert threading.active_count() <= threads + 1
        # One end of each connection is the test's own.
        assert open_files() - 900 < MAX_CONNECTIONS + 200


def test_an_idle_or_slow_connection_ends() -> None:
    with mock.patch.object(serving, "TIME_S", 0.3), metrics() as port, idle(port, 2) as (quiet, slow):
        ended = threading.Event()

        def drip() -> None:
            with contextlib.suppress(OSError):
                for byte in b"GET /metrics HTTP/1.1\r\nX: " + b"y" * 1000:
                    slow.send(bytes([byte]))
                    time.sleep(0.01)
            ended.set()

        threading.Thread(target=drip, daemon=True).start()
        began = time.monotonic()
        assert quiet.recv(1) == b""
        assert time.monotonic() - began < 3
        assert ended.wait(5)


def test_a_client_that_does_not_read_its_answer_ends() -> None:
    ours, theirs = socket.socket(), socket.socket()
    ours.bind(("127.0.0.1", 0))
    address = ours.getsockname()
    with (
        mock.patch.object(serving, "TIME_S", 0.3),
        BoundedServer(ours, lambda request: b"x" * 50_000_000 if request else None, name="big"),
        theirs,
    ):
        theirs.connect(address)
        theirs.send(b"a")
        time.sleep(0.8)
        theirs.settimeout(5)
        received = 0
        with contextlib.suppress(ConnectionResetError):
            while part := theirs.recv(1 << 20):
                received += len(part)
        assert received < 50_000_000


def test_a_request_that_is_too_large_ends_its_connection() -> None:
    with metrics() as port, idle(port, 1) as (client,):
        with contextlib.suppress(OSError):
            client.sendall(b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * MAX_REQUEST_BYTES)
        client.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(100) == b""
        assert "edge_agent_broker" in scrape(port)


def test_requests_that_are_no_scrape() -> None:
    chance = random.Random(3)
    requests = {
        b"GET /favicon.ico HTTP/1.1\r\n\r\n": b"404",
        b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello": b"405",
        b"GET /metrics HTTP/2.0\r\n\r\n": b"400",
        b"\r\n\r\n": b"400",
        b"GET /metrics?x=1 HTTP/1.1\r\n\r\n": b"200",
        b"HEAD / HTTP/1.0\r\n\r\n": b"200",
        b"GET //[ HTTP/1.1\r\n\r\n": b"404",
        b"\x16\x03\x01" + chance.randbytes(200).replace(b"\r", b"") + b"\r\n\r\n": b"400",
    }
    with metrics() as port:
        for request, status in requests.items():
            with idle(port, 1, request) as (client,):
                assert client.recv(20).split()[1] == status, request
        with pytest.raises(urllib.error.HTTPError) as caught:
            scrape(port, "/other")
        caught.value.close()


@pytest.mark.parametrize(
    "accept",
    [
        *(f"application/openmetrics-text;version={one}" for one in ("abc", "1.x", "\xff", "", "9" * 5000)),
        "text/plain; version=2.x\nSet-Cookie: a=b",
        "text/plain;version=;;;=,;,=;",
        "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,*/*;q=0.2",
        "application/openmetrics-text; version=9.9.9; escaping=other",
    ],
)
def test_any_format_that_a_client_accepts_is_answered(accept: str) -> None:
    request = f"GET /metrics HTTP/1.1\r\nAccept: {accept}\r\n\r\n".encode("latin-1")
    with metrics() as port, idle(port, 1, request) as (client,):
        head = client.recv(1000).split(b"\r\n\r\n")[0]
        assert head.startswith(b"HTTP/1.1 200")
        assert b"Cookie" not in head
        assert (b"openmetrics" in head) == ("1.0.0" in accept or "9.9.9" in accept)


def test_no_more_open_files_does_not_end_the_server() -> None:
    with metrics() as port:
        real, failing = socket.socket.accept, [True] * 5

        def accept(self: socket.socket) -> object:
            if failing and failing.pop():
                raise OSError(24, "Too many open files")
            return real(self)

        with mock.patch.object(socket.socket, "accept", accept):
            assert "edge_agent_broker" in scrape(port)


def test_a_bug_in_an_answer_does_not_end_the_server() -> None:
    answers: list[Callable[[], bytes]] = [lambda: b"fine", lambda: b"" + 1 / 0]  # type: ignore[operator]
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    with BoundedServer(listening, lambda request: answers.pop()() if request else None, name="bug"):
        with idle(port, 1, b"a") as (client,):
            assert client.recv(10) == b""
        with idle(port, 1, b"a") as (client,):
            assert client.recv(10) == b"fine"


def test_the_status_socket_survives_clients_that_do_not_read(tmp_path: Path) -> None:
    path = tmp_path / "status.sock"
    threads = threading.active_count()
    with StatusServer(path, lambda: {"pid": 7, "long": "x" * 2_000_000}), contextlib.ExitStack() as stack:
        for _ in range(200):
            rude = stack.enter_context(socket.socket(socket.AF_UNIX))
            rude.connect(str(path))
        began = time.monotonic()
        assert read_status(path)["pid"] == 7
        assert time.monotonic() - began < serving.TIME_S
        assert threading.active_count() <= threads + 1
    assert not path.exists()


def test_nothing_is_left_open() -> None:
    before = open_files()
    with metrics() as port, idle(port, 20):
        scrape(port)
    until(lambda: open_files() <= before)
