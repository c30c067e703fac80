"""Facts about the machine on which figures were measured."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from edge_agent import __version__
from edge_agent.health.telemetry.reading import Reading

__all__ = ["machine"]


def machine(reading: Reading | None = None) -> dict[str, Any]:
    """Return facts about this machine: hardware, clocks, power mode, temperature, versions."""
    reading = reading or Reading()
    return {
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "board": reading.board,
        "l4t": reading.l4t,
        "power_mode": reading.power_mode,
        "clocks_locked": reading.clocks_locked,
        "cpu_mhz": reading.cpu_mhz,
        "cpu_max_mhz": reading.cpu_max_mhz,
        "gpu_mhz": reading.gpu_mhz,
        "gpu_max_mhz": reading.gpu_max_mhz,
        "hottest_c": reading.hottest_c,
        "throttled": reading.throttled,
        "python": platform.python_version(),
        "edge_agent": __version__,
    }


def _cpu_name() -> str | None:
    """Name from the kernel; None on boards whose kernel has none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
