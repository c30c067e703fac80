"""Real inference servers in environments of their own, made once: Triton 2.51 and mlserver 1.7.

nvidia-pytriton contains a `tritonserver` and its Python backend. A folder of the backends folder with a
`model.py` serves all models that name it as backend: `onnxruntime_backend.py` is put there as
`onnxruntime`, so that an exported model repository is served as it is, on the CPU.

    python tests/kserve/environment.py REPOSITORY [PORT]     # serve a model repository until Ctrl-C
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge-agent-tests"
PYTRITON = ("--no-deps", "numpy<2", "onnxruntime<1.24", "nvidia-pytriton==0.7.0")
"""Triton's Python backend does not understand NumPy 2; the other dependencies are for another use."""
MLSERVER = ("mlserver==1.7.1", "onnxruntime")
_VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
_STUB = "triton_python_backend_stub"
_START_S = 60.0


class NotHereError(Exception):
    """The environment of a server cannot be made on this machine."""


def triton_environment() -> Path:
    """Return a virtual environment with nvidia-pytriton, NumPy and ONNX Runtime."""
    if sys.version_info >= (3, 13):
        raise NotHereError("Triton's Python backend needs NumPy 1, and so Python below 3.13")
    folder = _made(triton_folder().name, *PYTRITON)
    stub = _site(folder) / "pytriton/tritonserver/python_backend_stubs" / _VERSION / _STUB
    if not stub.is_file():
        raise NotHereError(f"{PYTRITON[-1]} has no stub for Python {_VERSION}")
    library = f"libpython{_VERSION}.so.1.0"
    done = subprocess.run(["ldd", str(stub)], capture_output=True, text=True, check=False)
    if f"{library} => not found" in done.stdout and not _libpython().is_file():
        raise NotHereError(f"Triton's Python backend needs {library}")
    return folder


def triton_folder() -> Path:
    """Return where Triton's environment is, or will be."""
    return CACHE / f"pytriton-0.7.0-py{_VERSION}"


def mlserver_environment() -> Path:
    """Return a virtual environment with mlserver and all that it needs."""
    if sys.version_info >= (3, 13):
        raise NotHereError("mlserver 1.7.1 needs Python below 3.13")
    return _made(f"mlserver-1.7.1-py{_VERSION}", *MLSERVER)


def _libpython() -> Path:
    return Path(sysconfig.get_config_var("LIBDIR") or "/") / (sysconfig.get_config_var("INSTSONAME") or "?")


def _site(folder: Path) -> Path:
    return folder / "lib" / f"python{_VERSION}" / "site-packages"


def _made(name: str, *packages: str) -> Path:
    """Make a virtual environment with packages in the cache; it is renamed when it is complete."""
    folder = CACHE / name
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=CACHE))
        pip = [sys.executable, "-m", "pip", "install", "-q", "--retries", "1", "--only-binary", ":all:"]
        try:
            subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(draft)], check=True)
            done = subprocess.run(
                [*pip, "--target", str(_site(draft)), *packages],
                capture_output=True, text=True, timeout=600, check=False,
            )  # fmt: skip
            if done.returncode:
                raise NotHereError(f"pip cannot install {packages[-1]}: {done.stderr.strip()[-400:]}")
            with contextlib.suppress(OSError):  # another run may have been faster
                draft.rename(folder)
        except subprocess.TimeoutExpired as problem:
            raise NotHereError(f"pip needs more than {problem.timeout:.0f} s for {packages[-1]}") from problem
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return folder


def named_memory() -> list[str]:
    """Return the names of the agent's shared memory that this process holds; other tests have their own."""
    held = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the listing
            held.append(str(descriptor.readlink()))
    mine = [path for path in held if path.startswith("/dev/shm/edge-agent-")]
    return [path for path in mine if not path.endswith(" (deleted)")]


