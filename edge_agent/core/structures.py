"""What passes between the stages: frozen, slotted dataclasses over numpy arrays.

Boxes are `(N, 4)` float32 `x1, y1, x2, y2` in pixels of the frame unless a name says otherwise.
Times are Unix seconds as float64 (`frame.time` is the moment of capture).
Arrays are checked once, when the structure is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "LONE_TRACKS",
    "Candidates",
    "CropBatch",
    "Decision",
    "DecisionKind",
    "Detections",
    "Embedded",
    "EngineInfo",
    "Frame",
    "Load",
    "Pictures",
    "ScoreLevels",
    "SourceState",
    "SourceStatus",
    "TrackObservation",
    "TrackUpdate",
    "iou",
    "iou_matrix",
]


def _expect(name: str, array: NDArray[Any], shape: tuple[int | None, ...], dtype: type) -> None:
    """Raise ValueError unless `array` has this shape (None: any length) and dtype."""
    fits = array.ndim == len(shape) and all(
        want is None or want == have for want, have in zip(shape, array.shape, strict=True)
    )
    if not fits or array.dtype != dtype:
        wanted = ", ".join("N" if size is None else str(size) for size in shape)
        raise ValueError(
            f"{name}: expected ({wanted}) {np.dtype(dtype).name}, got {array.shape} {array.dtype.name}"
        )


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture of one camera.

    Attributes:
        camera: id of the source, matches `[a-z0-9_-]{1,64}`.
        number: counts the frames that the source delivered or dropped, from 1.
        time: moment of capture, Unix seconds.
        image: `(H, W, 3)` uint8 BGR. Not to be written to.
        external: boxes that came with the frame from an upstream detector, if any.
    """

    camera: str
    number: int
    time: float
    image: NDArray[np.uint8]
    external: Detections | None = None

    def __post_init__(self) -> None:
        _expect("frame.image", self.image, (None, None, 3), np.uint8)


