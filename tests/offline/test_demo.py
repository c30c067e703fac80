"""The demo: its score on hand-made cases, and the command itself, with its broker, detector and network."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from edge_agent.agent.results import FrameOutcome
from edge_agent.cli import app
from edge_agent.core.structures import Decision, DecisionKind, TrackObservation, TrackUpdate
from edge_agent.offline.demo.street import SECONDS, Recorder, Scene, Sighting, percentiles, render, score
from edge_agent.offline.synthetic.street import Street, StreetVideo, Visit
from tests.agent.test_agent_faults import write_video

BOX = np.array([100, 100, 150, 220], np.float32)
AWAY = np.array([400, 100, 450, 220], np.float32)


class Passages(Street):
    """Visits given by a test, one frame a second; nothing is rendered."""

    def __init__(self, visits: list[tuple[int, str, int, int]]) -> None:
        self.fps, self.frames = 1.0, max(end for *_, end in visits)
        self.cameras = ("cam-a", "cam-b")
        self.visits = tuple(Visit(p, c, float(a), float(b), ((0, 0), (0, 0))) for p, c, a, b in visits)


def scene(tmp_path: Path, visits: list[tuple[int, str, int, int]]) -> Scene:
    """A scene in which all people stand at `BOX` from the first to the last second of a visit."""
    videos = []
    for camera in ("cam-a", "cam-b"):
        rows = [
            f"{second + 1},{person},100.0,100.0,50.0,120.0,1,1,1.000\n"
            for person, where, start, end in visits
            if where == camera
            for second in range(start, end)
        ]
        truth = tmp_path / f"{camera}.txt"
        truth.write_text("".join(rows))
        videos.append(StreetVideo(camera, tmp_path / f"{camera}.avi", truth))
    return Scene(Passages(visits), tuple(videos))


def seen(camera: str, start: int, end: int, track: int, number: int | None, box=BOX) -> list[Sighting]:
    return [Sighting(camera, second + 1, track, box, number) for second in range(start, end)]


def recorded(*sightings: list[Sighting], final: dict[tuple[str, int], int | None]) -> Recorder:
    return Recorder(sightings=[s for group in sightings for s in group], holders=final)


TWICE = [(1, "cam-a", 0, 5), (2, "cam-b", 0, 5), (1, "cam-b", 10, 15), (2, "cam-a", 10, 15)]


def test_all_people_recognised(tmp_path: Path):
    recorder = recorded(
        seen("cam-a", 0, 5, 1, 7), seen("cam-b", 0, 5, 1, 8),
        seen("cam-b", 10, 15, 2, 7), seen("cam-a", 10, 15, 2, 8),
        final={("cam-a", 1): 7, ("cam-b", 1): 8, ("cam-b", 2): 7, ("cam-a", 2): 8},
    )  # fmt: skip
    reported = score(scene(tmp_path, TWICE), recorder)
    assert (reported.people, reported.visits, reported.reentries) == (2, 4, 2)
    assert (
        reported.recognised,
        reported.at_once,
        reported.confused,
        reported.missed,
        reported.identities,
    ) == (2, 2, 0, 0, 2)


def test_two_people_with_one_identity_are_confused_and_not_recognised(tmp_path: Path):
    recorder = recorded(
        seen("cam-a", 0, 5, 1, 7), seen("cam-b", 0, 5, 1, 8),
        seen("cam-b", 10, 15, 2, 8), seen("cam-a", 10, 15, 2, 7),
        final={("cam-a", 1): 7, ("cam-b", 1): 8, ("cam-b", 2): 8, ("cam-a", 2): 7},
    )  # fmt: skip
    reported = score(scene(tmp_path, TWICE), recorder)
    assert (reported.recognised, reported.at_once, reported.confused) == (0, 0, 2)


def test_a_correction_recognises_in_the_end_but_not_at_once(tmp_path: Path):
    recorder = recorded(
        seen("cam-a", 0, 5, 1, 7), seen("cam-b", 10, 15, 2, 9),
        final={("cam-a", 1): 7, ("cam-b", 2): 7},
    )  # fmt: skip
    reported = score(scene(tmp_path, [TWICE[0], TWICE[2]]), recorder)
    assert (reported.reentries, reported.recognised, reported.at_once, reported.identities) == (1, 1, 0, 1)


def test_boxes_elsewhere_match_no_person_and_a_visit_without_identity_is_missed(tmp_path: Path):
    recorder = recorded(
        seen("cam-a", 0, 5, 1, 7), seen("cam-b", 10, 15, 2, 7, AWAY),
        final={("cam-a", 1): 7, ("cam-b", 2): 7},
    )  # fmt: skip
    reported = score(scene(tmp_path, [TWICE[0], TWICE[2]]), recorder)
    assert (reported.reentries, reported.recognised, reported.missed) == (1, 0, 1)


def test_the_identity_of_most_boxes_counts(tmp_path: Path):
    recorder = recorded(
        seen("cam-a", 0, 5, 1, 7), seen("cam-b", 10, 12, 2, 9), seen("cam-b", 12, 15, 3, 7),
        final={("cam-a", 1): 7, ("cam-b", 2): 9, ("cam-b", 3): 7},
    )  # fmt: skip
    reported = score(scene(tmp_path, [TWICE[0], TWICE[2]]), recorder)
    assert (reported.recognised, reported.at_once) == (1, 1)


def test_invisible_people_do_not_count(tmp_path: Path):
    both = scene(tmp_path, [TWICE[0], TWICE[2]])
    hidden = both.videos[1].truth
    hidden.write_text(hidden.read_text().replace(",120.0,1,", ",120.0,0,"))
    reported = score(both, recorded(final={}))
    assert (reported.visits, reported.reentries, reported.missed) == (1, 0, 1)


def decision(kind: DecisionKind, number: int | None) -> Decision:
    return Decision(
        id=f"{kind.value}-{number}", kind=kind, camera="cam-a", track_id=1, identity=f"p-{number}",
        number=number, name=None, score=None, runner_up=None, threshold=None, rule="site", evidence=6,
        quality=0.5, box=BOX, size=(640, 480), frame=1, time=0.0, first_seen=0.0, last_seen=0.0,
    )  # fmt: skip


def test_the_recorder_writes_an_identity_from_its_decision_on():
    observed = TrackObservation("cam-a", 1, 1, 0.0, BOX, 0.9, None, 0.0)
    update = TrackUpdate("cam-a", 1, 0.0, (640, 480), (observed,), ())
    times = {"detect": 1.0, "embed": 2.0, "decide": 3.0, "total": 50.0}
    recorder = Recorder()
    recorder(FrameOutcome(update, (), times, "0" * 32))
    recorder(FrameOutcome(update, (decision(DecisionKind.ENROLLED, 4),), times, "0" * 32))
    recorder(FrameOutcome(update, (decision(DecisionKind.CORRECTED, 2),), times, "0" * 32))
    recorder(FrameOutcome(update, (decision(DecisionKind.DEPARTED, None),), {}, "0" * 32))
    assert [sighting.number for sighting in recorder.sightings] == [None, 4, 2, 2]
    assert recorder.holders == {("cam-a", 1): 2}
    assert recorder.frames == 3, "the end of a track is no frame"
    assert recorder.latency_ms == [6.0] * 3
    assert recorder.tracks_of() == {2: 1}


def test_percentiles():
    assert percentiles([]) is None
    assert percentiles([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2.9))


def test_truth_as_the_generator_writes_it_is_read(tmp_path: Path):
    rendered = render(Street(3, people=2, seconds=6.0, fps=4.0, size=(320, 240)), tmp_path)
    truth = [
        Sighting(video.camera, number, t.person, np.array(t.box, np.float32), t.person)
        for video in rendered.videos
        for number in range(1, rendered.street.frames + 1)
        for t in rendered.street.frame(video.camera, number).truth
    ]
    perfect = Recorder(sightings=truth, holders={(s.camera, s.track_id): s.number for s in truth})
    reported = score(rendered, perfect)
    assert rendered.frames == 48
    assert reported.people >= 1
    assert (reported.recognised, reported.missed, reported.confused) == (reported.reentries, 0, 0)


# ---- the command


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edge_agent", "demo", *map(str, arguments)],
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip


def test_the_whole_demo_on_a_short_street(tmp_path: Path):
    files = ("--video-out", tmp_path / "out.mp4", "--report", tmp_path / "people.html")
    done = run("--seconds", 5, "--model", "colour-stripes", "--keep", tmp_path / "kept", "--json", *files)
    assert done.returncode == 0, done.stderr
    reported = json.loads(done.stdout)
    assert reported["complete"] is True
    assert (reported["model"], reported["trained"], reported["detector"]) == ("colour-stripes", False, "hog")
    assert reported["frames"] == 50
    assert reported["crops"] > 0
    assert reported["events_received"] == sum(reported["decisions"].values())
    assert reported["latency_ms"]["p50"] > 0
    assert {"people", "reentries", "recognised", "confused", "crops_per_s"} <= reported.keys()
    kept = {path.name for path in (tmp_path / "kept").iterdir()}
    assert {"cam-a.avi", "cam-b.txt", "street.json", "events.jsonl", "gallery.db"} <= kept
    for camera in ("cam-a", "cam-b"):
        video = cv2.VideoCapture(str(tmp_path / f"out-{camera}.mp4"))
        assert (video.get(cv2.CAP_PROP_FRAME_COUNT), video.get(cv2.CAP_PROP_FPS)) == (25, 5)
    assert "<h2>People</h2>" in (tmp_path / "people.html").read_text()


@pytest.fixture(scope="module")
def quiet_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A long recording of an empty place."""
    path = tmp_path_factory.mktemp("video") / "quiet.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (160, 120))
    picture = np.full((120, 160, 3), 90, np.uint8)
    for _ in range(20_000):
        writer.write(picture)
    writer.release()
    return path


