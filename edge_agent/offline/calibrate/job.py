"""From a model to the active engine, in steps that survive an interruption: `edge-agent calibrate`.

model -> sample -> ranges -> FP32 reference -> candidate and its gate, from INT8 down to what passes ->
threshold -> speed -> manifest and report -> switch. Results of steps are kept under a key made of everything
that they depend on: the same request continues its finished steps, another request starts from the beginning.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import structlog

from edge_agent.core.errors import ConfigError, InputError, StorageError
from edge_agent.core.locks import FileLock
from edge_agent.engine import choose_backend
from edge_agent.engine.precision.calibration import CALIBRATIONS, MANIFEST, Calibration
from edge_agent.offline.calibrate.candidates import Candidates
from edge_agent.offline.calibrate.request import NO_DATA, Progress, Request, Silent, Work, work_key
from edge_agent.offline.calibrate.result import switch, unfinished, write_result
from edge_agent.offline.calibrate.search import search
from edge_agent.offline.calibrate.steps import Steps
from edge_agent.offline.calibrate.trial import Trials
from edge_agent.offline.dataset import MarketDataset

__all__ = ["Job", "Result"]

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Result:
    """Result of a calibration.

    Attributes:
        calibration: as stored.
        report: all measurements, as JSON values.
        kept: steps that an earlier run had finished.
        switched: whether another engine became the active one.
    """

    calibration: Calibration
    report: dict[str, Any]
    kept: tuple[str, ...]
    switched: bool


class Job:
    """One calibration. The constructor only checks the request; `run` does the work.

    Args:
        request: what to calibrate.
        progress: receives progress.

    Raises:
        ConfigError: INT8 is requested without a data set.
        DatasetError: the data set lacks a split.
    """

    def __init__(self, request: Request, progress: Progress | None = None) -> None:
        if request.dataset is None and request.precision == "int8":
            raise ConfigError(f"INT8 needs crops to be calibrated with. {NO_DATA}")
        self._request = request
        self._backend = choose_backend(request.engine.backend)
        self._dataset = None if request.dataset is None else MarketDataset.open(request.dataset)
        self._steps = Steps(unfinished(self.folder, "steps"))
        self._work = Work(request, self._backend, self._dataset, self._steps, progress or Silent())

    @cached_property
    def folder(self) -> Path:
        """Folder of the result."""
        key = work_key(self._request, self._backend, self._dataset)
        return self._request.engines / CALIBRATIONS / key

    @property
    def is_done(self) -> bool:
        """Whether an intact result exists."""
        return self._finished() is not None

    def steps(self) -> list[dict[str, Any]]:
        """Return the steps that `run` would take, each with whether it is done; for `--dry-run`.

        FP16 and FP32 are listed with the condition under which they are tried.
        """
        candidates = self._request.candidates
        names = ["sample", "ranges"] if "int8" in candidates else []
        names += ["reference"] if self._dataset is not None else []
        steps: list[dict[str, Any]] = [{"step": name, "done": self._steps.is_done(name)} for name in names]
        for position, candidate in enumerate(candidates):
            condition = f"only if {candidates[position - 1]} does not pass" if position else ""
            for step in (candidate, f"gate-{candidate}"):
                steps.append({"step": step, "done": self._steps.is_done(step), "condition": condition})
        if self._request.bench_seconds:
            steps.append({"step": "bench", "done": self._steps.is_done("bench")})
        return [*steps, {"step": "report", "done": self.is_done}, {"step": "switch", "done": False}]

    def run(self, *, again: bool = False) -> Result:
        """Run all steps that are not done, and make the result the active engine.

        Args:
            again: discard the results of earlier runs of this request.

        Raises:
            EdgeAgentError: a step failed; results of earlier steps are kept, the active engine stays.
        """
        with self._locked():
            if again:
                shutil.rmtree(self._steps.folder, ignore_errors=True)
            calibration = None if again else self._finished()
            if calibration is None:
                calibration = self._calibrate()
            report = json.loads((calibration.folder / "report.json").read_bytes())
            switched = switch(self._request, calibration)
            return Result(calibration, report, tuple(self._steps.kept), switched)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Exclude a second calibration; the lock ends with the process."""
        folder = self._request.engines / CALIBRATIONS
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as problem:
            raise StorageError(
                f"cannot write to {folder}: {problem.strerror}; choose another --output"
            ) from None
        lock = FileLock(folder / ".lock")
        if not lock.acquire():
            raise StorageError(f"another `edge-agent calibrate` is at work in {folder}; wait for it")
        try:
            yield
        finally:
            lock.release()

    def _finished(self) -> Calibration | None:
        """Result of an earlier run; None where there is none or it is damaged."""
        if not (self.folder / MANIFEST).is_file():
            return None
        try:
            return Calibration.read(self.folder)
        except InputError as problem:
            _log.warning("calibration_done_again", why=str(problem))
            return None

    def _calibrate(self) -> Calibration:
        candidates = Candidates(self._work)
        trials = Trials(self._work, candidates)
        found = search(self._work, candidates, trials)
        return write_result(self.folder, self._work, candidates, found, trials.bench(found.tried))
