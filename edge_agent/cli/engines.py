"""`edge-agent engines`: the TensorRT engines that were built on this device, and which one runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from edge_agent.engine.plans.store import Active, Machine, PlanEntry, PlanStore

app = typer.Typer(
    no_args_is_help=True,
    help="Engines that were built on this device: what is there, whether it is whole, and going back.",
)

StateOption = Annotated[
    Path | None, typer.Option("--state", help="State folder; the configured one when absent.")
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="TOML file; /etc/edge-agent/config.toml where it exists.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="As JSON.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]

_DAY_S = 86_400.0


@app.command("list")
def list_plans(state: StateOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the plans of TensorRT, and which engine is active."""
    store = _open(state, config)
    machine, why = _machine()
    entries, active = store.entries(machine), store.active()
    if as_json:
        typer.echo(_json(store, active, entries, why))
        return
    _print_active(active)
    _print_table(entries)
    if why and entries:
        typer.echo(why)


@app.command()
def verify(state: StateOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Read every plan and compare it with its digest and with this device; changes nothing.

    Ends with 1 when one is damaged or was built on another device: it would be refused and built again.
    """
    store = _open(state, config)
    machine, why = _machine()
    entries, active = store.entries(machine, digests=True), store.active()
    if as_json:
        typer.echo(_json(store, active, entries, why))
    else:
        for entry in entries:
            typer.echo(f"{entry.key[:12]} {entry.verdict}{entry.problem and ': ' + entry.problem}")
        counts = Counter(entry.verdict for entry in entries)
        typer.echo(", ".join(f"{count} {verdict}" for verdict, count in counts.items()) or "no plans")
        if why and entries:
            typer.echo(why)
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
    """Remove plans and calibrations that nothing needs, and the quarantine.

    What the active engine and the one before it need always stays. A plan that is removed is built again when
    it is needed, which takes minutes.
    """
    from edge_agent.engine.precision.calibration import prune_calibrations

    store = _open(state, config)
    if not yes:
        typer.confirm(f"Remove plans unused for {unused_days:g} days from {store.folder}?", abort=True)
    gone = store.prune(unused_s=unused_days * _DAY_S)
    calibrations, freed = prune_calibrations(store.folder)
    if as_json:
        told = {**asdict(gone), "calibrations": list(calibrations), "bytes": gone.bytes + freed}
        typer.echo(json.dumps(told))
        return
    typer.echo(
        f"removed {len(gone.plans)} plan(s), {len(calibrations)} calibration(s) and {gone.others} other "
        f"file(s), {_size(gone.bytes + freed)}"
    )


@app.command()
def rollback(
    state: StateOption = None,
    config: ConfigOption = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make the engine before the present one the active one again; a second time undoes the first."""
    store = _open(state, config)
    if not yes:
        before = store.active().previous
        if before is not None:
            typer.confirm(f"Go back to {_called(before)}?", abort=True)
    active = store.rollback()
    if as_json:
        typer.echo(json.dumps(asdict(active), indent=2))
        return
    _print_active(active)
    typer.echo("a running agent takes it after a restart: systemctl restart edge-agent")


def _open(state: Path | None, config: Path | None) -> PlanStore:
    from edge_agent.core.config import load
    from edge_agent.core.logs import configure
    from edge_agent.engine.plans.store import PlanStore
    from edge_agent.engine.precision.calibration import engines_folder

    configure("warning")
    settings = load(config, {} if state is None else {"state_dir": state})
    return PlanStore(engines_folder(settings.engine, settings.state_dir))


def _machine() -> tuple[Machine | None, str]:
    """What plans would run on here; else None, and why plans cannot be compared with it."""
    from edge_agent.core.errors import EngineError
    from edge_agent.engine.tensorrt.build import this_machine

    try:
        return this_machine(), ""
    except EngineError as problem:
        return None, f"not compared with this device: {problem}"


def _json(store: PlanStore, active: Active, entries: Sequence[PlanEntry], why: str) -> str:
    told: dict[str, Any] = {
        "folder": str(store.folder),
        "active": asdict(active),
        "plans": [asdict(entry) for entry in entries],
        "not_compared": why or None,
    }
    return json.dumps(told, indent=2)


def _print_active(active: Active) -> None:
    for role, record in (("active", active.current), ("before", active.previous)):
        if record is not None:
            typer.echo(f"{role}: {_called(record)}")
    if active.current is None:
        typer.echo("no engine was chosen yet: edge-agent calibrate does")


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
        console.width = _WIDE
    console.print(table if entries else "no plans were built here")


_WIDE = 240  # characters: a pipe has no edge to wrap at


def _called(record: dict[str, Any]) -> str:
    return f"{record['name']} ({record['backend']}, {record['precision']})"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
