"""Other data of a person is deleted with the person, also later."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_agent.agent.databases import erase_at_rest
from edge_agent.core.config import GallerySettings
from edge_agent.core.errors import StorageError
from edge_agent.core.loading import load
from edge_agent.core.structures import LONE_TRACKS, DecisionKind, Pictures, TrackObservation, TrackUpdate
from edge_agent.gallery import Gallery, Identity
from edge_agent.gallery.erasure import Erasure, Removed, forget, forget_all
from tests.deliver.deliver_fixtures import decision, outbox_at


class Folder:
    """Records the requested deletions."""

    def __init__(self, camera: str) -> None:
        self.camera = camera
        self.away = False
        self.erased: list[Pictures] = []

    def owns(self, camera: str) -> bool:
        return camera == self.camera

    def erase(self, pictures: Collection[Pictures]) -> int:
        if self.away:
            raise StorageError("the share is not mounted")
        self.erased += pictures
        return len(pictures)


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[Gallery]:
    with Gallery(tmp_path / "gallery.db", GallerySettings(), space="s", dimension=4) as opened:
        yield opened


def enrol(gallery: Gallery) -> Identity:
    row = np.eye(4, dtype=np.float32)[:1]
    return gallery.enrol(row, np.ones(1, np.float32), origin="t", camera="hall", time=100.0)


def test_pictures_and_events_of_the_right_person_go(gallery: Gallery) -> None:
    words: list[str] = []
    folder = Folder("hall")
    erasure = Erasure(gallery, lambda word: words.append(word) or 2, [folder])
    anna, berta, carla = (enrol(gallery) for _ in range(3))
    erasure.note(decision(1, camera="hall", number=anna.number, first_seen=100.0))
    erasure.note(decision(2, camera="hall", number=berta.number, first_seen=101.0))
    erasure.note(decision(2, camera="hall", number=anna.number, first_seen=101.0))  # corrected
    erasure.note(decision(3, camera="street", number=anna.number))  # not a crop folder
    erasure.note(decision(4, camera="hall", number=None))
    erasure.note(decision(1, camera="hall", number=anna.number, kind=DecisionKind.DEPARTED, first_seen=100.0))
    gallery.merge(anna.number, carla.number)
    assert erasure.run() == Removed()
    erased, removed = erasure.forget(lambda: forget(gallery, anna.number))
    assert erased.id == anna.id
    assert removed == Removed(events=4, pictures=2)
    assert words == [anna.id, carla.id]
    assert {one.track for one in folder.erased} == {1, 2}
    assert erasure.run() == Removed()
    assert [person.id for person in gallery.identities()] == [berta.id]


def group_update(*moments: tuple[int, float], ended: tuple[int, ...] = ()) -> TrackUpdate:
    box = np.array([0, 0, 40, 100], np.float32)
    seen = tuple(
        TrackObservation("hall", LONE_TRACKS + group, 1, time, box, 1.0, None, 0.0) for group, time in moments
    )
    return TrackUpdate("hall", 1, 0.0, (40, 100), seen, tuple(LONE_TRACKS + group for group in ended))


def test_all_pictures_of_a_group_without_a_track_go(gallery: Gallery) -> None:
    folder = Folder("hall")
    erasure = Erasure(gallery, lambda _: 0, [folder])
    anna, berta = enrol(gallery), enrol(gallery)
    erasure.saw(group_update((1, 100.0), (2, 100.0)))
    erasure.saw(group_update((1, 101.0)))
    first = decision(LONE_TRACKS + 1, camera="hall", number=berta.number, first_seen=100.0)
    erasure.note(first)
    erasure.saw(group_update((1, 102.0), (2, 102.5)))
    erasure.note(decision(LONE_TRACKS + 1, camera="hall", number=anna.number, first_seen=100.0))  # switched
    erasure.saw(group_update((1, 103.0), ended=(1, 2)))
    erasure.note(
        decision(
            LONE_TRACKS + 1, camera="hall", number=anna.number, kind=DecisionKind.DEPARTED, first_seen=100.0
        )
    )
    erasure.saw(group_update((3, 200.0)))
    _, removed = erasure.forget(lambda: forget(gallery, anna.number))
    assert removed.pictures == 4
    assert {one.since for one in folder.erased} == {100.0, 101.0, 102.0, 103.0}
    _, removed = erasure.forget(lambda: forget(gallery, berta.number))
    assert removed.pictures == 0


def test_a_failed_deletion_is_repeated_later(gallery: Gallery) -> None:
    folder = Folder("hall")
    folder.away = True
    erasure = Erasure(gallery, lambda _: 1, [folder])
    anna = enrol(gallery)
    erasure.note(decision(1, camera="hall", number=anna.number))
    with pytest.raises(StorageError, match="mounted"):
        erasure.forget(lambda: forget(gallery, anna.number))
    assert len(gallery) == 0
    folder.away = False
    assert Erasure(gallery, lambda _: 1, []).run() == Removed()  # a run without that folder
    assert Erasure(gallery, lambda _: 1, [folder]).run() == Removed(pictures=1)


def test_events_are_erased_from_an_outbox_without_an_agent(gallery: Gallery, tmp_path: Path) -> None:
    people = [enrol(gallery) for _ in range(2)]
    with outbox_at(tmp_path / "outbox.db") as outbox:
        for person in (*people, people[0]):
            outbox.append(b'{"who":"%b"}' % person.id.encode(), "t")
    settings = load(None, {"state_dir": tmp_path})
    forget(gallery, people[0].number)
    assert erase_at_rest(settings, gallery) == Removed(events=2)
    forget_all(gallery)
    with Gallery(tmp_path / "gallery.db", GallerySettings(), space="s", dimension=4, owner=True):
        assert erase_at_rest(settings, gallery) is None  # an agent runs: it will do it
    assert erase_at_rest(settings, gallery) == Removed(events=1)
    with outbox_at(tmp_path / "outbox.db") as outbox:
        assert outbox.depth.rows == 0
        assert outbox.unreported
