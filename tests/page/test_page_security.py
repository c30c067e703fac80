"""What the page refuses: other hosts, other sites, guesses, slow and large requests."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import time
from contextlib import ExitStack
from http.client import HTTPMessage
from pathlib import Path
from typing import Any, cast

import pytest
import uvicorn
from starlette.datastructures import Headers
from uvicorn.server import ServerState

from edge_agent.page import server
from edge_agent.page.guard import LOCAL_NAMES, Places
from edge_agent.page.live import MOST_ASKING, Cameras
from tests.page.conftest import OPERATOR, Client, Site, make_site

PLACES = Places.of([*LOCAL_NAMES, "gate.example"], tls=False)


def refused(host: str, *, websocket: bool = False, **more: str) -> int | None:
    headers = {"host": host, **{name.replace("_", "-"): value for name, value in more.items()}}
    problem = PLACES.problem(Headers(headers), websocket=websocket)
    return None if problem is None else problem.status


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8750", "localhost", "LOCALHOST:1", "[::1]:8750", "gate.example", "Gate.Example:80"]
)
def test_own_hosts(host: str) -> None:
    assert refused(host) is None
    assert refused(host, origin=f"http://{host}".lower()) is None
    assert refused(host, origin=f"http://{host}".lower(), websocket=True) is None


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "127.0.0.1@evil.example", "localhost:8750@evil.example", "",
     "localhost/evil", "localhost:port", "localhost:99999", "2130706433", "127.1", "[::1", "[::1].evil",
     "localhost.", "gate.example:80:80", "evil.example\tlocalhost", "localhost#@evil.example"],
)  # fmt: skip
def test_a_name_that_another_site_makes_point_here(host: str) -> None:
    assert refused(host) == 421


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://127.0.0.1:8750", "http://127.0.0.1:9999",
               "http://127.0.0.1:8750.evil.example", "http://localhost:8750", "file://", ""],
)  # fmt: skip
def test_another_origin(origin: str) -> None:
    assert refused("127.0.0.1:8750", origin=origin) == 403


def test_other_sites_and_a_websocket_without_origin() -> None:
    assert refused("127.0.0.1:8750", sec_fetch_site="cross-site") == 403
    assert refused("127.0.0.1:8750", sec_fetch_site="same-site") == 403  # another port of this host
    assert refused("127.0.0.1:8750", sec_fetch_site="same-origin") is None
    assert refused("127.0.0.1:8750", websocket=True) == 403


def test_two_host_headers() -> None:
    raw = [(b"host", b"localhost"), (b"host", b"evil.example")]
    problem = PLACES.problem(Headers(raw=raw))
    assert problem is not None
    assert problem.status == 421


def test_every_endpoint_needs_a_session_and_posts_need_the_csrf_value(alone: Site) -> None:
    from edge_agent.page.views import ENDPOINTS

    operator = alone.operator()
    for endpoint in ENDPOINTS:
        path = endpoint.path.replace("{", "").replace("}", "")
        if endpoint.role != "anyone":
            assert alone.client.send(endpoint.method, path)[0] == 401, path
        if endpoint.method == "POST" and endpoint.role != "anyone":
            for wrong in ("", "x", operator.csrf[:-1]):
                assert operator.send("POST", path, {}, x_csrf=wrong)[0] == 403, path
        assert operator.send("DELETE", path)[0] == 404


def test_every_path_is_part_of_the_api_and_every_get_is_free_of_effects() -> None:
    from edge_agent.page.views import ENDPOINTS

    assert all(one.path.startswith("/api/") for one in ENDPOINTS)
    assert {one.method for one in ENDPOINTS} == {"GET", "POST"}
    opens = {one.path for one in ENDPOINTS if one.role == "anyone"}
    assert opens == {"/api/start", "/api/login", "/api/login/link"}


def test_a_viewer_may_not_do_what_an_operator_may(alone: Site) -> None:
    status, found, _ = alone.viewer().send("POST", "/api/health/doctor", {})
    assert (status, found["error"]["code"]) == (403, "not-allowed")


def test_the_cookie_is_out_of_reach_and_a_login_never_keeps_a_session(alone: Site) -> None:
    user, password = OPERATOR
    mine = {"user": user, "password": password}
    fixed = {"cookie": f"edge-agent-page-{alone.port}=chosen-by-somebody"}
    _, _, headers = Client(alone.port, fixed).send("POST", "/api/login", mine)
    cookie = headers["set-cookie"]
    assert "chosen-by-somebody" not in cookie
    assert all(part in cookie for part in ("HttpOnly", "SameSite=strict", "Path=/"))
    assert "Domain" not in cookie
    first = alone.operator()
    again = Client(alone.port, first.headers).send("POST", "/api/login", mine)
    assert again[0] == 200
    assert first.send("GET", "/api/session")[0] == 401, "the former session goes on beside the new one"


def test_logging_out_ends_the_session(alone: Site) -> None:
    operator = alone.operator()
    assert operator.send("POST", "/api/logout", {})[0] == 200
    assert operator.send("GET", "/api/session")[0] == 401


def test_headers_of_every_answer(alone: Site) -> None:
    for path in ("/", "/app.js", "/api/start", "/api/session", "/nothing"):
        headers = alone.client.send("GET", path)[2]
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"
        assert "server" not in headers


@pytest.mark.parametrize(
    "path",
    ["/../pyproject.toml", "/static/app.js", "/..%2f..%2fapp.py", "/views/../../app.py", "/app.py",
     "//etc/passwd", "/%2e%2e/app.py", "/views/", "/index.html/", "/api/events/../../etc", "/app.js%00.css",
     "/views/live.js/x"],
)  # fmt: skip
def test_no_path_leads_out_of_the_page(alone: Site, path: str) -> None:
    assert alone.operator().send("GET", path)[0] in (400, 404, 405)


def test_another_site_gets_nothing_over_the_wire(alone: Site) -> None:
    operator = alone.operator()
    evil = {"origin": "http://evil.example"}
    assert operator.send("GET", "/api/session", **evil)[0] == 403
    assert operator.send("POST", "/api/login", {"user": "a", "password": "b"}, **evil)[0] == 403
    assert operator.send("GET", "/api/session", host="evil.example")[0] == 421
    status, found, _ = operator.send("POST", "/api/login", b"user=a", content_type="text/plain")
    assert (status, found["error"]["code"]) == (415, "malformed")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b"nul",
        b'"x"',
        b"[" * 9000,
        b'{"user": 1, "password": []}',
        b'{"user": "\\ud800", "password": ""}',
        b'{"user": "", "password": "", "x": NaN}',
    ],
)
def test_bodies_that_are_no_login(alone: Site, body: bytes) -> None:
    assert alone.client.send("POST", "/api/login", body)[0] == 400


def test_a_threshold_without_its_key_is_not_null(alone: Site) -> None:
    status, found, _ = alone.operator().send("POST", "/api/thresholds", {})
    assert (status, found["error"]["code"]) == (400, "malformed")


def test_who_reads_no_answer_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(20_000_000)})

    async def scenario() -> None:
        config = uvicorn.Config(app, lifespan="off", log_config=None)
        state, loop = ServerState(), asyncio.get_running_loop()
        listening = await loop.create_server(
            lambda: server.BoundedProtocol(config, state, {}), "127.0.0.1", 0
        )
        with socket.create_connection(listening.sockets[0].getsockname()) as raw:
            raw.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await asyncio.sleep(0.1)
            assert len(state.connections) == 1
            await asyncio.sleep(0.4)
            assert len(state.connections) == 0
        listening.close()

    monkeypatch.setattr(server, "TAKE_S", 0.3)
    asyncio.run(scenario())


def test_many_cameras_take_few_connections_to_the_agent() -> None:
    class Link:
        opened = 0

        def channel(self) -> Link:
            self.opened += 1
            return self

        async def ask(self, _op: str, **values: Any) -> tuple[dict[str, Any], bytes]:
            await asyncio.sleep(0.001)
            return {"picture": {"camera": values["camera"]}, "number": 1}, b""

        def close(self) -> None:
            pass

    async def scenario() -> None:
        link = Link()
        cameras = Cameras(cast("Any", link))
        found = await asyncio.gather(*(cameras.next(f"camera {at}", 0) for at in range(60)))
        assert all(one is not None for one in found)
        cameras.rest()
        assert link.opened == MOST_ASKING

    asyncio.run(scenario())


def test_large_bodies(alone: Site) -> None:
    assert alone.client.send("POST", "/api/login", b"x" * (65 << 10))[0] == 413
    with socket.create_connection(("127.0.0.1", alone.port), 10) as raw:  # more than it states
        raw.sendall(
            b"POST /api/login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        try:
            for _ in range(40):
                raw.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")
            answer = raw.recv(4096)
        except OSError:
            answer = b" 413 "  # closed before all was sent
        assert b" 413 " in answer


def websocket(port: int, **headers: str) -> bytes:
    """Return the first answer to the request for a WebSocket."""
    given = {"host": f"127.0.0.1:{port}", **headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    key = base64.b64encode(os.urandom(16)).decode()
    with socket.create_connection(("127.0.0.1", port), 10) as raw:
        raw.sendall(
            f"GET /ws HTTP/1.1\r\n{lines}Connection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        return raw.recv(4096)


def test_a_websocket_needs_origin_and_session(alone: Site) -> None:
    cookie, own = alone.operator().headers["cookie"], f"http://127.0.0.1:{alone.port}"
    assert b" 101 " in websocket(alone.port, cookie=cookie, origin=own)
    assert b" 101 " not in websocket(alone.port, cookie=cookie)
    assert b" 101 " not in websocket(alone.port, cookie=cookie, origin="http://evil.example")
    assert b" 101 " not in websocket(alone.port, cookie=cookie, origin=own, host="evil.example")
    assert b" 101 " not in websocket(alone.port, origin=own)


def test_five_wrong_passwords_and_a_link_still_works(tmp_path: Path) -> None:
    with ExitStack() as stack:
        lock_out(make_site(tmp_path, stack))


def lock_out(alone: Site) -> None:
    def log_in(user: str, password: str) -> tuple[int, Any, HTTPMessage]:
        return alone.client.send("POST", "/api/login", {"user": user, "password": password})

    codes = [log_in("mallory", "wrong")[0] for _ in range(6)]
    assert codes == [401] * 5 + [429]
    status, _, headers = log_in(*OPERATOR)
    assert status == 429, "the right password in the place of the sixth guess"
    assert 0 < int(headers["retry-after"]) <= 300
    token = alone.link()
    status, found, _ = alone.client.send("POST", "/api/login/link", {"token": token})
    assert (status, found["role"]) == (200, "operator")
    assert alone.client.send("POST", "/api/login/link", {"token": token})[0] == 401, "used twice"


@pytest.mark.slow
def test_clients_that_send_nothing_do_not_keep_others_out(alone: Site) -> None:
    silent = [socket.create_connection(("127.0.0.1", alone.port), 10) for _ in range(120)]
    for one in silent[::2]:
        one.sendall(b"GET / HTTP/1.1\r\nHost: loc")
    deadline = time.monotonic() + 30
    try:
        while True:
            try:
                assert alone.client.send("GET", "/api/start")[0] == 200
                break
            except OSError:
                assert time.monotonic() < deadline, "still no answer after 30 s"
                time.sleep(0.5)
    finally:
        for one in silent:
            one.close()
