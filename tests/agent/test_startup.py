"""The start of the agent: cameras connect early, no status change is lost, the log has the times."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from edge_agent.agent.daemon import Agent
from edge_agent.agent.outputs import Outputs
from edge_agent.agent.sources import SourceReaders
from edge_agent.agent.stages import Supply
from edge_agent.cli.service import RTSP_OPTIONS, STREAM_OPTIONS, open_streams_at_once
from edge_agent.core.errors import ModelError
from edge_agent.core.loading import load
from edge_agent.core.structures import Detections, Frame, ScoreLevels, SourceState, SourceStatus
from edge_agent.core.timing import Laps, process_age_s
from edge_agent.detect.opening import Detection
from edge_agent.detect.search import one_by_one
from edge_agent.source.reader import FrameReader
from tests.agent.test_agent import wait_for

OPTIONS = "OPENCV_FFMPEG_CAPTURE_OPTIONS"


@dataclass
class Camera:
    """Gives frames at once, without end or up to `most`."""

    id: str
    live: bool = True
    ends: bool = False
    stall_seconds: float | None = None
    most: int = 1_000_000
    began: threading.Event = field(default_factory=threading.Event)

    def frames(self) -> Generator[Frame, None, None]:
        self.began.set()
        for number in range(1, self.most + 1):
            time.sleep(0.01 if self.live else 0.0)
            yield Frame(self.id, number, time.time(), np.zeros((48, 32, 3), np.uint8))


def test_cameras_start_at_once_and_recordings_with_the_callback() -> None:
    camera, recording = Camera("gate"), Camera("film", live=False, ends=True, most=2)
    reported: list[SourceStatus] = []
    with ExitStack() as stack:
        readers = SourceReaders([recording, camera], stack, threading.Event())
        readers.start_cameras()
        wait_for("the camera", lambda: readers.readers[1].state is SourceState.ONLINE)
        assert not recording.began.is_set()
        readers.start_others(reported.append)
        wait_for("the recording", recording.began.is_set)
        wait_for("both", lambda: {status.camera for status in reported} == {"gate", "film"})
        assert (reported[0].camera, reported[0].state) == ("gate", SourceState.ONLINE)
    assert [reader.camera for reader in readers.readers] == ["film", "gate"]


def test_nothing_starts_once_a_stop_is_requested() -> None:
    camera, stop = Camera("gate"), threading.Event()
    stop.set()
    with ExitStack() as stack:
        readers = SourceReaders([camera], stack, stop)
        readers.start_cameras()
        readers.start_others(lambda _: None)
    assert not camera.began.is_set()


def test_frames_before_the_first_poll_are_not_counted_as_dropped() -> None:
    wake = threading.Event()
    with FrameReader(Camera("gate"), wake=wake, on_status=lambda _: None) as reader:
        newest = reader.heartbeat.at
        wait_for("a few frames", lambda: reader.heartbeat.at > newest + 0.1)
        assert reader.dropped == 0
        first = reader.poll()
        assert isinstance(first, Frame)
        assert first.number > 2
        wait_for("a frame that is too much", lambda: reader.dropped > 0)


def settings(tmp_path: Path, *urls: str, **sections: Any) -> Any:
    values = {"state_dir": tmp_path / "state", "sources": [{"url": url} for url in urls], **sections}
    return load(
        None, values | {"engine": {"model": "colour-stripes", "threads": 1} | sections.get("engine", {})}
    )


def detection() -> Detection:
    return Detection(
        one_by_one(lambda _: Detections.none()),
        lambda _: ScoreLevels(low=0.1, high=0.5, new_track=0.5),
        "stub",
        lambda: 0.0,
    )


def test_the_log_has_the_times_of_the_start_and_the_first_frame(tmp_path: Path) -> None:
    agent = Agent(
        settings(tmp_path, "memory.avi"),
        Outputs(),
        supply=Supply([Camera("film", live=False, ends=True, most=3)], detection()),
    )
    with capture_logs() as logs:
        agent.run(threading.Event())
    (started,) = [line for line in logs if line["event"] == "started"]
    assert list(started["seconds"]) == [
        "sources",
        "network",
        "prior",
        "detector",
        "gallery",
        "sensors",
        "delivery",
    ]
    assert all(seconds >= 0 for seconds in started["seconds"].values())
    (first,) = [line for line in logs if line["event"] == "first_frame"]
    assert first["camera"] == "film"
    assert first["after_s"] >= started["after_s"] > 0
    assert not [line for line in logs if line["event"] == "first_event"]


def test_a_start_that_fails_leaves_no_reader_behind(tmp_path: Path) -> None:
    cameras = [Camera(f"gate{n}") for n in range(3)]
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no network")
    wanted = settings(tmp_path, *["rtsp://127.0.0.1/none"] * 3, engine={"model": broken})
    agent = Agent(wanted, supply=Supply(cameras, detection()))
    with pytest.raises(ModelError, match="not an ONNX file"):
        agent.run(threading.Event())
    assert not [thread.name for thread in threading.enumerate() if "gate" in thread.name]


@pytest.mark.parametrize(
    ("urls", "before", "after"),
    [
        (["rtsp://192.0.2.1/a", "http://192.0.2.1/b.mjpg"], None, STREAM_OPTIONS),
        (["rtsp://192.0.2.1/a", "RTSPS://192.0.2.1/b"], None, RTSP_OPTIONS),
        (["rtsp://192.0.2.1/a"], "rtsp_transport;udp", "rtsp_transport;udp"),
        (["rtsp://192.0.2.1/a", "film.ts"], None, None),
        (["film.ts"], None, None),
    ],
)
def test_ffmpeg_does_not_probe_streams_first(tmp_path, monkeypatch, urls, before, after) -> None:
    monkeypatch.setenv(OPTIONS, "")  # so that it is put back
    monkeypatch.delenv(OPTIONS)
    if before is not None:
        monkeypatch.setenv(OPTIONS, before)
    open_streams_at_once(settings(tmp_path, *urls))
    assert os.environ.get(OPTIONS) == after


def test_laps_and_the_age_of_the_process() -> None:
    laps = Laps()
    laps.lap("first")
    time.sleep(0.02)
    laps.lap("second")
    assert list(laps.seconds) == ["first", "second"]
    assert laps.seconds["second"] >= 0.02
    age = process_age_s()
    assert age is not None
    assert 0 < age < time.clock_gettime(time.CLOCK_BOOTTIME)
