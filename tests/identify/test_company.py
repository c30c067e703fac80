"""People who were seen at the same time although they are alike stay two, also for other devices."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from edge_agent.core.config import GallerySettings, IdentifySettings
from edge_agent.core.structures import DecisionKind
from edge_agent.gallery.corrections import MOST_TOGETHER
from edge_agent.gallery.gallery import Gallery
from edge_agent.identify import Identifier
from tests.identify.test_identify import D, People, Scene, unit

SETTINGS = IdentifySettings(threshold=0.6)


@pytest.fixture
def gallery() -> Iterator[Gallery]:
    with Gallery(":memory:", GallerySettings(), space="test", dimension=D) as opened:
        yield opened


def scene(gallery: Gallery, session: str = "s", *, shares: bool = True) -> Scene:
    return Scene(Identifier(gallery, session, SETTINGS, shares=shares))


def twins(count: int = 2) -> People:
    """People of whom the first two are alike."""
    people = People(max(count, 4), noise=0.2)
    people.centres[1] = unit(people.centres[0] + 0.25 * people.centres[1])
    return people


def reasons(gallery: Gallery) -> list[str]:
    with gallery.file.reading() as rows:
        return [reason for (reason,) in rows.store.rows("SELECT reason FROM apart")]


def test_alike_people_seen_together_are_noted_others_are_not(gallery: Gallery) -> None:
    stage = scene(gallery)
    stage.visit(twins(), {1: 0, 2: 1, 3: 2})
    one, other, third = (stage.number(track) or 0 for track in (1, 2, 3))
    assert len({0, one, other, third}) == 4
    assert gallery.corrections.apart(one) == {other}
    assert gallery.corrections.apart(other) == {one}
    assert gallery.corrections.apart(third) == set()
    assert reasons(gallery) == ["together"]


def test_nothing_is_noted_unless_people_are_shared(gallery: Gallery) -> None:
    scene(gallery, shares=False).visit(twins(), {1: 0, 2: 1})
    assert reasons(gallery) == []


def test_they_are_not_joined_by_a_later_run(gallery: Gallery) -> None:
    """Without the note, the pair is joined when both look the same for a while."""
    joined = {}
    for shares in (False, True):
        gallery.forget_all()
        people = twins()
        scene(gallery, "first", shares=shares).visit(people, {1: 0, 2: 1})
        people.centres[1] = unit(people.centres[0] + 0.02 * people.centres[2])
        later = scene(gallery, "later", shares=shares)
        for track in range(10, 14):
            later.visit(people, {track: track % 2})
        joined[shares] = len(gallery) == 1
    assert joined == {False: True, True: False}


def test_an_operator_ends_it_by_merging(gallery: Gallery) -> None:
    stage = scene(gallery)
    stage.visit(twins(), {1: 0, 2: 1})
    one, other = stage.number(1) or 0, stage.number(2) or 0
    gallery.merge(one, other)
    assert reasons(gallery) == []


def test_a_person_has_a_bounded_number_of_pairs(gallery: Gallery) -> None:
    vectors = np.eye(D, dtype=np.float32)[: MOST_TOGETHER + 5]
    quality = np.ones(1, np.float32)
    numbers = [
        gallery.enrol(row[None], quality, origin=f"o{i}", camera="c", time=1.0).number
        for i, row in enumerate(vectors)
    ]
    corrections = gallery.corrections
    assert corrections.seen_together(numbers[0], numbers[1:]) == MOST_TOGETHER
    assert corrections.seen_together(numbers[0], numbers[1:]) == 0
    assert len(corrections.apart(numbers[0])) == MOST_TOGETHER
    assert corrections.seen_together(numbers[-1], [numbers[0]]) == 0  # the other one has all of them
    assert corrections.seen_together(numbers[1], [99_999]) == 0  # somebody who is gone
    corrections.reject(numbers[1], numbers[2])
    assert corrections.seen_together(numbers[1], [numbers[2]]) == 0
    assert "rejected" in reasons(gallery)  # what an operator has decided stays as it is


def test_a_merge_corrects_ended_tracks_too(gallery: Gallery) -> None:
    """Whoever stored an event of the absorbed identity learns of it, once for each track."""
    people = People(4)
    stage = scene(gallery)
    stage.visit(people, {1: 0})
    stage.visit(people, {2: 1})
    stage.visit(people, {3: 1})
    kept, absorbed = stage.number(1) or 0, stage.number(2) or 0
    assert stage.number(3) == absorbed
    ids = gallery.get(kept).id, gallery.get(absorbed).id
    gallery.merge(kept, absorbed, "fleet")
    stage.identifier.merged(kept, absorbed)
    stage.identifier.merged(kept, absorbed)  # a second notice, e.g. after a kill, changes nothing
    found = [one for one in stage.show({}) if one.kind is DecisionKind.CORRECTED]
    assert [(one.track_id, one.previous, one.identity, one.ended) for one in found] == [
        (2, ids[1], ids[0], True),
        (3, ids[1], ids[0], True),
    ]


def test_an_identity_that_takes_the_id_of_the_site_is_corrected(gallery: Gallery) -> None:
    """The number stays where only the id changes."""
    people = People(4)
    stage = scene(gallery)
    stage.visit(people, {1: 0})
    number = stage.number(1)
    assert number is not None
    with gallery.file.changing() as rows:
        rows.update(number, "id = ?", "p-000000000001")
    stage.identifier.merged(number, number)
    (found,) = stage.show({})
    assert (found.kind, found.identity) == (DecisionKind.CORRECTED, "p-000000000001")
    assert found.previous != found.identity


@pytest.mark.parametrize("merged", [False, True])
def test_a_track_ends_whose_person_others_erased_or_merged(gallery: Gallery, *, merged: bool) -> None:
    """The other tracks of the frame end, too."""
    people = People(4)
    stage = scene(gallery)
    for _ in range(20):
        stage.show({track: people.crop(track) for track in (1, 2)})
    numbers = [stage.number(track) or 0 for track in (1, 2)]
    if merged:
        gallery.merge(numbers[1], numbers[0], "fleet")
    else:
        gallery.forget(numbers[0])
    found = stage.show({}, ended=(1, 2))
    assert [one.track_id for one in found if one.kind is DecisionKind.DEPARTED] == [1, 2]
