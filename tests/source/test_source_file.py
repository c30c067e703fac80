from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from structlog.testing import capture_logs

from edge_agent.core.config import SourceSettings
from edge_agent.core.errors import SourceError
from edge_agent.source.file import FileOptions, FileSource, header_frames
from edge_agent.source.video import open_capture
from tests.core.test_files import KINDS, make
from tests.source.recordings import set_avi_rate, trim_mp4, write_avi, write_mkv, write_mp4


def test_every_frame_in_order_with_number_and_time(tmp_path):
    source = FileSource("door", write_avi(tmp_path / "a.avi", 12), FileOptions(start_time=1000.0))
    frames = list(source.frames())
    assert [frame.number for frame in frames] == list(range(1, 13))
    assert [frame.time for frame in frames] == pytest.approx([1000 + n / 20 for n in range(12)])
    assert {frame.camera for frame in frames} == {"door"}
    assert [round(float(frame.image.mean()) / 8) for frame in frames] == list(range(12))


def test_a_stated_rate_overrides_the_header(tmp_path):
    source = FileSource("door", write_avi(tmp_path / "a.avi", 3), FileOptions(fps=7, start_time=0.0))
    assert [frame.time for frame in source.frames()] == pytest.approx([0, 1 / 7, 2 / 7])


def test_a_file_can_be_read_twice_from_the_start(tmp_path):
    source = FileSource("door", write_avi(tmp_path / "a.avi", 3), FileOptions())
    assert [f.number for f in source.frames()] == [f.number for f in source.frames()] == [1, 2, 3]


def times_of(path: Path, **options) -> list[float]:
    return [f.time for f in FileSource("door", path, FileOptions(start_time=0.0, **options)).frames() if f]


def read(path: Path, **options) -> tuple[list[float], list[str]]:
    """Times of the frames, and events in the log."""
    with capture_logs() as logs:
        times = times_of(path, **options)
    return times, [entry["event"] for entry in logs]


def test_a_real_video(vtest_video):
    frames = FileSource("pets", vtest_video, FileOptions(start_time=0.0)).frames()
    taken = [next(frames) for _ in range(11)]
    frames.close()
    assert (taken[-1].number, taken[-1].image.shape) == (11, (576, 768, 3))
    assert taken[-1].time == pytest.approx(1.0)  # its header says 10 fps


def evenly(frames: int, interval: float = 0.04) -> list[float]:
    return [number * interval for number in range(frames)]


STEPS_MS = np.cumsum([0, *np.random.default_rng(1).integers(20, 47, 79)]).tolist()

SEQUENCES = {
    "uneven, as of a phone or a browser": (STEPS_MS, [time / 1000 for time in STEPS_MS]),
    "starts late": ([5000, 5040, 5080], evenly(3)),
    "half a frame a second": ([0, 2000, 4000, 6000], [0, 2, 4, 6]),
    "240 a second": ([0, 4, 8, 13, 17, 21], [0, 0.004, 0.008, 0.013, 0.017, 0.021]),
    "an hour of pause": ([0, 40, 80, 3_600_080, 3_600_120], [0, 0.04, 0.08, 3600.08, 3600.12]),
    "joined files": ([*range(0, 2000, 40), *range(0, 2000, 40)], evenly(100)),
    "short joined files": ([*range(0, 200, 40)] * 5, evenly(25)),
    "one wrong time": ([0, 40, 80, 3_600_000, 160, 200], evenly(6)),
    "a leap of a month": ([0, 40, 80, 2_592_000_000, 2_592_000_040, 2_592_000_080], evenly(6)),
    "times that stand still": ([0, 40, 80, 80, 80, 80, 240, 280], evenly(8)),
    "a single frame": ([0], [0]),
    "lost frames": ([0, 40, 80, 2000, 2040], [0, 0.04, 0.08, 2.0, 2.04]),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_times_are_those_of_the_container(tmp_path, name):
    stated, expected = SEQUENCES[name]
    times, events = read(write_mkv(tmp_path / "a.mkv", stated))
    assert times == pytest.approx(expected, abs=1e-6)
    assert events == []


@pytest.mark.parametrize("written", [".mp4", ".mov", ".mkv", ".ts", ".avi"])
def test_evenly_spaced_frames_in_every_container(tmp_path, written):
    path = tmp_path / f"a{written}"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 29.97, (64, 48))
    if not writer.isOpened():
        pytest.skip(f"this OpenCV writes no {written}")
    for number in range(30):
        writer.write(np.full((48, 64, 3), 8 * number, np.uint8))
    writer.release()
    times, events = read(path)
    assert times == pytest.approx(evenly(30, 1 / 29.97), abs=0.002)
    assert events == []


