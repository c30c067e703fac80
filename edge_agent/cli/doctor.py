"""`edge-agent doctor`: run all checks and print their findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from edge_agent.cli.arguments import ConfigOption, JsonOption
from edge_agent.cli.checks import Finding, configuration, machine, trial
from edge_agent.cli.checks.fleet import fleet
from edge_agent.cli.output import console, print_json, say, working

if TYPE_CHECKING:
    from edge_agent.core.config import Settings
    from edge_agent.core.structures import EngineInfo

_COLOURS = {"ok": "green", "note": "cyan", "warning": "yellow", "missing": "red"}
_NARROW = 120  # characters, for pipes and logs


def command(
    config: ConfigOption = None,
    *,
    try_out: Annotated[
        bool,
        Option("--try", help="Also open each camera, save its picture, and send a message to the broker."),
    ] = False,
    snapshots: Annotated[
        Path | None,
        Option(metavar="FOLDER", help="With --try: where the pictures go; ./snapshots by default."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check everything that the agent needs; exit 1 if something required is missing."""
    from edge_agent.core.logs import configure

    if snapshots is not None and not try_out:
        raise typer.BadParameter("--snapshots has no effect without --try")
    configure("error")
    folder = (snapshots or Path("snapshots")) if try_out else None
    with working("checking") as show:
        findings = examine(config, snapshots=folder, step=lambda name: show(f"checking {name}"))
    missing = [finding for finding in findings if finding.state == "missing"]
    if as_json:
        result = {"ok": not missing, "findings": [asdict(finding) for finding in findings]}
        print_json(result, indent=2)
    else:
        _print_table(findings)
        say(f"{len(missing)} thing(s) missing" if missing else "nothing is missing")
    if missing:
        raise typer.Exit(1)


def _print_table(findings: Sequence[Finding]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table("what", "state", "found", "to do", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.columns:
        column.overflow = "fold"
    for finding in findings:
        state = Text(finding.state, _COLOURS[finding.state])
        table.add_row(finding.name, state, finding.found, finding.advice)
    screen = console()
    if not screen.is_terminal:
        screen.width = _NARROW
    screen.print(table)


def examine(
    config: Path | None,
    *,
    root: Path = Path("/"),
    snapshots: Path | None = None,
    step: Callable[[str], None] | None = None,
) -> list[Finding]:
    """Run all checks; `step` is called with the name of each before it runs.

    With `snapshots`, cameras and broker are used, and a picture of each camera is written there.
    `root` has the folders `sys`, `proc`, `etc`, `dev` and `run`.
    """
    findings: list[Finding] = []
    for name, check in _Checks(config, root, snapshots).all():
        if step is not None:
            step(name)
        try:
            findings += check()
        except Exception as problem:  # noqa: BLE001 - a check that fails must not prevent the others
            text = f"cannot be checked: {type(problem).__name__}: {problem}"
            findings.append(Finding(name, "warning", text, "please report this"))
    return findings


class _Checks:
    """All checks, and results that later checks need."""

    def __init__(self, config: Path | None, root: Path, snapshots: Path | None) -> None:
        self._config = config
        self._root = root
        self._snapshots = snapshots
        self._settings: Settings | None = None
        self._engine: EngineInfo | None = None
        self._has_onnxruntime = False

    def all(self) -> Iterator[tuple[str, Callable[[], list[Finding]]]]:
        """Name and function of each check, in the order of their dependencies."""
        root, on_board = self._root, (self._root / "etc/nv_tegra_release").exists()
        yield "python", machine.python
        yield "packages", machine.packages
        yield "opencv", lambda: machine.opencv(on_board=on_board)
        yield "onnxruntime", self._onnxruntime
        yield "board", lambda: machine.board(root)
        yield "cuda", lambda: machine.cuda(root, on_board=on_board)
        yield "tensorrt", lambda: machine.tensorrt(on_board=on_board)
        yield "pycuda", lambda: machine.pycuda(on_board=on_board)
        yield "jtop", lambda: machine.jtop(root, on_board=on_board)
        yield "clock", machine.clock
        yield "configuration", self._configuration
        if (settings := self._settings) is None:
            return
        yield "state folder", lambda: configuration.state_folder(settings.state_dir)
        yield "clock step", lambda: configuration.clock(settings.state_dir)
        if self._has_onnxruntime:
            yield "model", lambda: self._model(settings)
            yield "detector", lambda: configuration.detectors(settings)
        yield "gallery", lambda: configuration.gallery(settings, self._engine)
        yield "broker", lambda: configuration.broker(settings)
        yield "kafka", lambda: configuration.kafka(settings)
        yield "fleet", lambda: fleet(settings, self._engine)
        if (folder := self._snapshots) is not None:
            yield "sources", lambda: list(trial.sources(settings, folder))
            yield "broker", lambda: list(trial.broker(settings))

    def _onnxruntime(self) -> list[Finding]:
        findings = machine.onnxruntime()
        self._has_onnxruntime = findings[0].state == "ok"
        return findings

    def _configuration(self) -> list[Finding]:
        self._settings, finding = configuration.settings_of(self._config)
        if self._settings is None:
            return [finding]
        return [finding, *configuration.secrets(self._settings, self._config)]

    def _model(self, settings: Settings) -> list[Finding]:
        self._engine, findings = configuration.model(settings)
        return findings
