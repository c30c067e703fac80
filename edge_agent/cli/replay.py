"""`edge-agent replay`: make recorded decisions again with other settings, or another network, and compare."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from edge_agent.cli.arguments import (
    ConfigOption,
    JsonOption,
    PreprocessOption,
    StateOption,
    load_settings,
    require_folders,
)
from edge_agent.cli.output import print_result, say, table, working

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from edge_agent.core.config import Settings
    from edge_agent.offline.replay.recording import Recording
    from edge_agent.offline.replay.report import Run
    from edge_agent.offline.replay.run import Network, Outcome


def command(
    recording: Annotated[
        Path | None,
        Argument(help="File, or folder: its newest run; that of the state folder by default."),
    ] = None,
    changes: Annotated[
        list[str] | None,
        Option(
            "--set",
            metavar="KEY=VALUE[,VALUE...]",
            help="Another setting, e.g. identify.target_fmr=1e-4; several values make a run each."
            " identify.threshold-=0.1: lower by 0.1 than the recorded one.",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        Option("--model", metavar="ONNX", help="Another network, for a recording with pictures."),
    ] = None,
    preprocess: PreprocessOption = None,
    html: Annotated[
        Path | None, Option("--html", metavar="FILE.html", help="Write the result as a page.")
    ] = None,
    state: StateOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make recorded decisions again with other settings, and show what changes.

    Without --set and --model it checks that the recorded decisions are made again as they were.
    """
    from edge_agent.core.encryption import database_key
    from edge_agent.offline.replay import report
    from edge_agent.offline.replay.recording import Recording
    from edge_agent.record.recorder import FOLDER

    settings = load_settings(config, state=state)
    require_folders(html)
    path = recording or settings.state_dir / FOLDER
    key = database_key(settings.storage)
    with Recording(path, key) as found, working("replaying") as step:
        with _network(settings, found, model, preprocess) as network:
            base, runs = _replayed(found, changes or [], key, network, step)
        if html is not None:
            report.write_page(html, found, base, runs)
        result, lines = report.document(found, base, runs), _lines(found, base, runs)
    print_result(result, lines, as_json=as_json)
    if html is not None:
        say(f"written to {html}", err=True)


def _replayed(
    found: Recording,
    changes: list[str],
    key: bytes | None,
    network: Network | None,
    step: Callable[[str], None],
) -> tuple[Outcome, list[Run]]:
    """Return the replay with the recorded settings, and one for each combination of the others."""
    from edge_agent.offline.replay.changes import sweep
    from edge_agent.offline.replay.compare import compare
    from edge_agent.offline.replay.report import Run
    from edge_agent.offline.replay.run import recorded_network, replay

    wanted = sweep(changes, found.threshold())
    base = replay(found, {}, key=key)
    if network is not None:
        wanted = [(", ".join(filter(None, (network.name, name))), one) for name, one in wanted or [("", {})]]
    runs, before = [], base
    if network is not None:
        before = replay(found, {}, key=key, network=recorded_network(found))
    for name, one in wanted:
        step(f"replaying with {name}")
        runs.append(Run(name, compare(before, replay(found, one, key=key, network=network))))
    return base, runs


def _network(
    settings: Settings, found: Recording, model: Path | None, preprocess: str | None
) -> AbstractContextManager[Network | None]:
    if model is None:
        return nullcontext(None)
    from edge_agent.offline.replay.network import open_network

    return open_network(settings, found, model, preprocess)


def _lines(found: Recording, base: Outcome, runs: list[Run]) -> list[str]:
    from edge_agent.offline.replay import report

    names = ", ".join(str(file.path) for file in found.files)
    lines = [
        f"{names}: {base.frames} frames with tracks, {len(base.numbers)} tracks",
        report.verdict(found, base),
        *report.shadow_lines(base),
    ]
    if not runs:
        return lines
    lines += table(
        report.SUMMARY, report.summary_rows(base, runs), right=report.SUMMARY[1:4], wrap=report.SUMMARY[4]
    )
    for run in runs:
        changed = run.difference.changed
        lines.append(f"{run.name}: {'what changes' if changed else 'nothing changes'}")
        if changed:
            rows = map(report.change_row, changed)
            lines += table(report.CHANGES, rows, right=("track", "score", "threshold"), wrap="replayed")
    return lines
