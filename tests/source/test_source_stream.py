"""Streams against a real RTSP server that is killed, frozen and started again."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
import structlog
from structlog.testing import capture_logs

import edge_agent
from edge_agent.core.config import SourceSettings
from edge_agent.core.errors import SourceError, SourceLost
from edge_agent.core.structures import SourceState
from edge_agent.source import video
from edge_agent.source.cameras import (
    CsiOptions,
    CsiSource,
    StreamOptions,
    StreamSource,
    UsbOptions,
    UsbSource,
)
from tests.conftest import find_free_port
from tests.source.test_source_reader import Watch

SYSTEM_PYTHON = "/usr/bin/python3"
SERVER = Path(__file__).parents[1] / "rtsp_server.py"
ONLINE, RECONNECTING = SourceState.ONLINE, SourceState.RECONNECTING


class RtspServer:
    """The server of `rtsp_server.py` as a process that can be killed, frozen and started again."""

    def __init__(self, *arguments: str) -> None:
        self.port = find_free_port()
        self.arguments = arguments
        self.process: subprocess.Popen[str] | None = None

    def url(self, mount: str, login: str = "") -> str:
        return f"rtsp://{login}127.0.0.1:{self.port}{mount}"

    def start(self) -> None:
        command = [SYSTEM_PYTHON, str(SERVER), "--port", str(self.port), *self.arguments]
        environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def freeze(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None


def needs_gstreamer() -> None:
    probe = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    if not Path(SYSTEM_PYTHON).exists():
        pytest.skip("no system Python with gi")
    found = subprocess.run([SYSTEM_PYTHON, "-W", "ignore", "-c", probe], capture_output=True, check=False)
    if found.returncode:
        pytest.skip("apt-get install python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-{good,ugly}")


@contextmanager
def serving(*arguments: str) -> Iterator[RtspServer]:
    needs_gstreamer()
    server = RtspServer(*arguments)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def stream(server: RtspServer, mount: str = "/cam", **options) -> StreamSource:
    options = {"open_timeout_ms": 5000, "read_timeout_ms": 500, **options}
    return StreamSource(mount.strip("/"), server.url(mount), StreamOptions(**options))


def take(watch: Watch, count: int) -> list:
    frames: list = []

    def enough() -> bool:
        frame = watch.reader.poll()
        if frame is not None:
            frames.append(frame)
        return len(frames) >= count

    watch.until(enough, 15)
    return frames


@pytest.mark.slow
def test_a_server_frozen_killed_and_restarted_while_another_camera_goes_on():
    with serving("--mount", "/a") as first, serving("--mount", "/b") as second:
        troubled, steady = Watch(stream(first, "/a")), Watch(stream(second, "/b"))
        with capture_logs() as logs, troubled.reader, steady.reader:
            before = take(troubled, 3)[-1]
            first.freeze()
            # 3 x 0.5 s in FFmpeg, or the reader's own watch after 5.5 s; the rest is for a busy machine
            troubled.until(lambda: troubled.states == [ONLINE, RECONNECTING], 12)
            assert not troubled.reader.ended
            take(steady, 10)  # in the middle of the other's outage
            first.thaw()
            troubled.until(lambda: troubled.states[-1] is ONLINE, 20)
            take(troubled, 2)
            first.kill()
            troubled.until(lambda: troubled.states[-1] is RECONNECTING)
            take(steady, 10)
            first.start()
            troubled.until(lambda: troubled.states[-1] is ONLINE, 20)
            after = take(troubled, 1)[0]
        assert troubled.states == [ONLINE, RECONNECTING, ONLINE, RECONNECTING, ONLINE]
        assert steady.states == [ONLINE]
        assert after.number > before.number
        assert abs(after.time - time.time()) < 5
        assert "stopped sending" in troubled.statuses[3].reason
        assert "recovered" in troubled.statuses[4].reason
        mine = [entry for entry in logs if entry.get("camera") == "a"]
        assert [entry["log_level"] for entry in mine].count("warning") == 2
        assert [entry["event"] for entry in mine].count("source_recovered") == 2


def test_no_server_is_an_outage_and_no_error():
    source = StreamSource(
        "cam", f"rtsp://me:secret@127.0.0.1:{find_free_port()}/x", StreamOptions(open_timeout_ms=500)
    )
    with pytest.raises(SourceLost, match=r"rtsp://\*\*\*@127.0.0.1") as caught:
        next(source.frames())
    assert "secret" not in str(caught.value)


def test_a_login_is_used_and_never_shown():
    with serving("--mount", "/cam", "--login", "me:pass@word") as server:
        good = StreamSource("cam", server.url("/cam", "me:pass%40word@"), StreamOptions(open_timeout_ms=5000))
        frames = good.frames()
        assert next(frames).image.shape == (120, 160, 3)
        frames.close()
        bad = StreamSource("cam", server.url("/cam", "me:wrong@"), StreamOptions(open_timeout_ms=5000))
        with pytest.raises(SourceLost) as caught:
            next(bad.frames())
        assert "wrong" not in str(caught.value)


def test_frames_are_scaled_and_thinned_and_thinned_ones_are_counted():
    with serving("--mount", "/cam", "--codec", "h265", "--fps", "20") as server:
        source = stream(server, size=(80, 60), max_fps=5)
        frames = source.frames()
        taken = [next(frames) for _ in range(5)]
        frames.close()
    assert {frame.image.shape for frame in taken} == {(60, 80, 3)}
    assert taken[-1].number - taken[-2].number >= 3
    assert taken[-1].time - taken[1].time > 0.4


READ_THROUGH_GSTREAMER = """
import json, sys
import cv2
from edge_agent.source.cameras import StreamOptions
from edge_agent.source.cameras import StreamSource
from edge_agent.source.video import has_gstreamer
if not has_gstreamer():
    sys.exit(77)
