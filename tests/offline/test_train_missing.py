"""Without the extra `train`, its commands name the package to install."""

from __future__ import annotations

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
