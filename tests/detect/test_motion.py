"""The motion gate: what opens it, what does not, and no person is lost while it is closed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from edge_agent.agent.daemon import Agent
from edge_agent.core.config import MotionSettings, Settings, TrackerSettings
from edge_agent.core.errors import ConfigError
from edge_agent.core.loading import load
from edge_agent.core.structures import Detections, Embedded, Frame, ScoreLevels
from edge_agent.detect.motion import Motion, MotionGate
from edge_agent.detect.opening import Detection, add_motion_gate
from edge_agent.detect.search import one_by_one
from edge_agent.offline.synthetic.street import Street
from edge_agent.track.tracker import Tracker
from tests.source.test_source_stream import serving, stream

SMALLEST = (16, 48)
"""The quality gate's own: smaller people are not identified."""
FPS = 5.0
PACE = MotionSettings()

Picture = NDArray[np.uint8]


@pytest.fixture(scope="module")
def empty() -> NDArray[np.int16]:
    """An empty street of 1920 x 1080."""
    street = Street(4, cameras=1, people=1, seconds=30.0, fps=1.0, visits=1, size=(640, 360))
    image = next(f.image for f in (street.frame("cam-a", n) for n in range(30, 0, -1)) if not f.truth)
    return cv2.resize(image, (1920, 1080)).astype(np.int16)


@pytest.fixture(scope="module")
def grain() -> list[NDArray[np.int16]]:
    """Sensor noise, different each time."""
    random = np.random.default_rng(0)
    return [random.integers(-5, 6, (1080, 1920, 3), dtype=np.int16) for _ in range(5)]


def seen(
    scene: Callable[[float], NDArray[np.int16]], grain: list[NDArray[np.int16]], seconds: float
) -> list[bool]:
    """Whether something moved, picture by picture."""
    motion = Motion(SMALLEST)
    pictures = (
        np.clip(scene(n / FPS) + grain[n % len(grain)], 0, 255).astype(np.uint8)
        for n in range(round(seconds * FPS))
    )
    return [motion.moved(picture, 1000.0 + n / FPS) for n, picture in enumerate(pictures)]


# --- what moves -----------------------------------------------------------------------------------


def test_noise_and_flicker_are_no_motion_after_the_first_picture(empty, grain) -> None:
    moved = seen(lambda t: empty + np.int16(4 * np.sin(9 * t)), grain, 12)
    assert moved == [True] + [False] * (len(moved) - 1)


@pytest.mark.parametrize(("contrast", "speed"), [(20, 2), (20, 60), (40, 5)])
def test_the_smallest_person_wakes_it_however_slowly_they_walk(empty, grain, contrast, speed) -> None:
    """A spot of 16 x 48 pixels, brighter than the street by `contrast`, at `speed` pixels a second."""

    def scene(t: float) -> NDArray[np.int16]:
        picture = empty.copy()
        if t >= 2.0:
            x = round(900 + speed * (t - 2.0))
            picture[700:748, x : x + 16] += contrast
        return picture

    moved = seen(scene, grain, 8)
    assert not any(moved[1:10])
    assert moved[10], "it wakes with the first picture"
    assert sum(moved[10:]) >= 0.9 * len(moved[10:])


def test_a_light_that_is_switched_on_does_not_keep_it_open(empty, grain) -> None:
    moved = seen(lambda t: empty + 25 * (t >= 3.0), grain, 14)
    assert any(moved[15:20])
    assert not any(moved[round(11 * FPS) :])


def test_dusk_is_no_motion(empty, grain) -> None:
    """A grey level in two seconds."""
    assert not any(seen(lambda t: empty - np.int16(t / 2), grain, 14)[1:])


def test_walkers_of_a_street_are_never_missed() -> None:
    street = Street(2, cameras=1, people=2, seconds=40.0, fps=FPS, visits=2, size=(640, 480))
    gate, looked = watched(lambda _: Detections.none(), pace=PACE)
    missed, still = [], 0
    for number in range(1, street.frames + 1):
        frame = street.frame("cam-a", number)
        before = len(looked)
        detected(gate, Frame("cam", number, 1000.0 + frame.time, frame.image))
        passed = len(looked) > before
        still += not passed
        if not passed and any(t.visible > 0.4 and t.box[3] - t.box[1] >= SMALLEST[1] for t in frame.truth):
            missed.append(number)
    assert missed == []
    assert still > 0.3 * street.frames, "and the empty street was spared"


def test_real_walkers_wake_it_every_time(vtest_video: Path) -> None:
    capture = cv2.VideoCapture(str(vtest_video))
    motion = Motion(SMALLEST)
    moved = [motion.moved(capture.read()[1], 1000 + n / 7) for n in range(60)]
    capture.release()
    assert all(moved)


