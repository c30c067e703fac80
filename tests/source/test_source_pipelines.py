"""Pipelines parsed by GStreamer itself, and run with stand-ins for the elements only a Jetson has."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from edge_agent.core.errors import SourceError
from edge_agent.source import pipelines
from edge_agent.source.cameras import CsiOptions, StreamOptions, UsbOptions
from tests.source.test_source_stream import SYSTEM_PYTHON, needs_gstreamer, serving

CHECK = Path(__file__).parents[1] / "gst_check.py"
URL = "rtsp://me:secret@127.0.0.1:8554/cam?x=1&y=2"


def csi(sensor: int = 0, **options) -> str:
    return pipelines.csi(sensor, CsiOptions(**options))


def usb(device: str, *, jetson: bool = True, **options) -> str:
    return pipelines.usb(device, UsbOptions(**options), jetson=jetson)


def rtsp(url: str, *, jetson: bool = True, **options) -> str:
    return pipelines.rtsp(url, StreamOptions(**options), jetson=jetson)


def ask(*cases: tuple[str, int]) -> list[dict]:
    """The output of GStreamer for each `(pipeline, frames to run)`."""
    needs_gstreamer()
    text = json.dumps([{"pipeline": pipeline, "frames": frames} for pipeline, frames in cases])
    done = subprocess.run(
        [SYSTEM_PYTHON, "-W", "ignore", str(CHECK)],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def stand_in(pipeline: str, *, camera: str = "videotestsrc is-live=true") -> str:
    """The same pipeline without NVIDIA's elements and without a camera.

    Size and format filters stay as they are, so that what they promise is really negotiated.
    """
    decoder = "openh264dec" if "h264" in pipeline else "libde265dec"
    for pattern, replacement in (
        (r"\(memory:NVMM\)", ""),
        (r"nvarguscamerasrc sensor-id=\d+", camera),
        (r"nvvidconv( flip-method=\d)?", "videoconvert ! videoscale"),
        (r"nvv4l2decoder mjpeg=1", "jpegdec"),
        (r"nvv4l2decoder enable-max-performance=1", decoder),
        (r"v4l2src device=\S+ io-mode=2( ! image/jpeg)", rf"{camera} ! jpegenc\1"),
        (r"v4l2src device=\S+ io-mode=2", camera),
    ):
        pipeline = re.sub(pattern, replacement, pipeline)
    assert "nv" not in re.sub(r"videoconvert|conv", "", pipeline)
    return pipeline


CAMERAS = {
    "csi": (csi(capture=(640, 480), fps=30, size=(320, 240)), (240, 320)),
    "csi flipped": (csi(sensor=1, capture=(320, 240), flip=2), (240, 320)),
    "usb mjpeg": (usb("/dev/video0", capture=(640, 480), size=(320, 240)), (240, 320)),
    "usb raw": (usb("/dev/video0", pixels="yuyv", capture=(320, 240)), (240, 320)),
    "usb mjpeg, any machine": (usb("/dev/video0", capture=(320, 240), jetson=False), (240, 320)),
    "usb raw, any machine": (
        usb("/dev/video0", pixels="yuyv", capture=(320, 240), size=(64, 48), jetson=False),
        (48, 64),
    ),
}


def test_camera_pipelines_deliver_bgr_of_the_size_asked_for():
    answers = ask(*((stand_in(pipeline), 2) for pipeline, _ in CAMERAS.values()))
    for (name, (_, (height, width))), answer in zip(CAMERAS.items(), answers, strict=True):
        assert answer["error"] is None, (name, answer)
        # rows of BGR are padded to four bytes; these widths need no padding
        assert answer["shapes"] == [[height, width, "BGR", height * width * 3]] * 2, name


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_rtsp_pipelines_have_one_transport(transport):
    assert f" protocols={transport} " in rtsp(URL, transport=transport)


@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_rtsp_pipelines_read_a_real_server(codec):
    with serving("--mount", "/cam", "--codec", codec) as server:
        options = {"codec": codec, "size": (80, 60)}
        jetson = rtsp(server.url("/cam"), **options)
        anywhere = rtsp(server.url("/cam"), **options, transport="udp", jetson=False)
        answers = ask((stand_in(jetson), 3), (anywhere, 3))
    for answer in answers:
        assert answer["error"] is None, answer
        assert answer["shapes"] == [[60, 80, "BGR", 60 * 80 * 3]] * 3


def test_all_properties_of_elements_that_exist_here_are_known_to_gstreamer():
    camera = usb("/dev/v4l/by-id/usb-046d_C920-video-index0", jetson=False)
    answers = ask((camera, 0), (rtsp(URL, jetson=False), 0))
    assert [answer["error"] for answer in answers] == [None, None]
    assert answers[1]["location"] == URL
    assert answers[1]["elements"][0] == "rtspsrc"


def test_an_address_cannot_smuggle_elements_in():
    evil = [
        'rtsp://host/x" ! filesink location="/tmp/evil',
        "rtsp://host/x ! fakesink",
        "rtsp://host/x\\",
        'rtsp://host/\\" ! fakesink name="a',
        "rtsp://host/ü\N{IDEOGRAPHIC SPACE}'!'",
    ]
    answers = ask(*((rtsp(url, jetson=False), 0) for url in evil))
    for url, answer in zip(evil, answers, strict=True):
        assert answer["error"] is None, (url, answer)
        assert "filesink" not in answer["elements"]
        assert "fakesink" not in answer["elements"]
        assert answer["location"].isascii()
        assert not set(answer["location"]) & set('"\\ ')


@pytest.mark.parametrize(
    "make",
    [
        lambda: rtsp("rtsp://host/\nx"),
        lambda: rtsp("file:///etc/passwd"),
        lambda: rtsp(URL, codec="vp9"),
        lambda: rtsp(URL, transport="tcp ! fakesink"),
        lambda: rtsp(URL, latency_ms=-1),
        lambda: rtsp(URL, read_timeout_ms=0),
        lambda: usb("/dev/video0 ! fakesink"),
        lambda: usb("/dev/../etc/passwd"),
        lambda: usb("video0"),
        lambda: usb("/dev/video0", pixels="nv12"),
        lambda: usb("/dev/video0", fps=29.97),
        lambda: csi(sensor=-1),
        lambda: csi(flip=8),
        lambda: csi(capture=(0, 1080)),
        lambda: csi(size=(640, True)),
    ],
)
def test_values_that_do_not_belong_into_a_pipeline_are_refused(make):
    with pytest.raises(SourceError) as caught:
        make()
    assert "secret" not in str(caught.value)
