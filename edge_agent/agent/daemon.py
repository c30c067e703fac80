"""The whole agent: stages from the factory, sources, delivery and telemetry around the pipeline."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import platform
import statistics
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from edge_agent import __version__
from edge_agent.agent import factory
from edge_agent.agent.command_handlers import Operations
from edge_agent.agent.pipeline import FrameOutcome, Pipeline
from edge_agent.core.config import Settings, changes, fingerprint
from edge_agent.core.errors import ConfigError, EdgeAgentError, EngineError, StorageError
from edge_agent.core.events import (
    CameraInfo,
    DeviceSummary,
    EngineData,
    InfoData,
    TelemetryData,
    alert_event,
    identity_event,
    to_wire,
)
from edge_agent.core.heartbeat import Heartbeat
from edge_agent.core.logs import configure
from edge_agent.core.structures import EngineInfo, Load, SourceState, SourceStatus
from edge_agent.core.timing import Laps, process_age_s
from edge_agent.deliver.mot import MotFinal, MotWriter
from edge_agent.embed.opening import open_embedder
from edge_agent.embed.quality import QualityGate
from edge_agent.engine import is_simulated
from edge_agent.engine.precision.calibration import current_calibration
from edge_agent.gallery import audit
from edge_agent.health.governor import LOOK_EVERY_S
from edge_agent.health.supervisor import Oversight
from edge_agent.identify import Identifier
from edge_agent.source import source_kind
from edge_agent.source.reader import FrameReader
from edge_agent.track.tracker import Similarity

if TYPE_CHECKING:
    from edge_agent.deliver.metrics import Metrics
    from edge_agent.deliver.publisher import State
    from edge_agent.embed.embedder import Embedder
    from edge_agent.embed.selection import Thinning
    from edge_agent.engine.precision.calibration import Calibration
    from edge_agent.gallery.erasure import Erasure
    from edge_agent.gallery.gallery import Gallery
    from edge_agent.health.cooling import Cooling
    from edge_agent.health.telemetry.reader import Reading, Telemetry
    from edge_agent.source.base import Source

__all__ = ["Agent", "Outputs", "Summary", "Supply", "Tally"]

_log = structlog.get_logger(__name__)

SAVE_INTERVAL_S = 60.0
"""How often what was learnt of the site is written, and expired identities are erased."""

CHORE_WAIT_S = 10.0
"""How long a command waits for the driving thread."""

DRAIN_S = 10.0
"""At the end of recorded files: how long to wait for the broker to take the last events."""

DRAIN_STEP_S = 0.2
"""How often that wait looks whether it shall end."""

LATENCIES = 5000
"""Frames whose times are kept for the medians of the telemetry."""

PACKAGES = ("numpy", "opencv-python", "onnxruntime", "paho-mqtt", "tensorrt")
"""Distributions whose versions `info` names."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """Files that a run writes beside its events.

    Attributes:
        events: every event as a JSON line.
        mot: MOTChallenge rows with identities as known at each frame.
        mot_final: the same with the last identity of each track.
    """

    events: Path | None = None
    mot: Path | None = None
    mot_final: Path | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run did.

    Attributes:
        frames: per source.
        crops: embedded.
        decisions: made.
        identities: in the gallery at the end.
        seconds: wall time from the first frame to the last decision.
        engine_seconds: time inside the ReID network.
        detector_seconds: time inside the detectors' networks.
        stage_seconds: time of the driving thread by stage.
        undelivered: events that the broker has not acknowledged.
    """

    frames: dict[str, int]
    crops: int
    decisions: int
    identities: int
    seconds: float
    engine_seconds: float
    detector_seconds: float
    stage_seconds: dict[str, float]
    undelivered: int


@dataclass(slots=True)
class _Latencies:
    """Milliseconds per stage of the newest frames since they were last taken; medians are told."""

    _spent: dict[str, deque[float]] = field(default_factory=dict)

    def add(self, latency_ms: Mapping[str, float]) -> None:
        """Of one frame."""
        for stage, spent in latency_ms.items():
            self._spent.setdefault(stage, deque(maxlen=LATENCIES)).append(spent)

    def take(self) -> dict[str, float]:
        """Median per stage; they are counted anew from now on."""
        spent, self._spent = self._spent, {}
        return {stage: round(statistics.median(list(all_)), 2) for stage, all_ in spent.items()}


