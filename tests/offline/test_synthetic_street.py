"""The synthetic street: its ground truth matches the drawing, and a real detector finds its people."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_agent.core.errors import InputError
from edge_agent.core.structures import iou_matrix
from edge_agent.offline.synthetic.street import Street, StreetFrame, write_videos

SHORT = {"people": 3, "seconds": 16.0, "fps": 5.0, "size": (320, 240)}
DIGEST = """
import hashlib
from edge_agent.offline.synthetic.street import Street
street = Street(3, people=3, seconds=16.0, fps=5.0, size=(320, 240))
print(hashlib.sha256(b"".join(street.frame("cam-a", n).image.tobytes() for n in (10, 40))).hexdigest())
"""


@pytest.fixture(scope="module")
def street() -> Street:
    return Street(3, **SHORT)


@pytest.fixture(scope="module")
def frames(street: Street) -> list[StreetFrame]:
    return list(street)


def test_frames_come_in_order_for_every_camera(street: Street, frames: list[StreetFrame]):
    assert street.cameras == ("cam-a", "cam-b")
    assert [(f.camera, f.number) for f in frames] == [(c, n) for n in range(1, 81) for c in street.cameras]
    assert all(f.time == pytest.approx((f.number - 1) / 5) for f in frames)
    assert {f.image.shape for f in frames} == {(240, 320, 3)}


def test_a_frame_alone_is_the_same_as_in_the_series_and_in_another_process(frames: list[StreetFrame]):
    fresh = Street(3, **SHORT)
    alone = [fresh.frame("cam-a", number) for number in (40, 10)]
    series = {f.number: f for f in frames if f.camera == "cam-a"}
    for frame in alone:
        assert np.array_equal(frame.image, series[frame.number].image)
        assert frame.truth == series[frame.number].truth
    here = hashlib.sha256(series[10].image.tobytes() + series[40].image.tobytes()).hexdigest()
    other = subprocess.run(
        [sys.executable, "-c", DIGEST], check=True, capture_output=True, text=True
    ).stdout.strip()
    assert other == here


def test_boxes_hold_what_was_drawn_and_nothing_is_drawn_outside_them(frames: list[StreetFrame]):
    pictures = np.stack([f.image for f in frames if f.camera == "cam-a"]).astype(np.int16)
    empty = np.median(pictures, axis=0)
    checked = 0
    for frame, picture in zip((f for f in frames if f.camera == "cam-a"), pictures, strict=True):
        changed = np.abs(picture - empty).max(axis=2) > 40
        outside = changed.copy()
        for truth in frame.truth:
            x1, y1, x2, y2 = (int(max(0, value)) for value in truth.box)
            if truth.visible > 0.9:
                assert changed[y1:y2, x1:x2].mean() > 0.05
                checked += 1
            margin = int(0.15 * (y2 - y1))  # the shade on the ground
            outside[max(0, y1 - 1) : y2 + margin, max(0, x1 - margin) : x2 + margin] = False
        assert outside.mean() < 0.002
    assert checked > 20


def test_people_in_the_truth_are_on_a_visit(street: Street, frames: list[StreetFrame]):
    for frame in frames:
        here = {v.person for v in street.visits if v.camera == frame.camera and v.start <= frame.time < v.end}
        assert {truth.person for truth in frame.truth} <= here
        assert all(0 <= truth.visible <= 1 for truth in frame.truth)


def test_no_person_is_in_two_places_at_once_and_people_return():
    street = Street(11, people=6, seconds=60.0)
    assert len(street.reentries) >= 6
    assert {visit.person for visit in street.reentries} <= set(range(1, 7))
    for person in range(1, 7):
        visits = [visit for visit in street.visits if visit.person == person]
        assert len(visits) >= 2
        for earlier, later in itertools.pairwise(visits):
            assert later.start >= earlier.end + 2
    cameras = {(v.person, v.camera) for v in street.visits}
    assert len(cameras) > 6, "some people are seen by both cameras"


def test_reentries_are_seen_in_the_truth(street: Street, frames: list[StreetFrame]):
    for visit in street.reentries:
        if visit.start > 12:
            continue
        seen = [f for f in frames if f.camera == visit.camera and visit.start <= f.time < visit.end]
        assert any(truth.person == visit.person for f in seen for truth in f.truth)


def test_people_cover_each_other():
    street = Street(5, people=8, seconds=12.0, fps=2.0, size=(240, 180))
    shares = [truth.visible for frame in street for truth in frame.truth]
    assert any(0.1 < share < 0.8 for share in shares)
    assert np.mean(np.array(shares) > 0.9) > 0.4


def test_the_videos_can_be_read_back_and_their_truth_is_that_of_the_frames(tmp_path: Path):
    street = Street(3, people=3, seconds=5.0, fps=4.0, size=(320, 240))
    steps: list[tuple[int, int]] = []
    videos = write_videos(street, tmp_path, lambda done, total: steps.append((done, total)))
    assert [video.camera for video in videos] == ["cam-a", "cam-b"]
    assert steps[-1] == (40, 40)
    assert not list(tmp_path.glob("*part*"))
    for video in videos:
        reader = cv2.VideoCapture(str(video.video))
        assert reader.get(cv2.CAP_PROP_FPS) == pytest.approx(4.0)
        for number in range(1, street.frames + 1):
            good, image = reader.read()
            assert good
            difference = np.abs(image.astype(int) - street.frame(video.camera, number).image)
            assert difference.mean() < 6
        assert not reader.read()[0]
        reader.release()
        rows = [row.split(",") for row in video.truth.read_text().splitlines()]
        expected = [(n, t) for n in range(1, street.frames + 1) for t in street.frame(video.camera, n).truth]
        assert len(rows) == len(expected)
        for row, (number, truth) in zip(rows, expected, strict=True):
            assert (int(row[0]), int(row[1])) == (number, truth.person)
            x, y, w, h = map(float, row[2:6])
            assert (x, y, x + w, y + h) == pytest.approx(truth.box, abs=0.1)
            assert int(row[6]) == (truth.visible >= 0.3)
    script = json.loads((tmp_path / "street.json").read_text())
    assert len(script["visits"]) == len(street.visits)


def test_an_impossible_street_is_refused():
    with pytest.raises(InputError, match="cameras=0"):
        Street(1, cameras=0)
    with pytest.raises(InputError, match="no frame 0"):
        Street(1, seconds=1).frame("cam-a", 0)
    with pytest.raises(InputError, match="cam-a, cam-b"):
        Street(1, seconds=1).frame("door", 1)


def test_the_hog_detector_finds_the_people():
    """Daimler's detector at IoU 0.5 on people who are nearly fully visible, 90 pixels high or more."""
    hog = cv2.HOGDescriptor((48, 96), (16, 16), (8, 8), (8, 8), 9)
    hog.setSVMDetector(cv2.HOGDescriptor.getDaimlerPeopleDetector())
    street = Street(1, people=8, seconds=24.0, fps=10.0)
    found = total = 0
    for name in street.cameras:
        for number in range(24, street.frames, 36):
            frame = street.frame(name, number)
            wanted = [t.box for t in frame.truth if t.visible > 0.85 and t.box[3] - t.box[1] >= 90]
            if not wanted:
                continue
            raw = hog.detectMultiScale(
                frame.image, hitThreshold=0.6, winStride=(8, 8), scale=1.05, groupThreshold=0
            )[0]
            boxes = np.array(raw, np.float32).reshape(-1, 4)
            x, y, w, h = boxes.T
            shrunk = np.stack([x + 0.16 * w, y + 0.08 * h, x + 0.84 * w, y + 0.92 * h], axis=1)
            overlap = iou_matrix(np.array(wanted, np.float32), shrunk.astype(np.float32))
            found += int((overlap.max(axis=1, initial=0) >= 0.5).sum())
            total += len(wanted)
    assert total >= 15
    assert found / total >= 0.7
