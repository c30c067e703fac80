"""The engine contract on ONNX Runtime: two batches in flight, nothing stale, clear failures."""

from __future__ import annotations

import dataclasses
import functools
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from edge_agent.core.config import EngineSettings
from edge_agent.core.errors import ConfigError, EngineError, ModelError
from edge_agent.engine import choose_backend, open_engine
from edge_agent.engine import onnxruntime as backend
from edge_agent.engine.graph.detector import prepare_detector, read_detector
from edge_agent.engine.graph.prepare import prepare_reid
from edge_agent.engine.graph.prepared import PROFILES
from edge_agent.engine.graph.reading import Network
from edge_agent.engine.onnxruntime import _slices
from tests import tiny_networks

TAO = PROFILES["tao"]
HERE = ["onnxruntime"]
"""Backends that run without a GPU: the tests with the fixture `opened` are the contract of all of them."""


@pytest.fixture
def prepared(tmp_path):
    return prepare_reid(tiny_networks.reid(tmp_path / "net.onnx"), TAO)


@pytest.fixture(params=HERE)
def opened(request):
    return functools.partial(open_on, request.param)


def open_on(backend, prepared, **settings):
    return open_engine(prepared, EngineSettings(backend=backend, **settings))


def on_onnxruntime(prepared, **settings):
    return open_on("onnxruntime", prepared, **settings)


def crops(count: int, seed: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 256, 128, 3), dtype=np.uint8)


def embed(engine, batch):
    engine.buffer()[: len(batch)] = batch
    engine.submit(len(batch))
    return engine.collect()


def test_two_batches_in_flight_come_back_in_order(opened, prepared):
    first, second = crops(3, 1), crops(5, 2)
    with opened(prepared, max_batch=8) as engine:
        alone = embed(engine, first), embed(engine, second)
        engine.buffer()[:3] = first
        engine.submit(3)
        engine.buffer()[:5] = second
        engine.submit(5)
        assert engine.in_flight == 2
        np.testing.assert_array_equal(engine.collect(), alone[0])
        np.testing.assert_array_equal(engine.collect(), alone[1])
        assert engine.in_flight == 0


def test_a_third_batch_in_flight_is_refused(opened, prepared):
    with opened(prepared, max_batch=2) as engine:
        engine.submit(1)
        engine.submit(1)
        with pytest.raises(EngineError, match="2 batches are in flight"):
            engine.buffer()
        with pytest.raises(EngineError, match="2 batches are in flight"):
            engine.submit(1)
        engine.collect()
        engine.submit(1)


@pytest.mark.parametrize("count", [0, -1, 5])
def test_only_what_the_buffer_holds_can_be_submitted(opened, prepared, count):
    with opened(prepared, max_batch=4) as engine, pytest.raises(EngineError, match="1 to 4 pictures"):
        engine.submit(count)


def test_nothing_to_collect(opened, prepared):
    with opened(prepared) as engine, pytest.raises(EngineError, match="nothing to collect"):
        engine.collect()


def test_engine_outside_its_with(opened, prepared):
    engine = opened(prepared)
    assert engine.info.space == prepared.space
    with pytest.raises(EngineError, match="not running"):
        engine.buffer()


def test_engine_can_be_entered_again(opened, prepared):
    engine = opened(prepared, max_batch=2)
    with engine:
        before = embed(engine, crops(2))
    with engine:
        np.testing.assert_array_equal(embed(engine, crops(2)), before)


def test_rows_belong_to_the_caller(opened, prepared):
    with opened(prepared, max_batch=2) as engine:
        rows = embed(engine, crops(2, 1))
        kept = rows.copy()
        embed(engine, crops(2, 2))
        embed(engine, crops(2, 3))
        np.testing.assert_array_equal(rows, kept)


def test_buffers_are_reused_and_two(opened, prepared):
    with opened(prepared, max_batch=2) as engine:
        seen = set()
        for _ in range(6):
            seen.add(engine.buffer().ctypes.data)
            engine.submit(2)
            engine.collect()
        assert len(seen) == 2


def test_failed_batch_is_dropped_and_counted(opened, tmp_path):
    prepared = prepare_reid(tiny_networks.fails_for_three(tmp_path / "net.onnx"), TAO)
    with opened(prepared, max_batch=4, threads=1) as engine:  # which computes three as one slice
        good = embed(engine, crops(2))
        engine.buffer()[:3] = crops(3)
        engine.submit(3)
        engine.buffer()[:2] = crops(2)
        engine.submit(2)
        with pytest.raises(EngineError, match="failed on a batch"):
            engine.collect()
        np.testing.assert_array_equal(engine.collect(), good)
        assert (engine.failures, engine.in_flight) == (1, 0)


