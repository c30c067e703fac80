"""Kinds of networks: decoding, recognition, and refusal of those that only resemble each other."""

from __future__ import annotations

import resource
from contextlib import ExitStack
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edge_agent.core.config import Settings
from edge_agent.core.detectors import FORMS, NETWORKS, parse_detector
from edge_agent.core.errors import ConfigError, EngineError, ModelError
from edge_agent.core.structures import Detections, iou_matrix
from edge_agent.detect.fit import Fit, Place
from edge_agent.detect.kinds import KINDS
from edge_agent.detect.kinds.seen import Seen, Unlike
from edge_agent.detect.network import NetworkDetector
from edge_agent.detect.opening import open_detection, open_detector
from edge_agent.detect.recognition import recognise, start_up_pictures
from tests import tiny_detectors as tiny
from tests.conftest import REPO
from tests.detect import conversions
from tests.tiny_detectors import Form

BOX = [38, 15, 58, 65]
"""The person of the tiny networks, as xyxy."""


def found(spec: str, image: np.ndarray | None = None, **options: object) -> Detections:
    picture = np.zeros((tiny.SIZE, tiny.SIZE, 3), np.uint8) if image is None else image
    with open_detector(spec, **options) as detector:
        return detector.detect(picture)


def refusal(spec: str, **options: object) -> str:
    with pytest.raises(ModelError) as caught:
        open_detector(spec, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- names --------------------------------------------------------------------------------------


def test_a_detector_as_written():
    assert parse_detector("yolov8:a:b.onnx").file == Path("a:b.onnx")
    assert parse_detector("dir/net.onnx").kind == ""
    assert parse_detector("hog:1.5").factor == 1.5
    for text in ("yolov9:x.onnx", "yolov8", "net.engine", "", "external:1"):
        with pytest.raises(ValueError, match=r"hog:FACTOR"):
            parse_detector(text)


def test_settings_know_the_same_kinds():
    with pytest.raises(ValueError, match="yolov8"):
        Settings(detector={"kind": "ssd:net.onnx"})
    with pytest.raises(ValueError, match="yolov8"):
        Settings(sources=[{"url": "a.avi", "detector": "ssd"}])


def test_documents_list_every_kind():
    page = (REPO / "docs" / "models.md").read_text()
    for kind in NETWORKS:
        assert f"`{kind}:FILE.onnx`" in page
    assert FORMS in (REPO / "docs" / "configuration.md").read_text()


# --- decoding and recognition -------------------------------------------------------------------


@pytest.mark.parametrize("layout", tiny.LAYOUTS)
@pytest.mark.parametrize("named", [True, False])
def test_every_layout_is_read(tmp_path, layout, named):
    tables, kind = tiny.LAYOUTS[layout]
    path = tiny.write(tmp_path / "net.onnx", tables())
    spec = f"{kind}:{path}" if named else str(path)
    if not named and kind == "end2end":  # may be a YOLOX inside: the person is found either way
        assert "end2end" in refusal(spec)
        return
    people = found(spec)
    np.testing.assert_allclose(people.boxes, [BOX], atol=0.01)
    np.testing.assert_allclose(people.scores, [0.81], atol=0.001)


@pytest.mark.parametrize("kind", tiny.SAME_LAYOUTS)
def test_kinds_that_differ_in_preprocessing_alone(tmp_path, kind):
    tables, _ = tiny.LAYOUTS[tiny.SAME_LAYOUTS[kind]]
    people = found(f"{kind}:{tiny.write(tmp_path / 'net.onnx', tables())}")
    np.testing.assert_allclose(people.boxes, [BOX], atol=0.01)


@pytest.mark.parametrize("layout", tiny.LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_networks_of_another_kind_are_refused_and_named(tmp_path, layout, kind):
    tables, own = tiny.LAYOUTS[layout]
    if kind == own or (own == "end2end" and kind == "yolox-end2end"):
        return
    path = tiny.write(tmp_path / "net.onnx", tables())
    message = refusal(f"{kind}:{path}")
    assert message.startswith(f"{path} is not of kind {kind}: ")
    assert f"write {own}:{path}" in message


@pytest.mark.parametrize("layout", ["yolox", "yolov8", "yolov5", "deepstream", "efficient-nms", "peoplenet"])
@pytest.mark.parametrize(
    "form",
    [
        Form(batch="batch"),
        Form(batch=4),
        Form(takes=TensorProto.FLOAT16, gives=TensorProto.FLOAT16, shift=1e-4),
        Form(takes=TensorProto.UINT8),
        Form(channels_last=True),
        Form(size="side"),
    ],
    ids=["free batch", "batch of 4", "half", "uint8", "channels last", "free size"],
)
def test_inputs_and_outputs_of_all_forms(tmp_path, layout, form):
    tables, kind = tiny.LAYOUTS[layout]
    values = tables()
    if form.batch == 4:
        values = {name: np.repeat(table, 4, axis=0) for name, table in values.items()}
    path = tiny.write(tmp_path / "net.onnx", values, form)
    options = {"input_size": (tiny.SIZE, tiny.SIZE)} if form.size == "side" else {}
    people = found(f"{kind}:{path}", **options)
    np.testing.assert_allclose(people.boxes, [BOX], atol=0.1)
    np.testing.assert_allclose(people.scores, [0.81], atol=0.01)


def test_size_of_a_dynamic_input(tmp_path):
    exported = Form(size="side", metadata={"imgsz": f"[{tiny.SIZE}, {tiny.SIZE}]"})
    path = tiny.write(tmp_path / "net.onnx", tiny.yolov8(), exported)
    assert len(found(f"yolov8:{path}")) == 1
    without = tiny.write(tmp_path / "other.onnx", tiny.yolov8(), Form(size="side"))
    assert "8400" in refusal(f"yolov8:{without}")  # 640 x 640 is the kind's
    fixed = tiny.write(tmp_path / "fixed.onnx", tiny.yolov8())
    assert "detector.input_size" in refusal(f"yolov8:{fixed}", input_size=(640, 640))


def test_a_size_without_a_network():
    settings = Settings(detector={"kind": "hog", "input_size": (640, 640)})
    with ExitStack() as stack, pytest.raises(ConfigError, match="no detector runs a network"):
        open_detection(settings, stack, cameras={"a": None})


@pytest.mark.parametrize("layout", ["yolox", "yolov8", "yolov5", "end2end", "parts", "peoplenet"])
def test_people_are_found_by_the_name_of_their_class(tmp_path, layout):
    tables, kind = tiny.LAYOUTS[layout]
    count = 3 if kind == "peoplenet" else 4
    names = {number: f"thing {number}" for number in range(count)} | {2: "Person"}
    form = Form(metadata={"names": str(names), "task": "detect"})
    path = tiny.write(tmp_path / "net.onnx", tables(person=2), form)
    np.testing.assert_allclose(found(f"{kind}:{path}").boxes, [BOX], atol=0.01)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (
            {"names": "{0: 'car', 1: 'bus', 2: 'dog', 3: 'cat'}"},
            "none of its classes is a person: 'car', 'bus'",
        ),
        ({"names": "['person', 'bag']"}, "name 2 classes, its output has 4"),
        ({"task": "pose"}, "its metadata call its task 'pose'"),
    ],
)
def test_metadata_that_do_not_fit(tmp_path, metadata, words):
    path = tiny.write(tmp_path / "net.onnx", tiny.yolov8(), Form(metadata=metadata))
    assert words in refusal(f"yolov8:{path}")


