"""The TensorRT engine, run: real bindings, pycuda and cuda-python over a driver that is as late as it may be.

`test_trt_engine.py` runs this file with pytest in a process of its own, once for each version.
"""

from __future__ import annotations

import queue
import re
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import stand_in
import structlog

from edge_agent.core.config import EngineSettings
from edge_agent.core.errors import EngineError, StorageError
from edge_agent.engine.graph.prepared import PreparedGraph
from edge_agent.engine.tensorrt import bindings as trt
from edge_agent.engine.tensorrt import cuda
from edge_agent.engine.tensorrt import engine as engine_module
from edge_agent.engine.tensorrt.engine import TensorRTEngine
from edge_agent.engine.tensorrt.session import Session

HEIGHT, WIDTH, NUMBERS, LARGEST = 32, 16, 8, 8


@dataclass
class Plan:
    data: bytes = f"plan -1 {HEIGHT} {WIDTH} {NUMBERS} 3 1 4 8".encode()
    batches: tuple[int, ...] = (1, 4, 8)
    precision: str = "fp16"
    key: str = "0123abcd"


@dataclass
class Supply:
    """Gives its plans in order and notes why one was rejected."""

    plans: list[Plan] = field(default_factory=lambda: [Plan()])
    reasons: list[str] = field(default_factory=list)

    def plan(self) -> Plan:
        return self.plans[0]

    def rejected(self, plan, why: str) -> Plan:
        assert plan is self.plans[0]
        self.reasons.append(why)
        return self.plans[1]


def prepared(batch: int | None = None) -> PreparedGraph:
    return PreparedGraph(
        onnx=b"", source=Path("net.onnx"), source_sha256="0" * 64, name="net", input_size=(HEIGHT, WIDTH),
        batch=batch, profile=None, dimension=NUMBERS, space="space", normalised=False, channels_last=False,
        half=False,
    )  # fmt: skip


def make(supply: Supply | None = None, *, max_batch: int = LARGEST, batch: int | None = None, **options):
    settings = EngineSettings.model_construct(**EngineSettings().model_dump() | options)
    return TensorRTEngine(prepared(batch), supply or Supply(), settings, max_batch=max_batch)


def crops(count: int, seed: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)


def rows(batch: np.ndarray) -> np.ndarray:
    return stand_in.rows(batch, NUMBERS)


def submit(engine, batch):
    engine.buffer()[: len(batch)] = batch
    engine.submit(len(batch))


def embed(engine, batch):
    submit(engine, batch)
    return engine.collect()


@pytest.fixture
def launches(monkeypatch):
    """Sessions and slots in the order in which batches are put on the stream, or fail to be."""
    done = queue.SimpleQueue()

    class Watched(Session):
        def launch(self, slot, count):
            try:
                super().launch(slot, count)
            finally:
                done.put((self, self.slots.index(slot)))

    monkeypatch.setattr(engine_module, "Session", Watched)
    return done


def forget(done):
    while not done.empty():
        done.get()


@pytest.fixture(scope="session")
def stub():
    return stand_in.Stub()


@pytest.fixture(autouse=True)
def nothing_is_left(stub):
    stub.events()
    yield
    assert stub.live() == 0
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("engine")]
    stub.no_faults()


# --- batches ----------------------------------------------------------------------------------


@pytest.mark.parametrize("zero_copy", ["on", "off"])
@pytest.mark.parametrize("cuda_graphs", ["auto", "off"])
def test_every_batch_gets_its_own_rows(zero_copy, cuda_graphs):
    counts = [1, 2, 8, 1, 1, 3, 4, 5, 8, 8, 7, 1, 2]
    batches = [crops(count, seed) for seed, count in enumerate(counts)]
    with make(zero_copy=zero_copy, cuda_graphs=cuda_graphs) as engine:
        got = []
        for batch in batches:
            if engine.in_flight == 2:
                got.append(engine.collect())
            submit(engine, batch)
        while engine.in_flight:
            got.append(engine.collect())
    for batch, found in zip(batches, got, strict=True):
        np.testing.assert_array_equal(found, rows(batch))
    assert (engine.runs, engine.failures) == (len(counts), 0)
    assert engine.run_seconds == pytest.approx(0.001 * len(counts))  # by the clock of libcuda.c


