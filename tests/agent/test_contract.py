"""What subscribers can rely on, with the agent as a process, a real broker, and kills."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import threading
from pathlib import Path
from unittest import mock

import pytest

from edge_agent.agent import stages
from edge_agent.agent.daemon import Agent
from edge_agent.agent.outputs import Outputs
from edge_agent.core.loading import load
from edge_agent.embed.opening import open_agent_embedder
from tests.agent.test_agent import (
    PEOPLE,
    Listener,
    config,
    events,
    listener,
    pictures,
    put_all,
    run,
    running,
    wait_for,
)
from tests.conftest import REPO, Mosquitto
from tests.deliver.test_deliver_examples import running as running_example

__all__ = ["listener", "pictures"]  # fixtures


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
        return open_agent_embedder(*given, building=building, **more)  # type: ignore[arg-type]

    crops, file = tmp_path / "crops", tmp_path / "events.jsonl"
    put_all(crops, pictures)
    settings = load(config(tmp_path, crops), {})
    Agent(settings, Outputs(file)).run(threading.Event())
    assert events(file, "engine_rebuilt") == []
    monkeypatch.setattr(stages, "open_agent_embedder", building_embedder)
    Agent(settings, Outputs(file)).run(threading.Event())
    (alert,) = events(file, "engine_rebuilt")
    assert alert["data"]["details"]["seconds"] >= 0  # type: ignore[index]


# --- who is where -----------------------------------------------------------------------------------------


class Following(Listener):
    def people(self) -> int:
        """Count those of the last `present` message."""
        return len(json.loads(self.messages[-1][1])["data"]["people"]) if self.messages else -1


WHERE = {
    "python": ([sys.executable, str(REPO / "examples" / "who_is_where.py"), "mqtt://127.0.0.1:{port}"], ()),
    "shell": (
        ["sh", str(REPO / "examples" / "who_is_where.sh"), "127.0.0.1", "{port}"],
        ("jq", "mosquitto_sub"),
    ),
}


@pytest.mark.parametrize(
    "example", [pytest.param(one, marks=pytest.mark.slow) if one == "shell" else one for one in WHERE]
)
def test_examples_know_who_is_where_through_kills(
    tmp_path: Path, pictures: dict[int, list[bytes]], mosquitto: Mosquitto, example: str
) -> None:
    """Of the agent, and their own."""
    words, needed = WHERE[example]
    if any(shutil.which(tool) is None for tool in needed):
        pytest.skip(f"needs {' and '.join(needed)}")
    words = [word.format(port=mosquitto.port) for word in words]
    crops, log = tmp_path / "crops", tmp_path / "log"
    put_all(crops, pictures)
    path = config(tmp_path, crops, once=False, broker=mosquitto.url)

    def last(lines: list[str]) -> list[list[str]] | None:
        return json.loads(lines[-1])[1] if lines else None

    listener = Following(mosquitto.port, "+/+/+/+/present")
    with running_example(words) as lines, running("run", "--config", path, log=log) as agent:
        wait_for("everybody to be shown", lambda: len(last(lines) or ()) == PEOPLE)
        before = last(lines)
        wait_for("the retained message", lambda: listener.people() == PEOPLE)
        agent.send_signal(signal.SIGKILL)
        agent.wait(10)
    with running_example(words) as lines:  # killed too
        wait_for("the retained state", lambda: last(lines) == before)
        with running("run", "--config", path, log=log) as agent:
            wait_for("the ghosts to leave", lambda: last(lines) == [])
            put_all(crops, pictures, 2000.0)
            wait_for("everybody to come back", lambda: len(last(lines) or ()) == PEOPLE)
            assert len({person for _, person in last(lines) or ()}) == PEOPLE
            agent.send_signal(signal.SIGTERM)
            assert agent.wait(10) == 0
            wait_for("everybody to leave", lambda: last(lines) == [])
    listener.close()


def test_the_agent_publishes_a_merge_and_a_forget_of_the_command_line(
    tmp_path: Path, pictures: dict[int, list[bytes]], mosquitto: Mosquitto, listener: Listener
) -> None:
    crops = tmp_path / "crops"
    put_all(crops, pictures)
    path = config(tmp_path, crops, once=False, broker=mosquitto.url)
    with running("run", "--config", path, log=tmp_path / "log") as agent:
        wait_for("people", lambda: len(listener.of("identity/enrolled")) >= PEOPLE)
        ids = [event["data"]["identity_id"] for event in listener.of("identity/enrolled")]  # type: ignore[index]
        assert run("gallery", "merge", ids[0], ids[1], "--yes", "--config", path).returncode == 0
        wait_for("the merge", lambda: listener.of("person/merged"))
        assert run("gallery", "forget", ids[2], "--yes", "--config", path).returncode == 0
        wait_for("the forget", lambda: listener.of("person/forgotten"))
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(10) == 0
    (merged,) = listener.of("person/merged")
    assert (merged["data"]["identity_id"], merged["data"]["absorbed_id"]) == (ids[0], ids[1])  # type: ignore[index]
    assert run("gallery", "name", ids[3], "Ada", "--config", path).returncode == 0
    with running("run", "--config", path, log=tmp_path / "log") as agent:
        wait_for("the name", lambda: listener.of("person/named"))
    assert [event["data"]["name"] for event in listener.of("person/named")] == ["Ada"]  # type: ignore[index]
