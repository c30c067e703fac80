"""Pictures of several cameras are searched as one batch, with the results of one by one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from edge_agent.core.config import MotionSettings
from edge_agent.core.errors import EngineError
from edge_agent.core.structures import Detections, Frame
from edge_agent.detect.motion import MotionGate
from edge_agent.detect.network import NetworkDetector
from edge_agent.detect.opening import open_detector
from edge_agent.detect.search import Begin, Search, one_by_one
from tests import tiny_detectors as tiny

SIZES = ((90, 160), (160, 90), (96, 96), (300, 200), (40, 40))


def pictures(sizes: Sequence[tuple[int, int]], seed: int = 1) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(0, 255, (*size, 3), np.uint8) for size in sizes]


def same(found: Sequence[Detections], wanted: Sequence[Detections]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.scores, other.scores)


def with_free_batch(source: Path, target: Path) -> Path:
    """Export YOLOX again with a free batch axis; its three reshapes name a batch of one."""
    model = onnx.load(str(source))
    shapes = {name for node in model.graph.node if node.op_type == "Reshape" for name in node.input[1:]}
    for weight in model.graph.initializer:
        if weight.name in shapes:
            shape = numpy_helper.to_array(weight).copy()
            shape[0] = 0
            weight.CopyFrom(numpy_helper.from_array(shape, weight.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.graph.value_info[:]
    onnx.save(model, str(target))
    return target


def network(detector: object) -> NetworkDetector:
    assert isinstance(detector, NetworkDetector)
    return detector


def test_yolox_gives_each_camera_what_it_gives_it_alone(yolox_onnx, vtest_video, tmp_path) -> None:
    capture = cv2.VideoCapture(str(vtest_video))
    frames = [np.asarray(capture.read()[1]) for _ in range(7)]
    capture.release()
    frames[3] = frames[3][:, :400].copy()  # cameras have different sizes
    free = with_free_batch(yolox_onnx, tmp_path / "free.onnx")
    with open_detector(f"yolox:{yolox_onnx}") as alone:
        wanted = [alone.detect(frame) for frame in frames]
    assert sum(map(len, wanted)) > 20
    with open_detector(f"yolox:{free}", together=4) as detector:
        same(detector.begin(frames).results(), wanted)
        assert network(detector).engine.runs == 2  # four, and three
        same([detector.detect(frame) for frame in frames], wanted)


def test_a_network_of_one_picture_searches_one_by_one(yolox_onnx) -> None:
    with open_detector(f"yolox:{yolox_onnx}", together=8) as detector:
        found = detector.begin(pictures(SIZES)).results()
        assert network(detector).engine.runs == len(found) == len(SIZES)


@pytest.mark.parametrize("layout", tiny.LAYOUTS)
def test_every_layout_with_a_free_batch(layout, tmp_path) -> None:
    tables, kind = tiny.LAYOUTS[layout]
    path = tiny.write(tmp_path / "free.onnx", tables(), tiny.Form(batch="batch"))
    frames = pictures(SIZES)
    with open_detector(f"{kind}:{path}") as alone:
        wanted = [alone.detect(frame) for frame in frames]
    assert all(len(found) == 1 for found in wanted)
    with open_detector(f"{kind}:{path}", together=len(frames)) as detector:
        same(detector.begin(frames).results(), wanted)
        # Tables that decode themselves may lack the batch axis: they are not joined.
        assert network(detector).engine.runs == (len(frames) if kind == "end2end" else 1)


def test_a_network_that_mixes_its_pictures_searches_one_by_one(yolox_onnx, tmp_path) -> None:
    """Its batch axis is free as declared, but a reshape inside knows one picture only."""
    model = onnx.load(str(yolox_onnx))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(model, str(tmp_path / "mixes.onnx"))
    frames = pictures(SIZES[:2])
    with open_detector(f"yolox:{yolox_onnx}") as alone:
        wanted = [alone.detect(frame) for frame in frames]
    with open_detector(f"yolox:{tmp_path / 'mixes.onnx'}", together=2) as detector:
        same(detector.begin(frames).results(), wanted)
        assert network(detector).engine.runs == 2


def test_searches_overlap_and_keep_their_order(tmp_path) -> None:
    path = tiny.write(tmp_path / "free.onnx", tiny.yolox(), tiny.Form(batch="batch"))
    groups = [pictures(SIZES[:n], seed=n) for n in (1, 3, 2, 5, 1)]
    with open_detector(f"yolox:{path}", together=2) as detector:
        wanted = [[detector.detect(picture) for picture in group] for group in groups]
        searches = [detector.begin(group) for group in groups]
        assert searches[0].done
        for search, expected in zip(searches[::-1], wanted[::-1], strict=True):
            same(search.results(), expected)
            same(search.results(), expected)
        assert detector.begin([]).results() == []


def test_a_batch_that_fails_fails_its_own_search_only(tmp_path, monkeypatch) -> None:
    path = tiny.write(tmp_path / "free.onnx", tiny.yolox(), tiny.Form(batch="batch"))
    with open_detector(f"yolox:{path}", together=2) as detector:
        engine = network(detector).engine
        collect, calls = engine.collect, iter([True, False])

        def failing() -> np.ndarray:
            rows = collect()
            if next(calls, False):
                raise EngineError("the network failed")
            return rows

        monkeypatch.setattr(engine, "collect", failing)
        first, second = detector.begin(pictures(SIZES[:2])), detector.begin(pictures(SIZES[:1]))
        assert len(second.results()[0]) == 1
        with pytest.raises(EngineError, match="the network failed"):
            first.results()


# --- the motion gate over searches that take time ----------------------------------------------


def late(detect: Begin) -> Begin:
    """A search whose end nobody knows before it is asked for."""
    return lambda frames: Search(lambda: detect(frames).results())


def scene(camera: int, number: int, steps: Sequence[int]) -> np.ndarray:
    """A room in which something moves in the frames with an odd step."""
    picture = np.full((120, 160, 3), 90 + camera, np.uint8)
    at = sum(steps[: number + 1]) % 6 if steps[number] % 2 else 0
    picture[30:110, 10 + 20 * at : 40 + 20 * at] = 210
    return picture


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(st.integers(0, 5), min_size=5, max_size=40),
    people=st.lists(st.integers(0, 2), min_size=1, max_size=7),
    lag=st.integers(0, 3),
    group=st.integers(1, 4),
)
def test_the_gate_decides_as_if_every_search_ended_at_once(
    steps: list[int], people: list[int], lag: int, group: int
) -> None:
    def detect(frame: Frame) -> Detections:
        count = people[frame.number % len(people)]
        boxes = np.tile(np.asarray([[10, 30, 40, 110]], np.float32), (count, 1))
        return Detections(boxes, np.full(count, 0.9, np.float32))

    frames = [
        Frame(f"cam{camera}", number, number / 3, scene(camera, number, steps))
        for number in range(len(steps))
        for camera in range(3)
    ]
    pace, gated = MotionSettings(hold_s=0.7, refresh_s=0.7, look_s=2.0), frozenset({"cam0", "cam1"})
    plain = MotionGate(one_by_one(detect), gated, pace, (16, 48))
    wanted = [plain.begin([frame]).results()[0] for frame in frames]
    gate = MotionGate(late(one_by_one(detect)), gated, pace, (16, 48))
    given_: list[Detections] = []
    running: list[Search] = []
    for start in range(0, len(frames), group):
        running.append(gate.begin(frames[start : start + group]))
        while len(running) > lag:
            given_ += running.pop(0).results()
    for search in running:
        given_ += search.results()
    same(given_, wanted)
    assert gate.still == plain.still
