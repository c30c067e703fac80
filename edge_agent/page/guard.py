"""Checks of every request before any of it is used, and the headers of every answer.

- `Host` must be a name of this page: a name that another site makes point here (DNS rebinding) gets 421.
- `Origin`, where a browser sends it, must be this page, and `Sec-Fetch-Site` must not be another site: 403. A
  WebSocket must have it. SameSite does not tell the ports of a host apart; the origin does.
- The content security policy admits nothing but the page's own files.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response

from edge_agent.page.errors import Refused

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self';"
    " manifest-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), usb=(), payment=()",
}
_OWN_SITES = ("same-origin", "none")
LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True, slots=True)
class Places:
    """The names and the port under which browsers reach the page.

    `ports` are those that may stand in `Host`: that of the page, and any where it is reached through
    `ssh -L`, which only loopback allows.
    """

    names: frozenset[str]
    scheme: str

    @staticmethod
    def of(names: Iterable[str], *, tls: bool) -> Places:
        """Return the places of host names and addresses."""
        bracketed = (f"[{name}]" if ":" in name and not name.startswith("[") else name for name in names)
        return Places(frozenset(name.lower() for name in bracketed), "https" if tls else "http")

    def problem(self, headers: Headers, *, websocket: bool = False) -> Refused | None:
        """Return why a request is refused; None: it is of this page, or of no browser."""
        hosts = headers.getlist("host")
        if len(hosts) != 1 or _name_of(hosts[0]) not in self.names:
            return Refused(421, "wrong-host", "this page has another name; see page.hosts in the settings")
        origin = headers.get("origin")
        own = f"{self.scheme}://{hosts[0].lower()}"
        if (origin is None and websocket) or (origin is not None and origin.lower() != own):
            return Refused(403, "foreign", "the request comes from another site")
        if headers.get("sec-fetch-site", "none") not in _OWN_SITES:
            return Refused(403, "foreign", "the request comes from another site")
        return None


def _name_of(host: str) -> str:
    """Return the name in a `Host` header, without its port; "" where it is malformed."""
    try:
        split = urlsplit(f"//{host}")
        port = split.port
    except ValueError:
        return ""
    if split.netloc != host or "@" in host or split.path or split.query or not split.hostname:
        return ""
    name = f"[{split.hostname}]" if ":" in split.hostname else split.hostname
    return name if host.lower() in (name, f"{name}:{port}") else ""


class Guard:
    """Middleware with these checks."""

    def __init__(self, app: ASGIApp, places: Places) -> None:
        self._app = app
        self._places = places

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        websocket = scope["type"] == "websocket"
        problem = self._problem(scope, websocket=websocket)
        if problem is not None and websocket:
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                if self._places.scheme == "https":
                    headers["strict-transport-security"] = "max-age=31536000"
            await send(message)

        if problem is not None:
            response = Response(f"{problem.text}\n", problem.status, media_type="text/plain")
            await response(scope, receive, guarded)
            return
        await self._app(scope, receive, guarded)

    def _problem(self, scope: Scope, *, websocket: bool) -> Refused | None:
        headers = Headers(scope=scope)
        found = self._places.problem(headers, websocket=websocket)
        navigates = headers.get("sec-fetch-mode") == "navigate" and scope.get("method") == "GET"
        if found is not None and found.status == 403 and navigates and not scope["path"].startswith("/api/"):
            return None  # somebody follows a link to the page: it shows nothing without the session
        return found
