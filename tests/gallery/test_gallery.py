"""The gallery: search, exemplars, names, merging, erasure, expiry, capacity, spaces, archives."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_agent.core.clock import CLOCK_FILE, Clock
from edge_agent.core.config import GallerySettings
from edge_agent.core.errors import InputError, NonFiniteEmbedding, SpaceMismatch, StorageError
from edge_agent.core.structures import Pictures
from edge_agent.gallery import Gallery, Identity
from edge_agent.gallery.archive import export_gallery, import_archive
from edge_agent.gallery.erasure import PictureNotes
from edge_agent.gallery.exemplars import diverse_rows
from edge_agent.gallery.index import ExemplarIndex
from tests.hand_clock import TODAY, HandTime

D = 16
Vectors = NDArray[np.float32]


def unit(rows: int, seed: int = 0, dimension: int = D) -> Vectors:
    drawn = np.random.default_rng(seed).normal(size=(rows, dimension)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def ones(rows: int) -> Vectors:
    return np.ones(rows, np.float32)


def section(**changes: Any) -> GallerySettings:
    """Settings; `ttl_s` and `enrolled_ttl_s` in seconds, by default for ever."""
    ttl, enrolled = (changes.pop(key, None) for key in ("ttl_s", "enrolled_ttl_s"))
    return GallerySettings(
        ttl_hours=None if ttl is None else ttl / 3600,
        enrolled_ttl_hours=None if enrolled is None else enrolled / 3600,
        **changes,
    )


def open_gallery(path: Path | str, **changes: Any) -> Gallery:
    options = {key: changes.pop(key) for key in ("space", "dimension", "owner") if key in changes}
    return Gallery(path, section(**changes), **({"space": "space-a", "dimension": D} | options))


def open_aged(path: Path, machine: HandTime, **changes: Any) -> Gallery:
    """Open as the agent does: with the clock of the folder."""
    path.parent.mkdir(exist_ok=True)
    options = {key: changes.pop(key) for key in ("space", "dimension") if key in changes}
    clock = Clock.open(path.with_name(CLOCK_FILE), machine)
    clock.check()
    options = {"space": "space-a", "dimension": D, "owner": True, "clock": clock} | options
    return Gallery(path, section(**changes), **options)


def enrol(gallery: Gallery, vectors: Vectors, time: float = 100.0, **changes: Any) -> Identity:
    options: dict[str, Any] = {"origin": "t", "camera": "c", "time": time} | changes
    return gallery.enrol(vectors, options.pop("qualities", ones(len(vectors))), **options)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "gallery.db"


@pytest.fixture
def gallery(path: Path) -> Iterator[Gallery]:
    with open_gallery(path) as opened:
        yield opened


@pytest.fixture
def machine() -> HandTime:
    return HandTime()


def brute_force(gallery: Gallery, queries: Vectors) -> dict[int, NDArray[np.float64]]:
    """Best cosine of each query by identity, with loops and in double precision."""
    scores = {}
    for person in gallery.identities():
        vectors = gallery.exemplars(person.number)[0].astype(np.float64)
        if len(vectors):
            scores[person.number] = np.array(
                [max(float(v @ q) for v in vectors) for q in queries.astype(np.float64)]
            )
    return scores


def assert_exact(gallery: Gallery, queries: Vectors) -> None:
    truth = brute_force(gallery, queries)
    numbers, scores = gallery.search(queries, len(truth) + 1)
    assert numbers[:, -1].tolist() == [-1] * len(queries)
    for row, (found, values) in enumerate(zip(numbers[:, :-1].tolist(), scores[:, :-1], strict=True)):
        assert sorted(found) == sorted(truth)
        np.testing.assert_allclose(values, [truth[number][row] for number in found], atol=2e-6)


# ---- search


def test_scores_are_those_of_the_best_exemplar(gallery: Gallery) -> None:
    generator = np.random.default_rng(1)
    for seed in range(60):
        enrol(gallery, unit(int(generator.integers(1, 20)), seed))
    assert_exact(gallery, unit(7, 999))


def test_search_gives_the_best_k_in_order_and_fills_up(gallery: Gallery) -> None:
    axes = np.eye(D, dtype=np.float32)
    people = [enrol(gallery, axes[i : i + 1]) for i in range(3)]
    query = np.zeros((1, D), np.float32)
    query[0, :3] = np.sqrt([0.2, 0.7, 0.1])
    numbers, scores = gallery.search(query, k=4)
    assert numbers.tolist() == [[people[1].number, people[0].number, people[2].number, -1]]
    np.testing.assert_allclose(scores[0], [*np.sqrt([0.7, 0.2, 0.1]), -np.inf], atol=1e-6)
    assert (numbers.dtype, scores.dtype) == (np.int64, np.float32)


def test_an_empty_gallery_has_no_results(gallery: Gallery) -> None:
    numbers, scores = gallery.search(unit(3))
    assert numbers.tolist() == [[-1, -1]] * 3
    assert np.isneginf(scores).all()
    assert gallery.search(unit(3), 0)[1].shape == (3, 0)
    assert gallery.search(unit(0))[1].shape == (0, 2)


def test_results_belong_to_the_caller(gallery: Gallery) -> None:
    enrol(gallery, unit(1))
    numbers, scores = gallery.search(unit(1), 1)
    numbers[:], scores[:] = 7, 7
    assert gallery.search(unit(1), 1)[0].tolist() == [[1]]
    assert gallery.search(unit(1), 1)[1][0, 0] == pytest.approx(1)


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 6)), max_size=60), st.integers(0, 2**16))
@settings(max_examples=60, deadline=None)
def test_the_index_keeps_up_with_any_sequence_of_changes(changes: list[tuple[int, int]], seed: int) -> None:
    generator = np.random.default_rng(seed)
    index, truth = ExemplarIndex(4), dict[int, Vectors]()
    for number, count in changes:
        vectors = generator.normal(size=(count, 4)).astype(np.float32)
        index.put(number, vectors)
        truth[number] = vectors
    truth = {number: vectors for number, vectors in truth.items() if len(vectors)}
    queries = generator.normal(size=(3, 4)).astype(np.float32)
    numbers, scores = index.search(queries, len(truth) + 1)
    assert numbers[:, -1].tolist() == [-1] * 3
    for row, query in enumerate(queries):
        assert sorted(numbers[row, :-1].tolist()) == sorted(truth)
        best = [(truth[number] @ query).max() for number in numbers[row, :-1].tolist()]
        np.testing.assert_allclose(scores[row, :-1], best, rtol=1e-5, atol=1e-5)
    for number, rows in truth.items():
        np.testing.assert_array_equal(index.vectors([number])[1], rows)


# ---- what is refused


def test_bad_vectors_are_refused_and_change_nothing(gallery: Gallery) -> None:
    person = enrol(gallery, unit(2))
    broken = unit(2)
    broken[1, 3] = np.nan
    with pytest.raises(NonFiniteEmbedding):
        enrol(gallery, broken)
    with pytest.raises(NonFiniteEmbedding):
        gallery.add_exemplars(person.number, broken, ones(2), origin="t", camera="c", time=1.0)
    with pytest.raises(NonFiniteEmbedding):
        gallery.search(broken)
    with pytest.raises(ValueError, match=r"expected \(N, 16\), got \(1, 8\)"):
        gallery.search(unit(1, dimension=8))
    with pytest.raises(ValueError, match="length 1"):
        enrol(gallery, unit(2) * 3)
    with pytest.raises(ValueError, match="at least one"):
        enrol(gallery, unit(0))
    with pytest.raises(ValueError, match=r"expected \(2,\)"):
        enrol(gallery, unit(2), qualities=ones(3))
    with pytest.raises(ValueError, match="finite"):
        enrol(gallery, unit(1), qualities=np.array([np.nan], np.float32))
    assert gallery.identities() == [person]


def test_vectors_of_half_precision_are_stored_with_unit_length(gallery: Gallery) -> None:
    person = enrol(gallery, unit(1).astype(np.float16).astype(np.float32))
    np.testing.assert_allclose(np.linalg.norm(gallery.exemplars(person.number)[0]), 1, atol=1e-6)


@pytest.mark.parametrize("name", ["", "  ", "12", "p-abcdefghijkl", "a\nb", "x" * 129])
def test_ambiguous_names_are_refused(gallery: Gallery, name: str) -> None:
    with pytest.raises(InputError, match="not a usable name"):
        enrol(gallery, unit(1), name=name)
    assert len(gallery) == 0


def test_a_closed_gallery_refuses_calls(path: Path) -> None:
    with pytest.raises(RuntimeError, match="with"):
        len(open_gallery(path))


def test_an_impossible_dimension_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="positive"):
        open_gallery(path, dimension=0)


@pytest.mark.parametrize("wrong", [{"capacity": 0}, {"max_exemplars": 0}, {"ttl_hours": 0}])
def test_impossible_sizes_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="greater than"):
        GallerySettings(**wrong)


# ---- exemplars


def test_the_most_diverse_and_best_exemplars_are_kept(path: Path) -> None:
    axes = np.eye(D, dtype=np.float32)
    near = axes[0] * 0.999 + axes[9] * np.sqrt(1 - 0.999**2)
    with open_gallery(path, max_exemplars=3) as gallery:
        person = enrol(gallery, axes[:3], qualities=np.array([0.5, 0.9, 0.9], np.float32))

        def offer(vector: Vectors, quality: float) -> int:
            return gallery.add_exemplars(
                person.number,
                vector[None],
                np.array([quality], np.float32),
                origin="u",
                camera="c",
                time=101.0,
            )

        assert offer(near, 0.4) == 0  # like the first, and worse
        assert offer(near, 0.5) == 0  # as good, but later
        assert offer(near, 0.6) == 1  # better: takes its place
        vectors, qualities, origins = gallery.exemplars(person.number)
        np.testing.assert_allclose(vectors, np.stack([axes[1], axes[2], near]), atol=1e-6)
        np.testing.assert_allclose(qualities, [0.9, 0.9, 0.6])
        assert origins == ("t", "t", "u")


def test_the_choice_of_exemplars_is_deterministic_and_bounded() -> None:
    vectors, qualities = unit(50, 3), np.random.default_rng(3).random(50).astype(np.float32)
    kept = diverse_rows(vectors, qualities, 8)
    assert kept.tolist() == sorted(set(kept.tolist()))
    assert len(kept) == 8
    np.testing.assert_array_equal(kept, diverse_rows(vectors, qualities, 8))
    assert diverse_rows(vectors[:5], qualities[:5], 8).tolist() == [0, 1, 2, 3, 4]
    assert diverse_rows(vectors, qualities, 1).tolist() == [int(qualities.argmax())]


def test_diverse_exemplars_are_less_similar_than_the_first_ones() -> None:
    walk = np.cumsum(np.random.default_rng(5).normal(size=(200, D)), axis=0).astype(np.float32)
    walk /= np.linalg.norm(walk, axis=1, keepdims=True)
    kept = walk[diverse_rows(walk, np.full(200, 0.5, np.float32), 8)]
    alike = [np.triu(rows @ rows.T, 1).max() for rows in (kept, walk[:8])]
    assert alike[0] < alike[1]


def test_the_exemplars_of_a_wrong_track_are_removed(gallery: Gallery) -> None:
    person = enrol(gallery, unit(2, 1), origin="right")
    gallery.add_exemplars(person.number, unit(3, 2), ones(3), origin="wrong", camera="c", time=101.0)
    assert gallery.remove_origin(person.number, "wrong") == 3
    assert gallery.remove_origin(person.number, "wrong") == 0
    np.testing.assert_allclose(gallery.exemplars(person.number)[0], unit(2, 1), atol=1e-6)
    assert_exact(gallery, unit(4, 3))


def test_an_identity_without_exemplars_is_kept_but_not_found(gallery: Gallery) -> None:
    person = enrol(gallery, unit(1))
    gallery.remove_origin(person.number, "t")
    assert gallery.get(person.number).exemplars == 0
    assert gallery.search(unit(1))[0].tolist() == [[-1, -1]]
    gallery.add_exemplars(person.number, unit(1), ones(1), origin="u", camera="c", time=101.0)
    assert gallery.search(unit(1))[0][0, 0] == person.number
    assert gallery.remove_origin(999, "t") == 0


# ---- people


def test_an_identity_is_found_by_number_id_name_and_text(gallery: Gallery) -> None:
    person = enrol(gallery, unit(1), name="  Ada Lovelace ", kind="enrolled")
    assert person.name == "Ada Lovelace"
    for key in (person.number, str(person.number), person.id, "Ada Lovelace"):
        assert gallery.get(key) == person
    for key in (77, "77", "p-aaaaaaaaaaaa", "Bob"):
        with pytest.raises(InputError, match="gallery list"):
            gallery.get(key)


def test_numbers_and_ids_are_not_reused(gallery: Gallery) -> None:
    first = enrol(gallery, unit(1))
    gallery.forget(first.number)
    second = enrol(gallery, unit(1))
    assert second.number > first.number
    assert second.id != first.id
    assert second.id.startswith("p-")
    assert len(second.id) == 14


def test_a_name_is_unique_and_makes_the_identity_enrolled(path: Path) -> None:
    with open_gallery(path, ttl_s=10) as gallery:
        first, second = enrol(gallery, unit(1)), enrol(gallery, unit(1, 1))
        assert first.expires == 110
        named = gallery.rename(first.number, "Ada")
        assert (named.name, named.kind, named.expires) == ("Ada", "enrolled", None)
        assert gallery.rename(first.number, "Ada") == named
        with pytest.raises(InputError, match=f"identity {first.number} already"):
            gallery.rename(second.number, "Ada")
        with pytest.raises(InputError, match="already"):
            enrol(gallery, unit(1), name="Ada")
        assert gallery.rename(first.number, None).name is None
        assert gallery.rename(second.number, "Ada").name == "Ada"
        with pytest.raises(InputError, match="gallery list"):
            gallery.rename(99, "Nobody")


def test_touch_moves_time_forward_only_and_counts_sightings(path: Path) -> None:
    with open_gallery(path, ttl_s=10) as gallery:
        person = enrol(gallery, unit(1))
        gallery.touch(person.number, 105.0)
        gallery.touch(person.number, 103.0, sighting=False)
        seen = gallery.get(person.number)
        assert (seen.last_seen, seen.expires, seen.sightings, seen.created) == (105.0, 115.0, 2, 100.0)
        with pytest.raises(InputError):
            gallery.touch(99, 1.0)


def test_a_merged_identity_is_found_by_its_former_id(gallery: Gallery) -> None:
    first = enrol(gallery, unit(2, 1), time=100.0, origin="a")
    second = enrol(gallery, unit(3, 2), time=90.0, origin="b", name="Ada", kind="enrolled")
    third = enrol(gallery, unit(1, 3), time=120.0, origin="c")
    merged = gallery.merge(first.number, second.number)
    assert (merged.number, merged.id, merged.name, merged.kind) == (first.number, first.id, "Ada", "enrolled")
    assert (merged.created, merged.last_seen, merged.exemplars, merged.sightings) == (90.0, 100.0, 5, 2)
    gallery.merge(third.number, first.number)
    assert gallery.get(second.id) == gallery.get(first.id) == gallery.get(third.number)
    assert gallery.former_ids(third.number) == tuple(sorted([first.id, second.id]))
    assert len(gallery) == 1
    assert_exact(gallery, unit(4, 9))
    with pytest.raises(InputError, match="itself"):
        gallery.merge(third.number, third.number)
    with pytest.raises(InputError):
        gallery.merge(third.number, first.number)


def test_merging_keeps_the_most_diverse_of_both(path: Path) -> None:
    with open_gallery(path, max_exemplars=4) as gallery:
        first, second = enrol(gallery, unit(4, 1), time=1.0), enrol(gallery, unit(4, 2), time=2.0)
        gallery.merge(second.number, first.number)
        offered = np.concatenate([unit(4, 1), unit(4, 2)])
        kept = offered[diverse_rows(offered, ones(8), 4)]
        vectors, _, _ = gallery.exemplars(second.number)
        assert sorted(map(tuple, vectors.round(4).tolist())) == sorted(map(tuple, kept.round(4).tolist()))


def test_forget_returns_what_it_erased(gallery: Gallery) -> None:
    first, second = enrol(gallery, unit(2, 1), name="Ada"), enrol(gallery, unit(1, 2))
    gallery.merge(first.number, second.number)
    erased = gallery.forget(first.number)
    assert (erased.number, erased.id, erased.name) == (first.number, first.id, "Ada")
    assert (erased.exemplars, erased.former_ids, erased.bytes) == (3, (second.id,), 3 * D * 4)
    assert len(gallery) == 0
    assert gallery.search(unit(1))[0].tolist() == [[-1, -1]]
    for key in (first.id, second.id, "Ada", first.number):
        with pytest.raises(InputError):
            gallery.get(key)
    with pytest.raises(InputError):
        gallery.forget(first.number)


# ---- expiry and capacity


def test_unseen_identities_expire_unless_enrolled(path: Path, machine: HandTime) -> None:
    with open_aged(path, machine, ttl_s=10) as gallery:
        old, seen = enrol(gallery, unit(1, 1)), enrol(gallery, unit(1, 2))
        kept = enrol(gallery, unit(1, 3), kind="enrolled")
        assert old.expires == TODAY + 10
        machine.passes(5.0)
        gallery.touch(seen.number, 105.0)
        machine.passes(4.9)
        assert gallery.retention.expire() == []
        machine.passes(0.2)
        assert gallery.retention.expire() == [old]
        assert [person.number for person in gallery.identities()] == [seen.number, kept.number]
        assert_exact(gallery, unit(2))


def test_a_new_time_to_live_applies_to_existing_identities(path: Path) -> None:
    with open_gallery(path) as gallery:
        enrol(gallery, unit(1))
        assert gallery.get(1).expires is None
    with open_gallery(path, ttl_s=10, capacity=1) as command:  # not the owner: the stored settings hold
        assert command.get(1).expires is None
        assert (command.stats().ttl_s, command.stats().capacity) == (None, 10_000)
    with open_gallery(path, ttl_s=50, owner=True) as gallery:
        assert gallery.get(1).expires == 150
        gallery.retention.apply(section(ttl_s=20))
        assert gallery.get(1).expires == 120
        gallery.retention.apply(section(ttl_s=None))
        assert gallery.get(1).expires is None


def test_time_to_live_by_kind_and_by_identity(path: Path, machine: HandTime) -> None:
    with open_gallery(path, ttl_s=10, enrolled_ttl_s=50, owner=True) as gallery:
        auto, brief, staying = (enrol(gallery, unit(1, seed)).number for seed in range(3))
        anna = enrol(gallery, unit(1, 3), kind="enrolled").number
        assert gallery.retention.set_ttl(brief, 2.5).expires == 102.5
        assert gallery.retention.set_ttl(staying, 0.0).expires is None
        assert [gallery.get(number).expires for number in (auto, anna)] == [110, 150]
        gallery.touch(brief, 104.0)
        assert gallery.get(brief).expires == 106.5
        gallery.retention.apply(section(ttl_s=20))
        found = [gallery.get(number).expires for number in (auto, brief, staying, anna)]
        assert found == [120, 106.5, None, None]
        assert gallery.retention.set_ttl(staying, None).expires == 120
        with pytest.raises(InputError):
            gallery.retention.set_ttl(99, 1.0)
    with Gallery.existing(path) as command:
        assert command.stats().enrolled_ttl_s is None
        assert command.get(brief).ttl_s == 2.5
    with open_aged(path, machine, ttl_s=10) as gallery:
        machine.passes(5.0)
        assert [gone.number for gone in gallery.retention.expire()] == [brief]


def test_an_own_time_to_live_is_exported_and_prevents_eviction(tmp_path: Path) -> None:
    with open_gallery(tmp_path / "a.db", capacity=2, ttl_s=10) as gallery:
        kept, other = enrol(gallery, unit(1, 1)), enrol(gallery, unit(1, 2), time=105.0)
        gallery.retention.set_ttl(kept.number, 0.0)
        newest = enrol(gallery, unit(1, 3), time=106.0)
        assert [p.number for p in gallery.identities()] == [kept.number, newest.number]
        assert other.number not in [p.number for p in gallery.identities()]
        export_gallery(gallery, tmp_path / "people.zip")
        assert gallery.merge(newest.number, kept.number).ttl_s == 0.0
    with open_gallery(tmp_path / "b.db", ttl_s=10) as there:
        import_archive(there, tmp_path / "people.zip")
        assert there.get(kept.id).expires is None


def test_pictures_of_erased_identities_stay_noted_until_removed(path: Path, machine: HandTime) -> None:
    with open_gallery(path, ttl_s=10) as gallery:
        anna, berta, carla = (enrol(gallery, unit(1, seed)) for seed in range(3))
        pictures = PictureNotes(gallery.file)
        pictures.note(anna.number, "hall", 7, 100.0)
        pictures.note(berta.number, "hall", 7, 200.0)
        pictures.note(carla.number, "hall", 8, 100.0)
        pictures.note(berta.number, "hall", 8, 100.0)  # corrected to Berta
        assert not pictures.note(99, "hall", 9, 100.0)  # no such identity
        gallery.merge(carla.number, berta.number)
        assert pictures.orphaned() == []
        gallery.forget(anna.number)
    with open_aged(path, machine) as gallery:
        pictures = PictureNotes(gallery.file)
        gone = pictures.orphaned()
        assert gone == [Pictures("hall", 7, 100.0, 200.0)]
        # Another identity in this track does not prevent the deletion.
        assert not pictures.note(carla.number, "hall", 7, 100.0)
        assert pictures.orphaned() == gone
        pictures.removed(gone)
        assert pictures.orphaned() == []
        gallery.retention.apply(section(ttl_s=10))
        machine.passes(20.0)
        assert len(gallery.retention.expire()) == 1
        assert pictures.orphaned() == []  # nobody asked for the deletion of what another program owns


def test_a_full_gallery_evicts_the_longest_unseen_identity(path: Path) -> None:
    with open_gallery(path, capacity=3) as gallery:
        first = enrol(gallery, unit(1, 1), time=1.0)
        watched = enrol(gallery, unit(1, 2), time=0.0, kind="enrolled")
        third = enrol(gallery, unit(1, 3), time=2.0)
        gallery.touch(first.number, 5.0)
        fourth = enrol(gallery, unit(1, 4), time=6.0)
        assert [p.number for p in gallery.identities()] == [first.number, watched.number, fourth.number]
        assert gallery.stats().evicted == 1
        with pytest.raises(InputError):
            gallery.get(third.number)
        assert_exact(gallery, unit(3))


def test_expired_identities_are_erased_before_others_are_evicted(path: Path, machine: HandTime) -> None:
    with open_aged(path, machine, capacity=2, ttl_s=10) as gallery:
        enrol(gallery, unit(1, 1))
        machine.passes(95.0)
        kept = enrol(gallery, unit(1, 2))
        machine.passes(5.0)
        new = enrol(gallery, unit(1, 3))
        assert [p.number for p in gallery.identities()] == [kept.number, new.number]
        assert gallery.stats().evicted == 0


def test_a_gallery_full_of_enrolled_people_refuses_another(path: Path) -> None:
    with open_gallery(path, capacity=2) as gallery:
        for seed in range(2):
            enrol(gallery, unit(1, seed), kind="enrolled")
        with pytest.raises(StorageError, match="all enrolled"):
            enrol(gallery, unit(1, 9))
        assert len(gallery) == 2


# ---- the file


def test_everything_survives_closing(path: Path) -> None:
    with open_gallery(path, ttl_s=1000) as gallery:
        first = enrol(gallery, unit(5, 1), name="Ada")
        second = enrol(gallery, unit(2, 2))
        gallery.merge(first.number, second.number)
        gallery.facts.set("site", {"mean": 0.5, "pairs": [1, 2]})
        before = (gallery.identities(), gallery.search(unit(3, 7)))
    with open_gallery(path, ttl_s=1000) as gallery:
        assert gallery.identities() == before[0]
        np.testing.assert_array_equal(gallery.search(unit(3, 7))[0], before[1][0])
        np.testing.assert_allclose(gallery.search(unit(3, 7))[1], before[1][1], atol=1e-6)
        assert gallery.facts.get("site") == {"mean": 0.5, "pairs": [1, 2]}
        assert gallery.facts.get("other") is None
        gallery.facts.set("site", None)
        assert gallery.facts.get("site_scores") is None
        with pytest.raises(ValueError, match="JSON"):
            gallery.facts.set("site", float("nan"))


def test_only_the_owner_may_read_the_files(path: Path, gallery: Gallery) -> None:
    enrol(gallery, unit(1))
    assert path.parent.stat().st_mode & 0o777 == 0o700
    for file in path.parent.iterdir():
        assert file.stat().st_mode & 0o777 == 0o600, file.name


def test_opening_makes_a_readable_file_private(path: Path) -> None:
    with open_gallery(path):
        pass
    path.chmod(0o644)
    with open_gallery(path):
        assert path.stat().st_mode & 0o777 == 0o600


def test_memory_galleries_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with open_gallery(":memory:", owner=True) as gallery:
        person = enrol(gallery, unit(2))
        assert gallery.forget(person.number).exemplars == 2
        assert gallery.stats().file_bytes == 0
    assert list(tmp_path.iterdir()) == []


def test_another_space_is_refused_with_both_names_and_advice(path: Path) -> None:
    with open_gallery(path) as gallery:
        enrol(gallery, unit(1))
        gallery.facts.set("site", 1)
    with pytest.raises(SpaceMismatch) as refused, open_gallery(path, space="space-b"):
        pass
    for part in ("space-a", "space-b", str(path), "gallery forget --all", "gallery export"):
        assert part in str(refused.value)
    with pytest.raises(SpaceMismatch, match="32 numbers"), open_gallery(path, dimension=32):
        pass
    with open_gallery(path) as gallery:  # still there
        assert len(gallery) == 1


def test_an_emptied_gallery_accepts_another_space(path: Path) -> None:
    with open_gallery(path) as gallery:
        enrol(gallery, unit(1))
        gallery.facts.set("site", 1)
        assert [erased.number for erased in gallery.forget_all()] == [1]
    with open_gallery(path, space="space-b", dimension=8, owner=True) as gallery:
        assert gallery.facts.get("site_scores") is None
        assert enrol(gallery, unit(1, dimension=8)).number == 2
        with pytest.raises(SpaceMismatch), open_gallery(path):
            pass


def test_an_empty_gallery_in_use_does_not_change_its_space(path: Path) -> None:
    with open_gallery(path, owner=True), pytest.raises(SpaceMismatch), open_gallery(path, space="space-b"):
        pass


def test_a_second_owner_is_refused_and_commands_are_not(path: Path) -> None:
    with open_gallery(path, owner=True) as gallery:
        enrol(gallery, unit(1))
        with (
            pytest.raises(StorageError, match=r"another edge-agent \(process \d+\)"),
            open_gallery(path, owner=True),
        ):
            pass
        with open_gallery(path) as other:
            assert len(other) == 1
    with open_gallery(path, owner=True):
        pass


def test_existing_takes_its_settings_from_the_file(path: Path) -> None:
    with pytest.raises(StorageError, match="--state"):
        Gallery.existing(path)
    with open_gallery(path, capacity=5, max_exemplars=2, ttl_s=60) as gallery:
        enrol(gallery, unit(4))
    with Gallery.existing(path) as gallery:
        stats = gallery.stats()
        assert (stats.space, stats.dimension, stats.capacity) == ("space-a", D, 5)
        assert (stats.max_exemplars, stats.ttl_s) == (2, 60)
        assert (stats.identities, stats.exemplars, stats.enrolled, stats.named) == (1, 2, 0, 0)
        assert stats.file_bytes > 0
        assert (stats.oldest_seen, stats.newest_seen) == (100.0, 100.0)
        assert enrol(gallery, unit(4)).exemplars == 2


@pytest.mark.parametrize(
    "content", [b"no database at all, but long enough to look like one" * 50, b"SQLite format 3\0" * 99]
)
def test_a_file_of_another_kind_is_refused_with_advice(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(StorageError, match="gallery import"), open_gallery(path):
        pass
    assert path.read_bytes() == content


def test_a_foreign_database_is_refused(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as foreign:
        foreign.execute("CREATE TABLE t (x)")
    foreign.close()
    with pytest.raises(StorageError, match="not a gallery"), open_gallery(path):
        pass


def test_a_newer_layout_is_refused(path: Path) -> None:
    with open_gallery(path):
        pass
    with sqlite3.connect(path) as newer:
        newer.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(StorageError, match="layout 99"), open_gallery(path):
        pass


def test_a_file_of_the_first_layout_is_migrated(path: Path) -> None:
    with open_gallery(path) as gallery:
        enrol(gallery, unit(2), name="Ada")
    with sqlite3.connect(path) as older:
        older.execute("ALTER TABLE identity DROP COLUMN ttl")
        older.execute("DROP TABLE pictures")
        older.execute("DELETE FROM meta WHERE key = 'enrolled_ttl_s'")
        older.execute("PRAGMA user_version = 1")
    older.close()
    with Gallery.existing(path) as gallery:
        assert gallery.get("Ada").ttl_s is None
        assert gallery.retention.set_ttl(1, 5.0).expires == 105
        PictureNotes(gallery.file).note(1, "hall", 1, 100.0)


def test_damage_inside_the_file_is_noticed_on_opening(path: Path) -> None:
    with open_gallery(path) as gallery:
        for seed in range(50):
            enrol(gallery, unit(4, seed))
    content = bytearray(path.read_bytes())
    for page in range(4096, len(content), 4096):
        content[page : page + 200] = b"\xa5" * 200
    path.write_bytes(content)
    with pytest.raises(StorageError, match="damaged"), open_gallery(path):
        pass


def test_a_state_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot open"), open_gallery(tmp_path / "file" / "gallery.db"):
        pass


# ---- other processes and threads


def test_changes_of_another_process_are_noticed(path: Path, gallery: Gallery) -> None:
    mine = [enrol(gallery, unit(2, seed)) for seed in range(6)]
    with Gallery.existing(path) as other:
        other.forget(mine[0].number)
        other.rename(mine[1].number, "Ada")
        other.merge(mine[2].number, mine[3].number)
        theirs = enrol(other, unit(3, 50), name="Bob")
        other.remove_origin(mine[4].number, "t")
    assert_exact(gallery, unit(5, 60))
    assert gallery.search(unit(3, 50)[:1])[0][0, 0] == theirs.number
    assert gallery.get("Ada").number == mine[1].number
    assert gallery.get(mine[3].id).number == mine[2].number
    with pytest.raises(InputError):
        gallery.get(mine[0].number)


def test_a_few_changed_exemplars_among_many_people_are_noticed(path: Path, gallery: Gallery) -> None:
    for seed in range(40):
        enrol(gallery, unit(2, seed))
    with Gallery.existing(path) as other:
        other.remove_origin(7, "t")
        other.add_exemplars(9, unit(3, 77), ones(3), origin="u", camera="c", time=101.0)
        other.forget(11)
    assert_exact(gallery, unit(3, 60))
    assert gallery.search(unit(3, 77)[:1])[0][0, 0] == 9


def test_a_space_changed_by_another_process_is_noticed(path: Path, gallery: Gallery) -> None:
    enrol(gallery, unit(1))
    with sqlite3.connect(path) as rough:
        rough.execute("UPDATE meta SET value = 'space-b' WHERE key = 'space'")
    rough.close()
    with pytest.raises(SpaceMismatch):
        gallery.search(unit(1))


def test_a_lock_that_is_never_freed_is_an_error_and_not_a_hang(path: Path, gallery: Gallery) -> None:
    with gallery.file.reading() as content:
        content.store.rows("PRAGMA busy_timeout = 50")
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="another process keeps it locked"):
            enrol(gallery, unit(1))
        other.execute("ROLLBACK")
    other.close()
    assert enrol(gallery, unit(1)).exemplars == 1
    assert_exact(gallery, unit(2))


def test_several_threads_may_use_it(gallery: Gallery) -> None:
    wrong: list[str] = []

    def search() -> None:
        for _ in range(60):
            numbers, scores = gallery.search(unit(2), 40)
            if ((numbers < 0) != np.isneginf(scores)).any():
                wrong.append("a score without its identity")

    def change(seed: int) -> None:
        for step in range(15):
            person = enrol(gallery, unit(2, 100 * seed + step))
            if step % 3 == 0:
                gallery.forget(person.number)

    threads = [
        threading.Thread(target=search),
        *(threading.Thread(target=change, args=(n,)) for n in range(3)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(gallery) == 3 * 10
    assert_exact(gallery, unit(3))


# ---- archives


def fill(gallery: Gallery) -> None:
    first, second = enrol(gallery, unit(3, 1), name="Ada"), enrol(gallery, unit(2, 2), time=200.0)
    gallery.merge(first.number, second.number)
    enrol(gallery, unit(4, 3), time=300.0)
    gallery.facts.set("site_scores", {"pairs": {"#1|#2": 0.25}})


def content(person: Identity) -> tuple[object, ...]:
    """Everything but the number and the expiry, which are the gallery's own."""
    return (
        person.id,
        person.name,
        person.kind,
        person.created,
        person.last_seen,
        person.exemplars,
        person.sightings,
    )


