"""Changes of a site: rows are loaded under its lock, changed by `fleet.rules`, and written back in sets."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_agent.fleet import rules
from edge_agent.fleet.postgres import rows
from edge_agent.fleet.postgres.codec import packed, packed_sum
from edge_agent.fleet.records import CameraMean, Contribution, Pair, Push, SitePerson

if TYPE_CHECKING:
    from edge_agent.fleet.postgres.connection import Connection


@dataclass(frozen=True, slots=True)
class Locked:
    """The row of a site, locked until the end of the transaction, and the time at which it was."""

    site: str
    version: int
    horizon: int
    now: float
    retention: rules.Retention


async def lock(connection: Connection, site: str) -> Locked:
    """Lock a site for a change; others wait."""
    row = await connection.fetchrow(
        f"SELECT version, horizon, {rows.NOW} AS now, ttl_s, enrolled_ttl_s FROM site"  # noqa: S608
        " WHERE site = $1 FOR UPDATE",
        site,
    )
    assert row is not None
    retention = rules.Retention(row["ttl_s"], row["enrolled_ttl_s"])
    return Locked(site, row["version"], row["horizon"], row["now"], retention)


async def held_for_push(connection: Connection, site: str, device: str, push: Push) -> rules.Held:
    """Load what the rules need for a push."""
    ids = list(rules.named_ids(push))
    people = await _groups(connection, site, ids)
    digests: dict[str, bytes] = {}
    if any(change.exemplars is not None for change in push.people):
        found = await connection.fetch(
            "SELECT id, digest FROM contribution WHERE site = $1 AND device = $2 AND id = ANY($3::text[])",
            site,
            device,
            ids,
        )
        digests = {row["id"]: row["digest"] for row in found}
    names = {one.name: one.id for one in people.values() if one.name is not None}
    wanted = rules.possible_names(push)
    if wanted:
        found = await connection.fetch(
            "SELECT name, id FROM person WHERE site = $1 AND name = ANY($2::text[])", site, list(wanted)
        )
        names |= {row["name"]: row["id"] for row in found}
    pairs = await _pairs(connection, site, people)
    return rules.Held(people, digests, pairs, names, await _means(connection, site, device, push.means))


async def held_for_ids(connection: Connection, site: str, ids: Iterable[str]) -> rules.Held:
    """Load what the rules need to join or erase people."""
    people = await _groups(connection, site, list(ids))
    names = {one.name: one.id for one in people.values() if one.name is not None}
    return rules.Held(people, {}, await _pairs(connection, site, people), names, {})


async def due(connection: Connection, locked: Locked, most: int) -> list[str]:
    """Return people who were seen by no device for their time to live."""
    found = await connection.fetch(
        "SELECT id FROM (SELECT id, last_seen,"
        " coalesce(ttl_s, CASE kind WHEN 'auto' THEN $3::float8 ELSE $4::float8 END) AS ttl FROM person"
        " WHERE site = $1 AND forgotten IS NULL AND id = root) AS live"
        " WHERE ttl > 0 AND last_seen + ttl <= $2 LIMIT $5",
        locked.site,
        locked.now,
        locked.retention.ttl_s,
        locked.retention.enrolled_ttl_s,
        most,
    )
    return [row["id"] for row in found]


async def _groups(connection: Connection, site: str, ids: list[str]) -> dict[str, SitePerson]:
    """Return all rows of the people to whom ids belong."""
    if not ids:
        return {}
    found = await connection.fetch(
        f"SELECT {rows.PERSON} FROM person WHERE site = $1 AND root = ANY(ARRAY("  # noqa: S608
        "SELECT root FROM person WHERE site = $1 AND id = ANY($2::text[])))",
        site,
        ids,
    )
    return {row["id"]: rows.person(row) for row in found}


async def _pairs(connection: Connection, site: str, people: Collection[str]) -> set[tuple[str, str]]:
    """Return the pairs of which both are among these people."""
    if len(people) < 2:
        return set()
    found = await connection.fetch(
        "SELECT one, other FROM apart WHERE site = $1 AND one = ANY($2::text[]) AND other = ANY($2::text[])",
        site,
        list(people),
    )
    return {(row["one"], row["other"]) for row in found}


async def _means(
    connection: Connection, site: str, device: str, means: Sequence[CameraMean]
) -> dict[tuple[str, int], CameraMean]:
    if not means:
        return {}
    found = await connection.fetch(
        "SELECT device, camera, epoch, people, total FROM camera_mean"
        " WHERE site = $1 AND device = $2 AND camera = ANY($3::text[])",
        site,
        device,
        [mean.camera for mean in means],
    )
    return {(row["camera"], row["epoch"]): rows.camera_mean(row) for row in found}


# ---- writing


async def write(
    connection: Connection, locked: Locked, device: str, held: rules.Held, changed: rules.Changed
) -> None:
    """Write what the rules returned. Tombstones come first: they permit to delete what others contributed."""
    if changed.version == locked.version and not changed.conflicts:
        return
    site = locked.site
    if changed.people:
        await _write_people(connection, site, changed.people)
    exemplars = 0
    if changed.erased:
        exemplars -= await _delete_erased(connection, site, changed.erased)
    if changed.contributions:
        exemplars += await _write_contributions(connection, site, device, changed)
    if changed.joined:
        await connection.execute(
            f"DELETE FROM apart WHERE site = $1 AND (one, other) IN (SELECT {_PAIRS})",  # noqa: S608
            site,
            *_columns(changed.joined),
        )
    if changed.apart:
        await connection.execute(
            "INSERT INTO apart (site, one, other, reason, version)"
            " SELECT $1, one, other, reason, $2 FROM unnest($3::text[], $4::text[], $5::text[])"
            " AS new (one, other, reason) ON CONFLICT DO NOTHING",
            site,
            changed.version,
            *_columns([(pair.one, pair.other, pair.reason) for pair in changed.apart]),
        )
    if changed.means:
        await _write_means(connection, site, device, changed)
    if changed.conflicts:
        await connection.execute(
            f"INSERT INTO conflict (site, one, other) SELECT $1, {_PAIRS} ON CONFLICT DO NOTHING",
            site,
            *_columns(changed.conflicts),
        )
    before = [held.people[one.id] for one in changed.people if one.id in held.people]
    await connection.execute(
        "UPDATE site SET version = $2, people = people + $3, exemplars = exemplars + $4 WHERE site = $1",
        site,
        changed.version,
        sum(map(_lives, changed.people)) - sum(map(_lives, before)),
        exemplars,
    )


_PAIRS = "unnest($2::text[]), unnest($3::text[])"
_COLUMNS = rows.PERSON.replace(" ", "").split(",")
_TYPES = {
    "created": "bigint",
    "version": "bigint",
    "named": "bigint",
    "ttl_set": "bigint",
    "ttl_s": "float8",
    "first_seen": "float8",
    "last_seen": "float8",
}
_ARRAYS = ", ".join(f"${place}::{_TYPES.get(name, 'text')}[]" for place, name in enumerate(_COLUMNS, 2))
_REPLACE = ", ".join(f"{name} = excluded.{name}" for name in _COLUMNS if name not in ("id", "created"))
_PUT_PEOPLE = (
    f"INSERT INTO person (site, {rows.PERSON}) SELECT $1, new.* FROM unnest({_ARRAYS}) AS new"  # noqa: S608
    f" ON CONFLICT (site, id) DO UPDATE SET {_REPLACE}"
)


def _columns(values: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    """Return rows as columns, each the value of one parameter."""
    return [list(column) for column in zip(*values, strict=True)]


def _lives(person: SitePerson) -> bool:
    return person.forgotten is None and person.root == person.id


async def _write_people(connection: Connection, site: str, people: Sequence[SitePerson]) -> None:
    values = [tuple(getattr(one, name) for name in _COLUMNS) for one in people]
    await connection.execute(_PUT_PEOPLE, site, *_columns(values))


async def _delete_erased(connection: Connection, site: str, ids: Sequence[str]) -> int:
    """Delete everything that belongs to erased people; return the number of exemplars."""
    gone = await connection.execute(
        "DELETE FROM exemplar WHERE site = $1 AND id = ANY($2::text[])", site, list(ids)
    )
    await connection.execute(
        "DELETE FROM contribution WHERE site = $1 AND id = ANY($2::text[])", site, list(ids)
    )
    for table in ("apart", "conflict"):
        await connection.execute(
            f"DELETE FROM {table} WHERE site = $1 AND (one = ANY($2::text[]) OR other = ANY($2::text[]))",  # noqa: S608
            site,
            list(ids),
        )
    return _count(gone)


def _count(status: str) -> int:
    """Return the number of rows in the answer to a statement, `DELETE 3`."""
    return int(status.rsplit(" ", 1)[1])


async def _write_contributions(connection: Connection, site: str, device: str, changed: rules.Changed) -> int:
    """Replace contributions of this device as a whole; return by how much the exemplars grew."""
    found = changed.contributions
    gone = await connection.execute(
        "DELETE FROM exemplar WHERE site = $1 AND device = $2 AND id = ANY($3::text[])",
        site,
        device,
        [one.id for one in found],
    )
    await connection.execute(
        "INSERT INTO contribution (site, device, version, id, digest)"
        " SELECT $1, $2, $3, new.* FROM unnest($4::text[], $5::bytea[]) AS new"
        " ON CONFLICT (site, id, device) DO UPDATE SET digest = excluded.digest, version = excluded.version",
        site,
        device,
        changed.version,
        *_columns([(one.id, changed.digests[one.id]) for one in found]),
    )
    return await _insert_exemplars(connection, site, device, found) - _count(gone)


async def _insert_exemplars(
    connection: Connection, site: str, device: str, found: Sequence[Contribution]
) -> int:
    vectors = [exemplar.vector for one in found for exemplar in one.exemplars]
    if not vectors:
        return 0
    embeddings = iter(packed(np.stack(vectors)))
    values = [
        (one.id, number, exemplar.camera, exemplar.epoch, exemplar.quality, next(embeddings))
        for one in found
        for number, exemplar in enumerate(one.exemplars)
    ]
    await connection.execute(
        "INSERT INTO exemplar (site, device, id, number, camera, epoch, quality, embedding)"
        " SELECT $1, $2, new.* FROM unnest($3::text[], $4::smallint[], $5::text[], $6::bigint[],"
        " $7::float8[], $8::vector[]) AS new",
        site,
        device,
        *_columns(values),
    )
    return len(values)


async def _write_means(connection: Connection, site: str, device: str, changed: rules.Changed) -> None:
    await connection.execute(
        "INSERT INTO camera_mean (site, device, version, camera, epoch, people, total)"
        " SELECT $1, $2, $3, new.* FROM unnest($4::text[], $5::bigint[], $6::float8[], $7::bytea[]) AS new"
        " ON CONFLICT (site, device, camera, epoch)"
        " DO UPDATE SET people = excluded.people, total = excluded.total, version = excluded.version",
        site,
        device,
        changed.version,
        *_columns([(one.camera, one.epoch, one.people, packed_sum(one.total)) for one in changed.means]),
    )


async def join(connection: Connection, locked: Locked, device: str, pairs: Collection[Pair]) -> int:
    """Merge pairs of people by the rules; return how many."""
    ids = {id_ for pair in pairs for id_ in (pair.one, pair.other)}
    held = await held_for_ids(connection, locked.site, ids)
    merging = rules.Merging(held, locked.version, locked.now, device=device)
    merging.join(pairs)
    changed = merging.changed()
    await write(connection, locked, device, held, changed)
    return changed.merged