@pytest.mark.parametrize(
    "names", ["(" * 5000, "[1, 2", "__import__('os')", "{0: 'a', 5: 'b'}", "7", "x" * 200_000]
)
def test_metadata_that_mean_nothing_are_ignored(tmp_path, names):
    form = Form(metadata={"names": names, "imgsz": names})
    path = tiny.write(tmp_path / "net.onnx", tiny.yolov8(), form)
    assert len(found(f"yolov8:{path}")) == 1


# --- look-alikes --------------------------------------------------------------------------------


def changed(tables: tiny.Tables, columns: object, value: object) -> tiny.Tables:
    (name,) = tables
    tables[name][..., columns] = value
    return tables


def constant_objectness() -> tiny.Tables:
    return changed(tiny.yolox(), 4, 0.3)


def logits() -> tiny.Tables:
    tables = tiny.yolov8()
    tables["output0"][:, 4:] = tables["output0"][:, 4:] * 100 - 5
    return tables


def shares() -> tiny.Tables:
    tables = tiny.yolov8()
    tables["output0"][:, :4] /= tiny.SIZE
    return tables


def keypoints() -> tiny.Tables:
    tables = tiny.yolov8(classes=52)
    tables["output0"][:, 5:] = np.random.default_rng(1).uniform(0, tiny.SIZE, (1, 51, tiny.CELLS))
    return tables


