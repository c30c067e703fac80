"""The backend `triton` on a real Triton: the same rows as in-process, and no row that is not of its batch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from edge_agent.cli import app
from edge_agent.cli.doctor import examine
from edge_agent.core.config import EngineSettings, QualitySettings
from edge_agent.core.errors import ConfigError, EngineError, EngineUnavailable, ModelError
from edge_agent.embed.embedder import Embedder
from edge_agent.embed.opening import open_embedder
from edge_agent.engine.golden import least_cosine
from edge_agent.offline.synthetic.crops import write_dataset
from tests import tiny_networks
from tests.kserve import environment, repository
from tests.kserve.environment import Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # the first makes the environment


@dataclass
class Served:
    """A real server with `prepared` and `raw` (as exported, nothing stated), and their network."""

    server: Server
    repository: Path
    source: Path
    state: Path

    def embedder(self, served: str = "prepared", **settings: object) -> Embedder:
        chosen = EngineSettings.model_validate({"backend": self.server.backend(served), **settings})
        return open_embedder(chosen, QualitySettings(), self.state)

    def local(self) -> Embedder:
        chosen = EngineSettings(backend="onnxruntime", model=self.source, preprocess="tao")
        return open_embedder(chosen, QualitySettings(), self.state)

    def spoil(self, model: str, **fault: object) -> Path:
        file = self.repository / model / "1" / "fault.json"
        file.write_text(json.dumps(fault))
        return file


@pytest.fixture(scope="module")
def served(start_triton: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("models")
    source = tiny_networks.reid(folder / "net.onnx")
    models = folder / "repository"
    repository.write(models, "prepared", source, most=4, precision="fp32")
    repository.write(models, "raw", source, raw=True, stated=False)
    repository.write(models, "other", tiny_networks.reid(folder / "other.onnx", seed=1, dimension=6))
    yield Served(start_triton(models), models, source, folder / "state")
    assert environment.named_memory() == []


def people(count: int, seed: int = 3) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(0, 256, (200 + n, 90, 3), dtype=np.uint8) for n in range(count)]


@pytest.mark.parametrize(
    ("model", "shared"), [("prepared", "auto"), ("prepared", "off"), ("raw", "auto"), ("raw", "off")]
)
def test_rows_are_those_of_the_same_network_in_process(served: Served, model: str, shared: str) -> None:
    named = {"model": served.source, "preprocess": "tao"} if model == "raw" else {}
    with served.local() as here:
        wanted = here.embed_images(people(11))
    with served.embedder(model, max_batch=8, triton_shared_memory=shared, **named) as there:
        rows = there.embed_images(people(11))  # two batches of the agent, three and more requests
        assert there.info.backend == "triton"
        assert there.info.space == here.info.space
    assert least_cosine(rows, wanted) > 0.999999
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-4)


def test_two_batches_are_in_flight_and_come_back_in_order(served: Served) -> None:
    with served.embedder() as there:
        engine = there.engine
        random = np.random.default_rng(1)
        batches = [random.integers(0, 256, (n, 256, 128, 3), dtype=np.uint8) for n in (5, 3)]
        for batch in batches:
            engine.buffer()[: len(batch)] = batch
            engine.submit(len(batch))
        with pytest.raises(EngineError, match="2 batches are in flight"):
            engine.submit(1)
        first, second = engine.collect(), engine.collect()
        kept = first.copy()
        engine.buffer()[:3] = batches[1]
        engine.submit(3)
        np.testing.assert_allclose(engine.collect(), second, atol=1e-6)
        np.testing.assert_array_equal(first, kept)
        assert 0 < engine.run_seconds < 10
        assert engine.failures == 0


def test_the_model_is_that_of_the_server_or_of_the_settings(served: Served, tmp_path: Path) -> None:
    with served.embedder() as there:
        assert there.info.model == "net"
        assert there.info.precision == "fp32"
        assert there.profile == "tao"
    with pytest.raises(ConfigError, match="does not state the embedding space"):
        served.embedder("raw")
    with pytest.raises(ConfigError, match="but the server states tao"):
        served.embedder(preprocess="imagenet")
    with pytest.raises(ConfigError, match=r"engine\.precision is int8, but prepared .* computes in fp32"):
        served.embedder(precision="int8").__enter__()
    with pytest.raises(ModelError, match=r"nobody on .*: NOT_FOUND: .*unknown model"):
        served.embedder("nobody")
    with pytest.raises(ModelError, match="version 7 is not found"):
        served.embedder("prepared/7")
    own = {"model": served.source, "preprocess": "tao"}
    with pytest.raises(ModelError, match="cannot be compared"):
        served.embedder("other", **own).__enter__()
    other = tiny_networks.reid(tmp_path / "other.onnx", seed=2)
    with pytest.raises(ModelError, match="differs from its reference"):  # the self-test
        served.embedder("raw", model=other, preprocess="tao").__enter__()


def test_a_slow_answer_is_dropped_and_the_next_ones_count(served: Served) -> None:
    with served.embedder(triton_timeout_ms=400) as there:
        engine = there.engine
        before = there.embed_images(people(2))
        file = served.spoil("prepared", delay_s=0.8)
        with pytest.raises(EngineUnavailable, match=r"no answer within 0\.4 s"):
            there.embed_images(people(2))
        with pytest.raises(EngineUnavailable):
            there.embed_images(people(2))
        file.unlink()
        assert_back(there)
        np.testing.assert_allclose(there.embed_images(people(2)), before, atol=1e-6)
        assert engine.failures >= 2


@pytest.mark.parametrize(
    ("fault", "message"),
    [({"rows": 1}, "net failed on a batch: "), ({"nan": True}, "non-finite embedding")],
)
def test_answers_that_are_no_rows_are_refused(served: Served, fault: dict[str, object], message: str) -> None:
    with served.embedder() as there:
        file = served.spoil("prepared", **fault)
        with pytest.raises(EngineError, match=message):
            there.embed_images(people(3))
        file.unlink()
        assert_back(there)


def assert_back(embedder: Embedder, seconds: float = 15) -> None:
    """Wait until the engine gives rows again."""
    import time

    deadline = time.monotonic() + seconds
    while True:
        try:
            embedder.embed_images(people(1))
        except EngineUnavailable:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            break
    assert embedder.engine.problem == ""


def test_commands_run_on_it(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cv2

    monkeypatch.setenv("EDGE_AGENT__STATE_DIR", str(tmp_path / "state"))
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, picture in enumerate(people(3)):
        cv2.imwrite(str(folder / f"{number:04}_c1s1_000001_00.jpg"), picture)
    backend = served.server.backend("prepared")
    runner = CliRunner()
    done = runner.invoke(app, ["embed", str(folder), "-o", str(tmp_path / "x.npz"), "--backend", backend])
    assert done.exit_code == 0, done.output
    done = runner.invoke(app, ["bench", "--backend", backend, "--batch", "4", "--seconds", "0.1", "--json"])
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)["rows"]
    assert (row["backend"], row["precision"]) == ("triton", "fp32")
    market = tmp_path / "market"
    write_dataset(market, identities=4, cameras=2, per_identity=4, seed=1, test_share=1.0, workers=1)
    figures = []
    for network in (["--backend", backend], ["--model", str(served.source), "--preprocess", "tao"]):
        done = runner.invoke(app, ["evaluate", str(market), *network, "--json"])
        assert done.exit_code == 0, done.output
        figures.append(json.loads(done.stdout)["mAP"])
    assert figures[0] == pytest.approx(figures[1])
    config = tmp_path / "agent.toml"
    config.write_text(f'[engine]\nbackend = "{backend}"\n')
    (finding,) = [one for one in examine(config) if one.name == "model"]
    assert finding.state == "ok"
    assert "net on triton fp32, self-test passed" in finding.found
    done = runner.invoke(app, ["calibrate", "--config", str(config), "--dataset", str(folder)])
    assert done.exit_code == 1
    assert isinstance(done.exception, Exception)
