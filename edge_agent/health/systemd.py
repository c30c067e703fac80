"""What a service tells systemd (sd_notify(3)): ready, alive, reloading, stopping, a start that takes long.

One datagram a word, to the socket that `$NOTIFY_SOCKET` names. Without that variable everything here does
nothing, so an agent on a terminal runs the same code. Nothing raises: a service manager that does not listen
is no reason to stop.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import structlog

__all__ = ["Notifier", "StartProgress"]

_log = structlog.get_logger(__name__)

StartProgress = Callable[[str], None]
"""Called now and then by whatever takes long at the start, with a line for people on how far it is."""

EXTEND_EVERY_S = 10.0
"""How often a long start asks for more time."""

EXTEND_BY_S = 60.0
"""How much it asks for each time: a start that hangs without asking is ended after so long."""

_SEND_TIMEOUT_S = 1.0
_LONGEST_STATUS = 300  # characters; `systemctl status` shows one line


class Notifier:
    """Speaks to the service manager, from any thread.

    Args:
        address: path of the socket; one that begins with `@` is abstract. None: nobody listens.
        watchdog_s: the service is killed when it is silent for so long; None: it is not watched.
    """

    def __init__(self, address: str | None = None, watchdog_s: float | None = None) -> None:
        self.watchdog_s = watchdog_s
        self._address = address
        self._socket: socket.socket | None = None
        self._failed = False
        self._lock = threading.Lock()
        self._progress_at = 0.0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Notifier:
        """As `$NOTIFY_SOCKET`, `$WATCHDOG_USEC` and `$WATCHDOG_PID` say."""
        known = os.environ if environment is None else environment
        address = known.get("NOTIFY_SOCKET") or None
        if address is not None and address[0] not in "/@":
            _log.warning("notify_socket_not_usable", reason="neither a path nor an abstract name")
            address = None
        return cls(address, _watchdog_s(known) if address else None)

    @property
    def listening(self) -> bool:
        """Whether there is somebody to tell."""
        return self._address is not None

    def ready(self, status: str = "") -> None:
        """The start, or a reload, is over."""
        self._send("READY=1", _status(status))

    def status(self, text: str) -> None:
        """A line for `systemctl status`."""
        self._send(_status(text))

    def alive(self) -> None:
        """Feed the watchdog."""
        self._send("WATCHDOG=1")

    def reloading(self) -> None:
        """Settings are read again; `ready` ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str = "") -> None:
        """A clean stop has begun."""
        self._send("STOPPING=1", _status(status))

    def extend(self, seconds: float, status: str = "") -> None:
        """Ask for this much more time, from now on, for the start or the stop that is under way."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}", _status(status))

    def progress(self, text: str) -> None:
        """A `StartProgress`: shows the line, and asks for more time; at most once a second."""
        now = time.monotonic()
        if now - self._progress_at >= 1.0:
            self._progress_at = now
            self.extend(EXTEND_BY_S, text)

    @contextlib.contextmanager
    def taking_long(self, text: str, *, at_most_s: float) -> Iterator[None]:
        """Ask for more time while the block lasts, for what cannot tell how far it is.

        Args:
            text: what takes long.
            at_most_s: after so long nothing more is asked for, and the service manager ends what hangs.
        """
        if not self.listening:
            yield
            return
        over = threading.Event()
        thread = threading.Thread(
            target=self._ask, args=(over, text, at_most_s), name="start-time", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _ask(self, over: threading.Event, text: str, at_most_s: float) -> None:
        deadline = time.monotonic() + at_most_s
        while time.monotonic() < deadline:
            self.extend(EXTEND_BY_S, text)
            if over.wait(EXTEND_EVERY_S):
                return

    def _send(self, *words: str) -> None:
        if self._address is None:
            return
        message = "\n".join(word for word in words if word).encode()
        name = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        try:
            with self._lock:
                if self._socket is None:
                    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
                    self._socket = socket.socket(socket.AF_UNIX, kind)
                    self._socket.settimeout(_SEND_TIMEOUT_S)
                self._socket.sendto(message, name)
            self._failed = False
        except OSError as problem:
            if not self._failed:
                _log.warning("service_manager_not_reached", error=str(problem))
            self._failed = True

    def close(self) -> None:
        """Give the socket back."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None


def _status(text: str) -> str:
    line = " ".join(text.split())[:_LONGEST_STATUS]
    return f"STATUS={line}" if line else ""


def _watchdog_s(known: Mapping[str, str]) -> float | None:
    """Seconds of the watchdog, None where it is off or meant for another process."""
    try:
        microseconds = int(known.get("WATCHDOG_USEC", "0"))
        meant_for = int(known.get("WATCHDOG_PID", str(os.getpid())))
    except ValueError:
        return None
    return microseconds / 1e6 if microseconds > 0 and meant_for == os.getpid() else None
