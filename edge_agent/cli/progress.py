"""Progress bars on standard error, shown on a terminal only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn, TaskID


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
    """Show a progress bar, which disappears at the end.

    Args:
        text: description of the task.
        total: steps in all; None while not known.
        columns: instead of description, bar, percentage, time and steps.
        console: instead of one on standard error.
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    shown = console or Console(stderr=True)
    chosen = columns or (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*chosen, console=shown, disable=not shown.is_terminal, transient=True) as progress:
        yield Bar(progress, progress.add_task(text, total=total))
