"""Video through OpenCV: files, network streams, USB cameras, and CSI cameras on a Jetson.

Every capture names its backend: with `CAP_ANY` OpenCV ignores the timeouts (opencv/opencv#23207), and
the defaults hang for more than 45 s on a frozen server.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import structlog

from edge_agent.core.errors import SourceError, SourceLost
from edge_agent.core.structures import Frame
from edge_agent.source import pipelines
from edge_agent.source.redact import redact_url

if TYPE_CHECKING:
    import cv2

__all__ = ["CsiSource", "FileSource", "Pace", "StreamSource", "UsbSource", "has_gstreamer", "is_jetson"]

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


class Pace:
    """Lets through at most so many frames a second, evenly; a frame that is left out is not converted.

    Args:
        rate: frames per second; all where it is None.
    """

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._next = -math.inf
        self.slowed: Callable[[], float | None] | None = None
        """Asked for a lower rate that is enough for now; None: the usual one."""

    def due(self) -> bool:
        """Whether this frame is let through."""
        now = time.monotonic()
        if now < self._next:
            return False
        # From the due time rather than from now, or 15 fps thinned to 10 would give 7.5.
        interval = self._interval()
        self._next = max(self._next, now - interval) + interval
        return True

    def _interval(self) -> float:
        rates = [rate for rate in (self._rate, self.slowed() if self.slowed else None) if rate is not None]
        return 1.0 / min(rates) if rates else 0.0


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


class StreamSource:
    """A network stream: RTSP, or HTTP (MJPEG, HLS). The end of the stream is an outage.

    Through FFmpeg, or, on a Jetson whose cv2 has GStreamer, through the hardware decoder.
    FFmpeg notices a frozen server after about three times `read_timeout_ms` (it tries again itself).

    Args:
        id: id of the source.
        url: `rtsp://`, `rtsps://`, `http://` or `https://`; may hold credentials, which are never shown.
        open_timeout_ms: longest wait for the server to answer.
        read_timeout_ms: longest wait for data.
        transport: RTSP over `tcp` or `udp`. FFmpeg tries TCP and falls back to UDP where the server
            refuses; that it shall not even try TCP can be told only to GStreamer.
        backend: `ffmpeg`, `gstreamer`, or `auto`: GStreamer on a Jetson where cv2 has it, else FFmpeg.
        codec: `h264` or `h265`; GStreamer has to know, FFmpeg sees for itself.
        size: `(width, height)` to scale frames to; None keeps the stream's.
        max_fps: frames beyond this rate are not delivered; None delivers all.
        latency_ms: GStreamer's jitter buffer.
        decode_threads: of FFmpeg; every frame comes as many frames late as there are threads beyond the
            first. For a stream that one core cannot decode.
    """

    live = True
    ends = False

    def __init__(
        self,
        id: str,  # noqa: A002 - the name that every source has
        url: str,
        *,
        open_timeout_ms: int = 3000,
        read_timeout_ms: int = 3000,
        transport: pipelines.Transport = "tcp",
        backend: Backend = "auto",
        codec: pipelines.Codec = "h264",
        size: pipelines.Size | None = None,
        max_fps: float | None = None,
        latency_ms: int = 200,
        decode_threads: int = 1,
    ) -> None:
        if open_timeout_ms <= 0 or read_timeout_ms <= 0:
            raise SourceError(f"source {id}: timeouts must be positive")
        if decode_threads < 1:
            raise SourceError(f"source {id}: decode_threads must be at least 1, got {decode_threads}")
        _check_choice(id, "backend", backend, ("auto", "ffmpeg", "gstreamer"))
        _check_choice(id, "transport", transport, ("tcp", "udp"))
        _check_choice(id, "codec", codec, ("h264", "h265"))
        self.id = id
        self.stall_seconds = max(open_timeout_ms, 3 * read_timeout_ms) / 1000 + 0.5
        self._url = url
        self._open_timeout_ms = open_timeout_ms
        self._read_timeout_ms = read_timeout_ms
        self._transport = transport
        self._backend = backend
        self._codec = codec
        self._size = _checked_size(id, size)
        self.pace = Pace(_checked_rate(id, max_fps))
        self._latency_ms = latency_ms
        self._decode_threads = decode_threads
        self._numbers = itertools.count(1)

    def frames(self) -> Generator[Frame, None, None]:
        """Frames until the stream is lost.

        Raises:
            SourceLost: the server does not answer, refuses, or stopped sending.
            SourceError: the backend asked for is not in this cv2, or cannot do what was asked.
        """
        shown = redact_url(self._url)
        failure = SourceLost(
            f"{shown} does not open (the limit is {self._open_timeout_ms} ms); "
            "is the camera on, and are address, path and login right?"
        )
        rtsp = self._url.lower().startswith("rtsp")
        if _use_gstreamer(self.id, self._backend, possible=rtsp):
            opened, size = self._open_gstreamer(failure), None
        else:
            opened, size = self._open_ffmpeg(failure), self._size
        with opened as capture:
            yield from _live_frames(capture, self.id, self._numbers, size=size, pace=self.pace)
        raise SourceLost(f"{shown} stopped sending")

    def _open_gstreamer(self, failure: SourceError) -> AbstractContextManager[cv2.VideoCapture]:
        import cv2

        pipeline = pipelines.rtsp(
            self._url,
            codec=self._codec,
            transport=self._transport,
            latency_ms=self._latency_ms,
            timeout_ms=self._read_timeout_ms,
            size=self._size,
            jetson=is_jetson(),
        )
        return _capture(pipeline, cv2.CAP_GSTREAMER, [], failure)

    def _open_ffmpeg(self, failure: SourceError) -> AbstractContextManager[cv2.VideoCapture]:
        import cv2

        if self._transport != "tcp":
            # OPENCV_FFMPEG_CAPTURE_OPTIONS would change every camera of this process.
            raise SourceError(
                f"source {self.id}: transport {self._transport!r} needs the GStreamer backend; FFmpeg tries "
                "TCP and falls back to UDP by itself, so leave the transport out"
            )
        wishes = [
            cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
            self._open_timeout_ms,
            cv2.CAP_PROP_READ_TIMEOUT_MSEC,
            self._read_timeout_ms,
        ]
        if hasattr(cv2, "CAP_PROP_N_THREADS"):  # OpenCV 4.5 has a thread per core, always
            wishes += [cv2.CAP_PROP_N_THREADS, self._decode_threads]
        return _capture(self._url, cv2.CAP_FFMPEG, wishes, failure)


class UsbSource:
    """A USB camera (V4L2). One that is unplugged is an outage: it may be plugged in again.

    Args:
        id: id of the source.
        device: index (0 is `/dev/video0`) or path, best `/dev/v4l/by-id/...`, which survives replugging.
        pixels: what the camera shall send: `mjpeg` (more frames through USB) or `yuyv` (raw).
        capture: `(width, height)` to ask the camera for. It may choose its nearest mode; the log says so.
        fps: rate to ask the camera for.
        size: `(width, height)` to scale frames to; None keeps the camera's.
        max_fps: frames beyond this rate are not delivered; None delivers all.
        backend: `v4l2`, `gstreamer`, or `auto`: GStreamer on a Jetson where cv2 has it, else V4L2.
    """

    live = True
    ends = False
    stall_seconds = _CAMERA_STALL_SECONDS

    def __init__(
        self,
        id: str,  # noqa: A002 - the name that every source has
        device: int | str,
        *,
        pixels: pipelines.UsbFormat = "mjpeg",
        capture: pipelines.Size = (1280, 720),
        fps: float = 30,
        size: pipelines.Size | None = None,
        max_fps: float | None = None,
        backend: Literal["auto", "v4l2", "gstreamer"] = "auto",
    ) -> None:
        _check_choice(id, "backend", backend, ("auto", "v4l2", "gstreamer"))
        _check_choice(id, "pixels", pixels, ("mjpeg", "yuyv"))
        self.id = id
        self.device = f"/dev/video{device}" if isinstance(device, int) else device
        self._pixels = pixels
        self._capture = capture
        self._fps = _whole_rate(id, fps)
        self._size = _checked_size(id, size)
        self.pace = Pace(_checked_rate(id, max_fps))
        self._backend = backend
        self._numbers = itertools.count(1)

    def frames(self) -> Generator[Frame, None, None]:
        """Frames until the camera is lost.

        Raises:
            SourceLost: there is no such device now, it is in use, or it stopped sending.
            SourceError: it may not be read, or the backend asked for is not in this cv2.
        """
        self._check_device()
        failure = SourceLost(
            f"{self.device} did not open; does another program use it? `v4l2-ctl -d {self.device} "
            "--list-formats-ext` tells its modes"
        )
        gstreamer = _use_gstreamer(self.id, self._backend, possible=True)
        opened = self._open_gstreamer(failure) if gstreamer else self._open_v4l2(failure)
        size = None if gstreamer else self._size
        with opened as capture:
            if not gstreamer:
                self._report_mode(capture)
            yield from _live_frames(capture, self.id, self._numbers, size=size, pace=self.pace)
        raise SourceLost(f"{self.device} stopped sending")

    def _check_device(self) -> None:
        path = Path(self.device)
        if not path.exists():
            raise SourceLost(f"there is no {self.device}; is the camera plugged in?")
        if not path.is_char_device():
            raise SourceError(f"source {self.id}: {self.device} is not a device")
        if not os.access(path, os.R_OK | os.W_OK):
            raise SourceError(
                f"source {self.id}: no permission for {self.device}; add this user to the group `video`"
            )

    def _open_gstreamer(self, failure: SourceError) -> AbstractContextManager[cv2.VideoCapture]:
        import cv2

        pipeline = pipelines.usb(
            self.device,
            pixels=self._pixels,
            capture=self._capture,
            fps=self._fps,
            size=self._size,
            jetson=is_jetson(),
        )
        return _capture(pipeline, cv2.CAP_GSTREAMER, [], failure)

    def _open_v4l2(self, failure: SourceError) -> AbstractContextManager[cv2.VideoCapture]:
        import cv2

        code = {"mjpeg": "MJPG", "yuyv": "YUYV"}[self._pixels]
        wishes = [cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*code)]
        wishes += [cv2.CAP_PROP_FRAME_WIDTH, self._capture[0], cv2.CAP_PROP_FRAME_HEIGHT, self._capture[1]]
        wishes += [cv2.CAP_PROP_FPS, self._fps]
        return _capture(self.device, cv2.CAP_V4L2, wishes, failure)

    def _report_mode(self, capture: cv2.VideoCapture) -> None:
        """A camera without the mode asked for takes another one silently (GStreamer would refuse)."""
        import cv2

        given = (int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)))
        if given != self._capture:
            _log.warning("camera_chose_other_mode", camera=self.id, wished=self._capture, given=given)


class CsiSource:
    """A camera on a Jetson's CSI port; needs the cv2 of JetPack, which is built with GStreamer.

    Args: as in `pipelines.csi`; `max_fps` as in `UsbSource`.
    """

    live = True
    ends = False
    stall_seconds = _CAMERA_STALL_SECONDS

    def __init__(
        self,
        id: str,  # noqa: A002 - the name that every source has
        sensor: int = 0,
        *,
        capture: pipelines.Size = (1920, 1080),
        fps: float = 30,
        size: pipelines.Size | None = None,
        flip: int = 0,
        max_fps: float | None = None,
    ) -> None:
        self.id = id
        self._pipeline = pipelines.csi(
            sensor=sensor, capture=capture, fps=_whole_rate(id, fps), size=size, flip=flip
        )
        self._sensor = sensor
        self.pace = Pace(_checked_rate(id, max_fps))
        self._numbers = itertools.count(1)

    def frames(self) -> Generator[Frame, None, None]:
        """Frames until the camera is lost.

        Raises:
            SourceLost: the sensor does not answer, or stopped sending.
            SourceError: this cv2 has no GStreamer.
        """
        import cv2

        _use_gstreamer(self.id, "gstreamer", possible=True)
        failure = SourceLost(
            f"CSI sensor {self._sensor} did not open; `systemctl status nvargus-daemon` and "
            "`v4l2-ctl --list-devices` tell whether the sensor is there"
        )
        with _capture(self._pipeline, cv2.CAP_GSTREAMER, [], failure) as capture:
            yield from _live_frames(capture, self.id, self._numbers, size=None, pace=self.pace)
        raise SourceLost(f"CSI sensor {self._sensor} stopped sending")


def _use_gstreamer(camera: str, backend: str, *, possible: bool) -> bool:
    """Whether to open with GStreamer; SourceError where it is asked for and cannot be.

    Args:
        camera: id of the source, for the message.
        backend: as the user chose.
        possible: whether there is a pipeline for this kind of source.
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


