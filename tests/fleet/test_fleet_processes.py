"""An agent, a broker and a server as processes of their own, and the commands beside them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.agent.test_agent import (
    PEOPLE,
    Listener,
    config,
    listener,
    pictures,
    put,
    put_all,
    running,
    wait_for,
)
from tests.conftest import Mosquitto
from tests.fleet import postgres_server
from tests.fleet.server_database import Database
from tests.fleet.test_fleet_commands import command

__all__ = ["listener", "pictures"]  # fixtures


def edge_agent(*words: object, answer: str = "", code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "edge_agent", *map(str, words)],
        input=answer, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def messages(listener: Listener, end: str) -> list[dict[str, Any]]:
    return [json.loads(payload) for topic, payload in list(listener.messages) if topic.endswith(end)]


@pytest.mark.slow
def test_a_fleet_from_the_invitation_to_the_exclusion(
    tmp_path: Path, pictures: dict[int, list[bytes]], mosquitto: Mosquitto, listener: Listener
) -> None:
    crops = tmp_path / "crops"
    put_all(crops, pictures)
    file = config(tmp_path, crops, once=False, broker=mosquitto.url)
    file.chmod(0o600)
    with postgres_server.server() as server:
        database = Database(server, "postgres")
        admin = ("--store", database.address, "--config", file)
        answer = f"{database.password}\n"
        assert "site lab created" in edge_agent("fleet", "init", *admin, answer=answer)
        edge_agent("fleet", "join", "dev1", *admin, "--output", tmp_path, answer=answer)
        taken = edge_agent("fleet", "join", "--from", tmp_path / "dev1.fleet.toml", "--config", file)
        assert "the store takes this device; the site has 0 people" in taken

        def status(code: int = 0) -> dict[str, Any]:
            shown = command(
                "status", "--json", "--config", file, ok=code == 0
            )  # in this process: it is quicker
            return json.loads(shown.stdout)  # type: ignore[no-any-return]

        put(crops, pictures, 2000.0, {21: 1})  # ends the tracks of the first visit
        with running("run", "--config", file, log=tmp_path / "log") as agent:
            wait_for("people at the site", lambda: status()["site"]["people"] == PEOPLE, 90)
            text = edge_agent("fleet", "sync", "--config", file)
            assert "everything is exchanged" in text
            found = status()
            assert (found["agent"]["link"], found["agent"]["pending"]) == ("connected", 0)
            assert found["fleet"] == f"lab@127.0.0.1:{server.port}"
            wait_for("info", lambda: messages(listener, "/info"))
            assert messages(listener, "/info")[-1]["data"]["fleet"] == found["fleet"]
            shown = edge_agent("status", "--config", file)
            assert f"fleet: lab at 127.0.0.1:{server.port}, connected; 0 change(s) to send" in shown
            doctor = json.loads(edge_agent("doctor", "--json", "--config", file))
            (state,) = [one["state"] for one in doctor["findings"] if one["name"] == "fleet"]
            assert state == "ok"
            edge_agent("fleet", "leave", "--yes", "--config", file, code=1)  # the agent runs

            server.kill()
            wait_for("the loss", lambda: status(code=1)["agent"]["link"] == "waiting", 30)
            problem = status(code=1)["problem"]
            assert "it cannot be reached: Connection refused" in problem
            refused = edge_agent("fleet", "sync", "--config", file, code=1)
            assert "0 change(s) are kept and sent later" in refused
            server.start()
            edge_agent("fleet", "sync", "--config", file)
            assert status()["agent"]["link"] == "connected"

            edge_agent("fleet", "leave", "dev1", "--yes", *admin, answer=answer)
            wait_for("the alert", lambda: messages(listener, "/alert/fleet_down"), 30)
            alert = messages(listener, "/alert/fleet_down")[-1]["data"]
            assert alert["active"]
            assert alert["details"]["link"] == "refused"
            assert "does not admit this role" in alert["message"]
            assert database.password not in json.dumps(alert)
            began = time.monotonic()
            os.kill(agent.pid, signal.SIGTERM)
            assert agent.wait(10) == 0
            assert time.monotonic() - began < 5
        secret = (tmp_path / "dev1.fleet.toml").read_text().partition('password = "')[2].partition('"')[0]
        assert len(secret) > 20
        assert secret not in (tmp_path / "log").read_text()
        assert secret not in "".join(str(payload) for _, payload in listener.messages)
