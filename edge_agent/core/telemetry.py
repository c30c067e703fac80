"""Telemetry: health of the device and load of the agent. The one declaration of every telemetry field."""

# ruff: noqa: RUF009 - `about` returns a dataclasses.field

from __future__ import annotations

from dataclasses import dataclass

from edge_agent.core.fields import Entity, Metric, about, no_entries

__all__ = ["TelemetryData"]


@dataclass(frozen=True, slots=True)
class TelemetryData:
    """Health of the device and load of the agent, every few seconds; a lost message is not sent again."""

    uptime_s: float = about(
        "Time since the agent started.", unit="s", minimum=0, metric=Metric("edge_agent_uptime_seconds")
    )
    state: str = about("State as on the status topic.")
    temperatures_c: dict[str, float] = about(
        "Temperatures by sensor.",
        default=no_entries,
        unit="degC",
        metric=Metric("edge_agent_temperature_celsius", "zone"),
        entity=Entity("zone"),
    )
    hottest_c: float | None = about(
        "Temperature of the hottest sensor.",
        default=None,
        unit="degC",
        entity=Entity("hottest", "Hottest sensor"),
    )
    hottest_zone: str | None = about("Name of the hottest sensor.", default=None)
    throttled: bool | None = about(
        "Whether clocks are reduced because of heat or current.",
        default=None,
        metric=Metric("edge_agent_throttled"),
        entity=Entity("throttled", "Throttled", problem=True),
    )
    throttle_reasons: tuple[str, ...] = about(
        "Causes of throttling: active cooling devices, or events since the last telemetry.", default=tuple
    )
    limits_c: dict[str, float] = about(
        "Temperature by sensor at which the kernel begins to throttle.",
        default=no_entries,
        unit="degC",
        metric=Metric("edge_agent_temperature_limit_celsius", "zone"),
    )
    power_mode: str | None = about("Name of the power mode (nvpmodel).", default=None)
    power_w: dict[str, float] = about(
        "Power by rail.",
        default=no_entries,
        unit="W",
        metric=Metric("edge_agent_power_watts", "rail"),
        entity=Entity("rail"),
    )
    power_total_w: float | None = about(
        "Power of the whole module.",
        default=None,
        unit="W",
        metric=Metric("edge_agent_power_total_watts"),
        entity=Entity("power", "Power"),
    )
    fan_percent: float | None = about(
        "Fan duty cycle.", default=None, unit="%", metric=Metric("edge_agent_fan_percent")
    )
    fan_rpm: float | None = about(
        "Fan speed in revolutions per minute.",
        default=None,
        unit="1/min",
        metric=Metric("edge_agent_fan_rpm"),
    )
    clocks_locked: bool | None = about(
        "Whether clocks are locked to their maximum (jetson_clocks).", default=None
    )
    cpu_percent: float | None = about(
        "CPU load over all cores.", default=None, unit="%", metric=Metric("edge_agent_cpu_percent")
    )
    cpu_mhz: float | None = about(
        "Clock of the fastest CPU core.", default=None, unit="MHz", metric=Metric("edge_agent_cpu_megahertz")
    )
    cpu_max_mhz: float | None = about(
        "Highest CPU clock that the power mode allows.",
        default=None,
        unit="MHz",
        metric=Metric("edge_agent_cpu_max_megahertz"),
    )
    gpu_percent: float | None = about(
        "GPU load.", default=None, unit="%", metric=Metric("edge_agent_gpu_percent")
    )
    gpu_mhz: float | None = about(
        "GPU clock.", default=None, unit="MHz", metric=Metric("edge_agent_gpu_megahertz")
    )
    gpu_max_mhz: float | None = about(
        "Highest GPU clock that the power mode allows.",
        default=None,
        unit="MHz",
        metric=Metric("edge_agent_gpu_max_megahertz"),
    )
    engines_mhz: dict[str, float] = about(
        "Clocks of DLA, NVDEC, VIC and other units; a unit that is off has no entry.",
        default=no_entries,
        unit="MHz",
        metric=Metric("edge_agent_engine_megahertz", "engine"),
    )
    engines_percent: dict[str, float] = about(
        "Share of the time that such a unit was powered.",
        default=no_entries,
        unit="%",
        metric=Metric("edge_agent_engine_active_percent", "engine"),
    )
    memory_used_bytes: int | None = about(
        "Used memory of the machine, without reclaimable memory.",
        default=None,
        unit="B",
        metric=Metric("edge_agent_memory_used_bytes"),
    )
    memory_total_bytes: int | None = about(
        "Memory of the machine.", default=None, unit="B", metric=Metric("edge_agent_memory_total_bytes")
    )
    swap_used_bytes: int | None = about("Used swap space of the machine.", default=None, unit="B")
    process_memory_bytes: int | None = about(
        "Resident memory of the agent.",
        default=None,
        unit="B",
        metric=Metric("edge_agent_process_memory_bytes"),
    )
    disk_free_bytes: int | None = about(
        "Free space on the disk with the agent's state.",
        default=None,
        unit="B",
        metric=Metric("edge_agent_disk_free_bytes"),
    )
    disk_total_bytes: int | None = about(
        "Size of that disk.", default=None, unit="B", metric=Metric("edge_agent_disk_total_bytes")
    )
    disk_wear_percent: float | None = about(
        "Used share of that disk's rated life.",
        default=None,
        unit="%",
        metric=Metric("edge_agent_disk_wear_percent"),
    )
    governor_state: str | None = about(
        "watching; limiting: load reduced because of heat; exhausted: load at the lowest step, still too hot;"
        " blind: no sensor can be read; off.",
        default=None,
    )
    governor_step: int | None = about(
        "0: full load; each further step reduces it.",
        default=None,
        minimum=0,
        metric=Metric("edge_agent_governor_step"),
        entity=Entity("governor", "Load lowered (step)"),
    )
    stuck: tuple[str, ...] = about(
        "Stages that are stuck.",
        default=tuple,
        metric=Metric("edge_agent_stage_stuck", "stage"),
        entity=Entity("stuck", "Stuck", problem=True),
    )
    frames_per_s: dict[str, float] = about(
        "Processed frames per second, by camera.",
        default=no_entries,
        unit="1/s",
        metric=Metric("edge_agent_frames_per_second", "camera"),
    )
    crops_per_s: float | None = about(
        "Embedded crops per second.",
        default=None,
        unit="1/s",
        metric=Metric("edge_agent_crops_per_second"),
        entity=Entity("crops", "Crops"),
    )
    latency_ms: dict[str, float] = about(
        "Median latency of each stage over the interval.", default=no_entries, unit="ms"
    )
    queues: dict[str, int] = about(
        "Waiting entries, by queue.", default=no_entries, metric=Metric("edge_agent_queue_entries", "queue")
    )
    dropped: dict[str, int] = about(
        "Dropped since the start, by item and cause.",
        default=no_entries,
        metric=Metric("edge_agent_dropped", "what", counter=True),
    )
    still_frames: dict[str, int] = about(
        "Frames since the start that a motion gate did not pass to the detector, by camera with a gate.",
        default=no_entries,
        metric=Metric("edge_agent_still_frames", "camera", counter=True),
    )
    people_present: int | None = about(
        "Present tracks with an identity.",
        default=None,
        metric=Metric("edge_agent_people_present"),
        entity=Entity("people", "People present", icon="mdi:account-group", diagnostic=False),
    )
    identities: int | None = about(
        "People in the gallery.", default=None, metric=Metric("edge_agent_identities")
    )
    connection: str | None = about(
        "Connection to the broker: connecting, connected, waiting, refused, stopped or disabled.",
        default=None,
    )
    connects: int | None = about("Connections to the broker since the start.", default=None)
    outbox_rows: int | None = about(
        "Events that the broker has not acknowledged.",
        default=None,
        entity=Entity("outbox", "Events waiting"),
    )
    outbox_bytes: int | None = about("Size of these events.", default=None, unit="B")
    outbox_parked: int | None = about("Events that the broker rejected.", default=None)
