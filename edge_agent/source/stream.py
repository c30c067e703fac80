"""Network streams: RTSP, and HTTP with MJPEG or HLS."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from edge_agent.core.errors import SourceError, SourceLost
from edge_agent.source import pipelines
from edge_agent.source.options import StreamOptions
from edge_agent.source.redact import redact_url
from edge_agent.source.video import Camera, check_choice, is_jetson, open_capture, use_gstreamer

if TYPE_CHECKING:
    import cv2

__all__ = ["StreamSource"]


class StreamSource(Camera):
    """A network stream, through FFmpeg or, on a Jetson whose cv2 has GStreamer, the hardware decoder.

    FFmpeg detects a frozen server after about three times `read_timeout_ms`, since it tries again itself.

    Args:
        id: id of the source.
        url: `rtsp://`, `rtsps://`, `http://` or `https://`; may hold credentials, which are never shown.
        options: backend, timeouts, size and rate.
    """

    def __init__(self, id: str, url: str, options: StreamOptions) -> None:  # noqa: A002 - name of `Source`
        check_choice(id, "backend", options.backend, ("auto", "ffmpeg", "gstreamer"))
        silence_ms = max(options.open_timeout_ms, 3 * options.read_timeout_ms)
        super().__init__(id, redact_url(url), options.size, options.max_fps, silence_ms / 1000 + 0.5)
        self._url = url
        self._options = options

    def _open(self) -> tuple[AbstractContextManager[cv2.VideoCapture], bool]:
        failure = SourceLost(
            f"{self._label} does not open (the limit is {self._options.open_timeout_ms} ms); "
            "is the camera on, and are address, path and login right?"
        )
        rtsp = self._url.lower().startswith("rtsp")
        if use_gstreamer(self.id, self._options.backend, possible=rtsp):
            return self._open_gstreamer(failure), True
        return self._open_ffmpeg(failure), False

    def _open_gstreamer(self, failure: SourceError) -> AbstractContextManager[cv2.VideoCapture]:
        import cv2

        pipeline = pipelines.rtsp(self._url, self._options, jetson=is_jetson())
        return open_capture(pipeline, cv2.CAP_GSTREAMER, [], failure)

    def _open_ffmpeg(self, failure: SourceError) -> AbstractContextManager[cv2.VideoCapture]:
        import cv2

        options = self._options
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
        return open_capture(self._url, cv2.CAP_FFMPEG, parameters, failure)
