"""The view People: who is known, with pictures where they are kept; and every change of a person.

Each change is a command of the agent, in the name of the user.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.responses import Response

from edge_agent.page.api import Call, Endpoint
from edge_agent.page.errors import Refused

PAGE = 60
"""People of one answer."""
LARGEST_UPLOAD = 8 << 20
"""Bytes of a picture that enrols a person."""


async def people(call: Call) -> object:
    """Return a page of the people that pass `text`; `order` is `seen`, `new` or `name`."""
    found, _ = await call.page.link.ask(
        "people",
        text=call.text("text"),
        order=call.text("order") or "seen",
        offset=call.number("offset", 0, 0, 1 << 40),
        most=PAGE,
    )
    return found


async def person(call: Call) -> object:
    """Return one person with contributions and pictures."""
    found, _ = await call.page.link.ask("person", person=call.part("person"))
    return found


async def pair(call: Call) -> object:
    """Return two people and how alike they are."""
    found, _ = await call.page.link.ask("pair", one=call.part("person"), other=call.part("other"))
    return found


async def suggestions(call: Call) -> object:
    """Return pairs of people who are probably one."""
    found, _ = await call.page.link.ask("suggestions")
    return found


async def crop(call: Call) -> object:
    """Return a picture as JPEG."""
    row = call.part("row")
    if not row.isascii() or not row.isdigit() or len(row) > 18:
        raise Refused(404, "no-picture", "there is no such picture")
    _, jpeg = await call.page.link.ask("crop", row=int(row))
    return Response(jpeg, media_type="image/jpeg", headers={"cache-control": "private, no-store"})


async def evidence(call: Call) -> object:
    """Return the pictures of the track of an event, and the person that it was decided to be."""
    event = call.page.events.get(call.part("event"))
    if event is None:
        raise Refused(404, "no-event", "this event is not kept any more")
    data = event["data"]
    if "track_id" not in data:
        raise Refused(404, "no-event", "this event is not about a track")
    found, _ = await call.page.link.ask(
        "evidence",
        session=event["session"],
        camera=data["camera"],
        track=data["track_id"],
        person=data["identity_id"] or "",
    )
    return found | {"origin": f"{event['session']}:{data['camera']}:{data['track_id']}"}


def change(verb: str, *names: str) -> Callable[[Call], Awaitable[object]]:
    """Return a handler that runs a command on the person of the path, with these fields of the body."""

    async def run(call: Call) -> object:
        given: dict[str, Any] = await call.json()
        if unknown := sorted(given.keys() - set(names)):
            raise Refused(400, "malformed", f"unknown key {unknown[0][:64]!r}")
        fields = {name: given[name] for name in names if name in given}
        return await call.command(verb, {"identity_id": call.part("person"), **fields})

    return run


async def enrol(call: Call) -> object:
    """Enrol the person of a picture, the body, with the name of the query."""
    picture = await call.body(LARGEST_UPLOAD)
    if not picture:
        raise Refused(400, "malformed", "the body is the picture, JPEG or PNG")
    return await call.command("enrol", {"name": call.text("name").strip() or None}, attached=picture)


async def enrol_track(call: Call) -> object:
    """Enrol the person of a track in view: `camera`, `track_id`, `name`."""
    given = await call.json()
    name = given.get("name")
    fields = {
        "camera": given.get("camera"),
        "track_id": given.get("track_id"),
        "name": (name.strip() or None) if isinstance(name, str) else name,
    }
    return await call.command("enrol", fields)


ENDPOINTS = (
    Endpoint("GET", "/api/people", "viewer", people),
    Endpoint("GET", "/api/suggestions", "viewer", suggestions),
    Endpoint("GET", "/api/crops/{row}", "viewer", crop),
    Endpoint("GET", "/api/people/{person}", "viewer", person),
    Endpoint("GET", "/api/people/{person}/pair/{other}", "viewer", pair),
    Endpoint("GET", "/api/events/{event}/evidence", "viewer", evidence),
    Endpoint("POST", "/api/people/{person}/name", "operator", change("name", "name")),
    Endpoint("POST", "/api/people/{person}/merge", "operator", change("merge", "absorbed_id")),
    Endpoint("POST", "/api/people/{person}/split", "operator", change("split", "origin", "name")),
    Endpoint("POST", "/api/people/{person}/reject", "operator", change("reject", "other_id")),
    Endpoint("POST", "/api/people/{person}/keep", "operator", change("keep", "keep", "hours")),
    Endpoint("POST", "/api/people/{person}/forget", "operator", change("forget")),
    Endpoint("POST", "/api/enrol", "operator", enrol),
    Endpoint("POST", "/api/enrol/track", "operator", enrol_track),
)
