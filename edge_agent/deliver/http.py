"""Events, who is present, people and status over HTTP, on the listener of the metrics (loopback).

Every path needs the bearer token of `telemetry.http_token`; without that setting there are none of them.
`GET /events` is a stream of server-sent events (WHATWG HTML, section 9.2): `id` is the number of the event.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from edge_agent.core.serving import Stream
from edge_agent.deliver.local import Origin
from edge_agent.deliver.rows import numbered

JSON = "application/json"
MOST_PEOPLE = 1000
"""People in one answer; `next` leads to the following ones."""
BATCH = 50
"""Events that a stream sends at once."""
_REFUSAL = (
    "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 10\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)
_STREAM_HEAD = (
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n"
    "Connection: close\r\n\r\nretry: 2000\n\n"
)


@dataclass(frozen=True, slots=True)
class Answer:
    """Status line, body and headers of an answer."""

    status: str
    body: bytes = b""
    content_type: str = "text/plain"
    header: str = ""


@dataclass(frozen=True, slots=True)
class Api:
    """Answers the requests; called on the thread of the server, which must not wait.

    Args:
        stored: `(above, last, most)` returns the first `most` events of the outbox with numbers above `above`
            and up to `last`: the number, and the message without it.
        people: `(above, most)` returns the first `most` identities with numbers above `above`.
        status: returns the status document.
    """

    token: str
    origin: Origin
    stored: Callable[[int, int, int], list[tuple[int, bytes]]]
    people: Callable[[int, int], list[dict[str, Any]]]
    status: Callable[[], Mapping[str, Any]]

    def answer(self, path: str, query: str, headers: Mapping[str, str]) -> Answer | Stream:
        """Return the answer to a GET; header names are in lower case."""
        if path not in PATHS:
            return Answer("404 Not Found")
        given = headers.get("authorization", "").strip()
        scheme, _, token = given.partition(" ")
        if not hmac.compare_digest(token.strip().encode(), self.token.encode()) or scheme.lower() != "bearer":
            return Answer("401 Unauthorized", header="WWW-Authenticate: Bearer\r\n")
        if path == "/events":
            return self._events(headers.get("last-event-id", ""))
        if path == "/present":
            message = self.origin.message("present", self.origin.presence.snapshot())
            return Answer("200 OK", message, JSON)
        if path == "/people":
            return self._people(dict(parse_qsl(query)))
        return Answer("200 OK", _json(self.status()), JSON)

    def _events(self, last: str) -> Answer | Stream:
        if last and not (last.isascii() and last.isdigit() and len(last) < 16):
            return Answer("400 Bad Request", b"Last-Event-ID is not the number of an event\n")
        start = int(last) if last else self.origin.recent.last
        follower = Follower(self.origin, self.stored, start)
        return Stream(_STREAM_HEAD.encode(), follower.more, _REFUSAL.encode())

    def _people(self, query: Mapping[str, str]) -> Answer:
        after, limit = (
            _number(query, name, most) for name, most in (("after", 1 << 53), ("limit", MOST_PEOPLE))
        )
        if after is None or not limit:
            text = f"after is a number of a person, limit is 1 to {MOST_PEOPLE}\n"
            return Answer("400 Bad Request", text.encode())
        found = self.people(after, limit)
        more = found[-1]["number"] if len(found) == limit else None
        return Answer("200 OK", _json({"people": found, "next": more}), JSON)


def _number(query: Mapping[str, str], name: str, most: int) -> int | None:
    """Return a number of the query; None where it is not one from 0 to `most`."""
    text = query.get(name, _DEFAULTS[name])
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 18 else None
    return number if number is not None and number <= most else None


_DEFAULTS = {"after": "0", "limit": str(MOST_PEOPLE)}
PATHS = ("/events", "/present", "/people", "/status")


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


@dataclass(slots=True)
class Follower:
    """The events after `position`, in the order of their numbers; numbers that are not kept are stated."""

    origin: Origin
    stored: Callable[[int, int, int], list[tuple[int, bytes]]]
    position: int

    def more(self) -> bytes:
        """Return the next part of the stream; b"" while there is none."""
        recent = self.origin.recent
        last = recent.last
        if self.position > last:  # of an outbox that is gone: the numbers began again
            return self._missed(1, last) if last else b""
        base, found = recent.after(self.position, BATCH)
        if self.position < base:
            rows = self.stored(self.position, base, BATCH)
            found = [(seq, numbered(body, seq)) for seq, body in rows]
            if len(found) < BATCH:
                kept = self._events(found)
                return kept + (self._missed(self.position + 1, base) if self.position < base else b"")
        if not found and self.position < last:  # all of them were erased
            return self._missed(self.position + 1, last)
        return self._events(found)

    def _events(self, found: list[tuple[int, bytes]]) -> bytes:
        parts = []
        for seq, message in found:
            if seq > self.position + 1:
                parts.append(self._missed(self.position + 1, seq - 1))
            parts.append(b"id: %d\ndata: %b\n\n" % (seq, message))
            self.position = seq
        return b"".join(parts)

    def _missed(self, first: int, last: int) -> bytes:
        self.position = last
        return b'id: %d\nevent: missed\ndata: {"first":%d,"last":%d}\n\n' % (last, first, last)
