"""Status of a running agent: one JSON document from a unix socket in the state folder, mode 0600.

A client connects and reads to the end; it sends nothing. The permissions of the socket admit the user of the
agent, and root. `core.serving` bounds the connections.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edge_agent.core.errors import InputError, StorageError
from edge_agent.core.local_socket import listen_privately, short_name
from edge_agent.core.serving import BoundedServer

SOCKET_NAME = "status.sock"

_TIMEOUT_S = 5.0
_LARGEST = 4 << 20


class StatusServer:
    """Serves the status while it is entered.

    `document` returns the status as JSON values; it is called on the server thread, and must not block.
    """

    def __init__(self, path: Path, document: Callable[[], Mapping[str, Any]]) -> None:
        self._path = path
        self._document = document
        self._server: BoundedServer | None = None

    def __enter__(self) -> StatusServer:
        """Start to listen; StorageError: another agent listens there, or the socket cannot be created."""
        if (owner := _present_owner(self._path)) is not None:
            raise StorageError(
                f"{self._path.parent} is in use by another edge-agent ({owner}); "
                "stop it, or give this agent its own state folder"
            )
        try:
            listening = listen_privately(self._path)
        except OSError as problem:
            raise StorageError(f"{self._path} cannot be created: {problem.strerror}") from problem
        self._server = BoundedServer(listening, self._answer, name="status", unasked=True).__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
            self._server.__exit__()

    def _answer(self, _request: bytes) -> bytes:
        return json.dumps(self._document(), allow_nan=False).encode()


def read_status(path: Path) -> dict[str, Any]:
    """Return the status of the agent behind a socket.

    InputError: no agent runs there, this user has no permission, or it does not answer.
    """
    try:
        found = json.loads(_read(path))
    except (FileNotFoundError, ConnectionRefusedError):
        raise InputError(
            f"no agent runs on {path.parent}; name its folder with --state or its settings with --config"
        ) from None
    except PermissionError:
        raise InputError(
            f"{path} may be read by the user of the agent and by root: "
            "run the command with sudo, or as that user (sudo -u USER)"
        ) from None
    except OSError as problem:  # including timeouts
        raise InputError(f"the agent on {path.parent} does not answer: {problem}") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path} answered without valid JSON") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} answered without a status")
    return found


def _read(path: Path) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as client:
        client.settimeout(_TIMEOUT_S)
        with short_name(path) as name:
            _connect(client, name)
        answer = b""
        while (part := client.recv(1 << 16)) and len(answer) < _LARGEST:
            answer += part
        return answer


def _connect(client: socket.socket, name: str) -> None:
    """Connect; where many do so at this moment, try again for a while."""
    deadline = time.monotonic() + _TIMEOUT_S
    while True:
        try:
            return client.connect(name)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _present_owner(path: Path) -> str | None:
    """The agent that listens already, even one that hangs; None without one."""
    try:
        return f"process {json.loads(_read(path))['pid']}"
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return "it does not answer"