def test_ctrl_c_ends_it_with_what_was_seen_so_far(quiet_video: Path, tmp_path: Path):
    state = tmp_path / "state"
    process = subprocess.Popen(
        [sys.executable, "-m", "edge_agent", "demo", "--video", quiet_video, "--model", "colour-stripes",
         "--keep", state, "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not (state / "events.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, err
    assert "Traceback" not in err
    reported = json.loads(out)
    assert reported["frames"] < 20_000
    assert "people" not in reported, "a video comes without truth"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--video", "nowhere.mp4"], 1, "nowhere.mp4"),
        (["--model", "nowhere.onnx"], 1, "nowhere.onnx"),
        (["--detector", "yolox:nowhere.onnx"], 1, "nowhere.onnx"),
        (["--video", "a.mp4", "--seconds", "9"], 2, "length of the rendered street"),
        (["--seconds", "1"], 2, "--seconds"),
    ],
)
def test_wrong_options_are_reported_before_rendering(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
):
    from edge_agent.core.errors import EdgeAgentError

    result = CliRunner().invoke(app, ["demo", *arguments])
    if code == 1:
        assert isinstance(result.exception, EdgeAgentError), "main() turns these into a message and exit 1"
    else:
        assert result.exit_code == code
    assert message in f"{result.exception} {re.sub(r'[^!-~]+', ' ', result.output)}"
    assert "Rendering" not in result.output


def test_without_the_extra_the_demo_names_the_package_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "iotcore", None)
    result = CliRunner().invoke(app, ["demo"])
    assert "extra `demo`" in str(result.exception)


def test_help_names_the_length_in_force():
    result = CliRunner().invoke(app, ["demo", "--help"], env={"COLUMNS": "200"})
    assert f"{SECONDS:.0f} by default" in result.output


@pytest.mark.slow
def test_what_the_decoder_writes_is_in_the_log(tmp_path: Path):
    path = write_video(tmp_path / "clip.avi", 30)
    data = bytearray(path.read_bytes())
    for start in range(len(data) // 3, len(data) * 2 // 3, 997):
        data[start] ^= 0xFF
    path.write_bytes(data)
    done = run("--video", path, "--model", "colour-stripes")
    assert done.returncode == 0, done.stderr
    logged = [json.loads(line) for line in done.stderr.splitlines()]
    assert "library_message" in {line["event"] for line in logged}
