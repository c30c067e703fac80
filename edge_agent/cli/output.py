"""Results on standard output, and progress bars on standard error."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn, TaskID

_PIPE_WIDTH = 240
"""Characters per line where the output is not a terminal, so that no cell is wrapped."""


def print_result(
    result: Any,  # noqa: ANN401 - any JSON value
    text: str | Callable[[], str],
    *,
    as_json: bool,
    indent: int | None = 2,
) -> None:
    """Print the result as JSON, else the text."""
    if as_json:
        typer.echo(json.dumps(result, indent=indent))
    else:
        typer.echo(text if isinstance(text, str) else text())


def confirm(question: str, yes: bool) -> None:
    """Ask, unless `yes`; end the command when the answer is no."""
    if not yes:
        typer.confirm(question, abort=True)


def plain(text: str) -> str:
    """Replace control characters, which could move the cursor."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def moment(seconds: float) -> str:
    """Return Unix seconds as UTC, to the minute."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M")


def table(
    titles: Sequence[str], rows: Iterable[Sequence[str | None]], *, right: Collection[str], wrap: str
) -> str:
    """Return a table; the column `wrap` may be wrapped on a terminal, those of `right` are flush right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for title in titles:
        drawn.add_column(title, no_wrap=title != wrap, justify="right" if title in right else "left")
    for row in rows:
        drawn.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    with console.capture() as text:
        console.print(drawn)
    return text.get().rstrip("\n")


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
    console: Console | None = None,
) -> Iterator[Bar]:
    """Show a progress bar, on a terminal only, which disappears at the end.

    `columns` replace text, bar, percentage, time and steps; `console` replaces standard error.
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    shown = console or Console(stderr=True)
    chosen = columns or (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*chosen, console=shown, disable=not shown.is_terminal, transient=True) as progress:
        yield Bar(progress, progress.add_task(text, total=total))
