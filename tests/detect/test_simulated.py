"""The simulated detector: the host's work on real pictures, known boxes, and the queue of a shared device."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.core.errors import ConfigError, EdgeAgentError, InputError
from edge_agent.core.structures import Detections, Frame, iou_matrix
from edge_agent.detect.base import clip, suppress
from edge_agent.detect.simulated import DetectorTable, SimulatedDetector, detector_table
from edge_agent.engine import open_simulated
from edge_agent.engine.simulated import Device, LatencyTable
from edge_agent.offline.synthetic.panorama import Panorama

FAST = LatencyTable("fast", "a hare", "fp16", "this test", (1, 4), (1e-5, 2e-5))
TABLES = [DetectorTable("yolox", "X", (640, 640), FAST), DetectorTable("peoplenet", "P", (544, 960), FAST)]
FILE: dict[str, Any] = {
    "kind": "yolox", "input_size": [640, 640], "model": "YOLOX-S", "device": "Orin", "precision": "fp16",
    "source": "this test", "latency_ms": {"1": 3.1, "8": 20.0},
}  # fmt: skip


def frames(count: int, people: int, size: tuple[int, int] = (1920, 1080)) -> list[Frame]:
    street = Panorama(people, people=people, size=size)
    return [Frame("cam", n, 0.0, *street.frame(97.0 * n, n)) for n in range(count)]


@pytest.mark.parametrize("people", [1, 30])
@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.kind)
def test_the_boxes_of_the_frames_are_found(table: DetectorTable, people: int) -> None:
    shown = frames(6, people)
    with SimulatedDetector(table, Device(), most=4) as detector:
        found = detector.begin_frames(shown).results()
        assert detector.engine.runs == 2  # four, and two
    assert detector.searched == 6
    for frame, got in zip(shown, found, strict=True):
        assert frame.external is not None
        wanted = clip(frame.external.boxes, *frame.image.shape[:2])
        overlap = iou_matrix(wanted, got.boxes)
        assert len(got) == len(wanted)
        assert overlap.max(axis=1).min() > 0.99
        assert got.scores == pytest.approx(0.9, abs=1e-4)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.kind)
def test_an_empty_frame_has_nobody(table: DetectorTable) -> None:
    picture = np.zeros((720, 1280, 3), np.uint8)
    shown = [Frame("a", 1, 0.0, picture), Frame("b", 1, 0.0, picture, Detections.none())]
    with SimulatedDetector(table, Device(), most=1) as detector:
        assert [len(found) for found in detector.begin_frames(shown).results()] == [0, 0]


def test_suppression_has_the_work_of_a_real_network() -> None:
    """A dozen boxes around each person."""
    (shown,) = frames(1, 8)
    assert shown.external is not None
    with SimulatedDetector(TABLES[0], Device(), most=1) as detector:
        limit, detector.max_iou = detector.max_iou, 1.0
        many = detector.begin_frames([shown]).results()[0]
        detector.max_iou = limit
        few = detector.begin_frames([shown]).results()[0]
    assert len(few) == len(shown.external)
    assert 8 * len(few) <= len(many) <= 13 * len(few)


def test_its_name_says_that_it_is_simulated() -> None:
    detector = SimulatedDetector(TABLES[0], Device(), most=1)
    assert detector.name == "simulated:fast"
    info = detector.engine.info
    assert (info.backend, info.model, info.device) == ("simulated:fast", "simulated X", "simulated a hare")
    assert info.max_batch == 1


def test_detector_and_reid_network_share_one_queue() -> None:
    slow = DetectorTable("yolox", "X", (64, 64), LatencyTable("slow", "x", "fp16", "y", (1,), (0.03,)))
    reid = open_simulated("simulated:orin-fp16", max_batch=64)
    small = Frame("cam", 1, 0.0, np.zeros((64, 64, 3), np.uint8), Detections.none())
    batch_s = reid.table.of(64)
    with reid, SimulatedDetector(slow, reid.device, most=1) as detector:
        began = time.monotonic()
        reid.submit(64)
        search = detector.begin_frames([small])
        reid.submit(64)
        assert not search.done
        assert not reid.ready
        search.results()
        assert time.monotonic() - began >= batch_s + 0.03
        assert reid.ready, "it came first"
        for _ in range(2):
            reid.collect()
        assert time.monotonic() - began >= 2 * batch_s + 0.03
        assert reid.device.seconds == pytest.approx(2 * batch_s + 0.03)
        # Its second batch had to wait for the detector, as a stream's events measure it.
        assert reid.run_seconds == pytest.approx(2 * batch_s + 0.03, abs=2e-3)
    alone = open_simulated("simulated:orin-fp16", max_batch=64)
    with alone:
        alone.submit(64)
        alone.collect()
    assert alone.run_seconds == pytest.approx(batch_s)


def test_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps(FILE))
    table = detector_table(f"simulated:{tmp_path / 's.json'}")
    assert (table.kind, table.model, table.size, table.most) == ("yolox", "YOLOX-S", (640, 640), 8)
    assert table.latencies.of(8) == pytest.approx(0.02)


@pytest.mark.parametrize(
    "text", ["yolox:a.onnx", "simulated:", "simulated:none.json", "hog", "", "simulated:/"]
)
def test_what_is_no_simulated_detector(text: str) -> None:
    with pytest.raises(ConfigError, match=r"write simulated:FILE\.json") as error:
        detector_table(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "hog"}, "choose of yolox, peoplenet"),
        ({"kind": None}, "choose of yolox, peoplenet"),
        ({"kind": ["yolox"]}, "choose of yolox, peoplenet"),
        ({"input_size": [640]}, "input_size must be"),
        ({"input_size": [640, 641]}, "input_size must be"),
        ({"input_size": [True, 640]}, "input_size must be"),
        ({"input_size": 640}, "input_size must be"),
        ({"input_size": [0, 640]}, "input_size must be"),
        ({"input_size": [1 << 40, 640]}, "input_size must be"),
        ({"latency_ms": {}}, "latency_ms must map"),
        ({"latency_ms": {"0": 1}}, "latency_ms must map"),
        ({"latency_ms": {"1": -1}}, "latency_ms must map"),
        ({"latency_ms": {"1": "x"}}, "latency_ms must map"),
        ({"latency_ms": [3]}, "latency_ms must map"),
        ({"latency_ms": {"100000000": 3}}, "latency_ms must map"),
        ({"precision": "bf16"}, "precision"),
    ],
)
def test_a_file_that_is_wrong_is_one_message(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps(FILE | changes))
    with pytest.raises(InputError, match=message) as error:
        detector_table(f"simulated:{tmp_path / 's.json'}")
    assert str(tmp_path / "s.json") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("missing", list(FILE))
def test_a_file_that_lacks_something_names_it(missing: str, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps({key: FILE[key] for key in FILE if key != missing}))
    with pytest.raises(InputError, match=missing):
        detector_table(f"simulated:{tmp_path / 's.json'}")


@pytest.mark.parametrize("text", ["", "[]", "{", "\0", '{"kind": NaN}'])
def test_a_file_that_is_no_object(text: str, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(EdgeAgentError) as error:
        detector_table(f"simulated:{tmp_path / 's.json'}")
    assert "\n" not in str(error.value)


# --- suppression in blocks ----------------------------------------------------------------------


def all_pairs(found: Detections, max_iou: float, max_inside: float) -> Detections:
    """The definition: best first, without those that overlap a kept one too much."""
    ranked = found.take(np.argsort(-found.scores, kind="stable")[:512])
    boxes = ranked.boxes.astype(np.float64)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    kept: list[int] = []
    for row in range(len(ranked)):
        for other in kept:
            low, high = (
                np.maximum(boxes[row, :2], boxes[other, :2]),
                np.minimum(boxes[row, 2:], boxes[other, 2:]),
            )
            shared = float(np.prod(np.maximum(high - low, 0)))
            if shared / (areas[row] + areas[other] - shared) > max_iou:
                break
            if max_inside < 1 and shared / min(areas[row], areas[other]) > max_inside:
                break
        else:
            kept.append(row)
    return ranked.take(np.asarray(kept))


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(2, 150),
    people=st.integers(1, 40),
    seed=st.integers(0, 999),
    max_iou=st.sampled_from([0.3, 0.5, 0.65, 1.0]),
    max_inside=st.sampled_from([0.7, 1.0]),
)
def test_suppression_keeps_what_all_pairs_keep(
    count: int, people: int, seed: int, max_iou: float, max_inside: float
) -> None:
    random = np.random.default_rng(seed)
    places = random.uniform(0, 500, (people, 2))[random.integers(0, people, count)]
    corner = places + random.normal(0, 4, (count, 2))
    boxes = np.concatenate((corner, corner + random.uniform(20, 90, (count, 2))), axis=1).astype(np.float32)
    found = Detections(boxes, random.uniform(0, 1, count).astype(np.float32).round(2))
    np.testing.assert_array_equal(
        suppress(found, max_iou, max_inside).boxes, all_pairs(found, max_iou, max_inside).boxes
    )
