"""The command line: help of every command, exit codes, and one clear message for a user's error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edge_agent.cli import COMMANDS, GROUPS, app

run_here = CliRunner().invoke


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edge_agent", *map(str, arguments)],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("name", [*COMMANDS, *GROUPS])
def test_every_command_has_help(name: str) -> None:
    result = run_here(app, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage" in result.output


def test_version() -> None:
    from edge_agent import __version__

    assert run_here(app, ["--version"]).output.strip() == f"edge-agent {__version__}"


@pytest.mark.parametrize("arguments", [["nosuch"], ["run", "--nosuch"], ["evaluate"], ["gallery", "name"]])
def test_wrong_usage_exits_2(arguments: list[str]) -> None:
    assert run_here(app, arguments).exit_code == 2


def test_an_error_is_one_message_and_exit_1(tmp_path: Path) -> None:
    done = run(
        "run", "--source", tmp_path / "none.avi", "--model", "colour-stripes", "--state", tmp_path / "s"
    )
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 1
    assert str(tmp_path / "none.avi") in done.stderr
    assert "Traceback" not in done.stderr


def test_run_without_a_source_says_so(tmp_path: Path) -> None:
    done = run("run", "--state", tmp_path / "s")
    assert done.returncode == 1
    assert "--source" in done.stderr


def test_config_check_and_show(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[mqtt]\nsite = 'lab'\n")
    assert "right" in run_here(app, ["config", "check", "--config", str(path)]).output
    assert 'mqtt.site = "lab"' in run_here(app, ["config", "show", "--config", str(path)]).output
    path.write_text("[mqtt]\nsites = 'lab'\n")
    done = run("config", "check", "--config", path)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "did you mean 'site'" in done.stderr
