"""Calls that TensorRT receives in a build, over the real bindings, and calibration by their C++ objects.

`test_trt_build.py` runs this file with pytest in a process of its own, once for each version.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
import tensorrt as trt
from builder_stand_in import BuilderStub
from stand_in import rows

from edge_agent.core.config import EngineSettings
from edge_agent.core.errors import EngineError, InputError, ModelError
from edge_agent.engine.golden import Golden
from edge_agent.engine.graph.prepare import prepare_reid
from edge_agent.engine.graph.prepared import PROFILES, PreparedGraph
from edge_agent.engine.plans.store import PlanStore
from edge_agent.engine.precision.half import to_half
from edge_agent.engine.precision.scales import Scales, read_cache
from edge_agent.engine.tensorrt import builder
from edge_agent.engine.tensorrt.bindings import Log, has_dla, make_runtime, version
from edge_agent.engine.tensorrt.builder import build_plan
from edge_agent.engine.tensorrt.calibrator import Calibration, Pictures
from edge_agent.engine.tensorrt.engine import TensorRTEngine
from edge_agent.engine.tensorrt.recipe import BuildOptions, batches_for, order_for, this_machine
from edge_agent.engine.tensorrt.supply import PlanBuilder
from edge_agent.offline.exports.network import ExportNetwork
from edge_agent.offline.exports.triton import export_triton
from tests import tiny_networks

# The bindings of TensorRT 10 warn of what TensorRT 11 has no more.
pytestmark = pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT:DeprecationWarning")

MAJOR = version()[0]
TYPED = MAJOR >= 11
FP16, INT8, GPU_FALLBACK = 0, 1, 3
"""Numbers of builder flags in NvInfer.h of TensorRT 8 to 10."""
MIN, OPT, MAX = 0, 1, 2
PICTURE = (16, 8, 3)
DIGEST = hashlib.sha256(b"graph").hexdigest()
KNOWN = Scales({"crops": 255.0, "x:0": 1.5}, "percentile", DIGEST)

calibrators = pytest.mark.skipif(
    not hasattr(trt, "IInt8EntropyCalibrator2"), reason="this TensorRT has no calibrators"
)
monitor = pytest.mark.skipif(not hasattr(trt, "IProgressMonitor"), reason="this TensorRT counts no steps")


@pytest.fixture(scope="session")
def the_stub() -> BuilderStub:
    return BuilderStub()


@pytest.fixture
def stub(the_stub: BuilderStub) -> Iterator[BuilderStub]:
    """A builder that answers here; whatever happened, nothing of CUDA's may be left."""
    the_stub.reset()
    yield the_stub
    assert the_stub.live() == 0, "memory, a stream or a context is left"


def graph(precision: str = "fp32") -> PreparedGraph:
    return PreparedGraph(
        onnx=b"graph", source=Path("reid.onnx"), source_sha256="0" * 64, name="reid", input_size=(16, 8),
        batch=None, profile=None, dimension=4, space="s", normalised=True, channels_last=False, half=False,
        precision=precision,
    )  # fmt: skip


def half() -> PreparedGraph:
    """The graph of an FP16 engine."""
    return graph("fp16" if TYPED else "fp32")


def picture(value: int) -> np.ndarray:
    return np.full(PICTURE, value % 251, np.uint8)


def pictures(count: int, *, there: int | None = None, batch: int = 4, **more: Any) -> Calibration:
    made = [picture(number) for number in range(count if there is None else there)]
    return Calibration(Pictures(count, "d", lambda: iter(made)), batch=batch, **more)


def received(stub: BuilderStub, name: str) -> list[tuple[Any, ...]]:
    """The arguments of the method, call by call."""
    return [given for method, *given in stub.received if method == name]


# --- precision --------------------------------------------------------------------------------


def test_a_build_from_graph_to_plan(stub: BuilderStub) -> None:
    phases = []
    built = build_plan(
        half(), BuildOptions("fp16"), timing=b"timings", progress=lambda *given: phases.append(given)
    )
    assert received(stub, "create_network") == [[1 if MAJOR < 10 else 0]]
    assert received(stub, "parse") == [["graph"]]
    assert received(stub, "set_flag") == ([] if TYPED else [[FP16]])
    assert received(stub, "clear_flag") == []
    assert received(stub, "set_memory_pool_limit") == [[0, built.facts["workspace_bytes"]]]
    assert built.facts["workspace_bytes"] > 1 << 24
    assert sorted(received(stub, "set_shape")) == sorted(
        ["crops", which, batch, *PICTURE]
        for largest in (1, 16, 64)
        for which, batch in ((MIN, 1), (OPT, largest), (MAX, largest))
    )
    assert received(stub, "create_timing_cache") == [["timings"]]
    assert built.data == b"plan -1 16 8 4 3 1 16 64"
    assert built.timing == b"timings"
    assert built.scales is None
    if MAJOR >= 10:
        assert phases == [("tactics", done, 3) for done in (0, 1, 2, 3, 3)]


