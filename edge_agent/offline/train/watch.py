"""Progress of a run: display on a terminal, JSON lines, TensorBoard scalars."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from edge_agent.core.distribution import install_command
from edge_agent.core.files import shown
from edge_agent.offline.tao.status import TrainingStatus

_LINE_EVERY = 30.0  # seconds between lines without a terminal
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Step:
    """Result of one training step."""

    epoch: int  # from 0
    step: int  # from 1, within the epoch
    steps: int  # number of steps of this epoch
    total: int  # number of the step in the whole run, from 1
    losses: Mapping[str, float]  # by name (`identity`, `triplet`, `center`, `total`)
    accuracy: float  # share of the batch that is classified correctly
    rate: float  # learning rate of the first group
    seconds: float  # duration of the step


class RunLog:
    """Displays and records a run; a context manager.

    Writes `training.jsonl` (means of every 20 steps, and every evaluation; appended to if `resumed`) and
    TensorBoard events, and hands steps and evaluations on to `status`. The console shows a bar on a terminal,
    else a line every 30 s.
    """

    def __init__(
        self,
        folder: Path,
        *,
        epochs: int,
        console: Console,
        resumed: bool,
        status: TrainingStatus | None = None,
    ) -> None:
        self._folder = folder
        self._status = status
        self._epochs = epochs
        self._console = console
        self._mode = "a" if resumed else "w"
        self._bar: Progress | None = None
        self._scalars: Any = None
        self._recent: list[Step] = []
        self._last_line = 0.0
        self._seconds = 0.0  # running mean of a step

    def __enter__(self) -> RunLog:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = (self._folder / "training.jsonl").open(self._mode, encoding="utf-8")
        self._scalars = _tensorboard(self._folder)
        if self._status is not None:
            self._status.begin()
        if self._console.is_terminal:
            columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self._console)
            self._bar.start()
            self._task = self._bar.add_task("training", total=None)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._scalars is not None:
            self._scalars.close()
        self._file.close()

    def on_step(self, step: Step) -> None:
        """Show the step; record the means of every 20 steps."""
        self._seconds = step.seconds if not self._seconds else 0.95 * self._seconds + 0.05 * step.seconds
        self._recent.append(step)
        if self._status is not None:
            self._status.on_step(step)
        if len(self._recent) == 20 or step.step == step.steps:
            self._record()
        if self._bar is not None:
            text = f"epoch {step.epoch + 1}/{self._epochs} loss {step.losses['total']:.3f}"
            self._bar.update(
                self._task, description=text, completed=step.total, total=step.steps * self._epochs
            )
        elif time.monotonic() - self._last_line > _LINE_EVERY:
            self._last_line = time.monotonic()
            self._console.print(self._line(step), highlight=False, soft_wrap=True)

    def _line(self, step: Step) -> str:
        losses = " ".join(f"{name} {value:.3f}" for name, value in step.losses.items())
        left = (step.steps * self._epochs - step.total) * self._seconds
        return (
            f"epoch {step.epoch + 1}/{self._epochs} step {step.step}/{step.steps} {losses} "
            f"accuracy {step.accuracy:.2f} rate {step.rate:.2e} {self._seconds:.2f} s/step "
            f"{left / 60:.0f} min left"
        )

    def _record(self) -> None:
        last, count = self._recent[-1], len(self._recent)
        means = {name: sum(step.losses[name] for step in self._recent) / count for name in last.losses}
        accuracy = sum(step.accuracy for step in self._recent) / count
        self._recent.clear()
        figures = {"accuracy": accuracy, "rate": last.rate}
        self._write({"step": last.total, "epoch": last.epoch, "losses": means, **figures})
        self._add({**{f"loss/{name}": value for name, value in means.items()}, **figures}, last.total)

    def on_evaluation(self, epoch: int, total: int, figures: Mapping[str, float]) -> None:
        """Show and record an evaluation."""
        if self._status is not None:
            self._status.on_evaluation(figures)
        self._write({"step": total, "epoch": epoch, "evaluation": dict(figures)})
        self._add({f"evaluation/{name}": value for name, value in figures.items()}, total)
        text = " ".join(f"{name} {value:.4f}" for name, value in figures.items())
        self._console.print(f"after epoch {epoch}: {text}", highlight=False, soft_wrap=True)

    def _write(self, row: Mapping[str, Any]) -> None:
        self._file.write(json.dumps({"time": round(time.time(), 1), **row}) + "\n")
        self._file.flush()

    def _add(self, scalars: Mapping[str, float], step: int) -> None:
        if self._scalars is not None:
            for name, value in scalars.items():
                self._scalars.add_scalar(name, value, step)


def _tensorboard(folder: Path) -> Any:  # noqa: ANN401  # torch carries no types for mypy here
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        _log.warning("train.no_tensorboard", reason=str(error), mend=install_command("train"))
        return None
    try:
        return SummaryWriter(str(folder))
    except UnicodeEncodeError:
        _log.warning(
            "train.no_tensorboard", reason="the name of the folder is not UTF-8", folder=shown(folder)
        )
        return None
