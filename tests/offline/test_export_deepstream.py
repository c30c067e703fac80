"""`edge-agent export --deepstream`: every file read as NVIDIA's programs read it, every number recomputed.

Keys and schemas are those of NVIDIA's public sources (`tests/fixtures/deepstream/keys.json` names them).
"""

from __future__ import annotations

import configparser
import hashlib
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import onnx
import pytest
import yaml
from hypothesis import given
from numpy.typing import NDArray

from edge_agent.core.errors import ConfigError, InputError, ModelError
from edge_agent.core.loading import load
from edge_agent.core.manifest import Manifest
from edge_agent.engine.graph.prepare import prepare_reid
from edge_agent.engine.graph.prepared import PROFILES, PreparedGraph, PreprocessProfile
from edge_agent.engine.onnxruntime import run_once
from edge_agent.engine.precision.scales import Scales, read_cache
from edge_agent.engine.profiles import profile_of
from edge_agent.offline.exports.deepstream import files
from edge_agent.offline.exports.deepstream.arithmetic import Arithmetic, differences
from edge_agent.offline.exports.deepstream.crops import Crops, rendered_crops
from edge_agent.offline.exports.deepstream.export import choose_precision, export_deepstream
from edge_agent.offline.exports.deepstream.graph import deepstream_graph
from edge_agent.source.opening import open_sources
from tests import tiny_networks
from tests.conftest import REPO

KEYS: dict[str, Any] = json.loads((REPO / "tests/fixtures/deepstream/keys.json").read_text())


@pytest.fixture(scope="module")
def crops() -> Crops:
    few = rendered_crops()
    return replace(few, pictures=few.pictures[:4])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_networks.reid(tmp_path_factory.mktemp("tiny") / "tiny.onnx", names=("pixels", "rows"))


def ini(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, delimiters="=", comment_prefixes="#")
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # GLib's keys have a case
    parser.read(path)
    return parser


def deepstream_rows(folder: Path, crops: Crops) -> NDArray[np.float64]:
    """Compute from the written files alone what DeepStream computes, of unit length."""
    values = ini(folder / files.NVINFER)["property"]
    _, height, width = map(int, values["infer-dims"].split(";"))
    scale, offsets = (
        np.float32(values["net-scale-factor"]),
        np.asarray(values["offsets"].split(";"), np.float32),
    )
    keep = values["maintain-aspect-ratio"] == "1"
    import cv2

    planes = []
    for crop in crops.pictures:
        picture = np.zeros((height, width, 3), np.uint8)
        rows, columns = height, width
        if keep:
            factor = min(height / crop.shape[0], width / crop.shape[1])
            rows, columns = int(crop.shape[0] * factor + 1e-9), int(crop.shape[1] * factor + 1e-9)
        picture[:rows, :columns] = cv2.resize(crop, (columns, rows), interpolation=cv2.INTER_LINEAR)
        ordered = picture[..., ::-1] if values["model-color-format"] == "0" else picture
        planes.append((scale * (ordered.astype(np.float32) - offsets)).transpose(2, 0, 1))
    found = run_once((folder / values["onnx-file"]).read_bytes(), np.stack(planes), "deepstream")
    return unit(found)


def unit(rows: NDArray[Any]) -> NDArray[np.float64]:
    wide = rows.astype(np.float64)
    done: NDArray[np.float64] = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return done


def agent_rows(prepared: PreparedGraph, crops: Crops) -> NDArray[np.float64]:
    pictures = np.empty((len(crops.pictures), *prepared.input_size, 3), np.uint8)
    assert prepared.profile is not None
    for crop, picture in zip(crops.pictures, pictures, strict=True):
        prepared.profile.fit(crop, picture)
    return unit(run_once(prepared.onnx, pictures, "agent"))


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_deepstream_computes_the_agents_embedding(
    tiny: Path, crops: Crops, tmp_path: Path, profile: str
) -> None:
    prepared = prepare_reid(tiny, PROFILES[profile])
    facts = export_deepstream(prepared, tmp_path / "ds", crops)
    cosines = (deepstream_rows(tmp_path / "ds", crops) * agent_rows(prepared, crops)).sum(axis=1)
    assert cosines.min() > 0.999999
    assert facts.same.least > 0.999999
    assert facts.space == prepared.space


