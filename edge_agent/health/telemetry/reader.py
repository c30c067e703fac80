"""The device's state from all that know it: /sys and /proc first, jtop for what they do not say."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from edge_agent.health.telemetry.jtop import JtopReader
from edge_agent.health.telemetry.reading import Reading, merged
from edge_agent.health.telemetry.sysfs import SysfsReader

__all__ = ["Reading", "Telemetry"]


class Telemetry:
    """Reads the device that this runs on; lifetime is a `with`. For one thread at a time.

    Args:
        root: where `sys`, `proc` and `etc` are.
        disk: a folder on the disk whose space is reported.
        jtop: ask jetson-stats too, where it is installed and its service answers.
    """

    def __init__(self, *, root: Path = Path("/"), disk: Path | None = None, jtop: bool = True) -> None:
        self._root = root
        self._disk = disk
        self._sysfs: SysfsReader | None = None
        self._jtop = JtopReader() if jtop else None

    def __enter__(self) -> Telemetry:
        self._sysfs = SysfsReader(self._root, self._disk)
        if self._jtop is not None:
            self._jtop.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._jtop is not None:
            self._jtop.__exit__(kind, error, trace)
        self._sysfs = None

    def read(self) -> Reading:
        """The state now; never blocks, never raises for something that cannot be read."""
        reading = self._open().read()
        return reading if self._jtop is None else merged(reading, self._jtop.read())

    def heat(self) -> tuple[dict[str, float | None], dict[str, float | None]]:
        """Temperature and limit of every zone, from /sys alone; from any thread, beside `read`."""
        sysfs = self._open()
        return sysfs.temperatures_c(), sysfs.limits_c

    def _open(self) -> SysfsReader:
        if self._sysfs is None:
            raise RuntimeError("telemetry is not open: use it in a `with` block")
        return self._sysfs