def test_fp32_is_not_rounded_to_tf32(stub: BuilderStub) -> None:
    build_plan(graph(), BuildOptions("fp32"))
    assert received(stub, "set_flag") == []
    assert received(stub, "clear_flag") == [[int(trt.BuilderFlag.TF32)]]


def test_a_graph_that_is_typed_itself(stub: BuilderStub) -> None:
    build_plan(graph("fp16"), BuildOptions("fp16"))
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if MAJOR == 10 else 0
    assert received(stub, "create_network") == [[1 if MAJOR < 10 else typed]]
    assert received(stub, "set_flag") == ([[FP16]] if MAJOR < 10 else [])


def test_int8_by_the_graph(stub: BuilderStub) -> None:
    build_plan(graph("int8"), BuildOptions("int8"))
    assert received(stub, "set_flag") == ([] if TYPED else [[FP16], [INT8]])
    assert received(stub, "algorithm") == []


@pytest.mark.skipif(not TYPED, reason="this TensorRT takes them")
@pytest.mark.parametrize(
    ("options", "why"),
    [
        (BuildOptions("fp16"), "give it the graph in FP16"),
        (BuildOptions("int8", scales=KNOWN), "quantise/dequantise nodes"),
        (BuildOptions("int8", scales=pictures(16)), "quantise/dequantise nodes"),
    ],
)
def test_a_typed_tensorrt_names_what_it_needs_instead(
    stub: BuilderStub, options: BuildOptions, why: str
) -> None:
    with pytest.raises(EngineError, match=why):
        build_plan(graph(), options)
    assert received(stub, "build_serialized_network") == []


# --- calibration ------------------------------------------------------------------------------


@calibrators
def test_known_ranges_are_given_under_the_running_version(stub: BuilderStub) -> None:
    built = build_plan(graph(), BuildOptions("int8", scales=KNOWN))
    assert stub.read is not None
    headers = {"8.6.1": b"TRT-8601-", "10.3.0": b"TRT-100300-", "10.16.1": b"TRT-101601-"}
    header = next(value for name, value in headers.items() if trt.__version__.startswith(name))
    assert stub.read.startswith(header + b"EntropyCalibration2\n")
    assert read_cache(stub.read).amax == pytest.approx({"crops": 255.0, "x:0": 1.5})
    assert stub.seen == [], "TensorRT reads no batch"
    assert built.scales is None
    assert received(stub, "algorithm") == [[2]]
    assert len(received(stub, "set_calibration_profile")) == 1
    assert received(stub, "set_shape")[-3:] == [["crops", which, 1, *PICTURE] for which in (MIN, OPT, MAX)]
    assert received(stub, "set_flag") == [[FP16], [INT8]]


@calibrators
def test_ranges_of_another_graph_end_the_build(stub: BuilderStub) -> None:
    with pytest.raises(ModelError, match="belong to another graph"):
        build_plan(graph(), BuildOptions("int8", scales=replace(KNOWN, model_sha256="0" * 64)))
    assert received(stub, "build_serialized_network") == []


@calibrators
@pytest.mark.parametrize(
    ("algorithm", "number", "method"),
    [("EntropyCalibration2", 2, "entropy"), ("MinMaxCalibration", 3, "minmax")],
)
def test_tensorrt_finds_ranges_with_every_full_batch(
    stub: BuilderStub, algorithm: Any, number: int, method: str
) -> None:
    lines = (f"TRT-1-{algorithm}", "crops: 40000000", "zero: 00000000", "a: b: 3f800000", "")
    stub.cache = "\n".join(lines).encode()
    counted = pictures(np.int64(14), batch=np.int64(4), algorithm=algorithm)  # type: ignore[arg-type]
    built = build_plan(graph(), BuildOptions("int8", scales=counted))
    assert received(stub, "algorithm") == [[number]]
    assert received(stub, "batch") == [[4]]
    assert [shape for shape in received(stub, "set_shape") if shape[2] == 4] == [
        ["crops", which, 4, *PICTURE] for which in (MIN, OPT, MAX)
    ]
    batches = [np.stack([picture(number) for number in range(at, at + 4)]) for at in (0, 4, 8)]
    assert stub.seen == [batch.tobytes() for batch in batches], "the last two pictures fill no batch"
    assert built.scales is not None
    assert built.scales.amax == pytest.approx({"a: b": 127.0, "crops": 254.0}), "a range of zero is none"
    assert (built.scales.method, built.scales.model_sha256) == (method, DIGEST)