@pytest.mark.parametrize(
    "options",
    [
        {"shape": ("batch", 256, 128, 3)},
        {"half": True},
        {"names": ("input", "fc_pred")},
        {"names": ("crops", "embedding")},
        {"names": ("images", "input")},
        {"weights_as_inputs": True},
        {"shape": ("batch", 3, 128, 64)},
    ],
    ids=str,
)
def test_networks_of_every_layout(crops: Crops, tmp_path: Path, options: dict[str, Any]) -> None:
    prepared = prepare_reid(tiny_networks.reid(tmp_path / "net.onnx", **options), PROFILES["imagenet"])
    export_deepstream(prepared, tmp_path / "ds", crops)
    cosines = (deepstream_rows(tmp_path / "ds", crops) * agent_rows(prepared, crops)).sum(axis=1)
    assert cosines.min() > 0.9999
    model = onnx.load(tmp_path / "ds" / files.ONNX)
    onnx.checker.check_model(model)
    weights = {weight.name for weight in model.graph.initializer}
    (taken,) = [value for value in model.graph.input if value.name not in weights]
    (given,) = model.graph.output
    float32 = onnx.TensorProto.FLOAT
    assert (taken.name, taken.type.tensor_type.elem_type) == ("input", float32)
    assert (given.name, given.type.tensor_type.elem_type) == ("fc_pred", float32)
    size = options.get("shape", ("batch", 3, 256, 128))
    assert [axis.dim_value for axis in taken.type.tensor_type.shape.dim][1:] == [
        3, *(size[1:3] if size[-1] == 3 else size[2:])
    ]  # fmt: skip


def test_scale_and_offsets_of_tao_are_nvidias(tiny: Path, crops: Crops, tmp_path: Path) -> None:
    prepared = prepare_reid(tiny, PROFILES["tao"])
    export_deepstream(prepared, tmp_path / "ds", crops)
    values = ini(tmp_path / "ds" / files.NVINFER)["property"]
    assert np.float32(values["net-scale-factor"]) == np.float32(0.01735207357279195)
    assert values["offsets"] == "123.675;116.28;103.53"
    assert values["model-color-format"] == "0"
    assert (values["maintain-aspect-ratio"], values["network-mode"]) == ("0", "2")


def test_every_key_is_nvidias(tiny: Path, crops: Crops, tmp_path: Path) -> None:
    ranges = Scales({"pixels": 2.0, "flat": 1.0}, "minmax", "0" * 64)
    prepared = prepare_reid(tiny, PROFILES["tao"])
    export_deepstream(prepared, tmp_path / "ds", crops, precision="int8", scales=ranges)
    parsed = ini(tmp_path / "ds" / files.NVINFER)
    assert parsed.sections() == ["property"]
    assert set(parsed["property"]) <= set(KEYS["nvinfer"]["property"])
    for name in files.TRACKERS:
        (section, values), = yaml.safe_load((tmp_path / "ds" / name).read_text()).items()  # fmt: skip
        assert section == "ReID"
        assert set(values) <= set(KEYS["nvtracker"]["ReID"])


