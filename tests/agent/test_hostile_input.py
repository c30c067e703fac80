"""Pictures that someone else made, sent by MQTT or put into a folder, cost little memory and time."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge_agent.agent.command_handlers import CommandHandlers
from edge_agent.core.commands import EnrolCommand
from edge_agent.core.config import QualitySettings
from edge_agent.core.errors import InputError
from edge_agent.embed.quality import QualityGate
from tests.agent.hostile import peak_mib
from tests.agent.test_agent import Listener, ask, config, running, wait_for
from tests.conftest import REPO, Mosquitto
from tests.core.test_pictures import HOSTILE, PLAIN, bomb, damaged

GROWTH_MIB = 320
"""Bound of the growth of resident memory, as docs/operations.md states it."""


class Tasks:
    """Stands for the driving thread; runs nothing, and counts what it is asked for."""

    def __init__(self) -> None:
        self.calls = 0

    def call(self, _task: object) -> None:
        self.calls += 1
        raise InputError("reached the driving thread")


def handlers(tasks: Any) -> CommandHandlers:
    nothing: Any = SimpleNamespace()
    gate = QualityGate(QualitySettings(min_sharpness=0))
    return CommandHandlers(
        gallery=nothing, identifier=nothing, embed=nothing, gate=gate, tasks=tasks,
        erasure=nothing, reload=list, delivery=nothing, state=Path(),
    )  # fmt: skip


def enrol(crop: str, tasks: Tasks) -> str:
    command = EnrolCommand(transaction="1", issued=0.0, name="Ada", crop=crop)
    with pytest.raises(InputError) as found:
        handlers(tasks).enrol(command)
    return str(found.value)


BAD = {
    **{name: make for name, make in HOSTILE.items() if "million" not in name},
    "a damaged jpeg": lambda: damaged(PLAIN, "twelve bytes", np.random.default_rng(0)),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_picture_is_answered_without_the_driving_thread(name: str) -> None:
    tasks = Tasks()
    answer = enrol(base64.b64encode(BAD[name]()).decode(), tasks)
    assert answer.startswith("cannot read crop: it ")
    assert tasks.calls == 0


@pytest.mark.parametrize("crop", ["!", "QUJ", "QUJD\u00e9", "\ud800"])
def test_what_is_not_base64_is_answered(crop: str) -> None:
    assert enrol(crop, Tasks()) == "crop is not base64"


def test_a_good_picture_reaches_the_driving_thread_decoded() -> None:
    tasks = Tasks()
    assert enrol(base64.b64encode(PLAIN).decode(), tasks) == "reached the driving thread"
    assert tasks.calls == 1


def test_the_size_is_read_before_memory_is_taken(tmp_path: Path) -> None:
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
        "from edge_agent.core.pictures import read_picture\n"
        "from edge_agent.core.errors import InputError\n"
        "try: read_picture(sys.argv[1])\n"
        "except InputError as problem: print(problem)"
    )
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(20_000))
    assert path.stat().st_size < 70_000
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert "20000 x 20000 pixels" in done.stdout


@pytest.mark.slow
def test_memory_is_bounded_under_a_thousand_hostile_inputs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.agent.hostile", tmp_path],
        cwd=REPO, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["refused"] > 900
    assert found["ok"] + found["refused"] == 1000
    assert found["grown_mib"] < GROWTH_MIB
    assert done.stderr == "", "a decoder wrote to the terminal"


@pytest.mark.slow
def test_a_running_agent_answers_a_hostile_picture_and_takes_no_memory(
    tmp_path: Path, mosquitto: Mosquitto
) -> None:
    (tmp_path / "crops").mkdir()
    path = config(tmp_path, tmp_path / "crops", once=False, broker=mosquitto.url)
    path.write_text(path.read_text() + 'commands = ["enrol", "stats"]\n')
    crop = base64.b64encode(bomb(20_000)).decode()
    with running("run", "--config", path, log=tmp_path / "log") as agent:
        listener = Listener(mosquitto.port)
        wait_for("the agent", lambda: listener.of("telemetry"))
        before = peak_mib(agent.pid)
        answers = [ask(mosquitto.port, "enrol", name="Ada", crop=crop) for _ in range(5)]
        assert {answer["status"] for answer in answers} == {"error"}
        assert "20000 x 20000 pixels" in str(answers[0])
        assert peak_mib(agent.pid) - before < 50
        assert ask(mosquitto.port, "stats")["status"] == "ok"
        listener.close()
    assert "stuck" not in (tmp_path / "log").read_text()