@dataclass(frozen=True, slots=True)
class Tally:
    """What a run has done so far, and lost.

    Attributes:
        crops: embedded.
        batches: that the engine ran.
        engine_seconds: time inside the ReID network.
        frames: taken in, by camera.
        dropped: frames that a newer one replaced before they were taken in, by camera.
        spared: crops that were not embedded, to lower the load or to keep up, by camera.
        overload: those of them that the engine had no time for.
        published: events that the outbox took.
        acknowledged: events that the broker has.
    """

    crops: int
    batches: int
    engine_seconds: float
    frames: dict[str, int]
    dropped: dict[str, int]
    spared: dict[str, int]
    overload: dict[str, int]
    published: int
    acknowledged: int


@dataclass(frozen=True, slots=True)
class Supply:
    """What a run works on instead of what its settings name.

    Attributes:
        sources: one for each enabled source of the settings, in their order.
        detection: who finds people in them; None: whom the settings name.
    """

    sources: Sequence[Source]
    detection: factory.Detection | None = None


@dataclass(slots=True)
class Agent:
    """One run of the agent.

    Args:
        settings: all settings.
        outputs: files to write.
        observe: called with every outcome, on the driving thread; must not block.
        session: id of this run.
        supply: other sources than the settings name.
        heartbeat: of the driving thread.
    """

    settings: Settings
    outputs: Outputs = field(default_factory=Outputs)
    observe: Callable[[FrameOutcome], None] | None = None
    session: str = field(default_factory=lambda: str(uuid.uuid4()))
    supply: Supply | None = None
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    device: DeviceSummary = field(default_factory=DeviceSummary)
    """State of the device as last read."""
    started: float = field(default_factory=time.monotonic)
    reread: Callable[[], Settings] | None = None
    """Reads the settings again."""
    opened: threading.Event = field(default_factory=threading.Event)
    """Set when everything is open, or could not be opened."""
    latencies: _Latencies = field(default_factory=_Latencies)
    """How long the stages took since telemetry was last told."""
    _chores: deque[Callable[[], None]] = field(default_factory=deque)
    _begun_with: Settings = field(init=False)
    _stages: _Stages | None = None
    _oversight: Oversight = field(init=False)
    _over: bool = False
    _waited: set[str] = field(default_factory=lambda: {"frame", "event"})
    """What the log tells of when it comes for the first time."""

    def __post_init__(self) -> None:
        self._begun_with = self.settings
        self._oversight = Oversight(
            settings=lambda: self.settings, note=self._note, session=self.session, describe=self._describe
        )

    def run(self, stop: threading.Event) -> Summary:
        """Until every source has ended or `stop` is set.

        Raises:
            EdgeAgentError: something that the agent needs is missing or broken; the message says what.
        """
        if not self.settings.sources:
            raise ConfigError(
                "no source: name one with --source PATH_OR_URL, or in [[sources]] of the configuration"
            )
        with self._oversight, ExitStack() as stack:
            try:
                stages = self._open(stack, stop)
            finally:
                self.opened.set()
            return self._drive(stages, stop)

    @property
    def stuck(self) -> tuple[str, ...]:
        """Stages that do not get on."""
        return self._oversight.stuck

    @property
    def embedder(self) -> Embedder | None:
        """The embedding stage, once it is open."""
        return self._stages.embedder if self._stages is not None else None

    def tally(self) -> Tally | None:
        """What was done so far; None before the first frame."""
        stages = self._stages
        if stages is None or stages.pipeline is None:
            return None
        counters, delivered = stages.pipeline.counters, stages.publisher.counters
        return Tally(
            crops=stages.embedder.counters.embedded,
            batches=stages.embedder.counters.batches,
            engine_seconds=stages.embedder.engine.run_seconds,
            frames=dict(counters.frames),
            dropped={reader.camera: reader.dropped for reader in stages.readers},
            spared=dict(counters.spared),
            overload=stages.thinning.for_overload.copy(),
            published=delivered.published,
            acknowledged=delivered.acknowledged,
        )

    def watch_memory(self, resident_bytes: int | None) -> None:
        """Look at how much memory the process has."""
        self._oversight.take_memory(resident_bytes)

    def asked_to_stop(self) -> None:
        """Somebody wants an end; call it before `stop` is set."""
        self._oversight.asked_to_stop()

    def reload(self, settings: Settings) -> list[str]:
        """Take over what may change while running; returns the keys that need a restart."""
        live, _ = changes(self.settings, settings)
        _, restart = changes(self._begun_with, settings)
        self._chores.append(lambda: self._take_over(settings))
        _log.info("settings_reloaded", applied=live, restart_required=restart)
        return restart

    def reload_now(self) -> list[str]:
        """Read the settings again and take them over; the old ones stay where the new ones are wrong."""
        if self.reread is None:
            raise ConfigError("this run has no settings that could be read again")
        self._oversight.reloading()
        try:
            return self.reload(self.reread())
        finally:
            self._chores.append(self._oversight.reloaded)  # after what `reload` asked for, if it did

    def _between_frames(self, chore: Callable[[], Any]) -> Any:  # noqa: ANN401  what the chore returns
        """Run `chore` on the driving thread and wait for what it returns."""
        done: Future[Any] = Future()

        def run() -> None:
            try:
                done.set_result(chore())
            except BaseException as problem:  # noqa: BLE001  it belongs to the thread that waits
                done.set_exception(problem)

        self._chores.append(run)
        if self._over:
            raise EngineError("the agent is stopping")
        try:
            return done.result(CHORE_WAIT_S)
        except FutureTimeout:
            raise EngineError(f"the agent was too busy for {CHORE_WAIT_S:.0f} s; try again") from None

    def _open(self, stack: ExitStack, stop: threading.Event) -> _Stages:
        """Open everything, in the order in which faults are cheapest to find; cameras connect meanwhile."""
        settings = self.settings
        laps = Laps()
        state = factory.state_folder(settings.state_dir)
        self._oversight.begin(state, stop)
        supply = self.supply
        sources = factory.open_sources(settings, state) if supply is None else list(supply.sources)
        sight = _Reading(sources, stack, stop)
        sight.start_cameras()
        laps.lap("sources")
        active = current_calibration(settings.engine, state)
        with self._oversight.opening("the network"):
            embedder = open_embedder(
                settings.engine, settings.quality, state, active, building=self._tell_build
            )
            if embedder.info.backend == "tensorrt":
                _load_beside()  # to open it takes long, and is not done in Python
            stack.enter_context(embedder)
        laps.lap("network")
        calibration = _of_space(active, embedder.info)
        enabled = [source for source in settings.sources if source.enabled]
        own = {source.id: its for source, its in zip(sources, enabled, strict=True)}
        detection = supply.detection if supply is not None else None
        if detection is None:
            detection = factory.open_detection(
                settings, stack, cameras={camera: its.detector for camera, its in own.items()}
            )
            detection = factory.rest_while_still(settings, detection, own, sources)
        laps.lap("detector")
        gallery = stack.enter_context(factory.open_gallery(settings, embedder.info, owner=True))
        laps.lap("gallery")
        telemetry = stack.enter_context(factory.open_telemetry(settings, state))
        reading = telemetry.read()
        laps.lap("sensors")
        self.device = reading.summary()
        info = self._info(embedder.info, detection.name, sources, reading, calibration)
        mot, mot_final = self.outputs.mot, self.outputs.mot_final
        identifier = Identifier(
            gallery, self.session, settings.identify, None if calibration is None else calibration.threshold
        )
        outbox = factory.open_outbox(settings, state, stack)
        erasure = factory.make_erasure(settings, gallery, outbox, sources)
        operations = Operations(
            gallery=gallery,
            identifier=identifier,
            embed=embedder.embed_images,
            gate=QualityGate(settings.quality),
            between_frames=self._between_frames,
            erasure=erasure,
            reload=self.reload_now,
            stats=lambda: {"delivery": asdict(publisher.counters)},
            state=state,
        )
        publisher = factory.open_publisher(
            settings,
            session=self.session,
            info=lambda: info,
            events=self.outputs.events,
            outbox=outbox,
            commands=factory.open_commands(settings, operations, stack),
            stack=stack,
        )
        stages = _Stages(
            embedder=embedder,
            detection=detection,
            gallery=gallery,
            identifier=identifier,
            telemetry=telemetry,
            chores=self._chores,
            erasure=erasure,
            thinning=factory.make_thinning(settings, embedder, detection),
            mot=stack.enter_context(MotWriter(mot, len(sources))) if mot else None,
            mot_final=MotFinal(mot_final, len(sources)) if mot_final else None,
            publisher=publisher,
            health=_Health(publisher, self._oversight.tell),
            metrics=factory.open_metrics(settings, publisher, info, stack),
            readers=sight.readers,
            wake=sight.wake,
        )
        laps.lap("delivery")
        factory.announce(settings, publisher, info, reading)
        _log.info(
            "started",
            session=self.session,
            sources=[source.id for source in sources],
            detector=detection.name,
            model=embedder.info.model,
            backend=embedder.info.backend,
            precision=embedder.info.precision,
            identities=len(gallery),
            seconds=laps.seconds,
            after_s=_age(),
        )
        if is_simulated(embedder.info.backend):
            _log.warning("no_network_runs", backend=embedder.info.backend, events="mean nothing")
        stages.health.tell("online")
        if active is not None and calibration is None:
            _tell_stale(active, publisher)
        sight.start_others(stages.health.on_status)
        _load_beside()
        return stages

    def _drive(self, stages: _Stages, stop: threading.Event) -> Summary:
        settings = self.settings
        self._stages = stages
        similarity = Similarity()
        pipeline = Pipeline(
            readers=stages.readers,
            wake=stages.wake,
            detect=stages.detection.detect,
            embedder=stages.embedder,
            make_tracker=lambda camera: factory.make_tracker(
                settings, camera, stages.detection.levels(camera), similarity
            ),
            make_upstream_tracker=lambda camera: factory.make_upstream_tracks(settings, camera),
            identifier=stages.identifier,
            on_outcome=lambda outcome: self._deliver(outcome, stages),
            tasks=stages.chores,
            selector=stages.thinning,
            max_delay_s=settings.engine.max_delay_ms / 1000,
            heartbeat=self.heartbeat,
        )
        stages.pipeline = pipeline
        began = time.perf_counter()
        cooling = factory.make_cooling(
            lambda: self.settings,
            stages.telemetry,
            stages.readers,
            apply=lambda load: _lower(load, pipeline),
            publish=stages.publisher.publish,
            note=stages.health.note,
        )
        stages.cooling = cooling
        with _Beats(self, pipeline, stages) as beats, cooling:
            self._oversight.watch(
                lambda: pipeline.heartbeat.latest,
                {
                    "telemetry": (
                        lambda: beats.heartbeat.latest,
                        lambda: self.settings.telemetry.interval_s,
                    ),
                    "governor": (lambda: cooling.heartbeat.latest, lambda: LOOK_EVERY_S),
                },
                stages.readers,
                stages.publisher,
            )
            try:
                pipeline.run(stop)
            finally:
                self._wind_up(stages)
        seconds = time.perf_counter() - began
        if stages.mot_final is not None:
            stages.mot_final.finish(stages.identifier.number)
        if not stop.is_set():
            for reader in stages.readers:
                reader.stop()  # so that their last words are among what is waited for
            _drain(stages.publisher, stop)
            _raise_first_error(stages.readers)
        return Summary(
            frames=dict(pipeline.counters.frames),
            crops=stages.embedder.counters.embedded,
            decisions=pipeline.counters.decisions,
            identities=len(stages.gallery),
            seconds=seconds,
            engine_seconds=stages.embedder.engine.run_seconds,
            detector_seconds=stages.detection.network_seconds(),
            stage_seconds=dict(pipeline.counters.seconds),
            undelivered=stages.publisher.counters.outbox_rows,
        )

    def _deliver(self, outcome: FrameOutcome, stages: _Stages) -> None:
        """Publish what was decided, and write what was asked for."""
        self._tell_first("frame", outcome.update.camera)
        for decision in outcome.decisions:
            event = identity_event(
                decision,
                engine=stages.embedder.info,
                device=self.device,
                latency_ms=outcome.latency_ms,
                detector=stages.detection.name,
                trace=outcome.trace,
            )
            stages.publisher.publish(event)
            stages.erasure.note(decision)
            self._tell_first("event", decision.camera)
        self.latencies.add(outcome.latency_ms)
        if stages.metrics is not None:
            for stage, spent in outcome.latency_ms.items():
                stages.metrics.observe(stage, spent / 1000)
        if stages.mot is not None:
            stages.mot.write(outcome.update, stages.identifier.number)
        if stages.mot_final is not None:
            stages.mot_final.write(outcome.update)
        if self.observe is not None:
            self.observe(outcome)

    def _tell_first(self, what: str, camera: str) -> None:
        if what in self._waited:
            self._waited.remove(what)
            _log.info(f"first_{what}", camera=camera, after_s=_age())

    def _wind_up(self, stages: _Stages) -> None:
        """Tell everybody that no further frame will be taken, and keep what was learnt of the site."""
        self._oversight.stopping()
        stages.health.tell("stopping")
        _ask_to_stop(stages.readers)
        self._over = True
        while self._chores:  # somebody waits for them
            self._chores.popleft()()
        _save(stages.identifier)

    def _note(self, cause: str, reason: str) -> None:
        """Something keeps the agent from working fully, or ("") no longer does."""
        if self._stages is not None:
            self._stages.health.note(cause, reason)

    def _describe(self) -> dict[str, Any]:
        """For the status: what was told last, and no question to anything that may hang."""
        stages = self._stages
        if stages is None or self._over:
            return {}
        told = stages.told
        return {
            "state": stages.health.state,
            "reason": stages.health.reason,
            "sources": [
                {
                    "camera": reader.camera,
                    "state": reader.state.value if reader.state is not None else "opening",
                    "reason": reader.heartbeat.idle or reader.heartbeat.task,
                    "delivered": reader.delivered,
                    "dropped": reader.dropped,
                    "still": stages.detection.still().get(reader.camera),
                    "overload": stages.thinning.for_overload.get(reader.camera, 0),
                }
                for reader in stages.readers
            ],
            "delivery": {
                "connection": stages.publisher.state.value,
                "problem": stages.publisher.heartbeat.idle,
            },
            "governor": _governor(stages.cooling),
            "telemetry": None if told is None else to_wire(told),
        }

    def _take_over(self, settings: Settings) -> None:
        """Apply reloaded settings, between two frames."""
        self.settings = settings
        configure(settings.log_level, always=factory.log_facts(settings))
        if self._stages is not None:
            self._stages.identifier.reload(settings.identify)
            self._take_over_calibration(self._stages)
            try:
                factory.adjust_gallery(self._stages.gallery, settings)
            except StorageError as problem:
                _log.error("reload_incomplete", setting="gallery.ttl_hours", error=str(problem))

    def _tell_build(self, phase: str, done: int, total: int) -> None:
        """A plan is being built, which takes minutes: systemd and `edge-agent status` are told."""
        self._oversight.progress(f"building the engine: {phase}, {done} of {total or 'unknown'}")

    def _take_over_calibration(self, stages: _Stages) -> None:
        """Use the threshold of the calibration that is active now; its engine needs a restart."""
        try:
            active = current_calibration(self.settings.engine, self.settings.state_dir)
        except EdgeAgentError as problem:
            _log.error("reload_incomplete", setting="engine.folder", error=str(problem))
            return
        calibration = _of_space(active, stages.embedder.info)
        stages.identifier.calibrated = None if calibration is None else calibration.threshold

    def _info(
        self,
        engine: EngineInfo,
        detector: str,
        sources: Sequence[Source],
        reading: Reading,
        calibration: Calibration | None,
    ) -> InfoData:
        enabled = [source for source in self.settings.sources if source.enabled]
        cameras = [
            CameraInfo(source.id, source_kind(own.url) if self.supply is None else "memory")
            for source, own in zip(sources, enabled, strict=True)
        ]
        return InfoData(
            version=__version__,
            model=EngineData.of(engine),
            simulated=is_simulated(engine.backend),
            detector=detector,
            cameras=tuple(cameras),
            enrolment=self.settings.identify.enrolment,
            calibration=None if calibration is None else calibration.summary(),
            config_hash=fingerprint(self.settings),
            python=platform.python_version(),
            platform=f"{platform.system()} {platform.release()} {platform.machine()}",
            board=reading.board,
            l4t=reading.l4t,
            packages=_versions(),
        )