# --- the gate -------------------------------------------------------------------------------------


def boxes(*corners: tuple[int, int]) -> Detections:
    found = [(x, y, x + 40, y + 100) for x, y in corners]
    return Detections(np.array(found, np.float32).reshape(-1, 4), np.full(len(found), 0.9, np.float32))


def watched(
    answer: Callable[[Frame], Detections], *, pace: MotionSettings = PACE
) -> tuple[MotionGate, list[float]]:
    """A gate, and the times of the frames that get through it."""
    looked: list[float] = []

    def detect(frame: Frame) -> Detections:
        looked.append(frame.time)
        return answer(frame)

    return MotionGate(one_by_one(detect), frozenset({"cam"}), pace, SMALLEST), looked


def detected(gate: MotionGate, frame: Frame) -> Detections:
    return gate.begin([frame]).results()[0]


def frames(seconds: float, *, begin: float = 0.0, moving: bool = False) -> Iterator[Frame]:
    """A grey room; with `moving`, a person walks through it."""
    for n in range(round(seconds * FPS)):
        image = np.full((240, 320, 3), 90, np.uint8)
        if moving:
            image[60:160, 20 + 9 * n % 250 : 60 + 9 * n % 250] = 200
        yield Frame("cam", n + 1, begin + n / FPS, image)


def test_an_empty_room_is_searched_periodically() -> None:
    gate, looked = watched(lambda _: Detections.none())
    given = [detected(gate, frame) for frame in frames(70)]
    assert not any(map(len, given))
    assert looked[:11] == pytest.approx(np.arange(11) / FPS)  # the first picture is new: two seconds
    assert looked[11:] == pytest.approx([32.0, 62.0])
    assert gate.still == {"cam": 70 * FPS - len(looked)}


def test_intervals_of_a_rested_detector_are_settings() -> None:
    gate, looked = watched(lambda _: Detections.none(), pace=MotionSettings(look_s=10))
    for frame in frames(30):
        detected(gate, frame)
    assert looked[11:] == pytest.approx([12.0, 22.0])
    gate, looked = watched(lambda _: boxes((100, 60)), pace=MotionSettings(refresh_s=3))
    for frame in frames(20):
        detected(gate, frame)
    assert np.diff([time for time in looked if time > 2.5]) == pytest.approx(3.0)


def test_movement_opens_it_for_as_long_as_it_lasts_and_a_little_longer() -> None:
    gate, looked = watched(lambda _: Detections.none())
    for frame in (*frames(10), *frames(4, begin=10, moving=True), *frames(10, begin=14)):
        detected(gate, frame)
    after = [time for time in looked if time >= 10]
    assert after[:20] == pytest.approx(10 + np.arange(20) / FPS)
    assert max(after) == pytest.approx(13.8 + 2.0)  # what is left is the room as it was


def test_a_standing_person_keeps_their_box_and_is_detected_each_second() -> None:
    gate, looked = watched(lambda _: boxes((100, 60)))
    given = [detected(gate, frame) for frame in frames(20)]
    assert all(len(found) == 1 for found in given)
    resting = [time for time in looked if time > 2.5]
    assert np.diff(resting) == pytest.approx(1.0)


def test_a_person_no_longer_found_is_searched_in_every_frame() -> None:
    gate, looked = watched(lambda frame: boxes() if 10 <= frame.time < 11 else boxes((100, 60)))
    given = {frame.time: detected(gate, frame) for frame in frames(20)}
    lost = min(time for time, found in given.items() if not len(found))
    held = [time for time in looked if lost <= time <= lost + 2]
    assert held == pytest.approx(lost + np.arange(len(held)) / FPS)
    assert len(given[lost + 1]) == 1


def test_a_track_outlives_a_minute_without_movement() -> None:
    gate, looked = watched(lambda _: boxes((100, 60)))
    tracker = Tracker("cam", TrackerSettings(), ScoreLevels(low=0.1, high=0.6, new_track=0.65))
    none = Embedded(np.zeros((1, 4), np.float32), np.zeros(1, np.bool_), np.zeros(1, np.float32), ("x",))
    ids, ended = set(), []
    for frame in frames(60):
        update = tracker.update(frame.number, frame.time, (320, 240), detected(gate, frame), none)
        ids |= {track.track_id for track in update.seen}
        ended += update.ended
    assert (ids, ended) == ({1}, [])
    assert len(looked) < 0.3 * 60 * FPS


def test_another_picture_size_or_a_clock_set_back_starts_again() -> None:
    motion = Motion(SMALLEST)
    room = np.full((240, 320, 3), 90, np.uint8)
    assert [motion.moved(room, t) for t in (10.0, 10.2, 10.4)] == [True, False, False]
    assert motion.moved(room[:200], 10.6)
    assert not motion.moved(room[:200], 10.8)
    assert motion.moved(room[:200], 5.0)
    assert not motion.moved(room[:200], 5.2)


