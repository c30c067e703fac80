"""`status.json`, which TAO writes beside its results: one JSON object per line.

Fields and messages are those of TAO's status logger (tao_pytorch_backend, `core/loggers/api_logging.py`,
`core/decorators/workflow.py`, `core/callbacks/loggers.py`, `cv/re_identification/model/pl_reid_model.py`):
`date` (month/day/year) and `time` in local time without leading zeros, `status`, `verbosity`, `message`,
`kpi`, and at the end of an epoch its number, steps and durations. Epochs count from 0, as in TAO.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from edge_agent.core.errors import DiskFull
from edge_agent.core.files import open_to_write
from edge_agent.core.manifest import write_error

if TYPE_CHECKING:
    from edge_agent.offline.train.watch import Step

STATUS_FILE = "status.json"

_NETWORK = "ReIdentification"
_ROLE = "the status file"

State = Literal["STARTED", "RUNNING", "FAILURE"]


class StatusFile:
    """Appends to `status.json` in a folder, which is created if missing; a context manager.

    The block is the run: its start, its end and its error are written. `task` is TAO's name for the command,
    `train` or `evaluate`. The last figures are repeated in later lines, as TAO does.

    Raises:
        DiskFull, StorageError: it cannot be written.
    """

    def __init__(self, folder: Path, task: Literal["train", "evaluate"]) -> None:
        self.path = folder / STATUS_FILE
        self._task = task
        self._file: int | None = None
        self._kpi: dict[str, Any] = {}
        self._interrupted = False

    def __enter__(self) -> StatusFile:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open_to_write(self.path, os.O_APPEND, 0o644)
        except OSError as problem:
            raise write_error(self.path, problem, role=_ROLE) from problem
        self.write(f"Starting {_NETWORK} {self._task}.", state="STARTED")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        name = self._task.capitalize()
        try:
            if isinstance(error, Exception):
                self.write(str(error) or type(error).__name__, state="FAILURE")
            elif error is not None or self._interrupted:
                self.write(f"{name} was interrupted", state="FAILURE")
            else:
                self.write(f"{name} finished successfully.")
        finally:
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def interrupted(self) -> None:
        """Note that the run ends early by request."""
        self._interrupted = True

    def write(
        self,
        message: str,
        *,
        state: State = "RUNNING",
        kpi: Mapping[str, Any] | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        """Add a line; `kpi` are new figures, `data` fields that precede TAO's."""
        if self._file is None:
            return
        self._kpi = dict(kpi) if kpi is not None else self._kpi
        now = datetime.now().astimezone()
        line = {
            **(data or {}),
            "date": f"{now.month}/{now.day}/{now.year}",
            "time": f"{now.hour}:{now.minute}:{now.second}",
            "status": state,
            "verbosity": "INFO",
            "message": message,
            **({"kpi": self._kpi} if self._kpi else {}),
        }
        text = (json.dumps(line) + "\n").encode()
        try:
            written = os.write(self._file, text)
        except OSError as problem:
            raise write_error(self.path, problem, role=_ROLE) from problem
        if written < len(text):
            raise DiskFull(f"cannot write {_ROLE} {self.path}: no space is left on its disk")


@dataclass(slots=True)
class TrainingStatus:
    """Writes the steps and evaluations of a run of `epochs` epochs into an open status file."""

    file: StatusFile
    epochs: int
    _steps: list[Step] = field(default_factory=list)  # of this epoch

    def begin(self) -> None:
        """Write that the steps begin."""
        self.file.write("Starting Training Loop.", state="STARTED")

    def on_step(self, step: Step) -> None:
        """Note a step; at the end of an epoch, write its means and durations."""
        self._steps.append(step)
        if step.step < step.steps:
            return
        count, duration = len(self._steps), sum(one.seconds for one in self._steps)
        kpi = {
            "train_loss": sum(one.losses["total"] for one in self._steps) / count,
            "train_acc": sum(one.accuracy for one in self._steps) / count,
        }
        self.file.write("Train metrics generated.", kpi=kpi)
        left = (self.epochs - 1 - step.epoch) * duration
        data = {
            "epoch": step.epoch,
            "step": step.total,
            "max_epoch": self.epochs - 1,
            "max_step": self.epochs * step.steps,
            "time_per_epoch": str(timedelta(seconds=duration)),
            "time_per_step": str(timedelta(seconds=duration / count)),
            "eta": str(timedelta(seconds=left)),
        }
        self.file.write("Training loop in progress", data=data)
        self._steps.clear()

    def on_evaluation(self, figures: Mapping[str, float]) -> None:
        """Write the figures of an evaluation between epochs, as texts, as TAO does."""
        ranks = {f"cmc_rank_{depth}": str(figures[f"rank{depth}"]) for depth in (1, 5, 10)}
        self.file.write("Eval metrics generated.", kpi={**ranks, "mAP": str(figures["mAP"])})

    def end(self, *, stopped: bool) -> None:
        """Write that the last epoch has ended, or note that it was `stopped` before."""
        if stopped:
            self.file.interrupted()
        else:
            self.file.write("Training loop complete.")
