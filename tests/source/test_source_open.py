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
from edge_agent.source.address import redact_url, source_id, source_kind
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


@settings(max_examples=60)
@given(st.text("aZ09 _-./:@~[]%?#ü日\n", max_size=70) | st.text("rtsp:/@[]x", max_size=20))
def test_any_text_gives_a_valid_id_or_a_source_error(text):
    try:
        found = source_id(text)
    except SourceError:
        return
    assert re.fullmatch(r"[a-z0-9_-]{1,64}", found)
    assert source_kind(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rtsp://me:pw@host:554/1", "rtsp://***@host:554/1"),
        ("rtsp://me@host/1", "rtsp://***@host/1"),
        ("rtsp://host/1", "rtsp://host/1"),
        ("rtsp://host:554/a@b", "rtsp://host:554/a@b"),
        ("rtsp://me:p@ss@host/1", "rtsp://***@host/1"),
        ("rtsp://me:p/ss@host/1", "rtsp://***@host/1"),
        ("http://cam/x?user=admin&password=pw&channel=1", "http://cam/x?user=***&password=***&channel=1"),
        ("http://cam/x?TOKEN=abc#y", "http://cam/x?TOKEN=***#y"),
        ("a 'rtsp://u:p@h/x' and http://u:p@i", "a 'rtsp://***@h/x' and http://***@i"),
        ("nothing to hide: a@b", "nothing to hide: a@b"),
        ("mqtt://u:p@[::1]:1883", "mqtt://***@[::1]:1883"),
    ],
)
def test_credentials_are_hidden(text, shown):
    assert redact_url(text) == shown


_WORD = st.text("abcdefXYZ0123456789!$%&()*+,;=:@/", min_size=4, max_size=20)


@settings(max_examples=60)
@given(user=st.text("abcdef", min_size=1, max_size=8), word=_WORD)
def test_no_password_is_ever_shown(user, word):
    password = f"Q{word}Q"  # as people type it, not percent-encoded
    assert password not in redact_url(f"cannot open rtsp://{user}:{password}@host:554/stream: timeout")


def test_the_package_is_light():
    heavy = "{'cv2', 'numpy', 'paho', 'structlog'} & set(sys.modules)"
    code = f"import sys, edge_agent.source.address; sys.exit(str({heavy}) if {heavy} else 0)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
