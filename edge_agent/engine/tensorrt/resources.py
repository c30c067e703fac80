"""Memory and disk that a build needs, checked before it begins: builds take minutes and gigabytes."""

from __future__ import annotations

import shutil
from pathlib import Path

import structlog

from edge_agent.core.errors import EngineError

__all__ = ["available_memory", "check_disk", "workspace_for"]

_log = structlog.get_logger(__name__)

_MIB = 1 << 20
_MEMORY_FLOOR = 768 * _MIB
_MEMORY_PER_GRAPH_BYTE = 4
"""Free memory that a build needs: for the libraries and kernels that TensorRT loads, and for the weights as
parsed, as converted, in the plan and in its serialised copy. Rules of thumb, not measured on a device."""
_DISK_FLOOR = 64 * _MIB
_DISK_PER_GRAPH_BYTE = 3
"""Free disk that a build needs: for the plan, the plan that it replaces, and a timing cache."""
_SMALLEST_WORKSPACE = 16 * _MIB


def available_memory(root: Path = Path("/")) -> int:
    """Return MemAvailable of /proc/meminfo in bytes.

    Raises:
        EngineError: /proc/meminfo has no such value.
    """
    path = root / "proc/meminfo"
    try:
        for line in path.read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024
    except (OSError, ValueError, IndexError) as problem:
        raise EngineError(f"cannot tell how much memory is free: {path}: {problem}") from problem
    raise EngineError(f"cannot tell how much memory is free: {path} has no MemAvailable")


def workspace_for(graph_bytes: int, free: int, wanted_mb: int | None) -> int:
    """Return the bytes that TensorRT may use for tactics, at most what the rest of the build leaves free.

    Args:
        graph_bytes: size of the prepared ONNX.
        free: bytes of free memory: of the system on a Jetson, else of the GPU.
        wanted_mb: limit in MiB; None for half of what is free.

    Raises:
        EngineError: too little is free to begin.
    """
    needed = _MEMORY_FLOOR + _MEMORY_PER_GRAPH_BYTE * graph_bytes
    spare = free - needed
    if spare < _SMALLEST_WORKSPACE:
        raise EngineError(
            f"building this engine needs about {(needed + _SMALLEST_WORKSPACE) // _MIB} MiB of free memory, "
            f"{free // _MIB} MiB are free; stop other programs, this agent too where it runs (on a Jetson "
            "the GPU uses the system's memory)"
        )
    wanted = free // 2 if wanted_mb is None else wanted_mb * _MIB
    if wanted > spare and wanted_mb is not None:
        _log.warning("workspace_capped", wanted_mb=wanted_mb, given_mb=spare // _MIB, free_mb=free // _MIB)
    return min(wanted, spare)


def check_disk(folder: Path, graph_bytes: int) -> None:
    """Raise EngineError unless a plan fits on the disk of `folder`, which need not exist yet."""
    needed = _DISK_FLOOR + _DISK_PER_GRAPH_BYTE * graph_bytes
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise EngineError(
            f"an engine needs about {needed // _MIB} MiB on the disk of {folder}, {free // _MIB} MiB are "
            "free; make room (edge-agent engines prune removes plans that are not needed)"
        )
