"""All stages of a run, and their opening in the order in which faults are cheapest to find."""

from __future__ import annotations

import contextlib
import importlib
import shlex
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from edge_agent.agent.command_handlers import CommandHandlers
from edge_agent.agent.crop_keeper import CropKeeper
from edge_agent.agent.databases import make_erasure
from edge_agent.agent.live import LiveView
from edge_agent.agent.outputs import OutcomeWriter, Outputs
from edge_agent.agent.page_people import PeopleOperations
from edge_agent.agent.page_service import PageOperations, PageService
from edge_agent.agent.page_thresholds import ThresholdOperations
from edge_agent.agent.people_events import PeopleEvents, known_person
from edge_agent.agent.preflight import check_before_start
from edge_agent.agent.recorded_replies import RecordedElsewhere
from edge_agent.agent.recording import RecordedCrops, RecordedIdentifier, open_recorder
from edge_agent.agent.shadow import Shadow, open_shadow
from edge_agent.agent.sources import SourceReaders
from edge_agent.agent.status import HealthState, info_data
from edge_agent.core.alerts import AlertKind
from edge_agent.core.clock import CLOCK_FILE, Clock
from edge_agent.core.codec import to_wire
from edge_agent.core.events import CameraInfo, Details, Event, InfoData, alert_event
from edge_agent.core.loading import state_folder
from edge_agent.core.private import is_open, make_private
from edge_agent.core.system_time import TimeSource
from edge_agent.core.timing import Laps, process_age_s
from edge_agent.deliver.commands import open_commands
from edge_agent.deliver.copies import COPIES_FILE, open_copies
from edge_agent.deliver.home_people import PeopleAnnouncer
from edge_agent.deliver.homeassistant import announce
from edge_agent.deliver.http import Api
from edge_agent.deliver.open_tracks import PersonNow
from edge_agent.deliver.outbox import OUTBOX_FILE, Outbox, make_outbox
from edge_agent.deliver.publisher import AnyPublisher, Publisher, open_publisher
from edge_agent.detect.opening import Detection, add_motion_gate, open_detection
from edge_agent.embed.opening import make_crop_selector, open_agent_embedder, open_embedder
from edge_agent.embed.prior import NetworkPrior, load_or_measure
from edge_agent.embed.quality import QualityGate
from edge_agent.engine import is_simulated
from edge_agent.engine.precision.calibration import Calibration, current_calibration
from edge_agent.engine.upstream import UPSTREAM
from edge_agent.gallery.gallery import Gallery, open_gallery
from edge_agent.gallery.rows import HOME_FACT
from edge_agent.health.telemetry import Reading, Telemetry
from edge_agent.identify import Identifier
from edge_agent.identify.site import Calibrated
from edge_agent.source.address import source_kind
from edge_agent.source.messages import MessageSource
from edge_agent.source.opening import open_sources

if TYPE_CHECKING:
    from pathlib import Path

    from edge_agent.agent.fleet_link import Fleet
    from edge_agent.agent.results import FrameOutcome
    from edge_agent.agent.tasks import TaskQueue
    from edge_agent.core.config import Settings, SourceSettings
    from edge_agent.core.structures import EngineInfo
    from edge_agent.deliver.metrics import Metrics
    from edge_agent.embed.embedder import Embedder
    from edge_agent.embed.selection import CropSelector
    from edge_agent.engine.base import Engine
    from edge_agent.fleet.store import FleetStore
    from edge_agent.gallery.erasure import Erasure
    from edge_agent.health.supervisor import Supervisor
    from edge_agent.record.recorder import Recorder
    from edge_agent.source.base import Source

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Supply:
    """Sources and detection that replace those of the settings."""

    sources: Sequence[Source]
    """One for each enabled source of the settings, in their order."""
    detection: Detection | None = None
    """None: the detection of the settings."""
    detection_beside: Callable[[Engine], Detection] | None = None
    """Makes the detection on the device of the ReID network's engine, instead."""
    store: FleetStore | None = None
    """Replaces the store of the fleet; None: that of the settings."""