@dataclass(slots=True)
class _Stages:
    """Everything that is open during a run."""

    embedder: Embedder
    detection: factory.Detection
    gallery: Gallery
    identifier: Identifier
    telemetry: Telemetry
    publisher: factory.Publish
    health: _Health
    metrics: Metrics | None
    chores: deque[Callable[[], None]]
    erasure: Erasure
    thinning: Thinning
    mot: MotWriter | None
    mot_final: MotFinal | None
    readers: list[FrameReader] = field(default_factory=list)
    pipeline: Pipeline | None = None
    cooling: Cooling | None = None
    told: TelemetryData | None = None
    """The telemetry that was told last."""
    wake: threading.Event = field(default_factory=threading.Event)


@dataclass(slots=True)
class _Health:
    """Tells the broker how the cameras and the agent are. Called from the readers' threads."""

    publisher: factory.Publish
    show: Callable[[str], None]
    """Gets the same as one line, for the service manager."""
    state: State = "online"
    """What was told last."""
    reason: str = ""
    """Why, as told last."""
    _causes: dict[str, str] = field(default_factory=dict)
    _latest: dict[str, SourceStatus] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def tell(self, state: State, reason: str = "") -> None:
        """Say how the agent is; once it is stopping, nothing else."""
        if self.state != "stopping":
            self.state, self.reason = state, reason
            self.show(f"{state}: {reason}" if reason else state)
            self.publisher.set_status(state, reason)

    def note(self, cause: str, reason: str) -> None:
        """Something keeps the agent from working fully, or ("") no longer does."""
        with self._lock:
            self._judge(cause, reason)

    def _judge(self, cause: str, reason: str) -> None:
        self._causes.pop(cause, None)
        if reason:
            self._causes[cause] = reason
        self.tell("degraded" if self._causes else "online", "; ".join(self._causes.values()))

    def on_status(self, status: SourceStatus) -> None:
        """A camera came, went or ended."""
        with self._lock:
            before = self._latest.get(status.camera)
            self._latest[status.camera] = status
            self.publisher.set_camera_status(status)
            down = [name for name, latest in sorted(self._latest.items()) if latest.state in _DOWN]
            self._judge("cameras", f"no frames from {', '.join(down)}" if down else "")
            self._alert(before, status)

    def _alert(self, before: SourceStatus | None, status: SourceStatus) -> None:
        """An alert when a camera is given up for the time being, and when it is back."""
        was_lost = before is not None and before.state is SourceState.OFFLINE
        is_lost = status.state is SourceState.OFFLINE
        if was_lost == is_lost or (was_lost and status.state is SourceState.RECONNECTING):
            return
        what = f"is offline: {status.reason}" if is_lost else "is back"
        alert = alert_event(
            "camera_lost",
            f"camera {status.camera} {what}",
            active=is_lost,
            time=status.time,
            details={"camera": status.camera},
        )
        self.publisher.publish(alert)