def label_first() -> tiny.Tables:
    tables = tiny.end2end()
    tables["output0"] = tables["output0"][..., [0, 1, 2, 3, 5, 4]].copy()
    return tables


def corners() -> tiny.Tables:
    tables = tiny.yolov8(transposed=True)
    boxes = tables["output0"][0, :, :4]
    boxes[:, :2], boxes[:, 2:] = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    return tables


def sizes_for_corners() -> tiny.Tables:
    tables = tiny.end2end()
    tables["output0"][0, 5, :4] = tiny.PERSON[0], tiny.PERSON[1], 20, 30
    return tables


def four_classes() -> tiny.Tables:
    return tiny.peoplenet(classes=4, person=2)


@pytest.mark.parametrize(
    ("kind", "tables", "words"),
    [
        ("yolox", constant_objectness, "has the value 0.3 everywhere"),
        ("yolox", tiny.yolov6, "as in YOLOv6"),
        ("yolox", lambda: changed(tiny.yolox(), 6, 1.5), "a class column (5 or later) has values from"),
        ("yolox", lambda: changed(tiny.yolox(), 4, -3), "from -3 to -3"),
        ("yolox", lambda: changed(tiny.yolox(classes=1), 5, 0), "labels, not probabilities"),
        ("yolov8", corners, "corners x1, y1, x2, y2, not centre and size"),
        ("yolov8", logits, "a class score (4 or later) has values"),
        ("yolov8", shares, "not in pixels"),
        ("yolov8", keypoints, "a class score (4 or later) has values"),
        ("yolov8", tiny.yolov6, "an objectness comes before them"),
        ("yolov5", lambda: changed(tiny.yolov5(), slice(0, 4), 0.5), "not in pixels"),
        ("end2end", label_first, "label before the score"),
        ("end2end", lambda: changed(tiny.end2end(), 5, 0.5), "whole numbers"),
        ("end2end", lambda: changed(tiny.end2end(), 4, 1.25), "from 1.25 to 1.25"),
        ("end2end", lambda: changed(tiny.end2end(), slice(0, 4), 0.5), "shares of the picture"),
        ("end2end", sizes_for_corners, "not x1, y1, x2, y2"),
        ("peoplenet", four_classes, "it has 4 classes"),
    ],
)
def test_values_that_no_network_of_the_kind_has(tmp_path, kind, tables, words):
    form = Form(shift=0.0) if kind == "end2end" else Form()
    path = tiny.write(tmp_path / "net.onnx", tables(), form)
    assert words in refusal(f"{kind}:{path}")


@pytest.mark.parametrize("layout", ["yolox", "yolov8", "yolov5", "peoplenet", "end2end", "parts"])
def test_a_network_that_does_not_look_at_the_picture(tmp_path, layout):
    tables, kind = tiny.LAYOUTS[layout]
    path = tiny.write(tmp_path / "net.onnx", tables(), Form(shift=0.0))
    assert "the same for every picture" in refusal(f"{kind}:{path}")


@pytest.mark.parametrize("layout", ["yolox", "yolov8", "yolov5", "end2end"])
def test_people_as_another_class_than_the_first(tmp_path, layout):
    """The picture at the start shows people; another class is found there, and the file has no names."""
    tables, kind = tiny.LAYOUTS[layout]
    path = tiny.write(tmp_path / "net.onnx", tables(person=1))
    message = refusal(f"{kind}:{path}")
    assert "finds class 1 in a picture of people, and not class 0" in message
    assert "1: 'person'" in message


