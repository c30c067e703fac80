"""Check of the fleet: the store as this device sees it, its certificate, clocks, and times to live."""

from __future__ import annotations

import ssl
import time
from typing import TYPE_CHECKING

from edge_agent.cli.checks import Finding
from edge_agent.core.errors import EdgeAgentError

if TYPE_CHECKING:
    from edge_agent.core.config import Settings
    from edge_agent.core.structures import EngineInfo
    from edge_agent.fleet.postgres.connection import Login
    from edge_agent.fleet.postgres.store import PostgresStore
    from edge_agent.fleet.records import SiteState, Welcome

SOON_S = 30 * 86_400.0
"""A certificate that ends within this time is a warning."""
OFFSET_S = 60.0
"""Difference of the clocks that is a warning: people's times are then shown differently by device."""
_CONNECT_S = 5.0


def fleet(settings: Settings, engine: EngineInfo | None) -> list[Finding]:
    """Greet the store as this device does."""
    from edge_agent.cli.fleet_access import complete, require_member, space_of, visit
    from edge_agent.gallery.sync import Space

    if not settings.fleet.enabled:
        return [Finding("fleet", "note", "off: embeddings and names stay on this device")]
    try:
        login = require_member(settings)
    except EdgeAgentError as problem:
        return [Finding("fleet", "missing", str(problem))]
    findings = certificate(login)
    try:
        space = space_of(settings) if engine is None else Space(engine.space, engine.dimension)
        site, offset_s = complete(visit(settings, login, work=_look, space=space))
    except EdgeAgentError as problem:
        return [Finding("fleet", "warning", str(problem), "the device works alone meanwhile"), *findings]
    found = (
        f"{site.site} on {login.where}: {site.people} people, {len(site.devices)} device(s), tables of"
        f" version {site.schema}"
    )
    findings.insert(0, Finding("fleet", "ok", found))
    if site.indexed is False:
        found = f"a search compares all {site.exemplars} embeddings, which is slow"
        advice = "run edge-agent fleet init as administrator: it builds an index, and devices go on meanwhile"
        findings.append(Finding("fleet index", "warning", found, advice))
    if abs(offset_s) > OFFSET_S:
        side = "ahead of" if offset_s > 0 else "behind"
        found = f"the server's clock is {abs(offset_s):.0f} s {side} this one"
        findings.append(Finding("fleet clock", "warning", found, "let NTP set both: timedatectl"))
    return [*findings, *retention(settings, site)]


async def _look(store: PostgresStore, welcome: Welcome) -> tuple[SiteState, float]:
    offset_s = welcome.now - time.time()
    return await store.state(), offset_s


def retention(settings: Settings, site: SiteState) -> list[Finding]:
    """Compare the times to live of the site with those of this device."""
    own = settings.gallery.ttl_hours, settings.gallery.enrolled_ttl_hours
    theirs = tuple(None if one is None else one / 3600 for one in (site.ttl_s, site.enrolled_ttl_s))
    if own == theirs:
        return []
    text = (
        f"this device keeps people for {_hours(own)}, the site for {_hours(theirs)} after they were last seen"
    )
    advice = (
        "set gallery.ttl_hours and enrolled_ttl_hours alike on all devices; edge-agent fleet init sets the"
        " site's"
    )
    return [Finding("fleet retention", "warning", text, advice)]


def _hours(hours: tuple[float | None, ...]) -> str:
    auto, enrolled = ("ever" if one is None else f"{one:g} h" for one in hours)
    return f"{auto} ({enrolled} if enrolled)"


def certificate(login: Login) -> list[Finding]:
    """Look when the server's certificate ends; nothing where there is no TLS, or it cannot be had."""
    from edge_agent.fleet.postgres.handshake import server_certificate

    try:
        ends = server_certificate(login, _CONNECT_S).get("notAfter")
    except (OSError, EdgeAgentError):  # greeting the store reports it better
        return []
    if not isinstance(ends, str):
        return []
    left_s = ssl.cert_time_to_seconds(ends) - time.time()
    if left_s > SOON_S:
        return []
    found = f"the server's certificate ends in {left_s / 86_400:.0f} day(s), on {ends}"
    return [Finding("fleet certificate", "warning", found, "renew it on the server: docs/fleet.md")]