def test_the_smallest_profile_that_fits_runs_exactly_the_batch(stub):
    with make(cuda_graphs="off") as engine:
        stub.events()
        for count in (1, 2, 4, 5, 8):
            embed(engine, crops(count))
        ran = [line for line in stub.events() if "batch" in line]
    assert ran == [
        f"profile {profile} runs a batch of {count}"
        for profile, count in ((0, 1), (1, 2), (1, 4), (2, 5), (2, 8))
    ]


def test_single_pictures_are_replayed(stub):
    with make() as engine:
        stub.events()
        for seed in range(3):
            np.testing.assert_array_equal(embed(engine, crops(1, seed)), rows(crops(1, seed)))
        assert stub.events() == ["graph launched"] * 3
        embed(engine, crops(2))
        assert stub.events() == ["profile 1 runs a batch of 2"]


def test_profiles_of_one_batch_are_filled_up(stub):
    plan = Plan(f"plan -2 {HEIGHT} {WIDTH} {NUMBERS} 2 4 8".encode(), (4, 8))
    with make(Supply([plan])) as engine:
        stub.events()
        np.testing.assert_array_equal(embed(engine, crops(3)), rows(crops(3)))
        assert stub.events() == ["profile 0 runs a batch of 4"]


def test_network_of_one_batch(stub):
    plan = Plan(f"plan 4 {HEIGHT} {WIDTH} {NUMBERS} 1 4".encode(), (4,))
    with make(Supply([plan]), max_batch=64, batch=4) as engine:
        assert engine.info.max_batch == len(engine.buffer()) == 4
        np.testing.assert_array_equal(embed(engine, crops(3)), rows(crops(3)))


def test_the_gpu_is_waited_for(launches):
    """With a late driver: submitted work is computed only when a caller waits."""
    with make() as engine:
        forget(launches)
        submit(engine, crops(2))
        session, slot = launches.get()
        assert session.slots[slot].rows.poisoned(2)
        np.testing.assert_array_equal(engine.collect(), rows(crops(2)))


def test_both_batches_are_on_the_stream_before_one_is_collected(stub, launches):
    with make(cuda_graphs="off") as engine:
        stub.events()
        forget(launches)
        submit(engine, crops(2, 1))
        submit(engine, crops(3, 2))
        for _ in range(2):
            launches.get()
        assert stub.events() == ["profile 1 runs a batch of 2", "profile 1 runs a batch of 3"]
        np.testing.assert_array_equal(engine.collect(), rows(crops(2, 1)))
        np.testing.assert_array_equal(engine.collect(), rows(crops(3, 2)))


# --- the contract of engine.base ----------------------------------------------------------------


def test_use_out_of_order_is_refused():
    engine = make(max_batch=4)
    assert (engine.info.backend, engine.info.precision, engine.info.max_batch) == ("tensorrt", "fp32", 4)
    with pytest.raises(EngineError, match="not running"):
        engine.buffer()
    with engine:
        with pytest.raises(EngineError, match="nothing to collect"):
            engine.collect()
        for count in (0, -1, 5):
            with pytest.raises(EngineError, match="1 to 4 pictures"):
                engine.submit(count)
        submit(engine, crops(1))
        submit(engine, crops(1))
        with pytest.raises(EngineError, match="2 batches are in flight"):
            engine.buffer()
        with pytest.raises(EngineError, match="2 batches are in flight"):
            engine.submit(1)
        engine.collect()
        submit(engine, crops(1))
    assert engine.in_flight == 0
    with pytest.raises(EngineError, match="not running"):
        engine.buffer()