def test_an_archive_brings_everything_to_another_gallery_once(tmp_path: Path, gallery: Gallery) -> None:
    fill(gallery)
    archive = tmp_path / "people.zip"
    assert export_gallery(gallery, archive) == 2
    assert archive.stat().st_mode & 0o777 == 0o600
    with open_gallery(tmp_path / "other" / "gallery.db") as other:
        enrol(other, unit(1, 9))
        assert import_archive(other, archive).added == 2
        again = import_archive(other, archive)
        assert (again.added, again.skipped) == (0, 2)
        assert [content(p) for p in other.identities()[1:]] == [content(p) for p in gallery.identities()]
        assert other.former_ids(2) == gallery.former_ids(1)
        assert other.facts.get("site_scores") == {"pairs": {"#1|#2": 0.25}}
        for person in gallery.identities():
            ours, theirs = gallery.exemplars(person.number), other.exemplars(other.get(person.id).number)
            np.testing.assert_allclose(ours[0], theirs[0], atol=1e-6)
            assert ours[2] == theirs[2]
        assert_exact(other, unit(3))


def test_the_archive_matches_its_description(tmp_path: Path, gallery: Gallery) -> None:
    fill(gallery)
    export_gallery(gallery, tmp_path / "people.zip")
    with zipfile.ZipFile(tmp_path / "people.zip") as bundle:
        assert sorted(bundle.namelist()) == ["identities.json", "manifest.json", "vectors.npy"]
        manifest = json.loads(bundle.read("manifest.json"))
        people = json.loads(bundle.read("identities.json"))
    assert (manifest["kind"], manifest["version"]) == ("gallery", 1)
    assert re.fullmatch("[0-9a-f]{16}", manifest["data"].pop("site"))
    assert manifest["data"] == {"space": "space-a", "dimension": D, "identities": 2, "exemplars": 9}
    assert people["facts"] == {"site_scores": {"pairs": {"#1|#2": 0.25}}}
    assert [len(person["exemplars"]) for person in people["identities"]] == [5, 4]


