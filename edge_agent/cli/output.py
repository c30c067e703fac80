"""Results on standard output, and progress bars on standard error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal

import typer

from edge_agent.core.private import exposed, remedy
from edge_agent.core.text import LONGEST_CELL, json_line, visible

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console
    from rich.progress import Progress, ProgressColumn, TaskID

_LONGEST_LINE = 20_000
_PIPE_WIDTH = 240
"""Characters per line where the output is not a terminal, so that no cell is wrapped."""


def print_result(
    result: Any,  # noqa: ANN401 - any JSON value
    lines: str | Iterable[str] | Callable[[], Iterable[str]],
    *,
    as_json: bool,
    indent: int | None = 2,
) -> None:
    """Print the result as JSON, else one line or several."""
    if as_json:
        print_json(result, indent=indent)
    elif isinstance(lines, str):
        say(lines)
    else:
        say(*(lines() if callable(lines) else lines))


def print_json(result: Any, *, indent: int | None = None) -> None:  # noqa: ANN401 - any JSON value
    """Print JSON in ASCII."""
    typer.echo(json.dumps(result, indent=indent))


def print_message(payload: bytes) -> None:
    """Print a received message as one line of JSON; what is not JSON, as a string."""
    typer.echo(json_line(payload))


def say(*lines: str, err: bool = False) -> None:
    """Print lines; what cannot be seen in them, also a line end, is shown as an escape."""
    for line in lines:
        typer.echo(visible(line, _LONGEST_LINE), err=err)


def warn_of_exposed(files: Iterable[Path]) -> None:
    """Warn of files with a secret that every user may read."""
    for path in exposed(files):
        say(f"warning: {path} contains a secret, and every user may read it: {remedy(path)}", err=True)


def confirm(question: str, yes: bool) -> None:
    """Ask, unless `yes`; end the command when the answer is no."""
    if not yes:
        typer.confirm(visible(question), abort=True)


def console(*, stderr: bool = False) -> Console:
    """Return the terminal for tables, bars and live views, which shows strings as they are."""
    from edge_agent.cli.console import PlainConsole

    return PlainConsole(stderr=stderr)


def show_cursor() -> None:
    """Show the cursor of the terminal again, which a bar hides, before a process ends without cleaning up."""
    with suppress(OSError, ValueError):  # standard error may be closed, or have no descriptor
        if os.isatty(descriptor := sys.stderr.fileno()):
            os.write(descriptor, b"\x1b[?25h\n")


def moment(seconds: float) -> str:
    """Return Unix seconds as UTC, to the minute; a number that is no time as it is."""
    try:
        return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M")
    except (OverflowError, ValueError, OSError):
        return f"{seconds:g}?"


def table(
    titles: Sequence[str], rows: Iterable[Sequence[str | None]], *, right: Collection[str], wrap: str
) -> list[str]:
    """Return a table as lines; `wrap` may be wrapped on a terminal, columns of `right` are flush right."""
    from rich import box
    from rich.table import Table

    from edge_agent.cli.console import PlainConsole

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for title in titles:
        justify: Literal["right", "left"] = "right" if title in right else "left"
        drawn.add_column(title, no_wrap=title != wrap, justify=justify, overflow="fold")
    for row in rows:
        drawn.add_row(*(None if cell is None else visible(cell, LONGEST_CELL) for cell in row))
    screen = PlainConsole(no_color=True, color_system=None)
    if not screen.is_terminal:
        screen.width = _PIPE_WIDTH
    with screen.capture() as text:
        screen.print(drawn)
    return text.get().rstrip("\n").split("\n")


@contextmanager
def working(text: str) -> Iterator[Callable[[str], None]]:
    """Show on a terminal, on standard error, what is being done; call the function with the next step."""
    from rich.text import Text

    with console(stderr=True).status(Text(visible(text))) as status:
        yield lambda step: status.update(Text(visible(step)))


@dataclass(frozen=True, slots=True)
class Bar:
    """A progress bar with one task."""

    _progress: Progress
    _task: TaskID

    def update(self, done: int, total: int | None) -> None:
        """Set the steps done, and the steps in all where they are known."""
        self._progress.update(self._task, completed=done, total=total)

    def advance(self, steps: int = 1) -> None:
        """Add steps that are done."""
        self._progress.advance(self._task, steps)


@contextmanager
def progress_bar(
    text: str,
    total: int | None = None,
    *,
    columns: tuple[ProgressColumn, ...] = (),
    screen: Console | None = None,
) -> Iterator[Bar]:
    """Show a progress bar, on a terminal only, which disappears at the end.

    `columns` replace those of `bar_columns`; `screen` replaces standard error.
    """
    from rich.progress import Progress

    shown = screen or console(stderr=True)
    chosen = columns or bar_columns()
    with Progress(*chosen, console=shown, disable=not shown.is_terminal, transient=True) as progress:
        yield Bar(progress, progress.add_task(visible(text, LONGEST_CELL), total=total))


def bar_columns() -> tuple[ProgressColumn, ...]:
    """Return text, bar, percentage, time and steps; the text of a task must be `visible`."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    text = TextColumn("{task.description}", markup=False)
    return text, BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), MofNCompleteColumn()
