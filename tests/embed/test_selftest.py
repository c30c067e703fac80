"""The self-test: networks that do not look at the picture, and files that declare what they do not give."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from edge_agent.cli import app
from edge_agent.core.config import EngineSettings, QualitySettings
from edge_agent.core.errors import EdgeAgentError, EngineError, ModelError
from edge_agent.embed.opening import open_embedder
from edge_agent.engine import golden
from edge_agent.engine.graph.prepare import prepare_reid
from edge_agent.engine.graph.prepared import PROFILES
from edge_agent.gallery.archive import read_archive
from edge_agent.offline.evaluate.embedding import Network
from tests import tiny_networks

IMAGENET = PROFILES["imagenet"]


def number(name: str, value: object, kind: type = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value, kind), name)


def network(
    path: Path,
    nodes: list[onnx.NodeProto],
    weights: list[onnx.TensorProto] | None = None,
    *,
    declared: tuple[object, ...] | None = ("n", 16),
    kind: int = TensorProto.FLOAT,
    takes: tuple[object, ...] = ("n", 3, 256, 128),
    opset: int = 13,
    outputs: tuple[str, ...] = ("y",),
) -> Path:
    """Write a network whose body gives `mixed` `[n, 16]`, followed by `nodes` that give `y`."""
    stem = (np.random.default_rng(0).standard_normal((16, 3, 8, 8)) * 0.1).astype(np.float32)
    body = [
        helper.make_node("Conv", ["x", "stem"], ["c"], strides=[8, 8]),
        helper.make_node("Relu", ["c"], ["maps"]),
        helper.make_node("GlobalAveragePool", ["maps"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["mixed"]),
    ]
    graph = helper.make_graph(
        [*body, *nodes],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, takes)],
        [helper.make_tensor_value_info(name, kind, declared) for name in outputs],
        [numpy_helper.from_array(stem, "stem"), *(weights or [])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def node(kind: str, *inputs: str, output: str = "y", **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, list(inputs), [output], **attributes)


def opened(path: Path, state: Path, preprocess: str = "imagenet", **options: object):
    chosen = EngineSettings(model=path, preprocess=preprocess, backend="onnxruntime", **options)
    return open_embedder(chosen, QualitySettings(), state, max_batch=8)


# --- networks that do not look at the picture -----------------------------------------------------

BLIND = {
    "dead weights": lambda p: network(
        p, [node("Mul", "mixed", "zero", output="z"), node("Add", "z", "one")],
        [number("zero", 0), number("one", np.ones(16))],
    ),
    "nearly constant": lambda p: network(p, [node("Add", "mixed", "bias")], [number("bias", 30)]),
    "saturated": lambda p: network(
        p, [node("Mul", "mixed", "much", output="m"), node("Add", "m", "one", output="b"), node("Tanh", "b")],
        [number("much", 1e4), number("one", 1.0)],
    ),
    "saturated sigmoid": lambda p: network(
        p, [node("Add", "mixed", "bias", output="b"), node("Sigmoid", "b")], [number("bias", 12)]
    ),
    "a constant": lambda p: network(
        p, [node("Shape", "mixed", output="s"), node("ConstantOfShape", "s", value=number("v", [3.0]))]
    ),
    "the norm only": lambda p: network(
        p, [node("ReduceL2", "mixed", output="l", axes=[1]), node("Mul", "l", "one")],
        [number("one", np.ones(16))],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BLIND)
def test_networks_that_do_not_look_are_refused(tmp_path: Path, kind: str) -> None:
    path = BLIND[kind](tmp_path / "net.onnx")
    with pytest.raises(ModelError, match=r"gives nearly the same embedding for very different pictures"):
        opened(path, tmp_path).__enter__()


def test_zero_vectors_are_refused(tmp_path: Path) -> None:
    path = network(tmp_path / "net.onnx", [node("Mul", "mixed", "zero")], [number("zero", 0)])
    with pytest.raises(ModelError, match="NaN, infinite or empty embeddings"):
        opened(path, tmp_path).__enter__()


@pytest.mark.parametrize("level", [np.nan, np.inf, 1e38])
def test_embeddings_that_are_not_finite_are_refused(tmp_path: Path, level: float) -> None:
    times = [node("Mul", "mixed", "much", output="m"), node("Mul", "m", "much")]
    path = network(tmp_path / "net.onnx", times, [number("much", level)])
    finite, other = "NaN, infinite or empty embeddings", "holds NaN or infinity in the weight 'much'"
    message = finite if np.isfinite(level) else other
    with pytest.raises(ModelError, match=message):
        opened(path, tmp_path).__enter__()


def test_active_dropout_is_refused(tmp_path: Path) -> None:
    weights = [number("share", 0.1), number("on", True, np.bool_)]
    path = network(tmp_path / "net.onnx", [node("Dropout", "mixed", "share", "on")], weights)
    with pytest.raises(ModelError, match=r"another embedding for the same crop each time.*model\.eval"):
        opened(path, tmp_path).__enter__()


def test_noise_is_refused_though_the_reference_is_known(tmp_path: Path) -> None:
    noise = [node("RandomNormalLike", "mixed", output="r", scale=0.1), node("Add", "mixed", "r")]
    path = network(tmp_path / "net.onnx", noise)
    prepared = prepare_reid(path, IMAGENET)
    rows = [" ".join(str(int(row == column)) for column in range(16)) for row in range(4)]
    known = {"version": 1, "space": prepared.space, "decimals": 0, "vectors": rows}
    (tmp_path / "golden").mkdir()
    (tmp_path / "golden" / f"{prepared.space}.json").write_text(json.dumps(known))
    with pytest.raises(ModelError, match="self-test: net gives another embedding for the same crop each"):
        opened(path, tmp_path).__enter__()


def test_a_network_that_looks_at_the_place_in_the_batch_is_refused(tmp_path: Path) -> None:
    steps = [
        node("Shape", "mixed", output="s"),
        node("ConstantOfShape", "s", output="ones", value=number("v", [1.0])),
        node("CumSum", "ones", "axis", output="place"),
        node("Add", "mixed", "place"),
    ]
    path = network(tmp_path / "net.onnx", steps, [number("axis", 0, np.int64)], opset=14)
    with pytest.raises(ModelError, match="depend on the place of a crop in its batch"):
        opened(path, tmp_path).__enter__()


def test_statistics_of_the_batch_are_refused(tmp_path: Path) -> None:
    """Batch normalisation that was exported in training mode."""
    steps = [
        node("ReduceMean", "mixed", output="mean", axes=[0]),
        node("Sub", "mixed", "mean", output="centred"),
        node("Mul", "centred", "centred", output="squares"),
        node("ReduceMean", "squares", output="variance", axes=[0]),
        node("Add", "variance", "epsilon", output="safe"),
        node("Sqrt", "safe", output="deviation"),
        node("Div", "centred", "deviation"),
    ]
    path = network(tmp_path / "net.onnx", steps, [number("epsilon", 1e-5)])
    with pytest.raises(ModelError, match=r"statistics of the batch: export it again in evaluation mode"):
        opened(path, tmp_path).__enter__()


def test_a_wrong_scale_of_a_real_network_is_seen(osnet_onnx: Path, tmp_path: Path) -> None:
    """OSNet with its input divided by 255 once more: cosines .995 to 1."""
    model = onnx.load(osnet_onnx)
    source = model.graph.input[0].name
    for step in model.graph.node:
        step.input[:] = ["scaled" if name == source else name for name in step.input]
    model.graph.node.insert(0, helper.make_node("Mul", [source, "again"], ["scaled"]))
    model.graph.initializer.append(number("again", 1 / 255))
    onnx.save(model, tmp_path / "net.onnx")
    stage = opened(tmp_path / "net.onnx", tmp_path)
    with structlog.testing.capture_logs() as logs, contextlib.suppress(ModelError), stage:
        assert "embeddings_alike" in [line["event"] for line in logs]


@pytest.mark.parametrize("case", [("osnet_onnx", "imagenet"), ("omz_onnx", "openvino-raw")])
def test_real_networks_pass_without_a_warning(request, tmp_path: Path, case: tuple[str, str]) -> None:
    with structlog.testing.capture_logs() as logs:
        prepared = prepare_reid(request.getfixturevalue(case[0]), PROFILES[case[1]])
        golden.make(prepared)
    assert not logs


def test_pictures_of_one_colour_are_tried(tmp_path: Path) -> None:
    path = tiny_networks.undefined_for_dark(tmp_path / "nan.onnx")
    with structlog.testing.capture_logs() as logs, opened(path, tmp_path, "openvino-raw"):
        pass
    assert "undefined_for_plain_pictures" in [line["event"] for line in logs]


# --- declared and given ---------------------------------------------------------------------------

WIDE = [node("AveragePool", "maps", output="p", kernel_shape=[8, 16], strides=[8, 16]), node("Flatten", "p")]
DECLARED_WRONG = {
    "wide": (WIDE, ("n", 128), 64),
    "rank": ([node("GlobalAveragePool", "maps")], ("n", 16), 16),
    "rank, declared so": ([node("GlobalAveragePool", "maps")], ("n", 16, 1, 1), 16),
    "an axis in the middle": ([node("Unsqueeze", "mixed", "one")], ("n", 16), 16),
    "an axis at the end": ([node("Unsqueeze", "mixed", "two")], ("n", 8), 16),
    "batch of 1 declared": ([node("Identity", "mixed")], (1, 16), 16),
    "batch of 4 declared": ([node("Identity", "mixed")], (4, 16), 16),
    "transposed declaration": ([node("Identity", "mixed")], (16, "n"), 16),
    "too many axes declared": ([node("Identity", "mixed")], ("n", 16, 8, 4), 16),
    "too few axes declared": ([node("Identity", "mixed")], ("n",), 16),
    "scalar declared": ([node("Identity", "mixed")], (), 16),
    "2^62 declared": ([node("Identity", "mixed")], ("n", 1 << 62), 16),
}
AXES = [number("one", [1], np.int64), number("two", [2], np.int64)]


@pytest.mark.parametrize("case", DECLARED_WRONG)
def test_the_true_size_counts(tmp_path: Path, case: str) -> None:
    nodes, declared, true = DECLARED_WRONG[case]
    path = network(tmp_path / "net.onnx", nodes, AXES, declared=declared)
    with structlog.testing.capture_logs() as logs, opened(path, tmp_path) as stage:
        rows = stage.embed_images([np.full((200, 100, 3), level, np.uint8) for level in (10, 200)])
        assert rows.shape == (2, true)
        assert stage.info.dimension == true
    wrong = [line for line in logs if line["event"] == "output_declared_wrong"]
    assert bool(wrong) == (case != "rank, declared so")
    honest = network(tmp_path / "honest.onnx", nodes, AXES, declared=None)
    assert prepare_reid(honest, IMAGENET).dimension == true


def test_a_wrong_size_that_only_a_run_shows_is_refused(tmp_path: Path) -> None:
    """Before opset 13, shapes that are computed cannot be inferred."""
    shape = [node("Shape", "mixed", output="s"), node("Reshape", "mixed", "s")]
    right = prepare_reid(network(tmp_path / "right.onnx", shape, opset=11), IMAGENET)
    assert right.dimension == 16
    wrong = network(tmp_path / "wrong.onnx", shape, declared=("n", 128), opset=11)
    with pytest.raises(ModelError, match=r"gives \[8, 16\] for 8 pictures, expected \[8, 128\]"):
        opened(wrong, tmp_path)
    open_ = network(tmp_path / "open.onnx", shape, declared=("n", None), opset=11)
    assert prepare_reid(open_, IMAGENET).dimension == 16


NOT_A_VECTOR = {
    "maps": ([node("Identity", "maps")], ("n", 16), r"gives \[2, 16, 32, 16\].*before its pooling layer"),
    "sum": ([node("ReduceSum", "mixed")], ("n", 16), r"gives \[1, 1\].*first axis is not the batch"),
    "scalar": ([node("ReduceSum", "mixed", keepdims=0)], ("n", 16), r"gives \[\].*expected one vector"),
    "one number": ([node("ReduceSum", "mixed", "one")], ("n", 16), r"gives \[2, 1\].*expected one vector"),
    "transposed": ([node("Transpose", "mixed", perm=[1, 0])], ("n", 16), "first axis is not the batch"),
    "batch of 1 inside": ([node("Reshape", "mixed", "flat")], ("n", 16), r"gives \[1, 32\].*dynamic batch"),
    "a row for each number": ([node("Reshape", "mixed", "rows")], ("n", 16), "first axis is not the batch"),
}
SHAPES = [*AXES, number("flat", [1, -1], np.int64), number("rows", [-1, 1], np.int64)]


@pytest.mark.parametrize("case", NOT_A_VECTOR)
def test_what_is_no_vector_is_refused(tmp_path: Path, case: str) -> None:
    nodes, declared, message = NOT_A_VECTOR[case]
    path = network(tmp_path / "net.onnx", nodes, SHAPES, declared=declared)
    with pytest.raises(ModelError, match=message) as refused:
        prepare_reid(path, IMAGENET)
    assert "output 'y' is declared" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_sizes_that_change_with_the_batch_are_refused(tmp_path: Path) -> None:
    """`[n, 32 / n * ...]`: the same number of columns only for two pictures."""
    nodes = [
        node("Shape", "mixed", output="s"), node("Slice", "s", "zero", "one_", output="count"),
        node("Cast", "count", output="f", to=TensorProto.FLOAT),
        node("Mul", "f", "eight", output="e"), node("Cast", "e", output="end", to=TensorProto.INT64),
        node("Slice", "mixed", "zero", "end", "one_"),
    ]  # fmt: skip
    weights = [number("zero", [0], np.int64), number("one_", [1], np.int64), number("eight", [2.0])]
    path = network(tmp_path / "net.onnx", nodes, weights, declared=("n", "d"))
    with pytest.raises(ModelError, match="size depends on the pictures or the batch"):
        opened(path, tmp_path).__enter__()


@pytest.mark.parametrize(
    ("nodes", "kind", "message"),
    [
        ([node("Cast", "mixed", to=TensorProto.FLOAT16)], TensorProto.FLOAT, "FLOAT and gives FLOAT16"),
        ([node("Identity", "mixed")], TensorProto.FLOAT16, "declared FLOAT16 and gives FLOAT"),
        ([node("Cast", "mixed", to=TensorProto.INT64)], TensorProto.INT64, "is INT64, expected FLOAT"),
        ([node("Cast", "mixed", to=TensorProto.DOUBLE)], TensorProto.DOUBLE, "is DOUBLE, expected FLOAT"),
        ([node("Cast", "mixed", to=TensorProto.INT64)], TensorProto.FLOAT, "declared FLOAT and gives INT64"),
        ([node("Identity", "mixed")], 99, "is of the unknown type 99"),
    ],
)  # fmt: skip
def test_types_of_the_output(tmp_path: Path, nodes, kind: int, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        prepare_reid(network(tmp_path / "net.onnx", nodes, kind=kind), IMAGENET)


@pytest.mark.parametrize(
    "takes",
    [
        ("n", 1, 256, 128), ("n", 4, 256, 128), ("n", 256, 128, 3), ("n", 3, 256), ("n", 3, 4, 4),
        ("n", 3, 1 << 40, 1 << 40), ("n", 3, 40_000, 40_000), (2, 3, 256, 128), ("n", 3, 0, 128), (),
    ],
)  # fmt: skip
def test_a_wrong_input_is_refused_in_one_line(tmp_path: Path, takes: tuple[object, ...]) -> None:
    path = network(tmp_path / "net.onnx", [node("Identity", "mixed")], takes=takes)
    with pytest.raises(EdgeAgentError) as refused:
        opened(path, tmp_path).__enter__()
    assert "\n" not in str(refused.value)


def test_height_and_width_swapped_is_warned_of(tmp_path: Path) -> None:
    path = network(tmp_path / "net.onnx", [node("Identity", "mixed")], takes=("n", 3, 128, 256))
    with structlog.testing.capture_logs() as logs:
        prepare_reid(path, IMAGENET)
    assert [line["event"] for line in logs] == ["input_wider_than_high"]


def test_several_outputs_are_refused(tmp_path: Path) -> None:
    path = network(tmp_path / "net.onnx", [node("Identity", "mixed")], outputs=("y", "mixed"))
    with pytest.raises(ModelError, match=r"expected a network with one output, found 2 \(y, mixed\)"):
        prepare_reid(path, IMAGENET)


SIZES = st.lists(st.sampled_from([1, 2, 16, 64, "n", None, -1]), max_size=4)
TAILS = st.sampled_from([case[0] for case in (*DECLARED_WRONG.values(), *NOT_A_VECTOR.values())])


@settings(max_examples=25)
@given(TAILS, st.none() | SIZES, st.sampled_from([1, 7, 10, 11]))
def test_any_declaration_works_with_the_true_size_or_is_refused(
    tmp_path_factory, tail, declared: list[object] | None, kind: int
) -> None:
    folder = tmp_path_factory.getbasetemp()
    path = network(folder / "any.onnx", tail, SHAPES, declared=declared and tuple(declared), kind=kind)
    try:
        prepared = prepare_reid(path, IMAGENET)
    except ModelError as refused:
        message = str(refused)
        assert "\n" not in message
        return
    assert golden.make(prepared).vectors.shape == (golden.GOLDEN_CROPS, prepared.dimension)


# --- every command --------------------------------------------------------------------------------


def invoke(*arguments: object) -> tuple[int, str]:
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exception is None or isinstance(done.exception, (SystemExit, EdgeAgentError))
    return done.exit_code, str(done.exception)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    import cv2

    folder = tmp_path / "pictures"
    folder.mkdir()
    for number_, crop in enumerate(golden.golden_crops(256, 128)):
        cv2.imwrite(str(folder / f"000{number_}_c1s1_000451_03.jpg"), crop)
    return folder


@pytest.mark.parametrize("raw", [False, True])
def test_embed_refuses_a_blind_network_and_uses_the_true_size(
    tmp_path: Path, pictures: Path, *, raw: bool
) -> None:
    dead = BLIND["dead weights"](tmp_path / "dead.onnx")
    with pytest.raises(ModelError, match="nearly the same"), Network(dead, "imagenet", raw=raw).open():
        pass
    wide = network(tmp_path / "wide.onnx", WIDE, declared=("n", 128))
    code, _ = invoke("embed", pictures, "-o", tmp_path / "e.npy", "--model", wide, "--preprocess", "imagenet")
    assert code == 0
    assert np.load(tmp_path / "e.npy").shape == (4, 64)


@pytest.mark.parametrize(
    "command",
    [("model", "add"), ("gallery", "enrol", "--state", "STATE", "--force", "me", "PICTURE", "--model")],
)
def test_other_commands_refuse_a_blind_network(tmp_path: Path, pictures: Path, command) -> None:
    dead = BLIND["dead weights"](tmp_path / "dead.onnx")
    words = {"STATE": tmp_path / "state", "PICTURE": next(pictures.iterdir())}
    extra = ["--output", tmp_path / "models"] if command[0] == "model" else []
    _, problem = invoke(
        *[words.get(word, word) for word in command], dead, "--preprocess", "imagenet", *extra
    )
    assert "nearly the same embedding" in problem
    assert not (tmp_path / "models" / "dead.onnx").exists()


def test_a_batch_of_another_size_is_an_error_of_the_batch(tmp_path: Path) -> None:
    path = tiny_networks.fails_for_three(tmp_path / "net.onnx")
    with opened(path, tmp_path, threads=1) as stage:
        crops = [np.full((90, 40, 3), 90, np.uint8)] * 3
        with pytest.raises(EngineError, match="failed on a batch") as failed:
            stage.embed_images(crops)
        assert "\n" not in str(failed.value)
        assert stage.embed_images([np.full((90, 40, 3), 90, np.uint8)]).shape == (1, 8)


def test_the_gallery_has_the_true_size(tmp_path: Path, pictures: Path) -> None:
    wide = network(tmp_path / "wide.onnx", WIDE, declared=("n", 128))
    settings_ = ["--state", tmp_path / "state", "--model", wide, "--preprocess", "imagenet"]
    code, problem = invoke("gallery", "enrol", *settings_, "--force", "somebody", *sorted(pictures.iterdir()))
    assert code == 0, problem
    archive = tmp_path / "people.zip"
    assert invoke("gallery", "export", "--state", tmp_path / "state", archive)[0] == 0
    assert read_archive(archive).dimension == 64
