"""Growth of the gallery: search, change, memory and start by number of identities; compared with FAISS's flat
index.

    OPENBLAS_NUM_THREADS=1 python -m benchmarks.gallery [--sizes 1000,...,1000000] [--exemplars 4]
        [--dimension 256] [--shape steep|flat|FILE.npz] [--output FILE.json]

Prints a Markdown table, or JSON with --json. Each size is filled and measured in separate processes.
Times are the calling thread's CPU time, which is least affected by other load, and wall time. `--shape`
selects the distribution of embeddings: `steep` as those of networks (half of the variance in 24 of 256
directions), `flat` with equal variance in all directions, or that of a file of `edge-agent embed`. A size
whose vectors need more than 2 GiB has one exemplar per identity, and is not used for slopes. Needs the extra
`index`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.arrays import open_archive
from edge_agent.core.config import GallerySettings
from edge_agent.core.logs import configure
from edge_agent.core.manifest import write_atomic
from edge_agent.core.names import new_id
from edge_agent.gallery import Gallery
from edge_agent.offline.bench.environment import machine

Vectors = NDArray[np.float32]

PIECE = 10_000  # identities that are drawn at a time
QUERIES = 64  # that are timed
ASKED = 1000  # for recall: with fewer, "all were found" would say little
K = 64
BUDGET_S = 3.0  # for one measured thing
LARGEST = 2 * 2**30  # bytes of all vectors


@dataclass(frozen=True, slots=True)
class People:
    """Reproducible embeddings of identities: a centre for each, with exemplars and a query around it."""

    identities: int
    exemplars: int
    dimension: int
    shape: str
    likeness: float

    def pieces(self) -> Iterator[tuple[NDArray[np.int64], list[Vectors], Vectors]]:
        """Return numbers `(N,)`, exemplars of `(N, D)` each, and queries `(N, D)`."""
        mean, spread = self._directions()
        apart = np.float32(np.tan(np.arccos(self.likeness)))
        for first in range(0, self.identities, PIECE):
            count = min(PIECE, self.identities - first)
            drawn = np.random.default_rng([self.dimension, first])

            def around(
                centres: Vectors | None, count: int = count, drawn: np.random.Generator = drawn
            ) -> Vectors:
                rows = _unit(drawn.standard_normal((count, self.dimension), np.float32) @ spread)
                return _unit(mean + rows if centres is None else centres + apart * rows)

            centres = around(None)
            yield (
                np.arange(first + 1, first + count + 1),
                [around(centres) for _ in range(self.exemplars)],
                around(centres),
            )

    def _directions(self) -> tuple[Vectors, Vectors]:
        """Mean of the embeddings `(D,)`, and the matrix `(D, D)` that gives white noise their covariance."""
        if self.shape == "flat":
            return np.zeros(self.dimension, np.float32), np.eye(self.dimension, dtype=np.float32)
        if self.shape == "steep":
            mean = np.zeros(self.dimension, np.float32)
            mean[0] = 0.4
            return mean, np.diag(1 / np.sqrt(1 + np.arange(self.dimension) / 3)).astype(np.float32)
        with open_archive(Path(self.shape)) as archive:
            rows = archive.read("embeddings", kinds="f", shape=(None, None))
        mean = rows.mean(axis=0)
        values, vectors = np.linalg.eigh(np.cov(rows - mean, rowvar=False))
        share = np.linalg.norm(mean) / np.sqrt(max(1e-6, 1 - float(mean @ mean)))
        return (
            (share * mean / np.linalg.norm(mean)).astype(np.float32),
            (np.sqrt(np.maximum(values, 0))[:, None] * vectors.T).astype(np.float32),
        )


def _unit(rows: Vectors) -> Vectors:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def fill(path: Path, people: People) -> None:
    """Write a gallery file like an agent's, in one transaction."""
    with opened(path, people, index="exact") as gallery, gallery.file.changing() as content:
        for numbers, exemplars, _ in people.pieces():
            content.store.run_many(
                "INSERT INTO identity (number, id, kind, created, last_seen, sightings, revision) "
                "VALUES (?, ?, 'auto', 1.0, ?, 1, random())",
                [(number, new_id(), float(number)) for number in numbers.tolist()],
            )
            for which, rows in enumerate(exemplars):
                content.store.run_many(
                    "INSERT INTO exemplar (number, vector, quality, origin, camera, time) "
                    "VALUES (?, ?, 0.9, ?, 'camera', 1.0)",
                    [
                        (number, row.tobytes(), f"session:camera:{number}:{which}")
                        for number, row in zip(numbers.tolist(), rows, strict=True)
                    ],
                )


def opened(
    path: Path, people: People, *, index: Literal["exact", "faiss"], exact_up_to: int = 100_000
) -> Gallery:
    return Gallery(
        path,
        GallerySettings(capacity=people.identities + 1000, index=index, exact_up_to=exact_up_to),
        space="benchmark",
        dimension=people.dimension,
    )


