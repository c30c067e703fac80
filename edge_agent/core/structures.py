"""Data passed between the stages: frozen, slotted dataclasses over numpy arrays.

Boxes are `(N, 4)` float32 `x1, y1, x2, y2` in pixels of the frame unless a name says otherwise.
Times are Unix seconds as float64 (`frame.time` is the moment of capture).
Arrays are checked once, at construction.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from itertools import compress
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray


def _expect(name: str, array: NDArray[Any], shape: tuple[int | None, ...], dtype: type) -> None:
    """Raise ValueError unless `array` has this shape (None: any length) and dtype."""
    fits = array.dtype == dtype and array.ndim == len(shape)
    if fits:
        for want, have in zip(shape, array.shape, strict=True):
            fits &= want is None or want == have
    if not fits:
        sizes = ", ".join("N" if size is None else str(size) for size in shape)
        wanted = f"({sizes}) {np.dtype(dtype).name}"
        raise ValueError(f"{name}: expected {wanted}, got {array.shape} {array.dtype.name}")


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of one camera.

    Attributes:
        camera: id of the source, matches `[a-z0-9_-]{1,64}`; in the other classes too.
        number: counts delivered and dropped frames of the source, from 1.
        image: `(H, W, 3)` uint8 BGR; read only.
        external: boxes of an upstream detector for this frame, if any.
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
    """People in one frame: boxes `(N, 4)`, which may extend beyond the image, and scores `(N,)` float32.

    Scores are comparable only within one detector.
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
        """Return the given rows (indices or a mask)."""
        return Detections(self.boxes[rows], self.scores[rows])

    def within(self, width: int, height: int) -> Detections:
        """Return the boxes clipped to a picture; without those outside, empty ones, and any that is NaN."""
        boxes = np.clip(self.boxes, 0, np.array([width, height] * 2, np.float32))
        kept = (boxes[:, :2] < boxes[:, 2:]).all(axis=1) & np.isfinite(self.scores)
        return Detections(boxes[kept], self.scores[kept])


@dataclass(frozen=True, slots=True)
class ScoreLevels:
    """What the scores of a detector mean to the tracker; every detector has its own.

    Attributes:
        low: boxes below are not reported.
        high: boxes from here on count as people on their own; those between `low` and `high` only
            continue a track (ByteTrack's second stage).
        new_track: least score that may begin a track.
        sure: least score of a box that surely shows one whole person. Boxes below it, and boxes that may be
            part of a larger one, continue tracks and can be recognised, but they enrol nobody and do not
            prove that two people are there. 0: the detector finds no parts, and every box is sure.
    """

    low: float
    high: float
    new_track: float
    sure: float = 0.0


@dataclass(frozen=True, slots=True)
class CropBatch:
    """Crops cut by an upstream detector, of one camera at one time.

    Attributes:
        number: frame number of the upstream, or a running number.
        images: N pictures `(h, w, 3)` uint8 BGR.
        boxes: `(N, 4)`; the extent of the crop where the full frame is unknown.
        track_ids: upstream track id of each crop, None without one.
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
            have, want = len(self.track_ids), len(self.images)
            raise ValueError(f"crops.track_ids: expected {want} entries, got {have}")


@dataclass(frozen=True, slots=True)
class Embedded:
    """Result of the embedding stage for the detections of one frame.

    Attributes:
        vectors: `(N, D)` float32, rows of unit length; a row that was not embedded is zero.
        present: `(N,)` bool, whether the row was embedded.
        quality: `(N,)` float32 in 0..1, quality of the crop; 0 where it was refused.
        reasons: N short reasons why a row was not embedded; "" where it was.
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

    def take(self, rows: NDArray[np.bool_]) -> Embedded:
        """Return the given rows (a mask)."""
        reasons = tuple(compress(self.reasons, rows.tolist()))
        return Embedded(self.vectors[rows], self.present[rows], self.quality[rows], reasons)