def ending(problem: BaseException) -> Calibration:
    def some() -> Iterator[np.ndarray]:
        yield picture(0)
        raise problem

    return Calibration(Pictures(16, "d", some), batch=4)


def all_like(wrong: np.ndarray) -> Calibration:
    return Calibration(Pictures(16, "d", lambda: iter([wrong] * 16)), batch=4)


def unavailable() -> Iterator[np.ndarray]:
    raise InputError("the pictures are gone")


GOOD_CACHE = b"TRT-1-EntropyCalibration2\ncrops: 40000000\n"


@calibrators
@pytest.mark.parametrize(
    ("given", "cache", "kind", "why"),
    [
        (pictures(16, there=9), GOOD_CACHE, EngineError, "the calibration pictures ended in batch 3 of 4"),
        (pictures(16, there=0), GOOD_CACHE, EngineError, "the calibration pictures ended in batch 1 of 4"),
        (pictures(3), GOOD_CACHE, EngineError, "3 pictures do not fill a calibration batch of 4"),
        (pictures(16), b"", EngineError, "gave no ranges back"),
        (pictures(16), b"TRT-1-LegacyCalibration\nx: 3f800000\n", InputError, "not a calibration cache"),
        (pictures(16), b"TRT-1-EntropyCalibration2\nx: 00000000\n", ModelError, "no ranges"),
        (ending(ValueError("boom")), GOOD_CACHE, ValueError, "boom"),
        (ending(KeyboardInterrupt("enough")), GOOD_CACHE, KeyboardInterrupt, "enough"),
        (all_like(np.zeros((8, 16, 3), np.uint8)), GOOD_CACHE, EngineError, r"got \(8, 16, 3\) uint8"),
        (all_like(np.zeros(PICTURE, np.float32)), GOOD_CACHE, EngineError, "got .* float32"),
        (Calibration(Pictures(16, "d", unavailable), batch=4), GOOD_CACHE, InputError, "are gone"),
    ],
)
def test_faults_in_calibration_end_in_an_error(
    stub: BuilderStub,
    capfd: pytest.CaptureFixture[str],
    given: Calibration,
    cache: bytes,
    kind: type[BaseException],
    why: str,
) -> None:
    """TensorRT ignores an exception of its calibrator and builds a plan."""
    stub.cache = cache
    with pytest.raises(kind, match=why):
        build_plan(graph(), BuildOptions("int8", scales=given))
    assert "Exception caught in" not in capfd.readouterr().err, "nothing was thrown into TensorRT"


@calibrators
def test_batches_that_tensorrt_did_not_take(stub: BuilderStub) -> None:
    stub.cache, stub.batches = GOOD_CACHE, 2
    with pytest.raises(EngineError, match="TensorRT calibrated with 2 of 4 batches"):
        build_plan(graph(), BuildOptions("int8", scales=pictures(16)))


@calibrators
@monitor
def test_a_failed_calibration_cancels_the_build(stub: BuilderStub) -> None:
    stub.cache, stub.steps = GOOD_CACHE, 1000
    phases: list[int] = []
    with pytest.raises(ValueError, match="boom"):
        build_plan(
            graph(),
            BuildOptions("int8", scales=ending(ValueError("boom"))),
            progress=lambda phase, done, total: phases.append(done),
        )
    assert phases == [0, 1]


# --- failures ---------------------------------------------------------------------------------


def test_a_graph_that_cannot_be_parsed(stub: BuilderStub) -> None:
    stub.parses = False
    with pytest.raises(EngineError, match="does not take reid") as caught:
        build_plan(graph(), BuildOptions("fp32"))
    assert str(caught.value).count("no importer for operator Foo") == 2


