"""Cameras without pictures: the whole agent on DeepStream's messages, over a real broker."""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import paho.mqtt.client as mqtt
import pytest
from structlog.testing import capture_logs

from edge_agent.agent.daemon import Agent
from edge_agent.agent.outputs import Outputs
from edge_agent.agent.results import FrameOutcome
from edge_agent.core.config import Settings
from edge_agent.core.errors import ConfigError, SourceError
from edge_agent.core.loading import load
from edge_agent.core.structures import LONE_TRACKS
from edge_agent.source import messages
from edge_agent.source.deepstream import parse_deepstream
from edge_agent.source.messages import MessageReceiver, MessageSource
from edge_agent.source.opening import open_sources
from tests.agent.test_agent import command, events, wait_for
from tests.conftest import REPO, Mosquitto, find_free_port, started
from tests.kafka_broker import kafka_broker
from tests.source.deepstream_messages import TIME, Seen, in_form

D = 16
UNTRACKED = str((1 << 64) - 1)
TOPIC = "deepstream/hall"


def settings(tmp_path: Path, broker: str, *sources: dict[str, object], **detector: object) -> Settings:
    sensors = sources or ({"url": "deepstream:front", "size": (1920, 1080)},)
    return Settings(
        state_dir=tmp_path / "state",
        sources=sensors,
        detector={
            "external_topics": [TOPIC], "external_space": "reid-of-deepstream",
            "external_dimension": D, **detector,
        },
        mqtt={"broker": broker, "site": "lab", "device": "dev1"},
        tracker={"lost_s": 0.5},
        identify={"threshold": 0.6},
    )  # fmt: skip


def look(person: int, seed: int = 0, dimension: int = D) -> np.ndarray:
    """The embedding of a person, never the same twice."""
    base = np.eye(dimension)[person] * dimension**0.5
    return (base + 0.1 * np.random.default_rng(seed).standard_normal(dimension)) * 3


@contextmanager
def running(agent: Agent) -> Iterator[threading.Event]:
    stop, failed = threading.Event(), []

    def run() -> None:
        try:
            agent.run(stop)
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert agent.opened.wait(60)
        yield stop
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()
    if failed:
        raise failed[0]


class Publisher:
    """The upstream: QoS 0, as DeepStream's."""

    def __init__(self, port: int) -> None:
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def send(self, payloads: list[bytes], topic: str = TOPIC) -> None:
        for payload in payloads:
            self._client.publish(topic, payload, qos=0)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@contextmanager
def upstream(port: int) -> Iterator[Publisher]:
    publisher = Publisher(port)
    try:
        yield publisher
    finally:
        publisher.close()


def connected(agent: Agent) -> bool:
    readers = agent.stages.sources.readers if agent.stages is not None else []
    return bool(readers) and all(
        reader.state is not None and reader.state.value == "online" for reader in readers
    )


def visit(form: str, tracks: dict[str, int], start: float, count: int = 14, **more: str) -> list[list[bytes]]:
    """The messages of people, by track, who walk past; every other frame comes without embeddings."""
    frames = []
    for n in range(count):
        seen = [
            Seen(
                track, (100 + 300 * at + 5 * n, 100, 260 + 300 * at + 5 * n, 500),
                vector=look(person, 100 * at + n) if n % 2 == 0 or form == "all" else (),
            )
            for at, (track, person) in enumerate(tracks.items())
        ]  # fmt: skip
        frames.append(
            in_form(form, seen, number=int(start * 10) % 100_000 + n, moment=start + n / 10, **more)
        )
    return frames


