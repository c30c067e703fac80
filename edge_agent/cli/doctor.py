"""`edge-agent doctor`: what is there, what is missing, and what to do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edge_agent.cli.checks import Finding

_COLOURS = {"ok": "green", "note": "cyan", "warning": "yellow", "missing": "red"}
_NARROW = 120  # characters, for pipes and logs


def command(
    config: Annotated[
        Path | None, typer.Option("--config", help="TOML file; /etc/edge-agent/config.toml where it exists.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Check everything that the agent needs; exit 1 if something required is missing."""
    from rich.console import Console

    from edge_agent.cli.checks import examine
    from edge_agent.core.logs import configure

    configure("error")
    with Console(stderr=True).status("looking") as status:
        findings = examine(config, step=lambda name: status.update(f"looking at {name}"))
    missing = [finding for finding in findings if finding.state == "missing"]
    if as_json:
        told = {"ok": not missing, "findings": [asdict(finding) for finding in findings]}
        typer.echo(json.dumps(told, indent=2))
    else:
        _print_table(findings)
        typer.echo(f"{len(missing)} thing(s) missing" if missing else "nothing is missing")
    if missing:
        raise typer.Exit(1)


def _print_table(findings: Sequence[Finding]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("what", "state", "found", "to do"):
        table.add_column(title, overflow="fold")
    for finding in findings:
        colour = _COLOURS[finding.state]
        state = f"[{colour}]{finding.state}[/{colour}]"
        table.add_row(finding.name, state, escape(finding.found), escape(finding.advice))
    console = Console()
    if not console.is_terminal:
        console.width = _NARROW
    console.print(table)
