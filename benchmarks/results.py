"""Results: one JSON file per benchmark, with the circumstances of the measurement."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.catalogue import REPO
from edge_agent.core.errors import InputError
from edge_agent.core.files import read_json
from edge_agent.core.manifest import write_json_atomic
from edge_agent.offline.bench.environment import machine

__all__ = ["FOLDER", "circumstances", "read", "write"]

FOLDER = REPO / "benchmarks" / "results"
LIBRARIES = ("numpy", "opencv-python", "onnxruntime", "scipy")


def circumstances() -> dict[str, Any]:
    """Return machine, versions, commit, date and load, before a benchmark runs."""
    return {
        "taken": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "changed_since": bool(_git("status", "--porcelain", "--", "edge_agent", "benchmarks/*.py")),
        "machine": machine(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "load_average": list(os.getloadavg()),
    }


def write(folder: Path, name: str, result: Mapping[str, Any]) -> Path:
    """Write a result; return its file."""
    path = folder / f"{name}.json"
    write_json_atomic(path, result)
    return path


def read(folder: Path = FOLDER) -> dict[str, dict[str, Any]]:
    """Read all results of a folder, by the benchmark's name.

    Raises:
        InputError: a file is not a result.
    """
    found = {path.stem: read_json(path) for path in sorted(folder.glob("*.json"))}
    for name, result in found.items():
        if not isinstance(result, dict) or result.get("benchmark") != name or "steps" not in result:
            raise InputError(
                f"{folder / name}.json is not a result of `python -m benchmarks`; run it with --only {name},"
                " or remove the file"
            )
    return found


def _git(*words: str) -> str | None:
    """The output of git; None outside a clone."""
    done = subprocess.run(  # noqa: S603
        ["git", *words],  # noqa: S607
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() if done.returncode == 0 else None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # OpenCV of the system, for example
        return None
