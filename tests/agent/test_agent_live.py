"""The agent among real neighbours: RTSP cameras that fail, an upstream detector, a person at the gallery."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.agent.test_agent import (
    Listener,
    command,
    config,
    events,
    listener,
    pictures,
    put,
    put_all,
    running,
    wait_for,
)
from tests.conftest import Mosquitto
from tests.source.test_source_stream import serving

__all__ = ["listener", "pictures"]  # fixtures

LOGIN = "operator:dont-tell"


def camera_states(listener: Listener, camera: str) -> list[str]:
    return [message["data"]["state"] for message in listener.of(f"/camera/{camera}/status")]  # type: ignore[index]


def agent_states(listener: Listener) -> list[str]:
    """The status messages of the agent, in order."""
    return [
        json.loads(payload)["data"]["state"]
        for topic, payload in list(listener.messages)
        if topic.split("/")[4:] == ["status"]
    ]


def alerts(listener: Listener) -> list[bool]:
    """Whether a camera is lost, as the alerts said one after the other."""
    return [message["data"]["active"] for message in listener.of("alert/camera_lost")]  # type: ignore[index]


def telemetry(listener: Listener) -> list[dict[str, Any]]:
    return [message["data"] for message in listener.of("/telemetry")]  # type: ignore[misc]


def cameras_config(tmp_path: Path, cameras: dict[str, str], broker: str, *more: str) -> Path:
    path = tmp_path / "config.toml"
    lines = [f'state_dir = "{tmp_path / "state"}"']
    for name, url in cameras.items():
        lines += ["[[sources]]", f'id = "{name}"', f'url = "{url}"', "read_timeout_ms = 500",
                  "open_timeout_ms = 5000"]  # fmt: skip
    lines += [
        "[detector]", 'kind = "none"',
        "[engine]", 'model = "colour-stripes"', "threads = 1",
        "[telemetry]", "interval_s = 0.5", "jtop = false",
        "[mqtt]", 'site = "lab"', 'device = "dev1"', f'broker = "{broker}"', *more,
    ]  # fmt: skip
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_camera_frozen_killed_and_restarted_while_another_goes_on(
    tmp_path: Path, mosquitto: Mosquitto, listener: Listener
) -> None:
    log, file = tmp_path / "log", tmp_path / "events.jsonl"
    size = ("--width", "64", "--height", "160", "--fps", "5")
    with (
        serving("--mount", "/a", "--login", LOGIN, *size) as troubled,
        serving("--mount", "/b", *size) as steady,
    ):
        cameras = {"a": troubled.url("/a", f"{LOGIN}@"), "b": steady.url("/b")}
        path = cameras_config(tmp_path, cameras, mosquitto.url)
        with running("run", "--config", path, "--events", file, log=log) as process:

            def steady_goes_on() -> None:
                """Both sides of the outage: frames of b in telemetry that came after now."""
                known = len(telemetry(listener))
                wait_for(
                    "frames of b",
                    lambda: any(t["frames_per_s"].get("b", 0) > 0 for t in telemetry(listener)[known + 1 :]),
                )

            def state_of_a(state: str, seconds: float = 60.0) -> float:
                began = time.monotonic()
                wait_for(f"a to be {state}", lambda: camera_states(listener, "a")[-1:] == [state], seconds)
                return time.monotonic() - began

            state_of_a("online")
            wait_for("b to be online", lambda: camera_states(listener, "b")[-1:] == ["online"])
            before = len(camera_states(listener, "b"))
            wait_for("the agent to be online", lambda: agent_states(listener)[-1] == "online")
            for outage, repair in ((troubled.freeze, troubled.thaw), (troubled.kill, troubled.start)):
                outage()
                noticed = state_of_a("reconnecting")
                wait_for("degraded", lambda: agent_states(listener)[-1] == "degraded")
                steady_goes_on()
                assert telemetry(listener)[-1]["state"] == "degraded"
                if repair == troubled.start:
                    state_of_a("offline", 120)
                    wait_for("the alert", lambda: alerts(listener) == [True])
                repair()
                back = state_of_a("online", 150)
                wait_for("online", lambda: agent_states(listener)[-1] == "online")
                print(f"noticed after {noticed:.1f} s, back {back:.1f} s after the repair")
            wait_for("its end", lambda: alerts(listener) == [True, False])
            assert len(camera_states(listener, "b")) == before
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
    reasons = [message["data"]["reason"] for message in listener.of("/camera/a/status")]  # type: ignore[index]
    assert any("recovered after" in reason for reason in reasons)
    assert agent_states(listener)[-2:] == ["stopping", "offline"]
    everything = log.read_bytes() + file.read_bytes() + repr(listener.messages).encode()
    kept = [found for found in (tmp_path / "state").rglob("*") if found.is_file()]
    everything += b"".join(found.read_bytes() for found in kept)
    assert b"dont-tell" not in everything
    assert b"operator" not in everything


def test_after_a_kill_the_broker_publishes_the_will_and_birth_is_retained(
    tmp_path: Path, mosquitto: Mosquitto, listener: Listener
) -> None:
    crops = tmp_path / "crops"
    crops.mkdir()
    path = config(tmp_path, crops, once=False, broker=mosquitto.url)
    with running("run", "--config", path, log=tmp_path / "log") as process:
        wait_for("telemetry", lambda: len(telemetry(listener)) >= 3)
        later = Listener(mosquitto.port)  # a later subscriber gets the retained messages
        try:
            wait_for("info", lambda: later.of("/info") and agent_states(later) == ["online"])
        finally:
            later.close()
        process.kill()
        wait_for("the will", lambda: agent_states(listener)[-1] == "offline")
    reported = [json.loads(p) for t, p in listener.messages if t == "edge/v1/lab/dev1/status"]
    assert len({message["session"] for message in reported}) == 1
    assert reported[-1]["data"]["reason"] == "connection lost"
    (info,) = {json.dumps(message["data"], sort_keys=True) for message in listener.of("/info")}
    assert json.loads(info)["cameras"] == [{"camera": "yard", "kind": "crops", "name": None}]
    check_telemetry(telemetry(listener))


def check_telemetry(reported: list[dict[str, Any]]) -> None:
    for before, after in itertools.pairwise(reported):
        assert before["uptime_s"] < after["uptime_s"]
    for reading in reported:
        assert reading["state"] == "online"
        assert 10e6 < reading["process_memory_bytes"] < 4e9
        assert 0 < reading["memory_used_bytes"] <= reading["memory_total_bytes"]
        assert reading["disk_free_bytes"] > 0
        assert reading["cpu_percent"] is None or 0 <= reading["cpu_percent"] <= 100
        assert all(-40 < value < 150 for value in reading["temperatures_c"].values())
        assert reading["identities"] == reading["outbox_rows"] == reading["crops_per_s"] == 0
        assert reading["outbox_bytes"] == reading["outbox_parked"] == 0
        assert reading["source_failures"] == {}


# ---- an upstream detector ---------------------------------------------------------------------------------

BOX = (100, 40, 164, 168)
RATE = 10
BEGIN = 1_700_000_000.0


def person_video(path: Path, frames: int, crops: list[bytes]) -> Path:
    """A person stands in front of a grey wall."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), RATE, (320, 240))
    shown = [cv2.imdecode(np.frombuffer(crop, np.uint8), cv2.IMREAD_COLOR) for crop in crops]
    x1, y1, x2, y2 = BOX
    for n in range(frames):
        frame = np.full((240, 320, 3), 110, np.uint8)
        frame[y1:y2, x1:x2] = shown[n % len(shown)]
        writer.write(frame)
    writer.release()
    return path