class _Reading:
    """The readers of all sources: cameras connect while the networks open, what can wait is read after that.

    What the readers say is kept until somebody listens.
    """

    def __init__(self, sources: Sequence[Source], stack: ExitStack, stop: threading.Event) -> None:
        self.wake = threading.Event()
        self.readers = [FrameReader(source, wake=self.wake, on_status=self._hear) for source in sources]
        self._cameras = [reader for reader in self.readers if reader.live and not reader.ends]
        self._stop = stop
        # They are asked to end first, and left last: while the publisher says goodbye they end.
        self._ends_last = stack.enter_context(ExitStack())
        self._kept: list[SourceStatus] = []
        self._to: Callable[[SourceStatus], None] | None = None
        self._lock = threading.Lock()

    def start_cameras(self) -> None:
        """Connect to what drops its frames until somebody takes them."""
        self._start(self._cameras)

    def start_others(self, on_status: Callable[[SourceStatus], None]) -> None:
        """Read the rest too; `on_status` gets what was said, and all that follows."""
        with self._lock:
            for status in self._kept:
                on_status(status)
            self._to = on_status
        self._start([reader for reader in self.readers if reader not in self._cameras])

    def _start(self, readers: Sequence[FrameReader]) -> None:
        if not self._stop.is_set():
            for reader in readers:
                self._ends_last.enter_context(reader)
            self._ends_last.callback(_ask_to_stop, readers)

    def _hear(self, status: SourceStatus) -> None:
        with self._lock:
            if self._to is None:
                self._kept.append(status)
                return
        self._to(status)


