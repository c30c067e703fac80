"""The web server of the page: uvicorn with bounds on connections and on the time of a request's head.

uvicorn bounds neither, nor the time in which an answer is taken: clients that send nothing, or one byte a
minute, or read nothing, would keep all connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from edge_agent.core.errors import ConfigError
from edge_agent.core.page_settings import PageSettings

MAX_CONNECTIONS = 100
"""Open at once, WebSockets too; a further one is closed."""
HEAD_S = 10.0
"""Time in which the first byte and the whole head of a request must arrive."""
IDLE_S = 15
"""A connection without a request is closed after this time."""
TAKE_S = 20.0
"""Time in which a client must take what waits to be sent; a WebSocket has a limit of its own."""
LONGEST_HEAD = 16 << 10
LONGEST_MESSAGE = 4 << 10
"""Of a WebSocket, from the browser."""
STOP_S = 3
_BACKLOG = 64


class BoundedProtocol(H11Protocol):
    """One HTTP/1.1 connection: it is closed when no complete head arrives within `HEAD_S`."""

    _waiting: asyncio.TimerHandle | None = None
    _taking: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse the connection if there are too many."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.close()
            return
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Take bytes; the wait ends with the head."""
        before = self.cycle
        super().data_received(data)
        if self._waiting is None and (self.cycle is before and (before is None or before.response_complete)):
            self._await_head()  # the first bytes of a further request
        if self.cycle is not before or self.transport.is_closing():
            self._end_wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end."""
        self._end_wait()
        self._end_taking()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Begin the wait for a client that does not read."""
        super().pause_writing()
        if self._taking is None:
            self._taking = self.loop.call_later(TAKE_S, self.transport.abort)

    def resume_writing(self) -> None:
        """End this wait."""
        self._end_taking()
        super().resume_writing()

    def handle_websocket_upgrade(self, event: Any) -> None:  # noqa: ANN401  of h11
        """Hand the connection to the WebSocket."""
        self._end_wait()
        self._end_taking()
        super().handle_websocket_upgrade(event)

    def _await_head(self) -> None:
        self._waiting = self.loop.call_later(HEAD_S, self._give_up)

    def _end_wait(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _end_taking(self) -> None:
        if self._taking is not None:
            self._taking.cancel()
            self._taking = None

    def _give_up(self) -> None:
        self._waiting = None
        self.transport.abort()  # `close` would wait for a client that does not read


def listen(settings: PageSettings) -> socket.socket:
    """Return the listening socket of the page; ConfigError: the address or port is not available."""
    family = socket.AF_INET6 if ":" in settings.address else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.address, settings.port))
        listening.listen(_BACKLOG)
    except OSError as problem:
        listening.close()
        raise ConfigError(
            f"page.port: cannot listen on {settings.address}:{settings.port}: {problem.strerror};"
            " choose another port, or stop the program that has it"
        ) from problem
    return listening


def check_tls(settings: PageSettings) -> None:
    """Raise ConfigError where certificate or key cannot be used."""
    if settings.cert_file is None or settings.key_file is None:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for key, path in (("cert_file", settings.cert_file), ("key_file", settings.key_file)):
        if not path.is_file():
            raise ConfigError(f"page.{key}: {path} is not a readable file")
    try:
        context.load_cert_chain(settings.cert_file, settings.key_file, password=_refuse_pass_phrase)
    except (OSError, ValueError) as problem:
        raise ConfigError(f"page.cert_file and page.key_file cannot be used: {problem}") from None


def _refuse_pass_phrase() -> str:
    raise ValueError("the key has a pass phrase")


async def serve(
    make: Callable[[], Starlette], settings: PageSettings, listening: socket.socket, ready: Callable[[], None]
) -> None:
    """Serve until SIGINT or SIGTERM. `make` returns the application; `ready` is called once it listens."""
    config = uvicorn.Config(
        make(),
        http=BoundedProtocol,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=STOP_S,
        h11_max_incomplete_event_size=LONGEST_HEAD,
        ws_max_size=LONGEST_MESSAGE,
        ws_max_queue=8,
        ws_per_message_deflate=False,
        ssl_certfile=None if settings.cert_file is None else str(settings.cert_file),
        ssl_keyfile=None if settings.key_file is None else str(settings.key_file),
    )
    server = _Server(config, ready)
    with contextlib.closing(listening):
        await server.serve(sockets=[listening])


class _Server(uvicorn.Server):
    """uvicorn's server, which tells when it listens."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and tell."""
        await super().startup(sockets)
        if self.started:
            self._ready()
