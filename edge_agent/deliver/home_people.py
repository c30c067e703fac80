"""Home Assistant entities of each named person: present or away, and the last camera.

They read the retained `present` message; their announcements are retained messages of MQTT discovery, each
replaced by an empty one when the person is forgotten, merged into another, or loses the name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from edge_agent import __version__
from edge_agent.core.text import LONGEST_CELL, jinja_literal, visible
from edge_agent.deliver.homeassistant import availability, object_id

if TYPE_CHECKING:
    from edge_agent.deliver.publisher import Publisher
    from edge_agent.deliver.topics import Topics

MOST_PEOPLE = 200
"""Named people that are announced, those with the lowest numbers."""


class Facts(Protocol):
    """JSON values by key, which outlast the run: `edge_agent.gallery.sync.Facts`."""

    def get(self, key: str) -> Any: ...  # noqa: ANN401, D102
    def set(self, key: str, value: Any) -> None: ...  # noqa: ANN401, D102


@dataclass(slots=True)
class PeopleAnnouncer:
    """Keeps the announcements as the named people are; `withdraw` removes all."""

    publisher: Publisher
    facts: Facts
    fact: str
    """Key of the ids that are announced."""
    withdraw: bool = False
    _announced: dict[str, bytes] = field(default_factory=dict)

    def update(self, named: Mapping[str, str]) -> None:
        """Announce these people, names by id, and remove all others."""
        topics = self.publisher.origin.topics
        wanted = {} if self.withdraw else dict(list(named.items())[:MOST_PEOPLE])
        before = self.facts.get(self.fact) or []
        if set(before) != set(wanted):  # first the union: a kill leaves no announcement that is not noted
            self.facts.set(self.fact, sorted({*before, *wanted}))
        for identity in set(before) - set(wanted):
            self._announced.pop(identity, None)
            self.publisher.set_retained(person_topic(topics, identity), b"")
        for identity, name in wanted.items():
            message = announcement(topics, identity, name)
            if self._announced.get(identity) != message:
                self._announced[identity] = message
                self.publisher.set_retained(person_topic(topics, identity), message)
        if set(before) - set(wanted):
            self.facts.set(self.fact, sorted(wanted) or None)


def person_topic(topics: Topics, identity: str) -> str:
    """Topic of the announcement of a person: below that of the device, as an access list needs it."""
    return f"homeassistant/device/{object_id(topics)}/{_plain(identity)}/config"


def _plain(identity: str) -> str:
    return "".join(letter if letter.isalnum() and letter.isascii() else "_" for letter in identity)


def announcement(topics: Topics, identity: str, name: str) -> bytes:
    """Return the announcement of a person."""
    person_id = f"{object_id(topics)}_{_plain(identity)}"
    mine = f"value_json.data.people | selectattr('identity_id', 'eq', {jinja_literal(identity)}) | list"
    document = {
        "device": {
            "identifiers": [person_id],
            "name": visible(name, LONGEST_CELL),
            "manufacturer": "edge-agent",
            "via_device": object_id(topics),
        },
        "origin": {"name": "edge-agent", "sw_version": __version__},
        "availability": availability(topics),
        "state_topic": topics.present,
        "qos": 1,
        "components": {
            "presence": {
                "platform": "binary_sensor",
                "name": "Presence",
                "unique_id": f"{person_id}_presence",
                "device_class": "presence",
                "value_template": f"{{{{ 'ON' if {mine} else 'OFF' }}}}",
            },
            "camera": {
                "platform": "sensor",
                "name": "Last camera",
                "unique_id": f"{person_id}_camera",
                "icon": "mdi:cctv",
                # Without the person in view, the state stays.
                "value_template": f"{{% set mine = {mine} %}}"
                "{{ mine[-1].camera if mine else this.state | default('unknown') }}",
            },
        },
    }
    return json.dumps(document, ensure_ascii=False).encode()
