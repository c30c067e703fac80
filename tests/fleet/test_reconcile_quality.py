"""Real people, whose visits are divided among two devices: nobody is joined wrongly, most are joined."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_agent.core.config import GallerySettings, IdentifySettings
from edge_agent.core.loading import load
from edge_agent.embed.opening import open_agent_embedder
from edge_agent.embed.prior import load_or_measure
from edge_agent.fleet.reconciler import Reconciler
from edge_agent.fleet.records import PersonChange, Push, SharedExemplar, Vectors
from edge_agent.gallery.gallery import Gallery
from edge_agent.identify.prior import Prior
from edge_agent.identify.site import ThresholdPolicy
from tests.fleet.memory_store import MemorySite

CROPS = 12
"""Of a visit, pooled."""
Visits = dict[tuple[int, int], Vectors]
"""Embedding of each visit, by person and number of the visit."""


def embedded(folder: Path, state: Path) -> tuple[Visits, Prior]:
    """Embed the crops of the visits that show enough."""
    paths: dict[tuple[int, int], list[Path]] = defaultdict(list)
    for split in ("bounding_box_train", "bounding_box_test", "query"):
        for path in sorted((folder / split).glob("*.jpg")):
            paths[int(path.name[:4]), int(path.name[6])].append(path)
    config = load(None, {"engine": {"backend": "onnxruntime", "packing": "here"}, "state_dir": str(state)})
    visits = {}
    with open_agent_embedder(config, state, None) as embedder:
        prior = load_or_measure(embedder, state, lambda _: None)
        assert prior is not None
        for key, found in sorted(paths.items()):
            if len(found) < 8:
                continue
            shown = sorted(found, key=lambda path: path.name.split("_")[2])[:CROPS]
            rows = embedder.embed_images([cv2.imread(str(path)) for path in shown]).sum(axis=0)
            visits[key] = np.asarray(rows / np.linalg.norm(rows), np.float32)
    return visits, prior.scores


@pytest.mark.slow
def test_real_people_whom_two_devices_enrolled(pets_market: Path, tmp_path: Path) -> None:
    visits, prior = embedded(pets_market, tmp_path)
    dimension = len(next(iter(visits.values())))
    site = MemorySite(dimension=dimension)
    people: dict[tuple[int, str], list[Vectors]] = defaultdict(list)
    for (person, visit), vector in visits.items():
        people[person, "odd" if visit % 2 else "even"].append(vector)
    truth: dict[str, int] = {}

    async def share() -> None:
        for number, ((person, device), vectors) in enumerate(people.items()):
            shots = tuple(SharedExemplar("cam", 0, 0.8, vector) for vector in vectors)
            id_ = f"p-{number:012}"
            truth[id_] = person
            change = PersonChange(id_, (), "auto", None, None, 1.0, 0.0, "cam", shots)
            await site.store(device).push(Push((change,)), 0)

    asyncio.run(share())
    with Gallery(":memory:", GallerySettings(), space="test", dimension=dimension) as gallery:
        gallery.cameras.start()
        # What pages would have brought: everybody, by camera.
        for number, ((_, device), vectors) in enumerate(people.items()):
            camera = "cam" if device == "odd" else f"{device}/cam"
            rows, qualities = np.stack(vectors), np.ones(len(vectors), np.float32)
            gallery.enrol(rows, qualities, origin=f"o{number}", camera=camera, time=1.0)
        reconciler = Reconciler(
            "odd",
            gallery,
            lambda: ThresholdPolicy(gallery, IdentifySettings(), None, prior),
            lambda pair, active: None,
        )
        store = site.store("odd")

        async def reconcile() -> None:
            assert await store.lease("reconcile", 60.0)
            await reconciler.run(store)

        asyncio.run(reconcile())
    joined: dict[str, set[int]] = defaultdict(set)
    for id_, person in truth.items():
        joined[site.content.people[id_].root].add(person)
    possible = len(people) - len({person for person, _ in people})
    assert all(len(group) == 1 for group in joined.values())
    assert possible == 7
    assert reconciler.joined >= 5
