"""The structure of the package: rows, sizes, and the time of imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.conftest import REPO

PACKAGE = REPO / "edge_agent"

ROWS = {
    "__main__": 8,
    "cli": 7,
    "page": 6,
    "offline": 5,
    "agent": 4,
    "embed": 3, "detect": 3, "fleet": 3,
    "engine": 2, "source": 2, "track": 2, "identify": 2, "gallery": 2, "deliver": 2, "record": 2, "health": 2,
    "core": 1,
}  # fmt: skip
"""Row of every folder of the package, as in docs/source-map.md. Imports point to a lower row."""

MAX_MODULE_LINES = 500
MAX_METHODS = 25
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 10
"""Outside `cli`, where typer declares each option as a parameter."""
MAX_NESTING = 4
MAX_PACKAGE_LINES = 82_000
"""The restructured package had 38,818 lines; raised with capabilities: page, recordings, pictures, fleet."""

EXCEPTIONS: dict[str, tuple[int, str]] = {}
"""`module` or `module.qualified.name` -> the size that it has, and why it is above the limit."""


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = path
    return found


MODULES = modules()


@dataclass
class Imports:
    """Modules of this package that a file imports, those for type checkers apart."""

    run: set[str] = field(default_factory=set)
    typing: set[str] = field(default_factory=set)

    def search(self, statements: Iterable[ast.stmt], found: set[str]) -> None:
        """Add to `found`, or to `typing` what only a type checker reads; expressions contain no imports."""
        for node in statements:
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "edge_agent"}
            elif isinstance(node, ast.ImportFrom):
                if node.level == 0 and node.module and node.module.split(".")[0] == "edge_agent":
                    whole = {f"{node.module}.{alias.name}" for alias in node.names}
                    found |= (whole & MODULES.keys()) | ({node.module} if whole - MODULES.keys() else set())
            else:
                only = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
                for block in blocks(node):
                    self.search(block, self.typing if only else found)


def blocks(node: ast.AST) -> Iterator[list[ast.stmt]]:
    """The lists of statements of a statement."""
    for name in ("body", "orelse", "finalbody"):
        if block := getattr(node, name, None):
            yield block
    for part in (*getattr(node, "handlers", ()), *getattr(node, "cases", ())):
        yield part.body


@cache
def imports_of(module: str) -> Imports:
    found = Imports()
    found.search(ast.parse(MODULES[module].read_text()).body, found.run)
    return found


def part(module: str) -> str | None:
    """`edge_agent.source.reader` -> `source`; None for the package itself."""
    names = module.split(".")
    return names[1] if len(names) > 1 else None


def test_the_root_holds_folders_only() -> None:
    files = {path.name for path in PACKAGE.iterdir() if path.is_file()}
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert files == {"__init__.py", "__main__.py", "py.typed"}
    assert folders == ROWS.keys() - {"__main__"}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_down(module: str) -> None:
    own = part(module)
    if own is None:
        assert not imports_of(module).run, "import edge_agent must import nothing of its own"
        return
    for imported in imports_of(module).run | imports_of(module).typing:
        other = part(imported)
        if other is None or other == own:
            continue
        assert ROWS[other] < ROWS[own], f"{module} (row {ROWS[own]}) imports {imported} (row {ROWS[other]})"


def test_no_cycles() -> None:
    graph = {name: imports_of(name).run & MODULES.keys() for name in MODULES}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for other in graph[name]:
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


Function = ast.FunctionDef | ast.AsyncFunctionDef
BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.Match)


def nesting(node: ast.AST, depth: int = 0) -> int:
    """Depth of the deepest block below `node`; functions within are judged by themselves."""
    deepest = depth
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (*Function.__args__, ast.ClassDef)):
            continue
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        deepest = max(deepest, nesting(child, depth + (isinstance(child, BLOCKS) and not is_elif)))
    return deepest


def definitions(node: ast.AST, name: str) -> Iterator[tuple[str, ast.ClassDef | Function]]:
    """Every class and function below `node`, with its qualified name."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.ClassDef, *Function.__args__)):
            yield f"{name}.{child.name}", child
            yield from definitions(child, f"{name}.{child.name}")
        else:
            yield from definitions(child, name)


