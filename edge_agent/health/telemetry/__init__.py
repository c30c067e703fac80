"""Telemetry of the device: from /sys and /proc, and from jtop what these lack; unknown values are None."""

from __future__ import annotations

from pathlib import Path

from edge_agent.core.config import TelemetrySettings
from edge_agent.health.telemetry.jtop import JtopReader
from edge_agent.health.telemetry.reading import Reading, merged
from edge_agent.health.telemetry.sysfs import SysfsReader

__all__ = ["Reading", "Telemetry"]


class Telemetry:
    """Reads this device; lifetime is a `with`. For one thread at a time.

    `disk` is a folder on the disk whose space is reported; `root` has the folders `sys`, `proc` and `etc`.
    """

    def __init__(
        self, settings: TelemetrySettings, disk: Path | None = None, *, root: Path = Path("/")
    ) -> None:
        self._root = root
        self._disk = disk
        self._sysfs: SysfsReader | None = None
        self._jtop = JtopReader() if settings.jtop else None

    def __enter__(self) -> Telemetry:
        self._sysfs = SysfsReader(self._root, self._disk)
        if self._jtop is not None:
            self._jtop.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._jtop is not None:
            self._jtop.__exit__()
        self._sysfs = None

    def read(self) -> Reading:
        """Return the present state. Never blocks."""
        reading = self._open().read()
        return reading if self._jtop is None else merged(reading, self._jtop.read())

    def heat(self) -> tuple[dict[str, float | None], dict[str, float | None]]:
        """Return temperature and limit of every zone, from /sys alone. May run concurrently with `read`."""
        sysfs = self._open()
        return sysfs.temperatures_c(), sysfs.limits_c

    def _open(self) -> SysfsReader:
        if self._sysfs is None:
            raise RuntimeError("telemetry is not open: use it in a `with` block")
        return self._sysfs