@pytest.mark.parametrize("form", ["full", "protobuf"])
def test_people_are_known_again_by_embeddings_of_upstream(mosquitto: Mosquitto, tmp_path: Path, form: str):
    outcomes: list[FrameOutcome] = []
    chosen = settings(tmp_path, mosquitto.url)
    agent = Agent(chosen, Outputs(), observe=outcomes.append)
    with running(agent), upstream(mosquitto.port) as publisher:
        wait_for("the connection", lambda: connected(agent))
        assert agent.stages.embedder.info.space == "reid-of-deepstream"
        for frame in visit(form, {"7": 1, "9": 2}, TIME, 24):
            publisher.send(frame)
            time.sleep(0.01)
        # Nobody is there, so nothing is sent: tracks end all the same.
        wait_for("the end of the tracks", lambda: any(one.update.ended for one in outcomes))
        for frame in visit(form, {str((1 << 63) + 12345): 2, "12": 3}, TIME + 60, 24):
            publisher.send(frame)
            time.sleep(0.01)
        wait_for("the second visit", lambda: sum(len(one.update.ended) for one in outcomes) == 4)
        counts = {**agent.stages.detection.left_out(), "late": 0}  # a busy machine may send an object late
    decisions = [one for outcome in outcomes for one in outcome.decisions]
    number = {(one.camera, one.track_id): one.number for one in decisions if one.number is not None}
    long = ((1 << 63) + 12345) % ((1 << 62) - 1)
    assert set(number) == {("front", 7), ("front", 9), ("front", long), ("front", 12)}
    assert number["front", 9] == number["front", long]
    assert len(set(number.values())) == 3
    assert decisions[0].size == (1920, 1080)
    assert not any(counts.values())
    assert len(outcomes) >= 48


def test_messages_of_kafka(tmp_path: Path):
    outcomes: list[FrameOutcome] = []
    with kafka_broker(1, (TOPIC.replace("/", "-"),)) as cluster:
        chosen = settings(
            tmp_path, "none", external_transport="kafka", external_topics=[TOPIC.replace("/", "-")]
        )
        chosen = chosen.model_copy(
            update={"kafka": chosen.kafka.model_copy(update={"brokers": cluster.brokers})}
        )
        agent = Agent(chosen, Outputs(), observe=outcomes.append)
        with running(agent):
            wait_for("the connection", lambda: connected(agent))
            cluster.send(TOPIC.replace("/", "-"), *in_form("protobuf", [Seen(vector=look(1))]), key=b"front")
            cluster.send(
                TOPIC.replace("/", "-"), *in_form("full", [Seen("8", vector=look(2))], moment=TIME + 1)
            )
            wait_for("both frames", lambda: len(outcomes) >= 2)
    assert [seen.track_id for one in outcomes for seen in one.update.seen] == [7, 8]


def test_untracked_objects_are_tracked_here(mosquitto: Mosquitto, tmp_path: Path):
    outcomes: list[FrameOutcome] = []
    agent = Agent(settings(tmp_path, mosquitto.url), Outputs(), observe=outcomes.append)
    with running(agent), upstream(mosquitto.port) as publisher:
        wait_for("the connection", lambda: connected(agent))
        for n in range(40):
            seen = [
                Seen(UNTRACKED, (100 + 5 * n, 100, 260 + 5 * n, 500), vector=look(1, n)),
                Seen("7", (1000 + 5 * n, 100, 1160 + 5 * n, 500), vector=look(2, 50 + n)),
            ]
            publisher.send(in_form("protobuf", seen, number=n, moment=TIME + n / 10))
            time.sleep(0.01)
        wait_for("all frames", lambda: len(outcomes) >= 40)
    found = {one.track_id: one.number for outcome in outcomes for one in outcome.decisions if one.number}
    assert set(found) == {7, LONE_TRACKS + 1}
    assert len(set(found.values())) == 2


