"""Notify systemd (sd_notify(3)): ready, alive, reloading, stopping, more start time; and decide when ready.

Notifications are datagrams to the socket `$NOTIFY_SOCKET`. Without that variable they do nothing, so an agent
on a terminal runs the same code. Errors are logged and not raised.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from edge_agent.core.config import SupervisionSettings
from edge_agent.core.heartbeat import HeartbeatState
from edge_agent.core.structures import SourceState
from edge_agent.core.text import visible

_log = structlog.get_logger(__name__)

StartProgress = Callable[[str], None]
"""Called repeatedly by a long task of the start, with its progress as one line of text."""

EXTEND_EVERY_S = 10.0  # interval of requests for more time during a long start
EXTEND_BY_S = 60.0  # time of each request; a start that makes no more requests is killed after it
_SEND_TIMEOUT_S = 1.0
_LONGEST_STATUS = 300  # characters; `systemctl status` shows one line


class Notifier:
    """Notifies the service manager, from any thread.

    Its socket has the path `address`, or an abstract one that begins with `@`; None: no service manager. The
    service is killed after `watchdog_s` without a signal; None: no watchdog.
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
        """Make a notifier by `$NOTIFY_SOCKET`, `$WATCHDOG_USEC` and `$WATCHDOG_PID`."""
        known = os.environ if environment is None else environment
        address = known.get("NOTIFY_SOCKET") or None
        if address is not None and address[0] not in "/@":
            _log.warning("notify_socket_not_usable", reason="neither a path nor an abstract name")
            address = None
        return cls(address, _watchdog_s(known) if address else None)

    @property
    def listening(self) -> bool:
        """Whether there is a service manager."""
        return self._address is not None

    def ready(self, status: str = "") -> None:
        """Report the end of the start or of a reload."""
        self._send("READY=1", _status(status))

    def status(self, text: str) -> None:
        """Set the status line of `systemctl status`."""
        self._send(_status(text))

    def alive(self) -> None:
        """Feed the watchdog."""
        self._send("WATCHDOG=1")

    def reloading(self) -> None:
        """Report the start of a reload; `ready` ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str = "") -> None:
        """Report the start of a clean stop."""
        self._send("STOPPING=1", _status(status))

    def extend(self, seconds: float, status: str = "") -> None:
        """Request this much more time, from now on, for the present start or stop."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}", _status(status))

    def progress(self, text: str) -> None:
        """Set the status line and request more time, at most once a second: a `StartProgress`."""
        now = time.monotonic()
        if now - self._progress_at >= 1.0:
            self._progress_at = now
            self.extend(EXTEND_BY_S, text)

    @contextlib.contextmanager
    def taking_long(self, text: str, *, at_most_s: float) -> Iterator[None]:
        """Request more time while the block runs, for a task (`text`) without progress.

        No requests after `at_most_s`, so the service manager kills a start that hangs.
        """
        if self._address is None:
            yield
            return
        done = threading.Event()

        def request_time() -> None:
            deadline = time.monotonic() + at_most_s
            while time.monotonic() < deadline:
                self.extend(EXTEND_BY_S, text)
                if done.wait(EXTEND_EVERY_S):
                    return

        thread = threading.Thread(target=request_time, name="start-time", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _send(self, *lines: str) -> None:
        if self._address is None:
            return
        message = "\n".join(line for line in lines if line).encode()
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
        """Close the socket."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None


def _status(text: str) -> str:
    line = visible(" ".join(text.split()), _LONGEST_STATUS)
    return f"STATUS={line}" if line else ""


def _watchdog_s(known: Mapping[str, str]) -> float | None:
    """Timeout of the watchdog in seconds; None where it is off or for another process."""
    try:
        microseconds = int(known.get("WATCHDOG_USEC", "0"))
        meant_for = int(known.get("WATCHDOG_PID", str(os.getpid())))
    except ValueError:
        return None
    return microseconds / 1e6 if microseconds > 0 and meant_for == os.getpid() else None


class Reader(Protocol):
    """Reader of one source; see `edge_agent.source.reader.FrameReader`. `state` is the last reported one."""

    @property
    def camera(self) -> str: ...  # noqa: D102
    @property
    def state(self) -> SourceState | None: ...  # noqa: D102
    @property
    def heartbeat(self) -> HeartbeatState: ...  # noqa: D102


@dataclass(slots=True)
class Readiness:
    """The agent is ready when a source is up, or `ready_after_s` after it opened.

    `note` is called with the reason for a start without source, and with "" when a source is up.
    """

    settings: Callable[[], SupervisionSettings]
    notifier: Notifier
    note: Callable[[str], None]
    ready: bool = False
    _readers: Sequence[Reader] = ()
    _opened_at: float | None = None
    _without_source: bool = False

    def open(self, readers: Sequence[Reader]) -> None:
        """Start to wait for the sources."""
        self._readers = readers
        self._opened_at = time.monotonic()

    @property
    def open_s(self) -> float | None:
        """Seconds since `open`; None before."""
        return None if self._opened_at is None else time.monotonic() - self._opened_at

    def check(self) -> None:
        """Report ready if it is time; must not block."""
        waited = self.open_s
        if waited is None or (self.ready and not self._without_source):
            return
        up = [one.camera for one in self._readers if one.state in (SourceState.ONLINE, SourceState.ENDED)]
        if up and self.ready:
            self._without_source = False
            self.note("")
        elif up:
            self._become_ready(f"source {up[0]} is up")
        elif not self.ready and waited >= self.settings().ready_after_s:
            reason = f"no source is up after {waited:.0f} s"
            _log.warning("ready_without_a_source", reason=reason)
            self._without_source = True
            self._become_ready(reason)
            self.note(reason)

    def finish(self) -> None:
        """Report ready before the stop of a run that never was: it did not fail."""
        if not self.ready:
            self.ready = True
            self.notifier.ready()

    def _become_ready(self, reason: str) -> None:
        self.ready = True
        self.notifier.ready(reason)
        _log.info("ready", reason=reason)