def test_other_cameras_are_passed_on() -> None:
    gate, looked = watched(lambda _: Detections.none())
    for frame in frames(10):
        detected(gate, Frame("other", frame.number, frame.time, frame.image))
    assert len(looked) == 10 * FPS
    assert gate.still == {"cam": 0}


# --- settings and the agent -----------------------------------------------------------------------


def configured(
    tmp_path: Path, motion: str = "enabled = true", source: str = "", kind: str = "hog"
) -> Settings:
    path = tmp_path / "config.toml"
    path.write_text(
        f'state_dir = "{tmp_path / "state"}"\n[[sources]]\nid = "room"\n'
        f'url = "{tmp_path / "room.avi"}"\n{source}\n'
        f'[detector]\nkind = "{kind}"\n[engine]\nmodel = "colour-stripes"\nthreads = 1\n'
        f"[telemetry]\njtop = false\n[motion]\n{motion}\n"
    )
    return load(path)


def detection() -> Detection:
    return Detection(
        one_by_one(lambda _: Detections.none()),
        lambda _: ScoreLevels(low=0.1, high=0.5, new_track=0.5),
        "stub",
        lambda: 0.0,
    )


@pytest.mark.parametrize(
    ("motion", "source", "gated"),
    [
        ("enabled = true", "", True),
        ("enabled = true", "motion = false", False),
        ("", "motion = true", True),
        ("", "", False),
        ("enabled = true", 'detector = "external"\nmotion = false', None),
    ],
)
def test_which_sources_have_a_gate(tmp_path, motion, source, gated) -> None:
    settings = configured(tmp_path, motion, source)
    if gated is None:
        with pytest.raises(ConfigError, match="the agent does not search for people here"):
            add_motion_gate(settings, detection(), {"room": settings.sources[0]}, [])
        return
    found = add_motion_gate(settings, detection(), {"room": settings.sources[0]}, [])
    assert found.still() == ({"room": 0} if gated else {})


@pytest.mark.parametrize("kind", ["external", "none"])
def test_a_gate_without_a_detector_behind_it_is_refused(tmp_path, kind) -> None:
    settings = configured(tmp_path, "", "motion = true", kind)
    with pytest.raises(ConfigError, match="source room: motion is set, but the agent does not search"):
        add_motion_gate(settings, detection(), {"room": settings.sources[0]}, [])


def test_the_agent_counts_frames_not_passed_to_the_detector(tmp_path: Path) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "room.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (160, 120))
    for _ in range(60):
        writer.write(np.full((120, 160, 3), 90, np.uint8))
    writer.release()
    reported: list[Any] = []
    agent = Agent(
        configured(tmp_path, "enabled = true\nhold_s = 1.0"),
        observe=lambda _: reported.append(agent.describe()["sources"][0]["still"]),
    )
    summary = agent.run(threading.Event())
    assert summary.frames == {"room": 60}
    assert reported[-1] == 60 - 11  # a second, and the first frame after it
    assert agent.telemetry is not None
    assert agent.telemetry.still_frames == {"room": 49}


def test_the_gate_reports_when_it_is_closed() -> None:
    gate, _ = watched(lambda frame: boxes() if 10 <= frame.time < 11 else boxes((100, 60)))
    resting = {}
    for frame in frames(16):
        detected(gate, frame)
        resting[frame.time] = gate.rests("cam")
    assert [resting[time] for time in (1.0, 2.0, 3.0, 9.0)] == [False, False, True, True]
    woken = [time for time, rests in resting.items() if time > 9.0 and not rests]
    assert woken
    assert 10.0 <= min(woken) < 11.2, "somebody was no longer found"


def test_a_camera_gives_fewer_frames_while_nothing_moves(tmp_path: Path) -> None:
    settings = configured(tmp_path, "enabled = true\nrest_fps = 3.0")
    with serving("--mount", "/room") as server:
        source = stream(server, "/room")
        given = add_motion_gate(settings, detection(), {"room": settings.sources[0]}, [source])
        numbers: list[int] = []
        for frame in source.frames():
            numbers.append(frame.number)
            still = Frame("room", frame.number, frame.number / 15, np.full((120, 160, 3), 90, np.uint8))
            given.detect(still)
            if len(numbers) > 4 and numbers[-1] - numbers[-5] >= 16:
                break  # four steps of about five frames
            assert frame.number < 400, numbers
    assert numbers[:10] == list(range(1, 11)), "all of them until it rests"
    assert given.still()["room"] > 0