@dataclass
class Server:
    """A server process with its own ports on loopback, which can be killed, frozen, and started again."""

    command: list[str]
    environment: Mapping[str, str]
    folder: Path
    port: int
    http: int
    process: subprocess.Popen[bytes] | None = None
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.folder / "server.log"

    def backend(self, model: str) -> str:
        """Return the setting `engine.backend` for a model."""
        return f"triton:127.0.0.1:{self.port}/{model}"

    def start(self) -> Server:
        """Start the process, again if it was running, and wait until all models can be used."""
        self.stop()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, env=dict(self.environment), stdout=log, stderr=log, cwd=self.folder,
                start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + _START_S
        while not self._ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"the server did not start:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.05)
        return self

    def _ready(self) -> bool:
        request = b"GET /v2/health/ready HTTP/1.0\r\nHost: localhost\r\n\r\n"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.http), 0.5) as client:
            client.sendall(request)
            answered = client.recv(64).split()[1:2] == [b"200"]
            with socket.create_connection(("127.0.0.1", self.port), 0.5):
                return answered
        return False

    def send(self, number: int, *, whole: bool = True) -> None:
        """Send a signal to the server and, with `whole`, to the processes of its backends."""
        assert self.process is not None
        if whole:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)

    @property
    def ended(self) -> bool:
        """Whether the process has ended by itself."""
        return self.process is not None and self.process.poll() is not None

    def children(self) -> list[int]:
        """Ids of the processes of the backends."""
        assert self.process is not None
        pid = self.process.pid
        found = []
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += [int(child) for child in (task / "children").read_text().split()]
        return found

    def kill(self) -> None:
        """End the server at once, as a crash or `docker kill` does."""
        self.stop(signal.SIGKILL)

    def stop(self, number: int = signal.SIGKILL) -> None:
        """End the server and the processes of its backends."""
        if self.process is None:
            return
        regions = self._regions()
        with contextlib.suppress(ProcessLookupError):
            self.send(number)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            self.process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process = None
        for region in regions:
            region.unlink(missing_ok=True)

    def _regions(self) -> set[Path]:
        """Shared memory of Triton's Python backend, which a server that is killed leaves behind."""
        assert self.process is not None
        try:
            maps = Path(f"/proc/{self.process.pid}/maps").read_text()
        except OSError:
            return set()
        return {Path(found) for found in re.findall(r"/dev/shm/triton_\S+", maps)}


def free_ports(count: int) -> list[int]:
    """Return free TCP ports on 127.0.0.1."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def triton(repository: Path, folder: Path, *options: str, port: int = 0) -> Server:
    """Return a Triton for a model repository, not started; `folder` is for its backends, log and caches."""
    home = triton_environment()
    server = _site(home) / "pytriton/tritonserver"
    backends, (own, http, metrics) = folder / "backends", free_ports(3)
    port = port or own
    for name in ("python", "onnxruntime"):
        (backends / name).mkdir(parents=True, exist_ok=True)
    for file in (server / "backends/python").glob("*.*"):
        shutil.copy(file, backends / "python", follow_symlinks=True)
    shutil.copy(server / "python_backend_stubs" / _VERSION / _STUB, backends / "python")
    shutil.copy(HERE / "onnxruntime_backend.py", backends / "onnxruntime/model.py")
    libraries = os.pathsep.join([str(_site(home) / "nvidia_pytriton.libs"), str(_libpython().parent)])
    command = [
        str(server / "bin/tritonserver"), f"--model-repository={repository}",
        f"--backend-directory={backends}", f"--cache-directory={server / 'caches'}",
        "--grpc-address=127.0.0.1", f"--grpc-port={port}", "--http-address=127.0.0.1", f"--http-port={http}",
        "--metrics-address=127.0.0.1", f"--metrics-port={metrics}", "--allow-gpu-metrics=false",
        "--pinned-memory-pool-byte-size=0", *options,
    ]  # fmt: skip
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": libraries,
        "PATH": os.pathsep.join([str(home / "bin"), os.environ.get("PATH", "")]),  # the stub's `python3`
    }
    return Server(command, environment, folder, port, http)


def mlserver(models: Path, folder: Path) -> Server:
    """Return an mlserver for a folder of models, each with `model-settings.json`, not started."""
    home = mlserver_environment()
    port, http, metrics = free_ports(3)
    settings = {
        "host": "127.0.0.1", "http_port": http, "grpc_port": port, "metrics_port": metrics,
        "parallel_workers": 0, "debug": False,
    }  # fmt: skip
    (models / "settings.json").write_text(json.dumps(settings))
    command = [str(home / "bin/python3"), "-c", "from mlserver.cli import main; main()", "start", str(models)]
    return Server(command, {**os.environ, "PYTHONPATH": str(HERE)}, folder, port, http)


@contextlib.contextmanager
def running(server: Server) -> Iterator[Server]:
    """Run a server during a block."""
    try:
        yield server.start()
    finally:
        server.stop()


def _serve() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell lets programs ignore Ctrl-C
        signal.signal(number, signal.default_int_handler)
    repository, port = Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 8001
    with tempfile.TemporaryDirectory() as folder:
        server = triton(repository, Path(folder), port=port)
        with running(server), contextlib.suppress(KeyboardInterrupt):
            print(f"Triton serves {repository} at {server.backend('MODEL')}", flush=True)
            assert server.process is not None
            server.process.wait()


if __name__ == "__main__":
    _serve()
