"""The view Events: the events that the page keeps, filtered."""

from __future__ import annotations

from typing import Any

from edge_agent.page.api import Call, Endpoint
from edge_agent.page.errors import Refused
from edge_agent.page.events import EventLog

PAGE = 100
"""Events of one answer."""


async def events(call: Call) -> object:
    """Return the newest events that pass the filters, and whether there are more.

    `camera`, `kind` and `person` (id, name or number) filter; `from` and `to` are Unix seconds; `before` is
    the id of the last event of the former answer.
    """
    camera, kind = call.text("camera"), call.text("kind")
    person, before = call.text("person").strip().lower(), call.text("before")
    since, until = call.number("from", 0, 0, 1 << 52), call.number("to", 1 << 52, 0, 1 << 52)
    log, found, began = call.page.events, list[dict[str, Any]](), not before
    corrections: dict[str, dict[str, Any]] = {}
    for event in log.newest():
        if (corrected := event["data"].get("corrects")) is not None:
            corrections.setdefault(corrected, event)
        if not began:
            began = event["id"] == before
        elif _passes(call, event, camera, kind, person) and since <= _seconds(event["time"]) <= until:
            found.append(_shown(log, event, corrections.get(event["id"])))
        if len(found) > PAGE:
            break
    return {
        "events": found[:PAGE],
        "more": len(found) > PAGE,
        "missed": log.missed,
        "cameras": sorted({*log.cameras, *(one["camera"] for one in log.info.get("cameras", ()))}),
    }


async def event(call: Call) -> object:
    """Return one event, and the one that it corrects, as far as the page keeps them."""
    log = call.page.events
    found = log.get(call.part("event"))
    if found is None:
        raise Refused(404, "no-event", "this event is not kept any more")
    corrects = found["data"].get("corrects")
    return {"event": _shown(log, found, None), "corrects": None if corrects is None else log.get(corrects)}


def _shown(log: EventLog, event: dict[str, Any], correction: dict[str, Any] | None) -> dict[str, Any]:
    """Return an event with the present name of its person, and the event that corrects it."""
    shown = event | {"now": log.name(event["data"].get("identity_id"))}
    return shown if correction is None else shown | {"corrected_by": _shown(log, correction, None)}


def _passes(call: Call, event: dict[str, Any], camera: str, kind: str, person: str) -> bool:
    data = event["data"]
    if camera and data.get("camera", (data.get("details") or {}).get("camera")) != camera:
        return False
    if kind and kind not in (event["type"].split(".")[1], data.get("kind")):
        return False
    if not person:
        return True
    name = call.page.events.name(data.get("identity_id")) or data.get("name") or ""
    return (
        person in name.lower()
        or person == str(data.get("number"))
        or person in (data.get("identity_id"), data.get("previous_identity_id"), data.get("absorbed_id"))
    )


def _seconds(text: str) -> float:
    from edge_agent.core.timing import parse_time

    return parse_time(text)


ENDPOINTS = (
    Endpoint("GET", "/api/events", "viewer", events),
    Endpoint("GET", "/api/events/{event}", "viewer", event),
)
