"""Sessions of logged-in users, and the limit of attempts to log in."""

from __future__ import annotations

import hashlib
import ipaddress
import secrets
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from edge_agent.page.errors import Refused
from edge_agent.page.users import User

MAX_SESSIONS = 100
"""The oldest makes room."""
MAX_KEYS = 1000
"""Addresses and names whose failures are counted; the longest unused is dropped."""
WINDOW_S = 300.0
FAILURES_OF_ADDRESS, FAILURES_OF_NAME = 5, 20
"""Wrong passwords within `WINDOW_S` after which further attempts are refused until the first is older. Those
of a name are counted over all addresses, so that many addresses cannot share the guessing."""


@dataclass(slots=True)
class Session:
    """One login: `csrf` is the value that a request which changes something must repeat."""

    user: User
    ends: float
    """`time.monotonic`"""
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    linked: bool = False
    """Whether it began with a link: then no entry of the users' file stands behind it."""


class Sessions:
    """Open sessions by the digest of their token; the token itself is kept in the browser only."""

    def __init__(self, hours: float) -> None:
        self._length_s = hours * 3600
        self._sessions: OrderedDict[bytes, Session] = OrderedDict()

    def begin(self, user: User, *, linked: bool) -> tuple[str, Session]:
        """Begin a session; return its token and it."""
        now = time.monotonic()
        for key in [key for key, one in self._sessions.items() if one.ends <= now]:
            del self._sessions[key]
        while len(self._sessions) >= MAX_SESSIONS:
            self._sessions.popitem(last=False)
        token = secrets.token_urlsafe(32)
        session = Session(user, now + self._length_s, linked=linked)
        self._sessions[_digest(token)] = session
        return token, session

    def get(self, token: str | None) -> Session | None:
        """Return the session of a token; None: it is unknown or over."""
        session = None if not token or len(token) > 200 else self._sessions.get(_digest(token))
        return session if session is not None and session.ends > time.monotonic() else None

    def end(self, token: str | None) -> None:
        """End a session, if there is one."""
        if token:
            self._sessions.pop(_digest(token), None)

    def end_all(self, user: User) -> None:
        """End all sessions of a user."""
        for key in [key for key, one in self._sessions.items() if one.user == user]:
            del self._sessions[key]


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _place(address: str) -> str:
    """Return what is counted as one address: of IPv6 the /64 network, all of which one computer may use."""
    try:
        found = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(found.ipv4_mapped or ipaddress.IPv6Network((int(found), 64), strict=False))


class Attempts:
    """Counts attempts to log in that failed, by address and by name."""

    def __init__(self) -> None:
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def begin(self, address: str, name: str) -> None:
        """Count an attempt; Refused: there were too many. `succeeded` takes it back.

        Counted before the password is checked, so that attempts at the same time do not pass together.
        """
        now = time.monotonic()
        keys = (f"address {_place(address)}", FAILURES_OF_ADDRESS), (f"name {name}", FAILURES_OF_NAME)
        for key, most in keys:
            times = self._failures.get(key, deque())
            while times and times[0] <= now - WINDOW_S:
                times.popleft()
            if len(times) >= most:
                retry_s = int(times[0] + WINDOW_S - now) + 1
                raise Refused(429, "too-many-attempts", "too many wrong passwords", retry_s=retry_s)
        for key, most in keys:
            self._failures.setdefault(key, deque(maxlen=most)).append(now)
            self._failures.move_to_end(key)
        while len(self._failures) > MAX_KEYS:
            self._failures.popitem(last=False)

    def succeeded(self, address: str, name: str) -> None:
        """Forget the failures of an address; those of the name stay, but for this attempt."""
        self._failures.pop(f"address {_place(address)}", None)
        if times := self._failures.get(f"name {name}"):
            times.pop()
