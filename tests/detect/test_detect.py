"""Detectors: decoding by hand-made cases, quality on real video with ground truth."""

from __future__ import annotations

from collections import defaultdict

import cv2
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edge_agent.core.errors import ConfigError, EngineError, ModelError
from edge_agent.core.structures import Detections, iou_matrix
from edge_agent.detect.base import clip, suppress
from edge_agent.detect.hog import HogDetector
from edge_agent.detect.opening import open_detector
from tests import tiny_networks

# --- choosing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["", "yolo", "yolox", "yolox:", "HOG", "none:1"])
def test_unknown_detector(spec):
    with pytest.raises(ConfigError, match=r"write auto .*, hog:FACTOR, .*KIND:FILE.onnx .*yolov8 \(YOLOv8"):
        open_detector(spec)


@pytest.mark.parametrize("spec", ["hog:big", "hog:0", "hog:nan", "hog:99"])
def test_impossible_factor(spec):
    with pytest.raises(ConfigError, match=r"hog:FACTOR with a factor of 0.25 to 4"):
        open_detector(spec)


def test_missing_network(tmp_path):
    with pytest.raises(ModelError, match="cannot read the model"):
        open_detector(f"yolox:{tmp_path}/nothing.onnx")


def test_path_with_colons(tmp_path):
    path = tiny_networks.yolox(tmp_path / "a:b.onnx")
    assert open_detector(f"yolox:{path}").name == "yolox:a:b"


@pytest.mark.parametrize("spec", ["hog", "none"])
def test_levels_are_in_order(spec):
    levels = open_detector(spec).levels
    assert 0 <= levels.low <= levels.high <= levels.new_track <= 1


def test_none_is_the_whole_frame():
    with open_detector("none") as detector:
        found = detector.detect(np.zeros((40, 20, 3), np.uint8))
    assert found.boxes.tolist() == [[0, 0, 20, 40]]
    assert found.scores.tolist() == [1]


# --- boxes --------------------------------------------------------------------------------------


def test_auto_is_for_settings_with_a_state_folder():
    """A benchmark must not depend on what is installed."""
    with pytest.raises(ConfigError, match="name the detector"):
        open_detector("auto")


def test_suppress_keeps_the_best_of_each_group():
    boxes = np.asarray([[0, 0, 10, 10], [1, 0, 11, 10], [50, 0, 60, 10], [0, 0, 10, 9]], np.float32)
    kept = suppress(Detections(boxes, np.asarray([0.5, 0.9, 0.3, 0.4], np.float32)), 0.5)
    assert kept.boxes.tolist() == [[1, 0, 11, 10], [50, 0, 60, 10]]
    assert kept.scores.tolist() == pytest.approx([0.9, 0.3])
    assert len(suppress(Detections.none(), 0.5)) == 0


def test_a_suppressed_box_suppresses_nothing():
    boxes = np.asarray([[0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]], np.float32)
    kept = suppress(Detections(boxes, np.asarray([0.9, 0.8, 0.7], np.float32)), 0.4)
    assert kept.boxes.tolist() == [[0, 0, 10, 10], [8, 0, 18, 10]]


def test_work_is_bounded():
    boxes = (
        np.tile(np.asarray([[0, 0, 1, 1]], np.float32), (5000, 1))
        + np.arange(5000, dtype=np.float32)[:, None] * 2
    )
    kept = suppress(Detections(boxes, np.linspace(0, 1, 5000, dtype=np.float32)), 0.5)
    assert len(kept) == 512
    assert kept.scores[0] == 1


def test_clip():
    boxes = np.asarray([[-5, -5, 30, 50]], np.float32)
    assert clip(boxes, 40, 20).tolist() == [[0, 0, 20, 40]]


# --- YOLOX --------------------------------------------------------------------------------------

SIZE = 64
ANCHORS_8, ANCHORS_16 = 64, 16


def yolox(path, rows):
    """A network of 64 x 64 that finds these rows: {anchor: (x, y, w, h, objectness, person, other)}."""
    tiny_networks.yolox(path, size=SIZE)
    model = onnx.load(path)
    found = np.zeros((1, 84, 7), np.float32)
    for anchor, row in rows.items():
        found[0, anchor] = row
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(found, "rows"))
    onnx.save(model, path)
    return open_detector(f"yolox:{path}")


def test_rows_are_decoded_by_hand(tmp_path):
    rows = {
        8 * 2 + 3: (0.5, 0.25, np.log(2), np.log(3), 0.9, 0.8, 0.0),  # stride 8, cell (3, 2)
        ANCHORS_8 + 4 * 1 + 2: (0.0, 0.0, 0.0, np.log(2), 1.0, 0.5, 0.9),  # stride 16, cell (2, 1)
        ANCHORS_8 + ANCHORS_16: (0.0, 0.0, 0.0, 0.0, 0.9, 0.05, 0.95),  # not a person
        0: (0.0, 0.0, 9.0, 9.0, 0.05, 0.9, 0.0),  # not an object
    }
    with yolox(tmp_path / "y.onnx", rows) as detector:
        found = detector.detect(np.zeros((SIZE, SIZE, 3), np.uint8))
    np.testing.assert_allclose(found.scores, [0.72, 0.5], rtol=1e-6)
    # centre ((3 + .5) * 8, (2 + .25) * 8) = (28, 18), size (16, 24); centre (32, 16), size (16, 32)
    np.testing.assert_allclose(found.boxes, [[20, 6, 36, 30], [24, 0, 40, 32]], atol=1e-4)