def test_a_failing_build_gives_the_reason(stub: BuilderStub) -> None:
    stub.plan = None
    with pytest.raises(EngineError, match="could not build reid in FP32: stub: no tactic was found"):
        build_plan(graph(), BuildOptions("fp32"))


def test_a_failing_build_with_an_open_engine_gives_the_reason(stub: BuilderStub) -> None:
    """TensorRT has one logger: the first that it was given, here the engine's."""
    log = Log()
    runtime = make_runtime(log)
    stub.plan = None
    with pytest.raises(EngineError, match="could not build reid in FP32: stub: no tactic was found"):
        build_plan(graph(), BuildOptions("fp32"))
    assert log.take() == ["stub: no tactic was found"]
    assert Log().logger is log.logger
    del runtime


@monitor
def test_an_exception_in_progress_ends_the_build(stub: BuilderStub) -> None:
    phases: list[int] = []

    def stop(phase: str, done: int, total: int) -> None:
        phases.append(done)
        if done == 2:
            raise KeyboardInterrupt("enough")

    stub.steps = 100
    with pytest.raises(KeyboardInterrupt, match="enough"):
        build_plan(graph(), BuildOptions("fp32"), progress=stop)
    assert phases == [0, 1, 2]


@pytest.mark.skipif(hasattr(trt, "IProgressMonitor"), reason="this TensorRT counts steps")
def test_progress_by_seconds_where_tensorrt_counts_no_steps(
    stub: BuilderStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "_TICK_S", 0.05)
    stub.seconds = 0.4
    phases: list[tuple[str, int]] = []
    build_plan(graph(), BuildOptions("fp32"), progress=lambda phase, _, total: phases.append((phase, total)))
    assert set(phases) == {("building", 0)}


def test_a_timing_cache_that_does_not_fit_is_replaced(stub: BuilderStub) -> None:
    built = build_plan(graph(), BuildOptions("fp32"), timing=b"of another GPU")
    assert received(stub, "create_timing_cache") == [["of another GPU"], [""]]
    assert built.timing == b"timings"


def test_nothing_is_begun_without_memory(stub: BuilderStub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "available_memory", lambda: 500_000 * 1024)
    with pytest.raises(EngineError, match="MiB of free memory, 488 MiB are free"):
        build_plan(graph(), BuildOptions("fp32"))
    assert stub.received == []


# --- accelerator ------------------------------------------------------------------------------


@pytest.mark.skipif(not has_dla(version()), reason="this TensorRT knows no DLA")
def test_for_the_accelerator(stub: BuilderStub) -> None:
    built = build_plan(half(), BuildOptions("fp16", dla_core=1))
    assert received(stub, "default_device_type") == [[int(trt.DeviceType.DLA)]]
    assert received(stub, "config_DLA_core") == [[1]]
    assert received(stub, "set_flag") == [[GPU_FALLBACK], [FP16]]
    shapes = {tuple(shape[1:3]) for shape in received(stub, "set_shape")}
    assert shapes == {(which, batch) for which in (MIN, OPT, MAX) for batch in (1, 16, 64)}, "sizes are fixed"
    assert built.facts["dla"] == {"core": 1, "layers": 3, "on_gpu": ["pool"]}
    with pytest.raises(EngineError, match="there is no DLA core 2: this device has 2"):
        build_plan(half(), BuildOptions("fp16", dla_core=2))


@pytest.mark.skipif(has_dla(version()), reason="this TensorRT knows the DLA")
def test_without_a_known_accelerator_the_gpu_is_used_and_reported(stub: BuilderStub) -> None:
    with structlog.testing.capture_logs() as logs:
        build_plan(half(), BuildOptions("fp16", dla_core=0))
    assert received(stub, "default_device_type") == []
    assert "dla_unavailable" in [entry["event"] for entry in logs]


# --- supply -----------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> PlanStore:
    return PlanStore(tmp_path / "engines", host="h")


@pytest.fixture
def supply(store: PlanStore) -> Callable[..., PlanBuilder]:
    def make(**more: Any) -> PlanBuilder:
        return PlanBuilder(store, half(), BuildOptions("fp16"), **more)

    return make


def opened(builder: PlanBuilder) -> TensorRTEngine:
    return TensorRTEngine(half(), builder, EngineSettings(), max_batch=64)


def reasons(store: PlanStore) -> list[str]:
    paths = sorted(store.folder.glob("quarantine/*-reason.json"))
    return [json.loads(path.read_text())["why"] for path in paths]


