"""install.sh: its options, its messages, and a second run that repeats no completed step.

The interpreter and apt are stand-ins that write down how they were called; `.ci/run` does the real thing on
every Python of the machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import REPO
from tests.health.test_telemetry import plant

PYTHON = """#!/bin/bash
here=$(cat "$(dirname "$0")/version" 2>/dev/null || cat {folder}/version)
printf '%s\\n' "python $*" >>{log}
case "$*" in
  *"(3, 10) <="*) [[ $here != 3.9* ]] ;;
  *"import ensurepip"*) [[ ! -e {folder}/no-venv ]] ;;
  *"%d.%d"*) echo "${{here%.*}}" ;;
  *platform*) echo "$here" ;;
  "-m venv --clear "*)
    mkdir -p "$4/bin" && cp "$0" "$4/bin/python" && echo "$here" >"$4/bin/version"
    rm -f "$4"/.installed*
    printf '#!/bin/bash\\necho "edge-agent $*"\\n' >"$4/bin/edge-agent" && chmod +x "$4/bin/edge-agent"
    ;;
  "-m pip"*) [[ ! -e {folder}/no-network ]] || {{ echo 'no network' >&2; exit 1; }} ;;
  "-m pytest"*) echo "1 passed"; exit "$(cat {folder}/pytest 2>/dev/null || echo 0)" ;;
esac
"""

APT = "#!/bin/bash\nprintf '%s\\n' \"apt-get $*\" >>{log}\n[[ ! -e {folder}/no-mirror ]]\n"
DPKG = "#!/bin/bash\n[[ ! -e {folder}/bare ]] && echo 'install ok installed'\n"
SUDO = '#!/bin/bash\n[[ $1 == -n ]] && shift\nexec "$@"\n'


@dataclass
class Machine:
    """A folder with stand-ins, first on PATH."""

    folder: Path
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.folder / "log"
        (self.folder / "version").write_text("3.12.1")
        for name, text in (("python3", PYTHON), ("apt-get", APT), ("dpkg-query", DPKG), ("sudo", SUDO)):
            path = self.folder / name
            path.write_text(text.replace("{folder}", str(self.folder)).replace("{log}", str(self.log))
                            .replace("{{", "{").replace("}}", "}"))  # fmt: skip
            path.chmod(0o755)

    @property
    def venv(self) -> Path:
        return self.folder / "venv"

    def install(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        self.log.write_text("")
        return subprocess.run(
            ["bash", REPO / "install.sh", "--venv", self.venv, *arguments],
            env={**os.environ, "PATH": f"{self.folder}:{os.environ['PATH']}"},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def show_system(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A dry run of the installation as a service."""
        if shutil.which("systemctl") is None:
            pytest.skip("systemctl is not installed (apt-get install systemd)")
        self.log.write_text("")
        return subprocess.run(
            ["bash", REPO / "install.sh", "--dry-run", "--python", self.folder / "python3", *arguments],
            env={**os.environ, "PATH": f"{self.folder}:{os.environ['PATH']}"}, cwd=self.folder,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def calls(self, start: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if line.startswith(start)]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_shell_scripts_are_clean():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (apt-get install shellcheck)")
    done = subprocess.run(
        ["shellcheck", "--external-sources", "--check-sourced", "install.sh", ".ci/run"],
        cwd=REPO, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_help_names_every_option(machine: Machine):
    done = machine.install("--help")
    assert done.returncode == 0
    script = (REPO / "install.sh").read_text()
    cases = script.partition("while (($#))")[2].partition("done")[0]
    options = set(re.findall(r"--[a-z][a-z-]+", cases))
    assert len(options) > 10
    for option in options:
        assert option in done.stdout
    assert machine.calls("python") == []


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--frobnicate"],
        ["--test", "--python"],
        ["--demo", "--test"],
        ["--demo", "--purge"],
        ["--demo", "--detector", "yolox-nano"],
        ["--detector-from", "yolox_nano.onnx"],
        ["--demo", "--with-train"],
        ["--system"],  # --venv, which is always given here, does not belong to it
        ["--uninstall"],
    ],
)
def test_wrong_usage_exits_2(machine: Machine, arguments: list[str]):
    done = machine.install(*arguments)
    assert done.returncode == 2
    assert "usage:" in done.stderr
    assert machine.calls("python") == []


