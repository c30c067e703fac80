from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.core.config import SourceSettings
from edge_agent.core.errors import ConfigError, SourceError
from edge_agent.source.address import source_id, source_kind
from edge_agent.source.base import Source
from edge_agent.source.cameras import CsiSource, StreamSource, UsbSource
from edge_agent.source.crops import CropFolderSource
from edge_agent.source.file import FileSource
from edge_agent.source.opening import open_source, open_sources


def opened(url: str, *, taken: Collection[str] = (), state: Path | None = None, **keys) -> Source:
    return open_source(SourceSettings(url=url, **keys), taken=taken, state=state)


@pytest.mark.parametrize(
    ("spec", "kind", "identity"),
    [
        ("clips/Front Door.MP4", FileSource, "front-door"),
        ("file:///data/my%20clip.avi", FileSource, "my-clip"),
        ("rtsp://me:secret@10.0.0.5:554/Streaming/101", StreamSource, "10-0-0-5-streaming-101"),
        ("RTSPS://cam.local/x?token=secret", StreamSource, "cam-local-x"),
        ("https://cam/mjpeg", StreamSource, "cam-mjpeg"),
        ("/dev/video2", UsbSource, "video2"),
        ("usb:0", UsbSource, "usb0"),
        ("csi:1", CsiSource, "csi1"),
        ("csi", CsiSource, "csi0"),
        ("crops:/data/yard", CropFolderSource, "yard"),
        ("日本.mp4", FileSource, "file"),
        ("x" * 100 + ".mp4", FileSource, "x" * 64),
    ],
)
def test_an_address_becomes_a_source_with_an_id(tmp_path, spec, kind, identity):
    source = opened(spec, state=tmp_path)
    assert type(source) is kind
    assert source.id == identity


def test_a_path_is_a_path(tmp_path):
    assert opened("file:///data/my%20clip.avi").path == Path("/data/my clip.avi")
    colon = tmp_path / "ab:cd.mp4"
    colon.touch()
    assert opened(str(colon)).path == colon
    assert opened("~/a.mp4").path == Path.home() / "a.mp4"
    assert opened("usb:3").device == "/dev/video3"


@pytest.mark.parametrize(
    "spec", ["", "ftp://host/x", "rtps://me:secret@host/x", "rtsp:/x", "crops:", "usb:x"]
)
def test_an_unknown_name_is_answered_with_the_known_ones(spec):
    with pytest.raises(SourceError, match=r"rtsp://.*crops:FOLDER") as caught:
        opened(spec)
    assert "secret" not in str(caught.value)


def test_ids_differ_and_are_checked(tmp_path):
    taken: list[str] = []
    for _ in range(3):
        taken.append(opened("a.mp4", taken=taken).id)
    assert taken == ["a", "a-2", "a-3"]
    long = source_id("x" * 100, taken=["x" * 64])
    assert (long[-3:], len(long)) == ("x-2", 64)
    with pytest.raises(SourceError, match="two sources"):
        opened("b.mp4", id="a", taken=taken)
    for bad in ("", "A", "a b", "x" * 65, "../x"):
        with pytest.raises(ValueError, match=r"id\n"):
            opened("b.mp4", id=bad)


def test_options_go_to_the_source_or_are_refused(tmp_path):
    assert opened("a.mp4", realtime=True).live
    assert opened("crops:x", state=tmp_path, once=True).ends
    with pytest.raises(SourceError, match=r"'latency_ms' is not for this kind of source \(file\).*realtime"):
        opened("a.mp4", latency_ms=100)
    with pytest.raises(ValueError, match="state_path"):
        opened("crops:x", state=tmp_path, state_path="y")
    with pytest.raises(SourceError, match="state folder"):
        opened("crops:x")


def test_sources_of_the_settings(tmp_path):
    """Explicit ids win over generated ones; files start at the same time; disabled sources are left out."""
    clips = [SourceSettings(url="a/clip.mp4"), SourceSettings(url="b.mp4", id="clip")]
    off = SourceSettings(url="c.mp4", enabled=False)
    assert [source.id for source in open_sources([*clips, off], tmp_path)] == ["clip-2", "clip"]
    with pytest.raises(ConfigError, match="every source is disabled"):
        open_sources([off], tmp_path)


