"""Announce the device to Home Assistant (2024.11 or newer) by one retained message of MQTT discovery.

Home Assistant then reads the status and telemetry topics; `core.telemetry` declares which values become
entities. An empty retained message on the same topic removes the device.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import Field, fields
from typing import Any

from edge_agent.core.config import MqttSettings
from edge_agent.core.events import InfoData
from edge_agent.core.fields import Entity
from edge_agent.core.telemetry import TelemetryData
from edge_agent.deliver.publisher import Publisher
from edge_agent.deliver.topics import Topics

EXPIRE_S = 90
"""A value older than this is shown as unavailable; telemetry messages expire after the same time."""

_UNITS = {"degC": "°C"}
"""Units that Home Assistant writes differently."""

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


def discovery_topic(topics: Topics, prefix: str = "homeassistant") -> str:
    """Topic of the announcement."""
    return f"{prefix}/device/{_object_id(topics)}/config"


def announcement(topics: Topics, info: InfoData, *, zones: Sequence[str], rails: Sequence[str] = ()) -> bytes:
    """Return the announcement: the device and its entities.

    Args:
        topics: of this device.
        info: versions and model.
        zones: names of the temperature sensors, as in the telemetry.
        rails: names of the power rails, as in the telemetry.
    """
    device_id = _object_id(topics)
    entries = {"temperatures_c": zones, "power_w": rails}
    components = {"state": _state(topics, device_id)}
    for field in fields(TelemetryData):
        entity: Entity | None = field.metadata["entity"]
        if entity is not None:
            components |= _components(device_id, field, entity, entries.get(field.name))
    document = {
        "device": {
            "identifiers": [device_id],
            "name": f"{topics.site} {topics.device}",
            "model": info.board or info.platform or "edge-agent",
            "manufacturer": "NVIDIA" if info.l4t else "edge-agent",
            "sw_version": info.version,
        },
        "origin": {"name": "edge-agent", "sw_version": info.version},
        "availability": [
            {
                "topic": topics.status,
                # Values are still published in the states `degraded` and `stopping`.
                "value_template": "{{ 'offline' if value_json.data.state == 'offline' else 'online' }}",
            }
        ],
        "state_topic": topics.telemetry,
        "qos": 0,
        "components": components,
    }
    return json.dumps(document, ensure_ascii=False).encode()


def _object_id(topics: Topics) -> str:
    return f"edge_{topics.site}_{topics.device}"


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name.lower())


def _components(
    device_id: str, field: Field[Any], entity: Entity, entries: Sequence[str] | None
) -> dict[str, dict[str, Any]]:
    """The components of one telemetry field: one, or one for each entry of a mapping."""
    value = f"value_json.data.{field.name}"
    unique_id = f"{device_id}_{field.name}"
    if entity.problem:
        is_list = field.default_factory is tuple
        return {entity.component: _problem(unique_id, entity, f"{value} | length > 0" if is_list else value)}
    unit = field.metadata["json_schema_extra"].get("unit")
    if entries is None:
        return {entity.component: _sensor(unique_id, entity.name, value, unit, entity)}
    return {
        f"{entity.component}_{_plain(entry)}": _sensor(
            f"{unique_id}_{_plain(entry)}", entry, f"{value}.get({json.dumps(entry)})", unit, entity
        )
        for entry in entries
    }


def _sensor(unique_id: str, name: str, value: str, unit: str | None, entity: Entity) -> dict[str, Any]:
    """A sensor. Its template renders an unknown value as `None`, which Home Assistant shows as unknown."""
    optional = {
        "unit_of_measurement": _UNITS.get(unit or "", unit),
        "device_class": _DEVICE_CLASSES.get(unit or ""),
        "icon": entity.icon,
        "entity_category": "diagnostic" if entity.diagnostic else None,
    }
    return {
        "platform": "sensor",
        "name": name,
        "unique_id": unique_id,
        "value_template": f"{{{{ {value} }}}}",
        "state_class": "measurement",
        "expire_after": EXPIRE_S,
    } | {key: chosen for key, chosen in optional.items() if chosen is not None}


def _problem(unique_id: str, entity: Entity, value: str) -> dict[str, Any]:
    return {
        "platform": "binary_sensor",
        "name": entity.name,
        "unique_id": unique_id,
        "value_template": f"{{{{ {value} }}}}",
        "payload_on": "True",
        "payload_off": "False",
        "device_class": "problem",
        "entity_category": "diagnostic",
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
