"""Embeddings computed upstream give the decisions of the network here, over a real broker.

The people are real ones of a recording where it is present, else rendered ones.
"""

from __future__ import annotations

import csv
import threading
from collections import defaultdict
from collections.abc import Callable, Generator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from edge_agent.agent.daemon import Agent
from edge_agent.agent.outputs import Outputs
from edge_agent.agent.results import FrameOutcome
from edge_agent.agent.stages import Supply
from edge_agent.core.config import EngineSettings, QualitySettings, Settings
from edge_agent.core.structures import LONE_TRACKS, Detections, Frame, ScoreLevels
from edge_agent.detect.opening import Detection
from edge_agent.detect.search import one_by_one
from edge_agent.embed.opening import open_embedder
from edge_agent.offline.synthetic.camera import camera
from edge_agent.offline.synthetic.crops import render_crop
from edge_agent.offline.synthetic.identity import identity
from edge_agent.source import assembly
from edge_agent.source.file import FileOptions, FileSource
from tests.agent.test_agent import wait_for
from tests.agent.test_deepstream_run import TOPIC, UNTRACKED, connected, running, upstream
from tests.conftest import SHARED, Mosquitto
from tests.source.deepstream_messages import TIME, Seen, in_form

FRAMES = 300
"""Of the recording: 30 s."""
IN_FLIGHT = 40
"""Below the backlog of a source, so that the replay loses nothing."""
WIDTH, HEIGHT = 768, 576
Decided = tuple[str, int, int | None]
"""Kind of a decision, its track from 1 on, and the person."""
Recorded = tuple[list[tuple[float, list[Seen]]], str, int, list[Decided]]
Detect = Callable[[Frame], Detections]


class Shown:
    """A recording of frames that are given."""

    live, ends = False, True
    stall_seconds: float | None = None
    id = "front"

    def __init__(self, frames: Callable[[], Generator[Frame, None, None]]) -> None:
        self.frames = frames


def real_people() -> tuple[Shown, Detect]:
    """The recording, and the boxes of its ground truth as those of a detector."""
    video = FileSource("front", SHARED / "data" / "vtest.avi", FileOptions(start_time=TIME))
    rows: dict[int, list[list[float]]] = defaultdict(list)
    with (SHARED / "data" / "vtest_gt.txt").open(newline="") as lines:
        for frame, _, left, top, width, height, *_ in csv.reader(lines):
            x, y = float(left), float(top)
            rows[int(frame)].append([x, y, x + float(width), y + float(height)])

    def frames() -> Generator[Frame, None, None]:
        yield from (frame for frame in islice(video.frames(), FRAMES) if frame is not None)

    return Shown(frames), lambda frame: detections(rows.get(frame.number, []))


def rendered_people() -> tuple[Shown, Detect]:
    """Four people who walk past in pairs, and then the first pair again."""
    pairs = ((1, 2), (3, 4), (1, 2))

    def box(number: int, at: int) -> list[int]:
        left = 40 + 10 * (number % 40) + 250 * at
        return [left, 100, left + 96, 340]

    def frames() -> Generator[Frame, None, None]:
        random, view = np.random.default_rng(7), camera(3)
        for number in range(1, 121):
            image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
            visit, step = divmod(number - 1, 40)
            for at, person in enumerate(pairs[visit] if step < 30 else ()):
                x1, y1, x2, y2 = box(number, at)
                image[y1:y2, x1:x2] = render_crop(identity(40 + person), view, random, (240, 96), hour=12.0)
            yield Frame("front", number, TIME + number / 10 + 60 * visit, image)

    def detect(frame: Frame) -> Detections:
        return detections([box(frame.number, at) for at in range(2)] if (frame.number - 1) % 40 < 30 else [])

    return Shown(frames), detect


def detections(boxes: list[list[float]] | list[list[int]]) -> Detections:
    found = np.array(boxes, np.float32).reshape(-1, 4)
    return Detections(found, np.ones(len(found), np.float32)).within(WIDTH, HEIGHT)


def summary(outcomes: list[FrameOutcome], first: int) -> list[Decided]:
    decisions = [one for outcome in outcomes for one in outcome.decisions]
    return [(one.kind.value, one.track_id - first + 1, one.number) for one in decisions]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """What upstream sees in each frame, the space and dimension, and the decisions with the network here."""
    state = tmp_path_factory.mktemp("here")
    source, detect = real_people() if (SHARED / "data" / "vtest.avi").exists() else rendered_people()
    seen: list[tuple[float, list[Seen]]] = []
    with open_embedder(EngineSettings(), QualitySettings(), state) as embedder:
        for frame in source.frames():
            found = detect(frame)
            corners = np.rint(found.boxes).astype(int).tolist()
            rows = embedder.embed_images([frame.image[y1:y2, x1:x2] for x1, y1, x2, y2 in corners])
            people = [
                Seen(UNTRACKED, tuple(box), score=1.0, vector=7.5 * row)  # of any length
                for box, row in zip(found.boxes.tolist(), rows, strict=True)
            ]
            seen.append((frame.time, people))
        info = embedder.info
    outcomes: list[FrameOutcome] = []
    levels = ScoreLevels(low=0.1, high=0.5, new_track=0.5)
    detection = Detection(one_by_one(detect), lambda _: levels, "given", lambda: 0.0)
    settings = Settings(state_dir=state, sources=({"id": "front", "url": "given.avi"},))
    Agent(settings, Outputs(), observe=outcomes.append, supply=Supply([source], detection)).run(
        threading.Event()
    )
    return seen, info.space, info.dimension, summary(outcomes, 1)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["minimal", "full", "protobuf"])
def test_the_same_decisions_as_with_the_network_here(
    mosquitto: Mosquitto,
    tmp_path: Path,
    recorded: Recorded,
    form: str,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(assembly, "QUIET_S", 2.0)  # a busy machine may send an object late
    seen, space, dimension, expected = recorded
    outcomes: list[FrameOutcome] = []
    settings = Settings(
        state_dir=tmp_path,
        sources=({"id": "front", "url": "deepstream:cam", "size": (WIDTH, HEIGHT)},),
        detector={"external_topics": [TOPIC], "external_space": space, "external_dimension": dimension},
        mqtt={"broker": mosquitto.url, "site": "lab", "device": "dev1"},
    )
    agent = Agent(settings, Outputs(), observe=outcomes.append)
    with running(agent), upstream(mosquitto.port) as publisher:
        wait_for("the connection", lambda: connected(agent))
        sent = 0
        for number, (moment, people) in enumerate(seen):
            publisher.send(in_form(form, people, number=number, moment=moment, sensor="cam"))
            sent += bool(people) or form != "full"
            wait_for("the agent", lambda: sent - len(outcomes) < IN_FLIGHT)  # noqa: B023 - at once
        wait_for("all frames", lambda: len(outcomes) >= sent)
        left_out = agent.stages.detection.left_out()
        dropped = sum(reader.dropped for reader in agent.stages.sources.readers)
    assert (dropped, sum(left_out.values())) == (0, 0)
    assert summary(outcomes, LONE_TRACKS + 1) == expected
    assert len({number for _, _, number in expected if number is not None}) > 3
