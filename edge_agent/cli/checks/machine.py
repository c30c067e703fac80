"""Checks of the machine: Python, libraries, JetPack, temperatures, power mode, jtop and clock.

Libraries with machine code (OpenCV, ONNX Runtime, CUDA, TensorRT) are imported in a separate process, so a
crash or a hang is a finding like any other.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.cli.checks import Finding, State
from edge_agent.core.distribution import install_command, requirements

if TYPE_CHECKING:
    from edge_agent.health.telemetry import Reading

WARM_C = 90.0  # an Orin throttles at 99 C

_JETPACK = {"35": "5", "36": "6", "38": "7", "39": "7"}  # JetPack by L4T major version

OLDEST_PYTHON = (3, 10)
PROBE_TIMEOUT_S = 60.0  # the first import of TensorRT on a board with a cold disk takes many seconds

_TELL = "import json\ndef tell(**answer): print('\\n' + json.dumps(answer))\n"


def probe(program: str) -> dict[str, Any] | str:
    """Run a small program, and return the values of its `tell(name=value, ...)`, or why it failed."""
    try:
        done = subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-c", _TELL + program],
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {PROBE_TIMEOUT_S:.0f} s"
    if done.returncode < 0:
        return f"crashes ({signal.Signals(-done.returncode).name})"
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def onnxruntime() -> list[Finding]:
    """Check that ONNX Runtime can be imported."""
    answer = probe(
        "import onnxruntime as o; tell(version=o.__version__, providers=o.get_available_providers())"
    )
    if isinstance(answer, str):
        advice = "install it again: pip install --force onnxruntime"
        return [Finding("onnxruntime", "missing", answer, advice)]
    return [Finding("onnxruntime", "ok", f"{answer['version']}: {', '.join(answer['providers'])}")]


def python() -> list[Finding]:
    """Check the version of Python."""
    where = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info[:2] < OLDEST_PYTHON:
        advice = "3.10 or newer is needed: JetPack 6 or 7, or Ubuntu 22.04"
        return [Finding("python", "missing", where, advice)]
    return [Finding("python", "ok", where)]


def packages() -> list[Finding]:
    """Check every required distribution and its version."""
    try:
        required = requirements()
    except importlib.metadata.PackageNotFoundError:
        return [Finding("packages", "warning", "edge-agent itself is not installed", "run ./install.sh")]
    findings = []
    for line in required:
        parsed = re.fullmatch(r"\s*([\w.-]+)\s*(.*)", line)
        if parsed is not None:
            findings.append(_package(parsed[1], parsed[2]))
    return findings


def _package(name: str, wanted: str) -> Finding:
    title = f"package {name}"
    advice = f'pip install "{name}{wanted}"'
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        if name == "opencv-python":  # boards have it as a Debian package
            return Finding(title, "note", "not from pip; see opencv for the system's")
        return Finding(title, "missing", "not installed", advice)
    if not fits(version, wanted):
        return Finding(title, "missing", f"{version}, wanted {wanted}", advice)
    return Finding(title, "ok", version)


def fits(version: str, wanted: str) -> bool:
    """Return whether a version is within bounds such as `<5,>=4.5`."""
    have = _release(version)
    bounds = re.findall(r"(<|>=)\s*([\d.]+)", wanted)
    return all((have < _release(bound)) == (sign == "<") for sign, bound in bounds)


def _release(version: str) -> tuple[int, ...]:
    """`1.10.2rc1` -> `(1, 10, 2)`."""
    numbers = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in numbers[0].split(".")) if numbers else ()


_OPENCV_PROGRAM = """
import re, cv2, numpy
build = cv2.getBuildInformation()
has = {name.lower(): re.search(name + r":\\s+YES", build) is not None for name in ("GStreamer", "FFMPEG")}
hog = hasattr(cv2, "HOGDescriptor")
tell(version=cv2.__version__, file=cv2.__file__, numpy=numpy.__version__, hog=hog, **has)
"""


def opencv(*, on_board: bool) -> list[Finding]:
    """Check OpenCV, its decoders and HOG."""
    answer = probe(_OPENCV_PROGRAM)
    if isinstance(answer, str):
        advice = "pip install opencv-python"
        if "numpy" in answer or "_ARRAY_API" in answer:
            advice = 'pip install "numpy<2": this OpenCV is built for numpy 1'
        return [Finding("opencv", "missing", answer, advice)]
    decoders = [name for name in ("gstreamer", "ffmpeg") if answer[name]]
    found = f"{answer['version']} with {' and '.join(decoders) or 'no video decoder'}"
    findings = [Finding("opencv", "ok", f"{found}, numpy {answer['numpy']}, at {answer['file']}")]
    if not answer["hog"]:
        advice = 'pip install "opencv-python<5"'
        findings.append(Finding("opencv hog", "missing", "this OpenCV has no HOGDescriptor", advice))
    if not decoders:
        found = "neither FFmpeg nor GStreamer"
        findings.append(Finding("opencv video", "missing", found, "use another build"))
    if on_board and not answer["gstreamer"]:
        found = "no GStreamer: CSI cameras and hardware decoding do not work"
        advice = "use JetPack's cv2: pip uninstall opencv-python, in a venv with --system-site-packages"
        findings.append(Finding("opencv gstreamer", "warning", found, advice))
    return findings


_CUDA_PROGRAM = """
import ctypes
cuda = ctypes.CDLL("libcuda.so.1")
devices, version, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(100)
cuda.cuDriverGetVersion(ctypes.byref(version))
code = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(devices))
if code == 0 and devices.value:
    code = cuda.cuDeviceGetName(name, 100, 0)
