"""Secrets among the settings: which keys they are, whether a file has some, and what may be shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from edge_agent.core.config import Settings
from edge_agent.core.redaction import (
    LEAST_SECRET,
    broker_address,
    parse_address,
    public_address,
    public_source,
)

SECRET_KEYS = (
    ("mqtt", "password"),
    ("kafka", "password"),
    ("storage", "key"),
    ("telemetry", "http_token"),
    ("engine", "triton_token"),
    ("fleet", "password"),
)
"""Section and key of each setting that is a secret as a whole. Addresses may have secrets in them."""
_VARIABLE = re.compile(
    rf"EDGE_AGENT__\w*(?:{'|'.join(key for _, key in SECRET_KEYS)}|url|broker\b|sources)", re.IGNORECASE
)


def shown(settings: Settings) -> dict[str, Any]:
    """Return the settings as JSON values, with secrets and credentials in addresses masked."""
    values = settings.model_dump(mode="json")
    for source in values["sources"]:
        source["url"] = public_source(source["url"])
    if values["mqtt"]["broker"]:
        values["mqtt"]["broker"] = public_address(broker_address(values["mqtt"]["broker"]))
    return values


def secrets_of(settings: Settings) -> frozenset[str]:
    """Return what must not appear in any output: keys, passwords, and what `core.redaction` masks."""
    addresses = [source.url for source in settings.sources]
    addresses += [broker_address(settings.mqtt.broker)] if settings.mqtt.broker else []
    found = {secret for one in map(parse_address, addresses) if one is not None for secret in one.secrets}
    for section, name in SECRET_KEYS:
        value = getattr(getattr(settings, section), name)
        if value is not None and len(value.get_secret_value()) >= LEAST_SECRET:
            found.add(value.get_secret_value())
    return frozenset(found)


def holds_secret(values: Mapping[str, Any]) -> bool:
    """Whether the values of a TOML file have one of `SECRET_KEYS`, or an address that may have a password."""
    mqtt, sources = values.get("mqtt"), values.get("sources")
    addresses = [one.get("url") for one in sources or () if isinstance(one, dict)]
    if isinstance(mqtt, dict):
        addresses.append(broker_address(str(mqtt.get("broker", ""))))
    parsed = [parse_address(str(address)) for address in addresses]
    return any(
        isinstance(values.get(section), dict) and key in values[section] for section, key in SECRET_KEYS
    ) or any(one is not None and one.may_hold_password for one in parsed)


def sets_secret(variables: str) -> bool:
    """Whether the text of a file of environment variables sets a secret, or an address."""
    return _VARIABLE.search(variables) is not None
