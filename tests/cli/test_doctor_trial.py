"""`edge-agent doctor --try`: cameras and the broker are used once, step by step."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest

from edge_agent.cli.checks import Finding, trial
from edge_agent.cli.doctor import examine
from edge_agent.core.config import Settings
from edge_agent.source import messages
from tests.agent.test_agent_faults import write_video
from tests.conftest import Mosquitto, find_free_port


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_video(tmp_path / "clip.avi", 5)


def found(findings: list[Finding]) -> dict[str, tuple[str, str]]:
    return {one.name: (one.state, one.found) for one in findings}


def tried(folder: Path, *sources: dict) -> dict[str, tuple[str, str]]:
    settings = Settings.model_validate({"sources": sources})
    return found(list(trial.sources(settings, folder / "snapshots")))


def test_each_camera_is_opened_and_its_picture_saved(clip: Path, tmp_path: Path):
    (tmp_path / "crops").mkdir()
    seen = tried(
        tmp_path, {"id": "yard", "url": str(clip)}, {"id": "gate", "url": str(tmp_path / "none.avi")},
        {"id": "door", "url": f"crops:{tmp_path / 'crops'}"},
        {"id": "attic", "url": f"crops:{tmp_path / 'no'}"},
    )  # fmt: skip
    assert seen["source yard"][0] == "ok"
    assert "64 x 160" in seen["source yard"][1]
    assert (seen["source gate"][0], "none.avi" in seen["source gate"][1]) == ("missing", True)
    assert seen["source door"][0] == "ok"
    assert seen["source attic"][0] == "missing"
    picture = tmp_path / "snapshots" / "yard.jpg"
    assert cv2.imread(str(picture)).shape == (160, 64, 3)
    assert picture.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in picture.parent.iterdir()] == ["yard.jpg"]


def test_a_camera_that_does_not_answer_is_reported_without_its_login(
    tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(trial, "FIRST_FRAME_S", 2.0)
    (state, text) = tried(tmp_path, {"id": "yard", "url": f"rtsp://u:hunter2@127.0.0.1:{free_port}/x"})[
        "source yard"
    ]
    assert state == "missing"
    assert text.startswith("no frame in 2 s: ")
    assert "hunter2" not in text


def test_a_sensor_that_sends_nothing_may_see_nobody(
    tmp_path: Path, mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(trial, "FIRST_FRAME_S", 1.0)
    settings = Settings.model_validate(
        {
            "sources": [{"id": "hall", "url": "deepstream:HWY-20", "size": (1920, 1080)}],
            "detector": {"external_topics": ["reid"], "external_space": "of-deepstream"},
            "mqtt": {"broker": mosquitto.url},
        }
    )
    (silent,) = trial.sources(settings, tmp_path / "snapshots")
    assert (silent.state, "external_topics" in silent.advice) == ("warning", True)
    mqtt = settings.mqtt.model_copy(update={"broker": f"mqtt://127.0.0.1:{find_free_port()}"})
    monkeypatch.setattr(messages, "CONNECT_S", 0.3)
    monkeypatch.setattr(trial, "FIRST_FRAME_S", 5.0)
    (lost,) = trial.sources(settings.model_copy(update={"mqtt": mqtt}), tmp_path / "snapshots")
    assert (lost.state, "no connection" in lost.found) == ("missing", True)


def test_nothing_to_try(tmp_path: Path):
    file = tmp_path / "config.toml"
    file.write_text(f'state_dir = "{tmp_path / "state"}"\n[engine]\nmodel = "colour-stripes"\n')
    steps = examine(file, snapshots=tmp_path / "seen")
    assert [(one.name, one.state) for one in steps if one.name in {"sources", "broker"}] == [
        ("broker", "note"), ("sources", "note"),
    ]  # fmt: skip
    assert not [one.name for one in steps if one.name.startswith("broker:")]


def broker_steps(url: str, **mqtt: str) -> dict[str, tuple[str, str]]:
    return found(list(trial.broker(Settings.model_validate({"mqtt": {"broker": url, **mqtt}}))))


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_the_broker_confirms_and_sends_the_message_back(mosquitto: Mosquitto, version: str):
    steps = broker_steps(mosquitto.url, version=version)
    assert [(name, state) for name, (state, _) in steps.items()] == [
        ("broker: connect", "ok"), ("broker: publish", "ok"), ("broker: read back", "ok"),
    ]  # fmt: skip


def test_an_access_list_that_lacks_the_topic_is_named(mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trial, "ANSWER_S", 1.0)
    acl = mosquitto.config.parent / "acl"
    mosquitto.stop()
    mosquitto.config.write_text(f"{mosquitto.config.read_text()}acl_file {acl}\n")
    acl.write_text("topic write #\n")
    mosquitto.start()
    steps = broker_steps(mosquitto.url)
    assert steps["broker: publish"][0] == "ok"
    assert steps["broker: read back"][0] == "note"
    mosquitto.stop()
    acl.write_text("topic read #\n")
    mosquitto.start()
    state, text = broker_steps(mosquitto.url)["broker: publish"]
    assert (state, "/doctor: Not authorized" in text) == ("missing", True)


def test_a_broker_that_is_not_there(free_port: int):
    assert broker_steps(f"mqtt://127.0.0.1:{free_port}")["broker: connect"][0] == "missing"


def test_the_whole_command(clip: Path, mosquitto: Mosquitto, tmp_path: Path):
    file = tmp_path / "config.toml"
    file.write_text(
        f'state_dir = "{tmp_path / "state"}"\n[engine]\nmodel = "colour-stripes"\n'
        f'[mqtt]\nbroker = "{mosquitto.url}"\n[[sources]]\nid = "yard"\nurl = "{clip}"\n'
    )
    steps = found(examine(file, snapshots=tmp_path / "seen"))
    assert steps["source yard"][0] == steps["broker: read back"][0] == "ok"
    assert steps["broker"][0] == "ok", "the checks without --try are made, too"
    assert "names" in steps
    assert (tmp_path / "seen" / "yard.jpg").exists()
    assert not (tmp_path / "state").exists()
    assert "source yard" not in found(examine(file)), "without --try no camera is opened"
