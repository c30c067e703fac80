"""A server of short answers on one thread, with bounds on connections, time and size.

An answer may be a `Stream`, which goes on until the client disconnects; at most `MAX_STREAMS` are open.

No client can block the others: a connection lasts at most `TIME_S`, of more than `MAX_CONNECTIONS` the oldest
is closed, and a request of more than `MAX_REQUEST_BYTES` ends its connection. The connection of a client that
does not take a part of a stream within `TIME_S` is closed. So idle or slow clients do not delay others, and
cost at most `MAX_CONNECTIONS` + `MAX_STREAMS` open files, and no thread.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

log = structlog.get_logger(__name__)

MAX_CONNECTIONS = 32
"""Open at once; the oldest makes room for the next."""
TIME_S = 5.0
"""From the acceptance of a connection to the end of its answer."""
MAX_REQUEST_BYTES = 8 << 10
MAX_STREAMS = 8
"""Open at once, besides the connections; one more is refused."""
KEEPALIVE_S = 15.0
"""A stream without news gets an empty comment after this time, which shows whether the client is there."""
_COMMENT = b":\n\n"
_BACKLOG = 128
"""Connections that the kernel holds until they are accepted."""
_STOP_S = 2.0
_NO_FILE_WAIT_S = 0.1


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer without end: `head`, then what `more` returns, whenever it is not b"".

    `more` is called on the server's thread, after each part that was taken and after `BoundedServer.notify`.
    `refusal` is sent in its place when too many are open.
    """

    head: bytes
    more: Callable[[], bytes]
    refusal: bytes


@dataclass(slots=True)
class _Client:
    """One connection: the request so far, then what is left of the answer."""

    connection: socket.socket
    deadline: float
    request: bytes = b""
    answer: memoryview | None = None
    more: Callable[[], bytes] | None = None
    """The next part of a stream; None for other answers."""


