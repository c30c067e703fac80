"""The rows of the design: imports point down, nothing imports its own row or a higher one, no circles."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPO

PACKAGE = REPO / "edge_agent"

ROWS = {
    "__main__": 7,
    "cli": 6,
    "daemon": 5, "calibrate": 5, "evaluate": 5, "bench": 5, "throughput": 5, "train": 5, "demo": 5,
    "factory": 4,
    "detect": 3, "embed": 3, "packing": 3, "operations": 3, "erasure": 3, "oversight": 3, "cooling": 3,
    "source": 2, "engine": 2, "track": 2, "gallery": 2, "identify": 2, "deliver": 2, "telemetry": 2,
    "supervise": 2, "governor": 2, "thinning": 2, "pipeline": 2, "synthetic": 2, "mot": 2, "quality": 2,
    "download": 2, "stagetimes": 2, "budget": 2,
    "config": 1, "events": 1, "manifest": 1, "dataset": 1, "logs": 1, "audit": 1, "encryption": 1,
    "notify": 1, "progress": 1,
    "errors": 0, "structures": 0,
}  # fmt: skip
"""Row of every module or sub-package, as in docs/source-map.md."""

ALLOWED_SIBLINGS = {
    ("embed", "packing"): "packing is the part of embedding that may run in a process of its own",
    ("dataset", "manifest"): "a data set's manifest is written like every other",
    ("calibrate", "evaluate"): "the accuracy gate is an evaluation, twice",
    ("calibrate", "bench"): "a calibration ends with the speed table",
    ("throughput", "bench"): "latencies and the machine are told in one way",
    ("throughput", "daemon"): "what is measured is the daemon itself",
    (
        "operations",
        "erasure",
    ): "a command over MQTT forgets people by the function that the command line uses",
}
"""Imports within a row, each with its reason."""


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = path
    return found


MODULES = modules()


def imports_of(path: Path) -> set[str]:
    """Modules of this package that a file imports when it runs (not those for type checkers alone)."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for child in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (whole & MODULES.keys()) | ({node.module} if whole - MODULES.keys() else set())
    return {name for name in found if name.split(".")[0] == "edge_agent"}


def part(module: str) -> str | None:
    """`edge_agent.source.reader` -> `source`; None for the package itself."""
    names = module.split(".")
    return names[1] if len(names) > 1 else None


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_down(module: str) -> None:
    own = part(module)
    if own is None:
        assert not imports_of(MODULES[module]), "import edge_agent must import nothing of its own"
        return
    assert own in ROWS, f"{own} has no row: add it here and to docs/source-map.md"
    for imported in imports_of(MODULES[module]):
        other = part(imported)
        if other is None or other == own:
            continue
        if (own, other) in ALLOWED_SIBLINGS:
            continue
        assert ROWS[other] < ROWS[own], f"{module} (row {ROWS[own]}) imports {imported} (row {ROWS[other]})"


def test_no_circles() -> None:
    graph = {name: imports_of(path) & MODULES.keys() for name, path in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for other in graph[name]:
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


HEAVY = ("numpy", "cv2", "onnx", "onnxruntime", "paho", "scipy", "torch", "tensorrt", "jtop", "pydantic")


@pytest.mark.parametrize("statement", ["import edge_agent", "import edge_agent.cli"])
def test_light_imports(statement: str) -> None:
    code = f"{statement}; import sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPO)
    assert done.stdout.strip() == "[]"


LATE = ("scipy", "onnx", "onnxruntime", "paho", "prometheus_client", "torch", "tensorrt", "jtop")
"""What the agent imports only once it is open: scipy beside the first frame, the others when asked for."""


def test_the_agent_imports_late_what_it_can() -> None:
    code = f"import edge_agent.daemon; import sys; print([m for m in {LATE!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPO)
    assert done.stdout.strip() == "[]"


def test_jtop_is_imported_in_one_place() -> None:
    """jetson-stats is AGPL: only its adapter may touch it."""
    users = [
        str(path.relative_to(PACKAGE))
        for path in MODULES.values()
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Import) and any(a.name.split(".")[0] == "jtop" for a in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jtop")
    ]
    assert set(users) <= {"telemetry/jtop.py"}
