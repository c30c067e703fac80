"""The agent as a process, with a broker that is frozen, and with another agent under its names."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from edge_agent.health.inquiry import read_status
from tests.agent.test_agent import running, wait_for
from tests.conftest import Mosquitto

SETTINGS = """
state_dir = "{state}"
[[sources]]
url = "crops:{crops}"
id = "yard"
[engine]
model = "colour-stripes"
[mqtt]
broker = "{broker}"
site = "lab"
device = "dev1"
keepalive_s = 5
"""


def configured(folder: Path, name: str, broker: str) -> Path:
    (folder / name / "crops").mkdir(parents=True)
    path = folder / f"{name}.toml"
    path.write_text(
        SETTINGS.format(state=folder / name / "state", crops=folder / name / "crops", broker=broker)
    )
    return path


def state_of(folder: Path, name: str) -> tuple[str, str]:
    try:
        found = read_status(folder / name / "state" / "status.sock")
    except Exception:
        return "", ""
    return str(found["state"]), str(found["reason"])


@pytest.mark.slow
def test_a_frozen_broker_makes_the_agent_degraded_after_a_minute(
    mosquitto: Mosquitto, tmp_path: Path
) -> None:
    assert mosquitto.process is not None
    path = configured(tmp_path, "a", mosquitto.url)
    with running("run", "--config", path, log=tmp_path / "log"):
        wait_for("online", lambda: state_of(tmp_path, "a")[0] == "online")
        time.sleep(1)
        os.kill(mosquitto.process.pid, signal.SIGSTOP)
        frozen = time.monotonic()
        try:
            wait_for("degraded", lambda: state_of(tmp_path, "a")[0] == "degraded", seconds=120)
            assert time.monotonic() - frozen > 30
            assert "broker" in state_of(tmp_path, "a")[1]
        finally:
            os.kill(mosquitto.process.pid, signal.SIGCONT)
        wait_for("online again", lambda: state_of(tmp_path, "a")[0] == "online", seconds=90)


@pytest.mark.slow
def test_two_agents_under_one_name(mosquitto: Mosquitto, tmp_path: Path) -> None:
    paths = {name: configured(tmp_path, name, mosquitto.url) for name in ("a", "b")}
    with (
        running("run", "--config", paths["a"], log=tmp_path / "log-a"),
        running("run", "--config", paths["b"], log=tmp_path / "log-b"),
    ):
        for name in ("a", "b"):
            wait_for(
                "degraded", lambda name=name: "same mqtt.site" in state_of(tmp_path, name)[1], seconds=120
            )
