"""How often the same people are compared again."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from edge_agent.core.config import IdentifySettings
from edge_agent.gallery.gallery import Gallery
from edge_agent.identify import Identifier
from edge_agent.identify.settle import Fuser
from edge_agent.identify.tracks import MOST_BETWEEN, REVIEW_CROPS
from tests.identify.test_identify import People, Scene, gallery, unit, warm

__all__ = ["gallery"]


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The identities that were compared with others."""
    found: list[int] = []
    fuse = Fuser.fuse

    def noted(self: Fuser, numbers: list[int]) -> list[object]:
        found.extend(numbers)
        return list(fuse(self, numbers))

    monkeypatch.setattr(Fuser, "fuse", noted)
    return found


@pytest.fixture
def scene(gallery: Gallery, people: People) -> Scene:
    scene = Scene(Identifier(gallery, "s", IdentifySettings()))
    warm(scene, people)
    return scene


@pytest.fixture
def people() -> People:
    return People(8)


def gaps(scene: Scene, crop: np.ndarray, frames: int, compared: list[int]) -> list[int]:
    """Show one track; return the frames between the comparisons of its identity, at least four."""
    at = []
    for frame in range(1, frames + 1):
        compared.clear()
        scene.show({9: crop})
        if compared:
            at.append(frame)
    assert len(at) > 4
    return [later - earlier for earlier, later in pairwise(at)]


def test_somebody_who_is_like_nobody_is_compared_less_and_less_often(
    scene: Scene, people: People, compared: list[int]
) -> None:
    found = gaps(scene, people.centres[7], 8 * MOST_BETWEEN, compared)
    assert found == sorted(found)
    assert found[0] >= REVIEW_CROPS
    assert found[-1] == MOST_BETWEEN


def test_somebody_who_is_like_another_is_compared_as_often_as_before(
    scene: Scene, people: People, compared: list[int]
) -> None:
    threshold = scene.identifier.thresholds.in_force.value
    assert threshold is not None
    near = threshold + 0.02  # before the means of cameras are subtracted
    alike = unit(near * people.centres[0] + (1 - near**2) ** 0.5 * people.centres[7])
    assert set(gaps(scene, alike, 6 * MOST_BETWEEN, compared)) == {REVIEW_CROPS}


def test_pictures_of_a_moment_are_learned_once_where_enough_is_known(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = People(8)
    scene = Scene(Identifier(gallery, "s", IdentifySettings()))
    crowd = {number: people.centres[number] for number in range(8)}

    def changes(frames: int) -> int:
        before = scene.identifier.thresholds.site.changes
        for _ in range(frames):
            scene.show(crowd)
        return scene.identifier.thresholds.site.changes - before

    changes(20)
    each = changes(40)
    monkeypatch.setattr("edge_agent.identify.identifier.MAX_PAIRS", 20)  # of 28 pairs
    monkeypatch.setattr("edge_agent.identify.identifier.LEARN_S", 1.9)  # 19 frames
    assert 0 < changes(40) <= 0.6 * each