def test_nvinfer_and_nvtracker_are_set_alike(tiny: Path, crops: Crops, tmp_path: Path) -> None:
    for precision, modes in {"fp32": ("0", 0), "fp16": ("2", 1)}.items():
        folder = tmp_path / precision
        prepared = prepare_reid(tiny, PROFILES["tao"])
        export_deepstream(prepared, folder, crops, precision=precision)
        values = ini(folder / files.NVINFER)["property"]
        kinds = {}
        for name in files.TRACKERS:
            found = yaml.safe_load((folder / name).read_text())["ReID"]
            assert found["netScaleFactor"] == pytest.approx(float(values["net-scale-factor"]), rel=1e-9)
            assert found["offsets"] == list(map(float, values["offsets"].split(";")))
            assert found["inferDims"] == list(map(int, values["infer-dims"].split(";")))
            assert (found["keepAspc"], found["colorFormat"], found["inputOrder"]) == (0, 0, 0)
            assert (values["network-mode"], found["networkMode"]) == modes
            assert (found["outputReidTensor"], found["addFeatureNormalization"]) == (1, 1)
            assert found["reidFeatureSize"] == prepared.dimension
            assert found["onnxFile"] == str(folder / "reid.onnx")
            assert found["modelEngineFile"] == str(folder / f"reid.onnx_b100_gpu0_{precision}.engine")
            kinds[name] = found["reidType"]
        assert kinds == {"reid_NvDCF.yml": 2, "reid_NvDeepSORT.yml": 1}
        assert values["model-engine-file"] == f"reid.onnx_b16_gpu0_{precision}.engine"
        assert (values["process-mode"], values["network-type"], values["output-tensor-meta"]) == (
            "2", "100", "1"
        )  # fmt: skip


def test_nvinferserver_reads_its_file(tiny: Path, crops: Crops, tmp_path: Path) -> None:
    text_format = pytest.importorskip("google.protobuf.text_format")
    export_deepstream(prepare_reid(tiny, PROFILES["tao"]), tmp_path / "ds", crops)
    message = plugin_control()
    text_format.Parse((tmp_path / "ds" / files.INFERSERVER).read_text(), message)
    normalise = message.infer_config.preprocess.normalize
    assert normalise.scale_factor == np.float32(0.01735207357279195)
    assert list(normalise.channel_offsets) == [np.float32(v) for v in (123.675, 116.28, 103.53)]
    assert message.infer_config.preprocess.tensor_name == "input"
    assert message.infer_config.backend.triton.model_name == "re_identification_tao"
    assert message.output_control.output_tensor_meta
    assert message.infer_config.postprocess.HasField("other")


def plugin_control() -> Any:
    """An empty message of nvinferserver's schema, made from the list of its fields."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    schema = KEYS["nvinferserver"]
    file = descriptor_pb2.FileDescriptorProto(name="nvdsinferserver.proto", package="ds", syntax="proto3")
    field = descriptor_pb2.FieldDescriptorProto
    for name, members in schema["enums"].items():
        entry = file.enum_type.add(name=name)
        for value, member in enumerate(members):
            entry.value.add(name=member, number=value)
    for name, fields in schema["messages"].items():
        message = file.message_type.add(name=name)
        for key, text in fields.items():
            place, kind, *repeated = text.split()
            label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            added = message.field.add(name=key, number=int(place), label=label)
            if kind in schema["messages"] or kind in schema["enums"]:
                added.type = field.TYPE_MESSAGE if kind in schema["messages"] else field.TYPE_ENUM
                added.type_name = f".ds.{kind}"
            else:
                added.type = getattr(field, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("ds.PluginControl"))()


def test_one_scale_for_three_channels(tiny: Path, crops: Crops, tmp_path: Path) -> None:
    """ImageNet's deviations differ: the graph divides, nothing is lost, and no file claims the profile."""
    prepared = prepare_reid(tiny, PROFILES["imagenet"])
    facts = export_deepstream(prepared, tmp_path / "ds", crops)
    assert facts.in_graph == pytest.approx((1 / 0.229, 1 / 0.224, 1 / 0.225))
    assert not (tmp_path / "ds" / files.INFERSERVER).exists()
    with pytest.raises(ConfigError, match="not known"):
        profile_of(tmp_path / "ds" / files.ONNX)


