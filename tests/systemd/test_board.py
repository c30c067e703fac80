"""install.sh on the file layout of a Jetson: JetPack's libraries are used, what hides them is refused.

OpenCV is a system's own, with GStreamer and for numpy 1, as JetPack's (Debian's python3-opencv). TensorRT,
CUDA's compiler and pycuda are stand-ins: there is no GPU, and doctor reports it.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.engine.graph.stripes import write_stripe_model
from tests.systemd.container import Container
from tests.systemd.test_appliance import INSTALL, files, machine

pytestmark = [pytest.mark.systemd, pytest.mark.timeout(900)]

SYSTEM_PACKAGES = "/usr/lib/python3/dist-packages"
PIPS_PACKAGES = "/usr/local/lib/python3.11/dist-packages"


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    with machine(tmp_path_factory.mktemp("board"), stand_in=True) as found:
        nvcc = "#!/bin/sh\necho 'Cuda compilation tools, release 12.6, V12.6.68'\n"
        found.write("/usr/local/cuda-12.6/bin/nvcc", nvcc, 0o755)
        (found.root / "usr/local/cuda").symlink_to("cuda-12.6")
        release(found, "36", "4.3")
        stand_in_for_pycuda(found.root / "srv" / "wheels")
        yield found


def release(board: Container, major: str, revision: str) -> None:
    """The first line of the file, as L4T writes it."""
    line = (
        f"# R{major} (release), REVISION: {revision}, GCID: 0, BOARD: generic, EABI: aarch64, DATE: unknown\n"
    )
    board.write("/etc/nv_tegra_release", line)


def stand_in_for_pycuda(wheels: Path) -> None:
    """A wheel of that name; the real one is built from source, against a CUDA that is not here."""
    about = "Metadata-Version: 2.1\nName: pycuda\nVersion: 2025.1\n"
    kind = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    members = {"pycuda/__init__.py": "VERSION_TEXT = '2025.1'\n", "pycuda-2025.1.dist-info/METADATA": about,
               "pycuda-2025.1.dist-info/WHEEL": kind}  # fmt: skip
    with zipfile.ZipFile(wheels / "pycuda-2025.1-py3-none-any.whl", "w") as wheel:
        for name, text in members.items():
            wheel.writestr(name, text)
        listed = "".join(f"{name},,\n" for name in members)
        wheel.writestr("pycuda-2025.1.dist-info/RECORD", f"{listed}pycuda-2025.1.dist-info/RECORD,,\n")


def refused(board: Container) -> str:
    """The output of install.sh on a board that it refuses, without a change."""
    before = files(board, "/")
    done = board.attempt(INSTALL, 300)
    assert done.returncode == 1, done.stdout
    assert files(board, "/") == before
    return done.stdout


def test_jetpack_5_is_refused_because_of_its_python(board: Container) -> None:
    release(board, "35", "4.1")
    reported = refused(board)
    release(board, "36", "4.3")
    assert "JetPack 5.1 (L4T 35.4.1) has Python 3.8" in reported
    assert "Flash JetPack 6.2" in reported


def test_missing_jetpack_libraries_are_named(board: Container) -> None:
    reported = refused(board)
    assert "L4T 36.4.3 (JetPack 6.2)" in reported
    assert "these are missing: TensorRT for /usr/bin/python3. Install them" in reported


def test_pips_opencv_is_refused(board: Container) -> None:
    board.write(f"{SYSTEM_PACKAGES}/tensorrt.py", "__version__ = '10.3.0'\n")
    record = f"{PIPS_PACKAGES}/opencv_python-4.14.0.dist-info"
    board.write(f"{record}/METADATA", "Metadata-Version: 2.1\nName: opencv-python\nVersion: 4.14.0\n")
    reported = refused(board)
    board.run(f"rm -r {record}")
    assert "comes from pip and hides JetPack's" in reported
    assert "pip uninstall opencv-python" in reported


def test_jetpacks_libraries_are_used(board: Container) -> None:
    """All steps but the last: doctor misses the GPU."""
    done = board.attempt(INSTALL, 600)
    assert "TensorRT 10.3.0, CUDA 12.6 at /usr/local/cuda-12.6" in done.stdout
    assert "building pycuda for CUDA 12.6" in done.stdout
    assert "failed while running edge-agent doctor" in done.stdout
    assert "1 thing(s) missing" in done.stdout
    assert done.returncode == 1
    reported = board.run(
        "/opt/edge-agent/current/bin/python -s -c 'import cv2, numpy, tensorrt, pycuda; "
        "print(cv2.__file__, numpy.__version__, numpy.__file__, tensorrt.__file__, pycuda.__file__)'"
    )
    opencv, version, numpy, tensorrt, pycuda = reported.split()
    assert opencv.startswith(SYSTEM_PACKAGES)
    assert tensorrt.startswith(SYSTEM_PACKAGES)
    assert version.startswith("1.")
    assert numpy.startswith("/opt/edge-agent/")
    assert pycuda.startswith("/opt/edge-agent/")
    assert board.attempt("ls -d /opt/edge-agent/current/lib/python3*/site-packages/opencv*").returncode != 0


def test_another_jetpack_makes_another_release_and_a_network_is_added(board: Container) -> None:
    before = board.run("readlink /opt/edge-agent/current")
    release(board, "36", "4.4")
    write_stripe_model(board.root / "srv" / "net.onnx")
    done = board.attempt(f"umask 077; {INSTALL} --upgrade --model /srv/net.onnx", 600)
    assert "making the environment" in done.stdout
    assert board.run("readlink /opt/edge-agent/current") != before
    assert board.run("ls /opt/edge-agent/releases | wc -l").strip() == "2"
    reported = board.run(
        "sudo -u edge-agent edge-agent config show; stat -c '%a %U:%G' /etc/edge-agent/config.toml"
    )
    assert 'engine.model = "/etc/edge-agent/models/net.onnx"' in reported
    assert reported.splitlines()[-1] == "640 root:edge-agent"
    board.run("sudo -u edge-agent test -r /etc/edge-agent/models/net.onnx")