@dataclass(slots=True)
class Stages:
    """Everything that is open during a run."""

    clock: Clock
    sources: SourceReaders
    embedder: Embedder
    detection: Detection
    gallery: Gallery
    identifier: Identifier
    prior: NetworkPrior | None
    """None where the network was not measured."""
    selector: CropSelector
    telemetry: Telemetry
    erasure: Erasure
    people: PeopleEvents
    handlers: CommandHandlers
    publisher: AnyPublisher
    metrics: Metrics | None
    writer: OutcomeWriter
    health: HealthState
    recorder: Recorder | None
    shadow: Shadow | None
    stale_calibration: Calibration | None
    """The active calibration where it is of another network, else None."""
    fleet: Fleet | None = None
    """None: this device shares nothing."""


@dataclass(slots=True)
class StageOpener:
    """Opens the stages, which `stack` closes; live cameras connect meanwhile."""

    settings: Settings
    outputs: Outputs
    observe: Callable[[FrameOutcome], None] | None
    session: str
    supply: Supply | None
    supervisor: Supervisor
    tasks: TaskQueue
    reload: Callable[[], list[str]]
    """Reloads the settings; returns the keys that need a restart."""
    stack: ExitStack
    system_time: TimeSource | None = None
    """Replaces the clocks of this machine."""
    _laps: Laps = field(default_factory=Laps)
    _building_since: float | None = None
    """When the engine began to be built at this start (monotonic); None when a stored one is used."""
    _built_s: float | None = None
    _recorder: Recorder | None = None
    _shadow: Shadow | None = None

    def open(self, stop: threading.Event) -> Stages:
        """Open everything, except the readers of recordings: see `SourceReaders.start_others`."""
        settings, stack = self.settings, self.stack
        state = state_folder(settings.state_dir)
        clock = self._begin(state, stop)
        sources = self._sources(state, clock)
        enabled = [source for source in settings.sources if source.enabled]
        by_camera = {source.id: own for source, own in zip(sources, enabled, strict=True)}
        readers = SourceReaders(sources, stack, stop, clock.label)
        readers.start_cameras()
        self._laps.lap("sources")
        active = current_calibration(settings.engine, state)
        embedder = self._embedder(state, active)
        self._laps.lap("network")
        prior = self._prior(embedder, state)
        calibration = fitting_calibration(active, embedder.info)
        detection = self._detection(sources, by_camera, clock, embedder.engine)
        self._laps.lap("detector")
        gallery = stack.enter_context(open_gallery(settings, embedder.info, clock, owner=True))
        self._laps.lap("gallery")
        telemetry = stack.enter_context(Telemetry(settings.telemetry, state))
        reading = telemetry.read()
        self._laps.lap("sensors")
        fleet = self._fleet(gallery, clock)
        identifier = self._identifier(gallery, embedder, calibration, prior, clock, fleet)
        info = info_data(
            settings, embedder.info, detection.name, self._cameras(by_camera), reading, calibration
        )
        publisher, erasure, people, handlers = self._delivery(
            info, gallery, identifier, embedder, sources, clock
        )
        metrics = self._metrics(publisher, info, gallery)
        live = LiveView(identifier.tracks, publisher.origin.presence.on_camera, settings.page)
        writer = OutcomeWriter(
            outputs=self.outputs, cameras=len(sources), stack=stack, publisher=publisher, erasure=erasure,
            identifier=identifier, engine=embedder.info, detector=detection.name, metrics=metrics,
            observe=self._observer(embedder, gallery, identifier), device=reading.summary(), clock=clock,
            people=people, live=live, crops=stack.enter_context(CropKeeper(gallery.crops, self.session)),
        )  # fmt: skip
        stages = Stages(
            clock=clock, sources=readers, embedder=embedder, detection=detection, gallery=gallery,
            identifier=identifier, prior=prior, telemetry=telemetry, erasure=erasure, people=people,
            handlers=handlers, publisher=publisher, metrics=metrics, writer=writer,
            selector=self._selector(embedder, identifier, detection),
            health=HealthState(publisher, self.supervisor.set_status_line),
            recorder=self._recorder, shadow=self._shadow,
            stale_calibration=active if calibration is None else None, fleet=fleet,
        )  # fmt: skip
        self._announce(stages, info, reading, live)
        if fleet is not None:
            fleet.lead(identifier.thresholds, publisher.publish, clock.label)
            stack.enter_context(fleet.connect(erasure, people.run, self.tasks))
        return stages

    def _serve_page(self, stages: Stages, info: InfoData, live: LiveView) -> None:
        operations = PageOperations(
            session=self.session,
            live=live,
            recent=stages.publisher.origin.recent,
            handlers=stages.handlers,
            clock=stages.clock,
            info=lambda: to_wire(info),
        )
        people = PeopleOperations(stages.gallery, stages.handlers.operations)
        thresholds = ThresholdOperations(stages.handlers.identifier, self.settings.identify)
        table = operations.table() | people.table() | thresholds.table()
        if stages.fleet is not None:
            table |= stages.fleet.table()
        self.stack.enter_context(PageService(self.settings.state_dir, table))

    def _begin(self, state: Path, stop: threading.Event) -> Clock:
        _mend_permissions(state)
        clock = Clock.open(state / CLOCK_FILE, self.system_time)
        clock.check()
        self.stack.callback(clock.save)
        self.supervisor.begin(state, stop, clock)
        return clock

    def _sources(self, state: Path, clock: Clock) -> Sequence[Source]:
        if self.supply is not None:
            return self.supply.sources
        sources = open_sources(self.settings.sources, state, settings=self.settings, now=clock.moment)
        check_before_start(self.settings, sources)
        return sources

    def _embedder(self, state: Path, calibration: Calibration | None) -> Embedder:
        with self.supervisor.opening("the network"):
            settings, building = self.settings, self._report_build
            if self.supply is None:
                embedder = open_agent_embedder(settings, state, calibration, building=building)
            else:
                embedder = open_embedder(
                    settings.engine, settings.quality, state, calibration, building=building
                )
            if embedder.info.backend == "tensorrt":
                import_scipy_in_background()  # entering takes long, mostly outside of Python
            opened = self.stack.enter_context(embedder)
        if self._building_since is not None:
            self._built_s = time.monotonic() - self._building_since
        return opened

    def _prior(self, embedder: Embedder, state: Path) -> NetworkPrior | None:
        with self.supervisor.opening("the prior of the network"):
            prior = load_or_measure(embedder, state, self.supervisor.progress)
        self._laps.lap("prior")
        return prior

    def _observer(
        self, embedder: Embedder, gallery: Gallery, identifier: Identifier
    ) -> Callable[[FrameOutcome], None] | None:
        """Return what gets every outcome, with what needs its pictures in front."""
        observe = self.observe
        if self._recorder is not None:
            observe = RecordedCrops(self._recorder, gallery, observe)
        if self.settings.engine.shadow_model is None:
            return observe
        self._shadow = open_shadow(
            self.settings, self.settings.state_dir, embedder, identifier.number, gallery.present, observe,
            self.stack,
        )  # fmt: skip
        return self._shadow

    def _identifier(
        self,
        gallery: Gallery,
        embedder: Embedder,
        calibration: Calibration | None,
        prior: NetworkPrior | None,
        clock: Clock,
        fleet: Fleet | None,
    ) -> Identifier:
        scores = None if prior is None else prior.scores
        threshold = calibrated_threshold(calibration)
        asking = None if fleet is None else fleet.asking
        common = gallery, self.session, self.settings.identify, threshold, scores
        if not self.settings.record.enabled:
            return Identifier(*common, asking, shares=fleet is not None)
        asked = None if asking is None else RecordedElsewhere(asking, gallery)
        identifier = RecordedIdentifier(*common, asked, shares=fleet is not None)
        identifier.elsewhere = asked
        self._recorder = open_recorder(
            self.settings, gallery, identifier, embedder.info, scores, threshold, clock, self.session,
            self.stack,
        )  # fmt: skip
        return identifier

    def _fleet(self, gallery: Gallery, clock: Clock) -> Fleet | None:
        if not self.settings.fleet.enabled:
            return None
        from edge_agent.agent.fleet_link import Fleet  # loads asyncio

        return Fleet.of(self.settings, gallery, clock, None if self.supply is None else self.supply.store)

    def _selector(self, embedder: Embedder, identifier: Identifier, detection: Detection) -> CropSelector:
        return make_crop_selector(
            self.settings.engine,
            embedder,
            identifier.tracks,
            lambda camera: detection.levels(camera).new_track,
        )

    def _cameras(self, by_camera: dict[str, SourceSettings]) -> list[CameraInfo]:
        return [
            CameraInfo(camera, source_kind(own.url) if self.supply is None else "memory")
            for camera, own in by_camera.items()
        ]

    def _report_build(self, phase: str, done: int, total: int) -> None:
        self._building_since = self._building_since or time.monotonic()
        self.supervisor.progress(f"building the engine: {phase}, {done} of {total or 'unknown'}")

    def _detection(
        self,
        sources: Sequence[Source],
        by_camera: dict[str, SourceSettings],
        clock: Clock,
        engine: Engine,
    ) -> Detection:
        if self.supply is not None and self.supply.detection_beside is not None:
            return self.supply.detection_beside(engine)
        if self.supply is not None and self.supply.detection is not None:
            return self.supply.detection
        detectors = {camera: own.detector for camera, own in by_camera.items()}
        detection = open_detection(
            self.settings,
            self.stack,
            cameras=detectors,
            messages=[source for source in sources if isinstance(source, MessageSource)],
            current=clock.current,
        )
        return add_motion_gate(self.settings, detection, by_camera, sources)

    def _delivery(
        self,
        info: InfoData,
        gallery: Gallery,
        identifier: Identifier,
        embedder: Embedder,
        sources: Sequence[Source],
        clock: Clock,
    ) -> tuple[AnyPublisher, Erasure, PeopleEvents, CommandHandlers]:
        settings, stack = self.settings, self.stack
        outboxes: dict[str, Outbox] = {}
        settle = gallery.file.log.settle  # an event must not outlive its person in a power cut
        if settings.mqtt.broker is not None:
            outboxes[OUTBOX_FILE] = stack.enter_context(make_outbox(settings, clock, settle=settle))
        if (copies := open_copies(settings, clock, settle)) is not None:
            outboxes[COPIES_FILE] = stack.enter_context(copies).outbox
        erasure = make_erasure(
            settings, gallery, outboxes, sources, self._recorder, lambda: publisher.origin.recent
        )
        handlers = CommandHandlers(
            gallery=gallery,
            identifier=identifier,
            embed=embedder.embed_images,
            gate=QualityGate(settings.quality),
            tasks=self.tasks,
            erasure=erasure,
            reload=self.reload,
            delivery=lambda: publisher.counters,
            state=settings.state_dir,
            people=lambda: people.run(),  # noqa: PLW0108 - made below
        )
        publisher = open_publisher(
            settings.mqtt,
            session=self.session,
            info=lambda: info,
            events=self.outputs.events,
            outbox=outboxes.get(OUTBOX_FILE),
            commands=open_commands(settings.mqtt, handlers.table(), clock, self.session, stack),
            known=partial(_person_now, gallery),
            clock=clock,
            copies=copies,
            stack=stack,
        )
        home = None
        if isinstance(publisher, Publisher) and (choice := settings.mqtt.home_assistant):
            home = PeopleAnnouncer(publisher, gallery.facts, HOME_FACT, withdraw=choice == "remove")
        people = PeopleEvents(gallery, identifier, publisher, clock, home)
        self.tasks.put(people.start)
        return publisher, erasure, people, handlers

    def _metrics(self, publisher: AnyPublisher, info: InfoData, gallery: Gallery) -> Metrics | None:
        port, token = self.settings.telemetry.metrics_port, self.settings.telemetry.http_token
        if port is None:
            return None
        from edge_agent.deliver.metrics import Metrics  # loads prometheus_client

        api = None
        if token is not None:
            api = Api(
                token=token.get_secret_value(),
                origin=publisher.origin,
                stored=publisher.stored,
                people=partial(_people, gallery),
                status=self.supervisor.status,
            )
        return self.stack.enter_context(Metrics(port=port, delivery=publisher, info=info, api=api))

    def _announce(self, stages: Stages, info: InfoData, reading: Reading, live: LiveView) -> None:
        self._serve_page(stages, info, live)
        announce(
            self.settings.mqtt, stages.publisher, info,
            zones=sorted(reading.temperatures_c), rails=sorted(reading.power_w),
        )  # fmt: skip
        self._laps.lap("delivery")
        engine = stages.embedder.info
        if self._built_s is not None:
            stages.publisher.publish(_rebuilt(engine, self._built_s, stages.clock.label()))
        _log.info(
            "started",
            session=self.session,
            sources=[reader.camera for reader in stages.sources.readers],
            detector=stages.detection.name,
            model=engine.model,
            backend=engine.backend,
            precision=engine.precision,
            identities=len(stages.gallery),
            seconds=self._laps.seconds,
            after_s=process_age_s(),
        )
        if engine.backend == UPSTREAM:
            _log.info("no_network_runs", embeddings="computed upstream", space=engine.space)
        if is_simulated(engine.backend):
            _log.warning("no_network_runs", backend=engine.backend, events="mean nothing")


