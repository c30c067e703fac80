"""Network streams (RTSP, and HTTP with MJPEG or HLS), USB cameras (V4L2), and CSI cameras of a Jetson."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import structlog

from edge_agent.core.errors import SourceError, SourceLost
from edge_agent.core.redaction import ESCAPING, Address, parse_address
from edge_agent.source import pipelines
from edge_agent.source.pipelines import Size, check_choice, whole_rate
from edge_agent.source.video import Camera, is_jetson, open_capture, use_gstreamer

if TYPE_CHECKING:
    import cv2

_log = structlog.get_logger(__name__)

_FOURCC = {"mjpeg": "MJPG", "yuyv": "YUYV"}

Backend = Literal["auto", "ffmpeg", "gstreamer", "v4l2"]


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """Options of a network stream; `core.config.SourceSettings` describes them."""

    backend: Backend = "auto"
    transport: Literal["tcp", "udp"] = "tcp"
    codec: Literal["h264", "h265"] = "h264"
    size: Size | None = None
    max_fps: float | None = None
    open_timeout_ms: int = 3000
    read_timeout_ms: int = 3000
    latency_ms: int = 200
    decode_threads: int = 1


@dataclass(frozen=True, slots=True)
class UsbOptions:
    """Options of a USB camera."""

    backend: Backend = "auto"
    pixels: Literal["mjpeg", "yuyv"] = "mjpeg"
    capture: Size = (1280, 720)
    fps: float = 30
    size: Size | None = None
    max_fps: float | None = None


@dataclass(frozen=True, slots=True)
class CsiOptions:
    """Options of a CSI camera."""

    capture: Size = (1920, 1080)
    fps: float = 30
    size: Size | None = None
    max_fps: float | None = None
    flip: int = 0


class StreamSource(Camera):
    """A network stream, through FFmpeg or, on a Jetson whose cv2 has GStreamer, the hardware decoder.

    `url` may hold credentials, which are never shown. FFmpeg detects a frozen server after about three times
    `read_timeout_ms`, since it tries again itself.
    """

    def __init__(
        self,
        id: str,  # noqa: A002 - name of `Source`
        url: str,
        options: StreamOptions,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        check_choice(f"source {id}: backend", options.backend, ("auto", "ffmpeg", "gstreamer"))
        silence_ms = max(options.open_timeout_ms, 3 * options.read_timeout_ms)
        self._address = parse_address(url) or Address()
        super().__init__(
            id, str(self._address), options.size, options.max_fps, silence_ms / 1000 + 0.5, now=now
        )
        self._url = url
        self._options = options

    def _open(self) -> tuple[AbstractContextManager[cv2.VideoCapture], bool]:
        import cv2

        options = self._options
        if self._address.misread:  # the login would be taken for host, port and path
            raise SourceError(f"source {self.id}: {self._label} cannot be read as an address: {ESCAPING}")
        failure = SourceLost(
            f"{self._label} does not open (the limit is {options.open_timeout_ms} ms); "
            "is the camera on, and are address, path and login right?"
            + (f" Also, {ESCAPING}" if self._address.unusual else "")
        )
        if use_gstreamer(self.id, options.backend, possible=self._url.lower().startswith("rtsp")):
            pipeline = pipelines.rtsp(self._url, options, jetson=is_jetson())
            return open_capture(pipeline, cv2.CAP_GSTREAMER, [], failure), True
        if options.transport != "tcp":
            # OPENCV_FFMPEG_CAPTURE_OPTIONS would change every camera of this process.
            raise SourceError(
                f"source {self.id}: transport {options.transport!r} needs the GStreamer backend; FFmpeg "
                "tries TCP and falls back to UDP by itself, so leave the transport out"
            )
        parameters = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, options.open_timeout_ms]
        parameters += [cv2.CAP_PROP_READ_TIMEOUT_MSEC, options.read_timeout_ms]
        if hasattr(cv2, "CAP_PROP_N_THREADS"):  # OpenCV 4.5 always has a thread per core
            parameters += [cv2.CAP_PROP_N_THREADS, options.decode_threads]
        return open_capture(self._url, cv2.CAP_FFMPEG, parameters, failure), False


class UsbSource(Camera):
    """A USB camera. Unplugging it is an outage: it may be plugged in again.

    The best `device` is `/dev/v4l/by-id/...`, which stays the same after replugging.
    """

    def __init__(
        self,
        id: str,  # noqa: A002 - name of `Source`
        device: str,
        options: UsbOptions,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        check_choice(f"source {id}: backend", options.backend, ("auto", "v4l2", "gstreamer"))
        super().__init__(id, device, options.size, options.max_fps, now=now)
        self.device = device
        self._options = options
        self._fps = whole_rate(f"source {id}", options.fps)

    def _open(self) -> tuple[AbstractContextManager[cv2.VideoCapture], bool]:
        import cv2

        self._check_device()
        failure = SourceLost(
            f"{self.device} did not open; does another program use it? `v4l2-ctl -d {self.device} "
            "--list-formats-ext` lists its modes"
        )
        if not use_gstreamer(self.id, self._options.backend):
            return self._open_v4l2(failure), False
        pipeline = pipelines.usb(self.device, self._options, jetson=is_jetson())
        return open_capture(pipeline, cv2.CAP_GSTREAMER, [], failure), True

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

    @contextmanager
    def _open_v4l2(self, failure: SourceError) -> Iterator[cv2.VideoCapture]:
        """Open, and log another mode: V4L2 takes one without notice where GStreamer would refuse."""
        import cv2

        width, height = self._options.capture
        parameters = [cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*_FOURCC[self._options.pixels])]
        parameters += [cv2.CAP_PROP_FRAME_WIDTH, width, cv2.CAP_PROP_FRAME_HEIGHT, height]
        parameters += [cv2.CAP_PROP_FPS, self._fps]
        with open_capture(self.device, cv2.CAP_V4L2, parameters, failure) as capture:
            given = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
            if given != (width, height):
                _log.warning("camera_chose_other_mode", camera=self.id, wished=(width, height), given=given)
            yield capture


class CsiSource(Camera):
    """A camera on a Jetson's CSI port; needs the cv2 of JetPack, which is built with GStreamer."""

    def __init__(
        self,
        id: str,  # noqa: A002 - name of `Source`
        sensor: int,
        options: CsiOptions,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(id, f"CSI sensor {sensor}", options.size, options.max_fps, now=now)
        whole_rate(f"source {id}", options.fps)
        self._pipeline = pipelines.csi(sensor, options)

    def _open(self) -> tuple[AbstractContextManager[cv2.VideoCapture], bool]:
        import cv2

        use_gstreamer(self.id, "gstreamer")
        failure = SourceLost(
            f"{self._label} did not open; `systemctl status nvargus-daemon` and `v4l2-ctl --list-devices` "
            "show whether the sensor is there"
        )
        return open_capture(self._pipeline, cv2.CAP_GSTREAMER, [], failure), True