def test_the_seven_columns_of_yolov7(tmp_path):
    table = tiny.end2end()["output0"]
    seven = np.concatenate([np.zeros((1, 50, 1)), table[..., :4], table[..., 5:], table[..., 4:5]], axis=2)
    path = tiny.write(tmp_path / "net.onnx", {"output": seven[0].astype(np.float32)})
    np.testing.assert_allclose(found(f"end2end:{path}").boxes, [BOX], atol=0.01)


def test_a_plugin_of_tensorrt(tmp_path):
    path = tiny.write(tmp_path / "net.onnx", tiny.end2end())
    model = onnx.load(path)
    model.graph.node.append(helper.make_node("EfficientNMS_TRT", ["output0"], ["num_dets"], domain="TRT"))
    onnx.save(model, path)
    assert "the operator 'EfficientNMS_TRT', which exists in TensorRT only" in refusal(f"end2end:{path}")


def test_a_prepared_network_is_not_prepared_again(tmp_path):
    path = tiny.write(tmp_path / "net.onnx", tiny.yolov8())
    again = tmp_path / "again.onnx"
    again.write_bytes(recognise(path, "yolov8").prepared.onnx)
    assert "already prepared" in refusal(f"yolov8:{again}")


def test_scores_that_rise_above_one_later(tmp_path):
    """2 - 0.015 * light is a probability in the start-up pictures, and 2 in the dark."""
    tables = tiny.yolov8(transposed=True)
    tables["output0"][0, 5, 4] = 2.0
    path = tiny.write(tmp_path / "net.onnx", tables, Form(shift=0.0))
    model = onnx.load(path)
    shift = np.zeros_like(tables["output0"])
    shift[0, 5, 4] = -0.015 * 255
    next(w for w in model.graph.initializer if w.name == "shift0").CopyFrom(
        numpy_helper.from_array(shift, "shift0")
    )
    onnx.save(model, path)
    with open_detector(f"yolov8:{path}") as detector:
        bright = detector.detect(np.full((tiny.SIZE, tiny.SIZE, 3), 100, np.uint8))
        assert bright.scores[0] == pytest.approx(0.5, abs=0.001)
        with pytest.raises(EngineError, match=r"gave a score of 2, which no yolov8 network does"):
            detector.detect(np.zeros((tiny.SIZE, tiny.SIZE, 3), np.uint8))


# --- limits -------------------------------------------------------------------------------------


def test_absurd_numbers_of_rows_are_refused_before_they_take_memory(tmp_path):
    path = tiny.write(
        tmp_path / "net.onnx", tiny.yolox(), Form(declared={"output": [1, 1_000_000_000, 9]}, shift=0.0)
    )
    assert "output 'output' has 9e+09 values for a picture" in refusal(f"yolox:{path}")


@pytest.mark.parametrize("rows", [10**9, 10**7])
def test_rows_that_the_nodes_would_make_are_refused_before_they_take_memory(tmp_path, rows):
    """The file has a few hundred bytes; its declared shape is free."""
    picture = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 96, 96])
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("ReduceMean", ["mean"], ["one"], axes=[1], keepdims=1),
        helper.make_node("Expand", ["one", "shape"], ["output"]),
    ]
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", "rows", "columns"])
    shape = numpy_helper.from_array(np.asarray([1, rows, 85]), "shape")
    graph = helper.make_graph(nodes, "bomb", [picture], [output], [shape])
    path = tmp_path / "bomb.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "values for a picture" in refusal(f"yolox:{path}")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


@pytest.mark.parametrize(
    "form", [Form(size=100_000), Form(size=8), Form(batch=100_000), Form(size=4096, batch=3)]
)
def test_absurd_inputs_are_refused(tmp_path, form):
    path = tiny.write(tmp_path / "net.onnx", tiny.yolox(), form)
    assert "input 'images' is [" in refusal(f"yolox:{path}")


# --- any output ---------------------------------------------------------------------------------

NUMBERS = st.sampled_from([0.0, 1.0, 0.5, 0.2, 1e-7, -1.0, 3.0, 79.0, 1e30, np.nan, np.inf, -np.inf])


