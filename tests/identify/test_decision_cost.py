"""The cost of a decision: searches of the whole gallery, pairs, and calls as people in view become more."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.core.config import GallerySettings, IdentifySettings
from edge_agent.gallery.gallery import Gallery
from edge_agent.identify import Identifier
from edge_agent.identify.changed import Changed
from edge_agent.identify.pairs import MAX_PAIRS
from tests.identify.test_identify import D, People, Scene, unit


class Counted(Gallery):
    """Counts the queries that are compared with everybody."""

    queries = 0

    def search(self, vectors: np.ndarray, k: int = 2) -> tuple[np.ndarray, np.ndarray]:
        self.queries += len(vectors)
        return super().search(vectors, k)


@contextmanager
def site() -> Iterator[tuple[Identifier, Counted]]:
    with Counted(":memory:", GallerySettings(), space="test", dimension=D) as gallery:
        yield Identifier(gallery, "run", IdentifySettings()), gallery


def calls_of_a_frame(count: int) -> float:
    """Return the calls, of Python and of C, for a frame of a camera with this many people, on average."""
    with site() as (identifier, _):
        scene, people = Scene(identifier), People(count)
        calls = 0

        def called(_frame: FrameType, event: str, _: object) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        frames = 20
        for frame in range(2 * frames):
            shown = {1 + person: people.crop(person) for person in range(count)}
            if frame == frames:
                sys.setprofile(called)
            try:
                scene.show(shown)
            finally:
                if frame == 2 * frames - 1:
                    sys.setprofile(None)
        return calls / frames


def test_calls_grow_with_the_people_in_view_not_with_their_pairs() -> None:
    few, many = calls_of_a_frame(12), calls_of_a_frame(48)
    assert many / 48 < 1.5 * few / 12


def test_people_who_stay_are_not_searched_again() -> None:
    """Although identities change all the time, more often than any list of changes is long."""
    with site() as (identifier, gallery):
        people = People(20, noise=0.5)
        scenes = [Scene(identifier, camera) for camera in ("east", "west")]
        for frame in range(80):
            for first, scene in zip((0, 10), scenes, strict=True):
                scene.show({1 + p: people.crop(first + p) for p in range(10)})
            if frame == 30:
                known, gallery.queries = gallery.present(), 0
            for number in gallery.present() if frame > 30 else ():
                vectors, qualities, _ = gallery.exemplars(number)
                gallery.add_exemplars(
                    number, vectors[:1], qualities[:1], origin="again", camera="east", time=float(frame)
                )
        assert gallery.present() == known
        assert gallery.file.changes_since(1)[0] > 900
        assert gallery.queries <= 20


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 4)), max_size=80), st.integers(8, 40))
@settings(max_examples=40, deadline=None)
def test_the_block_has_the_present_exemplars_of_what_changed(steps: list[tuple[int, int]], most: int) -> None:
    random = np.random.default_rng(len(steps))
    truth: dict[int, np.ndarray] = {}
    marks: dict[int, int] = {}
    mark = 1

    class Source:
        def vectors(self, numbers: set[int]) -> tuple[np.ndarray, np.ndarray]:
            held = [number for number in numbers if number in truth]
            owners = np.concatenate([np.zeros(0, np.int64), *[np.full(len(truth[n]), n) for n in held]])
            return owners.astype(np.int64), np.concatenate(
                [np.zeros((0, D), np.float32), *[truth[n] for n in held]]
            )

        def changes_since(self, since: int) -> tuple[int, set[int] | None]:
            return mark, None if not since else {number for number, at in marks.items() if at > since}

    block, query = Changed(Source(), most), unit(random.normal(size=(len(steps) % 5 + 1, D)))
    block.follow()
    for number, rows in steps:
        mark += 1
        marks[number] = mark
        truth.pop(number, None)
        if rows:
            truth[number] = unit(random.normal(size=(rows, D)))
        block.follow()
        for since in {block.since, max(block.since, mark - 3)}:
            numbers, at, scores = block.best(query, since)
            assert dict(zip(numbers.tolist(), at.tolist(), strict=True)) == {
                number: one for number, one in marks.items() if one > since
            }
            for column, found in enumerate(numbers.tolist()):
                expected = (
                    (truth[found] @ query.T).max(axis=0)
                    if found in truth
                    else np.full(len(query), -np.inf, np.float32)
                )
                assert scores[:, column] == pytest.approx(expected, abs=1e-6)


def test_a_crowded_picture_teaches_no_more_pairs_than_the_site_keeps() -> None:
    with site() as (identifier, _):
        scene, people = Scene(identifier), People(40)
        site_scores = identifier.thresholds.site
        gains = []
        for _ in range(24):
            before = site_scores.changes
            scene.show({1 + person: people.crop(person) for person in range(40)})
            gains.append(site_scores.changes - before)
        assert 0 < max(gains[12:]) <= MAX_PAIRS  # by then all have an identity