def test_an_archive_of_another_space_is_refused(tmp_path: Path, gallery: Gallery) -> None:
    with open_gallery(tmp_path / "other.db", space="space-b") as other:
        fill(other)
        export_gallery(other, tmp_path / "people.zip")
    with pytest.raises(SpaceMismatch, match="space-b"):
        import_archive(gallery, tmp_path / "people.zip")
    assert len(gallery) == 0


def test_an_archive_with_a_name_of_someone_else_is_refused_whole(tmp_path: Path, gallery: Gallery) -> None:
    with open_gallery(tmp_path / "other.db") as other:
        fill(other)
        export_gallery(other, tmp_path / "people.zip")
    enrol(gallery, unit(1), name="Ada")
    with pytest.raises(InputError, match=r"people\.zip.*already"):
        import_archive(gallery, tmp_path / "people.zip")
    assert len(gallery) == 1
    assert gallery.facts.get("site_scores") is None


def test_an_archive_too_large_for_the_gallery_is_refused_whole(tmp_path: Path, gallery: Gallery) -> None:
    fill(gallery)
    export_gallery(gallery, tmp_path / "people.zip")
    with open_gallery(tmp_path / "small.db", capacity=2) as small:
        enrol(small, unit(1))
        with pytest.raises(StorageError, match="capacity"):
            import_archive(small, tmp_path / "people.zip")
        assert len(small) == 1


