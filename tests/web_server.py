"""A web server on 127.0.0.1 that breaks off, lies, redirects, or never stops, for downloads."""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BODY = bytes(range(256)) * 8192  # 2 MiB
DIGEST = hashlib.sha256(BODY).hexdigest()


@dataclass
class Server:
    """What the server answers, and the requests that it got."""

    body: bytes = BODY
    ranges: bool = True
    place: bool = True
    """Whether partial answers state their place."""
    length: int | None = None
    """Stated length, where it is not that of the answer; -1: none is stated."""
    break_after: int | None = None
    """Bytes of an answer after which the connection is closed."""
    status: int | None = None
    refuse_ranges: int | None = None
    """Status of requests for a part."""
    redirect: str | None = None
    before: Callable[[], None] | None = None
    """Called before each answer."""
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """Path (through a proxy: address) and Range."""
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/models/net.onnx?token=secret"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers["Range"]
        self.asked.append((request.path, wanted))
        if self.before is not None:
            self.before()
        if self.redirect is not None and not request.path.startswith("/moved"):
            request.send_response(302)
            request.send_header("Location", self.redirect)
            request.end_headers()
            return
        refused = self.status or (self.refuse_ranges if wanted else None)
        if refused is not None:
            request.send_error(refused)
            return
        begin = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and self.ranges else 0  # type: ignore[index]
        if begin >= len(self.body) > 0:
            request.send_error(416)
            return
        request.send_response(206 if begin else 200)
        if begin and self.place:
            request.send_header("Content-Range", f"bytes {begin}-{len(self.body) - 1}/{len(self.body)}")
        if self.length != -1:
            request.send_header("Content-Length", str(self.length or len(self.body) - begin))
        request.end_headers()
        request.wfile.write(self.body[begin:][: self.break_after])
        request.close_connection = True


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """Run a server; the block may change what it answers."""
    reported = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with contextlib.suppress(ConnectionError):
                reported.answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        reported.port = web.server_address[1]
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield reported
        finally:
            web.shutdown()
            thread.join()