def test_entered_again():
    engine = make()
    for _ in range(2):
        with engine:
            np.testing.assert_array_equal(embed(engine, crops(3)), rows(crops(3)))
            assert (engine.info.precision, engine.info.device) == ("fp16", "Fake Orin")


def test_two_buffers_and_rows_of_the_caller():
    with make() as engine:
        seen = set()
        kept = embed(engine, crops(2, 1))
        for seed in range(4):
            seen.add(engine.buffer().ctypes.data)
            embed(engine, crops(2, seed))
        np.testing.assert_array_equal(kept, rows(crops(2, 1)))
    assert len(seen) == 2


def test_a_buffer_in_use_stays_readable(stub):
    with make(cuda_graphs="off") as engine:
        buffer = engine.buffer()
        buffer[:] = 7
    assert buffer.sum() == 7 * buffer.size
    assert stub.live() == 1  # that one
    del buffer
    stub.forget_live()  # pycuda cannot free it here, and gives no error


# --- failures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["setInputShape", "setTensorAddress", "enqueueV3"])
def test_batches_that_tensorrt_refuses_are_dropped_and_counted(stub, launches, monkeypatch, function):
    streams, make_stream = [], cuda.Context.stream

    def stream(context):
        streams.append(make_stream(context))
        return streams[-1]

    monkeypatch.setattr(cuda.Context, "stream", stream)
    with make(zero_copy="off", cuda_graphs="off") as engine:
        embed(engine, crops(4, 1))
        forget(launches)
        stub.fail(function)
        submit(engine, crops(3, 2))
        session, _ = launches.get()
        with session.context.borrowed():
            assert streams.pop().is_done()  # no copy reads the buffer when it is filled again
        submit(engine, crops(4, 3))
        with pytest.raises(
            EngineError, match=f"net failed on a batch: TensorRT could not .*{function} is refused"
        ):
            engine.collect()
        np.testing.assert_array_equal(engine.collect(), rows(crops(4, 3)))
        assert (engine.failures, engine.runs, engine.in_flight) == (1, 2, 0)


@pytest.mark.parametrize("cuda_graphs", ["auto", "off"])
@pytest.mark.parametrize("zero_copy", ["on", "off"])
def test_rows_of_an_earlier_batch_are_never_returned(stub, zero_copy, cuda_graphs):
    """A run that reports success and writes nothing."""
    with make(zero_copy=zero_copy, cuda_graphs=cuda_graphs) as engine:
        for count in (1, 3):
            for seed in range(3):
                embed(engine, crops(count, seed))
            stub.fail("compute")
            with pytest.raises(EngineError, match="without writing all rows"):
                embed(engine, crops(count, 9))
            np.testing.assert_array_equal(embed(engine, crops(count, 8)), rows(crops(count, 8)))
        assert engine.failures == 2


@pytest.mark.parametrize("function", ["cuEventSynchronize", "cuMemcpyHtoDAsync_v2", "cuEventRecord"])
def test_batches_that_cuda_refuses_are_dropped_and_counted(stub, function):
    with make(zero_copy="off") as engine:
        embed(engine, crops(2))
        stub.fail(function, 700)
        with pytest.raises(EngineError, match="illegal memory access"):
            embed(engine, crops(2))
        assert engine.failures == 1


@pytest.mark.parametrize(
    ("function", "code", "events"),
    [
        ("createExecutionContext", 1, "could not make an execution context: stub: createExec"),
        ("cuMemHostAlloc", 2, "out of memory"),
        ("cuStreamCreate", 2, "out of memory"),
        ("cuDevicePrimaryCtxRetain", 2, "no CUDA context can be made"),
        ("enqueueV3", 1, "could not run a batch of 1"),
    ],
)
def test_failed_starts_leave_nothing(stub, function, code, events):
    stub.fail(function, code)
    engine = make()
    with pytest.raises(EngineError, match=events), engine:
        pass
    stub.no_faults()
    with engine:
        embed(engine, crops(1))