def test_boxes_come_back_in_pixels_of_the_frame(tmp_path):
    rows = {8 * 2 + 3: (0.5, 0.0, np.log(2), np.log(3), 0.9, 0.8, 0.0)}
    with yolox(tmp_path / "y.onnx", rows) as detector:
        found = detector.detect(np.zeros((64, 128, 3), np.uint8))  # halved: the picture is twice as wide
    np.testing.assert_allclose(found.boxes, [[40, 8, 72, 56]], atol=1e-4)


def test_exports_that_decode_themselves_are_noticed(tmp_path):
    grid = {anchor: (anchor % 64, anchor // 2, 10, 20, 0.0, 0.1, 0.1) for anchor in range(84)}
    rows = {**grid, 40: (40.0, 30.0, 10.0, 20.0, 0.9, 0.9, 0.0)}
    with yolox(tmp_path / "y.onnx", rows) as detector:
        found = detector.detect(np.zeros((SIZE, SIZE, 3), np.uint8))
    np.testing.assert_allclose(found.boxes, [[35, 20, 45, 40]], atol=1e-4)


def test_a_wild_network_overflows_nothing(tmp_path):
    rows = {0: (0.0, 0.0, 1000.0, 1000.0, 0.9, 0.9, 0.0)}
    with yolox(tmp_path / "y.onnx", rows) as detector:
        found = detector.detect(np.zeros((SIZE, SIZE, 3), np.uint8))
    assert found.boxes.tolist() == [[0, 0, SIZE, SIZE]]


def test_nothing_found(tmp_path):
    with yolox(tmp_path / "y.onnx", {}) as detector:
        assert len(detector.detect(np.zeros((SIZE, SIZE, 3), np.uint8))) == 0


def test_letterbox_keeps_aspect_and_leaves_no_old_picture(tmp_path):
    """Pictures of other shapes in between must not change the result of a picture."""
    detector = yolox(tmp_path / "y.onnx", {})
    seen = []
    with detector:
        for shape in ((64, 128), (128, 64), (64, 128), (30, 90), (64, 128), (128, 64), (64, 128)):
            buffer = detector.engine.buffer()
            detector.detect(np.full((*shape, 3), 200, np.uint8))
            seen.append((shape, buffer[0].copy()))
    wide = [picture for shape, picture in seen if shape == (64, 128)]
    assert all((picture[:32] == 200).all() and (picture[32:] == 114).all() for picture in wide)
    tall = [picture for shape, picture in seen if shape == (128, 64)]
    assert all((picture[:, :32] == 200).all() and (picture[:, 32:] == 114).all() for picture in tall)


# --- HOG ----------------------------------------------------------------------------------------


def test_hog_outside_its_with():
    with pytest.raises(EngineError, match="not entered"):
        HogDetector().detect(np.zeros((200, 200, 3), np.uint8))


@pytest.mark.parametrize("shape", [(10, 10), (95, 300), (300, 47), (96, 48)])
def test_hog_in_pictures_smaller_than_its_window(shape):
    with open_detector("hog") as detector:
        assert len(detector.detect(np.full((*shape, 3), 80, np.uint8))) == 0


# --- real video ---------------------------------------------------------------------------------


def average_precision(video, truth, detector, step: int) -> float:
    """AP at IoU 0.5 over every `step`-th frame: area under the monotone precision-recall curve."""
    people = defaultdict(list)
    for line in truth.read_text().splitlines():
        frame, _, x, y, w, h, counts = (float(v) for v in line.split(",")[:7])
        if counts:
            people[int(frame)].append((x, y, x + w, y + h))
    ranked, total = [], 0
    for number, image in every(video, step):
        found = detector.detect(image)
        real = np.asarray(people[number], np.float32).reshape(-1, 4)
        total += len(real)
        ranked += zip(found.scores.tolist(), hits(found, real), strict=True)
    ranked.sort(reverse=True)
    right = np.cumsum([hit for _, hit in ranked])
    precision = right / np.arange(1, len(ranked) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(right / total, prepend=0) * envelope).sum())


def every(video, step):
    capture = cv2.VideoCapture(str(video))
    number = 0
    while capture.grab():
        number += 1
        if number % step == 0:
            yield number, capture.retrieve()[1]
    capture.release()


def hits(found: Detections, real: np.ndarray) -> list[bool]:
    """Whether each detection, best first, is the first to meet a person."""
    overlap = iou_matrix(found.boxes, real)
    free = np.ones(len(real), bool)
    result = []
    for row in overlap:
        best = int(np.where(free, row, -1).argmax()) if free.any() else None
        hit = best is not None and bool(free[best]) and row[best] >= 0.5
        if hit:
            free[best] = False
        result.append(hit)
    return result


def test_yolox_on_real_people(vtest_video, vtest_truth, yolox_onnx):
    """0.893 over all 795 frames."""
    with open_detector(f"yolox:{yolox_onnx}") as detector:
        assert average_precision(vtest_video, vtest_truth, detector, 25) > 0.85


def test_hog_on_real_people(vtest_video, vtest_truth):
    """0.787 over every sixth frame."""
    with open_detector("hog") as detector:
        assert average_precision(vtest_video, vtest_truth, detector, 60) > 0.70


def test_boxes_are_sorted_and_inside_the_picture(vtest_video, yolox_onnx):
    for spec in ("hog", f"yolox:{yolox_onnx}"):
        with open_detector(spec) as detector:
            _, image = next(every(vtest_video, 300))
            found = detector.detect(image)
        assert len(found) > 3
        assert (np.diff(found.scores) <= 0).all()
        assert found.scores.min() >= detector.levels.low
        assert found.boxes.min() >= 0
        assert (found.boxes[:, 2:] <= (768, 576)).all()
