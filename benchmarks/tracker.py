"""The tracker and `trackers`' ByteTrack on the same detections, scored against the raw ids of the truth.

    pip install trackers
    python -m benchmarks.tracker --video vtest.avi --truth vtest_gt.txt --detector yolox:yolox_nano.onnx \
        --model osnet.onnx --preprocess imagenet

Rows: ByteTrack (if `trackers` is installed), our tracker by overlap only, our tracker with appearance. Last
column: IDF1 over that of ByteTrack.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.scoring import Rows, Score, read_mot, score
from edge_agent.core.config import EngineSettings, QualitySettings, Settings
from edge_agent.core.logs import configure
from edge_agent.core.structures import Detections, Embedded, ScoreLevels, TrackUpdate
from edge_agent.detect.opening import open_detector
from edge_agent.embed.opening import open_embedder
from edge_agent.source.file import FileOptions, FileSource
from edge_agent.track.tracker import Tracker


@dataclass(frozen=True, slots=True)
class Seen:
    """One frame: number, time, size, and detections."""

    number: int
    time: float
    size: tuple[int, int]
    detections: Detections
    embedded: Embedded


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--video", type=Path, required=True)
    options.add_argument("--truth", type=Path, required=True)
    options.add_argument("--detector", default="hog")
    options.add_argument("--model", type=Path, required=True)
    options.add_argument("--preprocess", default="tao")
    options.add_argument("--json", action="store_true", help="all figures")
    chosen = options.parse_args()
    configure("warning")
    truth = read_mot(chosen.truth, truth=True)
    engine = EngineSettings.model_validate({"model": chosen.model, "preprocess": chosen.preprocess})
    with (
        TemporaryDirectory() as state,
        open_detector(chosen.detector) as detector,
        open_embedder(engine, QualitySettings(), Path(state)) as embedder,
    ):
        levels = detector.levels
        frames = [
            Seen(number, time, size, found, embedder_result)
            for number, time, image, found in _detect(chosen.video, detector)
            for size in [(image.shape[1], image.shape[0])]
            for embedder_result in [_embed(embedder, image, found)]
        ]
    rows: dict[str, Score] = {}
    reference = _bytetrack(frames, levels)
    if reference is not None:
        rows["trackers ByteTrack"] = score(reference, truth)
    rows["overlap alone"] = score(_ours(frames, levels, looks=False), truth)
    rows["with appearance"] = score(_ours(frames, levels, looks=True), truth)
    if chosen.json:
        print(json.dumps({name: asdict(result) for name, result in rows.items()}, indent=2))
        return
    base = rows.get("trackers ByteTrack")
    print(f"{'tracker':22} {'MOTA':>6} {'IDF1':>6} {'ratio':>6}")
    for name, result in rows.items():
        ratio = f"{result.idf1 / base.idf1:6.3f}" if base else "     -"
        print(f"{name:22} {result.mota:6.3f} {result.idf1:6.3f} {ratio}")


def _detect(video: Path, detector: object) -> Iterator[tuple[int, float, np.ndarray, Detections]]:
    for frame in FileSource("video", video, FileOptions(start_time=0.0)).frames():
        if frame is not None:
            yield frame.number, frame.time, frame.image, detector.detect(frame.image)  # type: ignore[attr-defined]


def _embed(embedder: object, image: np.ndarray, found: Detections) -> Embedded:
    embedder.submit([(image, found)])  # type: ignore[attr-defined]
    result: Embedded = embedder.collect()[0]  # type: ignore[attr-defined]
    return result


def _ours(frames: list[Seen], levels: ScoreLevels, *, looks: bool) -> Rows:
    tracker = Tracker("cam", Settings().tracker, levels)
    found: Rows = {}
    for seen in frames:
        blind = Embedded(
            np.zeros_like(seen.embedded.vectors), np.zeros_like(seen.embedded.present),
            np.zeros_like(seen.embedded.quality), seen.embedded.reasons,
        )  # fmt: skip
        update: TrackUpdate = tracker.update(
            seen.number, seen.time, seen.size, seen.detections, seen.embedded if looks else blind
        )
        if update.seen:
            found[seen.number] = (
                np.array([o.track_id for o in update.seen]),
                np.stack([o.box for o in update.seen]),
            )
    return found


def _bytetrack(frames: list[Seen], levels: ScoreLevels) -> Rows | None:
    try:
        import supervision
        from trackers import ByteTrackTracker
    except ImportError:
        return None
    fps = 1 / (frames[1].time - frames[0].time)
    tracker = ByteTrackTracker(
        lost_track_buffer=90,  # in frames of 30 a second: three seconds, as ours
        frame_rate=fps,
        track_activation_threshold=levels.new_track,
        high_conf_det_threshold=levels.high,
        minimum_consecutive_frames=2,
    )
    found: Rows = {}
    for seen in frames:
        given = supervision.Detections(
            xyxy=seen.detections.boxes, confidence=seen.detections.scores,
            class_id=np.zeros(len(seen.detections), int),
        )  # fmt: skip
        result = tracker.update(given)
        kept = result.tracker_id >= 0 if result.tracker_id is not None else np.zeros(0, bool)
        if kept.any():
            found[seen.number] = (result.tracker_id[kept], result.xyxy[kept].astype(np.float32))
    return found


if __name__ == "__main__":
    main()
