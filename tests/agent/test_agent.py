"""The whole agent, as a process: crops in, identity events out over a real broker."""

from __future__ import annotations

import base64
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import datetime, timezone
from pathlib import Path

import cv2
import numpy as np
import paho.mqtt.client as mqtt
import pytest

from edge_agent.core.codec import decode, envelope_schema
from edge_agent.offline.synthetic.camera import camera
from edge_agent.offline.synthetic.crops import render_crop
from edge_agent.offline.synthetic.identity import identity
from tests.conftest import Mosquitto, find_free_port, started

PEOPLE = 5
VISIT = 14
"""Crops of one visit."""


@pytest.fixture(scope="session")
def pictures() -> dict[int, list[bytes]]:
    """Crops of a few rendered people, as PNG."""
    random = np.random.default_rng(5)
    view = camera(3)
    shown = {}
    for person in range(PEOPLE):
        crops = [render_crop(identity(40 + person), view, random, (128, 64), hour=12.0) for _ in range(VISIT)]
        shown[person] = [cv2.imencode(".png", crop)[1].tobytes() for crop in crops]
    return shown


def put(folder: Path, pictures: dict[int, list[bytes]], start: float, tracks: dict[int, int]) -> None:
    """One visit: the people of `tracks` (track: person) walk past together from `start` on."""
    folder.mkdir(exist_ok=True)
    for n in range(VISIT):
        for track, person in tracks.items():
            left = 100 * track % 1000
            about = {"camera": "hall", "time": start + n / 5, "frame": int(start * 5) + n, "track": track,
                     "box": [left, 50, left + 64, 178]}  # fmt: skip
            name = f"{start:08.1f}-{n:03}-{track:03}"
            (folder / f"{name}.json").write_text(json.dumps(about))
            hidden = folder / f".{name}.png"
            hidden.write_bytes(pictures[person][n])
            hidden.rename(folder / f"{name}.png")


def config(tmp_path: Path, crops: Path, *, once: bool = True, broker: str | None = None) -> Path:
    path = tmp_path / "config.toml"
    lines = [
        f'state_dir = "{tmp_path / "state"}"',
        "[[sources]]", f'url = "crops:{crops}"', 'id = "yard"', f"once = {str(once).lower()}",
        "poll_seconds = 0.1", "settle_seconds = 0.0",
        "[engine]", 'model = "colour-stripes"', "threads = 1",
        "[telemetry]", "interval_s = 0.5",
        "[mqtt]", 'site = "lab"', 'device = "dev1"',
    ]  # fmt: skip
    if broker:
        lines.append(f'broker = "{broker}"')
    path.write_text("\n".join(lines) + "\n")
    return path


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "edge_agent", *map(str, arguments)]


def run(*arguments: object, timeout: float = 100) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=timeout, check=False)


def running(*arguments: object, log: Path) -> AbstractContextManager[subprocess.Popen[bytes]]:
    return started(command(*arguments), log=log)


def events(path: Path, *names: str) -> list[dict[str, object]]:
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [event for event in found if not names or event["type"].split(".")[2] in names]


def wait_for(what: str, condition: object, seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)


class Listener:
    """A separate subscriber to everything."""

    def __init__(self, port: int, topic: str = "edge/v1/#", user: tuple[str, str] | None = None) -> None:
        self.messages: list[tuple[str, bytes]] = []
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self._client.on_message = lambda _c, _u, message: self.messages.append(
            (message.topic, message.payload)
        )
        self._ready = threading.Event()
        self._client.on_subscribe = lambda *_: self._ready.set()
        if user is not None:
            self._client.username_pw_set(*user)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        self._client.subscribe(topic, qos=1)
        assert self._ready.wait(10)

    def of(self, *parts: str) -> list[dict[str, object]]:
        return [json.loads(p) for t, p in list(self.messages) if "/".join(parts) in t]

    def publish(self, topic: str, payload: str) -> None:
        self._client.publish(topic, payload)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def listener(mosquitto: Mosquitto) -> Iterator[Listener]:
    found = Listener(mosquitto.port)
    yield found
    found.close()


