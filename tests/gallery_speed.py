"""How fast the gallery is: `OPENBLAS_NUM_THREADS=1 python tests/gallery_speed.py [IDENTITIES [EXEMPLARS]]`.

CPU time of the calling thread, so that other work on the machine disturbs it little, and wall time, which
counts where the disk is waited for.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from edge_agent.gallery import Gallery
from edge_agent.logs import configure

D = 256


def unit(rows: int, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(rows, D)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def measure(name: str, call: Callable[[int], object], times: int = 30) -> None:
    busy, passed = [], []
    for turn in range(times):
        started, began = time.thread_time(), time.perf_counter()
        call(turn)
        busy.append((time.thread_time() - started) * 1e3)
        passed.append((time.perf_counter() - began) * 1e3)
    print(f"{name:<16} CPU median {np.median(busy):8.2f} ms   wall median {np.median(passed):8.2f} ms")


def main(identities: int, exemplars: int) -> None:
    configure("error")
    seen = {"camera": "c", "time": 1.0}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "gallery.db"
        people = unit(identities * exemplars).reshape(identities, exemplars, D)
        with Gallery(path, space="s", dimension=D, capacity=identities + 1000) as gallery:
            grades = np.ones(exemplars)
            began = time.perf_counter()
            for number, vectors in enumerate(people):
                gallery.enrol(vectors, grades, origin=f"t{number}", **seen)
            print(f"{identities} identities, {exemplars} exemplars each, {D} numbers")
            print(f"{'enrol':<16} {identities / (time.perf_counter() - began):.0f} a second, each durable")
            for queries in (1, 16, 64):
                batch = unit(queries, 1)
                measure(f"search {queries}", lambda turn, batch=batch: gallery.search(batch))
            measure("touch", lambda turn: gallery.touch(turn + 1, 2.0))
            extra = unit(30, 2)
            measure(
                "add exemplar",
                lambda turn: gallery.add_exemplars(7, extra[[turn]], np.ones(1), origin="x", **seen),
            )
            measure("forget", lambda turn: gallery.forget(100 + turn), 10)
            print(gallery.stats())
        with_check = lambda turn: Gallery.existing(path).__enter__().__exit__(None, None, None)  # noqa: E731
        measure("open", with_check, 3)


if __name__ == "__main__":
    main(*(int(word) for word in (*sys.argv[1:3], *("10000", "4")[len(sys.argv) - 1 :])))
