"""Rows of the tables as records, and back. Every query is about one site, its first parameter."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from edge_agent.fleet.postgres.codec import unpacked, unpacked_sum
from edge_agent.fleet.records import Apart, CameraMean, Contribution, SharedExemplar, SitePerson
from edge_agent.fleet.rules import digest

if TYPE_CHECKING:
    from edge_agent.fleet.postgres.connection import Connection, Row

NOW = "extract(epoch FROM clock_timestamp())::float8"
"""Time of the server's clock; that of the transaction would be older than the wait for a lock."""
PERSON = (
    "id, created, root, kind, name, ttl_s, first_seen, last_seen, device, camera, forgotten, version, named,"
    " ttl_set"
)
NOTHING = digest(())
"""Of a contribution that has ended."""
_EXEMPLAR = "id, device, camera, epoch, quality, embedding"


def person(row: Row | tuple[Any, ...]) -> SitePerson:
    """Return a row with the columns `PERSON`."""
    return SitePerson(*row)


async def people(connection: Connection, site: str, ids: Collection[str]) -> list[SitePerson]:
    """Return the rows of ids, and those of their roots."""
    found = await connection.fetch(
        f"SELECT {PERSON} FROM person WHERE site = $1 AND (id = ANY($2::text[]) OR id = ANY("  # noqa: S608
        "SELECT root FROM person WHERE site = $1 AND id = ANY($2::text[])))",
        site,
        list(ids),
    )
    return [person(row) for row in found]


async def contributions_of(
    connection: Connection, site: str, dimension: int, ids: Sequence[str]
) -> list[Contribution]:
    """Return all contributions to some ids of which something is left."""
    if not ids:
        return []
    found = await connection.fetch(
        f"SELECT {_EXEMPLAR} FROM exemplar WHERE site = $1 AND id = ANY($2::text[])"  # noqa: S608
        " ORDER BY id, device, number",
        site,
        ids,
    )
    return collected(found, dimension)


async def contributions(
    connection: Connection, site: str, dimension: int, keys: Sequence[tuple[str, str]]
) -> list[Contribution]:
    """Return contributions by `(id, device)`, sorted; those of which nothing is left are empty."""
    if not keys:
        return []
    rows = await connection.fetch(
        f"SELECT {_EXEMPLAR} FROM exemplar"  # noqa: S608
        " JOIN unnest($2::text[], $3::text[]) AS wanted (id, device) USING (id, device)"
        " WHERE site = $1 ORDER BY id, device, number",
        site,
        [id_ for id_, _ in keys],
        [device for _, device in keys],
    )
    found = {key: Contribution(*key, ()) for key in sorted(keys)}
    found |= {(one.id, one.device): one for one in collected(rows, dimension)}
    return list(found.values())


def collected(rows: Sequence[Row], dimension: int) -> list[Contribution]:
    """Return contributions of rows in which those of an id and a device follow each other, by number."""
    vectors = iter(unpacked([row["embedding"] for row in rows], dimension))
    return [
        Contribution(
            *key,
            tuple(
                SharedExemplar(row["camera"], row["epoch"], row["quality"], next(vectors)) for row in group
            ),
        )
        for key, group in groupby(rows, key=lambda row: (row["id"], row["device"]))
    ]


def apart(row: Row) -> Apart:
    """Return a row with the columns one, other, reason."""
    return Apart(row["one"], row["other"], row["reason"])


def camera_mean(row: Row) -> CameraMean:
    """Return a row of `camera_mean`."""
    return CameraMean(row["device"], row["camera"], row["epoch"], row["people"], unpacked_sum(row["total"]))
