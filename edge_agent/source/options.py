"""Options of each kind of source, and their defaults; `core.config.SourceSettings` describes them.

`SourceSettings` has the options of all kinds, None where one is left out, since the kinds have different
defaults; `options_of` returns those of one kind.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from edge_agent.core.errors import SourceError

if TYPE_CHECKING:
    from edge_agent.core.config import SourceSettings
    from edge_agent.source.address import SourceKind

__all__ = [
    "CropFolderOptions",
    "CsiOptions",
    "FileOptions",
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
    """Options of a video file."""

    fps: float | None = None
    realtime: bool = False
    start_time: float | None = None


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """Options of a network stream."""

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
    """Options of a USB camera."""

    backend: Literal["auto", "ffmpeg", "gstreamer", "v4l2"] = "auto"
    pixels: UsbFormat = "mjpeg"
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


@dataclass(frozen=True, slots=True)
class CropFolderOptions:
    """Options of a crop folder; `fps` and `start_time` are for crops named as in Market-1501."""

    poll_seconds: float = 0.5
    settle_seconds: float = 0.5
    once: bool = False
    delete: bool = False
    fps: float | None = None
    start_time: float | None = None


_OF_KIND: dict[SourceKind, type[Any]] = {
    "file": FileOptions,
    "stream": StreamOptions,
    "usb": UsbOptions,
    "csi": CsiOptions,
    "crops": CropFolderOptions,
}
_COMMON = {"id", "url", "enabled", "detector", "motion", "priority"}
"""Keys of `SourceSettings` that are not for the source itself."""


def options_of(kind: SourceKind, name: str, settings: SourceSettings) -> Any:  # noqa: ANN401 - see `_OF_KIND`
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
