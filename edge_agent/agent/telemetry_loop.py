"""The slow thread: telemetry, the clock, expiry of identities, and saving the site's scores."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from edge_agent.agent.clock_watch import ClockWatch
from edge_agent.agent.fleet_watch import FleetWatch, fleet_telemetry
from edge_agent.agent.recording import UnwantedPictures, remove_old_recordings, shadow_entry
from edge_agent.core.alerts import AlertKind
from edge_agent.core.errors import EdgeAgentError, StorageError
from edge_agent.core.events import alert_event
from edge_agent.core.heartbeat import Heartbeat
from edge_agent.core.telemetry import TelemetryData
from edge_agent.gallery import audit

if TYPE_CHECKING:
    from edge_agent.agent.pipeline import Pipeline
    from edge_agent.agent.stages import Stages
    from edge_agent.core.config import Settings
    from edge_agent.health.cooling import Cooling
    from edge_agent.health.supervisor import Supervisor
    from edge_agent.health.telemetry import Reading
    from edge_agent.identify import Identifier

_log = structlog.get_logger(__name__)

SAVE_INTERVAL_S = 60.0
"""Interval of saving the site's scores and of erasing expired identities."""


@dataclass(slots=True)
class TelemetryLoop:
    """Runs while it is entered; once more at the end, since a run may be shorter than an interval."""

    settings: Callable[[], Settings]
    stages: Stages
    pipeline: Pipeline
    cooling: Cooling
    supervisor: Supervisor
    started: float
    """Start of the agent, `time.monotonic`."""
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    latest: TelemetryData | None = None
    """The telemetry published last."""
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _previous: tuple[float, int, dict[str, int]] | None = None
    """Time, crops and frames by camera at the previous telemetry, for the rates."""
    _saved: float = field(default_factory=time.monotonic)
    _throttled: bool = False
    _clock_watch: ClockWatch = field(init=False)
    _fleet_watch: FleetWatch = field(init=False)
    _unwanted_pictures: UnwantedPictures = field(init=False)

    def __post_init__(self) -> None:
        stages = self.stages
        self._clock_watch = ClockWatch(stages, stages.health.note)
        self._fleet_watch = FleetWatch(stages.publisher.publish, stages.health.note, stages.clock.label)
        self._unwanted_pictures = UnwantedPictures(self.settings(), stages.gallery, stages.recorder)

    def __enter__(self) -> TelemetryLoop:
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(2.0)

    def _run(self) -> None:
        last = False
        while not last:
            last = self._stop.is_set()
            self.heartbeat.working("read sensors")
            try:
                self._clock_watch.check()
                if self.stages.fleet is not None:
                    self._fleet_watch.check(self.stages.fleet.state)
                self._publish()
                self._maintain()
                if last:
                    self._record_shadow()
            except EdgeAgentError as error:
                _log.warning("telemetry_failed", error=str(error))
            self.heartbeat.idle("waits for the next interval")
            self._stop.wait(self.settings().telemetry.interval_s)

    def _publish(self) -> None:
        reading = self.stages.telemetry.read()
        self.stages.writer.device = reading.summary()
        self._alert_if_throttled(reading)
        self.latest = self._telemetry(reading)
        self.stages.publisher.send_telemetry(self.latest)
        self.supervisor.check_memory(reading.process_memory_bytes)
        if self.stages.metrics is not None:
            self.stages.metrics.take(self.latest)

    def _maintain(self) -> None:
        with contextlib.suppress(StorageError):  # a full disk: at the next turn, or before an event is sent
            self.stages.gallery.file.log.settle()
        if time.monotonic() - self._saved >= SAVE_INTERVAL_S:
            self._saved = time.monotonic()
            save_site_scores(self.stages.identifier)
            self._record_shadow()
            recorder = self.stages.recorder
            if recorder is None or recorder.problem:
                remove_old_recordings(self.settings(), self.stages.clock)
            expired = self.stages.gallery.retention.expire()
            if expired:
                _log.info("identities_expired", people=len(expired))
                audit.record(self.settings().state_dir, "expire", "agent", people=len(expired))
        self._erase_unwanted_pictures()
        self.stages.erasure.run()
        self.pipeline.tasks.put(self.stages.people.run)

    def _erase_unwanted_pictures(self) -> None:
        try:
            self._unwanted_pictures.erase()
        except StorageError as error:  # the next turn tries it again
            _log.warning("recorded_pictures_not_erased", error=str(error))

    def _record_shadow(self) -> None:
        """Add what the second network found so far to the recording."""
        recorder, shadow = self.stages.recorder, self.stages.shadow
        if recorder is not None and shadow is not None:
            recorder.put(shadow_entry(shadow.state(), self.stages.clock.now()))

    def _alert_if_throttled(self, reading: Reading) -> None:
        """Publish an alert when the board starts to limit its clocks, and when it stops."""
        throttled = bool(reading.throttled)
        if throttled == self._throttled:
            return
        self._throttled = throttled
        reasons = ", ".join(reading.throttle_reasons)
        change = f"limits its clocks ({reasons})" if throttled else "no longer limits its clocks"
        details = {"reasons": reasons or None, "zone": reading.hottest_zone, "celsius": reading.hottest_c}
        now = self.stages.clock.label()
        alert = alert_event(
            AlertKind.THERMAL_THROTTLE,
            f"the board {change}",
            active=throttled,
            time=now,
            details=details,
        )
        self.stages.publisher.publish(alert)

    def _telemetry(self, reading: Reading) -> TelemetryData:
        stages = self.stages
        now, crops = time.monotonic(), stages.embedder.counters.embedded
        frames = dict(self.pipeline.counters.frames)
        at, crops_before, frames_before = self._previous or (self.started, 0, {})
        self._previous = now, crops, frames
        span = max(now - at, 1e-3)
        delivered = stages.publisher.counters
        return reading.telemetry(
            uptime_s=round(now - self.started, 1),
            state=stages.health.state,
            governor_state=self.cooling.verdict.state,
            governor_step=self.cooling.verdict.step,
            stuck=self.supervisor.stuck,
            frames_per_s={
                camera: round((n - frames_before.get(camera, 0)) / span, 2) for camera, n in frames.items()
            },
            crops_per_s=round((crops - crops_before) / span, 2),
            queues={reader.camera: reader.waiting for reader in stages.sources.readers},
            dropped=self._dropped(),
            source_failures={r.camera: r.failures for r in stages.sources.readers if r.failures},
            still_frames=dict(stages.detection.still()),
            people_present=stages.identifier.tracks.identified,
            identities=len(stages.gallery),
            shadow_disagreement=None if stages.shadow is None else stages.shadow.agreement.disagreement,
            latency_ms=stages.writer.take_latencies(),
            connection=stages.publisher.state.value,
            connects=delivered.connects,
            outbox_rows=delivered.outbox_rows,
            outbox_bytes=delivered.outbox_bytes,
            outbox_parked=delivered.outbox_parked,
            **({} if stages.fleet is None else fleet_telemetry(stages.fleet.state)),
        )

    def _dropped(self) -> dict[str, int]:
        """Everything that was dropped since the start, by what and why."""
        stages, counters = self.stages, self.stages.embedder.counters
        selector = stages.selector
        spared = selector.counts.total()
        by_kind = {
            "frames": {r.camera: r.dropped for r in stages.sources.readers if r.dropped},
            "skipped": self.pipeline.counters.skipped.copy(),
            "crops": {**counters.refused.copy(), **({"spared": spared} if spared else {})},
            "spared": selector.for_load.copy(),
            "overload": selector.for_overload.copy(),
            "recording": {"lost": lost} if stages.recorder and (lost := stages.recorder.lost) else {},
            "batches": {"failed": failed} if (failed := self.pipeline.counters.failed_batches) else {},
            "boxes": {fault: n for fault, n in stages.detection.left_out().items() if n},
        }
        return {f"{kind}:{key}": n for kind, counts in by_kind.items() for key, n in counts.items()}


def save_site_scores(identifier: Identifier) -> None:
    """Save the site's scores; a failure is logged."""
    try:
        identifier.thresholds.save()
    except StorageError as error:
        _log.warning("site_scores_not_saved", error=str(error))