@dataclass(frozen=True, slots=True)
class Detections:
    """People found in one frame.

    Attributes:
        boxes: `(N, 4)` float32 xyxy pixels; may reach over the image border.
        scores: `(N,)` float32. Comparable within one detector only.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]

    def __post_init__(self) -> None:
        _expect("detections.boxes", self.boxes, (None, 4), np.float32)
        _expect("detections.scores", self.scores, (len(self.boxes),), np.float32)

    def __len__(self) -> int:
        return len(self.boxes)

    @staticmethod
    def none() -> Detections:
        """No people."""
        return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))

    def take(self, rows: NDArray[Any]) -> Detections:
        """The given rows (indices or a mask)."""
        return Detections(self.boxes[rows], self.scores[rows])


@dataclass(frozen=True, slots=True)
class ScoreLevels:
    """What the scores of a detector mean to the tracker; every detector has its own.

    Attributes:
        low: boxes below are not reported.
        high: boxes from here on count as people on their own; those between `low` and `high` only
            continue a track (ByteTrack's second stage).
        new_track: least score that may begin a track.
    """

    low: float
    high: float
    new_track: float


@dataclass(frozen=True, slots=True)
class CropBatch:
    """Crops that an upstream detector has already cut, of one camera at one time.

    Attributes:
        camera: id of the source.
        number: frame number as the upstream names it, or a running number.
        time: moment of capture, Unix seconds.
        images: N pictures `(h, w, 3)` uint8 BGR.
        boxes: `(N, 4)` float32 xyxy pixels of the full frame; the crop's own extent where unknown.
        track_ids: upstream track id of each crop, or None where it has none.
    """

    camera: str
    number: int
    time: float
    images: tuple[NDArray[np.uint8], ...]
    boxes: NDArray[np.float32]
    track_ids: tuple[int | None, ...]

    def __post_init__(self) -> None:
        for image in self.images:
            _expect("crop", image, (None, None, 3), np.uint8)
        _expect("crops.boxes", self.boxes, (len(self.images), 4), np.float32)
        if len(self.track_ids) != len(self.images):
            raise ValueError(
                f"crops.track_ids: expected {len(self.images)} entries, got {len(self.track_ids)}"
            )


@dataclass(frozen=True, slots=True)
class Embedded:
    """What the embedding stage knows of the detections of one frame.

    Attributes:
        vectors: `(N, D)` float32, rows of unit length; a row that was not embedded is zero.
        present: `(N,)` bool, whether the row was embedded.
        quality: `(N,)` float32 in 0..1, how well the crop shows its person; 0 where it was refused.
        reasons: N short words, why a row was not embedded ("" where it was).
    """

    vectors: NDArray[np.float32]
    present: NDArray[np.bool_]
    quality: NDArray[np.float32]
    reasons: tuple[str, ...]

    def __post_init__(self) -> None:
        rows = len(self.vectors)
        _expect("embedded.vectors", self.vectors, (rows, None), np.float32)
        _expect("embedded.present", self.present, (rows,), np.bool_)
        _expect("embedded.quality", self.quality, (rows,), np.float32)
        if len(self.reasons) != rows:
            raise ValueError(f"embedded.reasons: expected {rows} entries, got {len(self.reasons)}")


@dataclass(frozen=True, slots=True)
class TrackObservation:
    """One track as seen in one frame.

    Attributes:
        camera: id of the source.
        track_id: number of the track within its camera, from 1, never used twice in a run.
        frame: frame number.
        time: Unix seconds.
        box: `(4,)` float32 xyxy pixels, as detected.
        score: the detector's score.
        vector: `(D,)` float32 of unit length, or None where the crop was refused.
        quality: 0..1, see `Embedded.quality`.
    """

    camera: str
    track_id: int
    frame: int
    time: float
    box: NDArray[np.float32]
    score: float
    vector: NDArray[np.float32] | None
    quality: float


@dataclass(frozen=True, slots=True)
class TrackUpdate:
    """What one frame did to the tracks of one camera.

    Attributes:
        seen: confirmed tracks with a detection in this frame.
        ended: ids of tracks that will not come back.
    """

    camera: str
    frame: int
    time: float
    size: tuple[int, int]
    """`(width, height)` of the frame in pixels."""
    seen: tuple[TrackObservation, ...]
    ended: tuple[int, ...]


LONE_TRACKS = 1 << 40
"""Where the numbers of crops that came without a track begin, far above any tracker's."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures in a crop folder that show one person: those of one track of one camera, from a moment on.

    Attributes:
        camera: id of the camera.
        track: number of the track; from `LONE_TRACKS` on, the one picture of that moment without a track.
        since: time of its first picture, Unix seconds.
        until: when the number was given to another track of that camera; infinity where it was not.
    """

    camera: str
    track: int
    since: float
    until: float


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Which network runs, and on what. Goes into `info` and into every event.

    Attributes:
        backend: `onnxruntime`, `tensorrt` or `simulated:<name>`.
        precision: `fp32`, `fp16` or `int8`.
        model: name for people, as the manifest gives it.
        model_sha256: of the ONNX file that the user named.
        space: id of the embedding space, or "" for a network that makes no embeddings.
        dimension: numbers in an embedding, 0 for other networks.
        max_batch: largest batch that `submit` takes.
        device: what it runs on, for people.
    """

    backend: str
    precision: str
    model: str
    model_sha256: str
    space: str
    dimension: int
    max_batch: int
    device: str


@dataclass(frozen=True, slots=True)
class Candidates:
    """The crops of one frame that could be embedded.

    Attributes:
        camera: id of the source.
        time: of the frame, Unix seconds.
        boxes: `(N, 4)` float32 xyxy pixels.
        track_ids: of an upstream tracker; None where boxes have to be compared.
        scores: `(N,)` float32, the detector's; None for crops of an upstream detector.
        grades: `(N,)` float32 in 0..1, how well each shows its person by its box, 0 for a crop that the
            quality gate refuses; None: all alike.
        live: whether frames of this source are lost when nobody takes them in time.
        lost: how many were, since the start.
        detect_s: seconds that it took to find them.
    """

    camera: str
    time: float
    boxes: NDArray[np.float32]
    track_ids: tuple[int | None, ...] | None = None
    scores: NDArray[np.float32] | None = None
    grades: NDArray[np.float32] | None = None
    live: bool = False
    lost: int = 0
    detect_s: float = 0.0

    def __post_init__(self) -> None:
        _expect("candidates.boxes", self.boxes, (None, 4), np.float32)
        if self.scores is not None:
            _expect("candidates.scores", self.scores, (len(self.boxes),), np.float32)
        if self.grades is not None:
            _expect("candidates.grades", self.grades, (len(self.boxes),), np.float32)


@dataclass(frozen=True, slots=True)
class Load:
    """How much work the agent may do; the default is all.

    Attributes:
        settled_interval_s: seconds between two embeddings of a track whose identity is settled.
        max_crops: crops that are embedded in one round over all cameras; None for all.
        every_nth: of a live camera's frames, every so manyth is searched for people.
        closed: ids of cameras that are not read.
        stretch: what waits (recordings, crop folders) takes this many times as long.
    """

    settled_interval_s: float = 0.0
    max_crops: int | None = None
    every_nth: int = 1
    closed: tuple[str, ...] = ()
    stretch: float = 1.0


class SourceState(Enum):
    """State of one source, as published on its status topic."""

    ONLINE = "online"
    RECONNECTING = "reconnecting"
    OFFLINE = "offline"
    ENDED = "ended"
    DISABLED = "disabled"


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """A change of state of one source; `reason` never holds credentials."""

    camera: str
    state: SourceState
    reason: str
    time: float


class DecisionKind(Enum):
    """What the agent decided about a track; the last part of the topic `identity/<kind>`."""

    MATCHED = "matched"
    """The track is a person whom the gallery knows."""
    ENROLLED = "enrolled"
    """The track is a new person, who was put into the gallery."""
    CORRECTED = "corrected"
    """Later evidence overturned an earlier decision about this track."""
    DEPARTED = "departed"
    """The track, whose person was known, has ended."""
    UNKNOWN = "unknown"
    """The track ended, or stays, without an identity."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision about one track: everything that an identity event says of it.

    Attributes:
        id: unique for ever; becomes the id of the event.
        kind: what was decided.
        camera: id of the source.
        track_id: number of the track within its camera.
        identity: opaque id of the person, None when unknown.
        number: the person's number in the local gallery (for MOT files), None when unknown.
        name: what the operator calls the person, if anything.
        score: cosine of the track's pooled evidence and the identity, None when nothing was compared.
        runner_up: the same for the second-best identity, None when there is none.
        threshold: what the score was held against, None when nothing was compared.
        rule: where the threshold came from: `calibrated`, `site`, `warm-up`, `configured`, `watchlist`.
        evidence: number of crops pooled.
        quality: mean quality of those crops, 0..1.
        box: `(4,)` float32 xyxy pixels where the track was last seen.
        size: `(width, height)` of the frame in pixels.
        frame: number of the frame at which this was decided.
        time: capture time of that frame, Unix seconds.
        first_seen: first time of this track, Unix seconds.
        last_seen: last time of this track, Unix seconds.
        corrects: id of the decision that this one overturns, for `corrected`.
        previous: identity that the overturned decision named.
        reason: a short word for why, e.g. `contested`, `fused`, `re-entry`, `expired`.
    """

    id: str
    kind: DecisionKind
    camera: str
    track_id: int
    identity: str | None
    number: int | None
    name: str | None
    score: float | None
    runner_up: float | None
    threshold: float | None
    rule: str
    evidence: int
    quality: float
    box: NDArray[np.float32]
    size: tuple[int, int]
    frame: int
    time: float
    first_seen: float
    last_seen: float
    corrects: str | None = None
    previous: str | None = None
    reason: str = ""


_NOTHING = np.float32(0.0)
_TINY = np.float32(1e-12)
_ZERO, _LEAST_AREA = np.array(0.0, np.float32), np.array(1e-12, np.float32)
"""Arrays, since NumPy is faster with them than with numbers."""


def iou_matrix(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Intersection over union of every pair: `(..., N, 4)`, `(..., M, 4)` xyxy -> `(..., N, M)` float32."""
    sides = np.minimum(a[..., :, None, 2:], b[..., None, :, 2:])
    sides -= np.maximum(a[..., :, None, :2], b[..., None, :, :2])
    np.maximum(sides, _ZERO, out=sides)
    overlap: NDArray[np.float32] = sides[..., 0] * sides[..., 1]
    union = box_areas(a)[..., :, None] + box_areas(b)[..., None, :] - overlap
    overlap /= np.maximum(union, _LEAST_AREA, out=union)  # without area there is no overlap either
    return overlap


def iou(a: Sequence[np.float32], b: Sequence[np.float32]) -> float:
    """Intersection over union of two boxes xyxy: as `iou_matrix`, in a fifth of the time for one pair."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(wide, _NOTHING) * max(high, _NOTHING)
    union = box_area(a) + box_area(b) - overlap
    return float(overlap / max(union, _TINY))


def box_area(box: Sequence[np.float32]) -> np.float32:
    """Square pixels of a box xyxy: as `box_areas`."""
    area: np.float32 = max(box[2] - box[0], _NOTHING) * max(box[3] - box[1], _NOTHING)
    return area


def box_areas(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """`(..., 4)` xyxy -> `(...)` square pixels; 0 for what is no box."""
    sides = np.maximum(boxes[..., 2:] - boxes[..., :2], _ZERO)
    area: NDArray[np.float32] = sides[..., 0] * sides[..., 1]
    return area
