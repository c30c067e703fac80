"""Steps whose results survive an interruption.

Each step writes `<name>.json` into the folder: its result, and digests of the files that it wrote. A step is
skipped while its record and its files are intact.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from edge_agent.core.errors import InputError
from edge_agent.core.manifest import FileRecord, Manifest

__all__ = ["Make", "StepResult", "Steps"]

_log = structlog.get_logger(__name__)

_KIND, _VERSION = "calibration-step", 1

StepResult = tuple[dict[str, Any], tuple[str, ...]]
"""Result of a step as JSON values, and the names of the files that it wrote."""

Make = Callable[[Path], StepResult]
"""Runs a step. Takes the folder into which the step writes its files."""


class Steps:
    """The steps of one calibration, in a folder of their own.

    Args:
        folder: created with mode 0700 when the first step ends.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.kept: list[str] = []
        """Steps that were skipped because their results existed."""

    def run(self, name: str, make: Make) -> dict[str, Any]:
        """Return the stored result of a step, or run the step and store its result."""
        found = self._stored(name)
        if found is not None:
            self.kept.append(name)
            return found
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        data, files = make(self.folder)
        records = {file: FileRecord.of(self.folder / file) for file in files}
        Manifest(_KIND, _VERSION, records, dict(data)).write(self._record(name))
        return dict(data)

    def is_done(self, name: str) -> bool:
        """Whether `run` would skip the step."""
        return self._stored(name) is not None

    def _record(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _stored(self, name: str) -> dict[str, Any] | None:
        path = self._record(name)
        if not path.is_file():
            return None
        try:
            manifest = Manifest.read(path, kind=_KIND, version=_VERSION)
            manifest.verify(self.folder)
        except InputError as problem:
            _log.warning("step_done_again", step=name, why=str(problem))
            return None
        return manifest.data
