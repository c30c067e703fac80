"""The tracker: identity of boxes over time, appearance, time instead of frames."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from edge_agent.core.config import TrackerSettings
from edge_agent.core.structures import (
    LONE_TRACKS,
    CropBatch,
    Detections,
    Embedded,
    MessageFrame,
    ScoreLevels,
    TrackUpdate,
)
from edge_agent.track import tracker as module
from edge_agent.track.association import associate
from edge_agent.track.crops import GROUP_LOST_S, JoinLevels, UpstreamTracks
from edge_agent.track.tracker import Tracker, TrackInput, update_tracks
from edge_agent.track.tracks import Similarity
from edge_agent.track.upstream import MessageTracks

SIZE = (640, 480)
D = 8


LEVELS = ScoreLevels(low=0.1, high=0.6, new_track=0.65)


def tracker(similarity: Similarity | None = None, **changes: float) -> Tracker:
    return Tracker("cam", TrackerSettings(**changes), LEVELS, similarity)


def unit(index: int) -> np.ndarray:
    vector = np.zeros(D, np.float32)
    vector[index] = 1.0
    return vector


def detections(*boxes: tuple[float, float], score: float = 0.9, size: tuple[float, float] = (40, 100)):
    found = [(x, y, x + size[0], y + size[1]) for x, y in boxes]
    return Detections(np.array(found, np.float32).reshape(-1, 4), np.full(len(found), score, np.float32))


def embedded(*vectors: np.ndarray | None) -> Embedded:
    rows = len(vectors)
    present = np.array([v is not None for v in vectors], np.bool_).reshape(rows)
    stacked = (
        np.stack([v if v is not None else np.zeros(D, np.float32) for v in vectors])
        if rows
        else np.zeros((0, D), np.float32)
    )
    return Embedded(stacked, present, present.astype(np.float32), tuple("" if p else "x" for p in present))


def ids(update: TrackUpdate) -> list[int]:
    return [seen.track_id for seen in update.seen]


def test_a_walker_keeps_one_id() -> None:
    t = tracker()
    seen = [
        ids(t.update(n, n / 10, SIZE, detections((10 + 8 * n, 50)), embedded(None))) for n in range(1, 30)
    ]
    assert seen[0] == []  # reported from the second detection on
    assert all(found == [1] for found in seen[1:])


def test_boxes_that_may_be_parts_or_are_doubtful_are_not_sure() -> None:
    """A person, a part of the same person, a doubtful box, and a neighbour who is overlapped a little."""
    levels = ScoreLevels(low=0.1, high=0.6, new_track=0.65, sure=0.8)
    boxes = [(50, 50, 90, 150), (55, 120, 75, 160), (200, 50, 240, 150), (84, 52, 122, 148)]
    found = Detections(np.array(boxes, np.float32), np.array([0.9, 0.9, 0.7, 0.9], np.float32))
    for chosen, wanted in ((levels, [True, False, False, True]), (LEVELS, [True] * 4)):
        t = Tracker("cam", TrackerSettings(), chosen)
        for n in range(1, 4):
            update = t.update(n, n / 10, SIZE, found, embedded(None, None, None, None))
        assert [seen.sure for seen in update.seen] == wanted


def test_ids_belong_to_one_tracker() -> None:
    first, second = tracker(), tracker()
    for t in (first, second):
        t.update(1, 0.1, SIZE, detections((10, 50)), embedded(None))
        assert ids(t.update(2, 0.2, SIZE, detections((12, 50)), embedded(None))) == [1]


def test_a_low_score_prolongs_but_does_not_start() -> None:
    t = tracker()
    for n in (1, 2):
        t.update(n, n / 10, SIZE, detections((10, 50)), embedded(None))
    assert ids(t.update(3, 0.3, SIZE, detections((11, 50), score=0.2), embedded(None))) == [1]
    empty = tracker()
    for n in (1, 2, 3):
        update = empty.update(n, n / 10, SIZE, detections((10, 50), score=0.2), embedded(None))
        assert ids(update) == []


@pytest.mark.parametrize("fps", [5.0, 10.0, 30.0])
def test_lost_buffer_is_in_seconds(fps: float) -> None:
    t = tracker(lost_s=1.0)
    n = 0
    for _ in range(5):
        n += 1
        t.update(n, n / fps, SIZE, detections((100, 50)), embedded(None))
    ended: list[float] = []
    while not ended:
        n += 1
        if t.update(n, n / fps, SIZE, detections(), embedded()).ended:
            ended.append((n - 5) / fps)
    assert ended[0] == pytest.approx(1.0, abs=1.5 / fps)


def test_a_gap_is_bridged_by_motion() -> None:
    t = tracker()
    for n in range(1, 11):
        t.update(n, n / 10, SIZE, detections((10 + 6 * n, 50)), embedded(None))
    for n in range(11, 19):
        t.update(n, n / 10, SIZE, detections(), embedded())
    assert ids(t.update(19, 1.9, SIZE, detections((10 + 6 * 19, 50)), embedded(None))) == [1]


def ready() -> Similarity:
    """A scene in which people are easy to distinguish."""
    scene = Similarity()
    for _ in range(50):
        scene.learn_genuine(np.array([0.95], np.float32))
        scene.learn_impostor(np.array([0.05], np.float32))
    return scene


def test_crossing_people_are_not_swapped() -> None:
    """Two people meet and turn back: overlap alone swaps them, appearance does not."""

    def run(with_looks: bool) -> tuple[list[int], list[int]]:
        t = tracker(ready())
        path = [*range(0, 100, 6), *range(94, 0, -6)]
        for n, step in enumerate(path, start=1):
            boxes = detections((100 + step, 50), (300 - step, 52))
            looks = embedded(unit(0), unit(1)) if with_looks else embedded(None, None)
            update = t.update(n, n / 10, SIZE, boxes, looks)
            if n == 3:
                before = ids(sort_by_x(update))
        return before, ids(sort_by_x(update))

    before, after = run(with_looks=True)
    assert before == after


def sort_by_x(update: TrackUpdate) -> TrackUpdate:
    return TrackUpdate(
        update.camera, update.frame, update.time, update.size,
        tuple(sorted(update.seen, key=lambda o: float(o.box[0]))), update.ended,
    )  # fmt: skip


def test_another_person_in_the_same_place_is_a_new_track() -> None:
    t = tracker(ready())
    for n in range(1, 8):
        t.update(n, n / 10, SIZE, detections((100, 50)), embedded(unit(0)))
    for n in range(8, 11):
        update = t.update(n, n / 10, SIZE, detections((100, 50)), embedded(unit(1)))
    assert ids(update) == [2]


def test_similarity_learns_from_the_scene() -> None:
    t = tracker()
    for n in range(1, 60):
        t.update(n, n / 10, SIZE, detections((100, 50), (400, 50)), embedded(unit(0), unit(1)))
    assert t.similarity.ready
    assert t.similarity.genuine == pytest.approx(1.0, abs=1e-3)
    assert t.similarity.impostor == pytest.approx(0.0, abs=1e-3)


def test_a_pause_of_the_recording_ends_its_tracks() -> None:
    camera = tracker()
    one = detections((100, 100))
    for frame in range(1, 6):
        before = camera.update(frame, frame * 0.1, SIZE, one, embedded(unit(0)))
    after = camera.update(6, 3600.0, SIZE, one, embedded(unit(0)))
    assert after.ended == tuple(ids(before))
    assert len(camera) == 1
    assert ids(camera.update(7, 3600.1, SIZE, one, embedded(unit(0)))) == [ids(before)[0] + 1]


def test_a_slow_camera_has_no_pauses() -> None:
    camera = tracker(lost_s=3.0)
    for frame in range(1, 6):
        update = camera.update(frame, frame * 5.0, SIZE, detections((100, 100)), embedded(unit(0)))
    assert ids(update) == [1]
    assert update.ended == ()


def test_people_side_by_side_from_the_start_are_not_swapped() -> None:
    tracks, shown = tracker(), set[tuple[int, int]]()
    for n in range(28):
        step = 32 * min(max(n - 8, 0), 10) / 10  # neighbours change places within a second
        places = [100 + step, 132 - step, 164 + step, 196 - step]
        behind = [0, 2] if 11 < n < 15 else []  # of two who overlap fully, one is found
        rows = [at for at in range(4) if at not in behind]
        boxes = detections(*((places[at], 50) for at in rows))
        update = tracks.update(n, n / 10, SIZE, boxes, embedded(*(unit(at) for at in rows)))
        shown |= {(one.track_id, int(one.vector.argmax())) for one in update.seen if one.vector is not None}
    assert len(shown) == len({track for track, _ in shown}) == 4


@pytest.mark.parametrize("fps", [2.0, 3.0, 10.0])
@pytest.mark.parametrize("embedding", [True, False])
def test_a_slow_camera_follows_people_who_moved_by_more_than_their_width(fps: float, embedding: bool) -> None:
    tracks, seen = tracker(), list[list[int]]()
    for n in range(12):  # people of 100 px who walk 1 height a second, 2.5 times their width
        boxes = detections((10 + n * 100 / fps, 50), (1500 - n * 100 / fps, 250))
        vectors = embedded(*((unit(0), unit(1)) if embedding else (None, None)))
        seen.append(ids(tracks.update(n, n / fps, (1600, 400), boxes, vectors)))
    assert seen[0] == []
    assert all(found == [1, 2] for found in seen[1:])


def test_a_slow_camera_leaves_people_apart_who_change_places() -> None:
    tracks, places, shown = tracker(ready()), [100, 150, 200], set[tuple[int, int]]()
    for n in range(6):
        order = [0, 1, 2] if n < 3 else [1, 2, 0]  # each stands where another stood
        boxes = detections(*((places[order.index(person)], 50) for person in range(3)))
        update = tracks.update(n, n * 0.5, SIZE, boxes, embedded(unit(0), unit(1), unit(2)))
        shown |= {(one.track_id, int(one.vector.argmax())) for one in update.seen if one.vector is not None}
    assert len(shown) == len({track for track, _ in shown})


def test_a_fast_camera_joins_no_distant_boxes() -> None:
    tracks = tracker()
    for n in range(4):
        update = tracks.update(n, n * 0.1, SIZE, detections((100 + 50 * n % 100, 50)), embedded(unit(0)))
    assert ids(update) == []


def test_a_clock_set_back_is_no_error() -> None:
    t = tracker()
    t.update(1, 5.0, SIZE, detections((10, 50)), embedded(None))
    assert ids(t.update(2, 4.0, SIZE, detections((11, 50)), embedded(None))) == [1]


def test_finish_ends_every_reported_track() -> None:
    t = tracker()
    for n in (1, 2):
        t.update(n, n / 10, SIZE, detections((10, 50), (300, 50)), embedded(None, None))
    t.update(3, 0.3, SIZE, detections((10, 50), (300, 50), (500, 50)), embedded(None, None, None))
    assert sorted(t.finish(4, 0.4, SIZE).ended) == [1, 2]
    assert len(t) == 0


def pairs(cost: np.ndarray, limit: float) -> list[tuple[int, int]]:
    return list(zip(*associate(cost, limit), strict=True))


def test_confirm_hits_delays_the_report() -> None:
    t = tracker(confirm_hits=4)
    seen = [ids(t.update(n, n / 10, SIZE, detections((10, 50)), embedded(None))) for n in range(1, 6)]
    assert seen == [[], [], [], [1], [1]]


@pytest.mark.parametrize(("max_cost", "found"), [(0.9, [1]), (0.2, [])])
def test_max_cost_limits_the_step_between_two_boxes(max_cost: float, found: list[int]) -> None:
    t = tracker(max_cost=max_cost)
    for n in (1, 2, 3):
        t.update(n, n / 10, SIZE, detections((100, 50)), embedded(None))
    assert ids(t.update(4, 0.4, SIZE, detections((116, 50)), embedded(None))) == found


@pytest.mark.parametrize(
    ("settings", "lost", "found"),
    [
        ({}, False, [1]),
        ({"live_gate": 0.3}, False, []),
        ({"lost_gate": 0.3}, False, [1]),
        ({}, True, [1]),
        ({"lost_gate": 0.3}, True, []),
        ({"live_gate": 0.3}, True, [1]),
        ({"max_cost": 0.3, "appearance_weight": 0.3}, False, [1]),
        ({"max_cost": 0.3, "appearance_weight": 0.9}, False, []),
    ],
)
def test_gates_and_weight_of_the_appearance(settings: dict[str, float], lost: bool, found: list[int]) -> None:
    """A box in the same place whose appearance is half way between genuine and impostor."""
    t = tracker(ready(), **settings)
    for n in range(1, 6):
        t.update(n, n / 10, SIZE, detections((100, 50)), embedded(unit(0)))
    if lost:
        t.update(6, 0.6, SIZE, detections(), embedded())
    half = (0.5 * unit(0) + np.sqrt(0.75) * unit(1)).astype(np.float32)
    assert ids(t.update(7, 0.7, SIZE, detections((100, 50)), embedded(half))) == found


def test_associate_leaves_dear_pairs_apart() -> None:
    cost = np.array([[0.1, 0.95], [0.2, np.inf]])
    assert pairs(cost, 0.9) in ([(0, 0)], [(1, 0)])
    assert pairs(np.zeros((0, 3)), 0.9) == []
    both = pairs(np.array([[0.1, 0.5], [0.2, 0.8]]), 0.9)
    assert both == [(0, 1), (1, 0)]  # the cheapest sum, not the cheapest pair


def test_associate_finds_the_best_of_all_assignments() -> None:
    random = np.random.default_rng(3)
    for _ in range(300):
        cost = random.random(random.integers(1, 4, 2))
        cost[random.random(cost.shape) < 0.5] = np.inf
        allowed = cost <= 0.9
        rows, columns = linear_sum_assignment(np.where(allowed, cost, 1e6))
        near = allowed[rows, columns]
        assert pairs(cost, 0.9) == list(zip(rows[near].tolist(), columns[near].tolist(), strict=True))


def crops(time: float, *tracks: int | None) -> CropBatch:
    image = np.zeros((100, 40, 3), np.uint8)
    boxes = np.tile(np.array([[0, 0, 40, 100]], np.float32), (len(tracks), 1))
    return CropBatch("up", int(time * 10), time, (image,) * len(tracks), boxes, tracks)


def test_upstream_tracks_keep_their_ids_and_end_in_silence() -> None:
    follow = UpstreamTracks("up", TrackerSettings(lost_s=1.0))
    one = [embedded(unit(0))]
    assert ids(follow.update(crops(1.0, 7), one)) == [7]
    assert follow.update(crops(1.5, 9), one).ended == ()
    assert follow.update(crops(2.3, 9), one).ended == (7,)
    assert follow.finish(1, 3.0, SIZE).ended == (9,)


def test_upstream_tracks_end_when_times_go_back() -> None:
    follow = UpstreamTracks("up", TrackerSettings(lost_s=1.0))
    one = [embedded(unit(0))]
    assert follow.update(crops(4e9, 7), one).ended == ()
    assert follow.update(crops(10.0, 8), one).ended == (7,)
    assert follow.update(crops(9.5, 8), one).ended == ()


def test_crops_without_a_track_stand_alone() -> None:
    follow = UpstreamTracks("up", TrackerSettings())
    update = follow.update(crops(1.0, None, None), [embedded(unit(0)), embedded(unit(1))])
    assert len(set(ids(update))) == 2
    assert sorted(update.ended) == sorted(ids(update))


LEVELS_OF_CROPS = JoinLevels(live=0.5, lost=0.8)


def crop_embedding(first: float) -> Embedded:
    """Embedding with the cosine `first` to `unit(0)`."""
    return embedded(np.float32(first) * unit(0) + np.float32((1 - first**2) ** 0.5) * unit(1))


def test_crops_without_a_track_are_grouped_by_appearance() -> None:
    follow = UpstreamTracks("up", TrackerSettings(lost_s=3.0), LEVELS_OF_CROPS)
    first = follow.update(crops(1.0, None, None), [embedded(unit(0)), embedded(unit(2))])
    again = follow.update(crops(3.0, None, None), [embedded(unit(2)), crop_embedding(0.7)])
    assert ids(again) == ids(first)[::-1]
    assert again.ended == ()
    other = follow.update(crops(4.0, None), [embedded(unit(5))])
    assert ids(other)[0] not in ids(first)


def test_a_frame_shows_a_person_once() -> None:
    follow = UpstreamTracks("up", TrackerSettings(), LEVELS_OF_CROPS)
    alike = [embedded(unit(0)), crop_embedding(0.99)]
    found = [ids(follow.update(crops(1.0 + n, None, None), alike)) for n in range(6)]
    assert len(set(found[0])) == 2
    assert all(one == found[0] for one in found)


def test_a_group_needs_a_better_likeness_after_a_while_and_ends() -> None:
    follow = UpstreamTracks("up", TrackerSettings(lost_s=3.0), LEVELS_OF_CROPS)
    (first,) = ids(follow.update(crops(1.0, None), [embedded(unit(0))]))
    assert ids(follow.update(crops(9.0, None), [crop_embedding(0.7)])) != [first]
    assert ids(follow.update(crops(10.0, None), [crop_embedding(0.95)])) == [first]
    late = follow.update(crops(10.0 + GROUP_LOST_S + 1, None), [embedded(unit(0))])
    assert first in late.ended
    assert ids(late) != [first]
    assert follow.finish(1, 99.0, SIZE).ended == tuple(ids(late))


def test_refused_crops_join_no_group() -> None:
    follow = UpstreamTracks("up", TrackerSettings(), LEVELS_OF_CROPS)
    update = follow.update(crops(1.0, None, 7), [embedded(None), embedded(None)])
    assert update.ended == (ids(update)[0],)


def test_tracks_and_groups_of_one_frame_have_numbers_of_their_own() -> None:
    follow = UpstreamTracks("up", TrackerSettings(), LEVELS_OF_CROPS)
    for n in range(3):
        update = follow.update(crops(1.0 + n, 1, None), [embedded(unit(0)), embedded(unit(0))])
        assert ids(update) == [1, LONE_TRACKS + 1]


def test_a_box_that_is_the_extent_of_its_crop_has_no_place() -> None:
    follow = UpstreamTracks("up", TrackerSettings())
    assert [one.placed for one in follow.update(crops(1.0, 1), [embedded(unit(0))]).seen] == [False]
    image = np.zeros((100, 40, 3), np.uint8)
    there = CropBatch("up", 1, 1.0, (image,), np.array([[5, 0, 45, 100]], np.float32), (1,))
    assert [one.placed for one in follow.update(there, [embedded(unit(0))]).seen] == [True]


def test_boxes_of_the_whole_frame_in_messages_have_no_place() -> None:
    boxes = np.array([[0, 0, *SIZE], [0, 0, 40, 100]], np.float32)
    found = Detections(boxes, np.full(2, 0.9, np.float32))
    given = np.eye(2, D, dtype=np.float32)
    message = MessageFrame("cam", 1, 1.0, SIZE, found, (1, 2), given, np.ones(2, np.bool_))
    update = MessageTracks("cam", tracker()).update(message, embedded(*given))
    assert [one.placed for one in update.seen] == [False, True]


def rows_of(path: Path) -> Iterator[tuple[int, int, np.ndarray]]:
    for line in path.read_text().splitlines():
        values = line.split(",")
        if float(values[6]):
            x, y, w, h = map(float, values[2:6])
            yield int(values[0]), int(values[1]), np.array([x, y, x + w, y + h], np.float32)


def test_true_boxes_of_real_people_give_true_tracks(vtest_truth: Path) -> None:
    """With the ground truth's own boxes nearly every person keeps one id (IDF1 by motmetrics)."""
    import motmetrics

    truth: dict[int, list[tuple[int, np.ndarray]]] = {}
    for frame, visit, box in rows_of(vtest_truth):
        truth.setdefault(frame, []).append((visit, box))
    t = tracker()
    score = motmetrics.MOTAccumulator(auto_id=True)
    for frame in sorted(truth):
        people = truth[frame]
        boxes = np.stack([box for _, box in people])
        update = t.update(
            frame, frame / 7, (768, 576), Detections(boxes, np.full(len(boxes), 0.9, np.float32)),
            embedded(*[None] * len(boxes)),
        )  # fmt: skip
        found = np.stack([o.box for o in update.seen]) if update.seen else np.zeros((0, 4))
        distance = np.abs(boxes[:, None] - found[None]).max(axis=2)
        distance[distance > 1] = np.nan
        score.update([visit for visit, _ in people], ids(update), distance)
    result = motmetrics.metrics.create().compute(score, metrics=["idf1", "mota"], name="all")
    assert result["mota"].iloc[0] > 0.98
    assert result["idf1"].iloc[0] > 0.93  # measured 0.941; 0.059 are crossings that only looks resolve


