"""What `edge-agent export --triton` writes, in a real Triton: loaded unchanged, and its rows are the agent's.

The client of `re_identification_tao` repeats what NVIDIA's does: its checks of the model's configuration,
Pillow's resizing, its numbers, `fc_pred` as it comes, batches filled up with the first pictures.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from edge_agent.cli import app
from edge_agent.core.loading import load
from edge_agent.engine.golden import golden_crops, least_cosine
from edge_agent.engine.onnxruntime import run_once
from edge_agent.offline.evaluate.files import read_embeddings
from edge_agent.offline.exports.network import ExportNetwork, open_network
from edge_agent.offline.exports.triton import CARD, MODEL_NAME, SPACE, TAO_MODEL_NAME, export_triton
from tests.kserve.environment import Server

grpc = pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is not installed")
pb = pytest.importorskip("tritonclient.grpc.model_config_pb2")
Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # the first makes the environment
BATCH = 8
LEAST = 0.99999


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> ExportNetwork:
    """The shipped network, profile `tao`."""
    state = tmp_path_factory.mktemp("state")
    engine = {"backend": "onnxruntime", "max_batch": BATCH}
    return open_network(load(Path(os.devnull), {"state_dir": state, "engine": engine}))


@pytest.fixture(scope="module")
def server(
    shipped: ExportNetwork, start_triton: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory
) -> Server:
    """A server that has both forms of it in one repository."""
    repository = tmp_path_factory.mktemp("triton") / "repository"
    for tao in (False, True):
        export_triton(shipped, repository, tao=tao)
    return start_triton(repository)


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Any]:
    with grpc.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        yield client


def infer(client: Any, model: str, source: str, kind: str, target: str, batch: NDArray[Any]) -> NDArray[Any]:
    given = grpc.InferInput(source, batch.shape, kind)
    given.set_data_from_numpy(batch)
    return client.infer(model, [given], client_timeout=60).as_numpy(target)


def test_the_prepared_graph(client: Any, shipped: ExportNetwork) -> None:
    assert client.get_model_metadata(MODEL_NAME).platform == "onnxruntime_onnx"
    found = client.get_model_config(MODEL_NAME).config
    assert found.max_batch_size == BATCH
    assert found.parameters[SPACE].string_value == shipped.graph.space
    assert json.loads(found.parameters[CARD].string_value)["file"] == "default.onnx"
    crops = np.concatenate([golden_crops(256, 128), golden_crops(256, 128)[:, :, ::-1]])
    for count in (1, 3, BATCH):
        batch = np.ascontiguousarray(crops[:count])
        rows = infer(client, MODEL_NAME, "crops", "UINT8", "embedding", batch)
        assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
        assert least_cosine(rows, run_once(shipped.graph.onnx, batch, "here")) >= LEAST
    with pytest.raises(grpc.InferenceServerException, match="batch-size must be <= 8"):
        infer(client, MODEL_NAME, "crops", "UINT8", "embedding", np.zeros((9, 256, 128, 3), np.uint8))


def nvidia_parameters(client: Any) -> tuple[int, str, str, tuple[int, int, int], str]:
    """Largest batch, input, output, its shape and type, as NVIDIA's client reads and checks them."""
    metadata = client.get_model_metadata(TAO_MODEL_NAME)
    config = client.get_model_config(TAO_MODEL_NAME).config
    assert len(metadata.inputs) == len(metadata.outputs) == len(config.input) == 1
    assert metadata.outputs[0].datatype == "FP32"
    assert len(metadata.inputs[0].shape) == 3 + (config.max_batch_size > 0)
    assert config.input[0].format == pb.ModelInput.FORMAT_NCHW
    taken = metadata.inputs[0]
    return config.max_batch_size, taken.name, metadata.outputs[0].name, tuple(taken.shape[1:]), taken.datatype


def nvidia_picture(path: Path, width: int, height: int) -> NDArray[np.float32]:
    planes = np.array(Image.open(path).resize((width, height), Image.BILINEAR)).astype(np.float32)
    planes = planes.transpose(2, 0, 1) / 255.0
    mean = np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]
    return (planes - mean) / np.float32(0.224)


def test_nvidias_client(client: Any, shipped: ExportNetwork, pets_market: Path) -> None:
    most, source, target, (channels, height, width), kind = nvidia_parameters(client)
    assert (most, source, target, channels, kind) == (BATCH, "input", "fc_pred", 3, "FP32")
    paths = sorted((pets_market / "query").glob("*.jpg"))[: BATCH - 2]
    repeated = [*paths, *paths[: BATCH - len(paths)]]
    pictures = np.stack([nvidia_picture(path, width, height) for path in repeated])
    rows = infer(client, TAO_MODEL_NAME, source, kind, target, pictures)[: len(paths)]

    bare = shipped.bare().onnx
    assert np.allclose(rows, run_once(bare, pictures, "here")[: len(paths)], atol=1e-4)
    assert not np.allclose(np.linalg.norm(rows, axis=1), 1, atol=0.1)  # as the network gives them
    ours = np.zeros((len(paths), height, width, 3), np.uint8)
    for path, crop in zip(paths, ours, strict=True):
        shipped.profile.fit(cv2.imread(str(path)), crop)
    unit = run_once(shipped.graph.onnx, ours, "here")
    assert least_cosine(rows, unit) > 0.999  # their numbers and their resizing, docs/triton.md
    same = infer(client, TAO_MODEL_NAME, source, kind, target, shipped.profile.apply(ours))
    assert least_cosine(same, unit) >= LEAST  # the numbers of the profile


def results(path: Path) -> tuple[list[str], NDArray[np.float32]]:
    """Pictures and unit rows of a `results.json`, NVIDIA's or the agent's."""
    found = read_embeddings(path)
    return list(found.names), found.vectors / np.linalg.norm(found.vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("model", [MODEL_NAME, TAO_MODEL_NAME])
def test_the_agent_as_its_client(server: Server, pets_market: Path, tmp_path: Path, model: str) -> None:
    """`embed` over the server and here write the same file, in the layout of NVIDIA's `results.json`."""
    for name, words in {"there": ["--backend", server.backend(model)], "here": []}.items():
        given = ["embed", str(pets_market), "--split", "query", "-o", str(tmp_path / f"{name}.json"), *words]
        CliRunner().invoke(app, given, catch_exceptions=False)
    (there, rows), (here, wanted) = results(tmp_path / "there.json"), results(tmp_path / "here.json")
    assert there == here
    assert least_cosine(rows, wanted) >= LEAST
    entries = json.loads((tmp_path / "there.json").read_text())
    assert [list(entry) for entry in entries] == [["img_path", "embedding"]] * len(here)
    nvidia = tmp_path / "results.json"
    nvidia.write_text(json.dumps(entries[:1]))
    nvidia.write_text(json.dumps([*json.loads(nvidia.read_text()), *entries[1:]]))  # it appends
    assert results(nvidia)[0] == there
