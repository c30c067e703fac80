"""Fixtures for code that uses TensorRT and CUDA, on machines that have neither.

`run_under_stub(code, version)` runs Python over NVIDIA's real bindings of a version, with our stub of
TensorRT below; with the fixture `cuda` there are pycuda, cuda-python and a driver without a device as well.
See `CONTRIBUTING.md`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trt import parts

_END = "\nimport os, sys; sys.stdout.flush(); sys.stderr.flush(); os._exit(0)\n"
"""Objects of a stub must not be taken down at the end of the interpreter."""
_SECONDS = 240


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test that needs pycuda builds it, which takes minutes."""
    if not parts.pycuda_folder().is_dir():
        for item in items:
            if "cuda" in getattr(item, "fixturenames", ()) and Path(item.path).parent == parts.HERE:
                item.add_marker(pytest.mark.slow)
                item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session")
def bindings() -> Callable[[str], Path]:
    """`bindings("10.3.0")`: folder from which `import tensorrt` gives the real bindings of that version."""
    return parts.bindings


@pytest.fixture(scope="session")
def cuda() -> None:
    """With it, subprocesses may have pycuda, cuda-python and our driver: `run_under_stub(..., cuda=True)`."""
    parts.libcuda()


@pytest.fixture(scope="session")
def stub_environment() -> Callable[..., dict[str, str]]:
    """`stub_environment("10.3.0", cuda=True, graphs=True, NAME="value")`: variables for a subprocess."""

    def environment(version: str, *, cuda: bool = False, graphs: bool = False, **more: str) -> dict[str, str]:
        paths = [str(parts.bindings(version)), str(parts.HERE), str(parts.HERE.parent.parent)]
        reported = {**os.environ, "LD_LIBRARY_PATH": str(parts.libnvinfer(version))}
        if cuda:
            reported["LD_PRELOAD"] = str(parts.libcuda())
            paths.append(str(parts.pycuda()))
        if graphs:
            paths.append(str(parts.cuda_python()))
        return {**reported, "PYTHONPATH": os.pathsep.join(paths), **more}

    return environment


@pytest.fixture(scope="session")
def run_under_stub(
    stub_environment: Callable[..., dict[str, str]],
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run_under_stub(code, "10.3.0", cuda=False, graphs=False, check=True, NAME="value")`: run Python there.

    The code may `import stand_in` to have engines that run. A failure shows what the subprocess said.
    """

    def run(
        code: str, version: str, *, check: bool = True, **environment: object
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-X", "faulthandler", "-W", "error", "-c", code + _END],
            check=False, capture_output=True, text=True, timeout=_SECONDS,
            env=stub_environment(version, **environment),
        )  # fmt: skip
        if check and done.returncode:
            pytest.fail(f"exit code {done.returncode} under TensorRT {version}\n{done.stdout}\n{done.stderr}")
        return done

    return run
