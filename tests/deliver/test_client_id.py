"""Two agents with one client id, and the names by which agents differ."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.cli.checks import configuration
from edge_agent.core.delivery_settings import MqttSettings
from edge_agent.core.host import default_device, this_host
from edge_agent.core.loading import load
from edge_agent.deliver import conflict as conflict_module
from edge_agent.deliver.conflict import CONFLICT_OVER_S, EARLY_LOSSES, LONGEST_CONFLICT_WAIT_S, Conflict
from edge_agent.deliver.topics import Topics
from edge_agent.health.inquiry import StatusServer
from tests.conftest import REPO, Mosquitto
from tests.deliver.deliver_fixtures import Listener, identity, outbox_at, publishing, telemetry, until

ROOT = "edge/v1/lab/jx01"


@contextlib.contextmanager
def agent(folder: Path, url: str, name: str, **changes: Any) -> Iterator[Any]:
    with outbox_at(folder / f"{name}.db") as outbox, publishing(outbox, url, session=name, **changes) as made:
        made.set_status("online")
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_two_agents_with_one_id_leave_each_other_the_broker(
    mosquitto: Mosquitto, tmp_path: Path, version: str
) -> None:
    """With MQTT 3.1.1 the broker gives no reason: they recognise it by the losses."""
    with (
        mock.patch.multiple(conflict_module, CONFLICT_WAIT_S=2.0),
        Listener(mosquitto.port) as listener,
        agent(tmp_path, mosquitto.url, "one", version=version) as one,
        agent(tmp_path, mosquitto.url, "two", version=version) as two,
    ):
        both = (one, two)

        def recognised() -> bool:
            for each in both:  # as a running agent does, so that something is always under way
                each.send_telemetry(telemetry())
            return all("another client" in each.trouble for each in both)

        until(recognised, seconds=40)
        assert "edge-agent-lab-jx01" in one.trouble
        before = [each.counters.connects for each in both]
        began = time.monotonic()
        for n in range(1, 11):
            one.publish(identity(n))
            two.publish(identity(n))
            time.sleep(0.3)
        # Each gets its turn, and none is thrown out at once.
        until(lambda: all(each.counters.acknowledged >= 10 for each in both), seconds=60)
        connects = sum(each.counters.connects for each in both) - sum(before)
        assert connects <= 3 + (time.monotonic() - began)
        alerts = until(lambda: listener.of("alert/client_id_conflict"))
        assert {a["data"]["details"]["client_id"] for a in alerts} == {"edge-agent-lab-jx01"}
        assert "mqtt.device" in alerts[0]["data"]["message"]


@pytest.mark.slow
def test_a_broker_that_restarts_is_no_conflict(mosquitto: Mosquitto, tmp_path: Path) -> None:
    with agent(tmp_path, mosquitto.url, "one", version="3.1.1") as one:
        for count in range(EARLY_LOSSES + 2):
            until(lambda count=count: one.counters.connects > count and one.state.value == "connected")
            mosquitto.stop(kill=True)
            until(lambda: one.state.value == "waiting")
            time.sleep(0.5)
            mosquitto.start()
        until(lambda: one.state.value == "connected")
        assert one.trouble == ""


def test_waits_grow_and_end() -> None:
    conflict = Conflict()
    waits = [conflict.lost(1.0, taken_over=True, unexplained=False) for _ in range(12)]
    assert all(wait is not None for wait in waits)
    assert waits[0] is not None
    assert 15 <= waits[0] <= 30
    assert waits[-1] is not None
    assert LONGEST_CONFLICT_WAIT_S / 2 <= waits[-1] <= LONGEST_CONFLICT_WAIT_S
    assert conflict.is_known
    assert not conflict.connected_for(CONFLICT_OVER_S - 1)
    assert conflict.connected_for(CONFLICT_OVER_S)
    assert not conflict.is_known
    assert conflict.lost(1.0, taken_over=False, unexplained=True) is None


def test_losses_with_other_signs_are_no_conflict() -> None:
    conflict = Conflict()
    for _ in range(20):
        for _ in range(EARLY_LOSSES - 1):
            assert conflict.lost(1.0, taken_over=False, unexplained=True) is None
        assert conflict.lost(1.0, taken_over=False, unexplained=False) is None
    for _ in range(20):
        assert conflict.lost(1000.0, taken_over=False, unexplained=True) is None
        conflict.not_connected()


# --- names ------------------------------------------------------------------------------------------------


def machine(folder: Path, *, serial: str | None = None, machine_id: str | None = None) -> Path:
    for path, text in (("proc/device-tree/serial-number", serial), ("etc/machine-id", machine_id)):
        if text is not None:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
    return folder


def test_the_default_device_differs_per_machine(tmp_path: Path) -> None:
    ids = {
        default_device(machine(tmp_path / "1", machine_id="a" * 32), "ubuntu"),
        default_device(machine(tmp_path / "2", machine_id="b" * 32), "ubuntu"),
        default_device(machine(tmp_path / "3", machine_id="a" * 32), "other"),
        # A copied card: host name and machine id are equal, the board differs.
        default_device(machine(tmp_path / "4", machine_id="a" * 32, serial="1421\0"), "ubuntu"),
        default_device(machine(tmp_path / "5", machine_id="a" * 32, serial="1422\0"), "ubuntu"),
    }
    assert len(ids) == 5
    assert not any("a" * 9 in one or "1421" in one for one in ids)
    assert default_device(tmp_path / "none", "ubuntu") == "ubuntu"
    assert this_host(tmp_path / "none") is None


@given(name=st.text(max_size=300))
def test_every_host_name_makes_a_valid_device(name: str) -> None:
    made = default_device(Path("/"), name)
    Topics("site", made)
    assert re.fullmatch(r"[a-z0-9_-]{1,64}", made)


def test_defaults_and_examples() -> None:
    assert MqttSettings().device == default_device()
    assert MqttSettings().names_problem == ""
    for names in (("site", "device"), ("site1", "jx01")):
        assert "its own" in MqttSettings(site=names[0], device=names[1]).names_problem
    assert "gate-a" in load(REPO / "config.example.toml").mqtt.names_problem


def test_every_pair_of_names_in_the_documentation_is_an_example() -> None:
    """`edge/v1/SITE/DEVICE` in the pages for users."""
    pages = [REPO / "README.md", *(REPO / "docs").glob("*.md"), *(REPO / "examples").glob("*.*")]
    named = {
        pair for page in pages for pair in re.findall(r"edge/v1/([a-z0-9-]+)/([a-z0-9-]+)/", page.read_text())
    }
    assert named <= {("site1", "jx01"), ("demo", "demo")}


def test_doctor_finds_another_agent_with_the_names(mosquitto: Mosquitto, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    values = {
        "state_dir": str(tmp_path / "state"),
        "mqtt": {"broker": mosquitto.url, "site": "lab", "device": "jx01"},
    }
    settings = load(None, values)

    def found() -> dict[str, str]:
        return {f.name: f.state for f in configuration.broker(settings)}

    assert found() == {"broker": "ok", "names": "ok"}
    with agent(tmp_path, mosquitto.url, "one") as one:
        until(lambda: one.counters.acknowledged == 0 and found()["names"] == "warning")
        document = {"session": "one", "delivery": {"problem": None}}
        with StatusServer(tmp_path / "state" / "status.sock", lambda: document):
            assert found() == {"broker": "ok", "names": "ok"}
            document["delivery"] = {"problem": "another client"}
            assert found() == {"broker": "ok", "names": "ok", "delivery": "warning"}
    until(lambda: found()["names"] == "ok")


@pytest.mark.parametrize("status", [b"\xff", b"[]", b'{"data": 1}', b'{"data": {"state": []}}', b"[" * 9999])
def test_doctor_reads_any_retained_status(mosquitto: Mosquitto, status: bytes) -> None:
    settings = load(None, {"mqtt": {"broker": mosquitto.url, "site": "lab", "device": "jx01"}})
    with Listener(mosquitto.port, "other") as listener:
        listener.publish(f"{ROOT}/status", status, retain=True)
        assert configuration.broker(settings)[0].state == "ok"
        listener.publish(f"{ROOT}/status", b"", retain=True)


def test_events_that_wait_under_another_name_are_delivered(mosquitto: Mosquitto, tmp_path: Path) -> None:
    """As after an upgrade of an agent that had the default names."""
    with outbox_at(tmp_path / "o.db") as outbox, Listener(mosquitto.port) as listener:
        body = json.dumps({"type": "edge.alert.x.v1"}).encode()
        outbox.append(body, "edge/v1/site/device/alert/x")
        with mock.patch.object(listener, "invalid", []), publishing(outbox, mosquitto.url) as publisher:
            assert publisher.drain(20)
            until(lambda: listener.of("edge/v1/site/device/alert/x"))
        listener.invalid.clear()