# Addresses of common cameras and servers, with the ids that earlier versions gave them.
ORDINARY = [
    ("rtsp://u:p@10.0.0.5:554/Streaming/Channels/101", "10-0-0-5-streaming-channels-101"),  # Hikvision
    ("rtsp://10.0.0.5/Streaming/Channels/1601", "10-0-0-5-streaming-channels-1601"),
    ("rtsp://u:p@10.0.0.5/ISAPI/Streaming/channels/102", "10-0-0-5-isapi-streaming-channels-102"),
    ("rtsp://u:p@10.0.0.5/cam/realmonitor?channel=1&subtype=0", "10-0-0-5-cam-realmonitor"),  # Dahua
    ("rtsp://u:p@10.0.0.5/axis-media/media.amp?codec=h264", "10-0-0-5-axis-media-media-amp"),
    ("rtsp://u:p@10.0.0.5/h264Preview_01_main", "10-0-0-5-h264preview_01_main"),  # Reolink
    ("rtsp://u:p@10.0.0.5/h264/ch1/main/av_stream", "10-0-0-5-h264-ch1-main-av_stream"),
    ("rtsp://u:p@10.0.0.5/live/ch00_0", "10-0-0-5-live-ch00_0"),
    ("rtsp://u:p@10.0.0.5/unicast/c1/s0/live", "10-0-0-5-unicast-c1-s0-live"),  # Uniview
    ("rtsp://u:p@10.0.0.5/profile2/media.smp", "10-0-0-5-profile2-media-smp"),  # Hanwha
    ("rtsp://u:p@10.0.0.5/MediaInput/h264/stream_1", "10-0-0-5-mediainput-h264-stream_1"),
    ("rtsp://u:p@10.0.0.5/videoMain", "10-0-0-5-videomain"),  # Foscam
    ("rtsp://u:p@10.0.0.5/onvif1", "10-0-0-5-onvif1"),
    ("rtsp://u:p@10.0.0.5/stream1", "10-0-0-5-stream1"),  # Tapo
    ("rtsp://u:p@10.0.0.5/live.sdp", "10-0-0-5-live-sdp"),
    ("rtsp://u:p@10.0.0.5/11", "10-0-0-5-11"),
    ("rtsp://u:p@10.0.0.5", "10-0-0-5"),
    ("rtsp://[fe80::1]:554/s", "fe80-1-s"),
    ("rtsp://nas.local:8554/front_door", "nas-local-front_door"),
    ("http://10.0.0.5/mjpg/video.mjpg", "10-0-0-5-mjpg-video-mjpg"),
    ("http://10.0.0.5/axis-cgi/mjpg/video.cgi?camera=1", "10-0-0-5-axis-cgi-mjpg-video-cgi"),
    ("https://host.example/x.m3u8", "host-example-x-m3u8"),
    ("https://host.example/hls/stream/index.m3u8", "host-example-hls-stream-index-m3u8"),
]


@pytest.mark.parametrize(("url", "identity"), ORDINARY)
def test_ids_of_ordinary_addresses_stay(url, identity):
    assert source_id(url) == identity


@pytest.mark.parametrize(
    ("url", "identity"),
    [
        ("rtsp://127.0.0.1/user=admin_password=secretpw_channel=0_stream=0.sdp?real_stream", "127-0-0-1"),
        ("rtsp://me:12/34@127.0.0.1:9/s", "127-0-0-1-s"),
        ("rtsp://me:se/cret@host/s1", "host-s1"),
        ("rtsp://me:se#cret@host/s1", "host-s1"),
        ("rtsp://me:secret@host/s1?token=cret", "host-s1"),
        ("rtsp://user@mail.example:pa/ss@127.0.0.1:9/s", "127-0-0-1-s"),
        ("rtsp://cam/s?user=me@mail.example", "cam-s"),
        ("rtsps://10.0.0.1:7441/AbCdEfGhIjKlMnOp?enableSrtp", "10-0-0-1"),  # a key
        ("rtsp://host:554/a@b", "stream"),  # or is `host` a user?
        ("crops:smb://me:secret@host/share", "crops"),
        ("crops:me:secret@host", "crops"),
        ("crops:/srv/key=secret@host", "crops"),
    ],
)
def test_an_id_holds_nothing_that_is_masked(url, identity):
    assert source_id(url) == identity


@pytest.mark.parametrize(
    "url",
    [
        "me:secretpw@192.0.2.1/stream",
        "192.0.2.1:554/user=admin_password=secretpw",
        "rtspsrc location=rtsp://192.0.2.1/s user-id=me user-pw=secretpw ! decodebin ! appsink",
        "rtmp://192.0.2.1/live/secretpw",
        "udp://secretpw@192.0.2.1:1234",
        "srt://192.0.2.1:9000?passphrase=secretpw",
        "file://me:secretpw@192.0.2.1/clip.mp4",
        "/dev/video0?user-pw=secretpw",
    ],
)
def test_what_is_no_source_is_refused_without_its_login(url):
    with pytest.raises(SourceError, match="unknown kind of source") as caught:
        opened(url)
    assert "secretpw" not in str(caught.value)


@settings(max_examples=60)
@given(st.text("aZ09 _-./:@~[]%?#ü日\n", max_size=70) | st.text("rtsp:/@[]x", max_size=20))
def test_any_text_gives_a_valid_id_or_a_source_error(text):
    try:
        found = source_id(text)
    except SourceError:
        return
    assert re.fullmatch(r"[a-z0-9_-]{1,64}", found)
    assert source_kind(text)


def test_the_package_is_light():
    heavy = "{'cv2', 'numpy', 'paho', 'structlog'} & set(sys.modules)"
    code = f"import sys, edge_agent.source.address; sys.exit(str({heavy}) if {heavy} else 0)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
