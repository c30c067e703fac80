"""What `edge-agent doctor` looks at: one function per question, each answered by a finding.

Libraries with machine code (OpenCV, ONNX Runtime, CUDA, TensorRT) are asked in processes of their own: a
library that crashes or hangs is a finding like any other.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edge_agent.core.errors import EdgeAgentError

if TYPE_CHECKING:
    from edge_agent.core.config import Settings
    from edge_agent.core.structures import EngineInfo
    from edge_agent.engine.precision.calibration import Calibration
    from edge_agent.health.telemetry import Reading

__all__ = ["Finding", "State", "examine"]

State = Literal["ok", "note", "warning", "missing"]
"""`note`: optional and not there; `warning`: works, but not well; `missing`: the agent cannot run without."""

OLDEST_PYTHON = (3, 10)
PROBE_TIMEOUT_S = 60.0  # the first import of TensorRT on a board with a cold disk takes many seconds
LITTLE_SPACE, NO_SPACE = 2 << 30, 200 << 20  # bytes; a full outbox is 1 GiB by default
WARM_C = 90.0  # an Orin throttles at 99 C

_MODULES = {"opencv-python": "cv2"}
"""Distributions that a board has as a Debian package, under the name of its module."""

_JETPACK = {"35": "5", "36": "6", "38": "7", "39": "7"}
"""L4T major version to JetPack's."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer to one question.

    Attributes:
        name: what was looked at.
        state: how it is.
        found: what is there.
        advice: what to do about it; empty when nothing is to be done.
    """

    name: str
    state: State
    found: str
    advice: str = ""


def examine(
    config: Path | None, *, root: Path = Path("/"), step: Callable[[str], None] | None = None
) -> list[Finding]:
    """Ask everything.

    Args:
        config: the TOML file, as for `edge_agent.core.loading.load`.
        root: where `sys`, `proc`, `etc`, `dev` and `run` are.
        step: told the name of what is looked at next, before it is.
    """
    findings: list[Finding] = []
    questions = _Questions(config, root)
    for name, ask in questions.all():
        if step is not None:
            step(name)
        try:
            findings += ask()
        except Exception as problem:  # noqa: BLE001 - one question must not keep the others from being asked
            text = f"could not be looked at: {type(problem).__name__}: {problem}"
            findings.append(Finding(name, "warning", text, "please report this"))
    return findings


class _Questions:
    """All questions, and what the answer to one tells the next."""

    def __init__(self, config: Path | None, root: Path) -> None:
        self._config = config
        self._root = root
        self._settings: Settings | None = None
        self._engine: EngineInfo | None = None
        self._onnxruntime = False
        self._device: Reading | None = None

    def all(self) -> Iterator[tuple[str, Callable[[], list[Finding]]]]:
        """Name and function, in the order in which they build on each other."""
        yield "python", _python
        yield "packages", _packages
        yield "opencv", lambda: _opencv(on_board=self._on_board)
        yield "onnxruntime", self._ask_onnxruntime
        yield "board", self._ask_board
        yield "cuda", lambda: _cuda(self._root, on_board=self._on_board)
        yield "tensorrt", lambda: _tensorrt(on_board=self._on_board)
        yield "pycuda", lambda: _pycuda(on_board=self._on_board)
        yield "jtop", lambda: _jtop(self._root, on_board=self._on_board)
        yield "clock", _clock
        yield "configuration", self._ask_configuration
        yield (
            "state folder",
            lambda: [] if self._settings is None else _state_folder(self._settings.state_dir),
        )
        yield "model", self._ask_model
        yield "gallery", lambda: [] if self._settings is None else _gallery(self._settings, self._engine)
        yield "broker", lambda: [] if self._settings is None else _broker(self._settings)

    @property
    def _on_board(self) -> bool:
        """Whether this is a Jetson."""
        return (self._root / "etc/nv_tegra_release").exists()

    def _ask_onnxruntime(self) -> list[Finding]:
        answer = _probe(
            "import onnxruntime as o; tell(version=o.__version__, providers=o.get_available_providers())"
        )
        self._onnxruntime = isinstance(answer, dict)
        if isinstance(answer, str):
            return [
                Finding("onnxruntime", "missing", answer, "install it again: pip install --force onnxruntime")
            ]
        return [Finding("onnxruntime", "ok", f"{answer['version']}: {', '.join(answer['providers'])}")]

    def _ask_board(self) -> list[Finding]:
        from edge_agent.health.telemetry.sysfs import SysfsReader

        reading = SysfsReader(self._root).read()
        if reading.l4t is None:
            return [
                Finding("board", "note", "not a Jetson: everything runs on ONNX Runtime"),
                *_thermals(reading),
            ]
        return [_jetpack(reading), *_thermals(reading), _power_mode(reading)]

    def _ask_configuration(self) -> list[Finding]:
        from edge_agent.core.loading import config_file, load

        try:
            self._settings = load(self._config)
        except EdgeAgentError as problem:
            return [
                Finding("configuration", "missing", str(problem), "mend it, then: edge-agent config check")
            ]
        file = config_file(self._config)
        sources = len(self._settings.sources)
        found = f"{file or 'defaults and environment'}, {sources} source(s)"
        advice = "" if sources else "name the cameras in [[sources]], or give --source to edge-agent run"
        return [Finding("configuration", "ok" if sources else "note", found, advice)]

    def _ask_model(self) -> list[Finding]:
        """Load the network and let it pass its self-test."""
        if self._settings is None or not self._onnxruntime:
            return []
        from tempfile import TemporaryDirectory

        from edge_agent.embed.opening import open_embedder
        from edge_agent.engine.precision.calibration import current_calibration

        folder, engine, quality = self._settings.state_dir, self._settings.engine, self._settings.quality
        with TemporaryDirectory() as scratch:
            # where there is none, looking must not make a state folder, nor files in one of another user
            own = folder.is_dir() and folder.stat().st_uid == os.geteuid()
            try:
                place = folder if own else Path(scratch)
                calibration = current_calibration(engine, folder)
                with open_embedder(engine, quality, place, calibration) as embedder:
                    self._engine = embedder.info
            except EdgeAgentError as problem:
                advice = "give it as engine.model, or train one: docs/models.md"
                return [Finding("model", "missing", str(problem), advice)]
        info = self._engine
        found = f"{info.model} on {info.backend} {info.precision}, self-test passed, space {info.space}"
        return [Finding("model", "ok", found), _calibration(calibration, info)]


def _calibration(calibration: Calibration | None, engine: EngineInfo) -> Finding:
    """Whether precision and threshold were chosen for the network that runs."""
    again = "edge-agent calibrate --dataset DIR (docs/calibration.md)"
    if calibration is None:
        return Finding("calibration", "note", "none: the site's own rule sets the match threshold", again)
    if calibration.data["space"] != engine.space:
        model = calibration.data["model"]["name"]
        return Finding(
            "calibration", "warning", f"{calibration.name} is of {model}, which does not run", again
        )
    value = calibration.threshold
    threshold = "no threshold" if value is None else f"threshold {value:.4f}"
    return Finding("calibration", "ok", f"{calibration.name}: {calibration.precision}, {threshold}")


# ---- programs and libraries


def _python() -> list[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    where = f"{version} at {sys.executable}"
    if sys.version_info[:2] < OLDEST_PYTHON:
        return [
            Finding("python", "missing", where, "3.10 or newer is needed: JetPack 6 or 7, or Ubuntu 22.04")
        ]
    return [Finding("python", "ok", where)]


def _packages() -> list[Finding]:
    """Every distribution that this one requires, with its version."""
    try:
        required = importlib.metadata.requires("edge-agent") or []
    except importlib.metadata.PackageNotFoundError:
        return [Finding("packages", "warning", "edge-agent itself is not installed", "run ./install.sh")]
    findings = []
    for line in required:
        parsed = re.fullmatch(r"\s*([\w.-]+)\s*([^;]*)(?:;.*)?", line)
        if parsed is not None and ";" not in line:  # a marker: an extra, or for another Python
            findings.append(_package(parsed[1], parsed[2]))
    return findings


def _package(name: str, wanted: str) -> Finding:
    title = f"package {name}"
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        if name in _MODULES:
            return Finding(title, "note", "not from pip; see opencv for the system's")
        return Finding(title, "missing", "not installed", f'pip install "{name}{wanted}"')
    if not _fits(version, wanted):
        return Finding(title, "missing", f"{version}, wanted {wanted}", f'pip install "{name}{wanted}"')
    return Finding(title, "ok", version)


def _fits(version: str, wanted: str) -> bool:
    """Whether a version is within bounds such as `<5,>=4.5`."""
    have = _release(version)
    for sign, bound in re.findall(r"(<|>=)\s*([\d.]+)", wanted):
        if sign == "<" and have >= _release(bound):
            return False
        if sign == ">=" and have < _release(bound):
            return False
    return True


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


def _opencv(*, on_board: bool) -> list[Finding]:
    answer = _probe(_OPENCV_PROGRAM)
    if isinstance(answer, str):
        clash = "numpy" in answer or "_ARRAY_API" in answer
        advice = (
            'pip install "numpy<2": this OpenCV is built for numpy 1'
            if clash
            else "pip install opencv-python"
        )
        return [Finding("opencv", "missing", answer, advice)]
    decoders = [name for name in ("gstreamer", "ffmpeg") if answer[name]]
    found = (
        f"{answer['version']} with {' and '.join(decoders) or 'no video decoder'}, numpy {answer['numpy']}"
    )
    findings = [Finding("opencv", "ok", f"{found}, at {answer['file']}")]
    if not answer["hog"]:
        findings.append(
            Finding(
                "opencv hog", "missing", "this OpenCV has no HOGDescriptor", 'pip install "opencv-python<5"'
            )
        )
    if not decoders:
        findings.append(
            Finding("opencv video", "missing", "neither FFmpeg nor GStreamer", "use another build")
        )
    if on_board and not answer["gstreamer"]:
        findings.append(
            Finding(
                "opencv gstreamer",
                "warning",
                "no GStreamer: CSI cameras and hardware decoding do not work",
                "use JetPack's cv2: pip uninstall opencv-python, in a venv with --system-site-packages",
            )
        )
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


def _cuda(root: Path, *, on_board: bool) -> list[Finding]:
    answer = _probe(_CUDA_PROGRAM)
    absent: State = "missing" if on_board else "note"
    if isinstance(answer, str):
        return [Finding("cuda", absent, answer, "install nvidia-jetpack" if on_board else "")]
    if answer["code"] or not answer["devices"]:
        found = f"the driver is there, but says error {answer['code']}"
        return [Finding("cuda", absent, found, _cuda_advice(root, int(answer["code"]), on_board=on_board))]
    major, minor = divmod(int(answer["version"]), 1000)
    return [Finding("cuda", "ok", f"{answer['name']}, driver for CUDA {major}.{minor // 10}")]


def _cuda_advice(root: Path, code: int, *, on_board: bool) -> str:
    """What an error of `cuInit` usually comes from."""
    if not on_board:
        return "a GPU is not needed" if code == 100 else "check the driver with nvidia-smi"
    closed = [str(path) for path in _gpu_nodes(root) if not os.access(path, os.R_OK | os.W_OK)]
    if closed:
        return f"no access to {', '.join(closed)}: usermod -aG video,render USER, then log in again"
    return "restart the board; if it stays, install nvidia-jetpack again"


def _gpu_nodes(root: Path) -> list[Path]:
    """Device files without which CUDA does not start: 999 without nvmap, 801 without the render nodes."""
    return [
        path for path in (root / "dev/nvmap", *sorted((root / "dev/dri").glob("renderD*"))) if path.exists()
    ]


def _tensorrt(*, on_board: bool) -> list[Finding]:
    answer = _probe("import tensorrt as t; tell(version=t.__version__)")  # no Runtime: that needs CUDA
    if isinstance(answer, dict):
        return [Finding("tensorrt", "ok", answer["version"])]
    if on_board:
        advice = "apt-get install python3-libnvinfer, and a venv from /usr/bin/python3 --system-site-packages"
        return [Finding("tensorrt", "warning", answer, advice)]
    return [Finding("tensorrt", "note", answer)]


def _pycuda(*, on_board: bool) -> list[Finding]:
    answer = _probe("import pycuda; tell(version=pycuda.VERSION_TEXT)")
    if isinstance(answer, dict):
        return [Finding("pycuda", "ok", answer["version"])]
    if on_board:
        return [Finding("pycuda", "warning", answer, 'pip install "edge-agent[jetson]"')]
    return [Finding("pycuda", "note", answer)]


# ---- the device


def _jetpack(reading: Reading) -> Finding:
    release = str(reading.l4t)
    jetpack = _JETPACK.get(release.partition(".")[0])
    found = f"{reading.board or 'a Jetson'}, L4T {release}" + (f" (JetPack {jetpack})" if jetpack else "")
    if jetpack == "5":
        return Finding("board", "warning", found, "JetPack 5 has Python 3.8: install JetPack 6.2 or 7.2")
    if jetpack is None:
        return Finding("board", "warning", found, "this release is not known: JetPack 6.2 and 7.2 are tested")
    return Finding("board", "ok", found)


def _thermals(reading: Reading) -> list[Finding]:
    if reading.hottest_c is None:
        return [Finding("thermals", "note", "no sensor can be read")]
    found = f"{reading.hottest_zone} {reading.hottest_c:.1f} C"
    if reading.throttled:
        why = ", ".join(reading.throttle_reasons)
        return [
            Finding(
                "thermals", "warning", f"{found}, throttled by {why}", "check fan, dust, ambient and power"
            )
        ]
    if reading.hottest_c >= WARM_C:
        return [Finding("thermals", "warning", found, "close to throttling: check fan, dust and ambient")]
    return [Finding("thermals", "ok", found)]


def _power_mode(reading: Reading) -> Finding:
    if reading.power_mode is None:
        return Finding("power mode", "note", "not known")
    if not reading.power_mode.startswith("MAXN"):
        return Finding("power mode", "note", reading.power_mode, "for full speed: sudo nvpmodel -m 0")
    return Finding("power mode", "ok", reading.power_mode)


def _jtop(root: Path, *, on_board: bool) -> list[Finding]:
    socket = root / "run/jtop.sock"
    if socket.exists():
        if os.access(socket, os.R_OK | os.W_OK):
            return [Finding("jtop", "ok", "its service runs")]
        return [Finding("jtop", "note", "its service runs, but not for this user", "usermod -aG jtop USER")]
    if not on_board:
        return []
    advice = "for engine clocks: sudo pip3 install jetson-stats && sudo jtop --install-service"
    return [Finding("jtop", "note", "its service does not run; sysfs tells the rest", advice)]


def _clock() -> list[Finding]:
    """Ask the kernel (adjtimex(2)) whether somebody keeps its clock in time."""
    libc = ctypes.CDLL(None, use_errno=True)
    state = libc.adjtimex(ctypes.create_string_buffer(512))  # struct timex, 208 bytes; all zero: only ask
    if state < 0:
        return [Finding("clock", "note", f"cannot be asked: {os.strerror(ctypes.get_errno())}")]
    if state == _TIME_ERROR:
        advice = "timedatectl set-ntp true; times of events and expiry follow this clock"
        return [Finding("clock", "warning", "not synchronised", advice)]
    return [Finding("clock", "ok", "synchronised")]


_TIME_ERROR = 5  # from sys/timex.h


# ---- what is configured


def _state_folder(folder: Path) -> list[Finding]:
    title = "state folder"
    present = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(present, os.W_OK | os.X_OK):
        user = f"user {os.geteuid()}"
        return [
            Finding(title, "missing", f"{present} is not writable for {user}", "name another as state_dir")
        ]
    if present != folder:
        return [Finding(title, "note", f"{folder} will be made"), _space(present)]
    status = folder.stat()
    if stat.S_IMODE(status.st_mode) & 0o077:
        found = f"{folder} is open to others (mode {stat.S_IMODE(status.st_mode):04o})"
        return [Finding(title, "warning", found, f"chmod 700 {folder}"), _space(folder)]
    if status.st_uid != os.geteuid():
        found = f"{folder} belongs to user {status.st_uid}, this is user {os.geteuid()}"
        return [Finding(title, "note", found, "run doctor as the user of the service"), _space(folder)]
    return [Finding(title, "ok", str(folder)), _space(folder)]


def _space(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    found = f"{free / (1 << 30):.1f} GiB free for {folder}"
    if free < NO_SPACE:
        return Finding("disk", "missing", found, "free some: gallery and outbox cannot be written")
    if free < LITTLE_SPACE:
        return Finding("disk", "warning", found, "free some, or lower outbox.max_megabytes")
    return Finding("disk", "ok", found)


def _gallery(settings: Settings, engine: EngineInfo | None) -> list[Finding]:
    from edge_agent.core.encryption import database_key
    from edge_agent.gallery.gallery import GALLERY_FILE, Gallery

    path = settings.state_dir / GALLERY_FILE
    if not path.is_file():
        return [Finding("gallery", "note", f"{path} will be made")]
    try:
        with Gallery.existing(path, key=database_key(settings.storage)) as gallery:
            stats = gallery.stats()
    except EdgeAgentError as problem:
        return [Finding("gallery", "missing", str(problem))]
    found = (
        f"{stats.identities} of {stats.capacity} identities, {stats.enrolled} enrolled, space {stats.space}"
    )
    if engine is not None and engine.space != stats.space and stats.identities:
        advice = f"use its model, or: edge-agent gallery forget --all --state {settings.state_dir}"
        return [Finding("gallery", "missing", f"{found}, but the model makes {engine.space}", advice)]
    return [Finding("gallery", "ok", found)]


def _broker(settings: Settings) -> list[Finding]:
    """Connect as the agent would."""
    from edge_agent.core.mqtt import broker_settings
    from edge_agent.deliver.subscriber import Subscriber

    try:
        broker = broker_settings(settings.mqtt)
        if broker is None:
            return [Finding("broker", "note", "none is configured", "name it as mqtt.broker")]
        topic = f"edge/v1/{settings.mqtt.site}/{settings.mqtt.device}/status"
        with Subscriber(broker, (topic,)):
            return [Finding("broker", "ok", f"{broker.url} lets us in")]
    except EdgeAgentError as problem:
        advice = "the agent runs without it and delivers later; check address, user and certificates"
        return [Finding("broker", "warning", str(problem), advice)]


# ---- asking libraries


_TELL = "import json\ndef tell(**answer): print('\\n' + json.dumps(answer))\n"


def _probe(program: str) -> dict[str, Any] | str:
    """What a small program told by `tell(name=value, ...)`, or why it did not get to that."""
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and our own program
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
