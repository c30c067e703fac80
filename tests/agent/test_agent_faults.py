"""Wrong input and faults of the machine: one clear message, exit 1, no traceback; and clean ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import structlog
from onnx import TensorProto, helper

from edge_agent.__main__ import main
from edge_agent.agent import daemon
from tests import tiny_detectors
from tests.agent.test_agent import PEOPLE, config, events, pictures, put, put_all, running, wait_for
from tests.conftest import find_free_port
from tests.source.test_source_stream import serving

__all__ = ["pictures"]  # a fixture

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """The command `edge-agent`, run here: exit code, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["edge-agent", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        reported = capsys.readouterr()
        assert "Traceback" not in reported.err
        return int(end.value.code or 0), reported.out, reported.err

    yield run
    structlog.reset_defaults()  # the stream that logs went to is gone


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return write_video(tmp_path / "clip.avi", 6)


def write_video(path: Path, frames: int) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 160))
    noise = np.random.default_rng(0).integers(0, 255, (160, 64, 3), dtype=np.uint8)
    for n in range(frames):
        writer.write(np.roll(noise, n, 1))
    writer.release()
    return path


def plain(
    state: Path, *, detector: object = "none", model: object = "colour-stripes", broker: object = "none"
) -> tuple[object, ...]:
    """Options of the cheapest run, or with another detector, model or broker."""
    return "--detector", detector, "--model", model, "--broker", broker, "--state", state


def network(path: Path, shape: list[int | str], dtype: int = TensorProto.FLOAT) -> Path:
    """An ONNX file whose input has `shape`."""
    node = helper.make_node("Identity", ["x"], ["y"])
    value = (dtype, shape)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", *value)],
        [helper.make_tensor_value_info("y", *value)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(path))
    return path


def one_message(reported: str) -> str:
    """The message that a failing command ends with."""
    (line,) = [line for line in reported.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.avi", None, "No such file"),
        ("text.avi", b"no video\n" * 50, "not a video"),
        ("empty.avi", b"", "is empty"),
        ("folder", ..., "crops:"),
    ],
)
def test_sources_that_cannot_be_read(
    agent: Run, tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    path = tmp_path / name
    if content is ...:
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    report = tmp_path / "people.html"
    code, out, reported = agent("run", "--source", path, *plain(tmp_path / "state"), "--report", report)
    assert (code, out, report.exists()) == (1, "", False)
    assert words in one_message(reported)
    assert str(path) in one_message(reported)


def test_one_of_two_files_is_missing(agent: Run, tmp_path: Path, video: Path) -> None:
    missing = tmp_path / "missing.avi"
    final = tmp_path / "final.txt"
    code, out, reported = agent(
        "run", "--source", video, "--source", missing, *plain(tmp_path / "state"), "--mot-final", final
    )
    assert code == 1
    assert str(missing) in one_message(reported)
    assert (tmp_path / "final-clip.txt").exists()  # the other was read to its end
    assert out.startswith("6 frames, 6 crops embedded, ")


def test_results_of_the_other_files_are_written_where_one_fails(
    agent: Run, tmp_path: Path, video: Path
) -> None:
    broken, page = tmp_path / "broken.avi", tmp_path / "people.html"
    broken.write_bytes(b"no video\n" * 50)
    code, out, reported = agent(
        "run", "--source", broken, "--source", video, *plain(tmp_path / "state"), "--report", page, "--json"
    )
    assert code == 1
    assert str(broken) in one_message(reported)
    assert json.loads(out)["frames"]["clip"] == 6
    assert "clip: 6 frames" in page.read_text()


def test_a_file_twice_is_two_cameras(agent: Run, tmp_path: Path, video: Path) -> None:
    code, out, _ = agent("run", "--source", video, "--source", video, *plain(tmp_path / "state"), "--json")
    assert code == 0
    assert json.loads(out)["frames"] == {"clip": 6, "clip-2": 6}  # in the order of their first frames


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ([3, 256, 128], "expected pictures [batch, 3, height, width]"),
        ([1, 3, 256, 128], "batch axis is fixed at 1"),
        (["N", 1, 256, 128], "expected pictures [batch, 3, height, width]"),
        (["N", 10], "expected pictures"),
    ],
)
def test_networks_that_do_not_fit(
    agent: Run, tmp_path: Path, video: Path, shape: list[int | str], words: str
) -> None:
    model = network(tmp_path / "net.onnx", shape)
    code, _, reported = agent("run", "--source", video, *plain(tmp_path / "state", model=model))
    assert code == 1
    assert words in one_message(reported)
    assert str(model) in one_message(reported)


