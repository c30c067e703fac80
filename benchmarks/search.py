"""Exact search by rows and queries, in turn with FAISS's flat index and numpy, one thread each.

    OPENBLAS_NUM_THREADS=1 python -m benchmarks.search [--rows 1000,10000,40000,100000,1000000]
        [--rounds 5] [--output FILE.json]

Rows are drawn with half of the variance in 24 of 256 directions, like embeddings of networks; an identity has
4 of them. The agent's index returns the 32 best identities, FAISS the 32 best rows (`IndexFlatIP`), and numpy
the 32 best identities by a product, `maximum.reduceat` and `argpartition`. Times are CPU time of the process;
ratios are medians over the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gallery import People
from benchmarks.slices import in_turn
from edge_agent.core.logs import configure
from edge_agent.core.manifest import write_json_atomic
from edge_agent.gallery.index import ExemplarIndex

Rows = NDArray[np.float32]
Search = Callable[[Rows], NDArray[np.int64]]

DIMENSION, EXEMPLARS, K = 256, 4, 32
QUERIES = (1, 16, 64)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--rows", default="1000,10000,40000,100000,1000000")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--output", type=Path, help="write the result as JSON")
    chosen = options.parse_args()
    configure("error")
    rows = [row for size in chosen.rows.split(",") for row in measured(int(size), chosen.rounds)]
    result = {"dimension": DIMENSION, "exemplars": EXEMPLARS, "k": K, "rounds": chosen.rounds, "rows": rows}
    if chosen.output is not None:
        write_json_atomic(chosen.output, result)
    print(markdown(result))


def measured(size: int, rounds: int) -> list[dict[str, Any]]:
    """Return a row of the table for each number of queries."""
    identities = size // EXEMPLARS
    ways, queries = _ways(People(identities, EXEMPLARS, DIMENSION, "steep", 0.9))
    result = []
    for count in QUERIES:
        asked = queries[np.arange(count) % len(queries)]
        best = {name: way(asked) for name, way in ways.items()}
        taken = in_turn({name: partial(way, asked) for name, way in ways.items()}, rounds)
        ours = taken["edge-agent"]
        result.append(
            {
                "rows": size,
                "identities": identities,
                "queries": count,
                "cpu_ms": {name: 1e3 * one.cpu for name, one in taken.items()},
                "over_ours": {name: one.cpu_over(ours) for name, one in taken.items()},
                "same_best": {
                    name: float(np.mean(best[name] == best["edge-agent"])) for name in ways
                },
            }
        )  # fmt: skip
    return result


def _ways(people: People) -> tuple[dict[str, Search], Rows]:
    """Return the alternatives, each filled with the same rows, and queries of people among them."""
    numbers = np.arange(1, people.identities + 1)
    flat = np.empty((people.identities, people.exemplars, people.dimension), np.float32)
    queries = np.zeros((0, people.dimension), np.float32)
    for some, exemplars, asked in people.pieces():
        for which, rows in enumerate(exemplars):
            flat[some - 1, which] = rows
        queries = queries if len(queries) else asked[: max(QUERIES)]
    index = ExemplarIndex(people.dimension)
    views = np.zeros(people.identities, np.int32)
    index.load(
        numbers,
        np.full(people.identities, people.exemplars),
        ((numbers, flat[:, which], views) for which in range(people.exemplars)),
    )
    rows = flat.reshape(-1, people.dimension)
    ways: dict[str, Search] = {
        "edge-agent": lambda queries: index.search(queries, K)[0][:, 0],
        "numpy": partial(_numpy, rows, people.exemplars),
    }
    with contextlib.suppress(ImportError):  # then the table has no column of it
        ways["FAISS flat"] = _faiss(rows, people.exemplars)
    return ways, queries


def _numpy(rows: Rows, exemplars: int, queries: Rows) -> NDArray[np.int64]:
    found = np.empty(len(queries), np.int64)
    products = queries @ rows.T
    best = np.maximum.reduceat(products, np.arange(0, len(rows), exemplars), axis=1)
    near = np.argpartition(best, -min(K, best.shape[1]), axis=1)[:, -K:]
    scores = np.take_along_axis(best, near, axis=1)
    found[:] = np.take_along_axis(near, np.argsort(-scores, axis=1), axis=1)[:, 0] + 1
    return found


def _faiss(rows: Rows, exemplars: int) -> Search:
    import faiss

    faiss.omp_set_num_threads(1)
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    return lambda queries: index.search(queries, K)[1][:, 0] // exemplars + 1


def markdown(result: dict[str, Any]) -> str:
    """Return the table as Markdown."""
    others = [name for name in result["rows"][0]["cpu_ms"] if name != "edge-agent"]
    lines = [
        f"{result['dimension']} numbers, {result['exemplars']} embeddings of each person, the {result['k']}"
        f" best; CPU time, medians of {result['rounds']} rounds.",
        "",
        "| embeddings | people | queries | edge-agent | "
        + " | ".join(f"{name} | edge-agent is faster by" for name in others)
        + " | same best |",
        "|---" * (5 + 2 * len(others)) + "|",
    ]
    for row in result["rows"]:
        cells = " | ".join(
            f"{row['cpu_ms'][name]:.2f} ms | {row['over_ours'][name]:.2f} x" for name in others
        )
        ours, same = row["cpu_ms"]["edge-agent"], 100 * min(row["same_best"].values())
        lines.append(
            f"| {row['rows']:,} | {row['identities']:,} | {row['queries']} |"
            f" {ours:.2f} ms | {cells} | {same:.0f} % |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
