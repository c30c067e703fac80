"""Search and decision in a large gallery, compared with alternatives.

- FAISS `IndexFlatIP`, one thread: exact, the best exemplar of each query.
- `scipy.spatial.distance.cdist`, as in scikit-learn's and torchreid's examples.
- deep-sort-realtime's `NearestNeighborDistanceMetric`: a Python loop over the identities.

Packages that are not installed are left out, with a note.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.slices import in_turn
from edge_agent.core.config import Settings
from edge_agent.core.loading import state_folder
from edge_agent.core.structures import Detections, Embedded, EngineInfo, ScoreLevels, TrackUpdate
from edge_agent.gallery.gallery import Gallery, open_gallery
from edge_agent.identify import Identifier
from edge_agent.offline.bench.environment import fill_gallery
from edge_agent.track.tracker import Tracker

__all__ = ["decisions", "open_people", "searches"]

Rows = NDArray[np.float32]

DIMENSION = 256
IN_VIEW = 16
"""People in each frame."""
FRAMES, FPS = 60, 15.0
_SIZE = (1920, 1080)
_LEVELS = ScoreLevels(low=0.1, high=0.5, new_track=0.5)


@dataclass(frozen=True, slots=True)
class People:
    """A full gallery, and its content as plain arrays.

    Attributes:
        settings: of the folder that it lies in.
        gallery: open.
        owners: `(N,)` int64, whose each row is; those of one identity together.
        rows: `(N, D)` float32, of unit length.
    """

    settings: Settings
    gallery: Gallery
    owners: NDArray[np.int64]
    rows: Rows


@contextmanager
def open_people(identities: int, exemplars: int) -> Iterator[People]:
    """Make a gallery of random people in a temporary folder."""
    info = EngineInfo("none", "fp32", "random", "0" * 64, "random", DIMENSION, 1, "none")
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings.model_validate(
            {"state_dir": Path(folder) / "state", "gallery": {"capacity": identities + 1000}}
        )
        state_folder(settings.state_dir)
        fill_gallery(settings, info, identities, exemplars)
        with open_gallery(settings, info, owner=True) as gallery:
            owners, rows = gallery.vectors([person.number for person in gallery.identities()])
            yield People(settings, gallery, owners, rows)


def _queries(people: People, count: int) -> Rows:
    """Return embeddings of people of the gallery: `(count, D)` unit rows."""
    random = np.random.default_rng(7)
    rows = people.rows[random.choice(len(people.rows), count, replace=False)]
    seen = rows + 0.03 * random.standard_normal(rows.shape, np.float32)
    return np.asarray(seen / np.linalg.norm(seen, axis=1, keepdims=True), np.float32)


# --- searches ---------------------------------------------------------------------------------

Search = Callable[[Rows], NDArray[np.int64]]
"""`(Q, D)` queries -> `(Q,)` numbers of the most similar identities."""


def searches(
    people: People, counts: tuple[int, ...], rounds: int
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return the rows of the table, and what is left out, with the reason."""
    ways: dict[str, Search] = {"edge-agent": lambda queries: people.gallery.search(queries, k=1)[0][:, 0]}
    left_out: dict[str, str] = {}
    for name, make in _WAYS.items():
        try:
            ways[name] = make(people)
        except ImportError as problem:
            left_out[name] = f"{problem}; pip install --group compare"
    result = []
    for count in counts:
        queries = _queries(people, count)
        answers = {name: way(queries) for name, way in ways.items()}
        taken = in_turn({name: partial(way, queries) for name, way in ways.items()}, rounds)
        ours = taken["edge-agent"]
        result += [
            {
                "name": name, "queries": count, "cpu_ms": 1e3 * one.cpu, "cpu_over_ours": one.cpu_over(ours),
                "same_answers": float(np.mean(answers[name] == answers["edge-agent"])),
            }
            for name, one in taken.items()
        ]  # fmt: skip
    return result, left_out