class BoundedServer:
    """Serves a listening socket while it is entered, and closes it.

    `answer` returns the whole answer to a request, or None while the request is incomplete. It is called on
    the server's thread and must not block. With `unasked`, clients send nothing, and `answer` gets no bytes.
    """

    def __init__(
        self,
        listening: socket.socket,
        answer: Callable[[bytes], bytes | Stream | None],
        *,
        name: str,
        unasked: bool = False,
    ) -> None:
        self._listening = listening
        self._answer = answer
        self._name = name
        self._unasked = unasked
        self._clients: dict[int, _Client] = {}
        """By file descriptor, the oldest first."""
        self._streams: dict[int, _Client] = {}
        self._selector = selectors.DefaultSelector()
        self._wake, self._stop = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> BoundedServer:
        self._listening.setblocking(False)
        self._listening.listen(_BACKLOG)
        self._selector.register(self._listening, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._thread.start()
        return self

    def notify(self) -> None:
        """Let the streams look for news. For any thread; never blocks."""
        if self._streams:
            with contextlib.suppress(OSError):  # notified already, or the server ends
                self._stop.send(b"n", socket.MSG_DONTWAIT)

    def __exit__(self, *_: object) -> None:
        self._stop.send(b".")
        self._thread.join(_STOP_S)
        self._stop.close()

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        finally:
            for descriptor in [*self._clients, *self._streams]:
                self._close(descriptor)
            self._selector.close()
            self._listening.close()
            self._wake.close()

    def _turn(self) -> bool:
        """Do what is due; return False when the server stops."""
        oldest = next(iter(self._clients.values()), None)
        ends = [one.deadline for one in self._streams.values()] + (
            [] if oldest is None else [oldest.deadline]
        )
        left = max(0.0, min(ends) - time.monotonic()) if ends else None
        for key, _ in self._selector.select(left):
            if key.fileobj is self._wake:
                if b"." in self._wake.recv(4096):
                    return False
                self._feed_streams()
            elif key.fileobj is self._listening:
                self._accept()
            elif (client := self._clients.get(key.fd) or self._streams.get(key.fd)) is not None:
                self._advance(key.fd, client)
        now = time.monotonic()
        for descriptor, client in list(self._clients.items()):
            if client.deadline > now:
                break
            self._close(descriptor)
        for descriptor, client in list(self._streams.items()):
            if client.deadline <= now:
                if client.answer is None:
                    self._feed(descriptor, client, _COMMENT)
                else:
                    self._close(descriptor)  # it takes nothing
        return True

    def _feed_streams(self) -> None:
        for descriptor, client in list(self._streams.items()):
            if client.answer is None:
                self._feed(descriptor, client)

    def _feed(self, descriptor: int, client: _Client, otherwise: bytes = b"") -> None:
        """Begin the next part of a stream, or wait for it."""
        assert client.more is not None
        try:
            part = client.more() or otherwise
        except Exception:  # a bug, or a full disk, must not end the server
            log.exception("stream failed", server=self._name)
            self._close(descriptor)
            return
        client.answer = memoryview(part) if part else None
        client.deadline = time.monotonic() + (TIME_S if part else KEEPALIVE_S)
        self._selector.modify(client.connection, selectors.EVENT_WRITE if part else selectors.EVENT_READ)

    def _accept(self) -> None:
        """Accept all that wait, before any answer: what is closed at once costs none."""
        while True:
            try:
                connection, _ = self._listening.accept()
            except BlockingIOError:
                return
            except OSError:  # too many open files, or a client that disconnected
                if self._clients:
                    self._close(next(iter(self._clients)))
                else:
                    time.sleep(_NO_FILE_WAIT_S)
                return
            self._add(connection)

    def _add(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        while len(self._clients) >= MAX_CONNECTIONS:
            self._close(next(iter(self._clients)))
        self._clients[connection.fileno()] = _Client(connection, time.monotonic() + TIME_S)
        wanted = selectors.EVENT_WRITE if self._unasked else selectors.EVENT_READ
        self._selector.register(connection, wanted)

    def _advance(self, descriptor: int, client: _Client) -> None:
        """Read or write what is due."""
        if client.answer is not None:
            self._write(descriptor, client)
            return
        if not self._unasked:
            try:
                part = client.connection.recv(MAX_REQUEST_BYTES)
            except BlockingIOError:
                return
            except OSError:
                part = b""
            client.request += part
            if not part or len(client.request) > MAX_REQUEST_BYTES:
                self._close(descriptor)
                return
        if client.more is not None:
            client.request = b""  # of no interest
            return
        self._reply(descriptor, client)

    def _reply(self, descriptor: int, client: _Client) -> None:
        """Begin the answer if the request is complete."""
        try:
            answer = self._answer(client.request)
        except Exception:  # a bug must not end the server
            log.exception("request failed", server=self._name)
            self._close(descriptor)
            return
        if isinstance(answer, Stream) and len(self._streams) >= MAX_STREAMS:
            answer = answer.refusal
        if isinstance(answer, Stream):
            client.more = answer.more
            self._streams[descriptor] = self._clients.pop(descriptor)
            answer = answer.head
        if answer is not None:
            client.answer = memoryview(answer)
            self._selector.modify(client.connection, selectors.EVENT_WRITE)
            self._write(descriptor, client)

    def _write(self, descriptor: int, client: _Client) -> None:
        assert client.answer is not None
        try:
            sent = client.connection.send(client.answer)
        except BlockingIOError:
            return
        except OSError:  # the client disconnected
            self._close(descriptor)
            return
        client.answer = client.answer[sent:]
        if client.answer:
            return
        if client.more is None:
            self._close(descriptor)
        else:
            self._feed(descriptor, client)

    def _close(self, descriptor: int) -> None:
        client = self._clients.pop(descriptor, None) or self._streams.pop(descriptor)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(client.connection)
        client.connection.close()
