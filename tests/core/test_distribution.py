"""The distribution's name and the commands that install its extras."""

import importlib.metadata
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.core import distribution

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPO = Path(__file__).resolve().parent.parent.parent
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]


def test_name_is_that_of_the_project():
    assert PROJECT["name"] == distribution.NAME


def normal(requirement: str) -> tuple[str, frozenset[str]]:
    """Return the name and the bounds of a requirement; metadata sorts the bounds."""
    name, bounds = re.fullmatch(r"([\w-]+)\s*(.*)", requirement).groups()
    return name, frozenset(bounds.split(","))


@pytest.mark.parametrize("extra", PROJECT["optional-dependencies"])
def test_command_names_the_packages_of_the_extra(extra: str):
    command = shlex.split(distribution.install_command(extra).partition(" --extra-index-url ")[0])
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert list(map(normal, command[4:])) == list(map(normal, PROJECT["optional-dependencies"][extra]))


@pytest.mark.parametrize(("device", "cuda"), [("nvidia0", True), ("nvhost-gpu", True), ("null", False)])
def test_without_a_gpu_training_takes_the_build_for_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, cuda: bool
):
    (tmp_path / device).touch()
    assert distribution.has_nvidia_gpu(tmp_path) is cuda
    monkeypatch.setattr(distribution, "has_nvidia_gpu", lambda: cuda)
    assert (distribution.CPU_INDEX in distribution.install_command("train")) is not cuda
    assert distribution.CPU_INDEX not in distribution.install_command("index")


def test_the_installer_and_the_documentation_use_the_same_index():
    for name in ("install.sh", "docs/training.md"):
        assert distribution.CPU_INDEX in (REPO / name).read_text()


def test_requirements_without_an_extra():
    here = [one for one in PROJECT["dependencies"] if ";" not in one]
    assert [normal(one) for one in distribution.requirements()] == [normal(one) for one in here]


def test_an_environment_of_root_needs_sudo(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(distribution.os, "access", lambda path, mode: False)
    assert distribution.install_command("train").startswith(f"sudo {sys.executable} -m pip install 'torch")


def test_without_metadata_the_clone_is_named(monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", missing)
    assert "pip install '.[train]'" in distribution.install_command("train")


def test_no_file_names_the_other_project_as_a_requirement():
    if not (REPO / ".git").exists():
        pytest.skip("this folder is not a clone: its files cannot be distinguished from installed ones")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, capture_output=True, check=True, text=True)
    named = re.compile(r"edge-agent\[|pip3? (install|download)[^\n]*[ '\"]edge-agent(?![\w./-])")
    found = [
        f"{name}: {match[0]}"
        for name in listed.stdout.split("\0")
        if name and name != "tests/core/test_distribution.py" and (REPO / name).is_file()
        for match in named.finditer((REPO / name).read_text(errors="replace"))
    ]
    assert found == []
