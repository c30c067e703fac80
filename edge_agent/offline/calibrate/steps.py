"""Steps whose results survive an interruption.

Each step leaves `<name>.json` in the folder: what it found, and digests of the files that it wrote. A step
whose record and files are whole is not done again; everything else is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import structlog

from edge_agent.core.errors import InputError
from edge_agent.core.manifest import FileRecord, Manifest

__all__ = ["Steps"]

_log = structlog.get_logger(__name__)

_KIND, _VERSION = "calibration-step", 1


class Steps:
    """The steps of one piece of work, in a folder of its own.

    Args:
        folder: made with mode 0700 when the first step ends.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.kept: list[str] = []
        """Steps whose results were there already."""

    def run(
        self, name: str, make: Callable[[Path], tuple[Mapping[str, Any], tuple[str, ...]]]
    ) -> dict[str, Any]:
        """What the step found: as kept, else as `make` finds it now.

        Args:
            name: of the step.
            make: takes the folder, writes its files into it and gives what it found, as JSON values, with the
                names of these files.
        """
        found = self._found(name)
        if found is not None:
            self.kept.append(name)
            return found
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        data, files = make(self.folder)
        records = {file: FileRecord.of(self.folder / file) for file in files}
        Manifest(_KIND, _VERSION, records, dict(data)).write(self._record(name))
        return dict(data)

    def is_done(self, name: str) -> bool:
        """Whether the step would be skipped."""
        return self._found(name) is not None

    def _record(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _found(self, name: str) -> dict[str, Any] | None:
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
