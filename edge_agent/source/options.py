"""Options of each kind of source, and their defaults.

`SourceSettings` has the options of all kinds, None where one is left out, since the kinds have different
defaults; `options_of` returns those of one kind.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

from edge_agent.core.errors import SourceError

if TYPE_CHECKING:
    from edge_agent.core.config import SourceSettings
    from edge_agent.source.address import SourceKind

__all__ = [
    "CropFolderOptions",
    "CsiOptions",
    "FileOptions",
    "Options",
    "StreamOptions",
    "UsbOptions",
    "options_of",
]


Codec = Literal["h264", "h265"]
Transport = Literal["tcp", "udp"]
UsbFormat = Literal["mjpeg", "yuyv"]
Size = tuple[int, int]
"""`(width, height)`."""


@dataclass(frozen=True, slots=True)
class FileOptions:
    """Options of a video file.

    Attributes:
        fps: frames per second, where the header is wrong or has none.
        realtime: deliver at that rate and drop frames that are not taken in time, as a camera would.
        start_time: Unix time of the first frame; the time of opening when None.
    """

    fps: float | None = None
    realtime: bool = False
    start_time: float | None = None


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """Options of a network stream.

    Attributes:
        backend: `ffmpeg`, `gstreamer`, or `auto`: GStreamer on a Jetson where cv2 has it, else FFmpeg.
        transport: RTSP over `tcp` or `udp`. FFmpeg tries TCP and falls back to UDP where the server refuses
            it; only GStreamer can be told to use UDP at once.
        codec: `h264` or `h265`; needed by GStreamer, detected by FFmpeg.
        size: `(width, height)` to scale frames to; None keeps that of the stream.
        max_fps: frames beyond this rate are not delivered; None delivers all.
        open_timeout_ms: longest wait for the server to answer.
        read_timeout_ms: longest wait for data.
        latency_ms: jitter buffer of GStreamer.
        decode_threads: of FFmpeg; each thread beyond the first delays every frame by one. For a stream that
            one core cannot decode.
    """

    backend: Literal["auto", "ffmpeg", "gstreamer", "v4l2"] = "auto"
    transport: Transport = "tcp"
    codec: Codec = "h264"
    size: Size | None = None
    max_fps: float | None = None
    open_timeout_ms: int = 3000
    read_timeout_ms: int = 3000
    latency_ms: int = 200
    decode_threads: int = 1


@dataclass(frozen=True, slots=True)
class UsbOptions:
    """Options of a USB camera.

    Attributes:
        backend: `v4l2`, `gstreamer`, or `auto`: GStreamer on a Jetson where cv2 has it, else V4L2.
        pixels: what the camera sends: `mjpeg` (more frames through USB) or `yuyv` (raw).
        capture: `(width, height)` to request. The camera may choose its nearest mode, which is logged.
        fps: rate to request.
        size, max_fps: as in `StreamOptions`.
    """

    backend: Literal["auto", "ffmpeg", "gstreamer", "v4l2"] = "auto"
    pixels: UsbFormat = "mjpeg"
    capture: Size = (1280, 720)
    fps: float = 30
    size: Size | None = None
    max_fps: float | None = None


@dataclass(frozen=True, slots=True)
class CsiOptions:
    """Options of a CSI camera.

    Attributes:
        capture: `(width, height)` of a mode of the sensor.
        fps: rate of that mode.
        size, max_fps: as in `StreamOptions`.
        flip: nvvidconv's `flip-method`, 0..7 (2: rotated by 180 degrees).
    """

    capture: Size = (1920, 1080)
    fps: float = 30
    size: Size | None = None
    max_fps: float | None = None
    flip: int = 0


@dataclass(frozen=True, slots=True)
class CropFolderOptions:
    """Options of a crop folder.

    Attributes:
        poll_seconds: between two scans of the folder.
        settle_seconds: a file that has not changed for this time is complete.
        once: end when all crops that are present have been read, instead of waiting for more.
        delete: remove crops (and their JSON files) after acknowledgement; broken ones stay.
        fps: with it, the time of a crop with a Market-1501 name is `start_time + frame / fps`; without, it is
            the file's modification time.
        start_time: Unix time of frame 0 for that; the time of opening when None.
    """

    poll_seconds: float = 0.5
    settle_seconds: float = 0.5
    once: bool = False
    delete: bool = False
    fps: float | None = None
    start_time: float | None = None


Options = FileOptions | StreamOptions | UsbOptions | CsiOptions | CropFolderOptions

_OF_KIND: dict[SourceKind, type[Options]] = {
    "file": FileOptions,
    "stream": StreamOptions,
    "usb": UsbOptions,
    "csi": CsiOptions,
    "crops": CropFolderOptions,
}
_COMMON = {"id", "url", "enabled", "detector", "motion", "priority"}
"""Keys of `SourceSettings` that are not for the source itself."""


def options_of(kind: SourceKind, name: str, settings: SourceSettings) -> Options:
    """Return the options of a source of this kind, with the defaults of those that are left out.

    Raises:
        SourceError: an option is set that this kind does not have.
    """
    chosen = settings.model_dump(exclude=_COMMON, exclude_none=True)
    valid = {field.name for field in fields(_OF_KIND[kind])}
    for option in chosen:
        if option not in valid:
            raise SourceError(
                f"source {name}: option {option!r} is not for this kind of source ({kind}); "
                f"it takes {', '.join(sorted(valid))}"
            )
    return _OF_KIND[kind](**chosen)
