"""The examples work as documented: both subscribers, the access list, and `edge-agent watch`."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.cli.watch import View
from edge_agent.core.codec import encode
from edge_agent.core.events import new_event
from edge_agent.core.presence import PersonData, PresentData
from edge_agent.core.structures import DecisionKind, SourceState, SourceStatus
from edge_agent.deliver.home_people import person_topic
from edge_agent.deliver.publisher import Publisher
from edge_agent.deliver.topics import Topics
from tests.conftest import REPO, Mosquitto, started
from tests.deliver.deliver_fixtures import (
    Listener,
    configured_mosquitto,
    identity,
    outbox_at,
    publishing,
    telemetry,
    until,
)

EXAMPLES = REPO / "examples"


@contextlib.contextmanager
def running(words: list[str], **options: Any) -> Iterator[list[str]]:
    """Lines that a program prints, while it runs."""
    lines: list[str] = []
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True, **options)
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: lines.extend(iter(process.stdout.readline, "")))
    reader.start()
    try:
        yield lines
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(10)
        reader.join(10)
        process.stdout.close()


def wait_for_subscriber(publisher: Publisher) -> None:
    """Wait for a subscriber: the broker then answers with reason code 0 instead of 16."""
    publisher.publish(identity(1))
    assert publisher.drain(30)


def test_python_subscriber(mosquitto: Mosquitto, tmp_path: Path) -> None:
    with (
        running([sys.executable, str(EXAMPLES / "subscriber.py"), mosquitto.url]) as lines,
        outbox_at(tmp_path / "o.db", max_rows=10) as outbox,
        publishing(outbox, mosquitto.url) as publisher,
    ):
        publisher.set_status("online")
        wait_for_subscriber(publisher)
        publisher.publish(identity(2, name="Ada"))
        until(lambda: any("matched Ada" in line for line in lines))
        mosquitto.stop()
        for n in range(30):
            publisher.publish(identity(n + 1))
        mosquitto.start()
        until(lambda: any("lost 20 events: rows" in line for line in lines), seconds=40)
        until(lambda: sum("matched p-0001" in line for line in lines) == 11)
        assert not any("still waiting" in line for line in lines[-1:])


@pytest.mark.parametrize("name", ["subscriber.py", "who_is_where.py"])
def test_python_examples_explain_a_wrong_address(name: str, free_port: int) -> None:
    for address, text in (("127.0.0.1:1883", "usage"), (f"mqtt://127.0.0.1:{free_port}", "refused")):
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / name), address],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        assert (done.returncode, text in done.stderr, done.stderr.count("\n")) == (1, True, 1), done.stderr


def test_shell_subscriber(mosquitto: Mosquitto, tmp_path: Path) -> None:
    if shutil.which("jq") is None or shutil.which("mosquitto_sub") is None:
        pytest.skip("jq or mosquitto_sub is not installed")
    with (
        running(["sh", str(EXAMPLES / "subscriber.sh"), "127.0.0.1", str(mosquitto.port)]) as lines,
        outbox_at(tmp_path / "o.db") as outbox,
        publishing(outbox, mosquitto.url) as publisher,
    ):
        wait_for_subscriber(publisher)
        publisher.publish(identity(2, name="Ada"))
        until(lambda: len(lines) == 2)
        assert "edge/v1/lab/jx01 2 cam1: matched Ada 0.8123" in lines[1]


def test_access_list_lets_a_device_speak_under_its_own_name_only(tmp_path: Path) -> None:
    """With user names in the place of certificates; the certificates are tested in tests/faults."""
    folder = tmp_path / "broker"
    folder.mkdir()
    acl = (EXAMPLES / "mosquitto" / "edge-agent.acl").read_text()
    (folder / "acl").write_text(acl.replace("site1", "lab") + "\nuser tester\ntopic readwrite #\n")
    for user in ("jx01", "jx99", "tester"):
        create = [] if (folder / "users").exists() else ["-c"]
        words = ["mosquitto_passwd", "-b", *create, str(folder / "users"), user, "secret"]
        subprocess.run(words, check=True, capture_output=True)
    lines = "listener {port} 127.0.0.1\nallow_anonymous false\npassword_file {folder}/users"
    with (
        configured_mosquitto(folder, lines + "\nacl_file {folder}/acl") as broker,
        Listener(broker.port, user=("tester", "secret")) as listener,
    ):
        for device, allowed in (("jx01", True), ("jx99", False)):
            url = f"mqtt://{device}:secret@127.0.0.1:{broker.port}"
            with (
                outbox_at(tmp_path / f"{device}.db") as outbox,
                publishing(outbox, url) as publisher,
            ):
                publisher.set_status("online")
                publisher.set_camera_status(SourceStatus("cam1", SourceState.ONLINE, "", time.time()))
                publisher.publish(identity(1))
                data = PersonData("named", "p-0001", name="Ada")
                publisher.publish(new_event("person", data, detail="named", time=time.time()))
                publisher.set_retained(person_topic(Topics("lab", "jx01"), "p-0001"), b"{}")
                until(lambda: outbox.depth.rows == 0 or publisher.counters.refused)
                assert bool(publisher.counters.refused) is not allowed
        sources = {h.message["session"] for h in listener.heard if h.message}
        assert sources == {"session-1"}
        assert len(listener.of("/matched")) == len(listener.of("/named")) == 1
        until(lambda: listener.of("/present"))
        assert listener.of("edge_lab_jx01/p_0001/config") == [{}]
        assert len(listener.of("/camera/cam1/status")) == 1


@pytest.mark.parametrize("name", ["mosquitto.conf"])
def test_example_configuration_starts(tmp_path: Path, name: str) -> None:
    """mosquitto reads every line of it, with plain paths in the place of the system's."""
    text = (EXAMPLES / "mosquitto" / name).read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith(("#", "listener"))]
    tls = {"cafile", "certfile", "keyfile", "acl_file", "require_certificate", "use_identity_as_username"}
    mine = "\n".join(line for line in lines if line.split()[0] not in tls).replace(
        "/var/lib/mosquitto/", f"{tmp_path}/"
    )
    with configured_mosquitto(tmp_path / "broker", "listener {port} 127.0.0.1\n" + mine) as broker:
        assert broker.process is not None
        assert broker.process.poll() is None