def damage(archive: Path, member: str, content: bytes | None) -> None:
    """Replace a member, or leave it out."""
    with zipfile.ZipFile(archive) as bundle:
        members = {name: bundle.read(name) for name in bundle.namelist()}
    del members[member]
    if content is not None:
        members[member] = content
    with zipfile.ZipFile(archive, "w") as bundle:
        for name, data in members.items():
            bundle.writestr(name, data)


@pytest.mark.parametrize(
    ("member", "content"),
    [
        ("vectors.npy", b"rubbish"),
        ("vectors.npy", None),
        ("identities.json", b"{}"),
        ("manifest.json", b"{}"),
        ("manifest.json", b'{"kind": "gallery", "version": 2}'),
        ("manifest.json", None),
    ],
)
def test_damaged_archives_are_refused(
    tmp_path: Path, gallery: Gallery, member: str, content: bytes | None
) -> None:
    fill(gallery)
    archive = tmp_path / "people.zip"
    export_gallery(gallery, archive)
    damage(archive, member, content)
    with open_gallery(tmp_path / "other.db") as other:
        with pytest.raises(InputError, match=r"people\.zip"):
            import_archive(other, archive)
        assert len(other) == 0


def test_files_that_are_no_archives_are_refused(tmp_path: Path, gallery: Gallery) -> None:
    (tmp_path / "text.zip").write_text("hello")
    for name in ("text.zip", "missing.zip"):
        with pytest.raises(InputError, match=name):
            import_archive(gallery, tmp_path / name)
    with pytest.raises(StorageError, match="does not exist"):
        export_gallery(gallery, tmp_path / "no" / "people.zip")


