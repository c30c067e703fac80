"""The whole agent with copies for Metropolis over Kafka, through kill -9 and an absent broker."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from edge_agent.core.nv_frame import NvFrame, NvObject, decode_frame, encode_frame
from tests.agent.test_agent import config, events, pictures, put_all, run, running, wait_for
from tests.conftest import Mosquitto
from tests.kafka_broker import kafka_broker

__all__ = ["pictures"]


def with_copies(path: Path, brokers: str, form: str) -> Path:
    lines = [
        "[kafka]", f'brokers = ["{brokers}"]',
        "[metropolis]", f'format = "{form}"', 'transport = "kafka"', 'topic = "people"',
    ]  # fmt: skip
    path.write_text(path.read_text() + "\n".join(lines) + "\n")
    return path


@pytest.mark.slow
def test_a_run_ends_when_kafka_has_every_copy(tmp_path: Path, pictures: dict[int, list[bytes]]) -> None:
    put_all(tmp_path / "crops", pictures)
    file = tmp_path / "events.jsonl"
    with kafka_broker(1) as broker:
        path = with_copies(config(tmp_path, tmp_path / "crops"), broker.brokers[0], "protobuf")
        done = run("run", "--config", path, "--events", file)
        assert done.returncode == 0, done.stderr
        identities = events(file, "matched", "enrolled", "corrected", "departed")
        wanted = {str(one["seq"]): one["data"] for one in identities}
        assert len(wanted) >= 5
        frames = [decode_frame(one.value()) for one in broker.stored("people", len(wanted))]
    assert [one.objects[0].info["seq"] for one in frames] == list(wanted)
    for frame in frames:
        (person,) = frame.objects
        data = wanted[person.info["seq"]]
        assert (person.id, frame.sensor) == (data["identity_id"], data["camera"])
        width, height = data["frame_size"]
        x1, y1, x2, y2 = data["bbox"]
        assert person.box == pytest.approx((x1 * width, y1 * height, x2 * width, y2 * height), abs=0.01)


@pytest.mark.slow
def test_kills_and_an_absent_broker_lose_no_copy(
    mosquitto: Mosquitto, tmp_path: Path, pictures: dict[int, list[bytes]]
) -> None:
    """All that is in the events files is in Kafka, in the order of `seq`; its broker was down in one run."""
    crops = tmp_path / "crops"
    crops.mkdir()
    published: dict[int, str] = {}

    def in_kafka() -> dict[int, str]:
        found = [json.loads(one.value()) for one in broker.everything("people")]
        return {int(one["object"]["info"]["seq"]): one["messageid"] for one in found}

    with kafka_broker(1, ("people",)) as broker:
        path = with_copies(
            config(tmp_path, crops, once=False, broker=mosquitto.url), broker.brokers[0], "json"
        )
        for turn in range(3):
            file = tmp_path / f"events-{turn}.jsonl"
            (broker.down if turn == 1 else broker.up)()
            with running("run", "--config", path, "--events", file, log=tmp_path / "log") as agent:
                put_all(crops, pictures, start=1000.0 + 100 * turn)
                wait_for("events", lambda file=file: len(events(file, "matched", "enrolled")) >= 5)
                os.kill(agent.pid, signal.SIGKILL)
            published |= {
                int(str(one["seq"])): str(one["id"]) for one in events(file) if "identity" in str(one["type"])
            }
        with running("run", "--config", path, log=tmp_path / "log"):
            wait_for("all copies", lambda: published.items() <= in_kafka().items())
        copies = in_kafka()
    assert list(copies) == sorted(copies)
    assert len(published) >= 15


@pytest.mark.slow
def test_embeddings_of_deepstream_in_and_identities_out_over_kafka(tmp_path: Path) -> None:
    """No camera, no network, no MQTT: people come from one topic, and go to another with their identity."""
    random = np.random.default_rng(1)
    people = [random.normal(size=256).astype(np.float32) for _ in range(3)]
    with kafka_broker(1, ("deepstream",)) as broker:
        path = tmp_path / "config.toml"
        path.write_text(f"""
state_dir = "{tmp_path / "state"}"
[[sources]]
id = "front"
url = "deepstream:HWY-20"
size = [1920, 1080]
[detector]
external_transport = "kafka"
external_topics = ["deepstream"]
external_space = "some-space"
external_dimension = 256
""")
        with_copies(path, broker.brokers[0], "protobuf")
        log = tmp_path / "log"
        with running("run", "--config", path, log=log) as agent:
            wait_for("connection", lambda: "external_boxes_connected" in log.read_text())
            for number in range(30):
                objects = [
                    NvObject(
                        str(track), (300 * track, 200, 300 * track + 100, 500), "Person", 0.9, {},
                        vector + random.normal(size=256, scale=0.05).astype(np.float32),
                    )
                    for track, vector in enumerate(people, start=1)
                ]  # fmt: skip
                frame = NvFrame("HWY-20", str(number), time.time(), objects)
                broker.send("deepstream", encode_frame(frame), key=b"HWY-20")
                time.sleep(0.1)
            copies = [decode_frame(one.value()) for one in broker.stored("people", 3)]
            agent.terminate()
            assert agent.wait(20) == 0
    assert {one.sensor for one in copies} == {"front"}
    assert len({one.objects[0].id for one in copies}) == 3
    assert {one.objects[0].info["kind"] for one in copies} == {"enrolled"}
