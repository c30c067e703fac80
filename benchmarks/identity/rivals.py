"""Other projects' trackers with memory for appearance, on the agent's detections and embeddings.

    python -m venv peers; peers/bin/pip install -e . boxmot==25.0.0 deep-sort-realtime norfair trackers
    peers/bin/python -m benchmarks.identity rivals

None has a gallery: an identity is a track, so a person who returns is recognised only while the track is
remembered. Each runs with its defaults, and with the longest memory ("never forgets"). Every detection has an
embedding of OSNet; scores are those of the detector. A project that is not installed is left out.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.identity.footage import Footage
from benchmarks.identity.measures import Evidence, Visits, boxes
from benchmarks.identity.running import Network, visits_of
from benchmarks.scoring import Rows
from edge_agent.core.config import EngineSettings, QualitySettings
from edge_agent.detect import opening
from edge_agent.embed.opening import open_embedder

__all__ = ["RIVALS", "Seen", "scored", "seen"]

FOREVER = 1_000_000
"""Frames."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One frame: its detections (boxes xyxy, scores, embeddings), and the picture's size."""

    number: int
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    vectors: NDArray[np.float32]
    size: tuple[int, int]


Rival = Callable[[list[Seen], float], Iterator[tuple[int, list[tuple[int, Any]]]]]
"""From frames and frames a second to frame number, and track with box xyxy of each person."""


def scored(name: str, clip: Footage, frames: list[Seen]) -> dict[str, Any]:
    """Return the score of a project; why it is left out, where it is not installed."""
    try:
        rows = _rows(RIVALS[name](frames, clip.fps))
    except ImportError as missing:
        return {"left_out": str(missing)}
    truth, evidence = Visits(), Evidence()
    boxes(evidence, rows, visits_of(clip, truth))
    one = asdict(evidence.measure(truth))
    return {figure: one[figure] for figure in ("idf1", "recognised", "reentries", "merged", "identities")}


def seen(clip: Footage, detector: str, network: Network) -> list[Seen]:
    """Return what every project gets."""
    engine, frames = EngineSettings.model_validate(network.settings), []
    with (
        TemporaryDirectory() as state,
        opening.open_detector(detector) as finds,
        open_embedder(engine, QualitySettings(), Path(state)) as embedder,
    ):
        for number, _, image in clip.frames():
            height, width = image.shape[:2]
            found = finds.detect(image).within(width, height)
            inside = np.column_stack([np.floor(found.boxes[:, :2]), np.ceil(found.boxes[:, 2:])]).astype(int)
            vectors = embedder.embed_images([image[y1:y2, x1:x2] for x1, y1, x2, y2 in inside])
            frames.append(Seen(number, found.boxes, found.scores, vectors, (width, height)))
    return frames


def _rows(found: Iterator[tuple[int, list[tuple[int, Any]]]]) -> Rows:
    return {
        frame: (np.array([track for track, _ in people]), np.array([box for _, box in people], np.float32))
        for frame, people in found
        if people
    }


def _boxmot(kind: str, **options: Any) -> Rival:  # noqa: ANN401
    """BoxMOT's class of this name; without its estimation of the camera's motion, which has none."""

    def run(frames: list[Seen], fps: float) -> Iterator[tuple[int, list[tuple[int, Any]]]]:
        torch = importlib.import_module("torch")
        structures = importlib.import_module("boxmot.structures")
        own = importlib.import_module(f"boxmot.trackers.box.{kind.lower()}.tracker")
        tracker = getattr(own, kind)(**({"frame_rate": round(fps)} if kind == "BotSort" else {}), **options)
        tracker.apply_cmc = lambda *_, **__: None
        blank = np.zeros((frames[0].size[1], frames[0].size[0], 3), np.uint8)
        for one in frames:
            given = structures.Detections(
                structures.Boxes(torch.tensor(one.boxes)), torch.tensor(one.scores),
                torch.zeros(len(one.scores), dtype=torch.int64), str(one.number),
                embeddings=torch.tensor(one.vectors),
            )  # fmt: skip
            tracks = tracker.update(given, blank)
            places = tracks.geometry.values.tolist()
            yield one.number, list(zip(tracks.track_ids.tolist(), places, strict=True))

    return run


