"""One file per command. They are light: what is heavy is imported when a command runs.

A command's own file is imported when that command is asked for, so `edge-agent --help` imports none; and
help is plain text, since drawing it with rich takes more time than everything else together.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import typer
from typer.core import TyperGroup

__all__ = ["COMMANDS", "GROUPS", "app"]

COMMANDS = {
    "run": "Recognise people until told to stop, or until all files have been read.",
    "status": "Show the state of the running agent.",
    "demo": "Watch people being recognised: events live, from a broker, and a table at the end.",
    "watch": "Show identity events and device health from a broker, until Ctrl-C.",
    "doctor": "Check everything that the agent needs; exit 1 if something required is missing.",
    "dataset": "Count and check a data set in Market-1501 layout; files that cannot be used are listed.",
    "train": "Train a re-identification network; Ctrl-C stops after the current step and keeps a checkpoint.",
    "export": "Export a trained network to ONNX and check it against PyTorch to 1e-4.",
    "embed": "Embed every crop; pictures that cannot be read are left out and listed.",
    "evaluate": "Rank-k, mAP and mINP, and how often strangers are accepted and acquaintances missed.",
    "calibrate": "Choose the precision that keeps the accuracy, and the match threshold; make both the"
    " active ones.",
    "bench": "Latency and rate by batch and precision, the network alone and end to end.",
    "rekey": "Write gallery and outbox anew under the key that is set now (storage.key), or without one.",
}
"""Modules with a function `command`, and the first paragraph of its help."""

GROUPS = {
    "gallery": "Who is known here, and changing that, also while the agent runs.",
    "engines": "Engines that were built on this device: what is there, whether it is whole, and going back.",
    "model": "Bring a re-identification network onto this device.",
    "config": "Check, show and describe the settings.",
}
"""Modules with a typer application `app`, and the first sentence of its help."""


def _nothing() -> None:
    """A callback: with one, typer makes a group however few its commands are."""


class _Group(TyperGroup):
    """Lists its commands with whole sentences, where click would cut them."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401, ARG002  as in `_Commands`
        with formatter.section("Commands"):
            formatter.write_dl(self._lines())

    def _lines(self) -> list[tuple[str, str]]:
        return [(name, (one.help or "").partition("\n\n")[0]) for name, one in self.commands.items()]


class _Commands(Mapping[str, Any]):
    """All commands by name; each is imported when it is first taken."""

    def __init__(self) -> None:
        self._taken: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401  click's own, or typer's copy of it, by version
        if name not in self:
            raise KeyError(name)
        if name not in self._taken:
            module = importlib.import_module(f"edge_agent.cli.{name}")
            around = typer.Typer(add_completion=False, rich_markup_mode=None)
            around.callback()(_nothing)
            if name in GROUPS:
                around.add_typer(module.app, name=name, cls=_Group)
            else:
                around.command(name)(module.command)
            group: Any = typer.main.get_command(around)
            self._taken[name] = group.commands[name]
        return self._taken[name]

    def __contains__(self, name: object) -> bool:
        return name in COMMANDS or name in GROUPS

    def __iter__(self) -> Iterator[str]:
        return iter((*COMMANDS, *GROUPS))

    def __len__(self) -> int:
        return len(COMMANDS) + len(GROUPS)


class _Program(_Group):
    """The command line; to list its commands, none is imported."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401  typer's
        super().__init__(**options)
        self.commands: Any = _Commands()

    def _lines(self) -> list[tuple[str, str]]:
        return [*COMMANDS.items(), *GROUPS.items()]


def _version(wanted: bool) -> None:
    if wanted:
        from edge_agent import __version__

        typer.echo(f"edge-agent {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="edge-agent",
    cls=_Program,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Person re-identification at the edge: camera frames in, identity events out over MQTT.",
)


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    pass