def test_the_demo_installs_once_and_runs_with_its_arguments(machine: Machine):
    first = machine.install("--demo", "--", "--seconds", "5")
    assert (first.returncode, first.stdout) == (0, "edge-agent demo --seconds 5\n"), first.stderr
    assert len(machine.calls("python -m venv")) == 1
    assert machine.calls("python -m pip")[-1].endswith("install --editable .[demo,page]")
    second = machine.install("--demo")
    assert (second.returncode, second.stdout) == (0, "edge-agent demo\n")
    assert machine.calls("python -m venv") + machine.calls("python -m pip") == []


def test_the_tests_get_their_packages_and_their_verdict(machine: Machine):
    assert machine.install("--test", "--", "-k", "tracker").returncode == 0
    assert machine.calls("python -m pip")[-1].endswith(
        "install --editable .[demo,encrypt,page,fleet] --group test --group lint"
    )
    assert machine.calls("python -m pytest") == [
        "python -m pytest --numprocesses 4 --dist worksteal -k tracker"
    ]
    (machine.folder / "pytest").write_text("1")
    failed = machine.install("--test")
    assert failed.returncode == 1
    assert "failed while running the tests" in failed.stderr


def test_training_is_an_option(machine: Machine):
    assert machine.install("--test", "--with-train").returncode == 0
    assert any("torch==" in call for call in machine.calls("python -m pip"))
    assert any(".[demo,encrypt,page,fleet,train]" in call for call in machine.calls("python -m pip"))


def test_an_index_that_is_away_is_waited_for_only_where_no_other_has_pytorch(machine: Machine):
    def attempts() -> list[bool]:
        return ["--retries 0" in call for call in machine.calls("python -m pip") if "torch==" in call]

    assert machine.install("--test", "--with-train").returncode == 0
    assert attempts() == [True]
    shutil.rmtree(machine.venv)
    (machine.folder / "no-network").touch()
    assert "failed while installing" in machine.install("--test", "--with-train").stderr
    assert attempts() == [True, False]


def test_a_failed_step_is_named_and_a_second_run_goes_on(machine: Machine):
    (machine.folder / "no-network").touch()
    failed = machine.install("--demo")
    assert failed.returncode != 0
    assert "no network" in failed.stderr
    assert "failed while installing Python packages" in failed.stderr
    (machine.folder / "no-network").unlink()
    assert machine.install("--demo").returncode == 0
    assert machine.calls("python -m venv") == [], "what was made is kept"


def test_another_python_recreates_the_environment(machine: Machine):
    assert machine.install("--demo").returncode == 0
    (machine.folder / "version").write_text("3.11.4")
    assert machine.install("--demo").returncode == 0
    assert machine.calls("python -m venv") == [], "nobody asked for another Python"
    named = machine.install("--demo", "--python", str(machine.folder / "python3"))
    assert named.returncode == 0
    assert len(machine.calls("python -m venv")) == 1
    assert len(machine.calls("python -m pip")) >= 1


def test_an_old_python_is_refused(machine: Machine):
    (machine.folder / "version").write_text("3.9.18")
    done = machine.install("--demo", "--python", str(machine.folder / "python3"))
    assert done.returncode == 1
    assert "not a Python of 3.10 to 3.13" in done.stderr
    assert not machine.venv.exists()


def test_without_the_module_venv_its_package_is_installed_or_named(machine: Machine):
    (machine.folder / "no-venv").touch()
    (machine.folder / "bare").touch()
    done = machine.install("--demo", "--python", str(machine.folder / "python3"))
    assert done.returncode == 1
    assert "apt-get install python3.12-venv" in done.stderr
    assert any("install" in call and "python3.12-venv" in call for call in machine.calls("apt-get"))


