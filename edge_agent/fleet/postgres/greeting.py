"""The first call of a device: whether it and the store fit, and whether either was restored."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from edge_agent.fleet.postgres import rows
from edge_agent.fleet.postgres.connection import SCHEMA
from edge_agent.fleet.postgres.migrations import check_schema
from edge_agent.fleet.records import Welcome
from edge_agent.fleet.store import StoreRefused

if TYPE_CHECKING:
    from edge_agent.fleet.postgres.connection import Connection, Login
    from edge_agent.gallery.sync import Space


async def greet(
    connection: Connection,
    login: Login,
    space: Space,
    device: str,
    *,
    mark: int,
    receipts: Collection[str],
) -> tuple[str, Welcome]:
    """Return the site of the role, and what the store answers; see `FleetStore.hello`."""
    start = f"fleet store {login.where}: "
    # By its full name: tables without rights would else look like missing ones.
    version = await connection.fetchval(f"SELECT schema FROM {SCHEMA}.meta")  # noqa: S608
    check_schema(version, login.where)
    own = await connection.fetchrow("SELECT (own_row()).*")
    role = login.address.role
    if own is None or own["site"] is None:
        raise StoreRefused(
            f"{start}the role {role} belongs to no device: run `edge-agent fleet join` as administrator"
        )
    site: str = own["site"]
    if own["gone"]:
        raise StoreRefused(
            f"{start}the device {own['device']} left the site {site}: run `edge-agent fleet join` as"
            " administrator to admit it again, or set fleet.enabled = false"
        )
    if own["device"] != device:
        raise StoreRefused(
            f"{start}the role {role} is that of the device {own['device']}, and this one is {device}"
            " (mqtt.device): give each device its own role in fleet.store"
        )
    state = await connection.fetchrow(
        f"SELECT space, dimension, version, horizon, people, {rows.NOW} AS now FROM site"  # noqa: S608
        " WHERE site = $1",
        site,
    )
    if state is None:
        raise StoreRefused(
            f"{start}the site {site} is not there: run `edge-agent fleet init` as administrator"
        )
    if (state["space"], state["dimension"]) != (space.space, space.dimension):
        raise StoreRefused(
            f"{start}the site {site} has embeddings of {state['space']} ({state['dimension']} numbers), this"
            f" device of {space}: use the same network (engine.model), or make another site for this one"
        )
    confirmed, receipt = own["mark"], own["receipt"]
    known = receipt in receipts if receipt is not None else not receipts and mark == 0
    await connection.execute(
        f"UPDATE device SET seen = {rows.NOW} WHERE site = $1 AND device = $2",  # noqa: S608
        site,
        device,
    )
    return site, Welcome(state["version"], state["horizon"], known, confirmed, state["people"], state["now"])
