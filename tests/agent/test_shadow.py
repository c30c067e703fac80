"""A second network that computes only while the first is idle, and what it reports."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from edge_agent.agent import shadow as shadow_module
from edge_agent.agent.daemon import Agent
from edge_agent.agent.results import FrameOutcome
from edge_agent.agent.shadow import Agreement, Shadow, open_shadow
from edge_agent.core.config import Settings
from edge_agent.core.structures import Frame, TrackObservation, TrackUpdate
from edge_agent.embed.opening import open_embedder
from edge_agent.offline.replay.recording import Recording
from edge_agent.offline.replay.report import shadow_text
from edge_agent.offline.replay.run import replay
from edge_agent.record.recorder import FOLDER


def unit(*numbers: float) -> np.ndarray:
    vector = np.array(numbers, np.float32)
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


def everybody(numbers: object) -> object:
    return numbers


def test_networks_that_find_the_same_people_agree() -> None:
    agreement = Agreement()
    for _ in range(10):
        agreement.add(1, unit(1, 0, 0), unit(0, 1), everybody)
        agreement.add(2, unit(0, 1, 0), unit(1, 0), everybody)
    assert agreement.compared > 10
    assert (agreement.disagreement, agreement.own_errors, agreement.errors) == (0.0, 0, 0)


def test_a_network_that_confuses_two_people_disagrees() -> None:
    agreement = Agreement()
    random = np.random.default_rng(1)
    for _ in range(200):
        for number, own in ((1, unit(1, 0)), (2, unit(0, 1))):
            agreement.add(number, own, unit(*random.normal(0, 1, 8)), everybody)
    assert agreement.own_errors == 0
    assert 0.2 < (agreement.disagreement or 0) < 0.8
    assert agreement.errors == agreement.disagreements


def test_people_who_are_gone_are_forgotten() -> None:
    agreement = Agreement()
    for number in (1, 2):
        for _ in range(5):
            agreement.add(number, unit(1, number), unit(1, number), everybody)
    compared = agreement.compared
    for _ in range(5):
        agreement.add(1, unit(1, 1), unit(1, 1), lambda _: {1})
    assert agreement.compared == compared, "nobody is left to compare with"


class Busy:
    """A first network that computes or not."""

    in_flight = 0
    busy = False

    @property
    def engine(self) -> Busy:
        return self

    @property
    def batcher(self) -> Busy:
        return self


def outcome(n: int) -> FrameOutcome:
    image = np.random.default_rng(n).integers(0, 255, (240, 320, 3), np.uint8)
    boxes = [np.array([10 + 100 * at, 10, 60 + 100 * at, 150], np.float32) for at in range(2)]
    seen = tuple(
        TrackObservation("a", at + 1, n, float(n), box, 0.9, unit(1 - at, at, 0.1), 0.8)
        for at, box in enumerate(boxes)
    )
    update = TrackUpdate("a", n, float(n), (320, 240), seen, ())
    return FrameOutcome(update, (), {}, "0" * 32, Frame("a", n, float(n), image))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    engine = {"model": "colour-stripes", "threads": 1, "shadow_model": "colour-stripes", "shadow_share": 1.0}
    engine["shadow_preprocess"] = "tao"
    return Settings.model_validate({"state_dir": tmp_path, "engine": engine})


def test_it_waits_for_the_first_network(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow_module, "LONGEST_WAIT_S", 0.1)
    first = Busy()
    first.in_flight = 1
    with ExitStack() as stack:
        shadow = open_shadow(
            settings, settings.state_dir, first, lambda _, track: track, everybody, None, stack  # type: ignore[arg-type]
        )  # fmt: skip
        for n in range(30):
            shadow(outcome(n))
        time.sleep(0.4)
        assert shadow.embedded == 0
        assert shadow.dropped == 60
        first.in_flight = 0
        for n in range(10):
            shadow(outcome(n))
        wait_for(lambda: shadow.embedded == 20)
        assert shadow.agreement.compared > 0
        assert shadow.state()["model"] == "colour-stripes"
        assert shadow.seconds > 0


def test_any_fault_stops_it_and_shows_in_the_status(settings: Settings) -> None:
    def broken(numbers: object) -> object:
        raise ValueError("no numbers")

    with ExitStack() as stack:
        shadow = open_shadow(
            settings, settings.state_dir, Busy(), lambda _, track: track, broken, None, stack  # type: ignore[arg-type]
        )  # fmt: skip
        shadow(outcome(1))
        wait_for(lambda: shadow.problem)
        assert shadow.state()["problem"] == "ValueError: no numbers"


def wait_for(condition: object) -> None:
    deadline = time.monotonic() + 10
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_only_the_share_is_copied(settings: Settings) -> None:
    with open_embedder(settings.engine, settings.quality, settings.state_dir) as embedder:
        shadow = Shadow(embedder, Busy(), 0.25, lambda _, track: track, everybody, None)  # type: ignore[arg-type]
        for n in range(20):
            shadow(outcome(n))
        assert shadow.dropped == 0
        nobody = Shadow(embedder, Busy(), 1.0, lambda *_: None, everybody, None)  # type: ignore[arg-type]
        nobody(outcome(1))
        assert nobody.dropped == 0


@pytest.mark.slow
def test_the_agent_reports_it_in_status_metric_and_recording(
    tmp_path: Path, vtest_video: Path, yolox_onnx: Path
) -> None:
    settings = Settings.model_validate(
        {
            "state_dir": tmp_path / "state",
            "sources": [{"url": str(vtest_video), "id": "street"}],
            "detector": {"kind": f"yolox:{yolox_onnx}"},
            "engine": {"model": "colour-stripes", "shadow_model": "colour-stripes", "shadow_share": 1.0},
            "record": {"enabled": True, "max_mb": 64, "hours": 2.0},
        }
    )
    agent = Agent(settings)
    stop = threading.Event()
    agent.add_observer(lambda outcome: stop.set() if outcome.update.frame > 150 else None)
    found: dict[str, object] = {}
    agent.add_observer(lambda _: found.update(agent.describe()))
    agent.run(stop)
    assert agent.telemetry is not None
    assert agent.telemetry.shadow_disagreement in {None, 0.0}
    assert found["shadow"]["embedded"] >= 0  # type: ignore[index]
    assert found["recording"]["problem"] == ""  # type: ignore[index]
    with Recording(tmp_path / "state" / FOLDER, None) as recording:
        again = replay(recording, {})
    assert again.differs_at is None
    assert again.shadow is not None
    assert "colour-stripes" in shadow_text(again.shadow)
