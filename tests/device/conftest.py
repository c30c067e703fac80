"""Fixtures of the tests on a real NVIDIA machine. Without a usable GPU they skip with the reason.

Run them with `python -m pytest -m device tests/device`. They build about ten engines, minutes each.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_agent.core.config import EngineSettings
from edge_agent.engine.base import Engine
from edge_agent.engine.graph.prepare import prepare_reid
from edge_agent.engine.graph.prepared import PreparedGraph, profile_named
from edge_agent.engine.models import choose_model
from edge_agent.engine.onnxruntime import OnnxRuntimeEngine
from edge_agent.engine.plans.store import PlanStore
from edge_agent.engine.precision.scales import Scales
from edge_agent.engine.tensorrt.calibrator import Calibration, Pictures
from edge_agent.engine.tensorrt.engine import TensorRTEngine
from edge_agent.engine.tensorrt.recipe import BuildOptions
from edge_agent.engine.tensorrt.supply import PlanBuilder
from tests.conftest import REPO

CROPS = 96
MAX_BATCH = 64
PRECISIONS = ("fp32", "fp16", "fp16 flag", "int8", "int8 given", "int8 found")
"""As the agent builds them, from a graph in that precision. `flag`: FP16 that TensorRT chooses itself;
`given`: INT8 ranges from ONNX Runtime by a calibration cache; `found`: by TensorRT's own calibrator."""

Rows = NDArray[np.float32]


@pytest.fixture(scope="session", autouse=True)
def machine() -> str:
    """The machine. Queried in a separate process, because a broken driver must not end the run."""
    code = "from edge_agent.engine.tensorrt.recipe import this_machine as m; print(m())"
    asked = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=False
    )
    if asked.returncode:
        pytest.skip(f"no NVIDIA GPU to use: {(asked.stderr.strip().splitlines() or ['crashed'])[-1][:300]}")
    return asked.stdout.strip()


@pytest.fixture(scope="session")
def crops() -> NDArray[np.uint8]:
    """`(96, 256, 128, 3)` rendered people, each of them four times."""
    return rendered(CROPS, people=CROPS // 4, seed=5)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedGraph:
    """The network that ships, ready for any engine."""
    model = choose_model(EngineSettings(), tmp_path_factory.mktemp("state"))
    return prepare_reid(model.path, profile_named(model.preprocess))


@pytest.fixture(scope="session")
def reference(prepared: PreparedGraph, crops: NDArray[np.uint8]) -> Rows:
    """`(96, D)` by ONNX Runtime in FP32."""
    with OnnxRuntimeEngine(prepared, max_batch=32, threads=0) as engine:
        return run(engine, crops)


@pytest.fixture(scope="session")
def scales(prepared: PreparedGraph, crops: NDArray[np.uint8]) -> Scales:
    """Ranges of the network for other people than those of `crops`."""
    from edge_agent.offline.calibrate.ranges import ranges

    return ranges(prepared, other_people())


def other_people() -> NDArray[np.uint8]:
    """`(64, 256, 128, 3)`: other people than `crops`, on other cameras."""
    return rendered(64, people=64, seed=7)


def rendered(count: int, *, people: int, seed: int) -> NDArray[np.uint8]:
    """`(count, 256, 128, 3)`: rendered people, who take turns before four cameras."""
    from edge_agent.offline.synthetic.camera import camera
    from edge_agent.offline.synthetic.crops import render_crop
    from edge_agent.offline.synthetic.identity import identity

    dice = np.random.default_rng(seed)
    views = [camera(100 * seed + number) for number in range(4)]
    who = [identity(1000 * seed + number) for number in range(people)]
    return np.stack([render_crop(who[n % people], views[n % 4], dice) for n in range(count)])


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> PlanStore:
    """Plans of the whole run: each is built once."""
    return PlanStore(tmp_path_factory.mktemp("engines"))


@pytest.fixture(scope="session")
def variant(prepared: PreparedGraph, scales: Scales) -> Callable[[str], tuple[PreparedGraph, BuildOptions]]:
    """Graph and options for each of `PRECISIONS`; skips those that this TensorRT does not support."""

    def chosen(name: str) -> tuple[PreparedGraph, BuildOptions]:
        from edge_agent.engine.precision.half import to_half
        from edge_agent.engine.tensorrt.bindings import version
        from edge_agent.offline.calibrate.quantise import quantise

        if name == "int8":
            return quantise(prepared, scales), BuildOptions("int8")
        if name.startswith("int8"):
            if not has_calibrators():
                pytest.skip("this TensorRT has no calibrators: INT8 comes from the graph alone")
            return prepared, BuildOptions("int8", scales=scales if name == "int8 given" else calibration())
        if name == "fp16":
            return to_half(prepared), BuildOptions("fp16")
        if name == "fp16 flag" and version()[0] >= 11:
            pytest.skip("this TensorRT has no flag for FP16: it comes from the graph alone")
        return prepared, BuildOptions("fp16" if name == "fp16 flag" else "fp32")

    return chosen


def has_calibrators() -> bool:
    import tensorrt

    return hasattr(tensorrt, "IInt8EntropyCalibrator2")


def calibration() -> Calibration:
    pictures = other_people()
    digest = hashlib.sha256(pictures.tobytes()).hexdigest()
    return Calibration(Pictures(len(pictures), digest, lambda: iter(pictures)))


@pytest.fixture
def engine(
    store: PlanStore, variant: Callable[[str], tuple[PreparedGraph, BuildOptions]]
) -> Callable[..., TensorRTEngine]:
    """`engine("fp16", zero_copy="off")`: an engine of a precision; not yet entered."""

    def make(name: str, **options: Any) -> TensorRTEngine:
        graph, wanted = variant(name)
        settings = EngineSettings(**options)
        builder = PlanBuilder(store, graph, replace(wanted, dla_core=settings.dla_core))
        return TensorRTEngine(graph, builder, settings, max_batch=MAX_BATCH)

    return make


def run(engine: Engine, crops: NDArray[np.uint8], batch: int | None = None) -> Rows:
    """Rows of all crops, in batches of `batch` with two in flight."""
    return np.concatenate(list(_stream(engine, crops, batch or engine.info.max_batch)))


def _stream(engine: Engine, crops: NDArray[np.uint8], batch: int) -> Iterator[Rows]:
    for start in range(0, len(crops), batch):
        if engine.in_flight == 2:
            yield engine.collect()
        chunk = crops[start : start + batch]
        engine.buffer()[: len(chunk)] = chunk
        engine.submit(len(chunk))
    while engine.in_flight:
        yield engine.collect()


def cosines(a: Rows, b: Rows) -> Rows:
    """Of corresponding rows."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    result: Rows = np.einsum("nd,nd->n", a, b) / lengths
    return result


def resident_bytes() -> int:
    """Memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("/proc/self/status has no VmRSS")
