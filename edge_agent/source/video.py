"""Video decoding by OpenCV, and the common part of live cameras.

Every capture names its backend: with `CAP_ANY` OpenCV ignores the timeouts (opencv/opencv#23207), and the
defaults hang for more than 45 s on a frozen server.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edge_agent.core.errors import InputError, SourceError, SourceLost
from edge_agent.core.files import native_path, shown
from edge_agent.core.redaction import redact
from edge_agent.core.structures import Frame
from edge_agent.source.pipelines import Size

if TYPE_CHECKING:
    import cv2

CAMERA_STALL_SECONDS = 10.0
"""USB and CSI cameras have no timeout that can be set per device: after this silence they are reopened."""


def has_gstreamer() -> bool:
    """Whether this cv2 was built with GStreamer, according to the build information.

    The wheels from PyPI list the backend in `cv2.videoio_registry` although they cannot open it.
    """
    return built_with("GStreamer")


@functools.cache
def built_with(feature: str) -> bool:
    """Whether the build information of this cv2 lists a feature as present."""
    import cv2

    for line in cv2.getBuildInformation().splitlines():
        name, _, value = line.strip().partition(":")
        if name == feature:
            return bool(value.strip().startswith("YES"))
    return False


def is_jetson(root: Path = Path("/")) -> bool:
    """Whether this is an NVIDIA Tegra, according to the device tree."""
    compatible = root / "proc/device-tree/compatible"
    try:
        return b"nvidia,tegra" in compatible.read_bytes()
    except OSError:
        return False


def use_gstreamer(camera: str, backend: str, *, possible: bool = True) -> bool:
    """Decide whether to open with GStreamer; `possible`: there is a pipeline for this kind of source.

    Raises:
        SourceError: GStreamer is requested and not available.
    """
    if backend == "auto":
        return possible and is_jetson() and has_gstreamer()
    if backend != "gstreamer":
        return False
    if not possible:
        raise SourceError(f"source {camera}: GStreamer is for rtsp:// here; use backend `ffmpeg` for HTTP")
    if not has_gstreamer():
        raise SourceError(
            f"source {camera}: this needs an OpenCV with GStreamer, and the one installed has none (wheels "
            "from PyPI never have). On a Jetson use JetPack's: a virtual environment made with "
            "`/usr/bin/python3 -m venv --system-site-packages`, without pip's opencv-python in it"
        )
    return True


@contextmanager
def open_capture(
    target: str, api: int, parameters: list[int], failure: SourceError
) -> Iterator[cv2.VideoCapture]:
    """Open a capture and release it at the end; raise `failure` where it does not open.

    SourceError: a target that OpenCV cannot take; it would end the process.
    """
    import cv2

    try:
        target = native_path(target)
    except InputError as problem:
        if "://" not in target:
            raise SourceError(f"cannot open {problem}") from problem
        advice = "the address has bytes that are not UTF-8 text; write each as %XX"
        raise SourceError(f"cannot open {redact(shown(target))}: {advice}") from problem
    capture = cv2.VideoCapture()
    try:
        if not capture.open(target, api, parameters):
            raise failure
        yield capture
    finally:
        capture.release()


class RateLimiter:
    """Passes at most `rate` frames per second, evenly; None passes all. Other frames are not converted."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._next = -math.inf
        self.lower_rate: Callable[[], float | None] = lambda: None
        """Returns a lower rate that is sufficient at present, None for the usual one."""

    def due(self) -> bool:
        """Whether this frame is to be passed."""
        now = time.monotonic()
        if now < self._next:
            return False
        # From the due time rather than from now, or 15 fps limited to 10 would give 7.5.
        rates = [rate for rate in (self._rate, self.lower_rate()) if rate is not None]
        interval = 1.0 / min(rates) if rates else 0.0
        self._next = max(self._next, now - interval) + interval
        return True


class Camera(ABC):
    """A live source read through OpenCV. Its end is an outage: the reader opens it again.

    Args:
        id: id of the source.
        label: name of the device or stream in messages.
        size: `(width, height)` to scale frames to; None keeps the camera's.
        max_fps: limit of the frame rate; None delivers all.
        stall_seconds: see `Source`.
        now: gives the time of a frame that arrives, Unix seconds.
    """

    live = True
    ends = False

    def __init__(
        self,
        id: str,  # noqa: A002 - the name that every source has
        label: str,
        size: Size | None,
        max_fps: float | None,
        stall_seconds: float = CAMERA_STALL_SECONDS,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        if size is not None and not (size[0] > 0 and size[1] > 0):
            raise SourceError(f"source {id}: size must be a positive width and height, got {size}")
        self.id = id
        self.stall_seconds = stall_seconds
        self.limiter = RateLimiter(max_fps)
        self._label = label
        self._now = now
        self._size = size
        self._numbers = itertools.count(1)

    @abstractmethod
    def _open(self) -> tuple[AbstractContextManager[cv2.VideoCapture], bool]:
        """Return the capture to enter, and whether it scales the frames itself."""

    def frames(self) -> Generator[Frame, None, None]:
        """Frames until the camera is lost, with the time of their arrival.

        Raises:
            SourceLost: the camera does not answer, refuses, or stopped sending.
            SourceError: it may not be read, or the requested backend is not in this cv2.
        """
        import cv2

        opened, scaled = self._open()
        with opened as capture:
            try:
                while capture.grab():
                    arrived, number = self._now(), next(self._numbers)
                    if not self.limiter.due():
                        continue
                    there, image = capture.retrieve()
                    if not there:
                        break
                    if self._size is not None and not scaled:
                        image = cv2.resize(image, self._size, interpolation=cv2.INTER_AREA)
                    yield Frame(self.id, number, arrived, image)
            except cv2.error as problem:
                raise SourceLost(f"OpenCV failed while reading: {problem}") from problem
        raise SourceLost(f"{self._label} stopped sending")
