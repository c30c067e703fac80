"""Taking back what a device contributed to a site."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_agent.fleet.postgres import merging, rows

if TYPE_CHECKING:
    from edge_agent.fleet.postgres.connection import Connection

STEP = 200
"""Contributions of one version, since a page has whole versions."""


async def withdraw(connection: Connection, site: str, device: str) -> int:
    """End all contributions of a device, and delete its exemplars; return how many.

    Other devices drop them at their next exchange. People stay, until nobody has seen them for their time to
    live.
    """
    locked = await merging.lock(connection, site)
    ids = await connection.fetch(
        "SELECT id FROM contribution WHERE site = $1 AND device = $2 AND digest <> $3 ORDER BY id",
        site,
        device,
        rows.NOTHING,
    )
    version = locked.version
    for begin in range(0, len(ids), STEP):
        version += 1
        await connection.execute(
            "UPDATE contribution SET digest = $3, version = $4"
            " WHERE site = $1 AND device = $2 AND id = ANY($5::text[])",
            site,
            device,
            rows.NOTHING,
            version,
            [row["id"] for row in ids[begin : begin + STEP]],
        )
    status = await connection.execute("DELETE FROM exemplar WHERE site = $1 AND device = $2", site, device)
    gone = int(status.rsplit(" ", 1)[1])
    await connection.execute(
        "UPDATE site SET version = $2, exemplars = exemplars - $3 WHERE site = $1", site, version, gone
    )
    return gone
