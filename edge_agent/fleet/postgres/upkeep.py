"""Tasks of a whole site, for the device that has the lease, and what `status` shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_agent.fleet import rules
from edge_agent.fleet.postgres import merging, rows, search
from edge_agent.fleet.records import DeviceState, SiteState

if TYPE_CHECKING:
    from edge_agent.fleet.postgres.connection import Connection

MOST_AT_ONCE = 500
"""People who expire in one transaction, which locks the site."""


async def lease(connection: Connection, site: str, device: str, name: str, seconds: float) -> bool:
    """Take or keep a lease, see `FleetStore.lease`."""
    kept = await connection.fetchval(
        f"UPDATE lease SET device = $3, until = {rows.NOW} + $4"  # noqa: S608
        f" WHERE site = $1 AND name = $2 AND (device = $3 OR until <= {rows.NOW}) RETURNING true",
        site,
        name,
        device,
        seconds,
    )
    if kept:
        return True
    made = await connection.fetchval(
        f"INSERT INTO lease (site, name, device, until) VALUES ($1, $2, $3, {rows.NOW} + $4)"  # noqa: S608
        " ON CONFLICT DO NOTHING RETURNING true",
        site,
        name,
        device,
        seconds,
    )
    return bool(made)


async def leads(connection: Connection, locked: merging.Locked, device: str, name: str) -> bool:
    """Return whether the device has a lease."""
    held = await connection.fetchval(
        "SELECT true FROM lease WHERE site = $1 AND name = $2 AND device = $3 AND until > $4",
        locked.site,
        name,
        device,
        locked.now,
    )
    return bool(held)


async def tidy_some(connection: Connection, site: str, device: str, name: str, tombstone_s: float) -> bool:
    """Erase some people who expired, then old tombstones; return whether more people are waiting."""
    locked = await merging.lock(connection, site)
    if not await leads(connection, locked, device, name):
        return False
    due = await merging.due(connection, locked, MOST_AT_ONCE)
    if due:
        held = await merging.held_for_ids(connection, site, due)
        change = rules.Merging(held, locked.version, locked.now, retention=locked.retention)
        change.erase(due, "expired")
        await merging.write(connection, locked, device, held, change.changed())
    if len(due) == MOST_AT_ONCE:
        return True
    await _drop_tombstones(connection, locked, tombstone_s)
    await connection.execute(
        "DELETE FROM conflict c WHERE site = $1 AND EXISTS (SELECT 1 FROM person p WHERE p.site = $1"
        " AND p.id IN (c.one, c.other) AND (p.root <> p.id OR p.name IS NULL))",
        site,
    )
    return False


async def _drop_tombstones(connection: Connection, locked: merging.Locked, tombstone_s: float) -> None:
    """Forget who was erased long ago; a device that may not know of it takes a full copy from now on."""
    gone = await connection.fetch(
        "DELETE FROM person WHERE site = $1 AND forgotten IS NOT NULL AND last_seen <= $2 RETURNING version",
        locked.site,
        locked.now - tombstone_s,
    )
    if not gone:
        return
    horizon = max(locked.horizon, *(row["version"] for row in gone))
    await connection.execute("UPDATE site SET horizon = $2 WHERE site = $1", locked.site, horizon)
    await connection.execute(
        "DELETE FROM contribution WHERE site = $1 AND version <= $2 AND digest = $3",
        locked.site,
        horizon,
        rows.NOTHING,
    )


async def devices(connection: Connection, site: str) -> tuple[DeviceState, ...]:
    """Return all devices of a site."""
    found = await connection.fetch(
        "SELECT device, mark, seen, gone FROM device WHERE site = $1 ORDER BY device", site
    )
    return tuple(DeviceState(*row) for row in found)


async def state(connection: Connection, site: str) -> SiteState:
    """Return the site for `status`."""
    row = await connection.fetchrow(
        "SELECT site, space, dimension, (SELECT schema FROM meta) AS schema, version, horizon,"  # noqa: S608
        f" {rows.NOW} AS now, people, exemplars, {search.IS_INDEXED} AS indexed,"
        " (SELECT count(*) FROM person p WHERE p.site = $1 AND forgotten IS NOT NULL) AS tombstones,"
        " ttl_s, enrolled_ttl_s FROM site WHERE site = $1",
        site,
        search.index_name(site),
    )
    assert row is not None
    needed = row["exemplars"] > search.EXACT_UP_TO and row["dimension"] <= search.MOST_INDEXED_NUMBERS
    conflicts = await connection.fetch(
        "SELECT one, other FROM conflict c WHERE site = $1"
        " AND (SELECT count(*) FROM person p WHERE p.site = $1 AND p.id IN (c.one, c.other)"
        "  AND p.id = p.root AND p.name IS NOT NULL) = 2"
        " AND NOT EXISTS (SELECT 1 FROM apart a WHERE a.site = $1 AND a.one = c.one AND a.other = c.other)"
        " ORDER BY one, other",
        site,
    )
    return SiteState(
        **{**row, "indexed": row["indexed"] if needed else None},
        conflicts=tuple((pair["one"], pair["other"]) for pair in conflicts),
        devices=await devices(connection, site),
    )
