"""How `edge-agent fleet` shows a site: JSON values, and lines of text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from edge_agent.cli.output import table

if TYPE_CHECKING:
    from edge_agent.fleet.records import DeviceState, SiteState

_LISTED = 20
"""Conflicts that are listed one by one."""
_MINUTE_S, _HOUR_S, _DAY_S = 60.0, 3600.0, 86_400.0


def site_values(site: SiteState) -> dict[str, Any]:
    """Return the site as JSON values, each device with how much it lacks."""
    devices = [
        asdict(one) | {"lag": max(0, site.version - one.mark), "seen_s": _ago(site.now, one.seen)}
        for one in site.devices
    ]
    return asdict(site) | {"devices": devices}


def site_lines(site: SiteState, own: str) -> list[str]:
    """Return the site as text; `own` is this device."""
    lines = [
        f"site {site.site}: {site.people} people, {site.exemplars} embeddings, {site.tombstones} erased,"
        f" version {site.version}",
        f"space {site.space} ({site.dimension} numbers), tables of version {site.schema}",
    ]
    if site.indexed is False:
        lines.append(
            "searches compare all embeddings, which is slow: run `edge-agent fleet init` for an index"
        )
    rows = [
        (
            f"{one.device} (this device)" if one.device == own else one.device,
            "left" if one.left else _span(_ago(site.now, one.seen)),
            None if one.left else f"{max(0, site.version - one.mark)}",
        )
        for one in site.devices
    ]
    lines += table(("device", "seen", "changes to apply"), rows, right={"changes to apply"}, wrap="device")
    for one, other in site.conflicts[:_LISTED]:
        lines.append(f"{one} and {other} are probably one person, but have two names")
    if site.conflicts:
        more = len(site.conflicts) - _LISTED
        lines.append(
            (f"and {more} more pairs; " if more > 0 else "")
            + "decide on any device: edge-agent gallery merge KEEP ABSORB, or gallery reject ONE OTHER"
        )
    return lines


def confirmations(version: int, devices: Sequence[DeviceState]) -> dict[str, Any]:
    """Return which devices have applied the version at which a person was erased."""
    return {
        "erased": version,
        "devices": [
            {"device": one.device, "confirmed": one.mark >= version, "left": one.left, "seen": one.seen}
            for one in devices
        ],
    }


def confirmation_lines(person: str, found: dict[str, Any]) -> list[str]:
    """Return `confirmations` as text."""
    present = [one for one in found["devices"] if not one["left"]]
    count = sum(one["confirmed"] for one in present)
    rows = [
        (one["device"], "left the site" if one["left"] else "confirmed" if one["confirmed"] else "not yet")
        for one in found["devices"]
    ]
    return [
        f"{person} was erased at the site at version {found['erased']}; {count} of {len(present)} device(s)"
        " have confirmed",
        *table(("device", "erased"), rows, right=(), wrap="device"),
    ]


def _ago(now: float, seen: float) -> float | None:
    """Return the seconds since a device was seen; None: never."""
    return max(0.0, now - seen) if seen > 0 else None


def _span(seconds: float | None) -> str:
    if seconds is None:
        return "never"
    for unit, length in (("d", _DAY_S), ("h", _HOUR_S), ("min", _MINUTE_S)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
