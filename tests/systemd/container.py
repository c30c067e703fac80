"""A Debian 12 with systemd as its first process, in systemd-nspawn, and the tools to boot it.

    python tests/systemd/container.py    makes the container and prints its place, or why it is impossible

The tree and the wheels are kept in `$XDG_CACHE_HOME/edge-agent-tests` (`~/.cache/edge-agent-tests`). A
container writes to a layer of its own above the tree, and sees the network of this machine: what listens on
127.0.0.1 here is on 127.0.0.1 there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_agent.core import distribution

REPO = Path(__file__).resolve().parent.parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge-agent-tests"

SUITE, MIRROR, PYTHON = "bookworm", "http://deb.debian.org/debian", "3.11"
PACKAGES = ("systemd", "systemd-sysv", "dbus", "sudo", "python3", "python3-venv", "python3-opencv")
"""python3-opencv: with GStreamer and built for numpy 1, as JetPack's; brings the libraries of pip's, too."""

LIBRARIES = Path("/lib/x86_64-linux-gnu/systemd"), Path("/usr/lib/aarch64-linux-gnu/systemd")
"""Where systemd-nspawn finds libsystemd-shared when it was not installed, only unpacked."""

BOOT_S, STOP_S = 60.0, 60.0


class CannotMake(Exception):
    """A requirement of the container is missing and cannot be installed."""


class CommandFailed(Exception):
    """A command inside a container ended with another code than 0; contains its output."""


# ---- what is kept


def tree() -> Path:
    """The root file system that containers start from, made once."""
    if os.geteuid() != 0:
        raise CannotMake("containers need root")
    target = CACHE / f"{SUITE}-{_digest(PACKAGES)}"
    if target.is_dir():
        return target
    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    script = _tool("debootstrap")
    environment = {**os.environ}
    if CACHE in script.parents:
        environment["DEBOOTSTRAP_DIR"] = str(script.parent.parent / "share" / "debootstrap")
    _run(
        [script, "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, partial, MIRROR], environment
    )
    partial.rename(target)
    return target


def wheels() -> Path:
    """A folder with the wheels of everything that the project requires, for the Python of the tree."""
    extras = (one for extra in ("encrypt", "page", "fleet") for one in distribution.requirements(extra))
    wanted = [*distribution.requirements(), *extras, "setuptools>=77"]
    target = CACHE / f"wheels-{PYTHON}-{_digest([*wanted, 'numpy<2'])}"
    if target.is_dir():
        return target
    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    platforms = [f"--platform=manylinux_2_{minor}_{os.uname().machine}" for minor in range(36, 11, -1)]
    platforms.append(f"--platform=manylinux2014_{os.uname().machine}")
    command = [sys.executable, "-m", "pip", "download", "-qq", "--dest", partial, "--only-binary=:all:"]
    command += ["--implementation=cp", f"--python-version={PYTHON}", *platforms]
    _run([*command, *wanted])
    # and what fits numpy 1, for an OpenCV that was built for it
    _run([*command, "numpy<2", *(one for one in wanted if not one.startswith("opencv"))])
    partial.rename(target)
    return target


def _tool(name: str) -> Path:
    """systemd-nspawn or debootstrap: installed, else from its Debian package, unpacked and not installed."""
    package = {"systemd-nspawn": "systemd-container"}.get(name, name)
    folder = CACHE / "tools" / package
    places = os.pathsep.join([os.environ["PATH"], "/usr/sbin", f"{folder}/usr/bin", f"{folder}/usr/sbin"])
    found = shutil.which(name, path=places)
    if found is None:
        if shutil.which("apt-get") is None:
            raise CannotMake(f"{name} is not installed, and this is no Debian")
        folder.mkdir(parents=True, exist_ok=True)
        _run(["apt-get", "update", "-qq"])
        _run(["apt-get", "download", "-qq", package], cwd=folder)
        _run(["dpkg-deb", "-x", next(folder.glob("*.deb")), folder])
        found = shutil.which(name, path=places)
    if found is None:
        raise CannotMake(f"the package {package} has no {name}")
    return Path(found)


def _run(
    command: Sequence[object], environment: dict[str, str] | None = None, cwd: Path | None = None
) -> None:
    words = [str(word) for word in command]
    done = subprocess.run(words, env=environment, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise CannotMake(f"{' '.join(words[:3])} ... failed: {'; '.join(last)}")


def _digest(words: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:10]


# ---- a container


@dataclass
class Container:
    """One machine; lifetime is a `with` around `running`.

    Attributes:
        root: its file system as seen from outside.
        folder: for its layer and its console.
    """

    root: Path
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    def boot(self) -> None:
        """Start it, and wait until systemd has started everything."""
        nspawn = _tool("systemd-nspawn")
        environment = {**os.environ}
        if CACHE in nspawn.parents:
            environment["LD_LIBRARY_PATH"] = os.pathsep.join(str(path) for path in LIBRARIES)
        command = [nspawn, "--quiet", "--register=no", "--keep-unit", "--console=pipe",
                   "--boot", f"--machine=edge-agent-{os.getpid()}", f"--directory={self.root}"]  # fmt: skip
        with (self.folder / "console").open("ab") as console:
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=console, stderr=console
            )
        deadline = time.monotonic() + BOOT_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(OSError, CommandFailed, IndexError):
                if self.run("systemctl is-system-running || true").strip() in {"running", "degraded"}:
                    return
            time.sleep(0.2)
        reported = (self.folder / "console").read_text(errors="replace")[-2000:]
        raise CannotMake(f"systemd does not come up in a container: {reported}")

    def stop(self) -> None:
        """As a machine is switched off."""
        if self.process is None:
            return
        with contextlib.suppress(OSError, CommandFailed, IndexError):
            self.run("systemctl poweroff")
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def reboot(self) -> None:
        """Off and on."""
        self.stop()
        self.boot()

    def start(self, command: str, **options: object) -> subprocess.Popen[str]:
        """Begin a shell command inside, as root."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return subprocess.Popen(
            [
                "nsenter", f"--target={children.split()[0]}", "--mount", "--uts", "--ipc", "--pid", "--net",
                "env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "HOME=/root",
                "LANG=C.UTF-8", "bash", "-c", f"cd / && {command}",
            ],
            text=True, stdin=subprocess.DEVNULL, **options,  # type: ignore[call-overload]
        )  # fmt: skip

    def attempt(self, command: str, seconds: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Run a shell command inside, as root; its exit code, output and error output together."""
        with self.start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            try:
                reported, _ = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return subprocess.CompletedProcess(command, process.returncode, reported)

    def run(self, command: str, seconds: float = 120.0) -> str:
        """The same, for a command that must succeed; return its output."""
        done = self.attempt(command, seconds)
        if done.returncode:
            raise CommandFailed(f"{command}: exit code {done.returncode}\n{done.stdout}")
        return done.stdout

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Put a file there, owned by root."""
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(mode)


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Container]:
    """A container that has booted, with a layer of its own in `folder`."""
    base = tree()
    root = folder / "root"
    root.mkdir(parents=True)
    layer = _layer(base, folder, root)
    if not layer:
        _run(["cp", "--archive", "--reflink=auto", f"{base}/.", root])
    container = Container(root, folder)
    container.write("/etc/hostname", "appliance\n")
    container.write("/etc/hosts", "127.0.0.1 localhost appliance\n")
    try:
        container.boot()
        yield container
    finally:
        container.stop()
        if layer:
            subprocess.run(["umount", root], check=True)


def _layer(base: Path, folder: Path, root: Path) -> bool:
    """Mount a layer that is written to above the tree; False where this kernel or file system has none."""
    upper, work = folder / "upper", folder / "work"
    upper.mkdir()
    work.mkdir()
    options = f"lowerdir={base},upperdir={upper},workdir={work}"
    done = subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", options, root], capture_output=True, check=False
    )
    return done.returncode == 0


if __name__ == "__main__":
    try:
        print(tree())
        print(wheels())
        print(_tool("systemd-nspawn"))
    except CannotMake as problem:
        sys.exit(f"{problem}")
