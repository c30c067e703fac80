"""Video files."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import structlog
from numpy.typing import NDArray

from edge_agent.core.errors import InputError, SourceError
from edge_agent.core.files import native_path, open_regular, shown
from edge_agent.core.pictures import MAX_PICTURE_PIXELS
from edge_agent.core.structures import Frame
from edge_agent.source.containers import Container, examine
from edge_agent.source.frame_times import ASSUMED_FPS, FASTEST_FPS, FrameTimes
from edge_agent.source.video import built_with, open_capture

if TYPE_CHECKING:
    import cv2

_log = structlog.get_logger(__name__)

_MAX_FAILED_READS = 1000
"""Failed reads in a row that mean the end of the file: OpenCV fails in the same way at a damaged packet."""
_TIMES_JUDGED_AT = 8
"""Frames after which a file without times is reported; a shorter one at its end."""
_HEARTBEAT_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class FileOptions:
    """Options of a video file; `core.config.SourceSettings` describes them."""

    fps: float | None = None
    realtime: bool = False
    start_time: float | None = None


class FileSource:
    """A video file: every frame, in order, as fast as they are taken.

    The n-th frame read has number n. The first one has time `start`, the others follow at the times of the
    container by the rules of `source.frame_times`, or at the rate `fps` where that is set.
    """

    stall_seconds = None  # a file waits for its consumer, and a slow disk is no outage
    ends = True
    rewinds = True

    def __init__(self, id: str, path: str | Path, options: FileOptions) -> None:  # noqa: A002 - name of `Source`
        self.id = id
        self.path = Path(path)
        self.live = options.realtime
        self._options = options

    def frames(self) -> Generator[Frame | None, None, None]:
        """Every frame of the file; None as a heartbeat while the next one is not due (`realtime`).

        Raises:
            SourceError: it is missing, unreadable, a folder, not a video, or holds no frame.
        """
        import cv2

        path = self.check()
        container = examine(path)
        api = cv2.CAP_FFMPEG if built_with("FFMPEG") else cv2.CAP_ANY
        failure = SourceError(
            f"source {self.id}: {shown(path)} is cut off, and what is left cannot be read; copy it again"
            if container.cut
            else f"source {self.id}: {shown(path)} is not a video that this OpenCV can read; "
            "`ffprobe` shows its content, `ffmpeg -i FILE -c:v libx264 out.mp4` makes one that works"
        )
        with open_capture(str(path), api, [], failure) as capture:
            self._check_size(capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
            promised = capture.get(cv2.CAP_PROP_FRAME_COUNT)
            start = time.time() if self._options.start_time is None else self._options.start_time
            clock = _Clock(self.id, container, capture.get(cv2.CAP_PROP_FPS), self._options.fps)
            begun: float | None = None
            number, latest = 0, 0.0
            for image, position, following in _pictures(capture):
                number, latest = number + 1, max(latest, position)
                elapsed = clock.place(number, position, following)
                begun = time.monotonic() if begun is None else begun
                if self.live:
                    yield from _wait_until(begun + elapsed)
                yield Frame(self.id, number, start + elapsed, image)
        if number == 0:
            raise SourceError(f"source {self.id}: {shown(path)} holds no frame that can be decoded")
        if container.cut:
            _log.warning("file_ended_early", camera=self.id, frames=number, reason="it is cut off")
        elif _is_short(number, promised, latest, container.seconds):
            reason = f"its header states {promised:.0f} frames"
            _log.warning("file_ended_early", camera=self.id, frames=number, reason=reason)

    def check(self) -> Path:
        """Return the absolute path of the file; SourceError where it is no regular file with content."""
        path = self.path
        if path.is_dir():
            name = shown(path)
            raise SourceError(
                f"source {self.id}: {name} is a folder, not a video; a folder of crops is `crops:{name}`"
            )
        try:
            with open_regular(path) as handle:
                empty = not handle.read(1)
        except (OSError, InputError) as problem:
            raise SourceError(f"source {self.id}: {problem}") from problem
        if empty:
            raise SourceError(f"source {self.id}: {shown(path)} is empty")
        # An absolute path, since FFmpeg would read `concat:a|b` or `http:x` as a protocol.
        return path.resolve()

    def _check_size(self, width: float, height: float) -> None:
        if width * height > MAX_PICTURE_PIXELS:
            raise SourceError(
                f"source {self.id}: {shown(self.path)} has frames of {width:.0f} x {height:.0f} pixels;"
                f" the limit is {MAX_PICTURE_PIXELS // 10**6} megapixels, `ffmpeg -i FILE -vf scale=1920:-2"
                " out.mp4` makes smaller ones"
            )


def header_frames(path: Path) -> int | None:
    """Return the number of frames that the header of a video states; None where none is known.

    It is an estimate in most containers, and useless where the rate is a time base.
    """
    import cv2

    try:
        target = native_path(path.resolve())
    except (InputError, OSError, RuntimeError):  # the last: a link that leads to itself, before Python 3.13
        return None
    capture = cv2.VideoCapture(target) if path.is_file() else None
    if capture is None or not 0 < capture.get(cv2.CAP_PROP_FPS) <= FASTEST_FPS:
        return None
    frames = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    return frames if frames > 0 else None


class _Clock:
    """Times of the frames of one reading; logs once where the file states none."""

    def __init__(self, camera: str, container: Container, header: float, fps: float | None) -> None:
        self._camera = camera
        self._fps = fps
        self._timed = container.timed
        self._times = FrameTimes(header if container.timed else None)
        self._reported = False

    def place(self, number: int, position: float, following: float | None) -> float:
        """Seconds from the first frame to this one, the `number`-th; see `FrameTimes.place`."""
        if self._fps is not None:
            return (number - 1) / self._fps
        if not self._timed:  # FFmpeg makes some up
            position, following = 0.0, None if following is None else 0.0
        elapsed = self._times.place(position, following)
        if number >= _TIMES_JUDGED_AT or following is None:
            self._report()
        return elapsed

    def _report(self) -> None:
        if self._times.guessed and not self._reported:
            self._reported = True
            _log.warning("file_without_frame_rate", camera=self._camera, assumed=ASSUMED_FPS)


def _pictures(
    capture: cv2.VideoCapture,
) -> Iterator[tuple[NDArray[np.uint8], float, float | None]]:
    """Each picture, its position in seconds, and that of the next one; None at the end."""
    import cv2

    held: tuple[NDArray[np.uint8], float] | None = None
    failed = 0
    while failed < _MAX_FAILED_READS:
        there, image = capture.read()
        if not there:
            failed += 1
            continue
        failed = 0
        # After a read this is the time stamp of the picture that was read, from the start of the stream.
        position = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        if held is not None:
            yield *held, position
        held = np.asarray(image, np.uint8), position
    if held is not None:
        yield *held, None


def _wait_until(due: float) -> Iterator[None]:
    """Wait; yields None about twice a second."""
    while (left := due - time.monotonic()) > _HEARTBEAT_SECONDS:
        time.sleep(_HEARTBEAT_SECONDS)
        yield None
    time.sleep(max(0.0, left))


def _is_short(frames: int, promised: float, latest: float, seconds: float | None) -> bool:
    """Whether frames are missing at the end: both their number and the time of the last one are too low.

    Frames can be fewer than the header states and complete (dropped ones, edit lists); `latest` is the last
    position, `seconds` the stated duration. Headers are right within 2 %, and the last two frames of a file
    with B frames may have no position.
    """
    if seconds is None or not math.isfinite(promised):
        return False
    end = latest * (frames + 2) / max(frames - 1, 1)
    return frames < promised * 0.98 - 1 and end < seconds * 0.98
