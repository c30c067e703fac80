"""What subscribers can rely on, with the agent as a process, a real broker, and kills."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from edge_agent.agent import stages
from edge_agent.agent.daemon import Agent
from edge_agent.agent.outputs import Outputs
from edge_agent.core.loading import load
from edge_agent.embed.opening import open_embedder
from tests.agent.test_agent import Listener, config, events, pictures, put_all, running, wait_for
from tests.conftest import Mosquitto

__all__ = ["pictures"]  # a fixture


@pytest.fixture
def listener(mosquitto: Mosquitto) -> Iterator[Listener]:
    found = Listener(mosquitto.port)
    yield found
    found.close()


def test_a_clean_stop_leaves_no_camera_online(
    tmp_path: Path, pictures: dict[int, list[bytes]], mosquitto: Mosquitto, listener: Listener
) -> None:
    crops, log = tmp_path / "crops", tmp_path / "log"
    put_all(crops, pictures)
    path = config(tmp_path, crops, once=False, broker=mosquitto.url)
    with running("run", "--config", path, log=log) as agent:
        wait_for("people", lambda: listener.of("identity/enrolled"))
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(10) == 0
    late = Listener(mosquitto.port, "edge/v1/lab/dev1/camera/+/status")
    try:
        wait_for("the retained state", lambda: late.messages)
        state = json.loads(late.messages[0][1])["data"]
    finally:
        late.close()
    assert (state["state"], state["reason"]) == ("offline", "the agent was stopped")
    assert not listener.of("alert/camera_lost")
    assert "wait in the outbox" not in log.read_text()


def test_events_that_wait_are_counted_after_the_last_attempt(
    tmp_path: Path, pictures: dict[int, list[bytes]], mosquitto: Mosquitto, listener: Listener
) -> None:
    crops, file = tmp_path / "crops", tmp_path / "events.jsonl"
    put_all(crops, pictures)
    settings = load(config(tmp_path, crops, broker=mosquitto.url), {})
    assert Agent(settings, Outputs(file)).run(threading.Event()).undelivered == 0
    mosquitto.stop()
    put_all(crops, pictures)
    with mock.patch("edge_agent.agent.daemon.DRAIN_S", 0.2):
        summary = Agent(settings, Outputs(file)).run(threading.Event())
    assert summary.undelivered == len(events(file)) > 0
    assert len(listener.of("identity/")) == summary.decisions


def test_an_engine_that_is_built_at_the_start_is_reported(
    tmp_path: Path, pictures: dict[int, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def building_embedder(*given: object, building: object, **more: object) -> object:
        building("kernels", 1, 3)  # type: ignore[operator]
        return open_embedder(*given, building=building, **more)  # type: ignore[arg-type]

    crops, file = tmp_path / "crops", tmp_path / "events.jsonl"
    put_all(crops, pictures)
    settings = load(config(tmp_path, crops), {})
    Agent(settings, Outputs(file)).run(threading.Event())
    assert events(file, "engine_rebuilt") == []
    monkeypatch.setattr(stages, "open_embedder", building_embedder)
    Agent(settings, Outputs(file)).run(threading.Event())
    (alert,) = events(file, "engine_rebuilt")
    assert alert["data"]["details"]["seconds"] >= 0  # type: ignore[index]