def test_the_exported_file_of_one_scale_is_usable_here(tiny: Path, crops: Crops, tmp_path: Path) -> None:
    export_deepstream(prepare_reid(tiny, PROFILES["tao"]), tmp_path / "ds", crops)
    assert profile_of(tmp_path / "ds" / files.ONNX).name == "tao"


def test_the_other_resize_rule_is_another_space(tiny: Path, crops: Crops, tmp_path: Path) -> None:
    prepared = prepare_reid(tiny, PROFILES["tao"])
    facts = export_deepstream(prepared, tmp_path / "padded", crops, keep_aspect=True)
    assert facts.space != prepared.space
    assert re.fullmatch("[0-9a-f]{16}", facts.space)
    values = ini(tmp_path / "padded" / files.NVINFER)["property"]
    assert (values["maintain-aspect-ratio"], values["symmetric-padding"]) == ("1", "0")
    for name in files.TRACKERS:
        assert yaml.safe_load((tmp_path / "padded" / name).read_text())["ReID"]["keepAspc"] == 1
    rows, expected = deepstream_rows(tmp_path / "padded", crops), agent_rows(prepared, crops)
    assert (rows * expected).sum(axis=1).mean() == pytest.approx(facts.padded.mean, abs=1e-4)
    text = (tmp_path / "padded" / files.README).read_text()
    assert f'external_space = "{facts.space}"' in text
    assert "**another** space" in text


@pytest.mark.parametrize(
    "changes",
    [
        {"resize": "cubic"},
        {"order": "gbr"},
        {"std": (0.2, 0.0, 0.2)},
        {"std": (-0.2, -0.2, -0.2)},
        {"scale": 0.0},
        {"mean": (float("nan"), 0.0, 0.0)},
    ],
    ids=str,
)
def test_what_deepstream_cannot_compute_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="DeepStream"):
        Arithmetic.of(replace(PROFILES["tao"], **changes))


@given(
    scale=st.floats(1e-3, 10),
    mean=st.tuples(*[st.floats(-2, 200)] * 3),
    std=st.tuples(*[st.floats(0.05, 100)] * 3),
    order=st.sampled_from(["rgb", "bgr"]),
    pixels=st.integers(0, 2**32 - 1),
)
def test_any_profile_is_reproduced(
    scale: float, mean: tuple[float, ...], std: tuple[float, ...], order: str, pixels: int
) -> None:
    profile = PreprocessProfile("any", order, scale, mean, std)  # type: ignore[arg-type]
    arithmetic = Arithmetic.of(profile)
    pictures = np.random.default_rng(pixels).integers(0, 256, (1, 4, 2, 3), np.uint8)
    planes = arithmetic.planes(pictures)
    if arithmetic.factors is not None:
        planes = planes * arithmetic.factors.reshape(1, 3, 1, 1)
    assert planes == pytest.approx(profile.apply(pictures), rel=1e-4, abs=1e-4 * scale * 255 / min(std))


@given(rows=st.integers(1, 600), columns=st.integers(1, 600))
def test_padding_keeps_the_aspect_ratio(rows: int, columns: int) -> None:
    padded = replace(Arithmetic.of(PROFILES["tao"]), keep_aspect=True)
    picture = padded.resized(np.full((rows, columns, 3), 255, np.uint8), (256, 128))
    filled = picture[..., 0] > 0
    height, width = int(filled[:, 0].sum()), int(filled[0].sum())
    assert filled[:height, :width].all()
    assert filled.sum() == height * width
    assert height == 256 or width == 128
    assert abs(height - min(256, 128 * rows / columns)) <= 1
    assert abs(width - min(128, 256 * columns / rows)) <= 1


