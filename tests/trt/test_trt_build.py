"""Builds over TensorRT's real bindings; the tests themselves stand in `build_on_the_stub.py`."""

from __future__ import annotations

import pytest

from tests.trt import parts

RUN = """
import os, sys, pytest
code = pytest.main(["-q", "-p", "no:cacheprovider", "-rs", {file!r}])
sys.stdout.flush(); os._exit(int(code))
"""


@pytest.mark.parametrize("version", parts.BINDINGS)
def test_builds(run_under_stub, cuda, version):
    code = RUN.format(file=str(parts.HERE / "build_on_the_stub.py"))
    print(run_under_stub(code, version, cuda=True).stdout)
