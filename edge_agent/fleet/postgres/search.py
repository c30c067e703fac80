"""Nearest people of a site by raw cosine: exact for small sites, by the site's HNSW index for others."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

from edge_agent.fleet.postgres import rows
from edge_agent.fleet.postgres.codec import packed, unpacked_sum
from edge_agent.fleet.records import (
    MOST_CANDIDATES,
    Answer,
    CameraMean,
    Candidate,
    Contribution,
    SitePerson,
    Vectors,
)

if TYPE_CHECKING:
    from edge_agent.fleet.postgres.connection import Connection, Row

MOST_INDEXED_NUMBERS = 2000
"""Longest vectors that pgvector indexes; sites with longer ones are searched exactly."""
EXACT_UP_TO = 10_000
"""Exemplars of a site up to which every one is compared. An index would hardly be faster, and makes changes
slower: it is built for sites that are larger."""
EF_SEARCH = ((100_000, 200), (300_000, 400))
"""Rows that a search of the index visits closely, by the most exemplars; see docs/decisions/076."""
MOST_EF_SEARCH = 800
"""For larger sites; pgvector has a limit of 1000."""
NEAREST = 40
"""Exemplars for each vector that is asked about: a person may have several of each device."""
EVIDENCE = 4
"""Best exemplars of a person that are searched for people who are alike."""
SITE_FORM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""A site's name stands in SQL, since an index of one site is only used where its name is a constant."""

IS_INDEXED = "coalesce((SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass($2)), false)"
"""Whether an index, the second parameter, is there and complete."""
SETTINGS = "SET LOCAL hnsw.iterative_scan = 'relaxed_order'; SET LOCAL jit = off;"
"""For transactions that search. Iterative: rows that a condition drops are replaced by others."""


def index_name(site: str) -> str:
    """Return the name of the index of a site."""
    return "exemplar_near_" + hashlib.sha256(site.encode()).hexdigest()[:16]


def index_statements(site: str, dimension: int, *, partitioned: bool = False) -> tuple[str, str]:
    """Return the statements that make the index of a site, while others read and write.

    Writers wait for it where the table is partitioned: PostgreSQL does not do it otherwise. ANALYZE keeps no
    samples of the index, which would outlive a person.
    """
    return (
        f"CREATE INDEX {'' if partitioned else 'CONCURRENTLY '}{index_name(site)} ON exemplar"
        f" USING hnsw ((embedding::vector({dimension})) vector_cosine_ops) WHERE site = {literal(site)}",
        f"ALTER INDEX {index_name(site)} ALTER COLUMN 1 SET STATISTICS 0",
    )


def ef_search(exemplars: int) -> int:
    """Return `hnsw.ef_search` for a site of some exemplars."""
    return next((value for most, value in EF_SEARCH if exemplars <= most), MOST_EF_SEARCH)


def literal(site: str) -> str:
    """Return a site's name as a constant of SQL."""
    if SITE_FORM.fullmatch(site) is None:
        raise ValueError(f"{site!r} is not a name of a site")
    return f"'{site}'"


@dataclass(frozen=True, slots=True)
class Searched:
    """A site, and how it is searched: by its index, or without `ef_search` by comparing every exemplar."""

    site: str
    dimension: int
    ef_search: int | None

    @property
    def settings(self) -> str:
        """Statements before a search."""
        return (
            SETTINGS if self.ef_search is None else f"{SETTINGS} SET LOCAL hnsw.ef_search = {self.ef_search};"
        )

    @property
    def settings_to_ask(self) -> str:
        """Statements before a question.

        The plan of a question by index is kept: an index is built when the tables are large. asyncpg makes a
        kept plan anew after five minutes, and PostgreSQL does after ANALYZE.
        """
        keep = "" if self.ef_search is None else " SET LOCAL plan_cache_mode = force_generic_plan;"
        return self.settings + keep

    def now(self, row: Row) -> Searched:
        """Return how the site is to be searched, by a row with the columns `_SIZE`."""
        exact = row["exemplars"] <= EXACT_UP_TO or not row["indexed"]
        return replace(self, ef_search=None if exact else ef_search(row["exemplars"]))

    @property
    def _distance(self) -> str:
        size = "" if self.ef_search is None else f"::vector({self.dimension})"
        return f"e.embedding{size} <=> q.vector"

    def nearest(self, condition: str = "true") -> str:
        """Return a lateral query for the exemplars nearest to `q.vector`, columns `id` and `distance`."""
        return (
            f"SELECT e.id, {self._distance} AS distance FROM exemplar e"  # noqa: S608
            f" WHERE e.site = {literal(self.site)} AND {condition} ORDER BY {self._distance} LIMIT {NEAREST}"
        )


_SIZE = f"s.exemplars, {IS_INDEXED} AS indexed"
"""Of the row `s` of a site, whose index is the second parameter."""


async def ask(connection: Connection, how: Searched, vectors: Vectors, most: int) -> tuple[Answer, Searched]:
    """Return the nearest people to evidence, see `FleetStore.ask`, and how the site is to be searched now.

    Another way than `how` means that the answer is not the one that is wanted. One statement: each one more
    takes a tenth of the time of a search.
    """
    found = await connection.fetch(_question(how), how.site, index_name(how.site), packed(vectors), most)
    assert found
    people = {row["p_id"]: rows.person(row[:_WIDTH]) for row in found if row["p_id"] is not None}
    shared = [row for row in found if row["id"] is not None]
    candidates = _candidates(people, rows.collected(shared, how.dimension))
    means = [
        CameraMean(row["device"], row["camera"], row["epoch"], row["votes"], unpacked_sum(row["total"]))
        for row in shared
        if row["total"] is not None
    ]
    answer = Answer(tuple(candidates.values()), tuple(means), found[0]["people"], found[0]["now"])
    return answer, how.now(found[0])


