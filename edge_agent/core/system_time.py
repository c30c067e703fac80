"""The clocks of this machine: running time, wall clock, and whether the wall clock is synchronised."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import Protocol

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_TIMESYNCD = Path("/run/systemd/timesync/synchronized")
_TIMEX_BYTES, _TIMEX_STATUS = 256, 5 * 8  # struct timex of 64-bit Linux: `status` follows five longs
_STA_UNSYNC, _TIME_ERROR = 0x40, 5
_BOOTTIME = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # which stops in a suspend, off Linux


class TimeSource(Protocol):
    """The clocks of a machine. A test passes its own."""

    @property
    def boot(self) -> str:
        """Id of the present boot; "" where it is unknown."""

    def running(self) -> float:
        """Return seconds since the boot, time in suspend included; never falls."""

    def wall(self) -> float:
        """Return Unix seconds by the wall clock."""

    def synchronised(self) -> bool:
        """Return whether the kernel or systemd-timesyncd reports that the wall clock is synchronised."""


class SystemTime:
    """The clocks of this machine."""

    def __init__(self) -> None:
        self.boot = boot_id()

    def running(self) -> float:
        """See `TimeSource`."""
        return time.clock_gettime(_BOOTTIME)

    def wall(self) -> float:
        """See `TimeSource`."""
        return time.time()

    def synchronised(self) -> bool:
        """See `TimeSource`."""
        kernel = _kernel_synchronised()
        return _TIMESYNCD.exists() if kernel is None else kernel


def boot_id() -> str:
    """Return the id of the present boot; "" on a machine without."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _kernel_synchronised() -> bool | None:
    """Ask the kernel by adjtimex(2), which needs no privilege to read; None where it may not be asked."""
    buffer = ctypes.create_string_buffer(_TIMEX_BYTES)
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(buffer)
    except (OSError, AttributeError):
        return None
    status = int.from_bytes(buffer.raw[_TIMEX_STATUS : _TIMEX_STATUS + 4], "little")
    return None if state == -1 else state != _TIME_ERROR and not status & _STA_UNSYNC
