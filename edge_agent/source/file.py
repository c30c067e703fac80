"""Video files."""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import structlog

from edge_agent.core.errors import SourceError
from edge_agent.core.structures import Frame
from edge_agent.source.video import built_with, open_capture

_log = structlog.get_logger(__name__)

_ASSUMED_FPS = 25.0
"""For files whose header has no frame rate; logged as a warning."""


@dataclass(frozen=True, slots=True)
class FileOptions:
    """Options of a video file; `core.config.SourceSettings` describes them."""

    fps: float | None = None
    realtime: bool = False
    start_time: float | None = None


class FileSource:
    """A video file: every frame, in order, as fast as they are taken.

    The n-th frame read has number n and time `start + (n - 1) / fps`.
    """

    stall_seconds = None  # a file waits for its consumer, and a slow disk is no outage
    ends = True

    def __init__(self, id: str, path: str | Path, options: FileOptions) -> None:  # noqa: A002 - name of `Source`
        self.id = id
        self.path = Path(path)
        self.live = options.realtime
        self._options = options

    def frames(self) -> Generator[Frame, None, None]:
        """Every frame of the file.

        Raises:
            SourceError: it is missing, unreadable, a folder, not a video, or holds no frame.
        """
        import cv2

        path = self._checked()
        api = cv2.CAP_FFMPEG if built_with("FFMPEG") else cv2.CAP_ANY
        failure = SourceError(
            f"source {self.id}: {path} is not a video that this OpenCV can read; "
            "`ffprobe` shows its content, `ffmpeg -i FILE -c:v libx264 out.mp4` makes one that works"
        )
        with open_capture(str(path), api, [], failure) as capture:
            fps = self._rate(float(capture.get(cv2.CAP_PROP_FPS)))
            promised = capture.get(cv2.CAP_PROP_FRAME_COUNT)
            start = time.time() if self._options.start_time is None else self._options.start_time
            begun = time.monotonic()
            number = 0
            while (found := capture.read())[0]:
                number += 1
                elapsed = (number - 1) / fps
                if self.live:
                    time.sleep(max(0.0, begun + elapsed - time.monotonic()))
                yield Frame(self.id, number, start + elapsed, found[1])
        if number == 0:
            raise SourceError(f"source {self.id}: {path} holds no frame that can be decoded")
        # OpenCV reports a damaged file as a short one; the header is right within 2 %.
        if math.isfinite(promised) and number < promised * 0.98 - 1:
            _log.warning("file_ended_early", camera=self.id, frames=number, header=int(promised))

    def _checked(self) -> Path:
        path = self.path
        if path.is_dir():
            raise SourceError(
                f"source {self.id}: {path} is a folder, not a video; a folder of crops is `crops:{path}`"
            )
        try:
            with path.open("rb") as handle:
                empty = not handle.read(1)
        except OSError as problem:
            raise SourceError(
                f"source {self.id}: cannot read {path}: {problem.strerror or problem}"
            ) from problem
        if empty:
            raise SourceError(f"source {self.id}: {path} is empty")
        # An absolute path, since FFmpeg would read `concat:a|b` or `http:x` as a protocol.
        return path.resolve()

    def _rate(self, header: float) -> float:
        if self._options.fps is not None:
            return self._options.fps
        if math.isfinite(header) and 0 < header <= 1000:  # 90000 and the like is a time base, not a rate
            return header
        _log.warning("file_without_frame_rate", camera=self.id, header=header, assumed=_ASSUMED_FPS)
        return _ASSUMED_FPS
