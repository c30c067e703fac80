"""Telemetry from /sys and /proc: no service, no privileges, nothing to install.

Paths are searched once and read many times; `docs/telemetry.md` lists their sources.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import struct
import time
from collections.abc import Iterable
from itertools import chain, count
from pathlib import Path

from edge_agent.health.telemetry.reading import Reading, celsius, total_power_w, zone_name

_HWMON = "sys/class/hwmon/hwmon*"
_IGNORED_ZONES = {"pmic-die"}  # always 100 C on boards before Orin
_HWMON_TEMPERATURES = {"k10temp": "cpu", "coretemp": "cpu", "nvme": "nvme"}  # PCs without a thermal zone
_GPU_NODES = {"ga10b", "gv11b", "gp10b", "gpu"}  # names of the integrated GPU in device trees
_JETSON_FANS = {"pwmfan", "pwm-fan"}  # not the fans of a PC
_OVERCURRENT = {1: "under-voltage", 2: "over-current", 3: "over-current"}
"""Counters of `soctherm_oc`: input voltage too low, mean current too high, momentary current too high."""

_CAPS = ("cpufreq-", "devfreq-", "thermal-cpufreq", "thermal-devfreq", "processor")
"""Cooling devices that cap a clock. Not `hot-surface-alert`, which only warns from 70 C on."""

_UNITS = re.compile(r"[0-9a-f]{6,9}\.((?:nvdla|nvdec|nvenc|nvjpg|vic|pva|ofa)\d*)")
"""Platform devices of the other engines, e.g. `15480000.nvdec`; equal names are numbered."""

_LOWEST_LIMIT_C = 50.0  # firmware of PCs has unused trip points of 0 and -274
_BELOW_CRITICAL_C = 10.0
"""Distance of the limit of a zone that only has a critical trip point, at which the machine shuts down."""

_WEAR_EVERY_S = 3600.0  # interval of reading the wear of an NVMe disk, which changes over months
_JIFFIES_IDLE = slice(3, 5)  # idle and iowait, in the columns of /proc/stat
_JIFFIES_ALL = slice(0, 8)  # without guest time, which user time includes

_ADMIN_COMMAND = 0xC0484E41
"""`NVME_IOCTL_ADMIN_CMD`: _IOWR('N', 0x41, struct nvme_passthru_cmd), linux/nvme_ioctl.h; 72 bytes."""

_PASSTHRU_COMMAND = struct.Struct("=B3xI16xQ4xII20xI4x")
"""`struct nvme_passthru_cmd`: opcode, nsid, addr, data_len, cdw10, timeout_ms; the other fields are zero."""

_GET_LOG_PAGE = 0x02
_ALL_NAMESPACES = 0xFFFFFFFF
_SMART = 0x02
_LOG_BYTES = 512
_USED_AT = 5
"""NVM Express Base Specification, SMART / Health Information log: byte 5 is Percentage Used, 255 at most."""


class SysfsReader:
    """Reads one device, with the space and wear of the disk that holds the folder `disk`."""

    def __init__(self, root: Path = Path("/"), disk: Path | None = None) -> None:
        self._root = root
        self._disk = disk
        self._zones = _find_zones(root)
        self.limits_c = {name: _limit(path.parent) for name, path in self._zones.items()}
        """Temperature of every zone at which the kernel begins to throttle; None where unknown."""
        self._caps = _find_caps(root)
        self._events = _find_events(root)
        self._rails = _find_rails(root)
        fans = (path.parent for path in _glob(root, f"{_HWMON}/pwm1"))
        self._fans = [chip for chip in fans if _text(chip / "name") in _JETSON_FANS]
        self._fan_rpm = _first(root, (f"{_HWMON}/rpm", f"{_HWMON}/fan1_input"))
        self._gpu = _find_gpu(root)
        self._gpu_load = _find_gpu_load(root, self._gpu)
        self._clocks = _find_engines(root, "sys/class/devfreq/*", "cur_freq")
        self._active = _find_engines(root, "sys/bus/platform/devices/*", "power/runtime_active_time")
        self._active_at: tuple[float, dict[str, float | None]] | None = None
        self._policies = _glob(root, "sys/devices/system/cpu/cpufreq/policy*")
        block = _block_device(root, disk)
        self._wear = None if block is None else block / "device/life_time"
        self._nvme = None if block is None else nvme_controller(block)
        self._nvme_wear: tuple[float, float | None] | None = None
        modes = re.findall(
            r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)", _text(root / "etc/nvpmodel.conf") or ""
        )
        self._modes = {int(number): name for number, name in modes}
        self._board = _text(root / "proc/device-tree/model") or None
        release = re.search(
            r"#\s*R(\d+)\s.*?REVISION:\s*([\d.]+)", _text(root / "etc/nv_tegra_release") or ""
        )
        self._l4t = f"{release[1]}.{release[2]}" if release else None
        self._jiffies: tuple[float, float] | None = None
        self._counts: dict[Path, float] = {}
        self._count_events()

    def read(self) -> Reading:
        """Return the present state. Loads and events cover the time since the last call."""
        rails = {name: _watts(*paths) for name, paths in self._rails.items()}
        reasons = self._throttle_reasons()
        memory = _kilobytes(self._root / "proc/meminfo")
        free, total = self._disk_space()
        return Reading(
            temperatures_c=self.temperatures_c(),
            limits_c=self.limits_c,
            power_w=rails,
            power_total_w=total_power_w(rails),
            throttled=bool(reasons) if self._caps or self._events else None,
            throttle_reasons=reasons,
            power_mode=self._power_mode(),
            clocks_locked=self._clocks_locked(),
            fan_percent=_highest(self._fans, "pwm1", 100 / 255),
            fan_rpm=_number(self._fan_rpm),
            cpu_percent=self._cpu_percent(),
            cpu_mhz=_highest(self._policies, "scaling_cur_freq", 1e-3),
            cpu_max_mhz=_highest(self._policies, "scaling_max_freq", 1e-3),
            gpu_percent=_scaled(self._gpu_load, 0.1),  # in tenths of a percent
            gpu_mhz=_scaled(self._gpu and self._gpu / "cur_freq", 1e-6),
            gpu_max_mhz=_scaled(self._gpu and self._gpu / "max_freq", 1e-6),
            engines_mhz={name: _scaled(path, 1e-6) for name, path in self._clocks.items()},
            engines_percent=self._engines_percent(),
            memory_used_bytes=_difference(memory.get("MemTotal"), memory.get("MemAvailable")),
            memory_total_bytes=memory.get("MemTotal"),
            swap_used_bytes=_difference(memory.get("SwapTotal"), memory.get("SwapFree")),
            process_memory_bytes=_kilobytes(self._root / "proc/self/status").get("VmRSS"),
            disk_free_bytes=free,
            disk_total_bytes=total,
            disk_wear_percent=self._disk_wear(),
            board=self._board,
            l4t=self._l4t,
        )

    def temperatures_c(self) -> dict[str, float | None]:
        """Return the temperature of every zone; cheap enough for every other second."""
        return {name: celsius(_scaled(path, 1e-3)) for name, path in self._zones.items()}

    def _engines_percent(self) -> dict[str, float | None]:
        """Share of the time that each unit was powered since the last call."""
        now, active = time.monotonic(), {name: _number(path) for name, path in self._active.items()}
        before, self._active_at = self._active_at, (now, active)
        if before is None or now <= before[0]:
            return dict.fromkeys(active)
        span = 1e3 * (now - before[0])
        return {
            name: None
            if milliseconds is None or (earlier := before[1][name]) is None
            else round(min(100.0, max(0.0, 100 * (milliseconds - earlier) / span)), 1)
            for name, milliseconds in active.items()
        }

    def _throttle_reasons(self) -> tuple[str, ...]:
        """Active cooling devices, and events since the last reading, without duplicates."""
        active = [name for name, path in self._caps if (_number(path) or 0) > 0]
        return tuple(dict.fromkeys([*active, *self._count_events()]))

    def _count_events(self) -> list[str]:
        """Names of the counters that increased since the last call."""
        moved = []
        for name, path in self._events:
            if (now := _number(path)) is not None:
                if now > self._counts.get(path, now):
                    moved.append(name)
                self._counts[path] = now
        return moved

    def _power_mode(self) -> str | None:
        """Name of the stored nvpmodel mode, or its number where the names are unknown."""
        found = re.search(r"pmode:(\d+)", _text(self._root / "var/lib/nvpmodel/status"))
        return None if found is None else self._modes.get(int(found[1]), f"mode {int(found[1])}")

    def _clocks_locked(self) -> bool | None:
        """Whether `jetson_clocks` has raised minimum clocks to their maximum (boards only)."""
        if self._gpu is None or not self._policies:
            return None
        pairs = [(path / "scaling_min_freq", path / "scaling_max_freq") for path in self._policies]
        pairs.append((self._gpu / "min_freq", self._gpu / "max_freq"))
        clocks = [(_number(lowest), _number(highest)) for lowest, highest in pairs]
        if any(None in pair for pair in clocks):
            return None
        return all(lowest == highest for lowest, highest in clocks)

    def _cpu_percent(self) -> float | None:
        line = _text(self._root / "proc/stat").partition("\n")[0].split()
        if len(line) < _JIFFIES_ALL.stop + 1 or line[0] != "cpu":
            return None
        jiffies = [float(value) for value in line[1:]]
        now = sum(jiffies[_JIFFIES_ALL]), sum(jiffies[_JIFFIES_IDLE])
        before, self._jiffies = self._jiffies, now
        if before is None or now[0] <= before[0]:
            return None
        return round(100 * (1 - (now[1] - before[1]) / (now[0] - before[0])), 1)

    def _disk_space(self) -> tuple[int | None, int | None]:
        if self._disk is not None:
            with contextlib.suppress(OSError):
                space = os.statvfs(self._disk)
                return space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize
        return None, None

    def _disk_wear(self) -> float | None:
        """Upper end of the step that an eMMC reports: 0x01 is 0 to 10 %, 0x0b exceeds its rated life."""
        if self._nvme is None:
            steps = [int(step, 16) for step in re.findall(r"0x([0-9a-fA-F]{2})", _text(self._wear))]
            return 10.0 * max(steps) if any(steps) else None
        now = time.monotonic()
        if self._nvme_wear is None or now - self._nvme_wear[0] > _WEAR_EVERY_S:
            self._nvme_wear = now, _nvme_used_percent(self._root / "dev" / self._nvme)
        return self._nvme_wear[1]


def _find_zones(root: Path) -> dict[str, Path]:
    """Path of the temperature of each zone in millidegrees; equal names are numbered."""
    found: list[tuple[str, Path]] = []
    for zone in _glob(root, "sys/class/thermal/thermal_zone*"):
        name = zone_name(_text(zone / "type"))
        if name and name not in _IGNORED_ZONES:
            found.append((name, zone / "temp"))
    known = {name for name, _ in found}
    for chip in _glob(root, _HWMON):
        sensor = _HWMON_TEMPERATURES.get(_text(chip / "name"))
        if sensor is not None and sensor not in known and (chip / "temp1_input").exists():
            found.append((sensor, chip / "temp1_input"))
    return _numbered(found)


def _limit(zone: Path) -> float | None:
    """Temperature at which the kernel begins to throttle a zone; `active` trip points only turn on a fan."""
    trips: dict[str, list[float]] = {}
    for path in _glob(zone, "trip_point_*_type"):
        degrees = celsius(_scaled(path.with_name(path.name.replace("_type", "_temp")), 1e-3))
        if degrees is not None and degrees >= _LOWEST_LIMIT_C:
            trips.setdefault(_text(path) or "", []).append(degrees)
    below = {"passive": 0.0, "hot": 0.0, "critical": _BELOW_CRITICAL_C}
    return next((round(min(trips[kind]) - less, 3) for kind, less in below.items() if kind in trips), None)


def _find_engines(root: Path, pattern: str, file: str) -> dict[str, Path]:
    """A file of every other engine by name, e.g. `nvdec`."""
    found = [(_UNITS.fullmatch(folder.name), folder / file) for folder in _glob(root, pattern)]
    return _numbered((unit[1], path) for unit, path in found if unit is not None and path.exists())


def _numbered(entries: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    """`a`, `a` -> `a`, `a2`."""
    unique: dict[str, Path] = {}
    for name, path in entries:
        free = chain([name], (f"{name}{number}" for number in count(2)))
        unique[next(candidate for candidate in free if candidate not in unique)] = path
    return unique


def _find_caps(root: Path) -> list[tuple[str, Path]]:
    """Cooling devices that are active only while clocks are reduced."""
    devices = _glob(root, "sys/class/thermal/cooling_device*")
    named = [(_text(device / "type").lower(), device / "cur_state") for device in devices]
    return [(name, path) for name, path in named if name.endswith("throttle-alert") or name.startswith(_CAPS)]


def _find_events(root: Path) -> list[tuple[str, Path]]:
    """Counters of throttling by the hardware, which reacts faster than the kernel."""
    chips = [chip for chip in _glob(root, _HWMON) if _text(chip / "name") == "soctherm_oc"]
    found = [
        (name, chip / f"oc{number}_event_cnt") for chip in chips for number, name in _OVERCURRENT.items()
    ]
    package = root / "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count"
    return [*found, ("cpu-package", package)] if package.exists() else found


def _find_rails(root: Path) -> dict[str, tuple[Path, Path, Path | None]]:
    """Voltage, current and power of the labelled channels of INA3221 (Orin, Xavier) and INA238 (Thor)."""
    rails: dict[str, tuple[Path, Path, Path | None]] = {}
    for chip in _glob(root, _HWMON):
        kind = _text(chip / "name")
        for channel in (1, 2, 3) if kind == "ina3221" else ():
            name = _text(chip / f"in{channel}_label")
            if name and name.upper() != "NC" and _text(chip / f"in{channel}_enable") != "0":
                rails[name] = chip / f"in{channel}_input", chip / f"curr{channel}_input", None
        if kind == "ina238" and (name := _text(chip / "label")):
            rails[name] = chip / "in1_input", chip / "curr1_input", chip / "power1_input"
    return rails


def _watts(volt: Path, ampere: Path, watt: Path | None) -> float | None:
    """Millivolts times milliamperes, or the value of the chip in microwatts."""
    if (power := _number(watt)) is not None:
        return round(power / 1e6, 3)
    millivolts, milliamperes = _number(volt), _number(ampere)
    return None if millivolts is None or milliamperes is None else round(millivolts * milliamperes / 1e6, 3)


def _find_gpu(root: Path) -> Path | None:
    """The devfreq folder of the integrated GPU."""
    folders = _glob(root, "sys/class/devfreq/*")
    nodes = [_text(folder / "device/of_node/name") or folder.name.partition(".")[2] for folder in folders]
    return next((folder for folder, node in zip(folders, nodes, strict=True) if node in _GPU_NODES), None)


def _find_gpu_load(root: Path, gpu: Path | None) -> Path | None:
    if gpu is not None and (gpu / "device/load").exists():
        return gpu / "device/load"
    nodes = [f"17000000.{name}" for name in sorted(_GPU_NODES)] + ["gpu.0"]
    places = [f"sys/devices/{between}{node}/load" for node in nodes for between in ("platform/", "")]
    return _first(root, places)


def _block_device(root: Path, disk: Path | None) -> Path | None:
    """The block device of the file system with this folder, that of the whole disk for a partition."""
    with contextlib.suppress(OSError):
        number = disk.stat().st_dev if disk is not None else 0
        block = (root / f"sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve(strict=True)
        return block.parent if (block / "partition").exists() else block
    return None


def nvme_controller(block: Path) -> str | None:
    """Return the NVMe controller (`nvme0`) of a block device; None for other disks."""
    return next((part for part in block.parts if part.startswith("nvme") and part[4:].isdecimal()), None)


def _nvme_used_percent(controller: Path) -> float | None:
    """Used percentage of the rated life from the SMART log; None where it cannot be read (CAP_SYS_ADMIN)."""
    log = ctypes.create_string_buffer(_LOG_BYTES)
    try:
        descriptor = os.open(controller, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        status = fcntl.ioctl(descriptor, _ADMIN_COMMAND, nvme_command(ctypes.addressof(log)))
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return nvme_used_percent(log.raw) if status == 0 else None


def nvme_command(address: int) -> bytearray:
    """Return the command that copies the SMART log to this address: `struct nvme_passthru_cmd`."""
    page = _SMART | (_LOG_BYTES // 4 - 1) << 16
    return bytearray(_PASSTHRU_COMMAND.pack(_GET_LOG_PAGE, _ALL_NAMESPACES, address, _LOG_BYTES, page, 1000))


def nvme_used_percent(log: bytes) -> float | None:
    """Return Percentage Used of a SMART log of 512 bytes, may exceed 100; None for an empty log."""
    return float(log[_USED_AT]) if len(log) == _LOG_BYTES and any(log) else None


def _highest(folders: Iterable[Path], name: str, factor: float) -> float | None:
    values = [_scaled(folder / name, factor) for folder in folders]
    return max((value for value in values if value is not None), default=None)


def _difference(whole: int | None, part: int | None) -> int | None:
    return None if whole is None or part is None else whole - part


def _kilobytes(path: Path) -> dict[str, int]:
    """Bytes by name from lines such as `MemTotal:  8 kB`."""
    lines = re.findall(r"^(\w+):\s+(\d+) kB", _text(path) or "", flags=re.MULTILINE)
    return {name: int(number) * 1024 for name, number in lines}


def _scaled(path: Path | None, factor: float) -> float | None:
    number = _number(path)
    return None if number is None else round(number * factor, 3)


def _number(path: Path | None) -> float | None:
    """The number in a file; None without one, or if the driver refuses (EAGAIN while a unit sleeps)."""
    try:
        return float(path.read_bytes()) if path is not None else None
    except (OSError, ValueError):
        return None


def _text(path: Path | None) -> str:
    """The text in a file without surrounding blanks and NUL; "" without one."""
    try:
        return path.read_text(errors="replace").strip(" \t\r\n\0") if path is not None else ""
    except OSError:
        return ""


def _glob(root: Path, pattern: str) -> list[Path]:
    """Matching paths, `thing2` before `thing10`."""

    def in_order(path: Path) -> list[str | int]:
        return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(path))]

    return sorted(root.glob(pattern), key=in_order)


def _first(root: Path, patterns: Iterable[str]) -> Path | None:
    return next((path for pattern in patterns for path in _glob(root, pattern)), None)
