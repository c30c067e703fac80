"""What the embeddings of a set allow: a fixed threshold, chosen in hindsight.

The visits come in the order of the timetable, each as the mean of its crops, and are compared with the means
of all earlier ones; the threshold is the best for this set (most re-entries recognised less pairs merged).
Once as the embeddings are, and once less the mean of the other people of their camera. Nobody knows the
threshold or the means beforehand, so this is a reference, no rival.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.identity.running import Network
from benchmarks.identity.timetable import Play, Showing
from edge_agent.core.config import EngineSettings, QualitySettings
from edge_agent.core.pictures import read_picture
from edge_agent.embed.opening import open_embedder

__all__ = ["of_set"]

Vectors = NDArray[np.float32]


def of_set(play: Play, network: Network) -> dict[str, Any]:
    """Return what a fixed threshold reaches, and rank-1 and mAP between cameras: raw and less camera
    means.
    """
    crops = _embedded(play, network)
    raw = {one.visit: _unit(crops[one.visit].mean(axis=0)) for one in play.showings}
    return {
        "raw": _fixed(play, raw) | _ranks(play, crops),
        "less camera means": _fixed(play, _without_means(play, raw))
        | _ranks(play, _without_means(play, crops)),
    }


def _embedded(play: Play, network: Network) -> dict[int, Vectors]:
    """Return the embeddings of each visit's crops."""
    with (
        TemporaryDirectory() as state,
        open_embedder(
            EngineSettings.model_validate(network.settings), QualitySettings(), Path(state)
        ) as embedder,
    ):
        return {
            one.visit: embedder.embed_images([read_picture(path) for path in one.crops])
            for one in play.showings
        }


def _unit(rows: Vectors) -> Vectors:
    unit: Vectors = rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-9)
    return unit


def _without_means(play: Play, vectors: dict[int, Vectors]) -> dict[int, Vectors]:
    """Subtract from each visit's rows the mean of the other people of its camera."""
    by_camera: dict[str, list[Showing]] = defaultdict(list)
    for one in play.showings:
        by_camera[one.camera].append(one)
    found = {}
    for members in by_camera.values():
        means = np.stack([np.atleast_2d(vectors[one.visit]).mean(axis=0) for one in members])
        people = np.array([one.person for one in members])
        for row, one in enumerate(members):
            others = people != people[row]
            found[one.visit] = _unit(vectors[one.visit] - means[others].mean(axis=0))
    return found


def _fixed(play: Play, vectors: dict[int, Vectors]) -> dict[str, Any]:
    """Compare every visit with all earlier ones; the best threshold in hindsight."""
    order = sorted(play.showings, key=lambda one: (one.start, one.visit))
    rows = np.stack([vectors[one.visit] for one in order])
    cosines = rows @ rows.T
    best: dict[str, Any] = {}
    for threshold in np.arange(0.1, 0.98, 0.02):
        given = np.arange(len(order))  # the identity of each visit, named by its first one
        for at in range(1, len(order)):
            nearest = int(cosines[at, :at].argmax())
            if cosines[at, nearest] >= threshold:
                given[at] = given[nearest]
        figures = _counts(order, given.tolist()) | {"threshold": round(float(threshold), 2)}
        if not best or figures["recognised"] - figures["merged"] > best["recognised"] - best["merged"]:
            best = figures
    return best


def _counts(order: Sequence[Showing], given: Sequence[int]) -> dict[str, Any]:
    earlier: dict[int, set[int]] = defaultdict(set)
    owners: dict[int, set[int]] = defaultdict(set)
    seen: Counter[int] = Counter()
    reentries = recognised = 0
    for one, number in zip(order, given, strict=True):
        reentries += seen[one.person] > 0
        recognised += number in earlier[one.person]
        seen[one.person] += 1
        earlier[one.person].add(number)
        owners[number].add(one.person)
    merged = sum(len(people) * (len(people) - 1) // 2 for people in owners.values())
    return {"reentries": reentries, "recognised": recognised, "merged": merged, "identities": len(owners)}


def _ranks(play: Play, crops: dict[int, Vectors]) -> dict[str, float]:
    """Return rank-1 and mAP by Market-1501's protocol; the first crop of each visit is the query."""
    rows = np.concatenate([crops[one.visit] for one in play.showings])
    people = np.concatenate([np.full(len(crops[one.visit]), one.person) for one in play.showings])
    cameras = np.concatenate([np.full(len(crops[one.visit]), one.camera) for one in play.showings])
    first, precisions, at = [], [], 0
    for one in play.showings:
        valid = (cameras != one.camera) | (people != one.person)
        order = np.argsort(-(rows[valid] @ rows[at]), kind="stable")
        hits = (people[valid] == one.person)[order]
        at += len(crops[one.visit])
        if hits.any():
            first.append(bool(hits[0]))
            found = np.flatnonzero(hits)
            precisions.append(float(np.mean((np.arange(len(found)) + 1) / (found + 1))))
    return {"rank1": round(float(np.mean(first)), 4), "map": round(float(np.mean(precisions)), 4)}
