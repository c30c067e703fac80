"""Prometheus and Home Assistant: served metrics, and names in the example and the announcement exist."""

from __future__ import annotations

import json
import re
import socket
import urllib.request
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from edge_agent.core.codec import encode
from edge_agent.core.errors import ConfigError
from edge_agent.core.events import new_event
from edge_agent.core.loading import load
from edge_agent.deliver.connection import ConnectionState
from edge_agent.deliver.homeassistant import announce, announcement, discovery_topic
from edge_agent.deliver.local import Counters
from edge_agent.deliver.metrics import Metrics
from edge_agent.deliver.topics import Topics
from tests.conftest import REPO, Mosquitto
from tests.deliver.deliver_fixtures import INFO, Listener, identity, outbox_at, publishing, telemetry, until

TOPICS = Topics("lab", "jx01")
FULL = replace(
    telemetry(),
    temperatures_c={"tj": 51.5, "gpu": 48.0},
    throttled=False,
    power_w={"VDD_GPU_SOC": 3.5},
    power_total_w=11.25,
    cpu_percent=12.0,
    memory_used_bytes=5,
    process_memory_bytes=4,
    frames_per_s={"cam1": 14.9},
    crops_per_s=30.0,
    queues={"cam1": 1},
    dropped={"frames:cam1": 7},
    people_present=2,
    identities=9,
    outbox_rows=0,
)


def served() -> Metrics:
    return Metrics(
        port=0,
        delivery=SimpleNamespace(
            counters=Counters(published=5, acknowledged=4, outbox_rows=1), state=ConnectionState.WAITING
        ),
        info=INFO,
    )


