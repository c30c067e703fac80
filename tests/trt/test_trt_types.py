"""mypy of every module that uses TensorRT, against the types of each version's real bindings.

The bindings ship no types, and this project's own check takes them as `Any`. Here a method that one version
lacks, or an argument of the wrong type, is found without a GPU.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPO
from tests.trt import parts

pytest.importorskip("mypy", reason="pip install --group lint")

SETTINGS = """
[mypy]
strict = true
python_version = 3.10
plugins = pydantic.mypy
follow_imports = silent
warn_unused_ignores = false
[mypy-cv2.*,pycuda.*,cuda.*,onnxruntime.*,sqlcipher3.*]
ignore_missing_imports = true
follow_imports = skip
[mypy-tensorrt.*]
ignore_errors = true
"""


def users_of_tensorrt() -> list[str]:
    """Modules of the package that import the bindings anywhere."""
    return sorted(
        str(path.relative_to(REPO))
        for path in (REPO / "edge_agent").rglob("*.py")
        if any(
            isinstance(node, ast.Import) and any(alias.name == "tensorrt" for alias in node.names)
            for node in ast.walk(ast.parse(path.read_text()))
        )
    )


def complaints(version: str, files: list[str], folder: Path) -> list[str]:
    settings = folder / "mypy.ini"
    settings.write_text(SETTINGS)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", settings, "--no-error-summary", "--no-pretty",
         "--cache-dir", parts.CACHE / f"mypy-{version}", *files],
        check=False, capture_output=True, text=True, timeout=300, cwd=REPO,
        env={**os.environ, "MYPYPATH": str(parts.typed_bindings(version))},
    )  # fmt: skip
    assert not done.stderr, done.stderr
    return [line for line in done.stdout.splitlines() if ": error: " in line]


def test_the_modules_are_found():
    found = users_of_tensorrt()
    assert {"edge_agent/engine/tensorrt/bindings.py", "edge_agent/engine/tensorrt/builder.py"} <= set(found)


@pytest.mark.slow
@pytest.mark.parametrize("version", parts.BINDINGS)
def test_types(version, tmp_path):
    assert complaints(version, users_of_tensorrt(), tmp_path) == []


WRONG = """
import tensorrt as trt

def wrong(context: trt.IExecutionContext, runtime: trt.Runtime) -> None:
    context.execute_async_v4(0)
    context.set_tensor_address("x", "y")
    runtime.deserialize_cuda_engine("text")
    print(trt.BuilderFlag.FP16)
    context.set_input_shape("x", (1, 2))
"""


@pytest.mark.slow
@pytest.mark.parametrize("version", parts.BINDINGS)
def test_wrong_calls_are_found(version, tmp_path):
    """A check that cannot fail would be none."""
    (tmp_path / "wrong.py").write_text(WRONG)
    lines = [int(line.split(":")[1]) for line in complaints(version, [str(tmp_path / "wrong.py")], tmp_path)]
    gone = [8] if version.startswith("11.") else []
    assert sorted(set(lines)) == [5, 6, 7, *gone], complaints(version, [str(tmp_path / "wrong.py")], tmp_path)
