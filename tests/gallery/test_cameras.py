"""Offsets of cameras: means of the people of each, taken from what is stored."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.core.config import GallerySettings
from edge_agent.core.errors import InputError
from edge_agent.gallery import Gallery
from edge_agent.gallery.archive import export_gallery, import_archive, read_archive, write_archive
from edge_agent.gallery.cameras import LATEST
from edge_agent.gallery.index import ExemplarIndex
from edge_agent.gallery.means import LONGEST_OFFSET, Vectors, centred, restored
from edge_agent.gallery.rows import CAMERAS_FACT

D = 48
ONE = np.ones(1, np.float32)


def unit(rows: np.ndarray) -> Vectors:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


class Site:
    """Embeddings of people on cameras that each have an offset of their own, beside a common one."""

    def __init__(self, seed: int = 0, offset: float = 0.9) -> None:
        self._drawn = np.random.default_rng(seed)
        self._common = 0.6 * unit(self._drawn.normal(size=D))
        self._offsets: dict[str, np.ndarray] = {}
        self._people: dict[int, np.ndarray] = {}
        self._offset = offset

    def crop(self, person: int, camera: str) -> Vectors:
        """One embedding, `(1, D)`."""
        offset = self._offsets.setdefault(camera, self._offset * unit(self._drawn.normal(size=D)))
        own = self._people.setdefault(person, unit(self._drawn.normal(size=D)))
        noise = 0.25 * unit(self._drawn.normal(size=D))
        return unit((own + noise + self._common + offset)[None])

    def enrol(self, gallery: Gallery, person: int, camera: str) -> int:
        """Enrol a person by one crop."""
        vector = self.crop(person, camera)
        origin = f"run:{camera}:{person}"
        return gallery.enrol(vector, ONE, origin=origin, camera=camera, time=1.0).number

    def pass_by(self, gallery: Gallery, people: range, camera: str, *, known: bool) -> None:
        """Let people pass a camera, with or without getting an identity."""
        for person in people:
            number = self.enrol(gallery, person, camera) if known else None
            vector = self.crop(person, camera)[0]
            gallery.cameras.saw(camera, f"run:{camera}:{person}", vector, number)


def opened(path: Path | str = ":memory:", **options: int) -> Gallery:
    return Gallery(path, GallerySettings(**options), space="space-a", dimension=D)


@pytest.fixture
def gallery() -> Iterator[Gallery]:
    with opened() as open_gallery:
        open_gallery.cameras.start()
        yield open_gallery


def reference(gallery: Gallery) -> tuple[dict[tuple[str, int], np.ndarray], dict[tuple[str, int], int]]:
    """Sums and numbers of the votes, computed from the file alone."""
    sums: dict[tuple[str, int], np.ndarray] = {}
    counts: dict[tuple[str, int], int] = {}
    with gallery.file.reading() as rows:
        for person in rows.identities():
            vectors, keys = rows.exemplars.of(person.number)
            for key in set(keys):
                mine = vectors[[one == key for one in keys]].astype(np.float64).sum(axis=0)
                sums[key] = sums.get(key, 0) + mine / np.linalg.norm(mine)
                counts[key] = counts.get(key, 0) + 1
    return sums, counts


def check(gallery: Gallery) -> None:
    """Votes are those of the file, and the index has what the file has, centred by the offsets in force."""
    means = gallery.file.means
    sums, counts = reference(gallery)
    for key in [*sums, ("nowhere", 0)]:
        view = means.view(*key)
        assert means.counts()[view] == counts.get(key, 0)
        np.testing.assert_allclose(means.totals()[view], sums.get(key, np.zeros(D)), atol=1e-4)
    assert np.abs(means.wanted() - means.offsets).max() <= 0.02
    for person in gallery.identities():
        raw, _, _ = gallery.exemplars(person.number)
        with gallery.file.reading() as rows:
            _, keys = rows.exemplars.of(person.number)
        offsets = means.offsets[[means.view(*key) for key in keys]]
        np.testing.assert_allclose(gallery.vectors([person.number])[1], centred(raw, offsets), atol=1e-5)


@given(st.integers(0, 2**16), st.floats(0, LONGEST_OFFSET))
@settings(max_examples=50, deadline=None)
def test_a_centred_vector_can_be_restored(seed: int, length: float) -> None:
    drawn = np.random.default_rng(seed)
    rows, offset = unit(drawn.normal(size=(7, D))), (length * unit(drawn.normal(size=D))).astype(np.float32)
    there = centred(rows, offset)
    np.testing.assert_allclose(np.linalg.norm(there, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(restored(there, offset), rows, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_means_follow_every_change_of_the_gallery(tmp_path: Path, seed: int) -> None:
    """Enrolment, more exemplars, merges, removed origins, erasure, eviction, another process, a restart."""
    site, dice = Site(seed), np.random.default_rng(seed)
    path = tmp_path / "gallery.db"
    cameras = ["east", "west", ""]
    with opened(path, capacity=30, max_exemplars=4) as gallery:
        gallery.cameras.start()
        for step in range(120):
            numbers = [one.number for one in gallery.identities()]
            one, other = dice.choice(numbers, 2, replace=False) if len(numbers) > 1 else (0, 0)
            what, camera = dice.random(), str(dice.choice(cameras))
            if what < 0.5 or not one:
                site.enrol(gallery, step, camera)
            elif what < 0.75:
                crop = site.crop(int(one), camera)
                gallery.add_exemplars(int(one), crop, ONE, origin=f"more:{step % 5}", camera=camera, time=2.0)
            elif what < 0.82:
                gallery.merge(int(one), int(other))
            elif what < 0.88:
                gallery.remove_origin(int(one), f"more:{step % 5}")
            elif what < 0.94:
                gallery.forget(int(one))
            else:
                with opened(path) as command:
                    site.enrol(command, 1000 + step, camera)
        check(gallery)
        before = gallery.file.means.wanted()
        views = {key: gallery.file.means.view(key, 0) for key in cameras}
    with opened(path) as gallery:
        gallery.cameras.start()
        check(gallery)
        after = gallery.file.means
        for key, view in views.items():
            np.testing.assert_allclose(after.wanted()[after.view(key, 0)], before[view], atol=1e-4)


def test_search_is_exact_while_offsets_move(gallery: Gallery) -> None:
    site, raw = Site(3), dict[int, tuple[Vectors, str]]()
    for person in range(150):
        camera = "east" if person % 4 else "west"
        number = site.enrol(gallery, person, camera)
        raw[number] = gallery.exemplars(number)[0], camera
        if person % 10:
            continue
        query = gallery.cameras.centred("west", site.crop(person, "west"))
        found, scores = gallery.search(query, 3)
        rows = {n: gallery.cameras.centred(camera, vectors)[0] for n, (vectors, camera) in raw.items()}
        best = sorted(((float(row @ query[0]), -n) for n, row in rows.items()), reverse=True)[:3]
        assert [n for n in found[0].tolist() if n > 0] == [-n for _, n in best]
        assert scores[0][: len(best)] == pytest.approx([score for score, _ in best], abs=1e-5)
    check(gallery)


def test_rows_with_codes_are_turned_with_their_codes() -> None:
    pytest.importorskip("faiss", reason="faiss is not installed: pip install '.[index]'")
    from edge_agent.gallery.shortlist import Codes

    site, index = Site(), ExemplarIndex(D)
    rows = np.concatenate([site.crop(person, "east") for person in range(700)])
    for number, row in enumerate(rows):
        index.put(number, row[None], np.array([number % 2], np.int32))
    index.shortlist = Codes(rows)
    while index.encode():
        pass
    offset = rows.mean(axis=0)
    turned = index.turn(1, np.zeros(D, np.float32), offset)
    assert turned.tolist() == list(range(1, 700, 2))
    queries = centred(rows[1:300:2], offset)
    assert index.listed
    np.testing.assert_array_equal(index.search(queries, 1)[0][:, 0], np.arange(1, 300, 2))


def test_people_are_found_across_cameras_once_the_offsets_are_known(gallery: Gallery) -> None:
    site, numbers = Site(1), {}
    for person in range(60):
        numbers[person] = site.enrol(gallery, person, "east")
        site.enrol(gallery, 100 + person, "west")

    def recognised(*, with_offsets: bool) -> int:
        crops = np.concatenate([site.crop(person, "west") for person in numbers])
        if with_offsets:
            return int((gallery.search(gallery.cameras.centred("west", crops), 1)[0][:, 0] == own).sum())
        raw = np.concatenate([gallery.exemplars(one.number)[0] for one in gallery.identities()])
        return int(((crops @ raw.T).argmax(axis=1) + 1 == own).sum())

    own = np.array(list(numbers.values()))
    assert recognised(with_offsets=False) < 40
    assert recognised(with_offsets=True) >= 57


def test_a_camera_without_people_gets_the_mean_of_the_others(gallery: Gallery) -> None:
    site = Site(2)
    for person in range(40):
        site.enrol(gallery, person, "east")
    means = gallery.file.means
    offset, east = (means.view(camera, 0) for camera in ("new", "east"))
    offset, east = means.offsets[offset], means.offsets[east]
    assert float(offset @ east) > 0.5 * float(offset @ offset) ** 0.5 * float(east @ east) ** 0.5


def test_the_bias_says_what_becomes_of_scores(gallery: Gallery) -> None:
    site = Site(5)
    assert gallery.cameras.bias("east").relief == 0
    for person in range(80):
        site.enrol(gallery, person, "east")
    bias = gallery.cameras.bias("east")
    strangers = np.concatenate([site.crop(200 + person, "east") for person in range(150)])
    above = np.triu_indices(len(strangers), 1)
    raw = (strangers @ strangers.T)[above].mean()
    there = gallery.cameras.centred("east", strangers)
    assert bias.people == 80
    assert bias.likeness == pytest.approx(raw, abs=0.03)
    assert bias.after(raw) == pytest.approx((there @ there.T)[above].mean(), abs=0.03)
    assert bias.before(bias.after(0.7)) == pytest.approx(0.7)
    assert bias.weight == pytest.approx(80 / 90, abs=0.05)


def test_own_votes_do_not_flatter_the_scores_of_people_seen_together(gallery: Gallery) -> None:
    site = Site(6)
    for person in range(8):
        site.enrol(gallery, person, "east")
    voters = np.concatenate([gallery.exemplars(number)[0] for number in range(1, 9)])
    newcomers = np.concatenate([site.crop(50 + person, "east") for person in range(200)])
    there = gallery.cameras.centred("east", newcomers) @ gallery.cameras.centred("east", voters).T
    above = np.triu_indices(8, 1)
    found = gallery.cameras.cosines("east", voters, [True] * 8)[above].mean()
    plain = gallery.cameras.centred("east", voters)
    assert found == pytest.approx(there.mean(), abs=0.025)
    assert (plain @ plain.T)[above].mean() < found - 0.02


@pytest.mark.parametrize("people", [1, 2, 5])
def test_nothing_of_an_erased_person_stays_in_the_offsets(gallery: Gallery, people: int) -> None:
    site = Site(7)
    numbers = [site.enrol(gallery, person, "east") for person in range(people)]
    gallery.cameras.saw("east", "run:east:0", site.crop(0, "east")[0], numbers[0])
    gallery.forget(numbers[0])
    means, view = gallery.file.means, gallery.file.means.view("east", 0)
    np.testing.assert_allclose(means.offsets, means.wanted(), atol=1e-7)
    sums, _ = reference(gallery)
    np.testing.assert_allclose(means.totals()[view], sums.get(("east", 0), np.zeros(D)), atol=1e-6)
    assert not means.latest["east"]


def test_people_without_identity_vote_and_only_many_are_stored(tmp_path: Path) -> None:
    site, path = Site(8), tmp_path / "gallery.db"
    with opened(path) as gallery:
        gallery.cameras.start()
        site.pass_by(gallery, range(LATEST + 9), "east", known=False)
        assert gallery.cameras.bias("east").people == LATEST + 9
        assert gallery.facts.get(CAMERAS_FACT) is None
        site.pass_by(gallery, range(LATEST + 9, LATEST + 12), "east", known=False)
        assert gallery.facts.get(CAMERAS_FACT)["guests"]["east"]["people"] == 10
    with opened(path) as gallery:
        gallery.cameras.start()
        assert gallery.cameras.bias("east").people == 10
        assert gallery.cameras.bias("east").relief > 0.2
        export_gallery(gallery, tmp_path / "people.zip")
        gallery.forget_all()
        assert gallery.cameras.bias("east").people == gallery.cameras.bias("east").relief == 0
        assert gallery.facts.get(CAMERAS_FACT) is None
        import_archive(gallery, tmp_path / "people.zip")
        assert gallery.facts.get(CAMERAS_FACT)["guests"]["east"]["people"] == 10


def test_a_command_that_erases_all_clears_the_means_of_the_agent(tmp_path: Path) -> None:
    site, path = Site(9), tmp_path / "gallery.db"
    with opened(path) as gallery:
        gallery.cameras.start()
        site.pass_by(gallery, range(90, 92), "west", known=True)
        site.pass_by(gallery, range(LATEST + 12), "east", known=False)
        with opened(path) as command:
            command.forget_all()
        assert gallery.cameras.bias("east").people == 0
        assert not gallery.file.means.offsets.any()
        assert not gallery.file.means.latest.get("west")


@pytest.mark.parametrize("known", [True, False])
def test_nothing_of_people_whom_a_command_erased_is_stored_again(tmp_path: Path, known: bool) -> None:
    site, path = Site(9), tmp_path / "gallery.db"
    with opened(path) as gallery:
        gallery.cameras.start()
        if known:
            site.enrol(gallery, 99, "west")
        site.pass_by(gallery, range(LATEST + 12), "east", known=False)
        site.pass_by(gallery, range(LATEST + 12), "north", known=False)
        with gallery.file.exclusive():  # as in a frame: noticed afterwards
            with opened(path) as command:
                command.forget_all()
            site.pass_by(gallery, range(100, 110), "east", known=False)
            assert gallery.facts.get(CAMERAS_FACT) is None
        site.pass_by(gallery, range(200, 212 + LATEST), "east", known=False)
        stored = gallery.facts.get(CAMERAS_FACT)["guests"]
        assert stored.keys() == {"east"}
        assert stored["east"]["people"] == 10
        assert gallery.cameras.bias("east").people <= 22 + LATEST


def test_a_new_camera_is_compared_at_once(gallery: Gallery) -> None:
    assert gallery.cameras.centred("new", Site(9).crop(1, "new")).shape == (1, D)


@pytest.mark.parametrize("known", [True, False])
def test_a_moved_camera_begins_an_epoch_and_finds_back(gallery: Gallery, known: bool) -> None:
    site = Site(10)
    site.pass_by(gallery, range(60), "east", known=known)
    assert gallery.cameras.epoch("east") == 0
    moved = Site(11)  # the same name, another place
    moved.pass_by(gallery, range(100, 100 + LATEST + 20), "east", known=known)
    assert gallery.cameras.epoch("east") == 1
    assert gallery.facts.get(CAMERAS_FACT)["epochs"] == {"east": 1}
    bias = gallery.cameras.bias("east")
    assert bias.people >= LATEST
    if known:
        check(gallery)
        with gallery.file.reading() as rows:
            of_old, of_new = rows.exemplars.of(1)[1], rows.exemplars.of(96)[1]
        assert (of_old, of_new) == ([("east", 0)], [("east", 1)])
    site.pass_by(gallery, range(200, 200 + LATEST + 20), "east", known=known)
    assert gallery.cameras.epoch("east") == 0


def test_a_camera_that_stands_still_keeps_its_epoch(gallery: Gallery) -> None:
    Site(12).pass_by(gallery, range(300), "east", known=True)
    assert gallery.cameras.epoch("east") == 0


def epochs_of(gallery: Gallery, number: int) -> list[tuple[str, int]]:
    with gallery.file.reading() as rows:
        return rows.exemplars.of(number)[1]


def test_cameras_of_another_site_are_other_cameras(tmp_path: Path) -> None:
    here, there = Site(13), Site(14)
    with opened(tmp_path / "a" / "gallery.db") as gallery:
        there.enrol(gallery, 1, "east")
        there.enrol(gallery, 2, "")
        export_gallery(gallery, tmp_path / "a.zip")
        gallery.forget(1)
        import_archive(gallery, tmp_path / "a.zip")
        assert epochs_of(gallery, 3) == [("east", 0)]  # it came home
    with opened(tmp_path / "b" / "gallery.db") as gallery:
        gallery.cameras.start()
        here.enrol(gallery, 1, "east")
        import_archive(gallery, tmp_path / "a.zip")
        assert [epochs_of(gallery, number) for number in (1, 2, 3)] == [
            [("east", 0)],
            [("east", 1)],
            [("", 0)],
        ]
        check(gallery)
        assert gallery.cameras.bias("east").people == 1
    with opened(tmp_path / "c" / "gallery.db") as gallery:
        import_archive(gallery, tmp_path / "a.zip")
        assert epochs_of(gallery, 1) == [("east", 0)]  # the gallery moved to another device


@pytest.mark.parametrize(
    "stored",
    [[1], {"epochs": 1}, {"epochs": {"east": "x"}, "guests": {"east": 1, "west": {"epoch": 0}}},
     {"guests": {"east": {"epoch": 0, "people": 12.0, "sum": [0.1]}}},
     {"guests": {"east": {"epoch": -1, "people": "x", "sum": ["y"] * D}}}],
)  # fmt: skip
def test_damaged_facts_are_left_out(gallery: Gallery, stored: object) -> None:
    gallery.facts.set(CAMERAS_FACT, stored)
    gallery.cameras.start()
    assert gallery.cameras.epoch("east") == gallery.cameras.bias("east").people == 0


def test_an_archive_cannot_make_up_offsets_or_endless_cameras(tmp_path: Path) -> None:
    with opened() as gallery:
        Site(17).enrol(gallery, 1, "east")
        export_gallery(gallery, tmp_path / "people.zip")
        archive = read_archive(tmp_path / "people.zip")
        facts = {CAMERAS_FACT: {"guests": {"east": {"epoch": 0, "people": 2.0, "sum": [1.0] * D}}}}
        write_archive(tmp_path / "bad.zip", replace(archive, facts=facts))
        with pytest.raises(InputError, match=r"facts.cameras.guests.east.*sum is longer"):
            import_archive(gallery, tmp_path / "bad.zip")
        person = archive.people[0]
        many = [person.exemplars[0].model_copy(update={"epoch": epoch}) for epoch in range(15)]
        people = tuple(
            person.model_copy(
                update={
                    "id": f"p-{number:012d}".translate(str.maketrans("0189", "abcd")),
                    "exemplars": tuple(one.model_copy(update={"camera": f"c{number}"}) for one in many),
                }
            )
            for number in range(70)
        )
        vectors = np.repeat(archive.vectors, 15 * 70, axis=0)
        write_archive(tmp_path / "many.zip", replace(archive, people=people, vectors=vectors))
        with pytest.raises(InputError, match="names 1,050 cameras, at most 1,000"):
            import_archive(gallery, tmp_path / "many.zip")


def test_an_archive_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    site = Site(15)
    with opened() as gallery:
        site.enrol(gallery, 1, "east")
        export_gallery(gallery, tmp_path / "new.zip")
    archive = read_archive(tmp_path / "new.zip")
    assert archive.site
    write_archive(tmp_path / "old.zip", replace(archive, site=""))
    with opened() as gallery:
        site.enrol(gallery, 2, "east")
        import_archive(gallery, tmp_path / "old.zip")
        assert epochs_of(gallery, 2) == [("east", 1)]


def test_an_earlier_version_can_add_exemplars(tmp_path: Path) -> None:
    site, path = Site(16), tmp_path / "gallery.db"
    with opened(path) as gallery:
        site.enrol(gallery, 1, "east")
    with sqlite3.connect(path) as file:
        blob = site.crop(1, "east").astype("<f4").tobytes()
        file.execute(
            "INSERT INTO exemplar (number, vector, quality, origin, camera, time)"
            " VALUES (1, ?, 0.5, 'x', 'east', 2.0)",
            (blob,),
        )
        file.execute("ALTER TABLE exemplar DROP COLUMN epoch")  # as in a file of an earlier version
        file.execute("DELETE FROM meta WHERE key = 'site'")
    file.close()
    with opened(path) as gallery:
        gallery.cameras.start()
        assert epochs_of(gallery, 1) == [("east", 0)] * 2
        check(gallery)


def test_a_network_that_tells_nobody_apart_does_no_harm(gallery: Gallery) -> None:
    same = unit(np.ones((1, D)))
    for person in range(200):
        gallery.enrol(same, ONE, origin=f"o:{person}", camera="east", time=1.0)
    there = gallery.cameras.centred("east", same)
    assert np.isfinite(there).all()
    bias = gallery.cameras.bias("east")
    assert 0 < bias.relief < 1
    assert json.dumps(bias.after(0.99))