@dataclass(frozen=True, slots=True)
class MessageFrame:
    """The people that an upstream pipeline reports in one frame, without a picture.

    Attributes:
        number: frame number of the upstream, or a running number, from 1.
        size: `(width, height)` in pixels of the picture that the boxes refer to.
        detections: N boxes inside the picture.
        track_ids: upstream's track of each box, None without one.
        vectors: `(N, D)` float32, rows of unit length; a row without an embedding is zero.
        embedded: `(N,)` bool, whether the row has an embedding.
    """

    camera: str
    number: int
    time: float
    size: tuple[int, int]
    detections: Detections
    track_ids: tuple[int | None, ...]
    vectors: NDArray[np.float32]
    embedded: NDArray[np.bool_]

    def __post_init__(self) -> None:
        rows = len(self.detections)
        _expect("message.vectors", self.vectors, (rows, None), np.float32)
        _expect("message.embedded", self.embedded, (rows,), np.bool_)
        if len(self.track_ids) != rows:
            raise ValueError(f"message.track_ids: expected {rows} entries, got {len(self.track_ids)}")


@dataclass(slots=True)
class TrackObservation:
    """One track in one frame. Not frozen, which takes four times as long: there are thousands a second."""

    camera: str
    track_id: int  # number of the track within its camera, from 1, unique in a run
    frame: int
    time: float
    box: NDArray[np.float32]  # `(4,)`, as detected
    score: float
    vector: NDArray[np.float32] | None  # `(D,)` float32 of unit length, or None where the crop was refused
    quality: float  # 0..1, see `Embedded`
    sure: bool = True  # whether the box surely shows one whole person, see `ScoreLevels`
    placed: bool = True  # False: the box is the extent of a crop, and its place in the frame is unknown


@dataclass(frozen=True, slots=True)
class TrackUpdate:
    """Tracks of one camera after one frame: `seen` (confirmed, with a detection), and those that `ended`."""

    camera: str
    frame: int
    time: float
    size: tuple[int, int]  # `(width, height)` of the frame in pixels
    seen: tuple[TrackObservation, ...]
    ended: tuple[int, ...]


PEOPLE_FOR_HALF = 10.0
"""Number of people whose mean has a weight of one half, when the offset of a camera is estimated."""

