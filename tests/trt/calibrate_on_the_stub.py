"""`edge-agent calibrate` on TensorRT, over the real bindings: plans of every candidate, gate, switch.

What the stub computes has nothing to do with the network, so the gate compares equals; everything else is as
on a device: the graphs, what TensorRT receives, where plans lie, what is built again. `test_trt_build.py`
runs it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builder_stand_in import BuilderStub
from stand_in import rows

from edge_agent.core.config import EngineSettings, QualitySettings
from edge_agent.embed.opening import make_embedder
from edge_agent.engine.golden import golden_crops
from edge_agent.engine.models import prepare_model
from edge_agent.engine.plans.active import ActiveEngine
from edge_agent.engine.plans.store import PlanStore
from edge_agent.engine.precision.calibration import (
    Calibration,
    current_calibration,
    in_precision,
    prune_calibrations,
)
from edge_agent.engine.tensorrt.bindings import version
from edge_agent.offline.calibrate.job import Job
from edge_agent.offline.calibrate.request import Request, Silent
from edge_agent.offline.synthetic.crops import write_dataset
from tests import tiny_networks

pytestmark = pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT:DeprecationWarning")

NUMBERS = 32
TENSORRT = EngineSettings(backend="tensorrt")


@pytest.fixture(scope="session")
def the_stub() -> BuilderStub:
    return BuilderStub()


@pytest.fixture
def stub(the_stub: BuilderStub) -> Iterator[BuilderStub]:
    the_stub.reset()
    the_stub.plan = b"plan -1 256 128 32 3 1 16 64"
    yield the_stub
    assert the_stub.live() == 0, "memory, a stream or a context is left"


@pytest.fixture(scope="session")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("people")
    write_dataset(root, identities=12, cameras=3, per_identity=6, seed=6, test_share=0.7, workers=1)
    return root


def active(engines: Path) -> Calibration | None:
    return current_calibration(EngineSettings(folder=engines), engines.parent)


@pytest.fixture
def request_(people: Path, tmp_path: Path) -> Request:
    network = tiny_networks.convolutional(tmp_path / "tiny.onnx", dimension=NUMBERS)
    prepared, golden = prepare_model(network, "imagenet", None)
    known = rows(golden_crops(*prepared.input_size), NUMBERS)
    return Request(
        prepared=replace(prepared, normalised=False),  # the stub does not
        golden=replace(golden, vectors=known / np.linalg.norm(known, axis=1, keepdims=True)),
        engines=tmp_path / "engines",
        disk=tmp_path,
        dataset=people,
        engine=TENSORRT,
        size=16,
        target_fmr=0.02,
        bench_seconds=0.01,
    )


def builds(stub: BuilderStub) -> int:
    return sum(name == "build_serialized_network" for name, *_ in stub.received)


def test_from_network_to_active_engine(stub: BuilderStub, request_: Request, tmp_path: Path) -> None:
    result = Job(request_).run()
    report = result.report
    assert (report["precision"], report["backend"]) == ("int8", "tensorrt")
    assert report["gate"]["passed"] is True
    assert report["gate"]["cosine_min"] == pytest.approx(1, abs=1e-5)
    assert report["runs_on"]["tensorrt"].startswith(".".join(map(str, version()[:2])))
    assert builds(stub) == 2  # FP32 for the reference, and INT8; FP16 was not needed
    measured = {(row["precision"], row["batch"]) for row in report["bench"]["rows"]}
    assert measured == {(p, b) for p in ("fp32", "int8") for b in (1, 16, 64)}
    assert builds(stub) == 2, "one plan serves all batches"

    entries = {entry.precision: entry for entry in PlanStore(request_.engines).entries()}
    assert set(entries) == {"fp32", "int8"}
    assert entries["int8"].role == "current"
    assert entries["int8"].profiles == (1, 16, 64)
    calibration = active(request_.engines)
    graph = calibration.graph(request_.prepared)
    assert hashlib.sha256(graph.onnx).hexdigest() in ActiveEngine(request_.engines).read().current["graphs"]

    stub.received.clear()
    assert Job(request_).run().switched is False
    assert builds(stub) == 0


def test_run_loads_the_plan_that_calibrate_built(stub: BuilderStub, request_: Request) -> None:
    Job(replace(request_, bench_seconds=0.0)).run()
    stub.received.clear()
    calibration = active(request_.engines)
    graph = in_precision(request_.prepared, "auto", "tensorrt", calibration)
    embedder = make_embedder(
        graph, request_.golden, engine=TENSORRT, quality=QualitySettings(), plans=request_.engines
    )
    with embedder:
        assert embedder.info.precision == "int8"
        assert embedder.info.backend == "tensorrt"
    assert builds(stub) == 0


def test_without_a_data_set_fp16_is_built(stub: BuilderStub, request_: Request) -> None:
    result = Job(replace(request_, dataset=None, bench_seconds=0.0)).run()
    assert result.report["precision"] == "fp16"
    assert result.report["gate"]["passed"] is None
    assert builds(stub) == 1
    assert [entry.precision for entry in PlanStore(request_.engines).entries()] == ["fp16"]


class NoInt8(Silent):
    """TensorRT builds nothing while INT8 is tried."""

    def __init__(self, stub: BuilderStub) -> None:
        self._stub, self._plan = stub, stub.plan

    def begin(self, step: str, total: int | None) -> None:
        if not step.startswith("building"):
            self._stub.plan = None if "INT8" in step else self._plan


def test_a_build_that_fails_costs_the_candidate_not_the_command(stub: BuilderStub, request_: Request) -> None:
    report = Job(replace(request_, bench_seconds=0.0), NoInt8(stub)).run().report
    assert report["precision"] == "fp16"
    assert "no tactic was found" in report["gates"]["int8"]["reasons"][0]
    assert report["gates"]["fp16"]["passed"] is True


def test_prune_keeps_plans_of_the_active_and_the_previous_engine(
    stub: BuilderStub, request_: Request
) -> None:
    Job(replace(request_, precision="fp16", bench_seconds=0.0)).run()
    Job(replace(request_, bench_seconds=0.0)).run()
    store = PlanStore(request_.engines)
    assert store.prune(unused_s=0.0).plans == ()  # the exported graph belongs to both
    assert prune_calibrations(request_.engines) == ((), 0)
    assert {entry.precision for entry in store.entries()} == {"fp32", "fp16", "int8"}
    ActiveEngine(store.folder).rollback()
    assert active(request_.engines).precision == "fp16"
