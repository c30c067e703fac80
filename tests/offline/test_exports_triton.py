"""Model repositories of Triton: every field of config.pbtxt, all or nothing, and what is refused."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.core.config import EngineSettings
from edge_agent.core.errors import ConfigError, InputError, ModelError, StorageError
from edge_agent.core.loading import load
from edge_agent.engine.golden import golden_crops
from edge_agent.engine.graph.prepared import PROFILES
from edge_agent.offline.exports import folders
from edge_agent.offline.exports.network import ExportNetwork, open_network
from edge_agent.offline.exports.text_format import text_format
from edge_agent.offline.exports.triton import (
    CARD,
    MODEL_NAME,
    PROFILE,
    SHA256,
    SPACE,
    TAO_MODEL_NAME,
    check_repository,
    export_triton,
    model_config,
)
from tests import tiny_networks

pb = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="tritonclient[grpc] is not installed")
from google.protobuf import text_format as protobuf_text  # noqa: E402 - comes with it


def network_of(path: Path, **engine: Any) -> ExportNetwork:
    values = {"backend": "onnxruntime", "preprocess": "imagenet", "model": path, **engine}
    return open_network(load(Path(os.devnull), {"state_dir": path.parent / "state", "engine": values}))


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> ExportNetwork:
    return network_of(tiny_networks.reid(tmp_path_factory.mktemp("net") / "tiny.onnx", dimension=32))


def parsed(text: str) -> Any:
    """`config.pbtxt` as Triton reads it: an unknown field or a wrong type is an error."""
    return protobuf_text.Parse(text, pb.ModelConfig())


def config_of(folder: Path) -> Any:
    return parsed((folder / "config.pbtxt").read_text())


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


class TestConfig:
    def test_every_field_of_the_prepared_graph(self, network: ExportNetwork, tmp_path: Path) -> None:
        done = export_triton(network, tmp_path / "repo")
        assert files_below(tmp_path) == [
            f"repo/{MODEL_NAME}/{name}" for name in ("1/model.onnx", "config.pbtxt")
        ]
        found = config_of(tmp_path / "repo" / MODEL_NAME)
        parameters = {key: value.string_value for key, value in found.parameters.items()}
        card = json.loads(parameters.pop(CARD))
        assert parameters == {
            SPACE: network.graph.space,
            SHA256: network.graph.source_sha256,
            PROFILE: "imagenet",
        }
        assert card == json.loads(json.dumps(done.card))
        found.ClearField("parameters")
        crops = {"data_type": pb.TYPE_UINT8, "dims": [256, 128, 3]}
        assert found == pb.ModelConfig(
            name=MODEL_NAME,
            backend="onnxruntime",
            max_batch_size=64,
            input=[pb.ModelInput(name="crops", format=pb.ModelInput.FORMAT_NHWC, **crops)],
            output=[pb.ModelOutput(name="embedding", data_type=pb.TYPE_FP32, dims=[32])],
            instance_group=[pb.ModelInstanceGroup(kind=pb.ModelInstanceGroup.KIND_CPU, count=1)],
            version_policy=pb.ModelVersionPolicy(latest=pb.ModelVersionPolicy.Latest(num_versions=1)),
            dynamic_batching=pb.ModelDynamicBatching(
                preferred_batch_size=[16, 64], max_queue_delay_microseconds=1000
            ),
            model_warmup=[
                pb.ModelWarmup(
                    name=f"batch-{size}",
                    batch_size=size,
                    inputs={"crops": pb.ModelWarmup.Input(zero_data=True, **crops)},
                )
                for size in (1, 16, 64)
            ],
        )

    def test_with_nvidias_names(self, network: ExportNetwork, tmp_path: Path) -> None:
        export_triton(network, tmp_path, tao=True)
        found = config_of(tmp_path / TAO_MODEL_NAME)
        (taken,), (given_,) = found.input, found.output
        assert found.name == "re_identification_tao"
        assert (taken.name, taken.data_type, list(taken.dims)) == ("input", pb.TYPE_FP32, [3, 256, 128])
        assert taken.format == pb.ModelInput.FORMAT_NCHW
        assert (given_.name, given_.data_type, list(given_.dims)) == ("fc_pred", pb.TYPE_FP32, [32])
        assert found.parameters[SPACE].string_value == network.graph.space
        assert json.loads(found.parameters[CARD].string_value)["rows"] == "as the network gives them"
        assert found.model_warmup[0].inputs["input"].dims == [3, 256, 128]

    def test_the_files_of_the_server_give_the_rows_of_the_agent(
        self, network: ExportNetwork, tmp_path: Path
    ) -> None:
        crops = golden_crops(256, 128)
        model = export_triton(network, tmp_path).model
        session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        (rows,) = session.run(["embedding"], {"crops": crops})
        assert np.allclose((rows * network.golden.vectors).sum(axis=1), 1, atol=1e-6)
        model = export_triton(network, tmp_path, tao=True).model
        session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        (raw,) = session.run(["fc_pred"], {"input": PROFILES["imagenet"].apply(crops)})
        lengths = np.linalg.norm(raw, axis=1, keepdims=True)
        assert not np.allclose(lengths, 1, atol=0.01)
        assert np.allclose((raw / lengths * network.golden.vectors).sum(axis=1), 1, atol=1e-6)

    @pytest.mark.parametrize(
        ("batch", "preferred", "warm"),
        [(1, None, [1]), (8, [8], [1, 8]), (16, [16], [1, 16]), (100, [16, 64, 100], [1, 16, 64, 100])],
    )
    def test_batches(
        self,
        network: ExportNetwork,
        batch: int,
        preferred: list[int] | None,
        warm: list[int],
        tmp_path: Path,
    ) -> None:
        one = replace(network, settings=EngineSettings(max_batch=batch))
        found = config_of(export_triton(one, tmp_path).folder)
        assert found.max_batch_size == batch
        assert found.HasField("dynamic_batching") == (preferred is not None)
        assert list(found.dynamic_batching.preferred_batch_size) == (preferred or [])
        assert [one.batch_size for one in found.model_warmup] == warm

    def test_a_gpu_for_onnx_and_all_profiles_of_a_plan(self, network: ExportNetwork) -> None:
        def instances(**options: Any) -> Any:
            fields = model_config(network.graph, "m", card={}, **options)
            return parsed("\n".join(text_format(fields)))

        gpu = instances(batch=16, gpu=True, profiles=())
        assert (gpu.backend, gpu.instance_group[0].kind) == ("onnxruntime", pb.ModelInstanceGroup.KIND_GPU)
        plan = instances(batch=16, gpu=False, profiles=(1, 16))
        assert plan.backend == "tensorrt"
        (group,) = plan.instance_group
        assert (group.kind, list(group.profile)) == (pb.ModelInstanceGroup.KIND_GPU, ["0", "1"])
        single = instances(batch=8, gpu=False, profiles=(8,))
        assert not single.instance_group[0].profile
        assert list(single.dynamic_batching.preferred_batch_size) == [8]

    @given(st.dictionaries(st.text(max_size=20), st.text(max_size=60), max_size=4))
    @settings(max_examples=50)
    def test_any_text_of_a_card_survives(self, card: dict[str, str]) -> None:
        fields = {"parameters": [{"key": "k", "value": {"string_value": json.dumps(card)}}]}
        found = parsed("\n".join(text_format(fields)))
        assert json.loads(found.parameters["k"].string_value) == card

    def test_a_name_that_is_no_text_does_not_break_a_parser(self, tmp_path: Path) -> None:
        path = tiny_networks.reid(tmp_path / "net.onnx").rename(tmp_path / os.fsdecode(b'n\xff"\n.onnx'))
        text = json.dumps(network_of(path).card())
        assert json.loads(text)["file"] == 'n\\xff"\\n.onnx'
        assert "\\ud" not in text

    def test_the_card_has_no_path_of_the_device(self, network: ExportNetwork, tmp_path: Path) -> None:
        noted = replace(network, notes={"licence": 'CC-BY "é"\n'})
        card = export_triton(noted, tmp_path).card
        assert card["notes"] == {"licence": 'CC-BY "é"\n'}
        assert (card["file"], card["precision"], card["dimension"]) == ("tiny.onnx", "fp32", 32)
        assert card["preprocess"]["std"] == [0.229, 0.224, 0.225]
        assert str(network.graph.source.parent) not in (tmp_path / MODEL_NAME / "config.pbtxt").read_text()


class TestRefused:
    def test_more_than_the_plan_or_the_graph_takes(self, network: ExportNetwork) -> None:
        for graph, profiles in ((network.graph, (1, 16)), (replace(network.graph, batch=16), ())):
            with pytest.raises(ConfigError, match=r"at most 16 pictures at once, and 64 .* --max-batch 16"):
                model_config(graph, "m", batch=64, gpu=False, profiles=profiles, card={})

    def test_tensors_that_triton_could_not_serve(self, network: ExportNetwork, tmp_path: Path) -> None:
        path = tiny_networks.reid(tmp_path / "fixed.onnx", shape=(4, 3, 256, 128), output_shape=(4, 8))
        with pytest.raises(
            ModelError, match=r"tensor 'input' is \[4, 3, 256, 128\]; Triton needs a free batch"
        ):
            model_config(
                replace(network.graph, onnx=path.read_bytes()), "m", batch=4, gpu=False, profiles=(), card={}
            )
        with pytest.raises(ModelError, match="its batch axis is fixed at 4"):
            network_of(path)

    def test_an_accelerator(self, network: ExportNetwork, tmp_path: Path) -> None:
        on_dla = replace(network, backend="tensorrt", settings=EngineSettings(dla_core=0))
        with pytest.raises(ConfigError, match=r"leave engine\.dla_core out"):
            export_triton(on_dla, tmp_path / "repo")
        assert not (tmp_path / "repo").exists()

    @pytest.mark.parametrize("backend", ["simulated:orin-nx", "triton:127.0.0.1:8001/reidentification"])
    def test_backends_without_a_network(self, backend: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="runs no network on this device"):
            network_of(tiny_networks.reid(tmp_path / "m.onnx"), backend=backend)

    def test_places_that_are_no_repository(self, network: ExportNetwork, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("precious")
        with pytest.raises(InputError, match="is not a folder"):
            export_triton(network, tmp_path / "file")
        export_triton(network, tmp_path / "repo")
        with pytest.raises(InputError, match="is the folder of one model; name the repository above it"):
            export_triton(network, tmp_path / "repo" / MODEL_NAME)
        with pytest.raises(StorageError, match=r"the folder .* does not exist"):
            export_triton(network, tmp_path / "missing" / "repo")


class TestWriting:
    def test_a_second_export_needs_overwrite_and_replaces_everything(
        self, network: ExportNetwork, tmp_path: Path
    ) -> None:
        export_triton(network, tmp_path)
        with pytest.raises(
            InputError, match=r"--overwrite.* second version is not added, since config.pbtxt"
        ):
            export_triton(network, tmp_path)
        export_triton(network, tmp_path, tao=True)  # another model of the repository
        (tmp_path / MODEL_NAME / "1" / "model.onnx").rename(tmp_path / MODEL_NAME / "1" / "model.plan")
        export_triton(network, tmp_path, overwrite=True)
        wanted = [f"{m}/{f}" for m in (TAO_MODEL_NAME, MODEL_NAME) for f in ("1/model.onnx", "config.pbtxt")]
        assert files_below(tmp_path) == sorted(wanted)

    @pytest.mark.parametrize("extra", ["notes.txt", "1/labels.txt", "2/model.onnx"])
    def test_files_of_others_are_never_replaced(
        self, network: ExportNetwork, tmp_path: Path, extra: str
    ) -> None:
        folder = export_triton(network, tmp_path).folder
        (folder / extra).parent.mkdir(exist_ok=True)
        (folder / extra).write_text("precious")
        with pytest.raises(InputError, match="is not of an earlier export"):
            export_triton(network, tmp_path, overwrite=True)
        assert (folder / extra).read_text() == "precious"

    def test_a_link_is_not_followed(self, network: ExportNetwork, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "repo").mkdir()
        (tmp_path / "repo" / MODEL_NAME).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(InputError, match="exists and is not a folder"):
            export_triton(network, tmp_path / "repo", overwrite=True)

    @pytest.mark.parametrize("failing", ["fsync", "rename"])
    @pytest.mark.parametrize("there", [False, True])
    def test_a_failure_leaves_what_was_there(
        self,
        network: ExportNetwork,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        failing: str,
        there: bool,
    ) -> None:
        before: list[str] = []
        if there:
            export_triton(network, tmp_path / "repo")
            before = files_below(tmp_path)
        if failing == "fsync":
            monkeypatch.setattr(folders.os, "fsync", _full)
        else:
            rename = Path.rename
            monkeypatch.setattr(
                Path, "rename", lambda self, to: _full() if str(self).endswith(".tmp") else rename(self, to)
            )
        with pytest.raises(StorageError, match="no space is left"):
            export_triton(network, tmp_path / "repo", overwrite=True)
        assert files_below(tmp_path) == before
        assert sorted(path.name for path in tmp_path.iterdir()) == (["repo"] if there else [])

    def test_a_former_model_that_stays_is_named(
        self, network: ExportNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        export_triton(network, tmp_path / "repo")
        remove = folders.shutil.rmtree
        monkeypatch.setattr(
            folders.shutil,
            "rmtree",
            lambda path, **options: _full() if path.name.endswith(".old") else remove(path, **options),
        )
        with pytest.raises(StorageError, match=r"is written, but the former one .* remove .*\.tmp\.old"):
            export_triton(network, tmp_path / "repo", overwrite=True)
        assert files_below(tmp_path / "repo" / MODEL_NAME) == ["1/model.onnx", "config.pbtxt"]

    def test_a_server_may_read_it_and_never_sees_a_draft(
        self, network: ExportNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        repository, seen = tmp_path / "repo", []
        repository.mkdir()
        fsync = os.fsync
        monkeypatch.setattr(
            folders.os, "fsync", lambda file: (seen.append(list(repository.iterdir())), fsync(file))
        )
        done = export_triton(network, repository)
        assert seen[0] == seen[1] == []
        old = os.umask(0)
        os.umask(old)
        for path in (done.folder, done.model.parent):
            assert stat.S_IMODE(path.stat().st_mode) == 0o777 & ~old
        assert stat.S_IMODE(done.model.stat().st_mode) == 0o666 & ~old

    def test_the_name_of_the_model_is_known_before_anything_is_computed(self, tmp_path: Path) -> None:
        assert check_repository(tmp_path, tao=True, overwrite=False).name == TAO_MODEL_NAME


def _full(*_arguments: object) -> None:
    raise OSError(28, "No space left on device")