@pytest.mark.skipif(trt.version() < (10, 16), reason="these bindings end the process")
def test_a_profile_that_is_refused(stub):
    stub.fail("setOptimizationProfileAsync")
    with pytest.raises(EngineError, match="could not set optimisation profile 0: stub: setOpt"), make():
        pass


def test_leaving_with_batches_in_flight():
    with make() as engine:
        submit(engine, crops(8))
        submit(engine, crops(8))
    assert engine.in_flight == 0


@pytest.mark.parametrize("function", ["cuStreamSynchronize", "cuGraphExecDestroy"])
def test_a_device_that_fails_at_the_end_is_reported(stub, function):
    with structlog.testing.capture_logs() as logs, make() as engine:
        embed(engine, crops(1))
        stub.fail(function, 700)
    assert [line["event"] for line in logs][-1] == "engine_not_closed_cleanly"
    assert "runtime destroyed" in stub.events()
    if function == "cuGraphExecDestroy":
        stub.forget_live()


def test_a_start_that_is_interrupted_closes_what_it_opens(stub):
    """Ctrl-C while the main thread waits for a plan."""
    building, wait = threading.Event(), threading.Event.wait.__code__
    enter, main = TensorRTEngine.__enter__.__code__, threading.main_thread().ident

    def waits() -> bool:
        frame = sys._current_frames()[main]
        while frame is not None and frame.f_code is not wait:
            frame = frame.f_back
        return frame is not None and frame.f_back.f_back.f_code is enter

    class Slow(Supply):
        def plan(self):
            while not waits():
                time.sleep(0.001)
            signal.pthread_kill(main, signal.SIGINT)
            building.wait()
            return super().plan()

    with pytest.raises(KeyboardInterrupt), make(Slow()):
        pass
    (worker,) = [thread for thread in threading.enumerate() if thread.name == "engine net"]
    building.set()
    worker.join()


# --- plans ------------------------------------------------------------------------------------

FOREIGN = Plan(b"something else")


def test_a_plan_that_cannot_be_loaded_is_replaced_once():
    supply = Supply([FOREIGN, Plan(key="second")])
    with make(supply) as engine:
        np.testing.assert_array_equal(embed(engine, crops(2)), rows(crops(2)))
    (why,) = supply.reasons
    assert "not compatible with this version of TensorRT" in why


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        (Plan(b"plan -1 99 16 8 3 1 4 8"), r"pictures of shape \(99, 16, 3\)"),
        (Plan(b"plan -1 32 16 9 3 1 4 8"), r"rows of shape \(9,\)"),
        (Plan(b"plan -1 32 16 8 2 1 8"), r"take \(1, 8\) pictures, not \(1, 4, 8\)"),
        (Plan(b"plan -1 32 16 8 2 1 4", (1, 4)), "at most 4 pictures, 8 are wanted"),
        (Plan(b"plan -1 32 16 8 3 1 2 8"), r"take \(1, 2, 8\) pictures, not \(1, 4, 8\)"),
    ],
)
def test_a_plan_that_does_not_fit_is_replaced_once(plan, why):
    supply = Supply([plan, FOREIGN])
    with pytest.raises(EngineError, match=r"though it was just made.*not compatible"), make(supply):
        pass
    assert len(supply.reasons) == 1
    assert re.search(why, supply.reasons[0])


def test_plans_are_asked_for_where_the_context_is_current(stub):
    from pycuda import driver

    class Builds(Supply):
        def plan(self):
            seen.append((threading.current_thread().name, driver.Context.get_device().name()))
            return super().plan()

    seen: list[tuple[str, str]] = []
    with make(Builds()):
        pass
    assert seen == [("engine net", "Fake Orin")]