options = StreamOptions(backend="gstreamer", size=(80, 60), max_fps=10)
frames = StreamSource("cam", sys.argv[1], options).frames()
shapes = [next(frames).image.shape for _ in range(4)]
frames.close()
json.dump([cv2.__version__, shapes], sys.stdout)
"""


def test_a_frame_is_delayed_by_every_thread_beyond_the_first(tmp_path):
    """Each picture of the loop is brighter than the one before; both streams are of one clock."""
    for n in range(20):
        cv2.imwrite(str(tmp_path / f"{n + 1:05}.jpg"), np.full((96, 128, 3), 12 * n, np.uint8))
    shown: dict[str, int] = {}
    behind: list[int] = []
    with serving("--mount", "/cam", "--frames", str(tmp_path), "--fps", "10") as server:
        # Nothing here is about outages, and others may be at work on this machine.
        patient = {"read_timeout_ms": 10_000}
        watches = {
            "one": Watch(stream(server, **patient)),
            "five": Watch(stream(server, decode_threads=5, **patient)),
        }

        def enough() -> bool:
            for name, watch in watches.items():
                if (frame := watch.reader.poll()) is not None:
                    shown[name] = round(frame.image.mean() / 12)
            if len(shown) == 2:
                behind.append((shown["one"] - shown["five"]) % 20)
            return len(behind) > 200

        with watches["one"].reader, watches["five"].reader:
            watches["five"].until(enough, 40)
    assert statistics.median(behind[100:]) == 4


@pytest.mark.slow  # Debian's OpenCV takes seconds to load
def test_through_an_opencv_that_has_gstreamer(tmp_path):
    """The wheels have none; Debian's python3-opencv has, as JetPack's has."""
    if subprocess.run([SYSTEM_PYTHON, "-c", "import cv2"], capture_output=True, check=False).returncode:
        pytest.skip("the system's Python has no OpenCV (apt-get install python3-opencv)")
    # The system's own cv2 and numpy, and from here only the package and what it logs with.
    for module in (structlog, edge_agent):
        (tmp_path / module.__name__).symlink_to(Path(module.__file__).parent)
    with serving("--mount", "/cam", "--login", "me:pass@word") as server:
        run = subprocess.run(
            [SYSTEM_PYTHON, "-c", READ_THROUGH_GSTREAMER, server.url("/cam", "me:pass%40word@")],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path), "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    if run.returncode == 77:
        pytest.skip("the system's OpenCV has no GStreamer")
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)[1] == [[60, 80, 3]] * 4


def test_udp_over_ffmpeg_is_refused_rather_than_ignored():
    with pytest.raises(SourceError, match="needs the GStreamer backend") as caught:
        next(
            StreamSource(
                "cam", "rtsp://127.0.0.1/x", StreamOptions(transport="udp", backend="ffmpeg")
            ).frames()
        )
    assert not isinstance(caught.value, SourceLost)


def test_a_backend_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(video, "has_gstreamer", lambda: False)
    gstreamer = StreamOptions(backend="gstreamer")
    for source in (CsiSource("csi", 0, CsiOptions()), StreamSource("cam", "rtsp://127.0.0.1/x", gstreamer)):
        with pytest.raises(SourceError, match="OpenCV with GStreamer") as caught:
            next(source.frames())
        assert not isinstance(caught.value, SourceLost)
    with pytest.raises(SourceError, match="ffmpeg"):
        next(StreamSource("cam", "http://127.0.0.1/x", gstreamer).frames())


def test_gstreamer_is_detected_by_the_build_and_not_by_the_registry(monkeypatch):
    for answer in ("YES (1.20.3)", "NO"):
        text = (
            f"  Video I/O:\n    FFMPEG:                      YES\n    GStreamer:                   {answer}\n"
        )
        monkeypatch.setattr(cv2, "getBuildInformation", lambda text=text: text)
        video.built_with.cache_clear()
        assert video.has_gstreamer() is answer.startswith("YES")
    monkeypatch.undo()
    video.built_with.cache_clear()


def test_a_jetson_is_recognised_by_its_device_tree(tmp_path):
    assert not video.is_jetson(tmp_path)
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/compatible").write_bytes(b"nvidia,p3737-0000\0nvidia,tegra234\0")
    assert video.is_jetson(tmp_path)


def test_a_usb_camera_that_is_away_may_come_back(tmp_path):
    with pytest.raises(SourceLost, match="plugged in"):
        next(UsbSource("usb", "/dev/video63", UsbOptions()).frames())
    regular = tmp_path / "video0"
    regular.touch()
    with pytest.raises(SourceError, match="not a device") as caught:
        next(UsbSource("usb", str(regular), UsbOptions()).frames())
    assert not isinstance(caught.value, SourceLost)


def test_settings_that_make_no_sense_are_refused():
    for options in ({"backend": "ffmpeg"}, {"fps": 29.97}, {"fps": float("inf")}):
        with pytest.raises(SourceError, match="usb"):
            UsbSource("usb", "/dev/video0", UsbOptions(**options))
    UsbSource("usb", "/dev/video0", UsbOptions(fps=30.0))
    with pytest.raises(SourceError, match="v4l2"):
        StreamSource("cam", "rtsp://127.0.0.1/x", StreamOptions(backend="v4l2"))
    with pytest.raises(SourceError, match="cam"):
        StreamSource("cam", "rtsp://127.0.0.1/x", StreamOptions(size=(0, 10)))
    refused = {"max_fps": 0.0, "open_timeout_ms": 0, "decode_threads": 0, "pixels": "raw", "codec": "vp9"}
    for option, value in refused.items():
        with pytest.raises(ValueError, match=option):
            SourceSettings(url="rtsp://127.0.0.1/x", **{option: value})
