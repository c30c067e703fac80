"""A reading of the device: one frozen record; unknown values are None."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from edge_agent.core.events import DeviceSummary
from edge_agent.core.telemetry import TelemetryData

Values = Mapping[str, float | None]

_COLDEST_C, _HOTTEST_C = -100.0, 200.0  # a sensor that is off reports -256

_AGX_ORIN_RAILS = ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
"""Rails that add up to the power of an AGX Orin module: none measures its input, and `VDDQ_VDD2_1V8AO` is fed
from VIN_SYS_5V0 (NVIDIA developer forum 223111), so a sum of all four would count it twice."""

_INPUT_RAIL = "VDD_IN"  # measures the whole module on Orin NX, Orin Nano and Xavier NX


@dataclass(frozen=True, slots=True)
class Reading:
    """State of the device at one moment; None where unknown.

    `core.telemetry` describes the fields, except where they differ here.

    Attributes:
        temperatures_c: degrees Celsius by sensor: `cpu`, `gpu`, `cv0`.., `soc0`.., `tj` on an Orin. A sensor
            that is off (its unit sleeps) is None, as is a unit in `engines_mhz`.
        limits_c: by sensor, its lowest passive trip point, else its hot one, else ten degrees below its
            critical one.
        power_total_w: None where it is not known how the rails add up.
        throttled: whether clocks are reduced, or were since the last reading.
        throttle_reasons: e.g. `gpu-throttle-alert` or `over-current`.
        engines_percent: since the last reading, as `cpu_percent`; the only load known without privileges.
        disk_free_bytes: for unprivileged users.
        disk_wear_percent: upper end of a step of ten (eMMC), or the value of the disk (NVMe), if readable.
        board: name in the device tree.
        l4t: Jetson Linux release, e.g. `36.4.3`.
    """

    temperatures_c: Values = field(default_factory=dict)
    limits_c: Values = field(default_factory=dict)
    power_w: Values = field(default_factory=dict)
    power_total_w: float | None = None
    throttled: bool | None = None
    throttle_reasons: tuple[str, ...] = ()
    power_mode: str | None = None
    clocks_locked: bool | None = None
    fan_percent: float | None = None
    fan_rpm: float | None = None
    cpu_percent: float | None = None
    cpu_mhz: float | None = None
    cpu_max_mhz: float | None = None
    gpu_percent: float | None = None
    gpu_mhz: float | None = None
    gpu_max_mhz: float | None = None
    engines_mhz: Values = field(default_factory=dict)
    engines_percent: Values = field(default_factory=dict)
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    swap_used_bytes: int | None = None
    process_memory_bytes: int | None = None
    disk_free_bytes: int | None = None
    disk_total_bytes: int | None = None
    disk_wear_percent: float | None = None
    board: str | None = None
    l4t: str | None = None

    @property
    def hottest_zone(self) -> str | None:
        """Name of the hottest sensor."""
        known = {name: value for name, value in self.temperatures_c.items() if value is not None}
        return max(known, key=known.__getitem__, default=None)

    @property
    def hottest_c(self) -> float | None:
        """Temperature of the hottest sensor."""
        zone = self.hottest_zone
        return None if zone is None else self.temperatures_c[zone]

    def summary(self) -> DeviceSummary:
        """Return the part that goes into identity events."""
        return DeviceSummary(
            temperature_c=self.hottest_c,
            temperature_zone=self.hottest_zone,
            throttled=self.throttled,
            power_mode=self.power_mode,
            power_w=self.power_total_w,
        )

    def telemetry(self, **load: Any) -> TelemetryData:  # noqa: ANN401 - fields of `TelemetryData`
        """Return telemetry: every field of this reading, without unknown entries, and `load` of the agent."""
        shared = {
            one.name: getattr(self, one.name) for one in fields(TelemetryData) if hasattr(self, one.name)
        }
        for name, value in shared.items():
            if isinstance(value, Mapping):
                shared[name] = {key: number for key, number in value.items() if number is not None}
        return TelemetryData(**shared, **load)


def merged(first: Reading, second: Reading) -> Reading:
    """Return the known values of `first`, completed by those of `second`; mappings entry by entry."""
    chosen: dict[str, Any] = {}
    for entry in fields(Reading):
        ours, theirs = getattr(first, entry.name), getattr(second, entry.name)
        if isinstance(ours, Mapping):
            chosen[entry.name] = _merged_entries(ours, theirs)
        else:
            chosen[entry.name] = theirs if ours is None else ours
    if first.throttled is None:
        chosen["throttle_reasons"] = second.throttle_reasons
    if chosen["power_total_w"] is None:
        chosen["power_total_w"] = total_power_w(chosen["power_w"])
    return Reading(**chosen)


def _merged_entries(first: Values, second: Values) -> dict[str, float | None]:
    """Merge entries; names are compared case-insensitively and keep the spelling of `first`."""
    chosen = dict(first)
    spelling = {name.lower(): name for name in first}
    for name, value in second.items():
        ours = spelling.get(name.lower(), name)
        if chosen.get(ours) is None:
            chosen[ours] = value
    return chosen


def celsius(degrees: float | None) -> float | None:
    """Return a temperature, None for an implausible one."""
    if degrees is None or not _COLDEST_C < degrees < _HOTTEST_C:
        return None
    return round(degrees, 3)


def zone_name(raw: str) -> str:
    """Return one name for all JetPacks: `CPU-therm` (5) and `cpu-thermal` (6, 7) are `cpu`."""
    name = raw.strip().lower()
    for ending in ("-thermal", "_thermal", "-therm", "_therm"):
        name = name.removesuffix(ending)
    return name


def total_power_w(rails: Values) -> float | None:
    """Return the watts of the whole module, None where it is not known how its rails add up."""
    if _INPUT_RAIL in rails:
        return rails[_INPUT_RAIL]
    parts = [rails.get(name) for name in _AGX_ORIN_RAILS]
    known = [part for part in parts if part is not None]
    return round(sum(known), 3) if len(known) == len(parts) else None