def test_other_models_that_do_not_fit(agent: Run, tmp_path: Path, video: Path) -> None:
    text = tmp_path / "text.onnx"
    text.write_text("no network")
    whole = network(tmp_path / "int.onnx", ["N", 3, 256, 128], TensorProto.INT64)
    for model, words in (
        (tmp_path / "missing.onnx", "engine.model: cannot read"),
        (text, "not an ONNX file"),
        (whole, "INT64"),
    ):
        code, _, reported = agent("run", "--source", video, *plain(tmp_path / "state", model=model))
        assert (code, words in one_message(reported)) == (1, True), reported
    lookalike = tiny_detectors.write(tmp_path / "like.onnx", tiny_detectors.deepstream())
    for detector, words in (
        ("circus", "no detector 'circus'"),
        (f"yolox:{tmp_path / 'missing.onnx'}", "missing.onnx"),
        (f"yolox:{whole}", "int.onnx"),
        (f"yolox:{lookalike}", f"it looks like end2end: write end2end:{lookalike}"),
        ("yolo11:net.onnx", "yolov8 (YOLOv8, YOLOv9, YOLO11, YOLO12)"),
        ("external", "external_topics"),
    ):
        code, _, reported = agent("run", "--source", video, *plain(tmp_path / "state", detector=detector))
        assert (code, words in one_message(reported)) == (1, True), reported


def test_a_reid_network_as_detector(agent: Run, tmp_path: Path, video: Path, osnet_onnx: Path) -> None:
    options = plain(tmp_path / "state", detector=f"yolox:{osnet_onnx}")
    code, _, reported = agent("run", "--source", video, *options)
    assert code == 1
    assert "is not of kind yolox: its output is [512]" in one_message(reported)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[mqtt\nport = 1", "not valid TOML"),
        ("[mqtt]\nbrokr = 'x'", "unknown key 'mqtt.brokr'; did you mean 'broker'?"),
        ("[mqqt]\nbroker = 'x'", "did you mean 'mqtt'?"),
        ("[mqtt]\nsite = 'A b'", "mqtt.site"),
        ("[mqtt]\ndevice = ''", "mqtt.device"),
        ("[engine]\nmax_batch = 0", "engine.max_batch"),
        ("[[sources]]\nurl = 'a.avi'\nid = 'x'\n[[sources]]\nurl = 'b.avi'\nid = 'x'", "the id 'x'"),
        ("[[sources]]\nurl = 'rtsp://h/x'\nrealtime = true", "'realtime' is not for this kind"),
        ("sources = []", "no source"),
    ],
)
def test_settings_that_are_wrong(agent: Run, tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f"state_dir = '{tmp_path / 'state'}'\n{text}\n" if "[mqtt\n" not in text else text)
    code, _, reported = agent("run", "--config", path)
    assert code == 1
    assert words in reported
    assert reported.startswith("error: ")


def test_addresses_that_are_wrong_show_no_password(agent: Run, tmp_path: Path, video: Path) -> None:
    for broker in ("http://me:secret@host", "mqtt://me:secret@host:99999", "mqtt://me:secret@"):
        options = plain(tmp_path / "state", broker=broker)
        code, _, reported = agent("run", "--source", video, *options)
        assert (code, "mqtt://HOST:PORT" in one_message(reported), "secret" in reported) == (
            1,
            True,
            False,
        ), reported
    code, _, reported = agent("run", "--source", "ftp://me:secret@host/x", *plain(tmp_path / "state"))
    assert (code, "secret" in reported) == (1, False)