def test_sensors_of_one_topic_are_cameras(mosquitto: Mosquitto, tmp_path: Path):
    outcomes: list[FrameOutcome] = []
    sources = (
        {"url": "deepstream:HWY_20 west/1", "id": "west", "size": (1920, 1080)},
        {"url": "deepstream:east", "size": (640, 480)},
    )
    chosen = settings(tmp_path, mosquitto.url, *sources, external_cameras={"East-Old": "east"})
    agent = Agent(chosen, Outputs(), observe=outcomes.append)
    with running(agent), upstream(mosquitto.port) as publisher:
        wait_for("the connection", lambda: connected(agent))
        publisher.send(in_form("minimal", [Seen()], sensor="HWY_20 west/1"))
        publisher.send(in_form("full", [Seen(box=(600, 100, 900, 400))], sensor="East-Old"))
        publisher.send(in_form("protobuf", [Seen(box=(10, 100, 90, 400))], sensor="east", moment=TIME + 9))
        publisher.send(in_form("protobuf", [Seen()], sensor="north"))
        wait_for("three frames", lambda: len(outcomes) == 3)
        left_out = dict(agent.stages.detection.left_out())
    seen = {
        (one.update.camera, *one.update.size, len(one.update.seen)) for one in outcomes if one.update.seen
    }
    assert seen == {("west", 1920, 1080, 1), ("east", 640, 480, 1)}
    assert left_out["sensor"] == 1
    clipped = next(
        one.update.seen[0].box for one in outcomes if one.update.camera == "east" and one.update.seen
    )
    assert clipped.tolist() in ([600, 100, 640, 400], [10, 100, 90, 400])


def test_the_command_runs_without_network_and_detector(mosquitto: Mosquitto, tmp_path: Path):
    config = tmp_path / "config.toml"
    config.write_text(
        f"""
state_dir = "{tmp_path / "state"}"
[[sources]]
url = "deepstream:front"
size = [1920, 1080]
[detector]
external_topics = ["{TOPIC}"]
external_space = "reid-of-deepstream"
external_dimension = {D}
[tracker]
lost_s = 0.5
[mqtt]
broker = "{mosquitto.url}"
site = "lab"
device = "dev1"
"""
    )
    out, log = tmp_path / "events.jsonl", tmp_path / "log"
    words = command("run", "--config", config, "--events", out)
    with started(words, log=log) as process, upstream(mosquitto.port) as publisher:
        wait_for("the subscription", lambda: "external_boxes_connected" in log.read_text())
        for frame in visit("protobuf", {"7": 1}, time.time(), 24):
            publisher.send(frame)
            time.sleep(0.01)
        wait_for("an identity", lambda: events(out, "enrolled"))
        process.terminate()
        assert process.wait(10) == 0
    text = log.read_text()
    assert "no_network_runs" in text
    (enrolled,) = events(out, "enrolled")
    data = enrolled["data"]
    assert (data["track_id"], data["camera"]) == (7, "front")
    assert "upstream" in json.dumps(enrolled)


def test_the_camera_comes_back_with_its_broker(mosquitto: Mosquitto, tmp_path: Path):
    outcomes: list[FrameOutcome] = []
    agent = Agent(settings(tmp_path, mosquitto.url), Outputs(), observe=outcomes.append)
    with running(agent):
        (reader,) = agent.stages.sources.readers
        wait_for("the connection", lambda: connected(agent))
        mosquitto.stop(kill=True)
        wait_for("the loss", lambda: reader.state is not None and reader.state.value == "reconnecting")
        mosquitto.start()
        wait_for("the return", lambda: connected(agent))
        with upstream(mosquitto.port) as publisher:
            publisher.send(in_form("minimal", [Seen()]))
            wait_for("a frame", lambda: any(one.update.seen for one in outcomes))


