"""CSI cameras of a Jetson."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from edge_agent.core.errors import SourceLost
from edge_agent.source import pipelines
from edge_agent.source.options import CsiOptions
from edge_agent.source.video import Camera, open_capture, use_gstreamer, whole_rate

if TYPE_CHECKING:
    import cv2

__all__ = ["CsiSource"]


class CsiSource(Camera):
    """A camera on a Jetson's CSI port; needs the cv2 of JetPack, which is built with GStreamer.

    Args:
        id: id of the source.
        sensor: number of the sensor (`sensor-id`).
        options: mode, size, rate and rotation.
    """

    def __init__(self, id: str, sensor: int, options: CsiOptions) -> None:  # noqa: A002 - name of `Source`
        super().__init__(id, f"CSI sensor {sensor}", options.size, options.max_fps)
        whole_rate(id, options.fps)
        self._pipeline = pipelines.csi(sensor, options)

    def _open(self) -> tuple[AbstractContextManager[cv2.VideoCapture], bool]:
        import cv2

        use_gstreamer(self.id, "gstreamer")
        failure = SourceLost(
            f"{self._label} did not open; `systemctl status nvargus-daemon` and `v4l2-ctl --list-devices` "
            "show whether the sensor is there"
        )
        return open_capture(self._pipeline, cv2.CAP_GSTREAMER, [], failure), True
