"""Split, rejected pairs, and suggestions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_agent.core.config import GallerySettings
from edge_agent.core.errors import InputError
from edge_agent.gallery import Gallery, Identity
from edge_agent.gallery.erasure import Erasure, PictureNotes
from edge_agent.gallery.suggestions import suggestions

D = 32


def opened(folder: Path, *, owner: bool = True) -> Gallery:
    return Gallery(folder / "gallery.db", GallerySettings(), space="s", dimension=D, owner=owner)


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[Gallery]:
    with opened(tmp_path) as one:
        yield one


def near(seed: int, noise: float = 0.0, draw: int = 0) -> np.ndarray:
    """The embedding of a person, `(1, D)`, and of another picture of the same one."""
    row = np.random.default_rng(seed).standard_normal(D)
    row = row / np.linalg.norm(row) + noise * np.random.default_rng(1000 + draw).standard_normal(D) / D**0.5
    return (row / np.linalg.norm(row)).astype(np.float32)[None]


def enrol(
    gallery: Gallery, vector: np.ndarray, *, origin: str, time: float, camera: str = "yard"
) -> Identity:
    return gallery.enrol(vector, np.ones(1), origin=origin, camera=camera, time=time)


def add(gallery: Gallery, person: Identity, vector: np.ndarray, *, origin: str, time: float) -> None:
    gallery.add_exemplars(person.number, vector, np.ones(1), origin=origin, camera="yard", time=time)


def test_split_makes_a_new_identity_of_a_track(gallery: Gallery) -> None:
    person = enrol(gallery, near(1), origin="a:yard:1", time=10.0)
    add(gallery, person, near(2), origin="a:yard:2", time=20.0)
    add(gallery, person, near(2, 0.3), origin="a:yard:2", time=30.0)
    gallery.touch(person.number, 30.0)
    new = gallery.corrections.split(person.number, "a:yard:2")
    assert (new.number, new.exemplars, new.kind, new.name, new.created) == (2, 2, "auto", None, 20.0)
    left = gallery.get(person.id)
    assert (left.exemplars, left.sightings) == (1, 1)
    assert gallery.search(near(2), 1)[0].tolist() == [[2]]
    assert gallery.search(near(1), 1)[0].tolist() == [[1]]
    (notice,) = gallery.notices.waiting()
    assert (notice.kind, notice.id, notice.other) == ("split", new.id, person.id)
    assert set(gallery.corrections.apart(1)) == {2}


def test_a_name_is_announced_after_the_split(gallery: Gallery) -> None:
    person = enrol(gallery, near(1), origin="a:yard:1", time=10.0)
    add(gallery, person, near(2), origin="a:yard:2", time=20.0)
    new = gallery.corrections.split(person.number, "a:yard:2", "Ada")
    assert (new.name, new.kind) == ("Ada", "enrolled")
    assert [one.kind for one in gallery.notices.waiting()] == ["split", "named"]


@pytest.mark.parametrize(
    ("origin", "name", "text"),
    [
        ("a:yard:1", None, "nothing would remain"),
        ("a:yard:9", None, "has no exemplars"),
        ("a:yard:2", "Bob", "belongs to identity"),
        ("a:yard:2", "17", "not a usable name"),
    ],
)
def test_what_cannot_be_split(gallery: Gallery, origin: str, name: str | None, text: str) -> None:
    person = enrol(gallery, near(1), origin="a:yard:1", time=10.0)
    gallery.rename(enrol(gallery, near(5), origin="a:yard:5", time=10.0).number, "Bob")
    if origin != "a:yard:1":
        add(gallery, person, near(2), origin="a:yard:2", time=20.0)
    with pytest.raises(InputError, match=text):
        gallery.corrections.split(person.number, origin, name)
    assert len(gallery) == 2
    assert gallery.corrections.apart(person.number) == set()


def test_split_takes_the_noted_pictures_of_a_crop_folder_along(gallery: Gallery) -> None:
    """Those of the track in this visit: its number may have been another visit of the same person."""
    person = enrol(gallery, near(1), origin="a:yard:7", time=12.0)
    add(gallery, person, near(2), origin="b:yard:7", time=105.0)
    notes = PictureNotes(gallery.file)
    for since in (10.0, 100.0):
        assert notes.note(person.number, "yard", 7, since)
    new = gallery.corrections.split(person.number, "b:yard:7")
    gallery.forget(new.number)
    assert [one.since for one in notes.orphaned()] == [100.0]
    assert Erasure(gallery, lambda _: 0).run().pictures == 0  # no folder is read here


def test_rejected_pairs_are_kept_and_known_to_other_processes(gallery: Gallery, tmp_path: Path) -> None:
    people = [enrol(gallery, near(seed), origin=f"a:yard:{seed}", time=10.0 * seed) for seed in range(1, 5)]
    assert gallery.corrections.apart(1) == set()
    with opened(tmp_path, owner=False) as beside:
        beside.corrections.reject(2, 1)
        beside.corrections.reject(1, 3)
        assert set(gallery.corrections.apart(1)) == {2, 3}
        assert set(gallery.corrections.apart(3)) == {1}
        gallery.merge(4, 1)  # the pairs go on with who remains
        assert set(beside.corrections.apart(4)) == {2, 3}
        gallery.merge(4, 2)  # an operator is right
        assert set(gallery.corrections.apart(4)) == {3}
        gallery.forget(3)
    assert people[0].number == 1


def test_an_identity_cannot_be_kept_apart_from_itself(gallery: Gallery) -> None:
    enrol(gallery, near(1), origin="a:yard:1", time=10.0)
    for other in (1, 9):
        with pytest.raises(InputError):
            gallery.corrections.reject(1, other)


def test_suggestions_are_ordered_and_leave_out_who_was_rejected_or_seen_together(gallery: Gallery) -> None:
    for seed in range(1, 13):
        enrol(gallery, near(seed), origin=f"a:yard:{seed}", time=1000.0 * seed)
    alike = enrol(gallery, near(1, 0.3), origin="a:yard:21", time=50_000.0)  # 1 again
    less = enrol(gallery, near(2, 0.7, 1), origin="a:yard:22", time=60_000.0)  # 2 again
    rejected = enrol(gallery, near(3, 0.1, 2), origin="a:yard:23", time=70_000.0)
    gallery.corrections.reject(3, rejected.number)
    together = enrol(gallery, near(4, 0.1, 3), origin="a:yard:24", time=4000.0)  # while 4 was in view
    learned = enrol(gallery, near(5, 0.1, 4), origin="a:yard:25", time=80_000.0)
    gallery.facts.set("site_scores", {"pairs": {f"#{learned.number}|#5": 0.4, "x|#2": 0.1}})
    pairs = suggestions(gallery, 5, floor=0.5)
    assert [(pair.one.number, pair.other.number) for pair in pairs] == [
        (1, alike.number),
        (2, less.number),
    ]
    assert pairs[0].score > pairs[1].score > 0.5
    everyone = suggestions(gallery, 200)
    assert len(everyone) <= 200
    assert (4, together.number) not in {(pair.one.number, pair.other.number) for pair in everyone}
    assert [pair.score for pair in everyone] == sorted((pair.score for pair in everyone), reverse=True)


def test_suggestions_of_an_empty_gallery(gallery: Gallery) -> None:
    assert suggestions(gallery, 3) == []
    enrol(gallery, near(1), origin="a:yard:1", time=10.0)
    assert suggestions(gallery, 3) == []