def _ask_to_stop(readers: Sequence[FrameReader]) -> None:
    """So that they end together, not in turn."""
    for reader in readers:
        reader.ask_to_stop()


def _load_beside() -> None:
    """Load what the second frame's tracks and the first decision need, while the first frame is looked at.

    scipy takes a quarter of a second of the interpreter, so any sooner it would hold up the start itself.
    """
    threading.Thread(target=_import_scipy, name="imports", daemon=True).start()


def _import_scipy() -> None:
    with contextlib.suppress(ImportError):  # whoever needs it says so
        importlib.import_module("scipy.optimize")


def _age() -> float | None:
    """Seconds since the process began."""
    age = process_age_s()
    return None if age is None else round(age, 2)


def _of_space(calibration: Calibration | None, engine: EngineInfo) -> Calibration | None:
    """The calibration, if it is of the network that runs."""
    if calibration is None or calibration.data["space"] != engine.space:
        return None
    return calibration


def _tell_stale(calibration: Calibration, publisher: factory.Publish) -> None:
    """Say that the active calibration is of another network, so neither precision nor threshold is used."""
    model = calibration.data["model"]
    message = (
        f"the active calibration {calibration.name} is of {model['name']} with profile "
        f"{model['preprocess']}, which does not run here; run `edge-agent calibrate` for the present model"
    )
    _log.warning("calibration_stale", calibration=calibration.name, model=model["name"])
    publisher.publish(
        alert_event(
            "calibration_stale",
            message,
            time=time.time(),
            details={"calibration": calibration.name},
        )
    )


