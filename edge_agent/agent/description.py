"""Descriptions of a run: the `info` event, and the agent's part of the status document."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from edge_agent import __version__
from edge_agent.core.codec import to_wire
from edge_agent.core.config import fingerprint
from edge_agent.core.events import CameraInfo, EngineData, InfoData
from edge_agent.engine import is_simulated

if TYPE_CHECKING:
    from edge_agent.agent.stages import Stages
    from edge_agent.core.config import Settings
    from edge_agent.core.structures import EngineInfo
    from edge_agent.core.telemetry import TelemetryData
    from edge_agent.engine.precision.calibration import Calibration
    from edge_agent.health.cooling import Cooling
    from edge_agent.health.telemetry import Reading

__all__ = ["info_data", "log_context", "status_document"]

PACKAGES = ("numpy", "opencv-python", "onnxruntime", "paho-mqtt", "tensorrt")
"""Distributions whose versions `info` names."""


def log_context(settings: Settings) -> dict[str, str]:
    """Return the fields of every log line of a run: the engine, where it is simulated."""
    backend = settings.engine.backend
    return {"engine": backend} if is_simulated(backend) else {}


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
    )


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
                "still": stages.detection.still().get(reader.camera),
                "overload": stages.selector.for_overload.get(reader.camera, 0),
            }
            for reader in stages.sources.readers
        ],
        "delivery": {
            "connection": stages.publisher.state.value,
            "problem": stages.publisher.heartbeat.idle,
        },
        "governor": None if cooling is None else _governor(cooling),
        "telemetry": None if telemetry is None else to_wire(telemetry),
    }


def _governor(cooling: Cooling) -> dict[str, Any]:
    return {**asdict(cooling.verdict), "steps": len(cooling.rungs) - 1, "does": cooling.doing}


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