def test_an_engine_runs_what_was_built_once(
    stub: BuilderStub, store: PlanStore, supply: Callable[..., PlanBuilder]
) -> None:
    def conditions() -> dict[str, str]:
        return {"power_mode": "MAXN"}

    for _ in range(2):
        with opened(supply(conditions=conditions)) as engine:
            pictures = np.random.default_rng(17).integers(0, 256, engine.buffer()[:17].shape, np.uint8)
            engine.buffer()[:17] = pictures
            engine.submit(17)
            np.testing.assert_array_equal(engine.collect(), rows(pictures, 4))
    assert len(received(stub, "build_serialized_network")) == 1
    machine = this_machine()
    assert machine.tensorrt == trt.__version__
    assert (machine.driver, machine.gpu, machine.compute_capability) == ("12.6", "Fake Orin", "8.7")
    (entry,) = store.entries(machine, digests=True)
    assert (entry.verdict, entry.model, entry.profiles) == ("ok", "reid", (1, 16, 64))
    assert store.read_timing(machine) == b"timings"
    plan = supply().plan()
    assert plan.facts["power_mode"] == "MAXN"
    assert plan.batches == (1, 16, 64)


def test_a_plan_that_tensorrt_refuses_is_put_aside_and_built_again(
    stub: BuilderStub, store: PlanStore, supply: Callable[..., PlanBuilder]
) -> None:
    store.put(supply().order(), b"a plan of yesterday", {"model": "reid"})
    with opened(supply()):
        pass
    assert len(received(stub, "build_serialized_network")) == 1
    assert len(reasons(store)) == 1
    assert "not compatible with this version of TensorRT" in reasons(store)[0]


def test_a_plan_that_is_refused_right_after_it_was_built_is_an_error(
    stub: BuilderStub, store: PlanStore, supply: Callable[..., PlanBuilder]
) -> None:
    stub.plan = b"no plan"
    with pytest.raises(EngineError, match="cannot be used, though it was just made"):
        opened(supply()).__enter__()
    builder = supply()
    plan = builder.plan()
    builder.rejected(plan, "first")
    with pytest.raises(EngineError, match="was built again and cannot be used either: second"):
        builder.rejected(plan, "second")
    assert reasons(store)[-2:] == ["first", "second"]


def test_no_build_without_disk(
    stub: BuilderStub,
    store: PlanStore,
    supply: Callable[..., PlanBuilder],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(builder, "_DISK_FLOOR", 1 << 60)
    with pytest.raises(EngineError, match=r"make room \(edge-agent engines prune"):
        supply().plan()
    assert stub.received == []
    assert not store.folder.exists()


# --- export -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tao", [False, True])
def test_triton_gets_the_plan_that_the_agent_runs(stub: BuilderStub, tmp_path: Path, tao: bool) -> None:
    prepared = prepare_reid(tiny_networks.reid(tmp_path / "m.onnx"), PROFILES["tao"])
    settings = EngineSettings(backend="tensorrt", max_batch=64)
    network = ExportNetwork(
        prepared=prepared,
        graph=to_half(prepared),
        golden=Golden(prepared.space, np.zeros((4, 8), np.float32), "the test"),
        settings=settings,
        backend="tensorrt",
        active=None,
        engines=tmp_path / "engines",
    )
    done = export_triton(network, tmp_path / "repository", tao=tao)
    assert done.model.name == "model.plan"
    assert done.model.read_bytes() == b"plan -1 16 8 4 3 1 16 64"
    name, sizes = ("input", (3, 256, 128)) if tao else ("crops", (256, 128, 3))
    assert [name, MAX, 64, *sizes] in received(stub, "set_shape")
    text = (done.folder / "config.pbtxt").read_text()
    for line in ('backend: "tensorrt"', "kind: KIND_GPU", 'profile: [ "0", "1", "2" ]', "max_batch_size: 64"):
        assert line in text
    assert done.card["plan"]["tensorrt"] == trt.__version__
    assert (done.card["precision"], done.card["plan"]["batches"]) == ("fp16", (1, 16, 64))

    export_triton(network, tmp_path / "repository", tao=tao, overwrite=True)
    assert len(received(stub, "build_serialized_network")) == 1
    if not tao:  # the agent finds it under the same key
        options = BuildOptions("fp16", batches_for(settings.max_batch))
        assert PlanStore(tmp_path / "engines").find(order_for(network.graph, options, this_machine()))
