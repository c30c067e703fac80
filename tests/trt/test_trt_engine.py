"""The TensorRT engine over real bindings, pycuda and cuda-python, without a GPU, and without those."""

from __future__ import annotations

import sys
import textwrap

import pytest

from edge_agent.core.errors import EngineError
from edge_agent.engine.tensorrt import cuda as cuda_module
from tests.trt import parts

RUN = """
import os, pytest
os._exit(pytest.main(["-q", "-p", "no:cacheprovider", "tests/trt/on_the_stub.py"]))
"""


ALWAYS = {"10.3.0", "11.4.0"}
"""The version of most Jetsons, and the newest; the others run with the slow tests."""


@pytest.mark.parametrize(
    "version",
    [pytest.param(v, marks=() if v in ALWAYS else pytest.mark.slow) for v in parts.BINDINGS],
)
def test_engine(run_under_stub, cuda, version):
    """Every test of `on_the_stub.py`."""
    done = run_under_stub(RUN, version, cuda=True, graphs=True)
    assert " passed" in done.stdout


def test_without_pycuda(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with pytest.raises(EngineError, match="pip install pycuda"):
        cuda_module.probe()


PROBE = textwrap.dedent("""
    from edge_agent.engine.tensorrt import bindings as trt
    from edge_agent.core.errors import EngineError
    log = trt.Log()
    for make in (trt.make_runtime, trt.make_builder):
        try:
            make(log)
        except EngineError as problem:
            print("reported:", problem)
""")


@pytest.mark.parametrize(
    ("environment", "reported"),
    [
        ({"FAKE_CUDA_DEVICES": "0"}, "cuInit failed: no CUDA-capable device is detected. Likely causes:"),
        ({"LD_PRELOAD": ""}, "Without libcuda.so.1 there is no NVIDIA driver here"),
        ({"STUB_NVINFER_NULL": "1"}, "stub: CUDA initialization failure with error: 35"),
    ],
)
def test_without_a_usable_gpu(run_under_stub, cuda, environment, reported):
    """The first two before TensorRT is asked: some releases crash in a runtime made without a GPU."""
    out = run_under_stub(PROBE, "10.3.0", cuda=True, **environment).stdout
    lines = [line for line in out.splitlines() if line.startswith("reported:")]
    assert [reported in line for line in lines] == [True, True], out
    assert ("stub:" in out) == ("STUB_NVINFER_NULL" in environment)
