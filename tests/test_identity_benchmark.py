"""The benchmark of identities: its measures, timetables, kept results, variants, and its page."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.identity.cache import Store, cached
from benchmarks.identity.cases import CASES, trials
from benchmarks.identity.ceilings import of_set
from benchmarks.identity.footage import Footage, backwards, half, loop, mirror, of_file, slow, split, variant
from benchmarks.identity.measures import Evidence, Visits, boxes
from benchmarks.identity.page import PAGE, page
from benchmarks.identity.running import Network, run_crops, visits_of
from benchmarks.identity.sets import CameraResponse, render_set
from benchmarks.identity.timetable import INTERVAL_S, PAUSE_S, Play, played
from benchmarks.scoring import Rows, score
from edge_agent.core.errors import InputError, MissingFile
from edge_agent.detect import opening


def test_the_page_shows_the_committed_results() -> None:
    text = PAGE.read_text()
    assert text == page(text), "run `python -m benchmarks.identity report`"


def test_every_situation_has_a_name_of_its_own_and_can_be_chosen() -> None:
    assert len({trial.key for trial in trials()}) == len(trials())
    assert {trial.case for trial in trials()} == set(CASES)
    assert {trial.case for trial in trials(["no boxes"])} == {"70 people, no boxes", "300 people, no boxes"}
    assert {trial.network for trial in trials(networks=["0267"])} == {"0267"}


# --- measures ---------------------------------------------------------------------------------


def rows(random: np.random.Generator, *, ids: int, wrong: float) -> tuple[Rows, Rows]:
    """Boxes that never overlap: a truth, and one with lost boxes and other ids."""
    truth, found = {}, {}
    for frame in range(1, 30):
        place = np.arange(ids, dtype=np.float32)[:, None] * 100 + np.array([0, 0, 40, 90], np.float32)
        place[:, ::2] += frame
        seen = random.random(ids) > 0.2
        numbers = np.arange(1, ids + 1)
        if random.random() < wrong:
            numbers = random.permutation(numbers) + 1
        truth[frame] = np.arange(1, ids + 1), place
        found[frame] = numbers[seen], place[seen]
    return truth, found


@pytest.mark.parametrize("wrong", [0.0, 0.3, 1.0])
def test_idf1_is_that_of_motmetrics(wrong: float) -> None:
    truth, found = rows(np.random.default_rng(4), ids=5, wrong=wrong)
    clip = Footage("cam", lambda: iter(()), truth, {n: n for n in range(1, 6)}, 10.0)
    visits, evidence = Visits(), Evidence()
    boxes(evidence, found, visits_of(clip, visits))
    ours = evidence.measure(visits)
    assert ours.idf1 == pytest.approx(score(found, truth, clip.people).idf1)


def test_reentries_and_merges_are_counted_over_cameras() -> None:
    truth, evidence = Visits(), Evidence()
    for visit, person, time, number in [(1, 1, 0, 7), (2, 2, 0, 8), (3, 1, 9, 7), (4, 2, 9, 7), (5, 3, 9, 9)]:
        truth.see(visit, person, time, 5)
        evidence.votes[visit][number] += 5
        evidence.given[number] += 5
    measured = evidence.measure(truth)
    assert (measured.people, measured.reentries, measured.recognised) == (3, 2, 1)
    assert (measured.merged, measured.identities, measured.missed) == (1, 3, 0)
    assert evidence.unrecognised(truth) == ([3, 4], [4])


def test_a_person_who_pauses_makes_a_new_visit_where_ids_are_people() -> None:
    one = np.array([3]), np.array([[0, 0, 10, 20]], np.float32)
    truth = dict.fromkeys([1, 2, 3, 60, 61], one)
    visits = Visits()
    visits_of(Footage("a", lambda: iter(()), truth, None, 10.0), visits)
    visits_of(Footage("b", lambda: iter(()), truth, None, 10.0), visits)
    assert sorted(visits.person.values()) == [3, 3, 3, 3]
    assert sorted(visits.begun.values()) == [0.1, 0.1, 6.0, 6.0]


# --- timetables -------------------------------------------------------------------------------


@pytest.fixture
def small_set(tmp_path: Path) -> Path:
    folder = tmp_path / "set" / "bounding_box_test"
    folder.mkdir(parents=True)
    for person in range(1, 9):
        for camera in (1, 2, 3):
            for number in range(3 if person < 8 or camera == 1 else 0):
                picture = np.full((64 + person, 32, 3), 20 * person, np.uint8)
                cv2.imwrite(str(folder / f"{person:04d}_c{camera}s1_{number:06d}_00.jpg"), picture)
    return folder.parent


def test_everybody_passes_all_cameras_and_is_at_one_at_a_time(small_set: Path) -> None:
    play = played(small_set, crops=5)
    assert Counter(one.person for one in play.showings) == dict.fromkeys(range(1, 8), 3)  # 8 has one camera
    times = defaultdict(list)
    for one in play.showings:
        assert len(one.crops) == 5
        times[one.person].append((one.start, one.start + 5 * INTERVAL_S))
    for visits in times.values():
        assert all(a[1] + PAUSE_S <= b[0] for a, b in pairwise(sorted(visits)))


def test_people_come_one_at_a_time_over_all_cameras(small_set: Path) -> None:
    starts = sorted(one.start for one in played(small_set, crops=5, company=False).showings)
    assert all(b - a >= 5 * INTERVAL_S + PAUSE_S for a, b in pairwise(starts))


def test_crops_are_written_in_order_of_time_with_what_is_told(small_set: Path, tmp_path: Path) -> None:
    play = played(small_set, crops=5)
    shown = play.write(tmp_path / "with")
    told = [json.loads(path.read_bytes()) for path in sorted((tmp_path / "with").glob("*.json"))]
    assert [one["time"] for one in told] == sorted(one["time"] for one in told)
    assert sum(map(len, shown.values())) == len(told) == 5 * len(play.showings)
    assert Counter(one["track"] for one in told) == Counter(v for of in shown.values() for v in of)
    assert all(one["box"][0] < one["box"][2] for one in told)
    Play(play.showings, boxes=False, tracks=False).write(tmp_path / "without")
    bare = json.loads((tmp_path / "without" / "0000001.json").read_bytes())
    assert sorted(bare) == ["camera", "frame", "time"]


@pytest.mark.slow
def test_a_rendered_set_is_played_through_the_agent(tmp_path: Path) -> None:
    folder = render_set(tmp_path / "set", people=4, cameras=2, crops=8, seed=9, workers=1)
    with cached(tmp_path):
        result = run_crops(played(folder, crops=8, company=False), Network("shipped"))
        assert result["final"]["people"] == 4
        assert result["final"]["reentries"] == 4
        assert result["final"]["recognised"] + sum(result["losses"].values()) == 4
        assert result["crops"] + sum(result["refused"].values()) == 4 * 2 * 8
        best = of_set(played(folder, crops=8), Network("shipped"))
    assert best["less camera means"]["reentries"] == 4
    assert 0 <= best["raw"]["rank1"] <= 1


def test_a_camera_response_keeps_grey_nearly_grey_and_differs_between_cameras() -> None:
    grey = np.full((4, 4, 3), 120, np.uint8)
    seen = np.stack([CameraResponse.drawn(seed)(grey)[0, 0].astype(int) for seed in range(20)])
    assert (abs(seen - seen.mean(axis=1, keepdims=True)) < 45).all()
    assert np.ptp(seen.mean(axis=1)) > 10
    assert (CameraResponse.drawn(3)(grey) == CameraResponse.drawn(3)(grey)).all()


# --- variants ---------------------------------------------------------------------------------


def clip() -> Footage:
    """Ten frames with a bright person who walks to the right, on 100 x 60 pixels."""
    pictures = []
    for n in range(10):
        picture = np.zeros((60, 100, 3), np.uint8)
        picture[10:50, 5 + 8 * n : 20 + 8 * n] = 200
        pictures.append(picture)
    truth = {
        n + 1: (np.array([4]), np.array([[5 + 8 * n, 10, 20 + 8 * n, 50]], np.float32)) for n in range(10)
    }

    def frames() -> object:
        return iter([(n + 1, n / 10, picture) for n, picture in enumerate(pictures)])

    return Footage("cam", frames, truth, {4: 1}, 10.0)  # type: ignore[arg-type]


def lit(picture: NDArray[np.uint8]) -> tuple[int, ...]:
    rows, columns = np.nonzero(picture[..., 0] > 100)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@pytest.mark.parametrize("change", [mirror, backwards, half, slow, loop])
def test_truth_follows_the_pictures(change: object) -> None:
    made = change(clip())  # type: ignore[operator]
    count, last = 0, -1.0
    for number, time, picture in made.frames():
        assert time > last
        last = time
        count += 1
        assert number == count
        assert np.allclose(made.truth[number][1][0], lit(picture), atol=1)
    assert count == len(made.truth)


def test_halves_of_a_picture_are_two_cameras_with_a_visit_each() -> None:
    left, right = split(clip())
    truth = Visits()
    for one in (left, right):
        seen = visits_of(one, truth)
        for number, _, picture in one.frames():
            assert picture.shape[1] == 50
            if number in seen:
                assert np.allclose(one.truth[number][1][0], lit(picture), atol=1)
    assert list(truth.person.values()) == [1, 1]


def test_wrong_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="seen by two cameras"):
        played(tmp_path)
    with pytest.raises(InputError, match="no variant 'sepia'; choose one of plain"):
        variant("sepia", clip(), tmp_path)
    with pytest.raises(InputError, match=r"belong to nobody: \[4\]"):
        visits_of(replace(clip(), people={1: 1}), Visits())
    with pytest.raises(MissingFile, match="is no file"):
        of_file(tmp_path / "no.avi", tmp_path / "no.txt")


# --- kept results -----------------------------------------------------------------------------


def test_arrays_are_kept_by_key_and_by_another_process_too(tmp_path: Path) -> None:
    store = Store(tmp_path / "kept.sqlite")
    store.put({bytes([n]) * 16: np.full(3, n, np.float32) for n in range(200)})
    other = Store(tmp_path / "kept.sqlite")
    found = other.take([b"\x05" * 16, b"\xff" * 16])
    assert list(found) == [b"\x05" * 16]
    assert found[b"\x05" * 16].tolist() == [5, 5, 5]
    assert (other.hits, other.misses) == (1, 1)
    store.close()
    other.close()


def test_a_detector_finds_the_same_again_without_searching(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    picture = cv2.GaussianBlur(random.integers(0, 255, (200, 160, 3)).astype(np.uint8), (0, 0), 2)
    with cached(tmp_path) as store, opening.open_detector("none") as detector:
        first = detector.detect(picture)
        again = detector.detect(picture)
        other = detector.detect(picture[:100])
        assert (store.hits, store.misses) == (1, 2)
    assert np.array_equal(first.boxes, again.boxes)
    assert not np.array_equal(first.boxes, other.boxes)
    with opening.open_detector("none") as detector:
        assert type(detector).__name__ == "WholeFrame"