@pytest.mark.parametrize(("count", "workers"), [(1, 2), (2, 2), (3, 2), (4, 12), (10, 2), (17, 2), (64, 12)])
def test_slices_are_all_of_the_batch_and_nearly_equal(count, workers):
    slices = _slices(count, workers)
    sizes = [end - begin for begin, end in slices]
    assert [begin for begin, _ in slices] == [0, *(end for _, end in slices[:-1])]
    assert sum(sizes) == count
    assert max(sizes) <= 8
    assert max(sizes) - min(sizes) <= 1
    assert len(slices) % workers == 0 or max(sizes) <= 2


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_rows_of_slices_stand_in_the_order_of_the_pictures(prepared, threads):
    batch = crops(40)
    with on_onnxruntime(prepared, max_batch=40, threads=threads) as engine:
        together = embed(engine, batch)
        single = np.concatenate([embed(engine, batch[n : n + 1]) for n in range(40)])
        assert engine.runs == 41
    np.testing.assert_allclose(together, single, atol=1e-6)


def test_a_batch_of_which_one_slice_fails_is_dropped(tmp_path):
    prepared = prepare_reid(tiny_networks.fails_for_three(tmp_path / "net.onnx"), TAO)
    with on_onnxruntime(prepared, max_batch=8, threads=2) as engine:
        engine.submit(7)  # slices of three and of four
        with pytest.raises(EngineError, match="failed on a batch"):
            engine.collect()
        assert (engine.runs, engine.failures, engine.in_flight) == (0, 1, 0)
        assert len(embed(engine, crops(8))) == 8


def test_a_bare_session_gives_the_same_rows(prepared):
    batch = crops(5)
    with on_onnxruntime(prepared, max_batch=8, threads=2) as engine:
        (rows,) = engine.bare()(batch)
        np.testing.assert_allclose(rows, embed(engine, batch), atol=1e-6)


def watch_sessions(monkeypatch, make: type[onnxruntime.InferenceSession]) -> list[Any]:
    """Sessions of this class that engines open from now on."""
    sessions: list[Any] = []

    def opened(*given: Any, **options: Any) -> Any:
        sessions.append(make(*given, **options))
        return sessions[-1]

    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    return sessions


def test_batches_of_one_are_computed_by_all_threads_together(prepared, monkeypatch):
    sessions = watch_sessions(monkeypatch, onnxruntime.InferenceSession)
    with on_onnxruntime(prepared, max_batch=1, threads=3):
        assert sum(thread.name.startswith("engine") for thread in threading.enumerate()) == 1
        assert sessions[-1].get_session_options().intra_op_num_threads == 3
    with on_onnxruntime(prepared, max_batch=2, threads=3):
        assert sum(thread.name.startswith("engine") for thread in threading.enumerate()) == 3
        assert sessions[-1].get_session_options().intra_op_num_threads == 1


def test_it_is_hungry_as_soon_as_a_thread_has_no_slice(prepared, monkeypatch):
    released = threading.Event()

    class Held(onnxruntime.InferenceSession):
        """Computes slices that begin with 1 once they are released."""

        def run(self, names, inputs, options=None):
            (batch,) = inputs.values()
            assert not batch.flat[0] or released.wait(10)
            return super().run(names, inputs, options)

    watch_sessions(monkeypatch, Held)
    with on_onnxruntime(prepared, max_batch=8, threads=2) as engine:
        assert not engine.hungry, "nothing was submitted"
        engine.buffer()[:2], engine.buffer()[2:] = 0, 1
        engine.submit(4)  # slices of two
        deadline = time.monotonic() + 10
        while not engine.hungry and time.monotonic() < deadline:
            time.sleep(0.001)
        assert engine.hungry
        assert not engine.ready
        engine.buffer()[:] = 1
        engine.submit(2)  # one slice
        assert not engine.hungry
        released.set()
        assert [len(engine.collect()) for _ in range(2)] == [4, 2]


@pytest.mark.parametrize(("most", "threads", "enough"), [(64, 2, 16), (8, 2, 8), (1, 2, 1)])
def test_a_slice_for_each_thread_is_enough(prepared, most, threads, enough):
    assert on_onnxruntime(prepared, max_batch=most, threads=threads).enough == enough


@pytest.mark.parametrize("most", [1, 8])
def test_one_picture_is_computed_by_the_thread_that_waits_for_it(prepared, monkeypatch, most):
    computed: list[threading.Thread] = []

    class Watched(onnxruntime.InferenceSession):
        def run(self, names, inputs, options=None):
            computed.append(threading.current_thread())
            return super().run(names, inputs, options)

    watch_sessions(monkeypatch, Watched)
    with on_onnxruntime(prepared, max_batch=most, threads=2) as engine:
        engine.buffer()[:1] = crops(1)
        rows = engine.compute(1)
        np.testing.assert_array_equal(rows, embed(engine, crops(1)))
        assert (engine.runs, engine.in_flight, engine.run_seconds > 0) == (2, 0, True)
    assert [thread is threading.current_thread() for thread in computed] == [True, False]