class Rows:
    """An engine whose rows are given."""

    input_size = (tiny.SIZE, tiny.SIZE)

    def __init__(self, rows: np.ndarray) -> None:
        self._rows = rows
        self._buffer = np.zeros((1, tiny.SIZE, tiny.SIZE, 3), np.uint8)
        self.info = type("Info", (), {"model": "any"})

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def buffer(self) -> np.ndarray:
        return self._buffer

    def submit(self, count: int) -> None:
        assert count == 1

    def collect(self) -> np.ndarray:
        return self._rows[None]


def any_table(data: st.DataObject, rows: int, columns: int) -> np.ndarray:
    table = np.random.default_rng(data.draw(st.integers(0, 99))).uniform(0, 1, (rows, columns))
    for _ in range(data.draw(st.integers(0, 4)) if rows else 0):
        column = data.draw(st.integers(0, columns - 1))
        which = data.draw(st.sampled_from(["all", "one"]))
        table[slice(None) if which == "all" else data.draw(st.integers(0, rows - 1)), column] = data.draw(
            NUMBERS
        )
    return table.astype(np.float32)


@given(st.data(), st.sampled_from(sorted(tiny.LAYOUTS)))
def test_any_rows_give_sound_boxes_or_one_error(data, layout):
    tables, kind = tiny.LAYOUTS[layout]
    values = {name: (table[0], table[0] + np.float32(1e-6)) for name, table in tables().items()}
    if kind == "end2end":
        values = {name: (table[0], np.round(table[0], 4)) for name, table in tables().items()}
    decoder = KINDS[kind].read(Seen((tiny.SIZE, tiny.SIZE), values))
    columns = {"yolov8": 5, "peoplenet": 5}.get(kind, 6)
    count = data.draw(st.sampled_from([36 if kind == "peoplenet" else tiny.CELLS, 0, 1, 1000]))
    rows = any_table(data, count, columns)
    try:
        with NetworkDetector(KINDS[kind], decoder, Rows(rows)) as detector:
            people = detector.detect(np.zeros((50, 70, 3), np.uint8))
    except EngineError:
        return
    assert np.isfinite(people.boxes).all()
    assert (people.scores <= 1).all()
    assert (people.scores >= detector.levels.low).all()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["output", "boxes", "scores", "classes", "num_dets", "output_cov", "output_bbox"]
            ),
            st.lists(st.sampled_from([0, 1, 2, 4, 6, 9, 12, 36, tiny.CELLS, 3 * tiny.CELLS]), max_size=4),
        ),
        min_size=1,
        max_size=4,
        unique_by=lambda pair: pair[0],
    ),
    NUMBERS,
    st.booleans(),
    st.sampled_from([None, ("person",), ("person", "bag", "face"), ("car", "Person")]),
    st.booleans(),
)
def test_outputs_of_any_shape_are_unlike_or_read(outputs, number, noise, names, grows):
    values = {}
    for name, shape in outputs:
        if np.prod(shape, dtype=float) > 1e6:
            return
        table = np.full(shape, number, np.float32)
        if noise:
            table = table + np.random.default_rng(0).uniform(0, 0.1, shape).astype(np.float32)
        other = np.concatenate([table, table]) if grows and table.ndim else table
        values[name] = (table, other * np.float32(0.99))
    for kind in KINDS.values():
        try:
            decoder = kind.read(Seen((tiny.SIZE, tiny.SIZE), values, names))
        except Unlike:
            continue
        assert 0 <= decoder.response.best <= 1.001


# --- place of a picture in the input ------------------------------------------------------------


@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.sampled_from(list(Fit)),
    st.sampled_from([(416, 416), (544, 960)]),
)
def test_a_picture_fits_and_its_corners_come_back(height, width, fit, size):
    place = Place.of((height, width), size, fit)
    assert 0 <= place.top <= place.top + place.height <= size[0]
    assert 0 <= place.left <= place.left + place.width <= size[1]
    inner = [place.left, place.top, place.left + place.width, place.top + place.height]
    back = place.in_picture(np.asarray([inner], np.float32))[0]
    slack = [1.01 / place.scale_x + 1e-3 * width, 1.01 / place.scale_y + 1e-3 * height] * 2
    assert (np.abs(back - [0, 0, width, height]) <= slack).all()


