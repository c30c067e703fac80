"""What the operator's page costs: `python -m benchmarks.page [--seconds 20]`.

The whole pipeline with a simulated engine (8 cameras with 8 people, batches of 64, as `--only batch-64`),
while 0, 1 and 4 viewers watch all cameras through a real page: crops per second, memory and CPU of the page's
process. Runs of all numbers of viewers alternate. The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from benchmarks.catalogue import SIMULATED
from edge_agent.page.users import make_link

VIEWERS = (0, 1, 4)
PORT = 18799
BATCH = ("--cameras", "8", "--people", "8", "--batch", "64")
LEAVE_S = 4.0
"""For the start of the agent and the page, before the page's CPU is measured."""


def main() -> int:
    """Run the command line."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.page")
    options.add_argument("--seconds", type=float, default=20.0)
    options.add_argument("--times", type=int, default=2, help="runs with each number of viewers")
    options.add_argument("--viewers", type=int, nargs="*", default=VIEWERS)
    chosen = options.parse_args()
    rows = [measured(count, chosen.seconds) for _ in range(chosen.times) for count in chosen.viewers]
    for row in rows:
        print(row)
    print(json.dumps(rows))
    return 0


def measured(viewers: int, seconds: float) -> dict[str, Any]:
    """Return the figures of one run."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        words = [sys.executable, "-m", "edge_agent", "bench", "--pipeline", "--engine", SIMULATED, *BATCH]
        words += ["--seconds", str(seconds), "--json"]
        environment = os.environ | {"TMPDIR": folder}
        bench = subprocess.Popen(words, stdout=subprocess.PIPE, env=environment, text=True)  # noqa: S603 - itself
        stack.callback(bench.kill)
        state = _wait_for_state(Path(folder), bench)
        page = _start_page(state, stack) if viewers or os.environ.get("IDLE_PAGE") else None
        watching = [Viewer(state) for _ in range(viewers)]
        for one in watching:
            one.start()
        time.sleep(LEAVE_S)
        before = None if page is None else _usage(page.pid)
        time.sleep(max(1.0, seconds / 2))
        after = None if page is None else _usage(page.pid)
        output, _ = bench.communicate()
        found = json.loads(output)
    row: dict[str, Any] = {"viewers": viewers} | {key: found[key] for key in found if _is_figure(found[key])}
    row["pictures_per_s"] = round(sum(one.pictures / one.seconds for one in watching), 1)
    row["kilobytes_per_picture"] = round(
        sum(one.bytes for one in watching) / 1e3 / max(1, sum(one.pictures for one in watching)), 1
    )
    if before is not None and after is not None:
        row["page_mb"] = after[2]
        row["page_cpu_percent"] = round(100 * (after[1] - before[1]) / (after[0] - before[0]), 1)
    return row


def _is_figure(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _wait_for_state(folder: Path, bench: subprocess.Popen[str]) -> Path:
    while bench.poll() is None:
        for found in folder.glob("edge-agent-bench-*/state/page.sock"):
            return found.parent
        time.sleep(0.05)
    raise SystemExit("the agent ended before its socket was there")


def _start_page(state: Path, stack: ExitStack) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "edge_agent", "page", "--state", str(state), "--port", str(PORT)]
    page = subprocess.Popen([*words, "--config", os.devnull], stderr=subprocess.DEVNULL)  # noqa: S603 - itself
    stack.callback(page.wait)
    stack.callback(page.terminate)
    while True:
        try:
            http.client.HTTPConnection("127.0.0.1", PORT, timeout=5).request("GET", "/api/start")
            return page
        except OSError:
            time.sleep(0.05)


def _usage(process: int) -> tuple[float, float, float]:
    """Return the time, the CPU seconds of a process, and its resident megabytes."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    ticks, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    return (
        time.monotonic(),
        (int(fields[11]) + int(fields[12])) / ticks,
        round(int(fields[21]) * page / 1e6, 1),
    )


class Viewer(threading.Thread):
    """Watches all cameras, as the browser does; it decodes nothing."""

    def __init__(self, state: Path) -> None:
        super().__init__(daemon=True)
        self._token = make_link(state)
        self._cookie = _log_in(self._token)
        self.pictures = self.bytes = 0
        self.seconds = 1e-9

    def run(self) -> None:
        """Ask for each next picture until the page ends."""
        own = f"http://127.0.0.1:{PORT}"
        headers = {"Cookie": self._cookie}
        cameras = [f"cam{number}" for number in range(1, 9)]
        address = f"ws://127.0.0.1:{PORT}/ws"
        with connect(address, origin=own, additional_headers=headers, max_size=None) as link:  # type: ignore[arg-type]
            began = time.monotonic()
            for camera in cameras:
                link.send(json.dumps({"picture": camera}))
            with contextlib.suppress(ConnectionClosed):
                self._watch(link, cameras, began)

    def _watch(self, link: ClientConnection, cameras: list[str], began: float) -> None:
        for message in link:
            wanted = cameras if isinstance(message, str) else [self._camera(message)]
            if isinstance(message, bytes):
                self.pictures, self.bytes = self.pictures + 1, self.bytes + len(message)
                self.seconds = time.monotonic() - began
            elif json.loads(message)["type"] != "agent":
                continue
            for camera in wanted:
                link.send(json.dumps({"picture": camera}))

    @staticmethod
    def _camera(message: bytes) -> str:
        return str(json.loads(message[4 : 4 + int.from_bytes(message[:4], "big")])["camera"])


def _log_in(token: str) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=10)
    headers = {"content-type": "application/json"}
    connection.request("POST", "/api/login/link", json.dumps({"token": token}), headers)
    answer = connection.getresponse()
    cookie = str(answer.headers["set-cookie"]).partition(";")[0]
    connection.close()
    return cookie


if __name__ == "__main__":
    raise SystemExit(main())
