"""USB cameras (V4L2)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from edge_agent.core.errors import SourceError, SourceLost
from edge_agent.source import pipelines
from edge_agent.source.options import UsbOptions
from edge_agent.source.video import Camera, check_choice, is_jetson, open_capture, use_gstreamer, whole_rate

if TYPE_CHECKING:
    import cv2

__all__ = ["UsbSource"]

_log = structlog.get_logger(__name__)

_FOURCC = {"mjpeg": "MJPG", "yuyv": "YUYV"}


class UsbSource(Camera):
    """A USB camera. Unplugging it is an outage: it may be plugged in again.

    Args:
        id: id of the source.
        device: path, best `/dev/v4l/by-id/...`, which stays the same after replugging.
        options: mode, backend, size and rate.
    """

    def __init__(self, id: str, device: str, options: UsbOptions) -> None:  # noqa: A002 - name of `Source`
        check_choice(id, "backend", options.backend, ("auto", "v4l2", "gstreamer"))
        super().__init__(id, device, options.size, options.max_fps)
        self.device = device
        self._options = options
        self._fps = whole_rate(id, options.fps)

    def _open(self) -> tuple[AbstractContextManager[cv2.VideoCapture], bool]:
        self._check_device()
        failure = SourceLost(
            f"{self.device} did not open; does another program use it? `v4l2-ctl -d {self.device} "
            "--list-formats-ext` lists its modes"
        )
        if not use_gstreamer(self.id, self._options.backend):
            return self._open_v4l2(failure), False
        import cv2

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
            given = tuple(
                int(capture.get(of)) for of in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
            )
            if given != (width, height):
                _log.warning("camera_chose_other_mode", camera=self.id, wished=(width, height), given=given)
            yield capture
