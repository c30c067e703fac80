"""Logging in and out, and who is logged in."""

from __future__ import annotations

import asyncio

import structlog
from starlette.responses import Response

from edge_agent import __version__
from edge_agent.page.api import Call, Endpoint, answer
from edge_agent.page.errors import Refused
from edge_agent.page.sessions import Session
from edge_agent.page.users import User, take_link

_log = structlog.get_logger(__name__)

MOST_CHECKS = 8
"""Passwords that may wait to be checked; each check takes memory and time, so one runs at a time."""


async def session(call: Call) -> object:
    """Return who is logged in, and what the page needs to start."""
    assert call.session is not None
    return _shown(call, call.session)


def _shown(call: Call, session: Session) -> dict[str, object]:
    page = call.page
    return {
        "user": session.user.name,
        "role": session.user.role,
        "linked": session.linked,
        "csrf": session.csrf,
        "version": __version__,
        "fps": page.settings.fps,
        "online": page.events.online,
        "info": page.events.info,
    }


async def log_in(call: Call) -> object:
    """Begin a session for a name and password."""
    found = await call.json()
    name, password = found.get("user"), found.get("password")
    if not isinstance(name, str) or not isinstance(password, str) or len(name) > 100:
        raise Refused(400, "malformed", "user and password are needed")
    page, address = call.page, _address(call)
    page.attempts.begin(address, name)
    if page.checking.waiting >= MOST_CHECKS:
        raise Refused(429, "too-many-attempts", "too many logins at this moment", retry_s=5)
    async with page.checking:
        user = await asyncio.to_thread(page.users.check, name, password)
    if user is None:
        _log.warning("login refused", address=address, user=name[:32])
        raise Refused(401, "wrong-password", "the name or the password is wrong")
    page.attempts.succeeded(address, name)
    return _begin(call, user, linked=False)


async def log_in_by_link(call: Call) -> object:
    """Begin a session for the token of a link, which is void afterwards.

    Attempts are not counted: nobody guesses 32 bytes, and a link is the way back in after too many passwords.
    """
    found = await call.json()
    token = found.get("token")
    if not isinstance(token, str) or len(token) > 200:
        raise Refused(400, "malformed", "token is needed")
    user = take_link(call.page.link.state, token)
    if user is None:
        _log.warning("login refused", address=_address(call), by="link")
        raise Refused(401, "wrong-link", "this link is wrong, was used before, or is too old")
    return _begin(call, user, linked=True)


def _address(call: Call) -> str:
    client = call.request.client
    return "" if client is None else client.host


def _begin(call: Call, user: User, *, linked: bool) -> Response:
    page = call.page
    page.sessions.end(page.token(call.request))  # a session is never continued by a login
    token, session = page.sessions.begin(user, linked=linked)
    _log.info("logged in", user=user.name, role=user.role, address=_address(call))
    response = answer(_shown(call, session))
    response.set_cookie(
        page.cookie,
        token,
        max_age=int(page.settings.session_hours * 3600),
        path="/",
        secure=page.tls,
        httponly=True,
        samesite="strict",
    )
    return response


async def log_out(call: Call) -> object:
    """End the session."""
    call.page.sessions.end(call.page.token(call.request))
    response = answer({})
    response.delete_cookie(call.page.cookie, path="/", secure=call.page.tls, httponly=True, samesite="strict")
    return response


async def start(call: Call) -> object:
    """Return what the page shows before anybody is logged in."""
    try:
        users = bool(call.page.users.all())
    except Exception as problem:
        raise Refused(500, "users-damaged", "the file of users is damaged; see the page's log") from problem
    return {"users": users, "service": call.page.is_service}


ENDPOINTS = (
    Endpoint("GET", "/api/start", "anyone", start),
    Endpoint("GET", "/api/session", "viewer", session),
    Endpoint("POST", "/api/login", "anyone", log_in),
    Endpoint("POST", "/api/login/link", "anyone", log_in_by_link),
    Endpoint("POST", "/api/logout", "viewer", log_out),
)