LONE_TRACKS = 1 << 40  # first number of tracks made of crops without one, far above those of any tracker


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures of one person in a crop folder: those of one track of one camera, from a time on."""

    camera: str
    track: int  # from `LONE_TRACKS` on, pictures without a track
    since: float  # time of its first picture
    until: float  # when another track of the camera got the number; infinity if none did


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Description of the network and its backend, for `info` and every event.

    Attributes:
        backend: `onnxruntime`, `tensorrt`, `triton`, `simulated:<name>`, or `upstream` for no network here.
        precision: `fp32`, `fp16` or `int8`.
        model: display name, from the manifest; `model_sha256` is that of the configured ONNX file.
        space: id of the embedding space; "" for a network without embeddings.
        dimension: length of an embedding; 0 for other networks.
        max_batch: largest batch for `submit`.
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
    """Crops of one frame that can be embedded, with their boxes `(N, 4)`.

    Attributes:
        track_ids: of an upstream tracker; None where boxes must be associated.
        scores: `(N,)` float32, the detector's; None for crops of an upstream detector.
        grades: `(N,)` float32 in 0..1, how well each shows its person by its box, 0 for a crop that the
            quality gate refuses; None: all alike.
        live: whether frames of the source are dropped when they are not processed in time.
        lost: dropped frames since the start.
        detect_s: time of the host for its detection, seconds.
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
    """Limits on the work of the agent; no limits by default.

    Attributes:
        settled_interval_s: seconds between two embeddings of a track with a settled identity.
        max_crops: crops embedded in one round over all cameras; None for all.
        every_nth: people are detected in every n-th frame of a live camera.
        closed: ids of closed cameras.
        stretch: factor by which recordings and crop folders are slowed down.
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
    """A change of state of one source; `reason` never contains credentials."""

    camera: str
    state: SourceState
    reason: str
    time: float


class DecisionKind(Enum):
    """Kind of a decision about a track; the last part of the topic `identity/<kind>`."""

    MATCHED = "matched"  # the track is a person in the gallery
    ENROLLED = "enrolled"  # the track is a new person, added to the gallery
    CORRECTED = "corrected"  # later evidence overturned an earlier decision about this track
    DEPARTED = "departed"  # a track with an identity has ended
    UNKNOWN = "unknown"  # the track has ended, or continues, without an identity


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision about one track, the content of an identity event.

    Attributes:
        id: globally unique; becomes the id of the event.
        identity: opaque id of the person, None when unknown.
        number: the person's number in the local gallery (for MOT files), None when unknown.
        name: given by the operator, if any.
        score: cosine of the track's pooled embedding and the identity, None without a comparison.
        runner_up: the same for the second-best identity, None when there is none.
        threshold: for the score, None without a comparison.
        rule: origin of the threshold: `calibrated`, `site`, `prior`, `warm-up`, `configured`.
        identities: number of identities that the track was compared with.
        pair_rate, search_rate: estimated probability that somebody new reaches the threshold with one
            identity, and with any of them; None where nothing is known of the scores.
        evidence: number of crops pooled; `quality` is their mean quality, 0..1.
        box: `(4,)`, last position of the track.
        size: `(width, height)` of the frame in pixels.
        frame: number of the frame of the decision, whose capture time is `time`.
        corrects: id of the overturned decision, for `corrected`; `previous` is its identity.
        reason: short reason, e.g. `contested`, `fused`, `re-entry`, `expired`.
        ended: whether the track has ended.
        since: time from which on the identity is that of the track; None: for all of it.
        origin: what it is by: `local`, the gallery of this device; `fleet`, the store of the site.
        known_by: for `fleet`, the device whose exemplar gave the score.
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
    ended: bool = False
    identities: int = 0
    pair_rate: float | None = None
    search_rate: float | None = None
    since: float | None = None
    origin: Literal["local", "fleet"] = "local"
    known_by: str | None = None


_ZERO, _LEAST_AREA, _LEAST_WIDE_AREA = (np.array(value, np.float32) for value in (0.0, 1e-12, 1.0))
"""Arrays, since NumPy is faster with them than with numbers."""


def iou_matrix(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Intersection over union of every pair: `(..., N, 4)`, `(..., M, 4)` xyxy -> `(..., N, M)` float32."""
    # One coordinate after another, so that NumPy's inner loops are as long as a row of pairs.
    own = np.ascontiguousarray(np.moveaxis(a, -1, 0))[..., :, None]
    others = np.ascontiguousarray(np.moveaxis(b, -1, 0))[..., None, :]
    sides = np.minimum(own[2:], others[2:])
    sides -= np.maximum(own[:2], others[:2])
    np.maximum(sides, _ZERO, out=sides)
    overlap: NDArray[np.float32] = np.multiply(sides[0], sides[1], out=sides[0])
    union = np.add(_area(own), _area(others), out=sides[1])
    union -= overlap
    overlap /= np.maximum(union, _LEAST_AREA, out=union)  # boxes without area have no overlap
    return overlap


def overlapping(
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    together: NDArray[np.bool_],
    wider: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Return the places of the P pairs of `(N, 4)` and `(M, 4)` boxes that overlap, and their IoU `(P,)`.

    In a crowd these are a tenth of all pairs. `together`, which `(N, M)` can be made of, are the pairs that
    count. `wider` `(N, 2)` are pixels by which both boxes of a pair are wider on all sides, in x and y.
    """
    own, others = np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)
    sides = np.minimum(own[2:, :, None], others[2:, None])
    sides -= np.maximum(own[:2, :, None], others[:2, None])
    if wider is not None:
        sides += 2 * wider.T[..., None]
    near = np.minimum(sides[0], sides[1]) > _ZERO
    near &= together
    places = near.ravel().nonzero()[0]  # several times as fast as of two axes
    rows, columns = np.divmod(places, len(b))
    width, height = sides.reshape(2, -1).take(places, axis=1)
    overlap: NDArray[np.float32] = width * height
    if wider is None:
        union, least = _area(own).take(rows) + _area(others).take(columns), _LEAST_AREA
    else:
        more = 2 * wider.T[:, rows]
        size, other = (part[2:, at] - part[:2, at] + more for part, at in ((own, rows), (others, columns)))
        union, least = size[0] * size[1] + other[0] * other[1], _LEAST_WIDE_AREA
    union -= overlap
    overlap /= np.maximum(union, least, out=union)
    return rows, columns, overlap


def _area(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """`(4, ...)` x1, y1, x2, y2 -> `(...)` square pixels."""
    sides = np.maximum(boxes[2:] - boxes[:2], _ZERO)
    area: NDArray[np.float32] = sides[0] * sides[1]
    return area