def _faiss(people: People) -> Search:
    import faiss

    faiss.omp_set_num_threads(1)
    index = faiss.IndexFlatIP(people.rows.shape[1])
    index.add(people.rows)
    return lambda queries: people.owners[index.search(queries, 1)[1][:, 0]]


def _cdist(people: People) -> Search:
    from scipy.spatial.distance import cdist

    return lambda queries: people.owners[cdist(queries, people.rows, "cosine").argmin(axis=1)]


def _nearest_neighbour(people: People) -> Search:
    from deep_sort_realtime.deep_sort.nn_matching import NearestNeighborDistanceMetric

    metric = NearestNeighborDistanceMetric("cosine", 0.2)
    numbers = np.unique(people.owners)
    metric.partial_fit(people.rows, people.owners.tolist(), numbers.tolist())
    targets = numbers.tolist()
    return lambda queries: numbers[metric.distance(queries, targets).argmin(axis=0)]


_WAYS: dict[str, Callable[[People], Search]] = {
    "FAISS IndexFlatIP": _faiss,
    "scipy cdist": _cdist,
    "deep-sort-realtime's nearest neighbour": _nearest_neighbour,
}


# --- the whole decision -----------------------------------------------------------------------


def decisions(people: People, rounds: int) -> dict[str, Any]:
    """Return the CPU per person and frame of the whole decision, and of a search for every person and frame.

    A street of people in the gallery is tracked for some seconds. *Ours*: `Identifier.update`, from
    evidence to decisions, stored exemplars included. *Plain*: for each person of each frame a product with
    all exemplars, and a Python loop that finds the best exemplar of each identity; no evidence, no
    contests, nothing stored.
    """
    ours, plain = [], []
    targets = np.split(np.arange(len(people.owners)), np.flatnonzero(np.diff(people.owners)) + 1)
    for number in range(rounds):
        updates = _street(people, number)
        identifier = Identifier(people.gallery, f"run{number}", people.settings.identify)
        busy = time.process_time()
        made = [decision.kind.value for update in updates for decision in identifier.update(update)]
        ours.append((time.process_time() - busy) / (FRAMES * IN_VIEW))
        queries = _queries(people, IN_VIEW)
        busy = time.process_time()
        scores = people.rows @ queries.T
        best = np.stack([scores[rows].max(axis=0) for rows in targets])
        best.argmax(axis=0)
        plain.append((time.process_time() - busy) / IN_VIEW)
    return {
        "in_view": IN_VIEW, "frames": FRAMES, "fps": FPS, "decisions": len(made),
        "matched": made.count("matched"),
        "cpu_us_per_crop": 1e6 * float(np.median(ours)),
        "plain_cpu_us_per_crop": 1e6 * float(np.median(plain)),
        "plain_over_ours": float(np.median(np.divide(plain, ours))),
    }  # fmt: skip


def _street(people: People, seed: int) -> list[TrackUpdate]:
    """Return tracker updates of some seconds, with people of the gallery side by side."""
    random = np.random.default_rng(seed)
    who = people.rows[random.choice(len(people.rows), IN_VIEW, replace=False)]
    tracker = Tracker("cam", people.settings.tracker, _LEVELS)
    left = np.linspace(20, _SIZE[0] - 120, IN_VIEW, dtype=np.float32)
    boxes = np.stack([left, np.full_like(left, 400), left + 80, np.full_like(left, 640)], axis=1)
    ones = np.ones(IN_VIEW, np.float32)
    updates = []
    for frame in range(1, FRAMES + 1):
        seen = who + 0.03 * random.standard_normal(who.shape, np.float32)
        seen /= np.linalg.norm(seen, axis=1, keepdims=True)
        embedded = Embedded(seen, ones.astype(np.bool_), 0.9 * ones, ("",) * IN_VIEW)
        updates.append(tracker.update(frame, frame / FPS, _SIZE, Detections(boxes, 0.9 * ones), embedded))
    return updates
