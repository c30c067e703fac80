"""Cached searches equal full searches while the gallery and the query change."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from edge_agent.core.config import GallerySettings
from edge_agent.gallery.gallery import Gallery
from edge_agent.identify.near import Lookalikes, Neighbours, Search

D = 16


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


class Site:
    """A gallery whose people are near a few centres, and random changes of it."""

    def __init__(self, gallery: Gallery, seed: int) -> None:
        self.gallery = gallery
        self.random = np.random.default_rng(seed)
        self.centres = unit(self.random.normal(size=(6, D)))

    def vector(self) -> np.ndarray:
        centre = self.centres[self.random.integers(len(self.centres))]
        return unit(centre + 0.35 * unit(self.random.normal(size=D)))

    def enrol(self) -> None:
        self.gallery.enrol(self.vector()[None], np.ones(1, np.float32), origin="o", camera="c", time=1.0)

    def change(self) -> None:
        numbers = [identity.number for identity in self.gallery.identities()]
        what, number = self.random.random(), int(self.random.choice(numbers))
        if what < 0.3:
            self.enrol()
        elif what < 0.8:
            origin = f"o{self.random.integers(3)}"
            self.gallery.add_exemplars(
                number, self.vector()[None], np.ones(1, np.float32), origin=origin, camera="c", time=2.0
            )
        elif what < 0.9:
            self.gallery.remove_origin(number, "o1")
        elif len(numbers) > 20:
            self.gallery.forget(number)

    def everybody(self, query: np.ndarray, floor: float) -> dict[int, float]:
        numbers, scores = self.gallery.search(query[None], 1000)
        return {
            int(n): float(s)
            for n, s in zip(numbers[0], scores[0], strict=True)
            if n >= 0 and s >= floor
        }  # fmt: skip


@pytest.fixture(params=range(4))
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    with Gallery(":memory:", GallerySettings(max_exemplars=4), space="test", dimension=D) as gallery:
        made = Site(gallery, request.param)
        for _ in range(40):
            made.enrol()
        yield made


@pytest.mark.parametrize("nearest", [5, 1])
def test_no_person_above_the_floor_is_missing(site: Site, nearest: int) -> None:
    """A question that turns a little each time, while people come, change and go; of one, all change."""
    neighbours, search, remembered = Neighbours(site.gallery, nearest), None, 0
    query = site.vector()
    for step in range(150):
        query = unit(query + 0.04 * site.random.normal(size=D)) if step % 30 else site.vector()
        if site.random.random() < 0.4:
            site.change()
        floor = float(site.random.uniform(0.5, 0.95))
        near = neighbours.near([query], floor, [search])[0]
        remembered += search is not None and near.search.query is search.query
        search = near.search
        found = dict(zip(near.numbers.tolist(), near.scores.tolist(), strict=True))
        assert len(found) == len(near.numbers)
        expected = site.everybody(query, -2.0)
        for number, score in expected.items():
            if score >= floor:
                assert number in found
            if number not in found:
                assert score <= near.reach + 1e-4
        for number, score in found.items():
            assert score == pytest.approx(expected[number], abs=1e-4)
    assert remembered > 20


def test_its_own_identity_is_given_at_any_distance(site: Site) -> None:
    neighbours = Neighbours(site.gallery, nearest=2)
    query = site.vector()
    far = min(site.everybody(query, -2.0).items(), key=lambda item: item[1])[0]
    search: Search | None = None
    for _ in range(2):
        near = neighbours.near([query], 0.99, [search], [far])[0]
        search = near.search
        assert far in near.numbers


def test_similar_people_are_found(site: Site) -> None:
    """Against every pair of exemplars, while both sides change and the threshold moves."""
    lookalikes = Lookalikes(site.gallery, Neighbours(site.gallery, nearest=5))
    for step in range(60):
        site.change()
        for number in sorted(identity.number for identity in site.gallery.identities())[:3]:
            floor = 0.9 - 0.001 * step
            others = lookalikes.of(number, floor, None)
            _, rows = site.gallery.vectors([number])
            expected = {n for row in rows for n in site.everybody(row, floor + 1e-4)} - {number}
            assert expected <= others
            assert number not in others


def test_an_empty_gallery_has_no_identities() -> None:
    with Gallery(":memory:", GallerySettings(), space="test", dimension=D) as gallery:
        near = Neighbours(gallery).near([unit(np.ones(D))], 0.5, [None])[0]
        assert not len(near.numbers)
        assert near.reach == -np.inf
        assert Lookalikes(gallery, Neighbours(gallery)).of(1, 0.5, None) == set()