def test_missing_debian_packages_are_installed(machine: Machine):
    (machine.folder / "bare").touch()
    assert machine.install("--test").returncode == 0
    update, install = machine.calls("apt-get")
    assert update == "apt-get update -qq"
    assert {"mosquitto", "gir1.2-gst-rtsp-server-1.0", "python3-gi"} <= set(install.split())
    (machine.folder / "no-mirror").touch()
    failed = machine.install("--test")
    assert failed.returncode != 0
    assert "failed while installing Debian packages" in failed.stderr


def test_ci_runs_the_second_command():
    assert "./install.sh --test" in (REPO / ".ci" / "run").read_text()


# ---- as a service; what it does is in tests/systemd


def own_installation() -> bool:
    return Path("/etc/nv_tegra_release").exists() or Path("/usr/local/bin/edge-agent").is_symlink()


def test_a_dry_run_lists_what_would_be_written_and_changes_nothing(machine: Machine):
    if own_installation():
        pytest.skip("this machine has an installation of its own, or is a Jetson")
    (machine.folder / "wheels").mkdir()
    done = machine.show_system("--system", "--prefix", "/opt/not-there", "--wheels", "wheels")
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^== (\S+ \S+)", done.stderr, re.MULTILINE) == ["examining this", "what would"]
    rows = dict(re.findall(r"^   (/\S+) +(\S.*)$", done.stderr, re.MULTILINE))
    release = next(path for path in rows if path.startswith("/opt/not-there/releases/"))
    assert rows["/opt/not-there/current"] == f"link to {release.rstrip('/')}"
    assert rows["/usr/local/lib/systemd/system/edge-agent.service"] == "new"
    assert "/etc/edge-agent/config.toml" in rows
    assert "calibrate --precision fp32" in done.stderr
    functions = re.findall(r"^([a-z_]+)\(\)", (REPO / "packaging" / "system.sh").read_text(), re.MULTILINE)
    assert len(functions) > 30
    internal = [name for name in functions if "_" in name and re.search(rf"\b{name}\b", done.stderr)]
    assert internal == []
    assert machine.calls("apt-get") == []
    assert all(str(machine.folder) not in call or "/tmp" in call for call in machine.calls("python -m venv"))
    assert not Path("/opt/not-there").exists()


def test_a_dry_run_without_a_package_index_says_so(machine: Machine):
    if own_installation():
        pytest.skip("this machine has an installation of its own, or is a Jetson")
    (machine.folder / "no-network").touch()
    done = machine.show_system("--system", "--prefix", "/opt/not-there")
    assert done.returncode == 0, done.stderr
    assert "pip cannot list the packages" in done.stderr
    assert "/usr/local/bin/edge-agent" in done.stderr


def add_detector(tmp_path: Path, before: str, terminal: str | None = None) -> tuple[list[str], str]:
    """Run that step of the installation; return the agent's commands and what was printed.

    `terminal` is the answer that is given on a terminal.
    """
    binary = tmp_path / "release" / "bin" / "edge-agent"
    binary.parent.mkdir(parents=True, exist_ok=True)
    log = tmp_path / "log"
    log.write_text("")
    binary.write_text(f'#!/bin/bash\necho "$*" >>{log}\n[[ ! -e {tmp_path}/no-network ]]\n')
    binary.chmod(0o755)
    script = (
        "set -Eeuo pipefail; detector='' detector_from=''; say() { echo \"== $1\" >&2; }; "
        f"cd {REPO}; . packaging/system.sh >/dev/null 2>&1 || true; "
        f"config_folder() {{ :; }}; release={tmp_path}/release; {before}; add_detector; echo went on >&2"
    )
    script = script.replace(". packaging/system.sh", f". {system_with_folder(tmp_path)}")
    words = ["bash", "-c", script]
    if terminal is None:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        return log.read_text().splitlines(), done.stderr
    leader, follower = pty.openpty()
    with subprocess.Popen(words, stdin=follower, stdout=follower, stderr=follower, close_fds=True) as process:
        os.close(follower)
        os.write(leader, terminal.encode() + b"\n")
        shown = b""
        with contextlib.suppress(OSError):  # the other side is closed
            while got := os.read(leader, 65536):
                shown += got
        process.wait(20)
    os.close(leader)
    return log.read_text().splitlines(), shown.decode()


