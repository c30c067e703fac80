"""The agent: opens the stages, and runs the pipeline, the telemetry and the supervision."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import structlog

from edge_agent.agent.engine_watch import EngineWatch
from edge_agent.agent.garbage import short_collections
from edge_agent.agent.outputs import Outputs
from edge_agent.agent.pipeline import Pipeline
from edge_agent.agent.results import FrameOutcome, Summary
from edge_agent.agent.stages import (
    StageOpener,
    Stages,
    Supply,
    calibrated_threshold,
    fitting_calibration,
    import_scipy_in_background,
)
from edge_agent.agent.status import configure_logs, status_document
from edge_agent.agent.tasks import TaskQueue
from edge_agent.agent.telemetry_loop import TelemetryLoop, save_site_scores
from edge_agent.core.alerts import AlertKind
from edge_agent.core.clock import Clock
from edge_agent.core.config import Settings
from edge_agent.core.errors import ConfigError, EdgeAgentError, StorageError
from edge_agent.core.events import alert_event
from edge_agent.core.kafka import REQUEST_TIMEOUT_S
from edge_agent.core.reloading import changes
from edge_agent.core.structures import LONE_TRACKS
from edge_agent.core.system_time import TimeSource
from edge_agent.engine.precision.calibration import Calibration, current_calibration
from edge_agent.health.cooling import Cooling, make_cooling
from edge_agent.health.governor import CHECK_INTERVAL_S
from edge_agent.health.supervisor import Supervisor
from edge_agent.track.crops import UpstreamTracks
from edge_agent.track.tracker import Tracker
from edge_agent.track.tracks import Similarity
from edge_agent.track.upstream import MessageTracks

if TYPE_CHECKING:
    from edge_agent.core.heartbeat import HeartbeatState
    from edge_agent.core.telemetry import TelemetryData
    from edge_agent.deliver.publisher import AnyPublisher

_log = structlog.get_logger(__name__)

DRAIN_S = 10.0
"""At the end of recorded files: how long to wait for the broker to acknowledge the last events."""

DRAIN_STEP_S = 0.2
"""Interval at which that wait checks for a stop request."""


@dataclass(slots=True)
class Agent:
    """One run of the agent."""

    settings: Settings
    outputs: Outputs = field(default_factory=Outputs)
    observe: Callable[[FrameOutcome], None] | None = None
    """Called with every outcome, on the driving thread; must not block."""
    session: str = field(default_factory=lambda: str(uuid.uuid4()))
    supply: Supply | None = None
    reread: Callable[[], Settings] | None = None
    """Reads the settings again, for `reload_now`."""
    system_time: TimeSource | None = None
    """Replaces the clocks of this machine."""
    opened: threading.Event = field(default_factory=threading.Event)
    """Set when everything is open, or could not be opened."""
    stages: Stages | None = None
    """All stages, once they are open."""
    pipeline: Pipeline | None = None
    """None until the stages are open."""
    summary: Summary | None = None
    """The figures of the run; None until it has ended, and where it failed before a frame was processed."""
    _started: float = field(default_factory=time.monotonic)
    _initial_settings: Settings = field(init=False)
    _supervisor: Supervisor = field(init=False)
    _tasks: TaskQueue = field(default_factory=TaskQueue)
    _cooling: Cooling | None = None
    _telemetry: TelemetryLoop | None = None
    _stopping: bool = False

    def __post_init__(self) -> None:
        self._initial_settings = self.settings
        self._supervisor = Supervisor(
            lambda: self.settings.supervision, note=self._note, session=self.session, describe=self.describe
        )

    def run(self, stop: threading.Event) -> Summary:
        """Run until every source has ended or `stop` is set; return `summary`.

        Raises:
            EdgeAgentError: something that the agent needs is missing or broken; the message says what. Where
                it is a source beside others, they are read to their end first, and `summary` is set if
                they gave a frame.
        """
        if not self.settings.sources:
            raise ConfigError(
                "no source: name one with --source PATH_OR_URL, or in [[sources]] of the configuration"
            )
        with self._supervisor:
            with ExitStack() as stack:
                try:
                    stages = self._open(stack, stop)
                finally:
                    self.opened.set()
                try:
                    summary, failure = self._drive(stages, stop)
                finally:
                    stages.health.cameras_stopped(stages.clock.label())
            left = stages.publisher.counters  # read here: the publisher delivers until it is closed
            summary = replace(summary, undelivered=left.outbox_rows + left.copies_rows)
            self.summary = summary if failure is None or summary.frames else None
            if failure is not None:
                raise failure
        return summary

    def add_observer(self, observer: Callable[[FrameOutcome], None]) -> None:
        """Call `observer` with every outcome, too, on the driving thread; only before the run."""
        former = self.observe

        def both(outcome: FrameOutcome) -> None:
            if former is not None:
                former(outcome)
            observer(outcome)

        self.observe = both

    @property
    def telemetry(self) -> TelemetryData | None:
        """The telemetry published last."""
        return None if self._telemetry is None else self._telemetry.latest

    def describe(self) -> dict[str, Any]:
        """Return the agent's part of the status document; empty before the start and while stopping."""
        if self.stages is None or self._stopping:
            return {}
        return status_document(self.stages, self._cooling, self.telemetry)

    def asked_to_stop(self) -> None:
        """Note a stop request; call it before `stop` is set."""
        self._supervisor.stop_requested()

    def reload(self, settings: Settings) -> list[str]:
        """Apply the settings that may change while running; return the keys that need a restart."""
        live, _ = changes(self.settings, settings)
        _, restart = changes(self._initial_settings, settings)
        self._tasks.put(lambda: self._apply(settings))
        _log.info("settings_reloaded", applied=live, restart_required=restart)
        return restart

    def reload_now(self) -> list[str]:
        """Read the settings again and reload them; if they are wrong, the present ones stay."""
        if self.reread is None:
            raise ConfigError("this run has no settings that could be read again")
        self._supervisor.notifier.reloading()
        try:
            return self.reload(self.reread())
        finally:
            self._tasks.put(self._supervisor.reloaded)  # after the task of `reload`, if there is one

    def _open(self, stack: ExitStack, stop: threading.Event) -> Stages:
        opener = StageOpener(
            settings=self.settings,
            outputs=self.outputs,
            observe=self.observe,
            session=self.session,
            supply=self.supply,
            supervisor=self._supervisor,
            tasks=self._tasks,
            reload=self.reload_now,
            stack=stack,
            system_time=self.system_time,
        )
        self.stages = stages = opener.open(stop)
        stages.health.set("online")
        stack.enter_context(EngineWatch(stages))
        if stages.stale_calibration is not None:
            _alert_stale_calibration(stages.stale_calibration, stages.publisher, stages.clock)
        stages.sources.start_others(stages.health.on_status)
        import_scipy_in_background()
        return stages

    def _drive(self, stages: Stages, stop: threading.Event) -> tuple[Summary, EdgeAgentError | None]:
        """Run the pipeline; return the figures, and why a source was given up, unless the run was stopped."""
        pipeline = self.pipeline = self._pipeline(stages)
        cooling = self._cooling = make_cooling(
            lambda: self.settings,
            stages.telemetry,
            stages.sources.readers,
            apply=pipeline.set_load,
            publish=stages.publisher.publish,
            note=stages.health.note,
            label=stages.clock.label,
        )
        telemetry = self._telemetry = TelemetryLoop(
            lambda: self.settings, stages, pipeline, cooling, self._supervisor, self._started
        )
        began = time.perf_counter()
        with telemetry, cooling:
            self._supervisor.watch(
                lambda: pipeline.heartbeat.latest,
                {
                    "telemetry": (
                        lambda: telemetry.heartbeat.latest,
                        lambda: self.settings.telemetry.interval_s,
                    ),
                    "governor": (lambda: cooling.heartbeat.latest, lambda: CHECK_INTERVAL_S),
                    **_copies_heartbeat(stages.publisher),
                },
                stages.sources.readers,
                stages.publisher,
            )
            try:
                with short_collections():
                    pipeline.run(stop)
            finally:
                self._wind_up(stages)
        seconds = time.perf_counter() - began
        stages.writer.finish()
        failure = None
        if not stop.is_set():
            stages.sources.stop()  # their last events are delivered below
            drain(stages.publisher, stop)
            failure = stages.sources.first_error
        summary = Summary(
            frames=dict(pipeline.counters.frames),
            crops=stages.embedder.counters.embedded,
            received=stages.embedder.counters.received,
            decisions=pipeline.counters.decisions,
            identities=len(stages.gallery),
            seconds=seconds,
            engine_seconds=stages.embedder.engine.run_seconds,
            detector_seconds=stages.detection.network_seconds(),
            stage_seconds=dict(pipeline.counters.seconds),
            dropped={reader.camera: reader.dropped for reader in stages.sources.readers},
            refused=dict(stages.embedder.counters.refused),
            undelivered=0,
            detector=stages.detection.name,
            small=tuple(stages.detection.small().values()),
        )
        return summary, failure

    def _pipeline(self, stages: Stages) -> Pipeline:
        settings, similarity = self.settings, Similarity()
        return Pipeline(
            readers=stages.sources.readers,
            wake=stages.sources.wake,
            search=stages.detection.begin,
            embedder=stages.embedder,
            make_tracker=lambda camera: Tracker(
                camera, settings.tracker, stages.detection.levels(camera), similarity
            ),
            make_upstream_tracker=lambda camera: UpstreamTracks(
                camera, settings.tracker, None if stages.prior is None else stages.prior.joins
            ),
            make_message_tracker=lambda camera: MessageTracks(
                camera,
                Tracker(
                    camera, settings.tracker, stages.detection.levels(camera), similarity, LONE_TRACKS + 1
                ),
            ),
            identifier=stages.identifier,
            on_outcome=stages.writer.write,
            tasks=self._tasks,
            selector=stages.selector,
            hold=lambda: stages.embedder.engine.away,
            now=stages.clock.moment,
            max_delay_s=settings.engine.max_delay_ms / 1000,
            # Two batches: with one, cameras that have come to wait would go on waiting.
            round_crops=2 * stages.embedder.info.max_batch,
        )

    def _wind_up(self, stages: Stages) -> None:
        """Report the stop, end what waits for the driving thread, and save the site's scores."""
        self._supervisor.stopping()
        stages.health.set("stopping")
        stages.sources.request_stop()
        self._stopping = True
        self._tasks.close()
        save_site_scores(stages.identifier)

    def _note(self, cause: str, reason: str) -> None:
        """Add a cause of degraded work, or with the reason "" remove it."""
        if self.stages is not None:
            self.stages.health.note(cause, reason)

    def _apply(self, settings: Settings) -> None:
        """Apply reloaded settings; runs on the driving thread."""
        self.settings = settings
        configure_logs(settings)
        if self.stages is not None:
            self.stages.identifier.reload(settings.identify)
            self._apply_calibration(self.stages)
            try:
                self.stages.gallery.retention.apply(settings.gallery)
                self.stages.gallery.crops.apply(settings.gallery)
            except StorageError as error:
                _log.error("reload_incomplete", setting="gallery", error=str(error))

    def _apply_calibration(self, stages: Stages) -> None:
        """Apply the threshold of the active calibration; its engine needs a restart."""
        try:
            active = current_calibration(self.settings.engine, self.settings.state_dir)
        except EdgeAgentError as error:
            _log.error("reload_incomplete", setting="engine.folder", error=str(error))
            return
        calibration = fitting_calibration(active, stages.embedder.info)
        stages.identifier.calibrate(calibrated_threshold(calibration))


