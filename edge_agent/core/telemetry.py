"""Telemetry: health of the device and load of the agent. The one declaration of every telemetry field."""

# ruff: noqa: RUF009 - these functions return a dataclasses.field

from __future__ import annotations

from dataclasses import dataclass

from edge_agent.core.fields import Entity, about, entries, value


@dataclass(frozen=True, slots=True)
class TelemetryData:
    """Health of the device and load of the agent, every few seconds; a lost message is not sent again."""

    uptime_s: float = about("Time since the agent started.", "s", "uptime_seconds", minimum=0)
    state: str = about("State as on the status topic.")
    temperatures_c: dict[str, float] = entries(
        "Temperatures by sensor.", "degC", "temperature_celsius", label="zone", entity=Entity("zone")
    )
    hottest_c: float | None = value(
        "Temperature of the hottest sensor.", "degC", entity=Entity("hottest", "Hottest sensor")
    )
    hottest_zone: str | None = value("Name of the hottest sensor.")
    throttled: bool | None = value(
        "Whether clocks are reduced because of heat or current.",
        metric="throttled",
        entity=Entity("throttled", "Throttled", problem=True),
    )
    throttle_reasons: tuple[str, ...] = about(
        "Causes of throttling: active cooling devices, or events since the last telemetry.", default=tuple
    )
    limits_c: dict[str, float] = entries(
        "Temperature by sensor at which the kernel begins to throttle.",
        "degC",
        "temperature_limit_celsius",
        label="zone",
    )
    power_mode: str | None = value("Name of the power mode (nvpmodel).")
    power_w: dict[str, float] = entries(
        "Power by rail.", "W", "power_watts", label="rail", entity=Entity("rail")
    )
    power_total_w: float | None = value(
        "Power of the whole module.", "W", "power_total_watts", entity=Entity("power", "Power")
    )
    fan_percent: float | None = value("Fan duty cycle.", "%", "fan_percent")
    fan_rpm: float | None = value("Fan speed in revolutions per minute.", "1/min", "fan_rpm")
    clocks_locked: bool | None = value("Whether clocks are locked to their maximum (jetson_clocks).")
    cpu_percent: float | None = value("CPU load over all cores.", "%", "cpu_percent")
    cpu_mhz: float | None = value("Clock of the fastest CPU core.", "MHz", "cpu_megahertz")
    cpu_max_mhz: float | None = value(
        "Highest CPU clock that the power mode allows.", "MHz", "cpu_max_megahertz"
    )
    gpu_percent: float | None = value("GPU load.", "%", "gpu_percent")
    gpu_mhz: float | None = value("GPU clock.", "MHz", "gpu_megahertz")
    gpu_max_mhz: float | None = value(
        "Highest GPU clock that the power mode allows.", "MHz", "gpu_max_megahertz"
    )
    engines_mhz: dict[str, float] = entries(
        "Clocks of DLA, NVDEC, VIC and other units; a unit that is off has no entry.",
        "MHz",
        "engine_megahertz",
        label="engine",
    )
    engines_percent: dict[str, float] = entries(
        "Share of the time that the unit was powered.", "%", "engine_active_percent", label="engine"
    )
    memory_used_bytes: int | None = value(
        "Used memory of the machine, without reclaimable memory.", "B", "memory_used_bytes"
    )
    memory_total_bytes: int | None = value("Memory of the machine.", "B", "memory_total_bytes")
    swap_used_bytes: int | None = value("Used swap space of the machine.", "B")
    process_memory_bytes: int | None = value("Resident memory of the agent.", "B", "process_memory_bytes")
    disk_free_bytes: int | None = value(
        "Free space on the disk with the agent's state.", "B", "disk_free_bytes"
    )
    disk_total_bytes: int | None = value("Size of that disk.", "B", "disk_total_bytes")
    disk_wear_percent: float | None = value("Used share of that disk's rated life.", "%", "disk_wear_percent")
    governor_state: str | None = value(
        "watching; limiting: load reduced because of heat; exhausted: at the lowest step, still too hot;"
        " blind: no sensor can be read; off."
    )
    governor_step: int | None = value(
        "0: full load; each further step reduces it.",
        metric="governor_step",
        entity=Entity("governor", "Load lowered (step)"),
        minimum=0,
    )
    stuck: tuple[str, ...] = about(
        "Stages that are stuck.",
        default=tuple,
        metric="stage_stuck",
        label="stage",
        entity=Entity("stuck", "Stuck", problem=True),
    )
    frames_per_s: dict[str, float] = entries(
        "Processed frames per second, by camera.", "1/s", "frames_per_second", label="camera"
    )
    crops_per_s: float | None = value(
        "Embedded crops per second.", "1/s", "crops_per_second", entity=Entity("crops", "Crops")
    )
    latency_ms: dict[str, float] = entries("Median latency of each stage over the interval.", "ms")
    queues: dict[str, int] = entries("Waiting entries, by queue.", metric="queue_entries", label="queue")
    dropped: dict[str, int] = entries(
        "Dropped since the start, by item and cause.", metric="dropped", label="what", counter=True
    )
    source_failures: dict[str, int] = entries(
        "Unexpected errors while reading since the start, by camera; the reading starts again after each.",
        metric="source_failures",
        label="camera",
        counter=True,
    )
    still_frames: dict[str, int] = entries(
        "Frames since the start that a motion gate did not pass to the detector, by camera with a gate.",
        metric="still_frames",
        label="camera",
        counter=True,
    )
    people_present: int | None = value(
        "Present tracks with an identity.",
        metric="people_present",
        entity=Entity("people", "People present", icon="mdi:account-group", diagnostic=False),
    )
    identities: int | None = value("People in the gallery.", metric="identities")
    shadow_disagreement: float | None = value(
        "Share of compared crops, 0..1, for which engine.shadow_model finds another person than the network"
        " that decides.",
        metric="shadow_disagreement",
        minimum=0,
    )
    fleet_link: str | None = value(
        "Connection to the store of the fleet: connecting, connected, waiting, refused or stopped;"
        " null: no fleet."
    )
    fleet_down: bool | None = value(
        "Whether that store is away, or refuses this device.",
        metric="fleet_down",
    )
    fleet_retry_s: float | None = value(
        "Time until the next attempt to reach it.", "s", "fleet_retry_seconds"
    )
    fleet_lag: int | None = value(
        "Changes of the site that are known to exist and are not applied here.", metric="fleet_lag"
    )
    fleet_pending: int | None = value(
        "Changes of this device that the store has not acknowledged.", metric="fleet_pending"
    )
    fleet_sent: int | None = value(
        "People in changes sent to the store since the start.", metric="fleet_sent", counter=True
    )
    fleet_received: int | None = value(
        "People in changes of the site applied here since the start.", metric="fleet_received", counter=True
    )
    fleet_asked: int | None = value(
        "Strangers that the store was asked about since the start.", metric="fleet_asked", counter=True
    )
    fleet_known: int | None = value("Those that it knew.", metric="fleet_known", counter=True)
    fleet_late: int | None = value(
        "Those without a usable answer within fleet.ask_ms.", metric="fleet_late", counter=True
    )
    fleet_unasked: int | None = value(
        "Strangers enrolled without a question: the store was away, or too many waited.",
        metric="fleet_unasked",
        counter=True,
    )
    fleet_conflicts: int | None = value(
        "Pairs of people who are probably one, but have two names.", metric="fleet_conflicts"
    )
    connection: str | None = value(
        "Connection to the broker: connecting, connected, waiting, refused, stopped or disabled."
    )
    connects: int | None = value("Connections to the broker since the start.")
    outbox_rows: int | None = value(
        "Events that the broker has not acknowledged.", entity=Entity("outbox", "Events waiting")
    )
    outbox_bytes: int | None = value("Size of these events.", "B")
    outbox_parked: int | None = value("Events that the broker rejected.")
