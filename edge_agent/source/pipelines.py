"""GStreamer pipelines for OpenCV's `CAP_GSTREAMER`: text in, text out, nothing is opened here.

With `jetson=True` they decode on NVDEC and scale on VIC (elements and properties: NVIDIA Jetson Linux
developer guide, "Accelerated GStreamer"); without, they use what any GStreamer has. Both end in an
`appsink` that holds one BGR picture and drops older ones.

`nvvidconv` cannot write BGR, so it scales and writes BGRx, and `videoconvert` drops the fourth byte.
It wants NVIDIA's memory on at least one side: raw USB pictures take the way through it.

What comes from the user (addresses, device names) is the place where foreign elements could be smuggled in:
addresses are percent-encoded until no quote, backslash or space is left; everything else is checked.
"""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import quote

from edge_agent.core.errors import SourceError
from edge_agent.source.redact import redact_url

__all__ = ["csi", "rtsp", "usb"]

Codec = Literal["h264", "h265"]
Transport = Literal["tcp", "udp"]
UsbFormat = Literal["mjpeg", "yuyv"]
Size = tuple[int, int]

_SINK = "appsink drop=true max-buffers=1 sync=false"
_NVMM = "video/x-raw(memory:NVMM)"
# RFC 3986 reserved characters, and %, so that what is encoded already stays as it is.
_URL_SAFE = ":/?#[]@!$&'()*+,;=%-._~"
_DEVICE = re.compile(r"/dev/[A-Za-z0-9][A-Za-z0-9_./:+-]*")
_FLIPS = range(8)  # nvvidconv flip-method


def csi(
    *, sensor: int = 0, capture: Size = (1920, 1080), fps: int = 30, size: Size | None = None, flip: int = 0
) -> str:
    """A camera on the Jetson's CSI port, through the image signal processor.

    Args:
        sensor: number of the sensor (`sensor-id`).
        capture: `(width, height)` of a mode of the sensor.
        fps: rate of that mode.
        size: `(width, height)` to scale to.
        flip: nvvidconv's `flip-method`, 0..7 (2: rotated by 180 degrees).

    Raises:
        SourceError: a value out of range.
    """
    _positive("sensor", sensor + 1)
    _positive("fps", fps)
    if flip not in _FLIPS:
        raise SourceError(f"flip must be 0..7, got {flip}")
    mode = f"{_NVMM},{_dimensions(capture)},framerate={fps}/1,format=NV12"
    return f"nvarguscamerasrc sensor-id={sensor} ! {mode} ! {_jetson_tail(size, f' flip-method={flip}')}"


def rtsp(
    url: str,
    *,
    codec: Codec = "h264",
    transport: Transport = "tcp",
    latency_ms: int = 200,
    timeout_ms: int = 3000,
    size: Size | None = None,
    jetson: bool = True,
) -> str:
    """An RTSP stream of one known codec.

    Args:
        url: `rtsp://` or `rtsps://`; may hold credentials.
        codec: `h264` or `h265`.
        transport: `tcp` or `udp`.
        latency_ms: jitter buffer.
        timeout_ms: after so much silence of the server the pipeline fails.
        size: `(width, height)` to scale to.
        jetson: decode in hardware.

    Raises:
        SourceError: a value out of range, or not an RTSP address.
    """
    if not url.lower().startswith(("rtsp://", "rtsps://")):
        raise SourceError(f"GStreamer reads rtsp:// and rtsps:// here, got {redact_url(url)}")
    _choice("codec", codec, ("h264", "h265"))
    _choice("transport", transport, ("tcp", "udp"))
    _positive("latency_ms", latency_ms + 1)
    _positive("timeout_ms", timeout_ms)
    micros = timeout_ms * 1000
    source = (
        f'rtspsrc location="{_quoted(url)}" latency={latency_ms} protocols={transport} '
        f"timeout={micros} tcp-timeout={micros}"
    )
    decoder = f"nvv4l2decoder enable-max-performance=1 ! {_jetson_tail(size)}"
    if not jetson:
        decoder = f"decodebin ! {_software_tail(size)}"
    return f"{source} ! rtp{codec}depay ! {codec}parse ! {decoder}"


def usb(
    device: str,
    *,
    pixels: UsbFormat = "mjpeg",
    capture: Size = (1280, 720),
    fps: int = 30,
    size: Size | None = None,
    jetson: bool = True,
) -> str:
    """A V4L2 camera.

    Args:
        device: `/dev/video0` or a link such as `/dev/v4l/by-id/...`.
        pixels: what the camera sends: `mjpeg` (more frames through USB) or `yuyv` (raw).
        capture: `(width, height)` of a mode of the camera.
        fps: rate of that mode.
        size: `(width, height)` to scale to.
        jetson: decode and scale in hardware.

    Raises:
        SourceError: a value out of range, or not the name of a device.
    """
    if not _DEVICE.fullmatch(device) or ".." in device:
        raise SourceError(f"not the name of a video device: {device!r}; expected /dev/video0 or alike")
    _choice("pixels", pixels, ("mjpeg", "yuyv"))
    _positive("fps", fps)
    mode = f"{_dimensions(capture)},framerate={fps}/1"
    source = f"v4l2src device={device} io-mode=2"
    if pixels == "mjpeg":
        decoder = (
            f"nvv4l2decoder mjpeg=1 ! {_jetson_tail(size)}" if jetson else f"jpegdec ! {_software_tail(size)}"
        )
        return f"{source} ! image/jpeg,{mode} ! {decoder}"
    raw = f"{source} ! video/x-raw,format=YUY2,{mode}"
    if jetson:
        return f"{raw} ! nvvidconv ! {_NVMM},format=NV12 ! {_jetson_tail(size)}"
    return f"{raw} ! {_software_tail(size)}"


def _jetson_tail(size: Size | None, options: str = "") -> str:
    scaled = "" if size is None else f",{_dimensions(size)}"
    bgrx = f"nvvidconv{options} ! video/x-raw,format=BGRx{scaled}"
    return f"{bgrx} ! videoconvert ! video/x-raw,format=BGR ! {_SINK}"


def _software_tail(size: Size | None) -> str:
    scaled = "" if size is None else f"videoscale ! video/x-raw,{_dimensions(size)} ! "
    return f"{scaled}videoconvert ! video/x-raw,format=BGR ! {_SINK}"


def _dimensions(size: Size) -> str:
    width, height = size
    _positive("width", width)
    _positive("height", height)
    return f"width={width},height={height}"


def _positive(name: str, value: int) -> None:
    # bool and float would end up in the text as `True` and `30.0`
    if type(value) is not int or not 0 < value < 1 << 31:
        raise SourceError(f"{name} is out of range or not a whole number")


def _choice(name: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise SourceError(f"{name} must be one of {', '.join(valid)}, got {value!r}")


def _quoted(url: str) -> str:
    """The same address without any character that means something to GStreamer's parser."""
    if any(ord(character) < ord(" ") or character == "\x7f" for character in url):
        raise SourceError(f"control character in {redact_url(url)!r}")
    return quote(url, safe=_URL_SAFE)