tell(code=code, devices=devices.value, version=version.value, name=name.value.decode())
"""


def cuda(root: Path, *, on_board: bool) -> list[Finding]:
    """Check the CUDA driver."""
    answer = probe(_CUDA_PROGRAM)
    absent: State = "missing" if on_board else "note"
    if isinstance(answer, str):
        return [Finding("cuda", absent, answer, "install nvidia-jetpack" if on_board else "")]
    if answer["code"] or not answer["devices"]:
        found = f"the driver reports error {answer['code']}"
        return [Finding("cuda", absent, found, _cuda_advice(root, int(answer["code"]), on_board=on_board))]
    major, minor = divmod(int(answer["version"]), 1000)
    return [Finding("cuda", "ok", f"{answer['name']}, driver for CUDA {major}.{minor // 10}")]


def _cuda_advice(root: Path, code: int, *, on_board: bool) -> str:
    """The usual cause of an error of `cuInit`: on boards 999 without nvmap, 801 without the render nodes."""
    if not on_board:
        return "a GPU is not needed" if code == 100 else "check the driver with nvidia-smi"
    nodes = (root / "dev/nvmap", *sorted((root / "dev/dri").glob("renderD*")))
    closed = [str(path) for path in nodes if path.exists() and not os.access(path, os.R_OK | os.W_OK)]
    if closed:
        return f"no access to {', '.join(closed)}: usermod -aG video,render USER, then log in again"
    return "restart the board; if it stays, install nvidia-jetpack again"


def tensorrt(*, on_board: bool) -> list[Finding]:
    """Check TensorRT."""
    advice = "apt-get install python3-libnvinfer, and a venv from /usr/bin/python3 --system-site-packages"
    # Without a Runtime, which needs CUDA.
    return _optional("tensorrt", "import tensorrt as t; tell(version=t.__version__)", advice, on_board)


def pycuda(*, on_board: bool) -> list[Finding]:
    """Check PyCUDA."""
    advice = install_command("jetson")
    return _optional("pycuda", "import pycuda; tell(version=pycuda.VERSION_TEXT)", advice, on_board)


def _optional(name: str, program: str, advice: str, on_board: bool) -> list[Finding]:
    """Check a library that only boards need."""
    answer = probe(program)
    if isinstance(answer, dict):
        return [Finding(name, "ok", answer["version"])]
    return [Finding(name, "warning", answer, advice) if on_board else Finding(name, "note", answer)]


def board(root: Path) -> list[Finding]:
    """Check board, temperatures and power mode; `root` has the folders `sys`, `proc` and `etc`."""
    from edge_agent.health.telemetry.sysfs import SysfsReader

    reading = SysfsReader(root).read()
    if reading.l4t is None:
        return [Finding("board", "note", "not a Jetson: everything runs on ONNX Runtime"), *thermals(reading)]
    return [jetpack(reading), *thermals(reading), power_mode(reading)]


def jetpack(reading: Reading) -> Finding:
    """Check the release of JetPack."""
    release = str(reading.l4t)
    jetpack = _JETPACK.get(release.partition(".")[0])
    found = f"{reading.board or 'a Jetson'}, L4T {release}" + (f" (JetPack {jetpack})" if jetpack else "")
    if jetpack == "5":
        return Finding("board", "warning", found, "JetPack 5 has Python 3.8: install JetPack 6.2 or 7.2")
    if jetpack is None:
        return Finding("board", "warning", found, "this release is unknown: JetPack 6.2 and 7.2 are tested")
    return Finding("board", "ok", found)


def thermals(reading: Reading) -> list[Finding]:
    """Check temperatures and throttling."""
    if reading.hottest_c is None:
        return [Finding("thermals", "note", "no sensor can be read")]
    found = f"{reading.hottest_zone} {reading.hottest_c:.1f} C"
    if reading.throttled:
        found += f", throttled by {', '.join(reading.throttle_reasons)}"
        return [Finding("thermals", "warning", found, "check fan, dust, ambient and power")]
    if reading.hottest_c >= WARM_C:
        return [Finding("thermals", "warning", found, "close to throttling: check fan, dust and ambient")]
    return [Finding("thermals", "ok", found)]


def power_mode(reading: Reading) -> Finding:
    """Check the power mode."""
    mode = reading.power_mode
    if mode is None or mode.startswith("MAXN"):
        return Finding("power mode", "ok" if mode else "note", mode or "not known")
    return Finding("power mode", "note", mode, "for full speed: sudo nvpmodel -m 0")


def jtop(root: Path, *, on_board: bool) -> list[Finding]:
    """Check the service of jetson-stats."""
    socket = root / "run/jtop.sock"
    if socket.exists():
        if os.access(socket, os.R_OK | os.W_OK):
            return [Finding("jtop", "ok", "its service runs")]
        return [Finding("jtop", "note", "its service runs, but not for this user", "usermod -aG jtop USER")]
    if not on_board:
        return []
    advice = "for engine clocks: sudo pip3 install jetson-stats && sudo jtop --install-service"
    return [Finding("jtop", "note", "its service does not run; other values come from sysfs", advice)]


def clock() -> list[Finding]:
    """Check whether the clock is synchronised."""
    from edge_agent.core.system_time import SystemTime

    if not SystemTime().synchronised():
        advice = "timedatectl set-ntp true; until then times of events are marked as uncertain"
        return [Finding("clock", "warning", "not synchronised", advice)]
    return [Finding("clock", "ok", "synchronised")]
