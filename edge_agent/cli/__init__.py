"""One file per command. They are light: what is heavy is imported when a command runs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import typer

__all__ = ["COMMANDS", "GROUPS", "app"]

COMMANDS = (
    "run",
    "status",
    "demo",
    "watch",
    "doctor",
    "dataset",
    "train",
    "export",
    "embed",
    "evaluate",
    "calibrate",
    "bench",
    "rekey",
)
"""Modules with a function `command`."""

GROUPS = ("gallery", "engines", "model", "config")
"""Modules with a typer application `app`."""


def _version(wanted: bool) -> None:
    if wanted:
        from edge_agent import __version__

        typer.echo(f"edge-agent {__version__}")
        raise typer.Exit


def _build() -> typer.Typer:
    built = typer.Typer(
        name="edge-agent",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        help="Person re-identification at the edge: camera frames in, identity events out over MQTT.",
    )

    @built.callback()
    def options(
        version: bool = typer.Option(
            False, "--version", callback=_version, is_eager=True, help="Print the version."
        ),
    ) -> None:
        pass

    for name in COMMANDS:
        command: Callable[..., Any] = importlib.import_module(f"edge_agent.cli.{name}").command
        built.command(name)(command)
    for name in GROUPS:
        built.add_typer(importlib.import_module(f"edge_agent.cli.{name}").app, name=name)
    return built


app = _build()