def test_folders_and_files_that_cannot_be_written(agent: Run, tmp_path: Path, video: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    nowhere = tmp_path / "nowhere" / "file"
    state = tmp_path / "state"
    for options, path in (
        (plain(in_the_way), in_the_way),
        (plain(in_the_way / "below"), in_the_way / "below"),
        ((*plain(state), "--events", nowhere), nowhere),
        ((*plain(state), "--events", tmp_path), tmp_path),
        ((*plain(state), "--mot", nowhere), nowhere),
        ((*plain(state), "--mot", tmp_path), tmp_path),
        ((*plain(state), "--mot-final", nowhere), nowhere),
        ((*plain(state), "--mot-final", tmp_path), tmp_path),
    ):
        code, out, reported = agent("run", "--source", video, *options)
        assert (code, out, str(path) in one_message(reported)) == (1, "", True), reported


def test_a_gallery_that_is_damaged(agent: Run, tmp_path: Path, video: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "gallery.db").write_bytes(os.urandom(8192))
    code, _, reported = agent("run", "--source", video, *plain(state))
    assert code == 1
    assert str(state / "gallery.db") in one_message(reported)


def damage_outbox(state: Path) -> Path:
    state.mkdir()
    (state / "outbox.db").write_bytes(os.urandom(8192))
    return state


def test_an_outbox_that_is_damaged_is_set_aside(agent: Run, tmp_path: Path, video: Path) -> None:
    state = damage_outbox(tmp_path / "state")
    reported = tmp_path / "events.jsonl"
    broker = f"mqtt://127.0.0.1:{find_free_port()}"
    daemon_drain, daemon.DRAIN_S = daemon.DRAIN_S, 0.1
    try:
        code, out, err = agent("run", "--source", video, *plain(state, broker=broker), "--events", reported)
    finally:
        daemon.DRAIN_S = daemon_drain
    assert code == 0, err
    assert "wait in the outbox" in out
    (alert,) = events(reported, "outbox_damaged")
    assert "damaged" in alert["data"]["message"]  # type: ignore[index]
    assert len(list(state.glob("outbox.db*"))) >= 2


def test_a_full_disk_under_the_result_files(
    agent: Run, tmp_path: Path, pictures: dict[int, list[bytes]]
) -> None:
    crops = tmp_path / "crops"
    put_all(crops, pictures)
    path = config(tmp_path, crops)
    code, _, reported = agent("run", "--config", path, "--mot", "/dev/full")
    assert code == 1
    assert "cannot write /dev/full: no space is left" in one_message(reported)


def test_a_full_disk_under_the_events_file_costs_events_and_nothing_else(
    agent: Run, tmp_path: Path, pictures: dict[int, list[bytes]]
) -> None:
    crops = tmp_path / "crops"
    put_all(crops, pictures)
    code, out, reported = agent("run", "--config", config(tmp_path, crops), "--events", "/dev/full", "--json")
    assert code == 0
    assert f'"identities": {PEOPLE}' in out
    assert reported.count("events file cannot be written") == 1
    assert "cannot write the events file /dev/full: no space is left on its disk; free some" in reported


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("may not mount a small disk here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> None:
    with (folder / "filler").open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                return


def test_a_disk_that_is_full_at_the_start(agent: Run, tmp_path: Path, video: Path) -> None:
    with small_disk(tmp_path / "disk", "400k") as disk:
        fill(disk)
        code, _, reported = agent("run", "--source", video, *plain(disk / "state"))
        assert code == 1
        assert "no space is left" in one_message(reported).lower()


@pytest.mark.slow
def test_a_disk_that_fills_while_people_come(tmp_path: Path, pictures: dict[int, list[bytes]]) -> None:
    """The agent ends with a clear message, the gallery is intact, and with free space it continues."""
    crops, reported, log = tmp_path / "crops", tmp_path / "events.jsonl", tmp_path / "log"
    put_all(crops, pictures)
    with small_disk(tmp_path / "state", "2m") as state:
        path = config(tmp_path, crops, once=False)
        with running("run", "--config", path, "--events", reported, log=log) as process:
            wait_for("people to be enrolled", lambda: len(events(reported, "enrolled")) >= PEOPLE)
            fill(state)
            put(crops, pictures, 2000.0, {21: 1, 22: 3})
            assert process.wait(60) == 1
        assert "no space is left" in one_message(log.read_text())
        assert "Traceback" not in log.read_text()
        (state / "filler").unlink()
        again = tmp_path / "again.jsonl"
        with running("run", "--config", path, "--events", again, log=log) as process:
            wait_for("people to be seen", lambda: events(again))
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        database = sqlite3.connect(state / "gallery.db")
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        kept = {row[0] for row in database.execute("SELECT id FROM identity")}
        database.close()
    assert kept >= {event["data"]["identity_id"] for event in events(reported, "enrolled")}  # type: ignore[index]


def test_two_agents_on_one_state_folder(agent: Run, tmp_path: Path) -> None:
    crops = tmp_path / "crops"
    crops.mkdir()
    path = config(tmp_path, crops, once=False)
    with running("run", "--config", path, log=tmp_path / "log") as first:
        wait_for("the first", lambda: "started" in (tmp_path / "log").read_text())
        code, _, reported = agent("run", "--config", path)
        assert code == 1
        assert str(tmp_path / "state") in one_message(reported)
        first.send_signal(signal.SIGTERM)
        assert first.wait(20) == 0


# ---- reload


def test_hangup_reloads_what_may_change_and_names_the_rest(tmp_path: Path) -> None:
    crops, log = tmp_path / "crops", tmp_path / "log"
    crops.mkdir()
    path = config(tmp_path, crops, once=False)
    before = path.read_text()
    with running("run", "--config", path, log=log) as process:
        wait_for("the start", lambda: '"started"' in log.read_text())

        def hang_up(text: str, answer: str) -> str:
            known = log.read_text().count(answer)
            path.write_text(text)
            process.send_signal(signal.SIGHUP)
            wait_for(answer, lambda: log.read_text().count(answer) > known)
            return [line for line in log.read_text().splitlines() if answer in line][-1]

        changed = before.replace("threads = 1", "threads = 2") + '[identify]\nenrolment = "watchlist"\n'
        reported = hang_up(changed + "[gallery]\nttl_hours = 1.0\n", "settings_reloaded")
        assert '"applied": ["gallery.ttl_hours", "identify.enrolment"]' in reported
        assert '"restart_required": ["engine.threads"]' in reported
        wait_for("the gallery", lambda: expiry(tmp_path / "state") == 3600.0)
        # What needs a restart is named again for as long as there was none.
        assert "engine.threads" in hang_up(changed + "[gallery]\nttl_hours = 2.0\n", "settings_reloaded")
        assert "brokr" in hang_up(before + "brokr = 1\n", "reload_refused")
        assert process.poll() is None
        hang_up(before + 'version = "3.1.1"\n', "settings_reloaded")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def expiry(state: Path) -> float | None:
    database = sqlite3.connect(state / "gallery.db")
    try:
        found = database.execute("SELECT value FROM meta WHERE key = 'ttl_s'").fetchone()
    finally:
        database.close()
    return None if found is None else float(found[0])


# ---- the end


@contextmanager
def deaf_broker() -> Iterator[str]:
    """Accepts TCP connections and never sends a byte."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"mqtt://127.0.0.1:{server.getsockname()[1]}"


def stop(process: subprocess.Popen[bytes], number: int) -> float:
    began = time.monotonic()
    process.send_signal(number)
    assert process.wait(30) == 0
    return time.monotonic() - began


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("state", ["file", "unreachable", "deaf", "start", "drain"])
def test_a_stop_is_clean(tmp_path: Path, state: str, number: int) -> None:
    video = write_video(tmp_path / "long.avi", 5 if state == "drain" else 2000)
    log, final = tmp_path / "log", tmp_path / "final.txt"
    broker = f"mqtt://127.0.0.1:{find_free_port()}" if state in {"unreachable", "drain"} else "none"
    with deaf_broker() as deaf:
        settings = tmp_path / "config.toml"
        settings.write_text(f'[[sources]]\nurl = "{video}"\nrealtime = true\n[engine]\nthreads = 1\n')
        options = plain(tmp_path / "state", broker=deaf if state == "deaf" else broker)
        options += ("--mot-final", final)
        if state == "drain":
            damage_outbox(tmp_path / "state")  # so that there is something to deliver
        with running("run", "--config", settings, *options, log=log) as process:
            sign = "self_test_passed" if state == "start" else '"started"'
            wait_for(sign, lambda: sign in log.read_text())
            if state == "drain":
                wait_for("the end of the video", final.exists)
            elif state != "start":
                time.sleep(1.0)
            print(f"{state} {signal.Signals(number).name}: {stop(process, number):.2f} s")
    assert "Traceback" not in log.read_text()
    assert "terminate called" not in log.read_text()


@pytest.mark.slow
def test_a_stop_with_frozen_cameras_is_clean(tmp_path: Path) -> None:
    log, settings = tmp_path / "log", tmp_path / "config.toml"
    mounts = ("/a", "/b", "/c")
    with serving(*(word for mount in mounts for word in ("--mount", mount))) as server, deaf_broker() as deaf:
        cameras = "".join(f'[[sources]]\nurl = "{server.url(m)}"\nid = "{m[1:]}"\n' for m in mounts)
        settings.write_text(cameras + "[engine]\nthreads = 1\n")
        events_file = tmp_path / "events.jsonl"
        options = (*plain(tmp_path / "state", broker=deaf), "--events", events_file)
        with running("run", "--config", settings, *options, log=log) as process:
            wait_for("the start", lambda: '"started"' in log.read_text())
            time.sleep(5)
            server.freeze()
            time.sleep(1)
            print(f"three frozen cameras: {stop(process, signal.SIGTERM):.2f} s")
        server.thaw()
    assert "Traceback" not in log.read_text()
    assert "terminate called" not in log.read_text()


def test_a_stop_ends_the_wait_for_the_broker() -> None:
    class Stuck:
        def drain(self, timeout: float) -> bool:
            time.sleep(timeout)
            return False

    stop_asked = threading.Event()
    threading.Timer(0.1, stop_asked.set).start()
    began = time.monotonic()
    daemon.drain(Stuck(), stop_asked)  # type: ignore[arg-type]
    assert time.monotonic() - began < daemon.DRAIN_S / 2


STUCK = """
import ctypes, threading
from edge_agent.cli.service import run_until_stopped

class Stuck:
    opened = threading.Event()
    reread = None
    def asked_to_stop(self):
        print("stops", flush=True)
    def run(self, stop):
        print("begun", flush=True)
        ctypes.CDLL(None).sleep(60)  # as a library does that builds an engine: no Python runs here

run_until_stopped(Stuck())
"""


def test_a_stop_while_a_library_is_busy_at_the_start() -> None:
    with subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
