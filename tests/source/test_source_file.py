from __future__ import annotations

import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from structlog.testing import capture_logs

from edge_agent.core.config import SourceSettings
from edge_agent.core.errors import SourceError
from edge_agent.source.file import FileOptions, FileSource


def write_video(path: Path, frames: int, *, fps: float = 20.0, size: tuple[int, int] = (64, 48)) -> Path:
    """A clip whose frame n has the grey level `8 * (n - 1)`."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, size)
    assert writer.isOpened()
    for number in range(frames):
        writer.write(np.full((size[1], size[0], 3), min(255, 8 * number), np.uint8))
    writer.release()
    return path


def test_every_frame_in_order_with_number_and_time(tmp_path):
    source = FileSource("door", write_video(tmp_path / "a.avi", 12), FileOptions(start_time=1000.0))
    frames = list(source.frames())
    assert [frame.number for frame in frames] == list(range(1, 13))
    assert [frame.time for frame in frames] == pytest.approx([1000 + n / 20 for n in range(12)])
    assert {frame.camera for frame in frames} == {"door"}
    assert [round(float(frame.image.mean()) / 8) for frame in frames] == list(range(12))


def test_a_stated_rate_overrides_the_header(tmp_path):
    source = FileSource("door", write_video(tmp_path / "a.avi", 3), FileOptions(fps=7, start_time=0.0))
    assert [frame.time for frame in source.frames()] == pytest.approx([0, 1 / 7, 2 / 7])


def test_a_file_can_be_read_twice_from_the_start(tmp_path):
    source = FileSource("door", write_video(tmp_path / "a.avi", 3), FileOptions())
    assert [f.number for f in source.frames()] == [f.number for f in source.frames()] == [1, 2, 3]


def test_a_real_video(vtest_video):
    frames = FileSource("pets", vtest_video, FileOptions(start_time=0.0)).frames()
    taken = [next(frames) for _ in range(11)]
    frames.close()
    assert (taken[-1].number, taken[-1].image.shape) == (11, (576, 768, 3))
    assert taken[-1].time == pytest.approx(1.0)  # its header says 10 fps


def test_a_damaged_file_is_not_taken_for_a_short_one(tmp_path):
    path = write_video(tmp_path / "a.avi", 40)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with capture_logs() as logs:
        read = len(list(FileSource("door", path, FileOptions()).frames()))
    assert read < 40
    assert [entry["event"] for entry in logs] == ["file_ended_early"]


def test_in_real_time_a_file_is_a_camera(tmp_path):
    source = FileSource("door", write_video(tmp_path / "a.avi", 5, fps=50), FileOptions(realtime=True))
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
    return write_video(folder / "none.avi", 0)


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
