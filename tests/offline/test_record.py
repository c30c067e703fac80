"""The video and the report of a run."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_agent.agent.results import FrameOutcome, Summary
from edge_agent.core.errors import InputError
from edge_agent.core.structures import (
    CropBatch,
    Decision,
    DecisionKind,
    Frame,
    TrackObservation,
    TrackUpdate,
)
from edge_agent.offline.record import people as report_module
from edge_agent.offline.record.people import PeopleReport
from edge_agent.offline.record.video import AnnotatedVideo

BOX = np.array([40, 30, 80, 110], np.float32)
SIZE = (160, 120)
SUMMARY = Summary({"yard": 3}, 3, 2, 1, 1.0, 0.5, 0.1, {}, {}, {}, 0)


def observation(time: float, track: int = 1, camera: str = "yard", quality: float = 0.5) -> TrackObservation:
    return TrackObservation(camera, track, 1, time, BOX, 0.9, None, quality)


def decision(kind: DecisionKind, number: int | None, time: float = 0.0, **fields) -> Decision:
    own = Decision(
        id=f"{kind.value}-{number}", kind=kind, camera="yard", track_id=1, identity=f"p-{number}",
        number=number, name=None, score=0.8123, runner_up=None, threshold=0.7, rule="site", evidence=6,
        quality=0.5, box=BOX, size=SIZE, frame=1, time=time, first_seen=0.0, last_seen=0.0,
    )  # fmt: skip
    return replace(own, **fields)


def outcome(
    time: float,
    *seen: TrackObservation,
    decisions: tuple[Decision, ...] = (),
    shade: int = 90,
    camera: str = "yard",
) -> FrameOutcome:
    picture = np.full((SIZE[1], SIZE[0], 3), shade, np.uint8)
    update = TrackUpdate(camera, 1, time, SIZE, seen, ())
    return FrameOutcome(update, decisions, {}, "0" * 32, Frame(camera, 1, time, picture))


def frames(path: Path) -> list[np.ndarray]:
    video = cv2.VideoCapture(str(path))
    found = []
    while (got := video.read())[0]:
        found.append(got[1])
    return found


# ---- the video


def test_the_video_has_the_duration_of_its_frames_whatever_their_distances(tmp_path: Path):
    times = [0.1 * n for n in range(20)] + [2.9, 3.0, 3.05, 3.5]  # ten a second, a pause, then unevenly
    with AnnotatedVideo(tmp_path / "v.mp4", 1, lambda camera, track, time: None) as video:
        for time in times:
            video(outcome(1000.0 + time))
        assert not (tmp_path / "v.mp4").exists(), "a file appears when it is complete"
    found = frames(tmp_path / "v.mp4")
    assert len(found) == pytest.approx(3.5 * 10 + 1, abs=1)
    assert (tmp_path / "v.mp4").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["v.mp4"]


def test_a_pause_of_hours_does_not_fill_the_disk(tmp_path: Path):
    with AnnotatedVideo(tmp_path / "v.mp4", 1, lambda camera, track, time: None) as video:
        for time in [0.1 * n for n in range(20)] + [7200.0, 7200.1]:
            video(outcome(time))
    assert len(frames(tmp_path / "v.mp4")) < 20 + 5 * 10 + 5


def test_boxes_people_and_decisions_are_drawn_and_the_frame_is_left_alone(tmp_path: Path):
    numbers = {1: 7}
    with AnnotatedVideo(tmp_path / "v.mp4", 1, lambda camera, track, time: numbers.get(track)) as video:
        first = outcome(0.0, observation(0.0), decisions=(decision(DecisionKind.MATCHED, 7, name="Zoë"),))
        kept = first.item.image.copy()
        video(first)
        assert np.array_equal(first.item.image, kept)
        video(outcome(5.0, observation(5.0, track=2)))  # without identity, and the decision is long past
    with_decision, *_, unknown = frames(tmp_path / "v.mp4")
    assert np.abs(with_decision.astype(int) - 90).max() > 60
    labelled = [
        np.abs(picture[0:40].astype(int) - 90).max(axis=2) > 40 for picture in (with_decision, unknown)
    ]
    assert labelled[0].sum() > 3 * labelled[1].sum(), "the name and the decision need more room than a ?"


def test_several_cameras_have_a_file_each_and_a_short_one_is_complete(tmp_path: Path):
    with AnnotatedVideo(tmp_path / "v.mp4", 2, lambda camera, track, time: None) as video:
        for camera in ("yard", "gate"):
            video(outcome(0.0, camera=camera))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v-gate.mp4", "v-yard.mp4"]
    assert len(frames(tmp_path / "v-gate.mp4")) == 1


@pytest.mark.parametrize(
    ("name", "message"), [("v.avi", "must end in .mp4"), ("none/v.mp4", "does not exist; make it first")]
)
def test_a_wrong_name_is_reported_before_the_run(tmp_path: Path, name: str, message: str):
    with pytest.raises(InputError, match=message):
        AnnotatedVideo(tmp_path / name, 1, lambda camera, track, time: None)


# ---- the report


def written(report: PeopleReport) -> str:
    report.write(SUMMARY)
    assert report.path.stat().st_mode & 0o777 == 0o600
    return report.path.read_text()


def test_a_person_has_a_card_with_crops_visits_and_scores(tmp_path: Path):
    report = PeopleReport(tmp_path / "r.html", lambda camera, track, time: 7)
    report(outcome(0.0, observation(0.0), decisions=(decision(DecisionKind.ENROLLED, 7, score=None),)))
    for step in range(1, 8):
        report(outcome(float(step), observation(float(step), quality=0.1 * step)))
    report(outcome(9.0, observation(9.0, track=2)))
    page = written(report)
    assert page.count('class="crop"') == 3 + 1, "the three best crops of the first track, one of the second"
    assert "person 7" in page
    assert "1970-01-01 00:00:09.00" in page
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", page)


def test_a_corrected_track_is_with_its_final_person_and_the_correction_is_listed(tmp_path: Path):
    report = PeopleReport(tmp_path / "r.html", lambda camera, track, time: 2)
    report(outcome(0.0, observation(0.0), decisions=(decision(DecisionKind.ENROLLED, 5),)))
    correction = decision(DecisionKind.CORRECTED, 2, 1.0, previous="p-5", reason="fused", name="Ana")
    report(outcome(1.0, observation(1.0), decisions=(correction,)))
    page = written(report)
    assert "Ana (2)" in page
    assert "person 5" not in page
    for cell in ("p-5", "fused", "corrected 0.812 (threshold 0.700, site)"):
        assert cell in page


def test_a_track_that_slipped_is_with_both_persons(tmp_path: Path):
    report = PeopleReport(tmp_path / "r.html", lambda camera, track, time: 5 if time < 3.0 else 2)
    report(outcome(0.0, observation(0.0), decisions=(decision(DecisionKind.ENROLLED, 5),)))
    for step in range(1, 6):
        report(outcome(float(step), observation(float(step))))
    slip = replace(decision(DecisionKind.CORRECTED, 2, 6.0, previous="p-5", reason="slipped"), since=3.0)
    report(outcome(6.0, observation(6.0), decisions=(slip,)))
    page = written(report)
    assert "<td>1970-01-01 00:00:03.00</td><td>1970-01-01 00:00:06.00</td>" in page
    assert page.index("person 2</h3>") < page.index("person 5</h3>") < page.index("slipped")


def test_names_are_text(tmp_path: Path):
    report = PeopleReport(tmp_path / "r.html", lambda camera, track, time: 7)
    report(
        outcome(0.0, observation(0.0), decisions=(decision(DecisionKind.MATCHED, 7, name="<script>\x1b"),))
    )
    page = written(report)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "\x1b" not in page


def test_crops_of_an_upstream_are_shown_as_they_are(tmp_path: Path):
    shades = (10, 200)
    images = tuple(np.full((64, 32, 3), shade, np.uint8) for shade in shades)
    boxes = np.tile(BOX, (2, 1))
    crops = CropBatch("yard", 1, 0.0, images, boxes, (1, 2))
    seen = (observation(0.0, 1), observation(0.0, 2))
    report = PeopleReport(tmp_path / "r.html", lambda camera, track, time: track)
    report(FrameOutcome(TrackUpdate("yard", 1, 0.0, SIZE, seen, ()), (), {}, "0" * 32, crops))
    import base64

    pictures = re.findall(r"base64,([A-Za-z0-9+/=]+)", written(report))
    means = [
        cv2.imdecode(np.frombuffer(base64.b64decode(one), np.uint8), cv2.IMREAD_COLOR).mean()
        for one in pictures
    ]
    assert means == pytest.approx(shades, abs=3)


def test_the_memory_of_a_report_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(report_module, "_MOST_TRACKS", 5)
    report = PeopleReport(tmp_path / "r.html", lambda camera, track, time: track)
    report(outcome(0.0, *(observation(0.0, track) for track in range(1, 10))))
    page = written(report)
    assert "4 observations of tracks beyond the first 5 are left out" in page


def test_a_run_without_anybody_has_a_report(tmp_path: Path):
    report = PeopleReport(tmp_path / "r.html", lambda camera, track, time: None)
    report(outcome(0.0, observation(0.0)))
    page = written(report)
    assert "Nobody was recognised or enrolled." in page
    assert "<h2>Corrections</h2>" in page
    with pytest.raises(InputError, match="make it first"):
        PeopleReport(tmp_path / "none" / "r.html", lambda camera, track, time: None)