def system_with_folder(tmp_path: Path) -> Path:
    """packaging/system.sh with another folder of settings."""
    text = (REPO / "packaging" / "system.sh").read_text()
    path = tmp_path / "system.sh"
    path.write_text(text.replace("config_folder=/etc/edge-agent", f"config_folder={tmp_path}/etc"))
    return path


def test_a_detector_is_fetched_only_if_that_is_wanted(tmp_path: Path):
    folder = f"--output {tmp_path}/etc/models"
    calls, printed = add_detector(tmp_path, ":")
    assert calls == []
    assert "sudo edge-agent model fetch yolox-nano" in printed
    for answer in ("", "n", "q"):
        assert add_detector(tmp_path, ":", answer)[0] == []
    calls, printed = add_detector(tmp_path, ":", "y")
    assert calls == [f"model fetch yolox-nano {folder}"]
    assert "3.7 MB, Apache-2.0" in printed
    calls, printed = add_detector(tmp_path, "detector=yolox-tiny")
    assert calls == [f"model fetch yolox-tiny {folder}"]
    calls, printed = add_detector(tmp_path, "detector=yolox-tiny detector_from='/a b/t.onnx'")
    assert calls == [f"model fetch yolox-tiny {folder} --from /a b/t.onnx"]


def test_no_network_ends_the_installation_only_where_the_detector_was_demanded(tmp_path: Path):
    (tmp_path / "no-network").touch()
    _, printed = add_detector(tmp_path, ":", "yes")
    assert "goes on with the built-in detector" in printed
    assert "went on" in printed
    _, printed = add_detector(tmp_path, "detector=yolox-nano")
    assert "went on" not in printed


def test_nobody_is_asked_where_a_detector_is_installed(tmp_path: Path):
    (tmp_path / "etc" / "models").mkdir(parents=True)
    (tmp_path / "etc" / "models" / "detector.json").touch()
    calls, printed = add_detector(tmp_path, ":", "y")
    assert calls == []
    assert "[y/N]" not in printed


def test_packages_are_listed_with_their_sizes(tmp_path: Path):
    wheel = tmp_path / "numpy-2.0-py3-none-any.whl"
    wheel.write_bytes(bytes(1_500_000))
    entries = [
        ({"name": "numpy", "version": "2.0"}, wheel.as_uri()),
        ({"name": "lost", "version": "1"}, "http://127.0.0.1:9/lost-1.whl"),
    ]
    report = {"install": [{"metadata": one, "download_info": {"url": url}} for one, url in entries]}
    (tmp_path / "report").write_text(json.dumps(report))
    done = subprocess.run(
        [sys.executable, "packaging/sizes.py", tmp_path / "report"],
        cwd=REPO, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines == [
        "lost 1 unknown size",
        "numpy 2.0 1.50 MB",
        "2 packages, 2 MB to fetch, and those of unknown size",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--upgrade", "--system", "--prefix", "/opt/not-there"],
            "there is no installation in /opt/not-there",
        ),
        (["--system", "--prefix", "relative"], "--prefix must be a folder"),
        (["--system", "--prefix", "/home/me/agent"], "the service cannot see /home/me/agent"),
        (["--system", "more"], "unknown option more"),
        (["--system", "--", "more"], "unexpected argument more"),
    ],
)
def test_impossible_options_are_refused(machine: Machine, arguments: list[str], message: str):
    if Path("/usr/local/bin/edge-agent").is_symlink():
        pytest.skip("this machine has an installation of its own")
    done = machine.show_system(*arguments)
    assert done.returncode in {1, 2}
    assert message in done.stderr
    assert machine.calls("python -m venv") == []