# ---- against a naive model


@st.composite
def scripts(draw: st.DrawFn) -> list[tuple[str, int, int]]:
    verbs = [
        "enrol",
        "enrol",
        "add",
        "add",
        "merge",
        "forget",
        "expire",
        "touch",
        "origin",
        "rename",
        "reopen",
    ]
    return draw(
        st.lists(st.tuples(st.sampled_from(verbs), st.integers(0, 30), st.integers(1, 6)), max_size=40)
    )


@given(scripts())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_sequence_of_calls_agrees_with_a_naive_model(
    tmp_path: Path, script: list[tuple[str, int, int]]
) -> None:
    folder = tmp_path / "model"
    shutil.rmtree(folder, ignore_errors=True)
    options: dict[str, Any] = {"dimension": 4, "max_exemplars": 5, "capacity": 6, "ttl_s": 12.0}
    machine = HandTime()
    gallery = open_aged(folder / "gallery.db", machine, **options).__enter__()
    model: dict[int, dict[str, Any]] = {}
    try:
        for now, (verb, pick, count) in enumerate(script):
            machine.true = TODAY + now
            number = sorted(model)[pick % len(model)] if model else None
            vectors, qualities = unit(count, 1000 * now + pick, 4), np.linspace(0, 1, count, dtype=np.float32)
            if verb == "enrol":
                make_room(model, now)
                person = gallery.enrol(vectors, qualities, origin=f"o{pick % 3}", camera="c", time=float(now))
                model[person.number] = {"rows": [], "seen": now, "name": None}
                offer(model[person.number], vectors, qualities, f"o{pick % 3}", now)
            elif verb == "reopen":
                gallery.__exit__(None, None, None)
                gallery = open_aged(folder / "gallery.db", machine, **options).__enter__()
            elif verb == "expire":
                gone = [n for n, p in model.items() if p["name"] is None and p["seen"] + 12 <= now]
                assert [p.number for p in gallery.retention.expire()] == sorted(gone)
                for lost in gone:
                    del model[lost]
            elif number is None:
                continue
            elif verb == "add":
                gallery.add_exemplars(
                    number, vectors, qualities, origin=f"o{pick % 3}", camera="c", time=float(now)
                )
                offer(model[number], vectors, qualities, f"o{pick % 3}", now)
            elif verb == "touch":
                gallery.touch(number, float(now))
                model[number]["seen"] = now
            elif verb == "forget":
                gallery.forget(number)
                del model[number]
            elif verb == "rename":
                gallery.rename(number, f"n{now}")
                model[number]["name"] = f"n{now}"
            elif verb == "origin":
                gallery.remove_origin(number, f"o{pick % 3}")
                model[number]["rows"] = [row for row in model[number]["rows"] if row[2] != f"o{pick % 3}"]
            elif verb == "merge" and len(model) > 1:
                other = next(n for n in sorted(model) if n != number)
                gallery.merge(number, other)
                merge(model, number, other)
            agree(gallery, model, now)
    finally:
        gallery.__exit__(None, None, None)


