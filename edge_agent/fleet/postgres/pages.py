"""Pages of what changed at a site, read in one snapshot and cut between versions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_agent.fleet.postgres import rows
from edge_agent.fleet.records import Page
from edge_agent.fleet.store import StaleMark

if TYPE_CHECKING:
    from edge_agent.fleet.postgres.connection import Connection

_VERSIONED = ("person", "contribution", "apart", "camera_mean")
_CUT = " UNION ALL ".join(
    f"(SELECT version FROM {table} WHERE site = $1 AND version > $2 ORDER BY version LIMIT $3)"  # noqa: S608
    for table in _VERSIONED
)


def check_mark(mark: int, version: int, horizon: int) -> None:
    """StaleMark: the store cannot tell this device what changed since its mark."""
    if mark < horizon:
        raise StaleMark(
            f"this device has changes of the site up to {mark}, and erased people are known from {horizon} on"
        )
    if mark > version:
        raise StaleMark(f"the store was restored: it has changes up to {version}, this device up to {mark}")


async def read(
    connection: Connection, site: str, dimension: int, mark: int, most: int, *, full: bool
) -> Page:
    """Return what changed after `mark`, see `FleetStore.pull`."""
    state = await connection.fetchrow(
        f"SELECT version, horizon, {rows.NOW} AS now FROM site WHERE site = $1",  # noqa: S608
        site,
    )
    assert state is not None
    if mark and not full:
        check_mark(mark, state["version"], state["horizon"])
    if mark == state["version"]:
        return Page(mark, mark, state["now"], (), (), (), ())
    cut = await connection.fetch(
        f"SELECT version FROM ({_CUT}) AS changes ORDER BY version LIMIT $3",  # noqa: S608
        site,
        mark,
        most,
    )
    upto: int = cut[-1]["version"] if len(cut) == most else state["version"]
    span = (site, mark, upto)
    changed = await connection.fetch(
        f"SELECT {rows.PERSON} FROM person WHERE site = $1 AND version > $2 AND version <= $3",  # noqa: S608
        *span,
    )
    keys = await connection.fetch(
        "SELECT id, device FROM contribution WHERE site = $1 AND version > $2 AND version <= $3", *span
    )
    contributions = await rows.contributions(
        connection, site, dimension, [(row["id"], row["device"]) for row in keys]
    )
    pairs = await connection.fetch(
        "SELECT one, other, reason FROM apart WHERE site = $1 AND version > $2 AND version <= $3", *span
    )
    means = await connection.fetch(
        "SELECT device, camera, epoch, people, total FROM camera_mean"
        " WHERE site = $1 AND version > $2 AND version <= $3",
        *span,
    )
    people = {row["id"]: rows.person(row) for row in changed}
    named = {one.id for one in contributions} | {id_ for row in pairs for id_ in (row["one"], row["other"])}
    missing = (named | {one.root for one in people.values()}) - people.keys()
    if missing:
        people |= {one.id: one for one in await rows.people(connection, site, missing)}
    return Page(
        upto,
        state["version"],
        state["now"],
        tuple(sorted(people.values(), key=lambda one: (one.version, one.id))),
        tuple(contributions),
        tuple(map(rows.apart, pairs)),
        tuple(map(rows.camera_mean, means)),
    )
