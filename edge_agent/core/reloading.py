"""Which settings a running agent can apply on reload."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_agent.core.config import Settings

RELOADABLE = frozenset(
    {
        "identify",
        "log_level",
        "log_format",
        "telemetry.interval_s",
        "gallery.ttl_hours",
        "gallery.enrolled_ttl_hours",
        "gallery.keep_crops",
        "gallery.crops_mb",
        "supervision",
        "governor",
    }
)
"""Dotted keys and sections that a running agent applies on reload; the others need a restart."""


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def changes(old: Settings, new: Settings) -> tuple[list[str], list[str]]:
    """Return the keys that differ: those that apply on reload, and those that need a restart."""
    before, after = _flatten(old.model_dump()), _flatten(new.model_dump())
    differ = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    live = [key for key in differ if key in RELOADABLE or key.split(".")[0] in RELOADABLE]
    return live, [key for key in differ if key not in live]