def offer(person: dict[str, Any], vectors: Vectors, qualities: Vectors, origin: str, now: int) -> None:
    person["rows"] += [(v, q, origin, now) for v, q in zip(vectors, qualities, strict=True)]
    prune(person)


def prune(person: dict[str, Any]) -> None:
    rows = person["rows"]
    if rows:
        kept = diverse_rows(np.stack([row[0] for row in rows]), np.array([row[1] for row in rows]), 5)
        person["rows"] = [rows[place] for place in kept]


def merge(model: dict[int, dict[str, Any]], keep: int, absorb: int) -> None:
    gone = model.pop(absorb)
    person = model[keep]
    person["rows"] = sorted(person["rows"] + gone["rows"], key=lambda row: row[3])
    person["seen"] = max(person["seen"], gone["seen"])
    person["name"] = person["name"] or gone["name"]
    prune(person)


def make_room(model: dict[int, dict[str, Any]], now: int) -> None:
    if len(model) < 6:
        return
    for number in [n for n, p in model.items() if p["name"] is None and p["seen"] + 12 <= now]:
        del model[number]
    if len(model) >= 6:
        unnamed = [n for n, p in model.items() if p["name"] is None]
        del model[min(unnamed, key=lambda n: (model[n]["seen"], n))]


def agree(gallery: Gallery, model: dict[int, dict[str, Any]], now: int) -> None:
    people = gallery.identities()
    assert [person.number for person in people] == sorted(model)
    for person in people:
        expected = model[person.number]
        assert (person.last_seen, person.name) == (expected["seen"], expected["name"])
        vectors, _, origins = gallery.exemplars(person.number)
        assert sorted(origins) == sorted(row[2] for row in expected["rows"])
        theirs = sorted(tuple(np.round(row[0], 3).tolist()) for row in expected["rows"])
        np.testing.assert_allclose(sorted(tuple(np.round(v, 3).tolist()) for v in vectors), theirs, atol=2e-3)
    assert_exact(gallery, unit(2, now, 4))


def test_ages_go_with_an_archive(tmp_path: Path, machine: HandTime) -> None:
    with open_aged(tmp_path / "here" / "gallery.db", machine, ttl_s=100) as here:
        old = enrol(here, unit(1))
        machine.passes(60.0)
        new = enrol(here, unit(1, 1))
        export_gallery(here, tmp_path / "people.zip")
    other = HandTime(error=10 * 365 * 86_400.0)  # another device, whose clock is wrong
    with open_aged(tmp_path / "there" / "gallery.db", other, ttl_s=100) as there:
        import_archive(there, tmp_path / "people.zip")
        assert there.retention.expire() == []
        other.passes(50.0)
        assert [person.id for person in there.retention.expire()] == [old.id]
        other.passes(60.0)
        assert [person.id for person in there.retention.expire()] == [new.id]
