"""The OpenAPI 3.1 document of the HTTP API, generated from the event classes; see `deliver.contract`."""

from __future__ import annotations

from typing import Any

from edge_agent.core.codec import envelope_schema
from edge_agent.deliver.http import JSON, MOST_PEOPLE

OPENAPI = "3.1.0"
_TEXT = {"type": "string"}
_NUMBER = {"type": ["number", "null"]}
_PERSON: dict[str, Any] = {
    "type": "object",
    "required": ["number", "id", "name", "kind", "created", "last_seen", "expires", "exemplars", "sightings"],
    "properties": {
        "number": {"type": "integer", "description": "Number in the local gallery."},
        "id": {**_TEXT, "description": "Opaque id, the identity_id of events."},
        "name": {"type": ["string", "null"], "description": "Name that the operator gave the person."},
        "kind": {**_TEXT, "description": "auto or enrolled."},
        "created": {**_NUMBER, "description": "Unix seconds."},
        "last_seen": {**_NUMBER, "description": "Unix seconds."},
        "expires": {**_NUMBER, "description": "Unix seconds; null: never."},
        "ttl_s": {
            **_NUMBER,
            "description": "Own time to live; null: as in the settings; 0: for ever.",
        },
        "exemplars": {"type": "integer", "description": "Number of embeddings."},
        "sightings": {"type": "integer", "description": "Number of visits."},
    },
}
_PEOPLE: dict[str, Any] = {
    "type": "object",
    "required": ["people", "next"],
    "properties": {
        "people": {"type": "array", "items": _PERSON},
        "next": {
            "type": ["integer", "null"],
            "description": "Value of `after` for the following people; null when there are none.",
        },
    },
}
_STATUS: dict[str, Any] = {
    "type": "object",
    "required": ["version", "pid", "session", "uptime_s", "state", "reason", "ready"],
    "properties": {
        "version": {**_TEXT, "description": "Version of the agent."},
        "pid": {"type": "integer", "description": "Number of the process."},
        "session": {**_TEXT, "description": "Id of the run."},
        "uptime_s": {"type": "number", "description": "Seconds since the start."},
        "state": {**_TEXT, "description": "starting, online, degraded or stopping."},
        "reason": {**_TEXT, "description": "Why it is degraded, or what it does."},
        "ready": {"type": "boolean", "description": "Whether it has become ready."},
    },
    "description": "As `edge-agent status --json`; more keys are described there.",
}


def openapi(version: str) -> dict[str, Any]:
    """Return the document; `version` is that of the contract."""
    return {
        "openapi": OPENAPI,
        "info": {
            "title": "edge-agent on the device",
            "version": version,
            "description": "On 127.0.0.1 and the port `telemetry.metrics_port`, with the token"
            " `telemetry.http_token`. See docs/subscribers.md.",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "servers": [
            {"url": "http://127.0.0.1:{port}", "variables": {"port": {"default": "9464"}}},
        ],
        "security": [{"token": []}],
        "paths": {
            "/events": {"get": _events()},
            "/present": {
                "get": _get("present", "Everyone in view: the `present` message.", envelope_schema("present"))
            },
            "/people": {"get": _people()},
            "/status": {"get": _get("status", "State of the agent.", _STATUS)},
        },
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


def _get(name: str, summary: str, schema: dict[str, Any]) -> dict[str, Any]:
    answers = {"200": {"description": summary, "content": {JSON: {"schema": schema}}}}
    return {"operationId": name, "summary": summary, "responses": answers | _errors()}


def _people() -> dict[str, Any]:
    found = _get("people", "The identities of the gallery, by rising number.", _PEOPLE)
    limit = {"type": "integer", "minimum": 1, "maximum": MOST_PEOPLE, "default": MOST_PEOPLE}
    found["parameters"] = [
        _parameter("after", "query", "Leave out numbers up to this one.", {"type": "integer", "default": 0}),
        _parameter("limit", "query", "Most people in the answer.", limit),
    ]
    found["responses"]["400"] = {"description": "A parameter is not a number, or out of range."}
    return found


def _events() -> dict[str, Any]:
    text = (
        "Numbered events as they are published: `id` is `seq`, `data` the message. An event `missed` with"
        " `first` and `last` states numbers that are not kept any more."
    )
    answers: dict[str, Any] = {
        "200": {"description": text, "content": {"text/event-stream": {"schema": _TEXT}}},
        "400": {"description": "Last-Event-ID is not a number."},
        "503": {"description": "Too many streams are open; see Retry-After."},
    }
    last = _parameter(
        "Last-Event-ID",
        "header",
        "Begin after this number; without it, with the next event.",
        {"type": "integer"},
    )
    return {
        "operationId": "events",
        "summary": "Follow the numbered events.",
        "parameters": [last],
        "responses": answers | _errors(),
    }


def _errors() -> dict[str, Any]:
    return {
        "401": {"description": "The token is missing or wrong."},
        "404": {"description": "No token is configured."},
    }


def _parameter(name: str, place: str, text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": place, "description": text, "schema": schema}
