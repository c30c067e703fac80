"""Checks of the board: JetPack, temperatures, power mode, jtop and clock."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import TYPE_CHECKING

from edge_agent.cli.checks import Finding

if TYPE_CHECKING:
    from edge_agent.health.telemetry import Reading

WARM_C = 90.0  # an Orin throttles at 99 C
_TIME_ERROR = 5  # from sys/timex.h

_JETPACK = {"35": "5", "36": "6", "38": "7", "39": "7"}  # JetPack by L4T major version


def board(root: Path) -> list[Finding]:
    """Check board, temperatures and power mode; `root` has the folders `sys`, `proc` and `etc`."""
    from edge_agent.health.telemetry.sysfs import SysfsReader

    reading = SysfsReader(root).read()
    if reading.l4t is None:
        return [Finding("board", "note", "not a Jetson: everything runs on ONNX Runtime"), *thermals(reading)]
    return [jetpack(reading), *thermals(reading), power_mode(reading)]


def jetpack(reading: Reading) -> Finding:
    """Check the release of JetPack."""
    release = str(reading.l4t)
    jetpack = _JETPACK.get(release.partition(".")[0])
    found = f"{reading.board or 'a Jetson'}, L4T {release}" + (f" (JetPack {jetpack})" if jetpack else "")
    if jetpack == "5":
        return Finding("board", "warning", found, "JetPack 5 has Python 3.8: install JetPack 6.2 or 7.2")
    if jetpack is None:
        return Finding("board", "warning", found, "this release is unknown: JetPack 6.2 and 7.2 are tested")
    return Finding("board", "ok", found)


def thermals(reading: Reading) -> list[Finding]:
    """Check temperatures and throttling."""
    if reading.hottest_c is None:
        return [Finding("thermals", "note", "no sensor can be read")]
    found = f"{reading.hottest_zone} {reading.hottest_c:.1f} C"
    if reading.throttled:
        found += f", throttled by {', '.join(reading.throttle_reasons)}"
        return [Finding("thermals", "warning", found, "check fan, dust, ambient and power")]
    if reading.hottest_c >= WARM_C:
        return [Finding("thermals", "warning", found, "close to throttling: check fan, dust and ambient")]
    return [Finding("thermals", "ok", found)]


def power_mode(reading: Reading) -> Finding:
    """Check the power mode."""
    mode = reading.power_mode
    if mode is None or mode.startswith("MAXN"):
        return Finding("power mode", "ok" if mode else "note", mode or "not known")
    return Finding("power mode", "note", mode, "for full speed: sudo nvpmodel -m 0")


def jtop(root: Path, *, on_board: bool) -> list[Finding]:
    """Check the service of jetson-stats."""
    socket = root / "run/jtop.sock"
    if socket.exists():
        if os.access(socket, os.R_OK | os.W_OK):
            return [Finding("jtop", "ok", "its service runs")]
        return [Finding("jtop", "note", "its service runs, but not for this user", "usermod -aG jtop USER")]
    if not on_board:
        return []
    advice = "for engine clocks: sudo pip3 install jetson-stats && sudo jtop --install-service"
    return [Finding("jtop", "note", "its service does not run; other values come from sysfs", advice)]


def clock() -> list[Finding]:
    """Check whether the clock of the kernel is synchronised (adjtimex(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    state = libc.adjtimex(ctypes.create_string_buffer(512))  # struct timex, 208 bytes; all zero: query only
    if state < 0:
        return [Finding("clock", "note", f"cannot be queried: {os.strerror(ctypes.get_errno())}")]
    if state == _TIME_ERROR:
        advice = "timedatectl set-ntp true; times of events and expiry follow this clock"
        return [Finding("clock", "warning", "not synchronised", advice)]
    return [Finding("clock", "ok", "synchronised")]
