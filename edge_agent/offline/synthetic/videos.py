"""The cameras of a street as video files, with the truth in MOTChallenge rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2

from edge_agent.core.errors import StorageError
from edge_agent.core.manifest import write_atomic
from edge_agent.offline.synthetic.street import Street, Truth

__all__ = ["MIN_VISIBLE", "StreetVideo", "write_videos"]

MIN_VISIBLE = 0.3
"""Truth rows below this share of visible pixels have confidence 0: they are not scored."""


@dataclass(frozen=True, slots=True)
class StreetVideo:
    """Files of one camera: the video and its truth in MOTChallenge rows."""

    camera: str
    video: Path
    truth: Path


def write_videos(
    street: Street, folder: Path, progress: Callable[[int, int], None] | None = None
) -> tuple[StreetVideo, ...]:
    """Write each camera as Motion JPEG in AVI, its truth, and `street.json` with the script.

    Truth rows are `frame,person,left,top,width,height,conf,class,visibility`, as in the `gt.txt` of the
    MOTChallenge; `person` is the same on all cameras, conf is 0 below `MIN_VISIBLE`.

    Args:
        street: what to write.
        folder: created if missing.
        progress: called with `(frames done, frames in all)`, counted over all cameras.

    Raises:
        StorageError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    videos = []
    for index, name in enumerate(street.cameras):
        video = StreetVideo(name, folder / f"{name}.avi", folder / f"{name}.txt")
        rows = _write_video(street, video, index * street.frames, progress)
        write_atomic(video.truth, "".join(rows).encode())
        videos.append(video)
    script = {"seed": street.seed, "fps": street.fps, "size": street.size, "frames": street.frames}
    people = {str(number): person.seed for number, person in enumerate(street.people, 1)}
    visits = [asdict(visit) for visit in street.visits]
    document = json.dumps({**script, "people": people, "visits": visits}, indent=1)
    write_atomic(folder / "street.json", document.encode())
    return tuple(videos)


def _write_video(
    street: Street, video: StreetVideo, done: int, progress: Callable[[int, int], None] | None
) -> list[str]:
    """Write one video; return its rows of truth."""
    part = video.video.with_name(f"{video.camera}.part.avi")
    writer = cv2.VideoWriter(str(part), cv2.VideoWriter.fourcc(*"MJPG"), street.fps, street.size)
    if not writer.isOpened():
        raise StorageError(f"{part}: cannot be opened for writing; check free space and permissions")
    rows = []
    try:
        for number in range(1, street.frames + 1):
            frame = street.frame(video.camera, number)
            writer.write(frame.image)
            rows += [_mot_row(number, truth) for truth in frame.truth]
            if progress:
                progress(done + number, street.frames * len(street.cameras))
    finally:
        writer.release()
    part.replace(video.video)
    return rows


def _mot_row(number: int, truth: Truth) -> str:
    x1, y1, x2, y2 = truth.box
    scored = int(truth.visible >= MIN_VISIBLE)
    box = f"{x1:.1f},{y1:.1f},{x2 - x1:.1f},{y2 - y1:.1f}"
    return f"{number},{truth.person},{box},{scored},1,{truth.visible:.3f}\n"
