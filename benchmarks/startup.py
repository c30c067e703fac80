"""Start-up times of the command line and the agent on this machine.

    python -m benchmarks.startup --video vtest.avi [--runs 5] [--detector hog] [--output startup.json]

First the CPU (user and system) of some short commands. Then the time from the execution of `edge-agent run`
until a subscriber of a real broker receives the first messages, with ONNX Runtime and the shipped network:
once with the video as a recording, once as a live RTSP camera (GStreamer's server; left out where that is
missing). An identity needs several frames of evidence, so the time from a person's first frame to the
decision is shown separately.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from edge_agent.core.delivery_settings import MqttSettings
from edge_agent.core.manifest import write_json_atomic
from edge_agent.core.mqtt import BrokerSettings
from edge_agent.deliver.subscriber import Subscriber
from edge_agent.offline.bench.environment import machine, open_broker

LONGEST_S = 60.0
"""Longer starts count as failed."""

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "edge-agent --version": ["-m", "edge_agent", "--version"],
    "edge-agent --help": ["-m", "edge_agent", "--help"],
    "edge-agent run --help": ["-m", "edge_agent", "run", "--help"],
}

SHOWN = {
    "first_message_s": "first message of any kind",
    "online_s": "status online",
    "online_cpu_s": "CPU of the agent until then",
    "camera_s": "camera online",
    "identity_s": "first identity event",
    "evidence_s": "of that: from the person's first frame to the decision",
    "cpu_s": "CPU of the agent until then",
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument(
        "--video", type=Path, help="with people in the first frame; by default only CPU is measured"
    )
    options.add_argument("--runs", type=int, default=5)
    options.add_argument("--detector", default="hog")
    options.add_argument("--fps", type=int, default=10, help="rate of the live camera")
    options.add_argument("--output", type=Path, help="write the result to this file, as JSON")
    chosen = options.parse_args()
    result: dict[str, Any] = {
        "machine": machine(),
        "load_average": os.getloadavg()[0],  # of the machine when the measurement begins
        "runs": chosen.runs,
        "cpu_s": {name: command_cpu(words, 2 * chosen.runs) for name, words in COMMANDS.items()},
    }
    if chosen.video is not None:
        result["start"] = {
            "recording": [start(str(chosen.video), chosen.detector) for _ in range(chosen.runs)],
            "camera": list(cameras(chosen.video, chosen.fps, chosen.detector, chosen.runs)),
        }
    if chosen.output is not None:
        write_json_atomic(chosen.output, result)
    print(markdown(result))


# --- CPU of short commands ----------------------------------------------------------------------


def command_cpu(words: list[str], runs: int) -> dict[str, float]:
    """Return user plus system seconds of one command: minimum and median."""
    command = [sys.executable, *words]
    spent = [
        _cpu_of(lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True))  # noqa: S603
        for _ in range(runs)
    ]
    return {"least": round(min(spent), 3), "median": round(statistics.median(spent), 3)}


def _cpu_of(run: Callable[[], object]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


# --- the agent ----------------------------------------------------------------------------------


def start(source: str, detector: str) -> dict[str, Any]:
    """Start the agent once, up to the first identity event; seconds since its execution."""
    with tempfile.TemporaryDirectory() as folder, open_broker(Path(folder)) as (url, _):
        log = Path(folder) / "log"
        words = ["-m", "edge_agent", "run", "--source", source, "--detector", detector, "--broker", url]
        with (
            Subscriber(BrokerSettings.of(MqttSettings(broker=url)), ("edge/v1/#",)) as subscriber,
            log.open("wb") as errors,
        ):
            began = time.time()
            agent = subprocess.Popen(  # noqa: S603
                [sys.executable, *words, "--state", f"{folder}/state"], stdout=errors, stderr=errors
            )
            try:
                found = watch(subscriber, began, agent)
            finally:
                agent.terminate()
                agent.wait(10)
        return found | {"parts_s": parts(log)}


def watch(subscriber: Subscriber, began: float, agent: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Times of first events."""
    found: dict[str, Any] = {}
    while "identity_s" not in found:
        message = subscriber.next(0.5)
        if time.time() - began > LONGEST_S or agent.poll() is not None:
            raise SystemExit(f"no identity event; so far: {found}")
        if message is None:
            continue
        at = round(time.time() - began, 3)
        found.setdefault("first_message_s", at)
        kind = message.topic.split("/")[4:]
        document = json.loads(message.payload)
        data = document.get("data", {})
        if kind == ["status"] and data.get("state") == "online":
            found.setdefault("online_s", at)
            found.setdefault("online_cpu_s", cpu_of_process(agent.pid))
        elif kind[0] == "camera" and data.get("state") == "online":
            found.setdefault("camera_s", at)
        elif kind[0] == "identity":
            found["identity_s"] = at
            found["evidence_s"] = round(_seconds(data["last_seen"]) - _seconds(data["first_seen"]), 3)
            found["cpu_s"] = cpu_of_process(agent.pid)
    return found


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def cpu_of_process(pid: int) -> float:
    """Return user plus system seconds of a running process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def parts(log: Path) -> dict[str, float] | None:
    """Return the agent's own record of its start."""
    for line in log.read_text().splitlines():
        if '"event": "started"' in line:
            return json.loads(line).get("seconds")
    return None


