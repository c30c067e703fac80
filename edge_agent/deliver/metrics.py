"""Numbers for Prometheus, on loopback unless told otherwise; nothing in them names a person.

What the telemetry says is shown as it was last told; what delivery has done is asked at each scrape; how long
the stages take is counted in histograms.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from types import TracebackType
from typing import Any

from prometheus_client import CollectorRegistry, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from edge_agent.core.errors import ConfigError
from edge_agent.core.events import InfoData, TelemetryData
from edge_agent.deliver.connection import ConnectionState
from edge_agent.deliver.publisher import Counters

__all__ = ["Metrics"]

STAGE_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
WAITING = ("in_flight", "outbox_rows", "outbox_bytes", "outbox_parked")
"""Counters of delivery that can fall."""

# key of the telemetry: name of the metric, label, what it is
_GAUGES: Mapping[str, tuple[str, str | None, str]] = {
    "uptime_s": ("edge_agent_uptime_seconds", None, "Since the agent started."),
    "temperatures_c": ("edge_agent_temperature_celsius", "zone", "By sensor."),
    "throttled": ("edge_agent_throttled", None, "1 while heat or current hold the clock down."),
    "power_w": ("edge_agent_power_watts", "rail", "By rail."),
    "power_total_w": ("edge_agent_power_total_watts", None, "Whole module."),
    "fan_percent": ("edge_agent_fan_percent", None, "Fan speed."),
    "fan_rpm": ("edge_agent_fan_rpm", None, "Turns of the fan in a minute."),
    "limits_c": ("edge_agent_temperature_limit_celsius", "zone", "Where the kernel acts against heat."),
    "governor_step": ("edge_agent_governor_step", None, "0: full load; each further step does less."),
    "cpu_percent": ("edge_agent_cpu_percent", None, "Load over all cores."),
    "gpu_percent": ("edge_agent_gpu_percent", None, "Load of the GPU."),
    "cpu_mhz": ("edge_agent_cpu_megahertz", None, "Clock of the fastest core."),
    "cpu_max_mhz": ("edge_agent_cpu_max_megahertz", None, "Its limit by the power mode."),
    "gpu_mhz": ("edge_agent_gpu_megahertz", None, "Clock of the GPU."),
    "gpu_max_mhz": ("edge_agent_gpu_max_megahertz", None, "Its limit by the power mode."),
    "engines_mhz": ("edge_agent_engine_megahertz", "engine", "Clocks of DLA, NVDEC, VIC and others."),
    "engines_percent": ("edge_agent_engine_active_percent", "engine", "Time that the unit was powered."),
    "memory_used_bytes": ("edge_agent_memory_used_bytes", None, "Of the machine."),
    "memory_total_bytes": ("edge_agent_memory_total_bytes", None, "Of the machine."),
    "process_memory_bytes": ("edge_agent_process_memory_bytes", None, "Resident memory of the agent."),
    "disk_free_bytes": ("edge_agent_disk_free_bytes", None, "Where the agent's state is."),
    "disk_total_bytes": ("edge_agent_disk_total_bytes", None, "Size of that disk."),
    "disk_wear_percent": ("edge_agent_disk_wear_percent", None, "Used-up life of that disk."),
    "frames_per_s": ("edge_agent_frames_per_second", "camera", "Frames taken in."),
    "crops_per_s": ("edge_agent_crops_per_second", None, "Crops embedded."),
    "queues": ("edge_agent_queue_entries", "queue", "Entries that wait."),
    "people_present": ("edge_agent_people_present", None, "Tracks with an identity now."),
    "identities": ("edge_agent_identities", None, "People in the gallery."),
}


class Metrics(Collector):
    """Serves metrics while it is entered.

    Args:
        port: TCP port; 0 for any free one, see `port` once entered.
        address: where to listen. Whoever reaches it reads without a password.
        delivery: what the publisher counted, asked at each scrape.
        connection: where the connection to the broker stands, asked at each scrape.
        info: what runs here.
    """

    def __init__(
        self,
        *,
        port: int,
        address: str = "127.0.0.1",
        delivery: Callable[[], Counters],
        connection: Callable[[], ConnectionState],
        info: InfoData,
    ) -> None:
        self.port = port
        self._address = address
        self._delivery = delivery
        self._connection = connection
        self._info = info
        self._telemetry: TelemetryData | None = None
        self._registry = CollectorRegistry()
        self._stages = Histogram(
            "edge_agent_stage_seconds",
            "Time spent per stage for one frame or batch.",
            ["stage"],
            buckets=STAGE_BUCKETS_S,
            registry=self._registry,
        )
        self._registry.register(self)
        self._server: Any = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Metrics:
        """Begin to listen.

        Raises:
            ConfigError: the port cannot be had.
        """
        try:
            self._server, self._thread = start_http_server(self.port, self._address, self._registry)
        except OSError as problem:
            raise ConfigError(
                f"telemetry.metrics_port: cannot listen on {self._address}:{self.port}: {problem.strerror};"
                " choose another port"
            ) from problem
        self.port = self._server.server_port
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join(2.0)

    def observe(self, stage: str, seconds: float) -> None:
        """Count how long a stage took."""
        self._stages.labels(stage).observe(seconds)

    def take(self, telemetry: TelemetryData) -> None:
        """Show these numbers from now on."""
        self._telemetry = telemetry

    def collect(self) -> Iterator[Any]:
        """All families but the histograms; Prometheus' library calls this at each scrape."""
        yield self._about()
        yield from self._of_delivery()
        if self._telemetry is not None:
            yield from _of_telemetry(self._telemetry)

    def _about(self) -> InfoMetricFamily:
        model = self._info.model
        labels = {
            "version": self._info.version,
            "model": model.name,
            "backend": model.backend,
            "precision": model.precision,
            "detector": self._info.detector or "",
        }
        return InfoMetricFamily("edge_agent", "What runs here.", labels)

    def _of_delivery(self) -> Iterator[Any]:
        now = self._connection()
        states = GaugeMetricFamily(
            "edge_agent_broker", "1 for the state of the connection.", labels=["state"]
        )
        for state in ConnectionState:
            states.add_metric([state.value], float(state is now))
        yield states
        counters = self._delivery()
        for entry in fields(counters):
            value = getattr(counters, entry.name)
            if entry.name in WAITING:
                yield GaugeMetricFamily(f"edge_agent_delivery_{entry.name}", "Waiting now.", value=value)
            else:
                yield CounterMetricFamily(
                    f"edge_agent_delivery_{entry.name}", "Since the start.", value=value
                )


def _of_telemetry(told: TelemetryData) -> Iterator[Any]:
    """One family per key; what the device does not say has no sample."""
    for key, (name, label, text) in _GAUGES.items():
        value = getattr(told, key)
        if label is not None:
            family = GaugeMetricFamily(name, text, labels=[label])
            for part, number in value.items():
                family.add_metric([part], number)
            yield family
        elif value is not None:
            yield GaugeMetricFamily(name, text, value=float(value))
    stuck = GaugeMetricFamily("edge_agent_stage_stuck", "1 for a stage that is stuck.", labels=["stage"])
    for stage in told.stuck:
        stuck.add_metric([stage], 1.0)
    yield stuck
    dropped = CounterMetricFamily("edge_agent_dropped", "Dropped since the start.", labels=["what"])
    for what, number in told.dropped.items():
        dropped.add_metric([what], number)
    yield dropped
    still = CounterMetricFamily(
        "edge_agent_still_frames", "Not shown to the detector, since nothing moved.", labels=["camera"]
    )
    for camera, number in told.still_frames.items():
        still.add_metric([camera], number)
    yield still
