"""`edge-agent engines`: the TensorRT engines that were built on this device, and which one is active."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_agent.cli.arguments import ConfigOption, JsonOption, StateOption, YesOption, load_settings

if TYPE_CHECKING:
    from edge_agent.engine.plans.active import Active
    from edge_agent.engine.plans.records import Machine, PlanEntry

app = typer.Typer(
    no_args_is_help=True, help="List, verify and prune the engines of this device, and roll back."
)

_DAY_S = 86_400.0
_PIPE_WIDTH = 240
"""Characters per line where the output is not a terminal, so that no cell is wrapped."""


@app.command("list")
def list_plans(state: StateOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the TensorRT plans and the active engine."""
    folder = _folder(state, config)
    active, entries, not_compared = _read(folder, digests=False)
    if as_json:
        typer.echo(_json(folder, active, entries, not_compared))
        return
    _print_active(active)
    _print_table(entries)
    if not_compared and entries:
        typer.echo(not_compared)


@app.command()
def verify(state: StateOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Compare every plan with its digest and with this device; changes nothing.

    Exit code 1 when a plan is damaged or was built on another device: the agent would refuse it and build it
    again.
    """
    folder = _folder(state, config)
    active, entries, not_compared = _read(folder, digests=True)
    if as_json:
        typer.echo(_json(folder, active, entries, not_compared))
    else:
        for entry in entries:
            typer.echo(f"{entry.key[:12]} {entry.verdict}{entry.problem and ': ' + entry.problem}")
        counts = Counter(entry.verdict for entry in entries)
        typer.echo(", ".join(f"{count} {verdict}" for verdict, count in counts.items()) or "no plans")
        if not_compared and entries:
            typer.echo(not_compared)
    if any(entry.verdict in {"damaged", "foreign"} for entry in entries):
        raise typer.Exit(1)


@app.command()
def prune(
    unused_days: Annotated[
        float, typer.Option(min=0.0, help="Keep plans that were built or loaded in the last days.")
    ] = 30.0,
    state: StateOption = None,
    config: ConfigOption = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Remove unneeded plans and calibrations, and the quarantine.

    Files of the active engine and of the one before it always stay. The agent builds a removed plan again
    when it needs it, which takes minutes.
    """
    from edge_agent.engine.plans.store import PlanStore
    from edge_agent.engine.precision.calibration import prune_calibrations

    folder = _folder(state, config)
    if not yes:
        typer.confirm(f"Remove plans unused for {unused_days:g} days from {folder}?", abort=True)
    removed = PlanStore(folder).prune(unused_s=unused_days * _DAY_S)
    calibrations, freed = prune_calibrations(folder)
    freed += removed.bytes
    if as_json:
        typer.echo(json.dumps({**asdict(removed), "calibrations": list(calibrations), "bytes": freed}))
        return
    typer.echo(
        f"removed {len(removed.plans)} plan(s), {len(calibrations)} calibration(s) and {removed.others} "
        f"other file(s), {_size(freed)}"
    )


@app.command()
def rollback(
    state: StateOption = None,
    config: ConfigOption = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make the previous engine the active one; a second rollback undoes the first."""
    from edge_agent.engine.plans.active import ActiveEngine

    engine = ActiveEngine(_folder(state, config))
    if not yes and (previous := engine.read().previous) is not None:
        typer.confirm(f"Go back to {_title(previous)}?", abort=True)
    active = engine.rollback()
    if as_json:
        typer.echo(json.dumps(asdict(active), indent=2))
        return
    _print_active(active)
    typer.echo("a running agent uses it after a restart: systemctl restart edge-agent")


def _folder(state: Path | None, config: Path | None) -> Path:
    from edge_agent.core.logs import configure
    from edge_agent.engine.precision.calibration import engines_folder

    configure("warning")
    settings = load_settings(config, state=state)
    return engines_folder(settings.engine, settings.state_dir)


def _read(folder: Path, *, digests: bool) -> tuple[Active, list[PlanEntry], str]:
    """Return the active engine, all plans, and why they were not compared with this device, or ""."""
    from edge_agent.engine.plans.active import ActiveEngine
    from edge_agent.engine.plans.store import PlanStore

    machine, not_compared = _machine()
    return ActiveEngine(folder).read(), PlanStore(folder).entries(machine, digests=digests), not_compared


def _machine() -> tuple[Machine | None, str]:
    """Return what plans run on here; else None and why plans cannot be compared with it."""
    from edge_agent.core.errors import EngineError
    from edge_agent.engine.tensorrt.recipe import this_machine

    try:
        return this_machine(), ""
    except EngineError as problem:
        return None, f"not compared with this device: {problem}"


def _json(folder: Path, active: Active, entries: Sequence[PlanEntry], not_compared: str) -> str:
    document: dict[str, Any] = {
        "folder": str(folder),
        "active": asdict(active),
        "plans": [asdict(entry) for entry in entries],
        "not_compared": not_compared or None,
    }
    return json.dumps(document, indent=2)


def _print_active(active: Active) -> None:
    for role, record in (("active", active.current), ("before", active.previous)):
        if record is not None:
            typer.echo(f"{role}: {_title(record)}")
    if active.current is None:
        typer.echo("no engine is active; edge-agent calibrate chooses one")


def _print_table(entries: Sequence[PlanEntry]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for title in ("plan", "model", "precision", "batches", "size", "TensorRT", "used (UTC)", "role", "state"):
        table.add_column(title, no_wrap=title != "state", justify="right" if title == "size" else "left")
    for entry in entries:
        table.add_row(
            entry.key[:12],
            entry.model or "-",
            entry.precision or "-",
            " ".join(map(str, entry.profiles)) or "-",
            "-" if entry.bytes is None else _size(entry.bytes),
            str(entry.machine.get("tensorrt", "-")),
            datetime.fromtimestamp(entry.used, timezone.utc).strftime("%Y-%m-%d %H:%M"),
            entry.role or "",
            f"{entry.verdict}: {entry.problem}" if entry.problem else entry.verdict,
        )
    console = Console()
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    console.print(table if entries else "no plans were built here")


def _title(record: dict[str, Any]) -> str:
    return f"{record['name']} ({record['backend']}, {record['precision']})"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
