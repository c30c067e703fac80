"""Real parts for TensorRT's tests, fetched or built once: NVIDIA's bindings, pycuda, cuda-python, our stubs.

They lie in `${XDG_CACHE_HOME:-~/.cache}/edge-agent-tests`; a folder's name depends on its inputs, so
nothing there needs to be cleaned before a change is tested. Deleting it all is always right.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge-agent-tests"

BINDINGS = {
    "8.6.1": ("tensorrt-bindings==8.6.1", (3, 11)),
    "10.3.0": ("tensorrt-cu12-bindings==10.3.0", (3, 12)),
    "10.16.1": ("tensorrt-cu13-bindings==10.16.1.11", (3, 13)),
    "11.4.0": ("tensorrt-cu13-bindings==11.4.0.106", (3, 13)),
}
"""Package on PyPI of each version that is tested, and the newest Python that it has a wheel for."""
PYCUDA = ("pycuda==2026.1", "-O0", "-Wl,--no-as-needed")
"""Package, how it is compiled (its speed does not matter here, the time to build it does), how it is linked
(it must want libcuda.so.1, as everywhere, though the one that it is linked to is empty)."""
CUDA_PYTHON = ("cuda-bindings==13.5.0", "cuda-pathfinder")
_LIBRARIES = ("nvonnxparser", "nvinfer_plugin", "nvparsers")
"""Further libraries that the bindings link to; none of them is called."""
_THIS = f"py{sys.version_info[0]}{sys.version_info[1]}"


def _folder(name: str, *made_from: object) -> Path:
    digest = hashlib.sha256(repr((_THIS, *made_from)).encode()).hexdigest()[:12]
    return CACHE / f"{name}-{_THIS}-{digest}"


def _made(folder: Path, make: Callable[[Path], None]) -> Path:
    """The folder, made under another name and renamed when it is complete."""
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=CACHE))
        try:
            make(draft)
            draft.rename(folder)
        except OSError:
            if not folder.is_dir():  # another run may have been faster
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return folder


def _install(
    folder: Path, *packages: str, source: bool = False, timeout: float = 100, **environment: str
) -> None:
    kind = ["--no-binary", "pycuda"] if source else ["--only-binary", ":all:"]
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--retries",
        "1",
        "--target",
        str(folder),
    ]
    try:
        done = subprocess.run(
            [*command, *kind, *packages],
            check=False,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, **environment},
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"pip needs more than {timeout:.0f} s for {' '.join(packages)}")
    if done.returncode:
        pytest.skip(f"pip cannot install {' '.join(packages)}: {done.stderr.strip()[-400:]}")


def _compile(source: str, target: Path, soname: str, *options: str) -> None:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed (apt-get install gcc)")
    command = [compiler, "-x", "c", "-", "-O1", "-g", "-w", "-shared", "-fPIC", f"-Wl,-soname,{soname}", "-o"]
    subprocess.run([*command, str(target), *options], input=source, text=True, check=True, timeout=60)


def major(version: str) -> int:
    return int(version.split(".", maxsplit=1)[0])


def bindings(version: str) -> Path:
    """Folder for PYTHONPATH from which `import tensorrt` gives NVIDIA's bindings of that version."""
    package, newest = BINDINGS[version]
    if sys.version_info[:2] > newest:
        pytest.skip(f"{package} has no wheel for Python {_THIS}")

    def make(folder: Path) -> None:
        _install(folder, package)
        shim = folder / "tensorrt" / "__init__.py"  # as the package tensorrt does
        shim.parent.mkdir()
        shim.write_text("import sys, tensorrt_bindings\nsys.modules[__name__] = tensorrt_bindings\n")

    return _made(_folder(f"bindings-{version}", package), make)


def libnvinfer(version: str) -> Path:
    """Folder for LD_LIBRARY_PATH with our stub of TensorRT's libraries."""
    source, number = (HERE / "nvinfer.c").read_text(), major(version)

    def make(folder: Path) -> None:
        name = f"libnvinfer.so.{number}"
        _compile(source, folder / name, name, f"-DTENSORRT={number}")
        for other in _LIBRARIES:
            name = f"lib{other}.so.{number}"
            _compile("", folder / name, name)

    return _made(_folder(f"nvinfer-{number}", source), make)