_PERSON = rows.PERSON.replace(" ", "").split(",")
_WIDTH = len(_PERSON)


def _question(how: Searched) -> str:
    """Return the statement for site, name of its index, vectors, and number of people.

    It has a row for each exemplar of the nearest people, and one for each id that has none; the sum of a view
    is in the first row of the view. A site without people has one row.
    """
    person = ", ".join(f"p.{name} AS p_{name}" for name in _PERSON)
    found = ", ".join(f"found.p_{name}" for name in _PERSON)
    return (
        "WITH near AS MATERIALIZED (SELECT near.id, min(near.distance) AS distance"  # noqa: S608
        "  FROM unnest($3::vector[]) AS q (vector)"
        f"  CROSS JOIN LATERAL ({how.nearest()}) AS near GROUP BY near.id),"
        " best AS MATERIALIZED (SELECT p.root, min(near.distance) AS distance FROM near"
        "  JOIN person p ON p.site = $1 AND p.id = near.id"
        "  GROUP BY p.root ORDER BY distance, p.root LIMIT $4),"
        f" found AS (SELECT best.distance, {person}, e.id, e.device, e.number, e.camera, e.epoch, e.quality,"
        "   e.embedding, row_number() OVER (PARTITION BY e.device, e.camera, e.epoch) AS place"
        "  FROM best JOIN person p ON p.site = $1 AND p.root = best.root"
        "  LEFT JOIN exemplar e ON e.site = $1 AND e.id = p.id)"
        f" SELECT {found}, found.id, found.device, found.camera, found.epoch, found.quality, found.embedding,"
        f" m.people AS votes, m.total, s.people, {_SIZE}, {rows.NOW} AS now"
        " FROM site s LEFT JOIN found ON true LEFT JOIN camera_mean m ON m.site = $1 AND found.place = 1"
        "  AND m.device = found.device AND m.camera = found.camera AND m.epoch = found.epoch"
        " WHERE s.site = $1 ORDER BY found.distance, found.p_root, found.id, found.device, found.number"
    )


async def alike(
    connection: Connection, site: str, dimension: int, after: int, most: int
) -> tuple[int, list[tuple[Candidate, list[Candidate]]]]:
    """Return people whose exemplars changed, with those nearest to them, see `FleetStore.alike`."""
    size = await connection.fetchrow(
        f"SELECT {_SIZE} FROM site s WHERE site = $1",  # noqa: S608
        site,
        index_name(site),
    )
    assert size is not None
    how = Searched(site, dimension, None).now(size)
    await connection.execute(how.settings)
    next_ = await connection.fetch(
        "SELECT version FROM contribution WHERE site = $1 AND version > $2 AND digest <> $4"
        " ORDER BY version LIMIT $3",
        site,
        after,
        most,
        rows.NOTHING,
    )
    if len(next_) == most:
        upto: int = next_[-1]["version"]
    else:
        upto = await connection.fetchval("SELECT version FROM site WHERE site = $1", site)
    found = await connection.fetch(
        "SELECT p.root, array_agg(DISTINCT m.id) AS ids FROM contribution c"
        " JOIN person p ON p.site = $1 AND p.id = c.id JOIN person m ON m.site = $1 AND m.root = p.root"
        " WHERE c.site = $1 AND c.version > $2 AND c.version <= $3 AND c.digest <> $4 GROUP BY p.root",
        site,
        after,
        upto,
        rows.NOTHING,
    )
    near: dict[str, list[str]] = {}
    for row in found:
        near[row["root"]] = await _neighbours(connection, how, row["ids"])
    candidates = await candidates_of(
        connection, site, dimension, {*near, *chain.from_iterable(near.values())}
    )
    return upto, [
        (candidates[root], [candidates[other] for other in others]) for root, others in near.items()
    ]


async def _neighbours(connection: Connection, how: Searched, ids: Sequence[str]) -> list[str]:
    """Return the people nearest to the best exemplars of a person whose ids are given."""
    found = await connection.fetch(
        "WITH q AS (SELECT embedding AS vector FROM exemplar WHERE site = $1 AND id = ANY($2::text[])"  # noqa: S608
        " ORDER BY number, quality DESC LIMIT $3),"
        " near AS MATERIALIZED (SELECT near.id, min(near.distance) AS distance FROM q"
        f"  CROSS JOIN LATERAL ({how.nearest('e.id <> ALL($2::text[])')}) AS near GROUP BY near.id)"
        " SELECT p.root, min(near.distance) AS distance FROM near"
        " JOIN person p ON p.site = $1 AND p.id = near.id"
        " GROUP BY p.root ORDER BY distance, p.root LIMIT $4",
        how.site,
        ids,
        EVIDENCE,
        MOST_CANDIDATES,
    )
    return [row["root"] for row in found]


async def candidates_of(
    connection: Connection, site: str, dimension: int, roots: Collection[str]
) -> dict[str, Candidate]:
    """Return people with everything that devices contributed to all of their ids."""
    found = await connection.fetch(
        f"SELECT {rows.PERSON} FROM person WHERE site = $1 AND root = ANY($2::text[])",  # noqa: S608
        site,
        list(roots),
    )
    people = {row["id"]: rows.person(row) for row in found}
    return _candidates(people, await rows.contributions_of(connection, site, dimension, list(people)))


def _candidates(people: Mapping[str, SitePerson], found: Iterable[Contribution]) -> dict[str, Candidate]:
    """Return people by root, in the order of their first id."""
    parts: dict[str, list[Contribution]] = {one.root: [] for one in people.values()}
    for contribution in found:
        parts[people[contribution.id].root].append(contribution)
    return {root: Candidate(people[root], tuple(all_)) for root, all_ in parts.items()}
