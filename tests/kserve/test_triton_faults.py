"""A real Triton that is killed, frozen, changed, and loses its backend; and mlserver as a second peer."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge_agent.core.config import EngineSettings, QualitySettings
from edge_agent.core.errors import EngineUnavailable
from edge_agent.embed.embedder import Embedder
from edge_agent.embed.opening import open_embedder
from edge_agent.engine.golden import least_cosine
from tests import tiny_networks
from tests.faults import certificates
from tests.kserve import environment, repository
from tests.kserve.environment import Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # the first makes the environment


def opened(backend: str, state: Path, **settings: object) -> Embedder:
    chosen = EngineSettings.model_validate({"backend": backend, "triton_timeout_ms": 1000, **settings})
    return open_embedder(chosen, QualitySettings(), state, patient=True)


def people(count: int = 5) -> list[np.ndarray]:
    random = np.random.default_rng(3)
    return [random.integers(0, 256, (200, 90, 3), dtype=np.uint8) for _ in range(count)]


class Watched:
    """Asks for the same rows again and again: each answer is right, or there is none."""

    def __init__(self, embedder: Embedder, server: Server) -> None:
        self.embedder, self.server = embedder, server
        self.wanted = embedder.embed_images(people())

    def works(self) -> bool:
        try:
            rows = self.embedder.embed_images(people())
        except EngineUnavailable:
            return False
        np.testing.assert_allclose(rows, self.wanted, atol=1e-6)
        return True

    def until(self, *, works: bool, seconds: float = 40) -> float:
        began = time.monotonic()
        while self.works() is not works or bool(self.embedder.engine.problem) is works:
            log = self.server.log.read_text()[-2000:]
            assert time.monotonic() - began < seconds, f"{self.embedder.engine.problem}\n{log}"
            if works and self.server.ended:  # Triton's Python backend sometimes aborts after a freeze
                self.server.start()
            time.sleep(0.1)
        return time.monotonic() - began


def test_a_server_killed_frozen_restarted_changed_and_without_its_backend(
    start_triton: Callable[..., Server], tmp_path: Path
) -> None:
    models, source = tmp_path / "models", tiny_networks.reid(tmp_path / "net.onnx")
    repository.write(models, "reid", source)
    server = start_triton(models, "--model-control-mode=poll", "--repository-poll-secs=1")
    with opened(server.backend("reid"), tmp_path / "state") as embedder:
        watched = Watched(embedder, server)

        server.kill()
        noticed = watched.until(works=False)
        server.start()
        print(
            f"killed: noticed after {noticed:.1f} s, back {watched.until(works=True):.1f} s after the start"
        )

        server.send(signal.SIGSTOP, whole=False)
        noticed = watched.until(works=False)
        assert "no answer within 1 s" in embedder.engine.problem
        server.send(signal.SIGCONT, whole=False)
        print(f"frozen: noticed after {noticed:.1f} s, back after {watched.until(works=True):.1f} s")

        for child in server.children():
            os.kill(child, signal.SIGKILL)
        print(f"backend killed: noticed after {watched.until(works=False):.1f} s: {embedder.engine.problem}")
        server.kill()
        server.start()
        watched.until(works=True)

        repository.write(models, "reid", source, version=2)  # the same network again
        before, deadline = embedder.engine.failures, time.monotonic() + 30
        while embedder.engine.failures == before:
            watched.works()
            assert time.monotonic() < deadline
        watched.until(works=True)

        other = tiny_networks.reid(tmp_path / "other.onnx", seed=1)
        shutil.rmtree(models / "reid" / "1")
        repository.write(models, "reid", other, version=3)
        print(f"another network: {watched.until(works=False):.1f} s: {embedder.engine.problem}")
        assert "cannot be compared" in embedder.engine.problem
        shutil.rmtree(models / "reid")
        repository.write(models, "reid", source, version=4)
        watched.until(works=True)
    assert environment.named_memory() == []


def test_tls_on_a_real_server(start_triton: Callable[..., Server], tmp_path: Path) -> None:
    models, source = tmp_path / "models", tiny_networks.reid(tmp_path / "net.onnx")
    repository.write(models, "reid", source)
    found = certificates.make(tmp_path / "certificates").folder
    server = start_triton(
        models, "--grpc-use-ssl-mutual=true", f"--grpc-server-cert={found / 'server.pem'}",
        f"--grpc-server-key={found / 'server.key'}", f"--grpc-root-cert={found / 'ca.pem'}",
    )  # fmt: skip
    backend = server.backend("reid").replace("triton:", "tritons:")
    own = {"triton_ca_file": found / "ca.pem", "triton_cert_file": found / "jx01.pem"}
    with opened(backend, tmp_path / "state", **own, triton_key_file=found / "jx01.key") as embedder:
        assert embedder.embed_images(people()).shape == (5, 8)
    with pytest.raises(EngineUnavailable):
        opened(server.backend("reid"), tmp_path / "other")


def test_mlserver_is_a_second_peer(tmp_path: Path) -> None:
    models, source = tmp_path / "models", tiny_networks.reid(tmp_path / "net.onnx")
    models.mkdir()
    for name, raw in (("prepared", False), ("raw", True)):
        prepared = repository.write(tmp_path / "repository", name, source, raw=raw)
        folder = models / name
        folder.mkdir()
        shutil.copy(tmp_path / "repository" / name / "1" / "model.onnx", folder)
        size = [3, 256, 128] if raw else [256, 128, 3]
        names = ("input", "fc_pred") if raw else ("crops", "embedding")
        kind = "FP32" if raw else "UINT8"
        model = {
            "name": name,
            "implementation": "mlserver_runtime.Network",
            "parameters": {"uri": str(folder / "model.onnx"), "version": "1"},
            "inputs": [{"name": names[0], "datatype": kind, "shape": [-1, *size]}],
            "outputs": [{"name": names[1], "datatype": "FP32", "shape": [-1, prepared.dimension]}],
        }
        (folder / "model-settings.json").write_text(json.dumps(model))
    try:
        server = environment.mlserver(models, tmp_path)
    except environment.NotHereError as problem:
        pytest.skip(str(problem))
    own = {"model": source, "preprocess": "tao"}
    local = EngineSettings(backend="onnxruntime", **own)
    with open_embedder(local, QualitySettings(), tmp_path / "state") as here:
        wanted = here.embed_images(people())
    with environment.running(server):
        for name in ("prepared", "raw"):
            with opened(server.backend(name), tmp_path / "state", **own) as there:
                assert least_cosine(there.embed_images(people()), wanted) > 0.999999
                watched = Watched(there, server)
                server.kill()
                watched.until(works=False)
                server.start()
                watched.until(works=True)
