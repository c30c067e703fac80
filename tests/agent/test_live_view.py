"""Frames for viewers: none without one, at most so many, encoded once, outside the driving thread."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import simplejpeg

from edge_agent.agent.live import LiveView
from edge_agent.agent.results import FrameOutcome
from edge_agent.core.page_settings import PageSettings
from edge_agent.core.presence import PresentPerson
from edge_agent.core.structures import Frame, TrackObservation, TrackUpdate

ANNA = PresentPerson("gate", 1, "p-anna", 7, "Anna", 0.0, 0.9, "event")


class Tracks:
    """Two tracks: one with an identity, one for which two people fit."""

    def get(self, key: tuple[str, int]) -> Any:
        threshold = SimpleNamespace(value=0.6)
        if key[1] == 1:
            return SimpleNamespace(number=7, score=0.91, threshold=threshold, founder=False)
        undecided = SimpleNamespace(number=None, score=0.7, threshold=threshold, founder=False)
        return undecided if key[1] == 2 else None


def view(fps: float = 15.0, width: int = 960) -> LiveView:
    settings = PageSettings(fps=fps, picture_width=width)
    return LiveView(cast("Any", Tracks()), lambda camera: {1: ANNA} if camera == "gate" else {}, settings)


def outcome(number: int, camera: str = "gate", size: tuple[int, int] = (1920, 1080)) -> FrameOutcome:
    width, height = size
    seen = tuple(
        TrackObservation(
            camera, n, number, 5.0, np.array([0, 0, width / 2, height], np.float32), 1.0, None, 0.5
        )
        for n in (1, 2, 3)
    )
    image = np.full((height, width, 3), number % 256, np.uint8)
    return FrameOutcome(
        TrackUpdate(camera, number, 5.0, size, seen, ()), (), {}, "", Frame(camera, number, 5.0, image)
    )


def test_nothing_is_taken_without_a_viewer() -> None:
    live = view()
    assert not live.watched
    live.show(outcome(1))
    assert live.picture("gate", 0, 0.0) == (0, None)
    assert live.watched


def test_a_picture_has_its_boxes_and_people() -> None:
    live = view()
    live.picture("gate", 0, 0.0)
    live.show(outcome(1))
    number, found = live.picture("gate", 0, 1.0)
    assert number == 1
    assert found is not None
    height, width, *_ = simplejpeg.decode_jpeg_header(found.jpeg)
    assert (width, height) == (960, 540)
    first, second, third = found.values["boxes"]
    assert (first["state"], first["name"], first["box"]) == ("matched", "Anna", [0, 0, 0.5, 1])
    assert (second["state"], second["score"]) == ("ambiguous", 0.7)
    assert (third["state"], third["score"]) == ("undecided", None)
    assert live.picture("other", 0, 0.0) == (0, None)


def test_viewers_share_what_is_encoded_and_later_frames_replace_earlier_ones() -> None:
    live = view()
    live.picture("gate", 0, 0.0)
    live.show(outcome(1))
    found = [live.picture("gate", 0, 1.0)[1] for _ in range(4)]
    assert all(one is found[0] for one in found)
    time.sleep(0.1)
    live.show(outcome(2))
    time.sleep(0.1)
    live.show(outcome(3))
    number, newest = live.picture("gate", 1, 1.0)
    assert number == 3
    assert newest is not None
    assert newest.values["frame"] == 3


def test_a_viewer_waits_for_the_next_frame_and_no_longer_than_asked() -> None:
    live = view()
    threading.Timer(0.1, lambda: live.show(outcome(1))).start()
    assert live.picture("gate", 0, 5.0)[1] is not None
    began = time.monotonic()
    assert live.picture("gate", 1, 0.2) == (1, None)
    assert time.monotonic() - began < 2


def test_at_most_so_many_frames_a_second_are_taken() -> None:
    live = view(fps=5.0)
    live.picture("gate", 0, 0.0)
    for n in range(50):
        live.show(outcome(n + 1, size=(64, 36)))
    number, _ = live.picture("gate", 0, 0.0)
    assert number == 1


def test_a_camera_that_nobody_watches_any_more_costs_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    live = view()
    live.picture("gate", 0, 0.0)
    live.show(outcome(1))
    later = time.monotonic() + 60
    monkeypatch.setattr("edge_agent.agent.live.time.monotonic", lambda: later)
    live.show(outcome(2))
    assert not live.watched
    assert live.picture("gate", 0, 0.0) == (0, None), "an old picture is not shown as a new one"


@pytest.mark.parametrize(
    ("size", "shown"), [((640, 480), (640, 480)), ((1280, 720), (960, 540)), ((1920, 1080), (960, 540)),
                        ((3840, 2160), (960, 540)), ((1000, 1), (960, 1)), ((961, 961), (960, 960))],
)  # fmt: skip
def test_sizes(size: tuple[int, int], shown: tuple[int, int]) -> None:
    live = view()
    live.picture("gate", 0, 0.0)
    live.show(outcome(1, size=size))
    found = live.picture("gate", 0, 1.0)[1]
    assert found is not None
    height, width, *_ = simplejpeg.decode_jpeg_header(found.jpeg)
    assert (width, height) == shown


def test_a_number_of_another_run() -> None:
    live = view()
    live.picture("gate", 0, 0.0)
    live.show(outcome(1))
    assert live.picture("gate", 5000, 1.0)[0] == 1
