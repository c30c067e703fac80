"""What the operator's page may ask of a running agent, over a socket in the state folder (mode 0600).

The page is a process of its own, so that it never costs the agent a frame. It sends messages of
`core.local_socket` and gets one for each: `{"op": ...}` is answered with `{"ok": true, ...}`, or with
`{"ok": false, "code": ..., "error": ...}`.

One thread serves each connection. Its priority is that of the others: a thread of a lower one that holds the
interpreter's lock would delay them while it waits for the processor.
"""

from __future__ import annotations

import base64
import contextlib
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import structlog

from edge_agent.core.errors import EdgeAgentError, InputError, StorageError
from edge_agent.core.local_socket import PAGE_SOCKET, BadMessage, listen_privately, pack, receive
from edge_agent.core.redaction import redact
from edge_agent.core.text import visible
from edge_agent.core.timing import rfc3339
from edge_agent.deliver.commands import read_command

if TYPE_CHECKING:
    from edge_agent.agent.command_handlers import CommandHandlers
    from edge_agent.agent.live import LiveView
    from edge_agent.core.clock import Clock
    from edge_agent.deliver.recent import RecentEvents

_log = structlog.get_logger(__name__)

MAX_CONNECTIONS = 32
"""Open at once; a further one is closed."""
SEND_S = 5.0
"""Time in which the page must take an answer."""
LONGEST_WAIT_S = 2.0
"""Of a request for what is not there yet."""
POLL_S = 0.1
"""Interval at which a request that waits looks for new events."""
MOST_EVENTS = 200
"""In one answer."""

Answer: TypeAlias = tuple[Mapping[str, Any], bytes]
Operation: TypeAlias = Callable[[Mapping[str, Any], bytes], Answer]
"""Answers one request, given its values and the bytes that came with it; EdgeAgentError: it cannot."""


@dataclass(frozen=True, slots=True)
class PageOperations:
    """The operations by name; `table` lists them."""

    session: str
    live: LiveView
    recent: RecentEvents
    handlers: CommandHandlers
    clock: Clock
    info: Callable[[], Mapping[str, Any]]
    """Returns the data of the `info` event as JSON values."""

    def table(self) -> dict[str, Operation]:
        """Return the operations."""
        return {"hello": self.hello, "events": self.events, "picture": self.picture, "command": self.command}

    def hello(self, _values: Mapping[str, Any], _bytes: bytes) -> Answer:
        """Return which run this is, and its cameras, network and versions."""
        return {"session": self.session, "info": dict(self.info()), "last": self.recent.last}, b""

    def events(self, values: Mapping[str, Any], _bytes: bytes) -> Answer:
        """Return the events after a number as JSON texts, waiting for the first one."""
        after, wait_s = _number(values, "after"), min(_number(values, "wait_s"), LONGEST_WAIT_S)
        deadline = time.monotonic() + wait_s
        while True:
            last = self.recent.last
            if after > last:
                after = 0  # the numbers began again
            base, found = self.recent.after(int(after), MOST_EVENTS)
            if found or time.monotonic() >= deadline:
                break
            time.sleep(POLL_S)
        texts = [message.decode("utf-8", "replace") for _, message in found]
        return {"session": self.session, "base": base, "last": last, "events": texts}, b""

    def picture(self, values: Mapping[str, Any], _bytes: bytes) -> Answer:
        """Return the newest picture of a camera, and keep the camera watched."""
        wait_s = min(_number(values, "wait_s"), LONGEST_WAIT_S)
        number, found = self.live.picture(str(values.get("camera")), int(_number(values, "after")), wait_s)
        if found is None:
            return {"session": self.session, "number": number, "picture": None}, b""
        return {"session": self.session, "number": number, "picture": found.values}, found.jpeg

    def command(self, values: Mapping[str, Any], attached: bytes) -> Answer:
        """Run a command as one that came over MQTT, in the name of a user of the page."""
        verb, user = str(values.get("verb")), visible(str(values.get("by")))[:64]
        fields = values.get("fields")
        if not isinstance(fields, dict):
            raise InputError("a command needs its fields")
        stamped = fields | {"transaction": str(uuid.uuid4()), "issued": rfc3339(self.clock.label())}
        if attached:
            stamped["crop"] = base64.b64encode(attached).decode()
        command = read_command(verb, stamped)
        table = replace(self.handlers, requester=f"page: {user}").table()
        found = table[verb](command)
        _log.info("command done", verb=verb, by="page", user=user)
        return {"data": None if found is None else dict(found)}, b""


def _number(values: Mapping[str, Any], key: str) -> float:
    value = values.get(key, 0)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1 << 53:
        raise InputError(f"{key} must be a number of 0 or more")
    return value


class PageService:
    """Serves the operations while it is entered. StorageError: the socket cannot be created."""

    def __init__(self, state: Path, operations: Mapping[str, Operation]) -> None:
        self._path = state / PAGE_SOCKET
        self._operations = operations
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listening: socket.socket | None = None

    def __enter__(self) -> PageService:
        try:
            self._listening = listen_privately(self._path)
            self._listening.listen(MAX_CONNECTIONS)
        except OSError as problem:
            raise StorageError(f"{self._path} cannot be created: {problem.strerror}") from problem
        threading.Thread(target=self._accept, name="page", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
        with self._lock:
            sockets = [*self._connections, self._listening]
            self._listening = None
        for one in sockets:
            if one is not None:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        listening = self._listening
        assert listening is not None
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                if self._listening is None:
                    break
                time.sleep(POLL_S)  # too many open files
                continue
            with self._lock:
                admitted = len(self._connections) < MAX_CONNECTIONS and self._listening is not None
                if admitted:
                    self._connections.add(connection)
            if not admitted:
                connection.close()
                continue
            threading.Thread(target=self._serve, args=(connection,), name="page", daemon=True).start()
        listening.close()

    def _serve(self, connection: socket.socket) -> None:
        try:
            while (message := receive(connection)) is not None:
                answer = self._answer(*message)
                connection.settimeout(SEND_S)
                connection.sendall(answer)
                connection.settimeout(None)
        except (OSError, BadMessage):
            pass  # the page ended, or does not take its answer
        finally:
            with self._lock:
                self._connections.discard(connection)
            connection.close()

    def _answer(self, values: Mapping[str, Any], attached: bytes) -> bytes:
        op = str(values.get("op"))
        try:
            found, data = self._operations.get(op, _unknown)(values, attached)
            return pack({"ok": True, **found}, data)
        except EdgeAgentError as problem:
            return pack({"ok": False, "code": "failed", "error": redact(str(problem))})
        except Exception as problem:  # noqa: BLE001  a bug in one operation must not end the others
            _log.error("page request failed", op=op[:32], exc_info=problem)
            return pack({"ok": False, "code": "internal", "error": "internal error; see the agent's log"})


def _unknown(_values: Mapping[str, Any], _bytes: bytes) -> Answer:
    raise InputError("this agent has no such operation: it is of another version than the page")
