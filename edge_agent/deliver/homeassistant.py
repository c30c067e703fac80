"""Announce the device to Home Assistant (2024.11 or newer) by one retained message of MQTT discovery.

Home Assistant then reads the status and telemetry topics; `core.telemetry` declares which values become
entities. An empty retained message on the same topic removes the device.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import Field, fields
from typing import Any

from edge_agent.core.delivery_settings import MqttSettings
from edge_agent.core.events import InfoData
from edge_agent.core.fields import Entity
from edge_agent.core.telemetry import TelemetryData
from edge_agent.core.text import LONGEST_CELL, jinja_literal, visible
from edge_agent.deliver.publisher import Publisher
from edge_agent.deliver.topics import Topics

EXPIRE_S = 90
"""A value older than this is shown as unavailable; telemetry messages expire after the same time."""

_UNITS = {"degC": "°C"}  # units that Home Assistant writes differently
_DEVICE_CLASSES = {"degC": "temperature", "W": "power"}


def announce(
    settings: MqttSettings, publisher: object, info: InfoData, *, zones: Sequence[str], rails: Sequence[str]
) -> None:
    """Publish or withdraw the announcement by the settings; arguments as for `announcement`."""
    if not settings.home_assistant or not isinstance(publisher, Publisher):
        return
    topics = Topics(settings.site, settings.device)
    withdrawn = settings.home_assistant == "remove"
    message = b"" if withdrawn else announcement(topics, info, zones=zones, rails=rails)
    publisher.set_retained(discovery_topic(topics), message)


def discovery_topic(topics: Topics) -> str:
    """Topic of the announcement."""
    return f"homeassistant/device/{object_id(topics)}/config"


def availability(topics: Topics) -> list[dict[str, str]]:
    """Return when the device counts as available: also while it is `degraded` or `stopping`."""
    available = "{{ 'offline' if value_json.data.state == 'offline' else 'online' }}"
    return [{"topic": topics.status, "value_template": available}]


def announcement(topics: Topics, info: InfoData, *, zones: Sequence[str], rails: Sequence[str] = ()) -> bytes:
    """Return the announcement: the device and its entities.

    `zones` and `rails` are the names of the temperature sensors and power rails in the telemetry.
    """
    device_id = object_id(topics)
    entries = {"temperatures_c": zones, "power_w": rails}
    components = {"state": _state(topics, device_id)}
    for field in fields(TelemetryData):
        if (entity := field.metadata["entity"]) is not None:
            components |= _components(device_id, field, entity, entries.get(field.name))
    document = {
        "device": {
            "identifiers": [device_id],
            "name": f"{topics.site} {topics.device}",
            "model": visible(info.board or info.platform or "edge-agent", LONGEST_CELL),
            "manufacturer": "NVIDIA" if info.l4t else "edge-agent",
            "sw_version": info.version,
        },
        "origin": {"name": "edge-agent", "sw_version": info.version},
        "availability": availability(topics),
        "state_topic": topics.telemetry,
        "qos": 0,
        "components": components,
    }
    return json.dumps(document, ensure_ascii=False).encode()


def object_id(topics: Topics) -> str:
    """Return the id of the device in Home Assistant."""
    return f"edge_{topics.site}_{topics.device}"


def _components(
    device_id: str, field: Field[Any], entity: Entity, entries: Sequence[str] | None
) -> dict[str, dict[str, Any]]:
    """The components of one telemetry field: one, or one for each entry of a mapping."""
    value = f"value_json.data.{field.name}"
    unique_id = f"{device_id}_{field.name}"
    if entity.problem:
        if field.default_factory is tuple:
            value += " | length > 0"
        found = _entity("binary_sensor", unique_id, entity.name, value)
        switch = {"payload_on": "True", "payload_off": "False", "device_class": "problem"}
        return {entity.component: found | switch | {"entity_category": "diagnostic"}}
    unit = field.metadata["json_schema_extra"].get("unit")
    optional = {
        "unit_of_measurement": _UNITS.get(unit, unit),
        "device_class": _DEVICE_CLASSES.get(unit),
        "icon": entity.icon,
        "entity_category": "diagnostic" if entity.diagnostic else None,
    }
    more = {"state_class": "measurement"} | {key: text for key, text in optional.items() if text is not None}
    if entries is None:
        return {entity.component: _entity("sensor", unique_id, entity.name, value) | more}
    components = {}
    for entry in entries:
        plain = "".join(letter if letter.isalnum() else "_" for letter in entry.lower())[:LONGEST_CELL]
        own = _entity("sensor", f"{unique_id}_{plain}", entry, f"{value}.get({jinja_literal(entry)})")
        components[f"{entity.component}_{plain}"] = own | more
    return components


def _entity(platform: str, unique_id: str, name: str, value: str) -> dict[str, Any]:
    """An entity. Its template renders an unknown value as `None`, which Home Assistant shows as unknown."""
    return {
        "platform": platform,
        "name": visible(name, LONGEST_CELL),
        "unique_id": unique_id,
        "value_template": f"{{{{ {value} }}}}",
        "expire_after": EXPIRE_S,
    }


def _state(topics: Topics, device_id: str) -> dict[str, Any]:
    return {
        "platform": "sensor",
        "name": "State",
        "unique_id": f"{device_id}_state",
        "state_topic": topics.status,
        "value_template": "{{ value_json.data.state }}",
        "json_attributes_topic": topics.status,
        "json_attributes_template": "{{ value_json.data | tojson }}",
        "device_class": "enum",
        "options": ["online", "degraded", "stopping", "offline"],
        "entity_category": "diagnostic",
    }