def test_int8_table_names_tensors_of_the_exported_network(crops: Crops, tmp_path: Path) -> None:
    """Ranges belong to the prepared graph; where TAO's names are taken, the exported tensors are prefixed."""
    for names in (("input", "fc_pred"), ("images", "rows")):
        network = tiny_networks.reid(tmp_path / f"{names[0]}.onnx", names=names)
        prepared = prepare_reid(network, PROFILES["tao"])
        amax = {names[0]: 2.6, "flat": 1.5, "edge_agent/pixels": 255.0, "embedding": 1.0, "gone": 3.0}
        folder = tmp_path / f"ds-{names[0]}"
        facts = export_deepstream(
            prepared, folder, crops, precision="int8", scales=Scales(amax, "entropy", "0" * 64)
        )
        table = read_cache((folder / files.TABLE).read_bytes())
        model = onnx.load(folder / files.ONNX)
        tensors = {name for node in model.graph.node for name in node.output}
        ranges = {name.removeprefix("network/"): pytest.approx(one) for name, one in table.amax.items()}
        assert ranges == {names[0]: 2.6, "flat": 1.5}
        assert table.amax.keys() <= tensors
        assert table.algorithm == "EntropyCalibration2"
        assert facts.table_release
        values = ini(folder / files.NVINFER)["property"]
        assert (values["int8-calib-file"], values["network-mode"]) == (files.TABLE, "1")
        tracker = yaml.safe_load((folder / "reid_NvDCF.yml").read_text())["ReID"]
        assert (tracker["calibrationTableFile"], tracker["networkMode"]) == (str(folder / files.TABLE), 2)


def test_ranges_of_another_network_are_refused(tiny: Path, crops: Crops, tmp_path: Path) -> None:
    foreign = Scales({"other": 1.0}, "minmax", "0" * 64)
    with pytest.raises(ModelError, match="calibrate again"):
        export_deepstream(
            prepare_reid(tiny, PROFILES["tao"]), tmp_path / "ds", crops, precision="int8", scales=foreign
        )
    assert not (tmp_path / "ds").exists()


def test_precision_without_a_calibration(tiny: Path, tmp_path: Path) -> None:
    prepared = prepare_reid(tiny, PROFILES["tao"])
    assert choose_precision(prepared, "auto", None) == ("fp16", None)
    assert choose_precision(prepared, "fp32", None) == ("fp32", None)
    with pytest.raises(ConfigError, match="no INT8 calibration"):
        choose_precision(prepared, "int8", None)
    wide = prepare_reid(tiny_networks.reid(tmp_path / "wide.onnx", scale=1e6), PROFILES["tao"])
    assert choose_precision(wide, "auto", None) == ("fp32", None)
    with pytest.raises(ConfigError, match="--precision fp32"):
        choose_precision(wide, "fp16", None)


def test_the_agent_takes_the_settings_of_the_readme(tiny: Path, crops: Crops, tmp_path: Path) -> None:
    facts = export_deepstream(prepare_reid(tiny, PROFILES["tao"]), tmp_path / "ds", crops)
    (block,) = blocks((tmp_path / "ds" / files.README).read_text(), "toml")
    (tmp_path / "config.toml").write_text(block)
    settings = load(tmp_path / "config.toml")
    assert settings.detector.external_space == facts.space
    assert settings.detector.external_dimension == facts.dimension
    opened = open_sources(settings.sources, tmp_path, settings=settings)
    assert [source.id for source in opened] == ["entrance"]


def test_crops_without_an_embedding(crops: Crops, tmp_path: Path) -> None:
    """Some networks have none for a black picture; such crops are left out, and alone they are no measure."""
    prepared = prepare_reid(
        tiny_networks.undefined_for_dark(tmp_path / "dark.onnx"), PROFILES["openvino-raw"]
    )
    black = np.zeros((90, 40, 3), np.uint8)
    mixed = Crops([black, *crops.pictures], "a black one among them")
    assert export_deepstream(prepared, tmp_path / "ds", mixed).same.least > 0.9999
    with pytest.raises(ModelError, match="no embedding for any"):
        export_deepstream(prepared, tmp_path / "none", Crops([black], "a black one"))
    assert not (tmp_path / "none").exists()


