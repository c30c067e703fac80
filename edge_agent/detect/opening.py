"""Detectors from the settings. Nothing heavy is imported before the detector that needs it is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edge_agent.core.errors import ConfigError
from edge_agent.source.address import source_kind

if TYPE_CHECKING:
    from edge_agent.core.config import DetectorSettings, Settings, SourceSettings
    from edge_agent.core.structures import Detections, Frame, ScoreLevels
    from edge_agent.detect.base import Detector
    from edge_agent.detect.motion import MotionGate
    from edge_agent.engine import Engine
    from edge_agent.source.base import Source

__all__ = ["Detection", "add_motion_gate", "open_detection", "open_detector"]


@dataclass(frozen=True, slots=True)
class Detection:
    """The detectors of all sources, entered.

    Attributes:
        detect: finds people in a frame of any source.
        levels: of each camera, the meaning of the scores.
        name: for `info` and events.
        network_seconds: time spent in the detectors' networks so far; 0 for those without one.
        still: by camera with a motion gate: frames not searched because nothing moved.
    """

    detect: Callable[[Frame], Detections]
    levels: Callable[[str], ScoreLevels]
    name: str
    network_seconds: Callable[[], float]
    still: Callable[[], Mapping[str, int]] = dict


@dataclass(frozen=True, slots=True)
class _OpenDetector:
    """One detector, entered."""

    detect: Callable[[Frame], Detections]
    levels: ScoreLevels
    name: str
    engine: Engine | None = None


def open_detection(settings: Settings, stack: ExitStack, *, cameras: Mapping[str, str | None]) -> Detection:
    """Open one detector for each kind that is used.

    Args:
        settings: all settings.
        stack: closes the detectors.
        cameras: id of each source and its own choice of detector, None for the common one.

    Raises:
        ConfigError: there is no such detector, or it lacks a setting.
        ModelError: the network does not fit.
    """
    common = settings.detector.kind
    kinds = {camera: kind or common for camera, kind in cameras.items()}
    opened = {kind: _open(kind, settings, stack) for kind in sorted(set(kinds.values()))}

    def detect(frame: Frame) -> Detections:
        return opened[kinds.get(frame.camera, common)].detect(frame)

    def levels(camera: str) -> ScoreLevels:
        return opened[kinds.get(camera, common)].levels

    def network_seconds() -> float:
        return sum(one.engine.run_seconds for one in opened.values() if one.engine is not None)

    return Detection(detect, levels, "+".join(one.name for one in opened.values()), network_seconds)


def open_detector(kind: str, *, threads: int = 0) -> Detector:
    """Return the detector of this kind; nothing heavy is loaded before it is entered.

    Args:
        kind: `hog`, `hog:FACTOR` (the picture is enlarged first, for people under 80 pixels),
            `yolox:PATH` (an ONNX file of the YOLOX family) or `none` (the whole frame).
        threads: CPU threads for a network, 0 for one per core.

    Raises:
        ConfigError: there is no such detector.
        ModelError: the network does not fit.
    """
    name, _, argument = kind.partition(":")
    if name == "yolox" and argument:
        from edge_agent.detect.yolox import YoloxDetector
        from edge_agent.engine.graph.prepare import prepare_detector
        from edge_agent.engine.onnxruntime import OnnxRuntimeEngine

        prepared = prepare_detector(Path(argument))
        return YoloxDetector(OnnxRuntimeEngine(prepared, max_batch=1, threads=threads))
    if name == "hog":
        from edge_agent.detect.hog import HogDetector

        return HogDetector(_factor(kind, argument))
    if kind == "none":
        from edge_agent.detect.none import WholeFrame

        return WholeFrame()
    raise ConfigError(f"no detector {kind!r}; choose `hog`, `yolox:PATH_TO_ONNX`, `external` or `none`")


def _factor(kind: str, text: str) -> float:
    """Return the factor in `hog:FACTOR`, 1 without one."""
    try:
        factor = float(text or 1)
    except ValueError:
        factor = 0.0
    if not 0.25 <= factor <= 4:
        raise ConfigError(f"detector {kind!r}: write `hog` or `hog:FACTOR` with a factor in 0.25..4")
    return factor


def _open(kind: str, settings: Settings, stack: ExitStack) -> _OpenDetector:
    if kind == "external":
        return _open_external(settings, stack)
    detector = stack.enter_context(open_detector(kind, threads=settings.engine.threads))
    levels = _levels(settings.detector, detector.levels)
    engine = getattr(detector, "engine", None)  # HOG has none
    return _OpenDetector(lambda frame: detector.detect(frame.image), levels, detector.name, engine)


def _open_external(settings: Settings, stack: ExitStack) -> _OpenDetector:
    from edge_agent.core.mqtt import broker_settings
    from edge_agent.source.external import LEVELS, ExternalBoxes

    chosen = settings.detector
    if not chosen.external_topics:
        raise ConfigError("detector.kind is external, but detector.external_topics names no MQTT topic")
    broker = broker_settings(settings.mqtt)
    if broker is None:
        raise ConfigError("detector.kind is external, but no broker is set (mqtt.broker or --broker)")
    boxes = stack.enter_context(ExternalBoxes(chosen, broker))
    return _OpenDetector(boxes.detect_frame, _levels(chosen, LEVELS), f"external:{chosen.external_format}")


def _levels(settings: DetectorSettings, own: ScoreLevels) -> ScoreLevels:
    """Return the configured levels, and the detector's own where none are configured."""
    configured = {name: getattr(settings, name) for name in ("low", "high", "new_track")}
    return replace(own, **{name: score for name, score in configured.items() if score is not None})


def add_motion_gate(
    settings: Settings,
    detection: Detection,
    by_camera: Mapping[str, SourceSettings],
    sources: Sequence[Source],
) -> Detection:
    """Return the detection with a motion gate before it, for the sources that are to have one.

    Cameras whose gate is closed deliver fewer frames (`motion.rest_fps`).

    Args:
        settings: all settings.
        detection: open.
        by_camera: settings of each source.
        sources: the sources.

    Raises:
        ConfigError: a gate is set for a source in whose pictures the agent does not search for people.
    """

    def searched(own: SourceSettings) -> bool:
        kind = own.detector or settings.detector.kind
        return kind not in {"external", "none"} and source_kind(own.url) != "crops"

    advice = (
        "the agent does not search for people here (detector external or none, or a crop folder): remove it"
    )
    for camera, own in by_camera.items():
        if own.motion and not searched(own):
            raise ConfigError(f"source {camera}: motion is set, but {advice}")
    if settings.motion.enabled and not any(map(searched, by_camera.values())):
        raise ConfigError(f"motion.enabled is set, but {advice}")
    gated = {
        camera
        for camera, own in by_camera.items()
        if (settings.motion.enabled if own.motion is None else own.motion) and searched(own)
    }
    if not gated:
        return detection
    from edge_agent.detect.motion import MotionGate
    from edge_agent.source.video import Camera

    smallest = (settings.quality.min_width, settings.quality.min_height)
    gate = MotionGate(detection.detect, frozenset(gated), settings.motion, smallest)
    for source in sources:
        if source.id in gated and isinstance(source, Camera):
            source.limiter.lower_rate = partial(_rest_rate, gate, source.id, settings.motion.rest_fps)
    return replace(detection, detect=gate.detect, still=lambda: gate.still)


def _rest_rate(gate: MotionGate, camera: str, rest_fps: float) -> float | None:
    """Frames per second that this camera is to deliver at present, None for all."""
    return rest_fps if gate.rests(camera) else None
