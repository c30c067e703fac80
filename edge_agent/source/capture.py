"""Video through OpenCV: files, network streams, USB cameras, and CSI cameras on a Jetson.

Every capture names its backend: with `CAP_ANY` OpenCV ignores the timeouts (opencv/opencv#23207), and
the defaults hang for more than 45 s on a frozen server.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import structlog

from edge_agent.errors import SourceError
from edge_agent.structures import Frame

if TYPE_CHECKING:
    import cv2

__all__ = ["FileSource", "has_gstreamer", "is_jetson"]

_log = structlog.get_logger(__name__)

Backend = Literal["auto", "ffmpeg", "gstreamer"]

_ASSUMED_FPS = 25.0
"""For files whose header gives no frame rate; a warning says so."""
_CAMERA_STALL_SECONDS = 10.0
"""USB and CSI cameras have no timeout that can be set per device: after this silence they are reopened."""


def has_gstreamer() -> bool:
    """Whether this cv2 was built with GStreamer.

    Told by the build information: the wheels from PyPI list the backend in `cv2.videoio_registry`
    though they cannot open it.
    """
    return _built_with("GStreamer")


@functools.cache
def _built_with(feature: str) -> bool:
    import cv2

    for line in cv2.getBuildInformation().splitlines():
        name, _, value = line.strip().partition(":")
        if name == feature:
            return bool(value.strip().startswith("YES"))
    return False


def is_jetson(root: Path = Path("/")) -> bool:
    """Whether this is an NVIDIA Tegra, as the device tree says."""
    compatible = root / "proc/device-tree/compatible"
    try:
        return b"nvidia,tegra" in compatible.read_bytes()
    except OSError:
        return False


@contextmanager
def _capture(
    what: str | int, api: int, parameters: list[int], failure: SourceError
) -> Iterator[cv2.VideoCapture]:
    """Open a capture and release it in the end; raise `failure` where it does not open."""
    import cv2

    capture = cv2.VideoCapture()
    try:
        if not capture.open(what, api, parameters):
            raise failure
        yield capture
    finally:
        capture.release()


class FileSource:
    """A video file: every frame, in order, as fast as they are taken.

    The n-th frame read has number n and time `start + (n - 1) / fps`.

    Args:
        id: id of the source.
        path: the file.
        fps: frames per second, where the header is wrong or silent.
        realtime: deliver at that rate, and drop what is not taken in time, as a camera would.
        start_time: Unix time of the first frame; the moment of opening when None.
    """

    stall_seconds = None  # a file waits for its consumer, and a slow disk is no outage
    ends = True

    def __init__(
        self,
        id: str,  # noqa: A002 - the name that every source has
        path: str | Path,
        *,
        fps: float | None = None,
        realtime: bool = False,
        start_time: float | None = None,
    ) -> None:
        if fps is not None and not (math.isfinite(fps) and fps > 0):
            raise SourceError(f"source {id}: fps must be a positive number, got {fps}")
        self.id = id
        self.path = Path(path)
        self.live = realtime
        self._fps = fps
        self._start_time = start_time

    def frames(self) -> Generator[Frame, None, None]:
        """Every frame of the file.

        Raises:
            SourceError: it is missing, unreadable, a folder, not a video, or holds no frame.
        """
        import cv2

        path = self._checked()
        api = cv2.CAP_FFMPEG if _built_with("FFMPEG") else cv2.CAP_ANY
        failure = SourceError(
            f"source {self.id}: {path} is not a video that this OpenCV can read; "
            "`ffprobe` tells what is in it, `ffmpeg -i FILE -c:v libx264 out.mp4` makes one that works"
        )
        with _capture(str(path), api, [], failure) as capture:
            fps = self._rate(float(capture.get(cv2.CAP_PROP_FPS)))
            promised = capture.get(cv2.CAP_PROP_FRAME_COUNT)
            start = time.time() if self._start_time is None else self._start_time
            begun = time.monotonic()
            number = 0
            while True:
                there, image = capture.read()
                if not there:
                    break
                number += 1
                elapsed = (number - 1) / fps
                if self.live:
                    time.sleep(max(0.0, begun + elapsed - time.monotonic()))
                yield Frame(self.id, number, start + elapsed, image)
        if number == 0:
            raise SourceError(f"source {self.id}: {path} holds no frame that can be decoded")
        self._report_missing(number, promised)

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
        # An absolute path: FFmpeg would take `concat:a|b` or `http:x` for a protocol.
        return path.resolve()

    def _rate(self, header: float) -> float:
        if self._fps is not None:
            return self._fps
        if math.isfinite(header) and 0 < header <= 1000:  # 90000 and the like is a time base, not a rate
            return header
        _log.warning("file_without_frame_rate", camera=self.id, header=header, assumed=_ASSUMED_FPS)
        return _ASSUMED_FPS

    def _report_missing(self, number: int, promised: float) -> None:
        """A damaged file looks like a short one to OpenCV; its header knows better (within 2 %)."""
        if math.isfinite(promised) and number < promised * 0.98 - 1:
            _log.warning("file_ended_early", camera=self.id, frames=number, header=int(promised))