def test_a_graph_that_differs_is_not_written(
    tiny: Path, crops: Crops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the comparison at each export is for: here the channels are swapped."""
    monkeypatch.setattr(Arithmetic, "of", staticmethod(swapped(Arithmetic.of)))
    with pytest.raises(ModelError, match="another embedding"):
        export_deepstream(prepare_reid(tiny, PROFILES["tao"]), tmp_path / "ds", crops)
    assert not (tmp_path / "ds").exists()


def swapped(make: Callable[..., Arithmetic]) -> Callable[..., Arithmetic]:
    return lambda profile, keep_aspect: replace(make(profile, keep_aspect=keep_aspect), colour="bgr")


def test_nothing_is_half_written_or_replaced(
    tiny: Path, crops: Crops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, folder = prepare_reid(tiny, PROFILES["tao"]), tmp_path / "ds"
    export_deepstream(prepared, folder, crops)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InputError, match="--overwrite"):
        export_deepstream(prepared, folder, crops)
    (folder / "reid.onnx_b16_gpu0_fp16.engine").write_bytes(b"an engine of the former network")
    export_deepstream(prepared, folder, crops, keep_aspect=True, overwrite=True)
    assert {path.name for path in folder.iterdir()} == set(before)
    (folder / "mine.txt").write_text("a file of the user")
    with pytest.raises(InputError, match=r"mine\.txt"):
        export_deepstream(prepared, folder, crops, overwrite=True)
    assert (folder / "mine.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["ds"]


def test_the_manifest_describes_the_files(tiny: Path, crops: Crops, tmp_path: Path) -> None:
    facts = export_deepstream(prepare_reid(tiny, PROFILES["tao"]), tmp_path / "ds", crops)
    manifest = Manifest.read(tmp_path / "ds" / files.MANIFEST, kind="deepstream", version=1)
    manifest.verify(tmp_path / "ds")
    others = {path.name for path in (tmp_path / "ds").iterdir()} - {files.MANIFEST}
    assert set(manifest.files) == others
    assert manifest.data["space"] == facts.space
    assert manifest.data["sha256"] == hashlib.sha256(tiny.read_bytes()).hexdigest()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_readme_is_usable(tiny: Path, crops: Crops, tmp_path: Path) -> None:
    """Its settings have NVIDIA's keys, and its commands make tracker settings with this section `ReID`."""
    folder = tmp_path / "a folder"
    export_deepstream(prepare_reid(tiny, PROFILES["tao"]), folder, crops)
    text = (folder / files.README).read_text()
    assert "$" not in re.sub(r"```sh\n.*?```|`[^`]*`", "", text, flags=re.DOTALL)
    for block in blocks(text, "ini"):
        (tmp_path / "block.ini").write_text(block)
        parsed = ini(tmp_path / "block.ini")
        for section in parsed.sections():
            assert set(parsed[section]) <= set(KEYS["deepstream-test5"][section]), section
    samples = tmp_path / "samples"
    samples.mkdir()
    (samples / "config_tracker_NvDCF_accuracy.yml").write_text(
        "BaseConfig:\n  minDetectorConfidence: 0.1\nTrajectoryManagement:\n  reidExtractionInterval: 8\n"
        "ReID:\n  reidType: 2\n  keepAspc: 1\n  tltModelKey: nvidia_tao\nVisualTracker:\n  useHog: 0\n"
    )
    command = re.sub(r"SAMPLES=\S+", f"SAMPLES={samples}", blocks(text, "sh")[0])
    subprocess.run(["sh", "-ec", command], cwd=tmp_path, check=True)
    tracker = yaml.safe_load((tmp_path / "tracker.yml").read_text())
    assert list(tracker) == ["BaseConfig", "TrajectoryManagement", "VisualTracker", "ReID"]
    assert tracker["TrajectoryManagement"]["reidExtractionInterval"] == 0
    assert tracker["ReID"] == yaml.safe_load((folder / "reid_NvDCF.yml").read_text())["ReID"]
    moved = folder.rename(tmp_path / "moved")
    (sed,) = re.findall(r"in it: `(sed .*?)`$", text, re.MULTILINE)
    subprocess.run(["sh", "-ec", sed], cwd=moved, check=True)
    assert yaml.safe_load((moved / "reid_NvDCF.yml").read_text())["ReID"]["onnxFile"] == str(
        moved / "reid.onnx"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "profile", "even", "padded"),
    [
        ("", "tao", 0.984, 0.89),
        ("osnet_onnx", "imagenet", 0.982, 0.89),
        ("omz_onnx", "openvino-raw", 0.980, 0.83),
    ],
    ids=["shipped", "osnet", "0267"],
)
def test_the_figures_of_the_page(
    request: pytest.FixtureRequest, vtest_video: Path, vtest_truth: Path, pets_market: Path,
    network: str, profile: str, even: float, padded: float,
) -> None:  # fmt: skip
    """docs/deepstream.md, "What remains different", on the queries: nvinfer's crops of the frames."""
    path = request.getfixturevalue(network) if network else REPO / "engines" / "default.onnx"
    prepared = prepare_reid(path, PROFILES[profile])
    boxes = boxes_of(sorted((pets_market / "query").glob("*.jpg")), vtest_truth)
    arithmetic = Arithmetic.of(PROFILES[profile])
    whole, cut = [], []
    for picture, (left, top, width, height) in frames(vtest_video, boxes):
        high, wide = picture.shape[:2]
        edges = np.rint(np.clip([left, top, left + width, top + height], 0, [wide, high] * 2)).astype(int)
        whole.append(picture[edges[1] : edges[3], edges[0] : edges[2]])
        # gstnvinfer.cpp: the corner by GST_ROUND_UP_2, the size by GST_ROUND_DOWN_2
        column, row = (int(max(left, 0)) + 1) // 2 * 2, (int(max(top, 0)) + 1) // 2 * 2
        cut.append(picture[row : row + int(height) // 2 * 2, column : column + int(width) // 2 * 2])
    graph = deepstream_graph(prepared, arithmetic.factors)
    found = differences(prepared, graph, arithmetic, whole)
    assert found.pixels.min() > 0.99999
    own = agent_rows(prepared, Crops(whole, ""))
    for rule, expected in ((arithmetic, even), (replace(arithmetic, keep_aspect=True), padded)):
        planes = rule.planes(np.stack([rule.resized(crop, prepared.input_size) for crop in cut]))
        cosines = (own * unit(run_once(graph.onnx, planes, "deepstream"))).sum(axis=1)
        assert cosines.mean() == pytest.approx(expected, abs=0.02)


def boxes_of(crops: list[Path], truth: Path) -> dict[int, list[tuple[float, ...]]]:
    """The boxes of the crops by frame: their names have the frame and the id in the ground truth."""
    rows = [line.split(",") for line in truth.read_text().splitlines()]
    known = {(int(row[0]), int(row[1])): tuple(map(float, row[2:6])) for row in rows}
    found: dict[int, list[tuple[float, ...]]] = {}
    for crop in crops:
        *_, frame, visit = crop.stem.split("_")
        found.setdefault(int(frame), []).append(known[int(frame), int(visit)])
    return found


def frames(
    video: Path, boxes: dict[int, list[tuple[float, ...]]]
) -> Iterator[tuple[NDArray[np.uint8], tuple[float, ...]]]:
    import cv2

    reader = cv2.VideoCapture(str(video))
    for number in range(1, max(boxes) + 1):
        _, picture = reader.read()
        for box in boxes.get(number, ()):
            yield np.asarray(picture, np.uint8), box