def put_all(folder: Path, pictures: dict[int, list[bytes]], start: float = 1000.0) -> None:
    put(folder, pictures, start, {1 + p: p for p in range(PEOPLE)})


def test_people_are_recognised_when_they_come_back(
    tmp_path: Path, pictures: dict[int, list[bytes]], mosquitto: Mosquitto, listener: Listener
) -> None:
    crops = tmp_path / "crops"
    put_all(crops, pictures)
    put(crops, pictures, 2000.0, {21: 1, 22: 3})
    mot, final, file = tmp_path / "mot.txt", tmp_path / "final.txt", tmp_path / "events.jsonl"
    done = run(
        "run", "--config", config(tmp_path, crops, broker=mosquitto.url), "--mot", mot,
        "--mot-final", final, "--events", file, "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["identities"] == PEOPLE
    assert summary["undelivered"] == 0

    wait_for("all events", lambda: len(listener.of("identity")) >= summary["decisions"])
    enrolled = {e["data"]["track_id"]: e["data"]["identity_id"] for e in listener.of("identity/enrolled")}
    matched = {e["data"]["track_id"]: e["data"]["identity_id"] for e in listener.of("identity/matched")}
    assert sorted(enrolled) == [1, 2, 3, 4, 5]
    assert matched == {21: enrolled[2], 22: enrolled[4]}

    # The contract: every payload fits its schema, numbers have no holes, order is kept.
    from jsonschema import Draft202012Validator

    for topic, payload in listener.messages:
        event = decode(payload)
        Draft202012Validator(envelope_schema(event.kind)).validate(json.loads(payload))
        assert topic.startswith("edge/v1/lab/dev1/")
    numbered = [e["seq"] for e in listener.of("identity")]
    assert numbered == sorted(numbered)
    assert len({e["id"] for e in listener.of("identity")}) == len(numbered) == summary["decisions"]
    assert {e["id"] for e in events(file)} >= {e["id"] for e in listener.of("identity")}
    assert [e["data"]["state"] for e in listener.of("/status") if "camera" not in e["data"]][-1] == "offline"
    assert listener.of("/info")[0]["data"]["model"]["name"] == "colour-stripes"
    assert listener.of("telemetry")

    # MOT rows carry the identity, as known at the time and in the end.
    last = [line.split(",") for line in final.read_text().splitlines()]
    assert len(last) == VISIT * (PEOPLE + 2)
    assert {row[1] for row in last} == {str(n) for n in range(1, PEOPLE + 1)}
    known = [line.split(",") for line in mot.read_text().splitlines()]
    assert 0 < len(known) < len(last)
    assert all(row[7:] == ["-1", "-1", "-1"] for row in known)


def test_kill_in_the_middle_and_start_again(tmp_path: Path, pictures: dict[int, list[bytes]]) -> None:
    crops, file = tmp_path / "crops", tmp_path / "events.jsonl"
    put_all(crops, pictures)
    path = config(tmp_path, crops, once=False)
    log = tmp_path / "log"
    with running("run", "--config", path, "--events", file, log=log) as agent:
        wait_for("people to be enrolled", lambda: len(events(file, "enrolled")) >= 3)
        os.kill(agent.pid, signal.SIGKILL)
        agent.wait(10)
    first = events(file)
    database = sqlite3.connect(tmp_path / "state" / "gallery.db")
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()

    put(crops, pictures, 2000.0, {50 + p: p for p in range(PEOPLE)})
    again = tmp_path / "again.jsonl"
    with running("run", "--config", path, "--events", again, log=log) as agent:
        wait_for("everybody to leave", lambda: len(events(again, "matched")) >= 3)
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(10) == 0
    known = {e["data"]["identity_id"] for e in first if e["type"] == "edge.identity.enrolled.v1"}
    back = {e["data"]["identity_id"] for e in events(again, "matched")}
    assert len(known & back) >= 3
    assert not {e["id"] for e in first} & {e["id"] for e in events(again)}


def test_a_broker_that_comes_late_gets_everything(
    tmp_path: Path, pictures: dict[int, list[bytes]], mosquitto: Mosquitto
) -> None:
    mosquitto.stop()
    crops, file = tmp_path / "crops", tmp_path / "events.jsonl"
    put_all(crops, pictures)
    path = config(tmp_path, crops, once=False, broker=mosquitto.url)
    with running("run", "--config", path, "--events", file, log=tmp_path / "log") as agent:
        wait_for("people to be enrolled", lambda: len(events(file, "enrolled")) >= PEOPLE)
        mosquitto.start()
        listener = Listener(mosquitto.port)
        try:
            wait_for("the events", lambda: len(listener.of("identity/enrolled")) >= PEOPLE)
        finally:
            listener.close()
        agent.send_signal(signal.SIGINT)
        assert agent.wait(10) == 0
    assert {e["id"] for e in listener.of("identity/enrolled")} == {e["id"] for e in events(file, "enrolled")}


def test_a_gallery_of_another_model_is_refused(tmp_path: Path, pictures: dict[int, list[bytes]]) -> None:
    crops = tmp_path / "crops"
    put_all(crops, pictures)
    path = config(tmp_path, crops)
    assert run("run", "--config", path).returncode == 0
    done = run("run", "--config", path, "--preprocess", "imagenet")
    assert done.returncode == 1
    assert "gallery" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_crop_folder_with_broken_pictures(tmp_path: Path, pictures: dict[int, list[bytes]]) -> None:
    crops = tmp_path / "crops"
    put_all(crops, pictures)
    (crops / "00000.5-000-001.png").write_bytes(b"no picture")
    (crops / "00000.6-000-001.png").write_bytes(pictures[0][0][:200])
    os.utime(crops / "00000.6-000-001.png", (1.0, 1.0))
    (crops / "notes.txt").write_text("not a crop")
    done = run("run", "--config", config(tmp_path, crops), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["identities"] == PEOPLE


def ask(port: int, verb: str, **fields: object) -> dict[str, object]:
    """Send a command and wait for its answer."""
    answers: list[dict[str, object]] = []
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    client.on_message = lambda _c, _u, message: answers.append(json.loads(message.payload))
    ready = threading.Event()
    client.on_subscribe = lambda *_: ready.set()
    client.connect("127.0.0.1", port)
    client.loop_start()
    try:
        client.subscribe(f"edge/v1/lab/dev1/cmd/{verb}/result", qos=1)
        assert ready.wait(10)
        issued = datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")
        wanted = {"transaction": f"{verb}-{time.time_ns()}", "issued": issued, **fields}
        client.publish(f"edge/v1/lab/dev1/cmd/{verb}", json.dumps(wanted), qos=1)
        wait_for(f"the answer to {verb}", lambda: answers, 30)
        return answers[0]["data"]  # type: ignore[return-value]
    finally:
        client.disconnect()
        client.loop_stop()


def left_in(crops: Path) -> dict[int, int]:
    """Files by track; a picture and its JSON are two."""
    found: dict[int, int] = {}
    for path in crops.iterdir():
        track = int(path.stem.rpartition("-")[2])
        found[track] = found.get(track, 0) + 1
    return found


def test_commands_over_mqtt(
    tmp_path: Path, pictures: dict[int, list[bytes]], mosquitto: Mosquitto, listener: Listener
) -> None:
    crops = tmp_path / "crops"
    put_all(crops, pictures)
    path = config(tmp_path, crops, once=False, broker=mosquitto.url)
    port = find_free_port()
    extra = 'commands = ["name", "merge", "forget", "stats", "enrol", "reload"]\nhome_assistant = true\n'
    text = path.read_text().replace("interval_s = 0.5", f"interval_s = 0.5\nmetrics_port = {port}")
    path.write_text(text + extra)
    with running("run", "--config", path, log=tmp_path / "log") as agent:
        wait_for("people to be enrolled", lambda: len(listener.of("identity/enrolled")) >= PEOPLE)
        people = [e["data"]["identity_id"] for e in listener.of("identity/enrolled")]

        named = ask(mosquitto.port, "name", identity_id=people[0], name="Anna")
        assert named["status"] == "ok", named
        twice = ask(mosquitto.port, "name", identity_id=people[1], name="Anna")
        assert twice["status"] == "error"
        crop = base64.b64encode(pictures[1][3]).decode()
        enrolled = ask(mosquitto.port, "enrol", name="Berta", crop=crop)
        assert enrolled["status"] == "ok", enrolled
        merged = ask(
            mosquitto.port, "merge", identity_id=enrolled["data"]["identity_id"], absorbed_id=people[1]
        )
        assert merged["status"] == "ok", merged
        shown = {e["data"]["identity_id"]: e["data"]["track_id"] for e in listener.of("identity/enrolled")}
        forgotten = ask(mosquitto.port, "forget", identity_id=people[2])
        assert forgotten["data"]["exemplars"] >= 1
        assert forgotten["data"]["pictures"] == VISIT
        assert left_in(crops) == {track: 2 * VISIT for track in shown.values() if track != shown[people[2]]}
        stats = ask(mosquitto.port, "stats")
        assert stats["data"]["gallery"]["identities"] == PEOPLE - 1
        refused = ask(mosquitto.port, "recalibrate")
        assert (refused["status"], refused["code"]) == ("error", "not-allowed")
        assert ask(mosquitto.port, "reload")["data"] == {"restart_required": []}

        wait_for("all changes of people", lambda: len(listener.of("person/")) >= 4)
        changes = [(event["data"]["kind"], event["data"]["identity_id"]) for event in listener.of("person/")]
        berta = enrolled["data"]["identity_id"]
        assert changes == [
            ("named", people[0]),
            ("named", berta),
            ("merged", berta),
            ("forgotten", people[2]),
        ]

        telemetry = [message["data"] for message in listener.of("telemetry")]
        assert telemetry[-1]["connection"] == "connected"
        assert telemetry[-1]["connects"] == 1
        assert any({"detect", "embed", "decide"} <= data["latency_ms"].keys() for data in telemetry)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
            assert "edge_agent_stage_seconds_count" in page.read().decode()
        seen = Listener(mosquitto.port, "homeassistant/#")
        wait_for("the announcement", lambda: seen.messages)
        seen.close()

        put(crops, pictures, 2000.0, {71: 0, 72: 1})
        wait_for("Anna", lambda: "Anna" in [e["data"]["name"] for e in listener.of("identity/matched")])
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(10) == 0
    audit = [json.loads(line) for line in (tmp_path / "state" / "audit.jsonl").read_text().splitlines()]
    assert [line["action"] for line in audit] == ["name", "enrol", "merge", "forget"]
    assert not any(word in json.dumps(audit) for word in (*people, "Anna"))


def test_stored_data_is_encrypted_and_erased_with_the_person(
    tmp_path: Path, pictures: dict[int, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No broker is there, so events wait; the agent is stopped when a person is forgotten."""
    pytest.importorskip("sqlcipher3", reason="extra `encrypt` is not installed")
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / "storage__key").write_text("0f" * 32)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    crops, state, reported = tmp_path / "crops", tmp_path / "state", tmp_path / "events.jsonl"
    put_all(crops, pictures)
    path = config(tmp_path, crops, once=False, broker=f"mqtt://127.0.0.1:{find_free_port()}")
    with running("run", "--config", path, "--events", reported, log=tmp_path / "log") as agent:
        wait_for("people to be enrolled", lambda: len(events(reported, "enrolled")) >= PEOPLE)
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(20) == 0
    enrolled = {e["data"]["identity_id"]: e["data"]["track_id"] for e in events(reported, "enrolled")}
    kept = b"".join(file.read_bytes() for file in state.glob("*.db*"))
    assert not any(opaque.encode() in kept for opaque in enrolled)

    gone = next(iter(enrolled))
    done = run("gallery", "forget", gone, "--yes", "--config", path)
    assert done.returncode == 0, done.stderr
    assert "waiting event(s) and 14 picture(s) removed" in done.stdout
    assert "\n0 waiting" not in done.stdout
    assert left_in(crops) == {track: 2 * VISIT for who, track in enrolled.items() if who != gone}
    rest = run("gallery", "list", "--json", "--config", path)
    assert {one["id"] for one in json.loads(rest.stdout)} == enrolled.keys() - {gone}
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    refused = run("gallery", "list", "--config", path)
    assert refused.returncode == 1
    assert "storage__key" in refused.stderr