def _rebuilt(engine: EngineInfo, seconds: float, time: float) -> Event:
    """Return the alert that no stored engine fitted at this start."""
    message = (
        f"the engine of {engine.model} ({engine.precision}) was built at this start, in {seconds:.0f} s: no"
        " stored one fitted this network, TensorRT and device"
    )
    details: Details = {
        "seconds": round(seconds, 1),
        "model": engine.model,
        "precision": engine.precision,
    }
    return alert_event(
        AlertKind.ENGINE_REBUILT, message, severity="info", active=False, time=time, details=details
    )


def _people(gallery: Gallery, after: int, most: int) -> list[dict[str, Any]]:
    """Return identities with numbers above `after`, as JSON values."""
    with gallery.file.reading() as rows:
        found = rows.identities("WHERE number > ? ORDER BY number LIMIT ?", after, most)
    return [asdict(one) for one in found]


def _person_now(gallery: Gallery, identity: str) -> PersonNow | None:
    person = known_person(gallery, identity)
    return None if person is None else PersonNow(person.id, person.number, person.name)


def _mend_permissions(state: Path) -> None:
    if changed := make_private(state):
        _log.warning("permissions_mended", folder=str(state), names=changed)
    if is_open(state):
        _log.warning("state_folder_open", folder=str(state), advice=f"chmod 700 {shlex.quote(str(state))}")


def calibrated_threshold(calibration: Calibration | None) -> Calibrated | None:
    """Return the threshold of a calibration, if it has one."""
    if calibration is None or calibration.threshold is None:
        return None
    return Calibrated(calibration.threshold, calibration.pair_rate)


def fitting_calibration(calibration: Calibration | None, engine: EngineInfo) -> Calibration | None:
    """Return the calibration if it is of the network that runs, else None."""
    if calibration is None or calibration.data["space"] != engine.space:
        return None
    return calibration


def import_scipy_in_background() -> None:
    """Import what the second frame's tracks and the first decision need, on a thread.

    scipy holds the interpreter for a quarter of a second, so importing it earlier would delay the start.
    """

    def run() -> None:
        with contextlib.suppress(ImportError):  # reported where it is used
            importlib.import_module("scipy.optimize")

    threading.Thread(target=run, name="imports", daemon=True).start()
