"""Detectors from the settings. Nothing heavy is imported before the detector that needs it is opened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from edge_agent.core.detectors import AUTO, DetectorChoice, parse_detector
from edge_agent.core.errors import ConfigError
from edge_agent.core.installed import chosen_detector
from edge_agent.core.structures import Detections
from edge_agent.detect.search import Begin, Search, one_by_one
from edge_agent.detect.sizes import PictureSizes
from edge_agent.source.address import source_kind

if TYPE_CHECKING:
    from edge_agent.core.config import DetectorSettings, Settings, SourceSettings
    from edge_agent.core.structures import Frame, ScoreLevels
    from edge_agent.detect.base import Detector
    from edge_agent.engine.base import Engine
    from edge_agent.source.base import Source
    from edge_agent.source.messages import MessageReceiver, MessageSource

MOTION_LEAST = (16, 48)
"""Least width and height of the smallest person for whom the motion gate looks: for half the size its cells
cost more than three times as much."""
MOST_TOGETHER = 16
"""Pictures that one network searches as one batch at most: its buffers have this size."""
_MESSAGES = "messages"
"""Kind of the sources without pictures; it cannot be chosen."""


@dataclass(frozen=True, slots=True)
class Detection:
    """The detectors of all sources, entered.

    Attributes:
        begin: begins to search frames of any sources for people; those of one network are one batch.
        levels: of each camera, the meaning of the scores.
        name: for `info` and events.
        network_seconds: time spent in the detectors' networks so far; 0 for those without one.
        left_out: boxes of upstream detectors that were left out so far, and refused messages, by fault.
        small: by camera whose pictures are too small, what to do about it.
        still: by camera with a motion gate: frames not searched because nothing moved.
    """

    begin: Begin
    levels: Callable[[str], ScoreLevels]
    name: str
    network_seconds: Callable[[], float]
    left_out: Callable[[], Mapping[str, int]] = dict
    small: Callable[[], Mapping[str, str]] = dict
    still: Callable[[], Mapping[str, int]] = dict

    def detect(self, frame: Frame) -> Detections:
        """Find the people in one frame."""
        return self.begin([frame]).results()[0]


@dataclass(frozen=True, slots=True)
class _OpenDetector:
    """One detector, entered."""

    begin: Begin
    levels: ScoreLevels
    name: str
    engine: Engine | None = None
    left_out: Callable[[], Mapping[str, int]] = dict
    smallest: float = 0.0


def open_detection(
    settings: Settings,
    stack: ExitStack,
    *,
    cameras: Mapping[str, str | None],
    messages: Sequence[MessageSource] = (),
    current: Callable[[float], float] = float,
) -> Detection:
    """Open one detector for each kind that is used; `stack` closes them.

    `cameras` has the id of each source and its own choice of detector, None for the common one. `messages`
    are those of them that have no pictures. `current` turns the time of a frame into that of other machines,
    see `core.clock`.

    Raises:
        ConfigError: there is no such detector, it lacks a setting, or none uses a setting.
        ModelError: the network does not fit.
    """
    common, with_pictures = settings.detector.kind, cameras.keys() - {source.id for source in messages}
    if not all(cameras[camera] for camera in with_pictures):
        common = chosen_detector(common, settings.state_dir)
    kinds = {
        camera: chosen_detector(cameras[camera] or common, settings.state_dir) for camera in with_pictures
    }
    kinds |= {source.id: _MESSAGES for source in messages}
    users = Counter(kinds.values())
    opened = {
        kind: _open(kind, settings, stack, current, users[kind])
        for kind in sorted(users.keys() - {_MESSAGES})
    }
    if messages:
        opened[_MESSAGES] = _of_messages(settings.detector, messages[0].receiver)

    if settings.detector.input_size is not None and all(one.engine is None for one in opened.values()):
        raise ConfigError("detector.input_size is set, but no detector runs a network: remove it")

    sizes = PictureSizes(settings.quality.min_height)

    def begin(frames: Sequence[Frame]) -> Search:
        for frame in frames:
            if frame.camera not in sizes.known:
                height, width = frame.image.shape[:2]
                sizes.look(frame.camera, width, height, opened[kinds.get(frame.camera, common)].smallest)
        return _begin(frames, [opened[kinds.get(frame.camera, common)] for frame in frames])

    def levels(camera: str) -> ScoreLevels:
        return opened[kinds.get(camera, common)].levels

    def network_seconds() -> float:
        return sum(one.engine.run_seconds for one in opened.values() if one.engine is not None)

    def left_out() -> Mapping[str, int]:
        total: Counter[str] = Counter()
        for one in opened.values():
            total.update(one.left_out())
        return total

    name = "+".join(one.name for one in opened.values())
    return Detection(begin, levels, name, network_seconds, left_out, lambda: sizes.small)


def _begin(frames: Sequence[Frame], detectors: Sequence[_OpenDetector]) -> Search:
    """Begin to search each frame by its detector; the frames of one detector are searched together."""
    places: dict[int, list[int]] = {}
    for at, detector in enumerate(detectors):
        places.setdefault(id(detector), []).append(at)
    searches = [(ats, detectors[ats[0]].begin([frames[at] for at in ats])) for ats in places.values()]

    def results() -> list[Detections]:
        found = [Detections.none()] * len(frames)
        for ats, search in searches:
            for at, people in zip(ats, search.results(), strict=True):
                height, width = frames[at].image.shape[:2]
                found[at] = people.within(width, height)
        return found

    return Search(results, lambda: all(search.done for _, search in searches))


def open_detector(
    text: str, *, threads: int = 0, input_size: tuple[int, int] | None = None, together: int = 1
) -> Detector:
    """Return the detector that is written so (`core.detectors.FORMS`, without `auto`); it is not entered.

    Networks are read, and checked on two pictures. `threads` 0 is one CPU thread per core, `input_size` the
    `(width, height)` for networks whose input size is dynamic, `together` how many pictures are to be
    searched as one batch, by networks that can. For `external`: `open_detection`.

    Raises:
        ConfigError: there is no such detector.
        ModelError: the network does not fit.
    """
    choice = _parsed(text)
    if choice.file is not None:
        from edge_agent.detect.network import NetworkDetector
        from edge_agent.detect.recognition import recognise, takes_batches
        from edge_agent.engine.onnxruntime import OnnxRuntimeEngine

        size = None if input_size is None else input_size[::-1]
        found = recognise(choice.file, choice.kind, size)
        most = min(together, MOST_TOGETHER) if together > 1 and takes_batches(found.prepared) else 1
        engine = OnnxRuntimeEngine(found.prepared, max_batch=most, threads=threads, large=True)
        return NetworkDetector(found.kind, found.decoder, engine)
    if choice.kind == "hog":
        from edge_agent.detect.hog import HogDetector

        return HogDetector(choice.factor)
    if choice.kind == "none":
        from edge_agent.detect.base import WholeFrame

        return WholeFrame()
    if choice.kind == AUTO:
        raise ConfigError("name the detector here; auto is the default of an agent's settings")
    raise ConfigError(f"detector {text!r} takes its boxes from a broker; it cannot be used here")


def _parsed(text: str) -> DetectorChoice:
    try:
        return parse_detector(text)
    except ValueError as problem:
        raise ConfigError(str(problem)) from None


def _open(
    kind: str, settings: Settings, stack: ExitStack, current: Callable[[float], float], cameras: int
) -> _OpenDetector:
    if kind == "external":
        return _open_external(settings, stack, current)
    size = settings.detector.input_size
    opened = open_detector(kind, threads=settings.engine.threads, input_size=size, together=cameras)
    detector = stack.enter_context(opened)
    levels = _levels(settings.detector, detector.levels)
    return _OpenDetector(
        lambda frames: detector.begin([frame.image for frame in frames]),
        levels,
        detector.name,
        detector.engine,
        smallest=detector.smallest,
    )


def _open_external(settings: Settings, stack: ExitStack, current: Callable[[float], float]) -> _OpenDetector:
    from edge_agent.source.external import LEVELS, ExternalBoxes
    from edge_agent.source.transport import upstream_broker

    chosen = settings.detector
    if not chosen.external_topics:
        raise ConfigError("detector.kind is external, but detector.external_topics names no topic")
    boxes = stack.enter_context(ExternalBoxes(chosen, upstream_broker(settings), current))
    name = f"external:{chosen.external_format}"
    return _OpenDetector(
        one_by_one(boxes.detect_frame), _levels(chosen, LEVELS), name, left_out=lambda: boxes.left_out
    )


def _of_messages(chosen: DetectorSettings, receiver: MessageReceiver) -> _OpenDetector:
    """Return the detector of sources without pictures, which is never asked."""
    from edge_agent.source.external import LEVELS

    levels = _levels(chosen, LEVELS)
    return _OpenDetector(
        one_by_one(lambda _: Detections.none()),
        levels,
        "external:deepstream",
        left_out=lambda: receiver.left_out,
    )


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

    Raises:
        ConfigError: a gate is set for a source in whose pictures the agent does not search for people.
    """
    advice = (
        "the agent does not search for people here (detector external or none, crops, messages): remove it"
    )
    searched = {
        camera
        for camera, own in by_camera.items()
        if (own.detector or settings.detector.kind) not in {"external", "none"}
        and source_kind(own.url) not in {"crops", "deepstream"}
    }
    for camera, own in by_camera.items():
        if own.motion and camera not in searched:
            raise ConfigError(f"source {camera}: motion is set, but {advice}")
    pace = settings.motion
    if pace.enabled and not searched:
        raise ConfigError(f"motion.enabled is set, but {advice}")
    chosen = {camera: own.motion for camera, own in by_camera.items() if camera in searched}
    gated = {camera for camera, motion in chosen.items() if (pace.enabled if motion is None else motion)}
    if not gated:
        return detection
    from edge_agent.detect.motion import MotionGate
    from edge_agent.source.video import Camera

    quality, (width, height) = settings.quality, MOTION_LEAST
    smallest = (max(quality.min_width, width), max(quality.min_height, height))
    gate = MotionGate(detection.begin, frozenset(gated), pace, smallest)

    def rest_rate(camera: str) -> float | None:
        return pace.rest_fps if gate.rests(camera) else None

    for source in sources:
        if source.id in gated and isinstance(source, Camera):
            source.limiter.lower_rate = partial(rest_rate, source.id)
    return replace(detection, begin=gate.begin, still=lambda: gate.still)