def test_start_up_pictures_have_the_size_of_the_input():
    for size in ((416, 416), (544, 960), (32, 4096)):
        assert [picture.shape for picture in start_up_pictures(size)] == [(*size, 3)] * 2


# --- the real network in every layout -----------------------------------------------------------


def frames(video: Path, step: int, count: int) -> list[np.ndarray]:
    capture = cv2.VideoCapture(str(video))
    pictures = []
    while len(pictures) < count:
        for _ in range(step):
            capture.grab()
        pictures.append(capture.retrieve()[1])
    capture.release()
    return pictures


def matched(people: Detections, others: Detections, least: float) -> float:
    """Share of clearly seen people that the others have, too."""
    clear = people.take(people.scores > 0.5)
    return float((iou_matrix(clear.boxes, others.boxes).max(axis=1, initial=0) >= least).mean())


@pytest.fixture(scope="module")
def found_by_yolox(yolox_onnx, vtest_video) -> list[tuple[np.ndarray, Detections]]:
    """Pictures, and the people whom the network finds in its own layout."""
    with open_detector(f"yolox:{yolox_onnx}") as reference:
        return [(one, reference.detect(one)) for one in frames(vtest_video, 90, 4)]


@pytest.mark.parametrize("layout", [name for name, (_, kind) in conversions.LAYOUTS.items() if kind])
def test_the_real_network_finds_the_same_people_in_every_layout(tmp_path, yolox_onnx, found_by_yolox, layout):
    """Not the same boxes: YOLOX puts the picture into the corner, the others into the centre.

    PeopleNet's grid has one box for 16 x 16 pixels, and the aspect is not kept.
    """
    kind = conversions.LAYOUTS[layout][1]
    path = conversions.write(yolox_onnx, layout, tmp_path / "net.onnx")
    with open_detector(str(path)) as detector:
        assert detector.name.startswith(f"{kind}:")
        shares = [matched(people, detector.detect(picture), 0.6) for picture, people in found_by_yolox]
    assert np.mean(shares) > (0.75 if kind == "peoplenet" else 0.95)


@pytest.mark.parametrize(
    ("layout", "spec", "words"),
    [
        ("yolov8", "yolov8:", "finds people only in pictures of 0..255 BGR, kind yolov8 gives it 0..1 RGB"),
        ("yolov8-transposed", "yolox:", "there is no objectness; it looks like yolov8"),
        ("yolov6", "yolox:", "as in YOLOv6"),
        ("deepstream", "yolox:", "a probability is 0 to 1; it looks like yolox-end2end"),
        ("deepstream", "end2end:", "write yolox-end2end:"),
        ("yolox", "yolov8:", "it looks like yolox"),
    ],
)
def test_the_real_network_with_the_pixels_of_another_kind(tmp_path, yolox_onnx, layout, spec, words):
    path = conversions.write(yolox_onnx, layout, tmp_path / "net.onnx", raw=True)
    assert words in refusal(f"{spec}{path}")


def test_a_yolox_with_its_end_inside_is_recognised(tmp_path, yolox_onnx):
    path = conversions.write(yolox_onnx, "deepstream", tmp_path / "net.onnx", raw=True)
    assert open_detector(str(path)).name == "yolox-end2end:net"


@pytest.mark.slow
@pytest.mark.parametrize("layout", [name for name, (_, kind) in conversions.LAYOUTS.items() if kind])
@pytest.mark.parametrize("kind", KINDS)
def test_the_real_network_is_refused_as_every_other_kind(tmp_path, yolox_onnx, layout, kind):
    own = conversions.LAYOUTS[layout][1]
    path = conversions.write(yolox_onnx, layout, tmp_path / "net.onnx", names=layout != "peoplenet")
    if kind == own:
        assert open_detector(f"{kind}:{path}").name == f"{kind}:net"
    else:
        assert f"write {own}:{path}" in refusal(f"{kind}:{path}")


def test_an_external_detector_is_not_opened_here():
    with pytest.raises(ConfigError, match="from a broker"):
        open_detector("external")
