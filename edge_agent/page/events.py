"""The numbered events of the agent, as the page keeps and passes them on.

One task follows the agent for all viewers. Events stay in memory only, at most `MOST_EVENTS`; those of a
person who was forgotten are removed at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from edge_agent.page.errors import Refused, agent_away
from edge_agent.page.link import AgentLink, Channel

MOST_EVENTS = 5000
MOST_CAMERAS = 500
WAIT_S = 2.0
"""Of one question for new events."""
RETRY_S = 1.0

Values = dict[str, Any]
_PERSON_KEYS = ("identity_id", "previous_identity_id", "absorbed_id")


@dataclass(slots=True)
class EventLog:
    """Follows the agent while `follow` runs. `listeners` are called with each message for viewers."""

    link: AgentLink
    listeners: set[Callable[[Values], None]] = field(default_factory=set)
    online: bool = False
    session: str = ""
    """Run of the agent that is followed."""
    info: Values = field(default_factory=dict)
    """Data of the `info` event of that run."""
    missed: bool = False
    """Whether events of this run were gone before they could be read."""
    cameras: dict[str, None] = field(default_factory=dict)
    """Ids of the cameras that had events, also those that upstream messages and crops name."""
    _events: deque[Values] = field(default_factory=lambda: deque(maxlen=MOST_EVENTS))
    _after: int = 0
    """Number of the last event."""
    _names: dict[str, str | None] = field(default_factory=dict)
    """Present names of people by their ids, as far as events told them."""

    async def follow(self) -> None:
        """Follow the agent until cancelled; it may stop and start again."""
        channel = self.link.channel()
        try:
            while True:
                try:
                    await self._follow_run(channel)
                except (Refused, LookupError, TypeError):
                    self._set_online(False)
                    channel.close()
                    await asyncio.sleep(RETRY_S)
        finally:
            channel.close()

    async def _follow_run(self, channel: Channel) -> None:
        """Follow one run of the agent; returns when another answers."""
        hello, _ = await channel.ask("hello")
        if hello["session"] != self.session:
            await self._drop_forgotten(channel)
            self._after, self.session = 0, str(hello["session"])
        self.info = hello["info"]
        self._set_online(True)
        while True:
            found, _ = await channel.ask("events", after=self._after, wait_s=WAIT_S)
            if found["session"] != self.session:
                return
            self._take(found)

    async def _drop_forgotten(self, channel: Channel) -> None:
        """Drop what is kept of people who were forgotten between two runs of the agent."""
        people = {found for one in self._events for key in _PERSON_KEYS if (found := one["data"].get(key))}
        if not people:
            return
        try:
            found, _ = await channel.ask("missing", people=sorted(people))
        except Refused as problem:
            if problem.code == agent_away().code:
                raise
            found = {"missing": sorted(people)}  # an agent of another version does not tell
        for identity in found["missing"]:
            self._follow_person({"kind": "forgotten", "identity_id": identity})

    def _set_online(self, online: bool) -> None:
        if online != self.online:
            self.online = online
            self._tell({"type": "agent", "online": online, "session": self.session})

    def _take(self, found: Values) -> None:
        """Add the events of an answer."""
        self.missed = self.missed or 0 < self._after < found["base"]
        for text in found["events"]:
            # An agent of another version may send events of another form.
            with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError):
                event = json.loads(text)
                self._after = int(event["seq"])
                self._add(event)

    def _add(self, event: Values) -> None:
        data, kind = event["data"], event["type"].split(".")[1]
        if kind == "person":
            self._follow_person(data)
        elif kind == "identity" and data.get("identity_id"):
            self._names[data["identity_id"]] = data.get("name")
            while len(self._names) > 2 * MOST_EVENTS:
                del self._names[next(iter(self._names))]
        if kind == "identity" and len(self.cameras) < MOST_CAMERAS:
            self.cameras[data["camera"]] = None
        self._events.append(event)
        self._tell({"type": "event", "event": event})

    def _follow_person(self, data: Values) -> None:
        """Keep up with a change of a person; what is known of a forgotten one goes."""
        identity = data["identity_id"]
        if data["kind"] == "forgotten":
            self._names.pop(identity, None)
            kept = [one for one in self._events if not _concerns(one, identity)]
            self._events.clear()
            self._events.extend(kept)
            self._tell({"type": "forgotten", "identity": identity})
        else:
            self._names[identity] = data.get("name")
            if data.get("absorbed_id"):
                self._names[data["absorbed_id"]] = data.get("name")

    def _tell(self, message: Values) -> None:
        for listener in [*self.listeners]:
            listener(message)

    def name(self, identity: str | None) -> str | None:
        """Return the present name of a person, as far as events told it."""
        return None if identity is None else self._names.get(identity)

    def get(self, event_id: str) -> Values | None:
        """Return an event by its id."""
        return next((one for one in reversed(self._events) if one["id"] == event_id), None)

    def newest(self) -> Iterator[Values]:
        """Yield the events, the newest first."""
        yield from reversed(tuple(self._events))


def _concerns(event: Values, identity: str) -> bool:
    data = event["data"]
    return any(data.get(key) == identity for key in _PERSON_KEYS)