def measured(call: Callable[[int], object], most: int = 30, first: int = 1) -> dict[str, float]:
    """Return p50 and p95 of CPU and wall time in ms, without the first calls."""
    busy, passed = [], []
    began = time.perf_counter()
    for turn in range(most + first):
        cpu, wall = time.thread_time(), time.perf_counter()
        call(turn)
        busy.append((time.thread_time() - cpu) * 1e3)
        passed.append((time.perf_counter() - wall) * 1e3)
        if time.perf_counter() - began > BUDGET_S and turn >= first + 2:
            break
    return {
        "cpu_p50": float(np.median(busy[first:])),
        "cpu_p95": float(np.percentile(busy[first:], 95)),
        "wall_p50": float(np.median(passed[first:])),
        "wall_p95": float(np.percentile(passed[first:], 95)),
        "times": len(busy) - first,
    }


def resident() -> int:
    """Return the resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def searches(search: Callable[[Vectors], object], queries: Vectors) -> dict[str, dict[str, float]]:
    def some(count: int) -> Callable[[int], object]:
        starts = len(queries) // count
        return lambda turn: search(queries[(turn % starts) * count :][:count])

    return {f"q{count}": measured(some(count)) for count in (1, 16)}


def measure(path: Path, people: People) -> dict[str, Any]:
    """Return all figures of one size."""
    configure("error")
    numbers, _, queries = next(people.pieces())
    numbers, asked, queries = numbers[:ASKED], queries[:ASKED], queries[:QUERIES]
    result: dict[str, Any] = {"file_bytes": path.stat().st_size / people.identities}
    before, began = resident(), time.perf_counter()
    with opened(path, people, index="exact") as gallery:
        result["open_s"] = time.perf_counter() - began
        result["memory_bytes"] = (resident() - before) / people.identities
        truth, _ = gallery.search(asked, K)
        result["right"] = float(np.mean(truth[:, 0] == numbers))
        result["exact"] = searches(lambda rows: gallery.search(rows, K), queries)
        result["changes"] = changes(path, gallery, people)
        truth, _ = gallery.search(asked, K)
    if people.identities >= 10_000:
        with opened(path, people, index="faiss", exact_up_to=people.identities // 2) as gallery:
            result["index"] = indexed(gallery, queries, asked, truth)
            result["index"]["changes"] = changes(path, gallery, people)
    result["faiss_flat"] = searches(flat(people), queries)
    return result


def changes(path: Path, gallery: Gallery, people: People) -> dict[str, dict[str, float]]:
    """Measure changes; the gallery keeps its size."""
    rows = next(people.pieces())[2][-60:]
    seen: dict[str, Any] = {"origin": "t", "camera": "c", "time": 1e9}
    made: list[int] = []
    result = {
        "enrol": measured(
            lambda turn: made.append(gallery.enrol(rows[[turn]], np.ones(1), **seen).number), 12
        ),
        "add_exemplars": measured(
            lambda turn: gallery.add_exemplars(made[0], rows[[turn]], np.ones(1), **seen), 12
        ),
        "forget": measured(lambda _: gallery.forget(made.pop()), 11),
    }
    for number in made:
        gallery.forget(number)
    with sqlite3.connect(path) as other:

        def foreign(_: int) -> None:
            other.execute("UPDATE identity SET revision = random() WHERE number = 1")
            other.execute("UPDATE meta SET value = value + 1 WHERE key = 'changes'")
            other.commit()
            gallery.present([1])

        result["follow_another_process"] = measured(foreign, 4)
    other.close()
    return result


def indexed(gallery: Gallery, queries: Vectors, asked: Vectors, truth: NDArray[np.int64]) -> dict[str, Any]:
    before, began = resident(), time.perf_counter()
    gallery.search(queries[:1], K)
    gallery.builder.wait()
    result: dict[str, Any] = {"build_s": time.perf_counter() - began, "memory": resident() - before}
    result["search"] = searches(lambda rows: gallery.search(rows, K), queries)
    found, _ = gallery.search(asked, K)
    result["asked"] = len(asked)
    result["recall_at_1"] = float(np.mean(found[:, 0] == truth[:, 0]))
    for k in (10, K):
        shared = [np.isin(truth[row, :k], found[row, :k]).mean() for row in range(len(truth))]
        result[f"recall_at_{k}"] = float(np.mean(shared))
    return result


def flat(people: People) -> Callable[[Vectors], object]:
    """Measure FAISS's exact index with ids, one thread. It finds rows, not identities."""
    import faiss

    faiss.omp_set_num_threads(1)
    index = faiss.IndexIDMap2(faiss.IndexFlatIP(people.dimension))
    for numbers, exemplars, _ in people.pieces():
        for rows in exemplars:
            index.add_with_ids(rows, numbers)
    return lambda rows: index.search(rows, K)


