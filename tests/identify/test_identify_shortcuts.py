"""Whole-gallery searches that are skipped do not change any decision."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from edge_agent.core.config import GallerySettings, IdentifySettings
from edge_agent.core.structures import Decision, DecisionKind, TrackObservation, TrackUpdate
from edge_agent.gallery.gallery import Gallery
from edge_agent.identify import Identifier
from edge_agent.identify.covisible import Covisibility
from edge_agent.identify.fit import Shared
from edge_agent.identify.near import Lookalikes, Neighbours
from edge_agent.identify.tracks import TrackTable
from tests.identify.test_identify import D, People, Scene


class Forgetful(Neighbours):
    def _recall(self, *_: object) -> None:
        return None


class Everybody(Lookalikes):
    def of(self, number: int, floor: float, hint: object) -> set[int]:
        _, rows = self._gallery.vectors([number])
        found = self._neighbours.near(list(rows), -1.0, [None] * len(rows)) if len(rows) else []
        return {other for near in found for other in near.numbers.tolist()} - {number}


@contextmanager
def cameras(
    neighbours: Callable[..., Neighbours], lookalikes: type[Lookalikes], **options: object
) -> Iterator[tuple[list[Scene], Gallery]]:
    """Two cameras that see the same people at the same time; one enrols people the other searched for."""
    with (
        pytest.MonkeyPatch.context() as patch,
        Gallery(":memory:", GallerySettings(), space="test", dimension=D) as gallery,
    ):
        patch.setattr("edge_agent.identify.identifier.Neighbours", neighbours)
        patch.setattr("edge_agent.identify.identifier.Lookalikes", lookalikes)
        identifier = Identifier(gallery, "run", IdentifySettings(**options))
        yield [Scene(identifier, "east"), Scene(identifier, "west")], gallery


def reported(decisions: list[Decision]) -> list[tuple[object, ...]]:
    return [
        (d.kind, d.track_id, d.number, d.reason, d.frame, d.rule)
        # A score without influence is exact where the decision is that no identity is similar.
        + ((_rounded(d.score), _rounded(d.runner_up)) if d.kind is DecisionKind.ENROLLED else ())
        for d in decisions
    ]


def _rounded(score: float | None) -> float | None:
    return None if score is None else round(score, 4)


@pytest.mark.parametrize("seed", range(7))
@pytest.mark.parametrize("configured", [None, 0.6, 0.85])
def test_decisions_equal_those_of_a_full_search(seed: int, configured: float | None) -> None:
    """A crowd that comes and goes: look-alikes, swaps inside a track, people erased and named meanwhile."""
    dice = random.Random(seed)
    count = dice.randint(4, 12)
    likeness, noise = dice.uniform(0.1, 0.7), dice.uniform(0.2, 1.2)
    nearest = dice.choice([2, 4, 32])
    with (
        cameras(partial(Neighbours, nearest=nearest), Lookalikes, threshold=configured) as (fast, quick),
        cameras(partial(Forgetful, nearest=1000), Everybody, threshold=configured) as (slow, full),
    ):
        crops = People(count, likeness=likeness, noise=noise, seed=seed)
        track = 0
        for _ in range(8):
            groups: list[dict[int, int]] = [{}, {}]
            for group in groups:
                for person in dice.sample(range(count), dice.randint(1, min(4, count))):
                    track += 1
                    group[track] = person
            for frame in range(dice.randint(6, 40)):
                for group, (one, other) in zip(groups, zip(fast, slow, strict=True), strict=True):
                    if frame == 20 and len(group) > 1 and dice.random() < 0.3:
                        swapped = dice.sample(list(group.values()), len(group))
                        group.update(zip(group, swapped, strict=True))
                    vectors = {number: crops.crop(person) for number, person in group.items()}
                    assert reported(one.show(vectors)) == reported(other.show(vectors))
            for group, one, other in zip(groups, fast, slow, strict=True):
                assert reported(one.show({}, ended=tuple(group))) == reported(
                    other.show({}, ended=tuple(group))
                )
            _meddle(dice, quick, full)
        assert [i.number for i in quick.identities()] == [i.number for i in full.identities()]


def _meddle(dice: random.Random, *galleries: Gallery) -> None:
    """Sometimes erase, name or enrol a person, in both galleries."""
    numbers = [identity.number for identity in galleries[0].identities()]
    what, vector = dice.random(), np.random.default_rng(dice.randrange(1000)).normal(size=(1, D))
    unit = (vector / np.linalg.norm(vector)).astype(np.float32)
    for gallery in galleries:
        if what < 0.15 and numbers:
            gallery.forget(numbers[len(numbers) // 2])
        elif what < 0.3 and numbers:
            gallery.rename(numbers[0], "Ada")
        elif what < 0.4:
            gallery.enrol(unit, np.ones(1, np.float32), origin="hand", camera="cam", time=1.0)


def observed(track: int, place: int) -> TrackObservation:
    box = np.array([200 * place, 0, 200 * place + 100, 300], np.float32)
    return TrackObservation("c", track, 1, 0.0, box, 0.9, np.eye(D, dtype=np.float32)[0], 0.9)


@pytest.mark.parametrize("seed", range(5))
def test_rivals_are_those_of_all_frames_counted_one_by_one(seed: int) -> None:
    """People come, cross, hide each other, and end; some come back under their number."""
    choose, needed = random.Random(seed), 3
    links = Covisibility(frames=needed)
    frames: dict[tuple[int, int], int] = {}
    rivals: set[tuple[int, int]] = set()
    seen: set[int] = set()
    for step in range(200):
        seen = {one for one in seen if choose.random() < 0.9} | {choose.randint(1, 20 + step // 10)}
        places = {one: choose.randint(1, 6) for one in sorted(seen) if choose.random() < 0.9}
        links.observe([observed(one, place) for one, place in places.items()])
        for pair in combinations(places, 2):
            if places[pair[0]] != places[pair[1]] and pair not in rivals:
                frames[pair] = frames.get(pair, 0) + 1
                if frames[pair] == needed:
                    rivals.add(pair)
        if choose.random() < 0.2:
            gone = choose.choice(sorted(seen))
            links.ended(("c", gone))
            frames = {pair: count for pair, count in frames.items() if gone not in pair}
            if choose.random() < 0.5:
                links.forget([("c", gone)])
                rivals = {pair for pair in rivals if gone not in pair}
            seen.discard(gone)
        for one in seen:
            assert links.rivals(("c", one)) == {("c", sum(pair) - one) for pair in rivals if one in pair}
        present = sorted(seen)
        expected = [[(min(a, b), max(a, b)) in rivals for b in present] for a in present]
        assert links.matrix("c", present).tolist() == expected
    assert len(rivals) > 50


@pytest.mark.parametrize("seed", range(5))
def test_identities_of_rivals_are_those_of_all_changes(seed: int) -> None:
    """People come, cross, get identities and lose them, are joined, split and forgotten."""
    choose = random.Random(seed)
    tracks, links = TrackTable("run", IdentifySettings()), Covisibility(frames=2)
    nobody: Any = None
    shared = Shared(nobody, IdentifySettings(), tracks, links, nobody)
    seen: set[int] = set()
    for step in range(300):
        seen = {track for track in seen if choose.random() < 0.9} | {choose.randint(1, 12 + step // 10)}
        shown = [observed(track, choose.randint(1, 40)) for track in sorted(seen)]
        tracks.observe(TrackUpdate("c", step, float(step), (9000, 400), tuple(shown), ()))
        links.observe(shown)
        track = tracks.get(("c", choose.choice(sorted(seen))))
        assert track is not None
        what = choose.random()
        if what < 0.4:
            tracks.release(track)
            tracks.hold(track, choose.randint(1, 30), founder=False)
        elif what < 0.5:
            tracks.release(track)
        elif what < 0.55:
            keep, absorb = choose.sample(range(1, 31), 2)
            tracks.merge(keep, absorb)
        elif what < 0.6 and track.evidence.count:
            part = tracks.split(track, float(step)).key
            rivals = sorted(links.rivals(track.key))
            links.split(track.key, part, rivals[::2], rivals[1::2])
        elif what < 0.65:
            links.ended(track.key)
            links.forget([track.key])
            seen.discard(track.key[1])
        for number in choose.sample(range(1, 40), 6) if step % 3 else ():
            key = ("c", number)
            assert shared.taken(key) == tracks.numbers(links.rivals(key))
    assert any(links.rivals(("c", number)) for number in range(1, 40))
