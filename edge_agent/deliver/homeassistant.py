"""Announces the device to Home Assistant (2024.11 or newer) by one retained message of MQTT discovery.

Home Assistant then reads our own topics: the agent publishes nothing more for it. An empty retained message
in the place of the announcement removes the device again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from edge_agent.core.events import InfoData
from edge_agent.deliver.topics import Topics

__all__ = ["announcement", "discovery_topic"]

EXPIRE_S = 90
"""A value that was not told again for so long is shown as unavailable; as telemetry expires."""


def discovery_topic(topics: Topics, prefix: str = "homeassistant") -> str:
    """Where Home Assistant looks for the announcement."""
    return f"{prefix}/device/{_object_id(topics)}/config"


def announcement(topics: Topics, info: InfoData, *, zones: Sequence[str], rails: Sequence[str] = ()) -> bytes:
    """The announcement: what the device is, and which of its values become entities.

    Args:
        topics: of this device.
        info: what runs here.
        zones: names of the temperature sensors, as in the telemetry.
        rails: names of the power rails, as in the telemetry.
    """
    device_id = _object_id(topics)
    components = {
        "state": _state(topics, device_id),
        "throttled": _problem(device_id, "Throttled", "throttled", "{{ value_json.data.throttled }}"),
        "stuck": _problem(device_id, "Stuck", "stuck", "{{ value_json.data.stuck | length > 0 }}"),
        "governor": _sensor(device_id, "Load lowered (step)", "governor_step", diagnostic=True),
        "people": _sensor(device_id, "People present", "people_present", icon="mdi:account-group"),
        "hottest": _temperature(device_id, "Hottest sensor", "hottest_c"),
        "power": _power(device_id, "Power", "power_total_w"),
        "crops": _sensor(device_id, "Crops", "crops_per_s", unit="1/s", diagnostic=True),
        "outbox": _sensor(device_id, "Events waiting", "outbox_rows", diagnostic=True),
    }
    components |= {f"zone_{_plain(z)}": _temperature(device_id, z, "temperatures_c", z) for z in zones}
    components |= {f"rail_{_plain(r)}": _power(device_id, r, "power_w", r) for r in rails}
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
                # `degraded` and `stopping` still tell values.
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


def _template(key: str, part: str | None) -> str:
    """A template that says `None`, which Home Assistant shows as unknown, where the device does not say."""
    if part is None:
        return f"{{{{ value_json.data.{key} }}}}"
    return f"{{{{ value_json.data.{key}.get({json.dumps(part)}) }}}}"


def _sensor(
    device_id: str,
    name: str,
    key: str,
    part: str | None = None,
    *,
    unit: str | None = None,
    device_class: str | None = None,
    icon: str | None = None,
    diagnostic: bool = False,
) -> dict[str, Any]:
    entity: dict[str, Any] = {
        "platform": "sensor",
        "name": name,
        "unique_id": f"{device_id}_{key}" + (f"_{_plain(part)}" if part else ""),
        "value_template": _template(key, part),
        "state_class": "measurement",
        "expire_after": EXPIRE_S,
    }
    more = {
        "unit_of_measurement": unit,
        "device_class": device_class,
        "icon": icon,
        "entity_category": "diagnostic" if diagnostic else None,
    }
    return entity | {field: value for field, value in more.items() if value is not None}


def _temperature(device_id: str, name: str, key: str, part: str | None = None) -> dict[str, Any]:
    return _sensor(device_id, name, key, part, unit="°C", device_class="temperature", diagnostic=True)


def _power(device_id: str, name: str, key: str, part: str | None = None) -> dict[str, Any]:
    return _sensor(device_id, name, key, part, unit="W", device_class="power", diagnostic=True)


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


def _problem(device_id: str, name: str, key: str, template: str) -> dict[str, Any]:
    return {
        "platform": "binary_sensor",
        "name": name,
        "unique_id": f"{device_id}_{key}",
        "value_template": template,
        "payload_on": "True",
        "payload_off": "False",
        "device_class": "problem",
        "entity_category": "diagnostic",
        "expire_after": EXPIRE_S,
    }