def _deep_sort(**options: Any) -> Rival:  # noqa: ANN401
    def run(frames: list[Seen], fps: float) -> Iterator[tuple[int, list[tuple[int, Any]]]]:  # noqa: ARG001
        module = importlib.import_module("deep_sort_realtime.deepsort_tracker")
        tracker = module.DeepSort(embedder=None, **options)
        for one in frames:
            given = [
                ([x1, y1, x2 - x1, y2 - y1], score, "person")
                for (x1, y1, x2, y2), score in zip(one.boxes.tolist(), one.scores.tolist(), strict=True)
            ]
            tracks = tracker.update_tracks(given, embeds=list(one.vectors))
            yield (
                one.number,
                [
                    (int(track.track_id), track.to_ltrb())
                    for track in tracks
                    if track.is_confirmed() and track.time_since_update == 0
                ],
            )

    return run


def _norfair(remembered: int | None) -> Rival:
    def unlike(new: Any, old: Any) -> float:  # noqa: ANN401 - its tracked objects
        mine, known = new.last_detection.embedding, [past.embedding for past in old.past_detections]
        return 1.0 - max((float(mine @ one) for one in known if one is not None), default=0.0)

    def run(frames: list[Seen], fps: float) -> Iterator[tuple[int, list[tuple[int, Any]]]]:
        norfair = importlib.import_module("norfair")
        again: dict[str, Any] = {}
        if remembered is not None:
            again = {
                "reid_distance_function": unlike, "reid_distance_threshold": 0.4,
                "reid_hit_counter_max": remembered, "past_detections_length": 10,
            }  # fmt: skip
        tracker = norfair.Tracker(
            "iou",
            distance_threshold=0.7,
            initialization_delay=2,
            hit_counter_max=max(3, round(3 * fps)),
            **again,
        )
        for one in frames:
            given = [
                norfair.Detection(np.asarray(box).reshape(2, 2), np.array([score, score]), embedding=vector)
                for box, score, vector in zip(one.boxes, one.scores, one.vectors, strict=True)
                if score >= LEAST
            ]
            tracked = tracker.update(given)
            yield (
                one.number,
                [(track.id, track.estimate.reshape(4)) for track in tracked if track.live_points.any()],
            )

    return run


def _roboflow(kind: str, **options: Any) -> Rival:  # noqa: ANN401
    """`trackers` of Roboflow: by overlap alone."""

    def run(frames: list[Seen], fps: float) -> Iterator[tuple[int, list[tuple[int, Any]]]]:
        supervision, own = importlib.import_module("supervision"), importlib.import_module("trackers")
        tracker = getattr(own, kind)(frame_rate=fps, **options)
        for one in frames:
            given = supervision.Detections(
                xyxy=one.boxes, confidence=one.scores, class_id=np.zeros(len(one.scores), int)
            )
            result = tracker.update(given)
            ids = np.zeros(0, int) if result.tracker_id is None else result.tracker_id
            yield one.number, [(int(t), box) for t, box in zip(ids, result.xyxy, strict=False) if t >= 0]

    return run


LEAST = 0.3
"""Score from which on norfair, which has no levels, gets a detection."""
RIVALS: dict[str, Rival] = {
    "BoxMOT BoT-SORT": _boxmot("BotSort"),
    "BoxMOT BoT-SORT, never forgets": _boxmot("BotSort", track_buffer=FOREVER),
    "BoxMOT BoT-SORT, never forgets, by appearance anywhere": _boxmot(
        "BotSort", track_buffer=FOREVER, proximity_thresh=1.0
    ),
    "BoxMOT StrongSORT": _boxmot("StrongSort"),
    "BoxMOT StrongSORT, never forgets": _boxmot("StrongSort", max_age=FOREVER),
    "deep-sort-realtime": _deep_sort(),
    "deep-sort-realtime, never forgets": _deep_sort(max_age=FOREVER),
    "norfair, by overlap": _norfair(None),
    "norfair with appearance, never forgets": _norfair(FOREVER),
    "trackers ByteTrack": _roboflow("ByteTrackTracker"),
}
