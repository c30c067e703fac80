"""Who asks a running agent how it is: one JSON document from a unix socket in the state folder, mode 0600.

Connect, read to the end, done: nothing is sent, nothing can be ordered. Whoever may connect is decided by the
permissions of the socket: the user that the agent runs as, and root.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edge_agent.core.errors import InputError, StorageError

__all__ = ["SOCKET_NAME", "Answering", "ask"]

SOCKET_NAME = "status.sock"

_TIMEOUT_S = 5.0
_LARGEST = 4 << 20


class Answering:
    """Answers while it is entered.

    Args:
        path: of the socket; its folder exists.
        document: makes the answer, as JSON values; called on a thread of its own, and must not wait.
    """

    def __init__(self, path: Path, document: Callable[[], Mapping[str, Any]]) -> None:
        self._path = path
        self._document = document
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._over = threading.Event()

    def __enter__(self) -> Answering:
        """Begin to listen.

        Raises:
            StorageError: another agent listens there, or the socket cannot be made.
        """
        if (there := _who_is_there(self._path)) is not None:
            raise StorageError(
                f"{self._path.parent} is in use by another edge-agent ({there}); "
                "stop that one, or give this one its own state folder"
            )
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._path.unlink(missing_ok=True)  # of an agent that was killed
            os.fchmod(listening.fileno(), 0o600)  # what `bind` makes takes its mode from here
            with _short(self._path) as name:
                listening.bind(name)
            listening.listen(8)
        except OSError as problem:
            listening.close()
            raise StorageError(f"{self._path} cannot be made: {problem.strerror}") from problem
        self._socket = listening
        self._thread = threading.Thread(target=self._answer, args=(listening,), name="status", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._socket is not None and self._thread is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
            self._over.set()
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes `accept`
            self._thread.join(_TIMEOUT_S)
            self._socket.close()

    def _answer(self, listening: socket.socket) -> None:
        while True:
            try:
                asking, _ = listening.accept()
            except OSError:
                if self._over.wait(1.0):  # else too many files are open, or whoever asked has gone again
                    return
                continue
            with asking, contextlib.suppress(OSError):  # whoever asked has gone
                asking.settimeout(_TIMEOUT_S)
                asking.sendall(json.dumps(self._document(), allow_nan=False).encode())


def ask(path: Path) -> dict[str, Any]:
    """What the agent behind a socket says of itself.

    Raises:
        InputError: no agent runs there, it may not be asked by this user, or it does not answer.
    """
    try:
        answer = _read(path)
    except (FileNotFoundError, ConnectionRefusedError):
        raise InputError(
            f"no agent runs on {path.parent}; name its folder with --state or its settings with --config"
        ) from None
    except PermissionError:
        raise InputError(
            f"{path} may be read by the user that the agent runs as, and root: "
            "run this with sudo, or as that user (sudo -u USER)"
        ) from None
    except OSError as problem:  # a timeout is one, too
        raise InputError(f"the agent on {path.parent} does not answer: {problem}") from None
    try:
        found = json.loads(answer)
    except ValueError:
        raise InputError(f"{path} answered with something that is no JSON") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} answered with something that is no status")
    return found


def _read(path: Path) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as asking:
        asking.settimeout(_TIMEOUT_S)
        with _short(path) as name:
            asking.connect(name)
        answer = b""
        while (part := asking.recv(1 << 16)) and len(answer) < _LARGEST:
            answer += part
        return answer


def _who_is_there(path: Path) -> str | None:
    """The agent that listens already; None without one. One that hangs is there, too."""
    try:
        return f"process {json.loads(_read(path))['pid']}"
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return "it does not answer"


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """A name for the socket that fits into the 108 bytes of `sockaddr_un`, however deep its folder is."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
