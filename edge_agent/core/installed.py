"""Networks that are installed on this machine: their folders, and the detector that is used by default.

`edge-agent model fetch` installs them. The file `detector.json` in a folder, a `Manifest`, names the detector
of that folder and its digest.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from edge_agent.core.detectors import AUTO, NETWORKS
from edge_agent.core.errors import ConfigError, InputError, MissingFile
from edge_agent.core.manifest import FileRecord, Manifest

SYSTEM_FOLDER = Path("/etc/edge-agent/models")
"""Networks of the service; only root can write there, so the service cannot change them."""
DEFAULT_STATE = Path("~/.local/state/edge-agent")
"""State folder where the settings name none."""
MODELS = "models"
"""Their folder in a state folder."""
DETECTOR_FILE = "detector.json"
FALLBACK = "hog"
"""The detector where none is installed."""
_VERSION = 1


@dataclass(frozen=True, slots=True)
class InstalledDetector:
    """The detector of a folder.

    Attributes:
        name: under which it was fetched.
        kind: one of `NETWORKS`.
        file: an ONNX file with the digest of its manifest.
    """

    name: str
    kind: str
    file: Path

    def __str__(self) -> str:
        """Return it as a detector is written in the settings."""
        return f"{self.kind}:{self.file}"


def model_folders(state: Path) -> tuple[Path, ...]:
    """Return the folders with networks, in the order in which the default detector is looked for.

    The service's is first, then that of the state folder, then that of this user's own state folder: there a
    detector serves every agent and demo that this user runs with another state folder. Folders that this user
    may not enter, as that of the service, are left out.
    """
    try:
        own = DEFAULT_STATE.expanduser()
    except RuntimeError:  # a user without a home folder
        own = state
    folders = dict.fromkeys((SYSTEM_FOLDER, state / MODELS, own / MODELS))
    return tuple(folder for folder in folders if os.access(folder, os.R_OK | os.X_OK))


def detector_of(folder: Path) -> InstalledDetector | None:
    """Return the detector that is installed in a folder, verified; None where there is none.

    ConfigError: the file or its description is damaged, or this user may not read them.
    """
    path = folder / DETECTOR_FILE
    again = "fetch it again (edge-agent model fetch NAME), or remove that file"
    try:
        found = Manifest.read(path, kind="detector", version=_VERSION)
        name, kind, (file,) = str(found.data["name"]), str(found.data["kind"]), found.files
        found.verify(folder)
    except MissingFile:
        return None
    except InputError as problem:
        raise ConfigError(f"the installed detector cannot be used: {problem}; {again}") from None
    except (KeyError, ValueError):
        kind = ""
    if kind not in NETWORKS:
        raise ConfigError(f"the installed detector cannot be used: {path} is damaged; {again}")
    return InstalledDetector(name, kind, folder / file)


def default_detector(state: Path) -> InstalledDetector | None:
    """Return the installed detector that is used with this state folder, verified; None: there is none.

    ConfigError: as in `detector_of`.
    """
    return next(filter(None, map(detector_of, model_folders(state))), None)


def chosen_detector(kind: str, state: Path) -> str:
    """Return a detector as written in the settings, `auto` replaced by the one that is used.

    ConfigError: as in `detector_of`.
    """
    if kind != AUTO:
        return kind
    installed = default_detector(state)
    return FALLBACK if installed is None else str(installed)


def register_detector(name: str, kind: str, file: Path, source: str) -> InstalledDetector:
    """Make a file the detector of its folder. StorageError: the folder cannot be written."""
    described = {"name": name, "kind": kind, "source": source}
    manifest = Manifest("detector", _VERSION, {file.name: FileRecord.of(file)}, described)
    target = file.with_name(DETECTOR_FILE)
    manifest.write(target)
    for path in (file, target):
        path.chmod(0o644)  # readable for the service, with any umask
    return InstalledDetector(name, kind, file)