def measured(module: str) -> Iterator[tuple[str, str, int, int]]:
    """The limited sizes of a module: name, kind, size, limit."""
    text = MODULES[module].read_text()
    yield module, "lines", len(text.splitlines()), MAX_MODULE_LINES
    for name, node in definitions(ast.parse(text), module):
        if isinstance(node, ast.ClassDef):
            methods = sum(isinstance(child, Function.__args__) for child in node.body)
            yield name, "methods", methods, MAX_METHODS
            continue
        yield name, "function lines", (node.end_lineno or 0) - node.lineno + 1, MAX_FUNCTION_LINES
        yield name, "nesting", nesting(node), MAX_NESTING
        if part(module) != "cli":
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = sum(argument.arg not in ("self", "cls") for argument in arguments)
            yield name, "parameters", count, MAX_PARAMETERS


@pytest.mark.parametrize("module", sorted(MODULES))
def test_sizes(module: str) -> None:
    """Limits only go down: an exception states the present size, and goes when it is not needed any more."""
    for name, kind, size, limit in measured(module):
        key = f"{name} {kind}"
        if key in EXCEPTIONS:
            assert EXCEPTIONS[key][0] == size > limit, f"{key} is {size}: adjust or remove its exception"
        else:
            assert size <= limit, f"{key}: {size}, at most {limit}; split it"


def test_no_folder_of_tests_hides_a_package() -> None:
    """pytest puts `tests/` on the path, where PyTorch looks for `triton`, and finds a folder of this name."""
    folders = {path.name for path in (REPO / "tests").iterdir() if path.is_dir()} - {"__pycache__"}
    assert not folders & {"triton", *packages_distributions(), *sys.stdlib_module_names}


def test_exceptions_exist() -> None:
    named = [module for module in MODULES if any(key.startswith(module) for key in EXCEPTIONS)]
    present = {f"{name} {kind}" for module in named for name, kind, _, _ in measured(module)}
    assert EXCEPTIONS.keys() <= present


def test_the_package_does_not_grow() -> None:
    lines = sum(len(path.read_text().splitlines()) for path in MODULES.values())
    assert lines <= MAX_PACKAGE_LINES


DOCUMENTED = {"_exit", "_current_frames", "_replace", "_make", "_asdict", "_value_"}
"""Public in spite of their names: os._exit, sys._current_frames, methods of namedtuple, Enum._value_."""
MAX_PRIVATE_READS_OF_TESTS = 0
"""Only goes down. Tests use public members, files on disk, fakes that they pass in, and library functions
that they replace. A test that reads a private member fails when a class changes inside and still works."""


def private_reads(tree: ast.AST) -> Iterator[str]:
    """Private attributes that are read of anything but the object or class itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and node.attr not in DOCUMENTED:
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if not own and not node.attr.endswith("__"):
                yield f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_nothing_private_of_another_class_is_read(module: str) -> None:
    reads = list(private_reads(ast.parse(MODULES[module].read_text())))
    assert not reads, f"{module} reads private members: {reads}"


def test_tests_read_nothing_private() -> None:
    reads = [
        f"{path.relative_to(REPO)} {read}"
        for path in sorted((REPO / "tests").rglob("*.py"))
        for read in private_reads(ast.parse(path.read_text()))
    ]
    assert len(reads) <= MAX_PRIVATE_READS_OF_TESTS, f"tests read private members: {reads}"


HEAVY = ("numpy", "cv2", "onnx", "onnxruntime", "paho", "scipy", "torch", "tensorrt", "jtop", "pydantic")


@pytest.mark.parametrize("statement", ["import edge_agent", "import edge_agent.cli"])
def test_light_imports(statement: str) -> None:
    code = f"{statement}; import sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPO)
    assert done.stdout.strip() == "[]"


LATE = ("scipy", "onnx", "onnxruntime", "paho", "prometheus_client", "torch", "tensorrt", "jtop")
"""Modules that the agent imports after its start: scipy during the first frame, the others on demand."""


def test_the_agent_imports_heavy_modules_late() -> None:
    code = f"import edge_agent.agent.daemon; import sys; print([m for m in {LATE!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPO)
    assert done.stdout.strip() == "[]"


def test_jtop_is_imported_in_one_place() -> None:
    """jetson-stats is AGPL: only its adapter may touch it."""
    users = [
        str(path.relative_to(PACKAGE))
        for path in MODULES.values()
        if "jtop" in (text := path.read_text())
        for node in ast.walk(ast.parse(text))
        if (isinstance(node, ast.Import) and any(a.name.split(".")[0] == "jtop" for a in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jtop")
    ]
    assert set(users) <= {"health/telemetry/jtop.py"}