def scrape(metrics: Metrics) -> dict[tuple[str, str], float]:
    """Samples by name and the values of their labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics.port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_equal_the_telemetry() -> None:
    with served() as metrics:
        before = scrape(metrics)
        assert before["edge_agent_delivery_published_total", ""] == 5
        assert before["edge_agent_delivery_outbox_rows", ""] == 1
        assert before["edge_agent_broker", "waiting"] == 1
        assert before["edge_agent_broker", "connected"] == 0
        assert not any("temperature" in name for name, _ in before)
        metrics.take(FULL)
        metrics.observe("embed", 0.02)
        after = scrape(metrics)
        assert after["edge_agent_temperature_celsius", "tj"] == 51.5
        assert after["edge_agent_power_total_watts", ""] == 11.25
        assert after["edge_agent_throttled", ""] == 0
        assert after["edge_agent_dropped_total", "frames:cam1"] == 7
        assert after["edge_agent_stage_seconds_count", "embed"] == 1
        assert ("edge_agent_gpu_percent", "") not in after
        metrics.take(replace(FULL, stuck=("source:gate",), governor_step=2, engines_mhz={"nvdec": 793.6}))
        later = scrape(metrics)
        assert not any(name == "edge_agent_still_frames_total" for name, _ in later)
        assert later["edge_agent_stage_stuck", "source:gate"] == 1
        assert later["edge_agent_governor_step", ""] == 2
        assert later["edge_agent_engine_megahertz", "nvdec"] == 793.6
        metrics.take(replace(FULL, still_frames={"gate": 41}))
        assert scrape(metrics)["edge_agent_still_frames_total", "gate"] == 41


def test_metrics_listen_on_loopback_only_and_report_a_port_in_use() -> None:
    with served() as metrics:
        scrape(metrics)
        with pytest.raises(ConnectionRefusedError):  # a listener on all addresses accepts this one too
            socket.create_connection(("127.0.0.2", metrics.port), timeout=10)
        second = served()
        second.port = metrics.port
        with pytest.raises(ConfigError, match="metrics_port"), second:
            pass


def test_dashboard_asks_for_metrics_that_exist() -> None:
    dashboard = json.loads((REPO / "examples" / "grafana-dashboard.json").read_text())
    with served() as metrics:
        metrics.take(FULL)
        metrics.observe("embed", 0.02)
        known = {name for name, _ in scrape(metrics)}
    asked = set()
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            asked |= set(re.findall(r"edge_agent_\w+", target["expr"]))
    assert len(asked) > 12
    assert asked <= known


# --- Home Assistant ---------------------------------------------------------------------------------------


def rendered(template: str, payload: bytes) -> str:
    return jinja2.Environment().from_string(template).render(value_json=json.loads(payload))


@pytest.fixture
def announced() -> Any:
    return json.loads(announcement(TOPICS, INFO, zones=["tj", "gpu"], rails=["VDD_GPU_SOC"]))


def test_announcement_has_what_home_assistant_demands(announced: Any) -> None:
    assert discovery_topic(TOPICS) == "homeassistant/device/edge_lab_jx01/config"
    assert announced["device"]["identifiers"] == ["edge_lab_jx01"]
    assert announced["origin"]["name"] == "edge-agent"
    entities = announced["components"].values()
    assert all(entity["platform"] in {"sensor", "binary_sensor"} for entity in entities)
    ids = [entity["unique_id"] for entity in entities]
    assert len(ids) == len(set(ids)) == 12


def test_templates_read_our_messages(announced: Any) -> None:
    reported = encode(new_event("telemetry", FULL, time=1.7e9))
    values = {
        name: rendered(entity["value_template"], reported)
        for name, entity in announced["components"].items()
        if "state_topic" not in entity
    }
    assert values == {
        "throttled": "False",
        "stuck": "False",
        "governor": "None",
        "people": "2",
        "hottest": "51.5",
        "power": "11.25",
        "crops": "30.0",
        "outbox": "0",
        "zone_tj": "51.5",
        "zone_gpu": "48.0",
        "rail_vdd_gpu_soc": "3.5",
    }
    unknown = encode(new_event("telemetry", telemetry(), time=1.7e9))
    assert rendered(announced["components"]["power"]["value_template"], unknown) == "None"
    assert rendered(announced["components"]["zone_gpu"]["value_template"], unknown) == "None"
    stuck = encode(new_event("telemetry", replace(FULL, stuck=("pipeline",), governor_step=3), time=1.7e9))
    assert rendered(announced["components"]["stuck"]["value_template"], stuck) == "True"
    assert rendered(announced["components"]["governor"]["value_template"], stuck) == "3"


@pytest.mark.parametrize(
    ("state", "shown"), [("online", "online"), ("degraded", "online"), ("offline", "offline")]
)
def test_availability_follows_the_status(announced: Any, state: str, shown: str) -> None:
    template = announced["availability"][0]["value_template"]
    assert rendered(template, json.dumps({"data": {"state": state}}).encode()) == shown


def test_the_setting_announces_and_takes_back(mosquitto: Mosquitto, tmp_path: Path) -> None:
    topic = discovery_topic(TOPICS)
    with outbox_at(tmp_path / "o.db") as outbox, Listener(mosquitto.port, topic) as listener:
        for wanted, heard in ((False, 0), (True, 1), ("remove", 2), ("remove", 2)):
            settings = load(None, {"mqtt": {"site": "lab", "device": "jx01", "home_assistant": wanted}})
            with publishing(outbox, mosquitto.url) as publisher:
                announce(settings.mqtt, publisher, INFO, zones=["tj"], rails=[])
                publisher.publish(identity())
                until(lambda: publisher.counters.no_subscriber)
                until(lambda n=heard: len(listener.heard) >= n)
            outbox.drop_older(f"{TOPICS.root}/identity/matched", 1e12, "no-subscriber")
        assert listener.heard[0].message["device"]["identifiers"] == ["edge_lab_jx01"]
        assert {heard.message for heard in listener.heard[1:]} == {b""}
    with Listener(mosquitto.port, topic) as late, Listener(mosquitto.port, TOPICS.status) as other:
        until(lambda: other.heard)
        assert late.heard == []


def test_announcement_is_retained_and_can_be_removed(mosquitto: Mosquitto, tmp_path: Path) -> None:
    topic = discovery_topic(TOPICS)
    with outbox_at(tmp_path / "o.db") as outbox, publishing(outbox, mosquitto.url) as publisher:
        publisher.set_retained(topic, announcement(TOPICS, INFO, zones=["tj"]))
        with Listener(mosquitto.port, topic) as listener:
            heard = until(lambda: listener.heard)[0]
            assert heard.message["state_topic"] == TOPICS.telemetry
            publisher.set_retained(topic, b"")
            until(lambda: len(listener.heard) == 2)
        with Listener(mosquitto.port, topic) as late:
            publisher.set_status("online")
            with Listener(mosquitto.port, TOPICS.status) as other:
                until(lambda: other.heard)
            assert late.heard == []