def slopes(results: dict[int, dict[str, Any]]) -> dict[str, float]:
    """Return the exponent of each curve: 1 if ten times as many people take ten times as long."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for size, result in results.items():
        parts = {
            "exact": result["exact"],
            "index": result.get("index", {}).get("search", {}),
            "faiss_flat": result.get("faiss_flat", {}),
        }
        for name, part in parts.items():
            for queries, times in part.items():
                curves.setdefault(f"{name}_{queries}", []).append((size, times["cpu_p50"]))
        curves.setdefault("open", []).append((size, result["open_s"]))
        for name, times in result["changes"].items():
            curves.setdefault(name, []).append((size, times["cpu_p50"]))
    return {
        name: float(np.polyfit(*np.log(np.array(points)).T, 1)[0])
        for name, points in curves.items()
        if len(points) > 1
    }


def markdown(results: dict[int, dict[str, Any]], slope: dict[str, float]) -> str:
    """Return a table with one column per size, slopes last."""
    sizes = list(results)

    def line(title: str, key: str, cell: Callable[[dict[str, Any]], str]) -> str:
        cells = []
        for size in sizes:
            try:
                cells.append(cell(results[size]))
            except KeyError:
                cells.append("")
        exponent = f"{slope[key]:.2f}" if key in slope else ""
        return f"| {title} | {' | '.join(cells)} | {exponent} |"

    def times(part: dict[str, float]) -> str:
        return (
            f"{part['cpu_p50']:.3g} / {part['cpu_p95']:.3g} ({part['wall_p50']:.3g} / {part['wall_p95']:.3g})"
        )

    lines = [
        f"| identities | {' | '.join(f'{size:,}' for size in sizes)} | slope |",
        "|---" * (len(sizes) + 2) + "|",
        line("exemplars of each", "", lambda result: str(result["exemplars"])),
    ]
    for q in ("q1", "q16"):
        lines += [
            line(f"exact, {q[1:]} queries, ms", f"exact_{q}", lambda result, q=q: times(result["exact"][q])),
            line(
                f"index, {q[1:]} queries, ms",
                f"index_{q}",
                lambda result, q=q: times(result["index"]["search"][q]),
            ),
            line(
                f"FAISS flat, {q[1:]} queries, ms",
                f"faiss_flat_{q}",
                lambda result, q=q: times(result["faiss_flat"][q]),
            ),
            line(
                f"exact : FAISS flat, {q[1:]} queries",
                "",
                lambda result, q=q: (
                    f"{result['exact'][q]['cpu_p50'] / result['faiss_flat'][q]['cpu_p50']:.2f}"
                ),
            ),
        ]
    lines += [
        line(
            "recall of the index at 1 / 10 / 64",
            "",
            lambda result: " / ".join(f"{result['index'][f'recall_at_{k}']:.3f}" for k in (1, 10, K)),
        ),
        line("index built in, s", "", lambda result: f"{result['index']['build_s']:.3g}"),
        line("opening, s", "open", lambda result: f"{result['open_s']:.3g}"),
        line("memory of an identity, bytes", "", lambda result: f"{result['memory_bytes']:,.0f}"),
        line("file of an identity, bytes", "", lambda result: f"{result['file_bytes']:,.0f}"),
    ]
    lines += [
        line(f"{name}, ms", name, lambda result, name=name: times(result["changes"][name]))
        for name in ("enrol", "add_exemplars", "forget", "follow_another_process")
    ]
    lines += [
        line(
            f"{name} with the index, ms",
            "",
            lambda result, name=name: times(result["index"]["changes"][name]),
        )
        for name in ("enrol", "add_exemplars", "forget")
    ]
    return "\n".join(lines)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--sizes", default="1000,10000,100000,1000000")
    options.add_argument("--exemplars", type=int, default=4)
    options.add_argument("--dimension", type=int, default=256)
    options.add_argument("--shape", default="steep", metavar="steep|flat|FILE.npz")
    options.add_argument("--likeness", type=float, default=0.9, help="cosine of an exemplar and its centre")
    options.add_argument("--output", type=Path)
    options.add_argument("--json", action="store_true")
    chosen = options.parse_args()
    results: dict[int, dict[str, Any]] = {}
    for size in map(int, chosen.sizes.split(",")):
        large = size * chosen.exemplars * chosen.dimension * 4 > LARGEST
        exemplars = 1 if large else chosen.exemplars
        people = People(size, exemplars, chosen.dimension, chosen.shape, chosen.likeness)
        with TemporaryDirectory() as folder:
            path = Path(folder) / "gallery.db"
            for step in (fill, measure):
                with multiprocessing.get_context("spawn").Pool(1) as own:  # memory is that of this step alone
                    result = own.apply(step, (path, people))
        results[size] = {"exemplars": exemplars, **result}
    slope = slopes(
        {size: result for size, result in results.items() if result["exemplars"] == chosen.exemplars}
    )
    report = {
        "machine": machine(),
        "settings": {
            "dimension": chosen.dimension,
            "shape": chosen.shape,
            "likeness": chosen.likeness,
            "k": K,
        },
        "sizes": {str(size): result for size, result in results.items()},
        "slopes": slope,
    }
    if chosen.output is not None:
        write_atomic(chosen.output, (json.dumps(report, indent=1) + "\n").encode())
    print(json.dumps(report) if chosen.json else markdown(results, slope))


if __name__ == "__main__":
    main()