def test_no_plan():
    class Empty(Supply):
        def plan(self):
            raise StorageError("the disk is full")

    with pytest.raises(StorageError, match="the disk is full"), make(Empty()):
        pass


# --- the device -------------------------------------------------------------------------------


def test_the_order_of_release(stub):
    with make() as engine:
        embed(engine, crops(1))
        stub.events()
    order = list(dict.fromkeys(stub.events()))
    assert order == [
        "graph destroyed", "device memory freed", "execution context destroyed", "engine destroyed",
        "runtime destroyed", "host memory freed", "stream destroyed", "context released",
    ]  # fmt: skip


def test_memory_is_shared_where_the_gpu_has_none_of_its_own(stub, monkeypatch):
    mapped = f"host memory of {LARGEST * HEIGHT * WIDTH * 3} bytes, flags 2"
    copied = mapped.replace("flags 2", "flags 0")
    with make():
        assert stub.events().count(mapped) == 2
    monkeypatch.setenv("FAKE_CUDA_DISCRETE", "1")
    with make():
        assert stub.events().count(copied) == 2
    with make(zero_copy="on"):
        assert stub.events().count(mapped) == 2
    monkeypatch.setenv("FAKE_CUDA_NO_MAPPING", "1")
    with make():
        assert stub.events().count(copied) == 2
    with pytest.raises(EngineError, match="cannot work in host memory"), make(zero_copy="on"):
        pass


def test_dla(stub):
    with structlog.testing.capture_logs() as logs, make(dla_core=1) as engine:
        device, events = engine.info.device, stub.events()
    warnings = [line for line in logs if line["event"] == "dla_not_used"]
    if trt.has_dla(trt.version()):
        assert (device, events[0], warnings) == ("Fake Orin, DLA 1", "DLA core 1", [])
        assert not any("graph" in line for line in events)
    else:
        assert (device, warnings[0]["instead"]) == ("Fake Orin", "GPU")


def test_a_dla_that_is_not_there():
    with structlog.testing.capture_logs() as logs, make(dla_core=5) as engine:
        assert engine.info.device == "Fake Orin"
    assert [line["dla_core"] for line in logs if line["event"] == "dla_not_used"] == [5]


@pytest.mark.parametrize(
    "function", ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiateWithFlags"]
)
def test_without_a_graph_everything_works(stub, function):
    stub.fail(function, 801)
    with structlog.testing.capture_logs() as logs, make() as engine:
        np.testing.assert_array_equal(embed(engine, crops(1)), rows(crops(1)))
        np.testing.assert_array_equal(embed(engine, crops(5)), rows(crops(5)))
    assert [line["event"] for line in logs].count("cuda_graph_not_used") == 1


def test_work_that_cannot_be_captured_is_run_plainly(stub):
    stub.fail("enqueueV3", skip=4)  # three warm-ups and the one before the capture
    with structlog.testing.capture_logs() as logs, make() as engine:
        np.testing.assert_array_equal(embed(engine, crops(1)), rows(crops(1)))
    (reason,) = [line["reason"] for line in logs if line["event"] == "cuda_graph_not_used"]
    assert "enqueueV3 is refused" in reason


def test_another_thread_has_no_context():
    from pycuda import driver

    caught = []

    def work():
        try:
            cuda.DeviceMemory(1024)
        except driver.LogicError as problem:
            caught.append(str(problem))

    with make() as engine:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        embed(engine, crops(1))
    assert "invalid device context" in caught[0]


def test_facts_of_the_gpu():
    with cuda.Context() as context:
        gpu = context.gpu()
    assert (gpu.name, gpu.compute_capability, gpu.multiprocessors) == ("Fake Orin", (8, 7), 16)
    assert (gpu.integrated, gpu.maps_host_memory, gpu.driver_version) == (True, True, 12060)
    assert (gpu.total_memory, gpu.free_memory) == (32 << 30, 16 << 30)
