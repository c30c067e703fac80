"""The governor at work: a thread that looks at the heat, lowers the load, and tells of every step."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import structlog

from edge_agent.core.config import GovernorSettings
from edge_agent.core.events import Event, alert_event
from edge_agent.core.heartbeat import Heartbeat
from edge_agent.core.structures import Load
from edge_agent.health.governor import LOOK_EVERY_S, Governor, Rung, Verdict

__all__ = ["Closes", "Cooling"]

_log = structlog.get_logger(__name__)

Zones = Mapping[str, float | None]


class Closes(Protocol):
    """A camera that can be closed for a while; see `edge_agent.source.reader.FrameReader`."""

    @property
    def camera(self) -> str:
        """Id of the source."""

    def close(self, reason: str) -> None:
        """Read no more until `reopen`."""

    def reopen(self) -> None:
        """Read on."""


@dataclass(slots=True)
class Cooling:
    """Runs while it is entered.

    Args:
        settings: asked anew at each look.
        heat: temperature and limit of every zone, in degrees Celsius.
        rungs: the steps, from the full load on.
        cameras: those that a step may close.
        apply: makes the stages keep to a load.
        publish: for alerts.
        note: told what keeps the agent from working fully; "" when that is over.
    """

    settings: Callable[[], GovernorSettings]
    heat: Callable[[], tuple[Zones, Zones]]
    rungs: Sequence[Rung]
    cameras: Sequence[Closes]
    apply: Callable[[Load], None]
    publish: Callable[[Event], object]
    note: Callable[[str, str], None]
    verdict: Verdict = field(default_factory=lambda: Verdict("off", reason="it has not looked yet"))
    """The latest; read it from any thread."""
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    _governor: Governor | None = None
    _told_blind: bool = False
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
            self.heartbeat.working("look at the heat")
            self._look()
            self.heartbeat.idle(f"{self.verdict.state}, step {self.verdict.step}")
            self._stop.wait(LOOK_EVERY_S)

    def _look(self) -> None:
        before, self.verdict = self.verdict, self._judge()
        now = self.verdict
        if now.step != before.step:
            self._take(self.rungs[now.step].load)
        if (now.state, now.step) != (before.state, before.step):
            self._tell(before, now)

    def _judge(self) -> Verdict:
        chosen = self.settings()
        if chosen.enabled == "off":
            self._governor = None
            return Verdict("off", reason="governor.enabled is off")
        if self._governor is None:
            self._governor = Governor(
                len(self.rungs) - 1,
                limit_c=chosen.limit_c,
                margin_c=chosen.margin_c,
                hysteresis_c=chosen.hysteresis_c,
            )
        governor = self._governor
        governor.limit_c, governor.margin_c = chosen.limit_c, chosen.margin_c
        governor.hysteresis_c = chosen.hysteresis_c
        return governor.take(time.monotonic(), *self.heat())

    def _take(self, load: Load) -> None:
        self.apply(load)
        for camera in self.cameras:
            if camera.camera in load.closed:
                camera.close("closed by the governor: the board is too hot")
            else:
                camera.reopen()

    def _tell(self, before: Verdict, now: Verdict) -> None:
        """Log, status and alert; who watches without having to be asked for is told of in the log alone."""
        (_log.warning if now.step > before.step else _log.info)(
            "governor", state=now.state, step=now.step, does=self.doing, reason=now.reason
        )
        self.note("heat", f"load lowered for heat: {self.doing}" if now.step else "")
        wanted_blind = now.state == "blind" and (self.settings().enabled == "on" or now.step > 0)
        if now.step or before.step or wanted_blind or self._told_blind:
            self.publish(self._alert(now, _severity(before, now)))
        self._told_blind = wanted_blind

    def _alert(self, now: Verdict, severity: Literal["info", "warning", "critical"]) -> Event:
        if now.state == "blind":
            message = f"the governor cannot see how hot the board is: {now.reason}"
        elif now.step:
            message = (
                f"load lowered for heat, step {now.step} of {len(self.rungs) - 1}: {self.doing}; {now.reason}"
            )
        else:
            message = "the load is no longer lowered for heat"
        return alert_event(
            "governor",
            message,
            severity=severity,
            active=bool(now.step) or now.state == "blind",
            time=time.time(),
            details={
                "state": now.state,
                "step": now.step,
                "steps": len(self.rungs) - 1,
                "zone": now.zone,
                "celsius": now.celsius,
                "limit_c": now.limit_c,
            },
        )


def _severity(before: Verdict, now: Verdict) -> Literal["info", "warning", "critical"]:
    if now.state == "exhausted":
        return "critical"
    return "warning" if now.step > before.step or now.state == "blind" else "info"