def _live_frames(
    capture: cv2.VideoCapture,
    camera: str,
    numbers: Iterator[int],
    *,
    size: pipelines.Size | None,
    pace: Pace,
) -> Iterator[Frame]:
    """Frames of an open capture until it gives none, stamped with the clock when they arrived."""
    import cv2

    try:
        while capture.grab():
            arrived, number = time.time(), next(numbers)
            if not pace.due():
                continue
            there, image = capture.retrieve()
            if not there:
                return
            if size is not None:
                image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            yield Frame(camera, number, arrived, image)
    except cv2.error as problem:
        raise SourceLost(f"OpenCV failed while reading: {problem}") from problem


def _check_choice(camera: str, name: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise SourceError(f"source {camera}: {name} must be one of {', '.join(valid)}, got {value!r}")


def _whole_rate(camera: str, rate: float) -> int:
    """A rate to ask a camera for; settings files make `30` and `30.0` the same."""
    if not (math.isfinite(rate) and rate >= 1 and rate == int(rate)):
        raise SourceError(f"source {camera}: fps must be a whole number from 1, got {rate}")
    return int(rate)


def _checked_size(camera: str, size: pipelines.Size | None) -> pipelines.Size | None:
    if size is not None and not (size[0] > 0 and size[1] > 0):
        raise SourceError(f"source {camera}: size must be a positive width and height, got {size}")
    return size


def _checked_rate(camera: str, rate: float | None) -> float | None:
    if rate is not None and not (math.isfinite(rate) and rate > 0):
        raise SourceError(f"source {camera}: max_fps must be a positive number, got {rate}")
    return rate