def _copies_heartbeat(
    publisher: AnyPublisher,
) -> dict[str, tuple[Callable[[], HeartbeatState], Callable[[], float]]]:
    """Return the heartbeat of the thread that sends copies, and its longest wait for a broker."""
    copies = publisher.origin.copies
    return {} if copies is None else {"copies": (lambda: copies.heartbeat.latest, lambda: REQUEST_TIMEOUT_S)}


def _alert_stale_calibration(calibration: Calibration, publisher: AnyPublisher, clock: Clock) -> None:
    """Publish that the active calibration is of another network: its precision and threshold are not used."""
    model = calibration.data["model"]
    message = (
        f"the active calibration {calibration.name} is of {model['name']} with profile "
        f"{model['preprocess']}, which does not run here; run `edge-agent calibrate` for the present model"
    )
    _log.warning("calibration_stale", calibration=calibration.name, model=model["name"])
    details = {"calibration": calibration.name}
    publisher.publish(alert_event(AlertKind.CALIBRATION_STALE, message, time=clock.label(), details=details))


def drain(publisher: AnyPublisher, stop: threading.Event) -> None:
    """Wait up to `DRAIN_S` for the broker to acknowledge the last events; a stop request ends the wait."""
    deadline = time.monotonic() + DRAIN_S
    while not stop.is_set() and (left := deadline - time.monotonic()) > 0:
        if publisher.drain(min(DRAIN_STEP_S, left)):
            return
