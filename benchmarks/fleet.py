"""The store of a fleet on PostgreSQL: rates of sync, and questions beside raw SQL, on a server of its own.

    python -m benchmarks.fleet [--exemplars 100000] [--queries 100] [--rounds 10] [--keep FOLDER]
        [--output FILE.json]

People with 4 exemplars of 256 numbers, half of the variance in 24 directions, are pushed by one device and
pulled by another, in the parcels and pages of the agent. Then questions with one embedding are asked, in turn
with PostgreSQL's own pgbench: the same search in one prepared statement on one connection, with the same
settings of the index and the same limits, as administrator (without row-level security and without a
transaction around it), without what belongs to the people found (`search`), and with it (`rows`). The vectors
that pgbench asks for are in a table beside. Recall is that of the five best people, beside all products.

A site of a million exemplars takes half an hour to be filled on two busy cores: `--keep` keeps the server's
files in a folder, and asks at once where they are there. Remove it afterwards.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gallery import People
from edge_agent.core.files import read_json
from edge_agent.core.logs import configure
from edge_agent.core.manifest import write_json_atomic
from edge_agent.fleet.postgres import admin
from edge_agent.fleet.postgres.search import NEAREST, ef_search, index_name
from edge_agent.fleet.records import MOST_CANDIDATES, MOST_CHANGES, PersonChange, Push, SharedExemplar
from edge_agent.fleet.store import FleetStore
from edge_agent.fleet.sync import PAGE
from edge_agent.gallery.sync import Space
from tests.conftest import find_free_port
from tests.fleet import postgres_server
from tests.fleet.postgres_server import PostgresServer
from tests.fleet.postgres_site import Site
from tests.fleet.server_database import Database

Rows = NDArray[np.float32]

DIMENSION, EXEMPLARS = 256, 4
OPTIONS = "-c hnsw.iterative_scan=relaxed_order -c jit=off -c search_path=edge_agent,public"
_SEARCH = (
    "SELECT p.root, min(near.distance) AS distance FROM (SELECT e.id,"
    " e.embedding::vector({size}) <=> q.vector AS distance"
    " FROM exemplar e, (SELECT vector FROM question WHERE number = :number) AS q"
    " WHERE e.site = 'bench' ORDER BY e.embedding::vector({size}) <=> (SELECT vector FROM question"
    " WHERE number = :number) LIMIT {nearest}) AS near JOIN person p ON p.site = 'bench' AND p.id = near.id"
    " GROUP BY p.root ORDER BY distance, p.root LIMIT {most}"
)
_ROWS = (
    "WITH best AS MATERIALIZED ({search}) SELECT p.*, e.device, e.camera, e.quality, e.embedding FROM best"
    " JOIN person p ON p.site = 'bench' AND p.root = best.root"
    " JOIN exemplar e ON e.site = 'bench' AND e.id = p.id"
)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--exemplars", type=int, default=100_000)
    options.add_argument("--queries", type=int, default=100, help="in each round")
    options.add_argument("--rounds", type=int, default=10)
    options.add_argument("--keep", type=Path, help="folder of the server, which is filled once")
    options.add_argument("--output", type=Path, help="write the result as JSON")
    chosen = options.parse_args()
    configure("error")
    vectors, questions = _people(chosen.exemplars // EXEMPLARS)
    with _filled(vectors, chosen.keep) as (site, sync):
        result = {
            "exemplars": len(vectors) * EXEMPLARS,
            "dimension": DIMENSION,
            "sync": sync,
            **asyncio.run(_ask(site, vectors, questions, chosen.queries, chosen.rounds)),
        }
    if chosen.output is not None:
        write_json_atomic(chosen.output, result)
    print(markdown(result))


def _people(count: int) -> tuple[Rows, Rows]:
    """Return exemplars `(N, EXEMPLARS, DIMENSION)` and a question for each person."""
    vectors = np.empty((count, EXEMPLARS, DIMENSION), np.float32)
    questions = np.empty((count, DIMENSION), np.float32)
    for numbers, exemplars, asked in People(count, EXEMPLARS, DIMENSION, "steep", 0.9).pieces():
        for which, rows in enumerate(exemplars):
            vectors[numbers - 1, which] = rows
        questions[numbers - 1] = asked
    return vectors, questions


@contextmanager
def _filled(vectors: Rows, keep: Path | None) -> Iterator[tuple[Site, dict[str, Any]]]:
    """Return a site with all people, and the figures of its filling; `keep` is filled only once."""
    name = f"filled-{len(vectors)}.json"
    if keep is not None and keep.exists() and not (keep / name).is_file():
        raise SystemExit(f"{keep} is not the folder of such a site, or was not filled to the end: remove it")
    with _server(_settings(vectors.shape[0] * EXEMPLARS), keep) as server:
        site = Site(Database(server, "bench"), "bench", Space("bench", DIMENSION))
        note = server.folder / name
        if not note.is_file():
            server.run("psql", "-Xq", "-c", "CREATE DATABASE bench", server.address())
            site.init()
            write_json_atomic(note, asyncio.run(_synchronise(site, vectors)))
        yield site, read_json(note)


def _settings(exemplars: int) -> dict[str, str]:
    """Return settings of the server: memory for table and index, and for building the index."""
    return {
        "shared_buffers": f"{max(512, exemplars // 250)}MB",
        "maintenance_work_mem": f"{max(512, exemplars // 333)}MB",
        "max_wal_size": "8GB",
        "fsync": "on",
    }


@contextmanager
def _server(settings: dict[str, str], keep: Path | None) -> Iterator[PostgresServer]:
    """Return a running server of its own, whose files are removed at the end or stay in `keep`."""
    if keep is None:
        with postgres_server.server(settings=settings) as server:
            yield server
        return
    server = PostgresServer(postgres_server.binaries(), keep, find_free_port(), settings)
    if not server.data.is_dir():
        keep.mkdir(parents=True)
        if os.geteuid() == 0:
            shutil.chown(keep, "nobody", "nogroup")
        server.create()
    server.start()
    try:
        yield server
    finally:
        server.stop()


async def _synchronise(site: Site, vectors: Rows) -> dict[str, Any]:
    """Push all people by one device, and pull them by another."""
    one, other = site.store("one"), site.store("other")
    await one.hello(0, ())
    await other.hello(0, ())
    began = time.perf_counter()
    for first in range(0, len(vectors), MOST_CHANGES):
        people = [
            _change(first + place, rows) for place, rows in enumerate(vectors[first : first + MOST_CHANGES])
        ]
        await one.push(Push(people=tuple(people)), 0)
    pushed = time.perf_counter()
    mark = pages = found = 0
    while True:
        page = await other.pull(mark, PAGE)
        mark, pages = page.upto, pages + 1
        found += sum(len(one.exemplars) for one in page.contributions)
        if mark == page.version:
            break
    pulled = time.perf_counter()
    assert found == vectors.shape[0] * EXEMPLARS
    await one.close()
    await other.close()
    # A repetition builds the index of a site that has become large.
    await admin.init(site.admin(), admin.NewSite(site.name, site.space.space, site.space.dimension))
    built = time.perf_counter()
    return {
        "taken": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "load_average": list(os.getloadavg()),
        "push_s": pushed - began,
        "push_per_s": found / (pushed - began),
        "pull_s": pulled - pushed,
        "pull_per_s": found / (pulled - pushed),
        "pages": pages,
        "index_s": built - pulled,
    }


def _change(number: int, rows: Rows) -> PersonChange:
    exemplars = tuple(SharedExemplar("hall", 0, 0.5, row) for row in rows)
    return PersonChange(_id(number), (), "auto", None, None, 60.0, 0.0, "hall", exemplars)


def _id(number: int) -> str:
    return f"p-{number:012d}"


async def _ask(site: Site, vectors: Rows, questions: Rows, count: int, rounds: int) -> dict[str, Any]:
    """Ask, and let pgbench ask, in turn."""
    database = site.database
    database.sql("VACUUM ANALYZE edge_agent.exemplar, edge_agent.person")
    chosen = np.random.default_rng(1).permutation(len(questions))[:count]
    lines = ["DROP TABLE IF EXISTS edge_agent.question;"]
    lines += [f"CREATE TABLE edge_agent.question (number int PRIMARY KEY, vector vector({DIMENSION}));"]
    lines += ["COPY edge_agent.question FROM STDIN;"]
    lines += [f"{place}\t{questions[number].tolist()}" for place, number in enumerate(chosen)]
    _run(site, "psql", "-Xq", "-v", "ON_ERROR_STOP=1", script="\n".join([*lines, "\\.", ""]))
    closely = ef_search(len(vectors) * EXEMPLARS)
    search = _SEARCH.format(size=DIMENSION, nearest=NEAREST, most=MOST_CANDIDATES)
    raw = {"search": search, "rows": _ROWS.format(search=search)}
    store = site.store("one")
    await store.hello(0, ())
    taken: dict[str, list[list[float]]] = {name: [] for name in ("edge-agent", *raw)}
    answers: list[list[str]] = []
    before = _index_scans(site)
    for turn in range(-1, rounds):
        times, answers = await _timed(store, questions[chosen])
        found = {"edge-agent": times}
        for name, statement in raw.items():
            found[name] = _pgbench(site, name, statement, count, closely)
        if turn >= 0:
            for name, each in found.items():
                taken[name].append(each)
    await store.close()  # statistics are written at the end of a session
    scans = (_index_scans(site) - before) / (len(taken) * count * (rounds + 1))
    exact = _exact(vectors, questions[chosen])
    ratios = {
        name: float(
            np.median(
                [np.median(a) / np.median(b) for a, b in zip(taken[name], taken["edge-agent"], strict=True)]
            )
        )
        for name in raw
    }
    return {
        "queries": count * rounds,
        "different": count,
        "index_scans": scans,
        "ef_search": closely,
        "asked": {
            name: {"p50_ms": float(np.percentile(all_, 50)), "p95_ms": float(np.percentile(all_, 95))}
            for name, all_ in ((name, np.concatenate(each)) for name, each in taken.items())
        },
        "rate_over_raw": ratios,
        "recall": float(
            np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(answers, exact, strict=True)])
        ),
        "same_best": float(np.mean([a[:1] == b[:1] for a, b in zip(answers, exact, strict=True)])),
    }  # fmt: skip


async def _timed(store: FleetStore, questions: Rows) -> tuple[list[float], list[list[str]]]:
    """Return the milliseconds of each question, and the people found."""
    times, answers = [], []
    for question in questions:
        began = time.perf_counter()
        answer = await store.ask(question[None], MOST_CANDIDATES)
        times.append(1e3 * (time.perf_counter() - began))
        answers.append([one.person.id for one in answer.candidates])
    return times, answers


def _index_scans(site: Site) -> int:
    """Return how often the index of the site was searched, where it has one."""
    sql = f"SELECT sum(idx_scan) FROM pg_stat_user_indexes WHERE indexrelname = '{index_name(site.name)}'"  # noqa: S608
    return int(site.database.sql(sql).strip() or 0)


def _pgbench(site: Site, name: str, statement: str, count: int, closely: int) -> list[float]:
    """Return the milliseconds of each transaction."""
    server = site.database.server
    words = ["-n", "-M", "prepared", "-c", 1, "-t", count, "-l", f"--log-prefix={server.folder / name}"]
    script = f"\\set number random(0, {count - 1})\n{statement};\n"
    _run(site, "pgbench", *words, script=script, options=f"{OPTIONS} -c hnsw.ef_search={closely}")
    files = list(server.folder.glob(f"{name}.*"))
    times = [float(line.split()[2]) / 1e3 for file in files for line in file.read_text().splitlines()]
    for file in files:
        file.unlink()
    return times


def _run(site: Site, program: str, *words: object, script: str, options: str = OPTIONS) -> None:
    server = site.database.server
    file = server.folder / "script"
    file.write_text(script)
    file.chmod(0o644)
    server.run(program, *words, "-f", file, site.database.address, env={"PGOPTIONS": options})


def _exact(vectors: Rows, questions: Rows) -> list[list[str]]:
    """Return the best people by all products."""
    found = []
    for question in questions:
        best = (vectors.reshape(-1, DIMENSION) @ question).reshape(len(vectors), EXEMPLARS).max(axis=1)
        found.append([_id(number) for number in np.argsort(-best)[:MOST_CANDIDATES]])
    return found


def markdown(result: dict[str, Any]) -> str:
    """Return the tables as Markdown."""
    sync, asked, ratio = result["sync"], result["asked"], result["rate_over_raw"]
    about = {
        "edge-agent": "the agent's question, with all exemplars of the five people",
        "search": "pgbench: the same search as one prepared statement, without their rows",
        "rows": "pgbench: the same search as one prepared statement, with their rows",
    }
    lines = [
        f"{result['exemplars']:,} exemplars of {result['dimension']} numbers; the index is built after them"
        f" (load {sync['load_average'][1]:.0f}).",
        "",
        "| | time | exemplars/s |",
        "|---|---|---|",
        f"| push, {MOST_CHANGES} people a parcel | {sync['push_s']:.0f} s | {sync['push_per_s']:,.0f} |",
        f"| pull, {sync['pages']} pages | {sync['pull_s']:.1f} s | {sync['pull_per_s']:,.0f} |",
        f"| index | {sync['index_s']:.0f} s | {result['exemplars'] / sync['index_s']:,.0f} |",
        "",
        "| question | p50 | p95 | rate of the agent over it |",
        "|---|---|---|---|",
    ]
    for name, row in asked.items():
        over = f"{ratio[name]:.2f}" if name in ratio else ""
        lines.append(f"| {about[name]} | {row['p50_ms']:.1f} ms | {row['p95_ms']:.1f} ms | {over} |")
    lines += [
        "",
        f"{result['queries']} questions one after another, {result['different']} different ones, with"
        f" {result['index_scans']:.2f} searches of the index each and `ef_search` {result['ef_search']}."
        f" Of the five best people by all products {100 * result['recall']:.1f} % are found,"
        f" and {100 * result['same_best']:.1f} % of the best.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
