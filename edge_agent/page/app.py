"""The application: the page's state, its routes, and its tasks."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import mimetypes
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute

from edge_agent.page.api import Endpoint, refusal, route
from edge_agent.page.errors import Refused
from edge_agent.page.events import EventLog
from edge_agent.page.guard import LOCAL_NAMES, Guard, Places
from edge_agent.page.history import History
from edge_agent.page.link import AgentLink
from edge_agent.page.live import Cameras, websocket
from edge_agent.page.sessions import Attempts, Session, Sessions
from edge_agent.page.users import Users
from edge_agent.page.views import ENDPOINTS
from edge_agent.page.views.health import Doctor

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection, Request

    from edge_agent.core.config import StorageSettings
    from edge_agent.core.page_settings import PageSettings

_TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}


class Checking:
    """Lets one password be checked at a time; `waiting` counts those that wait or are checked."""

    def __init__(self) -> None:
        self.waiting = 0
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> None:
        self.waiting += 1
        try:
            await self._lock.acquire()
        except BaseException:
            self.waiting -= 1
            raise

    async def __aexit__(self, *_: object) -> None:
        self.waiting -= 1
        self._lock.release()


@dataclass(slots=True)
class Page:
    """Everything that the endpoints use. Make it inside the event loop."""

    settings: PageSettings
    link: AgentLink
    users: Users
    config: Path | None
    """The settings file, for `doctor`."""
    storage: StorageSettings
    """For the key of recordings."""
    is_service: bool = False
    sessions: Sessions = field(init=False)
    attempts: Attempts = field(default_factory=Attempts)
    checking: Checking = field(default_factory=Checking)
    previews: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by the one estimate of a threshold that runs."""
    events: EventLog = field(init=False)
    cameras: Cameras = field(init=False)
    history: History = field(init=False)
    doctor: Doctor = field(init=False)

    def __post_init__(self) -> None:
        self.sessions = Sessions(self.settings.session_hours)
        self.events = EventLog(self.link)
        self.cameras = Cameras(self.link)
        self.history = History(self.link.state)
        self.doctor = Doctor(self.config)

    @property
    def tls(self) -> bool:
        """Whether the page is served over TLS."""
        return self.settings.cert_file is not None

    @property
    def cookie(self) -> str:
        """Name of the cookie. Cookies do not tell the ports of a host apart, so it has the port."""
        return "__Host-edge-agent-page" if self.tls else f"edge-agent-page-{self.settings.port}"

    def token(self, connection: HTTPConnection) -> str | None:
        """Return the session's token of a request."""
        return connection.cookies.get(self.cookie)

    def session(self, request: Request) -> Session | None:
        """Return the session of a request."""
        return self.session_of(self.token(request))

    def session_of(self, token: str | None) -> Session | None:
        """Return the session of a token; it ends when its user's password or role changes."""
        session = self.sessions.get(token)
        if session is not None and not session.linked and not self.users.has(session.user):
            self.sessions.end(token)
            return None
        return session

    def knows_camera(self, camera: str) -> bool:
        """Whether the agent has a camera of this id."""
        return any(one["camera"] == camera for one in self.events.info.get("cameras", ()))


def make_app(page: Page, endpoints: Iterable[Endpoint] = ENDPOINTS) -> Starlette:
    """Return the application of a page."""

    @contextlib.asynccontextmanager
    async def tasks(_: Starlette) -> AsyncIterator[None]:
        running = [asyncio.create_task(one) for one in (page.events.follow(), page.history.follow())]
        try:
            yield
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            page.cameras.rest()

    places = Places.of((*LOCAL_NAMES, page.settings.address, *page.settings.hosts), tls=page.tls)
    routes: list[BaseRoute] = [*static_routes(), *(route(page, one) for one in endpoints)]
    routes.append(WebSocketRoute("/ws", websocket(page)))
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, places=places)],
        exception_handlers={404: _missing, 405: _missing},
        lifespan=tasks,
    )


async def _missing(_request: Request, _problem: Exception) -> Response:
    return refusal(Refused(404, "no-page", "there is nothing here"))


def static_routes() -> list[BaseRoute]:
    """Return a route for each file of the page. They are read once: no request names a path."""
    root = resources.files("edge_agent.page") / "static"
    files = {f"/{one.name}": one for one in root.iterdir() if one.is_file()}
    files |= {f"/views/{one.name}": one for one in (root / "views").iterdir()}
    found: list[BaseRoute] = []
    for path, file in files.items():
        kind = _TYPES.get(Path(path).suffix) or mimetypes.guess_type(path)[0] or "application/octet-stream"
        if not path.endswith((".py", ".pyc")):
            found.append(_static("/" if path == "/index.html" else path, file.read_bytes(), kind))
    return found


def _static(path: str, data: bytes, kind: str) -> Route:
    tag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
    headers = {"etag": tag, "cache-control": "no-cache"}

    async def serve(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(data, media_type=kind, headers=headers)

    return Route(path, serve, methods=["GET"])
