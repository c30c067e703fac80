"""Endpoints of the page: who may call them, what they get, and how errors are answered.

A view module has a tuple `ENDPOINTS`. A handler gets a `Call`, and returns JSON values or a response of
starlette; it raises `Refused`. Every path of an endpoint begins with `/api/`. Whatever changes something is a
POST; the session, the role and the CSRF value are checked here, before the handler.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edge_agent.core.errors import EdgeAgentError
from edge_agent.page.errors import Refused

if TYPE_CHECKING:
    from edge_agent.page.app import Page
    from edge_agent.page.sessions import Session

_log = structlog.get_logger(__name__)

LONGEST_JSON = 64 << 10
"""Bytes of the body of a request."""
BODY_S = 20.0
"""Time in which a body must arrive."""
CSRF_HEADER = "x-csrf"

Needed: TypeAlias = Literal["anyone", "viewer", "operator"]


@dataclass(frozen=True, slots=True)
class Call:
    """One request: `session` is that of the caller, None only where `anyone` may call."""

    page: Page
    request: Request
    session: Session | None

    @property
    def user(self) -> str:
        """Login name of the caller."""
        return "" if self.session is None else self.session.user.name

    def part(self, name: str) -> str:
        """Return a part of the path."""
        return str(self.request.path_params[name])

    def text(self, name: str, longest: int = 200) -> str:
        """Return a value of the query; "" without it. Refused: it is too long."""
        value = self.request.query_params.get(name, "")
        if len(value) > longest:
            raise Refused(400, "malformed", f"{name} is too long")
        return value

    def number(self, name: str, default: int, least: int, most: int) -> int:
        """Return a number of the query; Refused: it is none, or outside its limits."""
        value = self.text(name) or str(default)
        if not value.isascii() or not value.isdigit() or len(value) > 16 or not least <= int(value) <= most:
            raise Refused(400, "malformed", f"{name} must be a number from {least} to {most}")
        return int(value)

    async def body(self, most: int) -> bytes:
        """Return the body; Refused: it is larger, or arrives too slowly."""
        stated = self.request.headers.get("content-length", "0")
        if not stated.isdigit() or len(stated) > 16 or int(stated) > most:
            raise Refused(413, "too-large", f"at most {most} bytes")
        try:
            return await asyncio.wait_for(self._read(most), BODY_S)
        except asyncio.TimeoutError:
            raise Refused(408, "too-slow", "the request took too long") from None
        except ClientDisconnect:
            raise Refused(400, "malformed", "the request is incomplete") from None

    async def _read(self, most: int) -> bytes:
        parts = bytearray()
        async for part in self.request.stream():
            parts += part
            if len(parts) > most:
                raise Refused(413, "too-large", f"at most {most} bytes")
        return bytes(parts)

    async def json(self) -> dict[str, Any]:
        """Return the JSON object of the body. Refused: it is none.

        The content type is required: another site's form cannot send it. Values that are no JSON for others
        are refused here: NaN, infinite numbers, and halves of characters.
        """
        kind = self.request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refused(415, "malformed", "the content type must be application/json")
        try:
            found = json.loads(await self.body(LONGEST_JSON))
            json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, RecursionError):
            raise Refused(400, "malformed", "the body is not JSON") from None
        if not isinstance(found, dict):
            raise Refused(400, "malformed", "the body is not a JSON object")
        return found

    async def command(
        self, verb: str, fields: Mapping[str, object], *, attached: bytes = b""
    ) -> dict[str, Any]:
        """Run a command of the agent in the name of the caller; see `AgentLink.command`."""
        return await self.page.link.command(verb, fields, by=self.user, attached=attached)


Handler: TypeAlias = Callable[[Call], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One method of one path, and the role that may call it; an operator may call all."""

    method: Literal["GET", "POST"]
    path: str
    role: Needed
    handler: Handler


def route(page: Page, endpoint: Endpoint) -> Route:
    """Return the route of an endpoint."""

    async def serve(request: Request) -> Response:
        try:
            session = page.session(request)
            _admit(endpoint, request, session)
            found = await endpoint.handler(Call(page, request, session))
            return found if isinstance(found, Response) else answer(found)
        except Refused as problem:
            return refusal(problem)
        except EdgeAgentError as problem:
            return refusal(Refused(400, "failed", str(problem)))
        except Exception as problem:  # noqa: BLE001  a bug in one view must not end the others
            _log.error("request failed", path=endpoint.path, exc_info=problem)
            return refusal(Refused(500, "internal", "internal error; see the page's log"))

    return Route(endpoint.path, serve, methods=[endpoint.method])


def _admit(endpoint: Endpoint, request: Request, session: Session | None) -> None:
    """Refuse a caller without the session, role or CSRF value that the endpoint needs."""
    if endpoint.role == "anyone":
        return
    if session is None:
        raise Refused(401, "no-session", "log in first")
    if endpoint.method != "GET":
        given = request.headers.get(CSRF_HEADER, "")
        if not hmac.compare_digest(given.encode("latin-1", "replace"), session.csrf.encode()):
            raise Refused(403, "forged", "the request does not come from the page")
    if endpoint.role == "operator" and session.user.role != "operator":
        raise Refused(403, "not-allowed", "this needs the role operator")


def answer(values: object, status: int = 200) -> Response:
    """Return JSON values as a response."""
    return JSONResponse(values, status, {"cache-control": "no-store"})


def refusal(problem: Refused) -> Response:
    """Return the response to a refused request."""
    response = answer({"error": {"code": problem.code, "text": problem.text}}, problem.status)
    if problem.retry_s is not None:
        response.headers["retry-after"] = str(problem.retry_s)
    return response