# --- watch ------------------------------------------------------------------------------------------------

WATCH = [sys.executable, "-m", "edge_agent", "watch"]


def test_watch_prints_messages_and_ends_cleanly(mosquitto: Mosquitto, tmp_path: Path) -> None:
    with (
        running([*WATCH, "--broker", mosquitto.url, "--json", "--count", "8"]) as lines,
        outbox_at(tmp_path / "o.db") as outbox,
        publishing(outbox, mosquitto.url) as publisher,
    ):
        wait_for_subscriber(publisher)
        publisher.send_telemetry(telemetry())
        for track in range(2, 8):
            publisher.publish(identity(track))
        until(lambda: len(lines) == 8)
        assert {json.loads(line)["source"] for line in lines} == {"edge/v1/lab/jx01"}


def test_watch_without_broker_prints_an_error(free_port: int) -> None:
    words = [*WATCH, "--broker", f"mqtt://127.0.0.1:{free_port}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "refused" in done.stderr
    assert "Traceback" not in done.stderr


def test_watch_ends_with_ctrl_c(mosquitto: Mosquitto, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with (
        started([*WATCH, "--broker", mosquitto.url], log=log) as process,
        outbox_at(tmp_path / "o.db") as outbox,
        publishing(outbox, mosquitto.url) as publisher,
    ):
        wait_for_subscriber(publisher)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert "Traceback" not in log.read_text()


def drawn(view: View, width: int = 200) -> str:
    from edge_agent.cli.console import PlainConsole

    console = PlainConsole(width=width, file=open(os.devnull, "w"), record=True)  # noqa: SIM115, PTH123 - never read
    console.print(view.render())
    console.file.close()
    return console.export_text()


MERGED = PersonData("merged", "p-1", absorbed_id="p-2")


def test_view_shows_devices_cameras_and_events() -> None:
    view = View("mqtt://host:1883")
    root = "edge/v1/lab/jx01"
    from edge_agent.core.events import (
        GapData,
        NumberRange,
        StatusData,
        alert_event,
        camera_status_event,
        new_event,
    )

    away = SourceStatus("cam2", SourceState.RECONNECTING, "x", 1.7e9)
    for topic, event in [
        ("status", new_event("status", StatusData("degraded", 1.7e9, "cam2 is away"), time=1.7e9)),
        ("telemetry", new_event("telemetry", telemetry(), time=1.7e9)),
        (
            "camera/cam2/status",
            camera_status_event(away),
        ),
        ("identity/matched", identity(3, name="[red]Ada\x1b[31m")),
        ("identity/corrected", identity(3, name="Bob", kind=DecisionKind.CORRECTED, previous="p-9")),
        ("person/merged", new_event("person", MERGED, detail="merged", time=1.7e9)),
        ("present", new_event("present", PresentData(1, ()), time=1.7e9)),
        ("gap", new_event("gap", GapData("age", (NumberRange(4, 6),), 3), time=1.7e9)),
        ("alert/hot", alert_event("hot", "too hot", time=1.7e9)),
    ]:
        view.add(f"{root}/{topic}", encode(event))
    view.add(f"{root}/cmd/name", b"not an event")
    text = drawn(view)
    shown = (
        "lab/jx01",
        "degraded cam2 is away",
        "51.5 °C",
        "reconnecting",
        "[red]Ada\\x1b[31m",
        "gap of 3",
        "p-9 ->",
        "person merged",
        "p-2 ->",
        "too hot",
    )
    assert all(words in text for words in shown)
    assert view.unread == 1


def test_view_of_a_usual_terminal_breaks_no_id_time_or_score() -> None:
    view = View("mqtt://host:1883")
    for device in ("lab/jx01", "lab/jx02"):
        event = identity(30117, identity="p-3gz2wlaiu6ex", name=None, score=0.8124, threshold=0.7311)
        event = replace(event, source=f"edge/v1/{device}")
        view.add(f"edge/v1/{device}/identity/matched", encode(event))
        text = drawn(view, 80)
        assert all(words in text for words in ("#30117", "p-3gz2wlaiu6ex", "0.812", "0.731", "threshold"))
        assert "…" not in text
    fused = identity(
        1, kind=DecisionKind.CORRECTED, identity="p-3gz2wlaiu6ex", previous="p-rdpi4yj7gpza", name=None
    )
    view.add("edge/v1/lab/jx01/identity/corrected", encode(fused))
    assert all(words in drawn(view, 80) for words in ("p-rdpi4yj7gpza ->", "p-3gz2wlaiu6ex", "0.731"))
    view.add("edge/v1/lab/jx01/identity/matched", encode(identity(1, name="A" * 128)))
    assert "0.731" in drawn(view, 80), "a long name does not take the place of the scores"


@settings(max_examples=50, deadline=None)
@given(topic=st.text(max_size=40), payload=st.binary(max_size=100))
def test_view_survives_anything(topic: str, payload: bytes) -> None:
    view = View("x")
    view.add(topic, payload)
    drawn(view)
