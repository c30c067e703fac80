"""What devices and their store have after a run, to compare it exactly."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent.fleet.records import Contribution, Page, SharedExemplar
from edge_agent.gallery.gallery import Gallery
from tests.fleet.postgres_site import Site, run

Row = tuple[str, int, float, bytes]
"""Camera, epoch, quality and vector of an exemplar."""


@dataclass(frozen=True)
class State:
    """People with name, kind, time to live and former ids; exemplars by person, device and id; the rest."""

    people: dict[str, tuple[str | None, str, float | None, frozenset[str]]]
    shared: dict[tuple[str, str, str], list[Row]]
    own: dict[str, set[Row]]
    """All exemplars of this device by person; empty for the store."""
    apart: set[tuple[str, ...]]
    means: dict[tuple[str, int], tuple[float, bytes]]

    def without(self, device: str) -> State:
        """Return what one device should have of others."""
        shared = {key: rows for key, rows in self.shared.items() if key[1] != device}
        means = {key: one for key, one in self.means.items() if not key[0].startswith(f"{device}/")}
        return State(self.people, shared, {}, self.apart, means)


def state_of_device(state: Path, dimension: int) -> State:
    """Return what a device has."""
    people, shared, own = {}, defaultdict(list), defaultdict(set)
    with Gallery.existing(state / "gallery.db") as gallery, gallery.file.reading() as rows:
        for one in rows.identities():
            people[one.id] = (one.name, one.kind, one.ttl_s, frozenset(rows.former_ids(one.number)))
        id_of = {one.number: one.id for one in rows.identities()}
        for number, origin, *found in rows.store.rows(
            "SELECT number, origin, camera, epoch, quality, vector FROM exemplar ORDER BY row"
        ):
            row = _row(*found)
            if "/" in row[0]:
                _, device, id_ = origin.split("/")
                shared[id_of[number], device, id_].append(row)
            else:
                own[id_of[number]].add(row)
        apart = {tuple(sorted((id_of[one], id_of[other]))) for one, other in rows.apart.pairs()}
        means = {
            (camera, epoch): (n, total.tobytes()) for camera, epoch, n, total in rows.site.means(dimension)
        }
    return State(people, dict(shared), dict(own), apart, means)


def state_of_site(site: Site) -> State:
    """Return what the store has, as a new device reads it."""
    page = run(_read(site))
    root = {one.id: one.root for one in page.people}
    formers = defaultdict(set)
    for one in page.people:
        if one.root != one.id:
            formers[one.root].add(one.id)
    live = {one.id: one for one in page.people if one.root == one.id and one.forgotten is None}
    return State(
        {id_: (one.name, one.kind, one.ttl_s, frozenset(formers[id_])) for id_, one in live.items()},
        {
            (root[one.id], one.device, one.id): [_shared(one.device, each) for each in one.exemplars]
            for one in page.contributions
            if one.exemplars and root[one.id] in live
        },
        {},
        {tuple(sorted((root[one.one], root[one.other]))) for one in page.apart},
        {(f"{one.device}/{one.camera}", one.epoch): (one.people, one.total.tobytes()) for one in page.means},
    )


async def _read(site: Site) -> Page:
    """Read all pages as one."""
    store, pages = site.store("reader"), [Page(0, 1, 0.0, (), (), (), ())]
    try:
        await store.hello(0, ())
        while pages[-1].upto < pages[-1].version:
            pages.append(await store.pull(pages[-1].upto, 1000, full=True))
    finally:
        await store.close()
    contributions: dict[tuple[str, str], Contribution] = {}
    people: dict[str, Any] = {}
    for page in pages:
        people |= {one.id: one for one in page.people}
        contributions |= {(one.id, one.device): one for one in page.contributions}
    return Page(
        pages[-1].upto,
        pages[-1].version,
        pages[-1].now,
        tuple(people.values()),
        tuple(contributions.values()),
        tuple(one for page in pages for one in page.apart),
        tuple(one for page in pages for one in page.means),
    )


def _row(camera: str, epoch: int, quality: float, vector: bytes) -> Row:
    return camera, epoch, float(np.float32(quality)), vector


def _shared(device: str, one: SharedExemplar) -> Row:
    return _row(f"{device}/{one.camera}", one.epoch, one.quality, np.asarray(one.vector, "<f4").tobytes())


def check_equal(site: Site, states: dict[str, Path], dimension: int) -> State:
    """Compare all devices with the store exactly; return what the store has."""
    whole = state_of_site(site)
    for name, folder in states.items():
        here, wanted = state_of_device(folder, dimension), whole.without(name)
        assert here.people == wanted.people, name
        assert here.shared == wanted.shared, name
        assert here.apart == wanted.apart, name
        assert here.means == wanted.means, name
        for (id_, device, _), rows in whole.shared.items():
            if device == name:
                stripped = {(camera.partition("/")[2], *rest) for camera, *rest in rows}
                assert stripped <= here.own.get(id_, set()), f"{name} {id_}"
    return whole
