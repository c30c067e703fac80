"""State folders, configuration and calibrations written by commit 0ed139b open under the present code.

`make.py` in `fixtures/from-0ed139b` wrote the files and the expected answers (`expected.json`) with it. These
tests use the command line only, so they do not depend on module paths.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest

from tests.conftest import REPO, Mosquitto

WRITTEN = REPO / "tests" / "fixtures" / "from-0ed139b"
PLACE = "/var/lib/edge-agent"
"""Placeholder in `device.toml` for the folder of the copy."""
ROOT = "edge/v1/plant-1/gate-a"


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """Answers of the old code."""
    return json.loads((WRITTEN / "expected.json").read_text())


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """Copy the files of the device and restore the pictures' modification times, which git does not keep."""
    folder = tmp_path / "device"
    shutil.copytree(WRITTEN, folder)
    settings = folder / "device.toml"
    settings.write_text(settings.read_text().replace(PLACE, str(folder)))
    for picture in (folder / "crops").glob("*.jpg"):
        begin = int(picture.name.partition("-")[0])
        os.utime(picture, (begin, begin))
    return folder


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "edge_agent", *map(str, words)]


def call(*words: object) -> str:
    done = subprocess.run(command(*words), cwd=REPO, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def answer_of(*words: object) -> Any:
    return json.loads(call(*words, "--json"))


def known(answer: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of an answer that the old code also had; new keys are allowed."""
    return {key: value for key, value in answer.items() if key in before}


def flat(values: object, prefix: str = "") -> dict[str, Any]:
    """Flatten to dotted keys; list entries by index."""
    pairs = dict(enumerate(values)) if isinstance(values, list) else values
    if not isinstance(pairs, dict) or not pairs:
        return {prefix: values}
    found: dict[str, Any] = {}
    for key, value in pairs.items():
        found |= flat(value, f"{prefix}.{key}".lstrip("."))
    return found


def figures(text: str) -> set[str]:
    """Return the words of a text that contain digits: counts, thresholds, precisions, ids."""
    return {word for word in re.findall(r"[\w.]+", text) if any(letter.isdigit() for letter in word)}


# --- settings, engines ----------------------------------------------------------------------------


def test_settings_are_read_as_before(expected: dict[str, Any]) -> None:
    before = flat(expected["settings"])
    before["sources.0.url"] = before["sources.0.url"].replace("?token=***", "?***")  # keys are masked too
    assert known(flat(answer_of("config", "show", "--config", WRITTEN / "config.toml")), before) == before


def test_the_calibration_fits_and_can_be_rolled_back(device: Path, expected: dict[str, Any]) -> None:
    config = ("--config", device / "device.toml")
    engines = answer_of("engines", "list", *config)
    assert known(engines, expected["engines"]) == expected["engines"]

    answer = json.loads(call("doctor", "--json", *config))
    findings = {one["name"]: one for one in answer["findings"]}
    for name, before in expected["doctor"].items():
        assert findings[name]["state"] == before["state"]
        assert figures(before["found"]) <= figures(findings[name]["found"])

    call("engines", "rollback", "--yes", *config)
    active = answer_of("engines", "list", *config)["active"]
    before = expected["engines"]["active"]
    assert (active["current"], active["previous"]) == (before["previous"], before["current"])


# --- the gallery ----------------------------------------------------------------------------------


def test_the_gallery_has_every_identity(device: Path, expected: dict[str, Any]) -> None:
    config = ("--config", device / "device.toml")
    people, then = answer_of("gallery", "list", *config), expected["gallery"]
    assert [one["id"] for one in people] == [one["id"] for one in then]
    assert [known(one, before) for one, before in zip(people, then, strict=True)] == then
    stats = answer_of("gallery", "stats", *config)
    assert known(stats, expected["stats"]) == expected["stats"]
    for number, before in expected["shown"].items():
        who = (
            before["former_ids"][0] if before["former_ids"] else number
        )  # a merged identity is found by both ids
        assert known(answer_of("gallery", "show", who, *config), before) == before


def test_a_change_is_appended_to_the_audit_file(device: Path) -> None:
    config = ("--config", device / "device.toml")
    before = (device / "state" / "audit.jsonl").read_text()
    assert answer_of("gallery", "name", "3", "Mary", *config)["name"] == "Mary"
    assert answer_of("gallery", "show", "Mary", *config)["number"] == 3
    after = (device / "state" / "audit.jsonl").read_text()
    assert after.startswith(before)
    line = json.loads(after.removeprefix(before))
    assert (line["action"], line["by"]) == ("name", "command line")


def test_the_archive_is_imported(device: Path, tmp_path: Path, expected: dict[str, Any]) -> None:
    fresh = ("--state", tmp_path / "fresh")
    everybody = len(expected["gallery"])
    assert answer_of("gallery", "import", device / "people.zip", *fresh) == {"added": everybody, "skipped": 0}
    kept = ("id", "name", "kind", "created", "last_seen", "ttl_s", "exemplars", "sightings")
    people = answer_of("gallery", "list", *fresh)
    assert [[one[key] for key in kept] for one in people] == [
        [one[key] for key in kept] for one in expected["gallery"]
    ]
    (merged,) = (one for one in expected["shown"].values() if one["former_ids"])
    shown = answer_of("gallery", "show", merged["former_ids"][0], *fresh)
    assert [shown[key] for key in ("id", "embeddings")] == [merged[key] for key in ("id", "embeddings")]
    again = answer_of("gallery", "import", device / "people.zip", "--config", device / "device.toml")
    assert again == {"added": 0, "skipped": everybody}


# --- the agent ------------------------------------------------------------------------------------


class Subscriber:
    """Collects all messages of the device in order of arrival."""

    def __init__(self, port: int) -> None:
        self.messages: list[tuple[str, dict[str, Any]]] = []
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self._client.on_message = lambda _c, _u, message: self.messages.append(
            (message.topic, json.loads(message.payload))
        )
        ready = threading.Event()
        self._client.on_subscribe = lambda *_: ready.set()
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        self._client.subscribe(f"{ROOT}/#", qos=1)
        assert ready.wait(10)

    def numbered(self) -> list[dict[str, Any]]:
        """Return numbered events with their topics, each once (delivery is at least once)."""
        first: dict[str, dict[str, Any]] = {}
        for topic, event in list(self.messages):
            if "seq" in event:
                first.setdefault(event["id"], {"topic": topic} | event)
        return list(first.values())

    def latest(self, topic: str) -> dict[str, Any]:
        """Return `data` of the last message of a topic."""
        return [event["data"] for name, event in list(self.messages) if name == f"{ROOT}/{topic}"][-1]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@contextlib.contextmanager
def running(device: Path, broker: Mosquitto) -> Iterator[subprocess.Popen[bytes]]:
    words = command("run", "--config", device / "device.toml", "--broker", broker.url)
    with (device / "log").open("wb") as log:
        process = subprocess.Popen(words, cwd=REPO, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


def wait_for(what: str, condition: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + 40
    while not condition():
        assert time.monotonic() < deadline, f"waited for {what}: {log.read_text()}"
        time.sleep(0.05)


def status_of(device: Path) -> dict[str, Any]:
    """Return the status of the running agent after its first telemetry."""
    deadline = time.monotonic() + 20
    while (status := answer_of("status", "--config", device / "device.toml")).get("telemetry") is None:
        assert time.monotonic() < deadline, status
    return status


def test_the_agent_delivers_waiting_events_and_recognises_people(
    device: Path, mosquitto: Mosquitto, expected: dict[str, Any]
) -> None:
    last = expected["waiting"][-1]["seq"]
    subscriber = Subscriber(mosquitto.port)

    def after(detail: str) -> list[dict[str, Any]]:
        return [e for e in subscriber.numbered() if e["seq"] > last and e["topic"] == f"{ROOT}/{detail}"]

    try:
        with running(device, mosquitto) as agent:
            log = device / "log"
            wait_for("two people", lambda: len(after("identity/matched")) >= 2, log)
            wait_for("the gap", lambda: bool(after("gap")), log)
            status = status_of(device)
            agent.send_signal(signal.SIGTERM)
            assert agent.wait(20) == 0, log.read_text()
        wait_for("its end", lambda: subscriber.latest("status")["state"] == "offline", log)
    finally:
        subscriber.close()

    check_delivery(subscriber.numbered(), expected["waiting"])
    check_visit(after("identity/matched"), expected["visit"])
    info = subscriber.latest("info")
    assert known(info["calibration"], expected["calibration"]) == expected["calibration"]
    assert info["model"]["precision"] == expected["calibration"]["precision"]

    runs = json.loads((WRITTEN / "state" / "starts.json").read_text())["runs"]
    assert status["starts"]["former"] == runs
    assert [one["camera"] for one in status["sources"]] == ["yard"]
    assert status["sources"][0]["delivered"] == 6, "crops that were read before are not read again"
    assert status["telemetry"]["identities"] == len(expected["gallery"])
    check_sightings(answer_of("gallery", "list", "--config", device / "device.toml"), expected)


def check_delivery(events: list[dict[str, Any]], waiting: list[dict[str, Any]]) -> None:
    """Waiting events arrive unchanged and in order, numbers continue, a gap event covers erased events."""
    last = waiting[-1]["seq"]
    assert [event for event in events if event["seq"] <= last] == waiting
    later = sorted(event["seq"] for event in events if event["seq"] > last)
    assert later == list(range(last + 1, last + 1 + len(later)))
    (gap,) = (event["data"] for event in events if event["topic"] == f"{ROOT}/gap")
    missing = sorted(set(range(1, last + 1)) - {event["seq"] for event in waiting})
    assert gap["reason"] == "erased"
    assert [(one["first"], one["last"]) for one in gap["ranges"]] == [(n, n) for n in missing]


def check_visit(events: list[dict[str, Any]], visit: list[dict[str, Any]]) -> None:
    """The same identities by the same rule; scores may differ in the last digits between processors."""
    for event, before in zip(events, visit, strict=True):
        data = event["data"] | {"precision": event["data"]["model"]["precision"]}
        assert known(data, before) == before | {"score": pytest.approx(before["score"], abs=2e-3)}


def check_sightings(people: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    """Recognised identities have one more sighting; none was added or removed."""
    came = {one["identity_id"] for one in expected["visit"]}
    seen = {one["id"]: one["sightings"] + (one["id"] in came) for one in expected["gallery"]}
    assert {one["id"]: one["sightings"] for one in people} == seen