def _lower(load: Load, pipeline: Pipeline) -> None:
    """Keep to this load from the next round on; tracks of cameras that are closed now end."""
    for camera in set(load.closed) - set(pipeline.load.closed):
        pipeline.tasks.append(partial(pipeline.end_tracks, camera))
    pipeline.load = load


_DOWN = (SourceState.RECONNECTING, SourceState.OFFLINE)


def _drain(publisher: factory.Publish, stop: threading.Event) -> None:
    """Wait for the broker to take the last events, but not against the word of somebody who wants an end."""
    deadline = time.monotonic() + DRAIN_S
    while not stop.is_set() and (left := deadline - time.monotonic()) > 0:
        if publisher.drain(min(DRAIN_STEP_S, left)):
            return


def _raise_first_error(readers: Sequence[FrameReader]) -> None:
    """Once nothing is left to do: why a source was given up, if one was."""
    for reader in readers:
        if reader.error is not None:
            raise reader.error


@dataclass(slots=True)
class _Beats:
    """The slow thread: telemetry, expiry, and saving what was learnt."""

    agent: Agent
    pipeline: Pipeline
    stages: _Stages
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    """Of this thread."""
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _last: tuple[float, int, dict[str, int]] | None = None
    _saved: float = field(default_factory=time.monotonic)
    _throttled: bool = False

    def __enter__(self) -> _Beats:
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
            last = self._stop.is_set()  # once more at the end: a run may be shorter than an interval
            self.heartbeat.working("read sensors")
            try:
                self._beat()
            except EdgeAgentError as problem:
                _log.warning("telemetry_failed", error=str(problem))
            self.heartbeat.idle("waits for the next interval")
            self._stop.wait(self.agent.settings.telemetry.interval_s)

    def _beat(self) -> None:
        reading = self.stages.telemetry.read()
        self.agent.device = reading.summary()
        self._tell_throttling(reading)
        told = self._telemetry(reading)
        self.stages.told = told
        self.stages.publisher.send_telemetry(told)
        self.agent.watch_memory(reading.process_memory_bytes)
        if self.stages.metrics is not None:
            self.stages.metrics.take(told)
        if time.monotonic() - self._saved >= SAVE_INTERVAL_S:
            self._saved = time.monotonic()
            _save(self.stages.identifier)
            gone = self.stages.gallery.expire(time.time())
            if gone:
                _log.info("identities_expired", people=len(gone))
                audit.record(self.agent.settings.state_dir, "expire", "agent", people=len(gone))
        self.stages.erasure.run()

    def _tell_throttling(self, reading: Reading) -> None:
        """An alert when the board begins to hold its clocks down, and when that is over."""
        now = bool(reading.throttled)
        if now == self._throttled:
            return
        self._throttled = now
        why = ", ".join(reading.throttle_reasons)
        alert = alert_event(
            "thermal_throttle",
            f"the board holds its clocks down ({why})"
            if now
            else "the board no longer holds its clocks down",
            active=now,
            time=time.time(),
            details={"reasons": why or None, "zone": reading.hottest_zone, "celsius": reading.hottest_c},
        )
        self.stages.publisher.publish(alert)

    def _telemetry(self, reading: Reading) -> TelemetryData:
        now, crops = time.monotonic(), self.stages.embedder.counters.embedded
        frames = dict(self.pipeline.counters.frames)
        before = self._last or (self.agent.started, 0, {})
        self._last = (now, crops, frames)
        span = max(now - before[0], 1e-3)
        delivered = self.stages.publisher.counters
        readers = self.stages.readers
        dropped = {f"frames:{reader.camera}": reader.dropped for reader in readers if reader.dropped}
        dropped |= {f"skipped:{camera}": n for camera, n in self.pipeline.counters.skipped.items()}
        if spared := self.stages.embedder.counters.spared:
            dropped["crops:spared"] = spared
        thinning = self.stages.thinning
        dropped |= {f"spared:{camera}": n for camera, n in thinning.for_load.copy().items()}
        dropped |= {f"overload:{camera}": n for camera, n in thinning.for_overload.copy().items()}
        verdict = self.stages.cooling.verdict if self.stages.cooling is not None else None
        dropped |= {f"crops:{why}": n for why, n in self.stages.embedder.counters.refused.items()}
        return reading.telemetry(
            uptime_s=round(now - self.agent.started, 1),
            state=self.stages.health.state,
            governor_state=verdict.state if verdict is not None else None,
            governor_step=verdict.step if verdict is not None else None,
            stuck=self.agent.stuck,
            frames_per_s={k: round((n - before[2].get(k, 0)) / span, 2) for k, n in frames.items()},
            crops_per_s=round((crops - before[1]) / span, 2),
            queues={reader.camera: reader.waiting for reader in readers},
            dropped=dropped,
            still_frames=dict(self.stages.detection.still()),
            people_present=self.stages.identifier.present,
            identities=len(self.stages.gallery),
            latency_ms=self.agent.latencies.take(),
            connection=self.stages.publisher.state.value,
            connects=delivered.connects,
            outbox_rows=delivered.outbox_rows,
            outbox_bytes=delivered.outbox_bytes,
            outbox_parked=delivered.outbox_parked,
        )


def _governor(cooling: Cooling | None) -> dict[str, Any] | None:
    if cooling is None:
        return None
    return {**asdict(cooling.verdict), "steps": len(cooling.rungs) - 1, "does": cooling.doing}


def _save(identifier: Identifier) -> None:
    try:
        identifier.save()
    except StorageError as problem:
        _log.warning("site_scores_not_saved", error=str(problem))


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
