"""State of a run as others see it: `info` event, status document, health of the agent and its cameras."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import platform
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from edge_agent import __version__
from edge_agent.core.alerts import AlertKind
from edge_agent.core.codec import to_wire
from edge_agent.core.events import CameraInfo, EngineData, InfoData, alert_event
from edge_agent.core.logs import configure
from edge_agent.core.setting_secrets import secrets_of, shown
from edge_agent.core.structures import SourceState, SourceStatus
from edge_agent.engine import is_simulated

if TYPE_CHECKING:
    from edge_agent.agent.stages import Stages
    from edge_agent.core.config import Settings
    from edge_agent.core.structures import EngineInfo
    from edge_agent.core.telemetry import TelemetryData
    from edge_agent.deliver.local import State
    from edge_agent.deliver.publisher import AnyPublisher
    from edge_agent.engine.precision.calibration import Calibration
    from edge_agent.health.cooling import Cooling
    from edge_agent.health.telemetry import Reading

PACKAGES = ("numpy", "opencv-python", "onnxruntime", "paho-mqtt", "tensorrt", "tritonclient", "asyncpg")
"""Distributions whose versions `info` names."""

STOPPED = "the agent was stopped"
"""Reason of cameras that are offline after a clean stop."""
_DOWN = (SourceState.RECONNECTING, SourceState.OFFLINE)
_OVER = (SourceState.ENDED, SourceState.OFFLINE, SourceState.DISABLED)


def configure_logs(settings: Settings) -> None:
    """Configure the log of a run; every line names the engine where it is simulated."""
    backend = settings.engine.backend
    configure(
        settings.log_level,
        form=settings.log_format,
        always={"engine": backend} if is_simulated(backend) else {},
        secrets=secrets_of(settings),
    )


def info_data(
    settings: Settings,
    engine: EngineInfo,
    detector: str,
    cameras: Sequence[CameraInfo],
    reading: Reading,
    calibration: Calibration | None,
) -> InfoData:
    """Return the data of the `info` event."""
    return InfoData(
        version=__version__,
        model=EngineData.of(engine),
        simulated=is_simulated(engine.backend),
        detector=detector,
        cameras=tuple(cameras),
        enrolment=settings.identify.enrolment,
        calibration=None if calibration is None else calibration.summary(),
        config_hash=fingerprint(settings),
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        board=reading.board,
        l4t=reading.l4t,
        packages=_versions(),
        fleet=settings.fleet.destination(settings.mqtt.site),
    )


def fingerprint(settings: Settings) -> str:
    """SHA-256 of the settings without secrets, 16 hex digits."""
    text = json.dumps(shown(settings), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def status_document(
    stages: Stages, cooling: Cooling | None, telemetry: TelemetryData | None
) -> dict[str, Any]:
    """Return what `edge-agent status` shows of the stages, without waiting for any of them."""
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
                "failures": reader.failures,
                "still": stages.detection.still().get(reader.camera),
                "overload": stages.selector.for_overload.get(reader.camera, 0),
            }
            for reader in stages.sources.readers
        ],
        "delivery": {"connection": stages.publisher.state.value, "problem": stages.publisher.heartbeat.idle},
        "governor": None
        if cooling is None
        else {**asdict(cooling.verdict), "steps": len(cooling.rungs) - 1, "does": cooling.doing},
        "telemetry": None if telemetry is None else to_wire(telemetry),
        "shadow": None if stages.shadow is None else stages.shadow.state(),
        "recording": None if stages.recorder is None else stages.recorder.state(),
        "fleet": None if stages.fleet is None else stages.fleet.state.document(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


@dataclass(slots=True)
class HealthState:
    """Publishes the states of the agent and of the cameras. Called from any thread."""

    publisher: AnyPublisher
    set_status_line: Callable[[str], None]
    """Called with the agent's state and reason as one line, for the service manager."""
    state: State = "online"
    """State last published."""
    reason: str = ""
    """Reason last published."""
    _causes: dict[str, str] = field(default_factory=dict)
    """Why the agent is degraded: reason by cause, oldest first."""
    _cameras: dict[str, SourceStatus] = field(default_factory=dict)
    _stopped: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def set(self, state: State, reason: str = "") -> None:
        """Publish the state of the agent; `stopping` is final."""
        if self.state != "stopping":
            self.state, self.reason = state, reason
            self.set_status_line(f"{state}: {reason}" if reason else state)
            self.publisher.set_status(state, reason)

    def note(self, cause: str, reason: str) -> None:
        """Add a cause of degraded work, or with the reason "" remove it."""
        with self._lock:
            self._note(cause, reason)

    def on_status(self, status: SourceStatus) -> None:
        """Publish the new state of a camera; cameras that are down make the agent degraded."""
        with self._lock:
            if self._stopped:
                return
            before = self._cameras.get(status.camera)
            self._cameras[status.camera] = status
            self.publisher.set_camera_status(status)
            down = [name for name, latest in sorted(self._cameras.items()) if latest.state in _DOWN]
            self._note("cameras", f"no frames from {', '.join(down)}" if down else "")
            self._alert_if_lost(before, status)

    def cameras_stopped(self, time: float) -> None:
        """Publish that the cameras are offline because the agent stops; later changes are not published."""
        with self._lock:
            self._stopped = True
            for status in self._cameras.values():
                if status.state not in _OVER:
                    offline = replace(status, state=SourceState.OFFLINE, reason=STOPPED, time=time)
                    self.publisher.set_camera_status(offline)

    def _note(self, cause: str, reason: str) -> None:
        self._causes.pop(cause, None)
        if reason:
            self._causes[cause] = reason
        self.set("degraded" if self._causes else "online", "; ".join(self._causes.values()))

    def _alert_if_lost(self, before: SourceStatus | None, status: SourceStatus) -> None:
        """Publish an alert when a camera goes offline, and when it is back."""
        was_lost = before is not None and before.state is SourceState.OFFLINE
        is_lost = status.state is SourceState.OFFLINE
        if was_lost == is_lost or (was_lost and status.state is SourceState.RECONNECTING):
            return
        change = f"is offline: {status.reason}" if is_lost else "is back"
        message, details = f"camera {status.camera} {change}", {"camera": status.camera}
        self.publisher.publish(
            alert_event(AlertKind.CAMERA_LOST, message, active=is_lost, time=status.time, details=details)
        )