def street(camera: int, frame: int) -> tuple[Detections, Embedded]:
    """A few people who walk, cross, enter and leave; some boxes are weak, some crops were refused."""
    random = np.random.default_rng(1000 * camera + frame)
    count = 2 + (camera + frame // 20) % 4
    x = 40.0 + 70 * np.arange(count) + (-1) ** np.arange(count) * 2.0 * frame + random.normal(0, 1, count)
    boxes = np.stack([x, np.full(count, 50.0), x + 40, np.full(count, 160.0)], axis=1).astype(np.float32)
    scores = np.where(random.random(count) < 0.2, 0.3, 0.9).astype(np.float32)
    people = np.random.default_rng(camera).normal(size=(count, 16))
    vectors = people + 0.3 * random.normal(size=(count, 16))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    present = random.random(count) < 0.8
    vectors[~present] = 0.0
    return Detections(boxes, scores), Embedded(
        vectors, present, present.astype(np.float32), tuple("" if there else "small" for there in present)
    )


@pytest.mark.parametrize("most", [128, 5])
def test_cameras_together_are_as_one_by_one(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with different frame rates, cameras without people, and engine failures."""
    monkeypatch.setattr(module, "MAX_JOINT_TRACKS", most)
    known = {"genuine": 0.9, "impostor": 0.1, "genuine_count": 2000, "impostor_count": 2000}

    def trackers() -> list[Tracker]:
        shared, settings = Similarity(**known), TrackerSettings()
        levels = ScoreLevels(low=0.1, high=0.5, new_track=0.5)
        return [Tracker(f"c{n}", settings, levels, shared) for n in range(4)]

    alone, together = trackers(), trackers()
    for frame in range(1, 120):
        if frame % 8 == 0:
            continue  # what is learnt of one camera's frame changes the next one's at once, or not
        given = []
        for camera in range(4):
            if frame % (camera + 1):
                continue
            found, embedded = street(camera, frame)
            if frame % 31 == 0:
                found, embedded = (
                    detections(),
                    Embedded(np.zeros((0, 16), np.float32), np.zeros(0, bool), np.zeros(0, np.float32), ()),
                )
            elif frame % 37 == 0:
                rows = len(found)
                embedded = Embedded(
                    np.zeros((rows, 0), np.float32), np.zeros(rows, bool), np.zeros(rows, np.float32),
                    ("engine failed",) * rows,
                )  # fmt: skip
            given.append((camera, frame, frame / 10, SIZE, found, embedded))
        one = [alone[camera].update(*rest) for camera, *rest in given]
        other = update_tracks(TrackInput(together[camera], *rest) for camera, *rest in given)
        for first, second in zip(one, other, strict=True):
            assert (first.camera, first.ended) == (second.camera, second.ended)
            assert [(o.track_id, o.score, o.box.tolist()) for o in first.seen] == [
                (o.track_id, o.score, o.box.tolist()) for o in second.seen
            ]
    assert sum(map(len, alone)) == sum(map(len, together)) > 0
