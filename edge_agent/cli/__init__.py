"""The command line: one file per command, which imports heavy modules only when the command runs.

The file of a command is imported when the command is used, so `edge-agent --help` imports none. Help is plain
text: formatting it with rich would take longer than everything else.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

COMMANDS = {
    "run": "Run the agent until it is stopped, or until all recordings have been read.",
    "status": "Show the state of the running agent.",
    "demo": "Show the agent at work: live events from a broker, and a table of the results.",
    "watch": "Show identity events and device health from a broker, until Ctrl-C.",
    "doctor": "Check everything that the agent needs; exit 1 if something required is missing.",
    "dataset": "Count the pictures of a data set in Market-1501 layout, and list files that cannot be used.",
    "train": "Train a re-identification network; Ctrl-C stops after the current step and saves a checkpoint.",
    "export": "Export a network, checked, to ONNX, to a Triton model repository, or for DeepStream.",
    "embed": "Embed crops; pictures that cannot be read are left out and listed.",
    "evaluate": "Measure accuracy: rank-k, mAP and mINP, and false matches and misses by threshold.",
    "calibrate": "Choose a precision that keeps the accuracy, and the match threshold; make both active.",
    "bench": "Measure latency and rate by batch and precision, of the network alone and end to end.",
    "replay": "Make recorded decisions again with other settings, and show what changes.",
    "rekey": "Encrypt gallery and outbox with the configured key (storage.key), or decrypt them.",
}
"""Modules with a function `command`, and the first paragraph of its help."""

GROUPS = {
    "gallery": "Show and change the people in the gallery, also while the agent runs.",
    "engines": "List, verify and prune the engines of this device, and roll back.",
    "page": "Serve the operator's page; set passwords and make links for it.",
    "fleet": "Share people with the other devices of the site: make the store, join, leave, look, erase.",
    "model": "Install a detector or a re-identification network on this device.",
    "config": "Check, show and describe the settings.",
}
"""Modules with a typer application `app`, and the first sentence of its help."""


def _nothing() -> None:
    """A callback, with which typer makes a group even of a single command."""


class _Group(TyperGroup):
    """Lists its commands with whole sentences; click would cut them off."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401, ARG002  as in `_Commands`
        with formatter.section("Commands"):
            formatter.write_dl(self._lines())

    def _lines(self) -> list[tuple[str, str]]:
        return [(name, (one.help or "").partition("\n\n")[0]) for name, one in self.commands.items()]


_USAGE_ERROR: Any = typer.BadParameter.__base__
_UNREADABLE = "is not readable."
"""How typer's message about a file without read permission ends."""


class _Command(TyperCommand):
    """Refuses an option with one value that is given twice; click would use the last."""

    def make_parser(self, ctx: Any) -> Any:  # noqa: ANN401  as in `_Commands`
        parser: Any = super().make_parser(ctx)
        parse = parser.parse_args

        def checked(args: list[str]) -> Any:  # noqa: ANN401
            order: list[Any]
            options, others, order = parse(args)
            for given in order:
                single = given.param_type_name == "option" and not given.multiple and not given.is_flag
                if single and sum(one is given for one in order) > 1:
                    raise typer.BadParameter("is given twice, and takes one value", ctx=ctx, param=given)
            return options, others, order

        parser.parse_args = checked
        return parser


class _Commands(Mapping[str, Any]):
    """All commands by name; each is imported at its first use."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401  click's own, or typer's copy of it, by version
        if name not in self:
            raise KeyError(name)
        if name not in self._loaded:
            module = importlib.import_module(f"edge_agent.cli.{name}")
            wrapper = typer.Typer(add_completion=False, rich_markup_mode=None)
            wrapper.callback()(_nothing)
            if name in GROUPS:
                for command in module.app.registered_commands:
                    command.cls = _Command
                wrapper.add_typer(module.app, name=name, cls=_Group)
            else:
                wrapper.command(name, cls=_Command)(module.command)
            group: Any = typer.main.get_command(wrapper)
            self._loaded[name] = group.commands[name]
        return self._loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in COMMANDS or name in GROUPS

    def __iter__(self) -> Iterator[str]:
        return iter((*COMMANDS, *GROUPS))

    def __len__(self) -> int:
        return len(COMMANDS) + len(GROUPS)


class _Program(_Group):
    """The command line; listing the commands imports none of them."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401  typer's
        super().__init__(**options)
        self.commands: Any = _Commands()

    def _lines(self) -> list[tuple[str, str]]:
        return [*COMMANDS.items(), *GROUPS.items()]

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401  click's own, or typer's copy of it, by version
        """Run a command; a message about wrong usage repeats arguments without logins."""
        try:
            return super().invoke(ctx)
        except _USAGE_ERROR as problem:
            from edge_agent.cli.logins import mask_arguments

            problem.message = mask_arguments(problem.message)
            if problem.message.endswith(_UNREADABLE):  # no wrong usage
                from edge_agent.core.errors import InputError

                reason = problem.message.removesuffix(".")
                raise InputError(f"{reason}; check the owner and permissions of it and its folder") from None
            raise


def _version(wanted: bool) -> None:
    if wanted:
        from edge_agent import __version__

        typer.echo(f"edge-agent {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="edge-agent",
    cls=_Program,
    no_args_is_help=True,
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