def own(frame: int) -> str:
    return json.dumps({"camera": "front", "frame": frame, "size": [640, 480],
                       "boxes": [[2 * v for v in BOX]], "scores": [0.9]})  # fmt: skip


def deepstream(frame: int) -> str:
    moment = datetime.fromtimestamp(BEGIN + (frame - 1) / RATE, timezone.utc)
    left, top, right, bottom = BOX
    stamp = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps({"version": "4.0", "id": str(frame + 7000), "@timestamp": stamp, "sensorId": "front",
                       "objects": [f"7|{left}|{top}|{right}|{bottom}|Person"]})  # fmt: skip


@contextlib.contextmanager
def upstream(listener: Listener, message: Callable[[int], str], first: int, count: int) -> Iterator[None]:
    """Publishes one message for each frame, at the rate of the video."""
    stop = threading.Event()

    def publish() -> None:
        for frame in range(first, first + count):
            listener.publish("detections/front", message(frame))
            if stop.wait(1 / RATE):
                return

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.slow
@pytest.mark.parametrize(("form", "message"), [("edge-agent", own), ("deepstream", deepstream)])
def test_boxes_of_an_upstream_detector(
    tmp_path: Path,
    pictures: dict[int, list[bytes]],
    mosquitto: Mosquitto,
    listener: Listener,
    form: str,
    message: Callable[[int], str],
) -> None:
    video = person_video(tmp_path / "front.avi", 80, pictures[2])
    path = tmp_path / "config.toml"
    path.write_text(
        f'state_dir = "{tmp_path / "state"}"\n[[sources]]\nid = "hall"\nurl = "{video}"\n'
        f"realtime = true\nstart_time = {BEGIN}\n"
        f'[detector]\nkind = "external"\nexternal_topics = ["detections/#"]\nexternal_format = "{form}"\n'
        'external_cameras = { front = "hall" }\nexternal_wait_ms = 500\n'
        '[engine]\nmodel = "colour-stripes"\nthreads = 1\n'
        f'[mqtt]\nbroker = "{mosquitto.url}"\nsite = "lab"\ndevice = "dev1"\n'
    )
    with running("run", "--config", path, "--json", log=tmp_path / "log") as process:
        wait_for("the first frame", lambda: camera_states(listener, "hall") == ["online"])
        with upstream(listener, message, first=10, count=70):
            assert process.wait(60) == 0
    wait_for("somebody", lambda: listener.of("identity/enrolled"))
    (event,) = listener.of("identity/enrolled")
    data: Any = event["data"]
    assert data["camera"] == "hall"
    assert np.allclose(data["bbox"], [BOX[0] / 320, BOX[1] / 240, BOX[2] / 320, BOX[3] / 240], atol=0.02)
    assert data["model"]["name"] == "colour-stripes"