def test_pictures_that_are_computed_at_once_have_the_rows_of_a_batch(opened, prepared):
    with opened(prepared, max_batch=4) as engine:
        engine.buffer()[:3] = crops(3)
        rows = engine.compute(3)
        np.testing.assert_allclose(rows, embed(engine, crops(3)), atol=1e-6)
        with pytest.raises(EngineError, match="holds 1 to 4"):
            engine.compute(5)


def test_time_in_the_network_is_counted(opened, prepared):
    with opened(prepared, max_batch=2) as engine:
        assert (engine.runs, engine.run_seconds) == (0, 0.0)
        embed(engine, crops(2))
        once = engine.run_seconds
        assert (engine.runs, once > 0) == (1, True)
        embed(engine, crops(2))
        assert (engine.runs, engine.run_seconds > once) == (2, True)


def test_time_in_the_network_is_that_of_the_batch_that_was_collected(prepared, monkeypatch):
    clock, readings = threading.local(), threading.Semaphore(0)

    class Slow(onnxruntime.InferenceSession):
        """Takes as many seconds for a slice as its first number says, by the clock of its thread."""

        def run(self, names, inputs, options=None):
            (batch,) = inputs.values()
            clock.now += float(batch.flat[0])
            return super().run(names, inputs, options)

    def perf_counter() -> float:
        clock.now = getattr(clock, "now", 0.0)
        readings.release()
        return clock.now

    monkeypatch.setattr(backend, "time", SimpleNamespace(perf_counter=perf_counter))
    watch_sessions(monkeypatch, Slow)
    with on_onnxruntime(prepared, max_batch=16, threads=2) as engine:
        for seconds in (3, 50):
            engine.buffer()[:] = seconds
            engine.submit(16)
        for _ in range(2 * 2 * 2):  # at the begin and the end of each slice, two in each batch
            assert readings.acquire(timeout=10)
        assert (engine.runs, engine.run_seconds) == (0, 0.0)
        for runs, seconds in enumerate((3, 50), 1):
            before = engine.run_seconds
            engine.collect()
            assert engine.runs == runs
            assert engine.run_seconds - before == pytest.approx(2 * seconds / 2)


def test_leaving_with_batches_in_flight_ends_the_workers(prepared):
    with on_onnxruntime(prepared, max_batch=2) as engine:
        engine.submit(2)
        engine.submit(2)
        names = [thread.name for thread in threading.enumerate()]
        assert any(name.startswith("engine") for name in names)
    assert not any(thread.name.startswith("engine") for thread in threading.enumerate())
    assert engine.in_flight == 0


def test_closing_does_not_wait_for_uncollected_batches(osnet_onnx, monkeypatch):
    outcomes: list[Any] = []

    class Watched(onnxruntime.InferenceSession):
        def run(self, names, inputs, options=None):
            try:
                outcomes.append(super().run(names, inputs, options))
            except Exception as problem:
                outcomes.append(problem)
                raise
            return outcomes[-1]

    watch_sessions(monkeypatch, Watched)
    with on_onnxruntime(prepare_reid(osnet_onnx, PROFILES["imagenet"]), max_batch=64, threads=1) as engine:
        engine.submit(64)
        engine.submit(64)
    assert isinstance(outcomes[-1], Exception)
    assert "terminate" in str(outcomes[-1])


def test_network_that_onnxruntime_does_not_know(prepared, tmp_path):
    broken = dataclasses.replace(prepared, onnx=prepared.onnx.replace(b"AveragePool", b"AveragePoop"))
    with pytest.raises(ModelError, match=r"ONNX Runtime cannot load .*net\.onnx"):
        on_onnxruntime(broken).__enter__()


def test_fixed_batch_of_a_detector_limits_the_engine(tmp_path):
    network = read_detector(Network(tiny_networks.yolox(tmp_path / "y.onnx")))
    layout = network.detector_layout(None, (64, 64))
    prepared = prepare_detector(network, layout, TAO, lambda graph: graph.only_output())
    assert on_onnxruntime(prepared, max_batch=64).info.max_batch == 1


def test_wrong_settings():
    with pytest.raises(ConfigError, match="no inference backend 'cuda'; choose one of auto, onnxruntime"):
        choose_backend("cuda")


def test_batch_below_one(prepared):
    with pytest.raises(EngineError, match="max_batch must be at least 1"):
        open_engine(prepared, EngineSettings(), max_batch=0)


def test_engine_package_loads_nothing_heavy():
    code = (
        "import sys, edge_agent.engine, edge_agent.engine.graph.prepare; "
        "print(sorted({'onnx', 'onnxruntime', 'cv2'} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert found.stdout.strip() == "[]"


def test_real_network_in_batches_of_any_size(osnet_onnx):
    prepared = prepare_reid(osnet_onnx, PROFILES["imagenet"])
    batch = crops(7)
    with on_onnxruntime(prepared, max_batch=8) as engine:
        together = embed(engine, batch)
        parts = np.concatenate(
            [embed(engine, batch[:1]), embed(engine, batch[1:4]), embed(engine, batch[4:])]
        )
    np.testing.assert_allclose(together, parts, atol=1e-5)
