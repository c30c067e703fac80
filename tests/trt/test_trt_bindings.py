"""`engine.tensorrt.bindings`, over the real ones of every version."""

from __future__ import annotations

import sys
import textwrap

import pytest

from edge_agent.core.errors import EngineError
from edge_agent.engine.tensorrt import bindings as trt
from tests.trt import parts


def test_without_bindings(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match="--system-site-packages"):
        trt.version()


@pytest.mark.parametrize(
    ("release", "dla"),
    [((8, 5, 2), 1), ((10, 3, 0), 1), ((10, 7, 0), 1), ((10, 16, 2), 0), ((11, 4, 0), 0), ((11, 4, 1), 1)],
)
def test_which_release_supports_the_dla(release, dla):
    assert trt.has_dla(release) == bool(dla)


FAILED_CALL = textwrap.dedent("""
    from edge_agent.engine.tensorrt.bindings import Log, checked, version
    from edge_agent.core.errors import EngineError
    import tensorrt, structlog
    structlog.configure(processors=[structlog.processors.KeyValueRenderer()])
    print("version:", *version()[:3])
    log = Log()
    log.logger.log(tensorrt.ILogger.Severity.INFO, "fine")
    log.logger.log(tensorrt.ILogger.Severity.WARNING, "odd")
    log.logger.log(tensorrt.ILogger.Severity.ERROR, "broken\\n")
    for result in (False, None):
        try:
            checked(result, "do it", log)
        except EngineError as problem:
            print("reported:", problem)
    print("passed:", checked(0, "do it", log), checked(True, "do it", log))
""")


@pytest.mark.parametrize("version", parts.BINDINGS)
def test_failed_calls_carry_what_was_logged(run_under_stub, version):
    lines = run_under_stub(FAILED_CALL, version).stdout.splitlines()
    assert f"version: {version.replace('.', ' ')}" in lines
    assert "reported: TensorRT could not do it: odd; broken" in lines
    assert "reported: TensorRT could not do it: it logged no reason" in lines
    assert "passed: 0 True" in lines
