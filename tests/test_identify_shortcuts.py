"""The decision looks at the whole gallery only where somebody can have come near: it must decide the same."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from edge_agent.gallery.gallery import Gallery
from edge_agent.identify import Identifier
from edge_agent.structures import Decision
from tests.test_identify import D, People, Scene


class Thorough(Identifier):
    """Looks at everybody every time."""

    def _nobody_near(self, track: object, threshold: float) -> bool:
        return False

    def _nobody_like(self, number: int, threshold: float) -> bool:
        return False


@contextmanager
def scene(kind: type[Identifier], **options: object) -> Iterator[tuple[Scene, Gallery]]:
    with Gallery(":memory:", space="test", dimension=D) as gallery:
        yield Scene(kind(gallery, "run", **options)), gallery


def told(decisions: list[Decision]) -> list[tuple[object, ...]]:
    return [(d.kind, d.track_id, d.number, d.reason, d.frame, d.rule) for d in decisions]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("configured", [None, 0.6, 0.85])
def test_the_same_is_decided_as_by_looking_at_everybody(seed: int, configured: float | None) -> None:
    """A crowd that comes and goes: look-alikes, swaps inside a track, people erased and named meanwhile."""
    dice = random.Random(seed)
    count = dice.randint(4, 12)
    likeness, noise = dice.uniform(0.1, 0.7), dice.uniform(0.2, 1.2)
    with (
        scene(Identifier, configured=configured) as (fast, quick),
        scene(Thorough, configured=configured) as (slow, full),
    ):
        crops = People(count, likeness=likeness, noise=noise, seed=seed)
        track = 0
        for _ in range(12):
            group = {}
            for person in dice.sample(range(count), dice.randint(1, min(4, count))):
                track += 1
                group[track] = person
            for frame in range(dice.randint(6, 40)):
                if frame == 20 and len(group) > 1 and dice.random() < 0.3:
                    group = dict(zip(group, dice.sample(list(group.values()), len(group)), strict=True))
                vectors = {number: crops.crop(person) for number, person in group.items()}
                assert told(fast.show(vectors)) == told(slow.show(vectors))
            assert told(fast.show({}, ended=tuple(group))) == told(slow.show({}, ended=tuple(group)))
            _meddle(dice, quick, full)
        assert told(fast.decisions) == told(slow.decisions)
        assert [i.number for i in quick.identities()] == [i.number for i in full.identities()]


def _meddle(dice: random.Random, *galleries: Gallery) -> None:
    """Sometimes an operator erases, names or enrols somebody, in both galleries alike."""
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
