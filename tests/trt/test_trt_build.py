"""Builds over TensorRT's real bindings; the tests themselves stand in `build_on_the_stub.py`."""

from __future__ import annotations

import pytest

from tests.trt import parts

RUN = """
import os, sys, pytest
code = pytest.main(["-q", "-p", "no:cacheprovider", "-rs", {file!r}])
sys.stdout.flush(); os._exit(int(code))
"""


OFTEN = {"10.3.0", "11.4.0"}
"""Versions of the default suite: flags and calibrators, and neither."""


@pytest.mark.parametrize(
    "version", [pytest.param(one, marks=() if one in OFTEN else pytest.mark.slow) for one in parts.BINDINGS]
)
def test_builds(run_under_stub, cuda, version):
    code = RUN.format(file=str(parts.HERE / "build_on_the_stub.py"))
    print(run_under_stub(code, version, cuda=True).stdout)


@pytest.mark.slow
@pytest.mark.parametrize("version", parts.BINDINGS)
def test_calibrate(run_under_stub, cuda, version):
    """`edge-agent calibrate`, see `calibrate_on_the_stub.py`."""
    code = RUN.format(file=str(parts.HERE / "calibrate_on_the_stub.py"))
    print(run_under_stub(code, version, cuda=True).stdout)
