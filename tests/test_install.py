"""install.sh: its options, its messages, and that a second run does not do again what is done.

The interpreter and apt are stand-ins that write down how they were called; `.ci/run` does the real thing on
every Python of the machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import REPO

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

    def calls(self, start: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if line.startswith(start)]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_shell_scripts_are_clean():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (apt-get install shellcheck)")
    done = subprocess.run(
        ["shellcheck", REPO / "install.sh", REPO / ".ci/run"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_help_names_every_option(machine: Machine):
    done = machine.install("--help")
    assert done.returncode == 0
    for option in ("--demo", "--test", "--with-train", "--python", "--venv", "--help"):
        assert option in done.stdout
    assert machine.calls("python") == []


@pytest.mark.parametrize("arguments", [[], ["--frobnicate"], ["--test", "--python"]])
def test_wrong_usage_exits_2(machine: Machine, arguments: list[str]):
    done = machine.install(*arguments)
    assert done.returncode == 2
    assert "usage:" in done.stderr
    assert machine.calls("python") == []


def test_the_demo_installs_once_and_runs_with_its_arguments(machine: Machine):
    first = machine.install("--demo", "--", "--seconds", "5")
    assert (first.returncode, first.stdout) == (0, "edge-agent demo --seconds 5\n"), first.stderr
    assert len(machine.calls("python -m venv")) == 1
    assert machine.calls("python -m pip")[-1].endswith("install --editable .[demo]")
    second = machine.install("--demo")
    assert (second.returncode, second.stdout) == (0, "edge-agent demo\n")
    assert machine.calls("python -m venv") + machine.calls("python -m pip") == []


def test_the_tests_get_their_packages_and_their_verdict(machine: Machine):
    assert machine.install("--test", "--", "-k", "tracker").returncode == 0
    assert machine.calls("python -m pip")[-1].endswith(
        "install --editable .[demo,encrypt] --group test --group lint"
    )
    assert machine.calls("python -m pytest") == ["python -m pytest -k tracker"]
    (machine.folder / "pytest").write_text("1")
    failed = machine.install("--test")
    assert failed.returncode == 1
    assert "failed while running the tests" in failed.stderr


def test_training_is_an_option(machine: Machine):
    assert machine.install("--test", "--with-train").returncode == 0
    assert any("torch==" in call for call in machine.calls("python -m pip"))
    assert any(".[demo,encrypt,train]" in call for call in machine.calls("python -m pip"))


def test_a_failed_step_is_named_and_a_second_run_goes_on(machine: Machine):
    (machine.folder / "no-network").touch()
    failed = machine.install("--demo")
    assert failed.returncode != 0
    assert "no network" in failed.stderr
    assert "failed while installing Python packages" in failed.stderr
    (machine.folder / "no-network").unlink()
    assert machine.install("--demo").returncode == 0
    assert machine.calls("python -m venv") == [], "what was made is kept"


def test_another_python_makes_the_environment_anew(machine: Machine):
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