@pytest.mark.parametrize("rate", [600, 1000, 90_000])
def test_a_time_base_is_no_rate(tmp_path, rate):
    times, events = read(set_avi_rate(write_avi(tmp_path / "a.avi", 20), rate))
    assert times == pytest.approx(evenly(20))
    assert events == ["file_without_frame_rate"]
    ticks, events = read(write_mkv(tmp_path / "a.mkv", range(20)))
    assert (ticks, events) == (pytest.approx(evenly(20)), ["file_without_frame_rate"])


def test_a_file_without_a_rate_is_reported_and_one_with_a_rate_is_not(tmp_path):
    path = write_avi(tmp_path / "a.avi", 12)
    assert read(set_avi_rate(path, 0, frame_us=0)) == (pytest.approx(evenly(12)), ["file_without_frame_rate"])
    # FFmpeg then takes the rate of the main header.
    assert read(set_avi_rate(path, 0, frame_us=100_000)) == (pytest.approx(evenly(12, 0.1)), [])
    pictures = [cv2.imencode(".jpg", np.full((48, 64, 3), 9 * n, np.uint8))[1].tobytes() for n in range(5)]
    raw = tmp_path / "a.mjpeg"
    raw.write_bytes(b"".join(pictures))
    assert read(raw) == (pytest.approx(evenly(5)), ["file_without_frame_rate"])
    assert read(raw, fps=10) == (pytest.approx(evenly(5, 0.1)), [])


def test_a_cut_file_is_not_taken_for_a_short_one(tmp_path):
    whole = {
        "a.avi": write_avi(tmp_path / "whole.avi", 40),
        "a.mkv": write_mkv(tmp_path / "whole.mkv", range(0, 1600, 40)),
        "live.webm": write_mkv(tmp_path / "live.mkv", range(0, 1600, 40), live=True),
    }
    for name, path in whole.items():
        data = path.read_bytes()
        assert read(path)[1] == [], "whole"
        for share in (0.5, 0.7, 0.9):
            cut = tmp_path / name
            cut.write_bytes(data[: int(len(data) * share)])
            times, events = read(cut)
            assert len(times) < 40
            assert events == ["file_ended_early"]