# ---- a person at the gallery ------------------------------------------------------------------------------


def gallery(*arguments: object) -> Any:
    done = subprocess.run(
        command("gallery", *arguments, "--json"), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_watchlist_names_its_people_and_the_gallery_can_be_changed_during_the_run(
    tmp_path: Path, pictures: dict[int, list[bytes]]
) -> None:
    crops, reported, log = tmp_path / "crops", tmp_path / "events.jsonl", tmp_path / "log"
    path = config(tmp_path, crops, once=False)
    with path.open("a") as more:
        more.write('[identify]\nenrolment = "watchlist"\nthreshold = 0.9\n')
    shots = []
    for n, content in enumerate(pictures[1][:4]):
        shots.append(tmp_path / f"ada-{n}.png")
        shots[-1].write_bytes(content)
    enrolled = gallery("enrol", "Ada", *shots, "--config", path)
    assert (enrolled["name"], enrolled["exemplars"]) == ("Ada", 4)

    put_all(crops, pictures)
    with running("run", "--config", path, "--events", reported, log=log) as process:
        wait_for("Ada", lambda: events(reported, "matched"))
        assert {e["data"]["name"] for e in events(reported, "matched")} == {"Ada"}  # type: ignore[index]
        assert not events(reported, "enrolled")

        # While the agent runs: another person joins, is renamed, merged with Ada, and forgotten.
        bob = tmp_path / "bob.png"
        bob.write_bytes(pictures[3][0])
        gallery("enrol", "Bob", bob, "--config", path)
        assert sorted(one["name"] for one in gallery("list", "--config", path)) == ["Ada", "Bob"]
        put(crops, pictures, 2000.0, {23: 3})
        wait_for("Bob", lambda: any(e["data"]["name"] == "Bob" for e in events(reported, "matched")))  # type: ignore[index]
        gallery("name", "Bob", "Robert", "--config", path)
        assert gallery("show", "Robert", "--config", path)["exemplars"] >= 1
        put(crops, pictures, 3000.0, {33: 3})
        wait_for(
            "Robert",
            lambda: any(e["data"]["name"] == "Robert" for e in events(reported, "matched")),  # type: ignore[index]
        )
        gallery("merge", "Ada", "Robert", "--yes", "--config", path)
        assert [one["name"] for one in gallery("list", "--config", path)] == ["Ada"]
        gallery("forget", "Ada", "--yes", "--config", path)
        assert gallery("list", "--config", path) == []
        count = len(events(reported, "matched"))
        put(crops, pictures, 4000.0, {41: 1})
        put(crops, pictures, 4100.0, {42: 0})
        wait_for("the crops to be read", lambda: crops_read(tmp_path) == len(list(crops.glob("*.png"))))
        assert len(events(reported, "matched")) == count
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert "Traceback" not in log.read_text()


def crops_read(tmp_path: Path) -> int:
    database = sqlite3.connect(tmp_path / "state" / "crops-yard.sqlite")
    try:
        return int(database.execute("SELECT count(*) FROM crops").fetchone()[0])
    finally:
        database.close()


# ---- for long ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_memory_does_not_grow(
    tmp_path: Path, pictures: dict[int, list[bytes]], mosquitto: Mosquitto, listener: Listener
) -> None:
    video = person_video(tmp_path / "long.avi", 3000, pictures[0])
    path = tmp_path / "config.toml"
    path.write_text(
        f'state_dir = "{tmp_path / "state"}"\n[[sources]]\nid = "hall"\nurl = "{video}"\n'
        '[detector]\nkind = "none"\n[quality]\nmin_aspect = 0.1\n'
        '[engine]\nmodel = "colour-stripes"\nthreads = 1\n[telemetry]\ninterval_s = 0.2\njtop = false\n'
        f'[mqtt]\nbroker = "{mosquitto.url}"\nsite = "lab"\ndevice = "dev1"\n'
    )
    with running("run", "--config", path, "--json", log=tmp_path / "log") as process:
        assert process.wait(300) == 0
    assert json.loads((tmp_path / "log").read_text().splitlines()[-1])["crops"] > 2900
    memory = [reading["process_memory_bytes"] for reading in telemetry(listener)]
    assert len(memory) >= 8
    early, late = memory[len(memory) // 4], memory[-1]
    print(f"memory: {early / 1e6:.1f} MB early, {late / 1e6:.1f} MB at the end, {len(memory)} readings")
    assert late - early < 30e6
