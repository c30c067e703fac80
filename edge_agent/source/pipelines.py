"""GStreamer pipelines for OpenCV's `CAP_GSTREAMER`, as text; nothing is opened here.

With `jetson=True` they decode on NVDEC and scale on VIC (elements and properties: NVIDIA Jetson Linux
developer guide, "Accelerated GStreamer"); without, they use elements that every GStreamer has. Both end in an
`appsink` that holds one BGR picture and drops older ones.

`nvvidconv` cannot write BGR, so it scales and writes BGRx, and `videoconvert` drops the fourth byte.
It needs NVIDIA's memory on at least one side: raw USB pictures pass through it.

Foreign elements could be injected by the user's addresses and device names. Addresses are percent-encoded
until no quote, backslash or space is left; everything else is checked.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING
from urllib.parse import quote

from edge_agent.core.errors import SourceError
from edge_agent.core.redaction import public_address

if TYPE_CHECKING:
    from edge_agent.source.cameras import CsiOptions, StreamOptions, UsbOptions

Size = tuple[int, int]
"""`(width, height)`."""

_SINK = "appsink drop=true max-buffers=1 sync=false"
_NVMM = "video/x-raw(memory:NVMM)"
# RFC 3986 reserved characters, and %, so that encoded text stays as it is.
_URL_SAFE = ":/?#[]@!$&'()*+,;=%-._~"
_DEVICE = re.compile(r"/dev/[A-Za-z0-9][A-Za-z0-9_./:+-]*")


def csi(sensor: int, options: CsiOptions) -> str:
    """Return the pipeline of a camera on the Jetson's CSI port, through the image signal processor.

    Raises:
        SourceError: a value out of range.
    """
    _positive("sensor", sensor + 1)
    if options.flip not in range(8):  # of nvvidconv
        raise SourceError(f"flip must be 0..7, got {options.flip}")
    rate = whole_rate(f"CSI sensor {sensor}", options.fps)
    mode = f"{_NVMM},{_dimensions(options.capture)},framerate={rate}/1,format=NV12"
    tail = _jetson_tail(options.size, f" flip-method={options.flip}")
    return f"nvarguscamerasrc sensor-id={sensor} ! {mode} ! {tail}"


def rtsp(url: str, options: StreamOptions, *, jetson: bool) -> str:
    """Return the pipeline of an RTSP stream; it fails after `read_timeout_ms` of silence.

    Raises:
        SourceError: a value out of range, or not an RTSP address.
    """
    if not url.lower().startswith(("rtsp://", "rtsps://")):
        raise SourceError(f"GStreamer reads rtsp:// and rtsps:// here, got {public_address(url)}")
    check_choice("codec", options.codec, ("h264", "h265"))
    check_choice("transport", options.transport, ("tcp", "udp"))
    _positive("latency_ms", options.latency_ms + 1)
    _positive("timeout_ms", options.read_timeout_ms)
    micros = options.read_timeout_ms * 1000
    source = (
        f'rtspsrc location="{_quoted(url)}" latency={options.latency_ms} protocols={options.transport} '
        f"timeout={micros} tcp-timeout={micros}"
    )
    decoder = f"nvv4l2decoder enable-max-performance=1 ! {_jetson_tail(options.size)}"
    if not jetson:
        decoder = f"decodebin ! {_software_tail(options.size)}"
    return f"{source} ! rtp{options.codec}depay ! {options.codec}parse ! {decoder}"


def usb(device: str, options: UsbOptions, *, jetson: bool) -> str:
    """Return the pipeline of a V4L2 camera.

    Raises:
        SourceError: a value out of range, or not the name of a device.
    """
    if not _DEVICE.fullmatch(device) or ".." in device:
        raise SourceError(f"not the name of a video device: {device!r}; expected one like /dev/video0")
    check_choice("pixels", options.pixels, ("mjpeg", "yuyv"))
    mode = f"{_dimensions(options.capture)},framerate={whole_rate(device, options.fps)}/1"
    source = f"v4l2src device={device} io-mode=2"
    if options.pixels == "mjpeg":
        decoder = f"jpegdec ! {_software_tail(options.size)}"
        if jetson:
            decoder = f"nvv4l2decoder mjpeg=1 ! {_jetson_tail(options.size)}"
        return f"{source} ! image/jpeg,{mode} ! {decoder}"
    raw = f"{source} ! video/x-raw,format=YUY2,{mode}"
    if jetson:
        return f"{raw} ! nvvidconv ! {_NVMM},format=NV12 ! {_jetson_tail(options.size)}"
    return f"{raw} ! {_software_tail(options.size)}"


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


def whole_rate(label: str, fps: float) -> int:
    """Return a frame rate to request from a camera; settings files make `30` and `30.0` the same.

    Raises:
        SourceError: it is not a whole number from 1.
    """
    if not (math.isfinite(fps) and fps >= 1 and fps == int(fps)):
        raise SourceError(f"{label}: fps must be a whole number from 1, got {fps}")
    return int(fps)


def _positive(name: str, value: int) -> None:
    # bool and float would end up in the text as `True` and `30.0`
    if type(value) is not int or not 0 < value < 1 << 31:
        raise SourceError(f"{name} is out of range or not a whole number")


def check_choice(name: str, value: str, valid: tuple[str, ...]) -> None:
    """Raise SourceError unless `value` is one of `valid`."""
    if value not in valid:
        raise SourceError(f"{name} must be one of {', '.join(valid)}, got {value!r}")


def _quoted(url: str) -> str:
    """Return the address with every character encoded that is special to GStreamer's parser."""
    if any(ord(character) < ord(" ") or character == "\x7f" for character in url):
        raise SourceError(f"control character in {public_address(url)!r}")
    return quote(url, safe=_URL_SAFE, errors="surrogateescape")