def test_mp4_files_cut_damaged_and_trimmed(tmp_path):
    path = write_mp4(tmp_path / "a.mp4", 40)
    whole = path.read_bytes()
    assert read(path) == (pytest.approx(evenly(40)), [])
    path.write_bytes(whole[: len(whole) * 8 // 10])
    times, events = read(path)
    assert 0 < len(times) < 40
    assert events == ["file_ended_early"]
    path.write_bytes(whole[:600])  # within the index
    with pytest.raises(SourceError, match="is cut off"):
        read(path)
    path.write_bytes(whole)
    times, events = read(trim_mp4(path, 0.6))
    assert len(times) < 30
    assert events == []


def test_a_read_that_fails_is_not_the_end(tmp_path):
    """OpenCV gives up after 4096 packets of sound without a picture, as in a pause of the video."""
    path = write_mkv(tmp_path / "a.mkv", [0, 90_000, 180_000], sound_blocks=5000)
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    assert [capture.read()[0] for _ in range(2)] == [True, False]
    assert read(path) == ([0.0, 90.0, 180.0], [])


def test_frames_of_an_absurd_size_are_refused(tmp_path):
    path = write_mkv(tmp_path / "a.mkv", [0], [np.zeros((8001, 8001, 3), np.uint8)])
    with pytest.raises(SourceError, match="8001 x 8001 pixels"):
        read(path)


def test_a_damaged_stretch_loses_its_frames_and_no_others(tmp_path):
    path = write_avi(tmp_path / "a.avi", 40)
    data = bytearray(path.read_bytes())
    data[len(data) * 4 // 10 : len(data) * 5 // 10] = bytes(len(data) * 5 // 10 - len(data) * 4 // 10)
    path.write_bytes(data)
    images = [f.image for f in FileSource("door", path, FileOptions()).frames() if f]
    assert 30 < len(images) < 40
    assert images[-1].mean() > 245  # the last picture


def test_a_longer_sound_track_does_not_make_a_file_short(tmp_path):
    # Matroska states one duration, that of the longest track.
    assert read(write_mkv(tmp_path / "a.mkv", range(0, 400, 40), duration_ms=60_000))[1] == []


def test_real_time_follows_the_times_of_the_container(tmp_path):
    source = FileSource(
        "door", write_mkv(tmp_path / "a.mkv", [0, 40, 80, 1300]), FileOptions(realtime=True, start_time=0.0)
    )
    began = time.monotonic()
    items = list(source.frames())
    assert 1.3 <= time.monotonic() - began < 2.5
    assert [item.time for item in items if item] == pytest.approx([0, 0.04, 0.08, 1.3])
    assert items.count(None) >= 1  # a heartbeat in the pause


def test_in_real_time_a_file_is_a_camera(tmp_path):
    source = FileSource("door", write_avi(tmp_path / "a.avi", 5, fps=50), FileOptions(realtime=True))
    assert (source.live, source.ends) == (True, True)
    began = time.monotonic()
    assert len(list(source.frames())) == 5
    assert time.monotonic() - began >= 4 / 50


def make_missing(folder: Path) -> Path:
    return folder / "nothing.mp4"


def make_folder(folder: Path) -> Path:
    (folder / "clips").mkdir()
    return folder / "clips"


def make_text(folder: Path) -> Path:
    path = folder / "notes.mp4"
    path.write_text("not a video\n" * 50)
    return path


def make_empty(folder: Path) -> Path:
    path = folder / "empty.mp4"
    path.touch()
    return path


def make_no_frames(folder: Path) -> Path:
    return write_avi(folder / "none.avi", 0)


@pytest.mark.parametrize("make", [make_missing, make_folder, make_text, make_empty, make_no_frames])
def test_a_file_that_is_no_video_is_named(tmp_path, make):
    path = make(tmp_path)
    with pytest.raises(SourceError, match=path.name) as caught:
        next(FileSource("door", path, FileOptions()).frames())
    assert "door" in str(caught.value)


def test_a_rate_that_is_no_rate_is_refused(tmp_path):
    for fps in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="fps"):
            SourceSettings(url=str(tmp_path / "a.avi"), fps=fps)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "endless"])
def test_what_is_no_regular_file_is_refused_at_once(kind, tmp_path):
    path = make(kind, tmp_path / "a.avi")
    began = time.monotonic()
    with pytest.raises(SourceError, match=r"source door: .*a\.avi"):
        next(FileSource("door", path, FileOptions()).frames())
    assert time.monotonic() - began < 1


def test_a_path_that_opencv_cannot_take_is_an_error_before_the_call(tmp_path):
    path = write_avi(tmp_path / "a.avi", 3).rename(tmp_path / os.fsdecode(b"caf\xe9.avi"))
    with pytest.raises(SourceError, match=r"caf\\xe9\.avi.*rename it"):
        next(FileSource("door", path, FileOptions()).frames())


def test_an_address_that_opencv_cannot_take_is_an_error_before_the_call():
    failure = SourceError("it did not open")
    with (
        pytest.raises(SourceError, match="as %XX"),
        open_capture("rtsp://host/\udce9", cv2.CAP_FFMPEG, [], failure),
    ):
        pass


def test_names_with_umlauts_in_a_locale_without_utf8(tmp_path):
    code = (
        "import sys; from edge_agent.source.file import FileOptions, FileSource\n"
        "print(len(list(FileSource('door', sys.argv[1], FileOptions()).frames())))"
    )
    path = write_avi(tmp_path / "a.avi", 3).rename(tmp_path / "Käse.avi")
    env = {**os.environ, "LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code, path], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout == "3\n"


def test_the_header_of_a_link_to_itself_states_nothing(tmp_path: Path) -> None:
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    assert header_frames(tmp_path / "loop.mp4") is None