def test_without_a_broker_the_camera_is_lost_and_the_end_is_quick(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(messages, "CONNECT_S", 0.3)
    agent = Agent(settings(tmp_path, f"mqtt://127.0.0.1:{find_free_port()}"), Outputs())
    with running(agent) as stop:
        (reader,) = agent.stages.sources.readers
        wait_for("the loss", lambda: reader.state is not None and reader.state.value == "reconnecting")
        began = time.monotonic()
        stop.set()
    assert time.monotonic() - began < 15


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"external_topics": []}, "external_topics"),
        ({"external_space": None}, "external_space"),
        ({"broker": "none"}, "mqtt.broker"),
        ({"sources": [{"url": "deepstream:front"}]}, "size"),
        ({"sources": [{"url": "deepstream:a", "size": (9, 9)}] * 2}, "both take"),
        ({"sources": [{"url": "deepstream:a", "size": (9, 9), "detector": "hog"}]}, "'detector'"),
        ({"sources": [{"url": "deepstream:a", "size": (9, 9), "motion": True}]}, "'motion'"),
        ({"sources": [{"url": "deepstream:a", "size": (9, 9), "max_fps": 3}]}, "'max_fps'"),
        ({"sources": [{"url": "deepstream:"}]}, "unknown kind"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(tmp_path: Path, change: dict[str, object], reason: str):
    sources = tuple(change.pop("sources", ()))  # type: ignore[arg-type]
    broker = str(change.pop("broker", "mqtt://127.0.0.1:1883"))
    chosen = settings(tmp_path, broker, *sources, **change)
    with pytest.raises((ConfigError, SourceError), match=reason):
        open_sources(chosen.sources, tmp_path, settings=chosen)


def test_sensors_without_a_source_are_counted_and_some_are_named(tmp_path: Path):
    chosen = settings(tmp_path, "mqtt://127.0.0.1:1883", external_cameras={"Y-1": "yard"})
    receiver = MessageReceiver(chosen, others=["yard", "hall"])
    with capture_logs() as logs:
        for sensor in ("yard", "hall", "Y-1"):  # those have pictures, and their boxes come here too
            receiver.add(parse_deepstream(*in_form("minimal", [Seen()], sensor=sensor), dimension=D))
        assert not receiver.left_out["sensor"]
        for number in range(100):
            (payload,) = in_form("minimal", [Seen()], sensor=f"strange-{number}")
            receiver.add(parse_deepstream(payload, dimension=D))
    assert receiver.left_out["sensor"] == 100
    assert 1 < sum(entry["log_level"] == "warning" for entry in logs) < 20


def test_frames_out_of_order_are_left_out_and_a_clock_is_reported_once(tmp_path: Path):
    chosen = settings(tmp_path, f"mqtt://127.0.0.1:{find_free_port()}")
    (source,) = open_sources(chosen.sources, tmp_path, settings=chosen, now=lambda: TIME)
    assert isinstance(source, MessageSource)
    receiver = source.receiver
    with capture_logs() as logs, mock.patch.object(MessageReceiver, "wait_for_connection", return_value=True):
        frames = source.frames()
        assert next(frames) is None
        for moment in (0.0, 0.2, 0.1, 0.2, 0.3, 86_400.0, -86_400.0):
            receiver.add(parse_deepstream(*in_form("minimal", [Seen()], moment=TIME + moment), dimension=256))
        times = [frame.time - TIME for frame in itertools.islice(frames, 6) if frame is not None]
        frames.close()
    assert times == pytest.approx([0.0, 0.2, 0.2, 0.3, 86_400.0, -86_400.0], abs=0.001)
    assert receiver.left_out["late"] == 1
    clocks = [entry for entry in logs if "clock" in str(entry.get("reason"))]
    assert [entry["log_level"] for entry in clocks] == ["warning", "debug"]
    assert "86400 s ahead of the clock of this machine" in clocks[0]["reason"]


def test_the_example_in_the_documentation(tmp_path: Path):
    text = (REPO / "docs" / "deepstream.md").read_text()
    (example,) = re.findall(r"```toml deepstream\n(.*?)```", text, re.DOTALL)
    (tmp_path / "config.toml").write_text(example)
    chosen = load(tmp_path / "config.toml")
    assert [source.id for source in open_sources(chosen.sources, tmp_path, settings=chosen)] == [
        "front",
        "back",
    ]


def test_two_spaces_in_one_gallery_are_refused(tmp_path: Path, mosquitto: Mosquitto):
    crops = tmp_path / "crops"
    crops.mkdir()
    sources = ({"url": "deepstream:front", "size": (9, 9)}, {"url": f"crops:{crops}", "id": "yard"})
    chosen = settings(tmp_path, mosquitto.url, *sources)
    chosen = chosen.model_copy(
        update={"engine": chosen.engine.model_copy(update={"model": Path("colour-stripes")})}
    )
    with pytest.raises(ConfigError, match="cannot be compared"):
        Agent(chosen, Outputs()).run(threading.Event())
