"""The governor thread: check temperatures, apply load steps, and report every step."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal, Protocol

import structlog

from edge_agent.core.alerts import AlertKind
from edge_agent.core.config import GovernorSettings, Settings
from edge_agent.core.events import Event, alert_event
from edge_agent.core.heartbeat import Heartbeat
from edge_agent.core.structures import Load
from edge_agent.health.governor import CHECK_INTERVAL_S, Governor, Rung, Verdict, Zones, ladder
from edge_agent.health.telemetry import Telemetry

_log = structlog.get_logger(__name__)


class PausableSource(Protocol):
    """A camera that can be closed for a while; see `edge_agent.source.reader.FrameReader`."""

    @property
    def camera(self) -> str: ...  # noqa: D102
    @property
    def live(self) -> bool: ...  # noqa: D102
    @property
    def ends(self) -> bool: ...  # noqa: D102
    def close(self, reason: str) -> None: ...  # noqa: D102
    def reopen(self) -> None: ...  # noqa: D102


def make_cooling(
    settings: Callable[[], Settings],
    telemetry: Telemetry,
    readers: Sequence[PausableSource],
    *,
    apply: Callable[[Load], None],
    publish: Callable[[Event], object],
    note: Callable[[str, str], None],
    label: Callable[[], float],
) -> Cooling:
    """Make the governor thread of a run; not yet entered. Steps close cameras, never recordings.

    `readers` are those of the enabled sources, in their order, or none in a run that stops already. For the
    other arguments see `Cooling`.
    """
    now = settings()
    enabled = [source for source in now.sources if source.enabled]
    closable = [pair for pair in zip(readers, enabled, strict=False) if pair[0].live and not pair[0].ends]
    cameras = [(reader.camera, own.priority) for reader, own in closable]
    return Cooling(
        settings=lambda: settings().governor,
        heat=telemetry.heat,
        rungs=ladder(cameras, max_batch=now.engine.max_batch),
        cameras=[reader for reader, _ in closable],
        apply=apply,
        publish=publish,
        label=label,
        note=note,
    )


@dataclass(slots=True)
class Cooling:
    """Runs while it is entered.

    Args:
        settings: called at each check.
        heat: returns temperature and limit of every zone, in degrees Celsius.
        rungs: the steps, from full load on.
        cameras: those that a step may close.
        apply: limits the stages to a load.
        publish: receives alerts.
        note: called with a cause of degraded work and its reason; "" when it is over.
        label: returns the time of an alert, Unix seconds.
    """

    settings: Callable[[], GovernorSettings]
    heat: Callable[[], tuple[Zones, Zones]]
    rungs: Sequence[Rung]
    cameras: Sequence[PausableSource]
    apply: Callable[[Load], None]
    publish: Callable[[Event], object]
    note: Callable[[str, str], None]
    label: Callable[[], float]
    verdict: Verdict = field(default_factory=lambda: Verdict("off", reason="not checked yet"))
    """The latest verdict, for any thread."""
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    _governor: Governor | None = None
    _blind_reported: bool = False
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Cooling:
        self._thread = threading.Thread(target=self._run, name="governor", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(2.0)

    @property
    def doing(self) -> str:
        """Name of the present step."""
        return self.rungs[self.verdict.step].name

    def _run(self) -> None:
        while not self._stop.is_set():
            self.heartbeat.working("check temperatures")
            self._check()
            self.heartbeat.idle(f"{self.verdict.state}, step {self.verdict.step}")
            self._stop.wait(CHECK_INTERVAL_S)

    def _check(self) -> None:
        before, self.verdict = self.verdict, self._next_verdict()
        now = self.verdict
        if now.step != before.step:
            load = self.rungs[now.step].load
            self.apply(load)
            for camera in self.cameras:
                if camera.camera in load.closed:
                    camera.close("closed by the governor: the board is too hot")
                else:
                    camera.reopen()
        if (now.state, now.step) != (before.state, before.step):
            self._report(before, now)

    def _next_verdict(self) -> Verdict:
        settings = self.settings()
        if settings.enabled == "off":
            self._governor = None
            return Verdict("off", reason="governor.enabled is off")
        if self._governor is None:
            self._governor = Governor(len(self.rungs) - 1, settings)
        self._governor.settings = settings
        return self._governor.update(time.monotonic(), *self.heat())

    def _report(self, before: Verdict, now: Verdict) -> None:
        """Log a change; publish it if the load is or was reduced, or if a required governor is blind."""
        (_log.warning if now.step > before.step else _log.info)(
            "governor", state=now.state, step=now.step, does=self.doing, reason=now.reason
        )
        self.note("heat", f"load reduced because of heat: {self.doing}" if now.step else "")
        report_blind = now.state == "blind" and (self.settings().enabled == "on" or now.step > 0)
        if now.step or before.step or report_blind or self._blind_reported:
            self.publish(self._alert(now, _severity(before, now)))
        self._blind_reported = report_blind

    def _alert(self, now: Verdict, severity: Literal["info", "warning", "critical"]) -> Event:
        steps = len(self.rungs) - 1
        details = {name: value for name, value in asdict(now).items() if name != "reason"} | {"steps": steps}
        if now.state == "blind":
            message = f"the governor cannot read the temperatures: {now.reason}"
        elif now.step:
            message = f"load reduced because of heat, step {now.step} of {steps}: {self.doing}; {now.reason}"
        else:
            message = "the load is no longer reduced because of heat"
        return alert_event(
            AlertKind.GOVERNOR,
            message,
            severity=severity,
            active=bool(now.step) or now.state == "blind",
            time=self.label(),
            details=details,
        )


def _severity(before: Verdict, now: Verdict) -> Literal["info", "warning", "critical"]:
    if now.state == "exhausted":
        return "critical"
    return "warning" if now.step > before.step or now.state == "blind" else "info"
