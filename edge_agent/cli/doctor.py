"""`edge-agent doctor`: run all checks and print their findings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from edge_agent.cli.arguments import ConfigOption, JsonOption

if TYPE_CHECKING:
    from edge_agent.cli.checks import Finding

_COLOURS = {"ok": "green", "note": "cyan", "warning": "yellow", "missing": "red"}
_NARROW = 120  # characters, for pipes and logs


def command(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Check everything that the agent needs; exit 1 if something required is missing."""
    from rich.console import Console

    from edge_agent.cli.checks import examine
    from edge_agent.core.logs import configure

    configure("error")
    with Console(stderr=True).status("checking") as status:
        findings = examine(config, step=lambda name: status.update(f"checking {name}"))
    missing = [finding for finding in findings if finding.state == "missing"]
    if as_json:
        result = {"ok": not missing, "findings": [asdict(finding) for finding in findings]}
        typer.echo(json.dumps(result, indent=2))
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
