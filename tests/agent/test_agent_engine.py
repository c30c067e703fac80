"""The agent and an inference server that is not there yet, and leaves for a while."""

from __future__ import annotations

from pathlib import Path

from edge_agent.engine.graph.prepare import prepare_reid
from edge_agent.engine.graph.prepared import PROFILES
from edge_agent.engine.graph.stripes import STRIPES_PROFILE, write_stripe_model
from tests.agent.test_agent import (
    PEOPLE,
    Listener,
    config,
    events,
    listener,
    pictures,
    put,
    put_all,
    running,
    wait_for,
)
from tests.agent.test_agent_live import agent_states, telemetry
from tests.conftest import Mosquitto, find_free_port
from tests.kserve.fake import Fake, serving

__all__ = ["listener", "pictures"]  # fixtures


def test_people_are_recognised_as_soon_as_the_server_is_back(
    tmp_path: Path,
    pictures: dict[int, list[bytes]],
    mosquitto: Mosquitto,
    listener: Listener,
) -> None:
    port = find_free_port()
    crops, file = tmp_path / "crops", tmp_path / "events.jsonl"
    fake = Fake(prepare_reid(write_stripe_model(tmp_path / "stripes.onnx"), PROFILES[STRIPES_PROFILE]))
    path = config(tmp_path, crops, once=False, broker=mosquitto.url)
    backend = f'backend = "triton:127.0.0.1:{port}/reid"\n[telemetry]'
    path.write_text(path.read_text().replace("[telemetry]", backend))
    crops.mkdir()

    def alerts() -> list[bool]:
        return [message["data"]["active"] for message in listener.of("alert/engine_lost")]  # type: ignore[index]

    def matched() -> set[int]:
        return {event["data"]["track_id"] for event in events(file, "matched")}  # type: ignore[index]

    with running("run", "--config", path, "--events", file, log=tmp_path / "log") as agent:
        wait_for("a start without the server", lambda: agent_states(listener)[-1:] == ["degraded"])
        wait_for("the alert", lambda: alerts() == [True])
        put_all(crops, pictures)
        with serving(fake, port=port):
            wait_for("people to be enrolled", lambda: len(events(file, "enrolled")) == PEOPLE)
            wait_for("its end", lambda: alerts() == [True, False])
            assert agent_states(listener)[-1] == "online"
        put(crops, pictures, 2000.0, {20: 0})  # the batch that shows it is lost
        wait_for("the alert again", lambda: alerts() == [True, False, True])
        wait_for("degraded", lambda: telemetry(listener)[-1]["state"] == "degraded")
        wait_for("the count", lambda: telemetry(listener)[-1]["dropped"].get("batches:failed"))
        put(crops, pictures, 3000.0, {21: 1, 22: 3})
        assert agent.poll() is None
        with serving(fake, port=port):
            wait_for("people to be recognised", lambda: matched() >= {21, 22})
