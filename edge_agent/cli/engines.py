"""`edge-agent engines`: the TensorRT engines that were built on this device, and which one is active."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from edge_agent.cli.arguments import ConfigOption, JsonOption, StateOption, YesOption, load_settings
from edge_agent.cli.output import confirm, moment, print_result, table

if TYPE_CHECKING:
    from edge_agent.engine.plans.active import Active
    from edge_agent.engine.plans.records import PlanEntry

app = typer.Typer(
    no_args_is_help=True, help="List, verify and prune the engines of this device, and roll back."
)

_DAY_S = 86_400.0


@app.command("list")
def list_plans(state: StateOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the TensorRT plans and the active engine."""
    folder = _folder(state, config)
    active, entries, not_compared = _read(folder, digests=False)

    def lines() -> list[str]:
        notes = [not_compared] if not_compared and entries else []
        return [*_active_lines(active), *_table(entries, folder), *notes]

    print_result(_document(folder, active, entries, not_compared), lines, as_json=as_json)


@app.command()
def verify(state: StateOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Compare every plan with its digest and with this device; changes nothing.

    Exit code 1 when a plan is damaged or was built on another device: the agent would refuse it and build it
    again.
    """
    folder = _folder(state, config)
    active, entries, not_compared = _read(folder, digests=True)
    lines = [f"{one.key[:12]} {one.verdict}{one.problem and ': ' + one.problem}" for one in entries]
    counts = Counter(entry.verdict for entry in entries)
    lines.append(", ".join(f"{count} {verdict}" for verdict, count in counts.items()) or _no_plans(folder))
    if not_compared and entries:
        lines.append(not_compared)
    print_result(_document(folder, active, entries, not_compared), lines, as_json=as_json)
    if any(entry.verdict in {"damaged", "foreign"} for entry in entries):
        raise typer.Exit(1)


@app.command()
def prune(
    unused_days: Annotated[
        float, Option(min=0.0, help="Keep plans that were built or loaded in the last days.")
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
    confirm(f"Remove plans unused for {unused_days:g} days from {folder}?", yes)
    removed = PlanStore(folder).prune(unused_s=unused_days * _DAY_S)
    calibrations, freed = prune_calibrations(folder)
    freed += removed.bytes
    text = (
        f"removed {len(removed.plans)} plan(s), {len(calibrations)} calibration(s) and {removed.others} "
        f"other file(s), {_size(freed)}"
    )
    result = {**asdict(removed), "calibrations": list(calibrations), "bytes": freed}
    print_result(result, text, as_json=as_json, indent=None)


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
    if (previous := engine.read().previous) is not None:
        confirm(f"Go back to {_title(previous)}?", yes)
    active = engine.rollback()
    restart = "a running agent uses it after a restart: systemctl restart edge-agent"
    print_result(asdict(active), [*_active_lines(active), restart], as_json=as_json)


def _folder(state: Path | None, config: Path | None) -> Path:
    from edge_agent.engine.precision.calibration import engines_folder

    settings = load_settings(config, state=state)
    return engines_folder(settings.engine, settings.state_dir)


def _read(folder: Path, *, digests: bool) -> tuple[Active, list[PlanEntry], str]:
    """Return the active engine, all plans, and why they were not compared with this device, or ""."""
    from edge_agent.core.errors import EngineError
    from edge_agent.engine.plans.active import ActiveEngine
    from edge_agent.engine.plans.store import PlanStore
    from edge_agent.engine.tensorrt.recipe import this_machine

    machine, not_compared = None, ""
    try:
        machine = this_machine()
    except EngineError as problem:
        not_compared = f"not compared with this device: {problem}"
    return ActiveEngine(folder).read(), PlanStore(folder).entries(machine, digests=digests), not_compared


def _document(
    folder: Path, active: Active, entries: Sequence[PlanEntry], not_compared: str
) -> dict[str, Any]:
    return {
        "folder": str(folder),
        "active": asdict(active),
        "plans": [asdict(entry) for entry in entries],
        "not_compared": not_compared or None,
    }


def _active_lines(active: Active) -> list[str]:
    records = (("active", active.current), ("before", active.previous))
    lines = [f"{role}: {_title(record)}" for role, record in records if record is not None]
    return lines if active.current else [*lines, "no engine is active; edge-agent calibrate chooses one"]


def _no_plans(folder: Path) -> str:
    return f"no plans were built in {folder}; name another state folder with --state"


def _table(entries: Sequence[PlanEntry], folder: Path) -> list[str]:
    if not entries:
        return [_no_plans(folder)]
    titles = ("plan", "model", "precision", "batches", "size", "TensorRT", "used (UTC)", "role", "state")
    rows = [
        (
            entry.key[:12],
            entry.model or "-",
            entry.precision or "-",
            " ".join(map(str, entry.profiles)) or "-",
            "-" if entry.bytes is None else _size(entry.bytes),
            str(entry.machine.get("tensorrt", "-")),
            moment(entry.used),
            entry.role or "",
            f"{entry.verdict}: {entry.problem}" if entry.problem else entry.verdict,
        )
        for entry in entries
    ]
    return table(titles, rows, right=("size",), wrap="state")


def _title(record: dict[str, Any]) -> str:
    return f"{record['name']} ({record['backend']}, {record['precision']})"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
