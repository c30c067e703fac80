"""Takes part in the fleet: the store, the exchange, and the questions about strangers, for one run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog

from edge_agent.core.alerts import AlertKind
from edge_agent.core.errors import EdgeAgentError
from edge_agent.core.events import Details, Event, alert_event
from edge_agent.core.fleet_state import FleetState
from edge_agent.fleet.ask import Asking
from edge_agent.fleet.reconciler import Reconciler
from edge_agent.fleet.sync import Sync
from edge_agent.fleet.travel import Travel
from edge_agent.fleet.worker import FleetWorker
from edge_agent.gallery import audit

if TYPE_CHECKING:
    from edge_agent.agent.page_service import Answer, Operation
    from edge_agent.agent.tasks import TaskQueue
    from edge_agent.core.clock import Clock
    from edge_agent.core.config import Settings
    from edge_agent.fleet.records import Pair
    from edge_agent.fleet.store import FleetStore
    from edge_agent.gallery.erasure import Erasure
    from edge_agent.gallery.gallery import Gallery
    from edge_agent.gallery.rows import Erased
    from edge_agent.identify.site import ThresholdPolicy

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Fleet:
    """What of the fleet is open during a run; `worker` has to be entered after `connect`."""

    settings: Settings
    gallery: Gallery
    worker: FleetWorker
    asking: Asking | None
    """None: the store is not asked about strangers."""
    reconciler: Reconciler | None = None
    _erasure: Erasure | None = None
    _publish: Callable[[], None] = field(default=lambda: None)
    _tasks: TaskQueue | None = None
    _published: bool = True

    @classmethod
    def of(cls, settings: Settings, gallery: Gallery, clock: Clock, store: FleetStore | None = None) -> Fleet:
        """Return the fleet of the settings; `store` replaces that of the settings."""
        device, ask_s = settings.mqtt.device, settings.fleet.ask_ms / 1000
        store = store or open_store(settings, gallery)
        sync = Sync(gallery, store, device)
        worker = FleetWorker(sync, store, settings.fleet.sync_s, clock.label)
        travel = Travel(device, settings.fleet.travel, gallery.facts, settings.fleet.learn_travel)
        asking = Asking(device, gallery, sync, worker.submit, ask_s, travel) if ask_s else None
        fleet = cls(settings, gallery, worker, asking)
        sync.erase, sync.changed, sync.erased_one = fleet.erase, fleet.changed, fleet.erased
        return fleet

    def connect(self, erasure: Erasure, publish: Callable[[], None], tasks: TaskQueue) -> FleetWorker:
        """Note what is needed when the site changes people here, and return what has to be entered.

        `publish` lets open tracks follow and publishes what happened, on the driving thread.
        """
        self._erasure, self._publish, self._tasks = erasure, publish, tasks
        return self.worker

    def lead(
        self, thresholds: ThresholdPolicy, publish: Callable[[Event], object], label: Callable[[], float]
    ) -> None:
        """Do the tasks of the site when this device has the lease; call it before `connect`.

        `thresholds` are those of this device; `publish` publishes events, from any thread, with times by
        `label`.
        """

        def report(pair: Pair, active: bool) -> None:
            publish(conflict_alert(pair, active=active, time=label()))

        device = self.settings.mqtt.device
        self.reconciler = Reconciler(device, self.gallery, thresholds.as_stored, report)
        self.worker.tasks += self.reconciler.tasks()

    def table(self) -> dict[str, Operation]:
        """Return what commands may ask of a running agent, see `agent.page_service`."""
        return {"fleet-sync": self._sync_now}

    def _sync_now(self, _values: Mapping[str, Any], _bytes: bytes) -> Answer:
        self.worker.sync_now()
        return {}, b""

    @property
    def state(self) -> FleetState:
        """The state now, from any thread."""
        address, worker, sync = self.settings.fleet.address, self.worker, self.worker.sync
        counts = None if self.asking is None else self.asking.counts
        return FleetState(
            site=self.settings.mqtt.site,
            store="" if address is None else address.authority,
            link=worker.link,
            problem=worker.problem,
            retry_s=worker.retry_s,
            mark=sync.applied,
            version=None if sync.applied is None else max(sync.version, sync.applied),
            pending=sync.waiting,
            sent=sync.sent,
            received=sync.received,
            asked=0 if counts is None else counts.asked,
            known=0 if counts is None else counts.known,
            late=0 if counts is None else counts.late,
            unasked=0 if counts is None else counts.unasked,
            conflicts=self.reconciler.conflicts if self.reconciler and worker.leads else None,
            exchanged=worker.exchanged,
        )

    # ---- called on the fleet's thread

    def erase(self) -> None:
        """Delete the events and pictures of people whom the site erased."""
        if self._erasure is not None:
            self._erasure.run()

    def erased(self, person: Erased) -> None:
        """Note in the audit file that the site erased a person."""
        with contextlib.suppress(EdgeAgentError):  # as of a full disk: the person is erased all the same
            audit.record(self.settings.state_dir, "forget", "fleet", exemplars=person.exemplars)

    def changed(self) -> None:
        """Let the driving thread follow changes of people, once for all that come until then."""
        if self._published and self._tasks is not None:
            self._published = False
            self._tasks.put(self._follow)

    def _follow(self) -> None:
        self._published = True
        self._publish()


def conflict_alert(pair: Pair, *, active: bool, time: float) -> Event:
    """Return the alert that two people are probably one but have two names, or that this has ended."""
    both = f"{pair.one} and {pair.other}"
    message = (
        f"{both} are probably one person but have two names: edge-agent gallery merge {pair.one}"
        f" {pair.other}, or edge-agent gallery reject {pair.one} {pair.other}"
        if active
        else f"it is decided whether {both} are one person"
    )
    details: Details = {"one_id": pair.one, "other_id": pair.other}
    return alert_event(AlertKind.FLEET_CONFLICT, message, active=active, time=time, details=details)


def open_store(settings: Settings, gallery: Gallery) -> FleetStore:
    """Return the store of the settings, which connects by itself; ConfigError: its client is missing."""
    from importlib.util import find_spec

    from edge_agent.core.distribution import install_command
    from edge_agent.core.errors import ConfigError

    if find_spec("asyncpg") is None:
        raise ConfigError(f"the fleet needs asyncpg: {install_command('fleet')}")
    from edge_agent.fleet.postgres.connection import Login
    from edge_agent.fleet.postgres.store import PostgresStore

    fleet = settings.fleet
    assert fleet.address is not None  # the settings are checked
    password = None if fleet.password is None else fleet.password.get_secret_value()
    login = Login(fleet.address, password, fleet.ca_file, fleet.cert_file, fleet.key_file)
    return PostgresStore(login, gallery.file.space, settings.mqtt.device)