def typed_bindings(version: str) -> Path:
    """Folder for MYPYPATH with the types of that version's bindings, from pybind11."""
    pytest.importorskip("pybind11_stubgen", reason="pip install pybind11-stubgen")
    code, libraries = bindings(version), libnvinfer(version)

    def make(folder: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "pybind11_stubgen", "--ignore-all-errors", "-o", folder, _MODULE],
            check=False, capture_output=True, text=True, timeout=100,
            env={**os.environ, "PYTHONPATH": str(code), "LD_LIBRARY_PATH": str(libraries)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found = next(folder.rglob("tensorrt.pyi"))
        (folder / "tensorrt").mkdir()
        (folder / "tensorrt" / "__init__.pyi").write_text(_mended(found.read_text()))
        shutil.rmtree(folder / "tensorrt_bindings")

    return _made(_folder(f"types-{version}", (HERE / "parts.py").read_text(), libraries.name), make)


_MODULE = "tensorrt_bindings.tensorrt"
_UNKNOWN_METHODS = {
    "IHostMemory": "__buffer__(self, flags: int, /) -> memoryview",
    "Dims": "__iter__(self) -> typing.Iterator[int]",
}
"""Python methods of protocols without a C++ method of that name."""


def _mended(types: str) -> str:
    """Corrections of pybind11-stubgen's output: tuples become `Dims`, plans are buffers, `in` is no name."""
    lines = [_mended_signature(line) if re.match(r"\s*def ", line) else line for line in types.splitlines()]
    mended = "\n".join(lines) + "\n__version__: str\n"
    for name, method in _UNKNOWN_METHODS.items():
        assert f"class {name}:\n" in mended
        mended = mended.replace(f"class {name}:\n", f"class {name}:\n    def {method}: ...\n")
    return mended


def _mended_signature(line: str) -> str:
    line = re.sub(r"(\w+: )Dims(?=[,)]| = )", r"\1Dims | collections.abc.Sequence[int]", line)
    if _is_python(line):
        return line
    return re.sub(r"def (\w+)\(.*", r"def \1(self, *args: typing.Any, **kwargs: typing.Any):", line)


def _is_python(line: str) -> bool:
    try:
        ast.parse(line.strip() + (" ..." if line.rstrip().endswith(":") else ""))
    except SyntaxError:
        return False
    return True


def _toolkit() -> Path:
    """The CUDA toolkit whose headers pycuda is built against."""
    for folder in sorted(Path("/usr/local").glob("cuda*"), reverse=True):
        if (folder / "include" / "cuda.h").is_file():
            return folder
    pytest.skip("no CUDA toolkit in /usr/local: pycuda cannot be built")


def pycuda_folder() -> Path:
    return _folder("pycuda", *PYCUDA)


def pycuda() -> Path:
    """Folder for PYTHONPATH with pycuda, built here; takes minutes the first time."""

    def make(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as home:
            _compile("", Path(home) / "libcuda.so", "libcuda.so.1")  # to link against; never loaded
            (Path(home) / ".aksetup-defaults.py").write_text(
                f"CUDA_ROOT = {str(_toolkit())!r}\nCUDA_ENABLE_CURAND = False\nCUDADRV_LIB_DIR = [{home!r}]\n"
            )
            package, compiling, linking = PYCUDA
            reported = {"CFLAGS": compiling, "CXXFLAGS": compiling, "LDFLAGS": linking}
            reported |= {"HOME": home, "PIP_CACHE_DIR": f"{home}/pip"}
            _install(folder, package, source=True, timeout=850, **reported)

    return _made(pycuda_folder(), make)


def cuda_python() -> Path:
    """Folder for PYTHONPATH with cuda-python, which captures graphs."""
    return _made(_folder("cuda-python", CUDA_PYTHON), lambda folder: _install(folder, *CUDA_PYTHON))


def libcuda() -> Path:
    """Our driver without a device, for LD_PRELOAD, with every function that pycuda links to."""
    source = (HERE / "libcuda.c").read_text()
    driver = next((pycuda() / "pycuda").glob("_driver*.so"))
    names = subprocess.run(
        ["nm", "-D", "--undefined-only", driver], capture_output=True, text=True, check=True
    )
    wanted = set(re.findall(r" (cu[A-Z]\w*)$", names.stdout, re.MULTILINE))
    present = set(re.findall(r"^R (cu\w+)\(", source, re.MULTILINE))
    source += "".join(f"R {name}(void) {{ return UNSUPPORTED; }}\n" for name in sorted(wanted - present))

    def make(folder: Path) -> None:
        _compile(source, folder / "libcuda.so.1", "libcuda.so.1")

    return _made(_folder("libcuda", source), make) / "libcuda.so.1"