# --- a live camera ------------------------------------------------------------------------------


def cameras(video: Path, fps: int, detector: str, runs: int) -> Iterator[dict[str, Any]]:
    """Measure with the video as an RTSP camera, which restarts for each run."""
    with tempfile.TemporaryDirectory() as folder:
        write_frames(video, Path(folder), fps * 20)
        for _ in range(runs):
            with rtsp("--frames", folder, "--fps", str(fps)) as url:
                if url is None:
                    return
                yield start(url, detector)


def write_frames(video: Path, folder: Path, most: int) -> None:
    """Write the first frames as JPEG files for the server."""
    import cv2

    capture = cv2.VideoCapture(str(video))
    for number in range(1, most + 1):
        there, image = capture.read()
        if not there:
            break
        cv2.imwrite(str(folder / f"{number:05}.jpg"), image)
    capture.release()


@contextmanager
def rtsp(*arguments: str) -> Iterator[str | None]:
    """Address of a camera of `tests/rtsp_server.py`; None without GStreamer's RTSP server."""
    from tests.conftest import find_free_port

    port = find_free_port()
    server = Path(__file__).parent.parent / "tests" / "rtsp_server.py"
    process = subprocess.Popen(  # noqa: S603
        ["/usr/bin/python3", "-W", "ignore", str(server), "--port", str(port), "--mount", "/cam", *arguments],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield f"rtsp://127.0.0.1:{port}/cam" if process.stdout.readline() == "ready\n" else None
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()


# --- the report ---------------------------------------------------------------------------------


def markdown(result: dict[str, Any]) -> str:
    """Return the tables as Markdown."""
    floor = result["cpu_s"]["python -c pass"]["median"]
    lines = ["| command | CPU s, median | more than python |", "|---|---|---|"]
    for name, spent in result["cpu_s"].items():
        lines.append(f"| `{name}` | {spent['median']:.3f} | {spent['median'] - floor:.3f} |")
    for name, runs in result.get("start", {}).items():
        lines += ["", f"| seconds from exec, {name} | median | worst |", "|---|---|---|"]
        for key, text in SHOWN.items():
            values = [run[key] for run in runs if run.get(key) is not None]
            if values:
                lines.append(f"| {text} | {statistics.median(values):.2f} | {max(values):.2f} |")
        for part in dict.fromkeys(part for run in runs for part in run["parts_s"] or {}):
            values = [run["parts_s"][part] for run in runs]
            lines.append(f"| start-up: {part} | {statistics.median(values):.2f} | {max(values):.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
