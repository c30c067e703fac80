"""Without the extra `train`, its commands name the package to install."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from edge_agent.cli import export, train
from edge_agent.core.distribution import install_command
from edge_agent.core.errors import ConfigError


@pytest.mark.parametrize("module", [train, export], ids=["train", "export"])
def test_the_extra_is_named(module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "yaml", None)
    app = typer.Typer()
    app.command()(module.command)
    error = CliRunner().invoke(app, [str(tmp_path / "spec.yaml")]).exception
    assert isinstance(error, ConfigError)
    assert install_command("train") in str(error)


@pytest.mark.parametrize(("given", "used"), [(None, "passive"), ("active", "active")])
def test_threads_of_training_do_not_spin_unless_asked(
    given, used, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("yaml", reason="PyYAML is not installed: pip install '.[train]'")
    monkeypatch.setenv("OMP_WAIT_POLICY", "x")  # restored at the end
    os.environ.pop("OMP_WAIT_POLICY")
    if given:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    monkeypatch.setitem(sys.modules, "torch", None)  # before PyTorch is loaded
    (tmp_path / "spec.yaml").write_text(f"results_dir: {tmp_path}/r")
    app = typer.Typer()
    app.command()(train.command)
    assert isinstance(CliRunner().invoke(app, [str(tmp_path / "spec.yaml")]).exception, ConfigError)
    assert os.environ["OMP_WAIT_POLICY"] == used