def board(function: str, *arguments: object) -> str:
    """The output of a function of packaging/board.sh."""
    script = f'set -Eeuo pipefail; . packaging/board.sh; {function} "$@"'
    done = subprocess.run(
        ["bash", "-c", script, "board.sh", *map(str, arguments)],
        cwd=REPO, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("tree", "l4t", "jetpack"),
    [
        ("agx-orin-jetpack5", "35", "5.1"),
        ("agx-orin-jetpack6", "36", "6.2"),
        ("agx-orin-jetpack7", "39", "7.2"),
        ("pc", "", ""),
    ],
)
def test_recorded_boards_are_recognised(tmp_path: Path, tree: str, l4t: str, jetpack: str):
    root = plant(tree, tmp_path)
    found = board("l4t_release", root)
    assert found.partition(".")[0] == l4t
    assert board("jetpack_of", found) == jetpack
    assert ("Orin" in board("board_model", root)) == bool(l4t)


@pytest.mark.parametrize(
    ("l4t", "jetpack"),
    [("32.7.4", "4"), ("34.1.1", "5.0"), ("35.4.1", "5.1"), ("36.3", "6.0"), ("36.4.0", "6.1"),
     ("36.4.3", "6.2"), ("36.4.7", "6.2"), ("36.5.0", "6.2"), ("38.2.1", "7.0"), ("38.4.0", "7.1"),
     ("39.2.0", "7.2"), ("40.1", "")],
)  # fmt: skip
def test_jetpack_of_every_l4t(l4t: str, jetpack: str):
    assert board("jetpack_of", l4t) == jetpack


def test_l4t_is_found_by_its_package_too(tmp_path: Path):
    if shutil.which("dpkg-query") is None:
        pytest.skip("no Debian")
    folder = tmp_path / "var/lib/dpkg"
    folder.mkdir(parents=True)
    (folder / "status").write_text(
        "Package: nvidia-l4t-core\nStatus: install ok installed\nMaintainer: x\nArchitecture: arm64\n"
        "Version: 36.4.3-20250107174145\nDescription: x\n"
    )
    assert board("l4t_release", tmp_path) == "36.4.3"


def test_cuda_is_found_by_its_compiler(tmp_path: Path):
    compiler = tmp_path / "usr/local/cuda-12.6/bin/nvcc"
    (tmp_path / "usr/local/cuda-11").mkdir(parents=True)
    assert board("cuda_root", tmp_path) == ""
    compiler.parent.mkdir(parents=True)
    compiler.write_text("#!/bin/sh\necho Cuda compilation tools, release 12.6, V12.6.68\n")
    compiler.chmod(0o755)
    assert board("cuda_root", tmp_path) == str(tmp_path / "usr/local/cuda-12.6")
    assert board("cuda_version", tmp_path / "usr/local/cuda-12.6") == "12.6"


def test_the_origin_of_opencv_is_detected():
    """The one of this environment, which is pip's, and the system's, where it has one."""
    version, gstreamer, origin, file = board("opencv_facts", sys.executable).split("|")
    assert (gstreamer, origin) == ("-", "pip")
    assert version.startswith("4.")
    assert file.endswith("__init__.py")
    of_system = board("opencv_facts", "/usr/bin/python3")
    if not of_system:
        pytest.skip("the system's Python has no OpenCV (apt-get install python3-opencv)")
    assert of_system.split("|")[1:3] == ["GStreamer", "system"]
    assert board("numpy_major", "/usr/bin/python3") in {"1", "2"}


def test_a_dry_run_of_removing_shows_what_would_go(machine: Machine):
    if Path("/usr/local/bin/edge-agent").is_symlink():
        pytest.skip("this machine has an installation of its own")
    kept = machine.show_system("--uninstall", "--prefix", "/opt/not-there")
    purged = machine.show_system("--uninstall", "--purge", "--prefix", "/opt/not-there")
    assert (kept.returncode, purged.returncode) == (0, 0), kept.stderr + purged.stderr
    assert "failed while" not in kept.stderr + purged.stderr
    assert "rm -rf /opt/not-there/releases" in kept.stderr
    assert "/var/lib/edge-agent" not in kept.stderr.replace("kept: /etc/edge-agent, /var/lib/edge-agent", "")
    assert "rm -rf /etc/edge-agent /var/lib/edge-agent" in purged.stderr
